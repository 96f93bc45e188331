//! The graph, statement by statement (contract §5).

use std::collections::BTreeSet;
use std::time::Duration;

use common::DataType;
use integration_tests::oracle::{self, Messages};
use integration_tests::stage::{by_type, now, services, settled};
use integration_tests::states;
use integration_tests::{Error, Stage};
use neo4rs::{Graph, query};
use tokio::time::sleep;
use xtask::process::Worker;
use xtask::sample::{self, Spec};

/// A data message; `members` is JSON text that begins with a comma, or empty.
fn message(id: &str, hash: &str, members: &str) -> Vec<u8> {
    format!(r#"{{"type":"data","id":"{id}","sha256":"{hash}","id":"{id}"{members}}}"#).into_bytes()
}

/// The values of a column, as text.
async fn column(graph: &Graph, statement: &str) -> Result<Vec<String>, Error> {
    let mut rows = graph.execute(query(statement)).await?;
    let mut out = Vec::new();
    while let Some(row) = rows.next().await? {
        out.push(row.get::<Option<String>>("x")?.unwrap_or_else(|| "null".to_owned()));
    }
    Ok(out)
}

/// Publishes, and waits until the worker has settled that many more.
struct Feed {
    stage: Stage,
    worker: Worker,
    graph: Graph,
    published: usize,
}

impl Feed {
    async fn new(name: &str) -> Result<Feed, Error> {
        let stage = Stage::with_graph(name).await?;
        let worker = stage.start("graphinator", &[]).await?;
        Ok(Feed { stage, worker, graph: services().neo4j()?, published: 0 })
    }

    async fn put(&mut self, data_type: DataType, bodies: Vec<Vec<u8>>) -> Result<(), Error> {
        self.published += self.stage.publish(data_type, bodies).await?;
        settled(&mut self.worker, self.published).await
    }

    async fn column(&self, statement: &str) -> Result<Vec<String>, Error> {
        column(&self.graph, statement).await
    }

    async fn run(&self, statement: &str) -> Result<(), Error> {
        Ok(self.graph.run(query(statement)).await?)
    }

    async fn signal(&self, data_type: DataType, version: &str, started_at: &str) -> Result<(), Error> {
        let counts = DataType::ALL.map(|t| (t, 1));
        self.stage.publish(data_type, [sample::extraction_complete(version, started_at, counts)]).await?;
        Ok(())
    }

    /// Waits until the statement's only value is `expected`.
    async fn until(&self, statement: &str, expected: &str) -> Result<(), Error> {
        let mut last = Vec::new();
        for _ in 0..300 {
            last = self.column(statement).await?;
            if last == [expected] {
                return Ok(());
            }
            sleep(Duration::from_millis(100)).await;
        }
        Err(format!("{statement}: {last:?}, expected {expected}").into())
    }

    async fn end(self) -> Result<(), Error> {
        for t in DataType::ALL {
            assert!(self.stage.dead_letters("graphinator", t).await?.is_empty(), "{t} has dead letters");
        }
        assert_eq!(self.worker.stop().await?.code(), Some(0));
        self.stage.clean_up().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn constraints_and_indexes_are_those_of_the_contract() -> Result<(), Error> {
    let feed = Feed::new("schema").await?;
    let found: BTreeSet<String> = feed.column("SHOW INDEXES YIELD name RETURN name AS x").await?.into_iter().collect();
    for name in [
        "artist_id",
        "label_id",
        "master_id",
        "release_id",
        "genre_name",
        "style_name",
        "user_id",
        "person_name",
        "artist_sha256",
        "label_sha256",
        "master_sha256",
        "release_sha256",
        "artist_name",
        "label_name",
        "release_year_index",
        "master_year_index",
        "genre_first_year_index",
        "style_first_year_index",
        "person_credit_count",
        "artist_mbid",
        "label_mbid",
        "release_mbid",
        "master_mbid",
        "artist_name_fulltext",
        "release_title_fulltext",
        "label_name_fulltext",
        "genre_name_fulltext",
        "style_name_fulltext",
        "person_name_fulltext",
    ] {
        assert!(found.contains(name), "{name} is missing in {found:?}");
    }
    let unique = "SHOW CONSTRAINTS YIELD name, type WHERE type CONTAINS 'UNIQUENESS' RETURN name AS x";
    let unique: BTreeSet<String> = feed.column(unique).await?.into_iter().collect();
    for name in
        ["artist_id", "label_id", "master_id", "release_id", "genre_name", "style_name", "user_id", "person_name"]
    {
        assert!(unique.contains(name), "{name} is no constraint: {unique:?}");
    }
    feed.end().await
}

/// Whoever created a constraint was stopped amid that: its index is there, and would be in the way for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_constraint_that_never_came_about_is_created() -> Result<(), Error> {
    let feed = Feed::new("orphan").await?;
    feed.end().await?;
    let stage = Stage::with_graph("orphan").await?;
    let graph = services().neo4j()?;
    graph.run(query("DROP CONSTRAINT ingest_gate_type")).await?;
    graph.run(query("CREATE INDEX ingest_gate_type FOR (n:IngestGate) ON (n.type)")).await?;
    let worker = stage.start("graphinator", &[]).await?;
    let unique = "SHOW CONSTRAINTS YIELD name WHERE name = 'ingest_gate_type' RETURN count(*) AS x";
    let row = graph.execute(query(unique)).await?.next().await?.ok_or("no row")?;
    assert_eq!(row.get::<i64>("x")?, 1);
    assert_eq!(worker.stop().await?.code(), Some(0));
    stage.clean_up().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_other_services_wrote_survives() -> Result<(), Error> {
    let mut feed = Feed::new("foreign").await?;
    feed.run("CREATE (:Release {id: '1', mbid: 'm', catalog_number: 'theirs'}), (:Artist {id: '5', mb_x: 1})").await?;
    feed.run("MATCH (r:Release {id: '1'}) CREATE (:User {id: 'u'})-[:COLLECTED]->(r)").await?;
    feed.run("MATCH (a:Artist {id: '5'}) CREATE (a)-[:MEMBER_OF {source: 'mb'}]->(:Artist {id: '6'})").await?;
    let edition = |catno: &str| {
        message("1", &format!("h{catno}"), &format!(r#","title":"T","labels":[{{"id":"9","catno":"{catno}"}}]"#))
    };
    let catalog = "MATCH (r:Release {id: '1'}) RETURN r.catalog_number AS x";

    feed.put(DataType::Releases, vec![message("1", "a", r#","title":"T""#)]).await?;
    assert_eq!(feed.column(catalog).await?, ["theirs"], "absence never clears another service's value");
    feed.put(DataType::Releases, vec![edition("OURS 1")]).await?;
    assert_eq!(feed.column(catalog).await?, ["OURS 1"]);
    feed.put(DataType::Releases, vec![message("1", "b", r#","title":"T""#)]).await?;
    assert_eq!(feed.column(catalog).await?, ["null"], "a value of ours goes with the record's");
    feed.put(DataType::Releases, vec![edition("OURS 2")]).await?;
    feed.run("MATCH (r:Release {id: '1'}) SET r.catalog_number = 'theirs again'").await?;
    feed.put(DataType::Releases, vec![message("1", "c", r#","title":"T""#)]).await?;
    assert_eq!(feed.column(catalog).await?, ["theirs again"]);

    feed.put(DataType::Artists, vec![message("5", "x", r#","name":"A","groups":[{"id":"6"}]"#)]).await?;
    assert_eq!(feed.column("MATCH (r:Release {id: '1'})<-[:COLLECTED]-() RETURN r.mbid AS x").await?, ["m"]);
    assert_eq!(feed.column("MATCH (:Artist {id: '5'})-[e:MEMBER_OF]->() RETURN e.source AS x").await?, ["mb"]);
    assert_eq!(feed.column("MATCH (a:Artist {id: '5'}) RETURN toString(a.mb_x) AS x").await?, ["1"]);
    feed.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_record_loses_the_edges_that_it_no_longer_has() -> Result<(), Error> {
    let mut feed = Feed::new("prune").await?;
    let old = r#","title":"T","artists":[{"id":"1"},{"id":"2"}],"labels":[{"id":"3"}],"genres":["Rock","Pop"],"styles":["Punk"],"master_id":"7""#;
    let new = r#","title":"T","artists":[{"id":"2"},{"id":"4"}],"genres":[],"styles":["Ska"]"#;
    feed.put(DataType::Releases, vec![message("1", "a", old), message("2", "a", old)]).await?;
    feed.put(DataType::Masters, vec![message("1", "a", old)]).await?;
    feed.put(DataType::Releases, vec![message("1", "b", new)]).await?;
    feed.put(DataType::Masters, vec![message("1", "b", new)]).await?;
    let edges =
        |from: &str| format!("MATCH ({from})-[e]->(t) RETURN type(e) + ' ' + coalesce(t.name, t.id) AS x ORDER BY x");
    assert_eq!(feed.column(&edges("n:Release {id: '1'}")).await?, ["BY 2", "BY 4", "IS Ska"]);
    assert_eq!(feed.column(&edges("n:Master {id: '1'}")).await?, ["BY 2", "BY 4", "IS Ska"]);
    assert_eq!(
        feed.column(&edges("n:Release {id: '2'}")).await?,
        ["BY 1", "BY 2", "DERIVED_FROM 7", "IS Pop", "IS Punk", "IS Rock", "ON 3"],
        "a neighbour keeps what it has"
    );
    feed.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_versions_in_a_batch_only_the_last_counts() -> Result<(), Error> {
    let mut feed = Feed::new("versions").await?;
    let version = |n: usize| message("1", &format!("h{n}"), &format!(r#","title":"T{n}","artists":[{{"id":"{n}"}}]"#));
    feed.put(DataType::Releases, (1..=40).map(version).collect()).await?;
    assert_eq!(feed.column("MATCH (r:Release) RETURN r.title + r.sha256 AS x").await?, ["T40h40"]);
    assert_eq!(feed.column("MATCH (r:Release)-[:BY]->(a) RETURN a.id AS x").await?, ["40"]);
    feed.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_in_different_batches_keep_their_order() -> Result<(), Error> {
    let stage = Stage::with_graph("order").await?;
    let extra = [("NEO4J_BATCH_SIZE", "7"), ("NEO4J_WRITERS", "4"), ("NEO4J_TRANSACTIONS", "4")];
    stage.declare("graphinator").await?;
    let mut bodies = Vec::new();
    for n in 0..400 {
        let id = n % 5;
        bodies.push(message(&id.to_string(), &format!("h{n}"), &format!(r#","name":"N{n}""#)));
    }
    let last: Vec<String> = (395..400).map(|n| format!("N{n}")).collect();
    bodies.retain(|b| !b.starts_with(br#"{"type":"data","id":"0""#)); // "0" is no id to link to, but a fine record: keep it simple
    stage.publish(DataType::Artists, &bodies).await?;
    let mut worker = stage.start("graphinator", &extra).await?;
    settled(&mut worker, bodies.len()).await?;
    let found = column(&services().neo4j()?, "MATCH (a:Artist) RETURN a.name AS x ORDER BY a.id").await?;
    assert_eq!(found, last[1..]);
    assert_eq!(worker.stop().await?.code(), Some(0));
    stage.clean_up().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_without_hash_is_always_written_and_is_no_stub() -> Result<(), Error> {
    let mut feed = Feed::new("hashless").await?;
    let body = |name: &str| format!(r#"{{"type":"data","id":"1","name":"{name}","sha256":null}}"#).into_bytes();
    feed.put(DataType::Artists, vec![body("A")]).await?;
    feed.put(DataType::Artists, vec![body("B")]).await?;
    assert_eq!(feed.column("MATCH (a:Artist) RETURN a.name + '|' + a.sha256 AS x").await?, ["B|"]);
    feed.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_record_is_left_alone() -> Result<(), Error> {
    let mut feed = Feed::new("unchanged").await?;
    feed.put(DataType::Artists, vec![message("1", "a", r#","name":"A""#)]).await?;
    feed.run("MATCH (a:Artist) SET a.name = 'touched by hand'").await?;
    feed.put(DataType::Artists, vec![message("1", "a", r#","name":"A""#)]).await?;
    assert_eq!(feed.column("MATCH (a:Artist) RETURN a.name AS x").await?, ["touched by hand"]);
    assert_eq!(feed.worker.metric("records_committed_total", &[r#"outcome="unchanged""#]), 1.0);
    feed.end().await
}

/// SAME_AS does not depend on who comes first.
#[tokio::test(flavor = "multi_thread")]
async fn same_as_whatever_the_order_of_arrival() -> Result<(), Error> {
    let s = sample::generate(&Spec { seed: 11, records: 1500 });
    let messages = Messages { artists: s.artists, labels: s.labels, masters: s.masters, releases: s.releases };
    let expected = oracle::expected(&messages);
    let edges = expected.rels.iter().filter(|r| r.kind == "SAME_AS").count();
    assert!(edges > 100, "the sample has only {edges} SAME_AS edges");
    let reversed = [DataType::Releases, DataType::Masters, DataType::Labels, DataType::Artists];
    for order in [reversed, DataType::ALL] {
        let mut feed = Feed::new("same_as").await?;
        for data_type in order {
            let bodies = by_type(&messages)[data_type.index()].1.clone();
            feed.put(data_type, bodies).await?;
        }
        let (nodes, rels) = states::read_graph(&feed.graph).await?;
        states::compare_graph(&nodes, &rels, &expected)?;
        feed.end().await?;
    }
    Ok(())
}

/// Two credits that wait are two, whatever their names and ids look like together.
#[tokio::test(flavor = "multi_thread")]
async fn credits_that_wait_are_not_mixed_up() -> Result<(), Error> {
    let mut feed = Feed::new("waiting").await?;
    let credits = r#","extraartists":[{"id":"1","name":"2 P","role":"Bass"},{"id":"1 2","name":"P","role":"Bass"}]"#;
    feed.put(DataType::Releases, vec![message("9", "r", credits)]).await?;
    feed.put(DataType::Artists, vec![message("1", "a", ""), message("1 2", "b", "")]).await?;
    let made = "MATCH (p:Person)-[:SAME_AS]->(a:Artist) RETURN p.name + ' is ' + a.id AS x ORDER BY x";
    assert_eq!(feed.column(made).await?, ["2 P is 1", "P is 1 2"]);
    assert!(feed.column("MATCH (w:IngestPendingLink) RETURN w.person AS x").await?.is_empty());
    feed.end().await
}

/// A name that is as long as the index of persons bears: its artist vanishes, and the credit waits again.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_name_holds_up_no_end_of_a_run() -> Result<(), Error> {
    let mut feed = Feed::new("longname").await?;
    let mut random = fastrand::Rng::with_seed(8);
    let name: String = (0..8160).map(|_| random.alphanumeric()).collect();
    let credits = format!(r#","extraartists":[{{"id":"1234567","name":"{name}","role":"Bass"}}]"#);
    feed.put(DataType::Artists, vec![message("1234567", "a", ""), message("2", "a", "")]).await?;
    feed.put(DataType::Releases, vec![message("1", "a", &credits)]).await?;
    let start = now();
    feed.put(DataType::Artists, vec![message("2", "a", "")]).await?;
    feed.put(DataType::Releases, vec![message("1", "a", &credits)]).await?;
    for t in [DataType::Labels, DataType::Masters] {
        feed.put(t, vec![message("1", "a", "")]).await?;
    }
    for t in DataType::ALL {
        feed.signal(t, "20260101", &start).await?;
    }
    feed.until("MATCH (r:IngestRun {version: '20260101'}) RETURN toString(r.completed) AS x", "1").await?;
    let waiting = "MATCH (w:IngestPendingLink) RETURN w.artist AS x";
    assert_eq!(feed.column(waiting).await?, ["1234567"]);
    feed.put(DataType::Artists, vec![message("1234567", "b", "")]).await?;
    assert!(feed.column(waiting).await?.is_empty());
    assert_eq!(feed.column("MATCH (:Person)-[:SAME_AS]->(a:Artist) RETURN a.id AS x").await?, ["1234567"]);
    feed.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_latch_is_a_union_that_survives_everything() -> Result<(), Error> {
    let mut feed = Feed::new("latch").await?;
    // What the predecessors leave behind when four signals come together.
    feed.run("UNWIND range(1, 4) AS i CREATE (:ExtractionCompletion {version: '20260101', signals: ['labels']})")
        .await?;
    feed.put(DataType::Artists, vec![message("1", "a", r#","members":[{"id":"2"}]"#)]).await?;
    feed.run("CREATE (:Artist {id: 'lonely'}), (:Label {id: 'lonely'})").await?;
    let run = |field: &str| format!("MATCH (r:IngestRun {{version: '20260101'}}) RETURN toString(r.{field}) AS x");
    let signals =
        "MATCH (c:ExtractionCompletion {version: '20260101'}) UNWIND c.signals AS s RETURN DISTINCT s AS x ORDER BY x";
    let start = "2026-01-01T00:00:00.5Z";

    feed.signal(DataType::Artists, "20260101", start).await?;
    feed.signal(DataType::Labels, "20260101", start).await?;
    feed.until(&run("requested"), "0").await?;
    // A restart between the first signal and the last.
    assert_eq!(feed.worker.stop().await?.code(), Some(0));
    feed.worker = feed.stage.start("graphinator", &[]).await?;
    feed.published = 0;
    feed.signal(DataType::Masters, "20260101", start).await?;
    feed.signal(DataType::Masters, "20260101", start).await?;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(feed.column(signals).await?, ["artists", "labels", "masters"]);
    assert_eq!(feed.column("MATCH (n {id: 'lonely'}) RETURN labels(n)[0] AS x").await?.len(), 2, "too early");
    feed.signal(DataType::Releases, "20260101", start).await?;
    feed.until(&run("completed"), "1").await?;
    assert_eq!(feed.column(signals).await?, ["artists", "labels", "masters", "releases"]);
    assert!(feed.column("MATCH (n {id: 'lonely'}) RETURN 'x' AS x").await?.is_empty(), "isolated stubs go");
    assert_eq!(feed.column("MATCH (a:Artist {id: '2'}) RETURN a.id AS x").await?, ["2"], "stubs with edges stay");

    // The same version again, started later: begins from nothing. A straggler of the first run changes nothing.
    feed.signal(DataType::Artists, "20260101", "2026-01-02T00:00:00Z").await?;
    feed.until(
        &format!(
            "{} UNION ALL MATCH (c:ExtractionCompletion) WHERE size(c.signals) <> 1 RETURN 'old' AS x",
            run("completed")
        ),
        "1",
    )
    .await?;
    feed.signal(DataType::Labels, "20260101", start).await?;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(feed.column(signals).await?, ["artists"]);
    // The four at once.
    for t in DataType::ALL {
        feed.signal(t, "20260101", "2026-01-02T00:00:00Z").await?;
    }
    feed.until(&run("completed"), "2").await?;
    feed.end().await
}

/// The extractor's clock was years ahead once: the run counts, and the next one of that version too, whatever is still said of the first.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_of_the_future_does_not_hide_the_next_one() -> Result<(), Error> {
    let mut feed = Feed::new("future").await?;
    let completed = "MATCH (r:IngestRun {version: '20260101'}) RETURN toString(r.completed) AS x";
    let ahead = "2999-01-01T00:00:00Z";
    for t in DataType::ALL {
        feed.signal(t, "20260101", ahead).await?;
    }
    feed.until(completed, "1").await?;
    let started_at = now();
    let [first, rest @ ..] = DataType::ALL;
    feed.signal(first, "20260101", &started_at).await?;
    let signals = "MATCH (c:ExtractionCompletion {version: '20260101'}) RETURN toString(size(c.signals)) AS x";
    feed.until(signals, "1").await?;
    feed.signal(first, "20260101", ahead).await?;
    let told = |w: &Worker| w.log_text().contains("This extraction_complete is ignored");
    feed.worker.until("told that it is ignored", Duration::from_secs(30), told).await?;
    for t in rest {
        feed.signal(t, "20260101", &started_at).await?;
    }
    feed.until(completed, "2").await?;
    feed.end().await
}
