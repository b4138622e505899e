//! Linux's treatment of options that loden does not change (net/ipv4/ip_options.c): `__ip_options_compile` on arrival,
//! `ip_forward_options` on forwarding, `__ip_options_echo` in an error, and `ip_options_fragment` in a fragment.

use core::net::Ipv4Addr;

use support::packet::address_at;

const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const RECORD_ROUTE: u8 = 7;
const TIMESTAMP: u8 = 68;
pub(crate) const CIPSO: u8 = 134;
const SOURCE_ROUTES: [u8; 2] = [131, 137];
const ROUTER_ALERT: u8 = 148;

/// Flags of the timestamp option (RFC 781).
mod stamp {
    pub(super) const TIME: u8 = 0;
    pub(super) const ADDRESS_AND_TIME: u8 = 1;
    pub(super) const PRESPECIFIED: u8 = 3;
}

/// A packet whose options the kernel has gone through.
#[derive(Clone, Debug)]
pub(crate) struct Walk {
    /// The packet as the walk left it. Its header checksum is what it was: the kernel mends it later, or never.
    pub(crate) packet: Vec<u8>,
    /// The position in the header at which the kernel found an error.
    pub(crate) error: Option<u8>,
    /// The kernel wrote into a record route or a timestamp option.
    pub(crate) filled: bool,
    /// The kernel cleared bytes after the end of the options.
    pub(crate) cleared: bool,
    /// The position of the time that the kernel wrote.
    pub(crate) time_at: Option<usize>,
    record_route: Option<Found>,
    timestamp: Option<Found>,
    source_route: Option<usize>,
}

/// An option that wants to be written into.
#[derive(Clone, Copy, Debug)]
struct Found {
    at: usize,
    needs_address: bool,
    needs_time: bool,
}

impl Walk {
    /// `own` is the address that the router answers this packet's source from.
    pub(crate) fn of(packet: &[u8], own: Ipv4Addr, is_own: impl Fn(Ipv4Addr) -> bool) -> Self {
        let mut walk = Self {
            packet: packet.to_vec(),
            error: None,
            filled: false,
            cleared: false,
            time_at: None,
            record_route: None,
            timestamp: None,
            source_route: None,
        };
        walk.error = walk.run(own, is_own).err().map(|at| at as u8);
        walk
    }

    fn run(&mut self, own: Ipv4Addr, is_own: impl Fn(Ipv4Addr) -> bool) -> Result<(), usize> {
        let header = usize::from(self.packet[0] & 15) * 4;
        let mut at = 20;
        while at < header {
            let kind = self.packet[at];
            if kind == END {
                self.cleared = self.packet[at..header].iter().any(|byte| *byte != END);
                self.packet[at..header].fill(END);
                return Ok(());
            }
            if kind == NO_OPERATION {
                at += 1;
                continue;
            }
            if at + 1 == header {
                return Err(at);
            }
            let len = usize::from(self.packet[at + 1]);
            if len < 2 || at + len > header {
                return Err(at);
            }
            match kind {
                RECORD_ROUTE => self.record_route(at, len, own)?,
                TIMESTAMP => self.timestamp(at, len, own, &is_own)?,
                ROUTER_ALERT if len < 4 => return Err(at + 1),
                _ if SOURCE_ROUTES.contains(&kind) => self.source_route(at, len)?,
                _ => {}
            }
            at += len;
        }
        Ok(())
    }

    fn source_route(&mut self, at: usize, len: usize) -> Result<(), usize> {
        if len < 3 {
            return Err(at + 1);
        }
        if self.packet[at + 2] < 4 {
            return Err(at + 2);
        }
        if self.source_route.is_some() {
            return Err(at);
        }
        self.source_route = Some(at);
        Ok(())
    }

    fn record_route(&mut self, at: usize, len: usize, own: Ipv4Addr) -> Result<(), usize> {
        if self.record_route.is_some() {
            return Err(at);
        }
        if len < 3 {
            return Err(at + 1);
        }
        let next = usize::from(self.packet[at + 2]);
        if next < 4 || next <= len && next + 3 > len {
            return Err(at + 2);
        }
        if next <= len {
            self.write(at + next - 1, &own.octets());
            self.packet[at + 2] += 4;
        }
        self.record_route = Some(Found { at, needs_address: next <= len, needs_time: false });
        Ok(())
    }

