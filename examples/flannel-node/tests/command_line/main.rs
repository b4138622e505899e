//! Every flag and every variable of flanneld: accepted, accepted with a warning, or refused with the reason. The node
//! does not get as far as etcd, so these tests need neither root nor etcd.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panicking")]

use std::process::{Command, Output};

/// An interface that no host has ends the node after its warnings.
const NOWHERE: &str = "-iface=nowhere0";
const ENDED_THERE: &str = "there is no interface nowhere0";

fn node(flags: &[&str], variables: &[(&str, &str)]) -> (Output, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flannel-node"));
    let output = command.env_clear().envs(variables.iter().copied()).args(flags).output().unwrap();
    let text = [&output.stdout[..], &output.stderr].concat();
    let text = String::from_utf8(text).unwrap();
    (output, text)
}

/// Returns the variable of a flag.
fn variable(flag: &str) -> String {
    format!("FLANNELD_{}", flag.to_uppercase().replace('-', "_"))
}

/// Runs the node with a value as flag and as variable, and checks the output of both.
fn both(flag: &str, value: &str, check: impl Fn(&str, &str)) {
    let (_, text) = node(&[NOWHERE, &format!("-{flag}={value}")], &[]);
    check(&format!("-{flag}={value}"), &text);
    let (_, text) = node(&[NOWHERE], &[(&variable(flag), value)]);
    check(&format!("{}={value}", variable(flag)), &text);
}

/// The flags of flanneld 0.28 that this node has too, with a value that has an effect or is the default.
#[test]
fn flags_with_effect_are_accepted_without_a_warning() {
    for (flag, value) in [
        ("etcd-endpoints", "http://127.0.0.1:1,"),
        ("etcd-prefix", "/atomic.io/network"),
        ("healthz-ip", "127.0.0.1"),
        ("healthz-port", "0"),
        ("iface-regex", "nowhere"),
        ("public-ip", "10.168.0.9"),
        ("public-ipv6", "2001:db8::1"),
        ("subnet-file", "/nowhere/subnet.env"),
        ("subnet-lease-renew-margin", "60"),
        ("ip-masq", "true"),
        ("ip-masq", "F"),
        ("ip-masq-fully-random-disable", "true"),
        ("iptables-forward-rules", "false"),
        ("iptables-resync", "1"),
        // What the node does without the flag.
        ("ip-blackhole-route", "0"),
        ("kube-subnet-mgr", "false"),
    ] {
        both(flag, value, |given, text| {
            assert!(text.contains(ENDED_THERE) && !text.contains("warning"), "{given}: {text}");
        });
    }
    // Files are read before the interface is looked for.
    for flag in ["etcd-cafile", "etcd-certfile", "etcd-keyfile"] {
        both(flag, "/nowhere/file.pem", |given, text| assert!(text.contains("write https://"), "{given}: {text}"));
    }
    for flag in ["etcd-username", "etcd-password"] {
        both(flag, "someone", |given, text| assert!(text.contains("go together"), "{given}: {text}"));
    }
    let (output, text) = node(&[], &[("FLANNELD_IFACE", "nowhere0")]);
    assert!(output.status.code() == Some(2) && text.contains(ENDED_THERE), "{text}");
    // The command line precedes the variable.
    let (_, text) = node(&[NOWHERE], &[("FLANNELD_IFACE", "elsewhere0")]);
    assert!(text.contains(ENDED_THERE) && !text.contains("elsewhere0"), "{text}");
}

