//! The privileges that programs need for namespaces and TUN devices.

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};

/// `CAP_NET_ADMIN` and `CAP_SYS_ADMIN`, as bits of `CapEff` (linux/capability.h).
const NEEDED: u64 = 1 << 12 | 1 << 21;

/// Ensures that this process may create network namespaces and open `/dev/net/tun`.
///
/// Without the capabilities it enters a new user namespace in which it is root. The kernel permits that only to a
/// process with one thread, so call this first in `main`.
///
/// # Errors
/// A sentence with the needed rights and the kernel's error.
pub fn ensure_privileges() -> io::Result<()> {
    let because = |sentence: &str, error: io::Error| io::Error::new(error.kind(), format!("{sentence}: {error}"));
    let needs = |error| because("needs root, or a user namespace in which /dev/net/tun may be opened", error);
    // The capabilities are checked, not the uid: root in a container may lack both.
    if effective_capabilities()? & NEEDED != NEEDED {
        become_root_in_user_namespace().map_err(needs)?;
    }
    match OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(needs(error)),
        // This is no matter of rights: there is no node or no driver behind it.
        Err(error) => Err(because(
            "needs the device node /dev/net/tun; load the kernel's module (`modprobe tun`), in a container pass the \
             device in (`--device /dev/net/tun`), or make the node (`mknod /dev/net/tun c 10 200`)",
            error,
        )),
    }
}

fn effective_capabilities() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/thread-self/status")?;
    let field = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    field
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no CapEff in /proc/thread-self/status"))
}

fn become_root_in_user_namespace() -> io::Result<()> {
    // Inside the new namespace both are the overflow id until they are mapped.
    let (user, group) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER)?;
    fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
    // user_namespaces(7): without CAP_SETGID outside, gid_map may be written only once setgroups is denied.
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/gid_map", format!("0 {group} 1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enough_to_run_the_tests() {
        ensure_privileges().expect("the tests run with privileges");
    }
}
