//! Findings about sysctls. `/proc/sys/net` shows those of the calling thread's network namespace.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use std::{fs, io};

use super::host::Host;
use super::{Finding, PreflightConfig};

/// Initial settings of devices created later.
const DEFAULT: &str = "default";
/// The value of `rp_filter` for strict filtering. 0 is off, 2 is loose (Documentation/networking/ip-sysctl.rst).
const STRICT: i64 = 1;

impl Host {
    pub(super) fn check_sysctls(&self, config: &PreflightConfig) -> Vec<Finding> {
        let device = if self.named(&config.tun).is_some() { config.tun.as_str() } else { DEFAULT };
        let mut pods: Vec<&str> = self.pod_links(config).map(|link| link.state.name.as_str()).collect();
        if pods.is_empty() {
            pods.push(DEFAULT);
        }
        let inputs = pods.into_iter().chain([device]);
        let mut findings = Vec::new();
        if config.carries(false) {
            let underlays = self.underlays().map(|underlay| underlay.name.as_str());
            findings.extend(check_forwarding(inputs.clone(), &read));
            findings.extend(check_reverse_path(underlays.chain([device]), &read));
        } else {
            let of_ipv4 = self.underlays().filter(|underlay| underlay.address.is_ipv4());
            findings.extend(check_reverse_path(of_ipv4.map(|underlay| underlay.name.as_str()), &read));
        }
        if config.needs(true) && is_ipv6_missing() {
            findings.push(Finding::NoIpv6);
        } else if config.carries(true) {
            findings.extend(check_ipv6_forwarding(inputs.clone(), &read));
            findings.extend(check_ipv6_disabled(inputs, &read));
        }
        findings
    }
}

/// Returns true if the kernel has no IPv6: `ipv6.disable=1` was given, or its module is not loaded.
fn is_ipv6_missing() -> bool {
    let exists = |family: &str| fs::exists(format!("/proc/sys/net/{family}")).is_ok_and(|is| is);
    exists("ipv4") && !exists("ipv6")
}

/// Checks forwarding of IPv6. Linux reads the setting of all interfaces, and from 6.17 on the setting `force_forwarding`
/// of the input interface (`ip6_forward` in net/ipv6/ip6_output.c).
fn check_ipv6_forwarding<'a>(from: impl Iterator<Item = &'a str>, read: &Reads<'_>) -> Vec<Finding> {
    const ALL: &str = "net.ipv6.conf.all.forwarding";
    let is_forced = |interface: &str| read(&ipv6_setting(interface, "force_forwarding")).is_ok_and(|value| value != 0);
    match read(ALL) {
        Ok(0) if !unique(from).into_iter().all(is_forced) => [Finding::ForwardingOff { setting: ALL.into() }].into(),
        Ok(_) => Vec::new(),
        Err(error) => [Finding::unchecked(ALL, &error)].into(),
    }
}

/// Checks that IPv6 is not disabled on the interfaces that carry it.
fn check_ipv6_disabled<'a>(of: impl Iterator<Item = &'a str>, read: &Reads<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for interface in unique(of) {
        let setting = ipv6_setting(interface, "disable_ipv6");
        match read(&setting) {
            Ok(0) => {}
            Ok(_) => findings.push(Finding::Ipv6Disabled { interface: interface.into(), setting }),
            // A device with an MTU below 1280 has no such setting, and gets the default with a larger one.
            Err(error) if error.kind() == io::ErrorKind::NotFound && interface != DEFAULT => {}
            Err(error) => return [Finding::unchecked(setting, &error)].into(),
        }
    }
    findings
}

/// Checks forwarding. Linux reads only the setting of the input interface (`ip_route_input_slow` in net/ipv4/route.c).
/// Writing `net.ipv4.ip_forward` sets all interfaces.
fn check_forwarding<'a>(from: impl Iterator<Item = &'a str>, read: &Reads<'_>) -> Vec<Finding> {
    let mut off = Vec::new();
    for interface in unique(from) {
        let setting = setting(interface, "forwarding");
        match read(&setting) {
            Ok(0) => off.push(setting),
            Ok(_) => {}
            Err(error) => return [Finding::unchecked(setting, &error)].into(),
        }
    }
    const GLOBAL: &str = "net.ipv4.ip_forward";
    match read(GLOBAL) {
        // One setting turns forwarding on for all interfaces.
        Ok(0) if !off.is_empty() => [Finding::ForwardingOff { setting: GLOBAL.into() }].into(),
        Ok(_) => off.into_iter().map(|setting| Finding::ForwardingOff { setting }).collect(),
        Err(error) => [Finding::unchecked(GLOBAL, &error)].into(),
    }
}

/// Checks reverse path filtering. Linux uses the larger of the values of the interface and of `all` (`IN_DEV_RPFILTER`
/// in include/linux/inetdevice.h), so 2 on the interface is loose for any value of `all`.
fn check_reverse_path<'a>(of: impl Iterator<Item = &'a str>, read: &Reads<'_>) -> Vec<Finding> {
    let all = setting("all", "rp_filter");
    let mut findings = Vec::new();
    for interface in unique(of) {
        let own = setting(interface, "rp_filter");
        match read(&all).and_then(|all| Ok((all, read(&own)?))) {
            Ok((of_all, of_own)) if of_all.max(of_own) == STRICT => {
                let cause = if of_own == STRICT { own.clone() } else { all.clone() };
                findings.push(Finding::StrictReversePath { interface: interface.into(), cause, setting: own });
            }
            Ok(_) => {}
            Err(error) => return [Finding::unchecked(own, &error)].into(),
        }
    }
    findings
}

