//! Faults that the predecessors had and mended, or never noticed, and that a rewrite can have again (contract §9), as far
//! as no other test holds them: docs/reliability.md has the whole list.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use common::DataType;
use integration_tests::oracle::{self, Messages};
use integration_tests::proxy::Proxy;
use integration_tests::stage::{by_type, controlled, services, settled, stop_clean, within};
use integration_tests::states;
use integration_tests::{Error, Stage};
use neo4rs::{Graph, query};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;
use xtask::process::Worker;
use xtask::sample::{self, Spec, file_complete};
use xtask::services::script;

/// Longest wait for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(60);
const LONG_AGO: &str = "2020-01-01T00:00:00Z";

fn record(id: usize) -> Vec<u8> {
    format!(r#"{{"type":"data","id":"{id}","sha256":"{id:064x}","id":"{id}","name":"Name {id}"}}"#).into()
}

fn records(ids: std::ops::Range<usize>) -> Vec<Vec<u8>> {
    ids.map(record).collect()
}

fn end_of_run(version: &str, started_at: &str) -> Vec<u8> {
    json!({"type": "extraction_complete", "version": version, "started_at": started_at}).to_string().into_bytes()
}

fn completed(worker: &Worker) -> Value {
    let health = worker.get("/health").ok().and_then(|(_, body)| serde_json::from_str::<Value>(&body).ok());
    health.map_or(Value::Null, |health| health["completed_files"].clone())
}

async fn one<T: for<'a> tokio_postgres::types::FromSql<'a>>(client: &Client, statement: &str) -> Result<T, Error> {
    Ok(client.query_one(statement, &[]).await?.get(0))
}

async fn column(graph: &Graph, statement: &str) -> Result<Vec<String>, Error> {
    let mut rows = graph.execute(query(statement)).await?;
    let mut out = Vec::new();
    while let Some(row) = rows.next().await? {
        out.push(row.get("x")?);
    }
    Ok(out)
}

async fn eventually(what: &str, check: impl AsyncFn() -> Result<bool, Error>) -> Result<(), Error> {
    within(PATIENCE, what, check).await
}

async fn assert_no_dead_letters(stage: &Stage, worker: &str) -> Result<(), Error> {
    for t in DataType::ALL {
        let letters = stage.dead_letters(worker, t).await?;
        assert!(letters.is_empty(), "{worker} {t}: {:?}", letters.first());
    }
    Ok(())
}

// ------------------------------------------------------------------------------------------------- coordination

/// Neither is a file complete nor a run over while records that came before are still held; and this is nobody's business
/// but this type's.
#[tokio::test(flavor = "multi_thread")]
async fn control_messages_wait_for_the_records_before_them() -> Result<(), Error> {
    let stage = Stage::new("barrier").await?;
    let mut worker = stage.start("tableinator", &[("POSTGRES_BATCH_SIZE", "10")]).await?;
    let started_at: String = one(&stage.postgres().await?, "SELECT to_json(clock_timestamp())::text").await?;
    let started_at = started_at.trim_matches('"').to_owned();
    let mut locker = stage.postgres().await?;
    let stale =
        format!("INSERT INTO artists VALUES ('1', 'old', '{{}}', '{LONG_AGO}'), ('x', 'old', '{{}}', '{LONG_AGO}')");
    locker.batch_execute(&stale).await?;
    let lock = locker.transaction().await?;
    lock.batch_execute("LOCK TABLE artists IN ACCESS EXCLUSIVE MODE").await?;
    stage.publish(DataType::Artists, records(0..15)).await?;
    stage.publish(DataType::Artists, [file_complete(DataType::Artists, "20260101", 15)]).await?;
    stage.publish(DataType::Artists, [end_of_run("20260101", &started_at)]).await?;
    stage.publish(DataType::Labels, records(0..15)).await?;
    stage.publish(DataType::Labels, [file_complete(DataType::Labels, "20260101", 15)]).await?;
    worker.until("complete but for artists", PATIENCE, |w| completed(w) == json!(["labels"])).await?;
    let held = |w: &Worker| w.metric("records_received_total", &["artists"]) >= 16.0;
    worker.until("holding the control message", PATIENCE, held).await?;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(completed(&worker), json!(["labels"]), "complete before its records are written");
    let asked = "SELECT count(*) FROM ingest_purges";
    assert_eq!(one::<i64>(&stage.postgres().await?, asked).await?, 0, "a purge was asked for too early");
    assert_eq!(worker.metric("redelivered_total", &[]), 0.0, "waiting is no reason to send anything back");
    lock.commit().await?;
    controlled(&mut worker, DataType::Artists, 2.0).await?;
    assert_eq!(completed(&worker), json!(["artists", "labels"]));
    let purged = "SELECT count(*) FROM ingest_purges WHERE outcome = 'deleted' AND deleted = 1";
    let client = stage.postgres().await?;
    eventually("purged", async || Ok(one::<i64>(&client, purged).await? == 1)).await?;
    assert_eq!(one::<i64>(&client, "SELECT count(*) FROM artists").await?, 15, "the stale row and no other is gone");
    assert_no_dead_letters(&stage, "tableinator").await?;
    stop_clean(&stage, "tableinator", worker).await?;
    stage.clean_up().await
}

/// A purge may take hours: meanwhile its message is acknowledged, the types are consumed, and if it fails it is done again.
#[tokio::test(flavor = "multi_thread")]
async fn a_purge_holds_no_message_and_survives_its_connection() -> Result<(), Error> {
    let stage = Stage::new("longpurge").await?;
    let mut worker = stage.start("tableinator", &[]).await?;
    let mut locker = stage.postgres().await?;
    let rows = format!(
        "INSERT INTO artists SELECT i::text, 'h', '{{}}', '{LONG_AGO}' FROM generate_series(1, 2) i;
         INSERT INTO artists SELECT 'f' || i, 'h', '{{}}', '2999-01-01' FROM generate_series(1, 8) i"
    );
    locker.batch_execute(&rows).await?;
    let lock = locker.transaction().await?;
    lock.batch_execute("LOCK TABLE artists IN ACCESS EXCLUSIVE MODE").await?;
    stage.publish(DataType::Artists, [end_of_run("20260101", "2026-01-01T00:00:00Z")]).await?;
    controlled(&mut worker, DataType::Artists, 1.0).await?;
    assert_eq!(completed(&worker), json!(["artists"]));
    let client = stage.postgres().await?;
    let waiting = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let pids = async || -> Result<Vec<i32>, Error> {
        Ok(client.query(waiting, &[]).await?.iter().map(|row| row.get(0)).collect())
    };
    eventually("purging", async || Ok(!pids().await?.is_empty())).await?;
    let acked = |w: &Worker| w.metric("unacked_deliveries", &[]) == 0.0;
    worker.until("without a message in its hands", PATIENCE, acked).await?;
    let queue = stage.topology("tableinator", DataType::Artists).queue;
    assert_eq!(stage.ready_count(&queue).await?, 0, "the signal is done with");
    stage.publish(DataType::Labels, records(0..15)).await?;
    settled(&mut worker, 15).await?;

    let first = pids().await?[0];
    client.execute("SELECT pg_terminate_backend($1)", &[&first]).await?;
    eventually("purging again", async || Ok(pids().await?.iter().any(|pid| *pid != first))).await?;
    lock.commit().await?;
    let purged = "SELECT count(*) FROM ingest_purges WHERE outcome = 'deleted' AND deleted = 2";
    eventually("purged", async || Ok(one::<i64>(&client, purged).await? == 1)).await?;
    assert_eq!(one::<i64>(&client, "SELECT count(*) FROM artists").await?, 8);
    stop_clean(&stage, "tableinator", worker).await?;
    stage.clean_up().await
}

/// Rows that a run found as they were are no stale ones, with batches and without.
#[tokio::test(flavor = "multi_thread")]
async fn unchanged_rows_survive_the_purge_of_their_run() -> Result<(), Error> {
    for mode in ["true", "false"] {
        let stage = Stage::new("touched").await?;
        let mut worker = stage.start("tableinator", &[("POSTGRES_BATCH_MODE", mode)]).await?;
        stage.publish(DataType::Labels, records(0..20)).await?;
        settled(&mut worker, 20).await?;
        let client = stage.postgres().await?;
        let aged = format!("UPDATE labels SET updated_at = '{LONG_AGO}'");
        client.batch_execute(&aged).await?;
        // The same again, but for two, and not a single row to write.
        stage.publish(DataType::Labels, records(2..20)).await?;
        stage.publish(DataType::Labels, [end_of_run("20260101", "2026-01-01T00:00:00Z")]).await?;
        controlled(&mut worker, DataType::Labels, 1.0).await?;
        let purged = "SELECT count(*) FROM ingest_purges WHERE outcome = 'deleted' AND deleted = 2";
        eventually("purged", async || Ok(one::<i64>(&client, purged).await? == 1)).await?;
        assert_eq!(one::<i64>(&client, "SELECT count(*) FROM labels").await?, 18, "batch mode {mode}");
        assert_eq!(worker.metric("records_committed_total", &["outcome=\"unchanged\""]), 18.0, "batch mode {mode}");
        stop_clean(&stage, "tableinator", worker).await?;
        stage.clean_up().await?;
    }
    Ok(())
}

/// What two dumps have together is not what one of them has.
#[tokio::test(flavor = "multi_thread")]
async fn signals_of_different_versions_do_not_add_up() -> Result<(), Error> {
    let stage = Stage::with_graph("versionlatch").await?;
    let mut worker = stage.start("graphinator", &[]).await?;
    let graph = services().neo4j()?;
    graph.run(query("CREATE (:Artist {id: 'lonely'})")).await?;
    let counts = DataType::ALL.map(|t| (t, 1));
    let [a, b, c, d] = DataType::ALL;
    let signal = |version: &str| sample::extraction_complete(version, "2026-01-01T00:00:00Z", counts);
    for (t, version) in [(a, "20260101"), (b, "20260101"), (c, "20260201"), (d, "20260201")] {
        stage.publish(t, [signal(version)]).await?;
        controlled(&mut worker, t, 1.0).await?;
    }
    let lonely = "MATCH (a:Artist {id: 'lonely'}) RETURN a.id AS x";
    sleep(Duration::from_secs(2)).await;
    assert_eq!(column(&graph, lonely).await?, ["lonely"], "maintenance ran after two signals of each");
    for t in [a, b] {
        stage.publish(t, [signal("20260201")]).await?;
    }
    eventually("maintained", async || Ok(column(&graph, lonely).await?.is_empty())).await?;
    // Once for a run: signals that are repeated when all is done ask for nothing.
    let asked =
        "MATCH (r:IngestRun {version: '20260201'}) WHERE r.requested = r.completed RETURN toString(r.requested) AS x";
    eventually("noted as done", async || Ok(column(&graph, asked).await? == ["1"])).await?;
    for t in [a, b, c, d] {
        stage.publish(t, [signal("20260201")]).await?;
    }
    for (t, count) in [(a, 3.0), (b, 3.0), (c, 2.0), (d, 2.0)] {
        controlled(&mut worker, t, count).await?;
    }
    assert_eq!(column(&graph, asked).await?, ["1"]);
    stop_clean(&stage, "graphinator", worker).await?;
    stage.clean_up().await
}

// ------------------------------------------------------------------------------------------------- nothing is lost

/// What goes back uses up one of its deliveries; so an orderly stop writes what it was delivered, also what it had not read yet.
#[tokio::test(flavor = "multi_thread")]
async fn an_orderly_stop_gives_nothing_back() -> Result<(), Error> {
    let stage = Stage::new("restarts").await?;
    let client = stage.postgres().await?;
    // The first one only creates the table. Rows then take their time, so that a stop finds most of them unread.
    assert_eq!(stage.start("tableinator", &[]).await?.stop().await?.code(), Some(0));
    client
        .batch_execute(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.005); RETURN NEW; END'; \
             CREATE TRIGGER slow BEFORE INSERT ON releases FOR EACH ROW EXECUTE FUNCTION slow()",
        )
        .await?;
    stage.publish(DataType::Releases, records(0..1500)).await?;
    let small = [("POSTGRES_BATCH_SIZE", "10"), ("POSTGRES_WRITERS", "1"), ("RABBITMQ_PREFETCH", "400")];
    let queue = stage.topology("tableinator", DataType::Releases).queue;
    let mut written = 0;
    for restart in 0..3 {
        let mut worker = stage.start("tableinator", &small).await?;
        worker.until("at work", PATIENCE, |w| w.metric("records_committed_total", &[]) >= 10.0).await?;
        assert_eq!(worker.metric("redelivered_total", &[]), 0.0, "restart {restart}");
        assert_eq!(worker.stop().await?.code(), Some(0), "restart {restart}");
        let rows = one::<i64>(&client, "SELECT count(*) FROM releases").await?;
        assert!(rows >= written + 400, "restart {restart}: {rows} rows");
        assert_eq!(i64::from(stage.ready_count(&queue).await?), 1500 - rows, "restart {restart}");
        written = rows;
    }
    let mut worker = stage.start("tableinator", &[]).await?;
    eventually("done", async || Ok(one::<i64>(&client, "SELECT count(*) FROM releases").await? == 1500)).await?;
    worker.until("acknowledged", PATIENCE, |w| w.metric("unacked_deliveries", &[]) == 0.0).await?;
    assert_eq!(worker.metric("redelivered_total", &[]), 0.0);
    stop_clean(&stage, "tableinator", worker).await?;
    stage.clean_up().await
}

