//! The states that a set of messages must end in, computed from the messages alone (contract §2 to §5 and Appendix D).
//! Shares no code with the workers but the names of the types.
//!
//! Where the contract is silent: an `id` that is neither a string nor an integer is none; format names, catalogue numbers,
//! and names and roles of credits count only as strings; a `name` or `title` that no property can hold (an object, a list
//! of anything but strings, an integer beyond 64 bits) is left out; NUL is replaced in `data_id` and `hash` too.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use chrono::Datelike;
use common::DataType;
use serde_json::value::RawValue;
use serde_json::{Map, Number, Value, json};

/// The four data types, in the project's order; the names of tables and queues.
pub const TYPES: [&str; 4] = ["artists", "labels", "masters", "releases"];

/// Per type (table) the rows by `data_id`.
pub type Tables = BTreeMap<String, BTreeMap<String, Row>>;
/// The properties (a JSON object) of each node, by label and key. The key is the property `id` or `name`.
pub type Nodes = BTreeMap<(String, String), Value>;
/// All relationships.
pub type Rels = BTreeSet<Rel>;

/// Message bodies per type, in order of arrival.
#[derive(Clone, Debug, Default)]
pub struct Messages {
    /// Bodies of the queue `artists`.
    pub artists: Vec<Vec<u8>>,
    /// Bodies of the queue `labels`.
    pub labels: Vec<Vec<u8>>,
    /// Bodies of the queue `masters`.
    pub masters: Vec<Vec<u8>>,
    /// Bodies of the queue `releases`.
    pub releases: Vec<Vec<u8>>,
}

impl Messages {
    /// Those of one type.
    pub fn of(&mut self, data_type: DataType) -> &mut Vec<Vec<u8>> {
        match data_type {
            DataType::Artists => &mut self.artists,
            DataType::Labels => &mut self.labels,
            DataType::Masters => &mut self.masters,
            DataType::Releases => &mut self.releases,
        }
    }
}

/// A state of all tables and of the graph.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Expected {
    /// The rows.
    pub tables: Tables,
    /// The nodes.
    pub nodes: Nodes,
    /// The relationships.
    pub rels: Rels,
}

/// A row of a table, without its id and `updated_at`.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Column `hash`.
    pub hash: String,
    /// Column `data`, as [`as_jsonb`] makes it, so that `==` compares numbers by their exact value.
    pub data: Value,
}

/// A relationship.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rel {
    /// Its type, e.g. `BY`.
    pub kind: String,
    /// Label of the node that it starts at.
    pub from_label: String,
    /// Key of the node that it starts at.
    pub from_key: String,
    /// Label of the node that it leads to.
    pub to_label: String,
    /// Key of the node that it leads to.
    pub to_key: String,
    /// Its properties as compact JSON with sorted keys, see [`canonical`].
    pub props: String,
}

/// The state after these messages, before any completion signal. Control messages and what belongs into a dead-letter
/// queue (no JSON object, no usable id) are skipped; the last message of an id decides everything about it.
pub fn expected(messages: &Messages) -> Expected {
    let artists = records(&messages.artists, None);
    let labels = records(&messages.labels, None);
    let masters = records(&messages.masters, Some("year"));
    let releases = records(&messages.releases, Some("released"));

    let mut graph = Graph::default();
    artists.iter().for_each(|(id, record)| graph.artist(id, record));
    labels.iter().for_each(|(id, record)| graph.label(id, record));
    masters.iter().for_each(|(id, record)| graph.work("Master", id, record));
    releases.iter().for_each(|(id, record)| graph.work("Release", id, record));
    for (id, record) in &releases {
        graph.release(id, record);
    }
    // Last, as it asks which artists exist in the end.
    for credit in releases.values().flat_map(|record| objects(record, "extraartists")) {
        let artist = linked(credit).filter(|id| graph.nodes.contains_key(&("Artist".to_owned(), id.clone())));
        if let (Some((name, _)), Some(artist)) = (credited(credit), artist) {
            graph.rel("SAME_AS", ("Person", name), ("Artist", &artist));
        }
    }

    let tables = TYPES.into_iter().zip([artists, labels, masters, releases]).map(|(name, records)| {
        let rows = records.into_iter().map(|(id, record)| {
            let hash = without_nul(&hash(&record));
            let data = as_jsonb(Value::Object(record));
            (without_nul(&id), Row { hash, data })
        });
        (name.to_owned(), rows.collect())
    });
    Expected {
        tables: tables.collect(),
        nodes: graph.nodes.into_iter().map(|(node, props)| (node, Value::Object(props))).collect(),
        rels: graph.rels,
    }
}

