//! Parsing of rtnetlink messages.
//!
//! Only the needed fields and attributes are parsed. A full decoder rejects a whole message for one attribute that a
//! newer kernel has extended, and the monitor would miss events.

use alloc::string::String;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NetlinkBuffer, NlasIterator};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressHeader;
use netlink_packet_route::link::{LinkFlags, LinkHeader};
use netlink_packet_route::route::{RouteFlags, RouteHeader, RouteProtocol, RouteType};

use super::error::MalformedReply;
use crate::host::Mtu;

/// Sizes of the fixed parts of messages: struct `ifinfomsg`, `ifaddrmsg` and `rtmsg` in linux/rtnetlink.h and
/// linux/if_addr.h.
pub(crate) mod fixed {
    pub(crate) const LINK: usize = 16;
    pub(crate) const ADDRESS: usize = 8;
    pub(crate) const ROUTE: usize = 12;
}

/// Attributes of a link: `IFLA_*` in linux/if_link.h.
mod ifla {
    pub(crate) const IFNAME: u16 = 3;
    pub(crate) const MTU: u16 = 4;
    pub(crate) const LINKINFO: u16 = 18;
    pub(crate) const STATS64: u16 = 23;
    pub(crate) const AF_SPEC: u16 = 26;
    pub(crate) const MIN_MTU: u16 = 50;
    pub(crate) const MAX_MTU: u16 = 51;
}

/// `RTAX_MTU` in linux/rtnetlink.h, inside of `RTA_METRICS`.
const RTAX_MTU: u16 = 2;
/// `IFLA_INET6_ADDR_GEN_MODE` in linux/if_link.h, inside of the attribute `AF_INET6` of `IFLA_AF_SPEC`.
const ADDRESS_MODE: u16 = 8;
/// `IFLA_INFO_KIND` in linux/if_link.h, inside of `IFLA_LINKINFO`.
const INFO_KIND: u16 = 1;

/// One netlink message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) body: &'a [u8],
}

/// An iterator over the messages of one datagram. It ends after the first error.
#[derive(Debug)]
pub(crate) struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    pub(crate) fn new(datagram: &'a [u8]) -> Self {
        Self { rest: datagram }
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, MalformedReply>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let bytes = core::mem::take(&mut self.rest);
        let Ok(buffer) = NetlinkBuffer::new_checked(bytes) else {
            let claimed = array(bytes, 0).map_or(0, u32::from_ne_bytes);
            return Some(Err(MalformedReply::Message { claimed, have: bytes.len() }));
        };
        // Messages are padded to 4 bytes (NLMSG_ALIGN). The padding of the last message is optional.
        let length = usize::try_from(buffer.length()).unwrap_or(usize::MAX);
        self.rest = length.checked_next_multiple_of(4).and_then(|next| bytes.get(next..)).unwrap_or_default();
        Some(Ok(Message {
            kind: buffer.message_type(),
            flags: buffer.flags(),
            sequence: buffer.sequence_number(),
            body: buffer.payload(),
        }))
    }
}

/// The content of a link message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LinkState {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) up: bool,
    pub(crate) mtu: u32,
    /// True for a loopback or dummy device, which has addresses but reaches no other host.
    pub(crate) is_stub: bool,
    /// The mode in which the kernel chooses a link-local address, or `None` for a link without IPv6.
    pub(crate) address_mode: Option<u8>,
    min_mtu: u32,
    max_mtu: u32,
}

impl LinkState {
    pub(crate) fn parse(body: &[u8]) -> Result<Self, MalformedReply> {
        let header = link_header(body)?;
        let attributes = attributes(body, fixed::LINK)?;
        Ok(Self {
            index: header.index,
            name: attribute_string(attributes, ifla::IFNAME)?.ok_or(MalformedReply::Missing { what: "IFLA_IFNAME" })?,
            up: header.flags.contains(LinkFlags::Up),
            mtu: attribute_u32(attributes, ifla::MTU)?.ok_or(MalformedReply::Missing { what: "IFLA_MTU" })?,
            is_stub: header.flags.contains(LinkFlags::Loopback) || link_kind(body)?.as_deref() == Some("dummy"),
            address_mode: address_mode(attributes)?,
            min_mtu: attribute_u32(attributes, ifla::MIN_MTU)?.unwrap_or(0),
            max_mtu: attribute_u32(attributes, ifla::MAX_MTU)?.unwrap_or(0),
        })
    }

