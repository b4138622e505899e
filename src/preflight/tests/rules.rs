//! Tests of rules of nft and iptables-nft, and of the commands in the findings.

use std::process::Command;

use super::*;

/// Runs shell commands and asserts that all succeed.
pub(super) fn sh(commands: &str) {
    let output = Command::new("sh").args(["-ec", commands]).output().expect("a shell");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{commands}: {said}; `tests/run` installs nft and iptables");
}

/// Runs the commands in the findings.
pub(super) fn run_commands(findings: &[Finding]) {
    for finding in findings {
        let words = finding.to_string();
        let commands: Vec<_> = words.split('`').skip(1).step_by(2).collect();
        assert!(!commands.is_empty(), "{words}");
        for command in commands {
            sh(command);
        }
    }
}

/// Asserts the findings of a good host with these rules, and that the commands in them resolve all.
fn assert_found_and_resolved(rules: &'static str, expected: &'static [&'static str]) {
    in_namespace(move || {
        let _world = World::host();
        sh(rules);
        let found = check(&config());
        let names: Vec<_> = found.iter().map(|finding| (finding.severity().name(), finding.name())).collect();
        let names: Vec<_> = names.iter().map(|(severity, name)| format!("{severity} {name}")).collect();
        assert_eq!(names, expected, "{rules}: {found:#?}");
        run_commands(&found);
        assert_eq!(check(&config()), [], "{rules}, after the commands of the findings");
    });
}

const INPUT: &str =
    "nft add table inet t; nft 'add chain inet t input { type filter hook input priority 0; policy drop; }'; ";

#[test]
fn the_command_of_the_finding_opens_an_input_chain() {
    let will = &["will_fail input_dropped"][..];
    let may = &["may_fail input_dropped"][..];
    for (rules, expected) in [
        ("", will),
        ("nft add rule inet t input iif lo accept; nft add rule inet t input tcp dport 22 accept", will),
        ("nft add rule inet t input ip protocol icmp accept; nft add rule inet t input iifname '\"br*\"' accept", will),
        ("nft add rule inet t input udp dport 53 accept; nft add rule inet t input udp dport 8000-8200 accept", will),
        ("nft add rule inet t input iifname != '\"eth0\"' udp dport 8285 accept", will),
        ("nft add rule inet t input udp dport 8285 drop; nft add rule inet t input udp dport 8285 accept", will),
        // The first datagram of another host belongs to no established connection.
        ("nft add rule inet t input ct state established,related accept; nft add rule inet t input iif lo accept", may),
        ("nft add rule inet t input udp dport '{ 22, 53, 9000 }' accept", will),
        ("nft add rule inet t input udp dport '{ 22, 8000-8284, 8286-9000 }' accept", will),
        ("nft add rule inet t input udp dport != '{ 22, 8285 }' accept", will),
        ("nft add rule inet t input iifname '{ lo, br0 }' accept", will),
        ("nft add rule inet t input ct state vmap '{ established : accept, related : accept, invalid : drop }'", may),
        ("nft add rule inet t input udp dport vmap '{ 1-8285 : drop, 8286-9000 : accept }'", will),
        ("nft add rule inet t input udp dport vmap '{ 22 : drop, * : accept }'", may),
        // Named sets are not read.
        (
            "nft 'add set inet t s { type inet_service; elements = { 22, 53 }; }'; nft add rule inet t input udp \
             dport @s accept",
            may,
        ),
        ("nft add rule inet t input udp dport 8285 limit rate 10/second accept", may),
    ] {
        assert_found_and_resolved([INPUT, rules].concat().leak(), expected);
    }
    let ufw = "iptables -P INPUT DROP; iptables -N ufw-before-input; iptables -N ufw-user-input; \
        iptables -A INPUT -j ufw-before-input; iptables -A ufw-before-input -i lo -j ACCEPT; \
        iptables -A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; \
        iptables -A ufw-before-input -j ufw-user-input; \
        iptables -A ufw-user-input -p tcp --dport 22 -m comment --comment ssh -j ACCEPT";
    assert_found_and_resolved(ufw, may);
    assert_found_and_resolved("iptables -P INPUT DROP; iptables -A INPUT -p udp --dport 53 -j ACCEPT", will);
}

#[test]
fn an_input_chain_that_accepts_the_port_is_no_finding() {
    for rules in [
        "nft add rule inet t input udp dport 8285 accept",
        "nft add rule inet t input meta l4proto udp th dport 8285 counter accept",
        "nft add rule inet t input udp dport 8000-9000 ct state new accept",
        "nft add rule inet t input ip daddr 10.168.0.2 udp dport 8285 accept",
        // Source addresses are assumed to be those of peers.
        "nft add rule inet t input ip saddr 10.168.0.0/24 udp dport 8285 accept",
        "nft add rule inet t input ip saddr 10.168.0.0/24 accept",
        "nft add rule inet t input ip saddr 192.168.7.0/24 drop; nft add rule inet t input udp dport 8285 accept",
        "nft add rule inet t input ip saddr != 10.0.0.0/8 drop; nft add rule inet t input iifname '\"eth0\"' accept",
        "nft add rule inet t input iifname '\"eth*\"' accept",
        "nft add rule inet t input udp dport '{ 22, 8285 }' accept",
        "nft add rule inet t input udp dport '{ 22, 8000-9000 }' accept",
        "nft add rule inet t input iifname '{ lo, eth0 }' accept",
        "nft add rule inet t input udp dport vmap '{ 1-8284 : drop, 8285-9000 : accept }'",
        "nft add rule inet t input ip saddr '{ 10.168.0.3, 10.168.0.4 }' udp dport 8285 accept",
        "nft add rule inet t input meta l4proto vmap '{ tcp : drop, udp : accept }'",
        "nft add rule inet t input ct state vmap '{ established : accept, related : accept, invalid : drop }'; \
            nft add rule inet t input iif lo accept; nft add rule inet t input udp dport 8285 accept",
        "nft add rule inet t input ct state invalid drop; nft add rule inet t input udp dport 8285 accept",
        "nft add chain inet t of_udp; nft add rule inet t of_udp udp dport 8285 accept; \
            nft add rule inet t input meta l4proto udp jump of_udp",
        "nft add chain inet t of_udp; nft add rule inet t of_udp tcp dport 1 accept; \
            nft add rule inet t input meta l4proto udp jump of_udp; nft add rule inet t input udp dport 8285 accept",
        "nft add rule inet t input meta mark set 7; nft add rule inet t input log; nft add rule inet t input accept",
    ] {
        assert_found_and_resolved([INPUT, rules].concat().leak(), &[]);
    }
    for rules in [
        "iptables -P INPUT DROP; iptables -A INPUT -p udp -m udp --dport 8285 -j ACCEPT",
        "iptables -P INPUT DROP; iptables -A INPUT -m conntrack --ctstate NEW -m comment --comment x -j ACCEPT",
        "iptables -P INPUT DROP; iptables -A INPUT -m conntrack ! --ctstate INVALID -j ACCEPT",
        "iptables -P INPUT DROP; iptables -A INPUT -i eth0 -s 10.168.0.0/24 -j ACCEPT",
        // The policy accepts.
        "iptables -A INPUT -p tcp --dport 22 -j DROP",
        // Rules of kubelet and fail2ban.
        "iptables -A INPUT -m mark --mark 0x8000/0x8000 -j DROP; iptables -A INPUT ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m \
         conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP",
        "nft add table inet f; nft 'add set inet f bad { type ipv4_addr; }'; \
            nft 'add chain inet f input { type filter hook input priority 0; }'; \
            nft add rule inet f input ip saddr @bad drop",
    ] {
        assert_found_and_resolved(rules, &[]);
    }
}

#[test]
fn the_commands_of_the_finding_open_a_forward_chain() {
    assert_found_and_resolved("iptables -P FORWARD DROP", &["will_fail forward_dropped"]);
    assert_found_and_resolved(
        "iptables -P FORWARD DROP; iptables -A FORWARD -i br0 -j ACCEPT; iptables -A FORWARD -p tcp -j ACCEPT",
        &["may_fail forward_dropped"],
    );
    assert_found_and_resolved(
        "iptables -P FORWARD DROP; iptables -A FORWARD -s 100.96.0.0/16 -d 100.96.0.0/16 -j ACCEPT",
        &[],
    );
}

#[test]
fn rules_that_end_a_chain_count_as_its_policy_does() {
    let found = ["nft add table inet t; nft 'add chain inet t input { type filter hook input priority 0; }'; "][0];
    assert_found_and_resolved(
        [found, "nft add rule inet t input reject with icmpx type admin-prohibited"].concat().leak(),
        &["will_fail input_dropped"],
    );
    assert_found_and_resolved([found, "nft add rule inet t input udp dport 1 drop"].concat().leak(), &[]);
    // The first rule may accept peers or not.
    let limited = "nft add rule inet t input meta mark 7 accept; nft add rule inet t input reject";
    assert_found_and_resolved([found, limited].concat().leak(), &["may_fail input_dropped"]);
    let forward = "nft add table inet t; nft 'add chain inet t forward { type filter hook forward priority 0; }'; ";
    for (rules, expected) in [
        // Rules of firewalld and RHEL.
        (
            "nft add rule inet t forward ct state established,related accept; nft add rule inet t forward iif lo \
             accept; nft add rule inet t forward reject with icmpx type admin-prohibited",
            &["may_fail forward_dropped"][..],
        ),
        ("nft add rule inet t forward iifname '\"loden0\"' drop", &["may_fail forward_dropped"]),
        ("nft add rule inet t forward iifname '\"loden1\"' drop", &[]),
        ("nft add rule inet t forward ip saddr 100.96.0.0/16 drop", &["may_fail forward_dropped"]),
        ("nft add rule inet t forward ct state invalid drop; nft add rule inet t forward tcp dport 25 drop", &[]),
        ("nft add rule inet t forward ip saddr 192.168.7.0/24 reject", &[]),
        // Rules of Docker for containers without published ports.
        (
            "nft add chain inet t docker; nft add rule inet t forward oifname '\"br0\"' jump docker; \
                nft add rule inet t docker iifname != '\"br0\"' drop",
            &["may_fail forward_dropped"],
        ),
        // A rule that cannot be evaluated is assumed not to drop.
        ("nft add rule inet t forward meta mark 7 drop", &[]),
    ] {
        assert_found_and_resolved([forward, rules].concat().leak(), expected);
    }
}

#[test]
fn a_chain_that_drops_by_a_rule_is_not_said_to_drop_by_policy() {
    in_namespace(|| {
        let _world = World::host();
        sh("iptables -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; \
            iptables -A INPUT -j REJECT --reject-with icmp-host-prohibited; iptables -A FORWARD -j REJECT");
        let found = check(&config());
        assert_eq!(found.len(), 2, "{found:#?}");
        for finding in found {
            assert!(!finding.to_string().contains("by policy"), "{finding}");
        }
    });
}

const BOTH: &[&str] = &["may_fail port_tracked", "hint pods_reach_port"];

#[test]
fn the_commands_of_the_findings_secure_masqueraded_pods() {
    for rules in [
        // Rules of Docker and flannel.
        "iptables -t nat -A POSTROUTING -s 100.96.1.0/24 ! -o br0 -j MASQUERADE",
        "iptables -t nat -A POSTROUTING -s 100.96.0.0/16 -d 100.96.0.0/16 -j RETURN; \
            iptables -t nat -A POSTROUTING -s 100.96.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully",
        "iptables -t nat -N FLANNEL-POSTRTG; iptables -t nat -A POSTROUTING -m comment --comment flanneld -j \
         FLANNEL-POSTRTG; iptables -t nat -A FLANNEL-POSTRTG -s 100.96.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE",
        "iptables -t nat -A POSTROUTING -o eth0 -j SNAT --to-source 10.168.0.2",
        "nft add table ip n; nft 'add chain ip n post { type nat hook postrouting priority 100; }'; \
            nft add rule ip n post ip saddr 100.96.1.0/24 ip daddr != 100.96.0.0/16 masquerade",
        "nft add table inet n; nft 'add chain inet n post { type nat hook postrouting priority 100; }'; \
            nft add rule inet n post oifname '\"eth0\"' snat ip to 10.168.0.2",
    ] {
        assert_found_and_resolved(rules, BOTH);
    }
    // The exempt addresses may be those of hosts.
    in_namespace(|| {
        let _world = World::host();
        sh("iptables -t nat -A POSTROUTING -s 100.96.1.0/24 ! -d 10.0.0.0/8 -j MASQUERADE");
        let found = check(&config());
        assert!(matches!(found[..], [Finding::PortTracked { certain: false, .. }, _]), "{found:#?}");
    });
    // The mark of kube-proxy: packets of pods may have it or not.
    in_namespace(|| {
        let _world = World::host();
        sh("iptables -t nat -A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE");
        let found = check(&config());
        let [tracked @ Finding::PortTracked { certain: false, .. }, Finding::PodsReachPort { .. }] = found.as_slice()
        else {
            panic!("{found:#?}");
        };
        assert!(tracked.to_string().contains("has rules that may masquerade"), "{tracked}");
    });
}

/// On a kernel without iptables-legacy no table can be created, and there is no finding.
#[test]
fn tables_of_iptables_legacy_are_unchecked_and_listed_by_the_named_command() {
    in_namespace(|| {
        let _world = World::host();
        let created = Command::new("iptables-legacy").args(["-t", "nat", "-L"]).output().expect("iptables-legacy");
        let found = check(&config());
        if !created.status.success() {
            assert_eq!(found, []);
            return;
        }
        let [finding @ Finding::Unchecked { .. }] = found.as_slice() else { panic!("{found:#?}") };
        assert!(finding.to_string().contains("`iptables-legacy -t nat -S`"), "{finding}");
        run_commands(&found);
    });
}

#[test]
fn masquerading_on_the_way_to_the_peers_is_found_if_the_listen_address_is_on_a_stub() {
    in_namespace(|| {
        let mut world = World::host();
        world.add_link("eth1");
        world.set_up("eth1", true);
        world.add_address("eth1", "10.9.0.2/24");
        world.add_address("lo", "10.200.0.1/32");
        sh("ip link set dev eth1 mtu 9000; ip route add default via 10.168.0.3; ip route add 10.200.0.3 via 10.9.0.3");
        let config = PreflightConfig {
            listen: vec![([10, 200, 0, 1], 8285).into()],
            peers: [[10, 200, 0, 3].into()].into(),
            mtu: crate::Mtu::new(8972).ok(),
            ..config()
        };
        assert_eq!(check(&config), [], "the datagrams travel by eth1");
        sh("iptables -t nat -A POSTROUTING -o eth1 -j MASQUERADE");
        let found = check(&config);
        let words: Vec<_> = found.iter().map(ToString::to_string).collect();
        let by_peers = "packets of pods that leave by eth1, and UDP port 8285 is tracked";
        assert!(found.len() == 2 && words[0].contains(by_peers) && words[1].contains("oifname eth1"), "{words:#?}");
    });
}

#[test]
fn masquerading_of_others_is_no_finding() {
    for rules in [
        "iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
        "iptables -t nat -A POSTROUTING -o wlan0 -j MASQUERADE",
        "iptables -t nat -A POSTROUTING -p tcp -j MASQUERADE",
        "iptables -t nat -A POSTROUTING -s 100.96.1.0/24 -p udp --dport 8285 -j RETURN; \
            iptables -t nat -A POSTROUTING -s 100.96.1.0/24 -j MASQUERADE",
        // The exempt addresses are assumed to be those of peers.
        "iptables -t nat -A POSTROUTING -d 10.168.0.0/24 -j ACCEPT; iptables -t nat -A POSTROUTING -j MASQUERADE",
        "iptables -t nat -A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 100.96.1.2",
    ] {
        assert_found_and_resolved(rules, &[]);
    }
}

#[test]
fn each_remedy_resolves_its_own_finding() {
    const MASQUERADE: &str = "iptables -t nat -A POSTROUTING -s 100.96.1.0/24 ! -o br0 -j MASQUERADE; ";
    for (rules, left) in [
        ("iptables -t raw -A PREROUTING -p udp --dport 8285 -j CT --notrack", &["hint pods_reach_port"][..]),
        ("iptables -t raw -A PREROUTING -p udp --dport 8286 -j CT --notrack", BOTH),
        // Only datagrams of other hosts are untracked.
        ("iptables -t raw -A PREROUTING -i eth0 -p udp --dport 8285 -j CT --notrack", BOTH),
        ("iptables -A FORWARD -s 100.96.1.0/24 -p udp --dport 8285 -j DROP", &["may_fail port_tracked"]),
        (
            "iptables -A FORWARD -i br0 -o eth0 -d 10.168.0.0/24 -p udp --dport 8285 -j REJECT",
            &["may_fail port_tracked"],
        ),
        ("iptables -A FORWARD -s 100.96.1.7 -p udp --dport 8285 -j DROP", BOTH),
    ] {
        assert_found_and_resolved([MASQUERADE, rules].concat().leak(), left);
    }
    // Untracked datagrams belong to no established connection.
    let both = "iptables -t raw -A PREROUTING -p udp --dport 8285 -j CT --notrack; iptables -P INPUT DROP; \
        iptables -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT";
    assert_found_and_resolved(both, &["will_fail input_dropped"]);
    assert_found_and_resolved(
        "iptables -t raw -A PREROUTING -p udp --dport 8285 -j CT --notrack; iptables -P INPUT DROP; \
            iptables -A INPUT -m conntrack --ctstate UNTRACKED -j ACCEPT",
        &[],
    );
}

#[test]
fn a_rule_for_another_port_does_not_count() {
    in_namespace(|| {
        let _world = World::host();
        sh("iptables -P INPUT DROP; iptables -A INPUT -p udp --dport 8285 -j ACCEPT");
        let chain = NftablesChain { family: "ip", table: "filter".into(), name: "INPUT".into() };
        let expected = Finding::InputDropped { chain, port: 9000, certain: true };
        let found = check(&listening([(LISTEN, 9000)]));
        assert_eq!((found.as_slice(), found[0].severity()), (&[expected][..], Severity::WillFail));
    });
}
