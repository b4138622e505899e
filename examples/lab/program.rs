//! The program of the tunnel: the example `tunnel`, built in the lab's profile.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Error;

/// The `tunnel` example.
pub(crate) struct Tunnel {
    program: PathBuf,
    /// The lab itself.
    own: PathBuf,
}

impl Tunnel {
    /// Builds the tunnel with cargo if cargo runs the lab, so that it is up to date. Otherwise returns the program
    /// beside the lab.
    pub(crate) fn find() -> Result<Self, Error> {
        let own = env::current_exe()?;
        let program = own.with_file_name("tunnel");
        if let Some(cargo) = env::var_os("CARGO") {
            build(&cargo, &own)?;
        }
        if !program.exists() {
            let missing = program.display();
            return Err(format!("{missing} is missing: cargo build --release --example tunnel").into());
        }
        Ok(Self { program, own })
    }

    /// Returns a command that runs it and ends it with the lab.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.own);
        command.arg("with-parent").arg("--").arg(&self.program);
        command
    }
}

fn build(cargo: &OsStr, own: &Path) -> Result<(), Error> {
    // <target>/<profile>/examples/lab
    let profile = own.ancestors().nth(2).ok_or("the lab is not where cargo puts examples")?;
    let target = profile.parent().ok_or("the lab is not where cargo puts examples")?;
    let name = match profile.file_name() {
        Some(name) if name != "debug" => name,
        _ => "dev".as_ref(),
    };
    let mut build = Command::new(cargo);
    build
        .args(["build", "--package", "loden-tunnel", "--example", "tunnel", "--profile"])
        .arg(name)
        .arg("--target-dir")
        .arg(target);
    build.current_dir(env::var_os("CARGO_MANIFEST_DIR").ok_or("cargo did not say where the package is")?);
    if !build.status()?.success() {
        return Err("cargo cannot build the tunnel".into());
    }
    Ok(())
}
