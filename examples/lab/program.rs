//! The measured programs: examples of this repository, built in the lab's profile.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::NamedTempFile;

use crate::Error;

/// The programs beside the lab.
pub(crate) struct Programs {
    /// The lab itself.
    own: PathBuf,
    /// Made only for the example `aead`, because a signal leaves it behind.
    keys: Option<NamedTempFile>,
}

impl Programs {
    /// Builds these examples with cargo if cargo runs the lab, so that they are up to date. Otherwise takes the programs
    /// beside the lab.
    pub(crate) fn find(names: BTreeSet<&str>) -> Result<Self, Error> {
        let own = env::current_exe()?;
        let keys = names.contains("aead").then(NamedTempFile::new).transpose()?;
        for name in names {
            if let Some(cargo) = env::var_os("CARGO") {
                build(&cargo, &own, name)?;
            }
            let program = own.with_file_name(name);
            if !program.exists() {
                let missing = program.display();
                let how = format!("cargo build --release --all-features --example {name}");
                return Err(format!("{missing} is missing: {how}").into());
            }
        }
        if let Some(keys) = &keys {
            fs::write(keys.path(), format!("1 {}", "5a".repeat(32)))?;
        }
        Ok(Self { own, keys })
    }

    /// Returns the file with the key of the example `aead`.
    pub(crate) fn keys(&self) -> &Path {
        self.keys.as_ref().map_or(Path::new(""), NamedTempFile::path)
    }

    /// Returns a command that runs a program and ends it with the lab.
    pub(crate) fn command(&self, name: &str) -> Command {
        let mut command = Command::new(&self.own);
        command.arg("with-parent").arg("--").arg(self.own.with_file_name(name));
        command
    }
}

fn build(cargo: &OsStr, own: &Path, name: &str) -> Result<(), Error> {
    // <target>/<profile>/examples/lab
    let profile = own.ancestors().nth(2).ok_or("the lab is not where cargo puts examples")?;
    let target = profile.parent().ok_or("the lab is not where cargo puts examples")?;
    let profile = match profile.file_name() {
        Some(profile) if profile != "debug" => profile,
        _ => "dev".as_ref(),
    };
    let package: &[&str] = if name == "tunnel" { &["loden-tunnel"] } else { &["loden", "--all-features"] };
    let mut build = Command::new(cargo);
    build.arg("build").arg("--package").args(package).args(["--example", name, "--profile"]).arg(profile);
    build.arg("--target-dir").arg(target);
    build.current_dir(env::var_os("CARGO_MANIFEST_DIR").ok_or("cargo did not say where the package is")?);
    if !build.status()?.success() {
        return Err(format!("cargo cannot build {name}").into());
    }
    Ok(())
}
