//! Records out of a dump's XML, one at a time, from a stream of any size.
//!
//! A record is parsed where it lies in the buffer. If that fails, either the buffer ends within it or it is broken:
//! then the beginning of the *next* record is looked for, and what lies before it is parsed alone. So a broken record,
//! whatever is wrong with it, never takes a neighbour along. (In the dumps each record begins a line, and a raw `<`
//! stands for nothing but markup.)

use std::borrow::Cow;
use std::io::{self, Read};

use common::DataType;
use memchr::{memchr, memchr_iter, memmem};
use quick_xml::Reader;
use quick_xml::events::{BytesRef, BytesStart, Event};

use crate::input::{Bad, Next, Place, ReadError};
use crate::node::{MAX_DEPTH, Node, Object};

/// Bytes of the buffer, unless a record needs more.
const BUFFER: usize = 256 * 1024;
/// More bytes than white space and tag before a record have.
const KEPT: usize = 256;

/// Reads the records of one file.
pub struct XmlReader<R> {
    source: R,
    data_type: DataType,
    buffer: Vec<u8>,
    /// Where the unread part of the buffer begins.
    start: usize,
    /// Where what was read into the buffer ends.
    end: usize,
    /// Place in the stream of the unread part's beginning.
    place: Place,
    /// Why nothing more comes: the end of the stream (`None` inside) or an error.
    over: Option<Option<io::Error>>,
    /// White space before each record, as before the first one; `None` until that is known.
    indent: Option<Vec<u8>>,
    done: bool,
    max_record: usize,
}

/// What is wrong with a record's XML.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("{0}")]
    Syntax(String),
    #[error("it is not closed before the next one begins")]
    NotClosed,
    #[error("it is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    #[error("it has no end")]
    NoEnd,
}

impl<R: Read> XmlReader<R> {
    /// A reader of `data_type`'s records; one of more than `max_record` bytes of XML is bad.
    pub fn new(source: R, data_type: DataType, max_record: usize) -> Self {
        XmlReader {
            source,
            data_type,
            buffer: vec![0; BUFFER],
            start: 0,
            end: 0,
            place: Place { offset: 0, line: 1 },
            over: None,
            indent: None,
            done: false,
            max_record,
        }
    }

    /// Place of the first byte that is not read yet.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Goes on behind a record that an earlier run ended at.
    ///
    /// # Errors
    /// [`ReadError`] if the stream ends before.
    pub fn resume(&mut self, at: Place) -> Result<(), ReadError> {
        self.begin()?;
        while self.place.offset < at.offset {
            if self.start == self.end && !self.fill() {
                return Err(self.ended());
            }
            let wanted = usize::try_from(at.offset - self.place.offset).unwrap_or(usize::MAX);
            self.advance(wanted.min(self.end - self.start));
        }
        self.place = at;
        Ok(())
    }

    /// The next record, made into something by `make`, or a bad one, or the end.
    ///
    /// # Errors
    /// [`ReadError`] if the stream fails or ends too early; everything before was returned.
    pub fn next<T>(&mut self, mut make: impl FnMut(Object<'_>) -> T) -> Result<Next<T>, ReadError> {
        self.begin()?;
        loop {
            self.skip_blanks();
            if self.done {
                return self.rest();
            }
            match self.at_start()? {
                At::Record => {}
                At::RootEnd => {
                    self.done = true;
                    continue;
                }
                At::Nothing => continue,
                At::Junk => {
                    let end = self.next_start(self.start).ok_or_else(|| self.ended())?;
                    return Ok(Next::Bad(self.reject("unexpected_content", "this is no record".to_owned(), end)));
                }
            }
            let begin = self.place;
            if let Ok((record, used)) = parse(&self.buffer[self.start..self.end], &self.rules()) {
                let made = make(record);
                self.advance(used);
                return Ok(Next::Record(made, begin));
            }
            let Some(end) = self.next_start(self.start + 1) else {
                if self.too_large() {
                    return self.reject_large();
                }
                return Err(self.ended());
            };
            let end = self.repair(end);
            return match parse(&self.buffer[self.start..end], &self.rules()) {
                Ok((record, used)) => {
                    let made = make(record);
                    self.advance(used);
                    Ok(Next::Record(made, begin))
                }
                Err(fault) => Ok(Next::Bad(self.reject("malformed_xml", fault.to_string(), end))),
            };
        }
    }

    fn rules(&self) -> Rules<'_> {
        Rules {
            tag: tag(self.data_type),
            indent: self.indent.as_deref().unwrap_or_default(),
            labels: self.data_type == DataType::Labels,
        }
    }

