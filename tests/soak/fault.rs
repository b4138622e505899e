//! The injected faults, and the losses that each permits.

use core::time::Duration;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use loden::control::Command;
use nix::sys::signal::Signal;
use testbed::{Injection, TwoHosts};

use crate::churn::{halves, in_use, subnet};
use crate::lab::Lab;
use crate::side::{SIDES, Side};
use crate::stage::Stage;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// The link to the underlay goes down and comes up.
    UnderlayDown(Side),
    /// The device goes down and comes up.
    TunDown(Side),
    /// The underlay carries less for a while.
    UnderlayNarrow,
    /// The device takes less for a while.
    TunNarrow(Side),
    /// The tunnel ends and begins again.
    Restart(Side, Signal),
    /// The only route is taken away and given back.
    RouteGone(Side),
    /// System calls of the tunnel fail, each kind now and then.
    Errors(Side),
}

/// Of what can be sent, some is refused by a firewall; of what is to be read and written, some is interrupted or finds no memory.
const ERRORS: [(&str, &str); 4] = [
    ("sendmsg,sendmmsg", "error=EPERM:when=3+20"),
    ("recvmmsg", "error=ENOMEM:when=5+20"),
    ("readv", "error=EINTR:when=2+3"),
    ("writev", "error=ENOBUFS:when=7+20"),
];

pub(crate) const FAULTS: [Fault; 13] = [
    Fault::UnderlayDown(Side::A),
    Fault::UnderlayDown(Side::B),
    Fault::TunDown(Side::A),
    Fault::TunDown(Side::B),
    Fault::UnderlayNarrow,
    Fault::TunNarrow(Side::A),
    Fault::TunNarrow(Side::B),
    Fault::Restart(Side::B, Signal::SIGTERM),
    Fault::Restart(Side::B, Signal::SIGKILL),
    Fault::RouteGone(Side::A),
    Fault::RouteGone(Side::B),
    Fault::Errors(Side::A),
    Fault::Errors(Side::B),
];

impl Fault {
    /// Does it for so long, and mends it.
    pub(crate) fn strike(self, lab: &mut Lab, stage: &Stage, length: Duration) {
        let set_mtus = |lab: &Lab, mtu| {
            for side in SIDES {
                side.host(&lab.hosts).set_mtu(TwoHosts::UPLINK, mtu).unwrap();
            }
        };
        match self {
            Self::UnderlayDown(side) => {
                let host = side.host(&lab.hosts);
                host.set_down(TwoHosts::UPLINK).unwrap();
                thread::sleep(length);
                host.set_up(TwoHosts::UPLINK).unwrap();
            }
            Self::TunDown(side) => {
                let device = lab.tunnel(side).device.clone();
                let host = side.host(&lab.hosts);
                host.set_down(&device).unwrap();
                thread::sleep(length);
                host.set_up(&device).unwrap();
            }
            Self::UnderlayNarrow => {
                set_mtus(lab, 1300);
                thread::sleep(length);
                set_mtus(lab, 1500);
            }
            Self::TunNarrow(side) => {
                let device = lab.tunnel(side).device.clone();
                let host = side.host(&lab.hosts);
                host.set_mtu(&device, 1200).unwrap();
                thread::sleep(length);
                host.set_mtu(&device, 9000).unwrap();
            }
            Self::Restart(side, signal) => lab.restart(side, signal, length),
            Self::RouteGone(side) => {
                stage.set_at_rest(side, true);
                let start = Instant::now();
                // More than once: the last commands of others may be on their way.
                while start.elapsed() < length {
                    for subnet in halves(side).into_iter().chain([subnet(side)]) {
                        lab.command(side, Command::DeleteRoute { subnet });
                    }
                    thread::sleep(length / 10);
                }
                lab.command(side, in_use(side));
                stage.set_at_rest(side, false);
            }
            Self::Errors(side) => {
                let (hosts, process) = (Arc::clone(&lab.hosts), lab.tunnel(side).child.id());
                let injection = Injection::begin(side.host(&hosts), process, &ERRORS).unwrap();
                thread::sleep(length);
                let failures = injection.end().unwrap();
                assert!(failures >= 10, "{failures} calls have failed in {length:?}");
            }
        }
    }

    /// A reason under which packets must have been dropped for it.
    pub(crate) fn must_cost(self) -> Option<&'static str> {
        match self {
            Self::TunDown(_) => Some("tun_down"),
            Self::RouteGone(_) => Some("unknown_peer"),
            Self::Errors(_) => Some("send_forbidden"),
            Self::Restart(..) | Self::TunNarrow(_) | Self::UnderlayDown(_) | Self::UnderlayNarrow => None,
        }
    }

    /// The reasons under which packets may be dropped for it, by a tunnel, out of the TUN and from the underlay.
    pub(crate) fn may_cost(self, at: Side) -> [&'static [&'static str]; 2] {
        match self {
            Self::UnderlayDown(_) => [&["send_unreachable"], &[]],
            Self::TunDown(side) if side == at => [&[], &["tun_down"]],
            // What they were told before they were told again is more than the answers that are granted to one address.
            Self::UnderlayNarrow => [&["fragmentation_needed"], &[]],
            Self::TunNarrow(side) if side == at => [&["fragmentation_needed"], &[]],
            // Held packets, and the answers of a host that has no such port.
            Self::Restart(side, _) if side != at => [&["send_refused"], &[]],
            // Without a route its host is no peer.
            Self::RouteGone(side) if side == at => [&["no_route"], &["unknown_peer", "spoofed_source"]],
            Self::Errors(side) if side == at => [&["send_forbidden"], &["tun_full"]],
            Self::TunDown(_) | Self::TunNarrow(_) | Self::Restart(..) | Self::RouteGone(_) | Self::Errors(_) => {
                [&[], &[]]
            }
        }
    }
}
