//! The public items of the library beside the list in `docs/public-api.txt`, so that none appears by accident.
//!
//! `LODEN_PUBLIC_API=write` writes the list anew. A toolchain with another format of rustdoc's JSON is told apart: the
//! test then says that it compared nothing.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::{env, fs};

use public_api::Builder;

const WRITE: &str = "LODEN_PUBLIC_API";

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Returns all public items, one for each line, in the order of their names. `None` if this toolchain's format is
/// unknown.
fn items() -> Option<Vec<String>> {
    let target = root().join("target/public-api");
    let output = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(root())
        // rustdoc's JSON is not stable, which does not matter here.
        .env("RUSTC_BOOTSTRAP", "1")
        .args(["rustdoc", "--quiet", "--package", "loden", "--lib", "--all-features", "--target-dir"])
        .arg(&target)
        .args(["--", "-Z", "unstable-options", "--output-format", "json", "--cap-lints", "allow"])
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let builder = Builder::from_rustdoc_json(target.join("doc/loden.json"))
        .omit_blanket_impls(true)
        .omit_auto_trait_impls(true)
        .omit_auto_derived_impls(true);
    match builder.build() {
        Ok(api) => Some(api.items().map(ToString::to_string).collect()),
        Err(error) => {
            println!("skipped: this toolchain's rustdoc writes another format: {error}");
            None
        }
    }
}

#[test]
fn the_public_items_are_those_of_the_list() {
    let Some(items) = items() else { return };
    assert!(items.len() > 1000, "the whole library: {}", items.len());
    let path = root().join("docs/public-api.txt");
    if env::var_os(WRITE).is_some() {
        fs::write(&path, items.join("\n") + "\n").expect("the list is written");
        return;
    }
    let text = fs::read_to_string(&path).expect("docs/public-api.txt");
    let (listed, found): (BTreeSet<_>, BTreeSet<_>) =
        (text.lines().collect(), items.iter().map(String::as_str).collect());
    let new: Vec<_> = found.difference(&listed).collect();
    let gone: Vec<_> = listed.difference(&found).collect();
    assert!(
        new.is_empty() && gone.is_empty(),
        "the public API has changed. New: {new:#?} Gone: {gone:#?} If that is intended, run this test with {WRITE}=write"
    );
}
