//! What the graph needs of a record. Misshapen items are skipped, the record is written (contract, appendix D).

use std::collections::HashSet;
use std::sync::OnceLock;

use common::DataType;
use common::message::{Data, Message, Object, decode, items, objects, text};
use common::sink::Record;
use common::year;
use neo4rs::BoltType;
use serde_json::Value;
use serde_json::value::RawValue;

/// A record for the graph.
#[derive(Clone, Debug, PartialEq)]
pub enum Payload {
    /// An artist.
    Artist(Artist),
    /// A label.
    Label(Label),
    /// A master; the fields that only releases have are empty.
    Master(Work),
    /// A release.
    Release(Work, Edition),
}

impl Payload {
    /// What a record brings that has nothing.
    pub fn nothing(data_type: DataType) -> Payload {
        match data_type {
            DataType::Artists => Payload::Artist(Artist::default()),
            DataType::Labels => Payload::Label(Label::default()),
            DataType::Masters => Payload::Master(Work::default()),
            DataType::Releases => Payload::Release(Work::default(), Edition::default()),
        }
    }
}

/// A [`Payload`] that is taken out of the record's body when it is first asked for: most records of a monthly update are unchanged, and nobody
/// asks.
#[derive(Debug)]
pub struct Deferred {
    data_type: DataType,
    payload: OnceLock<Payload>,
}

impl Deferred {
    /// Of a record of this type.
    pub fn new(data_type: DataType) -> Deferred {
        Deferred { data_type, payload: OnceLock::new() }
    }
}

/// What this record brings.
pub fn payload(record: &Record<Deferred>) -> &Payload {
    let Deferred { data_type, payload } = &record.payload;
    payload.get_or_init(|| match decode(&record.body) {
        Ok(Message::Data(data)) => extract(*data_type, &data),
        // (The body was decoded before, or this would be no record.)
        Ok(Message::Control(_)) | Err(_) => Payload::nothing(*data_type),
    })
}

/// What an artist brings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Artist {
    /// `name`.
    pub name: Option<BoltType>,
    /// Ids of the members of this group.
    pub members: Vec<String>,
    /// Ids of the groups that it belongs to.
    pub groups: Vec<String>,
    /// Ids of its aliases.
    pub aliases: Vec<String>,
}

impl Artist {
    /// Ids of all that it refers to.
    pub fn relatives(&self) -> impl Iterator<Item = &String> {
        [&self.members, &self.groups, &self.aliases].into_iter().flatten()
    }
}

/// What a label brings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Label {
    /// `name`.
    pub name: Option<BoltType>,
    /// Id of the parent label.
    pub parent: Option<String>,
    /// Ids of the sublabels.
    pub sublabels: Vec<String>,
}

/// What masters and releases have in common.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Work {
    /// `title`.
    pub title: Option<BoltType>,
    /// Year, normalised.
    pub year: Option<i32>,
    /// Ids of the artists.
    pub artists: Vec<String>,
    /// Genre names.
    pub genres: Vec<String>,
    /// Style names.
    pub styles: Vec<String>,
    /// The genre that all styles belong to: only a record with exactly one says so.
    pub only_genre: Option<String>,
}

/// What only releases have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Edition {
    /// Names of the formats, in order.
    pub formats: Vec<String>,
    /// Catalog number on the first label.
    pub catalog_number: Option<String>,
    /// Ids of the labels.
    pub labels: Vec<String>,
    /// Id of the master.
    pub master: Option<String>,
    /// Credits.
    pub credits: Vec<Credit>,
}

/// A credit on a release.
#[derive(Clone, Debug, PartialEq)]
pub struct Credit {
    /// The person's exact name.
    pub name: String,
    /// The raw role text.
    pub role: String,
    /// Id of the artist that this person is, if the credit is linked.
    pub artist: Option<String>,
}

