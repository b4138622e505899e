use super::*;
use core::net::{Ipv4Addr, Ipv6Addr};

fn flow(destination: impl Into<SocketAddr>) -> FlowKey {
    let source = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8285));
    FlowKey { source, destination: destination.into(), mark: 0, interface: 0 }
}

/// Runs a test in a new network namespace, where loopback is up.
fn in_a_namespace(test: impl FnOnce(&testbed::Namespace) + Send) {
    test(&testbed::Namespace::new().expect("these tests make network namespaces, and need root"));
}

#[test]
fn a_route_has_its_interfaces_mtu_or_its_own() {
    in_a_namespace(|here| {
        let there = testbed::Namespace::new().expect("another namespace");
        here.connect("eth0", &there, "eth0").expect("a link");
        let net = |last| ipnet::Ipv4Net::new_assert(Ipv4Addr::new(10, 1, 0, last), 24);
        here.add_address("eth0", net(1)).expect("an address");
        here.narrow_path(Ipv4Addr::new(10, 1, 0, 9), "eth0", 1300).expect("a route");
        here.enter(|| {
            let routes = RouteSocket::open().unwrap();
            let mtu = |configured| RouteMtu { configured, learned: None };
            let ask = |last| routes.ask(&flow(([10, 1, 0, last], 8285)));
            assert_eq!((ask(2).unwrap(), ask(9).unwrap()), (mtu(1500), mtu(1300)));
            assert_eq!(routes.ask(&flow(([127, 0, 0, 1], 8285))).unwrap(), mtu(65_536));
            let unreachable = routes.ask(&flow(([10, 2, 0, 1], 8285))).unwrap_err();
            assert_eq!(unreachable.raw_os_error(), Some(libc::ENETUNREACH));
            assert_eq!(ask(2).unwrap(), mtu(1500), "a failed query does not affect the next");
            if !testbed::has_ipv6() {
                return;
            }
            let six = FlowKey { source: (Ipv6Addr::LOCALHOST, 8285).into(), ..flow((Ipv6Addr::LOCALHOST, 8285)) };
            assert_eq!(routes.ask(&six).unwrap(), mtu(65_536));
        });
    });
}

#[test]
fn a_request_is_padded_attributes() {
    let flow = FlowKey { source: ([10, 1, 0, 1], 8285).into(), mark: 7, interface: 3, ..flow(([10, 1, 0, 2], 9)) };
    let request = route_request(&flow, FIB_MATCH);
    let attributes = request.get(ROUTE_HEADER..).unwrap();
    assert_eq!(attribute(attributes, rta::DST), Some(&[10, 1, 0, 2][..]));
    assert_eq!(attribute(attributes, rta::SRC), Some(&[10, 1, 0, 1][..]));
    assert_eq!(attribute(attributes, rta::SPORT), Some(&8285_u16.to_be_bytes()[..]));
    assert_eq!(attribute(attributes, rta::DPORT), Some(&9_u16.to_be_bytes()[..]));
    assert_eq!(attribute(attributes, rta::IP_PROTO), Some(&[17][..]));
    assert_eq!(attribute(attributes, rta::MARK).and_then(number), Some(7));
    assert_eq!(attribute(attributes, rta::OIF).and_then(number), Some(3));
    assert_eq!(request.len() % 4, 0);
}

#[test]
fn replies_that_are_cut_off_are_errors() {
    let mut answer = Vec::from(24_u32.to_ne_bytes());
    answer.extend(libc::RTM_NEWROUTE.to_ne_bytes());
    answer.extend([0; 2]);
    answer.extend(7_u32.to_ne_bytes());
    answer.extend([0; 4]);
    answer.extend([1; 8]);
    assert_eq!(body_of(&answer, 7).unwrap(), Some(&[1; 8][..]));
    assert_eq!(body_of(&answer, 8).unwrap(), None);
    for len in 0..answer.len() {
        let cut = body_of(answer.get(..len).unwrap(), 7);
        assert!(cut.is_err() || cut.unwrap().is_none(), "{len}");
    }
    for len in [0, 3, 5, 255] {
        let attributes = [&[len, 0, 9, 0][..], &[0xff; 4]].concat();
        assert_eq!(attribute(&attributes, 1), None, "{len}");
    }
}