    /// Reads up to the first record, once.
    fn begin(&mut self) -> Result<(), ReadError> {
        if self.indent.is_some() {
            return Ok(());
        }
        loop {
            self.want(4);
            let rest = &self.buffer[self.start..self.end];
            if rest.starts_with(b"\xef\xbb\xbf") {
                self.advance(3);
            } else if rest.first().is_some_and(u8::is_ascii_whitespace) {
                self.advance(1);
            } else if rest.starts_with(b"<?") || rest.starts_with(b"<!") {
                self.skip_markup()?;
            } else {
                break;
            }
        }
        let root = self.find(b">", 1).ok_or_else(|| self.ended())?;
        let text = String::from_utf8_lossy(&self.buffer[self.start..=root]).into_owned();
        let name =
            text.trim_start_matches('<').trim_end_matches(['>', '/']).split_whitespace().next().unwrap_or_default();
        if !text.starts_with('<') || name != self.data_type.name() {
            let found = text.chars().take(40).collect();
            return Err(ReadError::WrongRoot { expected: self.data_type.name(), found });
        }
        self.advance(root + 1 - self.start);
        self.done = text.ends_with("/>");
        let mut blanks = 0;
        loop {
            self.want(blanks + 1);
            match self.buffer[self.start..self.end].get(blanks) {
                Some(b) if b.is_ascii_whitespace() => blanks += 1,
                _ => break,
            }
        }
        self.indent = Some(self.buffer[self.start..self.start + blanks].to_vec());
        Ok(())
    }

    /// What the unread part begins with; comments and the like are skipped.
    fn at_start(&mut self) -> Result<At, ReadError> {
        let tag = tag(self.data_type);
        self.want(tag.len() + 4);
        let rest = &self.buffer[self.start..self.end];
        match rest {
            [] => Err(self.ended()),
            [b'<', b'!' | b'?', ..] => self.skip_markup().map(|()| At::Nothing),
            [b'<', b'/', name @ ..] if name.starts_with(self.data_type.name().as_bytes()) => {
                let end = self.find(b">", 2).ok_or_else(|| self.ended())?;
                self.advance(end + 1 - self.start);
                Ok(At::RootEnd)
            }
            [b'<', name @ ..] if name.starts_with(tag.as_bytes()) && name.get(tag.len()).is_none_or(is_delimiter) => {
                Ok(At::Record)
            }
            _ => Ok(At::Junk),
        }
    }

    /// Skips a comment, a declaration or a processing instruction.
    fn skip_markup(&mut self) -> Result<(), ReadError> {
        let close: &[u8] = if self.buffer[self.start..self.end].starts_with(b"<!--") { b"-->" } else { b">" };
        let at = self.find(close, 2).ok_or_else(|| self.ended())?;
        self.advance(at + close.len() - self.start);
        Ok(())
    }

    fn skip_blanks(&mut self) {
        loop {
            let rest = &self.buffer[self.start..self.end];
            let blanks = rest.iter().position(|b| !b.is_ascii_whitespace()).unwrap_or(rest.len());
            self.advance(blanks);
            if self.start < self.end || !self.fill() {
                return;
            }
        }
    }

