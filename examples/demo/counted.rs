//! The counters of the tunnels of host a and host b, as a table.

use loden::forward::{Counters, DirectionCounters, DropReason};

use crate::end::End;

/// The ICMP errors of the tour. Host a sends two on the way out: for a TTL of 2 and for the address without a route.
/// Host b sends one on the way in, for a TTL of 3. They show that the tunnels answered, and not a kernel that has the
/// same address.
const ANSWERED: [u64; 4] = [2, 0, 0, 1];

pub(crate) fn show(a: &Counters, b: &Counters, has_ipv6: bool) -> Result<(), End> {
    // With IPv6 the tour causes the same errors once more.
    let expected = ANSWERED.map(|count| if has_ipv6 { 2 * count } else { count });
    let flows = [&a.encap, &a.decap, &b.encap, &b.decap];
    say!("\n6. What the tunnels counted, in packets")?;
    say!("                                       tunnel of host a          tunnel of host b")?;
    say!("                                 TUN > UDP   UDP > TUN     TUN > UDP   UDP > TUN")?;
    row("came in", flows.map(DirectionCounters::received))?;
    row("went on", flows.map(DirectionCounters::forwarded))?;
    row("answered by ICMP", flows.map(DirectionCounters::answered))?;
    for reason in DropReason::ALL {
        let dropped = flows.map(|flow| flow.dropped(*reason));
        if dropped != [0; 4] {
            row(&format!("dropped: {reason}"), dropped)?;
        }
    }
    if !flows.iter().all(|flow| flow.is_conserved() && flow.held() == 0) {
        return Err(End::Failed("some packet is in none of these rows".to_owned()));
    }
    let answered = flows.map(DirectionCounters::answered);
    if answered != expected {
        return Err(End::Failed(format!("the tunnels should have answered {expected:?} packets and not {answered:?}")));
    }
    say!(
        "   What the kernel handed to a tunnel in one piece is one packet there; it is up to 64 of them on its way to the other."
    )?;
    say!("   Every packet that came in is in one of the other rows.")
}

fn row(what: &str, [a_out, a_in, b_out, b_in]: [u64; 4]) -> Result<(), End> {
    say!("   {what:<30}{a_out:>9}{a_in:>12}{b_out:>14}{b_in:>12}")
}
