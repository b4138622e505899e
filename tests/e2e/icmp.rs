//! ICMP errors as the sender's socket gets them from Linux.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};

use nix::libc::ENETUNREACH;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Ipv4RecvErr;
use testbed::TwoHosts;
use testbed::probe::{Fragmentation, Ping, PingOutcome, path_mtu, ping};

use crate::support::{SECOND, Tunnels, dropped};

/// An address of the overlay without an owner.
const HOLE: Ipv4Addr = Ipv4Addr::new(100, 96, 9, 9);

fn ttl(ttl: u8) -> Ping {
    Ping { ttl: Some(ttl), ..Ping::default() }
}

/// R23 and R42: a connected UDP socket gets ENETUNREACH, in the pod and on the host itself. Linux reports an
/// unreachable net only with `IP_RECVERR`, because it is a soft error.
#[test]
fn r23_net_unreachable_reaches_the_senders_socket() {
    let mut tunnels = Tunnels::start();
    for namespace in [&tunnels.hosts.pod_a, &tunnels.hosts.host_a] {
        let socket = namespace.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).unwrap();
        setsockopt(&socket, Ipv4RecvErr, &true).unwrap();
        socket.connect((HOLE, 9)).unwrap();
        socket.set_read_timeout(Some(SECOND)).unwrap();
        socket.send(b"anybody there?").unwrap();
        let told = socket.recv(&mut [0; 100]).map_err(|error| error.raw_os_error());
        assert_eq!(told, Err(Some(ENETUNREACH)));
    }
    assert_eq!(tunnels.a.stop()["encap"]["answered"], 2);
}

#[test]
fn r37_a_ping_without_a_route_is_answered() {
    let tunnels = Tunnels::start();
    let outcome = tunnels.hosts.pod_a.enter(|| ping(HOLE, Ping::default())).unwrap();
    assert!(matches!(outcome[..], [PingOutcome::Error { from: HOLE, kind: 3, code: 0, .. }]), "{outcome:?}");
}

/// `--icmp-source`: an address that is none of this host's, as Linux requires.
#[test]
fn a_configured_source_is_used() {
    let source = Ipv4Addr::new(100, 96, 255, 254);
    let tunnels = Tunnels::with(&["--icmp-source", "100.96.255.254"], &[]);
    let outcome = tunnels.hosts.pod_a.enter(|| ping(HOLE, Ping::default())).unwrap();
    assert!(
        matches!(outcome[..], [PingOutcome::Error { from, kind: 3, code: 0, .. }] if from == source),
        "{outcome:?}"
    );
}

/// R28 and R30: each hop of the path answers in turn, the remote tunnel from its TUN address.
#[test]
fn r28_every_hop_answers_when_the_ttl_runs_out() {
    let tunnels = Tunnels::start();
    let step = |hops: u8| tunnels.hosts.pod_a.enter(|| ping(TwoHosts::POD_B, ttl(hops))).unwrap()[0];
    let by = |outcome: PingOutcome| {
        let PingOutcome::Error { from, kind: 11, code: 0, .. } = outcome else { panic!("{outcome:?}") };
        from
    };
    assert_eq!(by(step(1)), TwoHosts::GATEWAY_A, "the kernel of host A");
    assert_eq!(by(step(2)), TwoHosts::POD_B, "the near tunnel, in the name of the destination");
    assert_eq!(by(step(3)), Ipv4Addr::new(100, 96, 2, 0), "the far tunnel");
    // The kernel behind the tunnel answers from its address towards the pod: that of the TUN.
    assert_eq!(by(step(4)), Ipv4Addr::new(100, 96, 2, 0), "the kernel of host B");
    assert!(matches!(step(5), PingOutcome::Reply { from: TwoHosts::POD_B, .. }));
}

