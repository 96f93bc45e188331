//! Elements, and how Discogs writes them.

use std::borrow::Cow;

/// Text that is either one of the fixed words or made for the record.
pub(super) type Text = Cow<'static, str>;

/// An element: attributes, then text or children.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Element {
    pub(super) name: &'static str,
    pub(super) attributes: Vec<(&'static str, Text)>,
    /// Without text (and children) it is written as `<x/>`, with an empty one as `<x></x>`.
    pub(super) text: Option<Text>,
    pub(super) children: Vec<Element>,
}

impl Element {
    /// `<name/>`
    pub(super) fn empty(name: &'static str) -> Self {
        Self { name, attributes: Vec::new(), text: None, children: Vec::new() }
    }

    /// `<name>text</name>`
    pub(super) fn text(name: &'static str, text: impl Into<Text>) -> Self {
        Self { text: Some(text.into()), ..Self::empty(name) }
    }

    /// `<name><child>..</child>..</name>`
    pub(super) fn parent(name: &'static str, children: Vec<Self>) -> Self {
        Self { children, ..Self::empty(name) }
    }

    /// `<name><child>..</child>..</name>` of the children that are present.
    pub(super) fn of<const N: usize>(name: &'static str, children: [Option<Self>; N]) -> Self {
        Self::parent(name, children.into_iter().flatten().collect())
    }

    /// With one more attribute.
    pub(super) fn with(mut self, name: &'static str, value: impl Into<Text>) -> Self {
        self.attributes.push((name, value.into()));
        self
    }

    /// Appends the element as the dumps have it: on one line, but for the line breaks in its text.
    pub(super) fn write(&self, out: &mut String) {
        out.push('<');
        out.push_str(self.name);
        for (name, value) in &self.attributes {
            out.extend([" ", name, "=\""]);
            escape(value, true, out);
            out.push('"');
        }
        if self.text.is_none() && self.children.is_empty() {
            return out.push_str("/>");
        }
        out.push('>');
        escape(self.text.as_deref().unwrap_or_default(), false, out);
        for child in &self.children {
            child.write(out);
        }
        out.extend(["</", self.name, ">"]);
    }
}

/// Line feeds and tabs are raw in text and references in attributes; a carriage return is always a reference.
fn escape(text: &str, attribute: bool, out: &mut String) {
    let mut written = 0;
    for (at, byte) in text.bytes().enumerate() {
        let reference = match byte {
            b'&' => "&amp;",
            b'<' => "&lt;",
            b'>' => "&gt;",
            b'\r' => "&#13;",
            b'"' if attribute => "&quot;",
            b'\t' if attribute => "&#9;",
            b'\n' if attribute => "&#10;",
            _ => continue,
        };
        out.push_str(&text[written..at]);
        out.push_str(reference);
        written = at + 1;
    }
    out.push_str(&text[written..]);
}
