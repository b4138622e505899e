//! The measurements of a variant.

use core::fmt;
use std::time::Duration;

use crate::results::{Load, Metric, UdpFigure};
use crate::traffic::udp::{Counts, Pace};
use crate::traffic::{rtt, tcp, udp};
use crate::variant::{Running, Variant};
use crate::{Error, micros};

/// Packets per second of the sweep, in ascending order. The last one is the generator's maximum.
pub(crate) const SWEEP: [Load; 5] =
    [Load::Offered(50_000), Load::Offered(100_000), Load::Offered(200_000), Load::Offered(400_000), Load::Unlimited];

/// One measurement, or a group of related ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Measurement {
    Tcp1,
    Tcp4,
    Udp64,
    Udp1400,
    Rtt,
    Sweep,
}

type Figures = Vec<(Metric, f64)>;

impl Measurement {
    /// All measurements, in their order.
    pub(crate) const ALL: &[Self] = &[Self::Tcp1, Self::Tcp4, Self::Udp64, Self::Udp1400, Self::Rtt, Self::Sweep];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp1 => "tcp1",
            Self::Tcp4 => "tcp4",
            Self::Udp64 => "udp64",
            Self::Udp1400 => "udp1400",
            Self::Rtt => "rtt",
            Self::Sweep => "sweep",
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Tcp1 => "TCP, one stream, and what the tunnel takes of the processors for it",
            Self::Tcp4 => "TCP, four streams",
            Self::Udp64 => "64-byte UDP at overload, and at half of what was received then",
            Self::Udp1400 => "1,400-byte UDP at overload, and at half of what was received then",
            Self::Rtt => "round trips of one datagram at a time",
            Self::Sweep => "64-byte UDP at rising loads, of the tunnel with everything on",
        }
    }

    pub(crate) fn is_of(self, variant: Variant) -> bool {
        self != Self::Sweep || variant == Variant::Tunnel
    }

    pub(crate) fn run(self, running: &Running, window: Duration) -> Result<Figures, Error> {
        match self {
            Self::Tcp1 => streams(running, 1, window),
            Self::Tcp4 => streams(running, 4, window),
            Self::Udp64 => datagrams(running, 64, window),
            Self::Udp1400 => datagrams(running, 1400, window),
            Self::Rtt => round_trips(running, window),
            Self::Sweep => sweep(running, window),
        }
    }
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

fn streams(running: &Running, streams: u8, window: Duration) -> Result<Figures, Error> {
    let before = running.cpu_time()?;
    let transfer = tcp::run(running.pods(), streams.into(), window)?;
    let after = running.cpu_time()?;
    let bytes = transfer.bytes as f64;
    let rate = bytes * 8.0 / 1e9 / transfer.elapsed.as_secs_f64();
    let mut figures = vec![(Metric::TcpRate { streams }, rate)];
    if let Some((before, after)) = before.zip(after) {
        figures.push((Metric::TcpCpu { streams }, (after - before).as_secs_f64() / (bytes / 1e9)));
    }
    Ok(figures)
}

fn datagrams(running: &Running, payload: u16, window: Duration) -> Result<Figures, Error> {
    let send = |pace| udp::run(running.pods(), payload.into(), pace, window);
    let overload = send(Pace::Overload)?;
    if overload.received == 0 {
        return Err("not one datagram arrived".into());
    }
    let half = send(Pace::PerSecond(overload.received_per_second() / 2.0))?;
    let mut figures = udp_figures(payload, Load::Overload, overload);
    figures.extend(udp_figures(payload, Load::Half, half));
    Ok(figures)
}

fn udp_figures(payload: u16, load: Load, counts: Counts) -> Figures {
    [
        (UdpFigure::Sent, counts.sent_per_second() / 1e3),
        (UdpFigure::Received, counts.received_per_second() / 1e3),
        (UdpFigure::Loss, counts.loss()),
    ]
    .map(|(figure, value)| (Metric::Udp { payload, load, figure }, value))
    .into()
}

fn round_trips(running: &Running, window: Duration) -> Result<Figures, Error> {
    let times = rtt::run(running.pods(), window)?;
    // The smallest time that at least this share of all does not exceed.
    let percentile = |share: usize| micros(times[(times.len() * share).div_ceil(100) - 1]);
    Ok(vec![(Metric::RttMedian, percentile(50)), (Metric::RttP99, percentile(99))])
}

fn sweep(running: &Running, window: Duration) -> Result<Figures, Error> {
    let mut figures = Vec::new();
    for load in SWEEP {
        let pace = match load {
            Load::Offered(rate) => Pace::PerSecond(rate.into()),
            Load::Half | Load::Overload | Load::Unlimited => Pace::Overload,
        };
        figures.extend(udp_figures(64, load, udp::run(running.pods(), 64, pace, window)?));
    }
    Ok(figures)
}
