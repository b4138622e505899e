//! TCP transfers, one after the other. Faulty phases may delay them, never end one or change a byte.

use core::time::Duration;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};

use socket2::SockRef;
use testbed::TwoHosts;
use testbed::probe::{Amount, tcp_send, tcp_sink};

use super::Done;
use crate::side::Side;
use crate::stage::Stage;

const BYTES: u64 = 2 << 20;
/// So that two cores have time for everything else.
const PAUSE: Duration = Duration::from_millis(100);
/// The limit of data in flight. It is below the size of every queue on the path, so no kernel queue drops packets in a
/// fault-free phase.
const WINDOW: usize = 256 << 10;

pub(crate) fn start(hosts: &Arc<TwoHosts>, stage: &Arc<Stage>, done: &Arc<Done>, from: Side) -> JoinHandle<()> {
    let (hosts, stage, done) = (Arc::clone(hosts), Arc::clone(stage), Arc::clone(done));
    thread::Builder::new()
        .name("flow-tcp".into())
        .spawn(move || {
            for seed in 0.. {
                if stage.is_over() {
                    break;
                }
                if let Err(what) = transfer(&hosts, &stage, &done, from, seed) {
                    return stage.fail(format!("TCP transfer {seed} from {from:?}: {what}"));
                }
                thread::sleep(PAUSE);
            }
        })
        .unwrap()
}

fn transfer(hosts: &TwoHosts, stage: &Stage, done: &Done, from: Side, seed: u64) -> Result<(), String> {
    let (to_pod, to) = (from.other().pod(hosts), from.other().place().pod);
    let began = stage.phase();
    let listener = to_pod.enter(|| TcpListener::bind((to, 0))).map_err(|error| error.to_string())?;
    SockRef::from(&listener).set_recv_buffer_size(WINDOW).map_err(|error| error.to_string())?;
    let target = listener.local_addr().map_err(|error| error.to_string())?;
    let sink = tcp_sink(listener, seed);
    let sent = from.pod(hosts).enter(|| tcp_send(target, Amount::Bytes(BYTES), seed));
    if let Err(error) = &sent
        && error.to_string().starts_with("cannot connect")
    {
        // A host that has no way tells so, and ends the attempt (tcp_v4_err in net/ipv4/tcp_ipv4.c), but only in a faulty phase.
        if stage.was_fault_free_since(began) {
            return Err(error.to_string());
        }
        // Somebody has to connect, or the other end would wait.
        let _ = to_pod.enter(|| TcpStream::connect(target));
        let _ = sink.join();
        return Ok(());
    }
    let received = sink.join().map_err(|_| "the receiver panicked")?;
    let (sent, received) = (sent.map_err(|error| error.to_string())?, received.map_err(|error| error.to_string())?);
    if (sent.bytes, received.bytes) != (BYTES, BYTES) {
        return Err(format!("{} bytes arrived of {}", received.bytes, sent.bytes));
    }
    done.transfers.fetch_add(1, Ordering::Relaxed);
    done.bytes.fetch_add(BYTES, Ordering::Relaxed);
    Ok(())
}
