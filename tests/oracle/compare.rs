//! The comparison of forwarder and kernel for the same packet, and the outcomes of all packets.

use std::collections::BTreeMap;

use loden::forward::RejectReason;

use crate::kernel::{Passage, time_of_day};
use crate::known_difference::Applied;
use crate::options::CIPSO;
use crate::reference::Reference;
use crate::router::Place;
use crate::shape::Shape;
use crate::world::World;
use support::fragments::assert_sound;
use support::host::Outcome;
use support::icmp::Message;
use support::model::option_kinds;
use support::packet::with_ttl;

/// The number of "network unreachable" errors that the kernel sends to one source before its limit: see `SETTINGS` in
/// the router.
const UNREACHABLE_BURST: u8 = 5;

pub(crate) struct Run {
    pub(crate) world: World,
    pub(crate) compared: u64,
    /// Packets for which the kernel is not an oracle.
    pub(crate) left_out: u64,
    pub(crate) applied: Applied,
    /// The outcomes of the packets.
    pub(crate) fates: BTreeMap<String, u64>,
    sources: u32,
    unreachable: BTreeMap<[u8; 4], u8>,
}

impl Run {
    pub(crate) fn new(world: World) -> Self {
        Self {
            world,
            compared: 0,
            left_out: 0,
            applied: Applied::default(),
            fates: BTreeMap::new(),
            sources: 0,
            unreachable: BTreeMap::new(),
        }
    }

    /// Sends a packet through both.
    ///
    /// # Errors
    /// A description of a difference that is not a known one.
    pub(crate) fn check(&mut self, entry: Place, shape: &Shape) -> Result<(), String> {
        self.sources += 1;
        self.compare(entry, &shape.bytes(self.world.source(entry, self.sources)))
    }

    fn compare(&mut self, entry: Place, packet: &[u8]) -> Result<(), String> {
        let ours = self.world.ours(entry, packet);
        // A known difference follows from the list, not from this program.
        assert_eq!(ours, self.world.by_the_list(entry, packet), "{}", hex(packet));
        if entry == Place::Tun {
            assert_eq!(self.world.ours_in_hindsight(packet), ours, "R50, R51: {}", hex(packet));
        }
        self.second_opinion(&ours, packet);
        let reference = Reference::of(&self.world, entry, packet);
        if self.is_beyond(&reference, packet) {
            self.left_out += 1;
            return Ok(());
        }
        let start = time_of_day();
        let seen = self.world.router.pass(entry, packet);
        let time = start..time_of_day() + 1;
        let passage = Passage { world: &self.world, original: packet, seen: &seen, time };
        let (expected, known_differences) = passage.expect(reference);
        if expected != seen {
            return Err(format!(
                "in by {}: {}\nour verdict: {}\nknown differences: {known_differences:?}\nso the kernel should have sent:{}\nit sent:{}",
                self.world.router.link(entry).name,
                hex(packet),
                fate(&ours),
                self.named(&expected),
                self.named(&seen),
            ));
        }
        if let Some(known_difference) =
            known_differences.iter().find(|known_difference| !self.world.known_differences.contains(known_difference))
        {
            return Err(format!("{known_difference:?} is no known difference here: {}", hex(packet)));
        }
        self.applied.count(&known_differences);
        self.compared += 1;
        *self.fates.entry(fate(&ours)).or_default() += 1;
        Ok(())
    }

    fn named(&self, emissions: &[(Place, Vec<u8>)]) -> String {
        let name = |place| self.world.router.link(place).name;
        emissions.iter().map(|(place, bytes)| format!("\n  {}: {}", name(*place), hex(bytes))).collect()
    }

    /// Checks the packets of loden's own with etherparse.
    fn second_opinion(&self, ours: &Outcome, packet: &[u8]) {
        match ours {
            Outcome::Reject { reason, answer: Some((_, message)) } => {
                let message = Message::parse(message);
                let expected = match reason {
                    RejectReason::NetUnreachable => ([3, 0], [0; 4]),
                    RejectReason::FragmentationNeeded { mtu } => ([3, 4], u32::from(*mtu).to_be_bytes()),
                    RejectReason::TimeExceeded => ([11, 0], [0; 4]),
                    other => panic!("the list knows no {other:?}"),
                };
                assert_eq!((message.type_code, message.rest), expected);
            }
            Outcome::Fragments { to, pieces } => {
                let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
                let mtu = self.world.router.link(Place::Peer(*to)).mtu;
                assert_sound(&with_ttl(&packet[..total], packet[8] - 1), pieces, mtu.into());
            }
            Outcome::Reject { answer: None, .. } | Outcome::Forward { .. } | Outcome::Drop(_) => {}
        }
    }

    /// Returns true if the kernel cannot be an oracle for this packet. Counts its errors for the limit.
    fn is_beyond(&mut self, reference: &Reference, packet: &[u8]) -> bool {
        if self.world.concerns_the_router(packet) {
            return true;
        }
        if let Some(walk) = &reference.walk {
            // The kernel's handling of CIPSO depends on its configuration (CONFIG_NETLABEL).
            let header = &packet[20..usize::from(packet[0] & 15) * 4];
            let cipso = option_kinds(header).map_or(header.contains(&CIPSO), |kinds| kinds.contains(&CIPSO));
            if cipso || walk.error.is_some() && walk.reverses_a_source_route() {
                return true;
            }
        }
        if !reference.no_route {
            return false;
        }
        let asked = self.unreachable.entry(packet[12..16].try_into().unwrap()).or_default();
        *asked = asked.saturating_add(1);
        *asked > UNREACHABLE_BURST
    }
}

pub(crate) fn fate(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Forward { .. } => "forward".to_owned(),
        Outcome::Fragments { .. } => "fragments".to_owned(),
        Outcome::Reject { answer: Some(_), .. } => format!("answer {}", outcome.reason().unwrap()),
        Outcome::Reject { answer: None, .. } => format!("reject {}", outcome.reason().unwrap()),
        Outcome::Drop(reason) => format!("drop {reason}"),
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
