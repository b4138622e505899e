//! Properties of the running kernel.

use nix::sys::utsname::uname;
use std::path::Path;

/// Returns true if the kernel has IPv6. Its module may not be loaded, or `ipv6.disable=1` was given.
pub fn has_ipv6() -> bool {
    let has = Path::new("/proc/sys/net/ipv6").exists();
    if !has {
        println!("skipped: what is to be done over IPv6, which this kernel does not have");
    }
    has
}

/// Returns the running kernel's version and patch level, for example (6, 1). It is an oracle for kernel features.
///
/// # Panics
/// The kernel's version has another form than `6.1.0-50-amd64`.
pub fn kernel_version() -> (u32, u32) {
    let name = uname().map(|system| system.release().to_string_lossy().into_owned()).unwrap_or_default();
    let mut numbers = name.split(|letter: char| !letter.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(version)), Some(Ok(level))) => (version, level),
        _ => panic!("the kernel calls itself {name:?}"),
    }
}
