//! The forwarder's result without its intended drops: the packet is changed so that it is not dropped, passed to the
//! forwarder again, and the change is reverted in the result.

use core::net::Ipv4Addr;
use core::ops::Range;

use loden::forward::DropReason;

use crate::answer::Answer;
use crate::known_difference::KnownDifference;
use crate::options::Walk;
use crate::router::Place;
use crate::world::{World, place_of};
use support::host::{Outcome, POD};
use support::packet::{address_at, repair_checksum};

const TTL: usize = 8;
const SOURCE: Range<usize> = 12..16;
const DESTINATION: Range<usize> = 16..20;

/// The expected result in a form that can still be changed.
#[derive(Clone, Debug)]
pub(crate) enum Expected {
    Silence,
    Packet {
        to: Place,
        bytes: Vec<u8>,
    },
    /// loden's fragments, if there are any.
    Fragments {
        to: Place,
        pieces: Vec<Vec<u8>>,
    },
    Answer {
        to: Place,
        answer: Answer,
    },
}

pub(crate) struct Reference {
    pub(crate) expected: Expected,
    pub(crate) known_differences: Vec<KnownDifference>,
    /// The kernel's processing of the options, if it reads any.
    pub(crate) walk: Option<Walk>,
    /// True if there is no route, reported or not.
    pub(crate) no_route: bool,
}

impl Reference {
    pub(crate) fn of(world: &World, entry: Place, original: &[u8]) -> Self {
        let mut attempt =
            Attempt { world, entry, packet: original.to_vec(), elsewhere: false, nowhere: false, problem: None };
        let mut walk = None;
        let mut known_differences = Vec::new();
        let outcome = loop {
            let outcome = attempt.outcome();
            if walk.is_none() && has_sound_lengths(&outcome) && original[0] & 15 > 5 {
                walk = Some(attempt.walk(original));
            }
            let Some(known_difference) = attempt.change(&outcome, walk.as_ref()) else { break outcome };
            known_differences.push(known_difference);
            assert!(known_differences.len() < 10, "{known_differences:?} for {original:02x?}");
        };
        let no_route = attempt.problem.is_none() && outcome.reason() == Some(DropReason::NoRoute);
        let expected = attempt.undo(outcome, original);
        if matches!(expected, Expected::Silence) {
            // Dropped nevertheless, for a reason that Linux has too.
            known_differences.clear();
        }
        Self { expected, known_differences, walk, no_route }
    }
}

/// A packet that is changed step by step.
struct Attempt<'w> {
    world: &'w World,
    entry: Place,
    packet: Vec<u8>,
    /// The tunnel's sockets have other addresses.
    elsewhere: bool,
    /// The packet is for no host, so that it leaves by the unused link.
    nowhere: bool,
    /// The position at which the kernel found an error in the options, which have been removed from the packet.
    problem: Option<u8>,
}

