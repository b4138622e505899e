//! Tables of iptables-legacy: options of any IPv4 socket (`nf_getsockopt` in the kernel's net/netfilter/nf_sockopt.c).

use core::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::checked;

/// What is asked about a table that is named at the begin of the buffer.
#[derive(Clone, Copy, Debug)]
pub(in crate::sys) enum TableQuestion {
    /// `IPT_SO_GET_INFO`, with struct `ipt_getinfo`. Makes the table if there is none yet.
    Info,
    /// `IPT_SO_GET_ENTRIES`, with struct `ipt_get_entries` and what follows it.
    Entries,
}

/// `IPT_BASE_CTL` in linux/netfilter_ipv4/ip_tables.h.
const BASE: c_int = 64;

impl TableQuestion {
    const fn name(self) -> c_int {
        match self {
            Self::Info => BASE,
            Self::Entries => BASE + 1,
        }
    }
}

/// getsockopt(2): the kernel reads the question from the buffer and writes the answer to it.
pub(in crate::sys) fn table_option(
    socket: BorrowedFd<'_>,
    question: TableQuestion,
    buffer: &mut [u8],
) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let pointer = buffer.as_mut_ptr().cast();
    // SAFETY: the kernel reads and writes at most `length` bytes at `pointer`, which is to a buffer of that size, and the length.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, question.name(), pointer, &raw mut length) };
    checked(result).map(|_zero| ())
}

/// setsockopt(2) with `IPT_SO_SET_REPLACE`: `replace` is struct `ipt_replace` and the entries behind it, but for its pointer,
/// at which the kernel writes 16 bytes for each old entry.
#[cfg(test)]
pub(in crate::sys) fn replace_table(
    socket: BorrowedFd<'_>,
    replace: &mut [u8],
    pointer_at: usize,
    old_entries: usize,
) -> io::Result<()> {
    let mut counters = alloc::vec![0_u64; 2 * old_entries];
    let address = counters.as_mut_ptr().expose_provenance().to_ne_bytes();
    replace
        .get_mut(pointer_at..pointer_at + address.len())
        .ok_or(io::ErrorKind::InvalidInput)?
        .copy_from_slice(&address);
    let length = libc::socklen_t::try_from(replace.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let pointer = replace.as_ptr().cast();
    // SAFETY: the kernel reads `length` bytes at `pointer`, which has as many, and writes to `counters` 16 bytes for each entry
    // that the table had, which it checks to be `num_counters`; the caller sets that field to no more than `old_entries`.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, BASE, pointer, length) };
    checked(result).map(|_zero| ())
}
