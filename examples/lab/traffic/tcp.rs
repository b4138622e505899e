//! TCP streams at full speed.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::join;
use crate::variant::Pods;

/// The timeout of a stream without progress.
const PATIENCE: Duration = Duration::from_secs(15);
const WRITE: usize = 128 * 1024;
const READ: usize = 256 * 1024;

/// The received bytes and their time.
pub(crate) struct Transfer {
    pub(crate) bytes: u64,
    /// The time from the first write until the last stream was read to its end.
    pub(crate) elapsed: Duration,
}

/// Sends in every stream for this time.
///
/// # Errors
/// If a stream cannot connect, or makes no progress.
pub(crate) fn run(pods: Pods<'_>, streams: usize, window: Duration) -> io::Result<Transfer> {
    let listener = pods.b.enter(|| TcpListener::bind((pods.address_b, 0)))?;
    let address = listener.local_addr()?;
    let mut pairs = Vec::new();
    for _ in 0..streams {
        let source = pods.a.enter(|| TcpStream::connect_timeout(&address, PATIENCE))?;
        let (sink, _) = listener.accept()?;
        source.set_write_timeout(Some(PATIENCE))?;
        sink.set_read_timeout(Some(PATIENCE))?;
        pairs.push((source, sink));
    }
    let start = Instant::now();
    let bytes = thread::scope(|scope| {
        let mut threads = Vec::new();
        for (source, sink) in pairs {
            threads.push((scope.spawn(move || send(source, start, window)), scope.spawn(move || receive(sink))));
        }
        threads.into_iter().try_fold(0, |sum, (sender, receiver)| {
            let (sent, received) = (join(sender), join(receiver));
            sent?;
            Ok::<_, io::Error>(sum + received?)
        })
    })?;
    Ok(Transfer { bytes, elapsed: start.elapsed() })
}

fn send(mut stream: TcpStream, start: Instant, window: Duration) -> io::Result<()> {
    let block = vec![0x5a; WRITE];
    while start.elapsed() < window {
        stream.write_all(&block)?;
    }
    stream.shutdown(Shutdown::Write)
}

fn receive(mut stream: TcpStream) -> io::Result<u64> {
    let mut buffer = vec![0; READ];
    let mut bytes = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(bytes),
            length => bytes += length as u64,
        }
    }
}