impl Attempt<'_> {
    fn outcome(&self) -> Outcome {
        match self.elsewhere {
            true => self.world.ours_elsewhere(&self.packet),
            false => self.world.ours(self.entry, &self.packet),
        }
    }

    fn walk(&self, original: &[u8]) -> Walk {
        let own = self.world.router.link(self.entry).address_v4();
        Walk::of(original, own, |address| is_nobodys(self.world, address))
    }

    fn change(&mut self, outcome: &Outcome, walk: Option<&Walk>) -> Option<KnownDifference> {
        if self.problem.is_none()
            && let Some(at) = walk.and_then(|walk| walk.error)
        {
            self.problem = Some(at);
            let header = usize::from(self.packet[0] & 15) * 4;
            self.packet[20..header].fill(1);
            // To get the error about it for any other outcome.
            self.set(TTL..TTL + 1, &[1]);
            let broken = *outcome == Outcome::Drop(DropReason::BadOption);
            return Some(if broken { KnownDifference::BadOption } else { KnownDifference::OptionContents });
        }
        match outcome {
            Outcome::Drop(DropReason::MartianSource) => self.replace_odd(SOURCE),
            Outcome::Drop(DropReason::MartianDestination) => self.replace_odd(DESTINATION),
            Outcome::Drop(DropReason::LinkLocal) => {
                let field = [SOURCE, DESTINATION].into_iter().find(|field| self.address(field).is_link_local())?;
                self.replace(field, KnownDifference::LinkLocal)
            }
            Outcome::Drop(DropReason::TtlZero) => {
                self.set(TTL..TTL + 1, &[1]);
                Some(KnownDifference::TtlZero)
            }
            Outcome::Drop(DropReason::Loop) if self.entry == Place::Tun => {
                self.elsewhere = true;
                Some(KnownDifference::Loop)
            }
            Outcome::Drop(DropReason::ForeignDestination | DropReason::Loop) => {
                self.nowhere = true;
                self.set(DESTINATION, &POD.octets());
                Some(KnownDifference::ForeignDestination)
            }
            Outcome::Drop(DropReason::NotFragmented) => {
                let flags = self.packet[6] & 0xe0;
                self.set(6..8, &[flags, 0]);
                Some(KnownDifference::OffsetWraps)
            }
            Outcome::Reject { answer: None, .. } => {
                let broadcast = [SOURCE, DESTINATION].into_iter().find(|at| self.world.is_broadcast(self.address(at)));
                match (broadcast, self.entry) {
                    (Some(field), _) => self.replace(field, KnownDifference::Broadcast),
                    (None, Place::Peer(peer)) if peer.ip() == self.address(&SOURCE) => {
                        let pod = self.world.source(self.entry, 0);
                        self.set(SOURCE, &pod.octets());
                        Some(KnownDifference::PeerAddress)
                    }
                    _ => None,
                }
            }
            Outcome::Drop(_) | Outcome::Reject { .. } | Outcome::Forward { .. } | Outcome::Fragments { .. } => None,
        }
    }

    /// Replaces an address that is special to loden and not to Linux.
    fn replace_odd(&mut self, field: Range<usize>) -> Option<KnownDifference> {
        match self.address(&field).octets() {
            [0, 0, 0, 0] | [255, 255, 255, 255] => None,
            [0, ..] => self.replace(field, KnownDifference::ZeroNetwork),
            [240..=255, ..] => self.replace(field, KnownDifference::ReservedNetwork),
            _ => None,
        }
    }

    fn replace(&mut self, field: Range<usize>, known_difference: KnownDifference) -> Option<KnownDifference> {
        let ordinary = self.world.ordinary(self.address(&field));
        self.set(field, &ordinary.octets());
        Some(known_difference)
    }

    fn address(&self, field: &Range<usize>) -> Ipv4Addr {
        address_at(&self.packet, field.start)
    }

    fn set(&mut self, field: Range<usize>, bytes: &[u8]) {
        self.packet[field].copy_from_slice(bytes);
        repair_checksum(&mut self.packet);
    }

    /// Reverts the changes in the result.
    fn undo(&self, outcome: Outcome, original: &[u8]) -> Expected {
        let addresses = |bytes: &mut Vec<u8>| {
            let field = SOURCE.start..DESTINATION.end;
            if bytes[field.clone()] != original[field.clone()] {
                bytes[field.clone()].copy_from_slice(&original[field]);
                repair_checksum(bytes);
            }
        };
        match outcome {
            Outcome::Drop(_) | Outcome::Reject { answer: None, .. } => Expected::Silence,
            Outcome::Forward { to, mut bytes } => {
                addresses(&mut bytes);
                let here = if self.nowhere { Place::Nowhere } else { Place::Tun };
                Expected::Packet { to: to.map_or(here, Place::Peer), bytes }
            }
            Outcome::Fragments { to, mut pieces } => {
                pieces.iter_mut().for_each(addresses);
                Expected::Fragments { to: Place::Peer(to), pieces }
            }
            Outcome::Reject { answer: Some((reply_to, message)), .. } => {
                let mut answer = Answer::parse(&message);
                answer.destination = address_at(original, SOURCE.start);
                answer.quote = original[..answer.quote.len()].to_vec();
                if let Some(at) = self.problem {
                    (answer.type_code, answer.rest) = ([12, 0], [at, 0, 0, 0]);
                }
                Expected::Answer { to: place_of(reply_to), answer }
            }
        }
    }
}

/// Returns true if the checks of a header reached its options.
fn has_sound_lengths(outcome: &Outcome) -> bool {
    let too_bad = [
        DropReason::TooShort,
        DropReason::Ipv6NotCarried,
        DropReason::BadVersion,
        DropReason::BadHeaderLength,
        DropReason::HeaderTruncated,
        DropReason::BadTotalLength,
        DropReason::Truncated,
        DropReason::BadChecksum,
    ];
    !too_bad.iter().any(|reason| *outcome == Outcome::Drop(*reason))
}

/// Returns whether an address is not that of one other host (`inet_addr_type` in net/ipv4/fib_frontend.c).
pub(crate) fn is_nobodys(world: &World, address: Ipv4Addr) -> bool {
    let special = address.is_unspecified() || address.is_broadcast() || address.is_multicast();
    special || address.is_loopback() || world.router.owns(address)
}
