//! Tests of nftables chains that are created through nfnetlink.

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket as NetlinkSocket, SocketAddr};

use netlink_packet_core::NetlinkSerializable;

use super::*;
use crate::sys::link::message::{Messages, nla};

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

/// Returns a message with `flags` and `NLM_F_REQUEST`.
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

/// Commits a batch of changes. nftables takes changes in batches only.
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

/// Creates a table with a base chain `FORWARD` at the hook `forward`, with that many rules without expressions.
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

/// Returns the messages of all chains.
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
    kernel.dump(&List, |message| Ok(Some(message.body.to_vec()))).expect("the chains").entries
}

fn dropped(family: &'static str, table: &str, rules: u32) -> Finding {
    let chain = NftablesChain { family, table: table.into(), name: "FORWARD".into() };
    Finding::ForwardDropped { chain, rules, network: network() }
}

#[test]
fn a_chain_of_iptables_nft_that_drops_is_found() {
    assert_found(
        |_| make_chain(libc::NFPROTO_IPV4, "filter", DROP, 0),
        config(),
        dropped("ip", "filter", 0),
        &["has no rules", "`iptables -I FORWARD -s 100.96.0.0/16 -j ACCEPT`", "-d 100.96.0.0/16"],
    );
}

#[test]
fn a_chain_of_nft_that_drops_is_found_and_its_rules_are_counted() {
    for rules in [1, 3] {
        assert_found(
            move |_| make_chain(libc::NFPROTO_INET, "mine", DROP, rules as usize),
            config(),
            dropped("inet", "mine", rules),
            &["rules accepts them", "`nft insert rule inet mine FORWARD ip saddr 100.96.0.0/16 accept`", "ip daddr"],
        );
    }
}

#[test]
fn chains_that_accept_are_dormant_or_see_no_ipv4_are_no_finding() {
    assert_nothing_found(|_| make_chain(libc::NFPROTO_INET, "mine", ACCEPT, 1), config());
    assert_nothing_found(|_| make_chain(libc::NFPROTO_IPV6, "mine", DROP, 0), config());
    in_namespace(|| {
        let _world = World::host();
        make_chain(libc::NFPROTO_IPV4, "mine", DROP, 0);
        make_chain(libc::NFPROTO_INET, "mine", DROP, 0);
        set_table_flags(libc::NFPROTO_INET, "mine", DORMANT);
        assert_eq!(check(&config()), [dropped("ip", "mine", 0)], "the other of the same name is dormant");
    });
}