/// The state after all completion signals: isolated stubs are gone, statistics are set.
pub fn maintained(expected: &Expected) -> Expected {
    let mut after = expected.clone();
    let connected: BTreeSet<(&str, &str)> =
        expected.rels.iter().flat_map(|r| [(&*r.from_label, &*r.from_key), (&*r.to_label, &*r.to_key)]).collect();
    after.nodes.retain(|(label, key), props| {
        let stub = key_name(label) == "id" && props.get("sha256").is_none();
        !stub || connected.contains(&(label, key))
    });
    set_statistics(&mut after.nodes, &after.rels);
    after
}

/// Names of the properties that [`set_statistics`] sets.
pub(crate) const STATISTICS: [&str; 6] =
    ["release_count", "artist_count", "label_count", "genre_count", "style_count", "first_year"];

/// Replaces the statistics of all genres, styles and labels by those of this graph (contract §5.9).
pub(crate) fn set_statistics(nodes: &mut Nodes, rels: &Rels) {
    let mut targets: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new(); // of a release, by label
    let mut releases: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new(); // at a node
    for rel in rels.iter().filter(|r| r.from_label == "Release") {
        if matches!((&*rel.kind, &*rel.to_label), ("BY", "Artist") | ("ON", "Label") | ("IS", "Genre" | "Style")) {
            targets.entry((&rel.from_key, &rel.to_label)).or_default().insert(&rel.to_key);
            releases.entry((&rel.to_label, &rel.to_key)).or_default().insert(&rel.from_key);
        }
    }
    let years: BTreeMap<String, i64> = nodes
        .iter()
        .filter(|((label, _), _)| label == "Release")
        .filter_map(|((_, key), props)| Some((key.clone(), props.get("year")?.as_i64().filter(|&year| year > 0)?)))
        .collect();

    let none = BTreeSet::new();
    for ((label, key), props) in nodes {
        let others: &[(&str, &str)] = match label.as_str() {
            "Genre" => &[("artist_count", "Artist"), ("label_count", "Label"), ("style_count", "Style")],
            "Style" => &[("artist_count", "Artist"), ("label_count", "Label"), ("genre_count", "Genre")],
            "Label" => &[("artist_count", "Artist"), ("genre_count", "Genre")],
            _ => continue,
        };
        let Value::Object(props) = props else { continue };
        props.retain(|name, _| !STATISTICS.contains(&name.as_str()));
        let here = releases.get(&(label, key)).unwrap_or(&none);
        props.insert("release_count".to_owned(), json!(here.len()));
        for &(name, other) in others {
            let distinct: BTreeSet<_> = here.iter().filter_map(|&r| targets.get(&(r, other))).flatten().collect();
            props.insert(name.to_owned(), json!(distinct.len()));
        }
        let first = here.iter().filter_map(|&release| years.get(release)).min();
        if let Some(first) = first.filter(|_| label != "Label") {
            props.insert("first_year".to_owned(), json!(first));
        }
    }
}

/// The property that is the key of nodes of this label.
pub(crate) fn key_name(label: &str) -> &'static str {
    if matches!(label, "Genre" | "Style" | "Person") { "name" } else { "id" }
}

type Record = Map<String, Value>;

/// The records of one type by id. `year` of it is what the member `year_of` states.
fn records(bodies: &[Vec<u8>], year_of: Option<&str>) -> BTreeMap<String, Record> {
    let mut records = BTreeMap::new();
    for body in bodies {
        let Some(Value::Object(mut record)) = std::str::from_utf8(body).ok().and_then(exact_json) else { continue };
        let control =
            matches!(record.get("type").and_then(Value::as_str), Some("file_complete" | "extraction_complete"));
        let Some(id) = text(record.get("id")).filter(|_| !control) else { continue };
        if let Some(field) = year_of {
            let year = year(record.get(field));
            record.insert("year".to_owned(), json!(year));
        }
        records.insert(id, record);
    }
    records
}

#[derive(Default)]
struct Graph {
    nodes: BTreeMap<(String, String), Record>,
    rels: Rels,
}

impl Graph {
    fn node(&mut self, label: &str, key: &str) -> &mut Record {
        self.nodes
            .entry((label.to_owned(), key.to_owned()))
            .or_insert_with(|| Record::from_iter([(key_name(label).to_owned(), json!(key))]))
    }

