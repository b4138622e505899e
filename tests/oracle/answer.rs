//! The fields of an ICMP error, which can be changed and assembled again.

use core::net::Ipv4Addr;

use support::icmp::Message;
use support::packet::{DF, ICMP, Ipv4, ones_sum};

#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    pub(crate) tos: u8,
    pub(crate) id: u16,
    /// The three flags and the fragment offset.
    pub(crate) fragment: u16,
    ttl: u8,
    pub(crate) options: Vec<u8>,
    pub(crate) type_code: [u8; 2],
    pub(crate) rest: [u8; 4],
    pub(crate) quote: Vec<u8>,
}

impl Answer {
    /// Parses an ICMP error of loden without loss.
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let message = Message::parse(bytes);
        let answer = Self {
            source: message.source(),
            destination: message.ip.destination.into(),
            tos: message.ip.dscp.value() << 2 | message.ip.ecn.value(),
            id: message.ip.identification,
            fragment: if message.ip.dont_fragment { DF } else { 0 },
            ttl: message.ip.time_to_live,
            options: message.ip.options.to_vec(),
            type_code: message.type_code,
            rest: message.rest,
            quote: message.quote.to_vec(),
        };
        assert_eq!(answer.bytes(), bytes);
        answer
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut payload = [&self.type_code, &[0; 2][..], &self.rest, &self.quote].concat();
        let checksum = !ones_sum(&payload);
        payload[2..4].copy_from_slice(&checksum.to_be_bytes());
        let header = Ipv4 {
            tos: self.tos,
            id: self.id,
            fragment: self.fragment,
            ttl: self.ttl,
            protocol: ICMP,
            options: self.options.clone(),
            payload,
            ..Ipv4::new(self.source, self.destination)
        };
        header.bytes()
    }
}
