//! Message types and attributes of nftables (linux/netfilter/nf_tables.h, nf_tables_compat.h), and their encoding.
//! Numbers in attributes are big-endian.

use netlink_packet_core::{DefaultNla, Emitable, NLA_F_NESTED, NlasIterator};

/// Message types, with the netfilter subsystem in the upper byte.
pub(super) mod message {
    /// `NFNL_SUBSYS_NFTABLES`.
    pub(in super::super) const SUBSYSTEM: u16 = 10;
    const NFTABLES: u16 = SUBSYSTEM << 8;
    /// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`.
    pub(in super::super) const BATCH_BEGIN: u16 = 0x10;
    pub(in super::super) const BATCH_END: u16 = 0x11;
    pub(in super::super) const NEW_TABLE: u16 = NFTABLES;
    pub(in super::super) const GET_TABLE: u16 = NFTABLES | 1;
    pub(in super::super) const DELETE_TABLE: u16 = NFTABLES | 2;
    pub(in super::super) const NEW_CHAIN: u16 = NFTABLES | 3;
    pub(in super::super) const GET_CHAIN: u16 = NFTABLES | 4;
    pub(in super::super) const DELETE_CHAIN: u16 = NFTABLES | 5;
    pub(in super::super) const NEW_RULE: u16 = NFTABLES | 6;
    pub(in super::super) const GET_RULES: u16 = NFTABLES | 7;
    pub(in super::super) const DELETE_RULES: u16 = NFTABLES | 8;
    pub(in super::super) const NEW_GENERATION: u16 = NFTABLES | 15;
    pub(in super::super) const GET_GENERATION: u16 = NFTABLES | 16;
}

/// Attributes of messages: `NFTA_TABLE_*`, `NFTA_CHAIN_*`, `NFTA_HOOK_*`, `NFTA_RULE_*`. Attributes of expressions:
/// `NFTA_EXPR_*`, `NFTA_DATA_*` and those of each kind of expression.
pub(super) mod nfta {
    pub(in super::super) const BATCH_GENERATION: u16 = 1;
    pub(in super::super) const GENERATION: u16 = 1;
    pub(in super::super) const TABLE_NAME: u16 = 1;
    pub(in super::super) const TABLE_USE: u16 = 3;
    pub(in super::super) const CHAIN_TABLE: u16 = 1;
    pub(in super::super) const CHAIN_NAME: u16 = 3;
    pub(in super::super) const CHAIN_HOOK: u16 = 4;
    pub(in super::super) const CHAIN_POLICY: u16 = 5;
    pub(in super::super) const CHAIN_TYPE: u16 = 7;
    pub(in super::super) const HOOK_NUMBER: u16 = 1;
    pub(in super::super) const HOOK_PRIORITY: u16 = 2;
    pub(in super::super) const RULE_TABLE: u16 = 1;
    pub(in super::super) const RULE_CHAIN: u16 = 2;
    pub(in super::super) const RULE_HANDLE: u16 = 3;
    pub(in super::super) const RULE_EXPRESSIONS: u16 = 4;
    pub(in super::super) const RULE_COMPAT: u16 = 5;
    pub(in super::super) const COMPAT_PROTOCOL: u16 = 1;
    pub(in super::super) const COMPAT_FLAGS: u16 = 2;

    pub(in super::super) const LIST_ELEMENT: u16 = 1;
    pub(in super::super) const EXPRESSION_NAME: u16 = 1;
    pub(in super::super) const EXPRESSION_DATA: u16 = 2;
    pub(in super::super) const DATA_VALUE: u16 = 1;
    pub(in super::super) const DATA_VERDICT: u16 = 2;
    pub(in super::super) const VERDICT_CODE: u16 = 1;
    pub(in super::super) const VERDICT_CHAIN: u16 = 2;
    /// The register that `meta`, `payload` and `immediate` load, and that `cmp` compares.
    pub(in super::super) const REGISTER: u16 = 1;
    pub(in super::super) const META_KEY: u16 = 2;
    pub(in super::super) const PAYLOAD_BASE: u16 = 2;
    pub(in super::super) const PAYLOAD_OFFSET: u16 = 3;
    pub(in super::super) const PAYLOAD_LENGTH: u16 = 4;
    pub(in super::super) const BITWISE_TARGET: u16 = 2;
    pub(in super::super) const BITWISE_LENGTH: u16 = 3;
    pub(in super::super) const BITWISE_MASK: u16 = 4;
    pub(in super::super) const BITWISE_XOR: u16 = 5;
    pub(in super::super) const COMPARE_OPERATION: u16 = 2;
    pub(in super::super) const COMPARE_DATA: u16 = 3;
    pub(in super::super) const IMMEDIATE_DATA: u16 = 2;
    pub(in super::super) const COUNTER_BYTES: u16 = 1;
    pub(in super::super) const COUNTER_PACKETS: u16 = 2;
    /// Name, revision and data of an extension of xtables, in `match` and `target`.
    pub(in super::super) const EXTENSION_NAME: u16 = 1;
    pub(in super::super) const EXTENSION_REVISION: u16 = 2;
    pub(in super::super) const EXTENSION_INFO: u16 = 3;
}

/// Returns an attribute with these bytes, padded to the alignment of netlink.
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let attribute = DefaultNla::new(kind, value.to_vec());
    let mut bytes = vec![0; attribute.buffer_len()];
    attribute.emit(&mut bytes);
    bytes
}

/// Returns an attribute with attributes inside.
pub(super) fn nested(kind: u16, parts: &[Vec<u8>]) -> Vec<u8> {
    attribute(kind | NLA_F_NESTED, &parts.concat())
}

/// Returns an attribute with a text that ends with NUL.
pub(super) fn text(kind: u16, text: &str) -> Vec<u8> {
    attribute(kind, &[text.as_bytes(), &[0]].concat())
}

/// Returns an attribute with a number.
pub(super) fn number(kind: u16, number: u32) -> Vec<u8> {
    attribute(kind, &number.to_be_bytes())
}

/// Returns the value of the first attribute of a kind. A malformed list ends where it is malformed.
pub(super) fn find(attributes: &[u8], kind: u16) -> Option<Vec<u8>> {
    let mut attributes = NlasIterator::new(attributes).map_while(Result::ok);
    attributes.find(|attribute| attribute.kind() == kind).map(|attribute| attribute.value().to_vec())
}

/// Returns the text of an attribute, without its end.
pub(super) fn find_text(attributes: &[u8], kind: u16) -> Option<String> {
    let value = find(attributes, kind)?;
    let text = value.split(|byte| *byte == 0).next()?;
    std::str::from_utf8(text).ok().map(str::to_owned)
}

/// Returns the number of an attribute.
pub(super) fn find_number(attributes: &[u8], kind: u16) -> Option<u32> {
    Some(u32::from_be_bytes(find(attributes, kind)?.try_into().ok()?))
}
