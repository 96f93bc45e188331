//! Records out of CSV: a header row that names the fields, one of them `id`, and a row for each record.
//!
//! A cell is text, with these exceptions: an empty one means that the record has no such field; `\N` is null; a JSON
//! object or array is that value; a backslash before a JSON number, `true` or `false` stands for that; and one before a
//! JSON string stands for its text, for the rare text that would be taken for one of these.

use std::borrow::Cow;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use csv::ByteRecord;
use memchr::memmem;

use crate::input::{Bad, Next, Place, ReadError};
use crate::jsonl;
use crate::node::{Node, Object, string};

/// Reads the rows of one file.
pub struct CsvReader<R> {
    reader: csv::Reader<Limited<R>>,
    watched: Arc<Watched>,
    header: Vec<String>,
    row: ByteRecord,
    max_record: usize,
}

impl<R: Read> CsvReader<R> {
    /// A reader; a row of more than `max_record` bytes ends it.
    pub fn new(source: R, max_record: usize) -> Self {
        let watched = Arc::new(Watched { budget: AtomicUsize::new(max_record), crlf: AtomicBool::new(false) });
        let source = Limited { inner: source, watched: Arc::clone(&watched), last: None, tail: TAIL };
        let reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(source);
        CsvReader { reader, watched, header: Vec::new(), row: ByteRecord::new(), max_record }
    }

    /// Place of the first byte that is not read yet.
    pub fn place(&self) -> Place {
        let position = self.reader.position();
        // For the parser, a row ends before the second character of its line's end.
        let more = u64::from(position.byte() > 0 && self.watched.crlf.load(Ordering::Relaxed));
        Place { offset: position.byte() + more, line: position.line() + more }
    }

    /// Goes on behind a row that an earlier run ended at. (A row's length is known only when it was read.)
    ///
    /// # Errors
    /// [`ReadError`] if the stream ends before.
    pub fn resume(&mut self, at: Place) -> Result<(), ReadError> {
        self.begin()?;
        while self.place().offset < at.offset {
            if !self.read()? {
                return Err(ReadError::Truncated { missing: format!("byte {}", at.offset) });
            }
        }
        Ok(())
    }

    /// The next record, made into something by `make`, or a bad one, or the end.
    ///
    /// # Errors
    /// [`ReadError`] if the stream fails or there is no header.
    pub fn next<T>(&mut self, mut make: impl FnMut(Object<'_>) -> T) -> Result<Next<T>, ReadError> {
        self.begin()?;
        let begin = self.place();
        if !self.read()? {
            return Ok(Next::End);
        }
        if self.row.len() != self.header.len() {
            let detail = format!("{} cells, but the header has {}", self.row.len(), self.header.len());
            let cells: Vec<_> = self.row.iter().map(String::from_utf8_lossy).collect();
            let excerpt = Bad::excerpt(cells.join(",").as_bytes());
            return Ok(Next::Bad(Bad { reason: "malformed_csv", detail, excerpt, begin, end: self.place() }));
        }
        let mut object = Object::default();
        let cells: Vec<Cow<'_, str>> = self.row.iter().map(String::from_utf8_lossy).collect();
        for (name, cell) in self.header.iter().zip(&cells) {
            if let Some(value) = value(cell) {
                object.insert(name.as_str(), value);
            }
        }
        Ok(Next::Record(make(object), begin))
    }

    fn begin(&mut self) -> Result<(), ReadError> {
        if !self.header.is_empty() {
            return Ok(());
        }
        if !self.read()? {
            return Err(ReadError::Header("the file is empty".to_owned()));
        }
        let mut header: Vec<String> =
            self.row.iter().map(|name| String::from_utf8_lossy(name).trim().to_owned()).collect();
        if let Some(first) = header.first_mut() {
            // Behind a byte order mark the parser takes a quote for text.
            *first = first.trim_start_matches('\u{feff}').trim_matches('"').to_owned();
        }
        if !header.iter().any(|name| name == "id") {
            return Err(ReadError::Header(format!(
                "found {}",
                header.join(", ").chars().take(200).collect::<String>()
            )));
        }
        self.header = header;
        Ok(())
    }

    /// Reads a row; false at the end.
    fn read(&mut self) -> Result<bool, ReadError> {
        let line = self.place().line;
        if !self.read_row()? || (self.row.len() == 1 && &self.row[0] == END) {
            return Ok(false);
        }
        if self.row.iter().any(|cell| memmem::find(cell, END).is_some()) {
            return Err(ReadError::Truncated {
                missing: format!("the end of a quote in the row that begins in line {line}"),
            });
        }
        Ok(true)
    }

    fn read_row(&mut self) -> Result<bool, ReadError> {
        // What the reader has in its own buffer counts as well, so that the bound is not exact.
        self.watched.budget.store(self.max_record, Ordering::Relaxed);
        self.reader.read_byte_record(&mut self.row).map_err(|e| match e.into_kind() {
            csv::ErrorKind::Io(e) => ReadError::Io(e),
            other => ReadError::Header(format!("{other:?}")),
        })
    }
}

/// What a cell says; `None` if there is nothing.
fn value(cell: &str) -> Option<Node<'_>> {
    Some(match cell.as_bytes() {
        [] => return None,
        b"\\N" => Node::Null,
        [b'{' | b'[', ..] => match jsonl::parse(cell) {
            Ok(value) => value,
            Err(_) => Node::Text(Cow::Borrowed(cell)),
        },
        [b'\\', ..] => match jsonl::parse(&cell[1..]) {
            Ok(value @ (Node::Text(_) | Node::Literal(_))) => value,
            _ => Node::Text(Cow::Borrowed(cell)),
        },
        _ => Node::Text(Cow::Borrowed(cell)),
    })
}

