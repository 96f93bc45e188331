//! Records out of a dump's XML, one at a time, from a stream of any size.
//!
//! A record is parsed where it lies in the buffer. If that fails, either the buffer ends within it or it is broken:
//! then the beginning of the *next* record is looked for, and what lies before it is parsed alone. So a broken record,
//! whatever is wrong with it, never takes a neighbour along. (A raw `<` stands for nothing but markup, and no record
//! has an element of its own name in it; but for labels, see [`Rules`].)

use std::borrow::Cow;
use std::io::{self, Read};

use common::DataType;
use memchr::{memchr, memchr_iter, memmem};
use quick_xml::Reader;
use quick_xml::events::attributes::Attributes;
use quick_xml::events::{BytesRef, BytesStart, Event};

use crate::input::{Bad, Next, Place, ReadError};
use crate::node::{MAX_DEPTH, Node, Object};

/// Bytes of the buffer, unless a record needs more.
const BUFFER: usize = 256 * 1024;
/// More bytes than a record's start tag has.
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
    #[error("it has more than {0} bytes, or no end")]
    TooLarge(usize),
}

impl Fault {
    fn reason(&self) -> &'static str {
        if matches!(self, Fault::TooLarge(_)) { "record_too_large" } else { "malformed_xml" }
    }
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
                    let Some(end) = self.next_start(self.start, false) else { return self.without_end() };
                    return Ok(Next::Bad(self.reject("unexpected_content", "this is no record".to_owned(), end)));
                }
            }
            let begin = self.place;
            if let Ok((made, used)) = self.attempt(self.end, false, &mut make) {
                self.advance(used);
                return Ok(Next::Record(made, begin));
            }
            for indented in [true, false] {
                let next = self.next_start(self.start + 1, indented);
                match (self.attempt(next.unwrap_or(self.end), true, &mut make), next) {
                    (Ok((made, used)), _) => {
                        self.advance(used);
                        return Ok(Next::Record(made, begin));
                    }
                    (Err(_), _) if indented => {}
                    (Err(_), None) => return self.without_end(),
                    (Err(fault), Some(end)) => {
                        let large = end - self.start > self.max_record;
                        let fault = if large { Fault::TooLarge(self.max_record) } else { fault };
                        return Ok(Next::Bad(self.reject(fault.reason(), fault.to_string(), end)));
                    }
                }
            }
        }
    }

    /// Makes something of the record that begins the unread part and ends before `end`. Returns the number of its bytes,
    /// too. What is no UTF-8 is a fault or is `repaired`.
    fn attempt<T>(
        &self,
        end: usize,
        repaired: bool,
        make: &mut impl FnMut(Object<'_>) -> T,
    ) -> Result<(T, usize), Fault> {
        let bytes = &self.buffer[self.start..end];
        let text = if repaired { String::from_utf8_lossy(bytes) } else { Cow::Borrowed("") };
        let (record, used) = match &text {
            Cow::Owned(text) => {
                let (record, used) = parse(text.as_bytes(), &self.rules())?;
                (record, length_before_repair(bytes, used))
            }
            Cow::Borrowed(_) => parse(bytes, &self.rules())?,
        };
        if used > self.max_record {
            return Err(Fault::TooLarge(self.max_record));
        }
        Ok((make(record), used))
    }

    fn rules(&self) -> Rules<'_> {
        Rules { open: open(self.data_type), indent: self.indent.as_deref().unwrap_or_default() }
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
                if matches!(self.skip_markup(), At::Junk) {
                    return Err(self.ended());
                }
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
        let open = open(self.data_type).as_bytes();
        self.want(open.len() + 4);
        let rest = &self.buffer[self.start..self.end];
        match rest {
            [] => Err(self.ended()),
            [b'<', b'!' | b'?', ..] => Ok(self.skip_markup()),
            [b'<', b'/', name @ ..] if name.starts_with(self.data_type.name().as_bytes()) => {
                self.find(b">", 2).map(|_| At::RootEnd).ok_or_else(|| self.ended())
            }
            _ if rest.starts_with(open) && rest.get(open.len()).is_none_or(is_delimiter) => Ok(At::Record),
            _ => Ok(At::Junk),
        }
    }

    /// Skips a comment, a declaration or a processing instruction, if it has an end.
    fn skip_markup(&mut self) -> At {
        let close: &[u8] = match &self.buffer[self.start..self.end] {
            [b'<', b'!', b'-', b'-', ..] => b"-->",
            [b'<', b'?', ..] => b"?>",
            _ => b">",
        };
        let Some(at) = self.find(close, 2) else { return At::Junk };
        self.advance(at + close.len() - self.start);
        At::Nothing
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

    /// Reads to the very end, so that a damaged file does not pass for a whole one: the checksum comes last. Records
    /// behind the root's end, which then is a wrong end tag or the end of one of several files in one, are not lost.
    fn rest<T>(&mut self) -> Result<Next<T>, ReadError> {
        self.want(Bad::EXCERPT);
        let begin = self.place;
        let excerpt = Bad::excerpt(&self.buffer[self.start..self.end]);
        loop {
            match self.next_start(self.start, false) {
                Some(at) if self.buffer[at..].starts_with(b"</") => self.advance(at + 2 - self.start),
                Some(at) => {
                    self.advance(at - self.start);
                    self.done = false;
                    let detail = format!("records follow </{}>", self.data_type.name());
                    return Ok(Next::Bad(Bad {
                        reason: "unexpected_content",
                        detail,
                        excerpt,
                        begin,
                        end: self.place,
                    }));
                }
                None if self.over.is_some() => break,
                None => self.advance((self.end - self.start).saturating_sub(KEPT)),
            }
        }
        self.advance(self.end - self.start);
        match self.over.take() {
            Some(Some(e)) => Err(ReadError::Io(e)),
            _ => {
                self.over = Some(None);
                Ok(Next::End)
            }
        }
    }

    /// Where in the buffer the next record or the root's end begins, not before `from`; only a record that is `indented`
    /// as the first one, if so. `None` if the stream ends, or the largest record is exceeded, before that.
    fn next_start(&mut self, mut from: usize, indented: bool) -> Option<usize> {
        let open = open(self.data_type);
        let close = format!("</{}", self.data_type.name());
        loop {
            let rules = self.rules();
            let buffer = &self.buffer[..self.end];
            let root = memmem::find(&buffer[from..], close.as_bytes()).map(|at| from + at);
            // The last bytes may be the beginning of what is looked for.
            let mut again = self.end.saturating_sub(open.len() + close.len());
            for at in memmem::find_iter(&buffer[from..root.unwrap_or(self.end)], open).map(|at| from + at) {
                match rules.begins(buffer, at) {
                    Some(true) if !indented || rules.is_indented(buffer, at) => return Some(at),
                    Some(_) => {}
                    None => {
                        again = again.min(at);
                        break;
                    }
                }
            }
            if root.is_some() {
                return root;
            }
            from = from.max(again);
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
        self.end - self.start > self.max_record + KEPT
    }

    /// The stream ends within a record, or the record is too large: then it is skipped.
    fn without_end<T>(&mut self) -> Result<Next<T>, ReadError> {
        if !self.too_large() {
            return Err(self.ended());
        }
        let begin = self.place;
        let excerpt = Bad::excerpt(&self.buffer[self.start..self.end]);
        loop {
            // What is kept may be the beginning of the next record.
            self.advance(self.end - self.start - KEPT);
            if let Some(next) = self.next_start(self.start, false) {
                self.advance(next - self.start);
                let fault = Fault::TooLarge(self.max_record);
                let (reason, detail) = (fault.reason(), fault.to_string());
                return Ok(Next::Bad(Bad { reason, detail, excerpt, begin, end: self.place }));
            }
            if self.over.is_some() {
                return Err(self.ended());
            }
        }
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
        self.place.offset += bytes as u64;
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

/// How a record begins.
fn open(data_type: DataType) -> &'static str {
    match data_type {
        DataType::Artists => "<artist",
        DataType::Labels => "<label",
        DataType::Masters => "<master",
        DataType::Releases => "<release",
    }
}

fn is_delimiter(b: &u8) -> bool {
    matches!(b, b'>' | b'/') || b.is_ascii_whitespace()
}

/// The length of what became so long when everything that is no UTF-8 was replaced.
fn length_before_repair(bytes: &[u8], repaired: usize) -> usize {
    let (mut before, mut after) = (0, 0);
    for chunk in bytes.utf8_chunks() {
        if after + chunk.valid().len() >= repaired {
            break;
        }
        before += chunk.valid().len() + chunk.invalid().len();
        after += chunk.valid().len() + char::REPLACEMENT_CHARACTER.len_utf8();
    }
    before + repaired - after
}

/// How a new record is told from an element of the same name within one. Only labels have such elements, in `sublabels`:
/// with a text or nothing where a record has its first element.
struct Rules<'r> {
    open: &'static str,
    indent: &'r [u8],
}

impl Rules<'_> {
    /// Whether the element of the record's name at `at` is a record. `None` if that can't be told without reading on.
    fn begins(&self, input: &[u8], at: usize) -> Option<bool> {
        let rest = &input[at + self.open.len()..];
        if !is_delimiter(rest.first()?) || self.open != "<label" {
            return rest.first().map(is_delimiter);
        }
        let close = memchr(b'>', rest)?;
        if rest[..close].ends_with(b"/") {
            return Some(false);
        }
        match rest[close + 1..].trim_ascii_start() {
            [] | [b'<'] => None,
            [b'<', b'/', ..] => Some(false),
            [first, ..] => Some(*first == b'<'),
        }
    }

    /// Whether what is at `at` is indented as the first record.
    fn is_indented(&self, input: &[u8], at: usize) -> bool {
        input[..at].ends_with(self.indent)
    }

    /// Whether a comment, or anything else that has no elements in it, reaches into the next record.
    fn reaches_over(&self, input: &[u8], from: usize, to: usize) -> bool {
        let mut found = memmem::find_iter(&input[from..to], self.open).map(|at| from + at);
        found.any(|at| self.begins(input, at) == Some(true))
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
                if !open.is_empty()
                    && start.name().as_ref() == &rules.open[1..]
                    && rules.is_indented(input, at)
                    && rules.begins(input, at) == Some(true)
                {
                    return Err(Fault::NotClosed);
                }
                if open.len() >= MAX_DEPTH {
                    return Err(Fault::TooDeep);
                }
                open.push(element(input, at, &start, rules)?);
                continue;
            }
            Event::Empty(start) => element(input, at, &start, rules)?,
            Event::End(_) => open.pop().ok_or(Fault::NoEnd)?,
            Event::Text(text) => {
                if let Some(element) = open.last_mut() {
                    element.push(text.into_inner());
                }
                continue;
            }
            Event::CData(text) => {
                if rules.reaches_over(input, at, reader.buffer_position() as usize) {
                    return Err(Fault::NotClosed);
                }
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
            Event::Comment(_) | Event::PI(_) | Event::Decl(_) | Event::DocType(_) => {
                if rules.reaches_over(input, at, reader.buffer_position() as usize) {
                    return Err(Fault::NotClosed);
                }
                continue;
            }
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
fn element<'a>(input: &'a [u8], at: usize, start: &BytesStart<'_>, rules: &Rules<'_>) -> Result<Open<'a>, Fault> {
    // The event borrows from itself; the same bytes of the input live longer.
    let same = input.get(at + 1..at + 1 + start.len()).and_then(|tag| std::str::from_utf8(tag).ok());
    let tag = same.ok_or_else(|| Fault::Syntax("a tag is not where it was".to_owned()))?;
    // An attribute's quote may be missing.
    if memchr(b'<', tag.as_bytes()).is_some() && rules.reaches_over(input, at + 1, at + 1 + tag.len()) {
        return Err(Fault::NotClosed);
    }
    let name = start.name().as_ref().len();
    let mut children = Object::default();
    for attribute in Attributes::new(tag, name) {
        let attribute = attribute.map_err(|e| Fault::Syntax(e.to_string()))?;
        let value = match attribute.value {
            Cow::Borrowed(raw) => unescape(raw)?,
            Cow::Owned(raw) => Cow::Owned(unescape(&raw)?.into_owned()),
        };
        children.add(attribute_key(attribute.key.as_ref()), Node::Text(value));
    }
    Ok(Open { key: Cow::Borrowed(&tag[..name]), children, text: Cow::Borrowed("") })
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
fn unescape(raw: &str) -> Result<Cow<'_, str>, Fault> {
    if memchr(b'&', raw.as_bytes()).is_none() {
        return Ok(Cow::Borrowed(raw));
    }
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
    Ok(Cow::Owned(out))
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

#[cfg(test)]
mod tests;
