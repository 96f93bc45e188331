//! Reads the states of tables and graph, from databases or from files, and compares them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use futures_util::TryStreamExt;
use serde_json::{Map, Value, json};

use crate::oracle::{
    Expected, Messages, Nodes, Rel, Rels, Row, TYPES, Tables, as_jsonb, canonical, exact_json, key_name,
};

/// Any error.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

const LABELS: [&str; 7] = ["Artist", "Label", "Master", "Release", "Genre", "Style", "Person"];
const KINDS: &str = "MEMBER_OF|ALIAS_OF|SUBLABEL_OF|BY|ON|DERIVED_FROM|IS|PART_OF|CREDITED_ON|SAME_AS";

/// The rows of the four tables, `updated_at` aside.
///
/// # Errors
/// What PostgreSQL reports, such as a missing table.
pub async fn read_tables(client: &tokio_postgres::Client) -> Result<Tables, Error> {
    let mut tables = Tables::new();
    for name in TYPES {
        let query = format!("SELECT data_id, hash, data::text FROM {name}");
        let rows = client.query_raw(&query, std::iter::empty::<&str>()).await?;
        let mut rows = std::pin::pin!(rows);
        let table = tables.entry(name.to_owned()).or_default();
        while let Some(row) = rows.try_next().await? {
            let data = exact_json(row.try_get(2)?).ok_or("jsonb that is no JSON")?;
            table.insert(row.try_get(0)?, Row { hash: row.try_get(1)?, data: as_jsonb(data) });
        }
    }
    Ok(tables)
}

/// The nodes with one of the workers' labels, and the relationships of the workers' types between them. Properties whose
/// names begin with `_` are left out.
///
/// # Errors
/// What Neo4j reports; a node without key; two nodes with the same label and key, or two equal relationships.
pub async fn read_graph(graph: &neo4rs::Graph) -> Result<(Nodes, Rels), Error> {
    let (mut nodes, mut rels) = (Nodes::new(), Rels::new());
    // The driver fetches a few hundred rows at a time.
    for label in LABELS {
        let query = format!("MATCH (n:{label}) RETURN properties(n) AS props");
        let mut rows = graph.execute(neo4rs::query(&query)).await?;
        while let Some(row) = rows.next().await? {
            let props = public(row.get("props")?);
            let key = props.get(key_name(label)).and_then(Value::as_str).map(str::to_owned);
            let key = key.ok_or_else(|| format!("{label} without key: {}", canonical(&props)))?;
            if nodes.insert((label.to_owned(), key.clone()), Value::Object(props)).is_some() {
                return Err(format!("two nodes {label} {key}").into());
            }
        }
    }
    let query = format!(
        "MATCH (a)-[r:{KINDS}]->(b) RETURN type(r) AS kind, properties(r) AS props, \
         labels(a) AS from_labels, a.id AS from_id, a.name AS from_name, labels(b) AS to_labels, b.id AS to_id, b.name AS to_name"
    );
    let mut rows = graph.execute(neo4rs::query(&query)).await?;
    while let Some(row) = rows.next().await? {
        let end = |end: &str| -> Result<Option<(String, String)>, Error> {
            let labels: Vec<String> = row.get(&format!("{end}_labels"))?;
            let Some(label) = labels.into_iter().find(|label| LABELS.contains(&&**label)) else { return Ok(None) };
            let key = row.get(&format!("{end}_{}", key_name(&label)))?;
            Ok(Some((label, key)))
        };
        if let (Some((from_label, from_key)), Some((to_label, to_key))) = (end("from")?, end("to")?) {
            let (kind, props) = (row.get("kind")?, canonical(&public(row.get("props")?)));
            let rel = Rel { kind, from_label, from_key, to_label, to_key, props };
            if let Some(twin) = rels.replace(rel) {
                return Err(format!("two relationships {}", show(&twin)).into());
            }
        }
    }
    Ok((nodes, rels))
}

fn public(mut props: Map<String, Value>) -> Map<String, Value> {
    props.retain(|name, _| !name.starts_with('_'));
    props
}

/// The messages `T.MONTH.jsonl.gz` (or without `.gz`) of a directory, for all four types.
///
/// # Errors
/// A file is missing or can't be read.
pub fn load_messages(dir: &Path, month: &str) -> io::Result<Messages> {
    let bodies = |name| -> io::Result<Vec<Vec<u8>>> { lines(dir, &format!("{name}.{month}.jsonl"))?.collect() };
    let (artists, labels) = (bodies("artists")?, bodies("labels")?);
    Ok(Messages { artists, labels, masters: bodies("masters")?, releases: bodies("releases")? })
}