    fn rel(&mut self, kind: &str, from: (&str, &str), to: (&str, &str)) {
        self.rel_with(kind, from, to, &Record::new());
    }

    /// Both ends come into being with it.
    fn rel_with(&mut self, kind: &str, from: (&str, &str), to: (&str, &str), props: &Record) {
        self.node(from.0, from.1);
        self.node(to.0, to.1);
        self.rels.insert(Rel {
            kind: kind.to_owned(),
            from_label: from.0.to_owned(),
            from_key: from.1.to_owned(),
            to_label: to.0.to_owned(),
            to_key: to.1.to_owned(),
            props: canonical(props),
        });
    }

    /// The node of a record, with the properties that all have.
    fn record_node(&mut self, label: &str, id: &str, record: &Record, title: &str) -> &mut Record {
        let node = self.node(label, id);
        node.insert("sha256".to_owned(), json!(hash(record)));
        if let Some(value) = record.get(title).filter(|v| is_property(v)) {
            node.insert(title.to_owned(), value.clone());
        }
        node
    }

    fn artist(&mut self, id: &str, record: &Record) {
        let url = format!("https://api.discogs.com/artists/{id}");
        let node = self.record_node("Artist", id, record, "name");
        node.insert("releases_url".to_owned(), json!(format!("{url}/releases")));
        node.insert("resource_url".to_owned(), json!(url));
        for (field, kind, inward) in
            [("members", "MEMBER_OF", true), ("groups", "MEMBER_OF", false), ("aliases", "ALIAS_OF", true)]
        {
            for other in objects(record, field).filter_map(linked) {
                let (from, to) = if inward { (&*other, id) } else { (id, &*other) };
                self.rel(kind, ("Artist", from), ("Artist", to));
            }
        }
    }

    fn label(&mut self, id: &str, record: &Record) {
        self.record_node("Label", id, record, "name");
        if let Some(parent) = record.get("parentLabel").and_then(Value::as_object).and_then(linked) {
            self.rel("SUBLABEL_OF", ("Label", id), ("Label", &parent));
        }
        for sublabel in objects(record, "sublabels").filter_map(linked) {
            self.rel("SUBLABEL_OF", ("Label", &sublabel), ("Label", id));
        }
    }

    /// What masters and releases have in common.
    fn work(&mut self, label: &str, id: &str, record: &Record) {
        let node = self.record_node(label, id, record, "title");
        if let Some(year) = record.get("year").filter(|year| !year.is_null()) {
            node.insert("year".to_owned(), year.clone());
        }
        let this = (label, id);
        for artist in objects(record, "artists").filter_map(linked) {
            self.rel("BY", this, ("Artist", &artist));
        }
        let (genres, styles) = (list(record, "genres"), list(record, "styles"));
        for genre in words(genres) {
            self.rel("IS", this, ("Genre", genre));
        }
        for style in words(styles) {
            self.rel("IS", this, ("Style", style));
            // Only a single genre, whatever the other items are, tells what the style is part of.
            if let (1, Some(genre)) = (genres.len(), words(genres).next()) {
                self.rel("PART_OF", ("Style", style), ("Genre", genre));
            }
        }
    }

    /// What only releases have.
    fn release(&mut self, id: &str, record: &Record) {
        let this = ("Release", id);
        let formats: Vec<_> = objects(record, "formats").filter_map(|format| word(format.get("name"))).collect();
        let catalog_number = objects(record, "labels").next().and_then(|label| word(label.get("catno")));
        let node = self.node("Release", id);
        node.insert("formats".to_owned(), json!(formats));
        if let Some(number) = catalog_number {
            node.insert("catalog_number".to_owned(), json!(number));
        }
        for label in objects(record, "labels").filter_map(linked) {
            self.rel("ON", this, ("Label", &label));
        }
        if let Some(master) = text(record.get("master_id")).filter(|id| id != "0") {
            self.rel("DERIVED_FROM", this, ("Master", &master));
        }
        for (name, role) in objects(record, "extraartists").filter_map(credited) {
            let props = [("role", role), ("category", category(role))].map(|(k, v)| (k.to_owned(), json!(v)));
            self.rel_with("CREDITED_ON", ("Person", name), this, &Record::from_iter(props));
        }
    }
}

fn hash(record: &Record) -> String {
    text(record.get("sha256")).unwrap_or_default()
}

/// The objects in a list; whatever else it holds is skipped, as is anything but a list.
fn objects<'a>(record: &'a Record, field: &str) -> impl Iterator<Item = &'a Record> {
    let list = record.get(field).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_object)
}

