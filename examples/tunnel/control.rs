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

/// How long no client is accepted after there was no file descriptor for one: the listener stays readable all the while.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Clients at once: each costs a look whenever one has something.
const CLIENTS: usize = 256;

/// A listening socket, its clients, and what they got wrong.
pub(crate) struct Control {
    listener: Socket,
    clients: Vec<Socket>,
    accept_after: Option<Instant>,
    path: PathBuf,
    inode: u64,
    /// Messages that were no command.
    pub(crate) malformed: u64,
}

/// One look at a client.
enum Received {
    Message(Result<Command, CommandError>),
    Nothing,
    Gone,
}

impl Control {
    /// Makes the socket, for its owner alone. One that nobody listens on any more is replaced.
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
        // By the mask and not by chmod afterwards: there is no moment in which others could connect.
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

    /// When to look for clients again, after there was no file descriptor for one.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        self.accept_after
    }

    /// New clients, and their and the old ones' commands, in turn, up to the budget.
    pub(crate) fn take(&mut self, budget: Budget) -> Vec<Command> {
        self.accept(budget);
        let (mut commands, mut gone) = (Vec::new(), Vec::new());
        let mut left = budget.count();
        // Those that may have more: who has nothing is asked once, however much the others have.
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
        // Who was served last is served last again, unless the budget ended before everybody's turn came.
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
                // Dropped, hence closed.
                Ok(_) => {
                    say("clients", format_args!("control: no more than {CLIENTS} clients at once; one is sent away"))
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => {}
                Err(error) => {
                    // Once, and not again at every try until one succeeds.
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

/// Makes way for a new socket, unless what is there is no socket or somebody listens on it.
fn remove_stale(path: &Path, found: &fs::Metadata, address: &SockAddr) -> io::Result<()> {
    if !found.file_type().is_socket() {
        return Err(io::Error::other("this exists and is no socket; choose another path"));
    }
    let probe = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    // A listener whose queue is full would keep us waiting.
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
    // Credentials come with every message, also with an empty one, but not with the end of the connection.
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
        // `MSG_TRUNC` gives the length that it had, not the length there was room for.
        None => Received::Message(Err(CommandError::Length { have: len })),
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // Only if it is still ours: somebody may have put theirs in its place.
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}