    /// Returns the smallest and largest MTU of the device with IPv4. A reported 0 means no limit of the device.
    pub(crate) fn mtu_range(&self) -> (u32, u32) {
        let (least, most) = (Mtu::MIN.into(), Mtu::MAX.into());
        let max = if self.max_mtu == 0 { most } else { self.max_mtu.min(most) };
        (self.min_mtu.max(least), max)
    }
}

/// Counters of packets that the device dropped since its creation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LinkStats {
    /// Packets to the program that did not fit into the queue of the TUN device, or came while no program had it open.
    pub tx_dropped: u64,
    /// Packets of the program that the kernel dropped after the program wrote them to the TUN device.
    pub rx_dropped: u64,
}

impl LinkStats {
    pub(crate) fn parse(body: &[u8]) -> Result<Self, MalformedReply> {
        /// Offsets in struct `rtnl_link_stats64`.
        const RX_DROPPED: usize = 6 * 8;
        const TX_DROPPED: usize = 7 * 8;
        let stats = attribute(attributes(body, fixed::LINK)?, ifla::STATS64, |stats| {
            let at = |place| array(stats, place).map(u64::from_ne_bytes);
            Ok(Self { tx_dropped: at(TX_DROPPED)?, rx_dropped: at(RX_DROPPED)? })
        })?;
        stats.ok_or(MalformedReply::Missing { what: "IFLA_STATS64" })
    }
}

/// Parses the fixed part of a link message. A bridge announces its ports with the same indexes and the family
/// `AF_BRIDGE`.
pub(crate) fn link_header(body: &[u8]) -> Result<LinkHeader, MalformedReply> {
    LinkHeader::parse(body).map_err(|_| MalformedReply::Header { have: body.len(), needed: fixed::LINK })
}

/// Returns the kind of a link, as `ip -d link` prints it: "tun", "bridge", "vxlan". Hardware has none.
pub(crate) fn link_kind(body: &[u8]) -> Result<Option<String>, MalformedReply> {
    let kind = attribute(attributes(body, fixed::LINK)?, ifla::LINKINFO, |info| attribute_string(info, INFO_KIND))?;
    Ok(kind.flatten())
}

fn address_mode(link: &[u8]) -> Result<Option<u8>, MalformedReply> {
    let mode = attribute(link, ifla::AF_SPEC, |families| {
        attribute(families, libc::AF_INET6 as u16, |ipv6| {
            attribute(ipv6, ADDRESS_MODE, |mode| sized(mode, ADDRESS_MODE).map(|[mode]| mode))
        })
    })?;
    Ok(mode.flatten().flatten())
}

/// The content of an address message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AddressEntry {
    pub(crate) index: u32,
    pub(crate) address: IpAddr,
    pub(crate) prefix_len: u8,
}

impl AddressEntry {
    pub(crate) fn parse(body: &[u8]) -> Result<Self, MalformedReply> {
        let header = AddressHeader::parse(body)
            .map_err(|_| MalformedReply::Header { have: body.len(), needed: fixed::ADDRESS })?;
        let attributes = attributes(body, fixed::ADDRESS)?;
        // On a point-to-point link IFA_ADDRESS is the address of the other end. IPv6 often has no IFA_LOCAL.
        let address = match attribute_address(attributes, libc::IFA_LOCAL, header.family)? {
            Some(local) => Some(local),
            None => attribute_address(attributes, libc::IFA_ADDRESS, header.family)?,
        };
        let address = address.ok_or(MalformedReply::Missing { what: "IFA_LOCAL and IFA_ADDRESS" })?;
        Ok(Self { index: header.index, address, prefix_len: header.prefix_len })
    }
}