/// A list; a string counts as a list of one.
fn list<'a>(record: &'a Record, field: &str) -> &'a [Value] {
    match record.get(field) {
        Some(Value::Array(items)) => items,
        Some(one @ Value::String(_)) => std::slice::from_ref(one),
        _ => &[],
    }
}

fn words(list: &[Value]) -> impl Iterator<Item = &str> {
    list.iter().filter_map(|item| word(Some(item)))
}

fn word(value: Option<&Value>) -> Option<&str> {
    value?.as_str().filter(|text| !text.is_empty() && !text.starts_with(INTEGER))
}

/// A string or an integer, as text, unless it is `""` or 0.
fn text(value: Option<&Value>) -> Option<String> {
    let text = match value? {
        Value::Number(number) if !number.is_f64() && number.as_i64() != Some(0) => number.to_string(),
        Value::String(text) => text.trim_start_matches(INTEGER).to_owned(),
        _ => return None,
    };
    (!text.is_empty()).then_some(text)
}

/// The id of a linked item; "0" means "not linked".
fn linked(item: &Record) -> Option<String> {
    text(item.get("id")).filter(|id| id != "0")
}

fn credited(credit: &Record) -> Option<(&str, &str)> {
    Some((word(credit.get("name"))?, word(credit.get("role"))?))
}

fn is_property(value: &Value) -> bool {
    match value {
        Value::Null | Value::Object(_) => false,
        Value::Array(items) => items.iter().all(Value::is_string),
        Value::String(text) => !text.starts_with(INTEGER),
        Value::Number(number) => number.is_i64() || number.is_f64(),
        Value::Bool(_) => true,
    }
}

const CATEGORIES: [(&str, &str); 6] = [
    ("production", "producer|executive producer|co-producer|executive-producer|produced by|co-produced by"),
    (
        "engineering",
        "engineer|recorded by|mixed by|mixed at|remix|remixed by|recording engineer|mixing engineer|\
        sound engineer|audio engineer|assistant engineer",
    ),
    ("mastering", "mastered by|mastered at|lacquer cut by|cut by|mastering engineer|remastered by"),
    (
        "session",
        "bass|guitar|drums|keyboards|piano|percussion|saxophone|trumpet|violin|viola|cello|flute|organ|\
        synthesizer|vocals|backing vocals|lead vocals|strings|horns|harmonica|banjo|mandolin|harp|clarinet|oboe|\
        trombone|tuba|accordion|tabla|sitar|congas|bongos|session musician|featuring",
    ),
    (
        "design",
        "artwork|artwork by|design|designed by|photography|photography by|liner notes|cover|layout|\
        illustration|art direction",
    ),
    ("management", "a&r|management|managed by|booking|booked by|a & r"),
];

/// That of the longest fragment that the role contains, of equally long ones the alphabetically first (contract §5.8).
/// A role that is a fragment needs no rule of its own: it contains no longer one.
fn category(role: &str) -> &'static str {
    let role = role.to_lowercase();
    CATEGORIES
        .iter()
        .flat_map(|(category, fragments)| fragments.split('|').map(move |fragment| (fragment, *category)))
        .filter(|(fragment, _)| role.contains(fragment))
        .min_by_key(|(fragment, _)| (Reverse(fragment.len()), *fragment))
        .map_or("other", |(_, category)| category)
}

/// A year between 1860 and next year: an integer as it is, else the first four characters (contract §3).
fn year(value: Option<&Value>) -> Option<i64> {
    let year = match value? {
        // From 10^16 on the text of a float, as the rule means it, has an exponent and so no four digits in front.
        Value::Number(float) if float.is_f64() => first_four(&float.as_f64().filter(|&f| f < 1e16)?.to_string())?,
        Value::Number(integer) => integer.as_i64()?,
        Value::String(text) => first_four(text)?,
        _ => return None,
    };
    (1860..=i64::from(chrono::Utc::now().year()) + 1).contains(&year).then_some(year)
}

/// All four must be digits: with a sign, a space or an underscore the number is below 1860.
fn first_four(text: &str) -> Option<i64> {
    // U+001C to U+001F are space to Python.
    let mut chars = text.trim_start_matches(|c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)).chars();
    (0..4).try_fold(0, |number, _| Some(number * 10 + digit(chars.next()?)?))
}

