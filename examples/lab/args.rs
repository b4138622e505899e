//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::PossibleValue;
use clap::{Parser, Subcommand, ValueEnum};

use crate::measure::Measurement;
use crate::null::NullEnd;
use crate::variant::Variant;

/// Measures the tunnel beside the kernel's VXLAN, plain routing and a forwarder that does no work, between two pods on two
/// hosts in network namespaces of its own. Needs root.
#[derive(Parser)]
#[command(name = "lab", max_term_width = 100, args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    /// Duration of one measurement
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = seconds)]
    pub(crate) seconds: Duration,
    /// Number of rounds, each with every measurement; the result is their median
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,
    /// Variants and measurements to run, separated by commas [default: all but the library's examples, and all measurements]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<Name>,
    /// Directory for lab.json and lab.svg
    #[arg(long, value_name = "DIR", default_value = "target/lab")]
    pub(crate) out: PathBuf,
    #[command(subcommand)]
    pub(crate) role: Option<Role>,
}

/// The role of the lab as its own child process.
#[derive(Clone, Subcommand)]
pub(crate) enum Role {
    /// Forwards packets without work
    #[command(hide = true)]
    NullEnd(NullEnd),
    /// Becomes a program that ends with the lab
    #[command(hide = true)]
    WithParent { program: PathBuf, args: Vec<OsString> },
}

impl Args {
    /// Returns the measurements of every round, in order.
    pub(crate) fn plan(&self) -> Vec<(Variant, Vec<Measurement>)> {
        let mut variants = self.chosen(Variant::ALL, |name| match name {
            Name::Variant(variant) => Some(variant),
            Name::Measurement(_) => None,
        });
        if !self.only.iter().any(|name| matches!(name, Name::Variant(_))) {
            variants.retain(|variant| variant.is_default());
        }
        let measurements = self.chosen(Measurement::ALL, |name| match name {
            Name::Measurement(measurement) => Some(measurement),
            Name::Variant(_) => None,
        });
        let plan = variants.into_iter().map(|variant| {
            let of_it = measurements.iter().copied().filter(|measurement| measurement.is_of(variant));
            (variant, of_it.collect::<Vec<_>>())
        });
        plan.filter(|(_, measurements)| !measurements.is_empty()).collect()
    }

    fn chosen<T: Copy + PartialEq>(&self, all: &[T], kind: impl Fn(Name) -> Option<T>) -> Vec<T> {
        let named: Vec<T> = self.only.iter().copied().filter_map(kind).collect();
        all.iter().copied().filter(|one| named.is_empty() || named.contains(one)).collect()
    }
}

/// A value of `--only`.
#[derive(Clone, Copy)]
enum Name {
    Variant(Variant),
    Measurement(Measurement),
}

impl ValueEnum for Name {
    fn value_variants<'a>() -> &'a [Self] {
        const NAMES: [Name; Variant::ALL.len() + Measurement::ALL.len()] = {
            let mut names = [Name::Measurement(Measurement::Rtt); Variant::ALL.len() + Measurement::ALL.len()];
            let mut at = 0;
            while at < names.len() {
                names[at] = if at < Variant::ALL.len() {
                    Name::Variant(Variant::ALL[at])
                } else {
                    Name::Measurement(Measurement::ALL[at - Variant::ALL.len()])
                };
                at += 1;
            }
            names
        };
        &NAMES
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let (name, help) = match self {
            Self::Variant(variant) => (variant.name(), variant.title()),
            Self::Measurement(measurement) => (measurement.name(), measurement.title()),
        };
        Some(PossibleValue::new(name).help(help))
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is no number of seconds"))?;
    if !(0.05..=3600.0).contains(&seconds) {
        return Err("a measurement lasts from 0.05 to 3600 seconds".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}
