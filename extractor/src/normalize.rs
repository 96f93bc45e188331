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
fn strip(mut object: Object<'_>) -> Object<'_> {
    if !object.entries().iter().any(|(key, _)| key.starts_with(['@', '#'])) {
        return object;
    }
    // A child wins over an attribute of the same name.
    let child = |name: &str| !name.starts_with('@') && object.get(name).is_some();
    let beaten = |(key, _): &&(Cow<'_, str>, Node<'_>)| key.strip_prefix('@').is_some_and(child);
    let beaten: Vec<String> = object.entries().iter().filter(beaten).map(|(key, _)| key.to_string()).collect();
    for attribute in beaten {
        object.remove(&attribute);
    }
    object.rename(|key| key.strip_prefix('@'));
    if object.get("name").is_some() {
        object.remove("#text");
    } else {
        object.rename(|key| (key == "#text").then_some("name"));
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jsonl;
    use crate::testing::{json, real_files};

    fn normal(data_type: DataType, text: &str) -> String {
        let Node::Object(record) = jsonl::parse(text).unwrap() else { panic!("{text}") };
        json(normalize(data_type, record))
    }

    #[test]
    fn item_lists_are_lists_of_objects() {
        // In each type's lists, with the key that their items have in the XML.
        for (data_type, field, key) in [
            (DataType::Artists, "members", "name"),
            (DataType::Artists, "groups", "name"),
            (DataType::Artists, "aliases", "name"),
            (DataType::Labels, "sublabels", "label"),
            (DataType::Masters, "artists", "artist"),
            (DataType::Releases, "artists", "artist"),
            (DataType::Releases, "labels", "label"),
            (DataType::Releases, "extraartists", "artist"),
        ] {
            for (container, expected) in [
                ("null", ""),
                ("[]", ""),
                ("{}", ""),
                (r#"{"other":"x"}"#, ""),
                (r#"{"K":null}"#, ""),
                (r#"{"K":[]}"#, ""),
                (r##"{"K":{"@id":"1","#text":"A"}}"##, r#"[{"id":"1","name":"A"}]"#),
                (
                    r##"{"K":[null,{"id":"1","name":"A","#text":"B"},"C",[]],"other":"x"}"##,
                    r#"[null,{"id":"1","name":"A"},{"id":"C"},[]]"#,
                ),
                (r#"{"K":"A"}"#, r#"[{"id":"A"}]"#),
                (r#""A""#, r#"[{"id":"A"}]"#),
                (r#"[{"@x":{"@y":"z"}}]"#, r#"[{"x":{"@y":"z"}}]"#),
                ("5", "[5]"),
            ] {
                let container = container.replace('K', key);
                let expected =
                    if expected.is_empty() { "{}".to_owned() } else { format!(r#"{{"{field}":{expected}}}"#) };
                assert_eq!(
                    normal(data_type, &format!(r#"{{"{field}":{container}}}"#)),
                    expected,
                    "{data_type} {container}"
                );
            }
        }
    }

    #[test]
    fn fields_have_the_shapes_of_the_contract() {
        use DataType::{Artists, Labels, Masters, Releases};
        for (data_type, record, expected) in [
            // What is not listed in the contract stays raw.
            (
                Artists,
                r#"{"@id":"1","urls":{"url":"x"},"images":{"image":{"@uri":""}},"genres":"x"}"#,
                r#"{"@id":"1","genres":"x","images":{"image":{"@uri":""}},"urls":{"url":"x"}}"#,
            ),
            (Labels, r##"{"parentLabel":{"@id":"1","#text":"P"}}"##, r#"{"parentLabel":{"id":"1","name":"P"}}"#),
            (Labels, r#"{"parentLabel":"P"}"#, r#"{"parentLabel":"P"}"#),
            (Labels, r#"{"parentLabel":null,"aliases":null}"#, r#"{"aliases":null,"parentLabel":null}"#),
            (
                Masters,
                r##"{"@id":"1","#text":"x","videos":{"video":{"@src":"y"}}}"##,
                r#"{"id":"1","name":"x","videos":{"video":{"@src":"y"}}}"#,
            ),
            (Masters, r##"{"#text":"x","name":"y"}"##, r#"{"name":"y"}"#),
            (
                Masters,
                r#"{"genres":{"genre":"A"},"styles":{"style":["B",null]},"formats":null}"#,
                r#"{"formats":null,"genres":["A"],"styles":["B",null]}"#,
            ),
            (Masters, r#"{"genres":{"style":"A"},"styles":null}"#, "{}"),
            (Masters, r#"{"genres":"A","styles":["B"]}"#, r#"{"genres":["A"],"styles":["B"]}"#),
            (Releases, r#"{"@id":"1","@status":"Accepted","id":"2"}"#, r#"{"id":"2","status":"Accepted"}"#),
            (
                Releases,
                r##"{"formats":{"format":[{"@name":"CD","@qty":"1","descriptions":{"description":"x"},"#text":"t"},"x",null]}}"##,
                r#"{"formats":[{"descriptions":{"description":"x"},"name":"CD","qty":"1"},"x",null]}"#,
            ),
            (
                Releases,
                r#"{"formats":{"format":{"@name":"CD"}},"genres":{"genre":["A"]},"styles":{}}"#,
                r#"{"formats":[{"name":"CD"}],"genres":["A"]}"#,
            ),
            (Releases, r##"{"master_id":{"@is_main_release":"true","#text":"5"}}"##, r#"{"master_id":"5"}"#),
            (Releases, r#"{"master_id":{"id":"5"}}"#, r#"{"master_id":"5"}"#),
            (Releases, r#"{"master_id":{"@is_main_release":"true"}}"#, r#"{"master_id":null}"#),
            (Releases, r#"{"master_id":"5"}"#, r#"{"master_id":"5"}"#),
            (
                Releases,
                r#"{"tracklist":{"track":{"extraartists":{"artist":{"@x":"1"}}}},"companies":{"company":[]},"images":null}"#,
                r#"{"companies":{"company":[]},"images":null,"tracklist":{"track":{"extraartists":{"artist":{"@x":"1"}}}}}"#,
            ),
        ] {
            assert_eq!(normal(data_type, record), expected, "{data_type} {record}");
            assert_eq!(normal(data_type, expected), expected, "again: {record}");
        }
    }

    #[test]
    fn what_is_normal_stays_as_it_is() {
        for file in real_files("what_is_normal_stays_as_it_is") {
            for line in std::str::from_utf8(&file.messages).unwrap().lines() {
                let Node::Object(mut record) = jsonl::parse(line).unwrap() else { panic!("{line}") };
                let before = json(record.clone());
                record = normalize(file.data_type, record);
                assert_eq!(json(record), before);
            }
        }
    }
}
