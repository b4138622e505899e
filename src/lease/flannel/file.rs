//! Atomic writes of `subnet.env`: a reader sees the whole old file or the whole new one.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use alloc::string::ToString;

use super::subnet_env::SubnetEnv;

/// The step that the system refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileStep {
    /// Creating the directory.
    CreateDirectory,
    /// Creating or writing the temporary file in the same directory.
    Write,
    /// Renaming the temporary file.
    Rename,
}

/// The reason why `subnet.env` could not be written. The previous file still exists.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} {}: {source}; the subnet file needs a directory that this process may write to", .path.display())]
pub struct FileError {
    /// The step that failed.
    pub step: FileStep,
    /// The path.
    pub path: PathBuf,
    /// The system's error.
    pub source: io::Error,
}

/// Writes `subnet.env` with mode 0644. It writes a temporary file in the same directory, syncs it and renames it.
/// Missing directories are created with mode 0755.
///
/// It blocks on the disk.
///
/// # Errors
/// [`FileError`] with the failed step. The temporary file is removed then.
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
        // The file may not exist, and there is no way to report that it cannot be removed either.
        let _ = fs::remove_file(&temporary);
        return written;
    }
    // The name is durable only after the directory is synced. Some file systems refuse that; the file has its name then
    // too.
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

/// Returns a hidden name that only this process uses.
fn temporary_name(path: &Path) -> OsString {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(std::format!(".{}", std::process::id()));
    name
}

fn write_new(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    // `create_new` does not follow a symbolic link that another user created.
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o644);
    let mut file = match options.open(path) {
        // An earlier process with the same process id left it.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            options.open(path)?
        }
        file => file?,
    };
    // Other users must be able to read the file, whatever the umask is.
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