/// R50, R51, R52 and fault 29, with a TUN MTU above the underlay's: with DF the sender gets an MTU of 1472, and its
/// kernel applies it. Without DF packets arrive in fragments.
#[test]
fn r50_fault_29_fragmentation_needed_reaches_the_sender() {
    let mut tunnels = Tunnels::with(&["--mtu", "9000"], &["--mtu", "9000"]);
    let hosts = &tunnels.hosts;
    for (namespace, link) in [
        (&hosts.host_a, TwoHosts::POD_LINK),
        (&hosts.pod_a, TwoHosts::UPLINK),
        (&hosts.host_b, TwoHosts::POD_LINK),
        (&hosts.pod_b, TwoHosts::UPLINK),
    ] {
        namespace.set_mtu(link, 9000).unwrap();
    }
    let big = |fragmentation, payload_len| Ping { fragmentation, payload_len, ..Ping::default() };
    let ping_b = |settings| hosts.pod_a.enter(|| ping(TwoHosts::POD_B, settings)).unwrap()[0];
    // The longest packet that fits, then one byte more.
    let fits = ping_b(big(Fragmentation::Forbidden, 1472 - 28));
    assert!(matches!(fits, PingOutcome::Reply { .. }), "{fits:?}");
    let too_long = ping_b(big(Fragmentation::Forbidden, 1473 - 28));
    assert!(matches!(too_long, PingOutcome::Error { kind: 3, code: 4, mtu: 1472, .. }), "{too_long:?}");
    assert_eq!(hosts.pod_a.enter(|| path_mtu(TwoHosts::POD_B)).unwrap(), 1472);
    hosts.pod_a.forget_path_mtus().unwrap();
    let cut = ping_b(big(Fragmentation::Allowed, 3000));
    assert!(matches!(cut, PingOutcome::Reply { from: TwoHosts::POD_B, .. }), "{cut:?}");
    // The request and the reply: 3008 bytes behind the header, of which 1448 fit at a time.
    for last in [tunnels.a.stop(), tunnels.b.stop()] {
        assert_eq!(last["anomalies"]["fragments_made"], 3, "{last}");
    }
}

/// Fault 29: the path MTU is lower than its interface's. EMSGSIZE teaches it, and the sender gets an ICMP error.
#[test]
fn fault_29_a_narrower_path_is_learned_from_emsgsize() {
    let mut tunnels = Tunnels::start();
    let hosts = &tunnels.hosts;
    hosts.host_a.narrow_path(TwoHosts::HOST_B, TwoHosts::UPLINK, 1300).unwrap();
    let settings = || Ping { fragmentation: Fragmentation::Forbidden, payload_len: 1400, ..Ping::default() };
    for _ in 0..2 {
        hosts.pod_a.forget_path_mtus().unwrap();
        let outcome = hosts.pod_a.enter(|| ping(TwoHosts::POD_B, settings())).unwrap();
        assert!(matches!(outcome[..], [PingOutcome::Error { kind: 3, code: 4, mtu: 1272, .. }]), "{outcome:?}");
    }
    let fits = Ping { payload_len: 1272 - 28, ..settings() };
    let outcome = hosts.pod_a.enter(|| ping(TwoHosts::POD_B, fits)).unwrap();
    assert!(matches!(outcome[..], [PingOutcome::Reply { .. }]), "{outcome:?}");
    let last = tunnels.a.stop();
    assert_eq!(last["anomalies"]["path_mtu_lowered"], 1, "asked once, remembered after: {last}");
    assert_eq!(last["encap"]["answered"], 2);
}

/// R48 and fault 8 end to end: a flood without a route gets the burst and the rate of ICMP errors, and the rest is
/// counted. Another source still gets its first error.
#[test]
fn r48_fault_8_a_flood_without_a_route_is_answered_within_limits() {
    let mut tunnels = Tunnels::start();
    let hosts = &tunnels.hosts;
    let socket = hosts.pod_a.enter(|| UdpSocket::bind((TwoHosts::POD_A, 0))).unwrap();
    let start = std::time::Instant::now();
    let mut sent = 0u64;
    while start.elapsed() < SECOND {
        match socket.send_to(b"flood", (HOLE, 9)) {
            Ok(_) => sent += 1,
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NetworkUnreachable), "{error}")
            }
        }
    }
    // More than one, because the device's queue may still be full of the flood.
    let outcomes = hosts.host_a.enter(|| ping(HOLE, Ping { count: 5, ..Ping::default() })).unwrap();
    let told = |outcome: &PingOutcome| matches!(outcome, PingOutcome::Error { kind: 3, code: 0, .. });
    assert!(outcomes.iter().any(told), "another source: {outcomes:?}");
    let last = tunnels.a.stop();
    let seconds = start.elapsed().as_secs_f64();
    let answered = last["encap"]["answered"].as_u64().unwrap();
    // Two sources: the flood's, and the few pings of the other.
    let bound = 20.0 + 10.0 * seconds + 5.0;
    assert!(sent > 1000 && answered as f64 <= bound, "{answered} answers to {sent} in {seconds} s, at most {bound}");
    assert!(answered >= 20, "{last}");
    assert_eq!(last["anomalies"]["icmp_limited"].as_u64().unwrap(), dropped(&last, "encap", "no_route"), "{last}");
}
