//! Links: veth pairs between namespaces, and the settings of any link.

use crate::Namespace;
use crate::error::Context;
use crate::netlink::Netlink;
use core::time::Duration;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State,
};
use nix::errno::Errno;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::thread;
use std::time::Instant;

/// The time limit until both ends of a veth pair carry packets.
const CARRIER_PATIENCE: Duration = Duration::from_secs(5);

impl Namespace {
    /// Creates a veth pair, `name` here and `peer_name` in `peer`, and returns when both ends carry packets.
    ///
    /// # Errors
    /// `AlreadyExists` if either name is in use; `TimedOut` if the pair does not carry packets; otherwise the
    /// kernel's error.
    pub fn connect(&self, name: &str, peer: &Self, peer_name: &str) -> io::Result<()> {
        let mut far_end = named(peer_name);
        far_end.attributes.push(LinkAttribute::NetNsFd(peer.as_fd().as_raw_fd()));
        let pair = new_link(name, InfoKind::Veth, Some(InfoData::Veth(InfoVeth::Peer(far_end))));
        self.netlink(|kernel| kernel.add(RouteNetlinkMessage::NewLink(pair)))
            .context(|| format!("cannot make the veth pair {name} and {peer_name}"))?;
        // The ends are set up after the creation: drivers/net/veth.c opens an end only once it knows its peer.
        self.set_up(name)?;
        peer.set_up(peer_name)?;
        self.wait_for_carrier(name)?;
        peer.wait_for_carrier(peer_name)
    }

    /// Sets a link up.
    ///
    /// # Errors
    /// The kernel's error, for example for an unknown link.
    pub fn set_up(&self, link: &str) -> io::Result<()> {
        self.change(up(named(link))).context(|| format!("cannot bring {link} up"))
    }

    /// Sets a link down. The kernel drops the routes through it.
    ///
    /// # Errors
    /// The kernel's error, for example for an unknown link.
    pub fn set_down(&self, link: &str) -> io::Result<()> {
        let mut down = named(link);
        down.header.change_mask = LinkFlags::Up;
        self.change(down).context(|| format!("cannot take {link} down"))
    }

    /// Sets the MTU of a link, in bytes.
    ///
    /// # Errors
    /// `InvalidInput` if the device does not support the size; otherwise the kernel's error.
    pub fn set_mtu(&self, link: &str, mtu: u32) -> io::Result<()> {
        self.set(link, LinkAttribute::Mtu(mtu)).context(|| format!("cannot set the MTU of {link} to {mtu}"))
    }

    /// Sets the queue length of a link in packets. For a TUN device it limits the unread packets.
    ///
    /// # Errors
    /// The kernel's error, for example for an unknown link.
    pub fn set_queue_len(&self, link: &str, packets: u32) -> io::Result<()> {
        self.set(link, LinkAttribute::TxQueueLen(packets))
            .context(|| format!("cannot set the queue of {link} to {packets} packets"))
    }

    /// Sets the largest GSO packet that the kernel makes for a link, in bytes.
    ///
    /// # Errors
    /// `InvalidInput` if the device does not support the size; otherwise the kernel's error.
    pub fn set_gso_max_size(&self, link: &str, bytes: u32) -> io::Result<()> {
        self.set(link, LinkAttribute::GsoMaxSize(bytes))
            .context(|| format!("cannot set the longest GSO packet of {link} to {bytes} bytes"))
    }

    /// Deletes a link, and the other end of a veth pair with it.
    ///
    /// # Errors
    /// The kernel's error, for example for an unknown link.
    pub fn delete_link(&self, link: &str) -> io::Result<()> {
        self.netlink(|kernel| {
            let mut message = LinkMessage::default();
            message.header.index = index_of(kernel, link)?;
            kernel.change(RouteNetlinkMessage::DelLink(message))
        })
        .context(|| format!("cannot delete {link}"))
    }

