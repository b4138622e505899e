//! The file `subnet.env` on disk.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use loden::lease::flannel::{FileStep, SubnetEnv, write_subnet_env};

fn env(mtu: u16) -> SubnetEnv {
    SubnetEnv::new("100.96.0.0/16".parse().unwrap(), "100.96.1.0/24".parse().unwrap(), mtu, false).unwrap()
}

fn mode(path: &std::path::Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn the_file_is_made_with_its_directory_and_nothing_else() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("run/flannel/subnet.env");
    write_subnet_env(&path, &env(1472)).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), env(1472).to_string());
    assert_eq!(mode(&path), 0o644);
    assert_eq!(mode(path.parent().unwrap()), 0o755);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    // Left by an earlier process with the same id. The file must not be written through.
    let left = path.with_file_name(format!(".subnet.env.{}", std::process::id()));
    let elsewhere = place.path().join("elsewhere");
    std::os::unix::fs::symlink(&elsewhere, &left).unwrap();
    write_subnet_env(&path, &env(1400)).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), env(1400).to_string());
    assert!(!elsewhere.exists());
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
}

/// A reader during a write sees one of the written files, and none older than the last one.
#[test]
fn readers_see_whole_files() {
    const FILES: usize = 20;
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("subnet.env");
    write_subnet_env(&path, &env(1000)).unwrap();
    let seen = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut last = String::new();
            while seen.load(Ordering::Relaxed) < FILES {
                let text = fs::read_to_string(&path).unwrap();
                assert!(text.len() == last.len() && text >= last || last.is_empty(), "{text:?} after {last:?}");
                seen.fetch_add(usize::from(text != last), Ordering::Relaxed);
                last = text;
            }
            last
        });
        let mut written = Vec::new();
        // Of equal length, so that a longer text is always the later one.
        for mtu in (1000..9000).take_while(|_| !reader.is_finished()) {
            written.push(env(mtu).to_string());
            write_subnet_env(&path, &env(mtu)).unwrap();
        }
        assert!(written.contains(&reader.join().unwrap()));
    });
    assert!(seen.into_inner() >= FILES);
}

#[test]
fn a_failed_write_names_step_and_path_and_keeps_the_old_file() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("file");
    fs::write(&file, "here").unwrap();
    let error = write_subnet_env(&file.join("subnet.env"), &env(1472)).unwrap_err();
    assert_eq!((error.step, error.path.as_path()), (FileStep::CreateDirectory, file.as_path()));
    let directory = place.path().join("directory");
    fs::create_dir(&directory).unwrap();
    let error = write_subnet_env(&directory, &env(1472)).unwrap_err();
    assert_eq!((error.step, error.path.as_path()), (FileStep::Rename, directory.as_path()));
    assert!(error.to_string().starts_with(&format!("cannot rename the temporary file to {}: ", directory.display())));
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 2, "the temporary file is gone");
}
