//! Messages that are broken, and messages that are merely odd (contract §2.3, §4.6, appendix D): the former are
//! dead-lettered alone and unchanged, the latter are written.

use std::collections::BTreeMap;
use std::time::Duration;

use common::DataType;
use integration_tests::oracle::{self, Messages};
use integration_tests::proxy::Proxy;
use integration_tests::stage::{PATIENT, binary, by_type, controlled, services, settled, stop_clean};
use integration_tests::states;
use integration_tests::{Error, Stage};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldArray, FieldTable, ShortString};
use lapin::{BasicProperties, Confirmation};
use serde_json::json;
use xtask::process::Worker;
use xtask::sample;
use xtask::services::script;

/// Neighbours of a culprit.
const GOOD: usize = 500;
/// So many records, and more, fit into one batch.
const LARGE: [(&str, &str); 2] = [("POSTGRES_BATCH_SIZE", "1000"), ("NEO4J_BATCH_SIZE", "1000")];

fn random_text(length: usize) -> String {
    let mut random = fastrand::Rng::with_seed(length as u64);
    (0..length).map(|_| random.alphanumeric()).collect()
}

/// A message that must be dead-lettered.
struct Culprit {
    /// The queue that it goes to.
    data_type: DataType,
    /// With `@` for the id, where it has one.
    body: Vec<u8>,
    /// The header `dead-letter-reason`.
    reason: &'static str,
    /// The header `dead-letter-code`, where it is known beforehand.
    code: Option<&'static str>,
    /// The header `dead-letter-id`, with `@` like the body; empty if the message has no usable one.
    id: String,
}

