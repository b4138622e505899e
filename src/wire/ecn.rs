//! Explicit Congestion Notification: the two low bits of the type of service byte (RFC 3168).

/// The ECN field of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Ecn {
    /// The sender does not take part: a router that is congested drops.
    #[default]
    NotEct = 0,
    /// The sender takes part, codepoint 01.
    Ect1 = 1,
    /// The sender takes part, codepoint 10.
    Ect0 = 2,
    /// A router on the way is congested.
    Ce = 3,
}

impl Ecn {
    /// The bits that are the field.
    pub const MASK: u8 = 0b11;

    /// The field in a type of service byte.
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

    /// What a packet carries on when it leaves a tunnel: `self` inside, `outer` outside (RFC 6040 4.2, figure 4).
    ///
    /// `None`: a router on the way was congested, and the sender would not learn it unless the packet is dropped.
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

    /// The two bits.
    #[must_use]
    #[inline]
    pub const fn bits(self) -> u8 {
        self as u8
    }
}
