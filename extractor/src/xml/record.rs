//! One record's XML to a tree (contract §2.3, "Parser rules"), and what tells one record from the next.

use std::borrow::Cow;

use common::DataType;
use memchr::{memchr, memmem};
use quick_xml::Reader;
use quick_xml::events::attributes::Attributes;
use quick_xml::events::{BytesRef, BytesStart, Event};

use crate::node::{MAX_DEPTH, Node, Object};

/// What is wrong with a record's XML.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
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
    pub(super) fn reason(&self) -> &'static str {
        if matches!(self, Fault::TooLarge(_)) { "record_too_large" } else { "malformed_xml" }
    }
}

/// How a record begins.
pub(super) fn open(data_type: DataType) -> &'static str {
    match data_type {
        DataType::Artists => "<artist",
        DataType::Labels => "<label",
        DataType::Masters => "<master",
        DataType::Releases => "<release",
    }
}

/// How it ends, without blanks.
fn close(data_type: DataType) -> &'static str {
    match data_type {
        DataType::Artists => "</artist>",
        DataType::Labels => "</label>",
        DataType::Masters => "</master>",
        DataType::Releases => "</release>",
    }
}

pub(super) fn is_delimiter(b: &u8) -> bool {
    matches!(b, b'>' | b'/') || b.is_ascii_whitespace()
}

/// How a new record is told from an element of the same name within one. Only labels have such elements, in `sublabels`:
/// with a text or nothing where a record has its first element.
pub(super) struct Rules<'r> {
    pub(super) open: &'static str,
    pub(super) close: &'static str,
    pub(super) indent: &'r [u8],
}

impl<'r> Rules<'r> {
    pub(super) fn new(data_type: DataType, indent: &'r [u8]) -> Self {
        Rules { open: open(data_type), close: close(data_type), indent }
    }

    /// Whether the element of this name at `at`, within a record, is the next one.
    pub(super) fn is_next(&self, input: &[u8], at: usize, name: &str) -> bool {
        name == &self.open[1..] && self.is_indented(input, at) && self.begins(input, at) == Some(true)
    }

    /// Whether the element of the record's name at `at` is a record. `None` if that can't be told without reading on.
    pub(super) fn begins(&self, input: &[u8], at: usize) -> Option<bool> {
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
    pub(super) fn is_indented(&self, input: &[u8], at: usize) -> bool {
        input[..at].ends_with(self.indent)
    }

    /// Whether a comment, or anything else that has no elements in it, reaches into the next record.
    fn reaches_over(&self, input: &[u8], from: usize, to: usize) -> bool {
        let mut found = memmem::find_iter(&input[from..to], self.open).map(|at| from + at);
        found.any(|at| self.begins(input, at) == Some(true))
    }
}

/// An element whose end has not come yet.
pub(super) struct Open<'a> {
    pub(super) key: Cow<'a, str>,
    pub(super) children: Object<'a>,
    text: Cow<'a, str>,
}

impl<'a> Open<'a> {
    pub(super) fn new(key: &'a str, attributes: Object<'a>) -> Self {
        Open { key: Cow::Borrowed(key), children: attributes, text: Cow::Borrowed("") }
    }

    pub(super) fn push(&mut self, text: Cow<'a, str>) {
        if self.text.is_empty() {
            self.text = text;
        } else {
            self.text.to_mut().push_str(&text);
        }
    }

    /// The element's value (contract §2.3).
    pub(super) fn close(mut self) -> (Cow<'a, str>, Node<'a>) {
        let blank = is_blank(&self.text);
        let value = match (self.children.is_empty(), blank) {
            (true, true) => Node::Null,
            (true, false) => Node::Text(self.text),
            (false, blank) => {
                if !blank {
                    self.children.insert("#text", Node::Text(self.text));
                }
                self.children.shrink();
                Node::Object(self.children)
            }
        };
        (self.key, value)
    }
}

/// Whether a text says nothing.
pub(super) fn is_blank(text: &str) -> bool {
    text.chars().all(char::is_whitespace)
}

/// Parses the record at the beginning of `input`. Returns it with the number of its bytes.
pub(super) fn parse<'a>(input: &'a [u8], rules: &Rules<'_>) -> Result<(Object<'a>, usize), Fault> {
    let syntax = |e: quick_xml::Error| Fault::Syntax(e.to_string());
    let mut reader = Reader::from_reader(input);
    let mut open: Vec<Open<'a>> = Vec::with_capacity(8);
    loop {
        let at = reader.buffer_position() as usize;
        let closed = match reader.read_event().map_err(syntax)? {
            Event::Start(start) => {
                if !open.is_empty() && rules.is_next(input, at, start.name().as_ref()) {
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
            None => return Ok((root(value), reader.buffer_position() as usize)),
        }
    }
}

/// The record of its element's value.
pub(super) fn root(value: Node<'_>) -> Object<'_> {
    let mut record = match value {
        Node::Object(record) => record,
        _ => Object::default(),
    };
    if record.get("@id").is_some() {
        record.remove("id");
    }
    record
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
    Ok(Open::new(&tag[..name], children))
}

/// `@name`, without an allocation for the names that every dump has.
pub(super) fn attribute_key<'a>(name: &str) -> Cow<'a, str> {
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
        out.push_str(&resolve(&rest[at + 1..at + end]));
        rest = &rest[at + end + 1..];
    }
    out.push_str(rest);
    Ok(Cow::Owned(out))
}

/// A reference's text. Unknown names stay as they are, impossible characters become U+FFFD (contract §2.3).
pub(super) fn resolve<'a>(reference: &str) -> Cow<'a, str> {
    if reference.starts_with('#') {
        let char = BytesRef::new(reference).resolve_char_ref().ok().flatten().unwrap_or(char::REPLACEMENT_CHARACTER);
        return Cow::Owned(char.to_string());
    }
    Cow::Borrowed(match reference {
        "amp" => "&",
        "lt" => "<",
        "gt" => ">",
        "quot" => "\"",
        "apos" => "'",
        unknown => return Cow::Owned(format!("&{unknown};")),
    })
}
