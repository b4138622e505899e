//! Context for kernel errors: the attempted operation.

use std::io;

/// Adds the attempted operation to an error; its kind stays.
pub(crate) trait Context<T> {
    /// Prefixes the error's message with `what`, the start of a sentence such as "cannot add 10.0.0.1/24 to eth0".
    fn context(self, what: impl FnOnce() -> String) -> io::Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> io::Result<T> {
        self.map_err(|error| {
            let error = error.into();
            io::Error::new(error.kind(), format!("{}: {error}", what()))
        })
    }
}
