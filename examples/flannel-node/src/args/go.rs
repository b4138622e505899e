//! The syntax of Go's flags, which flanneld's unit files use: `-iface=eth0`, `-iface eth0`, `-ip-masq=false`.

use std::collections::HashMap;
use std::ffi::OsString;

/// Rewrites the flags of a command line for clap: two dashes, and values after `=`.
///
/// A flag with an empty value counts as not given, because unit files fill values from variables that may be empty.
pub(super) fn rewritten(words: impl IntoIterator<Item = OsString>, command: &clap::Command) -> Vec<OsString> {
    let needs_value = needs_value(command);
    let mut words = words.into_iter();
    let mut rewritten: Vec<OsString> = words.next().into_iter().collect();
    while let Some(word) = words.next() {
        let Some((name, value)) = word.to_str().and_then(flag) else {
            let is_end = word == "--";
            if !word.is_empty() {
                rewritten.push(word);
            }
            if is_end {
                rewritten.extend(words.by_ref());
            }
            continue;
        };
        let mut flag = OsString::from(format!("--{name}"));
        let value = match value {
            Some(value) => Some(value.into()),
            // Go takes the next word, even one that begins with a dash.
            None if needs_value.get(name).copied().unwrap_or(false) => words.next(),
            None => None,
        };
        if let Some(value) = value {
            if value.is_empty() && needs_value.contains_key(name) {
                continue;
            }
            flag.push("=");
            flag.push(value);
        }
        rewritten.push(flag);
    }
    rewritten
}

/// Parses a boolean as Go does.
pub(super) fn switch(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}

/// Splits a flag into name and value. clap knows `-h`, and as a shorter help than `--help`.
fn flag(word: &str) -> Option<(&str, Option<&str>)> {
    if word == "-h" {
        return None;
    }
    let flag = word.strip_prefix("--").or_else(|| word.strip_prefix('-'))?;
    let (name, value) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value)));
    (!name.is_empty() && !name.starts_with('-')).then_some((name, value))
}

/// Returns the known flags, and for each true if its value may be the next word.
fn needs_value(command: &clap::Command) -> HashMap<String, bool> {
    let all = std::iter::once(command).chain(command.get_subcommands());
    all.flat_map(clap::Command::get_arguments)
        .filter_map(|arg| {
            let needs_value = arg.get_action().takes_values() && !arg.is_require_equals_set();
            Some((arg.get_long()?.to_owned(), needs_value))
        })
        .collect()
}
