//! The results of all measurements.

use core::fmt;
use std::collections::BTreeMap;
use std::time::Duration;

use crate::variant::Variant;

/// A figure of a variant. Its `Display` is its name in lab.json.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Metric {
    /// The rate of all streams together in Gbit/s of content.
    TcpRate {
        streams: u8,
    },
    /// Seconds of processor time of both ends' programs for a GB of content.
    TcpCpu {
        streams: u8,
    },
    Udp {
        payload: u16,
        load: Load,
        figure: UdpFigure,
    },
    /// Microseconds.
    RttMedian,
    RttP99,
    /// MiB of the larger end.
    PeakMemory,
}

/// The offered load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Load {
    /// Half of the packets received at overload.
    Half,
    /// The generator's maximum.
    Overload,
    /// In the sweep: this many packets per second.
    Offered(u32),
    /// In the sweep: the generator's maximum.
    Unlimited,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum UdpFigure {
    /// Thousands of packets per second.
    Sent,
    Received,
    /// Per cent.
    Loss,
}

impl Metric {
    /// Returns the figure of received 64-byte packets at a load.
    pub(crate) const fn received64(load: Load) -> Self {
        Self::Udp { payload: 64, load, figure: UdpFigure::Received }
    }

    /// Returns whether the figure is part of the progress output.
    pub(crate) fn is_leading(&self) -> bool {
        match self {
            Self::Udp { figure, .. } => *figure == UdpFigure::Received,
            Self::TcpCpu { streams } => *streams == 1,
            Self::TcpRate { .. } | Self::RttMedian => true,
            Self::RttP99 | Self::PeakMemory => false,
        }
    }

    pub(crate) fn unit(&self) -> &'static str {
        match self {
            Self::TcpRate { .. } => "Gbit/s",
            Self::TcpCpu { .. } => "s/GB",
            Self::Udp { figure: UdpFigure::Loss, .. } => "%",
            Self::Udp { .. } => "k/s",
            Self::RttMedian | Self::RttP99 => "µs",
            Self::PeakMemory => "MiB",
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TcpRate { streams } => write!(f, "tcp{streams}_gbit_per_s"),
            Self::TcpCpu { streams } => write!(f, "tcp{streams}_cpu_s_per_gb"),
            Self::Udp { payload, load, figure } => {
                let figure = match figure {
                    UdpFigure::Sent => "sent_k_per_s",
                    UdpFigure::Received => "received_k_per_s",
                    UdpFigure::Loss => "loss_percent",
                };
                write!(f, "udp{payload}_{load}_{figure}")
            }
            Self::RttMedian => f.write_str("rtt_median_us"),
            Self::RttP99 => f.write_str("rtt_p99_us"),
            Self::PeakMemory => f.write_str("peak_memory_mib"),
        }
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Half => f.write_str("half_load"),
            Self::Overload => f.write_str("overload"),
            Self::Offered(rate) => write!(f, "sweep_{}k", rate / 1000),
            Self::Unlimited => f.write_str("sweep_unlimited"),
        }
    }
}

/// All figures of all rounds.
pub(crate) struct Results {
    pub(crate) window: Duration,
    pub(crate) rounds: u32,
    values: BTreeMap<(Variant, Metric), Vec<f64>>,
}

impl Results {
    pub(crate) fn new(window: Duration, rounds: u32) -> Self {
        Self { window, rounds, values: BTreeMap::new() }
    }

    pub(crate) fn record(&mut self, variant: Variant, metric: Metric, value: f64) {
        self.values.entry((variant, metric)).or_default().push(value);
    }

    pub(crate) fn median(&self, variant: Variant, metric: Metric) -> Option<f64> {
        self.values.get(&(variant, metric)).and_then(|values| median(values))
    }

    /// Returns the ratio of one variant's median to another's.
    pub(crate) fn ratio(&self, variant: Variant, to: Variant, metric: Metric) -> Option<f64> {
        let (value, to) = (self.median(variant, metric)?, self.median(to, metric)?);
        (to > 0.0).then(|| value / to)
    }

    /// Returns the measured variants, in the order of the table.
    pub(crate) fn variants(&self) -> impl Iterator<Item = Variant> {
        let measured = |variant: &Variant| self.values.keys().any(|(of, _)| of == variant);
        Variant::ALL.iter().copied().filter(measured)
    }

    /// Returns the figures of a variant: one value per round.
    pub(crate) fn of(&self, variant: Variant) -> impl Iterator<Item = (Metric, &[f64])> {
        let all = self.values.iter().filter(move |((of, _), _)| *of == variant);
        all.map(|((_, metric), values)| (*metric, values.as_slice()))
    }
}

/// Returns the median; of an even number, the mean of the two in the middle.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let upper = sorted.get(sorted.len() / 2)?;
    let lower = sorted.get(sorted.len().saturating_sub(1) / 2)?;
    Some((lower + upper) / 2.0)
}

/// Returns a value with its unit.
pub(crate) fn told((metric, value): &(Metric, f64)) -> String {
    format!("{} {}", number(*value), metric.unit())
}

/// Returns a number with three digits or more.
pub(crate) fn number(value: f64) -> String {
    let decimals = match value.abs() {
        small if small < 9.995 => 2,
        medium if medium < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}