/// The content of a route message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RouteEntry {
    /// The destination, or `None` for the default route and for families other than IP.
    pub(crate) destination: Option<IpAddr>,
    pub(crate) prefix_len: u8,
    pub(crate) table: u32,
    pub(crate) tos: u8,
    pub(crate) priority: u32,
    /// The interface, or `None` for routes without an interface or with several.
    pub(crate) interface: Option<u32>,
    pub(crate) gateway: Option<IpAddr>,
    /// The configured MTU, or `None` if the MTU of the interface applies. A learned MTU does not count.
    pub(crate) mtu: Option<u32>,
    pub(crate) kind: RouteType,
    /// The kernel added the route by itself, as it does for the networks of its addresses.
    pub(crate) connected: bool,
    /// The message is a cached exception of a route for one destination.
    pub(crate) cloned: bool,
    pub(crate) is_ipv6: bool,
}

impl RouteEntry {
    pub(crate) fn parse(body: &[u8]) -> Result<Self, MalformedReply> {
        let header =
            RouteHeader::parse(body).map_err(|_| MalformedReply::Header { have: body.len(), needed: fixed::ROUTE })?;
        let attributes = attributes(body, fixed::ROUTE)?;
        Ok(Self {
            destination: attribute_address(attributes, libc::RTA_DST, header.address_family)?,
            prefix_len: header.destination_prefix_length,
            table: attribute_u32(attributes, libc::RTA_TABLE)?.unwrap_or_else(|| header.table.into()),
            tos: header.tos,
            priority: attribute_u32(attributes, libc::RTA_PRIORITY)?.unwrap_or(0),
            interface: attribute_u32(attributes, libc::RTA_OIF)?,
            gateway: attribute_address(attributes, libc::RTA_GATEWAY, header.address_family)?,
            mtu: configured_mtu(attributes)?,
            kind: header.kind,
            connected: header.protocol == RouteProtocol::Kernel,
            cloned: header.flags.contains(RouteFlags::Cloned),
            is_ipv6: header.address_family == AddressFamily::Inet6,
        })
    }
}

/// Returns `RTAX_MTU` if it does not expire. An MTU that the kernel has learned expires.
fn configured_mtu(attributes: &[u8]) -> Result<Option<u32>, MalformedReply> {
    /// Offset of `rta_expires` in struct `rta_cacheinfo`.
    const EXPIRES: usize = 8;
    let expires = attribute(attributes, libc::RTA_CACHEINFO, |info| array(info, EXPIRES).map(u32::from_ne_bytes))?;
    if expires.unwrap_or(0) != 0 {
        return Ok(None);
    }
    Ok(attribute(attributes, libc::RTA_METRICS, |metrics| attribute_u32(metrics, RTAX_MTU))?.flatten())
}

/// Returns `N` bytes of `bytes` at the offset `at`.
pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], MalformedReply> {
    let cut = MalformedReply::Header { have: bytes.len(), needed: at.saturating_add(N) };
    bytes.get(at..).and_then(|tail| tail.first_chunk()).copied().ok_or(cut)
}

/// Returns the text of an attribute, up to the first NUL.
pub(crate) fn attribute_string(attributes: &[u8], kind: u16) -> Result<Option<String>, MalformedReply> {
    attribute(attributes, kind, |value| {
        let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(text).into_owned())
    })
}

/// Returns the attributes behind the fixed part of a message.
pub(crate) fn attributes(body: &[u8], header: usize) -> Result<&[u8], MalformedReply> {
    body.get(header..).ok_or(MalformedReply::Header { have: body.len(), needed: header })
}

fn attribute_u32(attributes: &[u8], kind: u16) -> Result<Option<u32>, MalformedReply> {
    attribute(attributes, kind, |value| sized(value, kind).map(u32::from_ne_bytes))
}

