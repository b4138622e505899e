//! Watching one link.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use ipnet::Ipv4Net;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::RouteHeader;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use socket2::SockRef;

use super::error::{LinkError, MalformedReply};
use super::message::{HeldAddress, LinkState, Message, Messages, RouteEntry, link_header};
use super::netlink::{Netlink, receive};
use super::{filter, requests};

/// Datagrams looked at in one call, at most.
const DATAGRAMS_PER_CALL: usize = 256;
/// A link message has about 1.5 KiB, and more with every kernel; one that does not fit is replaced by asking.
const RECEIVE_BUFFER: usize = 16 * 1024;

/// What happened to the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LinkEvent {
    /// It lost this address. If that was its last one, the kernel has dropped its routes without a word:
    /// [`Link::restore`].
    ///
    /// [`Link::restore`]: super::Link::restore
    AddressRemoved(Ipv4Addr),
    /// The device is gone, or has moved to another network namespace. Nothing follows.
    Deleted,
    /// It was set down. The kernel has dropped its routes; reads from the TUN device give `EAGAIN`, writes `EIO`.
    Down,
    /// The MTU is now this many bytes.
    MtuChanged(u32),
    /// A route of the main table through the link, or a local one that the kernel did not make, was removed by someone. Routes that vanish because the link goes down
    /// or loses its last address are not announced, except that the kernel announces its own ([`AddressForm::Network`])
    /// when their address is removed.
    ///
    /// [`AddressForm::Network`]: super::AddressForm::Network
    RouteRemoved(Ipv4Net),
    /// It was set up: [`Link::restore`] puts the overlay route back. After a loss of messages this is reported again
    /// for a link that is up, because it may have been down in between.
    ///
    /// [`Link::restore`]: super::Link::restore
    Up,
}

/// Watches one link. Poll its descriptor for reading, level-triggered; then call [`LinkMonitor::next_event`] until it
/// has none.
///
/// Open it before [`Link::configure`](super::Link::configure), so that nothing is missed; it then also reports what
/// `configure` and [`Link::remove`](super::Link::remove) do. The kernel filters for this one link, so that other links
/// and routes cause no wake-ups.
#[derive(Debug)]
pub struct LinkMonitor {
    socket: Socket,
    /// To ask for the state in the same namespace when messages were lost.
    kernel: Netlink,
    index: u32,
    /// As of the last event; `None` once the device is gone.
    known: Option<Known>,
    /// Messages were lost: those still queued are outdated. They are thrown away, then the kernel is asked.
    lost: bool,
    pending: VecDeque<LinkEvent>,
    buffer: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    up: bool,
    mtu: u32,
}

impl From<&LinkState> for Known {
    fn from(state: &LinkState) -> Self {
        Self { up: state.up, mtu: state.mtu }
    }
}

impl AsFd for LinkMonitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl LinkMonitor {
    /// Begins to watch the device `interface`. Needs no privilege.
    ///
    /// # Errors
    /// [`LinkError::NoSuchInterface`], [`LinkError::Socket`].
    pub fn open(interface: &str) -> Result<Self, LinkError> {
        let mut kernel = Netlink::open()?;
        let index = requests::link_named(&mut kernel, interface)?.index;
        let socket = subscribe(index).map_err(|source| LinkError::Socket { doing: "watch an interface", source })?;
        // Asked only now: from here on, whatever changes is announced.
        let state = requests::link_at(&mut kernel, index)?;
        Ok(Self {
            socket,
            kernel,
            index,
            known: Some(Known::from(&state)),
            lost: false,
            pending: VecDeque::new(),
            buffer: Vec::with_capacity(RECEIVE_BUFFER),
        })
    }

    /// The index of the link that is watched.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The next event, or `None` when there is none now. Never blocks on the socket and looks at no more than 256
    /// messages; if that ends a call early, the descriptor is still readable.
    ///
    /// # Errors
    /// [`LinkError::Socket`] if the socket fails. A loss of messages is not an error: the kernel is asked what the link
    /// is now.
    pub fn next_event(&mut self) -> Result<Option<LinkEvent>, LinkError> {
        for _ in 0..DATAGRAMS_PER_CALL {
            if let Some(event) = self.pending.pop_front() {
                return Ok(Some(event));
            }
            match receive(&self.socket, &mut self.buffer) {
                Ok((length, sender)) => self.accept(length, sender),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => self.lost = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && self.lost => self.resynchronise()?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(source) => return Err(LinkError::Socket { doing: "watch an interface", source }),
            }
        }
        Ok(self.pending.pop_front())
    }

