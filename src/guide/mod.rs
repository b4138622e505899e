//! A guide by task: one page for each way to use the library.
//!
//! | page | task |
//! | --- | --- |
#![cfg_attr(
    all(feature = "sys", target_os = "linux"),
    doc = "| [`worker`] | Move packets between a TUN device and a UDP socket, in a loop of your own. |\n\
           | [`ring`] | Use the engine with a ring instead of the adapters. |"
)]
//! | [`core`] | Decide on packets that your program carries. |
//! | [`framing`] | Put a tag or encryption around each packet. |
//! | [`counters`] | Read the counters: the unit of each one. |

#[doc = include_str!("core.md")]
pub mod core {}

#[doc = include_str!("counters.md")]
pub mod counters {}

#[doc = include_str!("framing.md")]
pub mod framing {}

#[cfg(all(feature = "sys", target_os = "linux"))]
#[doc = include_str!("ring.md")]
pub mod ring {}

#[cfg(all(feature = "sys", target_os = "linux"))]
#[doc = include_str!("worker.md")]
pub mod worker {}
