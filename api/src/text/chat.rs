//! Chat templates: the Jinja dialect that Hugging Face models ship, rendered as transformers renders it.

use crate::error::{ApiError, Result};
use crate::text::clock::strftime;
use crate::text::tokenizer::{Specials, sha256};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value, context};
use serde::{Deserialize, Serialize};
use serde_json::ser::{Formatter, PrettyFormatter};
use std::sync::Arc;
use std::time::SystemTime;

/// Work that one rendering may do, in template instructions; a template that loops without end is stopped there.
const FUEL: u64 = 20_000_000;
/// Name of the template inside its environment; no `.html`, so nothing is escaped.
const NAME: &str = "chat_template";

/// One message of a conversation, as templates read it. Further keys (`tool_calls`, `name`...) pass through.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text, or whatever structure the template understands.
    #[serde(default)]
    pub content: serde_json::Value,
    /// Every other key of the message.
    #[serde(flatten)]
    pub more: serde_json::Map<String, serde_json::Value>,
}

impl Message {
    /// A message of plain text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        let content = serde_json::Value::String(content.into());
        Self { role: role.into(), content, more: serde_json::Map::new() }
    }
}

/// What a rendering may be told besides the messages.
#[derive(Debug, Clone, Default)]
pub struct RenderOptions {
    /// End with the words that make the model answer.
    pub add_generation_prompt: bool,
    /// Tool definitions, as a JSON array.
    pub tools: Option<serde_json::Value>,
    /// Further variables (`chat_template_kwargs`). They cannot replace the ones above.
    pub more: serde_json::Map<String, serde_json::Value>,
    /// The time that `strftime_now` tells; `None` is now, in UTC.
    pub now: Option<SystemTime>,
}

impl RenderOptions {
    /// A rendering that asks for an answer.
    pub fn prompt() -> Self {
        Self { add_generation_prompt: true, ..Self::default() }
    }
}

/// A compiled chat template. Cheap to clone.
#[derive(Clone)]
pub struct ChatTemplate {
    shared: Arc<Shared>,
}

struct Shared {
    source: String,
    specials: Specials,
    digest: String,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("digest", &self.shared.digest).finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Compiles `source`; a syntax error is refused with its line.
    pub fn new(source: &str, specials: &Specials) -> Result<Self> {
        let digest = sha256(source.as_bytes());
        let source = without_generation_tags(source);
        let hint = "correct the template, or give another one with --chat-template FILE";
        environment(&source, SystemTime::now()).map_err(|e| refuse(&e, hint))?;
        Ok(Self { shared: Arc::new(Shared { source, specials: specials.clone(), digest }) })
    }

    /// SHA-256 of the template as it was given.
    pub fn digest(&self) -> &str {
        &self.shared.digest
    }

    /// The conversation as one text. Encode it without special tokens: the template writes its own.
    ///
    /// # Errors
    /// What the template itself refuses (`raise_exception`), with its words.
    pub fn render(&self, messages: &[Message], options: &RenderOptions) -> Result<String> {
        let now = options.now.unwrap_or_else(SystemTime::now);
        let hint = "check the roles and their order, or give another template";
        let refuse = |e: Error| refuse(&e, hint);
        let environment = environment(&self.shared.source, now).map_err(refuse)?;
        let text =
            |special: &Option<crate::text::tokenizer::Special>| special.as_ref().map(|s| s.text.clone());
        let specials = &self.shared.specials;
        let own = context! {
            messages => Value::from(Serde(messages)),
            tools => options.tools.as_ref().map(|tools| Value::from(Serde(tools))),
            documents => Value::from(()),
            add_generation_prompt => options.add_generation_prompt,
            bos_token => text(&specials.bos),
            eos_token => text(&specials.eos),
            unk_token => text(&specials.unk),
            pad_token => text(&specials.pad),
        };
        let values = context! { ..own, ..Value::from(Serde(&options.more)) };
        environment.get_template(NAME).and_then(|t| t.render(values)).map_err(refuse)
    }
}

/// An environment with the functions and the dialect that templates expect.
fn environment(source: &str, now: SystemTime) -> std::result::Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    environment.set_syntax(syntax);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> std::result::Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", move |format: String| {
        strftime(&format, now).map_err(|reason| Error::new(ErrorKind::InvalidOperation, reason))
    });
    environment.add_filter("tojson", tojson);
    environment.set_formatter(|out: &mut Output, state: &mut State, value: &Value| {
        if value.is_none() {
            out.write_str("None").map_err(Error::from)
        } else if let (minijinja::value::ValueKind::Bool, truth) = (value.kind(), value.is_true()) {
            out.write_str(if truth { "True" } else { "False" }).map_err(Error::from)
        } else {
            minijinja::escape_formatter(out, state, value)
        }
    });
    environment.add_template_owned(NAME, source.to_owned())?;
    Ok(environment)
}