    /// Reads to the very end, so that a damaged file does not pass for a whole one: the checksum comes last.
    fn rest<T>(&mut self) -> Result<Next<T>, ReadError> {
        loop {
            self.advance(self.end - self.start);
            if !self.fill() {
                break;
            }
        }
        match self.over.take() {
            Some(Some(e)) => Err(ReadError::Io(e)),
            _ => {
                self.over = Some(None);
                Ok(Next::End)
            }
        }
    }

    /// Where in the buffer the next record or the root's end begins, not before `from`. `None` if the stream ends, or
    /// the largest record is exceeded, before that.
    fn next_start(&mut self, from: usize) -> Option<usize> {
        let tag = tag(self.data_type);
        let (open, close) = (format!("<{tag}"), format!("</{}", self.data_type.name()));
        let mut from = from;
        loop {
            let indent = self.indent.as_deref().unwrap_or_default();
            let buffer = &self.buffer[..self.end];
            // A file without line breaks tells records from the labels in `sublabels` by the latter's attribute only.
            let fits = |at: usize| match buffer.get(at + open.len()) {
                Some(b'>') => buffer[..at].ends_with(indent),
                Some(b) => is_delimiter(b) && buffer[..at].ends_with(indent) && !(indent.is_empty() && tag == "label"),
                None => false,
            };
            let record = memmem::find_iter(&buffer[from..], open.as_bytes()).map(|at| from + at).find(|at| fits(*at));
            let root = memmem::find(&buffer[from..], close.as_bytes()).map(|at| from + at);
            if let Some(found) = [record, root].into_iter().flatten().min() {
                return Some(found);
            }
            // The last bytes may be the beginning of what is looked for.
            from = from.max(self.end.saturating_sub(open.len() + close.len()));
            if self.too_large() {
                return None;
            }
            let before = self.start;
            if !self.fill() {
                return None;
            }
            from -= before - self.start;
        }
    }

    fn too_large(&self) -> bool {
        self.end - self.start > self.max_record
    }

    /// Skips a record that is larger than may be, or has no end.
    fn reject_large<T>(&mut self) -> Result<Next<T>, ReadError> {
        let begin = self.place;
        let excerpt = Bad::excerpt(&self.buffer[self.start..self.end]);
        loop {
            // What is kept may be the beginning of the next record.
            self.advance((self.end - self.start).saturating_sub(KEPT));
            if let Some(next) = self.next_start(self.start) {
                self.advance(next - self.start);
                let detail = format!("it has more than {} bytes, or no end", self.max_record);
                return Ok(Next::Bad(Bad { reason: "record_too_large", detail, excerpt, begin, end: self.place }));
            }
            if self.over.is_some() {
                return Err(self.ended());
            }
        }
    }

    /// Replaces what is no UTF-8 between the unread part's beginning and `end`, and returns the new end.
    fn repair(&mut self, end: usize) -> usize {
        let Cow::Owned(text) = String::from_utf8_lossy(&self.buffer[self.start..end]) else { return end };
        let (old, new) = (end - self.start, text.len());
        self.buffer.splice(self.start..end, text.into_bytes());
        self.end = self.end - old + new;
        // Places count the stream's bytes, not the replacements'.
        self.place.offset = self.place.offset.wrapping_sub(new as u64).wrapping_add(old as u64);
        self.start + new
    }

    fn reject(&mut self, reason: &'static str, detail: String, end: usize) -> Bad {
        let begin = self.place;
        let bytes = &self.buffer[self.start..end];
        let excerpt = Bad::excerpt(bytes);
        self.advance(end - self.start);
        Bad { reason, detail, excerpt, begin, end: self.place }
    }

    fn ended(&mut self) -> ReadError {
        match self.over.take() {
            Some(Some(e)) => ReadError::Io(e),
            _ => ReadError::Truncated { missing: format!("</{}>", self.data_type.name()) },
        }
    }

    /// Where `pattern` is, looked for from `skip` bytes behind the unread part's beginning.
    fn find(&mut self, pattern: &[u8], skip: usize) -> Option<usize> {
        loop {
            let from = (self.start + skip).min(self.end);
            if let Some(at) = memmem::find(&self.buffer[from..self.end], pattern) {
                return Some(from + at);
            }
            if self.too_large() || !self.fill() {
                return None;
            }
        }
    }