/// A state that `expected.py` wrote: `pg_T.jsonl.gz`, `nodes.jsonl.gz` and `rels.jsonl.gz` (or without `.gz`).
///
/// # Errors
/// A file is missing, can't be read, or is not of that form.
pub fn load_expected(dir: &Path) -> io::Result<Expected> {
    let mut state = Expected::default();
    for name in TYPES {
        let table = state.tables.entry(name.to_owned()).or_default();
        each_line(dir, &format!("pg_{name}.jsonl"), |line| {
            let Value::Object(mut row) = line else { return None };
            let hash = row.get("hash")?.as_str()?.to_owned();
            let id = row.get("data_id")?.as_str()?.to_owned();
            table.insert(id, Row { hash, data: as_jsonb(row.remove("data")?) });
            Some(())
        })?;
    }
    each_line(dir, "nodes.jsonl", |line| {
        let [label, key, props] = line.as_array()?.as_slice() else { return None };
        state.nodes.insert((label.as_str()?.to_owned(), key.as_str()?.to_owned()), props.clone());
        Some(())
    })?;
    each_line(dir, "rels.jsonl", |line| {
        let [names @ .., props] = line.as_array()?.as_slice() else { return None };
        let names: Vec<String> = names.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        let [kind, from_label, from_key, to_label, to_key] = names.try_into().ok()?;
        let props = canonical(props.as_object()?);
        state.rels.insert(Rel { kind, from_label, from_key, to_label, to_key, props });
        Some(())
    })?;
    Ok(state)
}

fn lines(dir: &Path, name: &str) -> io::Result<io::Split<Box<dyn BufRead>>> {
    let plain = dir.join(name);
    let reader: Box<dyn BufRead> = if plain.exists() {
        Box::new(BufReader::new(std::fs::File::open(plain)?))
    } else {
        let path = dir.join(format!("{name}.gz"));
        let file =
            std::fs::File::open(&path).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
        Box::new(BufReader::new(flate2::read::MultiGzDecoder::new(file)))
    };
    Ok(reader.split(b'\n'))
}

fn each_line(dir: &Path, name: &str, mut take: impl FnMut(Value) -> Option<()>) -> io::Result<()> {
    for (number, line) in lines(dir, name)?.enumerate() {
        let line = line?;
        let taken = std::str::from_utf8(&line).ok().and_then(exact_json).and_then(&mut take);
        taken.ok_or_else(|| {
            let place = format!("{}/{name}: line {} is not of the expected form", dir.display(), number + 1);
            io::Error::new(io::ErrorKind::InvalidData, place)
        })?;
    }
    Ok(())
}

/// Compares all tables.
///
/// # Errors
/// How they differ, for a person to read.
pub fn compare_tables(actual: &Tables, expected: &Tables) -> Result<(), String> {
    let (mut report, none) = (Report::default(), BTreeMap::new());
    for name in expected.keys().chain(actual.keys().filter(|name| !expected.contains_key(*name))) {
        report.compare(
            actual.get(name).unwrap_or(&none),
            expected.get(name).unwrap_or(&none),
            |id| (format!("{name} rows"), format!("{name} {id}")),
            |row| json!({"hash": row.hash, "data": row.data}),
        );
    }
    report.finish()
}

/// Compares nodes with their properties, and relationships with theirs.
///
/// # Errors
/// How they differ, for a person to read.
pub fn compare_graph(actual_nodes: &Nodes, actual_rels: &Rels, expected: &Expected) -> Result<(), String> {
    let mut report = Report::default();
    let name = |(label, key): &(String, String)| (format!("{label} nodes"), format!("{label} {key}"));
    report.compare(actual_nodes, &expected.nodes, name, Value::clone);
    for rel in expected.rels.difference(actual_rels) {
        report.add("missing", format!("{} relationships", rel.kind), || show(rel));
    }
    for rel in actual_rels.difference(&expected.rels) {
        report.add("unexpected", format!("{} relationships", rel.kind), || show(rel));
    }
    report.finish()
}

fn show(rel: &Rel) -> String {
    let Rel { kind, from_label, from_key, to_label, to_key, props } = rel;
    format!("{from_label} {from_key} -{kind}-> {to_label} {to_key} {props}")
}

