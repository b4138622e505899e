//! Message types and attributes of nftables (linux/netfilter/nf_tables.h). Numbers in attributes are big-endian.

use alloc::vec::Vec;

use crate::sys::link::error::MalformedReply;
use crate::sys::link::message::{attribute, sized};

/// Message types, with the netfilter subsystem in the upper byte.
pub(super) mod message {
    const NFTABLES: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8;
    pub(in super::super) const NEW_TABLE: u16 = NFTABLES | libc::NFT_MSG_NEWTABLE as u16;
    pub(in super::super) const GET_TABLE: u16 = NFTABLES | libc::NFT_MSG_GETTABLE as u16;
    pub(in super::super) const NEW_CHAIN: u16 = NFTABLES | libc::NFT_MSG_NEWCHAIN as u16;
    pub(in super::super) const GET_CHAIN: u16 = NFTABLES | libc::NFT_MSG_GETCHAIN as u16;
    pub(in super::super) const NEW_RULE: u16 = NFTABLES | libc::NFT_MSG_NEWRULE as u16;
    pub(in super::super) const GET_RULE: u16 = NFTABLES | libc::NFT_MSG_GETRULE as u16;
    pub(in super::super) const NEW_SET: u16 = NFTABLES | libc::NFT_MSG_NEWSET as u16;
    pub(in super::super) const GET_SET: u16 = NFTABLES | libc::NFT_MSG_GETSET as u16;
    pub(in super::super) const NEW_ELEMENTS: u16 = NFTABLES | libc::NFT_MSG_NEWSETELEM as u16;
    pub(in super::super) const GET_ELEMENTS: u16 = NFTABLES | libc::NFT_MSG_GETSETELEM as u16;
}

/// Size of struct `nfgenmsg` in bytes: family, version, and a resource identifier of two bytes.
pub(super) const HEADER: usize = 4;

/// Attributes of tables, chains, rules and sets: `NFTA_TABLE_*`, `NFTA_CHAIN_*`, `NFTA_HOOK_*`, `NFTA_RULE_*`,
/// `NFTA_SET_*`. Attributes of expressions: `NFTA_EXPR_*`, `NFTA_DATA_*` and those of each kind of expression.
pub(super) mod nfta {
    pub(in super::super) const TABLE_NAME: u16 = 1;
    pub(in super::super) const TABLE_FLAGS: u16 = 2;
    pub(in super::super) const CHAIN_TABLE: u16 = 1;
    pub(in super::super) const CHAIN_NAME: u16 = 3;
    pub(in super::super) const CHAIN_HOOK: u16 = 4;
    pub(in super::super) const CHAIN_POLICY: u16 = 5;
    pub(in super::super) const CHAIN_USE: u16 = 6;
    pub(in super::super) const CHAIN_TYPE: u16 = 7;
    pub(in super::super) const HOOK_NUMBER: u16 = 1;
    pub(in super::super) const HOOK_PRIORITY: u16 = 2;
    pub(in super::super) const RULE_TABLE: u16 = 1;
    pub(in super::super) const RULE_CHAIN: u16 = 2;
    pub(in super::super) const RULE_EXPRESSIONS: u16 = 4;
    pub(in super::super) const SET_TABLE: u16 = 1;
    pub(in super::super) const SET_NAME: u16 = 2;
    pub(in super::super) const SET_FLAGS: u16 = 3;
    pub(in super::super) const SET_ELEMENTS: u16 = 3;
    pub(in super::super) const ELEMENT_KEY: u16 = 1;
    pub(in super::super) const ELEMENT_DATA: u16 = 2;
    pub(in super::super) const ELEMENT_FLAGS: u16 = 3;
    pub(in super::super) const ELEMENT_KEY_END: u16 = 10;

    pub(in super::super) const EXPRESSION_NAME: u16 = 1;
    pub(in super::super) const EXPRESSION_DATA: u16 = 2;
    pub(in super::super) const DATA_VALUE: u16 = 1;
    pub(in super::super) const DATA_VERDICT: u16 = 2;
    pub(in super::super) const VERDICT_CODE: u16 = 1;
    pub(in super::super) const VERDICT_CHAIN: u16 = 2;
    /// The register that `meta`, `ct`, `payload` and `immediate` load, and that `cmp` and `range` compare.
    pub(in super::super) const REGISTER: u16 = 1;
    /// The key of `meta` and `ct`.
    pub(in super::super) const KEY: u16 = 2;
    pub(in super::super) const META_SOURCE: u16 = 3;
    pub(in super::super) const CT_SOURCE: u16 = 4;
    /// Base, offset and length of `payload`.
    pub(in super::super) const PAYLOAD: [u16; 3] = [2, 3, 4];
    pub(in super::super) const PAYLOAD_SOURCE: u16 = 5;
    pub(in super::super) const OPERATION: u16 = 2;
    pub(in super::super) const DATA: u16 = 3;
    pub(in super::super) const TO_DATA: u16 = 4;
    pub(in super::super) const IMMEDIATE_DATA: u16 = 2;
    /// Source and target register of `bitwise`.
    pub(in super::super) const BITWISE: [u16; 2] = [1, 2];
    pub(in super::super) const BITWISE_MASK: u16 = 4;
    pub(in super::super) const BITWISE_XOR: u16 = 5;
    pub(in super::super) const BITWISE_OPERATION: u16 = 6;
    pub(in super::super) const LOOKUP_SET: u16 = 1;
    pub(in super::super) const LOOKUP_SOURCE: u16 = 2;
    pub(in super::super) const LOOKUP_TARGET: u16 = 3;
    pub(in super::super) const LOOKUP_FLAGS: u16 = 5;
    /// Name and data of an extension of xtables, in `match` and `target`.
    pub(in super::super) const EXTENSION_NAME: u16 = 1;
    pub(in super::super) const EXTENSION_INFO: u16 = 3;
    pub(in super::super) const NAT_TYPE: u16 = 1;
}

/// Returns the number in the attribute `kind`.
pub(super) fn number(attributes: &[u8], kind: u16) -> Result<Option<u32>, MalformedReply> {
    attribute(attributes, kind, |value| sized(value, kind).map(u32::from_be_bytes))
}

/// Returns the value in the data attribute `kind`, or nothing if there is none.
pub(super) fn data_value(attributes: &[u8], kind: u16) -> Result<Vec<u8>, MalformedReply> {
    let value = attribute(attributes, kind, |data| attribute(data, nfta::DATA_VALUE, |value| Ok(value.to_vec())))?;
    Ok(value.flatten().unwrap_or_default())
}
