//! Lease values, compared with a generic JSON reader. Encoding and decoding are inverse.

use loden::lease::flannel::{LeaseReader, LeaseValue};
use serde_json::{Map, Value};

use super::{field, object};

pub fn run(bytes: &[u8]) {
    let read = LeaseValue::from_json(bytes).ok();
    if let Some(value) = read {
        assert_eq!(LeaseValue::from_json(value.to_json().as_bytes()), Ok(value));
    }
    if let Some((object, text)) = object(bytes) {
        assert_eq!(LeaseValue::from_json(text.as_bytes()).ok(), expected(&object), "of {text}");
    }
    // Any value is one lease or one skipped key, and affects no other key.
    let mut reader = LeaseReader::new("/coreos.com/network", 8285);
    let update = reader.put(b"/coreos.com/network/subnets/100.96.2.0-24", bytes);
    assert!(update.event.is_some());
    assert_eq!(update.skipped.len(), usize::from(read.is_none()));
    update.skipped.iter().for_each(|skipped| assert!(skipped.to_string().len() < 2048));
}

fn expected(object: &Map<String, Value>) -> Option<LeaseValue> {
    let kind = field(object, "BackendType").map_or(Some(""), Value::as_str)?;
    if !kind.is_empty() && !kind.eq_ignore_ascii_case("udp") {
        return None;
    }
    let public_ip = field(object, "PublicIP")?.as_str()?.parse().ok()?;
    let public_ipv6 = match field(object, "PublicIPv6") {
        Some(address) => Some(address.as_str()?.parse().ok()?),
        None => None,
    };
    Some(LeaseValue { public_ip, public_ipv6 })
}
