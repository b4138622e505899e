//! flannel's UDP overlay as an embeddable library.
#![cfg_attr(not(feature = "std"), no_std)]
#![cfg_attr(not(test), warn(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used))]
#![cfg_attr(not(test), warn(clippy::std_instead_of_alloc, clippy::std_instead_of_core))]

extern crate alloc;
#[cfg(any(feature = "std", test))]
extern crate std;

pub mod control;
pub mod forward;
pub mod route;
#[cfg(all(feature = "sys", target_os = "linux"))]
pub mod sys;
mod transmit;
pub mod wire;
#[cfg(all(feature = "sys", target_os = "linux"))]
pub mod worker;

pub use ipnet;
pub use transmit::Transmit;
