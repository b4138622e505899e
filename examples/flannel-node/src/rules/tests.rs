//! Tests with the kernel and iptables-nft, each in its own network namespace. They need root.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may fail by panicking")]

use std::process::{Command, Stdio};

use testbed::Namespace;

use super::attributes::{find, nfta};
use super::nftables::{Changes, Family};
use super::rule::{Action, Addresses, Rule, UdpPort};
use super::*;

const FORWARD_V4: &str = "\
-A FORWARD -m comment --comment \"flannel-node forward\" -j FLANNEL-NODE-FWD
-A FLANNEL-NODE-FWD -s 100.96.0.0/16 -m comment --comment \"flannel-node forward\" -j ACCEPT
-A FLANNEL-NODE-FWD -d 100.96.0.0/16 -m comment --comment \"flannel-node forward\" -j ACCEPT
";
const MASQUERADE_V4: &str = "\
-A POSTROUTING -m comment --comment \"flannel-node masq\" -j FLANNEL-NODE-POSTRTG
-A FLANNEL-NODE-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment \"flannel-node masq\" -j RETURN
-A FLANNEL-NODE-POSTRTG -s 100.96.0.0/16 -d 100.96.0.0/16 -m comment --comment \"flannel-node masq\" -j RETURN
-A FLANNEL-NODE-POSTRTG ! -s 100.96.0.0/16 -d 100.96.7.0/24 -m comment --comment \"flannel-node masq\" -j RETURN
-A FLANNEL-NODE-POSTRTG -s 100.96.0.0/16 ! -d 224.0.0.0/4 -m comment --comment \"flannel-node masq\" -j MASQUERADE --random-fully
-A FLANNEL-NODE-POSTRTG ! -s 100.96.0.0/16 -d 100.96.0.0/16 -m comment --comment \"flannel-node masq\" -j MASQUERADE --random-fully
";
const NO_TRACK: &str = "\
-A PREROUTING -m comment --comment \"flannel-node notrack\" -j FLANNEL-NODE-PRE
-A OUTPUT -m comment --comment \"flannel-node notrack\" -j FLANNEL-NODE-OUT
-A FLANNEL-NODE-OUT -p udp -m udp --sport 8285 -m comment --comment \"flannel-node notrack\" -j NOTRACK
-A FLANNEL-NODE-PRE -p udp -m udp --dport 8285 -m comment --comment \"flannel-node notrack\" -j NOTRACK
";

fn config() -> RulesConfig {
    RulesConfig {
        networks: vec![("100.96.0.0/16".parse().unwrap(), "100.96.7.0/24".parse().unwrap())],
        listen: vec!["10.168.0.2:8285".parse().unwrap()],
        forward: true,
        masquerade: true,
        fully_random: true,
        resync: Duration::from_secs(5),
    }
}

fn dual_stack() -> RulesConfig {
    let mut config = config();
    config.networks.push(("fd97::/48".parse().unwrap(), "fd97:0:0:7::/64".parse().unwrap()));
    config.listen.push("[fd00::2]:8285".parse().unwrap());
    config
}

fn forward_only() -> RulesConfig {
    RulesConfig { masquerade: false, ..config() }
}

