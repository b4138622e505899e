//! ICMP errors: whether one may be sent, and its source.

use core::net::{IpAddr, Ipv4Addr};

use super::Forwarder;
use crate::forward::verdict::Answer;
use crate::forward::{IcmpSource, Icmpv6Source, Reject, RejectReason, ReplyTo};
use crate::route::RouteTable;
use crate::wire::{IpPacket, icmpv4, icmpv6};

impl Forwarder {
    pub(super) fn reject<'p>(
        &self,
        offender: IpPacket<'p>,
        reason: RejectReason,
        reply_to: Option<ReplyTo>,
        routes: &RouteTable,
    ) -> Reject<'p> {
        let source = reply_to.and_then(|reply_to| self.icmp_source(&offender, reply_to, routes));
        let answer =
            source.zip(reply_to).map(|(source, reply_to)| Answer { source, ttl: self.config.icmp_ttl, reply_to });
        Reject { offender, reason, answer }
    }

    /// Returns the source of an ICMP error about a packet; `None` if the RFCs bar one.
    fn icmp_source(&self, offender: &IpPacket<'_>, reply_to: ReplyTo, routes: &RouteTable) -> Option<IpAddr> {
        let host = &self.config.host;
        match offender {
            IpPacket::V4(packet) => {
                let source = match (reply_to, self.config.icmp_source) {
                    (ReplyTo::Peer(_), _) => host.tun_address_v4()?,
                    (ReplyTo::Tun, IcmpSource::OffenderDestination) => packet.header().destination(),
                    (ReplyTo::Tun, IcmpSource::Fixed(source)) => source,
                };
                let is_broadcast = |address| self.is_broadcast(address, routes);
                icmpv4::may_answer_host(packet, is_broadcast).then_some(source.into())
            }
            IpPacket::V6(packet) => {
                let source = match (reply_to, self.config.icmpv6_source) {
                    (ReplyTo::Tun, Icmpv6Source::Fixed(source)) => source,
                    (ReplyTo::Peer(_), _) | (ReplyTo::Tun, Icmpv6Source::TunAddress) => host.tun_address_v6()?,
                };
                icmpv6::may_answer(packet).then_some(source.into())
            }
        }
    }

    /// An IPv4 address beyond 255.255.255.255 that is more than one host (R40). Networks of one or two addresses have
    /// none.
    fn is_broadcast(&self, address: Ipv4Addr, routes: &RouteTable) -> bool {
        let nets = self.config.host.subnets_v4().chain(self.config.host.network_v4());
        nets.chain(routes.routed_subnet(address)).any(|net| net.prefix_len() < 31 && net.broadcast() == address)
    }
}
