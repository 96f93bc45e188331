//! Message bodies, exactly as the contract has them (§2.1–2.6).

use std::io::{self, Write};
use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, Utc};
use common::DataType;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::input::{Bad, MAX_RECORD};
use crate::node::{Node, Object, string};
use crate::normalize::normalize;
use crate::rules::{Applied, Rules};

/// What became of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The body of its data message.
    Message(Vec<u8>),
    /// A rule says that it is not wanted.
    Skipped,
    /// It can't be a message.
    Unusable {
        /// Stable name of the fault: `missing_id`, `reserved_type` or `record_too_large`.
        reason: &'static str,
        /// What exactly is wrong.
        detail: String,
        /// The beginning of its JSON.
        excerpt: String,
    },
}

/// Makes messages of one type's records.
pub struct Encoder {
    data_type: DataType,
    rules: Option<Arc<Rules>>,
    /// The record's JSON, kept for its memory.
    json: Vec<u8>,
}

impl Encoder {
    /// An encoder; without `rules` nothing is skipped or changed.
    pub fn new(data_type: DataType, rules: Option<Arc<Rules>>) -> Self {
        Encoder { data_type, rules, json: Vec::new() }
    }

    /// Makes the message of a record. A record that brings its `sha256` keeps it.
    pub fn encode(&mut self, record: Object<'_>) -> Outcome {
        let Canonical { id, mut record, hash } = match self.canonical(record) {
            Ok(canonical) => canonical,
            Err(outcome) => return outcome,
        };
        let json = match self.json(&mut record) {
            Ok(json) => json,
            Err(outcome) => return outcome,
        };
        let hash = hash.unwrap_or_else(|| hex(&Sha256::digest(json)));
        let mut body = Vec::with_capacity(json.len() + id.len() + 110);
        body.extend_from_slice(br#"{"type":"data","id":"#);
        let _ = string(&id, &mut body); // a vector takes everything
        body.extend_from_slice(br#","sha256":"#);
        let _ = string(&hash, &mut body);
        body.push(b',');
        body.extend_from_slice(&json[1..]); // it has an id, so that something follows
        Outcome::Message(body)
    }

    /// The canonical JSON of a record, which is hashed.
    ///
    /// # Errors
    /// What becomes of the record if it is too large.
    pub fn json(&mut self, record: &mut Object<'_>) -> Result<&[u8], Outcome> {
        self.json.clear();
        match record.write(&mut Bounded { bytes: &mut self.json, most: MAX_RECORD }) {
            Ok(()) => Ok(&self.json),
            Err(_) => {
                // A character that JSON escapes becomes up to six.
                let detail = format!("it has more than {MAX_RECORD} bytes as JSON");
                Err(Outcome::Unusable { reason: "record_too_large", detail, excerpt: Bad::excerpt(&self.json) })
            }
        }
    }

    /// The record as it is hashed and published.
    ///
    /// # Errors
    /// What became of it instead.
    pub fn canonical<'a>(&self, mut record: Object<'a>) -> Result<Canonical<'a>, Outcome> {
        let applied = self.rules.as_ref().map_or(Applied::Unchanged, |rules| rules.apply(self.data_type, &mut record));
        if applied == Applied::Skipped {
            return Err(Outcome::Skipped);
        }
        let mut record = normalize(self.data_type, record);
        let hash = record.remove("sha256").and_then(|hash| hash.text().filter(|h| is_hash(h)).map(str::to_owned));
        // The hash that came with a record is not that of what the rules left of it.
        let hash = hash.filter(|_| applied == Applied::Unchanged);
        match record.get("type").and_then(Node::text) {
            Some("data") => drop(record.remove("type")),
            Some(control @ ("file_complete" | "extraction_complete")) => {
                // The workers would take it for a control message.
                let detail = format!("its type is {control:?}");
                return Err(unusable("reserved_type", detail, record));
            }
            _ => {}
        }
        if record.get("id").is_none()
            && let Some(id) = record.remove("@id")
        {
            record.insert("id", id);
        }
        if let Some(Node::Literal(id)) = record.get("id")
            && id.bytes().all(|b| b.is_ascii_digit())
        {
            let id = id.clone();
            record.insert("id", Node::Text(id));
        }
        match usable_id(&record) {
            Ok(id) => Ok(Canonical { id, record, hash }),
            Err(detail) => Err(unusable("missing_id", detail, record)),
        }
    }
}

