//! The header views against other parsers: their errors, and the values of their accessors.

use etherparse::Ipv4HeaderSlice;
use loden::wire::ipv4::{Ipv4Packet, Ipv4PacketMut};
use loden::wire::ipv6::{Ipv6Packet, Ipv6PacketMut};
use loden::wire::{Ecn, HeaderError, IpPacket};

use support::model::option_kinds;
use support::packet::{ones_sum, with_ttl};
use support::packet_v6::{Upper, upper, with_hop_limit};

pub fn run(bytes: &[u8]) {
    run_v4(bytes);
    run_v6(bytes);
}

fn run_v4(bytes: &[u8]) {
    let mut copy = bytes.to_vec();
    let shared = Ipv4Packet::parse(bytes);
    let exclusive = Ipv4PacketMut::parse(&mut copy);
    let expected = first_error(bytes);
    assert_eq!(shared.as_ref().err().copied(), expected, "of {bytes:02x?}");
    assert_eq!(exclusive.as_ref().err().copied(), expected, "both views refuse the same");
    let (Ok(packet), Ok(mut exclusive)) = (shared, exclusive) else { return };

    let header = *packet.header();
    assert_eq!(&header, exclusive.header());
    let total = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
    assert_eq!(packet.as_bytes(), &bytes[..total]);
    assert_eq!(packet.payload(), &bytes[header.header_len()..total]);
    assert_eq!(exclusive.payload(), packet.payload());

    let oracle = Ipv4HeaderSlice::from_slice(bytes).unwrap();
    assert_eq!(header.header_len(), usize::from(oracle.ihl()) * 4);
    assert_eq!(header.type_of_service(), oracle.dcp().value() << 2 | oracle.ecn().value());
    assert_eq!(header.total_len(), oracle.total_len());
    assert_eq!(header.identification(), oracle.identification());
    assert_eq!(header.dont_fragment(), oracle.dont_fragment());
    assert_eq!(header.more_fragments(), oracle.more_fragments());
    assert_eq!(header.fragment_offset(), oracle.fragments_offset().value());
    assert_eq!(header.ttl(), oracle.ttl());
    assert_eq!(header.protocol(), oracle.protocol().0);
    assert_eq!(header.checksum(), oracle.header_checksum());
    assert_eq!(header.source(), oracle.source_addr());
    assert_eq!(header.destination(), oracle.destination_addr());
    let kinds = option_kinds(oracle.options()).unwrap_or_default();
    assert_eq!(header.has_source_route(), kinds.contains(&131) || kinds.contains(&137));

    let ttl = header.ttl().wrapping_sub(1);
    exclusive.set_ttl(ttl);
    assert_eq!(exclusive.header().ttl(), ttl);
    let changed = exclusive.freeze();
    assert_eq!(changed.as_bytes(), with_ttl(&bytes[..total], ttl), "a full recompute gives the same");
    assert_eq!(copy[total..], bytes[total..], "what is behind the packet stays");
}

fn run_v6(bytes: &[u8]) {
    let mut copy = bytes.to_vec();
    let have = bytes.len();
    let version = bytes.first().map_or(0, |first| first >> 4);
    let payload = bytes.get(4..6).map_or(0, |len| usize::from(u16::from_be_bytes([len[0], len[1]])));
    let expected = match version {
        _ if have < 40 => Some(HeaderError::TooShort { have, need: 40 }),
        6 if 40 + payload > have => Some(HeaderError::Truncated { total: 40 + payload, have }),
        6 if payload == 0 && bytes[6] == 0 => Some(HeaderError::Jumbogram { have }),
        6 => None,
        version => Some(HeaderError::BadVersion { version, expected: "6" }),
    };
    let shared = Ipv6Packet::parse(bytes);
    let exclusive = Ipv6PacketMut::parse(&mut copy);
    assert_eq!(shared.as_ref().err().copied(), expected, "of {bytes:02x?}");
    assert_eq!(exclusive.as_ref().err().copied(), expected, "both views refuse the same");
    let (Ok(packet), Ok(mut exclusive)) = (shared, exclusive) else { return };

    let (header, total) = (*packet.header(), 40 + payload);
    assert_eq!((&header, packet.payload()), (exclusive.header(), exclusive.payload()));
    assert_eq!((packet.as_bytes(), exclusive.as_bytes()), (&bytes[..total], &bytes[..total]));
    let oracle = etherparse::Ipv6HeaderSlice::from_slice(bytes).unwrap();
    assert_eq!(header.traffic_class(), oracle.traffic_class());
    assert_eq!(header.flow_label(), oracle.flow_label().value());
    assert_eq!((header.payload_len(), header.total_len()), (oracle.payload_length(), total));
    assert_eq!((header.next_header(), header.hop_limit()), (oracle.next_header().0, oracle.hop_limit()));
    assert_eq!((header.source(), header.destination()), (oracle.source_addr(), oracle.destination_addr()));
    let found = header.upper_layer().map(|found| Upper {
        protocol: found.protocol,
        at: found.offset.into(),
        fragment: found.fragment.map(|fragment| (fragment.offset, fragment.more_fragments)),
    });
    assert_eq!(found, upper(&bytes[..total]), "V5: {bytes:02x?}");
    assert!(matches!(IpPacket::parse(bytes), Ok(IpPacket::V6(same)) if *same.header() == header));

    exclusive.decrement_hop_limit();
    let hop_limit = header.hop_limit().saturating_sub(1);
    assert_eq!(exclusive.header().hop_limit(), hop_limit);
    exclusive.set_ecn(Ecn::Ce);
    assert_eq!(exclusive.header().ecn(), Ecn::Ce);
    let mut expected = with_hop_limit(&bytes[..total], hop_limit);
    expected[1] |= 0x30;
    assert_eq!(exclusive.freeze().as_bytes(), expected, "V4");
    assert_eq!(copy[total..], bytes[total..], "what is behind the packet stays");
}

/// Returns the first error of a header by the section on headers of `docs/conformance.md`, numbers included.
fn first_error(bytes: &[u8]) -> Option<HeaderError> {
    let have = bytes.len();
    if have < 20 {
        return Some(HeaderError::TooShort { have, need: 20 });
    }
    let (version, words) = (bytes[0] / 16, bytes[0] % 16);
    let header = usize::from(words) * 4;
    let total = u16::from_be_bytes([bytes[2], bytes[3]]);
    let sum = ones_sum(&bytes[..header.min(have)]);
    let errors = [
        (version != 4, HeaderError::BadVersion { version, expected: "4" }),
        (words < 5, HeaderError::BadHeaderLength { words }),
        (header > have, HeaderError::HeaderTruncated { header, have }),
        (usize::from(total) < header, HeaderError::BadTotalLength { total, header }),
        (usize::from(total) > have, HeaderError::Truncated { total: total.into(), have }),
        (sum != 0xffff, HeaderError::BadChecksum { sum }),
    ];
    if let Some((_, error)) = errors.iter().find(|(fails, _)| *fails) {
        return Some(*error);
    }
    let at = (20..header).find(|at| *at == bad_option_at(&bytes[..header]))?;
    Some(HeaderError::BadOption { at, header })
}

/// Returns the offset of the first option that does not fit, or the end of the header if all fit.
fn bad_option_at(header: &[u8]) -> usize {
    let fits = |end: usize| option_kinds(&header[20..end]).is_some();
    match option_kinds(&header[20..]) {
        Some(_) => header.len(),
        // The longest prefix of whole options ends where the bad one begins.
        None => (20..header.len()).rev().find(|end| fits(*end)).unwrap_or(20),
    }
}
