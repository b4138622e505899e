//! The tables `filter` and `nat` of iptables-legacy, asked of the kernel by options of a socket (ip_tables.h and x_tables.h in the
//! kernel's include/uapi/linux/). iptables-nft has none of it.

use alloc::vec;
use alloc::vec::Vec;
use std::os::fd::AsFd;
use std::{fs, io};

use socket2::{Domain, Socket, Type};

use crate::sys::link::error::MalformedReply;
use crate::sys::link::message::array;
use crate::sys::{TableQuestion, table_option};

/// Of the calling thread's network namespace; /proc/net is that of the process.
const NAMES: &str = "/proc/thread-self/net/ip_tables_names";
const FILTER: &str = "filter";
const NAT: &str = "nat";
/// How often a table is read again that was replaced meanwhile.
const ATTEMPTS: u32 = 8;

/// Places in struct `ipt_getinfo`. Hooks have the numbers `NF_INET_*`.
mod info {
    pub(in crate::preflight) const HOOK_ENTRIES: usize = 36;
    pub(in crate::preflight) const UNDERFLOWS: usize = 56;
    pub(in crate::preflight) const SIZE: usize = 80;
    pub(in crate::preflight) const LENGTH: usize = 84;
}

/// Places in struct `ipt_get_entries`.
mod entries {
    pub(in crate::preflight) const SIZE: usize = 32;
    /// Entries are aligned to their 64-bit counters.
    pub(in crate::preflight) const ENTRIES: usize = 36_usize.next_multiple_of(align_of::<u64>());
}

/// Places in struct `ipt_entry` and, from its target on, struct `xt_standard_target`.
mod entry {
    pub(in crate::preflight) const TARGET: usize = 88;
    pub(in crate::preflight) const NEXT: usize = 90;
    pub(in crate::preflight) const VERDICT: usize = 32;
}

/// `-NF_DROP - 1`, as rules write it.
const DROP: i32 = -libc::NF_DROP - 1;

/// The chains INPUT and FORWARD that drop by policy, with the number of their rules.
#[derive(Debug, Default)]
pub(in crate::preflight) struct Legacy {
    pub(in crate::preflight) input: Option<u32>,
    pub(in crate::preflight) forward: Option<u32>,
    /// The chain POSTROUTING of the table `nat` has rules. They are not read.
    pub(in crate::preflight) translates: bool,
}

pub(in crate::preflight) fn read() -> io::Result<Legacy> {
    // The kernel makes a table when it is first asked for it, so it is asked only for one that is there.
    let names = match fs::read_to_string(NAMES) {
        Ok(names) => names,
        // iptables-legacy is not in use, if the directory is there at all.
        Err(error) if error.kind() == io::ErrorKind::NotFound && fs::exists("/proc/thread-self/net")? => {
            return Ok(Legacy::default());
        }
        Err(error) => return Err(io::Error::new(error.kind(), alloc::format!("{NAMES}: {error}"))),
    };
    let has = |table| names.lines().any(|name| name == table);
    let translates = has(NAT) && hook_has_rules(libc::NF_INET_POST_ROUTING, &table_info(NAT)?).map_err(malformed)?;
    if !has(FILTER) {
        return Ok(Legacy { translates, ..Legacy::default() });
    }
    let (info, table) = filter_table()?;
    let dropping = |hook| hook_drops(hook, &info, table.get(entries::ENTRIES..).unwrap_or_default()).map_err(malformed);
    Ok(Legacy { input: dropping(libc::NF_INET_LOCAL_IN)?, forward: dropping(libc::NF_INET_FORWARD)?, translates })
}

fn malformed(error: MalformedReply) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// A buffer for a question about a table.
fn question(table: &str, length: usize) -> Vec<u8> {
    let mut buffer = vec![0; length];
    buffer.splice(..table.len(), table.bytes());
    buffer
}

fn table_info(table: &str) -> io::Result<Vec<u8>> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    let mut info = question(table, info::LENGTH);
    table_option(socket.as_fd(), TableQuestion::Info, &mut info)?;
    Ok(info)
}

/// What the kernel says about the table, and the table.
pub(in crate::preflight) fn filter_table() -> io::Result<(Vec<u8>, Vec<u8>)> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    let question = |length| question(FILTER, length);
    let mut attempt = 1;
    loop {
        let mut info = question(info::LENGTH);
        table_option(socket.as_fd(), TableQuestion::Info, &mut info)?;
        let size: [u8; 4] = array(&info, info::SIZE).map_err(malformed)?;
        let mut table = question(entries::ENTRIES + u32::from_ne_bytes(size) as usize);
        table.splice(entries::SIZE..entries::SIZE + size.len(), size);
        match table_option(socket.as_fd(), TableQuestion::Entries, &mut table) {
            Ok(()) => return Ok((info, table)),
            // It has another size by now.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && attempt < ATTEMPTS => attempt += 1,
            Err(error) => return Err(error),
        }
    }
}