/// Differences: how many of each sort, and the first ones in full.
#[derive(Default)]
struct Report {
    counts: BTreeMap<String, usize>,
    examples: Vec<String>,
}

impl Report {
    fn add(&mut self, how: &str, what: String, example: impl FnOnce() -> String) {
        *self.counts.entry(format!("{how} {what}")).or_default() += 1;
        if self.examples.len() < 10 {
            self.examples.push(format!("{how}: {}", example()));
        }
    }

    /// `name` gives the sort and the name of an entry.
    fn compare<K: Ord, V: PartialEq>(
        &mut self,
        actual: &BTreeMap<K, V>,
        expected: &BTreeMap<K, V>,
        name: impl Fn(&K) -> (String, String),
        json: impl Fn(&V) -> Value,
    ) {
        for (key, value) in expected {
            let (sort, entry) = name(key);
            match actual.get(key) {
                None => self.add("missing", sort, || format!("{entry}: {}", shorten(&json(value).to_string(), 0))),
                Some(same) if same == value => {}
                Some(other) => self.add("different", sort, || {
                    let mut parts = Vec::new();
                    differences("", Some(&json(other)), Some(&json(value)), &mut parts);
                    parts.truncate(3);
                    format!("{entry}: {}", parts.join("; "))
                }),
            }
        }
        for (key, value) in actual.iter().filter(|(key, _)| !expected.contains_key(key)) {
            let (sort, entry) = name(key);
            self.add("unexpected", sort, || format!("{entry}: {}", shorten(&json(value).to_string(), 0)));
        }
    }

    fn finish(self) -> Result<(), String> {
        if self.counts.is_empty() {
            return Ok(());
        }
        let counts: Vec<_> = self.counts.iter().map(|(sort, count)| format!("{count} {sort}")).collect();
        Err(format!("{}\n  {}", counts.join(", "), self.examples.join("\n  ")))
    }
}

/// The innermost places where two values differ, each with both sides.
fn differences(path: &str, actual: Option<&Value>, expected: Option<&Value>, found: &mut Vec<String>) {
    match (actual, expected) {
        (actual, expected) if actual == expected => {}
        (Some(Value::Object(a)), Some(Value::Object(e))) => {
            for name in a.keys().chain(e.keys()).collect::<BTreeSet<_>>() {
                differences(&format!("{path}/{name}"), a.get(name), e.get(name), found);
            }
        }
        (Some(Value::Array(a)), Some(Value::Array(e))) if a.len() == e.len() => {
            for (index, (a, e)) in a.iter().zip(e).enumerate() {
                differences(&format!("{path}/{index}"), Some(a), Some(e), found);
            }
        }
        _ => {
            let [a, e] = [actual, expected].map(|value| value.map_or("nothing".to_owned(), Value::to_string));
            let same = a.chars().zip(e.chars()).take_while(|(a, e)| a == e).count();
            found.push(format!("{path} is {}, expected {}", shorten(&a, same), shorten(&e, same)));
        }
    }
}

/// A text, or if it is long the part of it around the character `at`.
fn shorten(text: &str, at: usize) -> String {
    let (length, most) = (text.chars().count(), 160);
    if length <= most {
        return text.to_owned();
    }
    let from = at.saturating_sub(20).min(length - most);
    let part: String = text.chars().skip(from).take(most).collect();
    let (before, after) = (if from > 0 { "…" } else { "" }, if from + most < length { "…" } else { "" });
    format!("{before}{part}{after}")
}