/// What a user reads when a template refuses.
fn refuse(error: &Error, hint: &str) -> ApiError {
    let place = error.line().map(|line| format!(" (line {line})")).unwrap_or_default();
    let reason = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    ApiError::text("chat template", format!("{reason}{place}"), hint)
}

/// `json.dumps(value, ensure_ascii=False, indent=indent)`: Python's spaces, nothing escaped for HTML.
fn tojson(value: Value, options: Kwargs) -> std::result::Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let escape: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let failed = |e: serde_json::Error| Error::new(ErrorKind::BadSerialization, e.to_string());
    let mut bytes = Vec::new();
    match indent {
        Some(width) => {
            let spaces = " ".repeat(width.min(64));
            let formatter = PrettyFormatter::with_indent(spaces.as_bytes());
            value
                .serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, formatter))
                .map_err(failed)?;
        }
        None => {
            value
                .serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, Spaced))
                .map_err(failed)?;
        }
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Ok(Value::from_safe_string(if escape == Some(true) { ascii(&text) } else { text }))
}

/// `\uXXXX` for everything beyond ASCII.
fn ascii(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out += &format!("\\u{unit:04x}"));
        }
    }
    out
}

/// `", "` and `": "`, as Python writes JSON.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}

/// `{% generation %}` marks what a trainer learns from; here it becomes a block that is always taken, so that
/// whitespace control around it keeps its meaning.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        let Some(length) = rest[open..].find("%}") else { break };
        let tag = &rest[open..open + length];
        let word = tag[2..].trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        out.push_str(&rest[..open]);
        match word {
            "generation" => out.push_str(&tag.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endif", 1)),
            _ => out.push_str(tag),
        }
        rest = &rest[open + length..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tokenizer::Special;

    fn specials() -> Specials {
        let special = |id, text: &str| Some(Special { id, text: text.to_owned() });
        Specials { bos: special(1, "<s>"), eos: special(2, "</s>"), ..Specials::default() }
    }

    fn render(source: &str, messages: &[Message]) -> Result<String> {
        ChatTemplate::new(source, &specials())?.render(messages, &RenderOptions::prompt())
    }

    /// Expected text written by hand from Jinja's rules (trim_blocks, lstrip_blocks).
    #[test]
    fn blocks_are_trimmed_as_in_jinja() {
        let source = "{{ bos_token }}\n{% for m in messages %}\n    {% if m.role == 'user' %}\n[{{ m.content.strip() }}]\n    {% endif %}\n{% endfor %}\n{{ eos_token }}";
        let text = render(source, &[Message::new("user", "  hi "), Message::new("system", "no")]).unwrap();
        assert_eq!(text, "<s>\n[hi]\n</s>");
    }

    #[test]
    fn python_values_and_methods() {
        let source = "{{ none }} {{ true }} {{ messages[0]['content'].split(',')[1] }} {{ messages[0].role.upper() }} {{ messages | length }}";
        assert_eq!(render(source, &[Message::new("user", "a,b")]).unwrap(), "None True b USER 1");
    }

    /// Expected text from Python's `json.dumps`.
    #[test]
    fn tojson_writes_like_python() {
        let mut message = Message::new("user", "x");
        message.more.insert("f".into(), serde_json::json!({"a": [1, "é<&'>"], "b": {}}));
        let compact = render("{{ messages[0].f | tojson }}", std::slice::from_ref(&message)).unwrap();
        assert_eq!(compact, "{\"a\": [1, \"é<&'>\"], \"b\": {}}");
        let wide = render("{{ messages[0].f.a | tojson(indent=2) }}", &[message]).unwrap();
        assert_eq!(wide, "[\n  1,\n  \"é<&'>\"\n]");
    }

    #[test]
    fn generation_tags_vanish_with_their_whitespace_control() {
        let source = "a {%- generation -%} b {%- endgeneration -%} c{% generation %}d{% endgeneration %}";
        assert_eq!(render(source, &[]).unwrap(), "abcd");
    }

    #[test]
    fn the_clock_can_be_set() {
        let template = ChatTemplate::new("{{ strftime_now('%d %b %Y') }}", &specials()).unwrap();
        let options = RenderOptions { now: Some(SystemTime::UNIX_EPOCH), ..RenderOptions::prompt() };
        assert_eq!(template.render(&[], &options).unwrap(), "01 Jan 1970");
    }

    #[test]
    fn refusals_keep_the_words_of_the_template() {
        let error = render("{{ raise_exception('roles must alternate') }}", &[]).unwrap_err();
        assert_eq!(error.to_string(), "chat template: roles must alternate (line 1)");
        let error = ChatTemplate::new("\n{% for %}", &specials()).unwrap_err();
        assert!(
            error.to_string().starts_with("chat template: ") && error.to_string().ends_with("(line 2)"),
            "{error}"
        );
    }

    #[test]
    fn an_endless_template_is_stopped() {
        let source = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}";
        let error = render(source, &[]).unwrap_err();
        assert!(error.to_string().contains("fuel"), "{error}");
    }
}
