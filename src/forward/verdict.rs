//! What becomes of a packet.

use core::net::{Ipv4Addr, SocketAddr};

use super::Fragments;
use crate::transmit::Transmit;
use crate::wire::icmpv4::{ERROR_MAX, IcmpError};
use crate::wire::ipv4::{HeaderError, Ipv4Packet};

/// The verdict on a packet that came out of the TUN.
///
/// Exhaustive on purpose: a fate that a caller does not know of is a packet lost.
#[derive(Debug)]
#[must_use = "a packet whose verdict is ignored is lost without being counted"]
pub enum Encap<'p> {
    /// Goes to a peer; its TTL is one less where the policy says so.
    Send(Transmit<'p>),
    /// Likewise, but in fragments, because it is longer than the path carries and DF is clear.
    Fragment(Fragments<'p>),
    /// Goes nowhere, and its sender may be told why.
    Reject(Reject<'p>),
    /// Goes nowhere, in silence.
    Drop(DropReason),
}

/// The verdict on a datagram that came from the underlay. Exhaustive, as [`Encap`] is.
#[derive(Debug)]
#[must_use = "a packet whose verdict is ignored is lost without being counted"]
pub enum Decap<'p> {
    /// Goes to the TUN: exactly these bytes.
    Deliver(&'p mut [u8]),
    /// Goes nowhere, and its sender may be told why.
    Reject(Reject<'p>),
    /// Goes nowhere, in silence.
    Drop(DropReason),
}

/// A packet that goes nowhere for a reason its sender should know. It is unchanged, as it arrived.
#[derive(Debug)]
pub struct Reject<'p> {
    pub(super) offender: Ipv4Packet<'p>,
    pub(super) reason: RejectReason,
    /// Where the answer comes from and goes to; `None` if there may be none.
    pub(super) answer: Option<Answer>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    pub(super) source: Ipv4Addr,
    pub(super) ttl: u8,
    pub(super) reply_to: ReplyTo,
}

/// Where an ICMP error is to be written or sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReplyTo {
    /// Back through the tunnel, to the host that owns the offender's source.
    Peer(SocketAddr),
    /// To our own TUN.
    Tun,
}

impl<'p> Reject<'p> {
    /// The packet, as it arrived.
    #[must_use]
    pub fn offender(&self) -> &Ipv4Packet<'p> {
        &self.offender
    }

    /// Why it goes nowhere.
    #[must_use]
    pub fn reason(&self) -> RejectReason {
        self.reason
    }

    /// Where the answer is to go; `None` if RFC 1812 4.3.2.7 bars one. Ask the [`IcmpLimiter`](super::IcmpLimiter) only if
    /// there is one.
    #[must_use]
    pub fn reply_to(&self) -> Option<ReplyTo> {
        self.answer.map(|answer| answer.reply_to)
    }

    /// Writes the ICMP error for the sender into `out` and returns the whole packet; `None` if there may be none.
    #[must_use]
    pub fn icmp_error<'o>(&self, out: &'o mut [u8; ERROR_MAX]) -> Option<&'o [u8]> {
        let Answer { source, ttl, .. } = self.answer?;
        Some(self.reason.icmp().write(&self.offender, source, ttl, out))
    }
}

/// Why a packet goes nowhere, where its sender may be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RejectReason {
    /// No route holds its destination.
    NetUnreachable,
    /// Too long for the path, and DF is set.
    FragmentationNeeded {
        /// The longest packet that would pass, in bytes.
        mtu: u16,
    },
    /// Its TTL would become 0 here.
    TimeExceeded,
}

impl RejectReason {
    fn icmp(self) -> IcmpError {
        match self {
            Self::NetUnreachable => IcmpError::NetUnreachable,
            Self::FragmentationNeeded { mtu } => IcmpError::FragmentationNeeded { mtu },
            Self::TimeExceeded => IcmpError::TimeExceeded,
        }
    }
}

