//! The lab, run as a person would run it, only shorter. It needs root.
#![cfg(target_os = "linux")]
