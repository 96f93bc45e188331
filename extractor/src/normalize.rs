//! From the shape of the XML to the shape of the messages (contract §2.3).

use std::borrow::Cow;

use common::DataType;

use crate::node::{Node, Object};

/// Normalises a record in place. One that is normal already stays as it is.
pub fn normalize<'a>(data_type: DataType, mut record: Object<'a>) -> Object<'a> {
    match data_type {
        DataType::Artists => {
            for field in ["members", "groups", "aliases"] {
                list(&mut record, field, |value| items(value, "name"));
            }
        }
        DataType::Labels => {
            if let Some(parent) = record.get_mut("parentLabel") {
                *parent = stripped(std::mem::replace(parent, Node::Null));
            }
            list(&mut record, "sublabels", |value| items(value, "label"));
        }
        DataType::Masters => {
            record = strip(record);
            list(&mut record, "artists", |value| items(value, "artist"));
            list(&mut record, "genres", |value| unwrap(value, "genre"));
            list(&mut record, "styles", |value| unwrap(value, "style"));
        }
        DataType::Releases => {
            record = strip(record);
            list(&mut record, "artists", |value| items(value, "artist"));
            list(&mut record, "labels", |value| items(value, "label"));
            list(&mut record, "extraartists", |value| items(value, "artist"));
            list(&mut record, "genres", |value| unwrap(value, "genre"));
            list(&mut record, "styles", |value| unwrap(value, "style"));
            list(&mut record, "formats", |value| unwrap(value, "format").into_iter().map(stripped).collect());
            if let Some(master) = record.get_mut("master_id")
                && let Node::Object(object) = master
            {
                *master = object.remove("#text").or_else(|| object.remove("id")).unwrap_or(Node::Null);
            }
        }
    }
    record
}

/// Turns a container into a list; an empty one is removed.
fn list<'a>(record: &mut Object<'a>, field: &str, make: impl FnOnce(Node<'a>) -> Vec<Node<'a>>) {
    let Some(slot) = record.get_mut(field) else { return };
    let made = make(std::mem::replace(slot, Node::Null));
    if made.is_empty() {
        record.remove(field);
    } else {
        *slot = Node::List(made);
    }
}

/// The contract's "unwrap".
fn unwrap<'a>(container: Node<'a>, key: &str) -> Vec<Node<'a>> {
    match container {
        Node::Null => Vec::new(),
        Node::List(items) => items,
        Node::Object(mut object) => match object.remove(key) {
            None | Some(Node::Null) => Vec::new(),
            Some(Node::List(items)) => items,
            Some(one) => vec![one],
        },
        scalar => vec![scalar],
    }
}

/// The contract's "item list": a plain text becomes an id.
fn items<'a>(container: Node<'a>, key: &str) -> Vec<Node<'a>> {
    let item = |node| match node {
        Node::Text(text) => {
            let mut object = Object::default();
            object.insert("id", Node::Text(text));
            Node::Object(object)
        }
        other => stripped(other),
    };
    unwrap(container, key).into_iter().map(item).collect()
}

fn stripped(node: Node<'_>) -> Node<'_> {
    match node {
        Node::Object(object) => Node::Object(strip(object)),
        other => other,
    }
}

/// The contract's "strip-prefix": `@x` becomes `x`, `#text` becomes `name` unless there is one.
fn strip(object: Object<'_>) -> Object<'_> {
    if !object.entries().iter().any(|(key, _)| key.starts_with(['@', '#'])) {
        return object;
    }
    let mut out = Object::default();
    let mut text = None;
    // In this order a child wins over an attribute of the same name.
    for (key, value) in object.into_sorted() {
        match key {
            key if key == "#text" => text = Some(value),
            Cow::Borrowed(key) => out.insert(key.strip_prefix('@').unwrap_or(key), value),
            Cow::Owned(key) => match key.strip_prefix('@') {
                Some(name) => out.insert(name.to_owned(), value),
                None => out.insert(key, value),
            },
        }
    }
    if let Some(text) = text
        && out.get("name").is_none()
    {
        out.insert("name", text);
    }
    out
}
