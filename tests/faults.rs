//! The list of hostile inputs and faults: each has a test that names its number, as `fault_26_…` does, or
//! `fault_31_32_…` for two.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What the numbers stand for, from 1 on.
const FAULTS: [&str; 63] = [
    "an empty datagram, 1 byte, 19 bytes",
    "a 65,507-byte datagram, a 65,535-byte TUN packet",
    "every flip of a single bit of a header",
    "IP option lengths 0, 1, 41, no end marker, 40 NOPs",
    "more fragments with DF; offset and length past 65,535",
    "a packet inside the tunnel for a socket of the tunnel",
    "an ICMP error that quotes an ICMP error",
    "a million unroutable packets in a second",
    "no canary byte in an ICMP error",
    "each martian class as source and as destination",
    "an address of our own subnet as source from the underlay",
    "a known host from another source port",
    "a packet that would go straight back to its peer",
    "every byte of the vnet header",
    "a read of 1 to 9 bytes",
    "gso_size 0, 1 with 64 KiB, larger than the payload",
    "hdr_len 0 and 65,535",
    "csum_start and csum_offset past the end, wrapping, inside the IP header",
    "a GSO type that does not fit, the ECN bit, unknown bits",
    "a TCP data offset below 5 or past the end",
    "GSO on a fragment",
    "IP IDs across segments",
    "what may not be coalesced; split(coalesce(x)) == x",
    "a GRO stride of 0, negative, larger than the datagram, not dividing it",
    "MSG_TRUNC and MSG_CTRUNC",
    "EINTR, also in the middle of a batch",
    "EAGAIN on send: the place is kept, memory bounded, then counted drops",
    "ENOBUFS: a bounded back-off",
    "EMSGSIZE: that packet only",
    "EINVAL or EIO with GSO: unsegmented at once, and off for that destination",
    "ECONNREFUSED, EHOSTUNREACH, ENETUNREACH, EPERM: counted per peer where Linux reports them",
    "sendmmsg takes fewer than it is given",
    "an error of peer A while sending to B",
    "EBADF: one typed error",
    "EMFILE while opening queues: nothing half open",
    "the link is deleted while forwarding: one event, no processor time",
    "the link goes down and up",
    "MTUs are raised and lowered while running",
    "device busy, wrong flags, no permission, no /dev/net/tun: four errors that say what to do",
    "kill -9 and restart on a persistent TUN",
    "two processes on one TUN",
    "dropping closes every descriptor and removes what was made",
    "updates without end under traffic; `benches/leases.rs` measures their rate",
    "a million routes",
    "overlapping, duplicate, host bits, /0, /32, own subnet, own subnet claimed",
    "a next hop moves: no later batch uses the old one",
    "the eight mistakes of lease feeds",
    "routes change and stop is asked for under a flood",
    "a flood one way: the other is served",
    "logging is rate limited",
    "a slow path to one peer: no loss and no delay for the others",
    "a forged ICMP 3/4 that quotes nothing we would send",
    "policy routing by UDP source port onto a route with a smaller MTU",
    "a receive or send call that fails every time",
    "one EIO on a GSO send: GSO is tried again later",
    "nobody reads standard error or the control socket; a route file of a million lines",
    "connection tracking and masquerade on the underlay: preflight names both and the rule that mends them",
    "etcd restored from a backup and written past the revision seen",
    "values of megabytes below the prefix",
    "another spelling of a subnet's key between listing and transaction",
    "netlink dumps that are interrupted every time",
    "a socket handed over with options set",
    "the message of a cause that repeats for ever: rate limited",
];

/// The numbers of [`FAULTS`] that have no test yet. A number leaves this list with its first test.
const UNTESTED: [usize; 1] = [51];

/// Names of the tests in a source file, without those that only run when asked for.
fn tests_in(source: &str) -> Vec<&str> {
    let (mut tests, mut is_test, mut is_ignored) = (Vec::new(), false, false);
    for line in source.lines().map(str::trim) {
        let declared = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
        if let Some(rest) = declared {
            let name = rest.split(|letter: char| !letter.is_alphanumeric() && letter != '_').next();
            tests.extend(name.filter(|_| is_test && !is_ignored));
        }
        if line == "#[test]" || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if line.starts_with("#[ignore") {
            is_ignored = true;
        } else if !line.starts_with("#[") && !line.starts_with("//") {
            (is_test, is_ignored) = (false, false);
        }
    }
    tests
}

/// The numbers that a name gives: those that follow `fault` without a word between them.
fn numbers_in(name: &str) -> Vec<usize> {
    let words = name.split('_').skip_while(|word| *word != "fault").skip(1);
    words.map_while(|word| word.parse().ok()).collect()
}

/// All Rust files in a directory of the repository.
fn sources(directory: &Path, files: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(directory).expect("a directory of the repository");
    for path in entries.map(|entry| entry.expect("an entry").path()) {
        if path.is_dir() {
            sources(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

#[test]
fn every_fault_has_a_test() {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let mut files = Vec::new();
    for directory in ["src", "tests", "examples/flannel-node/src", "examples/flannel-node/tests"] {
        sources(&root.join(directory), &mut files);
    }
    let mut tests = BTreeMap::<usize, Vec<String>>::new();
    for file in files {
        let source = fs::read_to_string(&file).expect("a source file");
        for name in tests_in(&source) {
            for number in numbers_in(name) {
                tests.entry(number).or_default().push(format!("{name} in {}", file.display()));
            }
        }
    }
    let all: BTreeSet<usize> = (1..=FAULTS.len()).collect();
    let unknown: Vec<_> = tests.iter().filter(|(number, _)| !all.contains(number)).collect();
    assert!(unknown.is_empty(), "no such faults: {unknown:?}");
    let tested: Vec<_> = UNTESTED.iter().filter(|number| tests.contains_key(number)).collect();
    assert!(tested.is_empty(), "these have tests now and leave UNTESTED: {tested:?}");
    let missing = all.iter().filter(|number| !tests.contains_key(number) && !UNTESTED.contains(number));
    let missing: Vec<String> = missing.map(|number| format!("{number}: {}", FAULTS[number - 1])).collect();
    assert!(missing.is_empty(), "no test names these faults:\n{}", missing.join("\n"));
}

#[test]
fn only_tests_that_run_count() {
    let source = "
        /// fault_1_in_a_comment
        fn fault_2_is_no_test() {}

        #[test]
        fn fault_3_is_one() {}

        proptest! {
            /// Whatever.
            #[test]
            fn r45_fault_4_5_are_two(byte in 0..9) {}
        }

        #[test]
        #[ignore = \"run by another\"]
        fn fault_6_runs_when_asked() {}

        #[tokio::test(flavor = \"current_thread\")]
        // Why.
        #[expect(dead_code)]
        async fn fault_7_is_one() {}

        #[test]
        fn a_fault_of_8_has_no_number() {}
    ";
    let numbers: Vec<usize> = tests_in(source).into_iter().flat_map(numbers_in).collect();
    assert_eq!(numbers, [3, 4, 5, 7]);
    assert_eq!(numbers_in("fault_23_no_more_than_65_535_bytes"), [23]);
}
