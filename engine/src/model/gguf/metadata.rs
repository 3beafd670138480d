//! The typed key-value metadata of a GGUF file.

use crate::error::{EngineError, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A value of the metadata. Integers of all widths are widened.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A truth value.
    Bool(bool),
    /// An unsigned integer.
    Unsigned(u64),
    /// A signed integer.
    Signed(i64),
    /// A 32-bit float.
    F32(f32),
    /// A 64-bit float.
    F64(f64),
    /// A text.
    Text(String),
    /// A list of values of one type.
    Array(Array),
}

/// A list of values of one type.
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    /// Truth values.
    Bool(Vec<bool>),
    /// Unsigned integers.
    Unsigned(Vec<u64>),
    /// Signed integers.
    Signed(Vec<i64>),
    /// 32-bit floats.
    F32(Vec<f32>),
    /// 64-bit floats.
    F64(Vec<f64>),
    /// Texts.
    Text(Vec<String>),
}

/// All metadata of a GGUF file.
#[derive(Debug, Clone)]
pub struct Metadata {
    file: PathBuf,
    values: BTreeMap<String, Value>,
}

impl Metadata {
    pub(crate) fn new(file: &Path, values: BTreeMap<String, Value>) -> Self {
        Self { file: file.into(), values }
    }

    /// The file that it comes from.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// All keys, ascending.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// A text; `None` when the key is absent. Like the accessors below, an error names the key when its value has
    /// another type.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a text", |v| match v {
            Value::Text(s) => Some(s.as_str()),
            _ => None,
        })
    }

    /// A truth value.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a truth value", |v| match v {
            Value::Bool(b) => Some(*b),
            _ => None,
        })
    }

    /// An integer that is not negative.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "an integer that is not negative", |v| match v {
            Value::Unsigned(n) => Some(*n),
            Value::Signed(n) => u64::try_from(*n).ok(),
            _ => None,
        })
    }

    /// A float of either width.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a float", |v| match v {
            Value::F32(x) => Some(f64::from(*x)),
            Value::F64(x) => Some(*x),
            _ => None,
        })
    }

    /// A list of texts.
    pub fn texts(&self, key: &str) -> Result<Option<&[String]>> {
        self.typed(key, "a list of texts", |v| match v {
            Value::Array(Array::Text(items)) => Some(items.as_slice()),
            _ => None,
        })
    }

    /// A list of 32-bit floats.
    pub fn floats(&self, key: &str) -> Result<Option<&[f32]>> {
        self.typed(key, "a list of 32-bit floats", |v| match v {
            Value::Array(Array::F32(items)) => Some(items.as_slice()),
            _ => None,
        })
    }

    /// A list of integers, widened to signed.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        self.typed(key, "a list of integers", |v| match v {
            Value::Array(Array::Signed(items)) => Some(items.clone()),
            Value::Array(Array::Unsigned(items)) => items.iter().map(|n| i64::try_from(*n).ok()).collect(),
            _ => None,
        })
    }

    /// A refusal that names the key.
    pub(crate) fn refuse(&self, key: &str, reason: impl std::fmt::Display, hint: &str) -> EngineError {
        EngineError::model(&self.file, format!("key `{key}` {reason}"), hint)
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(value) => read(value).map(Some).ok_or_else(|| {
                self.refuse(key, format!("is not {expected}"), "convert the model again with a current tool")
            }),
        }
    }
}
