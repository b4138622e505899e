//! The verdicts on packets, and the reasons of drops.

use core::net::{IpAddr, SocketAddr};

use super::Fragments;
use crate::transmit::Transmit;
use crate::wire::icmpv4::IcmpError;
use crate::wire::icmpv6::Icmpv6Error;
use crate::wire::{HeaderError, ICMP_ERROR_MAX, IpPacket};

/// The verdict on a packet that came out of the TUN.
///
/// Exhaustive on purpose: a caller that misses a verdict loses packets.
#[derive(Debug)]
#[must_use = "a packet whose verdict is ignored is lost without being counted"]
pub enum Encap<'p> {
    /// Sent to a peer. Its TTL is one less where the policy requires it.
    Send(Transmit<'p>),
    /// Sent to a peer in fragments, because it is longer than the path MTU and DF is clear.
    Fragment(Fragments<'p>),
    /// Dropped. Its sender may get an ICMP error.
    Reject(Reject<'p>),
    /// Dropped without an ICMP error.
    Drop(DropReason),
}

/// The verdict on a datagram that came from the underlay. Exhaustive, as [`Encap`] is.
#[derive(Debug)]
#[must_use = "a packet whose verdict is ignored is lost without being counted"]
pub enum Decap<'p> {
    /// Delivered to the TUN: exactly these bytes.
    Deliver(&'p mut [u8]),
    /// Dropped. Its sender may get an ICMP error.
    Reject(Reject<'p>),
    /// Dropped without an ICMP error.
    Drop(DropReason),
}

/// A packet that is dropped for a reason that its sender should know. Its bytes are unchanged.
#[derive(Debug)]
pub struct Reject<'p> {
    pub(super) offender: IpPacket<'p>,
    pub(super) reason: RejectReason,
    /// Source, TTL and destination of the ICMP error; `None` if the RFCs bar one.
    pub(super) answer: Option<Answer>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    /// Of the offender's family.
    pub(super) source: IpAddr,
    pub(super) ttl: u8,
    pub(super) reply_to: ReplyTo,
}

/// The output for an ICMP error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReplyTo {
    /// Through the tunnel, to the host that owns the offender's source.
    Peer(SocketAddr),
    /// To this host's TUN.
    Tun,
}

impl<'p> Reject<'p> {
    /// Returns the packet, as it arrived.
    #[must_use]
    pub fn offender(&self) -> &IpPacket<'p> {
        &self.offender
    }

    /// Returns the reason of the drop.
    #[must_use]
    pub fn reason(&self) -> RejectReason {
        self.reason
    }

    /// Returns the output for the ICMP error; `None` if RFC 1812 4.3.2.7 or RFC 4443 2.4 bars one. Ask the
    /// [`IcmpLimiter`](super::IcmpLimiter) only if it is not `None`.
    #[must_use]
    pub fn reply_to(&self) -> Option<ReplyTo> {
        self.answer.map(|answer| answer.reply_to)
    }

    /// Writes the ICMP error for the sender into `out` and returns the whole packet; `None` if RFC 1812 4.3.2.7 or RFC
    /// 4443 2.4 bars one.
    #[must_use]
    pub fn icmp_error<'o>(&self, out: &'o mut [u8; ICMP_ERROR_MAX]) -> Option<&'o [u8]> {
        let Answer { source, ttl, .. } = self.answer?;
        match (&self.offender, source) {
            (IpPacket::V4(offender), IpAddr::V4(source)) => {
                let out = out.first_chunk_mut()?;
                Some(self.reason.icmpv4().write(offender, source, ttl, out))
            }
            (IpPacket::V6(offender), IpAddr::V6(source)) => {
                Some(self.reason.icmpv6().write(offender, source, ttl, out))
            }
            (IpPacket::V4(_), IpAddr::V6(_)) | (IpPacket::V6(_), IpAddr::V4(_)) => None,
        }
    }
}

