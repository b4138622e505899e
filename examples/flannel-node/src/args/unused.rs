//! Flags of flanneld that this node accepts without effect, or refuses.

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches};

use super::go;

/// A flag of flanneld.
struct Flag {
    name: &'static str,
    value: Value,
    /// The value that describes what this node does.
    fits: Option<&'static str>,
    outcome: Outcome,
}

/// Type of a value, which is checked even if the flag has no effect.
#[derive(Clone, Copy)]
enum Value {
    Number,
    Switch,
    Text,
}

/// The outcome of a flag, with the reason.
#[derive(Clone, Copy)]
enum Outcome {
    NoEffect(&'static str),
    Refused(&'static str),
}

use Outcome::{NoEffect, Refused};

const LOG: &str = "the output has one level of detail";
const STDERR: &str = "the output is written to standard output, errors to standard error";
const KUBERNETES: &str = "Kubernetes is not supported as a source of leases; leases are in etcd only";
const KUBERNETES_ONLY: &str = "flanneld uses it with --kube-subnet-mgr only";
const MULTIPLE_NETWORKS: &str = "flannel itself has removed multiple networks and remote servers";

const FLAGS: &[Flag] = &[
    switch("alsologtostderr", None, NoEffect(STDERR)),
    switch(
        "ip-blackhole-route",
        Some("false"),
        NoEffect("this node adds no route for the own subnet; the pods' bridge has one"),
    ),
    flag("kube-annotation-prefix", Value::Text, Refused(KUBERNETES)),
    flag("kube-api-url", Value::Text, Refused(KUBERNETES)),
    switch("kube-subnet-mgr", Some("false"), Refused(KUBERNETES)),
    flag("kubeconfig-file", Value::Text, Refused(KUBERNETES)),
    flag("listen", Value::Text, Refused(MULTIPLE_NETWORKS)),
    flag("log_backtrace_at", Value::Text, NoEffect(LOG)),
    flag("log_dir", Value::Text, NoEffect(STDERR)),
    switch("logtostderr", None, NoEffect(STDERR)),
    flag("net-config-path", Value::Text, NoEffect(KUBERNETES_ONLY)),
    flag("networks", Value::Text, Refused(MULTIPLE_NETWORKS)),
    flag("remote", Value::Text, Refused(MULTIPLE_NETWORKS)),
    flag("remote-cafile", Value::Text, Refused(MULTIPLE_NETWORKS)),
    flag("remote-certfile", Value::Text, Refused(MULTIPLE_NETWORKS)),
    flag("remote-keyfile", Value::Text, Refused(MULTIPLE_NETWORKS)),
    switch("set-node-network-unavailable", None, NoEffect(KUBERNETES_ONLY)),
    flag("stderrthreshold", Value::Text, NoEffect(STDERR)),
    flag(
        "subnet-dir",
        Value::Text,
        NoEffect("flannel itself has removed multiple networks; --subnet-file names the file"),
    ),
    switch("use-multi-cluster-cidr", Some("false"), NoEffect(KUBERNETES_ONLY)),
    flag("v", Value::Number, NoEffect(LOG)),
    flag("vmodule", Value::Text, NoEffect(LOG)),
];

const fn flag(name: &'static str, value: Value, outcome: Outcome) -> Flag {
    Flag { name, value, fits: None, outcome }
}

const fn switch(name: &'static str, fits: Option<&'static str>, outcome: Outcome) -> Flag {
    Flag { name, value: Value::Switch, fits, outcome }
}

/// Returns the flags for clap.
pub(super) fn args() -> impl Iterator<Item = Arg> {
    FLAGS.iter().map(|flag| {
        let value = flag.value;
        let arg = Arg::new(flag.name)
            .long(flag.name)
            .env(variable(flag.name))
            .action(ArgAction::Set)
            .help_heading("Options of flanneld without effect")
            .hide_short_help(true)
            .help(flag.outcome.help())
            .value_parser(move |text: &str| value.checked(text));
        match value {
            Value::Switch => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
            Value::Number | Value::Text => arg,
        }
    })
}

/// Returns a sentence about each given flag without effect, or the reason why a flag is refused.
pub(super) fn notices(matches: &ArgMatches) -> Result<Vec<String>, String> {
    let mut notices = Vec::new();
    for flag in FLAGS {
        let Some(value) = matches.get_one::<String>(flag.name).filter(|value| flag.fits != Some(value)) else {
            continue;
        };
        let name = match matches.value_source(flag.name) {
            Some(ValueSource::EnvVariable) => variable(flag.name),
            _ => format!("--{}", flag.name),
        };
        match flag.outcome {
            NoEffect(reason) => notices.push(format!("{name}={value} has no effect: {reason}")),
            Refused(reason) => return Err(format!("{name}={value} is refused: {reason}")),
        }
    }
    Ok(notices)
}

/// Returns the environment variable of a flag.
fn variable(flag: &str) -> String {
    format!("FLANNELD_{}", flag.replace('-', "_").to_uppercase())
}

impl Outcome {
    fn help(self) -> String {
        match self {
            NoEffect(reason) => format!("No effect: {reason}"),
            Refused(reason) => format!("Refused: {reason}"),
        }
    }
}

impl Value {
    /// Validates a value and returns it in one spelling.
    fn checked(self, text: &str) -> Result<String, String> {
        match self {
            Self::Number => match text.parse::<i32>() {
                Ok(number) => Ok(number.to_string()),
                Err(error) => Err(error.to_string()),
            },
            Self::Switch => Ok(go::switch(text)?.to_string()),
            Self::Text => Ok(text.to_owned()),
        }
    }
}
