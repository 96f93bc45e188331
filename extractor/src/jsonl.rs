//! Records out of JSON lines: an object on each line, in the shape of the messages or of the XML.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read};

use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use crate::input::{Bad, Next, Place, ReadError};
use crate::node::{MAX_DEPTH, Node, Object};

/// Reads the lines of one file.
pub struct JsonlReader<R> {
    source: BufReader<R>,
    line: Vec<u8>,
    place: Place,
    max_record: usize,
}

impl<R: Read> JsonlReader<R> {
    /// A reader; a line of more than `max_record` bytes is bad.
    pub fn new(source: R, max_record: usize) -> Self {
        let source = BufReader::with_capacity(64 * 1024, source);
        JsonlReader { source, line: Vec::new(), place: Place { offset: 0, line: 1 }, max_record }
    }

    /// Place of the first byte that is not read yet.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Goes on behind a line that an earlier run ended at.
    ///
    /// # Errors
    /// [`ReadError`] if the stream ends before.
    pub fn resume(&mut self, at: Place) -> Result<(), ReadError> {
        let skipped = io::copy(&mut self.source.by_ref().take(at.offset), &mut io::sink())?;
        if skipped < at.offset {
            return Err(ReadError::Truncated { missing: format!("byte {}", at.offset) });
        }
        self.place = at;
        Ok(())
    }

    /// The next record, made into something by `make`, or a bad one, or the end.
    ///
    /// # Errors
    /// [`ReadError`] if the stream fails.
    pub fn next<T>(&mut self, mut make: impl FnMut(Object<'_>) -> T) -> Result<Next<T>, ReadError> {
        loop {
            let begin = self.place;
            self.line.clear();
            let read = self.source.by_ref().take(self.max_record as u64 + 1).read_until(b'\n', &mut self.line)?;
            if read == 0 {
                return if begin.offset == 0 { Err(ReadError::Empty) } else { Ok(Next::End) };
            }
            self.place.offset += read as u64;
            let too_large = read > self.max_record && !self.line.ends_with(b"\n");
            if too_large {
                self.place.offset += self.source.skip_until(b'\n')? as u64;
            }
            self.place.line += 1;
            let bad = |reason, detail: String, line: &[u8], end| {
                Ok(Next::Bad(Bad { reason, detail, excerpt: Bad::excerpt(line), begin, end }))
            };
            if too_large {
                let detail = format!("it has more than {} bytes", self.max_record);
                return bad("record_too_large", detail, &self.line, self.place);
            }
            let mark = if begin.offset == 0 && self.line.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
            let line = self.line[mark..].trim_ascii();
            if line.is_empty() {
                continue;
            }
            let node = std::str::from_utf8(line).map_err(|e| e.to_string()).and_then(parse);
            // Only if more could mend it; a number that ends with its sign is none yet.
            let ends_within = || {
                let is_cut = |text: &[u8]| serde_json::from_slice::<IgnoredAny>(text).is_err_and(|e| e.is_eof());
                is_cut(line) || is_cut(&[line, b"0"].concat())
            };
            if node.is_err() && !self.line.ends_with(b"\n") && line.starts_with(b"{") && ends_within() {
                self.place = begin;
                return Err(ReadError::Truncated { missing: "the end of its last line".to_owned() });
            }
            return match node {
                Ok(Node::Object(object)) => Ok(Next::Record(make(object), begin)),
                Ok(_) => bad("malformed_json", "the line is no JSON object".to_owned(), line, self.place),
                Err(detail) => bad("malformed_json", detail, line, self.place),
            };
        }
    }
}

/// Parses a JSON text. Numbers keep their digits; of repeated names the last value counts.
///
/// # Errors
/// What is wrong with it, for a person.
pub fn parse(text: &str) -> Result<Node<'_>, String> {
    let raw: &RawValue = serde_json::from_str(text).map_err(|e| e.to_string())?;
    node(raw, 0)
}

