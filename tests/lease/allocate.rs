//! Allocation of a subnet lease, compared with a search through all subnets.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use loden::lease::{AllocateError, Held, RangeError, Step, SubnetRange, allocation_order};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::net;

const OURS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 168, 0, 2));

fn held(subnet: &str, host: u8) -> Held {
    Held { subnet: net(subnet), host: [10, 168, 0, host].into(), created: 0 }
}

fn range() -> SubnetRange {
    SubnetRange::new(net("100.96.0.0/20"), None, None, None).unwrap()
}

fn in_turn() -> impl FnMut() -> u64 {
    let mut state = 1u64;
    move || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        state
    }
}

fn created(steps: &[Step]) -> Vec<IpNet> {
    steps.iter().filter_map(|step| if let Step::Create(subnet) = step { Some(*subnet) } else { None }).collect()
}

#[test]
fn a_lease_of_ours_is_taken_over_or_deleted() {
    let leases =
        [held("100.96.3.0/24", 3), held("100.96.5.0/24", 2), held("100.96.4.0/24", 2), held("100.97.1.0/24", 2)];
    let steps = allocation_order(&range(), &leases, OURS, None, in_turn()).unwrap();
    assert_eq!(steps[..2], [Step::Delete(net("100.97.1.0/24")), Step::TakeOver(net("100.96.4.0/24"))]);
    let steps = allocation_order(&range(), &leases, OURS, Some(net("100.96.5.1/24")), in_turn()).unwrap();
    assert_eq!(steps[..2], [Step::Delete(net("100.97.1.0/24")), Step::TakeOver(net("100.96.5.0/24"))]);
    assert!(!created(&steps).contains(&net("100.96.4.0/24")));
}

#[test]
fn the_subnet_of_an_earlier_run_comes_first_unless_somebody_holds_it() {
    let previous = Some(net("100.96.7.1/24"));
    let steps = allocation_order(&range(), &[held("100.96.3.0/24", 3)], OURS, previous, in_turn()).unwrap();
    assert_eq!(steps[0], Step::Create(net("100.96.7.0/24")));
    assert_eq!(created(&steps).iter().collect::<BTreeSet<_>>().len(), steps.len(), "each once");
    for taken in ["100.96.7.0/24", "100.96.7.128/25", "100.96.6.0/23"] {
        let steps = allocation_order(&range(), &[held(taken, 3)], OURS, previous, in_turn()).unwrap();
        assert!(!created(&steps).contains(&net("100.96.7.0/24")), "{taken} is held");
    }
    for unfit in ["100.96.7.0/25", "100.96.0.0/24", "100.97.7.0/24", "fd00::/24"] {
        let steps = allocation_order(&range(), &[], OURS, Some(net(unfit)), in_turn()).unwrap();
        assert_eq!(steps.len(), 15);
        assert!(!created(&steps).contains(&net(unfit)), "{unfit} does not fit");
    }
}

#[test]
fn without_anything_free_the_numbers_are_told() {
    let all = [held("100.96.0.0/20", 3)];
    let error = allocation_order(&range(), &all, OURS, None, in_turn()).unwrap_err();
    let (first, last) = ([100, 96, 1, 0].into(), [100, 96, 15, 0].into());
    assert_eq!(error, AllocateError::NoneFree { first, last, subnet_len: 24, held: 1 });
    let ours = [held("100.96.4.0/24", 2), held("100.96.0.0/20", 3)];
    assert_eq!(
        allocation_order(&range(), &ours, OURS, None, in_turn()),
        Ok(vec![Step::TakeOver(net("100.96.4.0/24"))])
    );
}

#[test]
fn ipv6_and_a_range_that_ends_with_the_address_space() {
    let range = SubnetRange::new(net("255.255.255.0/24"), None, None, None).unwrap();
    let steps = allocation_order(&range, &[held("255.255.255.192/26", 3)], OURS, None, in_turn()).unwrap();
    assert_eq!(created(&steps).len(), 2);
    let range = SubnetRange::new(net("feff::/16"), Some(18), None, None).unwrap();
    let taken = [Held { subnet: net("feff:c000::/18"), host: OURS.to_canonical(), created: 0 }, held("0.0.0.0/0", 9)];
    let steps = allocation_order(&range, &taken, [10, 168, 0, 7].into(), None, in_turn()).unwrap();
    assert_eq!(created(&steps).len(), 2);
}

