//! ICMP errors as etherparse reads them.

use core::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{Icmpv4Type, NetSlice, SlicedPacket, TransportSlice};

/// An ICMP packet of loden whose lengths and checksums were verified.
#[derive(Debug)]
pub struct Message<'a> {
    pub ip: etherparse::Ipv4Header,
    pub kind: Icmpv4Type,
    /// Type, code and the four bytes after the checksum, as they stand.
    pub type_code: [u8; 2],
    pub rest: [u8; 4],
    pub quote: &'a [u8],
}

impl<'a> Message<'a> {
    pub fn parse(bytes: &'a [u8]) -> Self {
        let packet = SlicedPacket::from_ip(bytes).unwrap();
        let Some(NetSlice::Ipv4(ip)) = &packet.net else { panic!("not IPv4: {packet:?}") };
        let Some(TransportSlice::Icmpv4(message)) = &packet.transport else { panic!("not ICMP: {packet:?}") };
        let header = ip.header().to_header();
        assert_eq!(usize::from(header.total_len), bytes.len(), "total length");
        assert_eq!(header.header_checksum, header.calc_header_checksum(), "header checksum");
        let kind = message.icmp_type();
        assert_eq!(message.checksum(), kind.calc_checksum(message.payload()), "ICMP checksum");
        Self {
            ip: header,
            kind,
            type_code: [message.type_u8(), message.code_u8()],
            rest: message.bytes5to8(),
            quote: message.payload(),
        }
    }

    pub fn source(&self) -> Ipv4Addr {
        self.ip.source.into()
    }

    /// Asserts the properties of every ICMP error (R42, R44, R45, R47, R49). `offender` is the packet as it arrived.
    pub fn assert_sound(&self, offender: &[u8]) {
        let total = usize::from(u16::from_be_bytes([offender[2], offender[3]]));
        let whole = usize::from(self.ip.total_len);
        assert!(whole <= 576, "{whole} bytes");
        assert_eq!(self.ip.destination, offender[12..16], "R42: to the offender's source");
        assert_ne!(self.source(), Ipv4Addr::UNSPECIFIED, "R42: from somewhere");
        assert_eq!(self.ip.options.len(), 0);
        assert!(self.ip.dont_fragment || self.ip.identification != 0, "R47: DF, or an ID of its own");
        assert!(!self.ip.more_fragments && self.ip.fragment_offset.value() == 0);
        let tos = self.ip.dscp.value() << 2 | self.ip.ecn.value();
        assert_eq!(tos, 0xc0 | offender[1] & 0x1c, "R44: precedence 6, the offender's D, T and R, no ECN");
        assert!(matches!(self.type_code, [3, 0 | 4] | [11, 0]), "R49 and others: type and code {:?}", self.type_code);
        assert_eq!(self.quote, &offender[..total.min(576 - 28)], "R45: as much of the offender as fits, as it arrived");
        let header = usize::from(offender[0] & 15) * 4;
        assert!(self.quote.len() >= total.min(header + 8), "R45: at least 8 bytes of payload where there are as many");
    }
}

/// Asserts the properties of every ICMPv6 error (V18 to V20). `offender` is the packet as it arrived.
pub fn assert_sound_v6(bytes: &[u8], offender: &[u8]) {
    let packet = SlicedPacket::from_ip(bytes).unwrap();
    let Some(NetSlice::Ipv6(ip)) = &packet.net else { panic!("not IPv6: {packet:?}") };
    let Some(TransportSlice::Icmpv6(message)) = &packet.transport else { panic!("not ICMPv6: {packet:?}") };
    let header = ip.header().to_header();
    assert_eq!(usize::from(header.payload_length) + 40, bytes.len(), "payload length");
    assert!(bytes.len() <= 1280, "V18: {} bytes", bytes.len());
    let (source, destination) = (header.source, header.destination);
    assert!(message.is_checksum_valid(source, destination), "V19: checksum");
    assert_eq!((header.traffic_class, header.flow_label.value()), (0, 0), "V19");
    assert_eq!(destination, offender[8..24], "V20: to the offender's source");
    let source = Ipv6Addr::from(source);
    assert!(!source.is_unspecified() && !source.is_multicast(), "V20: from somewhere");
    assert!(matches!([bytes[40], bytes[41]], [1..=3, 0]), "type and code {:?}", &bytes[40..42]);
    let total = 40 + usize::from(u16::from_be_bytes([offender[4], offender[5]]));
    assert_eq!(&bytes[48..], &offender[..total.min(1280 - 48)], "V18: as much of the offender as fits, as it arrived");
}
