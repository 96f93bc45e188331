//! What tableinator does to PostgreSQL (contract §2.2, §3, §4, appendix D): schema, rows, versions, purge.

use std::time::Duration;

use chrono::{DateTime, Datelike, Utc};
use common::DataType;
use integration_tests::oracle::{self, Messages};
use integration_tests::stage::{PATIENT, controlled, controls, now, settled, stop_clean, within};
use integration_tests::states;
use integration_tests::{Error, Stage};
use lapin::options::{BasicGetOptions, BasicNackOptions};
use serde_json::{Value, json};
use tokio::time::sleep;
use tokio_postgres::Client;
use xtask::process::Worker;
use xtask::sample::{self, Sample, Spec};

/// A time before every run in these tests.
const LONG_AGO: &str = "2020-01-01T00:00:00Z";
/// A time after them.
const FAR_AHEAD: &str = "2100-01-01T00:00:00Z";

/// A tableinator whose batches are closed by a control message.
struct Fed {
    stage: Stage,
    worker: Worker,
    postgres: Client,
}

impl Fed {
    async fn new(name: &str, extra: &[(&str, &str)]) -> Result<Fed, Error> {
        Fed::on(Stage::new(name).await?, extra).await
    }

    async fn on(stage: Stage, extra: &[(&str, &str)]) -> Result<Fed, Error> {
        let worker = stage.start("tableinator", &[&PATIENT, extra].concat()).await?;
        let postgres = stage.postgres().await?;
        Ok(Fed { stage, worker, postgres })
    }

    /// Publishes bodies, then a control message, and waits until the worker has taken that.
    async fn send<B: AsRef<[u8]>>(&mut self, t: DataType, bodies: &[B], control: &[u8]) -> Result<(), Error> {
        let before = controls(&self.worker, t)?;
        self.stage.publish(t, bodies).await?;
        self.stage.publish(t, [control]).await?;
        controlled(&mut self.worker, t, before + 1.0).await
    }

    /// Writes bodies as one batch.
    async fn batch<B: AsRef<[u8]>>(&mut self, t: DataType, bodies: &[B]) -> Result<(), Error> {
        self.send(t, bodies, &sample::file_complete(t, "20260101", bodies.len())).await
    }

    /// Ends a run for one type, and waits for what that asked for.
    async fn end(&mut self, t: DataType, control: &Value) -> Result<(), Error> {
        self.send::<&[u8]>(t, &[], control.to_string().as_bytes()).await?;
        self.purged().await
    }

    async fn purged(&self) -> Result<(), Error> {
        for _ in 0..300 {
            let open = "SELECT count(*) FROM ingest_purges WHERE finished_at IS NULL";
            if self.postgres.query_one(open, &[]).await?.get::<_, i64>(0) == 0 {
                return Ok(());
            }
            sleep(Duration::from_millis(100)).await;
        }
        Err("a purge did not end within 30 s".into())
    }

    async fn row(&self, t: DataType, id: &str) -> Result<(String, Value, DateTime<Utc>), Error> {
        let query = format!("SELECT hash, data::text, updated_at FROM {t} WHERE data_id = $1");
        let row = self.postgres.query_opt(&query, &[&id]).await?.ok_or_else(|| format!("no row {t} {id}"))?;
        Ok((row.get(0), serde_json::from_str(row.get(1))?, row.get(2)))
    }

    /// Adds rows `PREFIX1`, `PREFIX2`, … with this `updated_at`.
    async fn fill(&self, t: DataType, prefix: &str, count: i32, updated_at: &str) -> Result<(), Error> {
        let insert = format!(
            "INSERT INTO {t} SELECT $1 || i, 'h', '{{}}', $2::text::timestamptz FROM generate_series(1, $3::int) AS i"
        );
        self.postgres.execute(&insert, &[&prefix, &updated_at, &count]).await?;
        Ok(())
    }