/// Places of the first rule of a chain and of its policy, which is the rule at its end, the underflow.
fn ends_of_hook(hook: i32, info: &[u8]) -> Result<(usize, usize), MalformedReply> {
    let of_hook = |places: usize| -> Result<usize, MalformedReply> {
        let place = places + 4 * hook.cast_unsigned() as usize;
        Ok(u32::from_ne_bytes(array(info, place)?) as usize)
    };
    Ok((of_hook(info::HOOK_ENTRIES)?, of_hook(info::UNDERFLOWS)?))
}

/// Whether the chain has rules before its policy.
fn hook_has_rules(hook: i32, info: &[u8]) -> Result<bool, MalformedReply> {
    ends_of_hook(hook, info).map(|(first, policy)| first != policy)
}

/// How many rules the chain has, if what they leave is dropped.
fn hook_drops(hook: i32, info: &[u8], entries: &[u8]) -> Result<Option<u32>, MalformedReply> {
    let (first, policy) = ends_of_hook(hook, info)?;
    let offset = |at: usize| -> Result<usize, MalformedReply> { Ok(u16::from_ne_bytes(array(entries, at)?).into()) };
    let verdict = policy.saturating_add(offset(policy.saturating_add(entry::TARGET))?).saturating_add(entry::VERDICT);
    if i32::from_ne_bytes(array(entries, verdict)?) != DROP {
        return Ok(None);
    }
    let (mut rules, mut at) = (0, first);
    while at < policy {
        let length = offset(at.saturating_add(entry::NEXT))?;
        if length == 0 {
            return Err(MalformedReply::Missing { what: "the length of a rule" });
        }
        rules += 1;
        at = at.saturating_add(length);
    }
    Ok(Some(rules))
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test may fail by panicking")]
mod unit {
    use super::*;

    /// A rule of so many bytes with a standard target, as the kernel writes it.
    fn rule(length: u16, verdict: i32) -> Vec<u8> {
        let target = length - 40;
        let mut rule = vec![0; usize::from(length)];
        let mut put = |at: usize, bytes: &[u8]| rule.splice(at..at + bytes.len(), bytes.iter().copied()).count();
        put(entry::TARGET, &target.to_ne_bytes());
        put(entry::NEXT, &length.to_ne_bytes());
        put(usize::from(target) + entry::VERDICT, &verdict.to_ne_bytes());
        rule
    }

    /// INPUT with its policy, and FORWARD with so many rules before its own.
    fn table(rules: u16, verdict: i32) -> (Vec<u8>, Vec<u8>) {
        let mut entries = rule(152, -libc::NF_ACCEPT - 1);
        let first = entries.len();
        for number in 0..rules {
            entries.extend(rule(152 + 8 * number, -libc::NF_ACCEPT - 1));
        }
        let policy = entries.len();
        entries.extend(rule(152, verdict));
        let mut info = vec![0; info::LENGTH];
        let mut put = |at: usize, offset: usize| {
            let offset = u32::try_from(offset).expect("small").to_ne_bytes();
            info.splice(at..at + 4, offset);
        };
        put(info::HOOK_ENTRIES + 8, first);
        put(info::UNDERFLOWS + 8, policy);
        (info, entries)
    }

    #[test]
    fn the_policy_is_the_last_rule_and_those_before_are_counted() {
        for rules in [0, 1, 7] {
            let drops = |verdict| {
                let (info, entries) = table(rules, verdict);
                hook_drops(libc::NF_INET_FORWARD, &info, &entries)
            };
            assert_eq!(drops(DROP), Ok(Some(rules.into())));
            assert_eq!(drops(-libc::NF_ACCEPT - 1), Ok(None));
        }
    }

    #[test]
    fn what_is_cut_or_goes_round_in_circles_is_an_error() {
        let (info, entries) = table(2, DROP);
        for length in 0..entries.len() - 4 {
            let cut = hook_drops(libc::NF_INET_FORWARD, &info, entries.get(..length).expect("in range"));
            assert!(cut.is_err(), "{length} of {} bytes: {cut:?}", entries.len());
        }
        for length in 0..info::SIZE - 12 {
            assert!(
                hook_drops(libc::NF_INET_FORWARD, info.get(..length).expect("in range"), &entries).is_err(),
                "{length} bytes"
            );
        }
        let mut hostile = entries;
        hostile.splice(152 + entry::NEXT..152 + entry::NEXT + 2, [0, 0]);
        assert_eq!(
            hook_drops(libc::NF_INET_FORWARD, &info, &hostile),
            Err(MalformedReply::Missing { what: "the length of a rule" })
        );
        let everywhere = vec![0xff; info::LENGTH];
        assert!(hook_drops(libc::NF_INET_FORWARD, &everywhere, &hostile).is_err());
    }
}
