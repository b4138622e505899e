//! `subnet.env` on disk: whoever reads it sees the old file or the new one, whole.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use alloc::string::ToString;

use super::subnet_env::SubnetEnv;

/// What was being done when the system refused it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileStep {
    /// Making the directory.
    CreateDirectory,
    /// Making or writing the temporary file beside the final one.
    Write,
    /// Giving it the final name.
    Rename,
}

/// Why `subnet.env` could not be written. What was there before is still there.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} {}: {source}; the subnet file needs a directory that this process may write to", .path.display())]
pub struct FileError {
    /// What was being done.
    pub step: FileStep,
    /// To which path.
    pub path: PathBuf,
    /// What the system says.
    pub source: io::Error,
}

/// Writes `subnet.env`: to a temporary file in the same directory, mode 0644, synced and then renamed. Missing directories are
/// made with mode 0755.
///
/// It blocks for as long as the disk does.
///
/// # Errors
/// [`FileError`] with the step that failed; the temporary file is gone then.
pub fn write_subnet_env(path: &Path, env: &SubnetEnv) -> Result<(), FileError> {
    let failed = |step, path: &Path| {
        let path = path.to_owned();
        move |source| FileError { step, path, source }
    };
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    create_directory(directory).map_err(failed(FileStep::CreateDirectory, directory))?;
    let temporary = directory.join(temporary_name(path));
    let written = write_new(&temporary, env.to_string().as_bytes())
        .map_err(failed(FileStep::Write, &temporary))
        .and_then(|()| fs::rename(&temporary, path).map_err(failed(FileStep::Rename, path)));
    if written.is_err() {
        // It may not be there, and there is nobody to tell that it cannot be removed either.
        let _ = fs::remove_file(&temporary);
        return written;
    }
    // The name is on disk only when the directory is. Some file systems refuse to sync one; the file is in its place then too.
    let _ = File::open(directory).and_then(|directory| directory.sync_all());
    Ok(())
}

fn create_directory(directory: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o755);
    builder.create(directory)
}

/// Hidden, and this process's own.
fn temporary_name(path: &Path) -> OsString {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(std::format!(".{}", std::process::id()));
    name
}

fn write_new(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    // Never through a link that somebody put there.
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o644);
    let mut file = match options.open(path) {
        // Left by an earlier process with our number.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            options.open(path)?
        }
        file => file?,
    };
    // Whatever the umask is: others have to read it.
    #[cfg(unix)]
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    file.write_all(contents)?;
    file.sync_all()
}

impl core::fmt::Display for FileStep {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::CreateDirectory => "make the directory",
            Self::Write => "write the temporary file",
            Self::Rename => "rename the temporary file to",
        })
    }
}
