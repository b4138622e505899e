//! Namespaces (ioctl_nsfs(2)).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::checked;

/// `NS_GET_USERNS`: the user namespace that owns a namespace. EPERM if that is neither our own nor one below it.
pub(crate) fn owning_user_namespace(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: the request takes no argument.
    let result = unsafe { libc::ioctl(namespace.as_raw_fd(), libc::NS_GET_USERNS) };
    let fd = checked(result)?;
    // SAFETY: the kernel has just made it, so that it is open and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
