//! A guide by task: one page for each way to use the library.
//!
//! | page | task |
//! | --- | --- |
//! | [`counters`] | Read the counters: the unit of each one. |

#[doc = include_str!("counters.md")]
pub mod counters {}
