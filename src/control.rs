//! flannel's control commands: 20 bytes from `flanneld` to its proxy, in the C layout of `struct command`.
//!
//! ```text
//!  0        4        8        12       16    18    20
//!  │ i32    │ u32    │ i32    │ u32    │ i16 │ pad │
//!  │ cmd    │ dest   │ dest   │ next   │ next│     │
//!  │        │ net    │ net len│ hop ip │ port│     │
//! ```
//!
//! Numbers are in the machine's own byte order; the two addresses in network order.

use core::net::{Ipv4Addr, SocketAddrV4};

use ipnet::Ipv4Net;

use crate::route::{Route, RouteChange};

/// Bytes in a command.
pub const COMMAND_LEN: usize = 20;

const SET_ROUTE: i32 = 1;
const DELETE_ROUTE: i32 = 2;
const STOP: i32 = 3;

/// One message on the control socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Command {
    /// Adds or replaces the route of a subnet.
    SetRoute {
        /// The subnet; host bits do not matter.
        subnet: Ipv4Net,
        /// Underlay address and port of its owner.
        next_hop: SocketAddrV4,
    },
    /// Removes the route of a subnet.
    DeleteRoute {
        /// The subnet; host bits do not matter.
        subnet: Ipv4Net,
    },
    /// Ends the proxy.
    Stop,
}

/// The reason why a message is not a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// The message is too short or too long.
    #[error("a control message has {COMMAND_LEN} bytes, not {have}")]
    Length {
        /// Bytes received.
        have: usize,
    },
    /// The prefix length is not within 0 to 32.
    #[error("a prefix length of {len} is not within 0 to 32")]
    PrefixLength {
        /// The length received.
        len: i32,
    },
    /// The command is none of flannel's three.
    #[error("command {command} is none of 1 (set route), 2 (delete route) and 3 (stop)")]
    Unknown {
        /// The number received.
        command: i32,
    },
}

impl Command {
    /// Decodes one message.
    ///
    /// # Errors
    /// If the message has the wrong length, an unknown command or an invalid prefix length.
    pub fn decode(message: &[u8]) -> Result<Self, CommandError> {
        let have = message.len();
        let Ok(message) = <[u8; COMMAND_LEN]>::try_from(message) else { return Err(CommandError::Length { have }) };
        let [c0, c1, c2, c3, d0, d1, d2, d3, l0, l1, l2, l3, n0, n1, n2, n3, p0, p1, _, _] = message;
        let subnet = || {
            let len = i32::from_ne_bytes([l0, l1, l2, l3]);
            let prefix_len = u8::try_from(len).map_err(|_| CommandError::PrefixLength { len })?;
            Ipv4Net::new(Ipv4Addr::new(d0, d1, d2, d3), prefix_len).map_err(|_| CommandError::PrefixLength { len })
        };
        match i32::from_ne_bytes([c0, c1, c2, c3]) {
            SET_ROUTE => {
                let next_hop = SocketAddrV4::new(Ipv4Addr::new(n0, n1, n2, n3), u16::from_ne_bytes([p0, p1]));
                Ok(Self::SetRoute { subnet: subnet()?, next_hop })
            }
            DELETE_ROUTE => Ok(Self::DeleteRoute { subnet: subnet()? }),
            STOP => Ok(Self::Stop),
            command => Err(CommandError::Unknown { command }),
        }
    }

    /// Encodes one message. Fields that the command does not use are zero.
    #[must_use]
    pub fn encode(&self) -> [u8; COMMAND_LEN] {
        const NOWHERE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
        let (command, subnet, next_hop) = match *self {
            Self::SetRoute { subnet, next_hop } => (SET_ROUTE, subnet, next_hop),
            Self::DeleteRoute { subnet } => (DELETE_ROUTE, subnet, NOWHERE),
            Self::Stop => (STOP, Ipv4Net::default(), NOWHERE),
        };
        let [c0, c1, c2, c3] = command.to_ne_bytes();
        let [d0, d1, d2, d3] = subnet.addr().octets();
        let [l0, l1, l2, l3] = i32::from(subnet.prefix_len()).to_ne_bytes();
        let [n0, n1, n2, n3] = next_hop.ip().octets();
        let [p0, p1] = next_hop.port().to_ne_bytes();
        [c0, c1, c2, c3, d0, d1, d2, d3, l0, l1, l2, l3, n0, n1, n2, n3, p0, p1, 0, 0]
    }

