//! The fast way for the plain shape that the dumps' records have: elements, attributes in double quotes, text,
//! references. `record::parse` is the rule; this takes what it would take anyway, several times faster, and leaves
//! everything else to it: comments, CDATA, other spellings, and whatever is broken.

use std::borrow::Cow;

use memchr::{memchr, memchr2, memmem};

use super::record::{Open, Rules, attribute_key, is_blank, resolve, root};
use crate::node::{MAX_DEPTH, Node, Object};

/// Parses the record at the beginning of `input`. Returns it with the number of its bytes, or `None` if it is not
/// plain, or not whole.
pub(super) fn parse<'a>(input: &'a [u8], rules: &Rules<'_>) -> Option<(Object<'a>, usize)> {
    // Checked once for the whole record, not for each of its some hundred parts.
    let text = std::str::from_utf8(&input[..end(input, rules)?]).ok()?;
    let mut at = 0;
    let mut open: Vec<Open<'a>> = Vec::with_capacity(8);
    loop {
        // `at` is where a `<` is.
        let closed = if text.as_bytes().get(at + 1)? == &b'/' {
            let element = open.pop()?;
            let rest = text[at + 2..].strip_prefix(&*element.key)?.strip_prefix('>')?;
            at = text.len() - rest.len();
            element
        } else {
            let (element, after, empty) = element(text, at)?;
            if open.len() >= MAX_DEPTH || (!open.is_empty() && rules.is_next(input, at, &element.key)) {
                return None;
            }
            at = after;
            if !empty {
                if let Some((value, after)) = leaf(text, at, &element)
                    && let Some(parent) = open.last_mut()
                {
                    parent.children.add(element.key, value);
                    at = content(text, after, parent)?;
                    continue;
                }
                open.push(element);
                at = content(text, at, open.last_mut()?)?;
                continue;
            }
            element
        };
        let (key, value) = closed.close();
        match open.last_mut() {
            Some(parent) => parent.children.add(key, value),
            None => return Some((root(value), at)),
        }
        at = content(text, at, open.last_mut()?)?;
    }
}

/// Behind the record's end tag, if nothing is odd. Otherwise the parser notices.
fn end(input: &[u8], rules: &Rules<'_>) -> Option<usize> {
    // A label has elements of its own name in it.
    let is_last = |end: &usize| rules.open != "<label" || input[*end..].starts_with(rules.indent);
    memmem::find_iter(input, rules.close).map(|at| at + rules.close.len()).find(is_last)
}

/// The value of an element that has nothing but text, which begins at `at`, and where its end tag ends: most of them.
fn leaf<'a>(text: &'a str, at: usize, element: &Open<'a>) -> Option<(Node<'a>, usize)> {
    if !element.children.is_empty() {
        return None;
    }
    let end = at + memchr(b'<', &text.as_bytes()[at..])?;
    let rest = text[end + 1..].strip_prefix('/')?.strip_prefix(&*element.key)?.strip_prefix('>')?;
    let value = unescape(&text[at..end])?;
    let value = if is_blank(&value) { Node::Null } else { Node::Text(value) };
    Some((value, text.len() - rest.len()))
}

/// Takes text up to the next `<`, which is returned.
fn content<'a>(text: &'a str, at: usize, element: &mut Open<'a>) -> Option<usize> {
    let len = memchr(b'<', &text.as_bytes()[at..])?;
    if len > 0 {
        element.push(unescape(&text[at..at + len])?);
    }
    Some(at + len)
}

/// The element whose `<` is at `at`, where its tag ends, and whether it is empty.
fn element<'a>(text: &'a str, at: usize) -> Option<(Open<'a>, usize, bool)> {
    let bytes = text.as_bytes();
    let name = word(bytes, at + 1)?;
    let mut children = Object::default();
    let mut next = name;
    loop {
        match bytes.get(next)? {
            b'>' => break,
            b'/' if bytes.get(next + 1)? == &b'>' => break,
            b' ' => {
                let key = word(bytes, next + 1)?;
                if !bytes[key..].starts_with(b"=\"") {
                    return None;
                }
                let value = key + 2;
                let len = memchr2(b'"', b'<', &bytes[value..])?;
                let attribute = attribute_key(&text[next + 1..key]);
                if bytes[value + len] == b'<' || children.get(&attribute).is_some() {
                    return None;
                }
                children.add(attribute, Node::Text(unescape(&text[value..value + len])?));
                next = value + len + 1;
            }
            _ => return None,
        }
    }
    let empty = bytes[next] == b'/';
    Some((Open::new(&text[at + 1..name], children), next + 1 + usize::from(empty), empty))
}

/// Where a name ends that begins at `at`.
fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let len = bytes[at..].iter().position(|b| !b.is_ascii_alphanumeric() && *b != b'_')?;
    (len > 0).then_some(at + len)
}

/// Text with its references resolved, if they are plain.
fn unescape(raw: &str) -> Option<Cow<'_, str>> {
    let Some(mut at) = memchr(b'&', raw.as_bytes()) else { return Some(Cow::Borrowed(raw)) };
    let mut out = String::with_capacity(raw.len());
    let mut rest = raw;
    loop {
        out.push_str(&rest[..at]);
        let end = rest.as_bytes()[at + 1..].iter().position(|b| !b.is_ascii_alphanumeric() && *b != b'#')? + at + 1;
        if rest.as_bytes()[end] != b';' || end == at + 1 {
            return None;
        }
        out.push_str(&resolve(&rest[at + 1..end]));
        rest = &rest[end + 1..];
        match memchr(b'&', rest.as_bytes()) {
            Some(next) => at = next,
            None => break,
        }
    }
    out.push_str(rest);
    Some(Cow::Owned(out))
}
