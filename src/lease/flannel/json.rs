//! JSON objects, decoded as Go decodes them into a struct.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::shown;

/// The reason why a text is not the expected JSON.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JsonError {
    /// Invalid JSON, or trailing text.
    #[error("invalid JSON: {reason}")]
    Syntax {
        /// The parser's message, with line and column.
        reason: String,
    },
    /// A value of the wrong type.
    #[error("{field} is {found}, not {wanted}")]
    Kind {
        /// The name of the field.
        field: &'static str,
        /// The expected type.
        wanted: &'static str,
        /// The actual value, shortened if it is long.
        found: String,
    },
}

/// The fields of an object, in their order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Object(Vec<(String, Node)>);

/// A value of a type that flannel's fields have.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    Bool(bool),
    Null,
    /// A value of any other type, for the error.
    Other(String),
    Object(Object),
    Text(String),
    Unsigned(u64),
}

impl Object {
    /// Parses a text that must be one object. `field` is its name in errors.
    pub(super) fn parse(text: &[u8], field: &'static str) -> Result<Self, JsonError> {
        let node: Node =
            serde_json::from_slice(text).map_err(|error| JsonError::Syntax { reason: error.to_string() })?;
        if let Node::Object(object) = node { Ok(object) } else { Err(node.not(field, "an object")) }
    }

    /// Returns a text field. Null counts as absent.
    pub(super) fn text(&self, field: &'static str) -> Result<Option<&str>, JsonError> {
        match self.field(field) {
            None => Ok(None),
            Some(Node::Text(text)) => Ok(Some(text)),
            Some(other) => Err(other.not(field, "a text")),
        }
    }

    /// Returns a text field after parsing; `wanted` describes the expected text.
    pub(super) fn parsed<T: core::str::FromStr>(
        &self,
        field: &'static str,
        wanted: &'static str,
    ) -> Result<Option<T>, JsonError> {
        let Some(text) = self.text(field)? else { return Ok(None) };
        match text.parse() {
            Ok(parsed) => Ok(Some(parsed)),
            Err(_) => Err(Node::Text(text.into()).not(field, wanted)),
        }
    }

    pub(super) fn bool(&self, field: &'static str) -> Result<Option<bool>, JsonError> {
        match self.field(field) {
            None => Ok(None),
            Some(Node::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(other.not(field, "true or false")),
        }
    }

    /// Returns a number field; `wanted` names the range of `T`.
    pub(super) fn number<T: TryFrom<u64>>(
        &self,
        field: &'static str,
        wanted: &'static str,
    ) -> Result<Option<T>, JsonError> {
        let Some(node) = self.field(field) else { return Ok(None) };
        let number = if let Node::Unsigned(number) = node { T::try_from(*number).ok() } else { None };
        number.map(Some).ok_or_else(|| node.not(field, wanted))
    }

    pub(super) fn object(&self, field: &'static str) -> Result<Option<&Self>, JsonError> {
        match self.field(field) {
            None => Ok(None),
            Some(Node::Object(object)) => Ok(Some(object)),
            Some(other) => Err(other.not(field, "an object")),
        }
    }

    fn field(&self, name: &str) -> Option<&Node> {
        let named = self.0.iter().rev().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        named.map(|(_, node)| node).find(|node| **node != Node::Null)
    }
}

impl Node {
    fn not(&self, field: &'static str, wanted: &'static str) -> JsonError {
        let found = match self {
            Self::Bool(value) => value.to_string(),
            Self::Null => "null".into(),
            Self::Object(_) => "an object".into(),
            Self::Other(found) => found.clone(),
            Self::Text(text) => format!("{:?}", shown(text)),
            Self::Unsigned(number) => number.to_string(),
        };
        JsonError::Kind { field, wanted, found }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Other(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Unsigned(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        // This is at most 24 characters long. `Display` would write 1e300 in full.
        Ok(Node::Other(format!("{value:e}")))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Node::Other("a list".into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(Node::Object(Object(fields)))
    }
}
