//! Forward chains of nftables and of iptables-legacy, made as their programs make them.

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket as NetlinkSocket, SocketAddr};
use std::os::fd::AsFd;

use netlink_packet_core::NetlinkSerializable;
use socket2::{Domain, Socket, Type};

use super::*;
use crate::preflight::Firewall;
use crate::sys::link::message::{Messages, nla};
use crate::sys::{TableQuestion, replace_table, table_option};

pub(super) const DROP: u32 = libc::NF_DROP.cast_unsigned();
const ACCEPT: u32 = libc::NF_ACCEPT.cast_unsigned();
const DORMANT: u32 = 1;

/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END` of linux/netfilter/nfnetlink.h.
const BATCH: [u16; 2] = [16, 17];

fn of_nftables(kind: libc::c_int) -> u16 {
    u16::try_from(libc::NFNL_SUBSYS_NFTABLES << 8 | kind).expect("small")
}

fn family_byte(family: libc::c_int) -> u8 {
    u8::try_from(family).expect("small")
}

/// One message; `flags` beside `NLM_F_REQUEST`.
fn message(kind: u16, flags: u16, header: [u8; 4], attributes: &[Vec<u8>]) -> Vec<u8> {
    let attributes = attributes.concat();
    let mut message = u32::try_from(20 + attributes.len()).expect("small").to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend((1 | flags).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(header);
    message.extend(attributes);
    message
}

/// Changes of nftables are made in batches, or not at all.
fn commit(changes: &[Vec<u8>]) {
    let to_nftables = [0, 0, 0, 10];
    let [begin, end] = BATCH.map(|kind| message(kind, 0, to_nftables, &[]));
    let batch = [begin, changes.concat(), end].concat();
    let mut socket = NetlinkSocket::new(NETLINK_NETFILTER).expect("a netlink socket");
    socket.bind(&SocketAddr::new(0, 0)).expect("bound");
    socket.send_to(&batch, &SocketAddr::new(0, 0), 0).expect("sent");
    socket.set_non_blocking(true).expect("set");
    let mut answer = Vec::with_capacity(65_536);
    while socket.recv_from(&mut answer, 0).is_ok() {
        for message in Messages::new(&answer) {
            let message = message.expect("a message");
            assert_eq!((message.kind, &message.body[..4]), (2, &[0; 4][..]), "the kernel refused");
        }
        answer.clear();
    }
}

/// A table with a base chain `FORWARD` of the hook `forward`, with as many rules that do nothing.
pub(super) fn make_chain(family: libc::c_int, table: &str, policy: u32, rules: usize) {
    let header = [family_byte(family), 0, 0, 0];
    let text = |kind, text: &str| nla(kind, format!("{text}\0").as_bytes());
    let number = |kind, number: u32| nla(kind, &number.to_be_bytes());
    let nested = |kind: u16, attributes: &[Vec<u8>]| nla(kind | 0x8000, &attributes.concat());
    // NLM_F_CREATE and NLM_F_ACK.
    let change = |kind, attributes: &[Vec<u8>]| message(of_nftables(kind), 0x400 | 4, header, attributes);
    let mut changes = vec![
        change(libc::NFT_MSG_NEWTABLE, &[text(1, table)]),
        change(
            libc::NFT_MSG_NEWCHAIN,
            &[
                text(1, table),
                text(3, "FORWARD"),
                nested(4, &[number(1, libc::NF_INET_FORWARD.cast_unsigned()), number(2, 0)]),
                number(5, policy),
                text(7, "filter"),
            ],
        ),
    ];
    let rule = change(libc::NFT_MSG_NEWRULE, &[text(1, table), text(2, "FORWARD"), nested(4, &[])]);
    changes.extend(vec![rule; rules]);
    commit(&changes);
}

fn set_table_flags(family: libc::c_int, table: &str, flags: u32) {
    let name = nla(1, format!("{table}\0").as_bytes());
    let attributes = [name, nla(2, &flags.to_be_bytes())];
    commit(&[message(of_nftables(libc::NFT_MSG_NEWTABLE), 4, [family_byte(family), 0, 0, 0], &attributes)]);
}

/// All chains as the kernel writes them.
pub(super) fn chains() -> Vec<Vec<u8>> {
    #[derive(Clone)]
    struct List;
    impl NetlinkSerializable for List {
        fn message_type(&self) -> u16 {
            of_nftables(libc::NFT_MSG_GETCHAIN)
        }
        fn buffer_len(&self) -> usize {
            4
        }
        fn serialize(&self, buffer: &mut [u8]) {
            buffer.fill(0);
        }
    }
    let mut kernel = Netlink::connect(NETLINK_NETFILTER).expect("a netlink socket");
    kernel.dump(&List, |message| Ok(Some(message.body.to_vec()))).expect("the chains").seen
}

fn dropped(family: &'static str, table: &str, rules: u32) -> Finding {
    let firewall = Firewall::Nftables { family, table: table.into(), chain: "FORWARD".into() };
    Finding::ForwardDropped { firewall, rules, network: network() }
}

#[test]
fn a_chain_of_iptables_nft_that_drops_is_found() {
    provokes(
        |_| make_chain(libc::NFPROTO_IPV4, "filter", DROP, 0),
        intended(),
        dropped("ip", "filter", 0),
        &["has no rule", "`iptables -I FORWARD -s 100.96.0.0/16 -j ACCEPT`", "-d 100.96.0.0/16"],
    );
}

#[test]
fn a_chain_of_nft_that_drops_is_found_and_its_rules_are_counted() {
    for rules in [1, 3] {
        provokes(
            move |_| make_chain(libc::NFPROTO_INET, "mine", DROP, rules as usize),
            intended(),
            dropped("inet", "mine", rules),
            &["rules accepts them", "`nft insert rule inet mine FORWARD ip saddr 100.96.0.0/16 accept`", "ip daddr"],
        );
    }
}

#[test]
fn chains_that_accept_sleep_or_see_no_ipv4_are_no_matter() {
    provokes_nothing(|_| make_chain(libc::NFPROTO_INET, "mine", ACCEPT, 1), intended());
    provokes_nothing(|_| make_chain(libc::NFPROTO_IPV6, "mine", DROP, 0), intended());
    in_namespace(|| {
        let _world = World::host();
        make_chain(libc::NFPROTO_IPV4, "mine", DROP, 0);
        make_chain(libc::NFPROTO_INET, "mine", DROP, 0);
        set_table_flags(libc::NFPROTO_INET, "mine", DORMANT);
        assert_eq!(check(&intended()), [dropped("ip", "mine", 0)], "the other of the same name is dormant");
    });
}

/// Struct `ipt_getinfo` and the entries of the table `filter`, which is made by asking; `None` if this kernel has no
/// iptables-legacy.
fn filter_table() -> Option<(Socket, Vec<u8>, Vec<u8>)> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).expect("a socket");
    let question = |length: usize| {
        let mut question = b"filter".to_vec();
        question.resize(length, 0);
        question
    };
    let mut info = question(84);
    match table_option(socket.as_fd(), TableQuestion::Info, &mut info) {
        Ok(()) => {}
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOPROTOOPT | libc::ENOENT)) => return None,
        Err(error) => panic!("{error}"),
    }
    let size = info[80..84].to_vec();
    let header = if align_of::<u64>() == 8 { 40 } else { 36 };
    let mut entries = question(header + u32::from_ne_bytes(size[..].try_into().expect("four")) as usize);
    entries.splice(32..36, size);
    table_option(socket.as_fd(), TableQuestion::Entries, &mut entries).expect("the entries");
    Some((socket, info, entries.split_off(header)))
}

/// Makes the table, if this kernel has it, as any look of iptables-legacy at it does.
pub(super) fn legacy_table_is_made() -> bool {
    filter_table().is_some()
}

/// What iptables-legacy does on `-P FORWARD DROP`, with one more rule in front that accepts all if `rule`. Returns whether there
/// is such a table in this kernel.
fn legacy_drops(rule: bool) -> bool {
    let Some((socket, info, mut entries)) = filter_table() else { return false };
    let u32_at = |bytes: &[u8], at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four"));
    let old = u32_at(&info, 76);
    let (forward, output) = (u32_at(&info, 36 + 8), u32_at(&info, 36 + 12));
    let (length, verdict) = (output - forward, (output - 8) as usize);
    assert_eq!(i32::from_ne_bytes(entries[verdict..verdict + 4].try_into().expect("four")), -2, "it accepts at first");
    let accepting = entries[forward as usize..output as usize].to_vec();
    entries.splice(verdict..verdict + 4, (-1_i32).to_ne_bytes());
    let added = if rule { length } else { 0 };
    if rule {
        entries.splice(forward as usize..forward as usize, accepting);
    }
    // Struct ipt_replace: name, hooks, number and size of the entries, offsets of the chains and of their policies, counters.
    let mut replace = info[..36].to_vec();
    replace.extend((old + added / length).to_ne_bytes());
    replace.extend((u32_at(&info, 80) + added).to_ne_bytes());
    for (field, moved_from) in [(36, 3), (56, 2)] {
        for hook in 0..5 {
            let offset = u32_at(&info, field + 4 * hook);
            let is_moved = hook >= moved_from && offset != u32::MAX;
            replace.extend((if is_moved { offset + added } else { offset }).to_ne_bytes());
        }
    }
    // The number and the address of the counters are filled in later.
    replace.extend([0; size_of::<u32>() + size_of::<usize>()]);
    replace.resize(replace.len().next_multiple_of(align_of::<u64>()), 0);
    replace.extend(entries);
    replace_table(socket.as_fd(), &mut replace, old).expect("the table is replaced");
    true
}

/// In a kernel without iptables-legacy, nothing of it is found, which is right too.
#[test]
fn the_legacy_forward_chain_is_found_when_it_drops() {
    for (rule, words) in [(false, "has no rule"), (true, "unless one of its 1 rules")] {
        in_namespace(move || {
            let _world = World::host();
            let is_there = legacy_table_is_made();
            assert_eq!(check(&intended()), [], "a table that accepts");
            assert_eq!(legacy_drops(rule), is_there);
            let firewall = Firewall::IptablesLegacy { chain: "FORWARD" };
            let expected = Finding::ForwardDropped { firewall, rules: rule.into(), network: network() };
            let found = check(&intended());
            assert_eq!(found, Vec::from_iter(is_there.then_some(expected)));
            for finding in found {
                let text = finding.to_string();
                assert!(
                    text.contains(words) && text.contains("`iptables-legacy -I FORWARD -s 100.96.0.0/16"),
                    "{text}"
                );
            }
        });
    }
}
