//! Reading and changing chains and rules of nftables through nfnetlink.

use std::io;
use std::os::fd::AsFd;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_NONREC, NLM_F_REQUEST, NLMSG_DONE,
    NLMSG_ERROR, NetlinkBuffer,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::attributes::{attribute, find, find_number, find_text, message, nested, nfta, number, text};
use super::decode::jump_target;
use super::rule::Rule;

/// Size of struct `nfgenmsg`.
const HEADER: usize = 4;
/// Size of struct `nlmsghdr`.
const MESSAGE_HEADER: usize = 16;
/// The longest wait for a reply. A change waits for the changes of others, which may be large.
const REPLY_TIMEOUT_MS: u16 = 5000;
/// `NF_DROP` and `NF_ACCEPT`.
const DROP: u32 = 0;
const ACCEPT: u32 = 1;

/// A family of nftables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Ip,
    Ip6,
}

impl Family {
    pub(super) const fn is_ipv6(self) -> bool {
        matches!(self, Self::Ip6)
    }

    /// Returns the name of nft.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        }
    }

    /// Returns `NFPROTO_IPV4` or `NFPROTO_IPV6`.
    const fn number(self) -> u8 {
        match self {
            Self::Ip => 2,
            Self::Ip6 => 10,
        }
    }
}

/// A chain that the kernel calls, as iptables-nft creates it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BaseChain {
    pub(super) table: &'static str,
    pub(super) name: &'static str,
    pub(super) kind: &'static str,
    pub(super) hook: u32,
    pub(super) priority: i32,
}

/// The state of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChainState {
    /// True for a chain with a hook.
    pub(super) is_base: bool,
    /// True if the policy drops packets.
    pub(super) drops: bool,
}

/// A rule in a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ListedRule {
    pub(super) handle: Vec<u8>,
    /// The rule, if it has only what this node writes.
    pub(super) rule: Option<Rule>,
    /// The chain to which it jumps, whatever it matches.
    pub(super) target: Option<String>,
}

impl ListedRule {
    /// Returns true for a rule with a comment of flanneld, `flanneld forward` or `flanneld masq`.
    pub(super) fn has_comment_of_flanneld(&self) -> bool {
        let comment = self.rule.as_ref().and_then(|rule| rule.comment.as_deref());
        comment.is_some_and(|comment| comment.starts_with("flanneld "))
    }
}

/// A socket of nfnetlink, in the network namespace of the thread that opened it.
pub(super) struct Nftables {
    socket: Socket,
    sequence: u32,
}

