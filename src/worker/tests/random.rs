//! R67 as a property: for any answers of the system calls, in any order, in both directions.

use alloc::collections::BTreeMap;
use proptest::prelude::*;

use super::*;

/// A packet from the TUN: its destination, bytes of payload, segment length of a GSO packet, and DF.
#[derive(Clone, Copy, Debug)]
struct Out {
    pod: Ipv4Addr,
    payload: usize,
    segment: Option<u16>,
    df: Df,
}

/// A message from host A: its number of packets, of TCP or UDP, and whether their TTL ends here.
#[derive(Clone, Copy, Debug)]
struct Back {
    packets: u16,
    tcp: bool,
    expires: bool,
    cut: bool,
}

/// Identifications reserved for a packet and its segments.
const IDS: u16 = 64;

fn out() -> impl Strategy<Value = Out> {
    let pod = proptest::sample::select(vec![POD_A, POD_A, POD_B, NOBODY]);
    let segment = proptest::option::of(proptest::sample::select(vec![200u16, 1000, 1400]));
    let df = proptest::sample::select(vec![Df::Clear, Df::Set]);
    (pod, 4usize..12_000, segment, df).prop_map(|(pod, payload, segment, df)| {
        let payload = segment.map_or(4 + payload % 1441, |_| payload);
        Out { pod, payload, segment: segment.filter(|size| payload > usize::from(*size)), df }
    })
}

fn back() -> impl Strategy<Value = Back> {
    let rarely = || proptest::bool::weighted(0.1);
    (1..20u16, any::<bool>(), rarely(), rarely()).prop_map(|(packets, tcp, expires, cut)| Back {
        packets,
        tcp,
        expires,
        cut,
    })
}

/// Answers of one kind of call. The last two end the worker, and are rare.
fn answers(errnos: &'static [c_int], ends: &'static [c_int]) -> impl Strategy<Value = Vec<Answer>> {
    let answer = prop_oneof![
        30 => Just(Answer::All),
        20 => (1..5usize).prop_map(Answer::AtMost),
        50 => proptest::sample::select(errnos).prop_map(Answer::Error),
        1 => proptest::sample::select(ends).prop_map(Answer::Error),
    ];
    proptest::collection::vec(answer, 0..25)
}

const ON_SENDING: &[c_int] = &[
    libc::EAGAIN,
    libc::ECONNREFUSED,
    libc::EHOSTUNREACH,
    libc::EINTR,
    libc::EINVAL,
    libc::EIO,
    libc::EMSGSIZE,
    libc::ENOBUFS,
    libc::EPERM,
];
const ON_RECEIVING: &[c_int] = &[libc::EAGAIN, libc::ECONNREFUSED, libc::EINTR, libc::EMSGSIZE, libc::ENOBUFS];
const ON_READING: &[c_int] = &[libc::EAGAIN, libc::EINTR, libc::EINVAL, libc::ENOMEM];
const ON_WRITING: &[c_int] = &[libc::EAGAIN, libc::EINTR, libc::EINVAL, libc::EIO, libc::ENOBUFS];

/// The plan of a run.
#[derive(Clone, Debug)]
struct Play {
    out: Vec<Out>,
    back: Vec<Back>,
    answers: Vec<(Call, Vec<Answer>)>,
    /// The path MTU to host A at the start.
    mtu: u32,
    /// The path MTU from this turn on, and whether the worker's own MTU is set again then.
    later: (usize, u32, bool),
    /// The turn before which the route to host A is removed.
    removed: usize,
    no_gso_batches: bool,
    no_gso_packets: bool,
    of_tun: TunOffload,
    budget: u32,
}

