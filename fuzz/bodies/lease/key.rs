//! Lease keys: accepted exactly if slashes in place of the dashes give subnets that are written back unchanged.

use ipnet::{Ipv4Net, Ipv6Net};
use loden::lease::flannel::LeaseKey;

pub fn run(bytes: &[u8]) {
    let Ok(text) = core::str::from_utf8(bytes) else { return };
    let read = text.parse::<LeaseKey>().ok();
    assert_eq!(read, expected(text), "of {text:?}");
    if let Some(key) = read {
        assert_eq!(key.to_string(), text);
    }
}

fn expected(text: &str) -> Option<LeaseKey> {
    let slashed = text.replace('/', "?").replace('-', "/");
    let (ipv4, ipv6) = match slashed.split_once('&') {
        Some((ipv4, ipv6)) => (ipv4, Some(ipv6.parse::<Ipv6Net>().ok()?)),
        None => (slashed.as_str(), None),
    };
    let ipv4: Ipv4Net = ipv4.parse().ok()?;
    let back = ipv6.map_or(ipv4.to_string(), |ipv6| format!("{ipv4}&{ipv6}"));
    (back == slashed).then_some(LeaseKey { ipv4, ipv6 })
}
