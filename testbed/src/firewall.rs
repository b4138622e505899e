//! A firewall rule of nftables, in the messages of nft(8) (linux/netfilter/nf_tables.h).

use core::net::Ipv4Addr;
use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket};

use crate::Namespace;
use crate::error::Context;

/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`.
const BATCH: [u16; 2] = [16, 17];
/// `NFNL_SUBSYS_NFTABLES`, and of its messages `NFT_MSG_NEWTABLE`, `NFT_MSG_NEWCHAIN` and `NFT_MSG_NEWRULE`.
const NFTABLES: u16 = 10;
const CHANGES: [u16; 3] = [0, 3, 6];
/// `NLM_F_REQUEST`, `NLM_F_ACK` and `NLM_F_CREATE`.
const REQUEST: u16 = 0x1;
const CREATE: u16 = REQUEST | 0x4 | 0x400;
/// `NFPROTO_IPV4` and `NF_INET_LOCAL_OUT`.
const IPV4: u8 = 2;
const OUTPUT: u32 = 3;

impl Namespace {
    /// Makes the firewall drop all packets from this host to an address. The sender gets `EPERM`.
    ///
    /// # Errors
    /// The kernel's error, for example for a second call.
    pub fn forbid_sending(&self, to: Ipv4Addr) -> io::Result<()> {
        let [table, chain, rule] = CHANGES.map(|kind| NFTABLES << 8 | kind);
        let change = |kind, attributes: &[Vec<u8>]| message(kind, CREATE, [IPV4, 0, 0, 0], attributes);
        let hook = nested(4, &[number(1, OUTPUT), number(2, 0)]);
        let changes = [
            change(table, &[text(1, "testbed")]),
            change(chain, &[text(1, "testbed"), text(3, "output"), hook, number(5, 1), text(7, "filter")]),
            change(rule, &[text(1, "testbed"), text(2, "output"), nested(4, &drops(to))]),
        ];
        let [begin, end] = BATCH.map(|kind| message(kind, REQUEST, [0, 0, 0, 10], &[]));
        self.enter(|| commit(&[begin, changes.concat(), end].concat(), changes.len()))
            .context(|| format!("cannot forbid sending to {to}"))
    }
}

/// Returns the expressions of `ip daddr ADDRESS drop`.
fn drops(to: Ipv4Addr) -> [Vec<u8>; 3] {
    let expression = |name, data: &[Vec<u8>]| nested(1, &[text(1, name), nested(2, data)]);
    [
        // 4 bytes of the network header from byte 16 on are loaded into register 1.
        expression("payload", &[number(1, 1), number(2, 1), number(3, 16), number(4, 4)]),
        expression("cmp", &[number(1, 1), number(2, 0), nested(3, &[attribute(1, &to.octets())])]),
        // The verdict 0, `NF_DROP`.
        expression("immediate", &[number(1, 0), nested(2, &[nested(2, &[number(1, 0)])])]),
    ]
}

/// Sends a batch and reads as many acknowledgements.
fn commit(batch: &[u8], acknowledgements: usize) -> io::Result<()> {
    let (flags, netfilter) = (SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter);
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, netfilter)?;
    sendto(socket.as_raw_fd(), batch, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    for _ in 0..acknowledgements {
        let mut answer = [0; 4096];
        let len = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        let error = answer[..len].get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
        match error {
            Some(0) => {}
            Some(error) => return Err(io::Error::from_raw_os_error(-error)),
            None => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
    Ok(())
}

fn message(kind: u16, flags: u16, header: [u8; 4], attributes: &[Vec<u8>]) -> Vec<u8> {
    let attributes = attributes.concat();
    let mut message = (20 + attributes.len() as u32).to_ne_bytes().to_vec();
    message.extend([kind.to_ne_bytes(), flags.to_ne_bytes()].concat());
    message.extend([0; 8]);
    message.extend(header);
    message.extend(attributes);
    message
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut attribute = [(4 + value.len() as u16).to_ne_bytes(), kind.to_ne_bytes()].concat();
    attribute.extend(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}

fn nested(kind: u16, attributes: &[Vec<u8>]) -> Vec<u8> {
    attribute(0x8000 | kind, &attributes.concat())
}

fn number(kind: u16, number: u32) -> Vec<u8> {
    attribute(kind, &number.to_be_bytes())
}

fn text(kind: u16, text: &str) -> Vec<u8> {
    attribute(kind, format!("{text}\0").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn packets_to_one_address_are_dropped() {
        let here = Namespace::new().expect("namespace");
        here.forbid_sending([127, 0, 0, 2].into()).expect("a rule");
        here.enter(|| {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("bound");
            let error = socket.send_to(b"x", "127.0.0.2:9").expect_err("forbidden");
            assert_eq!(error.raw_os_error(), Some(nix::errno::Errno::EPERM as i32));
            assert_eq!(socket.send_to(b"x", "127.0.0.3:9").expect("sent"), 1);
        });
    }
}