fn attribute_address(attributes: &[u8], kind: u16, family: AddressFamily) -> Result<Option<IpAddr>, MalformedReply> {
    if family == AddressFamily::Inet {
        attribute(attributes, kind, |value| sized::<4>(value, kind).map(|octets| Ipv4Addr::from(octets).into()))
    } else if family == AddressFamily::Inet6 {
        attribute(attributes, kind, |value| sized::<16>(value, kind).map(|octets| Ipv6Addr::from(octets).into()))
    } else {
        Ok(None)
    }
}

/// Returns a value of exactly `N` bytes.
pub(crate) fn sized<const N: usize>(value: &[u8], attribute: u16) -> Result<[u8; N], MalformedReply> {
    value.try_into().map_err(|_| MalformedReply::AttributeSize { attribute, have: value.len(), needed: N })
}

/// Finds the first attribute `kind` and parses its value.
pub(crate) fn attribute<T>(
    attributes: &[u8],
    kind: u16,
    read: impl FnOnce(&[u8]) -> Result<T, MalformedReply>,
) -> Result<Option<T>, MalformedReply> {
    for found in NlasIterator::new(attributes) {
        let found = found.map_err(|_| MalformedReply::AttributeOverrun { have: attributes.len() })?;
        if found.kind() == kind {
            return read(found.value()).map(Some);
        }
    }
    Ok(None)
}