/// A column that somebody added and that must not be null is no record's fault: nothing is dead-lettered, and it goes on when that
/// is mended.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_refuses_every_record_dead_letters_none() -> Result<(), Error> {
    let stage = Stage::new("foreigncolumn").await?;
    let mut worker = stage.start("tableinator", &[]).await?;
    let client = stage.postgres().await?;
    client.batch_execute("ALTER TABLE artists ADD COLUMN region TEXT NOT NULL").await?;
    stage.publish(DataType::Artists, records(0..50)).await?;
    let unready = |w: &Worker| w.get("/ready").is_ok_and(|(code, body)| code == 503 && body.contains("23502"));
    worker.until("unready", PATIENCE, unready).await?;
    assert_no_dead_letters(&stage, "tableinator").await?;
    client.batch_execute("ALTER TABLE artists DROP COLUMN region").await?;
    settled(&mut worker, 50).await?;
    worker.ready().await?;
    assert_eq!(one::<i64>(&client, "SELECT count(*) FROM artists").await?, 50);
    stop_clean(&stage, "tableinator", worker).await?;
    stage.clean_up().await
}

/// More work in flight than the database takes is no reason to dead-letter, or to open more connections.
#[tokio::test(flavor = "multi_thread")]
async fn a_pool_of_one_bears_all_types() -> Result<(), Error> {
    let stage = Stage::new("poolofone").await?;
    stage.declare("tableinator").await?;
    for t in DataType::ALL {
        stage.publish(t, records(0..200)).await?;
        stage.publish(t, ["no JSON"]).await?;
    }
    let narrow = [("POSTGRES_POOL_MAX_SIZE", "1"), ("POSTGRES_WRITERS", "4"), ("POSTGRES_BATCH_SIZE", "10")];
    let mut worker = stage.spawn("tableinator", &narrow)?;
    let sessions =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'tableinator'";
    let client = stage.postgres().await?;
    let mut most = 0;
    let deadline = Instant::now() + PATIENCE;
    while worker.metric("records_committed_total", &[]) + worker.metric("records_dead_lettered_total", &[]) < 804.0 {
        most = most.max(one::<i64>(&client, sessions).await?);
        assert!(Instant::now() < deadline, "{}", worker.log_text());
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(most, 1, "sessions at a time");
    worker.ready().await?;
    for t in DataType::ALL {
        assert_eq!(one::<i64>(&client, &format!("SELECT count(*) FROM {t}")).await?, 200, "{t}");
        let letters = stage.dead_letters("tableinator", t).await?;
        assert_eq!(letters.len(), 1, "{t}");
    }
    let idle = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in transaction%'";
    assert_eq!(one::<i64>(&client, idle).await?, 0);
    stop_clean(&stage, "tableinator", worker).await?;
    stage.clean_up().await
}

// ------------------------------------------------------------------------------------------------- the graph

/// Without batches the graph is the same.
#[tokio::test(flavor = "multi_thread")]
async fn record_by_record_the_graph_is_the_same() -> Result<(), Error> {
    let stage = Stage::with_graph("singlegraph").await?;
    let mut worker = stage.start("graphinator", &[("NEO4J_BATCH_MODE", "false")]).await?;
    let s = sample::generate(&Spec { seed: 12, records: 120 });
    let messages = Messages { artists: s.artists, labels: s.labels, masters: s.masters, releases: s.releases };
    let mut count = 0;
    for (t, bodies) in by_type(&messages) {
        count += stage.publish(t, bodies).await?;
    }
    settled(&mut worker, count).await?;
    assert_eq!(worker.metric("batches_total", &[]), count as f64);
    let (nodes, rels) = states::read_graph(&services().neo4j()?).await?;
    states::compare_graph(&nodes, &rels, &oracle::expected(&messages))?;
    assert_no_dead_letters(&stage, "graphinator").await?;
    stop_clean(&stage, "graphinator", worker).await?;
    stage.clean_up().await
}

/// The category of a credit is what the role makes of it, and no part of what the edge is known by.
#[tokio::test(flavor = "multi_thread")]
async fn a_credit_whose_category_changes_stays_one_edge() -> Result<(), Error> {
    let stage = Stage::with_graph("category").await?;
    let mut worker = stage.start("graphinator", &[]).await?;
    let graph = services().neo4j()?;
    graph
        .run(query(
            "CREATE (:Person {name: 'P'})-[:CREDITED_ON {role: 'Producer', category: 'an older taxonomy'}]->(:Release {id: '1', sha256: 'old'})",
        ))
        .await?;
    let body = r#"{"id":"1","sha256":"new","title":"T","extraartists":[{"name":"P","role":"Producer"}]}"#;
    stage.publish(DataType::Releases, [body]).await?;
    settled(&mut worker, 1).await?;
    let edges =
        "MATCH (:Person {name: 'P'})-[c:CREDITED_ON]->(:Release {id: '1'}) RETURN c.role + ' ' + c.category AS x";
    assert_eq!(column(&graph, edges).await?, ["Producer production"]);
    stop_clean(&stage, "graphinator", worker).await?;
    stage.clean_up().await
}

/// An id that came as a number is found again, and its record is known to be unchanged.
#[tokio::test(flavor = "multi_thread")]
async fn a_number_as_id_is_recognised() -> Result<(), Error> {
    let stage = Stage::with_graph("numbers").await?;
    for (at, name) in ["tableinator", "graphinator"].into_iter().enumerate() {
        let mut worker = stage.start(name, &[]).await?;
        let t = DataType::ALL[at]; // one of its own for each: the other's queue may be there already
        for (round, body) in
            [r#"{"id":7,"sha256":"h","name":"N"}"#, r#"{"id":"7","sha256":"h","name":"N"}"#, r#"{"sha256":"h","id":7}"#]
                .into_iter()
                .enumerate()
        {
            stage.publish(t, [body]).await?;
            settled(&mut worker, round + 1).await?;
        }
        let outcomes = ["inserted", "updated", "unchanged"]
            .map(|o| worker.metric("records_committed_total", &[&format!("outcome=\"{o}\"")]));
        assert_eq!(outcomes, [1.0, 0.0, 2.0], "{name}");
        stop_clean(&stage, name, worker).await?;
    }
    stage.clean_up().await
}

// ------------------------------------------------------------------------------------------------- connections

/// Clients that connect and say nothing, or half a request, keep nobody from an answer.
#[tokio::test(flavor = "multi_thread")]
async fn silent_clients_block_no_health_check() -> Result<(), Error> {
    let stage = Stage::new("silent").await?;
    let worker = stage.start("tableinator", &[]).await?;
    let port = worker.port().ok_or("no port")?;
    let mut silent = Vec::new();
    for at in 0..100 {
        let mut client = TcpStream::connect(("127.0.0.1", port))?;
        if at % 2 == 0 {
            client.write_all(b"GET /health HTTP/1.1\r\nHo")?;
        }
        silent.push(client);
    }
    for path in ["/health", "/ready", "/metrics"] {
        assert_eq!(worker.get(path)?.0, 200, "{path}");
    }
    drop(silent);
    stop_clean(&stage, "tableinator", worker).await?;
    stage.clean_up().await
}

/// What the broker granted is what the configuration says, and after a lost connection it is the same, for all four types.
#[tokio::test(flavor = "multi_thread")]
async fn heartbeat_and_prefetch_are_as_configured_also_after_a_reconnect() -> Result<(), Error> {
    let stage = Stage::new("negotiated").await?;
    let proxy = Proxy::start(services().get("RABBITMQ_PORT").parse()?, u64::MAX).await?;
    let port = proxy.port.to_string();
    let settings = [
        ("RABBITMQ_PORT", port.as_str()),
        ("RABBITMQ_HEARTBEAT", "7"),
        ("RABBITMQ_PREFETCH", "77"),
        ("POSTGRES_BATCH_SIZE", "20"),
    ];
    let mut worker = stage.start("tableinator", &settings).await?;
    let ctl = |arguments: &[&str]| tokio::task::block_in_place(|| script(&[&["ctl"], arguments].concat()));
    let granted = || -> Result<(), Error> {
        let consumers = ctl(&["list_consumers", "--quiet", "queue_name", "prefetch_count"])?;
        let mine: Vec<_> = consumers.lines().filter(|line| line.starts_with(&stage.prefix)).collect();
        assert_eq!(mine.len(), 4, "{consumers}");
        assert!(mine.iter().all(|line| line.ends_with("\t77")), "{mine:?}");
        Ok(())
    };
    granted()?;
    let heartbeats = ctl(&["list_connections", "--quiet", "timeout"])?;
    assert!(heartbeats.lines().any(|line| line.trim() == "7"), "{heartbeats}");
    proxy.cut();
    worker.until("aware of the loss", PATIENCE, |w| w.metric("reconnects_total", &["peer=\"broker\""]) >= 1.0).await?;
    worker.ready().await?;
    // The broker may still know the consumers of the lost connection for a moment.
    let queue = stage.topology("tableinator", DataType::Artists).queue;
    eventually("one consumer", async || {
        let consumers = ctl(&["list_consumers", "--quiet", "queue_name"])?;
        Ok(consumers.lines().filter(|line| line.starts_with(&queue)).count() == 1)
    })
    .await?;
    eventually("four consumers", async || {
        let consumers = ctl(&["list_consumers", "--quiet", "queue_name"])?;
        Ok(consumers.lines().filter(|line| line.starts_with(&stage.prefix)).count() == 4)
    })
    .await?;
    granted()?;
    let heartbeats = ctl(&["list_connections", "--quiet", "timeout"])?;
    assert!(heartbeats.lines().any(|line| line.trim() == "7"), "{heartbeats}");
    for t in DataType::ALL {
        stage.publish(t, records(0..10)).await?;
    }
    settled(&mut worker, 40).await?;
    assert_eq!(worker.stop().await?.code(), Some(0));
    stage.clean_up().await
}
