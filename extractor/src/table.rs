//! Records out of CSV: a header row that names the fields, one of them `id`, and a row for each record.
//!
//! A cell is text, with these exceptions: an empty one means that the record has no such field; `\N` is null; a JSON
//! object or array is that value; a backslash before a JSON number, `true` or `false` stands for that; and one before a
//! JSON string stands for its text, for the rare text that would be taken for one of these.

use std::borrow::Cow;
use std::io::{BufRead, BufReader, ErrorKind, Read};

use csv_core::ReadRecordResult;
use memchr::memchr_iter;

use crate::input::{Bad, Next, Place, ReadError};
use crate::jsonl;
use crate::node::{Node, Object, string};

/// Most columns that a table may have.
const MAX_COLUMNS: usize = 10_000;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Reads the rows of one file.
pub struct CsvReader<R> {
    source: BufReader<R>,
    parser: csv_core::Reader,
    place: Place,
    header: Vec<String>,
    row: Row,
    max_record: usize,
}

/// The present row.
#[derive(Default)]
struct Row {
    begin: Place,
    /// The first bytes of it as they are.
    excerpt: Vec<u8>,
    /// Its cells, one behind the other. The buffers are larger than what is in them.
    bytes: Vec<u8>,
    /// Where each cell ends.
    ends: Vec<usize>,
    /// How many cells it has. `ends` knows only as many as may be in a good row.
    cells: usize,
    /// Whether it has more bytes than it may have. Then only its beginning and its end were looked at.
    too_large: bool,
    /// Whether it ends with the file, without the end of a line.
    cut_off: bool,
}

impl Row {
    fn cells(&self) -> impl Iterator<Item = Cow<'_, str>> {
        let ends = &self.ends[..self.cells.min(self.ends.len())];
        let begins = std::iter::once(0).chain(ends.iter().copied());
        begins.zip(ends).map(|(begin, end)| String::from_utf8_lossy(&self.bytes[begin..*end]))
    }
}

impl<R: Read> CsvReader<R> {
    /// A reader; a row of more than `max_record` bytes is bad.
    pub fn new(source: R, max_record: usize) -> Self {
        CsvReader {
            source: BufReader::with_capacity(64 * 1024, source),
            parser: csv_core::Reader::new(),
            place: Place { offset: 0, line: 1 },
            header: Vec::new(),
            row: Row { bytes: vec![0; 4096], ends: vec![0; 64], ..Row::default() },
            max_record,
        }
    }

    /// Place of the first byte that is not read yet.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Goes on behind a row that an earlier run ended at. (A row's length is known only when it was read.)
    ///
    /// # Errors
    /// [`ReadError`] if the stream ends before.
    pub fn resume(&mut self, at: Place) -> Result<(), ReadError> {
        self.begin()?;
        loop {
            self.skip_line_ends(at.offset)?;
            if self.place.offset >= at.offset {
                return Ok(());
            }
            if !self.read()? {
                return Err(ReadError::Truncated { missing: format!("byte {}", at.offset) });
            }
        }
    }

