//! The way out: the library's adapters.

use loden::Transmit;
use loden::engine::{Sink, Unsent, WriteFailure};
use loden::forward::{PathMode, SystemPath};
use loden::offload::VnetHeader;
use loden::sys::{BatchError, Tun, TunError, UdpTransport};
use loden::transmit::Way;
use loden::wire::DatagramTooBig;

/// The TUN device and the socket as the engine's output.
pub(crate) struct Adapters<'a> {
    pub(crate) tun: &'a Tun,
    pub(crate) udp: &'a UdpTransport,
}

impl Sink for Adapters<'_> {
    fn send(&mut self, batches: &[Transmit<'_>], mode: PathMode) -> Result<(), Unsent> {
        self.udp.send_batch_in(mode, batches, 0).map_err(|BatchError { transmit: batch, segment, datagrams, kind }| {
            Unsent { batch, datagram: segment, datagrams, reason: kind.into() }
        })
    }

    fn write(&mut self, header: &VnetHeader, packet: &[u8]) -> Result<(), WriteFailure> {
        self.tun.send_with(header, packet).map_err(|error| match error {
            TunError::Down => WriteFailure::Down,
            TunError::Full | TunError::WouldBlock => WriteFailure::Full,
            TunError::Rejected(_) => WriteFailure::Rejected,
            TunError::Closed | TunError::Deleted | TunError::Headless { .. } | _ => WriteFailure::Failed,
        })
    }

    fn system_path(&mut self, way: &Way, report: &mut dyn FnMut(&DatagramTooBig)) -> SystemPath {
        self.udp.receive_reports(report);
        self.udp.system_path(way.destination, way.flow)
    }
}
