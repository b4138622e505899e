//! The link monitor.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::RouteHeader;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use socket2::SockRef;

use super::error::{LinkError, MalformedReply};
use super::message::{AddressEntry, LinkState, Message, Messages, RouteEntry, link_header};
use super::netlink::{Netlink, receive};
use super::{filter, requests};
use crate::host::Mtu;

/// Largest number of datagrams that one call receives.
const DATAGRAMS_PER_CALL: usize = 256;
/// Size of the receive buffer in bytes. A link message has about 1.5 KiB, and grows with new kernels. A larger message
/// counts as lost.
const RECEIVE_BUFFER: usize = 16 * 1024;

/// A change of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LinkEvent {
    /// This address was removed. After the last address the kernel removes the routes too, without an announcement.
    /// [`Link::restore`] adds both again.
    ///
    /// [`Link::restore`]: super::Link::restore
    AddressRemoved(IpAddr),
    /// The device was deleted or moved to another network namespace. This is the last event.
    Deleted,
    /// The link was set down. The kernel has removed its routes and its IPv6 addresses. Reads from the TUN device return `EAGAIN`, writes
    /// `EIO`.
    Down,
    /// The MTU changed. One above 65,535 bytes, as that of a loopback interface, counts as 65,535, and one below 68 as 68.
    MtuChanged(Mtu),
    /// A process removed a route of the main table through the link, or a local route that the kernel did not add. The
    /// kernel does not announce IPv4 routes that it removes because the link goes down or loses its last address. It does
    /// announce the connected route of a removed address ([`AddressForm::Network`]).
    ///
    /// [`AddressForm::Network`]: super::AddressForm::Network
    RouteRemoved(IpNet),
    /// The link was set up. [`Link::restore`] adds the overlay route again. After a loss of messages this is reported
    /// again for a link that is up, because it may have been down meanwhile.
    ///
    /// [`Link::restore`]: super::Link::restore
    Up,
}

/// A monitor of one link. Poll its descriptor for reading, level-triggered, then call [`LinkMonitor::next_event`] until
/// it returns `None`.
///
/// Open it before [`Link::configure`](super::Link::configure), so that no change is missed. It then also reports the
/// changes of `configure` and [`Link::remove`](super::Link::remove). A socket filter passes the messages of this link
/// only, so other links and routes cause no wake-ups.
#[derive(Debug)]
pub struct LinkMonitor {
    socket: Socket,
    /// Reads the state of the link in the same namespace after a loss of messages.
    kernel: Netlink,
    index: u32,
    /// The state after the last event, or `None` once the device is gone.
    state: Option<State>,
    /// Messages were lost, so those still queued are outdated. They are discarded before the state is read.
    lost: bool,
    pending: VecDeque<LinkEvent>,
    buffer: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    up: bool,
    mtu: Mtu,
}

impl From<&LinkState> for State {
    fn from(state: &LinkState) -> Self {
        let mtu = Mtu::new(state.mtu.max(Mtu::MIN.into())).unwrap_or(Mtu::MAX);
        Self { up: state.up, mtu }
    }
}

impl AsFd for LinkMonitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl LinkMonitor {
    /// Opens a monitor of the device `interface`. Needs no privilege.
    ///
    /// # Errors
    /// [`LinkError::NoSuchInterface`], [`LinkError::Socket`].
    pub fn open(interface: &str) -> Result<Self, LinkError> {
        let mut kernel = Netlink::open()?;
        let index = requests::link_named(&mut kernel, interface)?.index;
        let socket =
            subscribe(index).map_err(|source| LinkError::Socket { operation: "watch an interface", source })?;
        // Read after the subscription, so later changes are announced.
        let state = requests::link_at(&mut kernel, index)?;
        Ok(Self {
            socket,
            kernel,
            index,
            state: Some(State::from(&state)),
            lost: false,
            pending: VecDeque::new(),
            buffer: Vec::with_capacity(RECEIVE_BUFFER),
        })
    }

    /// Returns the index of the link.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Returns the next event, or `None` if there is none now. Never blocks on the socket and receives at most 256
    /// datagrams. If that limit ends a call, the descriptor is still readable.
    ///
    /// # Errors
    /// [`LinkError::Socket`] if the socket fails. A loss of messages is not an error: the state of the link is read
    /// again.
    pub fn next_event(&mut self) -> Result<Option<LinkEvent>, LinkError> {
        for _ in 0..DATAGRAMS_PER_CALL {
            if let Some(event) = self.pending.pop_front() {
                return Ok(Some(event));
            }
            match receive(&self.socket, &mut self.buffer) {
                Ok((length, sender)) => self.handle_datagram(length, sender),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => self.lost = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && self.lost => self.resynchronize()?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(source) => return Err(LinkError::Socket { operation: "watch an interface", source }),
            }
        }
        Ok(self.pending.pop_front())
    }