/// Runs commands of a shell and returns their output.
fn shell(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the rules that iptables-nft shows, without counters, tables and chains.
fn saved(program: &str) -> String {
    shell(&format!("{program}-save"))
        .lines()
        .filter(|line| line.starts_with("-A"))
        .map(|line| format!("{line}\n"))
        .collect()
}

fn ruleset() -> String {
    shell("nft -s list ruleset 2>/dev/null")
}

fn in_namespace(test: impl FnOnce() + Send) {
    Namespace::new().expect("these tests make network namespaces and need root").enter(test);
}

/// Returns the sentences of events, and fails for a warning.
fn says(events: Vec<Event>) -> Vec<String> {
    let says = |event| {
        let Event::Rules { says } = event else { panic!("{event}") };
        says
    };
    events.into_iter().map(says).collect()
}

#[test]
fn iptables_shows_saves_and_restores_the_rules_as_they_are() {
    in_namespace(|| {
        let mut keeper = Keeper::new(&dual_stack());
        assert_eq!(says(keeper.check(true)).len(), 6);
        let rules = |text: &str| {
            let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        let v4 = [FORWARD_V4, MASQUERADE_V4, NO_TRACK].concat();
        assert_eq!(rules(&saved("iptables-nft")), rules(&v4));
        let v6 = v4.replace("100.96.0.0/16", "fd97::/48").replace("100.96.7.0/24", "fd97:0:0:7::/64");
        assert_eq!(rules(&saved("ip6tables-nft")), rules(&v6.replace("224.0.0.0/4", "ff00::/8")));
        // The rules of a restored file count as set.
        for program in ["iptables-nft", "ip6tables-nft"] {
            let before = saved(program);
            shell(&format!("s=$({program}-save); nft flush ruleset; echo \"$s\" | {program}-restore"));
            assert_eq!(saved(program), before);
            let family = if program == "iptables-nft" { "ip " } else { "ip6 " };
            let put_back = says(keeper.check(false));
            assert!(put_back.iter().all(|says| !says.contains(&format!("in {family}"))), "{put_back:?}");
            assert_eq!(put_back.len(), 3, "the other family was flushed: {put_back:?}");
        }
        assert!(keeper.check(false).is_empty());
        assert!(says(keeper.remove()).is_empty());
        assert_eq!(saved("iptables-nft") + &saved("ip6tables-nft"), "");
    });
}

#[test]
fn other_encodings_of_iptables_are_read_and_left_alone() {
    in_namespace(|| {
        let mut keeper = Keeper::new(&config());
        keeper.check(true);
        let is_native = || ruleset().contains("meta mark & 0x00004000");
        assert!(!is_native());
        // The chains are filled by the installed iptables-nft itself.
        shell(
            "for t in filter nat raw; do r=$(iptables-nft-save -t $t | grep -e ^-A.FLANNEL-NODE); \
             for c in $(echo \"$r\" | cut -d ' ' -f 2 | sort -u); do iptables-nft -t $t -F $c; done; \
             echo \"$r\" | while read -r line; do eval iptables-nft -t $t \"$line\"; done; done",
        );
        assert!(is_native());
        assert_eq!(says(keeper.check(false)), Vec::<String>::new());
        keeper.remove();
    });
}

#[test]
fn missing_and_changed_rules_are_put_back_and_nothing_is_doubled() {
    in_namespace(|| {
        shell("iptables-nft -P FORWARD DROP; iptables-nft -A FORWARD -p tcp --dport 22 -j ACCEPT");
        let mut keeper = Keeper::new(&config());
        keeper.check(true);
        let wanted = saved("iptables-nft");
        for (change, chains) in [
            ("iptables-nft -F FLANNEL-NODE-FWD", "ip filter FORWARD"),
            (
                "iptables-nft -D FORWARD -m comment --comment 'flannel-node forward' -j FLANNEL-NODE-FWD",
                "ip filter FORWARD",
            ),
            (
                "iptables-nft -A FORWARD -m comment --comment 'flannel-node forward' -j FLANNEL-NODE-FWD",
                "ip filter FORWARD",
            ),
            ("iptables-nft -I FLANNEL-NODE-FWD -j ACCEPT", "ip filter FORWARD"),
            ("iptables-nft -R FLANNEL-NODE-FWD 1 -s 100.96.0.0/17 -j ACCEPT", "ip filter FORWARD"),
            ("iptables-nft -R FLANNEL-NODE-FWD 1 -s 100.96.0.0/16 -i eth0 -j ACCEPT", "ip filter FORWARD"),
            ("nft add rule ip filter FLANNEL-NODE-FWD ip daddr '{ 10.0.0.1, 10.0.0.2 }' accept", "ip filter FORWARD"),
            ("iptables-nft -t nat -D FLANNEL-NODE-POSTRTG 2", "ip nat POSTROUTING"),
            ("iptables-nft -t nat -F", "ip nat POSTROUTING"),
            ("nft delete table ip nat", "ip nat POSTROUTING"),
            ("iptables-nft -t raw -F FLANNEL-NODE-OUT", "ip raw PREROUTING and OUTPUT"),
        ] {
            shell(change);
            let says = says(keeper.check(false));
            assert!(
                matches!(&says[..], [one] if one.contains(chains) && one.contains("put back")),
                "{change}: {says:?}"
            );
            assert_eq!(saved("iptables-nft"), wanted, "{change}");
            assert!(keeper.check(false).is_empty(), "{change}");
        }
        keeper.remove();
        assert_eq!(saved("iptables-nft"), "-A FORWARD -p tcp -m tcp --dport 22 -j ACCEPT\n");
    });
}

#[test]
fn at_the_end_the_kernel_has_what_it_had() {
    in_namespace(|| {
        let mut keeper = Keeper::new(&dual_stack());
        keeper.check(true);
        keeper.remove();
        assert_eq!(ruleset(), "", "tables and chains were created and are removed");
    });
    in_namespace(|| {
        shell(
            "iptables-nft -P FORWARD DROP; iptables-nft -A FORWARD -i lo -j ACCEPT; iptables-nft -t nat -N X; \
             ip6tables-nft -A FORWARD -j ACCEPT; nft add table inet other",
        );
        let before = ruleset();
        let mut keeper = Keeper::new(&dual_stack());
        keeper.check(true);
        assert!(ruleset().contains("policy drop"));
        keeper.remove();
        assert_eq!(ruleset(), before);
    });
    // A created chain that somebody uses now is kept.
    in_namespace(|| {
        let mut keeper = Keeper::new(&forward_only());
        keeper.check(true);
        shell("iptables-nft -P FORWARD DROP");
        keeper.remove();
        assert_eq!(shell("iptables-nft -S FORWARD"), "-P FORWARD DROP\n");
    });
}

#[test]
fn rules_of_an_earlier_run_are_used_again() {
    in_namespace(|| {
        // As after SIGKILL.
        let mut killed = Keeper::new(&config());
        killed.check(true);
        drop(killed);
        let wanted = saved("iptables-nft");
        let mut keeper = Keeper::new(&config());
        assert_eq!(says(keeper.check(true)).len(), 3);
        assert_eq!(saved("iptables-nft"), wanted);
        // Those of another subnet are replaced.
        let mut moved = config();
        moved.networks[0].1 = "100.96.9.0/24".parse().unwrap();
        let mut moved = Keeper::new(&moved);
        moved.check(true);
        assert_eq!(saved("iptables-nft"), wanted.replace("100.96.7.0", "100.96.9.0"));
        moved.remove();
        assert_eq!(saved("iptables-nft"), "");
    });
}

/// The commands of flanneld 0.28 for a network and a subnet.
fn flanneld(network: &str, subnet: &str) -> String {
    let (masq, forward) = ("-m comment --comment 'flanneld masq'", "-m comment --comment 'flanneld forward'");
    let nat = "iptables-nft -t nat -A FLANNEL-POSTRTG";
    format!(
        "iptables-nft -t nat -N FLANNEL-POSTRTG; iptables-nft -t nat -A POSTROUTING {masq} -j FLANNEL-POSTRTG
         {nat} -m mark --mark 0x4000/0x4000 {masq} -j RETURN
         {nat} -s {subnet} -d {network} {masq} -j RETURN
         {nat} -s {network} -d {subnet} {masq} -j RETURN
         {nat} ! -s {network} -d {subnet} {masq} -j RETURN
         {nat} -s {network} ! -d 224.0.0.0/4 {masq} -j MASQUERADE --random-fully
         {nat} ! -s {network} -d {network} {masq} -j MASQUERADE --random-fully
         iptables-nft -N FLANNEL-FWD; iptables-nft -A FORWARD {forward} -j FLANNEL-FWD
         iptables-nft -A FLANNEL-FWD -s {network} {forward} -j ACCEPT
         iptables-nft -A FLANNEL-FWD -d {network} {forward} -j ACCEPT"
    )
}

#[test]
fn rules_of_flanneld_for_this_network_are_replaced() {
    in_namespace(|| {
        shell(&flanneld("100.96.0.0/16", "100.96.7.0/24"));
        let mut keeper = Keeper::new(&config());
        let says = says(keeper.check(true));
        assert!(says[0].contains("flanneld's rules in FLANNEL-FWD are removed"), "{says:?}");
        assert!(says[1].contains("flanneld's rules in FLANNEL-POSTRTG are removed"), "{says:?}");
        let found = saved("iptables-nft");
        assert!(!found.contains("FLANNEL-FWD") && !found.contains("FLANNEL-POSTRTG"), "{found}");
        assert_eq!(found.lines().count(), 13, "{found}");
        keeper.remove();
    });
    // In the chains of the kernel, as before flannel 0.20.
    in_namespace(|| {
        let comment = "-m comment --comment 'flanneld forward'";
        shell(&format!("for s in -s -d; do iptables-nft -A FORWARD $s 100.96.0.0/16 {comment} -j ACCEPT; done"));
        let mut keeper = Keeper::new(&forward_only());
        keeper.check(true);
        assert_eq!(saved("iptables-nft"), FORWARD_V4);
    });
    // In tables of their own, as with EnableNFTables.
    in_namespace(|| {
        shell(
            "nft 'table ip flannel-ipv4 {
               chain forward { type filter hook forward priority 0; ip saddr 100.96.0.0/16 accept; }
               chain postrtg { type nat hook postrouting priority 100; meta mark 0x4000 return;
                 ip saddr 100.96.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random;
                 ip saddr != 100.96.0.0/16 ip daddr 100.96.7.0/24 return; }
             }
             table ip6 flannel-ipv6 { }'",
        );
        let mut keeper = Keeper::new(&forward_only());
        keeper.check(true);
        assert!(!ruleset().contains("chain forward") && ruleset().contains("chain postrtg"), "{}", ruleset());
        keeper.remove();
        let mut keeper = Keeper::new(&config());
        let says = says(keeper.check(true));
        assert!(says[1].contains("flanneld's rules in flannel-ipv4 are removed"), "{says:?}");
        assert!(!ruleset().contains("flannel-ipv4"), "{}", ruleset());
        keeper.remove();
    });
    // Without --ip-masq, its masquerading is not replaced. Neither is anything of another network.
    for (network, config) in [("100.96.0.0/16", forward_only()), ("10.244.0.0/16", config())] {
        in_namespace(|| {
            shell(&flanneld(network, &network.replace("0.0/16", "7.0/24")));
            let before = shell("iptables-nft -t nat -S FLANNEL-POSTRTG");
            let mut keeper = Keeper::new(&config);
            keeper.check(true);
            assert_eq!(shell("iptables-nft -t nat -S FLANNEL-POSTRTG"), before);
            assert!(saved("iptables-nft").contains("-j FLANNEL-POSTRTG"));
            assert_eq!(saved("iptables-nft").contains("FLANNEL-FWD"), network == "10.244.0.0/16");
            keeper.remove();
        });
    }
}

#[test]
fn a_chain_of_others_that_uses_the_name_is_named_and_kept() {
    in_namespace(|| {
        shell("nft add table ip filter; nft add chain ip filter FORWARD");
        let before = ruleset();
        let mut keeper = Keeper::new(&forward_only());
        let [Event::Warning { reason }] = &keeper.check(true)[..] else { panic!("no warning") };
        assert!(reason.contains("ip filter FORWARD is a chain without a hook"), "{reason}");
        assert!(keeper.check(false).is_empty(), "it is said once");
        assert!(keeper.remove().is_empty());
        assert_eq!(ruleset(), before);
    });
}

#[test]
fn a_chain_to_which_others_jump_is_emptied_at_the_end() {
    in_namespace(|| {
        let mut keeper = Keeper::new(&forward_only());
        keeper.check(true);
        shell("iptables-nft -N X; iptables-nft -A X -j FLANNEL-NODE-FWD");
        let [Event::Warning { reason }] = &keeper.remove()[..] else { panic!("no warning") };
        assert!(reason.contains("delete those rules"), "{reason}");
        assert_eq!(saved("iptables-nft"), "-A X -j FLANNEL-NODE-FWD\n");
    });
}

/// A decision is carried out only on the rules that it was made for.
#[test]
fn a_change_fails_if_another_came_first() {
    in_namespace(|| {
        let mut kernel = Nftables::open().unwrap();
        let mine = || {
            let mut changes = Changes::new(Family::Ip);
            changes.add_table("mine");
            changes
        };
        let old = kernel.generation().unwrap();
        shell("nft add table ip other");
        let error = kernel.commit(old, mine()).unwrap_err();
        assert!(is_busy(&error), "{error}");
        assert_eq!(ruleset(), "table ip other {\n}\n");
        let new = kernel.generation().unwrap();
        kernel.commit(new, mine()).unwrap();
        assert!(ruleset().contains("table ip mine"));
    });
}

/// While another program changes rules all the time, no change of it is lost.
#[test]
fn rules_that_others_change_at_the_same_time_survive() {
    in_namespace(|| {
        let mut busy = Command::new("sh")
            .args(["-ec", "nft add table ip other; for i in $(seq 60); do nft add chain ip other c$i; done"])
            .spawn()
            .unwrap();
        let mut rounds = 0;
        while busy.try_wait().unwrap().is_none() {
            let mut keeper = Keeper::new(&config());
            keeper.check(true);
            assert!(says(keeper.remove()).is_empty());
            rounds += 1;
        }
        assert!(busy.wait().unwrap().success() && rounds > 1);
        assert_eq!(ruleset().matches("chain ").count(), 60);
    });
}

fn all_rules() -> Vec<(Rule, bool)> {
    let keeper = Keeper::new(&dual_stack());
    let rules = |kept: &Kept| {
        let is_ipv6 = kept.group.family.is_ipv6();
        let rules = kept
            .group
            .wanted
            .iter()
            .flat_map(|wanted| [&wanted.rules[..], std::slice::from_ref(&wanted.jump)].concat());
        rules.map(|rule| (rule, is_ipv6)).collect::<Vec<_>>()
    };
    let mut all: Vec<_> = keeper.kept.iter().flat_map(rules).collect();
    let host = Rule::new("x", Action::Masquerade { fully_random: false });
    let host = host.from(Addresses::In("10.1.2.3/32".parse().unwrap())).with_udp(UdpPort::Source(1));
    all.push((host, false));
    all
}

#[test]
fn an_encoded_rule_decodes_to_itself_and_a_cut_one_to_no_other() {
    for (rule, is_ipv6) in all_rules() {
        let expressions = find(&rule.encode(is_ipv6), nfta::RULE_EXPRESSIONS).unwrap();
        assert_eq!(Rule::decode(&expressions, is_ipv6), Some(rule.clone()));
        for length in 0..expressions.len() {
            let cut = Rule::decode(&expressions[..length], is_ipv6);
            assert_eq!(cut, None, "{length} of {} bytes of {rule:?}", expressions.len());
        }
    }
}

#[test]
fn changed_bytes_of_a_rule_cause_no_panic() {
    for (rule, is_ipv6) in all_rules() {
        let expressions = find(&rule.encode(is_ipv6), nfta::RULE_EXPRESSIONS).unwrap();
        for index in 0..expressions.len() {
            for bit in [0, 3, 7] {
                let mut changed = expressions.clone();
                changed[index] ^= 1 << bit;
                let _ = Rule::decode(&changed, is_ipv6);
            }
        }
    }
}

#[test]
fn errors_say_what_to_do() {
    for (errno, advice) in [
        (libc::EPERM, "CAP_NET_ADMIN"),
        (libc::EPROTONOSUPPORT, "nf_tables"),
        (libc::ENOENT, "nft_compat"),
        (libc::EBUSY, "delete those rules"),
    ] {
        let said = explain(&io::Error::from_raw_os_error(errno));
        assert!(said.contains(advice), "{said}");
    }
}