    async fn ids(&self, t: DataType) -> Result<Vec<String>, Error> {
        let rows = self.postgres.query(&format!("SELECT data_id FROM {t} ORDER BY data_id COLLATE \"C\""), &[]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    fn outcome(&self, t: DataType, outcome: &str) -> f64 {
        let labels = [format!("data_type=\"{t}\""), format!("outcome=\"{outcome}\"")];
        self.worker.metric("records_committed_total", &[&labels[0], &labels[1]])
    }

    /// Nothing waits, nothing was dead-lettered (but what the test took), and the worker ends well.
    async fn finish(self) -> Result<(), Error> {
        for t in DataType::ALL {
            let letters = self.stage.dead_letters("tableinator", t).await?;
            assert!(letters.is_empty(), "{t}: {} dead letters, e.g. {:?}", letters.len(), letters.first());
        }
        stop_clean(&self.stage, "tableinator", self.worker).await?;
        self.stage.clean_up().await
    }
}

/// An `extraction_complete` without `started_at` and `record_counts`.
fn run(version: &str) -> Value {
    json!({"type": "extraction_complete", "version": version, "timestamp": "2026-01-02T00:00:00Z"})
}

fn run_since(version: &str, started_at: &str) -> Value {
    let mut run = run(version);
    run["started_at"] = json!(started_at);
    run["record_counts"] = json!({"artists": 3, "labels": 3, "masters": 3, "releases": 3});
    run
}

fn incompressible(length: usize) -> String {
    let mut random = fastrand::Rng::with_seed(5);
    (0..length).map(|_| random.alphanumeric()).collect()
}

// ------------------------------------------------------------------------------------------------ schema (§4.1)

/// Everything that pg_indexes must tell, as `name: definition` without the common beginning.
fn contract_indexes() -> Vec<String> {
    let mut indexes = Vec::new();
    for t in DataType::ALL {
        let text = if matches!(t, DataType::Artists | DataType::Labels) { "name" } else { "title" };
        let mut add = |name: &str, method: &str| {
            indexes.push(format!("CREATE INDEX idx_{t}_{name} ON public.{t} USING {method}"));
        };
        add("hash", "btree (hash)");
        add("updated_at", "btree (updated_at)");
        add(text, &format!("btree (((data ->> '{text}'::text)))"));
        let document = format!("COALESCE((data ->> '{text}'::text), ''::text)");
        add("fts", &format!("gin (to_tsvector('english'::regconfig, {document}))"));
        if text == "title" {
            add("year", "btree (((data ->> 'year'::text)))");
        }
        if t == DataType::Releases {
            add("country", "btree (((data ->> 'country'::text)))");
            add("genres", "gin (((data -> 'genres'::text)))");
            add("labels", "gin (((data -> 'labels'::text)))");
        }
        indexes.push(format!("CREATE UNIQUE INDEX {t}_pkey ON public.{t} USING btree (data_id)"));
    }
    indexes.sort();
    indexes
}

async fn texts(client: &Client, query: &str) -> Result<Vec<String>, Error> {
    let mut texts: Vec<String> = client.query(query, &[]).await?.iter().map(|row| row.get(0)).collect();
    texts.sort();
    Ok(texts)
}

const INDEXES: &str = "SELECT indexdef FROM pg_indexes WHERE tablename IN ('artists', 'labels', 'masters', 'releases')";
const OBJECTS: &str = "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace";

async fn assert_contract_schema(client: &Client) -> Result<(), Error> {
    let columns = "SELECT concat_ws(' ', column_name, data_type, character_maximum_length, is_nullable, column_default) \
         FROM information_schema.columns WHERE table_schema = 'public' AND table_name = $1 ORDER BY ordinal_position";
    let primary =
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = $1::text::regclass AND contype = 'p'";
    for t in DataType::ALL {
        let rows = client.query(columns, &[&t.name()]).await?;
        let found: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
        let expected = [
            "data_id character varying NO",
            "hash character varying NO",
            "data jsonb NO",
            "updated_at timestamp with time zone NO now()",
        ];
        assert_eq!(found, expected, "{t}");
        let key: String = client.query_one(primary, &[&t.name()]).await?.get(0);
        assert_eq!(key, "PRIMARY KEY (data_id)", "{t}");
    }
    assert_eq!(texts(client, INDEXES).await?, contract_indexes());
    let ours = ["artists", "labels", "masters", "releases"];
    for table in texts(client, &format!("{OBJECTS} AND relkind = 'r'")).await? {
        assert!(ours.contains(&&*table) || table.starts_with("ingest_"), "unexpected table {table}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_database_gets_the_contract_s_schema() -> Result<(), Error> {
    let mut fed = Fed::new("schema", &[]).await?;
    assert_contract_schema(&fed.postgres).await?;
    // Every index is used by a real row: an expression that can't take one would show here.
    let body = r#"{"id":"1","title":"T","released":"1999","country":"DE","genres":["Rock"],"labels":[{"id":"1"}]}"#;
    fed.batch(DataType::Releases, &[body]).await?;
    assert_eq!(fed.ids(DataType::Releases).await?, ["1"]);
    let default = "INSERT INTO artists (data_id, hash, data) VALUES ('d', '', '{}') RETURNING updated_at = now()";
    assert!(fed.postgres.query_one(default, &[]).await?.get::<_, bool>(0));
    fed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_schema_is_left_alone() -> Result<(), Error> {
    let stage = Stage::new("older").await?;
    let client = stage.postgres().await?;
    let older = "
        CREATE TABLE artists (data_id VARCHAR PRIMARY KEY, hash VARCHAR NOT NULL, data JSONB NOT NULL,
            updated_at TIMESTAMPTZ NOT NULL DEFAULT NOW(), remark TEXT DEFAULT 'none', CHECK (length(data_id) < 5000));
        CREATE INDEX artists_by_remark ON artists (remark);
        CREATE INDEX idx_artists_hash ON artists (hash, data_id);
        INSERT INTO artists VALUES ('1', 'h', '{\"a\": 1}', '2020-01-01T00:00:00Z', 'mine'), ('2', 'h', '{}', '2020-01-01T00:00:00Z', 'mine');
        CREATE TABLE users (id INT PRIMARY KEY);
        INSERT INTO users VALUES (7);";
    client.batch_execute(older).await?;
    let columns = "SELECT concat_ws(' ', table_name, ordinal_position, column_name, data_type, is_nullable, column_default) \
         FROM information_schema.columns WHERE table_name IN ('artists', 'users')";
    let constraints = "SELECT conrelid::regclass || pg_get_constraintdef(oid) FROM pg_constraint \
         WHERE conrelid IN ('artists'::regclass, 'users'::regclass)";
    let rows = "SELECT concat_ws(' ', data_id, hash, data, updated_at, remark, xmin) FROM artists";
    let before = (texts(&client, columns).await?, texts(&client, constraints).await?, texts(&client, rows).await?);

    let mut fed = Fed::on(stage, &[]).await?;
    let after = (texts(&client, columns).await?, texts(&client, constraints).await?, texts(&client, rows).await?);
    assert_eq!(after, before);
    assert_eq!(texts(&client, "SELECT id::text FROM users").await?, ["7"]);
    let mut expected = contract_indexes();
    expected.retain(|index| !index.contains(" idx_artists_hash "));
    expected.push("CREATE INDEX idx_artists_hash ON public.artists USING btree (hash, data_id)".to_owned());
    expected.push("CREATE INDEX artists_by_remark ON public.artists USING btree (remark)".to_owned());
    expected.sort();
    assert_eq!(texts(&client, INDEXES).await?, expected);

    // And it serves: a column that we don't know keeps its value through an update, and its default in an insert.
    fed.batch(DataType::Artists, &[r#"{"id":"1","sha256":"i"}"#, r#"{"id":"3","sha256":"i"}"#]).await?;
    let remarks = "SELECT concat_ws(' ', data_id, hash, remark) FROM artists";
    assert_eq!(texts(&client, remarks).await?, ["1 i mine", "2 h mine", "3 i none"]);

    // A restart finds everything there and creates nothing.
    let created = fed.worker.log_text().matches("🏗️ Created").count();
    assert!(created > 0);
    let second = fed.stage.start("tableinator", &[]).await?;
    assert_eq!(second.log_text().matches("🏗️ Created").count(), created);
    drop(second);
    fed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn three_at_once_on_an_empty_database() -> Result<(), Error> {
    let stage = Stage::new("three").await?;
    // RabbitMQ answers three first declarations of one quorum queue at the same time with INTERNAL_ERROR, now and then.
    // The workers get over it, but this is about the database.
    stage.declare("tableinator").await?;
    let mut workers = Vec::new();
    for _ in 0..3 {
        workers.push(stage.spawn("tableinator", &[])?);
    }
    for worker in &mut workers {
        worker.ready().await?;
    }
    let client = stage.postgres().await?;
    assert_contract_schema(&client).await?;
    // All three log to one file. Without the lock two of them run into "duplicate key".
    let log = workers[0].log_text();
    assert!(!log.contains(r#""level":"error""#), "{log}");
    let objects = texts(&client, &format!("{OBJECTS} AND relname NOT LIKE '%\\_pkey'")).await?;
    assert_eq!(log.matches("🏗️ Created").count(), objects.len(), "each object is created once: {objects:?}\n{log}");
    for worker in workers {
        assert_eq!(worker.stop().await?.code(), Some(0));
    }
    stage.clean_up().await
}

#[tokio::test(flavor = "multi_thread")]
async fn check_only_looks() -> Result<(), Error> {
    let stage = Stage::new("check").await?;
    let client = stage.postgres().await?;
    let check = [("SCHEMA", "check")];
    let lacks = |what: &'static str| {
        move |w: &Worker| w.get("/ready").is_ok_and(|(code, body)| code == 503 && body.contains(what))
    };
    let limit = Duration::from_secs(30);

    let mut worker = stage.spawn("tableinator", &check)?;
    worker.until("not ready for want of tables", limit, lacks("idx_releases_labels")).await?;
    assert!(lacks("artists")(&worker));
    assert_eq!(texts(&client, OBJECTS).await?, Vec::<String>::new(), "something was created");

    // It notices by itself that somebody else created them.
    let other = stage.start("tableinator", &[]).await?;
    worker.ready().await?;
    assert_eq!(other.stop().await?.code(), Some(0));
    assert_eq!(worker.stop().await?.code(), Some(0));

    // One index is missed as well.
    client.batch_execute("DROP INDEX idx_labels_fts").await?;
    let before = texts(&client, OBJECTS).await?;
    let mut worker = stage.spawn("tableinator", &check)?;
    worker.until("not ready for want of an index", limit, lacks("idx_labels_fts")).await?;
    assert!(!lacks("idx_labels_hash")(&worker));
    assert_eq!(texts(&client, OBJECTS).await?, before);
    assert_eq!(worker.stop().await?.code(), Some(0));

    // `off` does not even look.
    let worker = stage.start("tableinator", &[("SCHEMA", "off")]).await?;
    assert_eq!(texts(&client, OBJECTS).await?, before);
    assert_eq!(worker.stop().await?.code(), Some(0));
    stage.clean_up().await
}

// -------------------------------------------------------------------------------- contents of rows (§2.2, §3, §4.2)

/// Type, message, and what the row must be: id, hash, data.
const ROWS: &[(DataType, &str, &str, &str, &str)] = &[
    // `id` twice; all of the message is kept, type, id and sha256 too.
    (
        DataType::Artists,
        r#"{"type":"data","id":"9","sha256":"9328b2187029e0b621913fa961c932d33c7b6c14f16cffe5abb7e91fb64f5a85","id":"9"}"#,
        "9",
        "9328b2187029e0b621913fa961c932d33c7b6c14f16cffe5abb7e91fb64f5a85",
        r#"{"type":"data","id":"9","sha256":"9328b2187029e0b621913fa961c932d33c7b6c14f16cffe5abb7e91fb64f5a85"}"#,
    ),
    (
        DataType::Artists,
        r#"{"type":"data","id":"unknown","sha256":"h","id":"10","name":"first","name":"last"}"#,
        "10",
        "h",
        r#"{"type":"data","id":"10","sha256":"h","name":"last"}"#,
    ),
    // Numbers are exact, whatever their size.
    (
        DataType::Artists,
        r#"{"id":"n","sha256":"h","a":[123456789012345678901234567890,-9223372036854775809,18446744073709551616,0.1,1.50,
            -0.0,1e2,12345678901234567890.123456789012345678,1e400,-1E-400,3.141592653589793238462643383279]}"#,
        "n",
        "h",
        r#"{"id":"n","sha256":"h","a":[123456789012345678901234567890,-9223372036854775809,18446744073709551616,0.1,1.5,
            0,100,12345678901234567890.123456789012345678,1e400,-1E-400,3.141592653589793238462643383279]}"#,
    ),
    // Escapes and scripts.
    (
        DataType::Labels,
        "{\"id\":\"e\",\"sha256\":\"h\",\"name\":\"a\\\"b\\\\c\\/\\t\\u0001\u{7f}\u{2028}é😀\\ud83d\\ude00\\u00e9日本 \\\\u0000\"}",
        "e",
        "h",
        "{\"id\":\"e\",\"sha256\":\"h\",\"name\":\"a\\\"b\\\\c/\\u0009\\u0001\\u007f\\u2028\\u00e9\\ud83d\\ude00😀é日本 \\\\u0000\"}",
    ),
    // Shapes and blank space.
    (
        DataType::Labels,
        "\n { \"id\" :\t\"s\" , \"sha256\":\"h\",\r\n\"x\":{\"@a\":null,\"#text\":[],\"\":{}},\"y\":[null,[[]],{},true,false,\"\"]} \n",
        "s",
        "h",
        r##"{"id":"s","sha256":"h","x":{"@a":null,"#text":[],"":{}},"y":[null,[[]],{},true,false,""]}"##,
    ),
    // NUL can't be stored: it is replaced in values, keys, ids and hashes.
    (
        DataType::Labels,
        r#"{"id":"z\u0000z","sha256":"h\u0000","name":"a\u0000\u0000b\\\u0000","k\u0000":"\\u0000"}"#,
        "z\u{fffd}z",
        "h\u{fffd}",
        r#"{"id":"z\ufffdz","sha256":"h\ufffd","name":"a\ufffd\ufffdb\\\ufffd","k\ufffd":"\\u0000"}"#,
    ),
    // An integer id is its digits.
    (DataType::Labels, r#"{"id":77,"sha256":"h"}"#, "77", "h", r#"{"id":77,"sha256":"h"}"#),
    (
        DataType::Labels,
        r#"{"id":123456789012345678901234567890,"sha256":"h"}"#,
        "123456789012345678901234567890",
        "h",
        r#"{"id":123456789012345678901234567890,"sha256":"h"}"#,
    ),
    // No hash: the column is empty, the message stays as it is.
    (DataType::Labels, r#"{"id":"no","name":"x"}"#, "no", "", r#"{"id":"no","name":"x"}"#),
    (DataType::Labels, r#"{"id":"null","sha256":null}"#, "null", "", r#"{"id":"null","sha256":null}"#),
    // What is no known control message is a record.
    (DataType::Labels, r#"{"type":"what?","id":"t"}"#, "t", "", r#"{"type":"what?","id":"t"}"#),
    (DataType::Labels, r#"{"type":null,"id":"t2"}"#, "t2", "", r#"{"type":null,"id":"t2"}"#),
    (DataType::Labels, r#"{"type":["file_complete"],"id":"t3"}"#, "t3", "", r#"{"type":["file_complete"],"id":"t3"}"#),
    // Only masters and releases get a year; artists and labels keep what they have.
    (
        DataType::Artists,
        r#"{"id":"y","year":"2001","released":"1999"}"#,
        "y",
        "",
        r#"{"id":"y","year":"2001","released":"1999"}"#,
    ),
    (
        DataType::Masters,
        r#"{"type":"data","id":"7","sha256":"d476fcf776a5aaabccba34ab7e5be3617c85a140b945828cda9db92bf0e562d3","id":"7","title":"NoYear","year":"0"}"#,
        "7",
        "d476fcf776a5aaabccba34ab7e5be3617c85a140b945828cda9db92bf0e562d3",
        r#"{"type":"data","id":"7","sha256":"d476fcf776a5aaabccba34ab7e5be3617c85a140b945828cda9db92bf0e562d3","title":"NoYear","year":null}"#,
    ),
    (DataType::Masters, r#"{"id":"8","year":"2001"}"#, "8", "", r#"{"id":"8","year":2001}"#),
    (DataType::Masters, r#"{"id":"8a","released":"2001"}"#, "8a", "", r#"{"id":"8a","released":"2001","year":null}"#),
    (DataType::Masters, r#"{"\u0079ear":"1999","id":"8b","year":"2001"}"#, "8b", "", r#"{"id":"8b","year":2001}"#),
    (DataType::Masters, r#"{"year":"2001","id":"8c","\u0079ear":"1999"}"#, "8c", "", r#"{"id":"8c","year":1999}"#),
    (
        DataType::Releases,
        r#"{"id":"9","released":"1999-03-00","tracklist":{"track":[{"position":"A1","title":"}"}]}}"#,
        "9",
        "",
        r#"{"id":"9","released":"1999-03-00","year":1999,"tracklist":{"track":[{"position":"A1","title":"}"}]}}"#,
    ),
    // An incoming year is overwritten.
    (
        DataType::Releases,
        r#"{"id":"10","year":2020,"released":"1999"}"#,
        "10",
        "",
        r#"{"id":"10","year":1999,"released":"1999"}"#,
    ),
    (DataType::Releases, "{\"id\":\"11\",\"year\":\"2020\"}\r\n", "11", "", r#"{"id":"11","year":null}"#),
    (
        DataType::Releases,
        r#"{"id":"12","released":null,"year":{"a":"}"}}"#,
        "12",
        "",
        r#"{"id":"12","released":null,"year":null}"#,
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_the_messages() -> Result<(), Error> {
    let mut fed = Fed::new("rows", &[]).await?;
    let mut messages = Messages::default();
    for (t, bodies) in [
        (DataType::Artists, &mut messages.artists),
        (DataType::Labels, &mut messages.labels),
        (DataType::Masters, &mut messages.masters),
        (DataType::Releases, &mut messages.releases),
    ] {
        bodies.extend(ROWS.iter().filter(|row| row.0 == t).map(|row| row.1.as_bytes().to_vec()));
        fed.batch(t, bodies).await?;
    }
    for (t, body, id, hash, data) in ROWS {
        let query = format!("SELECT hash, data = $2::text::jsonb, data::text FROM {t} WHERE data_id = $1");
        let row = fed.postgres.query_opt(&query, &[id, data]).await?.ok_or_else(|| format!("{t} has no {id:?}"))?;
        assert_eq!(row.get::<_, &str>(0), *hash, "{body}");
        assert!(row.get::<_, bool>(1), "{body} became {}", row.get::<_, &str>(2));
    }
    // And nothing else came about. (The oracle rounds fractions to 64 bits.)
    let mut expected = oracle::expected(&messages).tables;
    let mut actual = states::read_tables(&fed.postgres).await?;
    for tables in [&mut expected, &mut actual] {
        tables.get_mut("artists").and_then(|rows| rows.remove("n")).ok_or("the numbers")?;
    }
    states::compare_tables(&actual, &expected)?;
    let name: String =
        fed.postgres.query_one("SELECT data->>'name' FROM labels WHERE data_id = 'e'", &[]).await?.get(0);
    assert_eq!(name, "a\"b\\c/\t\u{1}\u{7f}\u{2028}é😀😀é日本 \\u0000");
    fed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn years() -> Result<(), Error> {
    let this = Utc::now().year();
    let cases: Vec<(String, Option<i32>)> = [
        (r#""1999""#, 1999),
        (r#""1999-03""#, 1999),
        (r#""1999-03-00""#, 1999),
        (r#""19690""#, 1969),
        (r#""1860""#, 1860),
        (r#""1859""#, 0),
        (r#""0400-01-01""#, 0),
        (r#""2""#, 0),
        (r#""0""#, 0),
        (r#""Unknown""#, 0),
        (r#""""#, 0),
        (r#""   ""#, 0),
        ("null", 0),
        ("1999", 1999),
        ("19990", 0),
        ("1859", 0),
        ("-1999", 0),
        ("123456789012345678901234567890", 0),
        // Appendix D, 9.
        (r#"" 2001 ""#, 2001),
        (r#""\t\n2001""#, 2001),
        ("1999.5", 1999),
        ("1.9995e3", 1999),
        (r#""١٩٩٩""#, 1999),
        (r#""+199""#, 0),
        (r#""1_99""#, 0),
        ("true", 0),
        ("false", 0),
        ("[1999]", 0),
        (r#"{"year":1999}"#, 0),
    ]
    .map(|(json, year)| (json.to_owned(), (year > 0).then_some(year)))
    .into_iter()
    .chain([(format!("\"{}\"", this + 1), Some(this + 1)), (format!("\"{}\"", this + 2), None)])
    .chain([((this + 1).to_string(), Some(this + 1)), ((this + 2).to_string(), None)])
    .collect();
    let mut fed = Fed::new("years", &[]).await?;
    let bodies = |field: &str| -> Vec<String> {
        let body = |(at, (json, _)): (usize, &(String, _))| format!(r#"{{"id":"i{at}","{field}":{json}}}"#);
        cases.iter().enumerate().map(body).collect()
    };
    fed.batch(DataType::Masters, &bodies("year")).await?;
    fed.batch(DataType::Releases, &bodies("released")).await?;
    for t in [DataType::Masters, DataType::Releases] {
        for (at, (json, year)) in cases.iter().enumerate() {
            let (_, data, _) = fed.row(t, &format!("i{at}")).await?;
            assert_eq!(data.get("year"), Some(&json!(year)), "{t} {json}");
        }
    }
    fed.finish().await
}

// ------------------------------------------------------------------------------------ what is written when (§4.3)

fn version(id: &str, hash: &str, v: &str) -> String {
    format!(r#"{{"type":"data","id":"{id}","sha256":"{hash}","id":"{id}","v":"{v}"}}"#)
}

/// Touched, if somebody reads `updated_at`; otherwise their ids are noted, and the rows stay as they are.
#[tokio::test(flavor = "multi_thread")]
async fn unchanged_rows_are_not_written() -> Result<(), Error> {
    for touch in [false, true] {
        let t = DataType::Labels;
        let mut fed = Fed::new("unchanged", if touch { &[("POSTGRES_UNCHANGED", "touch")] } else { &[] }).await?;
        let clock = "SELECT clock_timestamp()";
        let before: DateTime<Utc> = fed.postgres.query_one(clock, &[]).await?.get(0);
        fed.batch(t, &[version("same", "A", "1"), version("other", "A", "1"), version("absent", "A", "1")]).await?;
        let between: DateTime<Utc> = fed.postgres.query_one(clock, &[]).await?.get(0);
        let first = fed.row(t, "same").await?;
        assert!(before < first.2 && first.2 < between, "{before} {} {between}", first.2);
        assert_eq!((fed.outcome(t, "inserted"), fed.outcome(t, "unchanged")), (3.0, 0.0));
        let place = "SELECT ctid::text FROM labels WHERE data_id = 'same'";
        let at: String = fed.postgres.query_one(place, &[]).await?.get(0);

        // The contents of `same` differ though its hash says otherwise: that shows that the row was not written.
        fed.batch(t, &[version("new", "A", "2"), version("same", "A", "2"), version("other", "B", "2")]).await?;
        let same = fed.row(t, "same").await?;
        assert_eq!((same.0.as_str(), &same.1), ("A", &first.1));
        let other = fed.row(t, "other").await?;
        assert_eq!((other.0.as_str(), &other.1["v"]), ("B", &json!("2")));
        let absent = fed.row(t, "absent").await?;
        assert_eq!(absent.2, first.2, "a row that was not in the batch");
        // All of a batch have one time: that of its transaction.
        assert_eq!(fed.row(t, "new").await?.2, other.2);
        assert_eq!(same.2, if touch { other.2 } else { first.2 });
        let outcomes = ["inserted", "updated", "unchanged", "deduplicated"].map(|o| fed.outcome(t, o));
        assert_eq!(outcomes, [4.0, 1.0, 1.0, 0.0]);

        // A batch in which everything is unchanged.
        fed.batch(t, &[version("same", "A", "3"), version("other", "B", "3")]).await?;
        let again = fed.row(t, "same").await?;
        assert_eq!(again.1, first.1);
        assert_eq!(again.2 > same.2, touch);
        assert_eq!(fed.row(t, "other").await?, ("B".to_owned(), other.1, if touch { again.2 } else { other.2 }));
        assert_eq!(fed.outcome(t, "unchanged"), 3.0);
        let now: String = fed.postgres.query_one(place, &[]).await?.get(0);
        assert_eq!(now != at, touch, "the row is where it was");
        let notes = "SELECT data_type || ' ' || array_to_string(ids, ',') FROM ingest_seen ORDER BY at";
        let notes = texts(&fed.postgres, notes).await?;
        assert_eq!(notes, if touch { vec![] } else { vec!["labels other,same", "labels same"] });
        fed.finish().await?;
    }
    Ok(())
}

/// Waits until a query counts one.
async fn one_of(client: &Client, query: &str) -> Result<(), Error> {
    let is_one = async || Ok(client.query_one(query, &[]).await?.get::<_, i64>(0) == 1);
    within(Duration::from_secs(15), "one", is_one).await
}

/// A note locks no row, so batch and purge must keep each other away: what a batch has found unchanged is there afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn a_purge_waits_for_batches_that_are_under_way() -> Result<(), Error> {
    let t = DataType::Labels;
    let mut fed = Fed::new("underway", &[]).await?;
    fed.fill(t, "found", 1, LONG_AGO).await?;
    fed.fill(t, "stale", 1, LONG_AGO).await?;
    fed.fill(t, "fresh", 3, FAR_AHEAD).await?;
    // What a batch does that found `found1` unchanged and is about to say so.
    let mut other = fed.stage.postgres().await?;
    let batch = other.transaction().await?;
    batch.batch_execute(&tableinator::purge::enter(t)).await?;
    let end = run_since("20260101", "2026-01-01T12:00:00Z").to_string();
    fed.send::<&[u8]>(t, &[], end.as_bytes()).await?;
    let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = \
                 (SELECT oid FROM pg_database WHERE datname = current_database())";
    one_of(&fed.postgres, waits).await?;
    batch.batch_execute("INSERT INTO ingest_seen (data_type, ids) VALUES ('labels', '{found1}')").await?;
    batch.commit().await?;
    fed.purged().await?;
    assert_eq!(fed.ids(t).await?, ["found1", "fresh1", "fresh2", "fresh3"]);
    fed.finish().await
}

/// Notes are of use until the next purge.
#[tokio::test(flavor = "multi_thread")]
async fn a_purge_forgets_what_was_seen_before_its_run() -> Result<(), Error> {
    let t = DataType::Labels;
    let mut fed = Fed::new("notes", &[]).await?;
    let row = version("1", "A", "1");
    fed.batch(t, &[&row]).await?;
    fed.batch(t, &[&row]).await?;
    let notes = "SELECT data_type || ' ' || array_to_string(ids, ',') FROM ingest_seen";
    fed.postgres.batch_execute("INSERT INTO ingest_seen (data_type, ids) VALUES ('artists', '{7}')").await?;
    fed.end(t, &run_since("20200101", LONG_AGO)).await?;
    assert_eq!(texts(&fed.postgres, notes).await?, ["artists 7", "labels 1"], "seen in this run");
    fed.batch(t, &[version("2", "A", "1")]).await?;
    let started_at = now();
    fed.batch(t, &[version("2", "B", "1"), version("3", "A", "1"), version("4", "A", "1")]).await?;
    fed.end(t, &run_since("20200201", &started_at)).await?;
    assert_eq!(texts(&fed.postgres, notes).await?, ["artists 7"]);
    assert_eq!(fed.ids(t).await?, ["2", "3", "4"]);
    fed.finish().await
}

/// Whoever inserts a record between our look and our COPY costs us that COPY, not the record.
#[tokio::test(flavor = "multi_thread")]
async fn somebody_else_may_insert_the_same_records() -> Result<(), Error> {
    let t = DataType::Labels;
    let mut fed = Fed::new("sametime", &[]).await?;
    let mut other = fed.stage.postgres().await?;
    let theirs = other.transaction().await?;
    theirs.batch_execute("INSERT INTO labels VALUES ('2', 'theirs', '{}')").await?;
    let before = controls(&fed.worker, t)?;
    fed.stage.publish(t, ["1", "2", "3"].map(|id| version(id, "A", "1"))).await?;
    fed.stage.publish(t, [sample::file_complete(t, "20260101", 3)]).await?;
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'COPY labels%' \
                 AND datname = current_database()";
    one_of(&fed.postgres, waits).await?;
    theirs.commit().await?;
    controlled(&mut fed.worker, t, before + 1.0).await?;
    let rows = "SELECT data_id || ' ' || hash FROM labels ORDER BY data_id";
    assert_eq!(texts(&fed.postgres, rows).await?, ["1 A", "2 A", "3 A"]);
    assert_eq!((fed.outcome(t, "inserted"), fed.outcome(t, "updated")), (2.0, 1.0));
    fed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn records_without_hash_are_always_written() -> Result<(), Error> {
    let t = DataType::Artists;
    let mut fed = Fed::new("nohash", &[]).await?;
    // Stored and new hash are equal in each step but the last two: both empty.
    let steps = [
        (r#"{"id":"1","v":"0"}"#, ""),
        (r#"{"id":"1","v":"1"}"#, ""),
        (r#"{"id":"1","sha256":null,"v":"2"}"#, ""),
        (r#"{"id":"1","sha256":null,"v":"3"}"#, ""),
        (r#"{"id":"1","sha256":"","v":"4"}"#, ""),
        (r#"{"id":"1","v":"5"}"#, ""),
        (r#"{"id":"1","sha256":"A","v":"6"}"#, "A"),
        (r#"{"id":"1","v":"7"}"#, ""),
    ];
    for (at, (body, hash)) in steps.iter().enumerate() {
        fed.batch(t, &[body]).await?;
        let row = fed.row(t, "1").await?;
        assert_eq!((row.0.as_str(), &row.1), (*hash, &serde_json::from_str(body)?), "step {at}");
    }
    assert_eq!(["inserted", "updated", "unchanged"].map(|o| fed.outcome(t, o)), [1.0, 7.0, 0.0]);
    fed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_version_in_a_batch_wins() -> Result<(), Error> {
    let t = DataType::Masters;
    let mut fed = Fed::new("versions", &[]).await?;
    fed.batch(t, &[version("a", "A", "A"), version("b", "A", "A"), version("c", "A", "A")]).await?;
    fed.batch(
        t,
        &[
            version("a", "B", "B"),
            version("new", "A", "A"),
            version("b", "B", "B"),
            version("c", "B", "B"),
            version("new", "B", "B"),
            version("a", "A", "A"), // the stored one again: it must win over B
            version("b", "C", "C"),
            version("c", "A", "A"),
            version("new", "C", "C"),
            version("c", "D", "D"),
        ],
    )
    .await?;
    for (id, last) in [("a", "A"), ("b", "C"), ("c", "D"), ("new", "C")] {
        let row = fed.row(t, id).await?;
        assert_eq!((row.0.as_str(), row.1["v"].as_str()), (last, Some(last)), "{id}");
    }
    assert_eq!(fed.outcome(t, "deduplicated"), 6.0);
    assert_eq!(fed.worker.metric("batches_total", &[]), 2.0, "this was to be one batch each");

    // Two ids that become one when NUL is replaced: neither may cost the other, or their neighbours.
    fed.batch(t, &[r#"{"id":"x\u0000"}"#, r#"{"id":"x\ufffd"}"#, r#"{"id":"y"}"#]).await?;
    assert_eq!(fed.ids(t).await?, ["a", "b", "c", "new", "x\u{fffd}", "y"]);
    fed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_version_wins_across_batches_in_flight() -> Result<(), Error> {
    let small = [("POSTGRES_BATCH_SIZE", "5"), ("POSTGRES_WRITERS", "4")];
    let mut fed = Fed::new("inflight", &small).await?;
    let mut random = fastrand::Rng::with_seed(3);
    // Few ids that are in nearly every batch; many that let batches run side by side; and few contents, so that
    // "unchanged" is decided against a row that may be about to change.
    let mut expected = Vec::new();
    for (t, ids, contents) in
        [(DataType::Artists, 3, 1_000_000), (DataType::Labels, 100, 1_000_000), (DataType::Masters, 8, 3)]
    {
        let mut last = vec![None; ids];
        let bodies: Vec<String> = (0..1500)
            .map(|_| {
                let (id, v) = (random.usize(..ids), random.usize(..contents).to_string());
                last[id] = Some(v.clone());
                version(&id.to_string(), &format!("h{v}"), &v)
            })
            .collect();
        fed.stage.publish(t, &bodies).await?;
        expected.push((t, last));
    }
    for (t, last) in expected {
        fed.batch::<&str>(t, &[]).await?;
        for (id, v) in last.into_iter().enumerate() {
            let v = v.ok_or("every id occurs")?;
            let row = fed.row(t, &id.to_string()).await?;
            assert_eq!((row.0, row.1["v"].as_str()), (format!("h{v}"), Some(v.as_str())), "{t} {id}");
        }
    }
    assert!(fed.worker.metric("batches_total", &[r#"trigger="count""#]) >= 900.0);
    fed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn record_by_record_the_tables_are_the_same() -> Result<(), Error> {
    let stage = Stage::new("single").await?;
    let mut worker = stage.start("tableinator", &[("POSTGRES_BATCH_MODE", "false")]).await?;
    let spec = Spec { seed: 11, records: 300 };
    let months = [sample::generate(&spec), sample::next_month(&spec, 0.3, 0.0)];
    let mut all = Messages::default();
    let mut count = 0;
    for Sample { artists, labels, masters, releases } in months {
        let month = Messages { artists, labels, masters, releases };
        count += stage.publish_month(&month, "20260101").await?;
        all.artists.extend(month.artists);
        all.labels.extend(month.labels);
        all.masters.extend(month.masters);
        all.releases.extend(month.releases);
    }
    settled(&mut worker, count).await?;
    let expected = oracle::expected(&all).tables;
    let client = stage.postgres().await?;
    states::compare_tables(&states::read_tables(&client).await?, &expected)?;

    let rows: usize = expected.values().map(std::collections::BTreeMap::len).sum();
    let outcome = |o: &str| worker.metric("records_committed_total", &[&format!("outcome=\"{o}\"")]);
    assert_eq!(outcome("inserted"), rows as f64);
    assert!(outcome("updated") > 20.0 && outcome("unchanged") > 100.0);
    assert_eq!(worker.metric("batches_total", &[]), count as f64);
    // One transaction each: hardly two rows have the same time.
    let times = "SELECT count(DISTINCT updated_at), count(*) FROM releases";
    let times = client.query_one(times, &[]).await?;
    assert!(times.get::<_, i64>(0) * 10 > times.get::<_, i64>(1) * 9);
    Fed { stage, worker, postgres: client }.finish().await
}

// ------------------------------------------------------------------------------------------------- purge (§4.7, §4.8)

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_deletes_exactly_what_the_run_did_not_see() -> Result<(), Error> {
    let stage = Stage::new("purge").await?;
    // A time without a zone must not be taken for one in the server's zone.
    let zone = format!("ALTER DATABASE {} SET timezone = 'Asia/Tokyo'", stage.database);
    stage.postgres().await?.batch_execute(&zone).await?;
    let mut fed = Fed::on(stage, &[("TZ", "Asia/Tokyo")]).await?;
    // How each run writes 12:00:00.123456 UTC.
    let runs = [
        (DataType::Artists, "2026-01-01T12:00:00.123456789Z"),
        (DataType::Labels, "2026-01-01T12:00:00.123456"),
        (DataType::Masters, "2026-01-01T14:00:00.1234560+02:00"),
        (DataType::Releases, "2026-01-01 12:00:00.123456"),
    ];
    for (t, _) in runs {
        fed.fill(t, "before", 1, "2026-01-01T12:00:00.123455Z").await?;
        fed.fill(t, "ancient", 2, LONG_AGO).await?;
        fed.fill(t, "at", 1, "2026-01-01T12:00:00.123456Z").await?;
        fed.fill(t, "after", 1, "2026-01-01T12:00:00.123457Z").await?;
        fed.fill(t, "touched", 1, LONG_AGO).await?;
        fed.fill(t, "changed", 1, LONG_AGO).await?;
    }
    for (at, (t, started_at)) in runs.into_iter().enumerate() {
        // A file that is complete deletes nothing.
        fed.batch::<&str>(t, &[]).await?;
        assert_eq!(fed.ids(t).await?.len(), 7, "{t}");
        let seen = [version("touched1", "h", "1"), version("changed1", "i", "1"), version("new1", "h", "1")];
        let end = run_since("20260101", started_at).to_string();
        fed.send(t, &seen, end.as_bytes()).await?;
        fed.purged().await?;
        assert_eq!(fed.ids(t).await?, ["after1", "at1", "changed1", "new1", "touched1"], "{t} {started_at}");
        // Every type on its own signal.
        for (later, _) in &runs[at + 1..] {
            assert_eq!(fed.ids(*later).await?.len(), 7, "{later} after the end of {t}");
        }
    }
    fed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn guards_of_the_purge() -> Result<(), Error> {
    let mut fed = Fed::new("guards", &[]).await?;
    let t = DataType::Artists;
    fed.fill(t, "stale", 2, LONG_AGO).await?;
    fed.fill(t, "fresh", 8, FAR_AHEAD).await?;
    let started_at = "2026-01-01T00:00:00Z";
    // Where it is not known what the run was, nothing is deleted, and the signal is done with all the same.
    let unknown =
        [json!(""), Value::Null, json!("yesterday"), json!("2026-13-01T00:00:00Z"), json!(5), json!([started_at])];
    for (at, unknown) in unknown.into_iter().enumerate() {
        let mut run = run_since(&format!("unknown{at}"), "");
        run["started_at"] = unknown.clone();
        fed.end(t, &run).await?;
        assert_eq!(fed.ids(t).await?.len(), 10, "started_at {unknown}");
    }
    fed.end(t, &run("missing")).await?;
    assert_eq!(fed.ids(t).await?.len(), 10, "no started_at");
    // A run without records of this type.
    let mut none = run_since("none", started_at);
    none["record_counts"]["artists"] = json!(0);
    fed.end(t, &none).await?;
    assert_eq!(fed.ids(t).await?.len(), 10, "no records");
    // A run that does not say how many there were.
    let mut silent = run_since("silent", started_at);
    silent["record_counts"] = json!({"labels": 0});
    fed.end(t, &silent).await?;
    assert_eq!(fed.ids(t).await?.len(), 8, "a missing count is no reason to skip");
    for (at, counts) in [Value::Null, json!({"artists": null}), json!({})].into_iter().enumerate() {
        fed.fill(t, "stale", 2, LONG_AGO).await?;
        let mut silent = run_since(&format!("silent{at}"), started_at);
        silent["record_counts"] = counts.clone();
        fed.end(t, &silent).await?;
        assert_eq!(fed.ids(t).await?.len(), 8, "{counts}");
    }

    // The share that a purge may delete: 90 % is too much, 89 % is not.
    let t = DataType::Labels;
    fed.fill(t, "fresh", 10, FAR_AHEAD).await?;
    fed.fill(t, "stale", 90, LONG_AGO).await?;
    fed.end(t, &run_since("r1", started_at)).await?;
    assert_eq!(fed.ids(t).await?.len(), 100, "90 %");
    fed.fill(t, "more", 2, FAR_AHEAD).await?;
    fed.end(t, &run_since("r2", started_at)).await?;
    assert_eq!(fed.ids(t).await?.len(), 12, "less than 90 %");
    let t = DataType::Masters;
    fed.fill(t, "stale", 10, LONG_AGO).await?;
    fed.end(t, &run_since("r1", started_at)).await?;
    assert_eq!(fed.ids(t).await?.len(), 10, "all");
    fed.fill(t, "fresh", 2, FAR_AHEAD).await?;
    fed.fill(t, "fresh_", 1, FAR_AHEAD).await?;
    fed.end(t, &run_since("r2", started_at)).await?;
    assert_eq!(fed.ids(t).await?.len(), 3, "10 of 13");
    // An empty table is fine.
    fed.end(DataType::Releases, &run_since("r1", started_at)).await?;
    fed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_share_of_a_purge_can_be_set() -> Result<(), Error> {
    let mut fed = Fed::new("share", &[("PURGE_MAX_DELETE_FRACTION", "0.5")]).await?;
    for (t, stale, left) in [(DataType::Artists, 5, 10), (DataType::Labels, 4, 5)] {
        fed.fill(t, "fresh", 5, FAR_AHEAD).await?;
        fed.fill(t, "stale", stale, LONG_AGO).await?;
        fed.end(t, &run_since("20260101", "2026-01-01T00:00:00Z")).await?;
        assert_eq!(fed.ids(t).await?.len(), left, "{t}: {stale} stale rows beside 5");
    }
    fed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_prevents_that_type_s_purge_in_this_run() -> Result<(), Error> {
    let mut fed = Fed::new("deadletter", &[]).await?;
    let started_at = now();
    let types = [DataType::Artists, DataType::Labels, DataType::Masters];
    for t in types {
        fed.fill(t, "stale", 1, LONG_AGO).await?;
        fed.fill(t, "fresh", 8, FAR_AHEAD).await?;
    }
    // The row of `stale1` is stale only because its new version can't be stored; that of a master because its message is broken.
    let refused = format!(r#"{{"id":"stale1","sha256":"i","name":"{}"}}"#, incompressible(6000));
    fed.batch(DataType::Artists, &[refused.as_str(), r#"{"id":"good"}"#]).await?;
    fed.batch(DataType::Masters, &[r#"{"id":"stale1","sha256":"#]).await?;
    for (t, body) in [(DataType::Artists, refused.as_str()), (DataType::Masters, r#"{"id":"stale1","sha256":"#)] {
        let letters = fed.stage.dead_letters("tableinator", t).await?;
        assert_eq!(letters.iter().map(|l| &l.body[..]).collect::<Vec<_>>(), [body.as_bytes()], "{t}");
    }
    // A restart does not forget it.
    let Fed { stage, worker, .. } = fed;
    stop_clean(&stage, "tableinator", worker).await?;
    let mut fed = Fed::on(stage, &[]).await?;
    for t in types {
        fed.end(t, &run_since("20260101", &started_at)).await?;
        let stays = t != DataType::Labels;
        assert_eq!(fed.ids(t).await?.contains(&"stale1".to_owned()), stays, "{t}");
    }
    // The next run is not concerned.
    for t in types {
        fed.end(t, &run_since("20260201", &now())).await?;
        assert!(!fed.ids(t).await?.contains(&"stale1".to_owned()), "{t}");
    }
    fed.finish().await
}

/// The broker dead-letters what was delivered too often, and asks nobody: a message that is about to be one counts already.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_the_broker_may_dead_letter_prevents_the_purge_too() -> Result<(), Error> {
    let fed = Fed::new("brokersown", &[]).await?;
    let types = [DataType::Artists, DataType::Labels];
    for t in types {
        fed.fill(t, "stale", 1, LONG_AGO).await?;
        fed.fill(t, "fresh", 8, FAR_AHEAD).await?;
    }
    let started_at = now();
    let Fed { stage, worker, .. } = fed;
    stop_clean(&stage, "tableinator", worker).await?;
    for (t, times) in types.into_iter().zip([15, 3]) {
        stage.publish(t, [r#"{"id":"new"}"#]).await?;
        let queue = stage.topology("tableinator", t).queue;
        for _ in 0..times {
            let message = stage.channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await?;
            let again = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
            message.ok_or("it did not come back")?.delivery.acker.nack(again).await?;
        }
    }
    let mut fed = Fed::on(stage, &[]).await?;
    for (t, stays) in types.into_iter().zip([true, false]) {
        fed.end(t, &run_since("20260101", &started_at)).await?;
        assert!(fed.ids(t).await?.contains(&"new".to_owned()), "{t}");
        assert_eq!(fed.ids(t).await?.contains(&"stale1".to_owned()), stays, "{t}");
    }
    let Fed { stage, worker, .. } = fed;
    assert_eq!(worker.stop().await?.code(), Some(0));
    stage.clean_up().await
}

/// The extractor's clock says what the database's takes for the future. By up to a minute the run's beginning is moved; beyond,
/// nothing is fresh for certain.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_whose_clock_is_behind_purges_with_care() -> Result<(), Error> {
    let mut fed = Fed::new("clock", &[]).await?;
    for (t, behind, kept) in [(DataType::Artists, 3600, true), (DataType::Labels, 30, false)] {
        let database = |seconds: i64| (Utc::now() + chrono::Duration::seconds(seconds)).to_rfc3339();
        fed.fill(t, "stale", 1, LONG_AGO).await?;
        // The run began a minute ago, and these were written 20 s later.
        let mut end = run_since("20260101", &database(behind - 60));
        end["timestamp"] = json!(database(behind));
        fed.fill(t, "fresh", 8, &database(-40)).await?;
        fed.end(t, &end).await?;
        assert_eq!(fed.ids(t).await?.contains(&"stale1".to_owned()), kept, "{t}");
        assert_eq!(fed.ids(t).await?.len(), 8 + usize::from(kept), "{t}");
    }
    fed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_purged_once_however_often_it_is_announced() -> Result<(), Error> {
    let mut fed = Fed::new("repeat", &[]).await?;
    let first = run_since("20260101", "2026-01-01T00:00:00Z");
    for t in DataType::ALL {
        fed.fill(t, "fresh", 8, FAR_AHEAD).await?;
        fed.fill(t, "stale", 1, LONG_AGO).await?;
        fed.end(t, &first).await?;
        assert_eq!(fed.ids(t).await?.len(), 8, "{t}");
    }
    // The extractor repeats a broadcast that failed half-way. What became stale meanwhile is another run's business.
    for t in DataType::ALL {
        fed.fill(t, "stale", 1, LONG_AGO).await?;
        fed.end(t, &first).await?;
        fed.end(t, &first).await?;
    }
    let requests = "SELECT concat_ws(' ', data_type, version, count(*)) FROM ingest_purges GROUP BY data_type, version";
    let once = ["artists 20260101 1", "labels 20260101 1", "masters 20260101 1", "releases 20260101 1"];
    assert_eq!(texts(&fed.postgres, requests).await?, once);
    for t in DataType::ALL {
        assert_eq!(fed.ids(t).await?.len(), 9, "{t}");
    }
    // A forced run of the same version has another start.
    for t in DataType::ALL {
        fed.end(t, &run_since("20260101", "2026-01-05T00:00:00Z")).await?;
        assert_eq!(fed.ids(t).await?.len(), 8, "{t}");
    }
    fed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_that_was_asked_for_is_done_after_a_restart() -> Result<(), Error> {
    let fed = Fed::new("unfinished", &[]).await?;
    for t in DataType::ALL {
        fed.fill(t, "fresh", 8, FAR_AHEAD).await?;
        fed.fill(t, "stale", 2, LONG_AGO).await?;
    }
    let Fed { stage, worker, postgres } = fed;
    stop_clean(&stage, "tableinator", worker).await?;
    // As a worker leaves it that is killed between its acknowledgement and the purge.
    let asked = "INSERT INTO ingest_purges (data_type, version, started_at, record_count) \
         VALUES ('artists', '20260101', '2026-01-01T00:00:00Z', 8), ('labels', '20260101', '2026-01-01T00:00:00Z', 0), \
         ('masters', '20260101', '2026-01-01T00:00:00Z', NULL)";
    postgres.batch_execute(asked).await?;
    let fed = Fed::on(stage, &[]).await?;
    fed.purged().await?;
    for (t, left) in [(DataType::Artists, 8), (DataType::Labels, 10), (DataType::Masters, 8), (DataType::Releases, 10)]
    {
        assert_eq!(fed.ids(t).await?.len(), left, "{t}");
    }
    fed.finish().await
}
