//! Network configs: an accepted one is valid, has the values of its fields, and is unchanged by encoding and decoding.

use std::net::IpAddr;

use loden::lease::SubnetRange;
use loden::lease::flannel::NetworkConfig;
use serde_json::Value;

use super::{field, object};

pub fn run(bytes: &[u8]) {
    let read = NetworkConfig::from_json(bytes);
    if let Err(error) = &read {
        assert!(error.to_string().len() < 2048);
    }
    if let Ok(config) = read {
        assert_eq!(NetworkConfig::from_json(config.to_json().as_bytes()), Ok(config));
        assert_ne!(config.port(), 0);
        keeps_the_rules(config.range(), 30);
        config.ipv6().into_iter().for_each(|range| keeps_the_rules(range, 126));
    }
    let Some((object, text)) = object(bytes) else { return };
    let Ok(config) = NetworkConfig::from_json(text.as_bytes()) else { return };
    let number = |name| field(&object, name).and_then(Value::as_u64).filter(|number| *number != 0);
    let address = |name| {
        let address = field(&object, name)?.as_str()?.parse::<IpAddr>().ok()?;
        (!address.is_unspecified()).then_some(address)
    };
    let range = config.range();
    let network: ipnet::IpNet = field(&object, "Network").unwrap().as_str().unwrap().parse().unwrap();
    assert_eq!(range.network(), network.trunc());
    assert_eq!(u64::from(range.subnet_len()), number("SubnetLen").unwrap_or(range.subnet_len().into()));
    assert_eq!(range.first(), address("SubnetMin").unwrap_or(range.first()));
    assert_eq!(range.last(), address("SubnetMax").unwrap_or(range.last()));
    let backend = field(&object, "Backend").and_then(Value::as_object);
    if backend.is_none() {
        assert_eq!(config.port(), 8285);
    }
}

fn keeps_the_rules(range: &SubnetRange, most: u8) {
    let (network, len) = (range.network(), range.subnet_len());
    assert!(len <= most && len >= network.prefix_len() + 2);
    assert!(range.first() <= range.last());
    for end in [range.first(), range.last()] {
        let subnet = ipnet::IpNet::new(end, len).unwrap();
        assert_eq!(subnet, subnet.trunc());
        assert!(network.contains(&subnet) && range.contains(subnet));
    }
}
