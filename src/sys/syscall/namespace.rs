//! Namespaces (ioctl_nsfs(2)).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::checked;

/// Returns the user namespace that owns a namespace (`NS_GET_USERNS`). Fails with EPERM if that is neither the user namespace
/// of the process nor one below it.
pub(crate) fn owning_user_namespace(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: the request takes no argument.
    let result = unsafe { libc::ioctl(namespace.as_raw_fd(), libc::NS_GET_USERNS) };
    let fd = checked(result)?;
    // SAFETY: the kernel has just returned this descriptor, so it is open and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
