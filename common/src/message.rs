//! From the bytes of a message to what the pipeline needs of it: control message or record, id, hash, and the
//! members by name. Nothing is copied but ids and hashes; values stay slices of the body until a sink asks for one.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

/// Why a message can't be written, found before any database was asked. It goes to the dead-letter queue with this.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Reject {
    /// Stable name of the fault, a metric label and dead-letter header.
    pub reason: &'static str,
    /// What exactly was found.
    pub detail: String,
}

impl Reject {
    pub(crate) fn new(reason: &'static str, detail: impl Into<String>) -> Self {
        Reject { reason, detail: detail.into() }
    }
}

/// A decoded message body.
#[derive(Debug)]
pub enum Message<'a> {
    /// A record to write. Anything that is no control message counts as one (contract §2.1).
    Data(Data<'a>),
    /// A control message.
    Control(Control),
}

/// A record, still in its body.
#[derive(Debug)]
pub struct Data<'a> {
    /// The record's id: never empty, never `"0"` by an integer; an integer id as its decimal digits.
    pub id: String,
    /// The extractor's hash of the record; empty when the message has none, which never counts as equal.
    pub hash: String,
    /// The whole message.
    pub object: Object<'a>,
}

/// A control message (contract §2.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// All records of this type were published.
    FileComplete {
        /// Records that the extractor parsed, if it says so.
        total_processed: Option<u64>,
    },
    /// All four files were published.
    ExtractionComplete(ExtractionComplete),
}

/// The end of a whole run of the extractor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtractionComplete {
    /// The dump's date, e.g. `20260101`; `unknown` if absent.
    pub version: String,
    /// When the extractor first started on this version, RFC 3339; empty if absent.
    pub started_at: String,
    /// When this message was made, by the extractor's clock, RFC 3339; empty if absent.
    pub sent_at: String,
    /// Records per type name, as far as stated.
    pub record_counts: Vec<(String, i64)>,
}

/// The members of a JSON object as slices of the body. Keys may repeat (every message has `id` twice); the last one counts.
#[derive(Debug, Default)]
pub struct Object<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Object<'a> {
    /// The last member of that name, as JSON text.
    pub fn get(&self, key: &str) -> Option<&'a RawValue> {
        self.0.iter().rev().find(|(k, _)| k == key).map(|(_, v)| *v)
    }

    /// Parses the text of an object; `None` if it is something else.
    pub fn parse(raw: &'a RawValue) -> Option<Self> {
        serde_json::Deserializer::from_str(raw.get()).deserialize_map(ObjectVisitor { members: 0 }).ok()
    }

    /// The last member of that name as a tree; `Null` if there is none, or none that a tree can hold.
    fn value(&self, key: &str) -> Value {
        self.get(key).and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or(Value::Null)
    }

    /// The last member of that name, if it is a string or a number.
    pub fn text(&self, key: &str) -> Option<String> {
        text(self.get(key)?)
    }
}

/// A string's text, or a number's digits as sent.
pub fn text(raw: &RawValue) -> Option<String> {
    let raw = raw.get();
    match raw.as_bytes().first()? {
        b'"' => serde_json::from_str(raw).ok(),
        b'-' | b'0'..=b'9' => Some(raw.to_owned()),
        _ => None,
    }
}

/// The items of a list, still as text, so that one that no tree can hold does not take its neighbours along. Anything
/// else has none.
pub fn items(raw: Option<&RawValue>) -> Vec<&RawValue> {
    raw.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default()
}

/// Reads an object that has about that many members. (For the items of a list, none: there may be millions that are empty.)
struct ObjectVisitor {
    members: usize,
}

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = Object<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<'de>, A::Error> {
        let mut members = Vec::with_capacity(self.members);
        while let Some(key) = map.next_key::<CowKey<'de>>()? {
            members.push((key.0, map.next_value()?));
        }
        Ok(Object(members))
    }
}

/// The object items of a list; anything else is skipped.
pub fn objects(raw: Option<&RawValue>) -> Vec<Object<'_>> {
    match raw.map(|raw| serde_json::from_str::<Vec<Item<'_>>>(raw.get())) {
        Some(Ok(list)) => list.into_iter().filter_map(|item| item.0).collect(),
        // No list, or one with a number that is beyond a double, which must not take its neighbours along.
        Some(Err(_)) => items(raw).into_iter().filter_map(Object::parse).collect(),
        None => Vec::new(),
    }
}

/// An item of a list, if it is an object.
struct Item<'a>(Option<Object<'a>>);

