//! The control socket: flannel's commands over a Unix `SOCK_SEQPACKET` socket, from any number of clients.

use std::fs;
use std::io::{self, ErrorKind, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use loden::control::{Command, CommandError};
use loden::worker::Budget;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{MsgFlags, UnixAddr, UnixCredentials, recvmsg};
use nix::sys::stat::{Mode, umask};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::report::say;

/// The pause of accepting after a lack of file descriptors, because the listener stays readable.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The most clients at once. Every event checks each of them.
const CLIENTS: usize = 256;

/// A listening socket, its clients, and their invalid messages.
pub(crate) struct Control {
    listener: Socket,
    clients: Vec<Socket>,
    accept_after: Option<Instant>,
    path: PathBuf,
    inode: u64,
    /// Messages that were not a command.
    pub(crate) malformed: u64,
}

/// The result of a receive from a client.
enum Received {
    Message(Result<Command, CommandError>),
    Nothing,
    Gone,
}

impl Control {
    /// Creates the socket, for its owner alone. A socket without a listener is replaced.
    pub(crate) fn open(path: &Path) -> Result<Self, String> {
        Self::try_open(path).map_err(|error| format!("--control {}: {error}", path.display()))
    }

    fn try_open(path: &Path) -> io::Result<Self> {
        let address = SockAddr::unix(path)?;
        if let Ok(found) = fs::symlink_metadata(path) {
            remove_stale(path, &found, &address)?;
        }
        let listener = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
        listener.set_nonblocking(true)?;
        // The mask is set before, because with a later chmod others could connect in between.
        let mask = umask(Mode::from_bits_truncate(0o177));
        let bound = listener.bind(&address);
        umask(mask);
        bound?;
        let inode = fs::symlink_metadata(path)?.ino();
        let control =
            Self { listener, clients: Vec::new(), accept_after: None, path: path.into(), inode, malformed: 0 };
        control.listener.listen(128)?;
        Ok(control)
    }

    pub(crate) fn poll_fds(&self, now: Instant) -> impl Iterator<Item = PollFd<'_>> {
        let accepts = self.accept_after.is_none_or(|after| now >= after);
        let listener = accepts.then_some(&self.listener);
        listener.into_iter().chain(&self.clients).map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN))
    }

    /// Returns the time of the next accept, after a lack of file descriptors.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        self.accept_after
    }

    /// Accepts new clients, and returns the commands of all clients in turn, up to the budget.
    pub(crate) fn take(&mut self, budget: Budget) -> Vec<Command> {
        self.accept(budget);
        let (mut commands, mut gone) = (Vec::new(), Vec::new());
        let mut left = budget.count();
        // Clients that may have more. A client without messages is read once, however many the others have.
        let mut busy: Vec<_> = (0..self.clients.len()).collect();
        while !busy.is_empty() && left > 0 {
            busy.retain(|number| {
                if left == 0 {
                    return true;
                }
                match receive(&self.clients[*number]) {
                    Received::Message(Ok(command)) => commands.push(command),
                    Received::Message(Err(error)) => {
                        self.malformed += 1;
                        say("malformed commands", format_args!("control: {error}"));
                    }
                    Received::Nothing => return false,
                    Received::Gone => {
                        gone.push(*number);
                        return false;
                    }
                }
                left -= 1;
                true
            });
        }
        gone.sort_unstable();
        for number in gone.into_iter().rev() {
            self.clients.remove(number);
        }
        // The order is kept, unless the budget ended before everybody's turn.
        if !self.clients.is_empty() && left == 0 {
            self.clients.rotate_left(1);
        }
        commands
    }

    fn accept(&mut self, budget: Budget) {
        let paused = self.accept_after.take().is_some();
        for _ in 0..budget.count() {
            match self.listener.accept().and_then(|(client, _)| adopt(client)) {
                Ok(client) if self.clients.len() < CLIENTS => self.clients.push(client),
                // Dropping a client closes it.
                Ok(_) => {
                    say("clients", format_args!("control: no more than {CLIENTS} clients at once; one is sent away"))
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => {}
                Err(error) => {
                    // Reported once, until an accept succeeds.
                    if !paused {
                        say("clients", format_args!("control: no client can be accepted for the moment: {error}"));
                    }
                    self.accept_after = Some(Instant::now() + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }
}

/// Removes an old socket, unless the path is not a socket or somebody listens on it.
fn remove_stale(path: &Path, found: &fs::Metadata, address: &SockAddr) -> io::Result<()> {
    if !found.file_type().is_socket() {
        return Err(io::Error::other("this exists and is no socket; choose another path"));
    }
    let probe = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    // A blocking connect would wait for a listener whose queue is full.
    probe.set_nonblocking(true)?;
    match probe.connect(address) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        Ok(()) | Err(_) => Err(io::Error::other("in use by another process; end it or choose another path")),
    }
}

fn adopt(client: Socket) -> io::Result<Socket> {
    client.set_nonblocking(true)?;
    client.set_passcred(true)?;
    Ok(client)
}

fn receive(client: &Socket) -> Received {
    let mut message = [0; 64];
    let mut buffers = [IoSliceMut::new(&mut message)];
    // Every message has credentials, even an empty one. The end of the connection has none.
    let mut space = nix::cmsg_space!(UnixCredentials);
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
    let (len, is_message) = match recvmsg::<UnixAddr>(client.as_raw_fd(), &mut buffers, Some(&mut space), flags) {
        Ok(received) => (received.bytes, received.cmsgs().is_ok_and(|mut messages| messages.next().is_some())),
        Err(Errno::EAGAIN | Errno::EINTR) => return Received::Nothing,
        Err(_) => return Received::Gone,
    };
    match message.get(..len) {
        Some([]) if !is_message => Received::Gone,
        Some(message) => Received::Message(Command::decode(message)),
        // `MSG_TRUNC` returns the message's length, not the buffer's.
        None => Received::Message(Err(CommandError::Length { have: len })),
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // Removed only if it is still this socket: another process may have replaced it.
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}
