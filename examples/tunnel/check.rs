//! Findings about this host. `--check` prints them and exits, and a tunnel prints them once at its start.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;

use loden::Host;
use loden::forward::Forwarder;
use loden::preflight::{Finding, PreflightConfig, Severity, check};
use loden::sys::link::interface_to;
use serde_json::json;

use crate::Error;
use crate::args::Args;
use crate::report::answer;
use crate::routes::Routes;

/// Prints all findings. Changes nothing on this host.
///
/// # Errors
/// An error of the command line.
pub(crate) fn run(args: &Args) -> Result<ExitCode, Error> {
    let host = args.host()?;
    Forwarder::new(args.config(&host, args.mtu))?;
    Routes::of(args)?.read_file()?;
    let findings = check(&config(args, &host));
    for finding in &findings {
        let (severity, name) = (finding.severity().name(), finding.name());
        let says = finding.to_string();
        print(&json!({ "event": "finding", "severity": severity, "finding": name, "says": says }));
    }
    let count = |severity| findings.iter().filter(|finding| finding.severity() == severity).count();
    let [will_fail, may_fail, hint] = [Severity::WillFail, Severity::MayFail, Severity::Hint].map(count);
    print(&json!({ "event": "checked", "will_fail": will_fail, "may_fail": may_fail, "hint": hint }));
    for sentence in sentences(&findings) {
        let _ = writeln!(std::io::stderr(), "{sentence}");
    }
    Ok(if will_fail == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints the findings as warnings before a tunnel starts.
pub(crate) fn warn(args: &Args, host: &Host) {
    for sentence in sentences(&check(&config(args, host))) {
        answer(format_args!("{sentence}"));
    }
}

fn sentences(findings: &[Finding]) -> impl Iterator<Item = String> {
    findings.iter().map(|finding| format!("{}: {finding}", finding.severity()))
}

fn config(args: &Args, host: &Host) -> PreflightConfig {
    // The MTU that the tunnel will set, not the current MTU of the device.
    let of = |underlay: &SocketAddr| {
        let peers = args.peers().into_iter().filter(|peer| peer.is_ipv4() == underlay.is_ipv4());
        interface_to(underlay.ip(), peers).ok()?.tun_mtu().ok()
    };
    let mtu = args.mtu.or_else(|| host.underlays().iter().filter_map(of).min());
    let mut config = PreflightConfig::new(host, &args.tun).with_peers(args.peers());
    (config.mtu, config.bridge) = (mtu, args.bridge.clone());
    config
}

/// Prints a line and waits for the reader, unlike the output of a running tunnel.
fn print(line: &serde_json::Value) {
    let _ = std::io::stdout().write_all(format!("{line}\n").as_bytes());
}
