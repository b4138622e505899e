//! Control messages against C's `struct command`, read field by field. Encoding restores the fields that the command
//! uses.

use loden::control::{COMMAND_LEN, Command, CommandError};

const PADDING: usize = 18;

pub fn run(bytes: &[u8]) {
    let read = Command::decode(bytes);
    let Ok(mut canonical) = <[u8; COMMAND_LEN]>::try_from(bytes) else {
        return assert_eq!(read, Err(CommandError::Length { have: bytes.len() }));
    };
    let int = |at: usize| i32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
    let octets = |at: usize| <[u8; 4]>::try_from(&bytes[at..at + 4]).unwrap();
    let (kind, len) = (int(0), int(8));
    // The bytes after this offset are not used by this command.
    let end = match kind {
        1 => PADDING,
        2 => 12,
        3 => 4,
        command => return assert_eq!(read, Err(CommandError::Unknown { command })),
    };
    if kind != 3 && !(0..=32).contains(&len) {
        return assert_eq!(read, Err(CommandError::PrefixLength { len }));
    }
    let command = read.unwrap();
    match command {
        Command::SetRoute { subnet, next_hop } => {
            assert_eq!((kind, subnet.addr().octets(), i32::from(subnet.prefix_len())), (1, octets(4), len));
            let port = u16::from_ne_bytes([bytes[16], bytes[17]]);
            assert_eq!((next_hop.ip().octets(), next_hop.port()), (octets(12), port));
        }
        Command::DeleteRoute { subnet } => {
            assert_eq!((kind, subnet.addr().octets(), i32::from(subnet.prefix_len())), (2, octets(4), len));
        }
        Command::Stop => assert_eq!(kind, 3),
        other => panic!("{other:?} has no number"),
    }
    canonical[end..].fill(0);
    assert_eq!(command.encode(), canonical);
    let change = command.route_change();
    assert_eq!(change.map(|change| change.subnet().prefix_len()), (kind != 3).then_some(len as u8));
}
