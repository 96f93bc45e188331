//! What the graph needs of a record. Misshapen items are skipped, the record is written (contract, appendix D).

use common::DataType;
use common::message::{Data, Object};
use common::year;
use neo4rs::BoltType;
use serde_json::Value;

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
            members: ids(&object.value("members")),
            groups: ids(&object.value("groups")),
            aliases: ids(&object.value("aliases")),
        }),
        DataType::Labels => Payload::Label(Label {
            name: property(object, "name"),
            parent: linked(&object.value("parentLabel")),
            sublabels: ids(&object.value("sublabels")),
        }),
        DataType::Masters => Payload::Master(work(object, "year")),
        DataType::Releases => Payload::Release(work(object, "released"), edition(object)),
    }
}

fn work(object: &Object<'_>, year_member: &str) -> Work {
    let genres = object.value("genres");
    let single = match &genres {
        Value::String(_) => true,
        Value::Array(items) => items.len() == 1, // an empty or null entry counts here too (contract §5.5)
        _ => false,
    };
    let genres = words(genres);
    Work {
        title: property(object, "title"),
        year: year::parse(object.get(year_member)),
        artists: ids(&object.value("artists")),
        only_genre: genres.first().filter(|_| single).cloned(),
        genres,
        styles: words(object.value("styles")),
    }
}

fn edition(object: &Object<'_>) -> Edition {
    let labels = object.value("labels");
    let formats = object.value("formats");
    let extraartists = object.value("extraartists");
    Edition {
        formats: objects(&formats).filter_map(|f| text(f.get("name"))).collect(),
        catalog_number: objects(&labels).next().and_then(|l| text(l.get("catno"))),
        labels: ids(&labels),
        master: id(&object.value("master_id")),
        credits: objects(&extraartists)
            .filter_map(|c| Some(Credit { name: text(c.get("name"))?, role: text(c.get("role"))?, artist: linked(c) }))
            .collect(),
    }
}

/// A scalar as node property. Objects and arrays are none.
fn property(object: &Object<'_>, key: &str) -> Option<BoltType> {
    match object.value(key) {
        Value::String(s) => Some(s.into()),
        Value::Bool(b) => Some(b.into()),
        Value::Number(n) if n.is_i64() => n.as_i64().map(BoltType::from),
        Value::Number(n) => object
            .text(key)
            .filter(|digits| digits.contains(['.', 'e', 'E'])) // Neo4j has no integers beyond 64 bits
            .and_then(|_| n.as_f64().map(BoltType::from)),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// The object items of a list; anything else is skipped.
fn objects(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten().filter(|item| item.is_object())
}

/// The usable ids of the items of a list, each once.
fn ids(value: &Value) -> Vec<String> {
    distinct(objects(value).filter_map(linked))
}

/// The usable id of an object.
fn linked(item: &Value) -> Option<String> {
    id(item.get("id")?)
}

/// A usable id: `"0"` means "not linked" in the dumps and makes no node and no edge.
fn id(value: &Value) -> Option<String> {
    let id = match value {
        Value::String(s) => s.clone(),
        Value::Number(n) if n.is_i64() || n.is_u64() => n.to_string(),
        _ => return None,
    };
    (!id.is_empty() && id != "0").then_some(id)
}

/// A non-empty string.
fn text(value: Option<&Value>) -> Option<String> {
    value?.as_str().filter(|s| !s.is_empty()).map(str::to_owned)
}

/// The non-empty strings of a list, each once; one string counts as a list of one.
fn words(value: Value) -> Vec<String> {
    match value {
        Value::String(s) => distinct(std::iter::once(s).filter(|s| !s.is_empty())),
        Value::Array(items) => distinct(items.iter().filter_map(|item| text(Some(item)))),
        _ => Vec::new(),
    }
}

/// Keeps the first of equal ones. Lists are short: a few entries, at worst some hundred.
fn distinct(items: impl Iterator<Item = String>) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for item in items {
        if !out.contains(&item) {
            out.push(item);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::message::{Message, decode};

    fn payload(data_type: DataType, body: &str) -> Payload {
        match decode(body.as_bytes()) {
            Ok(Message::Data(data)) => extract(data_type, &data),
            other => panic!("{other:?}"),
        }
    }

    fn release(body: &str) -> (Work, Edition) {
        match payload(DataType::Releases, body) {
            Payload::Release(work, edition) => (work, edition),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn null_items_strings_and_zero_ids_are_skipped() {
        let body =
            r#"{"id":"1","members":[null,{"id":"2"},"x",{"id":"0"},{"id":3},{"name":"no id"},{"id":"2"},{"id":""}]}"#;
        let Payload::Artist(artist) = payload(DataType::Artists, body) else { panic!() };
        assert_eq!(artist.members, ["2", "3"]);
        let Payload::Label(label) =
            payload(DataType::Labels, r#"{"id":"1","parentLabel":"EMI","sublabels":{"id":"5"}}"#)
        else {
            panic!()
        };
        assert_eq!((label.parent, label.sublabels), (None, vec![]));
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
    }
}