/// The value of a decimal digit of any script (Unicode's category Nd, of which these are the zeros).
fn digit(c: char) -> Option<i64> {
    const ZEROS: [u32; 68] = [
        0x30, 0x660, 0x6F0, 0x7C0, 0x966, 0x9E6, 0xA66, 0xAE6, 0xB66, 0xBE6, 0xC66, 0xCE6, 0xD66, 0xDE6, 0xE50, 0xED0,
        0xF20, 0x1040, 0x1090, 0x17E0, 0x1810, 0x1946, 0x19D0, 0x1A80, 0x1A90, 0x1B50, 0x1BB0, 0x1C40, 0x1C50, 0xA620,
        0xA8D0, 0xA900, 0xA9D0, 0xA9F0, 0xAA50, 0xABF0, 0xFF10, 0x104A0, 0x10D30, 0x11066, 0x110F0, 0x11136, 0x111D0,
        0x112F0, 0x11450, 0x114D0, 0x11650, 0x116C0, 0x11730, 0x118E0, 0x11950, 0x11C50, 0x11D50, 0x11DA0, 0x11F50,
        0x16A60, 0x16AC0, 0x16B50, 0x1D7CE, 0x1D7D8, 0x1D7E2, 0x1D7EC, 0x1D7F6, 0x1E140, 0x1E2F0, 0x1E4F0, 0x1E950,
        0x1FBF0,
    ];
    let zero = ZEROS[..].iter().rfind(|&&zero| zero <= u32::from(c))?;
    Some(i64::from(u32::from(c) - zero)).filter(|&value| value < 10)
}

/// Compact JSON with sorted keys, for flat objects.
pub fn canonical(object: &Map<String, Value>) -> String {
    let sorted: BTreeMap<_, _> = object.iter().collect();
    serde_json::to_string(&sorted).unwrap_or_default()
}

// A `Value` can't hold integers beyond 64 bits. They are held as strings: this mark and the digits.
const INTEGER: &str = "\0integer:";

/// Parses JSON without loss of integers (fractions are rounded to 64 bits): one that a [`Value`] can't hold becomes a marked
/// string. `None`: no JSON, a lone surrogate, or deeper than a thousand levels. The last of equal keys wins.
pub fn exact_json(text: &str) -> Option<Value> {
    exact(text.trim_matches([' ', '\t', '\n', '\r']), 1000)
}

fn exact(text: &str, levels: usize) -> Option<Value> {
    let inner = |raw: &RawValue| exact(raw.get(), levels.checked_sub(1)?);
    match text.as_bytes().first()? {
        b'{' => {
            let members: BTreeMap<String, &RawValue> = serde_json::from_str(text).ok()?;
            members.into_iter().map(|(key, raw)| Some((key, inner(raw)?))).collect::<Option<_>>().map(Value::Object)
        }
        b'[' => {
            let items: Vec<&RawValue> = serde_json::from_str(text).ok()?;
            items.into_iter().map(inner).collect::<Option<_>>().map(Value::Array)
        }
        b'-' | b'0'..=b'9' => serde_json::from_str::<&RawValue>(text).ok().map(|raw| number(raw.get())),
        _ => serde_json::from_str(text).ok(),
    }
}

fn number(token: &str) -> Value {
    let integer = token.parse().map(|i: i64| i.into()).or_else(|_| token.parse().map(|u: u64| u.into()));
    let float = || token.contains(['.', 'e', 'E']).then(|| token.parse().ok().and_then(Number::from_f64))?;
    match integer.ok().or_else(float) {
        Some(number) => Value::Number(number),
        None => Value::String(format!("{INTEGER}{token}")),
    }
}

/// A value as PostgreSQL's jsonb holds it: U+FFFD for NUL, and one form for each number, so that 1.0 and 1e0 equal 1.
pub fn as_jsonb(value: Value) -> Value {
    match value {
        Value::String(text) if !text.starts_with(INTEGER) => Value::String(without_nul(&text)),
        // The text of a float has a point if and only if it is no integer.
        Value::Number(float) if float.is_f64() => float.as_f64().map_or(Value::Null, |f| number(&f.to_string())),
        Value::Array(items) => items.into_iter().map(as_jsonb).collect(),
        Value::Object(members) => {
            members.into_iter().map(|(key, value)| (without_nul(&key), as_jsonb(value))).collect()
        }
        other => other,
    }
}