    /// Tries to have this many unread bytes.
    fn want(&mut self, bytes: usize) {
        while self.end - self.start < bytes && self.fill() {}
    }

    fn advance(&mut self, bytes: usize) {
        let read = &self.buffer[self.start..self.start + bytes];
        self.place.offset = self.place.offset.wrapping_add(bytes as u64);
        self.place.line += memchr_iter(b'\n', read).count() as u64;
        self.start += bytes;
    }

    /// Reads more; false if there is no more.
    fn fill(&mut self) -> bool {
        if self.over.is_some() {
            return false;
        }
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.buffer.len() {
            self.buffer.resize(self.buffer.len() * 2, 0);
        } else if self.buffer.len() > BUFFER && self.end < BUFFER / 2 {
            self.buffer.truncate(BUFFER);
            self.buffer.shrink_to_fit();
        }
        loop {
            match self.source.read(&mut self.buffer[self.end..]) {
                Ok(0) => self.over = Some(None),
                Ok(n) => self.end += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => self.over = Some(Some(e)),
            }
            return self.over.is_none();
        }
    }
}

/// What comes next in a file.
enum At {
    Record,
    RootEnd,
    Nothing,
    Junk,
}

/// The record element's name: the type's name in the singular.
pub fn tag(data_type: DataType) -> &'static str {
    let name = data_type.name();
    name.strip_suffix('s').unwrap_or(name)
}

fn is_delimiter(b: &u8) -> bool {
    matches!(b, b'>' | b'/') || b.is_ascii_whitespace()
}

/// How a new record is told from an element of the same name within one.
struct Rules<'r> {
    tag: &'r str,
    indent: &'r [u8],
    labels: bool,
}

impl Rules<'_> {
    /// Whether the element of the record's name at `at` begins another record.
    fn begins_another(&self, input: &[u8], at: usize) -> bool {
        if self.indent.is_empty() {
            return !self.labels;
        }
        let before = &input[..at];
        let blanks = before.iter().rev().take_while(|b| b.is_ascii_whitespace()).count();
        &before[at - blanks..] == self.indent
    }
}

/// An element whose end has not come yet.
struct Open<'a> {
    key: Cow<'a, str>,
    children: Object<'a>,
    text: Cow<'a, str>,
}

impl<'a> Open<'a> {
    fn push(&mut self, text: Cow<'a, str>) {
        if self.text.is_empty() {
            self.text = text;
        } else {
            self.text.to_mut().push_str(&text);
        }
    }

    /// The element's value (contract §2.3).
    fn close(mut self) -> (Cow<'a, str>, Node<'a>) {
        let blank = self.text.trim().is_empty();
        let value = match (self.children.is_empty(), blank) {
            (true, true) => Node::Null,
            (true, false) => Node::Text(self.text),
            (false, blank) => {
                if !blank {
                    self.children.insert("#text", Node::Text(self.text));
                }
                Node::Object(self.children)
            }
        };
        (self.key, value)
    }
}

