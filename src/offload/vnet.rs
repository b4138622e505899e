//! The header in front of every packet of a TUN device with `IFF_VNET_HDR`.

/// Bytes of the header: `struct virtio_net_hdr` of linux/virtio_net.h.
pub const VNET_HEADER_LEN: usize = 10;

/// What the kernel leaves to be done to a packet, or is asked to do. All zeros: nothing.
///
/// Little-endian on every machine: the adapter asks for that (`TUNSETVNETLE`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct VnetHeader {
    /// `VIRTIO_NET_HDR_F_*`.
    pub flags: u8,
    /// `VIRTIO_NET_HDR_GSO_*`.
    pub gso_type: u8,
    /// Bytes of all headers, as the kernel says; not to be trusted.
    pub hdr_len: u16,
    /// Payload bytes in every segment but the last.
    pub gso_size: u16,
    /// Where the bytes begin that a partial checksum covers, from the begin of the packet.
    pub csum_start: u16,
    /// Where the checksum is, from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// The header as the kernel wrote it.
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

    /// The header as the kernel reads it.
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
