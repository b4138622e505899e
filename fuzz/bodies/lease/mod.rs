//! flannel's formats: what each target does with its input.

pub mod config;
pub mod key;
pub mod subnet_env;
pub mod value;

use serde_json::{Map, Value};

/// A JSON object whose names differ by more than case, and its text written anew: no name is in it twice.
fn object(bytes: &[u8]) -> Option<(Map<String, Value>, String)> {
    let Ok(Value::Object(object)) = serde_json::from_slice(bytes) else { return None };
    let mut names: Vec<String> = object.keys().map(|name| name.to_ascii_lowercase()).collect();
    names.sort();
    let text = Value::Object(object.clone()).to_string();
    names.windows(2).all(|pair| pair[0] != pair[1]).then_some((object, text))
}

/// A field by its name in any case; null is none.
fn field<'o>(object: &'o Map<String, Value>, name: &str) -> Option<&'o Value> {
    let named = object.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
    named.map(|(_, value)| value).filter(|value| !value.is_null())
}
