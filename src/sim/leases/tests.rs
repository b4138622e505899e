use super::*;
use crate::host::Mtu;
use crate::lease::Lease;
use crate::route::RoutePublisher;
use core::net::Ipv4Addr;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

const SOURCE: SourceId = SourceId(0);

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn network() -> IpNet {
    net("100.96.0.0/16")
}

/// Returns leases of few subnets and few hosts, which often conflict.
fn any_lease() -> impl Strategy<Value = Lease> {
    let subnets =
        ["100.96.1.0/24", "100.96.1.128/25", "100.96.0.0/23", "100.96.2.0/24", "100.96.2.7/32", "100.96.0.0/16"];
    let others = ["0.0.0.0/0", "9.9.9.0/24", "fd00:1::/64", "::/128", "0.0.0.0/32"];
    let subnet = prop_oneof![5 => select(subnets.to_vec()), 1 => select(others.to_vec())];
    let host = prop_oneof![6 => 2u8..5, 1 => Just(0)].prop_map(|host| match host {
        0 => SocketAddr::from(([100, 96, 1, 1], 8285)),
        host => underlay(host),
    });
    let expires = prop_oneof![3 => Just(None), 1 => (0u64..20).prop_map(|at| Some(Duration::from_secs(at)))];
    (subnet, host, select([None, Mtu::new(1300).ok(), Some(Mtu::MIN)].to_vec()), expires)
        .prop_map(|(subnet, next_hop, mtu, expires)| Lease { mtu, expires, ..Lease::new(net(subnet), next_hop) })
}

fn any_event() -> impl Strategy<Value = LeaseEvent<u8>> {
    prop_oneof![
        6 => (0u8..12, any_lease()).prop_map(|(key, lease)| LeaseEvent::Added { key, lease }),
        3 => (0u8..12).prop_map(|key| LeaseEvent::Removed { key }),
        1 => vec((0u8..12, any_lease()), 0..12).prop_map(LeaseEvent::Snapshot),
        1 => Just(LeaseEvent::SourceLost),
    ]
}

fn any_change() -> impl Strategy<Value = RouteChange> {
    (any_lease(), any::<bool>()).prop_map(|(lease, is_set)| match is_set {
        true => RouteChange::Set(lease.route()),
        false => RouteChange::Delete(lease.subnet),
    })
}

fn underlay(host: u8) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(10, 168, 0, host), 8285))
}

/// Returns four hosts. The last one's subnet contains other hosts' subnets.
fn hosts() -> [Host; 4] {
    let host = |subnet, host| Host::new(network(), net(subnet), underlay(host)).unwrap();
    [host("100.96.1.0/24", 2), host("100.96.2.0/24", 3), host("100.96.1.0/24", 4), host("100.96.0.0/22", 5)]
}

fn sorted(table: &RouteTable) -> Vec<Route> {
    let mut routes = table.routes();
    routes.sort_by_key(|route| route.subnet);
    routes
}

/// A host with its own reconciler and publisher.
struct Reference {
    reconciler: Reconciler<u8>,
    publisher: RoutePublisher,
}

impl Reference {
    fn new(host: &Host) -> Self {
        let publisher = RoutePublisher::for_host(host);
        Self { reconciler: Reconciler::new(host), publisher }
    }

    fn follow(&mut self) {
        let _ = self.publisher.apply(self.reconciler.take_changes());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// A node's routes equal those of its own reconciler, for all leases and at all times.
    #[test]
    fn every_node_has_the_routes_of_its_own_reconciler(
        steps in vec((any_event(), 0u64..4, 0usize..5), 1..40),
    ) {
        let mut leases = Leases::new(vec![network()]);
        let mut nodes = hosts().each_ref().map(NodeRoutes::new);
        let mut reference = hosts().each_ref().map(Reference::new);
        let mut now = Duration::ZERO;
        for (event, passed, who) in steps {
            now += Duration::from_secs(passed);
            leases.handle_timeout(now);
            leases.handle_event(SOURCE, event.clone(), now);
            for reference in &mut reference {
                reference.reconciler.handle_event(SOURCE, event.clone(), now);
                reference.follow();
            }
            // One node, all nodes or none update their tables.
            for (at, (node, reference)) in nodes.iter_mut().zip(&reference).enumerate() {
                if who == 4 || who == at {
                    leases.refresh(node);
                    prop_assert_eq!(sorted(node.table()), sorted(reference.publisher.table()), "host {}", at);
                }
            }
        }
        // A table after many changes equals one built at once.
        for (host, reference) in hosts().into_iter().zip(&reference) {
            let mut node = NodeRoutes::new(&host);
            leases.refresh(&mut node);
            prop_assert_eq!(sorted(node.table()), sorted(reference.publisher.table()));
        }
    }

    /// Fixed routes are independent of all leases, before and after.
    #[test]
    fn leases_do_not_change_fixed_routes(
        before in vec(any_event(), 0..10),
        changes in vec(any_change(), 0..8),
        after in vec(any_event(), 0..10),
    ) {
        let mut leases = Leases::new(vec![network()]);
        let [host, ..] = hosts();
        let (mut node, mut reference) = (NodeRoutes::new(&host), Reference::new(&host));
        for event in before.into_iter().chain([LeaseEvent::Removed { key: 99 }]).chain(after) {
            if event == (LeaseEvent::Removed { key: 99 }) {
                leases.refresh(&mut node);
                reference.follow();
                let expected = reference.publisher.apply(changes.iter().copied());
                prop_assert_eq!(node.change(changes.clone()), expected);
                prop_assert_eq!(sorted(node.table()), sorted(reference.publisher.table()));
            }
            leases.handle_event(SOURCE, event.clone(), Duration::ZERO);
            reference.reconciler.handle_event(SOURCE, event, Duration::ZERO);
        }
        leases.refresh(&mut node);
        reference.follow();
        let _ = reference.publisher.apply(changes);
        prop_assert_eq!(sorted(node.table()), sorted(reference.publisher.table()));
    }

    /// A node without leases keeps its routes, and catches up later.
    #[test]
    fn a_node_that_receives_leases_again_catches_up(before in vec(any_event(), 0..10), after in vec(any_event(), 0..10)) {
        let mut leases = Leases::new(vec![network()]);
        let mut nodes = [0; 2].map(|first| NodeRoutes::new(&hosts()[first]));
        for event in before {
            leases.handle_event(SOURCE, event, Duration::ZERO);
        }
        leases.refresh(&mut nodes[1]);
        nodes[1].hears_leases = false;
        let kept = sorted(nodes[1].table());
        for event in after {
            leases.handle_event(SOURCE, event, Duration::ZERO);
        }
        leases.refresh(&mut nodes[1]);
        prop_assert_eq!(sorted(nodes[1].table()), kept);
        nodes[1].hears_leases = true;
        let [one, other] = &mut nodes;
        leases.refresh(one);
        leases.refresh(other);
        prop_assert_eq!(sorted(one.table()), sorted(other.table()));
    }
}
