//! An rtnetlink connection inside a namespace.

use crate::Namespace;
use rtnetlink::{Error, Handle};
use std::io;

impl Namespace {
    /// Runs `job` with a netlink handle inside the namespace, and blocks until it is done.
    pub(crate) fn netlink<T: Send>(
        &self,
        job: impl AsyncFnOnce(Handle) -> Result<T, NetlinkError> + Send,
    ) -> io::Result<T> {
        self.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
            runtime.block_on(async {
                let (connection, handle, _unsolicited) = rtnetlink::new_connection()?;
                tokio::spawn(connection);
                Ok(job(handle).await?)
            })
        })
    }
}

/// An error that `?` converts from both the kernel's answers and our conclusions.
pub(crate) struct NetlinkError(io::Error);

impl NetlinkError {
    /// Returns true if the kernel has no link of that name.
    pub(crate) fn is_no_such_device(&self) -> bool {
        self.0.raw_os_error() == Some(nix::errno::Errno::ENODEV as i32)
    }
}

impl From<Error> for NetlinkError {
    fn from(error: Error) -> Self {
        if let Error::NetlinkError(message) = &error {
            return Self(message.to_io());
        }
        Self(io::Error::other(error))
    }
}

impl From<io::Error> for NetlinkError {
    fn from(error: io::Error) -> Self {
        Self(error)
    }
}

impl From<NetlinkError> for io::Error {
    fn from(error: NetlinkError) -> Self {
        error.0
    }
}
