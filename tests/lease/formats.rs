//! flannel's formats: round trips, defaults, and errors with the wrong values.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use loden::lease::flannel::{
    LeaseKey, LeaseKeyError, LeaseReader, LeaseValue, LeaseValueError, NetworkConfig, SubnetEnv, SubnetEnvError,
};
use loden::lease::{Held, Lease, LeaseEvent, SubnetRange};
use proptest::prelude::*;

use crate::net;

fn ipv4_net(len: std::ops::RangeInclusive<u8>) -> impl Strategy<Value = Ipv4Net> {
    (any::<u32>(), len).prop_map(|(bits, len)| Ipv4Net::new(bits.into(), len).unwrap())
}

fn ipv6_net() -> impl Strategy<Value = Ipv6Net> {
    // Addresses with zeros, which are difficult to format.
    let group = prop_oneof![2 => Just(0u16), 1 => Just(0xffff), 1 => any::<u16>()];
    (proptest::array::uniform8(group), 0u8..=128).prop_map(|(groups, len)| Ipv6Net::new(groups.into(), len).unwrap())
}

proptest! {
    #[test]
    fn keys_are_read_as_they_are_written(ipv4 in ipv4_net(0..=32), ipv6 in proptest::option::of(ipv6_net())) {
        let key = LeaseKey { ipv4, ipv6 };
        prop_assert_eq!(key.to_string().parse(), Ok(key));
        let mut reader = LeaseReader::new("/other/prefix", 1);
        let event = reader.deleted(reader.full_key(&key).as_bytes()).event;
        prop_assert_eq!(event, Some(LeaseEvent::Removed { key }));
    }

    #[test]
    fn values_are_read_as_they_are_written(ip in any::<u32>(), ipv6 in proptest::option::of(any::<u128>())) {
        let value = LeaseValue { public_ip: ip.into(), public_ipv6: ipv6.map(Ipv6Addr::from) };
        prop_assert_eq!(LeaseValue::from_json(value.to_json().as_bytes()), Ok(value));
    }

    #[test]
    fn configs_are_read_as_they_are_written(
        network in ipv4_net(0..=28), len in proptest::option::of(0u8..=30), port in any::<u16>(),
    ) {
        let Ok(range) = SubnetRange::new(network, len, None, None) else { return Ok(()) };
        match NetworkConfig::new(range, port) {
            Ok(config) => prop_assert_eq!(NetworkConfig::from_json(config.to_json().as_bytes()), Ok(config)),
            Err(_) => prop_assert_eq!(port, 0),
        }
    }

    #[test]
    fn subnet_env_is_read_as_it_is_written(
        subnet in ipv4_net(0..=30), shorter in 0u8..=30, mtu in any::<u16>(), ip_masq in any::<bool>(),
    ) {
        let network = Ipv4Net::new(subnet.addr(), subnet.prefix_len().saturating_sub(shorter)).unwrap();
        let env = SubnetEnv::new(network, subnet, mtu, ip_masq).unwrap();
        prop_assert_eq!(env.to_string().parse(), Ok(env));
        prop_assert_eq!(Some(env.bridge()), subnet.hosts().next());
    }

    #[test]
    fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), text in ".{0,40}") {
        for bytes in [bytes.as_slice(), text.as_bytes()] {
            bodies::lease::key::run(bytes);
            bodies::lease::value::run(bytes);
            bodies::lease::config::run(bytes);
            bodies::lease::subnet_env::run(bytes);
        }
    }
}

#[test]
fn keys_have_one_spelling() {
    let key: LeaseKey = "100.96.1.0-24&fd00:1::-64".parse().unwrap();
    assert_eq!((key.ipv4, key.ipv6), ("100.96.1.0/24".parse().unwrap(), Some("fd00:1::/64".parse().unwrap())));
    let error = "100.96.1.0-24&fd00:1:0::-64".parse::<LeaseKey>().unwrap_err();
    assert_eq!(error, LeaseKeyError::Spelling { spelling: "100.96.1.0-24&fd00:1::-64".into() });
    let errors = [
        ("100.96.1.0-33", "\"100.96.1.0-33\" is not an IPv4 subnet in the form 100.96.1.0-24"),
        ("100.96.1.0-24&", "\"\" is not an IPv6 subnet in the form fd00:1::-64"),
        ("100.96.1.0-+24", "the key is spelled differently from flannel's \"100.96.1.0-24\"; write it like that"),
    ];
    for (key, error) in errors {
        assert_eq!(key.parse::<LeaseKey>().unwrap_err().to_string(), error);
    }
    assert!("x".repeat(100_000).parse::<LeaseKey>().unwrap_err().to_string().len() < 200);
}

