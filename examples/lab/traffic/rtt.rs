//! Round trips of one datagram at a time.

use std::io;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use testbed::probe::UdpEcho;

use crate::variant::Pods;

/// The time after which a datagram or its echo counts as lost.
const LOST: Duration = Duration::from_secs(1);
const PAYLOAD: usize = 64;

/// Returns the times of all completed round trips, in ascending order.
///
/// # Errors
/// If no round trip completed.
pub(crate) fn run(pods: Pods<'_>, window: Duration) -> io::Result<Vec<Duration>> {
    let server = pods.b.enter(|| UdpSocket::bind((pods.address_b, 0)))?;
    let address = server.local_addr()?;
    let echo = pods.b.enter(|| UdpEcho::start(server))?;
    let socket = pods.a.enter(|| UdpSocket::bind((pods.address_a, 0)))?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(LOST))?;
    let mut content = [0; PAYLOAD];
    let mut times = Vec::new();
    let start = Instant::now();
    for number in 0u64.. {
        let sent = Instant::now();
        if sent - start >= window {
            break;
        }
        content[..8].copy_from_slice(&number.to_ne_bytes());
        socket.send(&content)?;
        if is_echoed(&socket, number)? {
            times.push(sent.elapsed());
        }
    }
    echo.stop()?;
    if times.is_empty() {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "no datagram came back"));
    }
    times.sort_unstable();
    Ok(times)
}

/// Waits for the echo of a datagram, and skips late echoes of earlier ones.
fn is_echoed(socket: &UdpSocket, number: u64) -> io::Result<bool> {
    let mut content = [0; PAYLOAD];
    loop {
        match socket.recv(&mut content) {
            Ok(_) if content[..8] == number.to_ne_bytes() => return Ok(true),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
