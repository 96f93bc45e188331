//! A record as a tree: what XML, JSONL and CSV are read into, and what becomes the canonical JSON of the contract (§2.4).

use std::borrow::Cow;
use std::io::{self, Write};

/// Deepest nesting that is taken. The workers' JSON parsers stop at 128.
pub const MAX_DEPTH: usize = 100;

/// One value. Text borrows from the input wherever it can.
#[derive(Clone, Debug, PartialEq)]
pub enum Node<'a> {
    /// An empty element.
    Null,
    /// A string.
    Text(Cow<'a, str>),
    /// A JSON number or boolean, as written. XML has none.
    Literal(Cow<'a, str>),
    /// Repeated elements, or a JSON array.
    List(Vec<Node<'a>>),
    /// Named values.
    Object(Object<'a>),
}

/// Named values; each name once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Object<'a>(Vec<(Cow<'a, str>, Node<'a>)>);

impl<'a> Object<'a> {
    /// The value of that name.
    pub fn get(&self, key: &str) -> Option<&Node<'a>> {
        self.0.iter().find(|(k, _)| is_same(k, key)).map(|(_, v)| v)
    }

    /// The value of that name, to be changed.
    pub fn get_mut(&mut self, key: &str) -> Option<&mut Node<'a>> {
        self.0.iter_mut().find(|(k, _)| is_same(k, key)).map(|(_, v)| v)
    }

    /// Sets a value; a former one of that name is replaced.
    pub fn insert(&mut self, key: impl Into<Cow<'a, str>>, value: Node<'a>) {
        let key = key.into();
        match self.get_mut(&key) {
            Some(old) => *old = value,
            None => self.0.push((key, value)),
        }
    }

    /// Adds a value as XML does: a second one of the same name makes a list.
    pub fn add(&mut self, key: Cow<'a, str>, value: Node<'a>) {
        // Repeated elements mostly follow each other.
        let last = self.0.len().saturating_sub(1);
        let same = match self.0.last() {
            Some((k, _)) if is_same(k, &key) => self.0.get_mut(last).map(|(_, v)| v),
            _ => self.get_mut(&key),
        };
        match same {
            None => self.0.push((key, value)),
            Some(Node::List(items)) => items.push(value),
            Some(one) => {
                let first = std::mem::replace(one, Node::Null);
                *one = Node::List(vec![first, value]);
            }
        }
    }

    /// Gives back the room that a single value does not need, three quarters of it: a record may be full of such objects.
    pub fn shrink(&mut self) {
        if self.0.len() == 1 {
            self.0.shrink_to_fit();
        }
    }

    /// Takes a value out.
    pub fn remove(&mut self, key: &str) -> Option<Node<'a>> {
        let at = self.0.iter().position(|(k, _)| k == key)?;
        Some(self.0.swap_remove(at).1)
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Gives each value the name that `rename` makes of its own. Two of the same name must not come of it.
    pub fn rename(&mut self, rename: impl Fn(&str) -> Option<&str>) {
        for (key, _) in &mut self.0 {
            match key {
                Cow::Borrowed(name) => {
                    let old: &'a str = name;
                    if let Some(new) = rename(old) {
                        *name = new;
                    }
                }
                Cow::Owned(name) => {
                    if let Some(new) = rename(name) {
                        *name = new.to_owned();
                    }
                }
            }
        }
    }

    /// Names and values as they are.
    pub fn entries(&self) -> &[(Cow<'a, str>, Node<'a>)] {
        &self.0
    }

    fn sort(&mut self) {
        self.0.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    }

    /// Writes the canonical JSON: keys ascending by their bytes, no blanks.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&mut self, out: &mut impl Write) -> io::Result<()> {
        self.sort();
        out.write_all(b"{")?;
        for (i, (key, value)) in self.0.iter_mut().enumerate() {
            if i > 0 {
                out.write_all(b",")?;
            }
            string(key, out)?;
            out.write_all(b":")?;
            value.write(out)?;
        }
        out.write_all(b"}")
    }
}

impl<'a> Node<'a> {
    /// The text, if it is one.
    pub fn text(&self) -> Option<&str> {
        match self {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Writes the canonical JSON.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&mut self, out: &mut impl Write) -> io::Result<()> {
        match self {
            Node::Null => out.write_all(b"null"),
            Node::Text(text) => string(text, out),
            Node::Literal(text) => out.write_all(text.as_bytes()),
            Node::List(items) => {
                out.write_all(b"[")?;
                for (i, item) in items.iter_mut().enumerate() {
                    if i > 0 {
                        out.write_all(b",")?;
                    }
                    item.write(out)?;
                }
                out.write_all(b"]")
            }
            Node::Object(object) => object.write(out),
        }
    }
}

/// Whether two names are the same. Most of those that are compared differ in length or in the first byte, which takes no call.
fn is_same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.as_bytes().first() == b.as_bytes().first() && a == b
}

/// Writes a JSON string: serde_json's escapes are those of the contract (§2.4).
///
/// # Errors
/// Those of `out`.
pub fn string(text: &str, out: &mut impl Write) -> io::Result<()> {
    // All of it is looked at, without a way out on the first hit, so that sixteen bytes are compared at a time.
    let escaped = text.bytes().fold(false, |found, b| found | (b < b' ') | (b == b'"') | (b == b'\\'));
    if escaped {
        return serde_json::to_writer(out, text).map_err(io::Error::from);
    }
    out.write_all(b"\"")?;
    out.write_all(text.as_bytes())?;
    out.write_all(b"\"")
}
