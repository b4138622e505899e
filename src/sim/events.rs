//! Event handling: one event, and its immediate consequences.

use core::net::SocketAddr;
use core::time::Duration;

use bytes::{Bytes, BytesMut};

use super::node::{Output, Shared, fates};
use super::underlay::{Datagram, Outcome};
use super::{Delivered, Event, Loss, Node, NodeId, Record, Sim};
use crate::forward::DatagramMeta;
use crate::framing::Framing;
use crate::wire::Ecn;

/// A scheduled event.
#[derive(Debug)]
pub(super) enum Next {
    Arrival {
        node: NodeId,
        sender: NodeId,
        datagram: Datagram,
    },
    FragmentationNeeded {
        node: NodeId,
        datagram: Datagram,
        mtu: u16,
    },
    FromTun {
        node: NodeId,
        packet: Bytes,
    },
    /// A timeout of the node's framing, or of a packet that waits for a session.
    Wake {
        node: NodeId,
    },
}

impl<K: Ord + Clone, F: Framing> Sim<K, F> {
    /// Sets the time. Leases that expire until then are removed.
    pub(super) fn go_to(&mut self, at: Duration) {
        self.now = at;
        self.leases.handle_timeout(at);
    }

    pub(super) fn handle(&mut self, next: Next) {
        match next {
            Next::FromTun { node, packet } => self.read_from_tun(node, packet),
            Next::Wake { node } => {
                self.node_mut(node).wakes_at = None;
                if self.node_mut(node).is_up {
                    self.decide(node, |node, now, shared| node.flush(now, shared));
                }
            }
            Next::Arrival { node, sender, datagram } => self.arrive(node, sender, datagram),
            Next::FragmentationNeeded { node, datagram, mtu } => {
                self.refresh(node);
                let now = self.now;
                if self.node_mut(node).is_up && self.node_mut(node).fragmentation_needed(&datagram, mtu, now) {
                    self.record(|| Event::PathNarrowed { node, peer: datagram.to, mtu });
                }
            }
        }
    }

    pub(super) fn read_from_tun(&mut self, node: NodeId, packet: Bytes) {
        if !self.node_mut(node).is_up {
            self.node_mut(node).seen.refused += 1;
            return self.record(|| Event::Refused { node, packet });
        }
        self.record(|| Event::FromTun { node, packet: packet.clone() });
        self.node_mut(node).seen.from_tun += 1;
        self.decide(node, |node, now, shared| node.encapsulate(owned(packet), now, shared));
    }

    /// Handles the arrival of a node's datagram at another node.
    fn arrive(&mut self, node: NodeId, sender: NodeId, datagram: Datagram) {
        self.underlay.counters.in_flight -= 1;
        if self.underlay.is_parted(sender, node) {
            return self.lose(datagram.from, datagram.to, Loss::Partition);
        }
        self.receive(node, datagram);
    }

    pub(super) fn receive(&mut self, node: NodeId, datagram: Datagram) {
        let Datagram { from, to, ecn, payload } = datagram;
        if !self.node_mut(node).is_up {
            return self.lose(from, to, Loss::NodeStopped);
        }
        self.underlay.counters.arrived += 1;
        self.record(|| Event::Arrived { node, from, datagram: payload.clone() });
        self.node_mut(node).seen.from_underlay += 1;
        let outer = DatagramMeta { from, ecn };
        self.decide(node, |node, now, shared| node.decapsulate(owned(payload), outer, now, shared));
    }

    /// Lets a node decide by its current routes, and handles the consequences.
    fn decide(&mut self, id: NodeId, decision: impl FnOnce(&mut Node<F>, Duration, &mut Shared)) {
        self.refresh(id);
        let (now, mut shared) = (self.now, core::mem::take(&mut self.shared));
        self.settle(id, |node| decision(node, now, &mut shared));
        for output in shared.outputs.drain(..) {
            match output {
                Output::Tun(packet) => self.write_to_tun(id, packet),
                Output::Underlay { to, ecn, payload } => self.put_on_underlay(id, to, ecn, payload),
            }
        }
        self.shared = shared;
        self.schedule(id);
    }

    /// Records the fates of packets that `work` settles at a node.
    pub(super) fn settle(&mut self, id: NodeId, work: impl FnOnce(&mut Node<F>)) {
        let before = self.trace.is_some().then(|| self[id].counters());
        work(self.node_mut(id));
        if let Some(before) = before {
            for (direction, fate) in fates(&before, &self[id].counters()) {
                self.record(|| Event::Settled { node: id, direction, fate });
            }
        }
    }

    /// Schedules the next timeout of a node.
    pub(super) fn schedule(&mut self, id: NodeId) {
        let now = self.now;
        let node = self.node_mut(id);
        let Some(at) = node.wake_at().map(|at| at.max(now)) else { return };
        if node.wakes_at.is_none_or(|scheduled| at < scheduled) {
            node.wakes_at = Some(at);
            self.queue.push(at, Next::Wake { node: id });
        }
    }

    fn write_to_tun(&mut self, node: NodeId, packet: Bytes) {
        self.node_mut(node).seen.to_tun += 1;
        self.record(|| Event::ToTun { node, packet: packet.clone() });
        self.delivered.push(Delivered { at: self.now, node, packet });
    }

    fn put_on_underlay(&mut self, id: NodeId, to: SocketAddr, ecn: Ecn, payload: Bytes) {
        let node = self.node_mut(id);
        node.seen.to_underlay += 1;
        let host = &node.config().host;
        let from = host.underlay_to(to.ip()).unwrap_or(host.underlay());
        self.record(|| Event::Sent { node: id, to, datagram: payload.clone() });
        self.underlay.counters.sent += 1;
        let mut datagram = Datagram { from, to, ecn, payload };
        match self.underlay.carry(id, &datagram, self.now) {
            Outcome::Lost(loss) => self.lose(from, to, loss),
            Outcome::TooLong { reported_at, mtu } => {
                self.lose(from, to, Loss::TooLong);
                self.queue.push(reported_at, Next::FragmentationNeeded { node: id, datagram, mtu });
            }
            Outcome::Arrives { node, at, ecn, copy_at } => {
                datagram.ecn = ecn;
                self.underlay.counters.in_flight += 1;
                if let Some(copy_at) = copy_at {
                    self.record(|| Event::Duplicated { from, to });
                    self.underlay.counters.duplicated += 1;
                    self.underlay.counters.in_flight += 1;
                    let datagram = datagram.clone();
                    self.queue.push(copy_at, Next::Arrival { node, sender: id, datagram });
                }
                self.queue.push(at, Next::Arrival { node, sender: id, datagram });
            }
        }
    }

    fn lose(&mut self, from: SocketAddr, to: SocketAddr, loss: Loss) {
        self.underlay.counters.lose(loss);
        self.record(|| Event::Lost { from, to, loss });
    }

    fn record(&mut self, event: impl FnOnce() -> Event) {
        if let Some(trace) = &mut self.trace {
            trace.push(Record { at: self.now, event: event() });
        }
    }
}

/// Returns the bytes as a mutable buffer. They are copied only if they are shared.
fn owned(bytes: Bytes) -> BytesMut {
    bytes.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&*shared))
}
