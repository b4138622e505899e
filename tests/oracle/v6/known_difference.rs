//! Intended differences between loden and Linux in IPv6. The result of the kernel is determined by [`super::linux`] for
//! every packet, so a difference only says why loden's result is another one.

use core::net::Ipv6Addr;

use loden::forward::DropReason;

use super::hop_by_hop::{self, Options};
use super::linux::is_anycast;
use super::world::World;
use crate::known_difference::known_differences;
use crate::router::Place;
use support::host::Outcome;
use support::packet_v6::{FRAGMENT, HOP_BY_HOP, ICMPV6, upper};

known_differences! {
    Jumbogram = "V3: loden drops hop-by-hop options with payload length 0. Linux reads the options of all received \
                 bytes, and forwards them if none is a jumbo payload option",
    SourceRoute = "V6: loden drops routing headers of type 0 (RFC 5095). Linux processes routing headers at their \
                   destination only",
    MappedSource = "V8: no host has a source in ::ffff:0:0/96. Linux forwards and answers it like any other",
    AnycastSource = "V16: loden takes the first address of a routed subnet for a host's. Linux takes it for all \
                     routers of the subnet (RFC 4291 2.6.1), if the route has no gateway, and sends no error to it",
    LinkLocalSource = "V10: loden drops fe80::/10 without an answer. Linux answers with 1/2, after hop limit and \
                       route",
    LinkLocalDestination = "V10: loden drops fe80::/10 without an answer. Linux has no route to it on other links, \
                            and answers",
    NoHost = "V9: no host has the destination :: or one in ::ffff:0:0/96. Linux routes them like any other",
    HopLimitZero = "V15: no host may send a hop limit of 0, so loden drops it without an answer. Linux answers as for \
                    1",
    Loop = "R62, fault 6: loden drops packets to the tunnel's own sockets and to the next hop itself. A router has no \
            tunnel",
    SpoofedSource = "R65: a peer may send from its own subnets only. Linux checks sources of IPv6 by firewall rules \
                     only",
    ForeignDestination = "R66: loden drops packets from a peer to other subnets without an answer. A router forwards \
                          them and answers",
    BelowMinimum = "V24: a path of less than 1280 bytes. A Linux link has at least 1280 (RFC 8200 5)",
    HopByHop = "V7: routers may ignore hop-by-hop options (RFC 8200 4). Linux drops and reports bad and unknown ones",
    HiddenUpperLayer = "V5, V16: no error if the extension headers hide the upper layer: it may be an ICMPv6 error. \
                        Linux answers if it sees none",
    OtherExtensions = "V5: mobility, HIP and shim6 headers may be in front of an ICMPv6 error. To Linux they are the \
                       upper layer",
    Redirect = "V16: no error about a redirect (RFC 4443 2.4 e). Linux takes it for an informational message",
    TypeInNextFragment = "V16: the type of a first fragment that ends before it is unknown. Linux answers, also if \
                          reserved bits alone make it a fragment",
}

impl KnownDifference {
    pub(super) const OUTBOUND: [Self; 14] = [
        Self::Jumbogram,
        Self::SourceRoute,
        Self::MappedSource,
        Self::LinkLocalSource,
        Self::LinkLocalDestination,
        Self::NoHost,
        Self::HopLimitZero,
        Self::Loop,
        Self::BelowMinimum,
        Self::HopByHop,
        Self::HiddenUpperLayer,
        Self::OtherExtensions,
        Self::Redirect,
        Self::TypeInNextFragment,
    ];

    /// The differences for packets from peers. No packet is too long.
    pub(super) const INBOUND: [Self; 16] = [
        Self::Jumbogram,
        Self::SourceRoute,
        Self::MappedSource,
        Self::AnycastSource,
        Self::LinkLocalSource,
        Self::LinkLocalDestination,
        Self::NoHost,
        Self::HopLimitZero,
        Self::Loop,
        Self::SpoofedSource,
        Self::ForeignDestination,
        Self::HopByHop,
        Self::HiddenUpperLayer,
        Self::OtherExtensions,
        Self::Redirect,
        Self::TypeInNextFragment,
    ];

