//! Both directions of the forwarder against the model. Settings, routes and packet come from the input.

use support::model;
use support::scenario::Scenario;

pub fn run(bytes: &[u8]) {
    let Some(Scenario { host, from, packet }) = Scenario::decode(bytes) else { return };
    assert_eq!(host.encapsulate(&packet), model::encapsulate(&host, &packet), "out of the TUN: {packet:02x?}");
    let (real, expected) = (host.decapsulate(&packet, from), model::decapsulate(&host, &packet, from));
    assert_eq!(real, expected, "from {from}: {packet:02x?}");
}
