//! Reads on the ring, and the memory that the kernel fills.
#![expect(unsafe_code, reason = "the kernel writes to the memory that an entry points to")]

use std::os::fd::{AsRawFd, RawFd};
use std::{io, mem, mem::MaybeUninit, ptr, time::Duration};

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue::Entry};
use loden::offload::{VNET_HEADER_LEN, VnetHeader};
use loden::sys::{PACKET_MAX, RecvError, RecvHeader, RecvMeta};
use nix::libc::{EAGAIN, EINTR, ETIME, MSG_DONTWAIT, POLLIN, RWF_NOWAIT, iovec, msghdr};

/// Reads at once on one file descriptor. It is also the number of the call that waits for it.
pub(crate) const BATCH: usize = 16;

/// Bytes of reads at once, about. They stay in the second-level cache until the engine has passed them on.
const BYTES: usize = 256 << 10;

/// Posts all calls, and waits until as many are complete, one at least, or until the time has passed.
pub(crate) fn wait(ring: &IoUring, calls: usize, timeout: Option<Duration>) -> io::Result<()> {
    let timeout = timeout.map(Timespec::from);
    let args = timeout.as_ref().map_or(SubmitArgs::new(), |timeout| SubmitArgs::new().timespec(timeout));
    match ring.submitter().submit_with_args(calls.max(1), &args) {
        Err(error) if !matches!(error.raw_os_error(), Some(EINTR | ETIME)) => Err(error),
        _ => Ok(()),
    }
}

/// Calls for one event of a file descriptor.
pub(crate) fn wait_for(ring: &mut IoUring, fd: RawFd, number: usize) -> io::Result<()> {
    push(ring, opcode::PollAdd::new(Fd(fd), POLLIN as u32).build(), number, BATCH)
}

/// Returns the number of the file descriptor, and that of the call.
pub(crate) fn place(entry: &cqueue::Entry) -> (usize, usize) {
    let place = entry.user_data() as usize;
    (place / (BATCH + 1), place % (BATCH + 1))
}

fn push(ring: &mut IoUring, entry: Entry, number: usize, slot: usize) -> io::Result<()> {
    let entry = entry.user_data((number * (BATCH + 1) + slot) as u64);
    // SAFETY: the memory that an entry points to belongs to a slot, which is never freed, and is left alone until the entry
    // has completed.
    unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)
}

/// A file descriptor with calls on the ring: reads while it is ready, and otherwise one that waits until it is.
pub(crate) struct Source {
    fd: Fd,
    slots: &'static mut [Slot],
    /// The number of reads that were posted and not yet taken, and of those that are not complete.
    posted: usize,
    pub(crate) in_flight: usize,
    /// The number of reads to post next: more while many packets are waiting.
    next: usize,
    pub(crate) is_ready: bool,
    is_waiting: bool,
}

impl Source {
    pub(crate) fn new(fd: &impl AsRawFd) -> Self {
        let slots = Vec::leak((0..BATCH).map(|_| Slot::new()).collect());
        Self { fd: Fd(fd.as_raw_fd()), slots, posted: 0, in_flight: 0, next: 2, is_ready: false, is_waiting: false }
    }

    /// Posts the next reads or, if there was nothing to read, waits for an event.
    pub(crate) fn post(
        &mut self,
        ring: &mut IoUring,
        number: usize,
        call: impl Fn(&mut Slot, Fd) -> Entry,
    ) -> io::Result<()> {
        if self.is_waiting || self.posted > 0 {
            return Ok(());
        }
        if !self.is_ready {
            self.is_waiting = true;
            return wait_for(ring, self.fd.0, number);
        }
        (self.posted, self.in_flight) = (self.next, self.next);
        let mut slots = self.slots[..self.next].iter_mut().enumerate();
        slots.try_for_each(|(index, slot)| push(ring, call(slot, self.fd), number, index))
    }