    /// Returns the command's change of routes, if it is one.
    #[must_use]
    pub fn route_change(&self) -> Option<RouteChange> {
        match *self {
            Self::SetRoute { subnet, next_hop } => Some(RouteChange::Set(Route::new(subnet, next_hop))),
            Self::DeleteRoute { subnet } => Some(RouteChange::Delete(subnet.into())),
            Self::Stop => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn command() -> impl Strategy<Value = Command> {
        let subnet =
            || (any::<u32>(), 0u8..=32).prop_map(|(bits, len)| Ipv4Net::new_assert(Ipv4Addr::from_bits(bits), len));
        let next_hop = (any::<u32>(), any::<u16>()).prop_map(|(bits, port)| SocketAddrV4::new(bits.into(), port));
        prop_oneof![
            (subnet(), next_hop).prop_map(|(subnet, next_hop)| Command::SetRoute { subnet, next_hop }),
            subnet().prop_map(|subnet| Command::DeleteRoute { subnet }),
            Just(Command::Stop),
        ]
    }

    proptest! {
        #[test]
        fn decode_undoes_encode(command in command()) {
            prop_assert_eq!(Command::decode(&command.encode()), Ok(command));
        }

        #[test]
        fn a_route_command_is_the_same_route_change(command in command()) {
            let expected = match command {
                Command::SetRoute { subnet, next_hop } => Some(RouteChange::Set(Route::new(subnet, next_hop))),
                Command::DeleteRoute { subnet } => Some(RouteChange::Delete(subnet.into())),
                Command::Stop => None,
            };
            prop_assert_eq!(command.route_change(), expected);
        }

        #[test]
        fn any_other_length_is_refused(message in proptest::collection::vec(any::<u8>(), 0..64)) {
            prop_assume!(message.len() != COMMAND_LEN);
            prop_assert_eq!(Command::decode(&message), Err(CommandError::Length { have: message.len() }));
        }
    }

    /// The layout of a C compiler on a little-endian machine. The port is above 32,767, which C keeps in a signed
    /// number.
    #[test]
    #[cfg(target_endian = "little")]
    fn the_layout_is_that_of_c() {
        let message = [1, 0, 0, 0, 100, 96, 2, 0, 24, 0, 0, 0, 10, 168, 0, 3, 0x60, 0xea, 0xaa, 0xaa];
        let subnet = Ipv4Net::new_assert([100, 96, 2, 0].into(), 24);
        let next_hop = SocketAddrV4::new([10, 168, 0, 3].into(), 60_000);
        assert_eq!(Command::decode(&message), Ok(Command::SetRoute { subnet, next_hop }));
    }

    #[test]
    fn errors_name_the_wrong_value() {
        let message = |command: i32, len: i32| {
            let mut message = Command::Stop.encode();
            message[..4].copy_from_slice(&command.to_ne_bytes());
            message[8..12].copy_from_slice(&len.to_ne_bytes());
            Command::decode(&message)
        };
        assert_eq!(message(1, 33), Err(CommandError::PrefixLength { len: 33 }));
        assert_eq!(message(2, -1), Err(CommandError::PrefixLength { len: -1 }));
        assert_eq!(message(2, 256 + 24), Err(CommandError::PrefixLength { len: 280 }));
        assert_eq!(message(0, 24), Err(CommandError::Unknown { command: 0 }));
        assert_eq!(message(3, 99), Ok(Command::Stop));
    }
}
