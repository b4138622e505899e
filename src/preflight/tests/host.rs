//! Rights, underlay, device and settings; and that looking changes nothing.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;

use nix::mount::{MsFlags, mount};

use super::*;
use crate::preflight::Severity;

/// Hides what is at a path from the calling thread.
fn hide(path: &str) {
    unshare(CloneFlags::CLONE_NEWNS).expect("root");
    let nothing = None::<&str>;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).expect("mounts of our own");
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), nothing).expect("an empty directory");
}

#[test]
fn a_missing_node_is_named() {
    provokes(
        |_| hide("/dev/net"),
        intended(),
        Finding::TunNode { node: "/dev/net/tun", errno: libc::ENOENT },
        &["No such file", "modprobe tun", "--device /dev/net/tun"],
    );
}

/// Each can be opened, so that only looking closer tells.
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
    const MENDED: &[&str] = &["/dev/net/tun is ", "`rm /dev/net/tun`", "`mknod /dev/net/tun c 10 200`"];
    provokes(covered(Some("/dev/null")), intended(), finding("the character device 1:3"), MENDED);
    provokes(covered(None), intended(), finding("a file"), MENDED);
}

/// Root in a user namespace beside the one that owns the network has all capabilities and none that count here. Nor does the
/// kernel show it the firewall, which is said too.
#[test]
fn root_elsewhere_is_no_net_admin() {
    in_namespace(|| {
        let _world = World::host();
        run_child(&["--user", "--map-root-user"], "child_that_is_root_elsewhere");
    });
}

#[test]
#[ignore = "run by root_elsewhere_is_no_net_admin"]
fn child_that_is_root_elsewhere() {
    let found = check(&intended());
    let [Finding::NoNetAdmin, Finding::Unchecked { what, why }] = found.as_slice() else { panic!("{found:#?}") };
    assert!(what.contains("nftables") && why.contains("CAP_NET_ADMIN"), "{found:?}");
    assert!(found[0].to_string().contains("setcap cap_net_admin,cap_net_raw+ep"), "{}", found[0]);
}

/// Nobody in particular: everything that can be read is, and the rest is said.
#[test]
fn without_any_rights_the_rest_is_checked() {
    in_namespace(|| {
        let _world = World::host();
        set("ip_forward", 0);
        firewall::legacy_table_is_made();
        hide("/dev/net");
        fs::set_permissions("/dev/net", Permissions::from_mode(0o0)).expect("for nobody");
        run_child(&["--user"], "child_without_any_rights");
    });
}

#[test]
#[ignore = "run by without_any_rights_the_rest_is_checked"]
fn child_without_any_rights() {
    let found = check(&intended());
    let names: Vec<_> = found.iter().map(Finding::name).collect();
    let mut expected = vec!["no_net_admin", "tun_node", "forwarding_off", "unchecked"];
    // Unless this kernel has no such tables.
    let is_legacy = tables().contains("filter");
    expected.extend(is_legacy.then_some("unchecked"));
    assert_eq!(names, expected, "{found:#?}");
    let words = |index: usize| found.get(index).map(ToString::to_string).unwrap_or_default();
    assert!(words(1).contains("Permission denied") && words(3).contains("nftables"), "{found:#?}");
    assert!(!is_legacy || words(4).contains("iptables-legacy"), "{found:#?}");
}

/// The tables of iptables-legacy; none in a kernel without it.
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
        provokes(|_| {}, Intended { listen, ..intended() }, expected, &["ip address add"]);
    }
}

#[test]
fn the_underlay_has_to_be_up() {
    provokes(
        |world| world.set_up("eth0", false),
        intended(),
        Finding::UnderlayDown { interface: "eth0".into(), listen: LISTEN.into() },
        &["10.168.0.2", "`ip link set dev eth0 up`"],
    );
}