    /// The next record, made into something by `make`, or a bad one, or the end.
    ///
    /// # Errors
    /// [`ReadError`] if the stream fails or there is no header.
    pub fn next<T>(&mut self, mut make: impl FnMut(Object<'_>) -> T) -> Result<Next<T>, ReadError> {
        self.begin()?;
        if !self.read()? {
            return Ok(Next::End);
        }
        if self.row.cut_off && self.row.cells < self.header.len() {
            let missing = format!("the end of the row that begins in line {}", self.row.begin.line);
            return Err(ReadError::Truncated { missing });
        }
        let bad = |reason, detail| {
            let excerpt = Bad::excerpt(self.row.excerpt.trim_ascii_end());
            Ok(Next::Bad(Bad { reason, detail, excerpt, begin: self.row.begin, end: self.place }))
        };
        if self.row.too_large {
            return bad(
                "record_too_large",
                format!("it has more than {} bytes: is a quote not closed?", self.max_record),
            );
        }
        if self.row.cells != self.header.len() {
            let detail = format!("{} cells, but the header has {}", self.row.cells, self.header.len());
            return bad("malformed_csv", detail);
        }
        let cells: Vec<Cow<'_, str>> = self.row.cells().collect();
        let mut object = Object::default();
        for (name, cell) in self.header.iter().zip(&cells) {
            if let Some(value) = value(cell) {
                object.insert(name.as_str(), value);
            }
        }
        Ok(Next::Record(make(object), self.row.begin))
    }

    fn begin(&mut self) -> Result<(), ReadError> {
        if !self.header.is_empty() {
            return Ok(());
        }
        let wrong = |what: String| Err(ReadError::Header(what));
        // The parser knows a byte order mark only if it comes in one piece.
        while let Some(byte) = BYTE_ORDER_MARK.get(self.place.offset as usize)
            && fill(&mut self.source)?.first() == Some(byte)
        {
            self.source.consume(1);
            self.place.offset += 1;
        }
        if !self.read()? {
            return wrong("the file is empty".to_owned());
        }
        if self.row.too_large || self.row.cells > MAX_COLUMNS {
            return wrong(format!("the first row has more than {MAX_COLUMNS} cells or {} bytes", self.max_record));
        }
        let header: Vec<String> = self.row.cells().map(|name| name.trim().to_owned()).collect();
        let found = header.join(", ").chars().take(200).collect::<String>();
        if !header.iter().any(|name| name == "id") {
            let other = header.len() == 1 && found.contains([';', '\t', '|']);
            let hint = if other { " (cells must have commas between them)" } else { "" };
            return wrong(format!("found {found}{hint}"));
        }
        if let Some(twice) = header.iter().enumerate().find_map(|(i, name)| header[..i].contains(name).then_some(name))
        {
            return wrong(format!("found {twice:?} twice"));
        }
        if self.row.cut_off {
            return Err(ReadError::Truncated { missing: "the end of the header row".to_owned() });
        }
        self.header = header;
        Ok(())
    }

    /// Reads a row; false at the end.
    fn read(&mut self) -> Result<bool, ReadError> {
        self.skip_line_ends(u64::MAX)?;
        let row = &mut self.row;
        (row.begin, row.cells, row.too_large, row.cut_off) = (self.place, 0, false, false);
        row.excerpt.clear();
        let most = if self.header.is_empty() { MAX_COLUMNS } else { self.header.len() };
        let (mut bytes, mut ends) = (0, 0);
        loop {
            let input = fill(&mut self.source)?;
            let at_end = input.is_empty();
            if at_end && self.place.offset == row.begin.offset {
                return Ok(false);
            }
            // The last row may lack the end of its line.
            let (result, read, written, ended) = self.parser.read_record(
                if at_end { b"\n" } else { input },
                &mut row.bytes[bytes..],
                &mut row.ends[ends..],
            );
            if !at_end {
                let missing = Bad::EXCERPT.saturating_sub(row.excerpt.len());
                row.excerpt.extend_from_slice(&input[..read.min(missing)]);
                self.place.offset += read as u64;
                self.place.line += memchr_iter(b'\n', &input[..read]).count() as u64;
                self.source.consume(read);
            }
            row.cells += ended;
            row.cut_off = at_end;
            (bytes, ends) = (bytes + written, ends + ended);
            row.too_large |= self.place.offset - row.begin.offset > self.max_record as u64 + 2; // with the line's end
            match result {
                ReadRecordResult::Record => return Ok(true),
                ReadRecordResult::End => return Ok(false),
                ReadRecordResult::InputEmpty if at_end => {
                    let missing = format!("the end of a quote in the row that begins in line {}", row.begin.line);
                    return Err(ReadError::Truncated { missing });
                }
                ReadRecordResult::InputEmpty => {}
                // Nobody looks at what is written over.
                ReadRecordResult::OutputFull if row.too_large || row.bytes.len() > self.max_record => {
                    (row.too_large, bytes) = (true, 0);
                }
                ReadRecordResult::OutputFull => {
                    let more = (row.bytes.len() * 2).min(self.max_record + 1);
                    row.bytes.resize(more, 0);
                }
                ReadRecordResult::OutputEndsFull if row.cells > most => ends = 0,
                ReadRecordResult::OutputEndsFull => row.ends.resize(row.ends.len() * 2, 0),
            }
        }
    }

    /// Skips the rest of a line's end, and empty lines, but not beyond a place.
    fn skip_line_ends(&mut self, most: u64) -> Result<(), ReadError> {
        while self.place.offset < most
            && let Some(byte @ (b'\r' | b'\n')) = fill(&mut self.source)?.first().copied()
        {
            self.source.consume(1);
            self.place.offset += 1;
            self.place.line += u64::from(byte == b'\n');
        }
        Ok(())
    }
}

/// What is there, or nothing at the end.
fn fill<R: Read>(source: &mut BufReader<R>) -> Result<&[u8], ReadError> {
    loop {
        match source.fill_buf() {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
            Ok(_) => break,
        }
    }
    Ok(source.buffer())
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
        let _ = node.write(&mut out); // a vector takes everything
        String::from_utf8_lossy(&out).into_owned()
    };
    match node {
        Node::Null => "\\N".to_owned(),
        Node::Text(text) if value(text).is_some_and(|read| read == Node::Text(Cow::Borrowed(text))) => text.to_string(),
        Node::Text(text) => {
            let mut out = vec![b'\\'];
            let _ = string(text, &mut out);
            String::from_utf8_lossy(&out).into_owned()
        }
        Node::Literal(text) => format!("\\{text}"),
        other => json(other),
    }
}

#[cfg(test)]
mod tests;
