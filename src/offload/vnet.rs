//! The vnet header, which precedes every packet of a TUN device with `IFF_VNET_HDR`.

/// Bytes of the header: `struct virtio_net_hdr` of linux/virtio_net.h.
pub const VNET_HEADER_LEN: usize = 10;

/// `VIRTIO_NET_HDR_F_*` of linux/virtio_net.h.
pub mod vnet_flag {
    /// The checksum at `csum_start + csum_offset` must be completed.
    pub const NEEDS_CSUM: u8 = 1;
    /// The checksum was verified.
    pub const DATA_VALID: u8 = 2;
}

/// `VIRTIO_NET_HDR_GSO_*` of linux/virtio_net.h.
pub mod vnet_gso {
    /// One packet.
    pub const NONE: u8 = 0;
    /// TCP over IPv4.
    pub const TCPV4: u8 = 1;
    /// One UDP datagram over IPv4 that must be fragmented. Linux no longer uses it.
    pub const UDP: u8 = 3;
    /// TCP over IPv6.
    pub const TCPV6: u8 = 4;
    /// UDP over IPv4 or IPv6, many datagrams.
    pub const UDP_L4: u8 = 5;
    /// A flag of the TCP types: CWR is set and belongs to the first segment only (RFC 3168 section 6.1.2).
    pub const ECN: u8 = 0x80;
}

/// A virtio-net header: the work that the kernel leaves to the reader, or that a writer requests. All zeros mean none.
///
/// It is little-endian on every machine, because the adapter sets `TUNSETVNETLE`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct VnetHeader {
    /// The flags, see [`vnet_flag`].
    pub flags: u8,
    /// The GSO type, see [`vnet_gso`].
    pub gso_type: u8,
    /// Bytes of all headers according to the kernel; not reliable.
    pub hdr_len: u16,
    /// Payload bytes in every segment but the last.
    pub gso_size: u16,
    /// The offset of the bytes that a partial checksum covers, from the start of the packet.
    pub csum_start: u16,
    /// The offset of the checksum from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// Decodes the header as the kernel wrote it.
    #[must_use]
    #[inline]
    pub const fn from_bytes(bytes: [u8; VNET_HEADER_LEN]) -> Self {
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1] = bytes;
        Self {
            flags,
            gso_type,
            hdr_len: u16::from_le_bytes([h0, h1]),
            gso_size: u16::from_le_bytes([g0, g1]),
            csum_start: u16::from_le_bytes([s0, s1]),
            csum_offset: u16::from_le_bytes([o0, o1]),
        }
    }

    /// Encodes the header as the kernel reads it.
    #[must_use]
    #[inline]
    pub const fn to_bytes(self) -> [u8; VNET_HEADER_LEN] {
        let [h0, h1] = self.hdr_len.to_le_bytes();
        let [g0, g1] = self.gso_size.to_le_bytes();
        let [s0, s1] = self.csum_start.to_le_bytes();
        let [o0, o1] = self.csum_offset.to_le_bytes();
        [self.flags, self.gso_type, h0, h1, g0, g1, s0, s1, o0, o1]
    }
}
