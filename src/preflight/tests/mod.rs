//! Tests that cause each finding in a network namespace without findings.

#![expect(clippy::expect_used, clippy::panic, reason = "a test may fail by panicking")]

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr};
use std::fs;
use std::path::Path;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::sys::link::message::{self, LinkState};
use crate::sys::link::netlink::Netlink;
use crate::sys::link::tests::busy::{crowded, while_addresses_change};
use crate::sys::link::tests::{World, config as link_config, in_namespace};
use crate::sys::link::{AddressForm, Link};
use crate::sys::{Tun, TunConfig, TunOffload};

mod bridges;
mod firewall;
mod host;
mod ipv6;
mod routes;
mod rules;

const LISTEN: Ipv4Addr = Ipv4Addr::new(10, 168, 0, 2);

fn network() -> IpNet {
    net("100.96.0.0/16")
}

fn subnet() -> IpNet {
    net("100.96.1.0/24")
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a network")
}

/// Returns the configuration with other listen addresses.
fn listening<const N: usize>(listen: [impl Into<SocketAddr>; N]) -> PreflightConfig {
    PreflightConfig { listen: listen.map(Into::into).into(), ..config() }
}

fn config() -> PreflightConfig {
    let host = crate::Host::new(network(), subnet(), (LISTEN, 8285)).expect("an identity");
    PreflightConfig::new(&host, "loden0")
}

/// Writes a sysctl of the namespace.
fn set(setting: &str, value: u8) {
    let path = setting.replace('.', "/");
    fs::write(format!("/proc/sys/net/ipv4/{path}"), value.to_string()).expect("the setting exists");
}

impl World {
    /// Creates a host with an underlay and a bridge for pods, and without findings.
    fn host() -> Self {
        let mut world = Self::new();
        set("ip_forward", 1);
        for all in ["all", "default", "lo"] {
            set(&format!("conf.{all}.rp_filter"), 0);
        }
        world.add_link("eth0");
        world.set_up("eth0", true);
        world.add_address("eth0", "10.168.0.2/24");
        world.add_bridge("br0", "100.96.1.1/24");
        assert_eq!(check(&config()), []);
        world
    }

    fn add_bridge(&mut self, name: &str, address: &str) {
        self.add_link_of(name, vec![LinkInfo::Kind(InfoKind::Bridge)]);
        self.set_mtu(name, 1472);
        self.set_up(name, true);
        self.add_address(name, address);
    }

    fn add_vxlan(&mut self, name: &str, vni: u32) {
        let info = vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(vec![InfoVxlan::Id(vni)]))];
        self.add_link_of(name, info);
    }

    /// Opens a TUN device with the right MTU, without address and route.
    fn open_tun(&mut self, name: &str) -> Tun {
        let tun = Tun::open(&TunConfig::new(name).with_offload(TunOffload::NONE)).expect("a TUN device");
        self.set_mtu(name, 1472);
        tun
    }
}

/// Asserts that `change` causes exactly this finding on a good host, and that its text contains all of `texts`.
fn assert_found(
    change: impl FnOnce(&mut World) + Send + 'static,
    config: PreflightConfig,
    expected: Finding,
    texts: &'static [&'static str],
) {
    in_namespace(move || {
        let mut world = World::host();
        change(&mut world);
        let found = check(&config);
        let [finding] = found.as_slice() else { panic!("{found:#?} instead of {expected:#?}") };
        assert_eq!(*finding, expected);
        let words = finding.to_string();
        for text in texts {
            assert!(words.contains(text), "{text:?} in {words}");
        }
    });
}

/// Asserts that `change` causes no finding on a good host.
fn assert_nothing_found(change: impl FnOnce(&mut World) + Send + 'static, config: PreflightConfig) {
    in_namespace(move || {
        let mut world = World::host();
        change(&mut world);
        assert_eq!(check(&config), []);
    });
}
