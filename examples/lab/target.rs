//! The targets of the tunnel.

use core::fmt;

use crate::example::Example;
use crate::measure::SWEEP;
use crate::results::{Load, Metric, Results};
use crate::variant::Variant;

/// One target, and its measured value.
pub(crate) struct Target {
    pub(crate) what: &'static str,
    pub(crate) bound: Bound,
    pub(crate) got: f64,
}

#[derive(Clone, Copy)]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Target {
    pub(crate) fn is_reached(&self) -> bool {
        match self.bound {
            Bound::AtLeast(least) => self.got >= least,
            Bound::AtMost(most) => self.got <= most,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, "at least {least}"),
            Self::AtMost(most) => write!(f, "at most {most}"),
        }
    }
}

/// Returns the targets that this run measured.
pub(crate) fn all(results: &Results) -> Vec<Target> {
    use Bound::{AtLeast, AtMost};
    let tcp = Metric::TcpRate { streams: 1 };
    let udp = Metric::received64(Load::Overload);
    let to = |base, metric| results.ratio(Variant::Tunnel, base, metric);
    let absolute = |metric| results.median(Variant::Tunnel, metric);
    let of_example =
        |example, metric| results.ratio(Variant::Example(example), Variant::Example(Example::PollLoop), metric);
    let targets = [
        ("TCP, one stream, × everything off", AtLeast(6.0), to(Variant::Plain, tcp)),
        ("TCP, one stream, × VXLAN", AtLeast(0.4), to(Variant::Vxlan, tcp)),
        ("TCP, one stream, × null forwarder", AtLeast(0.8), to(Variant::Null, tcp)),
        ("64-byte UDP received at overload, × everything off", AtLeast(2.5), to(Variant::Plain, udp)),
        ("64-byte UDP received at overload, × VXLAN", AtLeast(1.5), to(Variant::Vxlan, udp)),
        ("64-byte UDP received at the highest load, × the best at any", AtLeast(0.9), at_highest_load(results)),
        ("round trip, median, × everything off", AtMost(1.1), to(Variant::Plain, Metric::RttMedian)),
        ("CPU seconds per GB of TCP, both ends", AtMost(1.3), absolute(Metric::TcpCpu { streams: 1 })),
        ("TCP, one stream, IPv6 × IPv4", AtLeast(0.95), results.ratio(Variant::Ipv6, Variant::Tunnel, tcp)),
        (
            "64-byte UDP received at overload, IPv6 × IPv4",
            AtLeast(0.95),
            results.ratio(Variant::Ipv6, Variant::Tunnel, udp),
        ),
        (
            "round trip, median, IPv6 × IPv4",
            AtMost(1.05),
            results.ratio(Variant::Ipv6, Variant::Tunnel, Metric::RttMedian),
        ),
        ("TCP, one stream, cframe × poll_loop", AtLeast(0.9), of_example(Example::Cframe, tcp)),
        ("TCP, one stream, tokio_loop × poll_loop", AtLeast(0.9), of_example(Example::TokioLoop, tcp)),
        ("memory of a worker, MiB", AtMost(8.0), absolute(Metric::PeakMemory)),
    ];
    targets.into_iter().filter_map(|(what, bound, got)| Some(Target { what, bound, got: got? })).collect()
}

/// Returns the ratio that shows livelock (more load, fewer received packets): 1 without it.
fn at_highest_load(results: &Results) -> Option<f64> {
    let received = |load: &Load| results.median(Variant::Tunnel, Metric::received64(*load));
    let best = SWEEP.iter().filter_map(received).fold(0.0, f64::max);
    let highest = SWEEP.last().and_then(received)?;
    (best > 0.0).then(|| highest / best)
}