#[test]
fn overlay_and_underlay_have_to_be_apart() {
    let overlap = |network: Ipv4Net, underlay, loops| Finding::Overlap {
        network,
        underlay: net(underlay),
        interface: "eth0".into(),
        loops,
    };
    let wide = Intended { network: net("0.0.0.0/1"), ..intended() };
    provokes(|_| {}, wide, overlap(net("0.0.0.0/1"), "10.168.0.0/24", false), &["overlaps 10.168.0.0/24", "apart"]);
    for (address, loops) in [("100.1.0.2/8", false), ("100.96.0.2/8", true), ("100.96.0.2/16", true)] {
        let held = net(address);
        let listening = Intended { listen: held.addr().into(), ..intended() };
        let underlay = if held.prefix_len() == 8 { "100.0.0.0/8" } else { "100.96.0.0/16" };
        let add = move |world: &mut World| world.add_address("eth0", address);
        provokes(add, listening, overlap(network(), underlay, loops), &["100.96.0.0/16 overlaps"]);
    }
}

#[test]
fn the_name_of_the_device_has_to_be_one_and_free_or_a_tuns() {
    for (name, problem) in [("a-name-that-is-too-long", "longer than 15"), ("", "empty"), ("a/b", "slash")] {
        in_namespace(move || {
            let _world = World::host();
            let found = check(&Intended { tun: name.into(), ..intended() });
            let [finding @ Finding::BadName { .. }] = found.as_slice() else { panic!("{found:#?}") };
            assert!(finding.to_string().contains(problem), "{finding}");
        });
    }
    let named = |tun: &str| Intended { tun: tun.into(), ..intended() };
    let taken = |name: &str, kind: &str| Finding::NotTun { interface: name.into(), kind: Some(kind.into()) };
    provokes(|_| {}, named("eth0"), taken("eth0", "veth"), &["eth0 exists and is veth"]);
    let vxlan = |world: &mut World| {
        world.add_vxlan("loden0", 7);
    };
    provokes(vxlan, intended(), taken("loden0", "vxlan"), &["`ip link delete dev loden0`"]);
}

#[test]
fn the_devices_mtu_has_to_fit_the_underlay() {
    let too_large = |mtu| Finding::MtuTooLarge {
        tun: "loden0".into(),
        mtu,
        interface: "eth0".into(),
        interface_mtu: 1500,
        most: 1472,
    };
    let given = |mtu| Intended { mtu: Some(mtu), ..intended() };
    provokes(|_| {}, given(1473), too_large(1473), &["1473", "eth0 with its MTU of 1500", "mtu 1472`"]);
    provokes_nothing(|_| {}, given(1472));
    in_namespace(move || {
        let mut world = World::host();
        let _tun = world.open_tun("loden0");
        world.set_mtu("loden0", 9000);
        assert_eq!(check(&intended()), [too_large(9000)]);
        assert_eq!(check(&given(1472)), [], "it is going to be given another");
    });
}

#[test]
fn forwarding_has_to_be_on() {
    let off = |setting: &str| Finding::ForwardingOff { setting: setting.into() };
    let global = "net.ipv4.ip_forward";
    provokes(|_| set("ip_forward", 0), intended(), off(global), &["`sysctl -w net.ipv4.ip_forward=1`"]);
    // From the pods, and from a device that is not there yet.
    let pods = "net.ipv4.conf.br0.forwarding";
    provokes(|_| set("conf.br0.forwarding", 0), intended(), off(pods), &["`sysctl -w net.ipv4.conf.br0.forwarding=1`"]);
    let later = "net.ipv4.conf.default.forwarding";
    provokes(|_| set("conf.default.forwarding", 0), intended(), off(later), &[]);
    provokes_nothing(|_| set("conf.eth0.forwarding", 0), intended());
    in_namespace(move || {
        let mut world = World::host();
        let _tun = world.open_tun("loden0");
        set("conf.default.forwarding", 0);
        assert_eq!(check(&intended()), []);
        set("conf.loden0.forwarding", 0);
        assert_eq!(check(&intended()), [off("net.ipv4.conf.loden0.forwarding")]);
    });
}

