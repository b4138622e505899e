//! System calls without a safe function in std or in a dependency. This module has the only `unsafe` code of the crate.
#![expect(
    unsafe_code,
    reason = "this module isolates unsafe code: one system call per unsafe block, behind a safe function"
)]

mod address;
mod control;
mod message;
#[cfg(feature = "preflight")]
mod namespace;
mod socket;
mod tun;

use core::ffi::c_int;
use std::io;

pub(super) use self::message::{MESSAGES, Message, SendParts, Slot, receive_messages, segment_and_ecn, send_messages};
#[cfg(feature = "preflight")]
pub(crate) use self::namespace::owning_user_namespace;
pub(super) use self::socket::{
    SendBacklog, SocketOption, SpecialSocket, bind, path_mtu, raw_option, send_backlog, set_raw_option,
    set_socket_option, socket, socket_option, special_socket,
};
pub(super) use self::tun::{
    INTERFACE_NAME, InterfaceRequest, interface, set_interface, set_offload, set_persist, set_vnet_big_endian,
    set_vnet_header_len, set_vnet_little_endian,
};

fn checked(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