/// What no database is asked about. Each kind takes one of the four queues in turn.
fn undecodable() -> Vec<Culprit> {
    let bodies: [(&str, &[&[u8]]); 4] = [
        (
            "invalid_json",
            &[
                b"nonsense",
                b"",
                b" ",
                b"{",
                br#"{"type":"data","id":"1","sha256":"h","name":"cut o"#,
                br#"{"id":"1"} {"id":"2"}"#,
                br#"{"id":"1",}"#,
                br#"{'id':'1'}"#,
                br#"{"id":"1","a":NaN}"#,
                br#"{"id":"1","a":01}"#,
                br#"{"id":"1","a":"\x41"}"#,
                b"{\"id\":\"1\",\"a\":\"invalid UTF-8 \xc3\x28\"}",
                b"{\"id\":\"1\",\"a\":\"Latin-1 \xe9\"}",
                b"{\"id\":\"1\",\"a\":\"a surrogate in UTF-8 \xed\xa0\x80\"}",
                b"\xef\xbb\xbf{\"id\":\"1\",\"a\":\"after a BOM\"}",
                b"\xff\xfe{\x00}\x00",
                b"{\"id\":\"1\",\"a\":\"raw \x00 NUL\"}",
                b"{\"id\":\"1\"}\x00",
                b"{\"id\":\"1\",\"a\":\"raw \n newline\"}",
                br#"{"id":"1","a":"lone \ud800 surrogate"}"#,
                br#"{"id":"1","a":"lone \udc00 surrogate"}"#,
                br#"{"id":"1","a":["\udc00\ud800"]}"#,
                br#"{"id":"1","\udbff":"in a key"}"#,
                br#"{"type":"file_complete","a":"\ud800"}"#,
            ],
        ),
        ("not_an_object", &[br#"[{"id":"1"}]"#, b"[]", br#""text""#, b"1", b"null", b"true"]),
        (
            "missing_id",
            &[
                b"{}",
                br#"{"type":"data","sha256":"h","name":"no id"}"#,
                br#"{"id":null}"#,
                br#"{"id":""}"#,
                br#"{"id":0}"#,
                br#"{"id":false}"#,
                br#"{"id":[]}"#,
                br#"{"id":{}}"#,
                br#"{"type":"data","id":"unknown","sha256":"h","id":null}"#,
            ],
        ),
        (
            "invalid_id",
            &[
                br#"{"id":1.5}"#,
                br#"{"id":1e3}"#,
                br#"{"id":true}"#,
                br#"{"id":["1"]}"#,
                br#"{"id":{"a":"1"}}"#,
                br#"{"type":"data","id":"1","sha256":"h","id":["1","2"]}"#,
            ],
        ),
    ];
    let all = bodies.iter().flat_map(|(reason, bodies)| bodies.iter().map(|body| (*reason, *body)));
    let culprit = |(at, (reason, body)): (usize, (&'static str, &[u8]))| Culprit {
        data_type: DataType::ALL[at % 4],
        body: body.to_vec(),
        reason,
        code: Some(reason),
        id: String::new(),
    };
    all.enumerate().map(culprit).collect()
}

fn refused(data_type: DataType, code: Option<&'static str>, id: &str, members: &str) -> Culprit {
    let body = format!(r#"{{"type":"data","id":"{id}","sha256":"h","id":"{id}"{members}}}"#);
    Culprit { data_type, body: body.into_bytes(), reason: "write_refused", code, id: id.to_owned() }
}

/// What only PostgreSQL can refuse.
fn refused_by_postgres() -> Vec<Culprit> {
    let (long, deep) = (random_text(6000), format!("{}{}", "[".repeat(20_000), "]".repeat(20_000)));
    let number = format!("1{}", "0".repeat(200_000));
    vec![
        refused(DataType::Artists, Some("54000"), "@", &format!(r#","name":"{long}""#)),
        refused(DataType::Masters, Some("54000"), "@", &format!(r#","title":"{long}""#)),
        refused(DataType::Releases, Some("54000"), "@", &format!(r#","country":"{long}""#)),
        refused(DataType::Labels, Some("54000"), &format!("@{long}"), ""),
        refused(DataType::Artists, Some("22003"), "@", r#","n":1e200000"#),
        refused(DataType::Labels, Some("22003"), "@", &format!(r#","n":[{number}]"#)),
        refused(DataType::Releases, Some("54001"), "@", &format!(r#","a":{deep}"#)),
    ]
}

/// What only Neo4j can refuse: each of these is a key of an index.
fn refused_by_neo4j() -> Vec<Culprit> {
    let long = random_text(40_000);
    vec![
        refused(DataType::Artists, None, "@", &format!(r#","name":"{long}""#)),
        refused(DataType::Labels, None, "@", &format!(r#","name":"{long}""#)),
        refused(DataType::Masters, None, &format!("@{long}"), ""),
        refused(DataType::Artists, None, "@", &format!(r#","members":[{{"id":"{long}"}}]"#)),
        refused(DataType::Masters, None, "@", &format!(r#","genres":["{long}"]"#)),
        refused(DataType::Releases, None, "@", &format!(r#","extraartists":[{{"name":"{long}","role":"Bass"}}]"#)),
    ]
}

/// A good record, now and then with edges.
fn good(data_type: DataType, number: usize) -> Vec<u8> {
    let text = if matches!(data_type, DataType::Artists | DataType::Labels) { "name" } else { "title" };
    let edges = match data_type {
        _ if !number.is_multiple_of(20) => "",
        DataType::Artists => r#","groups":[{"id":"hub"}]"#,
        DataType::Labels => r#","parentLabel":{"id":"hub"}"#,
        DataType::Masters => r#","genres":["Rock"],"styles":["Punk"],"year":"1999""#,
        DataType::Releases => r#","genres":["Rock"],"labels":[{"id":"hub","catno":"C 1"}],"released":"1999""#,
    };
    format!(r#"{{"type":"data","id":"g{number}","sha256":"h{number}","id":"g{number}","{text}":"T {number}"{edges}}}"#)
        .into_bytes()
}

/// Properties that this message alone has, and that none of the workers needs.
fn properties(message: &str) -> BasicProperties {
    let mut headers = FieldTable::default();
    headers.insert("x-origin".into(), AMQPValue::LongString(message.into()));
    headers.insert("x-number".into(), AMQPValue::LongInt(7));
    xtask::feed::properties()
        .with_message_id(message.into())
        .with_correlation_id("correlation".into())
        .with_reply_to("nobody".into())
        .with_timestamp(1_700_000_000)
        .with_type("record".into())
        .with_app_id("extractor".into())
        .with_headers(headers)
}

async fn publish(stage: &Stage, t: DataType, body: &[u8], properties: BasicProperties) -> Result<(), Error> {
    let exchange = format!("{}-{t}", stage.prefix);
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let confirm = stage.channel.basic_publish(exchange.as_str().into(), "".into(), options, body, properties).await?;
    match confirm.await? {
        Confirmation::Ack(None) => Ok(()),
        other => Err(format!("{exchange} did not take a message: {other:?}").into()),
    }
}

/// Publishes batches of good records with culprits, and remembers what must become of everything.
struct Trial<'a> {
    stage: &'a Stage,
    written: Messages,
    numbers: usize,
    batches: BTreeMap<DataType, usize>,
    /// By message id.
    dead: BTreeMap<String, Dead<'a>>,
}

/// What must be found in a dead-letter queue.
struct Dead<'a> {
    data_type: DataType,
    culprit: &'a Culprit,
    body: Vec<u8>,
    id: String,
}

impl<'a> Trial<'a> {
    /// One batch: so many good records, with the culprits first, in the middle, or last.
    async fn batch(&mut self, t: DataType, size: usize, at: usize, culprits: &[&'a Culprit]) -> Result<(), Error> {
        let bodies: Vec<Vec<u8>> = (self.numbers..self.numbers + size).map(|number| good(t, number)).collect();
        let before = size * at / 2;
        // A batch is sorted by id before it is written: the culprits have their place in that order too.
        let id = ["a".to_owned(), format!("g{}", self.numbers + before), "z".to_owned()][at].clone();
        self.numbers += size;
        self.stage.publish(t, &bodies[..before]).await?;
        for culprit in culprits {
            let message = format!("m{}", self.dead.len());
            let id = format!("{id}-{message}");
            let mut body = culprit.body.clone();
            if culprit.reason == "write_refused" {
                body = String::from_utf8(body)?.replace('@', &id).into_bytes();
            }
            publish(self.stage, t, &body, properties(&message)).await?;
            let id = culprit.id.replace('@', &id);
            self.dead.insert(message, Dead { data_type: t, culprit, body, id });
        }
        self.stage.publish(t, &bodies[before..]).await?;
        self.stage.publish(t, [sample::file_complete(t, "20260101", size)]).await?;
        of(&mut self.written, t).extend(bodies);
        *self.batches.entry(t).or_default() += 1;
        Ok(())
    }
}

fn of(messages: &mut Messages, t: DataType) -> &mut Vec<Vec<u8>> {
    match t {
        DataType::Artists => &mut messages.artists,
        DataType::Labels => &mut messages.labels,
        DataType::Masters => &mut messages.masters,
        DataType::Releases => &mut messages.releases,
    }
}

/// Every kind of culprit first, in the middle, and last: at each of these places alone in a batch, and at some of them
/// together with those of other kinds. `few` good records or less are in a batch with a single undecodable one, which no
/// database sees.
async fn culprits_alone_are_dead_lettered(
    stage: &Stage,
    name: &str,
    refused: &[Culprit],
    few: usize,
) -> Result<Messages, Error> {
    let mut worker = stage.start(name, &[PATIENT, LARGE].concat()).await?;
    stage.channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let undecodable = undecodable();
    let mut trial =
        Trial { stage, written: Messages::default(), numbers: 0, batches: BTreeMap::new(), dead: BTreeMap::new() };
    for place in 0..3 {
        for t in DataType::ALL {
            let together = refused.iter().enumerate().filter(|(at, _)| at % 3 != place).map(|(_, culprit)| culprit);
            let all: Vec<&Culprit> = undecodable.iter().chain(together).filter(|c| c.data_type == t).collect();
            trial.batch(t, GOOD, place, &all).await?;
        }
    }
    for culprit in refused {
        for place in 0..3 {
            trial.batch(culprit.data_type, GOOD, place, &[culprit]).await?;
        }
    }
    for (at, culprit) in undecodable.iter().enumerate() {
        // Divided by four, since the types take turns: then each type has each place among as many as `few` says.
        let first = at / 4 % 3;
        trial.batch(culprit.data_type, few, first, &[culprit]).await?;
        for place in (0..3).filter(|place| *place != first) {
            trial.batch(culprit.data_type, few.min(50), place, &[culprit]).await?;
        }
    }
    for (t, count) in &trial.batches {
        controlled(&mut worker, *t, *count as f64).await?;
    }

    let mut dead = trial.dead;
    for t in DataType::ALL {
        for letter in stage.dead_letters(name, t).await? {
            let message = letter.properties.message_id().as_ref().map(ToString::to_string).unwrap_or_default();
            let expected = dead.remove(&message).ok_or_else(|| format!("{name} {t}: unexpected {letter:?}"))?;
            let Dead { data_type, culprit, body, id } = expected;
            let what = format!("{name} {t} {message} {}", String::from_utf8_lossy(&body[..body.len().min(80)]));
            assert_eq!(data_type, t, "{what}");
            assert!(letter.body == body, "{what}: the body changed");
            assert_eq!(letter.header("dead-letter-reason"), culprit.reason, "{what}");
            let code = letter.header("dead-letter-code");
            assert!(!code.is_empty() && culprit.code.is_none_or(|expected| code == expected), "{what}: code {code}");
            // A header's text has at most 1000 characters: all headers must fit into one frame.
            let short: String = id.chars().take(1000).collect();
            assert_eq!(letter.header("dead-letter-id"), short, "{what}");
            assert_eq!(letter.header("dead-letter-queue"), stage.topology(name, t).queue, "{what}");
            assert!(letter.header("dead-letter-worker").starts_with(name), "{what}");
            for stated in ["detail", "received", "time"] {
                assert!(!letter.header(&format!("dead-letter-{stated}")).is_empty(), "{what}: no {stated}");
            }
            // Apart from these headers nothing was added, changed or lost.
            let mut headers = letter.properties.headers().clone().unwrap_or_default().inner().clone();
            headers.retain(|key, _| !key.as_str().starts_with("dead-letter-"));
            let own = letter.properties.clone().with_headers(headers.into());
            assert_eq!(own, properties(&message), "{what}");
        }
    }
    let missing: Vec<_> = dead.values().map(|d| (d.data_type, d.culprit.reason, d.body.len())).collect();
    assert!(missing.is_empty(), "{name} did not dead-letter {missing:?}");

    // Every batch was one: else the culprits would not have been among so many.
    assert_eq!(worker.metric("batches_total", &[]), worker.metric("batches_total", &[r#"trigger="drain""#]), "{name}");
    assert_eq!(worker.metric("records_returned_total", &[]), 0.0, "{name}");
    stop_clean(stage, name, worker).await?;
    Ok(trial.written)
}

#[tokio::test(flavor = "multi_thread")]
async fn tableinator_dead_letters_the_culprit_alone() -> Result<(), Error> {
    let stage = Stage::new("culprits").await?;
    let written = culprits_alone_are_dead_lettered(&stage, "tableinator", &refused_by_postgres(), GOOD).await?;
    let tables = states::read_tables(&stage.postgres().await?).await?;
    states::compare_tables(&tables, &oracle::expected(&written).tables)?;
    stage.clean_up().await
}

#[tokio::test(flavor = "multi_thread")]
async fn graphinator_dead_letters_the_culprit_alone() -> Result<(), Error> {
    let stage = Stage::with_graph("culprits").await?;
    let written = culprits_alone_are_dead_lettered(&stage, "graphinator", &refused_by_neo4j(), 50).await?;
    assert_graph(&written).await?;
    stage.clean_up().await
}

// --------------------------------------------------------------------------------------- a poisoned newest version

async fn assert_tables(stage: &Stage, messages: &Messages) -> Result<(), Error> {
    let tables = states::read_tables(&stage.postgres().await?).await?;
    Ok(states::compare_tables(&tables, &oracle::expected(messages).tables)?)
}

async fn assert_graph(messages: &Messages) -> Result<(), Error> {
    let expected = oracle::expected(messages);
    let (nodes, rels) = states::read_graph(&services().neo4j()?).await?;
    Ok(states::compare_graph(&nodes, &rels, &expected)?)
}

async fn dead_bodies(stage: &Stage, worker: &str, t: DataType) -> Result<Vec<String>, Error> {
    let letters = stage.dead_letters(worker, t).await?;
    let mut bodies: Vec<_> = letters.into_iter().map(|l| String::from_utf8_lossy(&l.body).into_owned()).collect();
    bodies.sort();
    Ok(bodies)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_good_version_is_written_when_newer_ones_are_refused() -> Result<(), Error> {
    let stage = Stage::with_graph("versions").await?;
    let t = DataType::Artists;
    let long = random_text(40_000);
    let version = |id: &str, v: usize, good: bool| {
        let long = if good { "" } else { long.as_str() };
        let edge = format!(r#""members":[{{"id":"{id}-{v}"}}]"#);
        format!(r#"{{"type":"data","id":"{id}","sha256":"{v}","id":"{id}","name":"{v}{long}",{edge}}}"#)
    };
    // What is stored has no edges, since those of an artist are never pruned (contract §5.3).
    let stored = [r#"{"id":"stored","sha256":"1","name":"1"}"#, r#"{"id":"stored twice","sha256":"1","name":"1"}"#]
        .map(str::to_owned);
    let batch = [
        version("good bad", 1, true),
        version("neighbour", 1, true),
        version("bad good", 1, false),
        version("good bad", 2, false),
        version("good good bad bad", 1, true),
        version("stored", 2, false),
        version("good good bad bad", 2, true),
        version("bad", 1, false),
        version("good good bad bad", 3, false),
        version("stored twice", 2, true),
        version("bad good", 2, true),
        version("good good bad bad", 4, false),
        version("stored twice", 3, false),
    ];
    // What is to be seen of it: the last good version of each, nothing of what it superseded.
    let visible = [0, 1, 6, 9, 10].map(|at| batch[at].clone());
    // A refused version that a good one superseded was never tried.
    let mut dead: Vec<String> = [3, 5, 7, 8, 11, 12].map(|at| batch[at].clone()).to_vec();
    dead.sort();
    let mut expected = Messages::default();
    expected.artists.extend(stored.iter().chain(&visible).map(|body| body.clone().into_bytes()));

    for name in ["tableinator", "graphinator"] {
        let mut worker = stage.start(name, &PATIENT).await?;
        for (at, bodies) in [&stored[..], &batch[..]].into_iter().enumerate() {
            // The other worker's queue takes them too, if it exists already: it was emptied before, or is deleted with the stage.
            stage.publish(t, bodies).await?;
            stage.publish(t, [sample::file_complete(t, "20260101", bodies.len())]).await?;
            controlled(&mut worker, t, (at + 1) as f64).await?;
        }
        assert_eq!(dead_bodies(&stage, name, t).await?, dead, "{name}");
        stop_clean(&stage, name, worker).await?;
    }
    assert_tables(&stage, &expected).await?;
    assert_graph(&expected).await?;
    stage.clean_up().await
}

// --------------------------------------------------------------------------------------------------- odd, but good

/// Both workers take these messages and write what the oracle says, and dead-letter nothing.
async fn tolerated(name: &str, messages: &Messages) -> Result<(), Error> {
    let stage = Stage::with_graph(name).await?;
    let mut workers = [stage.start("tableinator", &[]).await?, stage.start("graphinator", &[]).await?];
    let mut count = 0;
    for (t, bodies) in by_type(messages) {
        count += stage.publish(t, bodies).await?;
    }
    for worker in &mut workers {
        settled(worker, count).await?;
    }
    for name in ["tableinator", "graphinator"] {
        for t in DataType::ALL {
            assert_eq!(dead_bodies(&stage, name, t).await?, Vec::<String>::new(), "{name} {t}");
        }
    }
    for (name, worker) in ["tableinator", "graphinator"].into_iter().zip(workers) {
        stop_clean(&stage, name, worker).await?;
    }
    // Each state for itself, so that both are told.
    let (tables, graph) = (assert_tables(&stage, messages).await, assert_graph(messages).await);
    if let (Err(tables), Err(graph)) = (&tables, &graph) {
        return Err(format!("tables: {tables}\ngraph: {graph}").into());
    }
    tables?;
    graph?;
    stage.clean_up().await
}

/// Bodies from members, with ids `PREFIX0`, `PREFIX1`, … and hashes.
fn records(prefix: &str, members: &[&str]) -> Vec<Vec<u8>> {
    let body = |(at, members): (usize, &&str)| {
        format!(r#"{{"type":"data","id":"{prefix}{at}","sha256":"h{at}","id":"{prefix}{at}",{members}}}"#).into_bytes()
    };
    members.iter().enumerate().map(body).collect()
}

fn bodies(bodies: &[&str]) -> Vec<Vec<u8>> {
    bodies.iter().map(|body| body.as_bytes().to_vec()).collect()
}

/// Lists of linked items that hold what is no item, and what should be a list and is none.
const LISTS: [&str; 17] = [
    r#"[null,{"id":"i1"},"text",{"id":"0"},{"id":3},{"name":"no id"},{"id":""},{"id":null},[],[{"id":"i2"}],1,true,{}]"#,
    r#"[{"id":"i3"},{"id":"i3"},{"id":{"id":"i4"}},{"id":["i5"]},{"id":1.5},{"id":true},{"id":0},{"id":-7}]"#,
    r#"[null]"#,
    r#"[]"#,
    r#"null"#,
    r#""text""#,
    r#""""#,
    r#"7"#,
    r#"true"#,
    r#"{}"#,
    r#"{"id":"i6"}"#,
    r#"{"name":{"id":"i7"}}"#,
    r#"{"artist":[{"id":"i8"}]}"#,
    r#"[{"id":"a name as id"},{"id":" i9 "},{"id":"i\u0000"}]"#,
    r#"[{"id":9223372036854775807},{"id":18446744073709551615}]"#,
    r#"[{"id":"i10","id":"i11"},{"id":"i12","id":null}]"#,
    r#"[{"id":"i13","name":{"deep":[[[{"a":null}]]]},"anv":["x"]}]"#,
];

/// Scalars where a text is expected.
const TEXTS: [&str; 12] = [
    r#""plain""#,
    r#""a\u0000b \\u0000""#,
    r#""""#,
    r#"" ""#,
    r#"null"#,
    r#"7"#,
    r#"-1.5"#,
    r#"true"#,
    r#"{"a":"object"}"#,
    r#"123456789012345678901234567890"#,
    r#"[1,null]"#,
    r#""é😀\ud83d\ude00\t""#,
];

fn each(member: &str, values: &[&str]) -> Vec<String> {
    values.iter().map(|value| format!(r#""{member}":{value}"#)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_records_are_written_by_both() -> Result<(), Error> {
    let many = |prefix: &str, members: &[Vec<String>]| {
        let members: Vec<&str> = members.iter().flatten().map(String::as_str).collect();
        records(prefix, &members)
    };
    let mut messages = Messages {
        artists: many(
            "a",
            &[
                each("members", &LISTS),
                each("groups", &LISTS),
                each("aliases", &LISTS),
                each("name", &TEXTS),
                each("urls", &LISTS),
            ],
        ),
        labels: many("l", &[each("sublabels", &LISTS), each("parentLabel", &LISTS), each("name", &TEXTS)]),
        masters: many(
            "m",
            &[
                each("artists", &LISTS),
                each("title", &TEXTS),
                each("genres", &LISTS),
                each("styles", &LISTS),
                each("year", &TEXTS),
            ],
        ),
        releases: many(
            "r",
            &[
                each("artists", &LISTS),
                each("labels", &LISTS),
                each("extraartists", &LISTS),
                each("formats", &LISTS),
                each("title", &TEXTS),
                each("released", &TEXTS),
                each("genres", &LISTS),
                each("styles", &LISTS),
            ],
        ),
    };
    messages.labels.extend(records(
        "p",
        &[
            r#""parentLabel":{"id":"0","name":"none"}"#,
            r#""parentLabel":{"id":77}"#,
            r#""parentLabel":{"id":0}"#,
            r#""parentLabel":{"id":null}"#,
            r#""parentLabel":{"id":["x"]}"#,
            r#""parentLabel":{"name":"EMI"}"#,
            r#""parentLabel":{"id":"p0"}"#,
            r#""parentLabel":{"id":"p6"}"#,
            r#""sublabels":[{"id":"p8"}]"#,
        ],
    ));
    messages.masters.extend(records(
        "w",
        &[
            r#""genres":null,"styles":null,"artists":null"#,
            r#""genres":"Rock","styles":"Punk""#,
            r#""genres":["Rock"],"styles":["Punk","Punk",null,"",{"a":1},7]"#,
            r#""genres":["Jazz",null],"styles":["Bop"]"#,
            r#""genres":[null],"styles":["Ska"]"#,
            r#""genres":[""],"styles":["Dub"]"#,
            r#""genres":[{"genre":"Pop"}],"styles":["Beat"]"#,
            r#""genres":{"genre":["Pop"]},"styles":{"style":"Beat"}"#,
            r#""genres":["Folk","Folk"],"styles":["Celtic"]"#,
            r#""genres":"","styles":"""#,
            r#""genres":["a\u0000b"],"styles":[" "]"#,
        ],
    ));
    messages.releases.extend(records(
        "e",
        &[
            r#""genres":null,"formats":null,"styles":null,"labels":null,"extraartists":null,"artists":null,"master_id":null"#,
            r#""formats":[{"name":null},{"name":"LP"},null,"CD",{},{"name":""},{"name":"LP"},{"name":5},{"name":["x"]},{"name":{"a":1}}]"#,
            r#""formats":"Vinyl""#,
            r#""formats":{"name":"Vinyl"}"#,
            r#""master_id":"0""#,
            r#""master_id":0"#,
            r#""master_id":"""#,
            r#""master_id":12"#,
            r#""master_id":"12""#,
            r#""master_id":1.5"#,
            r#""master_id":{"id":"13"}"#,
            r#""master_id":["14"]"#,
            r#""labels":[null,{"id":"0","catno":"C 1"},{"id":"l1","catno":"C 2"}]"#,
            r#""labels":["text",{"id":"l1","catno":"none"}]"#,
            r#""labels":[{"id":"l1","catno":null},{"id":"l2","catno":"C 4"}]"#,
            r#""labels":[{"id":"l1","catno":7}]"#,
            r#""labels":[{"id":"l1","catno":["C 5","C 6"]}]"#,
            r#""extraartists":[null,"text",{"id":"a1","name":"P","role":"Bass"},{"id":"0","name":"Q","role":"Mix"},{"name":"R","role":null},{"name":null,"role":"Mix"}]"#,
            r#""extraartists":[{"id":5,"name":"S","role":"Producer"},{"id":"a2","name":"","role":"Mix"},{"id":"a2","name":"T","role":""},{"id":"a2","name":["U"],"role":"Mix"}]"#,
            r#""extraartists":[{"id":"a3","name":"V","role":["Bass","Mix"]},{"id":"a3","name":{"a":1},"role":"Mix"},{"id":null,"name":"W\u0000","role":"Bass\u0000"}]"#,
            r#""extraartists":[{"id":"a4","name":"X","role":"Bass"},{"id":"a5","name":"X","role":"Mix"},{"id":"a5","name":"X","role":"Mix"},{"id":"nobody","name":"X","role":"Mix"}]"#,
            r#""extraartists":{"artist":{"id":"a1","name":"Y","role":"Bass"}}"#,
            r#""tracklist":"text","images":[null,"\u0000"],"videos":{"\u0000":["\u0000"]},"companies":7"#,
        ],
    ));
    messages.artists.extend(bodies(&[
        // Ids and hashes.
        r#"{"id":77,"name":"integer id","members":[{"id":"78"}]}"#,
        r#"{"id":-77,"sha256":"h"}"#,
        r#"{"id":123456789012345678901234567890,"sha256":"h","name":"beyond 64 bits"}"#,
        r#"{"id":"n\u0000ul","sha256":"h\u0000","name":"\u0000","groups":[{"id":"\u0000"}]}"#,
        r#"{"id":" ","sha256":"h"}"#,
        r#"{"id":"\ud83d\ude00/?#","sha256":"h"}"#,
        r#"{"id":"no hash"}"#,
        r#"{"id":"null hash","sha256":null,"name":"n"}"#,
        r#"{"id":"empty hash","sha256":"","members":[{"id":"null hash"}]}"#,
        r#"{"id":"first","sha256":"h","id":"second"}"#,
        // Whatever is no known control message counts as a record.
        r#"{"type":"DATA","id":"t1","sha256":"h"}"#,
        r#"{"type":"","id":"t2","sha256":"h"}"#,
        r#"{"type":null,"id":"t3","sha256":"h"}"#,
        r#"{"type":7,"id":"t4","sha256":"h"}"#,
        r#"{"type":["extraction_complete"],"id":"t5","sha256":"h"}"#,
        r#"{"id":"t6","sha256":"h"}"#,
        r#"{"type":"file_complete","id":"t7","sha256":"h","type":"data"}"#,
        r#"{"type":"file_complete ","id":"t8","sha256":"h"}"#,
        r#"{"id":"self","sha256":"h","members":[{"id":"self"}],"aliases":[{"id":"self"}]}"#,
        "\t{ \"id\" : \"blanks\" ,\n\"sha256\":\"h\" } \r\n",
    ]));
    tolerated("odd", &messages).await
}

/// An item that no parser of ours could hold must not cost its neighbours in the list.
#[tokio::test(flavor = "multi_thread")]
async fn numbers_and_depths_beyond_the_parser_s_limits() -> Result<(), Error> {
    let number = format!("1{}", "0".repeat(400));
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    let mut messages = Messages::default();
    for odd in [number, deep] {
        let list =
            format!(r#"[{{"id":"x1"}},{{"id":"x2","n":{odd},"name":"N","role":"Bass","catno":"C"}},{{"id":"x3"}}]"#);
        let at = messages.artists.len();
        let records = |members: &[&str]| {
            let members: Vec<String> = members.iter().map(|member| format!(r#""{member}":{list},"b":{odd}"#)).collect();
            records(&format!("{at}-"), &members.iter().map(String::as_str).collect::<Vec<_>>())
        };
        messages.artists.extend(records(&["members", "groups", "aliases"]));
        messages.labels.extend(records(&["sublabels"]));
        messages.masters.extend(records(&["artists"]));
        messages.releases.extend(records(&["artists", "labels", "extraartists", "formats"]));
        let parent = format!(r#"{{"id":"{at}-p","sha256":"h","parentLabel":{{"id":"x4","n":{odd}}}}}"#);
        messages.labels.push(parent.into_bytes());
    }
    tolerated("limits", &messages).await
}

#[tokio::test(flavor = "multi_thread")]
async fn linked_ids_are_exact_whatever_their_size() -> Result<(), Error> {
    let list = r#"[{"id":123456789012345678901234567890},{"id":-9223372036854775809}]"#;
    let members = ["members", "groups", "aliases"].map(|member| format!(r#""{member}":{list}"#));
    let mut messages =
        Messages { artists: records("a", &members.each_ref().map(String::as_str)), ..Messages::default() };
    messages.labels = records("l", &[r#""parentLabel":{"id":123456789012345678901234567890}"#]);
    messages.releases = records("r", &[r#""master_id":123456789012345678901234567890"#]);
    tolerated("bigids", &messages).await
}

/// Two `<name>` elements make a list of strings, which Neo4j can hold.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_strings_as_name() -> Result<(), Error> {
    let messages = Messages {
        artists: records("a", &[r#""name":["one","two"]"#, r#""name":[]"#]),
        labels: records("l", &[r#""name":["one","two"]"#]),
        masters: records("m", &[r#""title":["one","two"]"#]),
        releases: records("r", &[r#""title":["one","two"]"#]),
    };
    tolerated("lists", &messages).await
}

// ---------------------------------------------------------------------------------------------- control messages

async fn both(stage: &Stage) -> Result<[(&'static str, Worker); 2], Error> {
    Ok([
        ("tableinator", stage.start("tableinator", &[]).await?),
        ("graphinator", stage.start("graphinator", &[]).await?),
    ])
}

/// Publishes control messages and a record behind them to each type, and checks that all are taken at once.
async fn taken(name: &str, controls: &[String]) -> Result<(), Error> {
    let stage = Stage::with_graph(name).await?;
    let mut workers = both(&stage).await?;
    let mut messages = Messages::default();
    for t in DataType::ALL {
        stage.publish(t, controls).await?;
        let good = good(t, 1);
        stage.publish(t, [&good]).await?;
        of(&mut messages, t).push(good);
    }
    for (name, worker) in &mut workers {
        let all = |w: &Worker| {
            let committed = w.metric("records_committed_total", &[]);
            let taken = w.metric("control_messages_total", &[]);
            committed >= 4.0 && taken >= 4.0 * controls.len() as f64
        };
        worker.until(&format!("past the control messages ({name})"), Duration::from_secs(30), all).await?;
        assert_eq!(worker.metric("control_messages_total", &[]), 4.0 * controls.len() as f64, "{name}");
        for t in DataType::ALL {
            assert_eq!(dead_bodies(&stage, name, t).await?, Vec::<String>::new(), "{name} {t}");
        }
    }
    for (name, worker) in workers {
        stop_clean(&stage, name, worker).await?;
    }
    assert_tables(&stage, &messages).await?;
    // The signals of a run that has no version may or may not have led to statistics by now.
    let (nodes, rels) = states::read_graph(&services().neo4j()?).await?;
    let expected = oracle::expected(&messages);
    states::compare_graph(&nodes, &rels, &oracle::maintained(&expected))
        .or_else(|_| states::compare_graph(&nodes, &rels, &expected))?;
    stage.clean_up().await
}

#[tokio::test(flavor = "multi_thread")]
async fn incomplete_control_messages_are_taken() -> Result<(), Error> {
    let controls = [
        r#"{"type":"file_complete"}"#,
        r#"{"type":"file_complete","id":"1","sha256":"h","name":"no record"}"#,
        r#"{"type":"data","id":"1","sha256":"h","type":"file_complete"}"#,
        r#"{"type":"file_complete","data_type":null,"timestamp":null,"total_processed":null,"file":null}"#,
        r#"{"type":"file_complete","data_type":"films","timestamp":7,"total_processed":"many","file":["f"]}"#,
        r#"{"type":"file_complete","total_processed":-1}"#,
        r#"{"type":"file_complete","total_processed":1e400}"#,
        r#"{"type":"extraction_complete"}"#,
        r#"{"type":"extraction_complete","version":null,"started_at":null,"record_counts":null}"#,
        r#"{"type":"extraction_complete","version":"","started_at":"","record_counts":{}}"#,
        r#"{"type":"extraction_complete","version":20260101,"started_at":5,"record_counts":[1]}"#,
        r#"{"type":"extraction_complete","version":["v"],"started_at":{"a":1},"record_counts":"3"}"#,
        r#"{"type":"extraction_complete","version":"n\u0000ul","started_at":"\u0000","record_counts":{"\u0000":1}}"#,
        r#"{"type":"extraction_complete","version":"v","started_at":"0000-00-00T00:00:00Z",
            "record_counts":{"artists":"3","labels":1.5,"masters":-1,"releases":99999999999999999999,"films":1e400}}"#,
    ];
    taken("controls", &controls.map(str::to_owned)).await
}

/// A version that no index can hold must not stop a queue for ever: it is no version, and goes where it can be looked at.
#[tokio::test(flavor = "multi_thread")]
async fn a_control_message_that_the_databases_would_refuse_stops_nothing() -> Result<(), Error> {
    let stage = Stage::with_graph("version").await?;
    let mut workers = both(&stage).await?;
    let control = json!({
        "type": "extraction_complete",
        "version": random_text(20_000),
        "timestamp": "2026-01-02T00:00:00Z",
        "started_at": "2026-01-01T00:00:00Z",
        "record_counts": {"artists": 1, "labels": 1, "masters": 1, "releases": 1},
    });
    for t in DataType::ALL {
        stage.publish(t, [control.to_string().into_bytes(), good(t, 1)]).await?;
    }
    for (name, worker) in &mut workers {
        settled(worker, 8).await?;
        assert_eq!(worker.metric("records_committed_total", &[]), 4.0, "{name}");
        for t in DataType::ALL {
            let letters = stage.dead_letters(name, t).await?;
            assert_eq!(letters.len(), 1, "{name} {t}");
            assert_eq!(letters[0].header("dead-letter-reason"), "invalid_control", "{name} {t}");
            assert!(letters[0].body == control.to_string().into_bytes(), "{name} {t}");
        }
    }
    for (name, worker) in workers {
        stop_clean(&stage, name, worker).await?;
    }
    stage.clean_up().await
}

/// The broker refuses a publisher that states another user's name: a dead letter must not repeat what its message said.
#[tokio::test(flavor = "multi_thread")]
async fn a_culprit_of_another_user_is_dead_lettered_all_the_same() -> Result<(), Error> {
    let stage = Stage::new("user").await?;
    stage.declare("tableinator").await?;
    let user = stage.prefix.as_str();
    let ctl = |args: &[&str]| tokio::task::block_in_place(|| script(&[&["ctl"], args].concat()));
    ctl(&["add_user", user, "secret"])?;
    ctl(&["set_permissions", user, ".*", ".*", ".*"])?;
    let (host, port) = (services().get("RABBITMQ_HOST"), services().get("RABBITMQ_PORT"));
    let uri = format!("amqp://{user}:secret@{host}:{port}/%2f");
    let connection = lapin::Connection::connect(&uri, lapin::ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let exchange = format!("{}-artists", stage.prefix);
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let properties = xtask::feed::properties().with_user_id(user.into());
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let exchange = exchange.as_str();
    channel.basic_publish(exchange.into(), "".into(), options, b"{broken", properties).await?.await?;
    connection.close(200, "done".into()).await?;
    stage.publish(DataType::Artists, (0..50).map(|n| good(DataType::Artists, n))).await?;
    let mut worker = stage.start("tableinator", &[]).await?;
    settled(&mut worker, 51).await?;
    let letters = stage.dead_letters("tableinator", DataType::Artists).await?;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].header("dead-letter-reason"), "invalid_json");
    assert_eq!(worker.metric("redelivered_total", &[]), 0.0);
    assert_eq!(worker.stop().await?.code(), Some(0));
    ctl(&["delete_user", user])?;
    stage.clean_up().await
}

/// Artists, of which one is broken.
fn fifty() -> impl Iterator<Item = Vec<u8>> {
    (0..50).map(|n| if n == 25 { b"{broken".to_vec() } else { good(DataType::Artists, n) })
}

/// A worker writes [`fifty`] without trouble, and the broken one is a dead letter that can be listed.
async fn assert_one_of_fifty_is_refused(stage: &Stage) -> Result<Worker, Error> {
    let mut worker = stage.start("tableinator", &[]).await?;
    settled(&mut worker, 50).await?;
    assert_eq!(worker.metric("redelivered_total", &[]) + worker.metric("reconnects_total", &[]), 0.0);
    let rows = stage.postgres().await?.query_one("SELECT count(*) FROM artists", &[]).await?;
    assert_eq!(rows.get::<_, i64>(0), 49);
    let list = std::process::Command::new(binary("tableinator"))
        .args(["deadletter", "list", "--format", "json"])
        .envs(stage.env(&[]))
        .output()?;
    let list: serde_json::Value = serde_json::from_slice(&list.stdout)?;
    assert_eq!(list["messages"][0]["reason"], "invalid_json", "{list}");
    Ok(worker)
}

/// The protocol wants UTF-8 in short strings, and RabbitMQ hands on whatever was sent: nobody else must suffer from it, and a culprit with
/// such properties can be looked at.
#[tokio::test(flavor = "multi_thread")]
async fn properties_that_are_no_utf_8_harm_nobody() -> Result<(), Error> {
    let stage = Stage::new("latin").await?;
    stage.declare("tableinator").await?;
    // Clients can't send it; what they send is changed on its way.
    let s = services();
    let proxy = Proxy::start(s.get("RABBITMQ_PORT").parse()?, u64::MAX).await?;
    proxy.rewrite(b"caf~", b"caf\xe9");
    let login = format!("{}:{}", s.get("RABBITMQ_USERNAME"), s.get("RABBITMQ_PASSWORD"));
    let uri = format!("amqp://{login}@127.0.0.1:{}/%2f", proxy.port);
    let connection = lapin::Connection::connect(&uri, lapin::ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let exchange = format!("{}-artists", stage.prefix);
    let mut headers = FieldTable::default();
    headers.insert("x-caf~".into(), AMQPValue::LongString("caf~".into()));
    let text = || ShortString::from("caf~");
    let properties = xtask::feed::properties()
        .with_app_id(text())
        .with_message_id(text())
        .with_content_type(text())
        .with_headers(headers);
    for body in fifty() {
        let (exchange, options) = (exchange.as_str().into(), BasicPublishOptions::default());
        channel.basic_publish(exchange, text(), options, &body, properties.clone()).await?.await?;
    }
    connection.close(200, "done".into()).await?;

    let worker = assert_one_of_fifty_is_refused(&stage).await?;
    let letters = stage.dead_letters("tableinator", DataType::Artists).await?;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].header("x-caf?").as_bytes(), "caf\u{fffd}".as_bytes(), "a header's value is no short string");
    assert_eq!(worker.stop().await?.code(), Some(0));
    stage.clean_up().await
}

/// Headers may be nested as deeply as a frame has room for; whoever reads them by calling itself runs out of stack.
#[tokio::test(flavor = "multi_thread")]
async fn headers_of_any_depth_harm_nobody() -> Result<(), Error> {
    let stage = Stage::new("deep").await?;
    stage.declare("tableinator").await?;
    let mut nested = AMQPValue::Boolean(true);
    for _ in 0..1500 {
        let mut array = FieldArray::default();
        array.push(nested);
        nested = AMQPValue::FieldArray(array);
    }
    let mut headers = FieldTable::default();
    headers.insert("x-deep".into(), nested);
    let properties = xtask::feed::properties().with_headers(headers);
    let with = |n| if n < 20 { xtask::feed::properties() } else { properties.clone() };
    let messages = fifty().enumerate().map(|(n, body)| (body, with(n)));
    xtask::feed::publish_each(&stage.channel, &format!("{}-artists", stage.prefix), messages).await?;
    let worker = assert_one_of_fifty_is_refused(&stage).await?;
    assert_eq!(worker.stop().await?.code(), Some(0));
    stage.clean_up().await
}

/// An id may be as long as a message; what is told of it is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_id_is_not_logged_whole() -> Result<(), Error> {
    let stage = Stage::new("longid").await?;
    let mut worker = stage.start("tableinator", &[]).await?;
    let id = random_text(1_000_000);
    stage.publish(DataType::Artists, [format!(r#"{{"type":"data","id":"{id}","sha256":"h"}}"#)]).await?;
    settled(&mut worker, 1).await?;
    assert_eq!(worker.metric("records_dead_lettered_total", &[]), 1.0);
    let longest = worker.log_text().lines().map(str::len).max();
    assert!(longest < Some(10_000), "{longest:?}");
    assert!(worker.get("/status")?.1.len() < 100_000);
    assert_eq!(worker.stop().await?.code(), Some(0));
    stage.clean_up().await
}