#[test]
fn flags_without_effect_are_accepted_with_a_warning_and_the_reason() {
    for (flag, value, reason) in [
        ("alsologtostderr", "true", "standard error"),
        ("ip-blackhole-route", "true", "no route"),
        ("log_backtrace_at", "main.go:1", "detail"),
        ("log_dir", "/var/log", "standard error"),
        ("logtostderr", "true", "standard error"),
        ("net-config-path", "/etc/kube-flannel/net-conf.json", "--kube-subnet-mgr"),
        ("set-node-network-unavailable", "true", "--kube-subnet-mgr"),
        ("stderrthreshold", "INFO", "standard error"),
        ("subnet-dir", "/run/flannel/networks", "--subnet-file"),
        ("use-multi-cluster-cidr", "true", "--kube-subnet-mgr"),
        ("v", "5", "detail"),
        ("vmodule", "main=5", "detail"),
    ] {
        both(flag, value, |given, text| {
            let line =
                text.lines().find(|line| line.contains("warning: ")).unwrap_or_else(|| panic!("{given}: {text}"));
            let name = if given.starts_with('-') { format!("--{flag}={value}") } else { given.to_owned() };
            assert!(line.contains(&format!("{name} has no effect: ")) && line.contains(reason), "{given}: {line}");
            assert!(text.contains(ENDED_THERE), "{given}: {text}");
        });
    }
    let (_, text) = node(&[NOWHERE, "-v", "10", "-ip-masq", "-logtostderr"], &[]);
    assert_eq!(text.matches("has no effect").count(), 2, "{text}");
}

#[test]
fn flags_of_another_source_of_leases_are_refused_with_the_reason() {
    for (flag, value, reason) in [
        ("kube-annotation-prefix", "flannel.alpha.coreos.com", "Kubernetes is not supported"),
        ("kube-api-url", "https://10.168.0.1", "Kubernetes is not supported"),
        ("kube-subnet-mgr", "true", "Kubernetes is not supported"),
        ("kubeconfig-file", "/etc/kubeconfig", "Kubernetes is not supported"),
        ("listen", ":8080", "removed"),
        ("networks", "blue,green", "removed"),
        ("remote", "10.168.0.1:8080", "removed"),
        ("remote-cafile", "/etc/ca.pem", "removed"),
        ("remote-certfile", "/etc/cert.pem", "removed"),
        ("remote-keyfile", "/etc/key.pem", "removed"),
        // Values that flanneld refuses too.
        ("iface-can-reach", "nowhere", "invalid"),
        ("ip-masq", "perhaps", "neither true nor false"),
        ("iptables-resync", "0", "1..=86400"),
        ("public-ipv6", "10.168.0.1", "invalid"),
        ("subnet-lease-renew-margin", "1440", "within 1 to 1439"),
        ("v", "much", "invalid"),
    ] {
        both(flag, value, |given, text| {
            assert!(text.contains(reason) && !text.contains(ENDED_THERE), "{given}: {text}");
        });
        let (output, text) = node(&[NOWHERE, &format!("-{flag}={value}")], &[]);
        assert_eq!(output.status.code(), Some(2), "{flag}: {text}");
    }
}

#[test]
fn variables_that_are_not_understood_are_named() {
    let variables = [("FLANNELD_IFCAE", "eth0"), ("FLANNELD_VERSION", "0.28"), ("FLANNELD_EMPTY", ""), ("OTHER", "1")];
    let (_, text) = node(&[NOWHERE], &variables);
    let warnings: Vec<_> = text.lines().filter(|line| line.contains("warning: ")).collect();
    assert_eq!(warnings.len(), 2, "{text}");
    assert!(warnings[0].contains("FLANNELD_IFCAE") && warnings[1].contains("FLANNELD_VERSION"), "{text}");
    // As JSON too.
    let (output, _) = node(&[NOWHERE, "-log-format=json"], &variables);
    let first = String::from_utf8(output.stdout).unwrap();
    let first: serde_json::Value = serde_json::from_str(first.lines().next().unwrap()).unwrap();
    assert_eq!(first["event"], "warning");
    assert!(first["reason"].as_str().unwrap().contains("FLANNELD_IFCAE"), "{first}");
}

