//! flannel's UDP overlay as an embeddable library.
#![cfg_attr(not(feature = "std"), no_std)]
#![warn(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![cfg_attr(test, expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "a test may fail by panicking"))]

extern crate alloc;
#[cfg(any(feature = "std", test))]
extern crate std;

pub mod forward;
pub mod route;
#[cfg(all(feature = "sys", target_os = "linux"))]
pub mod sys;
mod transmit;
pub mod wire;

pub use ipnet;
pub use transmit::Transmit;
