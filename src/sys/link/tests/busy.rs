//! Tests on a host with ten thousand addresses that change during every listing (fault 61).

use core::cell::{Cell, RefCell};
use core::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::sys::link::message::AddressEntry;

/// Creates a host with 10.168.0.2 on its last link and ten thousand other addresses on its first.
pub(crate) fn crowded() -> World {
    let mut world = World::new();
    let many = world.add_link("eth0");
    world.set_up("eth0", true);
    for number in 0..10_000_u32 {
        let address = Ipv4Addr::from_bits(Ipv4Addr::new(10, 7, 0, 0).to_bits() + number);
        requests::add_address(&mut world.0, many, "eth0", address.into(), 32).expect("added");
    }
    world.add_link("eth1");
    world.add_link("eth2");
    world.add_address("eth2", "10.168.0.2/24");
    world
}

/// Changes the addresses of the host, which interrupts a listing.
fn change(world: &mut World) {
    world.add_address("eth1", "10.9.9.9/32");
    world.remove_address("eth1", "10.9.9.9/32");
}

#[test]
fn fault_61_an_address_of_an_interrupted_listing_is_found() {
    in_namespace(|| {
        let mut world = crowded();
        let other = RefCell::new(World::new());
        let asked = Cell::new(0_u32);
        let look = |wanted: fn(&AddressEntry) -> bool, world: &mut World| {
            underlay::find_address(&mut world.0, AddressFamily::Inet, 0, |held| {
                asked.set(asked.get() + 1);
                if asked.get().is_multiple_of(2_000) {
                    change(&mut other.borrow_mut());
                }
                wanted(held)
            })
        };
        let found = look(|held| held.address == IpAddr::from([10, 168, 0, 2]), &mut world);
        assert_eq!(found.expect("a listing").expect("it is there").prefix_len, 24);
        assert!((10_002..20_000).contains(&asked.take()), "one occurrence is enough");
        let missing = look(|held| held.address == IpAddr::from([10, 168, 0, 3]), &mut world);
        assert!(matches!(missing, Err(LinkError::Busy { attempts: 8, .. })), "{missing:?}");
        assert!(asked.get() > 8 * 9_000, "{}", asked.get());

        // An interrupted listing returns its entries and is marked as inconsistent.
        let read = |_: &message::Message<'_>| {
            asked.set(asked.get() + 1);
            if asked.get().is_multiple_of(2_000) {
                change(&mut other.borrow_mut());
            }
            Ok(Some(()))
        };
        let listing =
            world.0.dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()), read).expect("a listing");
        assert!(!listing.consistent && listing.entries.len() > 9_000, "{}", listing.entries.len());
        assert!(listing.complete().is_err());
    });
}

/// Sets its flag when a test ends or panics.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `test` while another thread changes the addresses of the host.
pub(crate) fn while_addresses_change(test: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| {
            let mut world = World::new();
            while !stop.load(Ordering::Relaxed) {
                change(&mut world);
            }
        });
        test();
    });
}

#[test]
fn fault_61_a_tunnel_starts_while_addresses_change() {
    in_namespace(|| {
        let mut world = crowded();
        world.add_link("loden0");
        while_addresses_change(|| {
            for (address, name) in [("10.168.0.2", "eth2"), ("10.7.39.15", "eth0"), ("127.0.0.5", "lo")] {
                assert_eq!(interface_of(address.parse().expect("an address")).expect(address).name, name);
            }
            let missing = interface_of([10, 168, 0, 3].into());
            assert!(matches!(missing, Err(LinkError::NoSuchAddress { .. })), "{missing:?}");
            assert_eq!(interface_named("eth2").expect("its address").address, IpAddr::from([10, 168, 0, 2]));
            assert_eq!(interface_named("eth0").expect("its first").address, IpAddr::from([10, 7, 0, 0]));
            let mut link = Link::configure_with("loden0", &config(AddressForm::Host)).expect("configured");
            Link::configure_with("loden0", &config(AddressForm::Host)).expect("configured again");
            assert_eq!(link.restore().expect("whole"), Restored::Complete { address: false, route: false });
        });
    });
}