    /// Returns the reason why the outcome of this packet is not the kernel's; `None` if it should be.
    pub(super) fn of(world: &World, entry: Place, packet: &[u8], ours: &Outcome) -> Option<Self> {
        match ours {
            Outcome::Drop(reason) => Self::of_a_drop(*reason, packet),
            _ if has_objectionable_options(packet) => Some(Self::HopByHop),
            Outcome::Reject { answer: None, .. } => Self::of_no_answer(packet),
            Outcome::Reject { answer: Some(_), .. } => {
                let source = source(packet)?;
                let (net, _) = world.kernel_route_back(entry, source)?;
                is_anycast(net, source).then_some(Self::AnycastSource)
            }
            Outcome::Forward { .. } | Outcome::Fragments { .. } => None,
        }
    }

    fn of_a_drop(reason: DropReason, packet: &[u8]) -> Option<Self> {
        let source = source(packet);
        #[expect(clippy::wildcard_enum_match_arm, reason = "for all other reasons Linux drops too")]
        match reason {
            DropReason::Jumbogram => Some(Self::Jumbogram),
            DropReason::SourceRoute => Some(Self::SourceRoute),
            DropReason::MartianSource if source?.to_ipv4_mapped().is_some() => Some(Self::MappedSource),
            DropReason::LinkLocal if source?.is_unicast_link_local() => Some(Self::LinkLocalSource),
            DropReason::LinkLocal => Some(Self::LinkLocalDestination),
            DropReason::MartianDestination => Some(Self::NoHost),
            DropReason::TtlZero => Some(Self::HopLimitZero),
            DropReason::Loop => Some(Self::Loop),
            DropReason::SpoofedSource => Some(Self::SpoofedSource),
            DropReason::ForeignDestination => Some(Self::ForeignDestination),
            DropReason::BelowIpv6Minimum => Some(Self::BelowMinimum),
            DropReason::Ipv6Multicast if has_objectionable_options(packet) => Some(Self::HopByHop),
            _ => None,
        }
    }

    fn of_no_answer(packet: &[u8]) -> Option<Self> {
        let packet = without_trailer(packet);
        let Some(upper) = upper(packet) else { return Some(Self::HiddenUpperLayer) };
        if upper.protocol != ICMPV6 {
            return None;
        }
        match packet.get(upper.at) {
            Some(137) => Some(Self::Redirect),
            None if upper.fragment.is_some() => Some(Self::TypeInNextFragment),
            _ if has_other_extensions(packet, upper.at) => Some(Self::OtherExtensions),
            _ => None,
        }
    }
}

fn source(packet: &[u8]) -> Option<Ipv6Addr> {
    packet.get(8..24).map(|bytes| <[u8; 16]>::try_from(bytes).unwrap().into())
}

fn without_trailer(packet: &[u8]) -> &[u8] {
    &packet[..40 + usize::from(u16::from_be_bytes([packet[4], packet[5]]))]
}

fn has_objectionable_options(packet: &[u8]) -> bool {
    packet[6] == HOP_BY_HOP && hop_by_hop::walk(without_trailer(packet)) != Options::Fine
}

/// Returns true if a mobility, HIP or shim6 header is in front of the upper layer at `end`.
fn has_other_extensions(packet: &[u8], end: usize) -> bool {
    let (mut kind, mut at) = (packet[6], 40);
    while at < end {
        if matches!(kind, 135 | 139 | 140) {
            return true;
        }
        let words = usize::from(packet[at + 1]);
        let len = match kind {
            FRAGMENT => 8,
            51 => (words + 2) * 4,
            _ => (words + 1) * 8,
        };
        (kind, at) = (packet[at], at + len);
    }
    false
}