/// Takes what the graph needs out of a record.
pub fn extract(data_type: DataType, data: &Data<'_>) -> Payload {
    let object = &data.object;
    match data_type {
        DataType::Artists => Payload::Artist(Artist {
            name: property(object, "name"),
            members: ids(object, "members"),
            groups: ids(object, "groups"),
            aliases: ids(object, "aliases"),
        }),
        DataType::Labels => Payload::Label(Label {
            name: property(object, "name"),
            parent: object.get("parentLabel").and_then(Object::parse).and_then(|parent| id(&parent, "id")),
            sublabels: ids(object, "sublabels"),
        }),
        DataType::Masters => Payload::Master(work(object, "year")),
        DataType::Releases => Payload::Release(work(object, "released"), edition(object)),
    }
}

fn work(object: &Object<'_>, year_member: &str) -> Work {
    let genres = words(object, "genres");
    // An empty or null entry counts here too (contract §5.5); one string counts as a list of one.
    let single = string(object, "genres").is_some() || items(object.get("genres")).len() == 1;
    Work {
        title: property(object, "title"),
        year: year::parse(object.get(year_member)),
        artists: ids(object, "artists"),
        only_genre: genres.first().filter(|_| single).cloned(),
        genres,
        styles: words(object, "styles"),
    }
}

fn edition(object: &Object<'_>) -> Edition {
    let labels = objects(object.get("labels"));
    Edition {
        formats: objects(object.get("formats")).iter().filter_map(|f| string(f, "name")).collect(),
        catalog_number: labels.first().and_then(|label| string(label, "catno")),
        labels: usable(&labels),
        master: id(object, "master_id"),
        credits: objects(object.get("extraartists"))
            .iter()
            .filter_map(|c| Some(Credit { name: string(c, "name")?, role: string(c, "role")?, artist: id(c, "id") }))
            .collect(),
    }
}

/// A value that Neo4j can hold as a property: a scalar, or a list of strings. Integers beyond 64 bits are none.
fn property(object: &Object<'_>, key: &str) -> Option<BoltType> {
    let raw = object.get(key)?;
    match serde_json::from_str(raw.get()).ok()? {
        Value::String(s) => Some(s.into()),
        Value::Bool(b) => Some(b.into()),
        Value::Number(n) if n.is_i64() => n.as_i64().map(BoltType::from),
        Value::Number(n) => n.as_f64().filter(|_| raw.get().contains(['.', 'e', 'E'])).map(BoltType::from),
        Value::Array(items) => {
            let strings: Option<Vec<BoltType>> = items.iter().map(|item| item.as_str().map(BoltType::from)).collect();
            strings.map(BoltType::from)
        }
        Value::Null | Value::Object(_) => None,
    }
}

