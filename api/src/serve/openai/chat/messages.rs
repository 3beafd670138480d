//! Messages of a conversation: checked by role and part, turned into what chat templates read.

use crate::serve::error::HttpError;
use crate::text::chat::Message;
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// A message as it is sent. Clients send answers back as they came, with null for what they lack.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MessageFields {
    /// `system`, `developer` (read as `system`), `user`, `assistant` or `tool`.
    pub role: Option<String>,
    /// A text, or a list of text parts.
    #[schema(value_type = Object)]
    pub content: Option<Value>,
    /// A name, for templates that show it.
    pub name: Option<String>,
    /// Calls that the assistant made.
    #[schema(value_type = Option<Vec<Object>>)]
    pub tool_calls: Option<Vec<Value>>,
    /// The call that a tool answers.
    pub tool_call_id: Option<String>,
    /// Thoughts of the assistant, for templates that show them.
    pub reasoning_content: Option<String>,
    /// Parts of OpenAI's answers that may come back only empty.
    #[schema(value_type = Option<Object>)]
    pub refusal: Option<Value>,
    #[schema(value_type = Option<Vec<Object>>)]
    pub annotations: Option<Vec<Value>>,
    #[schema(value_type = Option<Object>)]
    pub audio: Option<Value>,
    #[schema(value_type = Option<Object>)]
    pub function_call: Option<Value>,
}

/// A part of a message's content.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

/// The conversation as templates read it; the first offence is refused by its path.
pub(crate) fn messages(list: Vec<MessageFields>) -> Result<Vec<Message>, HttpError> {
    if list.is_empty() {
        return Err(HttpError::field("messages", "is empty", "send at least one message"));
    }
    list.into_iter().enumerate().map(|(i, fields)| message(&format!("messages[{i}]"), fields)).collect()
}

fn message(path: &str, fields: MessageFields) -> Result<Message, HttpError> {
    let role = match fields.role.as_deref() {
        Some("developer") => "system",
        Some(role @ ("system" | "user" | "assistant" | "tool")) => role,
        other => {
            let reason = other.map_or("is missing".to_owned(), |role| format!("`{role}` is not known"));
            let hint = "use system, developer, user, assistant or tool";
            return Err(HttpError::field(&format!("{path}.role"), reason, hint));
        }
    };
    let refused = [
        ("refusal", fields.refusal.is_some()),
        ("annotations", fields.annotations.is_some_and(|list| !list.is_empty())),
        ("audio", fields.audio.is_some()),
        ("function_call", fields.function_call.is_some()),
    ];
    if let Some((name, _)) = refused.iter().find(|(_, given)| *given) {
        let reason = "is not supported: chat templates do not show it";
        return Err(HttpError::field(&format!("{path}.{name}"), reason, "leave it out or send null")
            .code("unsupported_parameter"));
    }
    let calls = fields.tool_calls.filter(|calls| !calls.is_empty());
    let content = match fields.content {
        Some(content) => text(&format!("{path}.content"), content)?,
        None if role == "assistant" && calls.is_some() => String::new(),
        None => {
            let hint = "send a text; only an assistant's message with tool_calls may lack it";
            return Err(HttpError::field(&format!("{path}.content"), "is missing", hint));
        }
    };
    let mut more = Map::new();
    let mut add = |name: &str, value: Option<Value>| value.map(|value| more.insert(name.to_owned(), value));
    add("name", fields.name.map(Value::from));
    add("tool_calls", calls.map(Value::from));
    add("tool_call_id", fields.tool_call_id.map(Value::from));
    add("reasoning_content", fields.reasoning_content.map(Value::from));
    Ok(Message { role: role.to_owned(), content: Value::String(content), more })
}

/// The text of a content; several text parts are joined by line breaks, as vLLM and llama.cpp do.
fn text(path: &str, content: Value) -> Result<String, HttpError> {
    let parts = match content {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        _ => return Err(HttpError::field(path, "is neither a text nor a list of parts", "send a text")),
    };
    let mut texts = Vec::new();
    for (i, part) in parts.into_iter().enumerate() {
        let path = format!("{path}[{i}]");
        let hint = "send {\"type\": \"text\", \"text\": ...}";
        let kind = part.get("type").and_then(Value::as_str).map(str::to_owned);
        if let Some(kind) = kind.filter(|kind| kind != "text") {
            let reason = format!("`{kind}` is not supported: the models that run here read text only");
            return Err(HttpError::field(&format!("{path}.type"), reason, hint));
        }
        let part: Part = serde_path_to_error::deserialize(part)
            .map_err(|e| HttpError::field(&path, e.into_inner(), hint))?;
        match part.text {
            Some(text) => texts.push(text),
            None => {
                return Err(HttpError::field(
                    &format!("{path}.text"),
                    format!("is missing in a part of type {}", part.kind),
                    hint,
                ));
            }
        }
    }
    Ok(texts.join("\n"))
}
