//! The adapters as the engine's sink, and the effect of their errors on the worker.

use alloc::string::String;
use core::net::SocketAddr;
use std::time::Instant;

use super::WorkerError;
use super::failing::{Failing, Failure};
use super::sockets::Sockets;
use crate::engine::{SendFailure, Sink, Unsent, WriteFailure};
use crate::forward::{PathMode, SystemPath};
use crate::offload::VnetHeader;
use crate::sys::{BatchError, SendErrorKind, Tun, TunError};
use crate::transmit::{Transmit, Way};
use crate::wire::DatagramTooBig;

/// Device and socket during one call of the worker.
#[derive(Debug)]
pub(super) struct Io<'a> {
    pub(super) tun: &'a Tun,
    pub(super) sockets: &'a Sockets,
    pub(super) failing: &'a mut Failing,
    pub(super) ended: &'a mut Option<WorkerError>,
    pub(super) now: Instant,
}

impl Io<'_> {
    pub(super) fn tun_gone(&self, error: TunError) -> WorkerError {
        let name = String::from(self.tun.name());
        match error {
            TunError::Closed => WorkerError::TunClosed { name },
            TunError::Deleted
            | TunError::Down
            | TunError::Full
            | TunError::Headless { .. }
            | TunError::Rejected(_)
            | TunError::WouldBlock => WorkerError::LinkDeleted { name },
        }
    }

    /// Notes a failure that every call of its kind may have.
    #[cold]
    fn fails(&mut self, failure: Failure) {
        if let Err(end) = self.failing.fails(failure, self.now) {
            self.ended.get_or_insert(end);
        }
    }

    /// Returns the consequence of an error of the socket with this address.
    #[cold]
    fn unsent(&mut self, error: BatchError, local: SocketAddr) -> Unsent {
        let BatchError { transmit: batch, segment: datagram, datagrams, kind } = error;
        match kind {
            SendErrorKind::Closed => {
                self.ended.get_or_insert(WorkerError::SocketClosed { local });
            }
            SendErrorKind::Forbidden | SendErrorKind::Other(_) => self.fails(Failure::Send(kind)),
            SendErrorKind::NoBuffers
            | SendErrorKind::PathFull
            | SendErrorKind::Refused
            | SendErrorKind::TooLong
            | SendErrorKind::Unreachable
            | SendErrorKind::WouldBlock => {}
        }
        Unsent { batch, datagram, datagrams, reason: kind.into() }
    }
}

impl From<SendErrorKind> for SendFailure {
    fn from(kind: SendErrorKind) -> Self {
        match kind {
            SendErrorKind::Closed => Self::Closed,
            SendErrorKind::Forbidden => Self::Forbidden,
            SendErrorKind::NoBuffers => Self::NoBuffers,
            SendErrorKind::Other(_) => Self::Failed,
            SendErrorKind::Refused => Self::Refused,
            SendErrorKind::TooLong => Self::TooLong,
            SendErrorKind::Unreachable => Self::Unreachable,
            SendErrorKind::PathFull | SendErrorKind::WouldBlock => Self::Full,
        }
    }
}

impl Sink for Io<'_> {
    #[inline]
    fn send(&mut self, batches: &[Transmit<'_>], mode: PathMode) -> Result<(), Unsent> {
        let nothing = |reason| Err(Unsent { batch: 0, datagram: 0, datagrams: 1, reason });
        if self.ended.is_some() {
            return nothing(SendFailure::Closed);
        }
        if self.failing.send_at().is_some() {
            return nothing(SendFailure::Full);
        }
        let mut sent = 0;
        for run in batches.chunk_by(|one, other| !self.sockets.divide(one.destination, other.destination)) {
            let Some(destination) = run.first().map(|batch| batch.destination) else { continue };
            let udp = self.sockets.to(destination);
            if let Err(error) = udp.send_batch_in(mode, run, 0) {
                if sent > 0 || error.transmit > 0 || error.segment > 0 {
                    self.failing.send_works();
                }
                return Err(self.unsent(BatchError { transmit: sent + error.transmit, ..error }, udp.local_addr()));
            }
            sent += run.len();
        }
        self.failing.send_works();
        Ok(())
    }

    #[inline]
    fn write(&mut self, header: &VnetHeader, packet: &[u8]) -> Result<(), WriteFailure> {
        if self.ended.is_some() {
            return Err(WriteFailure::Failed);
        }
        let is_single = *header == VnetHeader::default();
        let written = if is_single { self.tun.send(packet) } else { self.tun.send_with(header, packet) };
        let Err(error) = written else {
            self.failing.write_works();
            return Ok(());
        };
        match error {
            TunError::Down => Err(WriteFailure::Down),
            TunError::Full | TunError::WouldBlock => Err(WriteFailure::Full),
            TunError::Closed | TunError::Deleted => {
                let end = self.tun_gone(error);
                self.ended.get_or_insert(end);
                Err(WriteFailure::Failed)
            }
            TunError::Rejected(_) => {
                if is_single {
                    self.fails(Failure::Write(error));
                }
                Err(WriteFailure::Rejected)
            }
            TunError::Headless { .. } => Err(WriteFailure::Failed),
        }
    }

    fn system_path(&mut self, way: &Way, report: &mut dyn FnMut(&DatagramTooBig)) -> SystemPath {
        self.sockets.iter().for_each(|udp| udp.receive_reports(&mut *report));
        self.sockets.to(way.destination).system_path(way.destination, way.flow)
    }
}
