//! In what we and Linux differ by choice. Each difference says exactly what the kernel makes of a packet instead, see `reference` and
//! `kernel`: a packet to which one applies must come out like that and no other way.

use std::collections::BTreeMap;

macro_rules! known_differences {
    ($($variant:ident = $why:literal,)+) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum KnownDifference {
            $($variant,)+
        }

        impl KnownDifference {
            /// Why we do not do as the kernel does.
            pub(crate) fn why(self) -> &'static str {
                match self {
                    $(Self::$variant => $why,)+
                }
            }
        }
    };
}

known_differences! {
    ZeroNetwork = "R14, R15: 0/8 is this network (RFC 1122 3.2.1.3). Linux 5.3 and later forward all of it but 0.0.0.0",
    ReservedNetwork = "R14, R15: 240/4 is reserved (RFC 1112 4). Linux forwards it like any network",
    LinkLocal = "R18: routers do not forward 169.254/16 (RFC 3927 7). Linux does",
    TtlZero = "R29: no host may send it, so that it is dropped in silence. Linux answers as it does for a TTL of 1",
    Loop = "R62, fault 6: what is for the tunnel's own sockets, or for the next hop itself, never leaves. A router has no tunnel",
    Broadcast = "R40: we know the broadcast addresses of the config, of our subnet and of those with a route. On Linux's links \
                 there is no such network",
    PeerAddress = "R65 lets a peer send from its underlay address, to which no route of the overlay leads back. Linux has one here",
    ForeignDestination = "R66: what a peer sends us that is for others is dropped in silence. A router forwards it, and answers",
    BadOption = "R13, R41: a header that fails a check is dropped in silence. Linux tells the sender where the options break off",
    OptionContents = "R11: what is inside an option that fits is not our business. Linux checks record routes, timestamps, source \
                      routes and router alerts, and tells the sender where it does not like them",
    OptionsFilled = "R11: we add nothing to options. Linux writes its address into record routes and the time into timestamps",
    OptionsCleared = "R11: options go on byte for byte. Linux clears what is behind the end of the list",
    FragmentOptions = "R51: later fragments have the copied options alone (RFC 791 3.1). Linux keeps the room of the others, as \
                       no-operations, and all options of what is a later fragment already",
    ReservedFlag = "R10: the reserved flag goes on, in fragments too. Linux clears it when it cuts",
    OffsetWraps = "fault 5: a fragment that reaches past the longest packet is not cut. Linux lets the offset run into the flags",
    RouterDiscovery = "R36: router advertisements and solicitations are queries (RFC 1256). Linux takes them for errors, and sends \
                       none about them (`icmp_pointers` in net/ipv4/icmp.c)",
    IcmpSource = "R42: at the near end an error comes from the offender's destination, because Linux drops its own TUN's address \
                  as a martian. A router answers from its own address",
    IcmpIdentification = "R47: DF set and no identification (RFC 6864 4.1). Linux leaves DF clear and gives one",
    IcmpEcn = "R44: the ECN bits are 0. Linux copies the upper one, which RFC 1349 had for cost",
    IcmpQuote = "R45: the quote is the offender as it arrived. Linux quotes it with the options already written to",
    IcmpOptions = "R45: an error has no options. Linux has the offender's record route and timestamp in it, filled in, and \
                   quotes that much less; no error at all if they have room for half an entry",
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

    /// Odd sources are no peer's, nothing is too long, and the router has our TUN's address.
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

/// How often each difference applied.
#[derive(Debug, Default)]
pub(crate) struct Applied(BTreeMap<KnownDifference, u64>);

impl Applied {
    pub(crate) fn count(&mut self, known_differences: &[KnownDifference]) {
        for known_difference in known_differences {
            *self.0.entry(*known_difference).or_default() += 1;
        }
    }

    /// Those that never did: dead ones, which might hide anything one day.
    pub(crate) fn dead<'e>(&self, of: &'e [KnownDifference]) -> Vec<&'e KnownDifference> {
        of.iter().filter(|known_difference| !self.0.contains_key(known_difference)).collect()
    }
}

impl core::fmt::Display for Applied {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.iter().try_for_each(|(difference, count)| writeln!(f, "{count:>6} {difference:?}: {}", difference.why()))
    }
}
