//! Extensions of xtables, which iptables-nft puts into rules as the expressions `match` and `target`.

use super::attributes::nfta;
use super::chains::{Packet, Transport, UNTRACKED};
use super::expressions::{Match, Verdict};
use crate::sys::link::error::MalformedReply;
use crate::sys::link::message::{attribute, attribute_string, sized};

/// Evaluates a `match`.
pub(super) fn evaluate_match(data: &[u8], packet: &Packet) -> Result<Match, MalformedReply> {
    /// Offsets in struct `xt_conntrack_mtinfo3`.
    const FLAGS: usize = 146;
    const STATES: usize = 150;
    /// `XT_CONNTRACK_STATE`.
    const STATE: u16 = 1;
    /// `XT_CONNTRACK_STATE_ALIAS`, which does not change the result.
    const ALIAS: u16 = 1 << 13;
    /// `XT_CONNTRACK_STATE_UNTRACKED`. The other states have the same bits in xtables and nftables.
    const XT_UNTRACKED: u32 = 1 << 8;
    let name = attribute_string(data, nfta::EXTENSION_NAME)?.unwrap_or_default();
    let info = attribute(data, nfta::EXTENSION_INFO, |info| Ok(info.to_vec()))?.unwrap_or_default();
    let at = |offset: usize| -> Option<u16> { info.get(offset..)?.first_chunk().copied().map(u16::from_ne_bytes) };
    let holds = match name.as_str() {
        "comment" => return Ok(Match::Yes),
        "conntrack" => match (at(FLAGS), at(FLAGS + 2), at(STATES)) {
            (Some(flags), Some(invert), Some(states)) if flags & !ALIAS == STATE => {
                let state = if packet.ct_state == UNTRACKED { XT_UNTRACKED } else { packet.ct_state };
                (u32::from(states) & state != 0) == (invert & STATE == 0)
            }
            _ => return Ok(Match::Maybe),
        },
        // Struct xt_udp has two ranges of ports and a byte of inversion flags.
        "udp" => match ([0, 2, 4, 6].map(at), info.get(8), packet.transport) {
            (
                [Some(from), Some(from_last), Some(to), Some(to_last)],
                Some(0),
                Transport::Udp { source, destination },
            ) => (from..=from_last).contains(&source) && (to..=to_last).contains(&destination),
            _ => return Ok(Match::Maybe),
        },
        // Struct ip6t_icmp has a type, a range of codes and a byte of inversion flags. Type 255 is any.
        "icmp6" => match (info.first_chunk(), packet.transport) {
            (Some([u8::MAX, _, _, 0]), Transport::Icmpv6 { .. }) => true,
            (Some([kind, least, _, 0]), Transport::Icmpv6 { kind: own }) => *kind == own && *least == 0,
            _ => return Ok(Match::Maybe),
        },
        _ => return Ok(Match::Maybe),
    };
    Ok(if holds { Match::Yes } else { Match::No })
}

/// Returns the verdict of a `target`.
pub(super) fn target(data: &[u8]) -> Result<Verdict, MalformedReply> {
    /// `XT_CT_NOTRACK`, in the first field of struct `xt_ct_target_info`.
    const NOTRACK: u16 = 1;
    let name = attribute_string(data, nfta::EXTENSION_NAME)?.unwrap_or_default();
    let flags = attribute(data, nfta::EXTENSION_INFO, |info| {
        sized::<2>(info.get(..2).unwrap_or_default(), nfta::EXTENSION_INFO).map(u16::from_ne_bytes)
    });
    Ok(match name.as_str() {
        "MASQUERADE" | "SNAT" => Verdict::Translate,
        "NOTRACK" => Verdict::NoTrack,
        "CT" if flags?.unwrap_or(0) & NOTRACK != 0 => Verdict::NoTrack,
        "REJECT" => Verdict::Drop,
        "CHECKSUM" | "CONNMARK" | "CT" | "LOG" | "MARK" | "NFLOG" | "TCPMSS" | "TRACE" => Verdict::Continue,
        _ => Verdict::Unknown,
    })
}
