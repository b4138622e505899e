//! The library's examples as ways from pod to pod. They are measured when `--only` names them.

use std::ffi::OsStr;
use std::path::Path;

/// An example in `examples/`, with the arguments of `poll_loop`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Example {
    PollLoop,
    TokioLoop,
    MioLoop,
    IoUring,
    Cframe,
    Aead,
}

impl Example {
    /// The name of the program.
    pub(crate) fn program(self) -> &'static str {
        match self {
            Self::PollLoop => "poll_loop",
            Self::TokioLoop => "tokio_loop",
            Self::MioLoop => "mio_loop",
            Self::IoUring => "io_uring",
            Self::Cframe => "cframe",
            Self::Aead => "aead",
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::PollLoop => "poll-loop",
            Self::TokioLoop => "tokio-loop",
            Self::MioLoop => "mio-loop",
            Self::IoUring => "io-uring",
            Self::Cframe | Self::Aead => self.program(),
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::PollLoop => "example poll_loop",
            Self::TokioLoop => "example tokio_loop",
            Self::MioLoop => "example mio_loop",
            Self::IoUring => "example io_uring",
            Self::Cframe => "example cframe",
            Self::Aead => "example aead",
        }
    }

    /// Returns the argument before those of `poll_loop`. `keys` is a file of the example `aead`.
    pub(crate) fn first_arg(self, keys: &Path) -> Option<&OsStr> {
        match self {
            Self::PollLoop | Self::TokioLoop | Self::MioLoop | Self::IoUring => None,
            Self::Cframe => Some("0123456789abcdef".as_ref()),
            Self::Aead => Some(keys.as_ref()),
        }
    }
}