/// Returns an attribute as the kernel writes it.
#[cfg(test)]
pub(crate) fn nla(kind: u16, value: &[u8]) -> alloc::vec::Vec<u8> {
    let mut attribute = u16::try_from(4 + value.len()).unwrap_or(u16::MAX).to_ne_bytes().to_vec();
    attribute.extend(kind.to_ne_bytes());
    attribute.extend(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test may fail by panicking")]
mod unit {
    use alloc::vec::Vec;

    use super::*;

    /// Returns a message with a valid netlink header.
    fn framed(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut message = u32::try_from(16 + body.len()).expect("small").to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend([0; 10]);
        message.extend(body);
        message.resize(message.len().next_multiple_of(4), 0);
        message
    }

    fn link_body() -> Vec<u8> {
        let mut body = [0; 4].to_vec();
        body.extend(7_u32.to_ne_bytes());
        body.extend(u32::try_from(libc::IFF_UP).expect("small").to_ne_bytes());
        body.extend([0; 4]);
        body.extend(nla(ifla::IFNAME, b"loden0\0"));
        // An unknown attribute with an unusual length.
        body.extend(nla(999, &[1, 2, 3]));
        body.extend(nla(ifla::MTU, &1472_u32.to_ne_bytes()));
        body
    }

    fn link_state() -> LinkState {
        let name = "loden0".into();
        LinkState { index: 7, name, up: true, mtu: 1472, is_stub: false, address_mode: None, min_mtu: 0, max_mtu: 0 }
    }

    #[test]
    fn unknown_attributes_of_a_link_message_are_skipped() {
        assert_eq!(LinkState::parse(&link_body()), Ok(link_state()));
    }

    #[test]
    fn a_link_message_cut_anywhere_is_an_error_and_never_another_link() {
        let whole = link_body();
        for length in 0..whole.len() {
            let cut = LinkState::parse(whole.get(..length).expect("in range"));
            assert!(cut.is_err(), "{length} of {} bytes: {cut:?}", whole.len());
        }
    }

    #[test]
    fn a_flipped_bit_changes_its_own_field_or_is_an_error() {
        let whole = link_body();
        for bit in 4 * 8..whole.len() * 8 {
            let mut flipped = whole.clone();
            let byte = flipped.get_mut(bit / 8).expect("in range");
            *byte ^= 1 << (bit % 8);
            if let Ok(state) = LinkState::parse(&flipped) {
                assert!(state.index == 7 || (4..8).contains(&(bit / 8)), "bit {bit} became link {}", state.index);
            }
        }
    }

    #[test]
    fn an_attribute_of_the_wrong_size_is_named() {
        let mut body = [0; fixed::LINK].to_vec();
        body.extend(nla(ifla::IFNAME, b"x\0"));
        body.extend(nla(ifla::MTU, &[1, 2]));
        let expected = MalformedReply::AttributeSize { attribute: ifla::MTU, have: 2, needed: 4 };
        assert_eq!(LinkState::parse(&body), Err(expected));
    }

    #[test]
    fn attributes_with_a_wrong_length_are_an_error() {
        for claimed in [0_u16, 3, 9, u16::MAX] {
            let mut body = [0; fixed::ROUTE].to_vec();
            body.extend(claimed.to_ne_bytes());
            body.extend([1, 0, 0, 0, 0, 0]);
            assert_eq!(RouteEntry::parse(&body), Err(MalformedReply::AttributeOverrun { have: 8 }), "{claimed}");
        }
    }

    #[test]
    fn the_messages_of_a_datagram_come_one_by_one_until_the_first_bad_one() {
        let mut datagram = framed(16, &link_body());
        datagram.extend(framed(20, &[1, 2, 3]));
        let kinds = |bytes: &[u8]| Messages::new(bytes).map(|m| m.map(|m| m.kind).ok()).collect::<Vec<_>>();
        assert_eq!(kinds(&datagram), [Some(16), Some(20)]);
        datagram.extend([5, 0, 0]);
        assert_eq!(kinds(&datagram), [Some(16), Some(20), None]);
        for claimed in [0_u32, 15, 1 << 20, u32::MAX] {
            let mut bad = framed(16, &[]);
            bad.splice(..4, claimed.to_ne_bytes());
            assert_eq!(Messages::new(&bad).next(), Some(Err(MalformedReply::Message { claimed, have: 16 })));
        }
        assert_eq!(kinds(&[]), []);
    }

    #[test]
    fn the_kind_of_a_link_is_inside_an_attribute() {
        let mut body = link_body();
        assert_eq!(link_kind(&body), Ok(None));
        // Some kernels set NLA_F_NESTED.
        body.extend(nla(ifla::LINKINFO | 0x8000, &[nla(2, &[0; 6]), nla(INFO_KIND, b"bridge\0")].concat()));
        assert_eq!(link_kind(&body), Ok(Some("bridge".into())));
        let stub = [link_body(), nla(ifla::LINKINFO, &nla(INFO_KIND, b"dummy\0"))].concat();
        let is_stub = |body: &[u8]| LinkState::parse(body).map(|state| state.is_stub);
        assert_eq!((is_stub(&body), is_stub(&stub)), (Ok(false), Ok(true)));
        for length in link_body().len() + 1..body.len() {
            assert!(link_kind(body.get(..length).expect("in range")).is_err(), "{length} of {} bytes", body.len());
        }
    }

    #[test]
    fn the_mtu_of_a_route_is_the_configured_one() {
        let route = |expires: u32| {
            let mut info = [0; 32];
            info[8..12].copy_from_slice(&expires.to_ne_bytes());
            let mut body = [0; fixed::ROUTE].to_vec();
            body.extend(nla(libc::RTA_METRICS, &nla(RTAX_MTU, &1300_u32.to_ne_bytes())));
            body.extend(nla(libc::RTA_CACHEINFO, &info));
            RouteEntry::parse(&body).map(|route| route.mtu)
        };
        assert_eq!((route(0), route(60_000)), (Ok(Some(1300)), Ok(None)));
    }

    #[test]
    fn the_far_end_of_a_point_to_point_link_is_not_local() {
        let mut body = [2, 32, 0, 0].to_vec();
        body.extend(3_u32.to_ne_bytes());
        body.extend(nla(libc::IFA_ADDRESS, &[10, 0, 0, 2]));
        body.extend(nla(libc::IFA_LOCAL, &[10, 0, 0, 1]));
        let ours = AddressEntry { index: 3, address: Ipv4Addr::new(10, 0, 0, 1).into(), prefix_len: 32 };
        assert_eq!(AddressEntry::parse(&body), Ok(ours));
    }

    #[test]
    fn devices_without_limits_take_what_ipv4_takes() {
        let limited = LinkState { min_mtu: 1280, max_mtu: 1500, ..link_state() };
        assert_eq!((link_state().mtu_range(), limited.mtu_range()), ((68, 65_535), (1280, 1500)));
    }
}
