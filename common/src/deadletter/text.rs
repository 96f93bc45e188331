//! Text from messages for a terminal: nothing in it may act as a command to the terminal, and JSON is indented without
//! being changed.

use std::fmt::Write as _;
use std::io::{self, Write};

use lapin::types::AMQPValue;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::letter::{text, time};

/// Levels of JSON that are indented; what is deeper stays on its line, or else indentation would outgrow the text.
const MAX_INDENT: usize = 32;

/// Whether a character does something instead of being seen: control characters, and those that turn text around.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// The text with escapes instead of characters that are not seen.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if acts(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// A header's value: text as it is, anything else as JSON.
pub fn header(value: &AMQPValue) -> String {
    printable(&text(value).unwrap_or_else(|| to_json(value).to_string()))
}

fn to_json(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Boolean(v) => json!(v),
        AMQPValue::ShortShortInt(v) => json!(v),
        AMQPValue::ShortShortUInt(v) => json!(v),
        AMQPValue::ShortInt(v) => json!(v),
        AMQPValue::ShortUInt(v) => json!(v),
        AMQPValue::LongInt(v) => json!(v),
        AMQPValue::LongUInt(v) => json!(v),
        AMQPValue::LongLongInt(v) => json!(v),
        AMQPValue::Float(v) => json!(v),
        AMQPValue::Double(v) => json!(v),
        AMQPValue::FieldArray(v) => v.as_slice().iter().map(to_json).collect(),
        AMQPValue::FieldTable(v) => Value::Object(v.inner().iter().map(|(k, v)| (k.to_string(), to_json(v))).collect()),
        AMQPValue::Timestamp(seconds) => time(value).map_or(json!(seconds), |t| json!(t.to_rfc3339())),
        AMQPValue::ByteArray(v) => json!(v.as_slice().escape_ascii().to_string()),
        AMQPValue::Void => Value::Null,
        AMQPValue::LongString(_) | AMQPValue::ShortString(_) => json!(text(value)),
        AMQPValue::DecimalValue(v) => json!(format!("{v:?}")),
    }
}

/// Writes a body: indented if it is JSON, otherwise as ASCII with escapes, at most `limit` bytes of it.
///
/// # Errors
/// Of the output.
pub fn body(out: &mut impl Write, body: &[u8], limit: usize) -> io::Result<()> {
    let json = std::str::from_utf8(body).ok().filter(|text| serde_json::from_str::<IgnoredAny>(text).is_ok());
    match json {
        Some(json) => indented(out, json)?,
        None => write!(out, "{}", body[..body.len().min(limit)].escape_ascii())?,
    }
    if json.is_none() && body.len() > limit {
        write!(out, "\n({} more bytes)", body.len() - limit)?;
    }
    writeln!(out)
}

/// Valid JSON, token by token as it is: repeated members and long numbers are what one wants to see here.
fn indented(out: &mut impl Write, json: &str) -> io::Result<()> {
    let (mut depth, mut in_string, mut escaped, mut opened) = (0_usize, false, false, false);
    let mut token = String::new();
    for c in json.chars() {
        if in_string {
            if acts(c) {
                let _ = write!(token, "\\u{:04x}", u32::from(c)); // to memory, and none of them is beyond four digits
            } else {
                token.push(c);
            }
            in_string = escaped || c != '"';
            escaped = !escaped && c == '\\';
        } else if !c.is_ascii_whitespace() {
            let closes = matches!(c, '}' | ']');
            if closes {
                depth -= 1;
            }
            // A line ends behind what opens, unless it closes at once, and before what closes.
            if opened != closes && depth + usize::from(closes) <= MAX_INDENT {
                let _ = write!(token, "\n{:1$}", "", depth * 2);
            }
            opened = matches!(c, '{' | '[');
            depth += usize::from(opened);
            in_string = c == '"';
            token.push(c);
            match c {
                ',' if depth <= MAX_INDENT => {
                    let _ = write!(token, "\n{:1$}", "", depth * 2);
                }
                ':' => token.push(' '),
                _ => {}
            }
        }
        if token.len() > 4096 {
            out.write_all(token.as_bytes())?;
            token.clear();
        }
    }
    out.write_all(token.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &[u8], limit: usize) -> String {
        let mut out = Vec::new();
        body(&mut out, text, limit).expect("to memory");
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn json_is_indented_and_otherwise_as_it_was() {
        let json = br#"{"id":"1", "a":[1e400,{}, [ ],"x\"{,:"],"id":"1","o":{"k":null}}"#;
        let expected = "{\n  \"id\": \"1\",\n  \"a\": [\n    1e400,\n    {},\n    [],\n    \"x\\\"{,:\"\n  ],\n  \
                        \"id\": \"1\",\n  \"o\": {\n    \"k\": null\n  }\n}\n";
        assert_eq!(shown(json, 1), expected);
        for scalar in ["1", "\"a\"", "[]", "{}", "null"] {
            assert_eq!(shown(scalar.as_bytes(), 9), format!("{scalar}\n"));
        }
    }

    #[test]
    fn the_same_json_comes_out_whatever_it_is() {
        let json = r#"{"a":[{"b":[[],[1],[[2]]]},"\\",{"c":{"d":{}}}],"e":""}"#;
        let value = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
        assert_eq!(value(&shown(json.as_bytes(), 9)), value(json));
        let deep = format!("{}1,2{}", "[".repeat(100), "]".repeat(100));
        let out = shown(deep.as_bytes(), 9);
        assert_eq!(value(&out), value(&deep));
        assert!(out.len() < 10_000, "{}", out.len());
    }

    #[test]
    fn nothing_acts_on_the_terminal() {
        assert_eq!(printable("a\u{1b}[2J\u{9b}é\u{202e}"), "a\\u{1b}[2J\\u{9b}é\\u{202e}");
        assert_eq!(shown("\"\u{9b}\u{202e}é\"".as_bytes(), 9), "\"\\u009b\\u202eé\"\n");
        assert_eq!(shown(b"no\x1b json", 100), "no\\x1b json\n");
        assert_eq!(shown(b"nonsense", 3), "non\n(5 more bytes)\n");
    }

    #[test]
    fn headers_of_any_type() {
        let list = AMQPValue::FieldArray(vec![AMQPValue::LongInt(1), AMQPValue::Void, AMQPValue::Timestamp(0)].into());
        assert_eq!(header(&list), r#"[1,null,"1970-01-01T00:00:00+00:00"]"#);
        assert_eq!(header(&AMQPValue::LongString("a\nb".into())), "a\\nb");
    }
}
