//! Explicit Congestion Notification: the two low bits of the type of service byte (RFC 3168).

/// The ECN field of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Ecn {
    /// The sender does not support ECN: a congested router drops its packets.
    #[default]
    NotEct = 0,
    /// The sender supports ECN, codepoint 01.
    Ect1 = 1,
    /// The sender supports ECN, codepoint 10.
    Ect0 = 2,
    /// A router on the path experienced congestion.
    Ce = 3,
}

impl Ecn {
    /// The bits of the field.
    pub const MASK: u8 = 0b11;

    /// Returns the field of a type of service byte.
    #[must_use]
    #[inline]
    pub const fn of(type_of_service: u8) -> Self {
        match type_of_service & Self::MASK {
            0 => Self::NotEct,
            1 => Self::Ect1,
            2 => Self::Ect0,
            _ => Self::Ce,
        }
    }

    /// Returns the field of a packet that leaves a tunnel: `self` is the inner field, `outer` the outer one (RFC 6040
    /// section 4.2, figure 4).
    ///
    /// `None` means that the packet must be dropped: a router on the path was congested, and the packet's sender does
    /// not support ECN.
    #[must_use]
    #[inline]
    pub const fn after_tunnel(self, outer: Self) -> Option<Self> {
        match (self, outer) {
            (Self::NotEct, Self::Ce) => None,
            (Self::NotEct, _) => Some(Self::NotEct),
            (Self::Ce, _) | (_, Self::Ce) => Some(Self::Ce),
            (Self::Ect0, Self::Ect1) => Some(Self::Ect1),
            (Self::Ect0 | Self::Ect1, _) => Some(self),
        }
    }

    /// Returns the two bits.
    #[must_use]
    #[inline]
    pub const fn bits(self) -> u8 {
        self as u8
    }
}
