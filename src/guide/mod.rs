//! A guide by task: one page for each way to use the library.
//!
//! | page | task |
//! | --- | --- |
//! | [`framing`] | Put a tag or encryption around each packet. |
//! | [`counters`] | Read the counters: the unit of each one. |

#[doc = include_str!("counters.md")]
pub mod counters {}

#[doc = include_str!("framing.md")]
pub mod framing {}