    fn timestamp(
        &mut self,
        at: usize,
        len: usize,
        own: Ipv4Addr,
        is_own: impl Fn(Ipv4Addr) -> bool,
    ) -> Result<(), usize> {
        if self.timestamp.is_some() {
            return Err(at);
        }
        if len < 4 {
            return Err(at + 1);
        }
        let (next, flags) = (usize::from(self.packet[at + 2]), self.packet[at + 3]);
        if next < 5 {
            return Err(at + 2);
        }
        let mut found = Found { at, needs_address: false, needs_time: false };
        let slot = at + next - 1;
        if next > len {
            if flags & 15 != stamp::PRESPECIFIED {
                if flags >> 4 == 15 {
                    return Err(at + 3);
                }
                self.write(at + 3, &[flags + 0x10]);
            }
        } else {
            let pair = matches!(flags & 15, stamp::ADDRESS_AND_TIME | stamp::PRESPECIFIED);
            if next + if pair { 7 } else { 3 } > len {
                return Err(at + 2);
            }
            match flags & 15 {
                stamp::TIME => {
                    self.write_time(slot);
                    self.packet[at + 2] += 4;
                    found.needs_time = true;
                }
                stamp::ADDRESS_AND_TIME => {
                    self.write(slot, &own.octets());
                    self.write_time(slot + 4);
                    self.packet[at + 2] += 8;
                    (found.needs_address, found.needs_time) = (true, true);
                }
                stamp::PRESPECIFIED if is_own(address_at(&self.packet, slot)) => {
                    self.write_time(slot + 4);
                    self.packet[at + 2] += 8;
                    found.needs_time = true;
                }
                _ => {}
            }
        }
        self.timestamp = Some(found);
        Ok(())
    }

    /// Returns the forwarded packet: a record route has the address of its outgoing link.
    pub(crate) fn forwarded(&self, exit: Ipv4Addr) -> Vec<u8> {
        let mut packet = self.packet.clone();
        if let Some(Found { at, needs_address: true, .. }) = self.record_route {
            let slot = at + usize::from(packet[at + 2]) - 5;
            packet[slot..slot + 4].copy_from_slice(&exit.octets());
        }
        packet
    }

    /// The options of an error about the packet that the router sends from `own`, and where in them the time is. `None` if there
    /// is no error, since they would not fit.
    pub(crate) fn echoed(&self, own: Ipv4Addr, is_own: impl Fn(Ipv4Addr) -> bool) -> Option<(Vec<u8>, Option<usize>)> {
        let (mut echo, mut time_at) = (Vec::new(), None);
        let copy = |found: Found| self.packet[found.at..found.at + usize::from(self.packet[found.at + 1])].to_vec();
        if let Some(found) = self.record_route {
            let mut option = copy(found);
            let next = usize::from(option[2]);
            if found.needs_address && next <= option.len() {
                option.get_mut(next - 1..next + 3)?.copy_from_slice(&own.octets());
                option[2] += 4;
            }
            echo.extend(option);
        }
        if let Some(found) = self.timestamp {
            let mut option = copy(found);
            let (len, mut next) = (option.len(), usize::from(option[2]));
            if next <= len {
                let mut wants_time = found.needs_time;
                if found.needs_address {
                    option.get_mut(next - 1..next + 3)?.copy_from_slice(&own.octets());
                    next += 4;
                }
                if wants_time && next + 3 > len {
                    return None;
                }
                if wants_time && option[3] & 15 == stamp::PRESPECIFIED {
                    wants_time = next + 7 <= len && is_own(address_at(&option, next - 1));
                    next += if wants_time { 8 } else { 0 };
                } else if wants_time {
                    next += 4;
                }
                option[2] = next as u8;
                time_at = wants_time.then_some(echo.len() + next - 5);
            }
            echo.extend(option);
        }
        echo.resize(echo.len().next_multiple_of(4), END);
        Some((echo, time_at))
    }

    /// Returns true if an error about it has options.
    pub(crate) fn echoes(&self) -> bool {
        self.record_route.is_some() || self.timestamp.is_some()
    }

    /// Returns true if an error about it would follow a reversed source route.
    pub(crate) fn reverses_a_source_route(&self) -> bool {
        self.source_route.is_some_and(|at| self.packet[at + 2] >= 8)
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        self.packet[at..at + bytes.len()].copy_from_slice(bytes);
        self.filled = true;
    }

    /// Reserves the place of the time, which is filled in later from the kernel's packet.
    fn write_time(&mut self, at: usize) {
        self.write(at, &[0; 4]);
        self.time_at = Some(at);
    }
}

/// The header of what follows the first fragment: options that are not copied are no-operations.
pub(crate) fn blanked(header: &mut [u8]) {
    let mut at = 20;
    while at < header.len() {
        let len = match header[at] {
            END => return,
            NO_OPERATION => 1,
            _ => usize::from(header[at + 1]),
        };
        if header[at] & 0x80 == 0 {
            header[at..at + len].fill(NO_OPERATION);
        }
        at += len;
    }
}
