//! The fuzz targets' bodies over the committed seeds, and the seeds themselves.
//!
//! `LODEN_WRITE_SEEDS=1 cargo test --all-features --test lease seeds` writes them anew.

use bodies::lease;
use support::corpus::{assert_committed, run_over};

#[test]
fn lease_key_over_the_corpus() {
    run_over("lease_key", lease::key::run);
}

#[test]
fn lease_value_over_the_corpus() {
    run_over("lease_value", lease::value::run);
}

#[test]
fn network_config_over_the_corpus() {
    run_over("network_config", lease::config::run);
}

#[test]
fn subnet_env_over_the_corpus() {
    run_over("subnet_env", lease::subnet_env::run);
}

#[test]
fn the_committed_seeds_are_these() {
    for (target, seeds) in
        [("lease_key", KEYS), ("lease_value", VALUES), ("network_config", CONFIGS), ("subnet_env", SUBNET_ENVS)]
    {
        assert_committed(target, seeds.iter().copied());
    }
}

type Seeds = &'static [(&'static str, &'static str)];

const KEYS: Seeds = &[
    ("ordinary", "100.96.1.0-24"),
    ("dual-stack", "100.96.1.0-24&fd00:1::-64"),
    ("empty", ""),
    ("host-bits", "100.96.1.77-24"),
    ("ipv6-alone", "fd00:1::-64"),
    ("ipv6-mapped", "100.96.1.0-24&::ffff:1.2.3.4-128"),
    ("ipv6-upper-case", "100.96.1.0-24&FD00:1::-64"),
    ("ipv6-written-out", "100.96.1.0-24&fd00:1:0:0:0:0:0:0-64"),
    ("leading-zero", "100.96.01.0-24"),
    ("length-33", "100.96.1.0-33"),
    ("length-zeros", "100.96.1.0-024"),
    ("length-plus", "100.96.1.0-+24"),
    ("length-129", "100.96.1.0-24&fd00:1::-129"),
    ("slash", "100.96.1.0/24"),
    ("whole-path", "/coreos.com/network/subnets/100.96.1.0-24"),
    ("zero", "0.0.0.0-0"),
];