    /// Returns the MTU of a link in bytes, or `None` if there is no such link.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn link_mtu(&self, link: &str) -> io::Result<Option<u32>> {
        let message = self.find_link(link)?;
        Ok(message.and_then(|message| {
            let mut attributes = message.attributes.into_iter();
            attributes.find_map(|attribute| if let LinkAttribute::Mtu(mtu) = attribute { Some(mtu) } else { None })
        }))
    }

    /// Returns the names of all links, in the order of their indices.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn links(&self) -> io::Result<Vec<String>> {
        let links = self.netlink(all_links).context(|| "cannot list the links".into())?;
        Ok(links.into_iter().map(|(_, name)| name).collect())
    }

    fn set(&self, link: &str, attribute: LinkAttribute) -> io::Result<()> {
        let mut message = named(link);
        message.attributes.push(attribute);
        self.change(message)
    }

    fn change(&self, link: LinkMessage) -> io::Result<()> {
        self.netlink(|kernel| kernel.change(RouteNetlinkMessage::NewLink(link)))
    }

    fn find_link(&self, link: &str) -> io::Result<Option<LinkMessage>> {
        self.netlink(|kernel| match link_named(kernel, link) {
            Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => Ok(None),
            found => found,
        })
        .context(|| format!("cannot look {link} up"))
    }

    /// Waits until a link carries packets. A link that was just set up drops packets until the kernel's link watcher
    /// has seen its carrier (net/core/link_watch.c).
    fn wait_for_carrier(&self, link: &str) -> io::Result<()> {
        let start = Instant::now();
        while start.elapsed() < CARRIER_PATIENCE {
            let message = self.find_link(link)?;
            if message.is_some_and(|message| message.attributes.contains(&LinkAttribute::OperState(State::Up))) {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(1));
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("{link} has no carrier after {CARRIER_PATIENCE:?}")))
    }
}

/// Returns a message about the link of this name.
pub(crate) fn named(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

/// Returns a message that creates a link.
pub(crate) fn new_link(name: &str, kind: InfoKind, data: Option<InfoData>) -> LinkMessage {
    let mut message = named(name);
    let info = [LinkInfo::Kind(kind)].into_iter().chain(data.map(LinkInfo::Data));
    message.attributes.push(LinkAttribute::LinkInfo(info.collect()));
    message
}

/// Adds to a message that the link is set up.
pub(crate) fn up(mut message: LinkMessage) -> LinkMessage {
    message.header.flags |= LinkFlags::Up;
    message.header.change_mask |= LinkFlags::Up;
    message
}

fn link_named(kernel: &mut Netlink, link: &str) -> io::Result<Option<LinkMessage>> {
    let answer = kernel.get(RouteNetlinkMessage::GetLink(named(link)))?;
    Ok(answer.and_then(|answer| if let RouteNetlinkMessage::NewLink(message) = answer { Some(message) } else { None }))
}

/// Returns the interface index of a link.
pub(crate) fn index_of(kernel: &mut Netlink, link: &str) -> io::Result<u32> {
    let missing = || io::Error::new(io::ErrorKind::NotFound, format!("no link {link}"));
    Ok(link_named(kernel, link)?.ok_or_else(missing)?.header.index)
}

/// Returns index and name of every link.
pub(crate) fn all_links(kernel: &mut Netlink) -> io::Result<Vec<(u32, String)>> {
    let mut links = Vec::new();
    for message in kernel.list(RouteNetlinkMessage::GetLink(LinkMessage::default()))? {
        let RouteNetlinkMessage::NewLink(message) = message else { continue };
        let index = message.header.index;
        links.extend(message.attributes.into_iter().find_map(|attribute| {
            if let LinkAttribute::IfName(name) = attribute { Some((index, name)) } else { None }
        }));
    }
    links.sort_unstable();
    Ok(links)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Namespace, Namespace) {
        let (here, there) = (Namespace::new().expect("namespace"), Namespace::new().expect("namespace"));
        here.connect("left", &there, "right").expect("veth");
        (here, there)
    }

    #[test]
    fn a_veth_pair_has_one_end_in_each_namespace() {
        let (here, there) = pair();
        assert_eq!(here.links().expect("links"), ["lo", "left"]);
        assert_eq!(there.links().expect("links"), ["lo", "right"]);
        assert_eq!(here.connect("left", &there, "other").expect_err("taken").kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(there.links().expect("links"), ["lo", "right"]);
    }

    #[test]
    fn mtu_is_what_was_set_and_none_without_a_link() {
        let (here, there) = pair();
        here.set_mtu("left", 1400).expect("MTU");
        assert_eq!(here.link_mtu("left").expect("MTU"), Some(1400));
        assert_eq!(there.link_mtu("right").expect("MTU"), Some(1500));
        assert_eq!(there.link_mtu("left").expect("MTU"), None);
        assert_eq!(here.set_mtu("left", 1).expect_err("too small").kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn deleting_one_end_deletes_both() {
        let (here, there) = pair();
        there.delete_link("right").expect("delete");
        assert_eq!(here.links().expect("links"), ["lo"]);
        let error = here.delete_link("left").expect_err("gone already").to_string();
        assert!(error.starts_with("cannot delete left: "), "{error}");
    }
}