/// The usable ids of these items, each once.
fn usable(items: &[Object<'_>]) -> Vec<String> {
    distinct(items.iter().filter_map(|item| id(item, "id")))
}

/// The usable ids of the items of a list, each once.
fn ids(object: &Object<'_>, key: &str) -> Vec<String> {
    usable(&objects(object.get(key)))
}

/// A usable id, as a string: `"0"` means "not linked" in the dumps and makes no node and no edge.
fn id(object: &Object<'_>, key: &str) -> Option<String> {
    let raw = object.get(key)?;
    let text = text(raw)?;
    let is_string = raw.get().starts_with('"');
    let usable = is_string || text.strip_prefix('-').unwrap_or(&text).bytes().all(|b| b.is_ascii_digit());
    (usable && !text.is_empty() && text != "0" && (is_string || text != "-0")).then_some(text)
}

/// A non-empty string.
fn string(object: &Object<'_>, key: &str) -> Option<String> {
    non_empty_string(object.get(key)?)
}

fn non_empty_string(raw: &RawValue) -> Option<String> {
    serde_json::from_str(raw.get()).ok().filter(|s: &String| !s.is_empty())
}

/// The non-empty strings of a list, each once; one string counts as a list of one.
fn words(object: &Object<'_>, key: &str) -> Vec<String> {
    match string(object, key) {
        Some(one) => vec![one],
        None => distinct(items(object.get(key)).into_iter().filter_map(non_empty_string)),
    }
}

/// Keeps the first of equal ones.
fn distinct(items: impl Iterator<Item = String>) -> Vec<String> {
    let mut seen = HashSet::new();
    items.filter(|item| seen.insert(item.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extracted(data_type: DataType, body: &str) -> Payload {
        match decode(body.as_bytes()) {
            Ok(Message::Data(data)) => extract(data_type, &data),
            other => panic!("{other:?}"),
        }
    }

    fn release(body: &str) -> (Work, Edition) {
        match extracted(DataType::Releases, body) {
            Payload::Release(work, edition) => (work, edition),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn null_items_strings_and_zero_ids_are_skipped() {
        let body =
            r#"{"id":"1","members":[null,{"id":"2"},"x",{"id":"0"},{"id":3},{"name":"no id"},{"id":"2"},{"id":""}]}"#;
        let Payload::Artist(artist) = extracted(DataType::Artists, body) else { panic!() };
        assert_eq!(artist.members, ["2", "3"]);
        let Payload::Label(label) =
            extracted(DataType::Labels, r#"{"id":"1","parentLabel":"EMI","sublabels":{"id":"5"}}"#)
        else {
            panic!()
        };
        assert_eq!((label.parent, label.sublabels), (None, vec![]));
    }

    #[test]
    fn an_item_that_no_tree_can_hold_takes_nobody_along() {
        let deep = format!("{}1{}", "[".repeat(300), "]".repeat(300));
        let huge = format!("1{}", "0".repeat(400));
        let body = format!(
            r#"{{"id":"1","members":[{{"id":"2"}},{{"id":"3","n":{huge}}},{{"id":"4","n":{deep}}},{{"id":123456789012345678901234567890}},{{"id":1.5}}]}}"#
        );
        let Payload::Artist(artist) = extracted(DataType::Artists, &body) else { panic!() };
        assert_eq!(artist.members, ["2", "3", "4", "123456789012345678901234567890"]);
    }

    #[test]
    fn one_genre_even_as_a_string_makes_part_of() {
        assert_eq!(release(r#"{"id":"1","genres":"Rock"}"#).0.only_genre.as_deref(), Some("Rock"));
        assert_eq!(release(r#"{"id":"1","genres":["Rock"]}"#).0.only_genre.as_deref(), Some("Rock"));
        let (work, _) = release(r#"{"id":"1","genres":["Rock",null]}"#);
        assert_eq!((work.only_genre, work.genres), (None, vec!["Rock".to_owned()]));
        assert_eq!(release(r#"{"id":"1","genres":[""]}"#).0.only_genre, None);
        assert_eq!(release(r#"{"id":"1","genres":null}"#).0.genres, Vec::<String>::new());
    }

    #[test]
    fn editions() {
        let (_, edition) = release(
            r#"{"id":"1","formats":[{"name":"CD"},{"name":null},null,{"name":"CD"}],"labels":[null,{"catno":"X 1"},{"id":"7","catno":"Y"}],
                "master_id":"0","extraartists":[{"id":"5","name":"P","role":"Bass"},{"name":"Q","role":null},{"name":"R","role":"Mix"}]}"#,
        );
        assert_eq!(edition.formats, ["CD", "CD"]);
        assert_eq!((edition.catalog_number.as_deref(), edition.labels), (Some("X 1"), vec!["7".to_owned()]));
        assert_eq!(edition.master, None);
        let people: Vec<_> = edition.credits.iter().map(|c| (c.name.as_str(), c.artist.as_deref())).collect();
        assert_eq!(people, [("P", Some("5")), ("R", None)]);
    }

    #[test]
    fn properties_keep_their_type_but_objects_are_none() {
        let title = |json: &str| release(&format!(r#"{{"id":"1","title":{json}}}"#)).0.title;
        assert_eq!(title(r#""x\u0000""#), Some("x\0".into()));
        assert_eq!(title("7"), Some(7.into()));
        assert_eq!(title("1.5"), Some(1.5.into()));
        assert_eq!(title("123456789012345678901234567890"), None);
        assert_eq!(title(r#"{"a":1}"#), None);
        assert_eq!(title("null"), None);
        assert_eq!(title(r#"["a","b"]"#), Some(vec!["a", "b"].into()));
        assert_eq!(title(r#"["a",null]"#), None);
    }
}
