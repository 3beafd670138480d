//! Request bodies: bounded in size and time, JSON without doubtful readings, fields read by name with their path.

use super::app::App;
use super::error::HttpError;
use crate::nearest;
use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::{self, DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};
use serde_json::{Map, Value};
use std::time::Duration;

/// The body of a request as a JSON object, not yet given to anybody.
#[derive(Debug)]
pub(crate) struct Fields {
    map: Map<String, Value>,
    known: Vec<&'static str>,
}

impl FromRequest<App> for Fields {
    type Rejection = HttpError;

    async fn from_request(request: Request, app: &App) -> Result<Self, HttpError> {
        app.admission.open().map_err(|error| app.refused(error))?;
        let (head, body) = request.into_parts();
        let kind = head.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let essence = kind.split(';').next().unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case("application/json") {
            let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            let message = format!("the body is `{essence}`, not `application/json`");
            return Err(HttpError::invalid(
                status,
                message,
                "send the header Content-Type: application/json",
            ));
        }
        let time = Duration::from_millis(app.config.body_timeout_ms);
        let bytes = tokio::time::timeout(time, read(body, app.config.max_body_bytes)).await;
        let late = |_| {
            let message = format!("the body did not arrive within {} ms", app.config.body_timeout_ms);
            HttpError::invalid(StatusCode::REQUEST_TIMEOUT, message, "send it faster")
        };
        Self::parse(&bytes.map_err(late)??)
    }
}

/// The bytes of a body of at most `limit`.
async fn read(body: Body, limit: usize) -> Result<Vec<u8>, HttpError> {
    match Limited::new(body, limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes().into()),
        Err(error) if error.is::<LengthLimitError>() => {
            let message = format!("the body is larger than {limit} bytes");
            Err(HttpError::invalid(
                StatusCode::PAYLOAD_TOO_LARGE,
                message,
                "send less, or raise max_body_bytes",
            ))
        }
        Err(error) => {
            let message = format!("the body cannot be read: {error}");
            Err(HttpError::invalid(StatusCode::BAD_REQUEST, message, "check its length and encoding"))
        }
    }
}

impl Fields {
    /// Reads a JSON object; a key that occurs twice is refused.
    pub fn parse(bytes: &[u8]) -> Result<Self, HttpError> {
        let bad = |message: String| {
            HttpError::invalid(StatusCode::BAD_REQUEST, message, "send one JSON object").code("invalid_json")
        };
        match serde_json::from_slice::<Strict>(bytes) {
            Ok(Strict(Value::Object(map))) => Ok(Self::of(map)),
            Ok(Strict(other)) => Err(bad(format!("the body is {}, not a JSON object", kind(&other)))),
            Err(error) => Err(bad(format!("the body is not valid JSON: {error}"))),
        }
    }

    /// Takes the fields of an object; a field that is null counts as absent.
    pub fn of(mut map: Map<String, Value>) -> Self {
        map.retain(|_, value| !value.is_null());
        Self { map, known: Vec::new() }
    }

    /// Takes the fields that `T` has out of the body.
    pub fn part<T: DeserializeOwned>(&mut self) -> Result<T, HttpError> {
        let names = field_names::<T>();
        self.known.extend(names);
        let mine: Map<String, Value> =
            names.iter().filter_map(|name| self.map.shift_remove_entry(*name)).collect();
        serde_path_to_error::deserialize(Value::Object(mine)).map_err(|error| {
            let path = error.path().to_string();
            HttpError::field(&path, error.into_inner(), "see /openapi.json for the fields and their types")
        })
    }

    /// Refuses what nobody took: by its reason in `refused` (name, reason), or as unknown.
    pub fn finish(self, refused: &[(&str, &str)]) -> Result<(), HttpError> {
        let Some(name) = self.map.keys().next() else { return Ok(()) };
        if let Some((_, reason)) = refused.iter().find(|(known, _)| known == name) {
            return Err(HttpError::field(name, format!("is not supported: {reason}"), "leave it out")
                .code("unsupported_parameter"));
        }
        let hint = match nearest::of(name, self.known.iter().copied()) {
            Some(best) => format!("did you mean `{best}`?"),
            None => "leave it out".to_owned(),
        };
        Err(HttpError::field(name, "is not a field of this endpoint", hint).code("unknown_parameter"))
    }
}

/// What a JSON value is, for messages.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// JSON in which no key occurs twice: readers disagree about which of the two counts.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some((key, Strict(value))) = entries.next_entry::<String, Strict>()? {
            if map.contains_key(&key) {
                return Err(de::Error::custom(format!("the key `{key}` occurs twice")));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// Names of the fields that a struct reads, as its `Deserialize` declares them.
fn field_names<T: DeserializeOwned>() -> &'static [&'static str] {
    let mut names = Names(&[]);
    // It always fails, after having told what it was asked for.
    let _ = T::deserialize(&mut names);
    names.0
}

/// A deserializer that only listens.
struct Names(&'static [&'static str]);

impl<'de> Deserializer<'de> for &mut Names {
    type Error = de::value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(de::Error::custom("listens only"))
    }
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Self::Error> {
        self.0 = fields;
        Err(de::Error::custom("listens only"))
    }
    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}
