//! UDP over loopback, with and without GSO and GRO batches, with one and with many messages per system call.
//!
//! One thread sends four batches and then receives them. On loopback a datagram is in the receive queue when the send
//! call returns. So the bench measures the system calls and the kernel's stack without the scheduler.

use core::net::{Ipv4Addr, SocketAddr};
use core::num::NonZeroUsize;

use criterion::{BenchmarkId, Criterion, Throughput};
use loden::Transmit;
use loden::sys::{RecvBatch, RecvError, UdpConfig, UdpOffload, UdpTransport};

/// Bytes in a datagram.
const DATAGRAM: usize = 1400;
/// The datagrams of a GSO batch: as many as fit into 64 KiB.
const BATCH: usize = 46;
const BATCHES: usize = 4;

/// The number of messages per system call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Calls {
    One,
    Many,
}

fn bind(offload: UdpOffload) -> UdpTransport {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let config = UdpConfig::default().with_offload(offload);
    let transport = UdpTransport::bind(address, &config).expect("a socket on loopback");
    assert_eq!(transport.offload(), offload, "this kernel does not offer what is to be measured");
    transport
}

/// Sends and receives everything, in portions that fit the socket buffers.
fn pass(from: &UdpTransport, to: &UdpTransport, transmits: &[Transmit<'_>], calls: Calls, batch: &mut RecvBatch) {
    match calls {
        Calls::One => transmits.iter().for_each(|transmit| from.send(transmit).expect("sent")),
        Calls::Many => from.send_batch(transmits, 0).expect("sent"),
    }
    let mut missing = DATAGRAM * BATCH * BATCHES;
    while missing > 0 {
        match to.recv_batch(batch) {
            Ok(_count) => {
                let received = batch.iter_mut().map(|message| message.expect("whole").0.len);
                missing -= received.sum::<usize>();
            }
            Err(RecvError::WouldBlock) => core::hint::spin_loop(),
            Err(error) => panic!("{error}"),
        }
    }
}

fn loopback(criterion: &mut Criterion) {
    let contents = vec![7; DATAGRAM * BATCH];
    let mut group = criterion.benchmark_group("udp_loopback");
    group.throughput(Throughput::Bytes((DATAGRAM * BATCH * BATCHES) as u64));
    let both = [false, true];
    let rows = both.into_iter().flat_map(|gso| both.into_iter().map(move |gro| UdpOffload { gso, gro }));
    for (offload, calls) in rows.flat_map(|offload| [(offload, Calls::One), (offload, Calls::Many)]) {
        let (from, to) = (bind(offload), bind(offload));
        let batch =
            Transmit { segment_size: NonZeroUsize::new(DATAGRAM), ..Transmit::datagram(to.local_addr(), &contents) };
        // Without GSO batches each datagram is one transmit.
        let batches = vec![batch; BATCHES];
        let transmits: Vec<_> = match offload.gso {
            true => batches,
            false => batches
                .iter()
                .flat_map(Transmit::segments)
                .map(|one| Transmit::datagram(to.local_addr(), one))
                .collect(),
        };
        let mut batch = RecvBatch::new(if calls == Calls::Many { RecvBatch::MESSAGES_MAX } else { 1 });
        let named = |on, name: &'static str| if on { name } else { "-" };
        let row = [named(offload.gso, "gso"), named(offload.gro, "gro"), named(calls == Calls::Many, "mmsg")].join("/");
        group.bench_function(BenchmarkId::from_parameter(row.replace('/', "_")), |bencher| {
            bencher.iter(|| pass(&from, &to, &transmits, calls, &mut batch));
        });
    }
    group.finish();
}

/// Measures one short datagram, which shows the cost of a system call.
fn small(criterion: &mut Criterion) {
    let (from, to) = (bind(UdpOffload::ALL), bind(UdpOffload::ALL));
    let transmit = Transmit::datagram(to.local_addr(), &[7; 64]);
    let mut buffer = vec![0; 65_536];
    criterion.bench_function("udp_loopback_64_bytes", |bencher| {
        bencher.iter(|| {
            from.send(&transmit).expect("sent");
            while to.recv(&mut buffer).is_err() {}
        });
    });
    let plain = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket on loopback");
    let sink = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket on loopback");
    let address = sink.local_addr().expect("bound");
    criterion.bench_function("udp_loopback_64_bytes_std", |bencher| {
        bencher.iter(|| {
            plain.send_to(&[7; 64], address).expect("sent");
            sink.recv_from(&mut buffer).expect("received");
        });
    });
}

criterion::criterion_group!(benches, loopback, small);
criterion::criterion_main!(benches);
