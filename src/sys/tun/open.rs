//! Creation of and attachment to devices, with one queue or several.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::num::NonZeroUsize;
use std::fs::{File, Metadata};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::{OpenError, Tun, TunConfig, TunOffload, flags};
use crate::sys::feature::{Disabled, Feature};
use crate::sys::kernel::{Calls, SystemCalls};
use crate::sys::syscall::{self, INTERFACE_NAME, InterfaceRequest};

/// The parameters of an open operation.
#[derive(Clone, Debug)]
pub(super) struct Opening<'a> {
    pub(super) calls: Calls,
    pub(super) node: &'a Path,
    pub(super) config: &'a TunConfig,
    pub(super) queues: usize,
}

impl<'a> Opening<'a> {
    pub(super) fn new(node: &'a Path, config: &'a TunConfig, queues: NonZeroUsize) -> Self {
        Self { calls: Calls::default(), node, config, queues: queues.get() }
    }

    /// Opens all queues.
    pub(super) fn all(&self) -> Result<Vec<Tun>, OpenError> {
        let mut all = vec![self.first()?];
        for _ in 1..self.queues {
            if let Some(first) = all.first() {
                let next = self.another(first)?;
                all.push(next);
            }
        }
        Ok(all)
    }

    /// Opens the first or only queue.
    pub(super) fn first(&self) -> Result<Tun, OpenError> {
        // The name is checked first, so that no other error hides an invalid one.
        checked_name(&self.config.name)?;
        self.attach(self.file(&self.config.name)?)
    }

    /// Creates a device or attaches to an existing one, through an open node.
    pub(super) fn attach(&self, file: File) -> Result<Tun, OpenError> {
        let Self { ref calls, config, queues, .. } = *self;
        let name = checked_name(&config.name)?;
        let (disabled, mut vnet) = (Disabled::default(), config.offload != TunOffload::NONE);
        let attach =
            |vnet, more| syscall::set_interface(file.as_fd(), InterfaceRequest::new(name, form(vnet, queues) | more));
        let (attached, existed) = match attach(vnet, flags::EXCLUSIVE) {
            // A device of that name exists. Attaching succeeds if it is a persistent TUN device that is not in use.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => (attach(vnet, 0), true),
            // Linux ignores unknown flags. gVisor refuses them.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                disabled.add(Feature::TunExclusive);
                let attached = attach(vnet, 0).or_else(|error| {
                    if !vnet || error.raw_os_error() != Some(libc::EINVAL) {
                        return Err(error);
                    }
                    disabled.add(Feature::TunHeader);
                    vnet = false;
                    attach(vnet, 0)
                });
                (attached, false)
            }
            result => (result, false),
        };
        let request = attached.map_err(|source| OpenError::of_device(&config.name, queues, source))?;
        let name = name_of(&request);
        let now = match syscall::interface(file.as_fd()) {
            Ok(now) => now.flags,
            Err(source) => return Err(OpenError::Other { name, operation: "read the flags of", source }),
        };
        // A device with several queues accepts a second process, and keeps the first one's packet format.
        let persistent = now & flags::PERSIST != 0;
        let shared = queues > 1 && existed && !persistent;
        if shared || now & flags::VNET_HDR != form(vnet, queues) & flags::VNET_HDR {
            return Err(OpenError::Busy { name });
        }
        // The device may have been removed between the two attempts, so the second one created it. An existing device
        // is persistent, because no process held it. A new one is not persistent yet.
        let (created, calls) = (!persistent, calls.clone());
        let offload = if vnet { config.offload } else { TunOffload::NONE };
        Tun { file, name, created, vnet, offload, disabled, calls }.configured()
    }

    /// Opens one more queue. The configuration belongs to the device.
    fn another(&self, first: &Tun) -> Result<Tun, OpenError> {
        let Tun { ref name, created, vnet, offload, ref calls, .. } = *first;
        let file = self.file(name)?;
        let request = InterfaceRequest::new(checked_name(name)?, form(vnet, self.queues));
        syscall::set_interface(file.as_fd(), request)
            .map_err(|source| OpenError::of_device(name, self.queues, source))?;
        let disabled = Disabled::default();
        Ok(Tun { file, name: name.clone(), created, vnet, offload, disabled, calls: calls.clone() })
    }

    fn file(&self, name: &str) -> Result<File, OpenError> {
        // The path is checked, because opening another device may have side effects. Opening it reports a missing node.
        if let Some(found) = self.node.metadata().ok().as_ref().and_then(other_than_node) {
            return Err(OpenError::NotTunNode { node: self.node.to_string_lossy().into_owned(), found });
        }
        self.calls.open(self.node).map_err(|source| OpenError::of_node(self.node, name, source))
    }
}

/// Returns the flags of the packet format. `IFF_MULTI_QUEUE` is set only for several queues: it lets any process attach
/// one more and get some of the packets.
fn form(vnet: bool, queues: usize) -> u16 {
    let header = if vnet { flags::VNET_HDR } else { 0 };
    let many = if queues > 1 { flags::MULTI_QUEUE } else { 0 };
    flags::TUN | flags::NO_PI | header | many
}

/// Describes a file that is not the TUN device node, whose numbers are the same in every kernel (`TUN_MINOR` in
/// linux/miscdevice.h). Returns `None` for that node.
pub(crate) fn other_than_node(file: &Metadata) -> Option<String> {
    let (kind, device) = (file.file_type(), file.rdev());
    let numbers = |kind: &str| format!("the {kind} device {}:{}", libc::major(device), libc::minor(device));
    if kind.is_char_device() {
        (device != libc::makedev(10, 200)).then(|| numbers("character"))
    } else if kind.is_block_device() {
        Some(numbers("block"))
    } else {
        Some(if kind.is_dir() { "a directory" } else { "a file" }.to_owned())
    }
}

/// Returns the name in the kernel's form if `dev_valid_name` and `dev_alloc_name` in its net/core/dev.c accept it.
pub(crate) fn checked_name(name: &str) -> Result<[u8; INTERFACE_NAME], OpenError> {
    let bad = |problem| Err(OpenError::BadName { name: name.to_owned(), problem });
    let mut field = [0; INTERFACE_NAME];
    match field.split_last_mut().and_then(|(_end, room)| room.get_mut(..name.len())) {
        None => return bad("it is longer than 15 bytes"),
        Some([]) => return bad("it is empty"),
        Some(room) => room.copy_from_slice(name.as_bytes()),
    }
    // 0xa0: the kernel reads names as Latin-1, where this is a space.
    let unfit = |byte: u8| matches!(byte, 0 | b'\t'..=b'\r' | b' ' | b'/' | b':' | 0xa0);
    if name.bytes().any(unfit) {
        return bad("it contains a slash, a colon, white space or NUL");
    }
    if name == "." || name == ".." {
        return bad("it is a directory's");
    }
    if name.replacen("%d", "", 1).contains('%') {
        return bad("it contains a % besides one %d");
    }
    Ok(field)
}

pub(super) fn name_of(request: &InterfaceRequest) -> String {
    let name = request.name.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}
