//! Short runs of the lab's program. They need root.
#![cfg(target_os = "linux")]

use core::time::Duration;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Instant;

use nix::sys::signal::Signal;
use serde_json::Value;
use testbed::{Child, Namespace};

const SOON: Duration = Duration::from_secs(20);

/// Returns the lab that cargo built in the profile of this test, which is `target/<profile>/deps/lab-…`.
fn lab(out: &Path, args: &[&str]) -> Command {
    let own = env::current_exe().expect("a test knows its own path");
    let profile = own.ancestors().nth(2).expect("cargo puts tests into target/<profile>/deps");
    let program: PathBuf = [profile, "examples".as_ref(), "lab".as_ref()].iter().collect();
    assert!(program.exists(), "{} is missing; build it with `cargo build --examples`", program.display());
    let mut command = Command::new(program);
    // With `CARGO` in the environment the lab would build the tunnel again, with the default features.
    command.env_remove("CARGO").arg("--out").arg(out).args(args);
    command
}

/// Returns the ids of the programs that a process started.
fn children_of(process: u32) -> Vec<u32> {
    let mut children = Vec::new();
    for task in fs::read_dir(format!("/proc/{process}/task")).expect("a running process").flatten() {
        // A thread may end during the read.
        let ids = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        children.extend(ids.split_ascii_whitespace().map(|id| id.parse::<u32>().expect("a process id")));
    }
    children
}

/// Returns true if a process has ended, reaped or not.
fn has_ended(process: u32) -> bool {
    fs::read_to_string(format!("/proc/{process}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

fn within(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !holds() {
        if start.elapsed() > limit {
            return false;
        }
        thread::sleep(Duration::from_millis(2));
    }
    true
}

#[test]
fn a_table_a_chart_and_every_measurement_come_out() {
    let directory = tempfile::tempdir().expect("a directory");
    let out = directory.path().join("not/there/yet");
    let variants = ["tunnel", "plain", "vxlan", "host-gw", "null"];
    let args = ["--seconds", "0.1", "--rounds", "1", "--only", &variants.join(",")];
    let output = lab(&out, &args).output().expect("run");
    let (table, progress) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {progress}", output.status);

    let json = fs::read_to_string(out.join("lab.json")).expect("lab.json");
    let json: Value = serde_json::from_str(&json).expect("JSON");
    let svg = fs::read_to_string(out.join("lab.svg")).expect("lab.svg");
    assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"), "{svg}");
    assert_eq!(json["rounds"], 1);
    assert!(json["cores"].as_u64().is_some_and(|cores| cores > 0));
    for name in variants {
        let variant = &json["variants"][name];
        let title = variant["title"].as_str().unwrap_or_else(|| panic!("no {name} in {json:#}"));
        assert!(table.contains(title) && svg.contains(title), "{name}: {table}");
        let is_program = !["vxlan", "host-gw"].contains(&name);
        check_metrics(name, variant["metrics"].as_object().expect("metrics"), is_program);
        assert!(progress.contains(&format!("round 1/1  {name:<12} tcp1 ")), "{progress}");
    }
    assert!(json["variants"].get("no-tun-tso").is_none());
    let targets = json["targets"].as_array().expect("targets");
    assert_eq!(targets.len(), table.lines().filter(|line| line.contains("reached  ")).count(), "{table}");
    assert_eq!(targets.len(), 9);
}

fn check_metrics(variant: &str, metrics: &serde_json::Map<String, Value>, is_program: bool) {
    for name in [
        "tcp1_gbit_per_s",
        "tcp4_gbit_per_s",
        "udp64_overload_sent_k_per_s",
        "udp64_overload_received_k_per_s",
        "udp64_half_load_received_k_per_s",
        "udp1400_overload_received_k_per_s",
        "udp1400_half_load_received_k_per_s",
        "rtt_median_us",
        "rtt_p99_us",
    ] {
        let rounds = metrics.get(name).and_then(|metric| metric["rounds"].as_array());
        let rounds = rounds.unwrap_or_else(|| panic!("{variant} has no {name}"));
        assert_eq!(rounds.len(), 1);
        assert!(rounds[0].as_f64().is_some_and(|value| value > 0.0), "{variant}, {name}: {rounds:?}");
        assert_eq!(metrics[name]["median"], rounds[0]);
    }
    for name in ["peak_memory_mib", "tcp1_cpu_s_per_gb"] {
        assert_eq!(metrics.contains_key(name), is_program, "{variant}, {name}");
    }
    let loss = metrics["udp64_overload_loss_percent"]["median"].as_f64();
    assert!(loss.is_some_and(|loss| (0.0..100.0).contains(&loss)), "{variant}: {loss:?}");
    for load in ["sweep_50k", "sweep_400k", "sweep_unlimited"] {
        let received = metrics.get(&format!("udp64_{load}_received_k_per_s"));
        assert_eq!(received.is_some(), variant == "tunnel", "{variant}, {load}");
    }
}

#[test]
fn its_programs_end_with_it() {
    let directory = tempfile::tempdir().expect("a directory");
    for (variant, signal, code) in
        [("plain", Signal::SIGINT, Some(130)), ("plain", Signal::SIGKILL, None), ("null", Signal::SIGKILL, None)]
    {
        let command = lab(directory.path(), &["--seconds", "60", "--only", &format!("{variant},tcp1")]);
        let mut lab = Child::spawn(&Namespace::current().expect("current"), command).expect("spawned");
        let mut programs = Vec::new();
        // Both ends, before or after they have started.
        let started = within(SOON, || {
            programs = children_of(lab.id());
            programs.len() == 2
        });
        assert!(started, "{variant}: {}", lab.stderr());
        lab.signal(signal).expect("signalled");
        let status = lab.wait(SOON).expect("waited").unwrap_or_else(|| panic!("it still runs after {signal}"));
        assert_eq!(status.code(), code, "{signal}: {}", lab.stderr());
        assert!(within(SOON, || programs.iter().all(|id| has_ended(*id))), "{programs:?} outlived {signal}");
    }
}

#[test]
fn wrong_arguments_are_reported() {
    let directory = tempfile::tempdir().expect("a directory");
    for (args, complaint) in [
        (&["--seconds", "0"][..], "0.05"),
        (&["--only", "wireguard"], "possible values"),
        (&["--rounds", "0"], "--rounds"),
    ] {
        let output = lab(directory.path(), args).output().expect("run");
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains(complaint), "{told}");
    }
}