/// Writes a value as a cell that is read back as the same.
pub fn cell(node: &mut Node<'_>) -> String {
    let json = |node: &mut Node<'_>| {
        let mut out = Vec::new();
        node.write(&mut out);
        String::from_utf8_lossy(&out).into_owned()
    };
    match node {
        Node::Null => "\\N".to_owned(),
        Node::Text(text) if value(text).is_some_and(|read| read == Node::Text(Cow::Borrowed(text))) => text.to_string(),
        Node::Text(text) => {
            let mut out = vec![b'\\'];
            string(text, &mut out);
            String::from_utf8_lossy(&out).into_owned()
        }
        Node::Literal(text) => format!("\\{text}"),
        other => json(other),
    }
}

/// What reader and source tell each other.
struct Watched {
    /// Bytes that may be read for the present row.
    budget: AtomicUsize,
    /// Whether the first line ends with CR and LF.
    crlf: AtomicBool,
}

/// Ends a row that has no end: a quote that is not closed would take in the rest of the file.
struct Limited<R> {
    inner: R,
    watched: Arc<Watched>,
    /// The last byte of the first line that was read.
    last: Option<u8>,
    /// What is still to be read behind the end.
    tail: &'static [u8],
}

/// A row that is put behind the last one: if it is not read as a row, a quote was not closed, which the parser accepts.
const TAIL: &[u8] = b"\n\x1fend of file\x1f\n";
/// The text of that row.
const END: &[u8] = b"\x1fend of file\x1f";

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.watched.budget.load(Ordering::Relaxed);
        if left == 0 {
            return Err(io::Error::other("a row is too large: is a quote not closed?"));
        }
        let n = self.inner.read(buffer)?;
        if n == 0 {
            let n = self.tail.len().min(buffer.len());
            let (now, later) = self.tail.split_at(n);
            buffer[..n].copy_from_slice(now);
            self.tail = later;
            return Ok(n);
        }
        self.watched.budget.store(left.saturating_sub(n), Ordering::Relaxed);
        if self.last != Some(b'\n') {
            let first = buffer[..n].split_inclusive(|b| *b == b'\n').next().unwrap_or_default();
            for b in first {
                self.watched.crlf.fetch_or(self.last == Some(b'\r') && *b == b'\n', Ordering::Relaxed);
                self.last = Some(*b);
            }
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests;