/// A reason to drop a packet for which its sender may get an ICMP error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RejectReason {
    /// No route contains its destination.
    NetUnreachable,
    /// Too long for the path, and DF is set or the packet is IPv6. The error for IPv6 is "packet too big".
    FragmentationNeeded {
        /// The path MTU in bytes. For IPv6 at least 1280.
        mtu: u16,
    },
    /// Its TTL would become 0 here.
    TimeExceeded,
}

impl RejectReason {
    fn icmpv4(self) -> IcmpError {
        match self {
            Self::NetUnreachable => IcmpError::NetUnreachable,
            Self::FragmentationNeeded { mtu } => IcmpError::FragmentationNeeded { mtu },
            Self::TimeExceeded => IcmpError::TimeExceeded,
        }
    }

    fn icmpv6(self) -> Icmpv6Error {
        match self {
            Self::NetUnreachable => Icmpv6Error::NoRoute,
            Self::FragmentationNeeded { mtu } => Icmpv6Error::PacketTooBig { mtu: mtu.into() },
            Self::TimeExceeded => Icmpv6Error::TimeExceeded,
        }
    }
}

/// The reason to count when no ICMP error is sent: it is barred, over the limit or lost.
impl From<RejectReason> for DropReason {
    fn from(reason: RejectReason) -> Self {
        match reason {
            RejectReason::NetUnreachable => Self::NoRoute,
            RejectReason::FragmentationNeeded { .. } => Self::FragmentationNeeded,
            RejectReason::TimeExceeded => Self::TimeExceeded,
        }
    }
}