impl<'de: 'a, 'a> serde::Deserialize<'de> for Item<'a> {
    fn deserialize<D: Deserializer<'de>>(item: D) -> Result<Self, D::Error> {
        item.deserialize_any(ItemVisitor)
    }
}

struct ItemVisitor;

impl<'de> Visitor<'de> for ItemVisitor {
    type Value = Item<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Item<'de>, A::Error> {
        ObjectVisitor { members: 0 }.visit_map(map).map(|object| Item(Some(object)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Item<'de>, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Item(None))
    }

    fn visit_str<E>(self, _: &str) -> Result<Item<'de>, E> {
        Ok(Item(None))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Item<'de>, E> {
        Ok(Item(None))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Item<'de>, E> {
        Ok(Item(None))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Item<'de>, E> {
        Ok(Item(None))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Item<'de>, E> {
        Ok(Item(None))
    }

    fn visit_unit<E>(self) -> Result<Item<'de>, E> {
        Ok(Item(None))
    }
}

/// A key that borrows from the body unless it has escapes. (serde's own `Cow<str>` always copies.)
#[derive(serde::Deserialize)]
struct CowKey<'a>(#[serde(borrow)] Cow<'a, str>);

/// Longest version or time in a control message, in characters. Real ones have 8 and about 30; the databases could not
/// take much longer ones as keys, and a control message that can't be taken would block its queue.
const MAX_CONTROL_TEXT: usize = 200;

/// A body longer than this may have no more than [`MAX_VALUES`] commas: a decoded value takes up to some 200 bytes, also if it has three in the
/// body. The largest real records have some hundred thousand.
const LARGE: usize = 4 << 20;

/// See [`LARGE`].
const MAX_VALUES: usize = 1_000_000;

/// Decodes one message body.
///
/// # Errors
/// [`Reject`] with reason `too_many_values` (see [`LARGE`]), `invalid_json` (no JSON, not UTF-8, a lone surrogate), `not_an_object`, `missing_id` (no
/// `id`, or an empty, null or zero one), `invalid_id` (neither string nor integer) or `invalid_control` (a version or
/// time that can't be one).
pub fn decode(body: &[u8]) -> Result<Message<'_>, Reject> {
    let invalid = |e: &dyn fmt::Display| Reject::new("invalid_json", e.to_string());
    if body.len() > LARGE && memchr::memchr_iter(b',', body).count() > MAX_VALUES {
        return Err(Reject::new("too_many_values", format!("more than {MAX_VALUES} of them in {} bytes", body.len())));
    }
    let text = std::str::from_utf8(body).map_err(|e| invalid(&e))?;
    if let Some(at) = lone_surrogate(body) {
        return Err(invalid(&format!("lone surrogate at byte {at}")));
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let object = match json.deserialize_map(ObjectVisitor { members: 24 }).and_then(|o| json.end().map(|()| o)) {
        Ok(object) => object,
        Err(e) if serde_json::from_str::<IgnoredAny>(text).is_ok() => {
            return Err(Reject::new("not_an_object", e.to_string()));
        }
        Err(e) => return Err(invalid(&e)),
    };
    match object.text("type").as_deref() {
        Some("file_complete") => {
            Ok(Message::Control(Control::FileComplete { total_processed: object.value("total_processed").as_u64() }))
        }
        Some("extraction_complete") => {
            let run = extraction_complete(&object);
            match [&run.version, &run.started_at].iter().find(|text| text.chars().count() > MAX_CONTROL_TEXT) {
                None => Ok(Message::Control(Control::ExtractionComplete(run))),
                Some(text) => Err(Reject::new("invalid_control", format!("{} is no version or time", shorten(text)))),
            }
        }
        _ => {
            Ok(Message::Data(Data { id: record_id(&object)?, hash: object.text("sha256").unwrap_or_default(), object }))
        }
    }
}

fn extraction_complete(object: &Object<'_>) -> ExtractionComplete {
    let record_counts = match object.value("record_counts") {
        Value::Object(counts) => counts.into_iter().filter_map(|(t, n)| n.as_i64().map(|n| (t, n))).collect(),
        _ => Vec::new(),
    };
    ExtractionComplete {
        version: object.text("version").filter(|v| !v.is_empty()).unwrap_or_else(|| "unknown".to_owned()),
        started_at: object.text("started_at").unwrap_or_default(),
        sent_at: object.text("timestamp").unwrap_or_default(),
        record_counts,
    }
}

