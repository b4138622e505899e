//! The fuzz targets' corpora: their bodies over the committed seeds, and the seeds as the tests have them.

use std::fs;
use std::path::PathBuf;

fn directory(target: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "fuzz", "corpus", target].iter().collect()
}

/// Runs a body over every file there is, a fuzzer's finds among them, over each with every byte changed, and over its fronts.
pub(crate) fn run_over(target: &str, body: fn(&[u8])) {
    let mut files = 0;
    for entry in fs::read_dir(directory(target)).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
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
        files += 1;
    }
    assert!(files >= 5, "{files} seeds for {target}");
}

/// The committed seeds are these; with `LODEN_WRITE_SEEDS` set they are written first.
pub(crate) fn assert_committed<B: AsRef<[u8]>>(target: &str, seeds: impl IntoIterator<Item = (&'static str, B)>) {
    for (name, seed) in seeds {
        let path = directory(target).join(name);
        if std::env::var_os("LODEN_WRITE_SEEDS").is_some() {
            fs::create_dir_all(directory(target)).unwrap();
            fs::write(&path, &seed).unwrap();
        }
        assert_eq!(fs::read(&path).unwrap(), seed.as_ref(), "{target}/{name}");
    }
}
