//! Notices for operators, and the errors that end a worker.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::SocketAddr;

use super::failing::Failure;
use crate::sys::Feature;

/// Something that an operator should know of, in a sentence for a log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Notice {
    /// The kernel or a sandbox lacks features. The worker does not use them.
    #[error("this kernel, or the sandbox around this process, lacks {}; disabled", listed(.0))]
    Disabled(
        /// The features that no earlier notice named.
        Vec<Feature>,
    ),
    /// A system call fails every time. Reported at most once a minute for each kind of call.
    #[error("{0}")]
    Failing(Failure),
}

fn listed(features: &[Feature]) -> String {
    let names: Vec<_> = features.iter().map(ToString::to_string).collect();
    names.join(", ")
}

/// The end of a worker. Later calls return the same error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// A system call failed every time for too long. A sandbox that forbids it is one cause.
    #[error("{failure}, for {seconds} s; see whether a sandbox such as seccomp forbids the system call")]
    CallFails {
        /// The call, and its last error.
        failure: Failure,
        /// The time in seconds for which it failed.
        seconds: u64,
    },
    /// Somebody deleted the TUN device.
    #[error("the TUN device {name} was deleted; open a new one and a new worker")]
    LinkDeleted {
        /// Its name.
        name: String,
    },
    /// A worker has at most one UDP socket for each IP family.
    #[error(
        "the UDP sockets {one} and {other} are of one IP family; give a worker one IPv4 and one IPv6 socket at most"
    )]
    SameFamily {
        /// The address of the socket that the worker had.
        one: SocketAddr,
        /// The address of the other socket.
        other: SocketAddr,
    },
    /// The UDP socket's file descriptor was closed by other code in this process.
    #[error("the UDP socket {local} is closed: something in this process closed a file descriptor that is not its own")]
    SocketClosed {
        /// The address it was bound to.
        local: SocketAddr,
    },
    /// A system call of the loop failed, other than those that move packets.
    #[error("{call} failed: {}", std::io::Error::from_raw_os_error(*errno))]
    System {
        /// The name of the system call.
        call: &'static str,
        /// Its error number.
        errno: i32,
    },
    /// The TUN's file descriptor was closed by other code in this process.
    #[error("the TUN device {name} is closed: something in this process closed a file descriptor that is not its own")]
    TunClosed {
        /// Its name.
        name: String,
    },
}

/// Returns the error of a system call of the loop.
pub(super) fn system(call: &'static str, error: &std::io::Error) -> WorkerError {
    WorkerError::System { call, errno: error.raw_os_error().unwrap_or_default() }
}
