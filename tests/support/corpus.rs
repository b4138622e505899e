//! The corpora of the fuzz targets. Tests run the bodies over them, and compare the committed seeds.

use std::fs;
use std::path::PathBuf;

fn directory(target: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../../fuzz/corpus", target].iter().collect()
}

/// Returns the contents of a directory's files, without subdirectories.
fn files_in(directory: PathBuf) -> impl Iterator<Item = Vec<u8>> {
    let paths = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.is_file()).map(|path| fs::read(path).unwrap())
}

/// Runs a body over a fuzzer's findings and over every seed. It also runs over each seed with every byte changed, and
/// over its prefixes.
pub fn run_over(target: &str, body: fn(&[u8])) {
    let found = files_in(directory(target).join("found")).map(|bytes| body(&bytes)).count();
    assert!(found > 0, "nothing was found by fuzzing {target}");
    let mut seeds = 0;
    for bytes in files_in(directory(target)) {
        body(&bytes);
        for at in 0..bytes.len().min(96) {
            // Flips the low bits, the case of a letter, and the top bit.
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

/// Asserts that the committed seeds are these. With `LODEN_WRITE_SEEDS` set it writes them first.
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
