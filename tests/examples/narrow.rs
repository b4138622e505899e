//! The examples over a path with a narrow link in the middle. The hosts' own links are wider.

use std::fs;
use std::net::TcpListener;

use nix::sys::signal::Signal;
use testbed::TwoHosts;
use testbed::probe::{Amount, Ping, PingOutcome, path_mtu, ping, tcp_send, tcp_sink};

use crate::{ON_A, ON_B, SOON, start};

/// Bytes of a datagram on the narrow link.
const MIDDLE: u32 = 1300;

/// Each finds the size with a few lost packets: TCP is told it, and longer packets without DF arrive in fragments.
#[test]
fn each_framing_finds_the_size_of_a_narrow_path() {
    let keys = tempfile::NamedTempFile::new().expect("a file");
    fs::write(keys.path(), format!("7 {}", "5a".repeat(32))).expect("written");
    let keys = keys.path().to_str().expect("a path of text");
    let bare: (&str, &[&str], u32) = ("poll_loop", &[], 0);
    for (name, first, overhead) in [bare, ("cframe", &["0123456789abcdef"], 16), ("aead", &[keys], 40)] {
        let hosts = TwoHosts::with_narrow_middle(MIDDLE).expect("two hosts and two routers");
        let mut ends = [(&hosts.host_a, ON_A), (&hosts.host_b, ON_B)]
            .map(|(host, args)| start(host, name, &[first, &args].concat()));
        let longest = MIDDLE - 28 - overhead;
        for (pod, to) in [(&hosts.pod_a, TwoHosts::POD_B), (&hosts.pod_b, TwoHosts::POD_A)] {
            let long = Ping { payload_len: 1380, count: 10, ..Ping::default() };
            let outcomes = pod.enter(|| ping(to, long)).expect("ping");
            let lost = outcomes.iter().take_while(|outcome| !matches!(outcome, PingOutcome::Reply { .. })).count();
            // Each direction loses the packet that finds the size, and the next one, whose sender is told it.
            assert!(lost <= 5, "{name}: {outcomes:?}");
            let all = outcomes.iter().skip(lost).all(|outcome| matches!(outcome, PingOutcome::Reply { .. }));
            assert!(all, "{name}: {outcomes:?}");
        }
        let listener = hosts.pod_b.enter(|| TcpListener::bind((TwoHosts::POD_B, 0))).expect("bound");
        let target = listener.local_addr().expect("an address");
        let sink = tcp_sink(listener, 3);
        let sent = hosts.pod_a.enter(|| tcp_send(target, Amount::Bytes(8 << 20), 3)).expect("sent");
        assert_eq!(sink.join().expect("no panic").expect("received").bytes, sent.bytes, "{name}");
        let known = hosts.pod_a.enter(|| path_mtu(TwoHosts::POD_B)).expect("a path");
        assert_eq!(known, longest, "{name}");
        for end in &mut ends {
            end.signal(Signal::SIGTERM).expect("signalled");
            assert!(end.wait(SOON).expect("waited").is_some_and(|status| status.success()), "{}", end.stderr());
        }
    }
}