macro_rules! drop_reasons {
    ($($(#[$doc:meta])+ $variant:ident = $name:literal,)+) => {
        /// The reason of a drop. Every dropped packet has exactly one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum DropReason {
            $($(#[$doc])+ $variant,)+
        }

        impl DropReason {
            /// All reasons, in the order of the checks.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Returns the name in metrics: lower case with underscores. It never changes.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

drop_reasons! {
    /// The datagram's sender is no known peer.
    UnknownPeer = "unknown_peer",
    /// Fewer bytes than the shortest header: 20, or 40 of IPv6.
    TooShort = "too_short",
    /// IP version neither 4 nor 6.
    BadVersion = "bad_version",
    /// IPv4, and this host has no IPv4 subnet.
    Ipv4NotCarried = "ipv4_not_carried",
    /// IPv6, and this host has no IPv6 subnet. The kernel itself sends some into every new TUN.
    Ipv6NotCarried = "ipv6_not_carried",
    /// IHL below 5.
    BadHeaderLength = "bad_header_length",
    /// The header is longer than the received bytes.
    HeaderTruncated = "header_truncated",
    /// The total length is less than the header's length.
    BadTotalLength = "bad_total_length",
    /// The total length is more than the received bytes.
    Truncated = "truncated",
    /// The header checksum is wrong.
    BadChecksum = "bad_checksum",
    /// An option does not fit the header.
    BadOption = "bad_option",
    /// An IPv6 packet with payload length 0 and hop-by-hop options, which announces more than 65,535 bytes (RFC 2675).
    Jumbogram = "jumbogram",
    /// A loose or strict source route, or a routing header of type 0 (RFC 5095).
    SourceRoute = "source_route",
    /// An IPv6 packet to a group, ff00::/8. This is ordinary: the kernel itself sends router solicitations and
    /// multicast listener reports into every new TUN.
    Ipv6Multicast = "ipv6_multicast",
    /// A source that cannot be a host: 0/8, 127/8, 224/4, 240/4; ::, ::1, ff00::/8, ::ffff:0:0/96.
    MartianSource = "martian_source",
    /// Source or destination in 169.254/16 or fe80::/10, which routers do not forward (RFC 3927 7, RFC 4291 2.5.6).
    LinkLocal = "link_local",
    /// 255.255.255.255.
    BroadcastDestination = "broadcast_destination",
    /// A destination in 0/8, 127/8 or 240/4; ::, ::1 or in ::ffff:0:0/96.
    MartianDestination = "martian_destination",
    /// A destination in 224/4.
    MulticastDestination = "multicast_destination",
    /// The inner source is not routed to the sending peer. Without a peer check: it has no route.
    SpoofedSource = "spoofed_source",
    /// From a peer and not for our own subnet, or straight back to where it came from.
    ForeignDestination = "foreign_destination",
    /// No route, and no ICMP error was sent.
    NoRoute = "no_route",
    /// A routing loop: its destination is the underlay address of its own next hop, or this host's own socket.
    Loop = "loop",
    /// It arrived with TTL or hop limit 0.
    TtlZero = "ttl_zero",
    /// The underlay marked congestion, and the inner packet is not ECN-capable: only a drop signals it (RFC 6040 4.2).
    EcnNotCapable = "ecn_not_capable",
    /// The kernel asked for a segmentation or a checksum that the packet does not allow.
    BadOffload = "bad_offload",
    /// Its TTL ran out here, and no ICMP error was sent.
    TimeExceeded = "time_exceeded",
    /// Longer than the path MTU and either IPv6 or with DF set, and no ICMP error was sent.
    FragmentationNeeded = "fragmentation_needed",
    /// An IPv6 packet of 1280 bytes or less on a path that carries less. IPv6 needs 1280 bytes (RFC 8200 5), so no ICMP
    /// error would help.
    BelowIpv6Minimum = "below_ipv6_minimum",
    /// Longer than the path MTU with DF clear, and it cannot be fragmented. The path has no room for its header and 8
    /// bytes, or the packet is a fragment that ends past the longest possible packet.
    NotFragmented = "not_fragmented",
    /// Queued with DF clear, or sealed by a framing, when its path MTU turned out to be lower. Later packets are
    /// fragmented or answered before they are queued.
    PathTooNarrow = "path_too_narrow",
    /// The framing has no session with the peer.
    NoSession = "no_session",
    /// The framing did not verify the datagram.
    NotAuthentic = "not_authentic",
    /// The framing opened the datagram before, or it is too old to tell.
    Replayed = "replayed",
    /// The send queue of its peer was full, or the socket accepted nothing for this peer for too long.
    SendBufferFull = "send_buffer_full",
    /// The kernel had no memory for the datagram, several times in a row (ENOBUFS, ENOMEM).
    SendNoBuffers = "send_no_buffers",
    /// The peer's host refused it (ECONNREFUSED).
    SendRefused = "send_refused",
    /// The underlay has no route to the peer (EHOSTUNREACH, ENETUNREACH, EHOSTDOWN, ENETDOWN).
    SendUnreachable = "send_unreachable",
    /// A firewall or a missing right forbids sending (EPERM, EACCES).
    SendForbidden = "send_forbidden",
    /// Sending failed with any other error.
    SendFailed = "send_failed",
    /// The TUN is down (EIO).
    TunDown = "tun_down",
    /// The TUN accepted nothing at this moment (EAGAIN, ENOBUFS, ENOMEM).
    TunFull = "tun_full",
    /// The TUN refused the packet with any other error.
    TunFailed = "tun_failed",
    /// The route to its next hop was removed while it was queued.
    StaleRoute = "stale_route",
    /// The worker stopped while the packet was queued.
    Stopped = "stopped",
}

impl core::fmt::Display for DropReason {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

impl From<HeaderError> for DropReason {
    fn from(error: HeaderError) -> Self {
        match error {
            HeaderError::TooShort { .. } => Self::TooShort,
            HeaderError::BadVersion { .. } => Self::BadVersion,
            HeaderError::BadHeaderLength { .. } => Self::BadHeaderLength,
            HeaderError::HeaderTruncated { .. } => Self::HeaderTruncated,
            HeaderError::BadTotalLength { .. } => Self::BadTotalLength,
            HeaderError::Truncated { .. } => Self::Truncated,
            HeaderError::BadChecksum { .. } => Self::BadChecksum,
            HeaderError::BadOption { .. } => Self::BadOption,
            HeaderError::Jumbogram { .. } => Self::Jumbogram,
        }
    }
}
