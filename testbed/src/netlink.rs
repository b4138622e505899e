//! An rtnetlink connection inside a namespace.

use crate::Namespace;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use std::io;

/// The number of requests for a list that changes while the kernel writes it.
const ATTEMPTS: u32 = 8;

impl Namespace {
    /// Runs `job` with a netlink socket inside the namespace.
    pub(crate) fn netlink<T: Send>(&self, job: impl FnOnce(&mut Netlink) -> io::Result<T> + Send) -> io::Result<T> {
        self.enter(|| job(&mut Netlink::open()?))
    }
}

/// A blocking netlink socket.
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// The kernel's answer, without the acknowledgment.
struct Answer {
    messages: Vec<RouteNetlinkMessage>,
    /// A list changed while the kernel wrote it.
    is_interrupted: bool,
}

impl Netlink {
    fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Creates an object.
    pub(crate) fn add(&mut self, request: RouteNetlinkMessage) -> io::Result<()> {
        self.exchange(request, NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    /// Changes or deletes an object.
    pub(crate) fn change(&mut self, request: RouteNetlinkMessage) -> io::Result<()> {
        self.exchange(request, 0).map(drop)
    }

    /// Returns one object.
    pub(crate) fn get(&mut self, request: RouteNetlinkMessage) -> io::Result<Option<RouteNetlinkMessage>> {
        Ok(self.exchange(request, 0)?.messages.into_iter().next())
    }

    /// Returns all objects of a kind, in the kernel's order.
    pub(crate) fn list(&mut self, request: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 1..ATTEMPTS {
            let answer = self.exchange(request.clone(), NLM_F_DUMP)?;
            if !answer.is_interrupted {
                return Ok(answer.messages);
            }
        }
        Ok(self.exchange(request, NLM_F_DUMP)?.messages)
    }

    fn exchange(&mut self, request: RouteNetlinkMessage, flags: u16) -> io::Result<Answer> {
        self.send(request, flags)?;
        let mut answer = Answer { messages: Vec::new(), is_interrupted: false };
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
                let length = (message.header.length as usize).next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
                answer.is_interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok(answer),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answer),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(inner) => answer.messages.push(inner),
                    NetlinkPayload::Noop => {}
                    NetlinkPayload::Overrun(_) => return Err(io::Error::other("messages of the kernel were lost")),
                    other => return Err(io::Error::other(format!("an unexpected answer: {other:?}"))),
                }
            }
        }
    }

    fn send(&mut self, request: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0).map(drop)
    }
}
