//! The results as JSON.

use std::fs;
use std::thread;

use serde_json::{Map, Value, json};

use crate::results::{Results, median};
use crate::target;

pub(crate) fn of(results: &Results) -> String {
    let variants: Map<_, _> = results
        .variants()
        .map(|variant| {
            let metrics: Map<_, _> =
                results.of(variant).map(|(metric, values)| (metric.to_string(), figure(values))).collect();
            (variant.name().to_owned(), json!({ "title": variant.title(), "metrics": metrics }))
        })
        .collect();
    let targets: Vec<_> = target::all(results).iter().map(|target| {
        json!({ "what": target.what, "wanted": target.bound.to_string(), "got": target.got, "reached": target.is_reached() })
    }).collect();
    let document = json!({
        "kernel": kernel(),
        "cores": thread::available_parallelism().map_or(Value::Null, |cores| cores.get().into()),
        "release_build": !cfg!(debug_assertions),
        "seconds": results.window.as_secs_f64(),
        "rounds": results.rounds,
        "variants": variants,
        "targets": targets,
    });
    format!("{document:#}\n")
}

fn figure(values: &[f64]) -> Value {
    json!({ "median": median(values), "rounds": values })
}

fn kernel() -> Value {
    fs::read_to_string("/proc/sys/kernel/osrelease").map_or(Value::Null, |release| release.trim().into())
}