#[test]
fn reverse_paths_have_to_be_loose_on_the_underlay_and_the_device() {
    let strict = |interface: &str, because: &str| Finding::StrictReversePath {
        interface: interface.into(),
        because: format!("net.ipv4.conf.{because}.rp_filter"),
        setting: format!("net.ipv4.conf.{interface}.rp_filter"),
    };
    const LOOSE: &str = "`sysctl -w net.ipv4.conf.eth0.rp_filter=2`";
    provokes(|_| set("conf.eth0.rp_filter", 1), intended(), strict("eth0", "eth0"), &["strict on eth0", LOOSE]);
    provokes(|_| set("conf.default.rp_filter", 1), intended(), strict("default", "default"), &["made from now on"]);
    provokes_nothing(|_| set("conf.br0.rp_filter", 1), intended());
    provokes_nothing(|_| set("conf.all.rp_filter", 2), intended());
    in_namespace(move || {
        let mut world = World::host();
        let _tun = world.open_tun("loden0");
        set("conf.all.rp_filter", 1);
        assert_eq!(check(&intended()), [strict("eth0", "all"), strict("loden0", "all")]);
        // What the finding says mends it.
        for interface in ["eth0", "loden0"] {
            set(&format!("conf.{interface}.rp_filter"), 2);
        }
        assert_eq!(check(&intended()), []);
    });
}

#[test]
fn settings_that_cannot_be_read_are_said() {
    in_namespace(|| {
        let _world = World::host();
        hide("/proc/sys/net");
        let found = check(&intended());
        let what = |finding: &Finding| {
            let Finding::Unchecked { what, .. } = finding else { panic!("{finding:?}") };
            what.clone()
        };
        let what: Vec<_> = found.iter().map(what).collect();
        assert_eq!(what, ["net.ipv4.conf.br0.forwarding", "net.ipv4.conf.eth0.rp_filter"]);
        assert!(found.iter().all(|finding| finding.severity() == Severity::MayFail), "{found:#?}");
    });
}

/// The worst first, and each in one of three classes.
#[test]
fn findings_come_by_severity() {
    in_namespace(|| {
        let mut world = World::host();
        world.set_mtu("br0", 1500);
        set("conf.eth0.rp_filter", 1);
        set("ip_forward", 0);
        let found = check(&intended());
        let severities: Vec<_> = found.iter().map(|finding| finding.severity().name()).collect();
        assert_eq!(severities, ["will_fail", "may_fail", "hint"], "{found:#?}");
    });
}

/// Everything that can be seen of a namespace before is the same after, with much to be found in it.
#[test]
fn looking_changes_nothing() {
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
        let before = Everything::of(&mut world);
        assert!(before.tables.is_empty(), "a table of iptables-legacy is made by who asks for it: {}", before.tables);
        let found = check(&Intended { bridge: Some("nowhere0".into()), ..intended() });
        assert!(found.len() > 5, "{found:#?}");
        assert_eq!(Everything::of(&mut world), before);
    });
}

#[derive(Debug, PartialEq, Eq)]
struct Everything {
    links: Vec<LinkState>,
    addresses: Vec<Vec<u8>>,
    routes: Vec<Vec<u8>>,
    settings: Vec<(String, String)>,
    /// Of iptables-legacy.
    tables: String,
    chains: Vec<Vec<u8>>,
}

impl Everything {
    fn of(world: &mut World) -> Self {
        let mut request = AddressMessage::default();
        request.header.family = AddressFamily::Inet;
        let body = |message: &message::Message<'_>| Ok(Some(message.body.to_vec()));
        let addresses = world.0.dump(&RouteNetlinkMessage::GetAddress(request), body).expect("the addresses").seen;
        let mut request = RouteMessage::default();
        request.header.address_family = AddressFamily::Inet;
        let routes = world.0.dump(&RouteNetlinkMessage::GetRoute(request), body).expect("the routes").seen;
        let read = |message: &message::Message<'_>| LinkState::parse(message.body).map(Some);
        let links = world.0.dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()), read).expect("the links").seen;
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
            // Some are written only.
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
            let found = check(&intended());
            let is_not_tun = |finding: &Finding| matches!(finding, Finding::NotTun { .. });
            assert!(found.iter().any(is_not_tun), "{found:#?}");
        });
    });
}
