//! Tables of legacy iptables, which are options of any IPv4 socket (`nf_getsockopt` in the kernel's
//! net/netfilter/nf_sockopt.c).

use core::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::checked;

/// A query about the table that is named at the start of the buffer.
#[derive(Clone, Copy, Debug)]
pub(in crate::sys) enum TableQuestion {
    /// `IPT_SO_GET_INFO` with struct `ipt_getinfo`. It creates the table if there is none.
    Info,
    /// `IPT_SO_GET_ENTRIES` with struct `ipt_get_entries` and the entries after it.
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

/// Calls getsockopt(2): the kernel reads the query from the buffer and writes the answer into it.
pub(in crate::sys) fn table_option(
    socket: BorrowedFd<'_>,
    question: TableQuestion,
    buffer: &mut [u8],
) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let pointer = buffer.as_mut_ptr().cast();
    // SAFETY: `pointer` refers to a buffer of `length` bytes. The kernel reads and writes at most that many, and the
    // length.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, question.name(), pointer, &raw mut length) };
    checked(result).map(|_zero| ())
}

/// The offset of `num_counters` in struct `ipt_replace`, which is followed by the pointer to that many counters.
#[cfg(test)]
const OLD_ENTRIES: usize = 84;

/// Calls setsockopt(2) with `IPT_SO_SET_REPLACE`. `replace` is struct `ipt_replace` with its entries. This function
/// fills in the number and the address of the counters of the old entries.
#[cfg(test)]
pub(in crate::sys) fn replace_table(socket: BorrowedFd<'_>, replace: &mut [u8], old_entries: u32) -> io::Result<()> {
    let mut counters = alloc::vec![[0_u64; 2]; old_entries as usize];
    let address = counters.as_mut_ptr().expose_provenance().to_ne_bytes();
    let (number, pointer) = replace
        .get_mut(OLD_ENTRIES..)
        .and_then(|rest| rest.split_at_mut_checked(size_of::<u32>()))
        .ok_or(io::ErrorKind::InvalidInput)?;
    number.copy_from_slice(&old_entries.to_ne_bytes());
    pointer.get_mut(..address.len()).ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(&address);
    let length = libc::socklen_t::try_from(replace.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let pointer = replace.as_ptr().cast();
    // SAFETY: the kernel reads `length` bytes at `pointer`, which has as many. It writes at most `old_entries` counters
    // of 16 bytes to the given address, which has room for them. That number must be exact.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, BASE, pointer, length) };
    checked(result).map(|_zero| ())
}