/// A record in the form that is hashed and published.
pub struct Canonical<'a> {
    /// Its id, never blank.
    pub id: String,
    /// All of it, the id too.
    pub record: Object<'a>,
    /// The hash that it brought, if it did.
    pub hash: Option<String>,
}

fn unusable(reason: &'static str, detail: String, mut record: Object<'_>) -> Outcome {
    let mut json = Vec::new();
    // More than its beginning is not needed.
    let _ = record.write(&mut Bounded { bytes: &mut json, most: Bad::EXCERPT });
    Outcome::Unusable { reason, detail, excerpt: Bad::excerpt(&json) }
}

/// Takes as many bytes as `bytes` may have, and refuses what follows.
struct Bounded<'a> {
    bytes: &'a mut Vec<u8>,
    most: usize,
}

impl Write for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.most - self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    // The usual case first, and without a loop: most of what is written is a comma or a quotation mark.
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() <= self.most - self.bytes.len() {
            self.bytes.extend_from_slice(bytes);
            return Ok(());
        }
        self.write(bytes)?;
        Err(io::ErrorKind::WriteZero.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether a text looks like a hash of the contract (§2.2).
fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The id. Records without one must not all become the same row or node (contract §9.2-25).
fn usable_id(record: &Object<'_>) -> Result<String, String> {
    match record.get("id") {
        Some(Node::Text(id)) if !id.trim().is_empty() => Ok(id.to_string()),
        None => Err("the record has no id".to_owned()),
        Some(Node::List(ids)) => Err(format!("the record has {} ids", ids.len())),
        Some(Node::Null | Node::Text(_)) => Err("the record's id is empty".to_owned()),
        Some(Node::Literal(_) | Node::Object(_)) => Err("the record's id is no text".to_owned()),
    }
}

/// Lower-case hex digits.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).collect()
}

/// A point in time as the contract writes it: RFC 3339, UTC, with `Z`.
pub fn timestamp(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Nanos, true)
}

#[derive(Serialize)]
struct FileComplete<'a> {
    r#type: &'static str,
    data_type: &'static str,
    timestamp: String,
    total_processed: u64,
    file: &'a str,
}

/// The message that ends a type's file. `total` counts the records that were read, skipped ones included.
pub fn file_complete(data_type: DataType, total: u64, file: &str, now: DateTime<Utc>) -> Vec<u8> {
    json(&FileComplete {
        r#type: "file_complete",
        data_type: data_type.name(),
        timestamp: timestamp(now),
        total_processed: total,
        file,
    })
}

/// Records of each type, in the order of [`DataType::ALL`]; a type may be missing.
pub type Counts = Vec<(DataType, u64)>;

#[derive(Serialize)]
struct ExtractionComplete<'a> {
    r#type: &'static str,
    version: &'a str,
    timestamp: String,
    started_at: &'a str,
    record_counts: serde_json::Map<String, serde_json::Value>,
}

/// The message that ends a run, the same for all four exchanges.
pub fn extraction_complete(version: &str, started_at: &str, counts: &Counts, now: DateTime<Utc>) -> Vec<u8> {
    json(&ExtractionComplete {
        r#type: "extraction_complete",
        version,
        timestamp: timestamp(now),
        started_at,
        record_counts: counts.iter().map(|(t, n)| (t.name().to_owned(), (*n).into())).collect(),
    })
}

fn json(message: &impl Serialize) -> Vec<u8> {
    // Strings and numbers only: nothing that could fail.
    serde_json::to_vec(message).unwrap_or_default()
}

#[cfg(test)]
mod tests;
