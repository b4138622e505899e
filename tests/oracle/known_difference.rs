//! Intended differences between loden and Linux. Each one determines the kernel's result exactly, see `reference` and
//! `kernel`: a packet to which a difference applies must have that result and no other.

use std::collections::BTreeMap;

macro_rules! known_differences {
    ($($variant:ident = $why:literal,)+) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum KnownDifference {
            $($variant,)+
        }

        impl $crate::known_difference::Reasoned for KnownDifference {
            fn why(self) -> &'static str {
                match self {
                    $(Self::$variant => $why,)+
                }
            }
        }
    };
}
pub(crate) use known_differences;

/// A difference with a reason.
pub(crate) trait Reasoned: Copy + core::fmt::Debug + Ord {
    /// Returns the reason for the difference.
    fn why(self) -> &'static str;
}

known_differences! {
    ZeroNetwork = "R14, R15: 0/8 is this network (RFC 1122 3.2.1.3). Linux 5.3 and later forward all of it but 0.0.0.0",
    ReservedNetwork = "R14, R15: 240/4 is reserved (RFC 1112 4). Linux forwards it like any network",
    LinkLocal = "R18: routers do not forward 169.254/16 (RFC 3927 7). Linux forwards it",
    TtlZero = "R29: no host may send a TTL of 0, so loden drops it without an answer. Linux answers as for a TTL of 1",
    Loop = "R62, fault 6: loden drops packets to the tunnel's own sockets and to the next hop itself. A router has no tunnel",
    Broadcast = "R40: loden knows the broadcast addresses of the overlay, of the own subnet and of routed subnets. The links of the \
                 Linux router have no such network",
    PeerAddress = "R65 lets a peer send from its underlay address, which has no route in the overlay. Linux has a route to it here",
    ForeignDestination = "R66: loden drops packets from a peer to other subnets without an answer. A router forwards them and answers",
    BadOption = "R13, R41: loden drops a header that fails a check without an answer. Linux reports the position of the option",
    OptionContents = "R11: loden does not check the contents of an option that fits. Linux checks record routes, timestamps, source \
                      routes and router alerts, and reports the position of an error",
    OptionsFilled = "R11: loden does not change options. Linux writes its address into record routes and the time into timestamps",
    OptionsCleared = "R11: loden keeps options byte for byte. Linux clears the bytes after the end of the list",
    FragmentOptions = "R51: later fragments have only the copied options (RFC 791 3.1). Linux replaces the others by no-operations, \
                       and keeps all options of a packet that is already a later fragment",
    ReservedFlag = "R10: loden keeps the reserved flag, also in fragments. Linux clears it when it fragments",
    OffsetWraps = "fault 5: loden does not fragment a packet that extends past the longest one. Linux lets the offset overflow into \
                   the flags",
    RouterDiscovery = "R36: router advertisements and solicitations are queries (RFC 1256). Linux treats them as errors and does not \
                       answer them (`icmp_pointers` in net/ipv4/icmp.c)",
    IcmpSource = "R42: an error to the own TUN comes from the offender's destination, because Linux drops its own TUN's address as a \
                  martian. A router answers from its own address",
    IcmpIdentification = "R47: loden sets DF and no identification (RFC 6864 4.1). Linux clears DF and sets one",
    IcmpEcn = "R44: loden clears the ECN bits. Linux copies the upper one, which was the cost bit of RFC 1349",
    IcmpQuote = "R45: loden quotes the offender as it arrived. Linux quotes it with its changes to the options",
    IcmpOptions = "R45: an error of loden has no options. Linux adds the offender's record route and timestamp, updated, and shortens \
                   the quote; it sends no error if they have room for half an entry",
}

impl KnownDifference {
    pub(crate) const OUTBOUND: [Self; 19] = [
        Self::ZeroNetwork,
        Self::ReservedNetwork,
        Self::LinkLocal,
        Self::TtlZero,
        Self::Loop,
        Self::Broadcast,
        Self::BadOption,
        Self::OptionContents,
        Self::OptionsFilled,
        Self::OptionsCleared,
        Self::FragmentOptions,
        Self::ReservedFlag,
        Self::OffsetWraps,
        Self::RouterDiscovery,
        Self::IcmpSource,
        Self::IcmpIdentification,
        Self::IcmpEcn,
        Self::IcmpQuote,
        Self::IcmpOptions,
    ];

    /// The differences for packets from peers. Special sources belong to no peer, no packet is too long, and the router
    /// has the TUN's address.
    pub(crate) const INBOUND: [Self; 16] = [
        Self::ZeroNetwork,
        Self::ReservedNetwork,
        Self::LinkLocal,
        Self::TtlZero,
        Self::Broadcast,
        Self::PeerAddress,
        Self::ForeignDestination,
        Self::BadOption,
        Self::OptionContents,
        Self::OptionsFilled,
        Self::OptionsCleared,
        Self::RouterDiscovery,
        Self::IcmpIdentification,
        Self::IcmpEcn,
        Self::IcmpQuote,
        Self::IcmpOptions,
    ];
}

/// The number of packets to which each difference applied.
#[derive(Debug)]
pub(crate) struct Applied<D = KnownDifference>(BTreeMap<D, u64>);

impl<D> Default for Applied<D> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<D: Reasoned> Applied<D> {
    pub(crate) fn count(&mut self, known_differences: &[D]) {
        for known_difference in known_differences {
            *self.0.entry(*known_difference).or_default() += 1;
        }
    }

    /// Returns the differences that applied to no packet, which could hide a bug.
    pub(crate) fn dead<'e>(&self, of: &'e [D]) -> Vec<&'e D> {
        of.iter().filter(|known_difference| !self.0.contains_key(known_difference)).collect()
    }
}

impl<D: Reasoned> core::fmt::Display for Applied<D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.iter().try_for_each(|(difference, count)| writeln!(f, "{count:>6} {difference:?}: {}", difference.why()))
    }
}
