//! The messages to systemd: ready, reloading, stopping, alive.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// The service manager's socket, if there is one (`sd_notify(3)`).
pub(crate) struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// The interval of the messages that the manager expects.
    watchdog: Option<Duration>,
}

impl Notifier {
    /// Reads the variables that systemd sets.
    pub(crate) fn of_process() -> io::Result<Self> {
        let variable = std::env::var_os;
        let socket = match variable("NOTIFY_SOCKET").filter(|path| !path.is_empty()) {
            Some(path) => Some((UnixDatagram::unbound()?, address(&path)?)),
            None => None,
        };
        if let Some((socket, _)) = &socket {
            socket.set_nonblocking(true)?;
        }
        let own = std::process::id();
        Ok(Self { socket, watchdog: interval_of(variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"), own) })
    }

    /// Reports that the subnet file is written and that packets are forwarded.
    pub(crate) fn ready(&self) -> io::Result<()> {
        self.send("READY=1")
    }

    /// Reports that the node ends as requested.
    pub(crate) fn stopping(&self) -> io::Result<()> {
        self.send("STOPPING=1")
    }

    /// Reports that the node is alive.
    pub(crate) fn alive(&self) -> io::Result<()> {
        self.send("WATCHDOG=1")
    }

    /// Reports that the node reads its files again. [`Self::ready`] ends that.
    pub(crate) fn reloading(&self) -> io::Result<()> {
        // A unit with Type=notify-reload needs the time too, the others ignore it (sd_notify(3)).
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.as_micros()))
    }

    /// Returns the interval of [`Self::alive`], if systemd asks for it.
    pub(crate) fn watchdog(&self) -> Option<Duration> {
        self.watchdog.filter(|_| self.socket.is_some())
    }

    fn send(&self, message: &str) -> io::Result<()> {
        let Some((socket, address)) = &self.socket else { return Ok(()) };
        socket.send_to_addr(message.as_bytes(), address).map(drop)
    }
}

/// Parses the address of a socket: a path, or `@` and an abstract name.
fn address(path: &OsStr) -> io::Result<SocketAddr> {
    match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(path),
        _ => Err(io::Error::other(format!("NOTIFY_SOCKET={} is no path of a socket", path.display()))),
    }
}

/// Returns half of the time after which systemd considers this process dead.
fn interval_of(micros: Option<OsString>, process: Option<OsString>, own: u32) -> Option<Duration> {
    let number = |text: OsString| text.to_str()?.parse::<u64>().ok();
    if process.is_some_and(|process| number(process) != Some(own.into())) {
        return None;
    }
    let micros = number(micros?)?;
    (micros > 1).then(|| Duration::from_micros(micros / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_gets_two_messages_per_timeout_of_this_process() {
        let interval =
            |micros: &str, process: Option<&str>| interval_of(Some(micros.into()), process.map(Into::into), 7);
        assert_eq!(interval("30000000", Some("7")), Some(Duration::from_secs(15)));
        assert_eq!(interval("30000000", None), Some(Duration::from_secs(15)));
        assert_eq!(interval("30000000", Some("8")), None);
        assert_eq!(interval("30000000", Some("")), None);
        for none in ["", "0", "1", "-5", "infinity"] {
            assert_eq!(interval(none, None), None, "{none}");
        }
        assert_eq!(interval_of(None, Some("7".into()), 7), None);
    }

    #[test]
    fn addresses_are_paths_and_abstract_names() {
        let path = address(OsStr::new("/run/systemd/notify")).unwrap();
        assert_eq!(path.as_pathname(), Some(std::path::Path::new("/run/systemd/notify")));
        assert_eq!(address(OsStr::new("@loden/notify")).unwrap().as_abstract_name(), Some(&b"loden/notify"[..]));
        assert!(address(OsStr::new("run/notify")).unwrap_err().to_string().contains("run/notify"));
        assert!(address(OsStr::new(&format!("/{}", "x".repeat(200)))).is_err());
    }
}
