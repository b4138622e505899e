//! A TCP stream whose every byte is verified.

use super::pattern::Pattern;
use crate::error::Context;
use core::net::SocketAddr;
use core::time::Duration;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::thread::{self, JoinHandle};
use std::time::Instant;

/// The timeout of a connection attempt, and of a connection without progress.
const PATIENCE: Duration = Duration::from_secs(15);
const BUFFER: usize = 256 * 1024;

/// The amount of data to send.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Amount {
    /// This number of bytes.
    Bytes(u64),
    /// As many bytes as possible in this time.
    For(Duration),
}

/// One side's measurements of a stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Transfer {
    /// Bytes of content.
    pub bytes: u64,
    /// At the sender, the time from the connection until the receiver has read everything. At the receiver, the time
    /// from the first byte to the last.
    pub elapsed: Duration,
}

impl Transfer {
    /// Returns the mean rate of the content; 0 if no time passed.
    pub fn bits_per_second(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 { self.bytes as f64 * 8.0 / seconds } else { 0.0 }
    }
}

/// Accepts one connection in a new thread, reads it to the end, and compares it with the data of [`tcp_send`] for the
/// same seed.
///
/// The thread ends with `InvalidData` at the first difference. It ends with `TimedOut` if no connection arrives, or
/// after 15 seconds without progress. The caller must check that the stream is complete: compare
/// [`bytes`](Transfer::bytes) with the sender's.
///
/// # Panics
/// The thread cannot be created.
pub fn tcp_sink(listener: TcpListener, seed: u64) -> JoinHandle<io::Result<Transfer>> {
    let run = move || receive(accept(&listener)?, &Pattern::new(seed, Pattern::STREAM_BLOCK));
    match thread::Builder::new().name("tcp-sink".into()).spawn(run) {
        Ok(handle) => handle,
        Err(error) => panic!("cannot make a thread for a TCP sink: {error}"),
    }
}

/// Connects to a [`tcp_sink`], sends, and returns when the sink has read everything.
///
/// # Errors
/// `TimedOut` after 15 seconds without a connection or without progress; otherwise the kernel's error.
pub fn tcp_send(destination: SocketAddr, amount: Amount, seed: u64) -> io::Result<Transfer> {
    let pattern = Pattern::new(seed, Pattern::STREAM_BLOCK);
    let mut stream = TcpStream::connect_timeout(&destination, PATIENCE)
        .context(|| format!("cannot connect to {destination} over TCP"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let start = Instant::now();
    let bytes = send(&mut stream, &pattern, amount, start).map_err(stalled)?;
    stream.shutdown(Shutdown::Write)?;
    let unexpected = stream.read(&mut [0]).map_err(stalled)?;
    if unexpected != 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a TCP sink answered with content"));
    }
    Ok(Transfer { bytes, elapsed: start.elapsed() })
}

fn send(stream: &mut TcpStream, pattern: &Pattern, amount: Amount, start: Instant) -> io::Result<u64> {
    let mut sent = 0;
    loop {
        let block = pattern.at(sent);
        let length = match amount {
            Amount::Bytes(total) => (total - sent).min(block.len() as u64) as usize,
            Amount::For(limit) if start.elapsed() < limit => block.len(),
            Amount::For(_) => 0,
        };
        if length == 0 {
            return Ok(sent);
        }
        stream.write_all(&block[..length])?;
        sent += length as u64;
    }
}

fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    let timeout = PollTimeout::try_from(PATIENCE).map_err(io::Error::other)?;
    let ready = poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], timeout)?;
    if ready == 0 {
        return Err(io::Error::new(io::ErrorKind::TimedOut, format!("nobody connected within {PATIENCE:?}")));
    }
    let (stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn receive(mut stream: TcpStream, pattern: &Pattern) -> io::Result<Transfer> {
    let mut buffer = vec![0; BUFFER];
    let mut bytes = 0;
    let mut start = None;
    loop {
        let length = stream.read(&mut buffer).map_err(stalled)?;
        let elapsed = start.get_or_insert_with(Instant::now).elapsed();
        if length == 0 {
            return Ok(Transfer { bytes, elapsed });
        }
        if let Some(position) = pattern.mismatch(bytes, &buffer[..length]) {
            let what = format!("byte {position} of the TCP stream is not what was sent");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        bytes += length as u64;
    }
}

/// Converts `WouldBlock`, the result of a socket timeout, to an error that names the timeout.
fn stalled(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock {
        return io::Error::new(io::ErrorKind::TimedOut, format!("the TCP stream stood still for {PATIENCE:?}"));
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Namespace;
    use core::net::Ipv4Addr;

    fn run(amount: Amount, seeds: [u64; 2]) -> (io::Result<Transfer>, io::Result<Transfer>) {
        let namespace = Namespace::new().expect("namespace");
        namespace.enter(|| {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
            let destination = listener.local_addr().expect("address");
            let sink = tcp_sink(listener, seeds[0]);
            (tcp_send(destination, amount, seeds[1]), sink.join().expect("no panic"))
        })
    }

    #[test]
    fn all_bytes_arrive() {
        for total in [0, 1, Pattern::STREAM_BLOCK as u64, 20_000_001] {
            let (sent, received) = run(Amount::Bytes(total), [9, 9]);
            assert_eq!(sent.expect("sent").bytes, total);
            assert_eq!(received.expect("received").bytes, total);
        }
    }

    #[test]
    fn a_time_bounds_the_stream() {
        let (sent, received) = run(Amount::For(Duration::from_millis(200)), [9, 9]);
        let (sent, received) = (sent.expect("sent"), received.expect("received"));
        assert_eq!(sent.bytes, received.bytes);
        assert!(sent.elapsed >= Duration::from_millis(200) && sent.elapsed < Duration::from_secs(5), "{sent:?}");
        assert!(received.bits_per_second() > 1e8, "checking must not limit the rate: {received:?}");
    }

    #[test]
    fn other_content_is_detected() {
        let (_, received) = run(Amount::Bytes(1000), [9, 10]);
        assert_eq!(received.expect_err("content differs").kind(), io::ErrorKind::InvalidData);
    }
}