/// Where the golden messages and states lie: `GOLDEN_DIR`, or `../shared/golden` beside the project. If they are not
/// there, says loudly, past the test harness's capture, that `who` goes without them.
pub fn golden_dir(who: &str) -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/golden");
    let dir = std::env::var_os("GOLDEN_DIR").map_or_else(beside, PathBuf::from);
    if dir.join("messages").is_dir() {
        return Some(dir);
    }
    // A note that can't be written is no reason to fail.
    let _ = writeln!(
        io::stderr(),
        "\n*** SKIPPED by {who}: no golden messages and states at {} (set GOLDEN_DIR) ***\n",
        dir.display()
    );
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::{expected, maintained};

    const MONTHS: [&str; 3] = ["20200801", "20260401", "20260501"];

    fn computed(dir: &Path, month: &str) -> Expected {
        let state = expected(&load_messages(&dir.join("messages"), month).expect("messages"));
        if month == "20260501" { maintained(&state) } else { state }
    }

    #[test]
    fn the_oracle_computes_the_golden_states() {
        let Some(dir) = golden_dir("the oracle") else { return };
        for month in MONTHS {
            let (computed, stored) =
                (computed(&dir, month), load_expected(&dir.join("states").join(month)).expect("state"));
            let rows: usize = stored.tables.values().map(BTreeMap::len).sum();
            println!("{month}: {rows} rows, {} nodes, {} relationships", stored.nodes.len(), stored.rels.len());
            compare_tables(&computed.tables, &stored.tables).unwrap_or_else(|e| panic!("{month}: {e}"));
            compare_graph(&computed.nodes, &computed.rels, &stored).unwrap_or_else(|e| panic!("{month}: {e}"));
            assert!(computed == stored && rows > 4000 && stored.nodes.len() > 20_000 && stored.rels.len() > 20_000);
        }
    }

    fn small() -> Expected {
        let messages = Messages {
            labels: vec![br#"{"id":"1","sha256":"h","name":"L","parentLabel":{"id":"2"}}"#.to_vec()],
            ..Messages::default()
        };
        expected(&messages)
    }

    #[test]
    fn every_sort_of_difference_is_told() {
        let (old, mut new) = (small(), small());
        let rows = new.tables.get_mut("labels").expect("labels");
        rows.insert("3".to_owned(), Row { hash: "x".repeat(999), data: json!({"n": [1, "y"]}) });
        let error = compare_tables(&old.tables, &new.tables).expect_err("missing");
        assert!(error.starts_with("1 missing labels rows\n  missing: labels 3: ") && error.len() < 250, "{error}");
        assert!(
            compare_tables(&new.tables, &old.tables).expect_err("unexpected").starts_with("1 unexpected labels rows")
        );
        let mut third = new.clone();
        third.tables.get_mut("labels").expect("labels").get_mut("3").expect("row").data["n"][1] = json!("z");
        let error = compare_tables(&third.tables, &new.tables).expect_err("different");
        assert_eq!(error, "1 different labels rows\n  different: labels 3: /data/n/1 is \"z\", expected \"y\"");
        third.tables.remove("artists");
        third.tables.insert("artists".to_owned(), rows_of(&new));
        assert!(
            compare_tables(&third.tables, &new.tables)
                .expect_err("two")
                .starts_with("1 different labels rows, 2 unexpected artists rows")
        );

        let compare = |state: &Expected| compare_graph(&state.nodes, &state.rels, &small()).expect_err("different");
        let mut state = small();
        let parent = ("Label".to_owned(), "2".to_owned());
        state.nodes.get_mut(&parent).expect("node")["name"] = json!("P");
        assert_eq!(compare(&state), "1 different Label nodes\n  different: Label 2: /name is \"P\", expected nothing");
        state = small();
        state.nodes.remove(&parent);
        assert!(compare(&state).starts_with("1 missing Label nodes"));
        let mut rel = state.rels.pop_first().expect("edge");
        assert!(compare(&state).contains("missing: Label 1 -SUBLABEL_OF-> Label 2 {}"));
        rel.props = r#"{"source":"x"}"#.to_owned();
        state.rels.insert(rel);
        assert!(
            compare(&state).contains("1 missing SUBLABEL_OF relationships, 1 unexpected SUBLABEL_OF relationships")
        );
    }

    fn rows_of(state: &Expected) -> BTreeMap<String, Row> {
        state.tables["labels"].clone()
    }

    #[test]
    fn big_numbers_and_long_strings_are_told_apart() {
        let table = |data: &str| {
            let row = Row { hash: String::new(), data: as_jsonb(exact_json(data).expect("JSON")) };
            Tables::from([("labels".to_owned(), BTreeMap::from([("1".to_owned(), row)]))])
        };
        let (a, b) = (table(r#"{"n":123456789012345678901}"#), table(r#"{"n":123456789012345678902}"#));
        assert!(compare_tables(&a, &b).is_err());
        compare_tables(&table(r#"{"n":[1, 1.50]}"#), &table(r#"{"n":[1e0, 1.5]}"#)).expect("equal");
        let long = |end: &str| table(&format!(r#"{{"n":"{}{end}"}}"#, "é".repeat(5000)));
        let error = compare_tables(&long("a"), &long("b")).expect_err("different");
        assert!(error.contains("éa\", expected …") && error.len() < 1000, "{error}");
    }
}
