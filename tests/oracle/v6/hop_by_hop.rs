//! The kernel's processing of hop-by-hop options (`ip6_parse_tlv` in net/ipv6/exthdrs.c).

/// The option that names security labels. The kernel's handling of it depends on its configuration (CONFIG_NETLABEL).
const CALIPSO: u8 = 7;
const ROUTER_ALERT: u8 = 5;
const IOAM: u8 = 0x31;
const JUMBO: u8 = 0xc2;

/// Known options, and unknown ones that count against the limit `net.ipv6.max_hbh_opts_number`.
const OPTIONS_MAX: u32 = 8;

/// The highest number of bytes of padding in a row.
const PADDING_MAX: usize = 7;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Options {
    Fine,
    Dropped,
    /// A parameter problem of this code at this position is sent.
    Problem {
        code: u8,
        at: usize,
    },
    /// The kernel is no oracle.
    Unpredictable,
}

/// Walks the options of a packet without trailer whose first extension header has them.
pub(super) fn walk(packet: &[u8]) -> Options {
    let Some(end) = packet.get(41).map(|words| 40 + (usize::from(*words) + 1) * 8) else { return Options::Dropped };
    let Some(header) = packet.get(..end) else { return Options::Dropped };
    let (mut at, mut padding, mut count) = (42, 0, 0);
    while at < end {
        if header[at] == 0 {
            (at, padding) = (at + 1, padding + 1);
            if padding > PADDING_MAX {
                return Options::Dropped;
            }
            continue;
        }
        let Some(option) = header.get(at + 1).and_then(|len| header.get(at..at + 2 + usize::from(*len))) else {
            return Options::Dropped;
        };
        if option[0] == 1 {
            padding += option.len();
            if padding > PADDING_MAX || option[2..].iter().any(|byte| *byte != 0) {
                return Options::Dropped;
            }
        } else {
            (count, padding) = (count + 1, 0);
            if count > OPTIONS_MAX {
                return Options::Dropped;
            }
            let effect = of_option(packet, option, at);
            if effect != Options::Fine {
                return effect;
            }
        }
        at += option.len();
    }
    Options::Fine
}

fn of_option(packet: &[u8], option: &[u8], at: usize) -> Options {
    const FIELD: u8 = 0;
    const UNKNOWN_OPTION: u8 = 2;
    match option[0] {
        CALIPSO => Options::Unpredictable,
        ROUTER_ALERT if option.len() == 4 => Options::Fine,
        ROUTER_ALERT => Options::Dropped,
        IOAM if at.is_multiple_of(4) => Options::Fine,
        IOAM => Options::Dropped,
        JUMBO if option.len() != 6 || at % 4 != 2 => Options::Dropped,
        JUMBO => {
            let len = u32::from_be_bytes(option[2..].try_into().unwrap());
            match (len, &packet[4..6]) {
                (..=0xffff, _) => Options::Problem { code: FIELD, at: at + 2 },
                (_, [0, 0]) => Options::Dropped,
                (_, _) => Options::Problem { code: FIELD, at },
            }
        }
        unknown => match (unknown >> 6, packet[24]) {
            (0, _) => Options::Fine,
            (1, _) | (3, 0xff) => Options::Dropped,
            (_, _) => Options::Problem { code: UNKNOWN_OPTION, at },
        },
    }
}