/// The flags in the sources of flanneld 0.20 to 0.28, each in some of them.
const FLAGS_OF_FLANNELD: [&str; 33] = [
    "etcd-cafile",
    "etcd-certfile",
    "etcd-endpoints",
    "etcd-keyfile",
    "etcd-password",
    "etcd-prefix",
    "etcd-username",
    "healthz-ip",
    "healthz-port",
    "iface",
    "iface-can-reach",
    "iface-regex",
    "ip-blackhole-route",
    "ip-masq",
    "ip-masq-fully-random-disable",
    "iptables-forward-rules",
    "iptables-resync",
    "kube-annotation-prefix",
    "kube-api-url",
    "kube-subnet-mgr",
    "kubeconfig-file",
    "log_backtrace_at",
    "net-config-path",
    "public-ip",
    "public-ipv6",
    "set-node-network-unavailable",
    "subnet-file",
    "subnet-lease-renew-margin",
    "use-multi-cluster-cidr",
    "v",
    "version",
    "vmodule",
    // An alias for help in Go.
    "help",
];

#[test]
fn no_flag_of_flanneld_0_20_to_0_28_is_unknown() {
    let readme = include_str!("../../README.md");
    for flag in FLAGS_OF_FLANNELD {
        // The value is wrong for most, and its type is judged only if the flag is known.
        let (_, text) = node(&[NOWHERE, &format!("-{flag}=x")], &[]);
        assert!(!text.contains("unexpected argument"), "{flag}: {text}");
        assert!(flag == "help" || readme.contains(&format!("`{flag}`")), "{flag} is not in the README");
        if !["help", "version"].contains(&flag) {
            let (_, text) = node(&[NOWHERE], &[(&variable(flag), "x")]);
            assert!(!text.contains("no option has this name"), "{flag}: {text}");
        }
    }
    let (_, text) = node(&[NOWHERE, "-no-such-flag=x"], &[]);
    assert!(text.contains("unexpected argument"), "{text}");
}

/// As flanneld: on standard error, status 0, without anything else.
#[test]
fn the_version_is_printed_on_standard_error() {
    for flag in ["-version", "--version", "-version=true"] {
        let (output, _) = node(&[NOWHERE, flag], &[("FLANNELD_IFCAE", "eth0")]);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0), "{flag}");
        let version = String::from_utf8(output.stderr).unwrap();
        assert_eq!(version, format!("flannel-node {} (loden)\n", env!("CARGO_PKG_VERSION")), "{flag}");
    }
    let (_, text) = node(&[NOWHERE, "-version=false"], &[]);
    assert!(text.contains(ENDED_THERE), "{text}");
    for (flag, shows_all) in [("-h", false), ("-help", true), ("--help", true)] {
        let (output, text) = node(&[flag], &[]);
        assert!(output.status.success() && text.contains("--iface-can-reach"), "{flag}: {text}");
        assert_eq!(text.contains("--kube-subnet-mgr"), shows_all, "{flag}: {text}");
    }
}

/// Returns true for a time in UTC with milliseconds.
fn is_stamp(text: &str) -> bool {
    let shape: String = text.chars().map(|char| if char.is_ascii_digit() { '0' } else { char }).collect();
    shape == "0000-00-00T00:00:00.000Z"
}

#[test]
fn every_line_has_its_time() {
    let (output, _) = node(&[NOWHERE, "-v=2", "-log-format=text"], &[]);
    for (stream, sentence) in
        [(output.stdout, "warning: --v=2 has no effect"), (output.stderr, "flannel-node: there is no interface")]
    {
        let line = String::from_utf8(stream).unwrap();
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(is_stamp(time) && rest.starts_with(sentence) && line.lines().count() == 1, "{line}");
    }
    let (output, _) = node(&[NOWHERE, "-v=2", "-log-format=json"], &[]);
    let events = String::from_utf8(output.stdout).unwrap();
    let events: Vec<serde_json::Value> = events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.iter().map(|event| event["event"].as_str().unwrap()).collect::<Vec<_>>(), ["warning", "error"]);
    for event in events {
        assert!(is_stamp(event["time"].as_str().unwrap()) && !is_stamp(&event["message"].as_str().unwrap()[..24]));
    }
}