impl Nftables {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        // Short acknowledgements are optional.
        let _ = socket.set_cap_ack(true);
        Ok(Self { socket, sequence: 0 })
    }

    /// Returns the number of the current set of rules.
    pub(super) fn generation(&mut self) -> io::Result<u32> {
        let replies = self.ask(message::GET_GENERATION, message::NEW_GENERATION, 0, 0, &[]);
        // A kernel without the subsystem (`nfnetlink_rcv_msg` in net/netfilter/nfnetlink.c).
        let lacks_nftables = |error: io::Error| match error.raw_os_error() {
            Some(libc::EINVAL) => io::Error::from_raw_os_error(libc::EPROTONOSUPPORT),
            _ => error,
        };
        let replies = replies.map_err(lacks_nftables)?;
        let generation = replies.first().and_then(|attributes| find_number(attributes, nfta::GENERATION));
        generation.ok_or_else(|| io::Error::other("the kernel's answer has no NFTA_GEN_ID"))
    }

    /// Returns the number of chains, sets and other objects in a table, or `None` if there is no such table.
    pub(super) fn table_use(&mut self, family: Family, table: &str) -> io::Result<Option<u32>> {
        let name = text(nfta::TABLE_NAME, table);
        let replies =
            existing(self.ask(message::GET_TABLE, message::NEW_TABLE, 0, family.number(), &name))?.unwrap_or_default();
        Ok(replies.first().map(|attributes| find_number(attributes, nfta::TABLE_USE).unwrap_or(u32::MAX)))
    }

    /// Returns the state of a chain, or `None` if there is no such chain.
    pub(super) fn chain(&mut self, family: Family, table: &str, chain: &str) -> io::Result<Option<ChainState>> {
        let names = [text(nfta::CHAIN_TABLE, table), text(nfta::CHAIN_NAME, chain)].concat();
        let replies =
            existing(self.ask(message::GET_CHAIN, message::NEW_CHAIN, 0, family.number(), &names))?.unwrap_or_default();
        Ok(replies.first().map(|attributes| ChainState {
            is_base: find(attributes, nfta::CHAIN_HOOK).is_some(),
            drops: find_number(attributes, nfta::CHAIN_POLICY) == Some(DROP),
        }))
    }

    /// Returns the rules of a chain in their order.
    pub(super) fn rules(&mut self, family: Family, table: &str, chain: &str) -> io::Result<Vec<ListedRule>> {
        let names = [text(nfta::RULE_TABLE, table), text(nfta::RULE_CHAIN, chain)].concat();
        let dump = self.ask(message::GET_RULES, message::NEW_RULE, NLM_F_DUMP, family.number(), &names);
        let mut rules = Vec::new();
        for attributes in existing(dump)?.unwrap_or_default() {
            // Old kernels do not filter.
            let is_of = |kind, name| find_text(&attributes, kind).as_deref() == Some(name);
            if is_of(nfta::RULE_TABLE, table) && is_of(nfta::RULE_CHAIN, chain) {
                let expressions = find(&attributes, nfta::RULE_EXPRESSIONS).unwrap_or_default();
                rules.push(ListedRule {
                    handle: find(&attributes, nfta::RULE_HANDLE).unwrap_or_default(),
                    rule: Rule::decode(&expressions, family.is_ipv6()),
                    target: jump_target(&expressions),
                });
            }
        }
        Ok(rules)
    }

    /// Makes all changes or none. Fails with `ERESTART` if another program has changed rules since `generation`.
    pub(super) fn commit(&mut self, generation: u32, changes: Changes) -> io::Result<()> {
        let first = self.sequence.wrapping_add(1);
        let batch = |kind, attributes: Vec<u8>| {
            // The resource identifier of the batch is big-endian.
            let header = [&[0, 0][..], &message::SUBSYSTEM.to_be_bytes()].concat();
            Request { kind, flags: 0, body: [header, attributes].concat() }
        };
        let begin = batch(message::BATCH_BEGIN, number(nfta::BATCH_GENERATION, generation));
        let mut requests = vec![begin];
        requests.extend(changes.requests);
        if let Some(last) = requests.last_mut() {
            // Errors are always reported.
            last.flags |= NLM_F_ACK;
        }
        requests.push(batch(message::BATCH_END, Vec::new()));
        let mut bytes = Vec::new();
        let last = first.wrapping_add(u32::try_from(requests.len()).unwrap_or(0)).wrapping_sub(2);
        for request in requests {
            self.sequence = self.sequence.wrapping_add(1);
            request.write(self.sequence, &mut bytes);
        }
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
        loop {
            for message in messages(&self.receive()?) {
                let is_of_batch = message.sequence.wrapping_sub(first) <= last.wrapping_sub(first);
                if message.kind == NLMSG_ERROR && is_of_batch {
                    message.outcome()?;
                    if message.sequence == last {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Sends a request and returns the attributes of each reply.
    fn ask(&mut self, kind: u16, reply: u16, flags: u16, family: u8, attributes: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        Request { kind, flags, body: [&[family, 0, 0, 0], attributes].concat() }.write(self.sequence, &mut bytes);
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
        let mut replies = Vec::new();
        loop {
            for message in messages(&self.receive()?).filter(|message| message.sequence == self.sequence) {
                if message.flags & NLM_F_DUMP_INTR != 0 {
                    return Err(io::Error::from_raw_os_error(libc::ERESTART));
                }
                match message.kind {
                    NLMSG_ERROR => return message.outcome().map(|()| replies),
                    NLMSG_DONE => return Ok(replies),
                    kind if kind == reply => {
                        replies.push(message.body.get(HEADER..).unwrap_or_default().to_vec());
                        if flags & NLM_F_DUMP != NLM_F_DUMP {
                            return Ok(replies);
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        loop {
            let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::from(REPLY_TIMEOUT_MS)) {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::TimedOut, "the kernel does not answer")),
                Err(Errno::EINTR) => continue,
                ready => ready?,
            };
            let (bytes, sender) = self.socket.recv_from_full()?;
            if sender.port_number() == 0 {
                return Ok(bytes);
            }
        }
    }
}

/// Returns `None` for an object that does not exist.
fn existing<T>(outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// One message to the kernel.
struct Request {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
}

impl Request {
    fn write(&self, sequence: u32, bytes: &mut Vec<u8>) {
        // Bodies are padded: attributes are.
        let length = MESSAGE_HEADER.saturating_add(self.body.len());
        bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
        bytes.extend(self.kind.to_ne_bytes());
        bytes.extend((self.flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(&self.body);
    }
}

/// One message of the kernel.
struct Reply {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: Vec<u8>,
}

impl Reply {
    /// Returns the error of a message of the kind `NLMSG_ERROR`.
    fn outcome(&self) -> io::Result<()> {
        match self.body.first_chunk().map(|code| i32::from_ne_bytes(*code)) {
            Some(0) => Ok(()),
            Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
            None => Err(io::Error::other("the kernel's answer is cut")),
        }
    }
}

/// Returns the messages of a datagram. A malformed message ends it.
fn messages(datagram: &[u8]) -> impl Iterator<Item = Reply> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let buffer = NetlinkBuffer::new_checked(rest).ok()?;
        let length = usize::try_from(buffer.length()).ok()?;
        rest = rest.get(length.checked_next_multiple_of(4)?..).unwrap_or_default();
        Some(Reply {
            kind: buffer.message_type(),
            flags: buffer.flags(),
            sequence: buffer.sequence_number(),
            body: buffer.payload().to_vec(),
        })
    })
}

/// Changes to tables, chains and rules of one family, in their order.
pub(super) struct Changes {
    family: Family,
    requests: Vec<Request>,
}

impl Changes {
    pub(super) const fn new(family: Family) -> Self {
        Self { family, requests: Vec::new() }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Creates a table unless it exists.
    pub(super) fn add_table(&mut self, table: &str) {
        self.push(message::NEW_TABLE, NLM_F_CREATE, &[text(nfta::TABLE_NAME, table)]);
    }

    /// Creates a chain that the kernel calls, which accepts by policy.
    pub(super) fn add_base_chain(&mut self, chain: &BaseChain) {
        let hook = [number(nfta::HOOK_NUMBER, chain.hook), number(nfta::HOOK_PRIORITY, chain.priority.cast_unsigned())];
        let attributes = [
            text(nfta::CHAIN_TABLE, chain.table),
            text(nfta::CHAIN_NAME, chain.name),
            nested(nfta::CHAIN_HOOK, &hook),
            number(nfta::CHAIN_POLICY, ACCEPT),
            text(nfta::CHAIN_TYPE, chain.kind),
        ];
        self.push(message::NEW_CHAIN, NLM_F_CREATE, &attributes);
    }

    /// Creates a chain for jumps, unless it exists.
    pub(super) fn add_chain(&mut self, table: &str, chain: &str) {
        self.push(message::NEW_CHAIN, NLM_F_CREATE, &[text(nfta::CHAIN_TABLE, table), text(nfta::CHAIN_NAME, chain)]);
    }

    /// Appends a rule to a chain.
    pub(super) fn add_rule(&mut self, table: &str, chain: &str, rule: &Rule) {
        let body = rule.encode(self.family.is_ipv6());
        let attributes = [text(nfta::RULE_TABLE, table), text(nfta::RULE_CHAIN, chain), body];
        self.push(message::NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, &attributes);
    }

    /// Deletes all rules of a chain.
    pub(super) fn flush(&mut self, table: &str, chain: &str) {
        self.push(message::DELETE_RULES, 0, &[text(nfta::RULE_TABLE, table), text(nfta::RULE_CHAIN, chain)]);
    }

    pub(super) fn delete_rule(&mut self, table: &str, chain: &str, rule: &ListedRule) {
        let handle = attribute(nfta::RULE_HANDLE, &rule.handle);
        self.push(message::DELETE_RULES, 0, &[text(nfta::RULE_TABLE, table), text(nfta::RULE_CHAIN, chain), handle]);
    }

    /// Deletes a chain. The kernel refuses it for a chain with rules.
    pub(super) fn delete_chain(&mut self, table: &str, chain: &str) {
        let names = [text(nfta::CHAIN_TABLE, table), text(nfta::CHAIN_NAME, chain)];
        self.push(message::DELETE_CHAIN, NLM_F_NONREC, &names);
    }

    /// Deletes a table. The kernel refuses it for a table with chains.
    pub(super) fn delete_table(&mut self, table: &str) {
        self.push(message::DELETE_TABLE, NLM_F_NONREC, &[text(nfta::TABLE_NAME, table)]);
    }

    fn push(&mut self, kind: u16, flags: u16, attributes: &[Vec<u8>]) {
        let body = [vec![self.family.number(), 0, 0, 0], attributes.concat()].concat();
        self.requests.push(Request { kind, flags, body });
    }
}
