//! The bodies of the targets for flannel's formats.

pub mod config;
pub mod key;
pub mod subnet_env;
pub mod value;

use serde_json::{Map, Value};

/// Parses a JSON object whose names differ by more than case. Returns it with its text formatted anew, in which each
/// name is unique.
fn object(bytes: &[u8]) -> Option<(Map<String, Value>, String)> {
    let Ok(Value::Object(object)) = serde_json::from_slice(bytes) else { return None };
    let mut names: Vec<String> = object.keys().map(|name| name.to_ascii_lowercase()).collect();
    names.sort();
    let text = Value::Object(object.clone()).to_string();
    names.windows(2).all(|pair| pair[0] != pair[1]).then_some((object, text))
}

/// Returns a field by its name in any case; `None` for null.
fn field<'o>(object: &'o Map<String, Value>, name: &str) -> Option<&'o Value> {
    let named = object.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
    named.map(|(_, value)| value).filter(|value| !value.is_null())
}
