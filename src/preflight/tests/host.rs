//! Tests of rights, underlay, device and sysctls, and of read-only operation.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;

use nix::mount::{MsFlags, mount};

use super::*;

/// Mounts an empty directory over a path, for the calling thread only.
pub(super) fn hide(path: &str) {
    unshare(CloneFlags::CLONE_NEWNS).expect("root");
    let nothing = None::<&str>;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).expect("mounts of our own");
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), nothing).expect("an empty directory");
}

#[test]
fn a_missing_node_is_named() {
    assert_found(
        |_| hide("/dev/net"),
        config(),
        Finding::TunNode { node: "/dev/net/tun", errno: libc::ENOENT },
        &["No such file", "modprobe tun", "--device /dev/net/tun"],
    );
}

/// Both replacements can be opened, so only their metadata differs.
#[test]
fn a_node_of_something_else_is_named() {
    let covered = |with: Option<&'static str>| {
        move |_: &mut World| {
            hide("/dev/net");
            File::create("/dev/net/tun").expect("a file");
            if with.is_some() {
                mount(with, "/dev/net/tun", None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("covered");
            }
        }
    };
    let finding = |found: &str| Finding::NotTunNode { node: "/dev/net/tun", found: found.into() };
    const REMEDY: &[&str] = &["/dev/net/tun is ", "`rm /dev/net/tun`", "`mknod /dev/net/tun c 10 200`"];
    assert_found(covered(Some("/dev/null")), config(), finding("the character device 1:3"), REMEDY);
    assert_found(covered(None), config(), finding("a file"), REMEDY);
}

/// Root in a user namespace that does not own the network namespace has all capabilities, but none in that namespace.
/// The kernel does not let it list the firewall's rules either.
#[test]
fn root_of_another_user_namespace_is_no_net_admin() {
    in_namespace(|| {
        let _world = World::host();
        run_child(&["--user", "--map-root-user"], "child_that_is_root_of_another_user_namespace");
    });
}

#[test]
#[ignore = "run by root_of_another_user_namespace_is_no_net_admin"]
fn child_that_is_root_of_another_user_namespace() {
    let found = check(&config());
    let [Finding::NoNetAdmin, Finding::Unchecked { subject, reason }] = found.as_slice() else { panic!("{found:#?}") };
    assert!(subject.contains("nftables") && reason.contains("CAP_NET_ADMIN"), "{found:?}");
    assert!(found[0].to_string().contains("setcap cap_net_admin,cap_net_raw+ep"), "{}", found[0]);
}

/// The preflight of a process without capabilities reports failed readings and continues.
#[test]
fn a_process_without_rights_gets_the_other_findings() {
    in_namespace(|| {
        let _world = World::host();
        set("ip_forward", 0);
        let _ = std::process::Command::new("iptables-legacy").arg("-L").output();
        hide("/dev/net");
        fs::set_permissions("/dev/net", Permissions::from_mode(0o0)).expect("for nobody");
        run_child(&["--user"], "child_that_lacks_all_rights");
    });
}

#[test]
#[ignore = "run by a_process_without_rights_gets_the_other_findings"]
fn child_that_lacks_all_rights() {
    let found = check(&config());
    let names: Vec<_> = found.iter().map(Finding::name).collect();
    let mut expected = vec!["no_net_admin", "tun_node", "forwarding_off", "unchecked"];
    // A kernel without iptables-legacy has no such table.
    let is_legacy = tables().contains("filter");
    expected.extend(is_legacy.then_some("unchecked"));
    assert_eq!(names, expected, "{found:#?}");
    let words = |index: usize| found.get(index).map(ToString::to_string).unwrap_or_default();
    assert!(words(1).contains("Permission denied") && words(3).contains("nftables"), "{found:#?}");
    assert!(!is_legacy || words(4).contains("iptables-legacy"), "{found:#?}");
}

/// Returns the names of the tables of iptables-legacy.
fn tables() -> String {
    fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default()
}