/// Parses the record at the beginning of `input`. Returns it with the number of its bytes.
fn parse<'a>(input: &'a [u8], rules: &Rules<'_>) -> Result<(Object<'a>, usize), Fault> {
    let syntax = |e: quick_xml::Error| Fault::Syntax(e.to_string());
    let mut reader = Reader::from_reader(input);
    let mut open: Vec<Open<'a>> = Vec::with_capacity(8);
    loop {
        let at = reader.buffer_position() as usize;
        let closed = match reader.read_event().map_err(syntax)? {
            Event::Start(start) => {
                if !open.is_empty() && start.name().as_ref() == rules.tag && rules.begins_another(input, at) {
                    return Err(Fault::NotClosed);
                }
                if open.len() >= MAX_DEPTH {
                    return Err(Fault::TooDeep);
                }
                open.push(element(input, at, &start)?);
                continue;
            }
            Event::Empty(start) => element(input, at, &start)?,
            Event::End(_) => open.pop().ok_or(Fault::NoEnd)?,
            Event::Text(text) => {
                if let Some(element) = open.last_mut() {
                    element.push(text.into_inner());
                }
                continue;
            }
            Event::CData(text) => {
                if let Some(element) = open.last_mut() {
                    element.push(text.into_inner());
                }
                continue;
            }
            Event::GeneralRef(reference) => {
                if let Some(element) = open.last_mut() {
                    element.push(resolve(&reference));
                }
                continue;
            }
            Event::Eof => return Err(Fault::NoEnd),
            Event::Comment(_) | Event::PI(_) | Event::Decl(_) | Event::DocType(_) => continue,
        };
        let (key, value) = closed.close();
        match open.last_mut() {
            Some(parent) => parent.children.add(key, value),
            None => {
                let mut record = match value {
                    Node::Object(record) => record,
                    _ => Object::default(),
                };
                if record.get("@id").is_some() {
                    record.remove("id");
                }
                return Ok((record, reader.buffer_position() as usize));
            }
        }
    }
}

/// An element with its attributes. `at` is where its `<` is.
fn element<'a>(input: &'a [u8], at: usize, start: &BytesStart<'_>) -> Result<Open<'a>, Fault> {
    let name = start.name();
    // The event borrows from itself; the same bytes of the input live longer.
    let same = input.get(at + 1..at + 1 + name.as_ref().len()).and_then(|bytes| std::str::from_utf8(bytes).ok());
    let key = match same.filter(|same| *same == name.as_ref()) {
        Some(same) => Cow::Borrowed(same),
        None => Cow::Owned(name.as_ref().to_owned()),
    };
    let mut children = Object::default();
    for attribute in start.attributes() {
        let attribute = attribute.map_err(|e| Fault::Syntax(e.to_string()))?;
        children.add(attribute_key(attribute.key.as_ref()), Node::Text(Cow::Owned(unescape(&attribute.value)?)));
    }
    Ok(Open { key, children, text: Cow::Borrowed("") })
}

/// `@name`, without an allocation for the names that every dump has.
fn attribute_key<'a>(name: &str) -> Cow<'a, str> {
    Cow::Borrowed(match name {
        "id" => "@id",
        "name" => "@name",
        "catno" => "@catno",
        "qty" => "@qty",
        "text" => "@text",
        "type" => "@type",
        "value" => "@value",
        "description" => "@description",
        "src" => "@src",
        "duration" => "@duration",
        "embed" => "@embed",
        "height" => "@height",
        "width" => "@width",
        "uri" => "@uri",
        "uri150" => "@uri150",
        "is_main_release" => "@is_main_release",
        "status" => "@status",
        _ => return Cow::Owned(format!("@{name}")),
    })
}

/// An attribute's value with its references resolved.
fn unescape(raw: &str) -> Result<String, Fault> {
    let mut out = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(at) = memchr(b'&', rest.as_bytes()) {
        out.push_str(&rest[..at]);
        let end = memchr(b';', &rest.as_bytes()[at..])
            .ok_or_else(|| Fault::Syntax("a reference in an attribute has no `;`".to_owned()))?;
        out.push_str(&resolve(&BytesRef::new(&rest[at + 1..at + end])));
        rest = &rest[at + end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

/// A reference's text. Unknown names stay as they are, impossible characters become U+FFFD (contract §2.3).
fn resolve<'a>(reference: &BytesRef<'_>) -> Cow<'a, str> {
    if reference.is_char_ref() {
        let char = reference.resolve_char_ref().ok().flatten().unwrap_or(char::REPLACEMENT_CHARACTER);
        return Cow::Owned(char.to_string());
    }
    Cow::Borrowed(match &**reference {
        "amp" => "&",
        "lt" => "<",
        "gt" => ">",
        "quot" => "\"",
        "apos" => "'",
        unknown => return Cow::Owned(format!("&{unknown};")),
    })
}
