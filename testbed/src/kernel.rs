//! The kernel that the tests run on.

use nix::sys::utsname::uname;

/// Returns the running kernel's version and patch level, e.g. (6, 1): an oracle for what it has.
///
/// # Panics
/// When the kernel does not tell, or in other words than `6.1.0-50-amd64`.
pub fn kernel_version() -> (u32, u32) {
    let name = uname().map(|system| system.release().to_string_lossy().into_owned()).unwrap_or_default();
    let mut numbers = name.split(|letter: char| !letter.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(version)), Some(Ok(level))) => (version, level),
        _ => panic!("the kernel calls itself {name:?}"),
    }
}