/// Runs an ignored test in a user namespace of its own.
fn run_child(namespace: &[&str], test: &str) {
    let output = std::process::Command::new("unshare")
        .args(namespace)
        .arg(std::env::current_exe().expect("this program"))
        .args(["--ignored", "--nocapture", test])
        .output()
        .expect("the child runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_listen_address_has_to_be_held() {
    for address in [[10, 168, 0, 9], [0, 0, 0, 0]] {
        let listen = IpAddr::from(address);
        let expected = Finding::ListenNotHeld { listen };
        assert_found(|_| {}, listening([(listen, 8285)]), expected, &["ip address add"]);
    }
}

#[test]
fn the_underlay_has_to_be_up() {
    assert_found(
        |world| world.set_up("eth0", false),
        config(),
        Finding::UnderlayDown { interface: "eth0".into(), listen: LISTEN.into() },
        &["10.168.0.2", "`ip link set dev eth0 up`"],
    );
}

#[test]
fn overlay_and_underlay_have_to_be_apart() {
    let overlap = |network: IpNet, underlay, loops| Finding::Overlap {
        network,
        underlay: net(underlay),
        interface: "eth0".into(),
        loops,
    };
    let wide = PreflightConfig { networks: vec![net("0.0.0.0/1")], ..config() };
    assert_found(
        |_| {},
        wide,
        overlap(net("0.0.0.0/1"), "10.168.0.0/24", false),
        &["overlaps 10.168.0.0/24", "does not overlap"],
    );
    for (address, loops) in [("100.1.0.2/8", false), ("100.96.0.2/8", true), ("100.96.0.2/16", true)] {
        let held = net(address);
        let listening = listening([(held.addr(), 8285)]);
        let underlay = if held.prefix_len() == 8 { "100.0.0.0/8" } else { "100.96.0.0/16" };
        let add = move |world: &mut World| world.add_address("eth0", address);
        assert_found(add, listening, overlap(network(), underlay, loops), &["100.96.0.0/16 overlaps"]);
    }
}

#[test]
fn the_name_of_the_device_has_to_be_one_and_free_or_a_tuns() {
    for (name, problem) in [("a-name-that-is-too-long", "longer than 15"), ("", "empty"), ("a/b", "slash")] {
        in_namespace(move || {
            let _world = World::host();
            let found = check(&PreflightConfig { tun: name.into(), ..config() });
            let [finding @ Finding::BadName { .. }] = found.as_slice() else { panic!("{found:#?}") };
            assert!(finding.to_string().contains(problem), "{finding}");
        });
    }
    let named = |tun: &str| PreflightConfig { tun: tun.into(), ..config() };
    let taken = |name: &str, kind: &str| Finding::NotTun { interface: name.into(), kind: Some(kind.into()) };
    assert_found(|_| {}, named("eth0"), taken("eth0", "veth"), &["eth0 exists and is veth"]);
    let vxlan = |world: &mut World| {
        world.add_vxlan("loden0", 7);
    };
    assert_found(vxlan, config(), taken("loden0", "vxlan"), &["`ip link delete dev loden0`"]);
}

#[test]
fn the_devices_mtu_has_to_fit_the_underlay() {
    let too_large = |mtu| Finding::MtuTooLarge {
        tun: "loden0".into(),
        mtu,
        interface: "eth0".into(),
        interface_mtu: 1500,
        max_mtu: 1472,
    };
    let given = |mtu| PreflightConfig { mtu: crate::Mtu::new(mtu).ok(), ..config() };
    assert_found(|_| {}, given(1473), too_large(1473), &["1473", "eth0 with its MTU of 1500", "mtu 1472`"]);
    assert_nothing_found(|_| {}, given(1472));
    in_namespace(move || {
        let mut world = World::host();
        let _tun = world.open_tun("loden0");
        world.set_mtu("loden0", 9000);
        assert_eq!(check(&config()), [too_large(9000)]);
        assert_eq!(check(&given(1472)), [], "the MTU it will get counts");
    });
}

#[test]
fn forwarding_has_to_be_on() {
    let off = |setting: &str| Finding::ForwardingOff { setting: setting.into() };
    let global = "net.ipv4.ip_forward";
    assert_found(|_| set("ip_forward", 0), config(), off(global), &["`sysctl -w net.ipv4.ip_forward=1`"]);
    // Pods send by br0. The TUN device does not exist yet and will get the defaults.
    let pods = "net.ipv4.conf.br0.forwarding";
    assert_found(
        |_| set("conf.br0.forwarding", 0),
        config(),
        off(pods),
        &["`sysctl -w net.ipv4.conf.br0.forwarding=1`"],
    );
    let later = "net.ipv4.conf.default.forwarding";
    assert_found(|_| set("conf.default.forwarding", 0), config(), off(later), &[]);
    assert_nothing_found(|_| set("conf.eth0.forwarding", 0), config());
    in_namespace(move || {
        let mut world = World::host();
        let _tun = world.open_tun("loden0");
        set("conf.default.forwarding", 0);
        assert_eq!(check(&config()), []);
        set("conf.loden0.forwarding", 0);
        assert_eq!(check(&config()), [off("net.ipv4.conf.loden0.forwarding")]);
    });
}

#[test]
fn reverse_paths_have_to_be_loose_on_the_underlay_and_the_device() {
    let strict = |interface: &str, cause: &str| Finding::StrictReversePath {
        interface: interface.into(),
        cause: format!("net.ipv4.conf.{cause}.rp_filter"),
        setting: format!("net.ipv4.conf.{interface}.rp_filter"),
    };
    const LOOSE: &str = "`sysctl -w net.ipv4.conf.eth0.rp_filter=2`";
    assert_found(|_| set("conf.eth0.rp_filter", 1), config(), strict("eth0", "eth0"), &["strict on eth0", LOOSE]);
    assert_found(
        |_| set("conf.default.rp_filter", 1),
        config(),
        strict("default", "default"),
        &["devices created later"],
    );
    assert_nothing_found(|_| set("conf.br0.rp_filter", 1), config());
    assert_nothing_found(|_| set("conf.all.rp_filter", 2), config());
    in_namespace(move || {
        let mut world = World::host();
        let _tun = world.open_tun("loden0");
        set("conf.all.rp_filter", 1);
        assert_eq!(check(&config()), [strict("eth0", "all"), strict("loden0", "all")]);
        // The remedy of the findings.
        for interface in ["eth0", "loden0"] {
            set(&format!("conf.{interface}.rp_filter"), 2);
        }
        assert_eq!(check(&config()), []);
    });
}

#[test]
fn unreadable_sysctls_are_reported() {
    in_namespace(|| {
        let _world = World::host();
        hide("/proc/sys/net");
        let found = check(&config());
        let subject = |finding: &Finding| {
            let Finding::Unchecked { subject, .. } = finding else { panic!("{finding:?}") };
            subject.clone()
        };
        let subjects: Vec<_> = found.iter().map(subject).collect();
        assert_eq!(subjects, ["net.ipv4.conf.br0.forwarding", "net.ipv4.conf.eth0.rp_filter"]);
        assert!(found.iter().all(|finding| finding.severity() == Severity::MayFail), "{found:#?}");
    });
}

#[test]
fn findings_are_sorted_by_severity() {
    in_namespace(|| {
        let mut world = World::host();
        world.set_mtu("br0", 1500);
        set("conf.eth0.rp_filter", 1);
        set("ip_forward", 0);
        let found = check(&config());
        let severities: Vec<_> = found.iter().map(|finding| finding.severity().name()).collect();
        assert_eq!(severities, ["will_fail", "may_fail", "hint"], "{found:#?}");
    });
}

/// The visible state of a namespace with many findings is the same before and after.
#[test]
fn a_check_changes_nothing() {
    in_namespace(|| {
        let mut world = World::host();
        world.add_vxlan("flannel.1", 1);
        world.set_up("flannel.1", true);
        world.add_bridge("docker0", "100.96.5.1/24");
        world.add_route("eth0");
        world.change_route(RouteType::BlackHole, "100.96.9.0/24", None);
        set("ip_forward", 0);
        set("conf.all.rp_filter", 1);
        firewall::make_chain(libc::NFPROTO_INET, "mine", firewall::DROP, 0);
        let before = VisibleState::of(&mut world);
        assert!(before.tables.is_empty(), "asking for a table of iptables-legacy would create it: {}", before.tables);
        let found = check(&PreflightConfig { bridge: Some("nowhere0".into()), ..config() });
        assert!(found.len() > 5, "{found:#?}");
        assert_eq!(VisibleState::of(&mut world), before);
    });
}

#[derive(Debug, PartialEq, Eq)]
struct VisibleState {
    links: Vec<LinkState>,
    addresses: Vec<Vec<u8>>,
    routes: Vec<Vec<u8>>,
    settings: Vec<(String, String)>,
    /// Names of the tables of iptables-legacy.
    tables: String,
    chains: Vec<Vec<u8>>,
}

impl VisibleState {
    fn of(world: &mut World) -> Self {
        let mut request = AddressMessage::default();
        request.header.family = AddressFamily::Inet;
        let body = |message: &message::Message<'_>| Ok(Some(message.body.to_vec()));
        let addresses = world.0.dump(&RouteNetlinkMessage::GetAddress(request), body).expect("the addresses").entries;
        let mut request = RouteMessage::default();
        request.header.address_family = AddressFamily::Inet;
        let routes = world.0.dump(&RouteNetlinkMessage::GetRoute(request), body).expect("the routes").entries;
        let read = |message: &message::Message<'_>| LinkState::parse(message.body).map(Some);
        let links =
            world.0.dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()), read).expect("the links").entries;
        let mut settings = Vec::new();
        read_all(Path::new("/proc/sys/net/ipv4"), &mut settings);
        assert!(settings.len() > 100, "{}", settings.len());
        Self { links, addresses, routes, settings, tables: tables(), chains: firewall::chains() }
    }
}

fn read_all(directory: &Path, settings: &mut Vec<(String, String)>) {
    let mut entries: Vec<_> =
        fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("one").path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            read_all(&path, settings);
        } else if let Ok(value) = fs::read_to_string(&path) {
            // Some settings are write-only.
            settings.push((path.display().to_string(), value));
        }
    }
}

#[test]
fn fault_61_a_host_whose_addresses_change_during_every_listing_is_checked() {
    in_namespace(|| {
        let mut world = crowded();
        world.add_link("loden0");
        while_addresses_change(|| {
            let found = check(&config());
            let is_not_tun = |finding: &Finding| matches!(finding, Finding::NotTun { .. });
            assert!(found.iter().any(is_not_tun), "{found:#?}");
        });
    });
}