/// The reason to count when no answer is sent, be it barred, limited or lost.
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
        /// Why a packet was dropped. Every dropped packet has exactly one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum DropReason {
            $($(#[$doc])+ $variant,)+
        }

        impl DropReason {
            /// All reasons, in the order of the checks.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name in metrics: lower case with underscores, and it never changes.
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
    /// Fewer than 20 bytes.
    TooShort = "too_short",
    /// IP version neither 4 nor 6.
    BadVersion = "bad_version",
    /// IPv6, which is not carried. The kernel itself sends some into every fresh TUN.
    Ipv6NotCarried = "ipv6_not_carried",
    /// IHL below 5.
    BadHeaderLength = "bad_header_length",
    /// The header is longer than what was received.
    HeaderTruncated = "header_truncated",
    /// The total length is less than the header's.
    BadTotalLength = "bad_total_length",
    /// The total length is more than was received.
    Truncated = "truncated",
    /// The header checksum is wrong.
    BadChecksum = "bad_checksum",
    /// An option does not fit the header.
    BadOption = "bad_option",
    /// A loose or strict source route.
    SourceRoute = "source_route",
    /// A source that is no host: 0/8, 127/8, 224/4, 240/4.
    MartianSource = "martian_source",
    /// Source or destination in 169.254/16, which routers do not forward (RFC 3927 7).
    LinkLocal = "link_local",
    /// 255.255.255.255.
    BroadcastDestination = "broadcast_destination",
    /// A destination in 0/8, 127/8 or 240/4.
    MartianDestination = "martian_destination",
    /// A destination in 224/4.
    MulticastDestination = "multicast_destination",
    /// The inner source is not routed to the peer that sent it; or, without a peer check, it has no route.
    SpoofedSource = "spoofed_source",
    /// From a peer and not for our own subnet, or straight back to where it came from.
    ForeignDestination = "foreign_destination",
    /// No route, and the sender was not told.
    NoRoute = "no_route",
    /// It would go round in circles: for the underlay address of its own next hop, or for our own socket.
    Loop = "loop",
    /// It arrived with TTL 0.
    TtlZero = "ttl_zero",
    /// The other end met congestion, and its sender does not take part in ECN: a drop is what tells it (RFC 6040 4.2).
    EcnNotCapable = "ecn_not_capable",
    /// The kernel asked for a segmentation or a checksum that the packet does not allow.
    BadOffload = "bad_offload",
    /// Its TTL ran out here, and the sender was not told.
    TimeExceeded = "time_exceeded",
    /// Too long for the path with DF set, and the sender was not told.
    FragmentationNeeded = "fragmentation_needed",
    /// Too long for the path with DF clear, and it cannot be fragmented: the path has no room for its header and 8 bytes, or it
    /// is a fragment that reaches past the longest packet there is.
    NotFragmented = "not_fragmented",
    /// Its path turned out to be too narrow while it waited, with DF clear: later packets are fragmented before they wait.
    PathTooNarrow = "path_too_narrow",
    /// The socket took nothing for longer than packets are held.
    SendBufferFull = "send_buffer_full",
    /// The kernel had no memory for the datagram, or the socket of its source port no room, several times over (ENOBUFS,
    /// ENOMEM).
    SendNoBuffers = "send_no_buffers",
    /// The peer's host refused it (ECONNREFUSED).
    SendRefused = "send_refused",
    /// The underlay has no way to the peer (EHOSTUNREACH, ENETUNREACH, EHOSTDOWN, ENETDOWN).
    SendUnreachable = "send_unreachable",
    /// A firewall or a missing right forbids it (EPERM, EACCES).
    SendForbidden = "send_forbidden",
    /// Sending failed with any other error.
    SendFailed = "send_failed",
    /// The TUN is down (EIO).
    TunDown = "tun_down",
    /// The TUN took nothing at this moment (EAGAIN, ENOBUFS, ENOMEM).
    TunFull = "tun_full",
    /// The TUN refused the packet with any other error.
    TunFailed = "tun_failed",
    /// The route to its next hop was removed while it waited.
    StaleRoute = "stale_route",
    /// The worker was taken down while it still held the packet.
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
            HeaderError::Ipv6 => Self::Ipv6NotCarried,
            HeaderError::BadVersion { .. } => Self::BadVersion,
            HeaderError::BadHeaderLength { .. } => Self::BadHeaderLength,
            HeaderError::HeaderTruncated { .. } => Self::HeaderTruncated,
            HeaderError::BadTotalLength { .. } => Self::BadTotalLength,
            HeaderError::Truncated { .. } => Self::Truncated,
            HeaderError::BadChecksum { .. } => Self::BadChecksum,
            HeaderError::BadOption { .. } => Self::BadOption,
        }
    }
}