fn without_nul(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests {
    use super::*;

    fn one(kind: &str, bodies: &[&str]) -> Expected {
        let bodies: Vec<_> = bodies.iter().map(|b| b.as_bytes().to_vec()).collect();
        let mut messages = Messages::default();
        match kind {
            "artists" => messages.artists = bodies,
            "masters" => messages.masters = bodies,
            _ => messages.releases = bodies,
        }
        expected(&messages)
    }

    #[test]
    fn what_is_no_record_is_skipped() {
        let bodies = [
            "",
            "{",
            "[]",
            r#"{"id":null}"#,
            r#"{"id":0}"#,
            r#"{"id":""}"#,
            r#"{"id":1.0}"#,
            r#"{"id":["1"]}"#,
            "\u{feff}{}",
            r#"{"id":"1","a":"\ud800"}"#,
            r#"{"id":"1"} x"#,
            r#"{"type":"file_complete","id":"1"}"#,
            r#"{"id":"1","id":null}"#,
        ];
        assert!(one("artists", &bodies).tables["artists"].is_empty());
    }

    #[test]
    fn ids_numbers_and_nul() {
        let big = "123456789012345678901234567890";
        let body = format!(r#"{{"id":{big},"name":"a\u0000","n":[{big},1e2,1.50,-0.0]}}"#);
        let state = one("artists", &[&body, r#"{"id":7,"sha256":null}"#, r#"{"id":"7","sha256":"x","id":7}"#]);
        let rows = &state.tables["artists"];
        assert_eq!(rows["7"], Row { hash: "x".to_owned(), data: json!({"id": 7, "sha256": "x"}) });
        let as_read = format!(r#"{{"id":{big},"name":"a\ufffd","n":[{big}, 100.0,1.5,0]}}"#);
        assert_eq!(Some(&rows[big].data), exact_json(&as_read).map(as_jsonb).as_ref());
        let other = as_read.replace("7890,\"name", "7891,\"name");
        assert_ne!(Some(&rows[big].data), exact_json(&other).map(as_jsonb).as_ref());
        assert_eq!(state.nodes[&("Artist".to_owned(), big.to_owned())]["name"], "a\0");
        assert_eq!(as_jsonb(json!(1e300)), number(&format!("1{}", "0".repeat(300))));
    }

    #[test]
    fn years() {
        let cases = [
            (r#"" 2001 ""#, 2001),
            ("1999.5", 1999),
            (r#""١٩٩٩-01""#, 1999),
            (r#""19690""#, 1969),
            (r#""\u001c1999""#, 1999),
            ("1860", 1860),
            ("1859", 0),
            ("true", 0),
            (r#""+199""#, 0),
            (r#""1_99""#, 0),
            ("19690", 0),
            ("2e20", 0),
            (r#""199""#, 0),
        ];
        for (json, year) in cases {
            let state = one("masters", &[&format!(r#"{{"id":"1","year":{json}}}"#)]);
            let expected = if year == 0 { Value::Null } else { json!(year) };
            assert_eq!(state.tables["masters"]["1"].data["year"], expected, "{json}");
        }
    }

    #[test]
    fn misshapen_items_zero_ids_and_single_strings() {
        let state = one(
            "releases",
            &[r#"{"id":"1","title":{"a":1},"genres":"Rock","styles":["Punk",null,""],"master_id":"0","labels":[null,
            {"id":"0","catno":"C1"}],"formats":[{"name":null},{"name":"LP"},"x"],"artists":{"id":"9"},"extraartists":[{"name":"P","role":"Bass"}]}"#],
        );
        let node = json!({"id": "1", "sha256": "", "formats": ["LP"], "catalog_number": "C1"});
        assert_eq!(state.nodes[&("Release".to_owned(), "1".to_owned())], node);
        let kinds: Vec<_> = state.rels.iter().map(|r| (&*r.kind, &*r.to_key, &*r.props)).collect();
        let credit = r#"{"category":"session","role":"Bass"}"#;
        assert_eq!(
            kinds,
            [("CREDITED_ON", "1", credit), ("IS", "Rock", "{}"), ("IS", "Punk", "{}"), ("PART_OF", "Rock", "{}")]
        );
    }

    #[test]
    fn categories_of_the_contract() {
        for (role, expected) in [
            ("Recorded By, Mastered By", "mastering"),
            ("Guitar, Producer", "production"),
            ("Engineer [Mastering]", "engineering"),
            ("Lacquer Cut By, Mastering Engineer", "mastering"),
            ("Organized By", "session"),
            ("Discovery By", "design"),
            ("Drum Programming", "other"),
            ("Percussion, Co-producer", "production"),
            (" A&R ", "management"),
        ] {
            assert_eq!(category(role), expected, "{role}");
        }
    }
}
