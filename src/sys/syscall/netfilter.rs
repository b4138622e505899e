//! Tables of iptables-legacy: options of any IPv4 socket (`nf_getsockopt` in the kernel's net/netfilter/nf_sockopt.c).

use core::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::checked;

/// What is asked about a table that is named at the begin of the buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum TableQuestion {
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
pub(crate) fn table_option(socket: BorrowedFd<'_>, question: TableQuestion, buffer: &mut [u8]) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let pointer = buffer.as_mut_ptr().cast();
    // SAFETY: the kernel reads and writes at most `length` bytes at `pointer`, which is to a buffer of that size, and the length.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, question.name(), pointer, &raw mut length) };
    checked(result).map(|_zero| ())
}

/// Place of `num_counters` in struct `ipt_replace`; the pointer to as many counters is right behind it.
#[cfg(test)]
const OLD_ENTRIES: usize = 84;

/// setsockopt(2) with `IPT_SO_SET_REPLACE`: `replace` is struct `ipt_replace` and the entries behind it. How many counters of old
/// entries are wanted, and where, is written to it here.
#[cfg(test)]
pub(crate) fn replace_table(socket: BorrowedFd<'_>, replace: &mut [u8], old_entries: u32) -> io::Result<()> {
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
    // SAFETY: the kernel reads `length` bytes at `pointer`, which has as many, and writes at most `old_entries` counters of 16 bytes
    // to the address told, where there is room for them; it has to be their exact number.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, BASE, pointer, length) };
    checked(result).map(|_zero| ())
}