fn play() -> impl Strategy<Value = Play> {
    let all = (
        answers(ON_SENDING, &[libc::EBADF]),
        answers(ON_RECEIVING, &[libc::EBADF]),
        answers(ON_READING, &[libc::EBADF, libc::EBADFD]),
        answers(ON_WRITING, &[libc::EBADF, libc::EBADFD]),
        answers(&[libc::EMFILE], &[libc::ENETUNREACH]),
    );
    let calls = [Call::Send, Call::Receive, Call::Read, Call::Write, Call::PathMtu];
    let answers = all.prop_map(move |(a, b, c, d, e)| calls.into_iter().zip([a, b, c, d, e]).collect());
    let packets = (proptest::collection::vec(out(), 0..30), proptest::collection::vec(back(), 0..12));
    let mtu = || proptest::sample::select(vec![1500, 1500, 1300, 600, 100]);
    let later = (1..20usize, mtu(), any::<bool>());
    let turns = (later, prop_oneof![1..30usize, Just(usize::MAX)]);
    let of_tun = proptest::sample::select(vec![TunOffload::ALL, TunOffload::NONE]);
    let budget = proptest::sample::select(vec![1, 10, 256]);
    (packets, answers, mtu(), turns, any::<bool>(), any::<bool>(), of_tun, budget).prop_map(
        |((out, back), answers, mtu, (later, removed), no_gso_batches, no_gso_packets, of_tun, budget)| Play {
            out,
            back,
            answers,
            mtu,
            later,
            removed,
            no_gso_batches,
            no_gso_packets,
            of_tun,
            budget,
        },
    )
}

impl Play {
    fn set(&self) -> Stage {
        let stage = Stage::with(self.of_tun, UdpOffload::ALL);
        stage.script.narrow(host_a().ip(), self.mtu, libc::EINVAL);
        if self.no_gso_batches {
            stage.script.refuse_gso_batches(host_a().ip(), libc::EIO);
        }
        if self.no_gso_packets {
            stage.script.refuse_gso_packets(libc::EINVAL);
        }
        for (call, answers) in &self.answers {
            stage.script.then(*call, answers.iter().copied());
        }
        for (index, out) in (0..).zip(&self.out) {
            let packet = udp(POD, out.pod, index * IDS, out.df, out.payload);
            match out.segment.filter(|_| self.of_tun.uso) {
                Some(size) => stage.give_with(gso(&packet, size), &packet),
                None => stage.give(&packet),
            }
        }
        for (index, back) in (0..).zip(&self.back) {
            stage.script.give_message(back.arrival(index * IDS));
        }
        stage
    }
}

impl Back {
    fn arrival(self, first: u16) -> Arrival {
        let packet = |at: u16| {
            let number = first + at;
            let mut packet = match self.tcp {
                true => tcp(POD_A, POD, number, u32::from(number) * 100, 100),
                false => udp(POD_A, POD, number, Df::Set, 100),
            };
            if self.expires {
                set_ttl(&mut packet, 1);
            }
            packet
        };
        let packets: Vec<_> = (0..self.packets).map(packet).collect();
        let segment = (self.packets > 1).then_some(packets[0].len() as c_int);
        let flags = if self.cut { libc::MSG_CTRUNC } else { 0 };
        Arrival { from: host_a(), bytes: packets.concat(), segment, flags }
    }
}

/// Sent parts of packets by identification: bytes of payload, and the end of the last part.
#[derive(Debug, Default)]
struct Gone(BTreeMap<u16, (usize, usize)>);

impl Gone {
    /// Records a sent datagram. It must be in order, and no byte may be sent twice. Bytes of a lost packet may be
    /// missing anywhere.
    fn add(&mut self, datagram: &[u8], newest: &mut u16) {
        let packet = Ipv4Packet::parse(datagram).unwrap();
        assert_eq!(packet.as_bytes().len(), datagram.len());
        let id = packet.header().identification();
        assert!(id >= *newest, "in the order of its peer");
        *newest = id;
        let (start, len) = (usize::from(packet.header().fragment_offset()) * 8, packet.payload().len());
        let (bytes, end) = self.0.entry(id).or_default();
        assert!(start >= *end, "no byte twice");
        (*bytes, *end) = (*bytes + len, start + len);
    }

