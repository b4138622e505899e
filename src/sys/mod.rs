//! The Linux adapters: thin, non-blocking, each the owner of its file descriptor.

#[cfg(feature = "link")]
pub mod link;