const VALUES: Seeds = &[
    ("ordinary", r#"{"PublicIP":"10.168.0.3","PublicIPv6":null}"#),
    ("older", r#"{"PublicIP":"10.168.0.3"}"#),
    ("ipv6", r#"{"PublicIP":"10.168.0.3","PublicIPv6":"fd00::3"}"#),
    ("lower-case", r#"{"publicip":"10.168.0.3","publicipv6":null,"backendtype":"UDP"}"#),
    ("udp", r#"{"PublicIP":"10.168.0.3","BackendType":"udp","BackendData":null}"#),
    ("backend-empty", r#"{"PublicIP":"10.168.0.3","BackendType":""}"#),
    (
        "vxlan",
        r#"{"PublicIP":"10.168.0.3","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:ff"}}"#,
    ),
    ("twice", r#"{"PublicIP":"10.168.0.3","publicip":"10.168.0.4"}"#),
    ("null-after", r#"{"PublicIP":"10.168.0.3","PublicIP":null}"#),
    ("unknown", r#"{"Later":[1,-2,3.5e9,true,{"PublicIP":"1.1.1.1"}],"PublicIP":"10.168.0.3"}"#),
    ("escaped", r#"{"Public\u0049P":"10.168.0\u002e3"}"#),
    ("number", r#"{"PublicIP":10}"#),
    ("no-address", r#"{"PublicIP":"10.168.0"}"#),
    ("nothing", "{}"),
    ("null", "null"),
    ("list", r#"[{"PublicIP":"10.168.0.3"}]"#),
    ("trailing", r#"{"PublicIP":"10.168.0.3"} {}"#),
    ("cut", r#"{"PublicIP":"10.168."#),
    (
        "deep",
        "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    ),
];

const CONFIGS: Seeds = &[
    (
        "ordinary",
        r#"{"Network":"100.96.0.0/16","SubnetLen":24,"SubnetMin":"100.96.1.0","SubnetMax":"100.96.255.0","Backend":{"Type":"udp","Port":8285}}"#,
    ),
    ("network-alone", r#"{"Network":"100.96.0.0/16"}"#),
    ("backend-null", r#"{"Network":"100.96.0.0/16","Backend":null}"#),
    ("backend-empty", r#"{"Network":"100.96.0.0/16","Backend":{}}"#),
    ("backend-upper-case", r#"{"network":"100.96.0.0/16","BACKEND":{"TYPE":"UDP","PORT":65535}}"#),
    ("vxlan", r#"{"Network":"100.96.0.0/16","Backend":{"Type":"vxlan","VNI":1}}"#),
    ("port-0", r#"{"Network":"100.96.0.0/16","Backend":{"Type":"udp","Port":0}}"#),
    ("port-65536", r#"{"Network":"100.96.0.0/16","Backend":{"Type":"udp","Port":65536}}"#),
    ("ipv4-off", r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/48"}"#),
    ("dual-stack", r#"{"Network":"100.96.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48","IPv6SubnetLen":64}"#),
    ("dual-stack-without", r#"{"Network":"100.96.0.0/16","EnableIPv6":true}"#),
    (
        "ipv6-misaligned",
        r#"{"Network":"100.96.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48","IPv6SubnetMin":"fd00::1"}"#,
    ),
    ("host-bits", r#"{"Network":"100.96.3.4/16"}"#),
    ("small", r#"{"Network":"100.96.0.0/28"}"#),
    ("too-small", r#"{"Network":"100.96.0.0/29"}"#),
    ("everything", r#"{"Network":"0.0.0.0/0"}"#),
    ("len-31", r#"{"Network":"100.96.0.0/16","SubnetLen":31}"#),
    ("len-17", r#"{"Network":"100.96.0.0/16","SubnetLen":17}"#),
    ("len-negative", r#"{"Network":"100.96.0.0/16","SubnetLen":-1}"#),
    ("len-fraction", r#"{"Network":"100.96.0.0/16","SubnetLen":24.5}"#),
    ("zeros", r#"{"Network":"100.96.0.0/16","SubnetLen":0,"SubnetMin":"0.0.0.0","SubnetMax":"0.0.0.0"}"#),
    ("min-outside", r#"{"Network":"100.96.0.0/16","SubnetMin":"100.97.0.0"}"#),
    ("min-misaligned", r#"{"Network":"100.96.0.0/16","SubnetMin":"100.96.1.1"}"#),
    ("reversed", r#"{"Network":"100.96.0.0/16","SubnetMin":"100.96.9.0","SubnetMax":"100.96.8.0"}"#),
    ("last-at-the-end", r#"{"Network":"255.255.255.0/24","SubnetLen":30,"SubnetMax":"255.255.255.252"}"#),
];

const SUBNET_ENVS: Seeds = &[
    (
        "ordinary",
        "FLANNEL_NETWORK=100.96.0.0/16\nFLANNEL_SUBNET=100.96.1.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n",
    ),
    (
        "dual-stack",
        "FLANNEL_NETWORK=100.96.0.0/16\nFLANNEL_SUBNET=100.96.1.1/24\nFLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n",
    ),
    (
        "half-dual-stack",
        "FLANNEL_NETWORK=100.96.0.0/16\nFLANNEL_SUBNET=100.96.1.1/24\nFLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n",
    ),
    (
        "sourced",
        "# ours\nexport FLANNEL_NETWORK=\"100.96.0.0/16\"\r\n FLANNEL_SUBNET = '100.96.1.1/24'\r\nFLANNEL_MTU=1\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false",
    ),
    ("other-order", "FLANNEL_IPMASQ=true\nFLANNEL_MTU=68\nFLANNEL_SUBNET=10.0.0.1/30\nFLANNEL_NETWORK=10.0.0.0/28\n"),
    (
        "outside",
        "FLANNEL_NETWORK=100.96.0.0/16\nFLANNEL_SUBNET=100.97.1.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n",
    ),
    (
        "too-small",
        "FLANNEL_NETWORK=100.96.0.0/16\nFLANNEL_SUBNET=100.96.1.1/31\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n",
    ),
    (
        "mtu-65536",
        "FLANNEL_NETWORK=100.96.0.0/16\nFLANNEL_SUBNET=100.96.1.1/24\nFLANNEL_MTU=65536\nFLANNEL_IPMASQ=false\n",
    ),
    ("no-mtu", "FLANNEL_NETWORK=100.96.0.0/16\nFLANNEL_SUBNET=100.96.1.1/24\nFLANNEL_IPMASQ=false\n"),
    ("empty", ""),
];
