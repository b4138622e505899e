//! The null forwarder: the same four copies of every byte as any tunnel in user space, and no other work.
//!
//! A GSO packet is sent as it was read, with its virtio-net header in front, as one GSO batch. The other end receives
//! the batch whole and writes it unchanged. This is the limit and not a tunnel: its datagrams are not packets, and a
//! lost one loses its batch.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::process;
use std::thread;

use clap::Args;
use loden::ipnet::Ipv4Net;
use loden::offload::{VNET_HEADER_LEN, VnetHeader};
use loden::sys::link::{Link, LinkConfig};
use loden::sys::{PACKET_MAX, RecvError, SendErrorKind, Tun, TunConfig, TunError, TunOffload, UdpConfig, UdpTransport};
use loden::{Host, Mtu, Transmit};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use testbed::TwoHosts;

use crate::{Error, say};

/// Another port than the tunnel's.
const PORT: u16 = 8286;
/// The payload of a datagram on a link of 1,500 bytes. The last of a batch may have less.
const SEGMENT: NonZeroUsize = NonZeroUsize::new(1472).expect("not zero");
/// The MTU of the TUN: a packet that is not a GSO packet fits into one datagram.
const TUN_MTU: u32 = SEGMENT.get() as u32 - VNET_HEADER_LEN as u32;
/// The longest GSO packet that fits into one GSO batch, which is one UDP datagram until the kernel cuts it.
pub(crate) const GSO_MAX_SIZE: u32 = 65_000;

/// One end.
#[derive(Args, Clone, Copy)]
pub(crate) struct NullEnd {
    pub(crate) own: Ipv4Addr,
    pub(crate) peer: Ipv4Addr,
    /// The address of the TUN device.
    pub(crate) tun: Ipv4Addr,
}

/// Forwards until it fails or the lab ends.
pub(crate) fn run(end: NullEnd) -> Error {
    testbed::exit_with_parent();
    match open(end) {
        Ok((tun, udp)) => {
            println!("ready");
            // Each direction has a thread. One thread for both was measured to be no faster.
            thread::scope(|scope| {
                scope.spawn(|| fail(outbound(&tun, &udp, (end.peer, PORT).into())));
                fail(inbound(&udp, &tun))
            })
        }
        Err(error) => error,
    }
}

fn open(end: NullEnd) -> Result<(Tun, UdpTransport), Error> {
    let tun = Tun::open(&TunConfig::new("null0").with_offload(TunOffload::ALL))?;
    let udp = UdpTransport::bind((end.own, PORT).into(), &UdpConfig::default())?;
    let host = Host::new(TwoHosts::OVERLAY, Ipv4Net::from(end.tun), (end.own, PORT))?;
    Link::configure_with(tun.name(), &LinkConfig::new(&host).with_mtu(Mtu::new(TUN_MTU)?))?;
    Ok((tun, udp))
}

fn outbound(tun: &Tun, udp: &UdpTransport, peer: SocketAddr) -> Result<Infallible, Error> {
    let mut buffer = vec![0; VNET_HEADER_LEN + PACKET_MAX + 1];
    loop {
        match tun.recv(&mut buffer[VNET_HEADER_LEN..]) {
            Ok(meta) => {
                buffer[..VNET_HEADER_LEN].copy_from_slice(&meta.header.to_bytes());
                let contents = &buffer[..VNET_HEADER_LEN + meta.len];
                let segment_size = (contents.len() > SEGMENT.get()).then_some(SEGMENT);
                send(udp, &Transmit { segment_size, ..Transmit::datagram(peer, contents) })?;
            }
            Err(TunError::WouldBlock) => wait(tun, PollFlags::POLLIN)?,
            Err(error) if error.is_fatal() => return Err(error.into()),
            Err(_) => {}
        }
    }
}

fn send(udp: &UdpTransport, transmit: &Transmit<'_>) -> Result<(), Error> {
    let mut from = 0;
    while let Err(error) = udp.send_from(transmit, from) {
        if error.is_fatal() {
            return Err(error.into());
        }
        if error.kind != SendErrorKind::WouldBlock {
            // A part of a batch is of no use.
            return Ok(());
        }
        wait(udp, PollFlags::POLLOUT)?;
        from = error.segment;
    }
    Ok(())
}

fn inbound(udp: &UdpTransport, tun: &Tun) -> Result<Infallible, Error> {
    let mut buffer = vec![0; VNET_HEADER_LEN + PACKET_MAX + 1];
    loop {
        match udp.recv(&mut buffer) {
            Ok(meta) => {
                let Some((header, packet)) = buffer[..meta.len].split_first_chunk() else { continue };
                match tun.send_with(&VnetHeader::from_bytes(*header), packet) {
                    Err(error) if error.is_fatal() => return Err(error.into()),
                    Ok(()) | Err(_) => {}
                }
            }
            Err(RecvError::WouldBlock) => wait(udp, PollFlags::POLLIN)?,
            Err(error) if error.is_fatal() => return Err(error.into()),
            Err(_) => {}
        }
    }
}

fn wait(fd: &impl AsFd, until: PollFlags) -> Result<(), Error> {
    match poll(&mut [PollFd::new(fd.as_fd(), until)], PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Ends the process, and with it the other direction.
fn fail(ended: Result<Infallible, Error>) -> ! {
    let Err(error) = ended;
    say(&format!("null forwarder: {error}"));
    process::exit(1)
}