/// R71: what can carry nothing is refused, and so it is for IPv6; what Linux carries is not.
#[test]
fn r71_networks_that_are_not_carried_are_refused() {
    let refused = [
        ("0.0.0.0/8", "0.0.0.0/8"),
        ("0.7.0.0/16", "0.0.0.0/8"),
        ("127.0.0.0/8", "127.0.0.0/8"),
        ("127.100.0.0/16", "127.0.0.0/8"),
        ("224.0.0.0/4", "224.0.0.0/4"),
        ("239.255.0.0/16", "224.0.0.0/4"),
        ("224.0.0.0/3", "224.0.0.0/3"),
        ("::/8", "::/8"),
        ("fe80::/10", "fe80::/10"),
        ("ff00::/8", "ff00::/8"),
        ("ff12:3400::/24", "ff00::/8"),
    ];
    for (network, expected) in refused {
        let error = SubnetRange::new(net(network), None, None, None).unwrap_err();
        assert!(matches!(error, RangeError::Special { range, .. } if range == net(expected)), "{network}: {error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
    // Also a part of a network that is carried otherwise: 240/4 is ordinary for networks inside of it alone.
    for (network, first) in [("0.0.0.0/0", "127.0.1.0"), ("128.0.0.0/1", "240.0.1.0"), ("169.0.0.0/8", "169.254.1.0")] {
        let end = |address: &str| Some(address.parse().unwrap());
        let error = SubnetRange::new(net(network), Some(24), end(first), end(first)).unwrap_err();
        assert!(matches!(error, RangeError::Special { .. }), "{network}: {error}");
    }
    for network in ["240.0.0.0/4", "240.7.0.0/16", "255.255.0.0/16", "255.255.255.0/24", "169.254.0.0/16", "1.0.0.0/8"]
    {
        assert!(SubnetRange::new(net(network), None, None, None).is_ok(), "{network}");
    }
    for network in ["0.0.0.0/0", "128.0.0.0/1", "126.0.0.0/7", "fd00::/16", "fec0::/10", "2001:db8::/32"] {
        assert!(SubnetRange::new(net(network), None, None, None).is_ok(), "{network}");
    }
}

#[test]
fn every_candidate_comes_first_for_some_random_number() {
    let mut first = BTreeSet::new();
    let mut random = in_turn();
    for _ in 0..500 {
        first.insert(created(&allocation_order(&range(), &[], OURS, None, &mut random).unwrap())[0]);
    }
    assert_eq!(first.len(), 15);
}

fn subnet() -> impl Strategy<Value = Ipv4Net> {
    (0u32..1 << 13, 18u8..=32).prop_map(|(bits, len)| Ipv4Net::new((0x6460_0000 + bits).into(), len).unwrap())
}

/// Address by address: they share one, and the other host's was there before.
fn is_younger(own: &Held, other: &Held) -> bool {
    let span = |held: &Held| {
        let IpNet::V4(subnet) = held.subnet else { panic!("IPv4 alone") };
        subnet.network().to_bits()..=subnet.broadcast().to_bits()
    };
    let (own_span, other_span) = (span(own), span(other));
    let shared = own_span.start().max(other_span.start()) <= own_span.end().min(other_span.end());
    shared && own.host != other.host && (1..own.created).contains(&other.created)
}

/// A dual-stack key of the same subnet, a longer one inside, a shorter one around it.
#[test]
fn fault_60_the_younger_of_two_overlapping_leases_gives_way() {
    let aged = |subnet, host, created| Held { created, ..held(subnet, host) };
    for other in ["100.96.4.0/24", "100.96.4.128/25", "100.96.4.0/22"] {
        let older = [aged("100.96.4.0/24", 2, 11), aged(other, 3, 10)];
        let steps = allocation_order(&range(), &older, OURS, Some(net("100.96.4.1/24")), in_turn()).unwrap();
        assert_eq!(steps[0], Step::Delete(net("100.96.4.0/24")), "{other}");
        assert!(!created(&steps).contains(&net("100.96.4.0/24")), "{other}");
        let younger = [aged("100.96.4.0/24", 2, 11), aged(other, 3, 12)];
        let steps = allocation_order(&range(), &younger, OURS, None, in_turn()).unwrap();
        assert_eq!(steps[0], Step::TakeOver(net("100.96.4.0/24")), "{other}");
    }
}

proptest! {
    /// Every host decides alone, by the same leases: the oldest stays, those that stay share nothing, and who leaves had a reason.
    #[test]
    fn fault_60_hosts_that_give_way_leave_no_overlap(leases in vec((subnet(), 0u8..6), 1..20)) {
        let leases: Vec<Held> = leases
            .into_iter()
            .zip(1..)
            .map(|((subnet, host), created)| Held { subnet: subnet.into(), host: [10, 168, 0, host].into(), created })
            .collect();
        let leaves = |own: &Held| leases.iter().any(|other| own.gives_way_to(other));
        prop_assert!(!leaves(&leases[0]));
        for own in &leases {
            prop_assert_eq!(leaves(own), leases.iter().any(|other| is_younger(own, other)));
            for other in &leases {
                let both_stay = !leaves(own) && !leaves(other);
                prop_assert!(!(both_stay && (is_younger(own, other) || is_younger(other, own))));
            }
        }
    }

    #[test]
    fn the_free_ones_are_those_that_a_search_finds(
        leases in vec((subnet(), 2u8..5, 0u64..20), 0..40),
        (len, skip) in (20u8..=28, 0u32..4),
        previous in proptest::option::of(subnet()),
    ) {
        let network = net("100.96.0.0/18");
        let size = 1u32 << (32 - len);
        let first = std::net::Ipv4Addr::from(0x6460_0000 + size * skip);
        let range = SubnetRange::new(network, Some(len), Some(first.into()), None).unwrap();
        let leases: Vec<Held> = leases
            .into_iter()
            .map(|(subnet, host, created)| Held { subnet: subnet.into(), host: [10, 168, 0, host].into(), created })
            .collect();
        let all = (0x6460_0000 + size * skip..0x6460_4000).step_by(size as usize);
        let all = all.map(|bits| IpNet::from(Ipv4Net::new(bits.into(), len).unwrap()));
        let fits = |subnet: IpNet| subnet.prefix_len() == len && subnet.network() >= IpAddr::from(first);
        let younger = |held: &Held| leases.iter().any(|other| is_younger(held, other));
        let keeps = |held: &Held| fits(held.subnet) && !younger(held);
        let overlaps = |subnet: IpNet, held: &Held| {
            let mine = held.host == OURS && !keeps(held);
            !mine && (subnet.contains(&held.subnet) || held.subnet.contains(&subnet))
        };
        let free: Vec<IpNet> = all.filter(|subnet| !leases.iter().any(|held| overlaps(*subnet, held))).collect();

        let steps = allocation_order(&range, &leases, OURS, previous.map(Into::into), in_turn()).unwrap_or_default();
        let created = created(&steps);
        let mut sorted = created.clone();
        sorted.sort();
        let previous = previous.map(|subnet| IpNet::from(subnet.trunc())).filter(|subnet| free.contains(subnet));
        if let Some(previous) = previous {
            prop_assert_eq!(created[0], previous);
        }
        let among = |subnet: &&IpNet| Some(**subnet) != previous;
        let mut expected: Vec<IpNet> = free.iter().filter(among).take(100).copied().collect();
        expected.extend(previous);
        expected.sort();
        prop_assert_eq!(sorted, expected);
        let ours = leases.iter().filter(|held| held.host == OURS);
        let (fitting, unfit): (Vec<Held>, Vec<Held>) = ours.partition(|held| keeps(held));
        let deletes: Vec<Step> = unfit.iter().map(|held| Step::Delete(held.subnet)).collect();
        prop_assert_eq!(steps.iter().filter(|step| matches!(step, Step::Delete(_))).count(), if steps.is_empty() { 0 } else { deletes.len() });
        prop_assert_eq!(steps.iter().filter(|step| matches!(step, Step::TakeOver(_))).count(), usize::from(!fitting.is_empty()));
    }

    /// Any network that can be cut is cut by flannel's rules.
    #[test]
    fn ranges_keep_what_they_promise(bits in any::<u32>(), prefix in 0u8..=32, len in proptest::option::of(0u8..=40)) {
        let network = Ipv4Net::new(bits.into(), prefix).unwrap();
        match SubnetRange::new(network, len, None, None) {
            Ok(range) => {
                let least = u32::from(network.trunc().network());
                let size = 1u64 << (32 - range.subnet_len());
                prop_assert_eq!(range.subnet_len(), len.unwrap_or(if prefix <= 22 { 24 } else { prefix + 2 }));
                prop_assert_eq!(range.first(), IpAddr::from(std::net::Ipv4Addr::from((u64::from(least) + size) as u32)));
                let last = u64::from(u32::from(network.broadcast())) + 1 - size;
                prop_assert_eq!(range.last(), IpAddr::from(std::net::Ipv4Addr::from(last as u32)));
            }
            Err(RangeError::NetworkTooSmall { most, .. }) => prop_assert!(len.is_none() && prefix > 28 && most == 28),
            Err(RangeError::SubnetTooLong { subnet_len, most }) => prop_assert!(len == Some(subnet_len) && subnet_len > 30 && most == 30),
            Err(RangeError::SubnetTooShort { subnet_len, least, .. }) => prop_assert!(len == Some(subnet_len) && subnet_len < prefix + 2 && least == prefix + 2),
            Err(RangeError::Special { first, last, .. }) => {
                let of = |address: IpAddr| match address {
                    IpAddr::V4(address) => address.octets(),
                    IpAddr::V6(address) => panic!("{address}"),
                };
                let (first, last) = (of(first), of(last));
                let in_one = first[0] == last[0] && [0, 127].contains(&first[0]);
                prop_assert!(in_one || prefix == 3 && first[0] >= 224 || (224..240).contains(&first[0]), "{network}");
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}