/// An unusable lease holds its subnet too, and no subnet that overlaps it is allocated.
#[test]
fn every_key_holds_its_subnet() {
    let reader = LeaseReader::new("/coreos.com/network", 8285);
    let held = |key: &str, value: &str| reader.held(key.as_bytes(), value.as_bytes(), 7);
    let expect = |key: &str, value: &str, subnet: &str, host: [u8; 4]| {
        let full = format!("/coreos.com/network/subnets/{key}");
        let (read, held) = held(&full, value).unwrap();
        assert_eq!(
            (read.to_string().as_str(), held),
            (key, Held { subnet: subnet.parse().unwrap(), host: host.into(), created: 7 })
        );
    };
    let ours = [10, 168, 0, 3];
    expect("100.96.1.0-24", r#"{"PublicIP":"10.168.0.3"}"#, "100.96.1.0/24", ours);
    expect("100.96.1.0-24&fd00:1::-64", r#"{"PublicIP":"10.168.0.3"}"#, "100.96.1.0/24", ours);
    expect("100.96.2.0-24", r#"{"PublicIP":"10.168.0.3","BackendType":"vxlan"}"#, "100.96.2.0/24", ours);
    for unreadable in ["", "{}", "{", r#"{"BackendType":"vxlan"}"#, r#"{"PublicIP":"nobody"}"#] {
        expect("100.96.3.0-24", unreadable, "100.96.3.0/24", [0; 4]);
        assert_eq!(LeaseValue::holder(unreadable.as_bytes()), None);
    }
    // flannel reads this one, too.
    let (_, other) = held("/coreos.com/network/subnets/100.96.4.0-024", r#"{"PublicIP":"10.168.0.3"}"#).unwrap();
    assert_eq!(other, Held { subnet: "100.96.4.0/24".parse().unwrap(), host: [0; 4].into(), created: 7 });
    for no_key in ["/coreos.com/network/subnets/nonsense", "/coreos.com/network/config", "100.96.1.0-24"] {
        assert_eq!(held(no_key, r#"{"PublicIP":"10.168.0.3"}"#), None, "{no_key}");
    }
}

#[test]
fn values_are_those_of_flannel_byte_for_byte() {
    let value = LeaseValue::new([10, 168, 0, 3].into());
    assert_eq!(value.to_json(), r#"{"PublicIP":"10.168.0.3","PublicIPv6":null}"#);
    for ours in [
        r#"{"PublicIP":"10.168.0.3"}"#,
        r#"{"PUBLICIP":"10.168.0.3","backendtype":null}"#,
        r#"{"PublicIP":"10.168.0.3","BackendType":""}"#,
        r#" {"PublicIP":"10.168.0.3","BackendType":"Udp","BackendData":{"a":[1]}} "#,
        r#"{"PublicIP":"10.168.0.9","publicip":"10.168.0.3"}"#,
    ] {
        assert_eq!(LeaseValue::from_json(ours.as_bytes()), Ok(value), "{ours}");
    }
    let vxlan = LeaseValue::from_json(br#"{"PublicIP":"10.168.0.3","BackendType":"vxlan"}"#);
    let public_ip = Some([10, 168, 0, 3].into());
    assert_eq!(vxlan, Err(LeaseValueError::Backend { kind: "vxlan".into(), public_ip }));
    assert_eq!(LeaseValue::from_json(b"{}"), Err(LeaseValueError::NoPublicIp));
    let errors = [
        (r#"{"PublicIP":"10.168.0.300"}"#, "PublicIP is \"10.168.0.300\", not an IPv4 address"),
        (r#"{"PublicIP":-3}"#, "PublicIP is -3, not a text"),
        ("[]", "a lease is a list, not an object"),
        ("", "invalid JSON: EOF while parsing a value at line 1 column 0"),
    ];
    for (text, error) in errors {
        assert_eq!(LeaseValue::from_json(text.as_bytes()).unwrap_err().to_string(), error);
    }
}

#[test]
fn configs_have_flannels_defaults() {
    let read = |text: &str| NetworkConfig::from_json(text.as_bytes()).unwrap();
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    for (network, len, first, last) in [
        ("100.96.0.0/16", 24, "100.96.1.0", "100.96.255.0"),
        ("10.0.0.0/8", 24, "10.0.1.0", "10.255.255.0"),
        ("10.0.0.0/22", 24, "10.0.1.0", "10.0.3.0"),
        ("10.0.0.0/23", 25, "10.0.0.128", "10.0.1.128"),
        ("10.0.0.0/28", 30, "10.0.0.4", "10.0.0.12"),
        ("0.0.0.0/0", 24, "0.0.1.0", "255.255.255.0"),
    ] {
        let config = read(&format!(r#"{{"Network":"{network}"}}"#));
        let range = config.range();
        assert_eq!((range.network(), range.subnet_len()), (net(network), len));
        assert_eq!((range.first(), range.last()), (address(first), address(last)));
        assert_eq!((config.port(), config.ipv6()), (8285, None));
    }
    let config = read(r#"{"network":"100.96.0.0/16","backend":{"type":"UDP","port":9000},"Unknown":{}}"#);
    assert_eq!(config.port(), 9000);
    let config = read(r#"{"Network":"100.96.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48"}"#);
    let ipv6 = config.ipv6().unwrap();
    assert_eq!((ipv6.subnet_len(), ipv6.first()), (64, address("fd00:0:0:1::")));
    assert_eq!(read(&config.to_json()), config);
}

#[test]
fn unusable_configs_name_their_error() {
    for (text, error) in [
        (r#"{}"#, "there is no Network; set it to the overlay's network, for example 100.96.0.0/16"),
        (r#"{"Network":"100.96.0.0"}"#, "Network is \"100.96.0.0\", not an IPv4 network"),
        (
            r#"{"Network":"10.0.0.0/29"}"#,
            "network 10.0.0.0/29 is too small for four subnets; a prefix of at most /28 is needed",
        ),
        (
            r#"{"Network":"10.0.0.0/16","SubnetLen":31}"#,
            "a SubnetLen of 31 leaves less than four addresses; it can be at most 30",
        ),
        (
            r#"{"Network":"10.0.0.0/16","SubnetLen":17}"#,
            "a SubnetLen of 17 leaves less than four subnets in 10.0.0.0/16; it must be at least 18",
        ),
        (r#"{"Network":"10.0.0.0/16","SubnetLen":300}"#, "SubnetLen is 300, not a prefix length in bits"),
        (
            r#"{"Network":"10.0.0.0/16","SubnetMin":"10.1.0.0"}"#,
            "SubnetMin 10.1.0.0 is outside of the network 10.0.0.0/16",
        ),
        (
            r#"{"Network":"10.0.0.0/16","SubnetMax":"10.0.9.7"}"#,
            "SubnetMax 10.0.9.7 is inside of the /24 that begins at 10.0.9.0; name where it begins",
        ),
        (
            r#"{"Network":"10.0.0.0/16","SubnetMin":"10.0.9.0","SubnetMax":"10.0.8.0"}"#,
            "SubnetMin 10.0.9.0 comes after SubnetMax 10.0.8.0",
        ),
        (r#"{"Network":"10.0.0.0/16","Backend":{"Port":0}}"#, "Backend.Port is 0; the default is 8285"),
        (r#"{"Network":"10.0.0.0/16","Backend":{"Port":70000}}"#, "Port is 70000, not a UDP port within 1 to 65535"),
        (
            r#"{"Network":"10.0.0.0/16","Backend":{"Type":"vxlan"}}"#,
            "the network's Backend.Type is \"vxlan\"; only udp is supported",
        ),
        (
            r#"{"Network":"10.0.0.0/16","EnableIPv4":false}"#,
            "EnableIPv4 is false; the udp mode needs IPv4, enable it and IPv6 beside it",
        ),
        (
            r#"{"Network":"10.0.0.0/16","EnableIPv6":true}"#,
            "there is no IPv6Network; set it to the overlay's network, for example fd00:96::/48",
        ),
    ] {
        assert_eq!(NetworkConfig::from_json(text.as_bytes()).unwrap_err().to_string(), error, "{text}");
    }
}

#[test]
fn subnet_env_is_flannels_file() {
    let text = "FLANNEL_NETWORK=100.96.0.0/16\nFLANNEL_SUBNET=100.96.1.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n";
    let env = SubnetEnv::new("100.96.0.0/16".parse().unwrap(), "100.96.1.0/24".parse().unwrap(), 1472, false).unwrap();
    assert_eq!(env.to_string(), text);
    assert_eq!(text.parse(), Ok(env));
    assert_eq!(env.bridge(), Ipv4Addr::new(100, 96, 1, 1));
    let without = |line: &str| text.lines().filter(|l| !l.starts_with(line)).collect::<Vec<_>>().join("\n");
    for line in ["FLANNEL_NETWORK", "FLANNEL_SUBNET", "FLANNEL_MTU", "FLANNEL_IPMASQ"] {
        let error = without(line).parse::<SubnetEnv>().unwrap_err();
        assert!(matches!(error, SubnetEnvError::Missing { field } if field.name() == line));
    }
    let error = text.replace("1472", "70000").parse::<SubnetEnv>().unwrap_err();
    assert_eq!(error.to_string(), "FLANNEL_MTU is \"70000\", not a number of bytes within 0 to 65535");
    let error = text.replace("100.96.1.1/24", "100.97.1.1/24").parse::<SubnetEnv>().unwrap_err();
    assert_eq!(error.to_string(), "subnet 100.97.1.0/24 is not inside the network 100.96.0.0/16");
}

/// The texts that flanneld writes in a dual-stack network of the udp mode, by its source: pkg/subnet/subnet.go.
#[test]
fn dual_stack_texts_are_those_of_flannel_byte_for_byte() {
    let (network, subnet) = ("fd97::/48".parse().unwrap(), "fd97:0:0:59::/64".parse().unwrap());
    let key = LeaseKey { ipv4: "10.5.34.0/24".parse().unwrap(), ipv6: Some(subnet) };
    assert_eq!(key.to_string(), "10.5.34.0-24&fd97:0:0:59::-64");
    let text = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.34.1/24\nFLANNEL_IPV6_NETWORK=fd97::/48\n\
                FLANNEL_IPV6_SUBNET=fd97:0:0:59::1/64\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n";
    let env = SubnetEnv::new("10.5.0.0/16".parse().unwrap(), key.ipv4, 1472, false).unwrap();
    let dual = env.with_ipv6(network, subnet).unwrap();
    assert_eq!(dual.to_string(), text);
    assert_eq!(text.parse(), Ok(dual));
    assert_eq!(SubnetEnv::ipv6_subnet_in(text), Ok(Some(subnet)));
    assert_eq!(SubnetEnv::ipv6_subnet_in(&env.to_string()), Ok(None));
    for (subnet, sentence) in [
        ("fd98::/64", "subnet fd98::/64 is not inside the network fd97::/48"),
        ("fd97::/127", "subnet fd97::/127 has no address for the bridge; a prefix of at most /126 is needed"),
    ] {
        assert_eq!(env.with_ipv6(network, subnet.parse().unwrap()).unwrap_err().to_string(), sentence);
    }
    let range = |network: &str| SubnetRange::new(network.parse::<ipnet::IpNet>().unwrap(), None, None, None).unwrap();
    let config = NetworkConfig::new(range("10.5.0.0/16"), 8285).unwrap();
    assert!(config.with_ipv6(range("10.5.0.0/16")).is_err());
    let config = config.with_ipv6(range("fd97::/48")).unwrap();
    assert_eq!(NetworkConfig::from_json(config.to_json().as_bytes()), Ok(config));
}

/// Every update gives the IPv6 subnet's event with the IPv4 subnet's, if it is asked for.
#[test]
fn a_dual_stack_key_is_a_lease_of_each_family() {
    const KEY: &[u8] = b"/coreos.com/network/subnets/10.5.34.0-24&fd97:0:0:59::-64";
    let key: LeaseKey = "10.5.34.0-24&fd97:0:0:59::-64".parse().unwrap();
    let plain: (&[u8], &[u8]) = (b"/coreos.com/network/subnets/10.5.35.0-24", br#"{"PublicIP":"10.168.0.4"}"#);
    let both = br#"{"PublicIP":"10.168.0.3","PublicIPv6":"fd00:168::3"}"#;
    let ipv4_alone = br#"{"PublicIP":"10.168.0.3","PublicIPv6":null}"#;
    let ignoring = LeaseReader::new("/coreos.com/network", 8285);
    let over_ipv4 = ignoring.clone().with_ipv6_subnets();
    let over_both = ignoring.clone().with_ipv6_underlay();
    for (mut reader, value, hop) in [
        (ignoring, &both[..], None),
        (over_ipv4.clone(), both, Some("10.168.0.3:8285")),
        (over_ipv4, ipv4_alone, Some("10.168.0.3:8285")),
        (over_both.clone(), ipv4_alone, Some("10.168.0.3:8285")),
        (over_both, both, Some("[fd00:168::3]:8285")),
    ] {
        let lease = hop.map(|hop| Lease::new(net("fd97:0:0:59::/64"), hop.parse::<std::net::SocketAddr>().unwrap()));
        let added = lease.map(|lease| LeaseEvent::Added { key, lease });
        let removed = lease.map(|_| LeaseEvent::Removed { key });
        let listed = lease.map(|lease| LeaseEvent::Snapshot(vec![(key, lease)]));
        assert_eq!(reader.put(KEY, value).event_v6, added);
        assert_eq!(reader.put(plain.0, plain.1).event_v6, None);
        assert_eq!(reader.put(KEY, b"garbage").event_v6, removed);
        assert_eq!(reader.deleted(KEY).event_v6, removed);
        assert_eq!(reader.deleted(plain.0).event_v6, None);
        let update = reader.snapshot([plain, (KEY, value)]);
        assert_eq!(update.event_v6, listed);
        assert!(matches!(update.event, Some(LeaseEvent::Snapshot(leases)) if leases.len() == 2));
    }
}

#[test]
fn a_reading_is_an_event_for_the_reconciler() {
    let mut reader = LeaseReader::new("/coreos.com/network", 9000);
    assert_eq!(reader.subnets(), "/coreos.com/network/subnets/");
    let key: LeaseKey = "100.96.2.0-24&fd00:2::-64".parse().unwrap();
    let full = reader.full_key(&key);
    let value = LeaseValue::new([10, 168, 0, 3].into()).to_json();
    let lease = Lease::new(net("100.96.2.0/24"), ([10, 168, 0, 3], 9000));
    let update = reader.put(full.as_bytes(), value.as_bytes());
    assert_eq!((update.event, update.skipped), (Some(LeaseEvent::Added { key, lease }), vec![]));
    let update = reader.snapshot([(full.as_bytes(), value.as_bytes())]);
    assert_eq!(update.event, Some(LeaseEvent::Snapshot(vec![(key, lease)])));
}

/// flannel reads only the subnet of an earlier file, and a dotenv file has comments.
#[test]
fn the_subnet_of_an_earlier_file_needs_no_other_line() {
    let subnet = Ok("100.96.7.0/24".parse().ok());
    for text in [
        "FLANNEL_SUBNET=100.96.7.1/24",
        "# FLANNEL_SUBNET=100.96.8.1/24\nFLANNEL_SUBNET=100.96.7.1/24 # FLANNEL_SUBNET=100.96.9.1/24\n",
        "FLANNEL_MTU=much\nFLANNEL_SUBNET=100.96.7.1/24\t#comment",
        "export FLANNEL_SUBNET='100.96.7.1/24' # comment",
        "FLANNEL_SUBNET=\"100.96.7.1/24\"\r\nnonsense\r\n",
        "FLANNEL_SUBNET=100.96.6.1/24\nFLANNEL_SUBNET=100.96.7.1/24",
    ] {
        assert_eq!(SubnetEnv::subnet_in(text), subnet, "{text:?}");
    }
    for text in ["", "#FLANNEL_SUBNET=100.96.7.1/24", "FLANNEL_SUBNET", "FLANNEL_SUBNETS=100.96.7.1/24"] {
        assert_eq!(SubnetEnv::subnet_in(text), Ok(None), "{text:?}");
    }
    for value in ["", "#", "100.96.7.1", "100.96.7.1/24#no", "'100.96.7.1/24", "'100.96.7.1/24' no", "fd00::/64"] {
        let error = SubnetEnv::subnet_in(&format!("FLANNEL_SUBNET={value}")).unwrap_err();
        assert!(error.to_string().starts_with("FLANNEL_SUBNET is "), "{value:?}: {error}");
    }
}
