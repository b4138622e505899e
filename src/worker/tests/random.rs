//! R67 as a property: whatever the system calls answer, in whatever order, both ways.

use alloc::collections::BTreeMap;
use proptest::prelude::*;

use super::*;

/// What comes out of the TUN: for whom, of how many bytes of payload, as a train of segments of which length, with which DF.
#[derive(Clone, Copy, Debug)]
struct Out {
    pod: Ipv4Addr,
    payload: usize,
    segment: Option<u16>,
    df: Df,
}

/// What comes from host A: how many packets of a TCP stream or of UDP in one message, and whether their TTL ends with us.
#[derive(Clone, Copy, Debug)]
struct Back {
    packets: u16,
    tcp: bool,
    expires: bool,
    cut: bool,
}

/// Identifications that a packet and its segments have for themselves.
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

/// Answers of one kind of call; the last two end it all, and are rare.
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

/// All that a run is made of.
#[derive(Clone, Debug)]
struct Play {
    out: Vec<Out>,
    back: Vec<Back>,
    answers: Vec<(Call, Vec<Answer>)>,
    /// What the path to host A carries from the begin on.
    mtu: u32,
    /// What it carries from that turn on, and whether we are told that our own interface may have become wider.
    later: (usize, u32, bool),
    /// The turn before which the route to host A is removed.
    removed: usize,
    no_trains: bool,
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
        |((out, back), answers, mtu, (later, removed), no_trains, no_gso_packets, of_tun, budget)| Play {
            out,
            back,
            answers,
            mtu,
            later,
            removed,
            no_trains,
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
        if self.no_trains {
            stage.script.refuse_trains(host_a().ip(), libc::EIO);
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

/// What went of packets: by identification, how many bytes of payload, and where the last of them ended.
#[derive(Debug, Default)]
struct Gone(BTreeMap<u16, (usize, usize)>);

impl Gone {
    /// A datagram went: in order, and no byte twice. What a lost packet lacks may be anywhere.
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

    /// Whether all of a packet has gone, be it in segments, in fragments or in fragments of segments.
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
    /// At every step every packet is in exactly one counter. In the end those counted as forwarded are those that went with every
    /// byte, once and in order; those counted as answered have their answer; and none is held.
    #[test]
    fn r67_whatever_the_system_calls_answer_every_packet_is_accounted_for(play in play()) {
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
        prop_assert!(end.is_some() || stage.script.is_given(), "it comes to an end");
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
