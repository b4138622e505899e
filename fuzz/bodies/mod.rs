//! What each fuzz target does with its input. The ordinary tests run the same over the committed seeds.

pub(crate) mod control;
pub(crate) mod forward;
pub(crate) mod header;
pub(crate) mod icmp;
pub(crate) mod path_mtu;
pub(crate) mod stateful;