    fn handle_datagram(&mut self, length: usize, sender: SocketAddr) {
        if sender.port_number() != 0 || self.state.is_none() || self.lost {
            return;
        }
        let buffer = core::mem::take(&mut self.buffer);
        let is_processed = length <= buffer.len() && self.process(&buffer).is_ok();
        self.buffer = buffer;
        // A malformed message may have announced a change.
        self.lost = !is_processed;
    }

    fn process(&mut self, datagram: &[u8]) -> Result<(), MalformedReply> {
        for message in Messages::new(datagram) {
            let event = self.read(&message?)?;
            self.pending.extend(event);
        }
        Ok(())
    }

    /// Parses a message. The conditions of the filter are checked again, for messages from before the filter was
    /// attached and for systems without such filters.
    fn read(&mut self, message: &Message<'_>) -> Result<Option<LinkEvent>, MalformedReply> {
        match message.kind {
            libc::RTM_NEWLINK if self.is_ours(message)? => {
                let state = LinkState::parse(message.body)?;
                self.update(State::from(&state));
                Ok(None)
            }
            libc::RTM_DELLINK if self.is_ours(message)? => {
                self.state = None;
                Ok(Some(LinkEvent::Deleted))
            }
            libc::RTM_DELADDR => {
                let held = AddressEntry::parse(message.body)?;
                Ok((held.index == self.index).then_some(LinkEvent::AddressRemoved(held.address)))
            }
            libc::RTM_DELROUTE => {
                let route = RouteEntry::parse(message.body)?;
                // The kernel removes its local routes together with their addresses.
                let is_local = route.table == u32::from(libc::RT_TABLE_LOCAL) && !route.connected;
                let is_main = route.table == u32::from(RouteHeader::RT_TABLE_MAIN);
                if route.interface != Some(self.index) || !(is_main || is_local) {
                    return Ok(None);
                }
                let unspecified: IpAddr =
                    if route.is_ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
                let destination = route.destination.unwrap_or(unspecified);
                Ok(IpNet::new(destination, route.prefix_len).ok().map(LinkEvent::RouteRemoved))
            }
            _ => Ok(None),
        }
    }

    fn is_ours(&self, message: &Message<'_>) -> Result<bool, MalformedReply> {
        let header = link_header(message.body)?;
        Ok(header.index == self.index && header.interface_family == AddressFamily::Unspec)
    }

    fn update(&mut self, now: State) {
        let Some(before) = self.state.replace(now) else { return };
        if before.mtu != now.mtu {
            self.pending.push_back(LinkEvent::MtuChanged(now.mtu));
        }
        if before.up != now.up {
            self.pending.push_back(if now.up { LinkEvent::Up } else { LinkEvent::Down });
        }
    }

    /// Reads the state of the link. The queue is empty, so later messages are newer than the loss.
    fn resynchronize(&mut self) -> Result<(), LinkError> {
        let Some(before) = self.state else {
            self.lost = false;
            return Ok(());
        };
        match requests::link_at(&mut self.kernel, self.index) {
            Ok(state) => {
                self.update(State::from(&state));
                if before.up && state.up {
                    self.pending.push_back(LinkEvent::Up);
                }
            }
            Err(LinkError::NoSuchInterface { .. }) => {
                self.state = None;
                self.pending.push_back(LinkEvent::Deleted);
            }
            Err(error) => return Err(error),
        }
        self.lost = false;
        Ok(())
    }
}

fn subscribe(index: u32) -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    socket.set_non_blocking(true)?;
    // The filter is optional, because every message is checked again.
    let _ = SockRef::from(&socket).attach_filter(&filter::only(index));
    socket.add_membership(libc::RTNLGRP_LINK)?;
    socket.add_membership(libc::RTNLGRP_IPV4_IFADDR)?;
    socket.add_membership(libc::RTNLGRP_IPV4_ROUTE)?;
    socket.add_membership(libc::RTNLGRP_IPV6_IFADDR)?;
    socket.add_membership(libc::RTNLGRP_IPV6_ROUTE)?;
    Ok(socket)
}