fn node(raw: &RawValue, depth: usize) -> Result<Node<'_>, String> {
    if depth >= MAX_DEPTH {
        return Err(format!("it is nested deeper than {MAX_DEPTH} levels"));
    }
    let text = raw.get();
    Ok(match text.as_bytes().first() {
        Some(b'{') => {
            // A map keeps the last of repeated names.
            let members: HashMap<Cow<'_, str>, &RawValue> = serde_json::from_str(text).map_err(|e| e.to_string())?;
            let mut object = Object::default();
            for (key, value) in members {
                object.insert(key, node(value, depth + 1)?);
            }
            Node::Object(object)
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(text).map_err(|e| e.to_string())?;
            Node::List(items.into_iter().map(|item| node(item, depth + 1)).collect::<Result<_, _>>()?)
        }
        Some(b'"') => Node::Text(Cow::Owned(serde_json::from_str(text).map_err(|e| e.to_string())?)),
        Some(b'n') => Node::Null,
        _ => Node::Literal(Cow::Borrowed(text)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Trickle, json};

    const MAX: usize = 100;

    fn read<R: Read>(reader: &mut JsonlReader<R>) -> Vec<(String, Place, Place)> {
        let mut all = Vec::new();
        loop {
            match reader.next(json).unwrap() {
                Next::Record(json, begin) => all.push((json, begin, reader.place())),
                Next::Bad(bad) => {
                    assert_eq!(bad.end, reader.place());
                    all.push((format!("{}: {}", bad.reason, bad.detail), bad.begin, bad.end));
                }
                Next::End => return all,
            }
        }
    }

    /// What comes of a file, however it comes and wherever reading goes on.
    fn whole(text: impl AsRef<[u8]>) -> Vec<String> {
        let bytes = text.as_ref();
        let reader = |step| JsonlReader::new(Trickle { bytes, step, fails: false }, MAX);
        let all = read(&mut reader(usize::MAX));
        for step in [1, 7] {
            assert_eq!(read(&mut reader(step)), all);
        }
        for (i, (_, begin, after)) in all.iter().enumerate() {
            for place in [begin, after] {
                let lines = bytes[..place.offset as usize].split_inclusive(|b| *b == b'\n').count() as u64;
                assert_eq!(place.line, lines + 1, "{all:?}");
            }
            let mut resumed = reader(10);
            resumed.resume(*after).unwrap();
            assert_eq!(read(&mut resumed), all[i + 1..]);
        }
        all.into_iter().map(|(text, ..)| text).collect()
    }

    #[test]
    fn values_are_kept_as_they_are() {
        for (line, json) in [
            (
                r#" { "b" : 1.50 , "a" : [ 1e5, -0, 12345678901234567890123, true, null ] } "#,
                r#"{"a":[1e5,-0,12345678901234567890123,true,null],"b":1.50}"#,
            ),
            (r#"{"id":"1","id":2,"id":"3","x":{"y":1,"y":null}}"#, r#"{"id":"3","x":{"y":null}}"#),
            (r#"{"\u0061":"\u00e9\ud83d\ude00\n\/\u0000"}"#, "{\"a\":\"\u{e9}\u{1f600}\\n/\\u0000\"}"),
            (r#"{}"#, "{}"),
        ] {
            assert_eq!(whole(line), [json], "{line}");
        }
    }

    #[test]
    fn a_bad_line_takes_no_other_along() {
        let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        for (line, fault) in [
            ("garbage", "malformed_json: expected value"),
            (r#"{"id":"9""#, "malformed_json: EOF"),
            (r#"{"id":"9"}}"#, "malformed_json: trailing"),
            (r#"{"id":"\ud800"}"#, "malformed_json: "),
            ("{\"id\":\"\u{1}\"}", "malformed_json: control character"),
            (r#"[{"id":"9"}]"#, "malformed_json: the line is no JSON object"),
            ("5", "malformed_json: the line is no JSON object"),
            ("null", "malformed_json: the line is no JSON object"),
            ("\u{feff}{}", "malformed_json: expected value"),
            (r#"{"x":NaN}"#, "malformed_json: expected value"),
        ] {
            let (one, two) = (r#"{"id":"1"}"#, r#"{"id":"2"}"#);
            for (lines, at) in [([line, one, two], 0), ([one, line, two], 1), ([one, two, line], 2)] {
                if at == 0 && line.starts_with('\u{feff}') {
                    continue;
                }
                for end in ["\n", "\r\n", "\n\n \n"] {
                    for text in [lines.join(end) + end, lines.join(end)] {
                        if fault.ends_with("EOF") && text.ends_with(line) {
                            continue; // that is a file that was cut off
                        }
                        let mut all = whole(&text);
                        assert!(all.remove(at).starts_with(fault), "{text}");
                        assert_eq!(all, [one, two], "{text}");
                    }
                }
            }
        }
        assert_eq!(whole(b"{\"id\":\"\xff\"}\n{}\n")[1], "{}");
        assert!(parse(&deep(MAX_DEPTH)).is_ok());
        assert!(parse(&deep(MAX_DEPTH + 1)).unwrap_err().contains("nested"));
        assert!(parse(&deep(10_000)).is_err());
    }

    #[test]
    fn a_last_line_that_is_cut_off_is_no_record() {
        let mut reader = JsonlReader::new("{\"id\":\"1\"}\n{\"id\":\"2\",\"na".as_bytes(), 100);
        assert!(matches!(reader.next(json), Ok(Next::Record(..))));
        let place = reader.place();
        assert!(matches!(reader.next(json), Err(ReadError::Truncated { .. })));
        assert_eq!(reader.place(), place);
    }

    #[test]
    fn a_last_line_without_its_end_is_cut_off_only_if_more_could_mend_it() {
        let whole_line = r#"{"id":"1\u00e9\n","é":[-1.5e3,true,null,{}]}"#;
        for length in 0..=whole_line.len() {
            for line_end in ["", " ", "\r"] {
                let text = [b"{\"id\":\"0\"}\n", &whole_line.as_bytes()[..length], line_end.as_bytes()].concat();
                let mut reader = JsonlReader::new(text.as_slice(), MAX);
                assert!(matches!(reader.next(json), Ok(Next::Record(..))));
                match reader.next(json) {
                    Ok(Next::End) => assert_eq!(length, 0),
                    Ok(Next::Record(..)) => assert_eq!(length, whole_line.len()),
                    Err(ReadError::Truncated { .. }) => assert!((1..whole_line.len()).contains(&length)),
                    // White space within a word or a text, where it can't be.
                    Ok(Next::Bad(_)) => assert!(!line_end.is_empty(), "{length}"),
                    other => panic!("{length}: {other:?}"),
                }
            }
        }
        // Nothing that could follow makes these objects.
        for line in ["{\"id\":\"1\",}", "{\"id\":tru,", "{id", "\"id", "[", "nul", "{\"a\":\"\\q", "{\"a\":1 2", "{}}"]
        {
            for end in ["", "\n", "\n{}\n"] {
                let all = whole(format!("{{}}\n{line}{end}"));
                assert!(all[1].starts_with("malformed_json: "), "{line}: {all:?}");
                assert_eq!(all.len(), if end.len() > 1 { 3 } else { 2 }, "{line}");
            }
        }
    }

    #[test]
    fn a_byte_order_mark_is_skipped() {
        assert_eq!(whole("\u{feff}{\"id\":\"1\"}\n{\"id\":\"2\"}"), [r#"{"id":"1"}"#, r#"{"id":"2"}"#]);
        assert_eq!(whole("\u{feff}"), [""; 0]);
    }

    #[test]
    fn a_line_that_is_too_long_is_bad_and_the_rest_comes() {
        let of = |length: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(length - 8));
        for (length, good) in [(MAX - 1, true), (MAX, true), (MAX + 1, false), (3 * MAX, false), (200_000, false)] {
            for end in ["\n{\"id\":\"2\"}\n{}", "\n", ""] {
                let all = whole(of(length) + end);
                assert_eq!(all[0] == of(length), good, "{length}");
                assert!(good || all[0].starts_with("record_too_large: it has more than 100 bytes"));
                assert_eq!(all.len(), if end.len() > 1 { 3 } else { 1 }, "{length} {end:?}");
            }
        }
    }

    #[test]
    fn a_place_behind_the_end_is_no_place_to_go_on_from() {
        let mut reader = JsonlReader::new(b"{}\n".as_slice(), MAX);
        assert!(reader.resume(Place { offset: 4, line: 2 }).is_err());
    }

    #[test]
    fn an_error_comes_after_what_was_before_it() {
        let mut reader = JsonlReader::new(Trickle { bytes: b"{}\n{\"id\":", step: 5, fails: true }, MAX);
        assert!(matches!(reader.next(json), Ok(Next::Record(..))));
        assert!(reader.next(json).is_err_and(|e| e.to_string().contains("the device is gone")));
    }
}