/// An ISO 8601 time; one without a zone counts as UTC. Years are those of four digits: not every database has others.
pub fn parse_time(text: &str) -> Option<chrono::DateTime<chrono::Utc>> {
    let time = chrono::DateTime::parse_from_rfc3339(text).map(|t| t.to_utc()).ok().or_else(|| {
        ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f"]
            .iter()
            .find_map(|format| chrono::NaiveDateTime::parse_from_str(text, format).ok())
            .map(|naive| naive.and_utc())
    });
    time.filter(|time| (1..=9999).contains(&chrono::Datelike::year(time)))
}

fn record_id(object: &Object<'_>) -> Result<String, Reject> {
    let raw = object.get("id").ok_or_else(|| Reject::new("missing_id", "the message has no member `id`"))?.get();
    let empty = || Reject::new("missing_id", format!("`id` is {}", shorten(raw)));
    let wrong = || Reject::new("invalid_id", format!("`id` must be a string or an integer, it is {}", shorten(raw)));
    match raw.as_bytes().first() {
        Some(b'"') => match serde_json::from_str::<String>(raw) {
            Ok(id) if id.is_empty() => Err(empty()),
            Ok(id) => Ok(id),
            Err(_) => Err(wrong()),
        },
        Some(b'-' | b'0'..=b'9') => {
            let digits = raw.strip_prefix('-').unwrap_or(raw);
            if digits.bytes().all(|b| b == b'0') {
                Err(empty())
            } else if digits.bytes().all(|b| b.is_ascii_digit()) {
                Ok(raw.to_owned())
            } else {
                Err(wrong())
            }
        }
        Some(b'n' | b'f') => Err(empty()), // null, false
        _ if matches!(raw, "[]" | "{}") => Err(empty()),
        _ => Err(wrong()),
    }
}

/// At most 60 characters of a value, for a message to a person.
pub(crate) fn shorten(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// One `\uXXXX` escape of a JSON text: where its backslash is, and its code unit.
fn unicode_escapes(body: &[u8]) -> impl Iterator<Item = (usize, u16)> + '_ {
    let mut from = 0;
    std::iter::from_fn(move || {
        loop {
            let at = from + memchr::memchr(b'\\', body.get(from..)?)?;
            from = at + 2; // an escaped backslash is skipped together with what it escapes
            if body.get(at + 1) == Some(&b'u') {
                let unit = std::str::from_utf8(body.get(at + 2..at + 6)?)
                    .ok()
                    .and_then(|hex| u16::from_str_radix(hex, 16).ok());
                if let Some(unit) = unit {
                    from = at + 6;
                    return Some((at, unit));
                }
            }
        }
    })
}

fn lone_surrogate(body: &[u8]) -> Option<usize> {
    let mut high: Option<usize> = None; // where an unfinished pair began
    for (at, unit) in unicode_escapes(body) {
        match (high, unit) {
            (Some(start), 0xDC00..=0xDFFF) if at == start + 6 => high = None,
            (Some(start), _) => return Some(start),
            (None, 0xD800..=0xDBFF) => high = Some(at),
            (None, 0xDC00..=0xDFFF) => return Some(at),
            (None, _) => {}
        }
    }
    high
}

