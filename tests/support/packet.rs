//! IPv4 packets built field by field, valid or not.

use core::net::Ipv4Addr;

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

pub const DF: u16 = 0x4000;
pub const MF: u16 = 0x2000;

pub const LOOSE_SOURCE_ROUTE: [u8; 7] = [131, 7, 4, 10, 0, 0, 1];
pub const STRICT_SOURCE_ROUTE: [u8; 7] = [137, 7, 4, 10, 0, 0, 1];
pub const RECORD_ROUTE: [u8; 7] = [7, 7, 4, 0, 0, 0, 0];
pub const ROUTER_ALERT: [u8; 4] = [148, 4, 0, 0];

/// The fields of a packet. Lengths and checksum are right unless they are set.
#[derive(Clone, Debug)]
pub struct Ipv4 {
    pub version: u8,
    pub ihl: Option<u8>,
    pub tos: u8,
    pub total: Option<u16>,
    pub id: u16,
    /// The three flags and the fragment offset, as they stand in the header.
    pub fragment: u16,
    pub ttl: u8,
    pub protocol: u8,
    pub checksum: Option<u16>,
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    /// IP options, padded with zeros (end of options) to a multiple of 4.
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
    /// Bytes behind the total length.
    pub trailer: Vec<u8>,
    /// The number of received bytes, if fewer than all.
    pub cut: Option<usize>,
}

impl Ipv4 {
    /// Returns a UDP packet between two pods.
    pub fn new(source: impl Into<Ipv4Addr>, destination: impl Into<Ipv4Addr>) -> Self {
        Self {
            version: 4,
            ihl: None,
            tos: 0,
            total: None,
            id: 0x1234,
            fragment: 0,
            ttl: 64,
            protocol: UDP,
            checksum: None,
            source: source.into(),
            destination: destination.into(),
            options: Vec::new(),
            payload: udp(4000, 53, b"question"),
            trailer: Vec::new(),
            cut: None,
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let options = self.options.len().next_multiple_of(4);
        let header = 20 + options;
        let total = self.total.unwrap_or((header + self.payload.len()) as u16).to_be_bytes();
        let mut bytes = vec![self.version << 4 | self.ihl.unwrap_or((header / 4) as u8), self.tos, total[0], total[1]];
        bytes.extend(self.id.to_be_bytes());
        bytes.extend(self.fragment.to_be_bytes());
        bytes.extend([self.ttl, self.protocol, 0, 0]);
        bytes.extend(self.source.octets());
        bytes.extend(self.destination.octets());
        bytes.extend(&self.options);
        bytes.resize(header, 0);
        bytes.extend(&self.payload);
        bytes.extend(&self.trailer);
        bytes.truncate(self.cut.unwrap_or(usize::MAX));
        repair_checksum(&mut bytes);
        if let (Some(checksum), Some(field)) = (self.checksum, bytes.get_mut(10..12)) {
            field.copy_from_slice(&checksum.to_be_bytes());
        }
        bytes
    }
}

/// Returns the ones' complement sum of RFC 1071: addition modulo 65,535 whose zero is written 0xFFFF. The sum of no
/// bytes is 0.
pub fn ones_sum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u64::from(pair[0]) * 256 + u64::from(*pair.get(1).unwrap_or(&0));
    match bytes.chunks(2).map(word).sum::<u64>() {
        0 => 0,
        total => ((total - 1) % 65_535 + 1) as u16,
    }
}

/// Writes the checksum that a full computation gives, over as many bytes as the header says it has or as there are.
pub fn repair_checksum(bytes: &mut [u8]) {
    let header = bytes.first().map_or(0, |first| usize::from(first & 15) * 4).clamp(20, 60).min(bytes.len());
    if header < 20 {
        return;
    }
    bytes[10..12].fill(0);
    let checksum = !ones_sum(&bytes[..header]);
    bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
}

/// Returns a packet after a router: another TTL and a fully recomputed checksum.
pub fn with_ttl(packet: &[u8], ttl: u8) -> Vec<u8> {
    let mut packet = packet.to_vec();
    packet[8] = ttl;
    repair_checksum(&mut packet);
    packet
}

/// Returns the address at an offset.
pub fn address_at(packet: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3])
}

pub fn udp(source: u16, destination: u16, data: &[u8]) -> Vec<u8> {
    let len = (8 + data.len()) as u16;
    let mut bytes: Vec<u8> = [source, destination, len, 0].iter().flat_map(|word| word.to_be_bytes()).collect();
    bytes.extend(data);
    bytes
}

/// Returns an ICMP message with a right checksum.
pub fn icmp(kind: u8, code: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, code, 0, 0, 0, 1, 0, 1];
    bytes.extend(body);
    let checksum = !ones_sum(&bytes);
    bytes[2..4].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

/// Returns `len` bytes that differ from their neighbours.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 % 251) as u8).collect()
}
