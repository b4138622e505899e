//! Network topologies in anonymous Linux network namespaces, and network probes.
//!
//! ```text
//!   pod_a ──pod0── host_a ──eth0 ~~~ eth0── host_b ──pod0── pod_b        TwoHosts
//!     │                │                        │
//!  enter(ping)   enter(open a TUN)        Child::spawn(…)                threads and processes inside
//! ```
//!
//! A [`Namespace`] is a file descriptor without a name in any file system. The kernel removes it with its links and
//! routes when its last descriptor, thread and process is gone, even after `SIGKILL`.
//!
//! All functions need `CAP_NET_ADMIN` and `CAP_SYS_ADMIN`. A `main` function calls [`ensure_privileges`] first.

extern crate alloc;

mod bridge;
mod error;
mod firewall;
mod injection;
mod ipv6;
mod kernel;
mod link;
mod netlink;
mod netns;
mod privileges;
pub mod probe;
mod process;
mod route;
mod rule;
mod topology;
mod vxlan;

pub use injection::Injection;
pub use kernel::{has_ipv6, kernel_version};
pub use netns::Namespace;
pub use privileges::ensure_privileges;
pub use process::{Child, exec_with_parent, exit_with_parent, tied_to_its_parent};
pub use route::RouteEntry;
pub use topology::TwoHosts;
pub use vxlan::Vxlan;
