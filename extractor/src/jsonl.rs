//! Records out of JSON lines: an object on each line, in the shape of the messages or of the XML.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read};

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
                return Ok(Next::End);
            }
            self.place.offset += read as u64;
            if read > self.max_record {
                self.place.offset += self.source.skip_until(b'\n')? as u64;
            }
            self.place.line += 1;
            let bad = |reason, detail: String, line: &[u8], end| {
                Ok(Next::Bad(Bad { reason, detail, excerpt: Bad::excerpt(line), begin, end }))
            };
            if read > self.max_record {
                let detail = format!("it has more than {} bytes", self.max_record);
                return bad("record_too_large", detail, &self.line, self.place);
            }
            let mark = if begin.offset == 0 && self.line.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
            let line = self.line[mark..].trim_ascii();
            if line.is_empty() {
                continue;
            }
            let node = std::str::from_utf8(line).map_err(|e| e.to_string()).and_then(parse);
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
