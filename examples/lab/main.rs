//! Measurements of the tunnel beside the kernel's own ways: `cargo run --release --example lab`.
//!
//! It needs root, or a system on which users may make user namespaces. For every variant and every round it creates two
//! hosts with a pod each in network namespaces, joined by veth pairs. Traffic goes from pod to pod:
//!
//! ```text
//!   pod a ── host a ── tunnel ~~~ tunnel ── host b ── pod b
//! ```
//!
//! The variants alternate, so that a slow phase of the machine affects all of them. Standard output gets a table,
//! standard error the progress. All measurements and a chart go into files. Status 0: measured, with any result; 1:
//! something failed; 2: wrong arguments, or this process may not make namespaces or TUN devices; 130: Ctrl-C.
//!
//! Its namespaces have no names and its programs end with it, so that the kernel removes everything after any end.

mod args;
mod chart;
mod example;
mod json;
mod measure;
mod null;
mod program;
mod results;
mod table;
mod target;
mod traffic;
mod variant;

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::process::{self, Command, ExitCode};
use std::thread;
use std::time::Duration;

use clap::Parser;
use nix::sys::signal::{SigSet, Signal};

use args::{Args, Role};
use measure::Measurement;
use program::Programs;
use results::Results;
use variant::{Running, Variant};

type Error = Box<dyn std::error::Error>;

/// A shell's exit status for a program that died of SIGINT.
const INTERRUPTED: i32 = 130;

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(role) = args.role {
        return play(role);
    }
    // Called before there is a second thread, because it may enter a user namespace.
    if let Err(error) = testbed::ensure_privileges() {
        say(&format!("lab: {error}"));
        return ExitCode::from(2);
    }
    match lab(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("lab: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs the lab as one of its own child processes.
fn play(role: Role) -> ExitCode {
    let error = match role {
        Role::NullEnd(end) => null::run(end),
        Role::WithParent { program, args } => {
            let mut command = Command::new(program);
            command.args(args);
            testbed::exec_with_parent(command).into()
        }
    };
    say(&format!("lab: {error}"));
    ExitCode::FAILURE
}

fn lab(args: &Args) -> Result<(), Error> {
    let plan = args.plan();
    if plan.is_empty() {
        return Err("--only names nothing that could be measured: the sweep is of the tunnel with everything on".into());
    }
    // The programs are built with the default signal mask: Ctrl-C ends cargo too.
    let programs = Programs::find(plan.iter().filter_map(|(variant, _)| variant.program()).collect())?;
    end_on_signals()?;
    // Created before the measurements, so that an error is reported early.
    fs::create_dir_all(&args.out).map_err(|error| format!("cannot make {}: {error}", args.out.display()))?;
    if cfg!(debug_assertions) {
        say("This is a debug build, whose numbers mean little: cargo run --release --example lab");
    }

    let mut results = Results::new(args.seconds, args.rounds);
    for round in 1..=args.rounds {
        for (variant, measurements) in &plan {
            let measured = measure_variant(*variant, measurements, &programs, args, round, &mut results);
            measured.map_err(|error| format!("round {round}, {variant}: {error}"))?;
        }
    }

    let [json, svg] = ["lab.json", "lab.svg"].map(|name| args.out.join(name));
    let write = |path, content: String| {
        fs::write(path, content).map_err(|error| format!("cannot write {}: {error}", args.out.display()))
    };
    write(&json, json::of(&results))?;
    write(&svg, chart::of(&results))?;
    match io::stdout().write_all(table::of(&results).as_bytes()) {
        // Standard output is closed: `lab | head`.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        written => written?,
    }
    say(&format!("\n{}\n{}", json.display(), svg.display()));
    Ok(())
}

/// Runs one round of one variant, in new namespaces.
fn measure_variant(
    variant: Variant,
    measurements: &[Measurement],
    programs: &Programs,
    args: &Args,
    round: u32,
    results: &mut Results,
) -> Result<(), Error> {
    let running = Running::start(variant, programs)?;
    for measurement in measurements {
        let figures = measurement.run(&running, args.seconds);
        let figures = figures.map_err(|error| format!("{measurement}: {error}{}", running.complaints()))?;
        let told: Vec<_> = figures.iter().filter(|(metric, _)| metric.is_leading()).map(results::told).collect();
        say(&format!("round {round}/{}  {variant:<12} {measurement:<8} {}", args.rounds, told.join(", ")));
        for (metric, value) in figures {
            results.record(variant, metric, value);
        }
    }
    if let Some(memory) = running.peak_memory()? {
        results.record(variant, results::Metric::PeakMemory, memory);
    }
    Ok(())
}

/// Exits at Ctrl-C. The kernel removes everything.
fn end_on_signals() -> io::Result<()> {
    let mut signals = SigSet::empty();
    signals.extend([Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM]);
    // Later threads inherit the mask, so that only the waiting thread gets the signal.
    signals.thread_block()?;
    let watch = move || {
        if signals.wait().is_ok() {
            say("lab: interrupted; nothing stays behind");
            process::exit(INTERRUPTED);
        }
    };
    thread::Builder::new().name("signals".into()).spawn(watch).map(drop)
}

/// Prints progress and errors. A closed standard error is not an error.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Returns a number in the unit of the lab's figures.
fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
