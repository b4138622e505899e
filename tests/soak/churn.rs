//! Continuous route changes: thousands of commands a second on each control socket, some of them about the route in
//! use.

use core::net::{Ipv4Addr, SocketAddrV4};
use core::time::Duration;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use ipnet::Ipv4Net;
use loden::control::Command;
use socket2::Socket;

use crate::lab::{Lab, connect};
use crate::side::{SIDES, Side};
use crate::stage::Stage;

/// The number of other hosts' subnets, half of which have a route at any time.
const OTHERS: u32 = 512;
/// The commands of a burst and the pause after it: four thousand a second in total.
const BURST: usize = 20;
const PAUSE: Duration = Duration::from_millis(5);
/// The share of commands that concern the route in use.
const KINDS: u32 = 16;
const IN_USE: u32 = 8;

pub(crate) struct Churn {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    commands: Arc<AtomicU64>,
}

impl Churn {
    pub(crate) fn start(lab: &Lab, stage: &Arc<Stage>) -> Self {
        let (over, commands) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let start = |side: Side| {
            let (path, stage) = (lab.control(side), Arc::clone(stage));
            let (over, commands) = (Arc::clone(&over), Arc::clone(&commands));
            let run = move || {
                if let Err(what) = run(side, &path, &stage, &over, &commands) {
                    stage.fail(format!("control socket of {side:?}: {what}"));
                }
            };
            thread::Builder::new().name("flow-churn".into()).spawn(run).unwrap()
        };
        let threads = SIDES.map(start).into();
        Self { over, threads, commands }
    }

    pub(crate) fn commands(&self) -> u64 {
        self.commands.load(Ordering::Relaxed)
    }

    /// Deletes all routes except the first one of each tunnel.
    pub(crate) fn stop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

fn run(side: Side, path: &Path, stage: &Stage, over: &AtomicBool, commands: &AtomicU64) -> Result<(), std::io::Error> {
    let open = || -> std::io::Result<Socket> {
        let socket = connect(path)?;
        // A tunnel that accepts no commands for this long has failed.
        socket.set_write_timeout(Some(Duration::from_secs(10)))?;
        Ok(socket)
    };
    let mut socket = None;
    let mut round = 0;
    while !over.load(Ordering::Relaxed) {
        let began = stage.phase();
        let sent = (|| {
            let client = match &socket {
                Some(client) => client,
                None => socket.insert(open()?),
            };
            let send = |number| client.send(&command(side, number).encode()).map(drop);
            (round..).take(BURST).try_for_each(|number| match number % KINDS {
                0..IN_USE => stage.unless_at_rest(side, || send(number)).unwrap_or(Ok(())),
                _ => send(number),
            })
        })();
        match sent {
            Ok(()) => {
                round += BURST as u32;
                commands.fetch_add(BURST as u64, Ordering::Relaxed);
            }
            Err(error) if stage.was_fault_free_since(began) => return Err(error),
            // It is being restarted.
            Err(_) => socket = None,
        }
        thread::sleep(PAUSE);
    }
    let delete_all = |client: &Socket| -> std::io::Result<()> {
        for number in 0..OTHERS {
            client.send(&Command::DeleteRoute { subnet: other_subnet(number) }.encode())?;
        }
        client.send(&in_use(side).encode())?;
        for half in halves(side) {
            client.send(&Command::DeleteRoute { subnet: half }.encode())?;
        }
        Ok(())
    };
    // By the same connection: commands of another one may overtake those that still wait there.
    match &socket {
        Some(client) if delete_all(client).is_ok() => Ok(()),
        _ => delete_all(&open()?),
    }
}

/// Returns command `number`: mostly for another route, at times for the one in use, whole or in halves. The route in
/// use always leads to the same host.
fn command(side: Side, number: u32) -> Command {
    let round = number / OTHERS;
    match number % KINDS {
        0 => in_use(side),
        1..5 => {
            let [subnet, _] = halves(side);
            if number.is_multiple_of(2) { Command::DeleteRoute { subnet } } else { route(subnet, peer(side)) }
        }
        5..IN_USE => {
            let [_, subnet] = halves(side);
            if round.is_multiple_of(2) { Command::DeleteRoute { subnet } } else { route(subnet, peer(side)) }
        }
        _ if (number + round).is_multiple_of(2) => Command::DeleteRoute { subnet: other_subnet(number) },
        _ => route(other_subnet(number), Ipv4Addr::new(10, 168, 1, (number + round) as u8 | 1)),
    }
}

/// Returns the first route of a tunnel.
pub(crate) fn in_use(side: Side) -> Command {
    route(subnet(side), peer(side))
}

pub(crate) fn route(subnet: Ipv4Net, owner: Ipv4Addr) -> Command {
    Command::SetRoute { subnet, next_hop: SocketAddrV4::new(owner, 8285) }
}

/// Returns the subnet of the other end.
pub(crate) fn subnet(side: Side) -> Ipv4Net {
    side.other().place().subnet.parse().unwrap()
}

fn peer(side: Side) -> Ipv4Addr {
    side.other().place().host
}

pub(crate) fn halves(side: Side) -> [Ipv4Net; 2] {
    let mut halves = subnet(side).subnets(25).unwrap();
    [halves.next().unwrap(), halves.next().unwrap()]
}

/// Returns a subnet of 100.96.64.0/19, which is no packet's destination.
fn other_subnet(number: u32) -> Ipv4Net {
    Ipv4Net::new(Ipv4Addr::from_bits(0x6460_4000 + number % OTHERS * 16), 28).unwrap()
}