    fn accept(&mut self, length: usize, sender: SocketAddr) {
        if sender.port_number() != 0 || self.known.is_none() || self.lost {
            return;
        }
        let buffer = core::mem::take(&mut self.buffer);
        let understood = length <= buffer.len() && self.digest(&buffer).is_ok();
        self.buffer = buffer;
        // What cannot be read may have been important.
        self.lost = !understood;
    }

    fn digest(&mut self, datagram: &[u8]) -> Result<(), MalformedReply> {
        for message in Messages::new(datagram) {
            let event = self.read(&message?)?;
            self.pending.extend(event);
        }
        Ok(())
    }

    /// Checks again what the filter has checked: messages from before it was set, and systems that have no such
    /// filters.
    fn read(&mut self, message: &Message<'_>) -> Result<Option<LinkEvent>, MalformedReply> {
        match message.kind {
            libc::RTM_NEWLINK if self.is_ours(message)? => {
                let state = LinkState::parse(message.body)?;
                self.update(Known::from(&state));
                Ok(None)
            }
            libc::RTM_DELLINK if self.is_ours(message)? => {
                self.known = None;
                Ok(Some(LinkEvent::Deleted))
            }
            libc::RTM_DELADDR => {
                let held = HeldAddress::parse(message.body)?;
                Ok(match held.address {
                    IpAddr::V4(address) if held.index == self.index => Some(LinkEvent::AddressRemoved(address)),
                    IpAddr::V4(_) | IpAddr::V6(_) => None,
                })
            }
            libc::RTM_DELROUTE => {
                let route = RouteEntry::parse(message.body)?;
                // The kernel's own local routes go with their addresses.
                let is_local = route.table == u32::from(libc::RT_TABLE_LOCAL) && !route.connected;
                let is_main = route.table == u32::from(RouteHeader::RT_TABLE_MAIN);
                if route.interface != Some(self.index) || !(is_main || is_local) {
                    return Ok(None);
                }
                Ok(match route.destination.unwrap_or(Ipv4Addr::UNSPECIFIED.into()) {
                    IpAddr::V4(address) => Ipv4Net::new(address, route.prefix_len).ok().map(LinkEvent::RouteRemoved),
                    IpAddr::V6(_) => None,
                })
            }
            _ => Ok(None),
        }
    }

    fn is_ours(&self, message: &Message<'_>) -> Result<bool, MalformedReply> {
        let header = link_header(message.body)?;
        Ok(header.index == self.index && header.interface_family == AddressFamily::Unspec)
    }

    fn update(&mut self, now: Known) {
        let Some(before) = self.known.replace(now) else { return };
        if before.mtu != now.mtu {
            self.pending.push_back(LinkEvent::MtuChanged(now.mtu));
        }
        if before.up != now.up {
            self.pending.push_back(if now.up { LinkEvent::Up } else { LinkEvent::Down });
        }
    }

    /// Asks the kernel what the link is now. The queue is empty: what arrives from here on is newer than the loss.
    fn resynchronise(&mut self) -> Result<(), LinkError> {
        let Some(before) = self.known else {
            self.lost = false;
            return Ok(());
        };
        match requests::link_at(&mut self.kernel, self.index) {
            Ok(state) => {
                self.update(Known::from(&state));
                if before.up && state.up {
                    self.pending.push_back(LinkEvent::Up);
                }
            }
            Err(LinkError::NoSuchInterface { .. }) => {
                self.known = None;
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
    // Comfort, not correctness: every message is checked again.
    let _ = SockRef::from(&socket).attach_filter(&filter::only(index));
    socket.add_membership(libc::RTNLGRP_LINK)?;
    socket.add_membership(libc::RTNLGRP_IPV4_IFADDR)?;
    socket.add_membership(libc::RTNLGRP_IPV4_ROUTE)?;
    Ok(socket)
}
