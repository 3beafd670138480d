//! Canonical JSON: one value has one spelling. Keys sorted, no spaces, no floating-point numbers, one newline at the end.

use serde_json::Value;
use std::fmt::Write;

/// Writes `value` canonically, without the final newline. The error names the path of a number that is no integer:
/// such numbers have several spellings and are written as text instead.
pub fn canonical(value: &Value) -> Result<String, String> {
    let mut out = String::new();
    write(&mut out, value, "$")?;
    Ok(out)
}

fn write(out: &mut String, value: &Value, path: &str) -> Result<(), String> {
    match value {
        Value::Number(number) if number.as_u64().is_none() && number.as_i64().is_none() => {
            return Err(format!("{path}: {number} is not an integer"));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {
            let _ = write!(out, "{value}");
        }
        Value::String(text) => string(out, text),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write(out, item, &format!("{path}[{i}]"))?;
            }
            out.push(']');
        }
        Value::Object(fields) => {
            out.push('{');
            let mut keys: Vec<&String> = fields.keys().collect();
            keys.sort();
            for (i, key) in keys.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                string(out, key);
                out.push(':');
                write(out, &fields[key], &format!("{path}.{key}"))?;
            }
            out.push('}');
        }
    }
    Ok(())
}

/// A string with the shortest escapes; everything that need not be escaped is not.
fn string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c < ' ' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn one_spelling() {
        let value = json!({"b": [1, -2, null, true], "a": "x\"\\\n\u{1}é", "c": {}});
        assert_eq!(canonical(&value).unwrap(), r#"{"a":"x\"\\\n\u0001é","b":[1,-2,null,true],"c":{}}"#);
        let back: Value = serde_json::from_str(&canonical(&value).unwrap()).unwrap();
        assert_eq!(back, value);
        assert_eq!(canonical(&json!({"a": [0.5]})).unwrap_err(), "$.a[0]: 0.5 is not an integer");
    }
}
