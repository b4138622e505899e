//! Findings about the rights of this process to create a TUN device.

use alloc::vec::Vec;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;

use super::Finding;
use crate::sys;
use crate::sys::{DEVICE_NODE, other_than_node};

/// `CAP_NET_ADMIN` as a bit of `CapEff` (linux/capability.h).
const NET_ADMIN: u64 = 1 << 12;

pub(super) fn check() -> Vec<Finding> {
    let mut findings = Vec::new();
    match is_net_admin() {
        Ok(true) => {}
        Ok(false) => findings.push(Finding::NoNetAdmin),
        Err(error) => findings.push(Finding::unchecked("the capabilities of this process", &error)),
    }
    if let Some(found) = fs::metadata(DEVICE_NODE).ok().as_ref().and_then(other_than_node) {
        findings.push(Finding::NotTunNode { node: DEVICE_NODE, found });
    // Opening the node creates no device. TUNSETIFF does.
    } else if let Err(error) = OpenOptions::new().read(true).write(true).open(DEVICE_NODE) {
        findings.push(match error.raw_os_error() {
            Some(errno) => Finding::TunNode { node: DEVICE_NODE, errno },
            None => Finding::unchecked(DEVICE_NODE, &error),
        });
    }
    findings
}

/// Returns true if the process has CAP_NET_ADMIN in its network namespace. A capability counts in the user namespace of
/// the process and in those below it (capabilities(7)).
fn is_net_admin() -> io::Result<bool> {
    let status = fs::read_to_string("/proc/thread-self/status")?;
    let capabilities = effective(&status)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no CapEff in /proc/thread-self/status"))?;
    Ok(capabilities & NET_ADMIN != 0 && owns_namespace()?)
}

/// Parses the effective capabilities in `/proc/PID/status`.
fn effective(status: &str) -> Option<u64> {
    let field = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(field.trim(), 16).ok()
}

/// Returns true if the user namespace of the process owns the network namespace, or is above its owner. The kernel
/// returns no other owner (ioctl_nsfs(2)).
fn owns_namespace() -> io::Result<bool> {
    let namespace = File::open("/proc/thread-self/ns/net")?;
    match sys::owning_user_namespace(namespace.as_fd()) {
        Ok(_owner) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn the_effective_set_is_the_one_that_counts() {
        let status = "Name:\tx\nCapPrm:\t000001ffffffffff\nCapEff:\t0000000000001000\nCapBnd:\t000001ffffffffff\n";
        assert_eq!(effective(status), Some(NET_ADMIN));
        assert_eq!(effective(""), None);
        assert_eq!(effective("CapEff:\tnonsense\n"), None);
    }
}