/// Where the JSON text `body` has the escape `\u0000`, which PostgreSQL's jsonb can't hold.
pub fn nul_escapes(body: &[u8]) -> impl Iterator<Item = usize> + '_ {
    unicode_escapes(body).filter(|&(_, unit)| unit == 0).map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(body: &str) -> Data<'_> {
        match decode(body.as_bytes()) {
            Ok(Message::Data(data)) => data,
            other => panic!("{body}: {other:?}"),
        }
    }

    fn reason(body: &[u8]) -> &'static str {
        decode(body).expect_err("must be rejected").reason
    }

    #[test]
    fn the_last_of_two_ids_counts() {
        assert_eq!(data(r#"{"type":"data","id":"9","sha256":"ab","id":"10"}"#).id, "10");
        assert_eq!(reason(br#"{"id":"9","id":null}"#), "missing_id");
        assert_eq!(reason(br#"{"id":"unknown","id":["1","2"]}"#), "invalid_id");
    }

    #[test]
    fn integer_ids_are_taken_as_their_digits() {
        assert_eq!(data(r#"{"id":12}"#).id, "12");
        let long = "9".repeat(30);
        assert_eq!(data(&format!(r#"{{"id":{long}}}"#)).id, long);
    }

    #[test]
    fn a_large_body_has_no_more_values_than_memory_bears() {
        let list = |items: usize| format!(r#"{{"id":"1","list":[{}{{}}]}}"#, "{},".repeat(items));
        let reason = |body: &str| decode(body.as_bytes()).err().map(|reject| reject.reason);
        assert_eq!(reason(&list(1_500_000)), Some("too_many_values"));
        assert_eq!(reason(&list(1_300_000)), None, "that many fit into memory");
        assert_eq!(reason(&format!(r#"{{"id":"1","text":"{}"}}"#, "x".repeat(LARGE + 1))), None);
    }

    #[test]
    fn ids_that_are_missing_empty_or_misshapen() {
        for body in ["{}", r#"{"id":""}"#, r#"{"id":null}"#, r#"{"id":0}"#, r#"{"id":false}"#, r#"{"id":[]}"#] {
            assert_eq!(reason(body.as_bytes()), "missing_id", "{body}");
        }
        for body in [r#"{"id":1.5}"#, r#"{"id":true}"#, r#"{"id":["1"]}"#, r#"{"id":{"a":1}}"#, r#"{"id":1e3}"#] {
            assert_eq!(reason(body.as_bytes()), "invalid_id", "{body}");
        }
    }

    #[test]
    fn what_is_no_json_object() {
        for body in [
            &b""[..],
            b"{",
            b"nonsense",
            b"\xff{}",
            b"{\"id\":\"1\",\"a\":\"\x00\"}",
            br#"{"id":"1"} x"#,
            br#"{"id":"1","a":"\ud800"}"#,
            br#"{"id":"1","a":"\udc00\ud800"}"#,
            br#"{"id":"1","a":"\ud800\u0041"}"#,
            b"\xef\xbb\xbf{}",
            br#"{"id":"1","a":NaN}"#,
        ] {
            assert_eq!(reason(body), "invalid_json", "{body:?}");
        }
        for body in ["[]", "1", "null", r#""x""#] {
            assert_eq!(reason(body.as_bytes()), "not_an_object", "{body}");
        }
    }

    #[test]
    fn surrogate_pairs_and_escaped_backslashes_are_fine() {
        data(r#"{"id":"1","a":"\ud83d\ude00 \\ud800"}"#);
        assert_eq!(nul_escapes(br#""\\u0000 \u0000 \\\u0000""#).collect::<Vec<_>>(), [9, 18]);
    }

    #[test]
    fn a_hash_is_empty_unless_it_is_text() {
        assert_eq!(data(r#"{"id":"1"}"#).hash, "");
        assert_eq!(data(r#"{"id":"1","sha256":null}"#).hash, "");
        assert_eq!(data(r#"{"id":"1","sha256":"ff"}"#).hash, "ff");
    }

    #[test]
    fn control_messages() {
        let body = br#"{"type":"extraction_complete","version":"20260101","timestamp":"t","started_at":"s","record_counts":{"artists":3}}"#;
        let Ok(Message::Control(Control::ExtractionComplete(e))) = decode(body) else {
            panic!("no control message");
        };
        assert_eq!((e.version.as_str(), e.started_at.as_str()), ("20260101", "s"));
        assert_eq!(e.record_counts, [("artists".to_owned(), 3)]);
        assert!(matches!(
            decode(br#"{"type":"file_complete","total_processed":7}"#),
            Ok(Message::Control(Control::FileComplete { total_processed: Some(7) }))
        ));
        let endless = format!(r#"{{"type":"extraction_complete","version":"{}"}}"#, "1".repeat(201));
        assert_eq!(reason(endless.as_bytes()), "invalid_control");
        assert!(matches!(decode(br#"{"type":"other","id":"1"}"#), Ok(Message::Data(_))));
    }

    #[test]
    fn times_with_and_without_zone() {
        let utc = |s| parse_time(s).map(|t| t.to_rfc3339());
        assert_eq!(utc("2026-01-02T03:04:05.123456789Z").as_deref(), Some("2026-01-02T03:04:05.123456789+00:00"));
        assert_eq!(utc("2026-01-02T03:04:05+02:00").as_deref(), Some("2026-01-02T01:04:05+00:00"));
        assert_eq!(utc("2026-01-02T03:04:05").as_deref(), Some("2026-01-02T03:04:05+00:00"));
        for text in ["yesterday", "-9000-01-01T00:00:00", "+262000-01-01T00:00:00", "0000-01-01T00:00:00Z"] {
            assert_eq!(utc(text), None, "{text}");
        }
    }
}