type Reads<'a> = dyn Fn(&str) -> io::Result<i64> + 'a;

fn setting(interface: &str, name: &str) -> String {
    setting_of("ipv4", interface, name)
}

fn ipv6_setting(interface: &str, name: &str) -> String {
    setting_of("ipv6", interface, name)
}

/// Returns the name of an interface's setting for sysctl(8), with slashes if the interface has a dot in its name.
fn setting_of(family: &str, interface: &str, name: &str) -> String {
    if interface.contains('.') {
        format!("net/{family}/conf/{interface}/{name}")
    } else {
        format!("net.{family}.conf.{interface}.{name}")
    }
}

fn path(setting: &str) -> String {
    let path = if setting.contains('/') { setting.into() } else { setting.replace('.', "/") };
    format!("/proc/sys/{path}")
}

fn read(setting: &str) -> io::Result<i64> {
    let path = path(setting);
    let text = fs::read_to_string(&path).map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))?;
    let bad = || io::Error::new(io::ErrorKind::InvalidData, format!("{path} holds {text:?}, which is no number"));
    text.trim().parse().map_err(|_| bad())
}

fn unique<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut unique = Vec::new();
    for name in names {
        if !unique.contains(&name) {
            unique.push(name);
        }
    }
    unique
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test may fail by panicking")]
mod unit {
    use alloc::collections::BTreeMap;

    use super::*;

    /// A host with these settings and no others.
    fn host<'a>(settings: &'a [(&'a str, i64)]) -> impl Fn(&str) -> io::Result<i64> + 'a {
        let settings: BTreeMap<_, _> = settings.iter().copied().collect();
        move |setting| settings.get(setting).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn forwarding(settings: &[(&str, i64)]) -> Vec<Finding> {
        check_forwarding(["pod0", "loden0", "loden0"].into_iter(), &host(settings))
    }

    fn off(setting: &str) -> Finding {
        Finding::ForwardingOff { setting: setting.into() }
    }

    const POD: &str = "net.ipv4.conf.pod0.forwarding";
    const TUN: &str = "net.ipv4.conf.loden0.forwarding";
    const ALL: &str = "net.ipv4.ip_forward";

    #[test]
    fn forwarding_is_a_setting_of_interfaces_and_the_remedy_one_setting_if_that_is_off() {
        assert_eq!(forwarding(&[(ALL, 1), (POD, 1), (TUN, 1)]), []);
        assert_eq!(forwarding(&[(ALL, 0), (POD, 1), (TUN, 1)]), [], "the kernel does not ask it");
        assert_eq!(forwarding(&[(ALL, 0), (POD, 0), (TUN, 1)]), [off(ALL)]);
        assert_eq!(forwarding(&[(ALL, 1), (POD, 0), (TUN, 1)]), [off(POD)]);
        assert_eq!(forwarding(&[(ALL, 1), (POD, 0), (TUN, 0)]), [off(POD), off(TUN)]);
    }

    #[test]
    fn an_unreadable_setting_is_reported_once() {
        for settings in [&[][..], &[(ALL, 1), (POD, 0)], &[(POD, 0), (TUN, 1)]] {
            let found = forwarding(settings);
            assert!(matches!(found[..], [Finding::Unchecked { .. }]), "{settings:?}: {found:?}");
        }
    }

    #[test]
    fn reverse_paths_are_strict_by_the_larger_of_two_values() {
        for (all, own, strict_by) in [
            (0, 0, None),
            (1, 0, Some("net.ipv4.conf.all.rp_filter")),
            (0, 1, Some("net.ipv4.conf.eth0.rp_filter")),
            (1, 1, Some("net.ipv4.conf.eth0.rp_filter")),
            (2, 1, None),
            (1, 2, None),
            (2, 2, None),
        ] {
            let settings = [("net.ipv4.conf.all.rp_filter", all), ("net.ipv4.conf.eth0.rp_filter", own)];
            let found = check_reverse_path(["eth0"].into_iter(), &host(&settings));
            let expected = strict_by.map(|because| Finding::StrictReversePath {
                interface: "eth0".into(),
                cause: because.into(),
                setting: "net.ipv4.conf.eth0.rp_filter".into(),
            });
            assert_eq!(found, Vec::from_iter(expected), "{all} and {own}");
        }
    }

    #[test]
    fn a_dot_in_a_name_is_no_separator() {
        let setting = setting("eth0.7", "rp_filter");
        assert_eq!(path(&setting), "/proc/sys/net/ipv4/conf/eth0.7/rp_filter");
        assert_eq!(path("net.ipv4.ip_forward"), "/proc/sys/net/ipv4/ip_forward");
        read("net.ipv4.ip_forward").expect("every kernel with IPv4 has it");
        assert!(read("net.ipv4.no_such_setting").is_err());
    }
}
