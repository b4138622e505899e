//! UDP echo.

use super::pattern::Pattern;
use crate::error::Context;
use alloc::sync::Arc;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::io;
use std::net::UdpSocket;
use std::thread::{self, JoinHandle};
use std::time::Instant;

/// The interval at which an echo server checks its stop flag.
const STOP_INTERVAL: Duration = Duration::from_millis(20);
const LARGEST_DATAGRAM: usize = 65_507;
/// The limit of data in flight: enough for a tunnel to batch, and less than any default receive buffer.
const BURST: usize = 16;
const BURST_BYTES: usize = 32 * 1024;

/// A thread that returns every datagram to its sender until it is stopped or dropped.
#[derive(Debug)]
pub struct UdpEcho {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<u64>>>,
}

impl UdpEcho {
    /// Serves a bound socket.
    ///
    /// # Errors
    /// The socket or the thread cannot be set up.
    pub fn start(socket: UdpSocket) -> io::Result<Self> {
        socket.set_read_timeout(Some(STOP_INTERVAL))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new().name("udp-echo".into()).spawn(move || serve(&socket, &stopped))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Stops the thread and returns the number of returned datagrams.
    ///
    /// # Errors
    /// The receive error that ended the thread before.
    pub fn stop(mut self) -> io::Result<u64> {
        self.finish()
    }

    fn finish(&mut self) -> io::Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(io::Error::other("the UDP echo thread panicked")),
            None => Ok(0),
        }
    }
}

impl Drop for UdpEcho {
    fn drop(&mut self) {
        // There is no caller left for an error.
        let _ = self.finish();
    }
}

/// Sends one datagram of each size to an echo server, and waits until all are returned with their content.
///
/// Up to 16 datagrams or 32 KiB are in flight at once, and they may return in any order. `timeout` applies to each such
/// burst.
///
/// # Errors
/// `TimedOut` if a datagram was not returned, `InvalidData` if an unexpected one arrived, `ConnectionRefused` without a
/// server; otherwise the kernel's error.
pub fn udp_exchange(destination: SocketAddr, sizes: &[usize], timeout: Duration) -> io::Result<()> {
    let any: IpAddr = if destination.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(destination).context(|| format!("no path to {destination}"))?;
    let mut sizes = sizes.iter().copied().enumerate().peekable();
    let mut buffer = vec![0; LARGEST_DATAGRAM];
    while sizes.peek().is_some() {
        let mut expected = Vec::new();
        let mut bytes = 0;
        while let Some((seed, size)) =
            sizes.next_if(|(_, size)| expected.is_empty() || expected.len() < BURST && bytes + size <= BURST_BYTES)
        {
            let content = Pattern::new(seed as u64, size).at(0).to_vec();
            socket.send(&content).context(|| format!("cannot send {size} bytes to {destination}"))?;
            bytes += size;
            expected.push(content);
        }
        collect(&socket, &mut buffer, expected, timeout)?;
    }
    Ok(())
}

fn collect(socket: &UdpSocket, buffer: &mut [u8], mut expected: Vec<Vec<u8>>, timeout: Duration) -> io::Result<()> {
    let start = Instant::now();
    while !expected.is_empty() {
        let left = timeout.saturating_sub(start.elapsed());
        if left < Duration::from_micros(1) {
            let sizes: Vec<usize> = expected.iter().map(Vec::len).collect();
            let what = format!("datagrams of {sizes:?} bytes did not come back within {timeout:?}");
            return Err(io::Error::new(io::ErrorKind::TimedOut, what));
        }
        socket.set_read_timeout(Some(left))?;
        let length = match socket.recv(buffer) {
            Ok(length) => length,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => continue,
            Err(error) => return Err(error).context(|| "cannot receive an echo".into()),
        };
        let content = &buffer[..length];
        let Some(index) = expected.iter().position(|sent| sent == content) else {
            let what = format!("{length} bytes came back that are none of the datagrams sent");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        };
        expected.swap_remove(index);
    }
    Ok(())
}

fn serve(socket: &UdpSocket, stop: &AtomicBool) -> io::Result<u64> {
    let mut buffer = vec![0; LARGEST_DATAGRAM];
    let mut returned = 0;
    while !stop.load(Ordering::Relaxed) {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => {
                // A missing route, for example while a link is down, is a loss like any other.
                returned += u64::from(socket.send_to(&buffer[..length], from).is_ok());
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(returned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Namespace;

    #[test]
    fn every_size_comes_back() {
        Namespace::new().expect("namespace").enter(|| {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
            let destination = socket.local_addr().expect("address");
            let echo = UdpEcho::start(socket).expect("echo");
            let sizes: Vec<usize> = (0..200).chain([1472, 1473, 32_768, LARGEST_DATAGRAM, LARGEST_DATAGRAM]).collect();
            udp_exchange(destination, &sizes, Duration::from_secs(5)).expect("exchange");
            assert_eq!(echo.stop().expect("echo"), sizes.len() as u64);
            let refused = udp_exchange(destination, &[1], Duration::from_secs(5)).expect_err("nobody there");
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        });
    }

    #[test]
    fn silence_and_other_content_are_errors() {
        Namespace::new().expect("namespace").enter(|| {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
            let destination = socket.local_addr().expect("address");
            let silence = udp_exchange(destination, &[3], Duration::from_millis(50)).expect_err("silence");
            assert_eq!(silence.kind(), io::ErrorKind::TimedOut);
            let liar = thread::spawn(move || {
                socket.recv_from(&mut [0; 16]).expect("the datagram nobody answered");
                let (length, from) = socket.recv_from(&mut [0; 16]).expect("a datagram");
                socket.send_to(&vec![0; length], from).expect("send");
            });
            let lie = udp_exchange(destination, &[3], Duration::from_secs(5)).expect_err("a lie");
            assert_eq!(lie.kind(), io::ErrorKind::InvalidData);
            liar.join().expect("no panic");
        });
    }
}
