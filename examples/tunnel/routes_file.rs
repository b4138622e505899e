//! The file of routes, `SUBNET ADDR[:PORT]` in each line, and its bad lines.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc::O_NONBLOCK;

use crate::report::say;

/// About ten million lines.
const LONGEST: u64 = 256 << 20;

/// Reads a file of lines. Bytes that are not text make only their line invalid.
pub(crate) fn read(path: &Path) -> io::Result<String> {
    // Opened non-blocking, because a FIFO without a writer would block for ever.
    let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path)?;
    check(&file)?;
    let mut bytes = Vec::new();
    file.take(LONGEST).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn check(file: &File) -> io::Result<()> {
    let found: fs::Metadata = file.metadata()?;
    if !found.is_file() {
        let kind = if found.is_dir() { "a directory" } else { "a FIFO or a device" };
        return Err(io::Error::other(format!("this is {kind}; give a regular file")));
    }
    if found.len() > LONGEST {
        return Err(io::Error::other(format!("{} bytes are more than the {LONGEST} that are read", found.len())));
    }
    Ok(())
}

/// The bad lines of one reading. The first few are named, the others counted.
pub(crate) struct BadLines<'a> {
    file: &'a Path,
    count: usize,
}

impl<'a> BadLines<'a> {
    const CAUSE: &'static str = "lines of the routes file";
    const NAMED: usize = 10;

    pub(crate) fn of(file: &'a Path) -> Self {
        Self { file, count: 0 }
    }

    pub(crate) fn report(&mut self, number: usize, reason: &dyn fmt::Display) {
        /// A line may be as long as the file.
        const CHARACTERS: usize = 200;
        self.count += 1;
        if self.count <= Self::NAMED {
            let reason: String = reason.to_string().chars().take(CHARACTERS).collect();
            say(Self::CAUSE, format_args!("{} line {number}: {reason}", self.file.display()));
        }
    }

    /// Prints the number of bad lines that were not named. Returns the number of all.
    pub(crate) fn finish(self) -> usize {
        let more = self.count.saturating_sub(Self::NAMED);
        if more > 0 {
            say(Self::CAUSE, format_args!("{}: and {more} more bad lines", self.file.display()));
        }
        self.count
    }
}
