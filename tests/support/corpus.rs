//! The fuzz targets' corpora: their bodies over the committed seeds, and the seeds as the tests have them.

use std::fs;
use std::path::PathBuf;

fn directory(target: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../../fuzz/corpus", target].iter().collect()
}

/// The contents of a directory's files, but not of the directories in it.
fn files_in(directory: PathBuf) -> impl Iterator<Item = Vec<u8>> {
    let paths = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.is_file()).map(|path| fs::read(path).unwrap())
}

/// Runs a body over what a fuzzer found, and over every seed, over each with every byte changed, and over its fronts.
pub fn run_over(target: &str, body: fn(&[u8])) {
    let found = files_in(directory(target).join("found")).map(|bytes| body(&bytes)).count();
    assert!(found > 0, "nothing was found by fuzzing {target}");
    let mut seeds = 0;
    for bytes in files_in(directory(target)) {
        body(&bytes);
        for at in 0..bytes.len().min(96) {
            // Neighbours, the other case of a letter, and the top bit.
            for change in [0x01, 0x02, 0x20, 0x80] {
                let mut changed = bytes.clone();
                changed[at] ^= change;
                body(&changed);
            }
            body(&bytes[..at]);
        }
        seeds += 1;
    }
    assert!(seeds >= 5, "{seeds} seeds for {target}");
}

/// The committed seeds are these; with `LODEN_WRITE_SEEDS` set they are written first.
pub fn assert_committed<B: AsRef<[u8]>>(target: &str, seeds: impl IntoIterator<Item = (&'static str, B)>) {
    for (name, seed) in seeds {
        let path = directory(target).join(name);
        if std::env::var_os("LODEN_WRITE_SEEDS").is_some() {
            fs::create_dir_all(directory(target)).unwrap();
            fs::write(&path, &seed).unwrap();
        }
        assert_eq!(fs::read(&path).unwrap(), seed.as_ref(), "{target}/{name}");
    }
}
