//! UDP datagrams at a given rate, counted at both ends.

use core::sync::atomic::{AtomicBool, Ordering};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::{ControlMessage, MsgFlags, MultiHeaders, recvmmsg, sendmmsg, setsockopt};

use super::join;
use crate::variant::Pods;

/// Datagrams in one system call of the generator.
const BATCH: usize = 64;
/// The longest payload.
const ROOM: usize = 1400;
/// A receive buffer for a receiver that is not scheduled for a while. It is small beside the bytes of a second.
const RECEIVE_BUFFER: usize = 8 << 20;
/// The sleep of a paced sender that is ahead. It must not spin, because the tunnel needs the processor.
const PAUSE: Duration = Duration::from_micros(50);
/// The interval of the receiver, in which a thousand datagrams may arrive. A wake-up for each of them would take
/// processor time from the measured programs.
const LOOK: Duration = Duration::from_millis(1);
/// The silence after which no more datagrams are expected, and the longest wait for it.
const SILENCE: Duration = Duration::from_millis(50);
const DRAIN: Duration = Duration::from_secs(1);

/// The sending rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pace {
    Overload,
    PerSecond(f64),
}

/// The datagrams sent within the window, and those of them that arrived.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Counts {
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) elapsed: Duration,
}

impl Counts {
    pub(crate) fn sent_per_second(&self) -> f64 {
        self.sent as f64 / self.elapsed.as_secs_f64()
    }

    pub(crate) fn received_per_second(&self) -> f64 {
        self.received as f64 / self.elapsed.as_secs_f64()
    }

    /// Returns the share that did not arrive, in per cent.
    pub(crate) fn loss(&self) -> f64 {
        let lost = self.sent.saturating_sub(self.received);
        100.0 * lost as f64 / self.sent.max(1) as f64
    }
}

/// Sends datagrams of `payload` bytes, at most 1,400, for as long as the window is.
pub(crate) fn run(pods: Pods<'_>, payload: usize, pace: Pace, window: Duration) -> io::Result<Counts> {
    let sink = pods.b.enter(|| UdpSocket::bind((pods.address_b, 0)))?;
    setsockopt(&sink, RcvBufForce, &RECEIVE_BUFFER)?;
    let address = sink.local_addr()?;
    let source = pods.a.enter(|| UdpSocket::bind((pods.address_a, 0)))?;
    source.connect(address)?;
    let sent_all = AtomicBool::new(false);
    thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(&sink, payload, &sent_all));
        let sender = scope.spawn(|| send(&source, payload, pace, window));
        let sent = join(sender);
        sent_all.store(true, Ordering::Relaxed);
        let received = join(receiver);
        let (sent, elapsed) = sent?;
        Ok(Counts { sent, received: received?, elapsed })
    })
}

fn send(socket: &UdpSocket, payload: usize, pace: Pace, window: Duration) -> io::Result<(u64, Duration)> {
    let content = [0x5a; ROOM];
    let slices = [[IoSlice::new(&content[..payload])]; BATCH];
    let mut headers = MultiHeaders::<()>::preallocate(BATCH, None);
    let none: [ControlMessage<'_>; 0] = [];
    let start = Instant::now();
    let mut sent = 0;
    loop {
        let elapsed = start.elapsed();
        if elapsed >= window {
            return Ok((sent, elapsed));
        }
        let due = match pace {
            Pace::Overload => BATCH,
            Pace::PerSecond(rate) => (((elapsed.as_secs_f64() * rate) as u64).saturating_sub(sent) as usize).min(BATCH),
        };
        if due == 0 {
            thread::sleep(PAUSE);
            continue;
        }
        let (slices, addresses) = (&slices[..due], &[None; BATCH][..due]);
        match sendmmsg(socket.as_raw_fd(), &mut headers, slices, addresses, none, MsgFlags::empty()) {
            Ok(results) => sent += results.count() as u64,
            // A full device queue is expected at overload.
            Err(Errno::ENOBUFS | Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn receive(socket: &UdpSocket, payload: usize, sent_all: &AtomicBool) -> io::Result<u64> {
    let mut buffers = [[0; ROOM]; BATCH];
    let mut headers = MultiHeaders::<()>::preallocate(BATCH, None);
    let mut received = 0;
    let mut latest = Instant::now();
    let mut since_sent_all = None;
    loop {
        thread::sleep(LOOK);
        loop {
            let mut slices = buffers.each_mut().map(|buffer| [IoSliceMut::new(buffer)]);
            match recvmmsg(socket.as_raw_fd(), &mut headers, &mut slices, MsgFlags::MSG_DONTWAIT, None) {
                Ok(results) => received += results.filter(|result| result.bytes == payload).count() as u64,
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            latest = Instant::now();
        }
        if sent_all.load(Ordering::Relaxed) {
            let since = *since_sent_all.get_or_insert_with(Instant::now);
            if latest.max(since).elapsed() >= SILENCE || since.elapsed() >= DRAIN {
                return Ok(received);
            }
        }
    }
}