    /// Notes the result of a call.
    pub(crate) fn complete(&mut self, slot: usize, result: i32) {
        match self.slots.get_mut(slot) {
            Some(slot) => {
                slot.result = result;
                self.in_flight -= 1;
            }
            None => (self.is_waiting, self.is_ready) = (false, true),
        }
    }

    /// Returns the slots of the posted reads when all are complete, other than those for which nothing was there.
    pub(crate) fn take(&mut self) -> impl Iterator<Item = &mut Slot> {
        let posted = if self.in_flight == 0 { mem::take(&mut self.posted) } else { 0 };
        let slots = &mut self.slots[..posted];
        if posted > 0 {
            let filled = slots.iter().filter(|slot| slot.result >= 0).count();
            let bytes: usize = slots.iter().filter_map(|slot| usize::try_from(slot.result).ok()).sum();
            let most = (BYTES * filled).checked_div(bytes).unwrap_or(BATCH);
            (self.is_ready, self.next) = (filled == posted, (2 * filled).min(most).clamp(2, BATCH));
        }
        slots.iter_mut().filter(|slot| slot.result != -EAGAIN)
    }
}

/// The memory of one read.
pub(crate) struct Slot {
    header: msghdr,
    part: iovec,
    name: [u8; RecvHeader::NAME_MAX],
    control: [u8; RecvHeader::CONTROL_MAX],
    bytes: Vec<u8>,
    pub(crate) result: i32,
}

impl Slot {
    fn new() -> Self {
        let bytes = vec![0; VNET_HEADER_LEN + PACKET_MAX + 1];
        let (name, control) = ([0; RecvHeader::NAME_MAX], [0; RecvHeader::CONTROL_MAX]);
        let part = iovec { iov_base: ptr::null_mut(), iov_len: 0 };
        // SAFETY: a `msghdr` of zeros has null pointers and no lengths.
        let header = unsafe { MaybeUninit::<msghdr>::zeroed().assume_init() };
        Self { header, part, name, control, bytes, result: 0 }
    }

    /// Returns the call that reads a packet. The ring disregards `O_NONBLOCK` for a TUN device.
    pub(crate) fn read(&mut self, fd: Fd) -> Entry {
        opcode::Read::new(fd, self.bytes.as_mut_ptr(), self.bytes.len() as u32).rw_flags(RWF_NOWAIT).build()
    }

    /// Returns the call that receives a message.
    pub(crate) fn receive(&mut self, fd: Fd) -> Entry {
        self.part = iovec { iov_base: self.bytes.as_mut_ptr().cast(), iov_len: self.bytes.len() };
        (self.header.msg_iov, self.header.msg_iovlen) = (&raw mut self.part, 1);
        (self.header.msg_name, self.header.msg_namelen) = (self.name.as_mut_ptr().cast(), self.name.len() as u32);
        self.header.msg_control = self.control.as_mut_ptr().cast();
        self.header.msg_controllen = self.control.len() as _;
        opcode::RecvMsg::new(fd, &raw mut self.header).flags(MSG_DONTWAIT as u32).build()
    }

    /// Returns the packet that was read, and its header.
    pub(crate) fn packet(&mut self, len: usize, has_header: bool) -> (VnetHeader, &mut [u8]) {
        let (header, packet) = self.bytes[..len].split_at_mut(if has_header { VNET_HEADER_LEN.min(len) } else { 0 });
        (VnetHeader::split(header).map_or_else(|_| VnetHeader::default(), |(header, _)| header), packet)
    }

    /// Returns the message that was received: one datagram, or several of the same length.
    pub(crate) fn message(&mut self) -> Result<(RecvMeta, &mut [u8]), RecvError> {
        let len = usize::try_from(self.result).map_err(|_| RecvError::from_errno(-self.result))?;
        let name = &self.name[..self.name.len().min(self.header.msg_namelen as usize)];
        let control = &self.control[..self.control.len().min(self.header.msg_controllen as _)];
        let header = RecvHeader { name, control, flags: self.header.msg_flags };
        Ok((RecvMeta::from_header(&header, len, self.bytes.len())?, &mut self.bytes[..len]))
    }
}