    /// Returns whether a packet was sent completely, in segments, in fragments, or in fragments of segments.
    fn has_all(&self, index: u16, out: &Out, uso: bool) -> bool {
        let size = out.segment.filter(|_| uso).map_or(out.payload, usize::from);
        let mut segments = (0..).zip(alloc::vec![0; out.payload].chunks(size).map(<[u8]>::len).collect::<Vec<_>>());
        segments.all(|(segment, len)| self.0.get(&(index * IDS + segment)) == Some(&(8 + len, 8 + len)))
    }
}

fn is_icmp(packet: &[u8]) -> bool {
    packet[9] == 1
}

proptest! {
    /// At every step every packet is in exactly one counter. At the end, forwarded packets were sent with every byte,
    /// once and in order. Answered packets have their ICMP error, and none is queued.
    #[test]
    fn r67_every_packet_is_counted_for_any_answers_of_the_system_calls(play in play()) {
        let mut stage = play.set();
        let (mut gone, mut newest, mut told) = (Gone::default(), BTreeMap::<SocketAddr, u16>::new(), [0, 0]);
        let mut delivered = Vec::new();
        let mut end = None;
        let (later, mtu, wider) = play.later;
        for turn in 0..3000 {
            if turn == later {
                stage.script.narrow(host_a().ip(), mtu, libc::EINVAL);
                if wider {
                    stage.worker.remote().set_mtu(Mtu::new(1472).unwrap());
                }
            }
            if turn == play.removed {
                let _applied = stage.routes.apply([RouteChange::Delete("100.96.2.0/24".parse().unwrap())]);
            }
            let outcomes = [TUN, UDP].map(|ready| {
                stage.call(ready, Budget::packets(play.budget))
            });
            stage.now += 100 * MILLISECOND;
            for (to, datagram) in stage.script.take_datagrams() {
                prop_assert!(to == host_b() || turn < play.removed, "R70");
                match is_icmp(&datagram) {
                    true => told[1] += 1,
                    false => gone.add(&datagram, newest.entry(to).or_default()),
                }
            }
            let (messages, packets) = stage.take_delivered().into_iter().partition::<Vec<_>, _>(|packet| is_icmp(packet));
            told[0] += messages.len() as u64;
            delivered.extend(packets);
            end = outcomes.iter().find_map(|outcome| outcome.clone().err());
            if end.is_some() || (stage.script.is_given() && stage.encap().held() == 0) {
                break;
            }
        }
        prop_assert!(end.is_some() || stage.script.is_given(), "the worker reads all packets");
        stage.worker.drop_waiting();
        let (encap, decap) = (stage.encap(), stage.decap());
        prop_assert!(encap.is_conserved() && decap.is_conserved());
        prop_assert_eq!((encap.held(), decap.held()), (0, 0));
        prop_assert_eq!([encap.answered(), decap.answered()], told);

        let whole = (0..).zip(&play.out).filter(|(index, out)| gone.has_all(*index, out, play.of_tun.uso)).count();
        prop_assert_eq!(encap.forwarded(), whole as u64, "{:?}", gone);
        prop_assert_eq!(decap.forwarded(), delivered.len() as u64);
        for protocol in [IpNumber::TCP, IpNumber::UDP] {
            let arrived = numbers(delivered.iter().filter(|packet| packet[9] == protocol.0));
            prop_assert!(arrived.is_sorted_by(|one, next| one < next), "once, and in the order of its flow: {:?}", arrived);
        }
        if end.is_none() {
            let sound: u64 = play.back.iter().filter(|back| !back.cut).map(|back| u64::from(back.packets)).sum();
            prop_assert_eq!((encap.received(), decap.received()), (play.out.len() as u64, sound));
        }
    }
}
