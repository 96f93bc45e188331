//! A worker's life against real services: the broker's objects, lost consumers, configuration, `check`, repairs without
//! a restart, the HTTP server, batches and acks, the end, TLS and the log.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::ops::Range;
use std::process::Command;
use std::time::Duration;

use common::DataType;
use integration_tests::management::{broker_api, consumers};
use integration_tests::proxy::Proxy;
use integration_tests::stage::{binary, now, services, settled, stop_clean, within};
use integration_tests::{Error, Stage};
use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use neo4rs::query;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use xtask::process::Worker;
use xtask::sample::file_complete;
use xtask::services::script;

/// Longest wait for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(60);
/// Long enough for a worker in trouble to try again, and so to make things worse if that is what it does.
const SOME_ATTEMPTS: Duration = Duration::from_secs(2);

// ------------------------------------------------------------------------------------------------- topology

#[tokio::test(flavor = "multi_thread")]
async fn topology_and_prefetch_are_exactly_the_contract_s() -> Result<(), Error> {
    let stage = Stage::new("topology").await?;
    // Far too small: three writers and the batch that fills need 80. And what the predecessors' deployment still sets.
    let worker = stage
        .start(
            "tableinator",
            &[
                ("RABBITMQ_PREFETCH", "10"),
                ("POSTGRES_BATCH_SIZE", "20"),
                ("POSTGRES_WRITERS", "3"),
                ("CONSUMER_CANCEL_DELAY", "300"),
                ("STARTUP_DELAY", "20"),
            ],
        )
        .await?;
    assert_topology(&stage, "tableinator")?;
    assert_consumers(&stage, "tableinator", 80).await?;
    assert_redeclarable(&stage, "tableinator").await?;
    // Neither the declaration by somebody else nor the refused one disturbed anything.
    assert_topology(&stage, "tableinator")?;
    assert_eq!(worker.get("/ready")?.0, 200);

    let warnings: Vec<String> = log_lines(&worker.log_text())?
        .iter()
        .filter(|line| line["level"] == "warning")
        .map(|line| text(&line["event"]).to_owned())
        .collect();
    let naming = |part: &str| warnings.iter().filter(|warning| warning.contains(part)).count();
    assert_eq!(naming("RABBITMQ_PREFETCH raised from 10 to 80"), 1, "{warnings:?}");
    assert_eq!(naming("CONSUMER_CANCEL_DELAY, STARTUP_DELAY"), 1, "{warnings:?}");
    assert_eq!((naming("CONSUMER_CANCEL_DELAY"), naming("STARTUP_DELAY")), (1, 1), "{warnings:?}");
    assert_eq!(worker.stop().await?.code(), Some(0));
    stage.clean_up().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_with_other_arguments_stops_only_its_own_type() -> Result<(), Error> {
    let stage = Stage::new("precondition").await?;
    let queue = stage.topology("tableinator", DataType::Labels).queue;
    declare_classic(&stage, &queue).await?;
    let mut worker = stage.spawn("tableinator", &[])?;
    let others = json!(["artists", "masters", "releases"]);
    worker.until("consuming the other types", PATIENCE, |w| health(w)["active_consumers"] == others).await?;
    for t in [DataType::Artists, DataType::Masters, DataType::Releases] {
        stage.publish(t, records(0..20)).await?;
    }
    settled(&mut worker, 60).await?;
    for t in [DataType::Artists, DataType::Masters, DataType::Releases] {
        assert_rows(&stage, t, 0..20).await?;
    }
    worker.until("saying why", PATIENCE, |w| unready(w).is_some_and(|why| why.contains("PRECONDITION_FAILED"))).await?;
    let (code, body) = worker.get("/ready")?;
    let reasons = parse(&body)?["reasons"].clone();
    assert_eq!((code, reasons.as_array().map(Vec::len)), (503, Some(1)), "{body}");
    assert!(text(&reasons[0]).starts_with("labels: "), "{body}");
    let (_, found) = broker_api("GET", &format!("queues/%2F/{queue}"), "")?;
    assert_eq!(found["type"], "classic", "the worker must not replace somebody's queue");

    stage.channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await?;
    worker.ready().await?;
    assert_topology(&stage, "tableinator")?;
    stage.publish(DataType::Labels, records(0..20)).await?;
    settled(&mut worker, 80).await?;
    assert_rows(&stage, DataType::Labels, 0..20).await?;
    assert_eq!(worker.stop().await?.code(), Some(0));
    stage.clean_up().await
}

// ------------------------------------------------------------------------------------------------- lost consumers

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_queue_is_declared_and_consumed_again() -> Result<(), Error> {
    let stage = Stage::new("deleted").await?;
    let mut worker = stage.start("tableinator", &[]).await?;
    stage.publish(DataType::Artists, records(0..50)).await?;
    settled(&mut worker, 50).await?;
    let started_at = now();

    let queue = stage.topology("tableinator", DataType::Artists).queue;
    stage.channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await?;
    let lost = |w: &Worker| w.metric("reconnects_total", &["peer=\"queue\""]) >= 1.0;
    worker.until("aware of the loss", PATIENCE, lost).await?;
    worker.ready().await?;
    assert_topology(&stage, "tableinator")?;
    stage.publish(DataType::Artists, records(50..100)).await?;
    settled(&mut worker, 100).await?;
    // What was in the queue is lost, so the end of its run, which brought 50 records again, must not take the others for vanished.
    assert_eq!(purge(&stage, "20260101", &started_at).await?, ("records were dead-lettered in this run".to_owned(), 0));
    assert_rows(&stage, DataType::Artists, 0..100).await?;
    assert_no_dead_letters(&stage, "tableinator").await?;
    // Of the next run all is there.
    let started_at = now();
    stage.publish(DataType::Artists, records(0..90)).await?;
    assert_eq!(purge(&stage, "20260201", &started_at).await?, ("deleted".to_owned(), 10));
    assert_eq!(worker.stop().await?.code(), Some(0));
    stage.clean_up().await
}

/// The replica that consumes a queue is killed, and the queue deleted before another one takes over, who is the first to find that.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_deleted_in_a_takeover_is_noticed() -> Result<(), Error> {
    let stage = Stage::new("takeover").await?;
    let (mut first, mut second) = (stage.start("tableinator", &[]).await?, stage.start("tableinator", &[]).await?);
    // By then nothing is handed over any more.
    for worker in [&mut first, &mut second] {
        worker.until("it has its share", PATIENCE, |w| w.metric("consuming", &[]) == 2.0).await?;
    }
    let committed = |w: &Worker| w.metric("records_committed_total", &[]);
    stage.publish(DataType::Artists, records(0..100)).await?;
    eventually("loaded", async || Ok(committed(&first) + committed(&second) == 100.0)).await?;
    let started_at = now();
    stage.publish(DataType::Artists, records(0..50)).await?;
    eventually("seen", async || Ok(committed(&first) + committed(&second) == 150.0)).await?;
    let first_has_it = first.metric("consuming", &["artists"]) == 1.0;
    let (mut holder, mut heir) = if first_has_it { (first, second) } else { (second, first) };
    holder.signal("KILL")?;
    holder.ended().await?;
    stage.publish(DataType::Artists, records(50..100)).await?;
    let queue = stage.topology("tableinator", DataType::Artists).queue;
    stage.channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await?;
    heir.until("it has artists", PATIENCE, |w| w.metric("consuming", &["artists"]) == 1.0).await?;
    assert_eq!(committed(&heir), 0.0, "it took over before the queue was deleted");
    assert_eq!(purge(&stage, "20260101", &started_at).await?, ("records were dead-lettered in this run".to_owned(), 0));
    assert_rows(&stage, DataType::Artists, 0..100).await?;
    assert_eq!(heir.stop().await?.code(), Some(0));
    stage.clean_up().await
}

/// The answer to a purge is lost on its way, and the connection stays open: the worker asks the server itself, and purges anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_purge_whose_connection_is_lost_is_done_anew() -> Result<(), Error> {
    let stage = Stage::new("lostpurge").await?;
    let proxy = Proxy::start(services().get("POSTGRES_PORT").parse()?, u64::MAX).await?;
    let port = proxy.port.to_string();
    let mut worker = stage.start("tableinator", &[("POSTGRES_HOST", "127.0.0.1"), ("POSTGRES_PORT", &port)]).await?;
    stage.publish(DataType::Artists, records(0..20)).await?;
    settled(&mut worker, 20).await?;
    let started_at = now();
    stage.publish(DataType::Artists, records(0..19)).await?;
    proxy.swallow_at(b"ingest_stale");
    let purged = purge_within(3 * PATIENCE, &stage, "20260101", &started_at).await?;
    assert_eq!(purged, ("deleted".to_owned(), 1));
    assert!(worker.metric("background_failures_total", &[]) > 0.0, "nothing was lost");
    assert_rows(&stage, DataType::Artists, 0..19).await?;
    assert_eq!(worker.stop().await?.code(), Some(0));
    stage.clean_up().await
}

/// Ends a run of artists, and says what came of its purge and how many rows that deleted.
async fn purge(stage: &Stage, version: &str, started_at: &str) -> Result<(String, i64), Error> {
    purge_within(PATIENCE, stage, version, started_at).await
}

async fn purge_within(
    patience: Duration,
    stage: &Stage,
    version: &str,
    started_at: &str,
) -> Result<(String, i64), Error> {
    let end = json!({"type": "extraction_complete", "version": version, "started_at": started_at, "timestamp": now()});
    stage.publish(DataType::Artists, [end.to_string()]).await?;
    let postgres = stage.postgres().await?;
    let statement = "SELECT outcome, deleted FROM ingest_purges WHERE version = $1 AND finished_at IS NOT NULL";
    within(patience, "purged", async || Ok(postgres.query_opt(statement, &[&version]).await?.is_some())).await?;
    let row = postgres.query_one(statement, &[&version]).await?;
    Ok((row.get(0), row.get(1)))
}

/// The worker holds a batch that can't be written: what is published until it can must have a queue all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_deleted_while_a_batch_is_held_is_declared_again() -> Result<(), Error> {
    let stage = Stage::new("deleted_held").await?;
    let role = Role::create(&stage, "right").await?;
    let login = [("POSTGRES_USERNAME", role.name.as_str()), ("POSTGRES_PASSWORD", "right")];
    let mut worker = stage.start("tableinator", &login).await?;
    let postgres = stage.postgres().await?;
    let shut_out = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename";
    postgres.batch_execute(&format!("ALTER ROLE {0} NOLOGIN; {shut_out} = '{0}'", role.name)).await?;
    stage.publish(DataType::Artists, records(0..10)).await?;
    // Nobody consumes any more who would be told of the deletion.
    let fetches_no_more = |w: &Worker| w.metric("consuming", &["artists"]) == 0.0;
    worker.until("holding a batch", PATIENCE, fetches_no_more).await?;
    let queue = stage.topology("tableinator", DataType::Artists).queue;
    stage.channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await?;
    eventually("the queue is back", async || {
        // The default exchange's binding, and that of the worker.
        let (_, bindings) = broker_api("GET", &format!("queues/%2F/{queue}/bindings"), "")?;
        Ok(bindings.as_array().is_some_and(|bindings| bindings.len() == 2))
    })
    .await?;
    assert_eq!(worker.metric("reconnects_total", &["peer=\"queue\""]), 0.0, "it does not hold the batch any more");
    stage.publish(DataType::Artists, records(10..50)).await?;
    postgres.batch_execute(&format!("ALTER ROLE {} LOGIN", role.name)).await?;
    settled(&mut worker, 50).await?;
    assert_rows(&stage, DataType::Artists, 0..50).await?;
    assert_no_dead_letters(&stage, "tableinator").await?;
    assert_eq!(worker.stop().await?.code(), Some(0));
    stage.clean_up().await?;
    role.drop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_connection_is_replaced_and_nothing_is_lost() -> Result<(), Error> {
    let stage = Stage::new("closed").await?;
    let mut worker = stage.start("tableinator", &[("POSTGRES_BATCH_SIZE", "20"), ("POSTGRES_WRITERS", "1")]).await?;
    let log = worker.log.clone();
    let first = connection_of(&stage).await?;
    let (_, details) = broker_api("GET", &format!("connections/{}", encoded(&first)), "")?;
    assert_eq!(details["client_properties"]["connection_name"], "tableinator", "{details}");

    // Batches of 20 wait at every stage behind the lock when the connection goes.
    let mut locker = stage.postgres().await?;
    let lock = locker.transaction().await?;
    lock.batch_execute("LOCK TABLE artists IN ACCESS EXCLUSIVE MODE").await?;
    stage.publish(DataType::Artists, records(0..1000)).await?;
    worker.until("loading", PATIENCE, |w| w.metric("in_flight_batches", &["artists"]) > 0.0).await?;
    assert_eq!(broker_api("DELETE", &format!("connections/{}", encoded(&first)), "")?.0, 204);
    stage.publish(DataType::Artists, records(1000..2000)).await?;
    stage.publish(DataType::Labels, records(0..500)).await?;
    lock.commit().await?;

    eventually("loaded", async || Ok(count(&stage, "artists").await? == 2000 && count(&stage, "labels").await? == 500))
        .await?;
    worker.ready().await?;
    assert_ne!(connection_of(&stage).await?, first);
    assert_rows(&stage, DataType::Artists, 0..2000).await?;
    assert_rows(&stage, DataType::Labels, 0..500).await?;
    assert!(worker.metric("redelivered_total", &["artists"]) >= 20.0, "messages were in the worker's hands");
    assert_no_dead_letters(&stage, "tableinator").await?;
    assert_eq!(worker.stop().await?.code(), Some(0));
    for t in DataType::ALL {
        assert_eq!(stage.ready_count(&stage.topology("tableinator", t).queue).await?, 0, "{t}");
    }
    assert_adds_up(&farewell(&log)?);
    stage.clean_up().await
}

// ------------------------------------------------------------------------------------------------- configuration

#[test]
fn missing_variables_are_reported_together() -> Result<(), Error> {
    services();
    for (worker, missing) in [
        ("tableinator", vec!["POSTGRES_HOST", "POSTGRES_USERNAME", "POSTGRES_PASSWORD", "POSTGRES_DATABASE"]),
        ("graphinator", vec!["NEO4J_HOST", "NEO4J_USERNAME", "NEO4J_PASSWORD"]),
    ] {
        let wrong = BTreeMap::from([("RABBITMQ_PORT".to_owned(), "0".to_owned())]);
        for command in ["run", "check"] {
            let (code, stdout, stderr) = run(worker, &[command], &wrong)?;
            assert_eq!((code, stdout.as_str()), (2, ""), "{worker} {command}: {stderr}");
            for name in &missing {
                assert!(stderr.contains(&format!("{name} is missing")), "{worker} {command}: {name} in {stderr}");
            }
            assert!(stderr.contains("RABBITMQ_PORT is \"0\""), "{stderr}");
            assert!(stderr.contains(&format!("{} problem", missing.len() + 1)), "{stderr}");
        }
    }
    Ok(())
}

#[test]
fn help_lists_every_variable_with_its_default() -> Result<(), Error> {
    services();
    let common = [
        ("RABBITMQ_HOST", "default rabbitmq"),
        ("RABBITMQ_PORT", "default 5672"),
        ("RABBITMQ_USERNAME*", "default discogsography"),
        ("RABBITMQ_PASSWORD*", "default discogsography"),
        ("RABBITMQ_VHOST", "default /"),
        ("RABBITMQ_TLS_ENABLED", "default false"),
        ("RABBITMQ_TLS_CA_FILE", "default"),
        ("RABBITMQ_PREFETCH", "default"),
        ("DISCOGS_EXCHANGE_PREFIX", "default discogsography-discogs"),
        ("BATCH_MAX_BYTES", "default"),
        ("WRITE_TIMEOUT", "default"),
        ("SHUTDOWN_TIMEOUT", "default 25"),
        ("SCHEMA", "default ensure"),
        ("HEALTH_PORT", "8001 graphinator, 8002 tableinator"),
        ("LOG_LEVEL", "default INFO"),
        ("ENVIRONMENT", "default development"),
    ];
    let tables = [
        ("POSTGRES_HOST", "required"),
        ("POSTGRES_PORT", "default 5432"),
        ("POSTGRES_USERNAME*", "required"),
        ("POSTGRES_PASSWORD*", "required"),
        ("POSTGRES_DATABASE", "required"),
        ("POSTGRES_POOL_MIN_SIZE", "default 2"),
        ("POSTGRES_POOL_MAX_SIZE", "default 12"),
        ("POSTGRES_BATCH_MODE", "default true"),
        ("POSTGRES_BATCH_SIZE", "default 500"),
        ("POSTGRES_BATCH_FLUSH_INTERVAL", "default 2.0"),
        ("PURGE_MAX_DELETE_FRACTION", "default 0.90"),
        ("POSTGRES_TLS_ENABLED", "default false"),
        ("POSTGRES_TLS_CA_FILE", "default"),
    ];
    let graph = [
        ("NEO4J_HOST", "required"),
        ("NEO4J_PORT", "default 7687"),
        ("NEO4J_USERNAME*", "required"),
        ("NEO4J_PASSWORD*", "required"),
        ("NEO4J_TLS_ENABLED", "default false"),
        ("NEO4J_TLS_VERIFY", "default true"),
        ("NEO4J_TLS_CA_FILE", "default"),
        ("NEO4J_BATCH_MODE", "default true"),
        ("NEO4J_BATCH_SIZE", "default 500"),
        ("NEO4J_BATCH_FLUSH_INTERVAL", "default 2.0"),
    ];
    let without_effect =
        ["CONSUMER_CANCEL_DELAY", "QUEUE_CHECK_INTERVAL", "STUCK_CHECK_INTERVAL", "STARTUP_IDLE_TIMEOUT"]
            .iter()
            .chain(&["IDLE_LOG_INTERVAL", "STARTUP_DELAY", "DB_PROFILING"]);
    for (worker, own) in [("tableinator", &tables[..]), ("graphinator", &graph[..])] {
        let (code, help, _) = run(worker, &["--help"], &BTreeMap::new())?;
        assert_eq!(code, 0);
        for (name, default) in common.iter().chain(own) {
            let at = help.lines().position(|line| line.trim().trim_end_matches('~') == *name); // ~: tunable
            let described = at.and_then(|at| help.lines().nth(at + 1)).unwrap_or_default();
            assert!(described.contains(default), "{worker}: {name} has no {default:?} in\n{help}");
        }
        for name in without_effect.clone() {
            assert!(help.contains(name), "{worker}: {name}");
        }
        // What the code describes and what it lists can't differ either.
        for variable in common::config::BROKER.iter().chain(common::config::COMMON) {
            assert!(help.contains(variable.name), "{worker}: {}", variable.name);
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_s_file_wins() -> Result<(), Error> {
    let stage = Stage::new("secretfile").await?;
    let dir = std::env::temp_dir().join(format!("lifecycle-secrets-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    for database in ["POSTGRES", "RABBITMQ"] {
        for part in ["USERNAME", "PASSWORD"] {
            let name = format!("{database}_{part}");
            let path = dir.join(&name).to_string_lossy().into_owned();
            let file = format!("{name}_FILE");
            std::fs::write(&path, format!("{}\n", services().get(&name)))?;
            let (code, out) = stage.check("tableinator", &[(&name, "wrong"), (&file, &path)])?;
            assert_eq!(code, 0, "the right {name} is in the file: {out}");
            std::fs::write(&path, "wrong")?;
            let (code, out) = stage.check("tableinator", &[(&file, &path)])?;
            assert_eq!(code, 1, "the wrong {name} is in the file: {out}");
        }
    }
    std::fs::remove_dir_all(&dir)?;
    stage.clean_up().await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_shows_anywhere() -> Result<(), Error> {
    const RIGHT: &str = "Right-Secret-4711";
    const WRONG: &str = "Wrong-Secret-4711";
    let stage = Stage::new("secrets").await?;
    let role = Role::create(&stage, RIGHT).await?;
    let user = encoded(&stage.prefix);
    broker_api("PUT", &format!("users/{user}"), &json!({"password": RIGHT, "tags": ""}).to_string())?;
    let all = json!({"configure": ".*", "write": ".*", "read": ".*"}).to_string();
    broker_api("PUT", &format!("permissions/%2F/{user}"), &all)?;
    let right = [
        ("POSTGRES_USERNAME", role.name.as_str()),
        ("POSTGRES_PASSWORD", RIGHT),
        ("RABBITMQ_USERNAME", stage.prefix.as_str()),
        ("RABBITMQ_PASSWORD", RIGHT),
        ("LOG_LEVEL", "DEBUG"),
    ];
    let mut seen = Vec::new(); // what was shown, and by whom
    let shown =
        |w: &Worker| -> Result<String, Error> { Ok(w.get("/health")?.1 + &w.get("/ready")?.1 + &w.get("/metrics")?.1) };

    let mut worker = stage.start("tableinator", &right).await?;
    stage.publish(DataType::Artists, records(0..5)).await?;
    stage.publish(DataType::Artists, ["no JSON"]).await?;
    settled(&mut worker, 6).await?;
    seen.push(("a good worker", shown(&worker)?));
    seen.push(("its log", worker.log_text()));
    assert_eq!(worker.stop().await?.code(), Some(0));
    for (what, name, complaint) in [
        ("PostgreSQL's password is wrong", "POSTGRES_PASSWORD", "password authentication failed"),
        ("RabbitMQ's password is wrong", "RABBITMQ_PASSWORD", "ACCESS_REFUSED"),
    ] {
        let wrong: Vec<_> = right.iter().copied().chain([(name, WRONG)]).collect();
        let mut worker = stage.spawn("tableinator", &wrong)?;
        worker.until("refused", PATIENCE, |w| unready(w).is_some_and(|why| why.contains(complaint))).await?;
        seen.push((what, shown(&worker)?));
        seen.push((what, worker.log_text()));
        assert_eq!(worker.stop().await?.code(), Some(0), "{what}: stopped while not ready");
        let (code, out) = stage.check("tableinator", &wrong)?;
        assert_eq!(code, 1, "{what}: {out}");
        seen.push((what, out));
    }
    // A user that nobody else has: three wrong passwords lock a user out for a while.
    let wrong = [("NEO4J_USERNAME", stage.prefix.as_str()), ("NEO4J_PASSWORD", WRONG)];
    let (code, out) = stage.check("graphinator", &wrong)?;
    assert_eq!(code, 1, "{out}");
    seen.push(("graphinator check", out));
    for worker in ["tableinator", "graphinator"] {
        let extra = [("NEO4J_PASSWORD", RIGHT), ("POSTGRES_PASSWORD", RIGHT), ("RABBITMQ_PASSWORD", RIGHT)];
        let (_, help, _) = run(worker, &["--help"], &stage.env(&extra))?;
        seen.push(("--help", help));
        let unusable = [extra[0], extra[1], extra[2], ("RABBITMQ_PORT", "none")];
        let (code, _, problems) = run(worker, &["run"], &stage.env(&unusable))?;
        assert_eq!(code, 2, "{problems}");
        seen.push(("configuration problems", problems));
    }
    for (what, text) in seen {
        assert!(!text.is_empty(), "{what}");
        assert!(!text.contains("Secret-4711"), "{what}:\n{text}");
    }
    broker_api("DELETE", &format!("users/{user}"), "")?;
    stage.clean_up().await?;
    role.drop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_ends_the_start() -> Result<(), Error> {
    let stage = Stage::new("port").await?;
    let taken = TcpListener::bind("0.0.0.0:0")?;
    let port = taken.local_addr()?.port().to_string();
    for worker in ["tableinator", "graphinator"] {
        let (code, stdout, _) = run(worker, &[], &stage.env(&[("HEALTH_PORT", &port)]))?;
        assert_eq!(code, 2, "{worker}: {stdout}");
        let lines = log_lines(&stdout)?;
        let reasons: Vec<_> = lines.iter().filter(|l| l["level"] == "error").map(|l| text(&l["reason"])).collect();
        assert_eq!(reasons.len(), 1, "{worker}: {stdout}");
        assert!(reasons[0].contains(&format!("port {port}")) && reasons[0].contains("HEALTH_PORT"), "{reasons:?}");
    }
    stage.clean_up().await
}

// ------------------------------------------------------------------------------------------------- check

#[tokio::test(flavor = "multi_thread")]
async fn check_is_content_and_changes_nothing() -> Result<(), Error> {
    let stage = Stage::new("check").await?;
    for (worker, database) in [("tableinator", "PostgreSQL"), ("graphinator", "Neo4j")] {
        let (code, out) = stage.check(worker, &[])?;
        assert_eq!(code, 0, "{out}");
        for what in ["configuration: ", "prefetch: ", "consumer timeout: ", &format!("{database}: "), "RabbitMQ: "] {
            let lines: Vec<_> = out.lines().filter(|line| line.contains(what)).collect();
            assert_eq!(lines.len(), 1, "{what} in {out}");
            assert!(lines[0].starts_with("ok  "), "{out}");
        }
        for t in DataType::ALL {
            let topology = stage.topology(worker, t);
            assert!(out.contains(&format!("ok   {}: does not exist yet", topology.queue)), "{out}");
            for queue in [topology.queue, topology.dead_letter_queue] {
                assert_eq!(broker_api("GET", &format!("queues/%2F/{queue}"), "")?.0, 404, "{queue}");
            }
            for exchange in [topology.data_exchange, topology.dead_letter_exchange] {
                assert_eq!(broker_api("GET", &format!("exchanges/%2F/{exchange}"), "")?.0, 404, "{exchange}");
            }
        }
    }
    let tables = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace";
    let made: i64 = stage.postgres().await?.query_one(tables, &[]).await?.get(0);
    assert_eq!(made, 0, "check made something in the database");

    // Beside a running worker, with messages in a queue.
    let mut worker = stage.start("tableinator", &[]).await?;
    let (code, out) = stage.check("tableinator", &[("SCHEMA", "check")])?;
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("PostgreSQL: reachable, schema complete"), "{out}");
    for t in DataType::ALL {
        let queue = stage.topology("tableinator", t).queue;
        assert!(out.contains(&format!("ok   {queue}: 0 messages ready, 1 consumers, arguments as expected")), "{out}");
    }
    assert_topology(&stage, "tableinator")?;
    stage.publish(DataType::Artists, records(0..3)).await?;
    settled(&mut worker, 3).await?;
    assert_eq!(worker.stop().await?.code(), Some(0));
    stage.publish(DataType::Artists, records(3..10)).await?;
    let (code, out) = stage.check("tableinator", &[])?;
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("-artists: 7 messages ready, 0 consumers"), "{out}");
    assert_eq!(stage.ready_count(&stage.topology("tableinator", DataType::Artists).queue).await?, 7);
    stage.clean_up().await
}

#[tokio::test(flavor = "multi_thread")]
async fn check_names_what_is_wrong() -> Result<(), Error> {
    let stage = Stage::new("wrong").await?;
    let role = Role::create(&stage, "right").await?;
    let wrong_password = [("POSTGRES_USERNAME", role.name.as_str()), ("POSTGRES_PASSWORD", "wrong")];
    let nobody = [("NEO4J_USERNAME", stage.prefix.as_str()), ("NEO4J_PASSWORD", "wrong")];
    let queue = stage.topology("tableinator", DataType::Masters).queue;
    for (worker, what, extra, failed, problem) in [
        ("tableinator", "PostgreSQL's password", &wrong_password[..], "PostgreSQL", "password authentication failed"),
        ("graphinator", "Neo4j's password", &nobody, "Neo4j", "nauthorized"),
        ("tableinator", "the broker's port", &[("RABBITMQ_PORT", "1")], "RabbitMQ", "127.0.0.1:1: "),
        ("tableinator", "the broker's password", &[("RABBITMQ_PASSWORD", "wrong")], "RabbitMQ", "ACCESS_REFUSED"),
        ("tableinator", "PostgreSQL's port", &[("POSTGRES_PORT", "1")], "PostgreSQL", "refused"),
        ("tableinator", "missing tables", &[("SCHEMA", "check")], "PostgreSQL", "missing: artists, idx_artists_hash"),
        ("tableinator", "another queue", &[], &queue, "PRECONDITION_FAILED"),
    ] {
        if what == "another queue" {
            declare_classic(&stage, &queue).await?;
        }
        let (code, out) = stage.check(worker, extra)?;
        assert_eq!(code, 1, "{what}: {out}");
        let failures: Vec<_> = out.lines().filter(|line| line.starts_with("FAIL ")).collect();
        assert_eq!(failures.len(), 1, "{what}: {out}");
        assert!(failures[0].starts_with(&format!("FAIL {failed}: ")), "{what}: {out}");
        assert!(failures[0].contains(problem), "{what}: {out}");
    }
    let (_, found) = broker_api("GET", &format!("queues/%2F/{queue}"), "")?;
    assert_eq!(found["type"], "classic");
    stage.clean_up().await?;
    role.drop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn check_repairs_nothing() -> Result<(), Error> {
    let stage = Stage::new("halfthere").await?;
    stage.declare("tableinator").await?;
    let t = stage.topology("tableinator", DataType::Artists);
    stage.channel.queue_delete(t.dead_letter_queue.as_str().into(), QueueDeleteOptions::default()).await?;
    stage.channel.exchange_delete(t.dead_letter_exchange.as_str().into(), Default::default()).await?;
    stage.channel.exchange_delete(t.data_exchange.as_str().into(), Default::default()).await?;
    stage.check("tableinator", &[])?;
    let kind = [("queues", t.dead_letter_queue), ("exchanges", t.dead_letter_exchange), ("exchanges", t.data_exchange)];
    for (kind, name) in kind {
        assert_eq!(broker_api("GET", &format!("{kind}/%2F/{name}"), "")?.0, 404, "check made {name}");
    }
    stage.clean_up().await
}

// ------------------------------------------------------------------------------------------------- repairs

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_waited_out() -> Result<(), Error> {
    let stage = Stage::new("password").await?;
    let role = Role::create(&stage, "first").await?;
    let queue = stage.topology("tableinator", DataType::Artists).queue;
    let login = [("POSTGRES_USERNAME", role.name.as_str()), ("POSTGRES_PASSWORD", "second")];
    let mut worker = stage.spawn("tableinator", &login)?;
    let complaint = |w: &Worker| {
        unready(w).is_some_and(|why| why.contains("artists") && why.contains("password authentication failed"))
    };
    worker.until("refused", PATIENCE, complaint).await?;
    // It has declared its queues all the same: what is published by now would be lost otherwise.
    stage.publish(DataType::Artists, records(0..20)).await?;
    sleep(SOME_ATTEMPTS).await;
    assert!(complaint(&worker));
    let (code, body) = worker.get("/health")?;
    assert_eq!((code, &parse(&body)?["active_consumers"]), (200, &json!([])), "{body}");
    assert_eq!(worker.metric("connected", &["peer=\"database\""]), 0.0);
    assert!(worker.metric("breaker_state", &["artists"]) > 0.0);
    assert_eq!(stage.ready_count(&queue).await?, 20, "it consumes although nothing can be written");

    stage.postgres().await?.batch_execute(&format!("ALTER ROLE {} PASSWORD 'second'", role.name)).await?;
    worker.ready().await?;
    settled(&mut worker, 20).await?;
    assert_rows(&stage, DataType::Artists, 0..20).await?;
    assert_eq!(worker.metric("redelivered_total", &[]), 0.0);
    assert_eq!(worker.metric("breaker_state", &[]), 0.0);
    assert_no_dead_letters(&stage, "tableinator").await?;
    assert_eq!(worker.stop().await?.code(), Some(0));
    stage.clean_up().await?;
    role.drop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_missing_at_the_start_is_waited_out() -> Result<(), Error> {
    let stage = Stage::new("missing").await?;
    assert_eq!(stage.start("tableinator", &[]).await?.stop().await?.code(), Some(0));
    let postgres = stage.postgres().await?;
    postgres.batch_execute("CREATE SCHEMA elsewhere").await?;
    for (schema, upto) in [("check", 20), ("off", 40)] {
        postgres.batch_execute("ALTER TABLE artists SET SCHEMA elsewhere").await?;
        let mut worker = stage.spawn("tableinator", &[("SCHEMA", schema)])?;
        stage.publish(DataType::Artists, records(upto - 20..upto)).await?;
        let complaint = |w: &Worker| unready(w).is_some_and(|why| why.contains("artists"));
        worker.until("complaining", PATIENCE, complaint).await?;
        sleep(SOME_ATTEMPTS).await;
        assert!(complaint(&worker), "SCHEMA={schema}");
        let table = postgres.query_one("SELECT to_regclass('artists')::text", &[]).await?;
        assert_eq!(table.get::<_, Option<String>>(0), None, "SCHEMA={schema}");

        postgres.batch_execute("ALTER TABLE elsewhere.artists SET SCHEMA public").await?;
        settled(&mut worker, 20).await?;
        worker.ready().await?;
        assert_rows(&stage, DataType::Artists, 0..upto).await?;
        assert_no_dead_letters(&stage, "tableinator").await?;
        assert_eq!(worker.stop().await?.code(), Some(0));
    }
    stage.clean_up().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_table_is_waited_out() -> Result<(), Error> {
    let stage = Stage::new("dropped").await?;
    assert_eq!(stage.start("tableinator", &[]).await?.stop().await?.code(), Some(0));
    let mut worker = stage.start("tableinator", &[("SCHEMA", "off")]).await?;
    stage.publish(DataType::Artists, records(0..10)).await?;
    settled(&mut worker, 10).await?; // its statements are prepared now
    let postgres = stage.postgres().await?;
    postgres.batch_execute("DROP TABLE artists").await?;
    stage.publish(DataType::Artists, records(10..40)).await?;
    stage.publish(DataType::Labels, records(0..30)).await?;
    let complaint = |w: &Worker| unready(w).is_some_and(|why| why.contains("artists") && why.contains("42P01"));
    worker.until("complaining", PATIENCE, complaint).await?;
    settled(&mut worker, 40).await?;
    assert_rows(&stage, DataType::Labels, 0..30).await?; // not this type's trouble
    sleep(SOME_ATTEMPTS).await;
    assert_no_dead_letters(&stage, "tableinator").await?;

    postgres
        .batch_execute(
            "CREATE TABLE artists (data_id VARCHAR PRIMARY KEY, hash VARCHAR NOT NULL, data JSONB NOT NULL, \
             updated_at TIMESTAMPTZ NOT NULL DEFAULT NOW())",
        )
        .await?;
    settled(&mut worker, 70).await?;
    worker.ready().await?;
    assert_rows(&stage, DataType::Artists, 10..40).await?;
    assert_no_dead_letters(&stage, "tableinator").await?;
    assert_eq!(worker.stop().await?.code(), Some(0));
    stage.clean_up().await
}

/// Statements that were prepared before fit no more, on each connection that has them.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_changes_its_type_is_borne() -> Result<(), Error> {
    let stage = Stage::new("newtype").await?;
    let few = [("POSTGRES_POOL_MAX_SIZE", "2"), ("POSTGRES_BATCH_SIZE", "5"), ("RABBITMQ_CONSUMER_TIMEOUT", "20")];
    let mut worker = stage.start("tableinator", &few).await?;
    stage.publish(DataType::Artists, records(0..100)).await?;
    settled(&mut worker, 100).await?;
    stage.postgres().await?.batch_execute("ALTER TABLE artists ALTER COLUMN data_id TYPE text").await?;
    stage.publish(DataType::Artists, records(50..150)).await?;
    settled(&mut worker, 200).await?;
    assert_rows(&stage, DataType::Artists, 0..150).await?;
    assert_no_dead_letters(&stage, "tableinator").await?;
    worker.ready().await?;
    assert_eq!(worker.stop().await?.code(), Some(0));
    stage.clean_up().await
}

/// The only message is broken, and at first that can't be noted. Nothing comes after it that would be committed.
#[tokio::test(flavor = "multi_thread")]
async fn trouble_ends_with_a_dead_letter_too() -> Result<(), Error> {
    let stage = Stage::new("lastletter").await?;
    let mut worker = stage.start("tableinator", &[("WRITE_TIMEOUT", "1")]).await?;
    let locker = stage.postgres().await?;
    locker.batch_execute("BEGIN; LOCK TABLE ingest_dead_letters IN ACCESS EXCLUSIVE MODE").await?;
    stage.publish(DataType::Artists, ["{"]).await?;
    let broken = |w: &Worker| w.metric("breaker_state", &["artists"]) == 1.0 && unready(w).is_some();
    worker.until("in trouble", PATIENCE, broken).await?;
    locker.batch_execute("ROLLBACK").await?;
    let noted = |w: &Worker| w.metric("records_dead_lettered_total", &[]) == 1.0;
    worker.until("through", PATIENCE, noted).await?;
    let well = |w: &Worker| w.metric("breaker_state", &["artists"]) == 0.0 && unready(w).is_none();
    worker.until("well", PATIENCE, well).await?;
    assert_eq!(worker.stop().await?.code(), Some(0));
    stage.clean_up().await
}

/// A check of the operator's own that every record passes, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn a_constraint_that_records_pass_stops_nothing() -> Result<(), Error> {
    let stage = Stage::new("ownchecks").await?;
    assert_eq!(stage.start("tableinator", &[]).await?.stop().await?.code(), Some(0));
    let check = "ALTER TABLE artists ADD CHECK (length(hash) = 64)";
    stage.postgres().await?.batch_execute(check).await?;
    stage.publish(DataType::Artists, records(0..10)).await?;
    stage.publish(DataType::Artists, [r#"{"type":"data","id":"short","sha256":"x","name":"x"}"#]).await?;
    let mut worker = stage.start("tableinator", &[]).await?;
    settled(&mut worker, 11).await?;
    assert_rows(&stage, DataType::Artists, 0..10).await?;
    let letters = stage.dead_letters("tableinator", DataType::Artists).await?;
    assert_eq!(letters.iter().map(|l| l.header("dead-letter-code")).collect::<Vec<_>>(), ["23514"]);
    assert_eq!(worker.stop().await?.code(), Some(0));
    stage.clean_up().await
}

/// A database that can't hold every character would make dead letters of good records.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_lacks_characters_is_not_written_to() -> Result<(), Error> {
    let stage = Stage::new("encoding").await?;
    let admin = services().postgres(services().get("POSTGRES_DATABASE")).await?;
    let name = &stage.database;
    let again = format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'");
    admin.batch_execute(&format!("DROP DATABASE {name}")).await?;
    admin.batch_execute(&again).await?;
    let mut worker = stage.spawn("tableinator", &[])?;
    let complaint =
        |w: &Worker| unready(w).is_some_and(|why| why.contains("LATIN1") && why.contains("ENCODING 'UTF8'"));
    worker.until("complaining", PATIENCE, complaint).await?;
    stage.declare("tableinator").await?;
    stage.publish(DataType::Artists, records(0..5)).await?;
    sleep(SOME_ATTEMPTS).await;
    assert_no_dead_letters(&stage, "tableinator").await?;
    drop(worker);
    stage.clean_up().await
}

/// The broker's password is wrong at the start, right, wrong in mid-run, and right again, with one and the same worker.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_of_the_broker_is_waited_out() -> Result<(), Error> {
    let stage = Stage::with_graph("brokerpassword").await?;
    let ctl = |arguments: &[&str]| tokio::task::block_in_place(|| script(&[&["ctl"], arguments].concat()));
    let user = stage.database.as_str();
    ctl(&["add_user", user, "another"])?;
    ctl(&["set_permissions", user, ".*", ".*", ".*"])?;
    for name in ["tableinator", "graphinator"] {
        stage.declare(name).await?;
        let mut worker = stage.spawn(name, &[("RABBITMQ_USERNAME", user), ("RABBITMQ_PASSWORD", "right")])?;
        for life in 1..=2 {
            let complaint =
                |w: &Worker| unready(w).is_some_and(|why| why.contains("ACCESS") || why.contains("refused"));
            worker.until("complaining", PATIENCE, complaint).await?;
            stage.publish(DataType::Artists, records(0..30)).await?;
            sleep(SOME_ATTEMPTS).await;
            ctl(&["change_password", user, "right"])?;
            let committed = |w: &Worker| w.metric("records_committed_total", &[]) >= f64::from(30 * life);
            worker.until("through", PATIENCE, committed).await?;
            ctl(&["change_password", user, "another"])?;
            ctl(&["close_all_user_connections", user, "test"])?;
        }
        assert_no_dead_letters(&stage, name).await?;
    }
    assert_rows(&stage, DataType::Artists, 0..30).await?;
    ctl(&["delete_user", user])?;
    stage.clean_up().await
}

/// Without it the statements, which demand its index, can't be planned.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_constraint_is_made_anew() -> Result<(), Error> {
    let stage = Stage::with_graph("constraint").await?;
    let mut worker = stage.start("graphinator", &[]).await?;
    stage.publish(DataType::Artists, records(0..10)).await?;
    settled(&mut worker, 10).await?;
    let graph = services().neo4j()?;
    graph.run(query("DROP CONSTRAINT artist_id")).await?;
    stage.publish(DataType::Artists, records(5..30)).await?;
    settled(&mut worker, 35).await?;
    worker.ready().await?;
    let artists = "MATCH (a:Artist) WHERE a.sha256 IS NOT NULL RETURN count(*) AS n";
    let left = graph.execute(query(artists)).await?.next().await?.ok_or("no count")?;
    assert_eq!(left.get::<i64>("n")?, 30);
    assert_no_dead_letters(&stage, "graphinator").await?;
    assert_eq!(worker.stop().await?.code(), Some(0));
    stage.clean_up().await
}

/// What `SCHEMA` can't see: the tables are there, but nothing may be written to one of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_paused_type_is_not_ready_between_its_attempts() -> Result<(), Error> {
    let stage = Stage::new("privilege").await?;
    let role = Role::create(&stage, "right").await?;
    let login = [("POSTGRES_USERNAME", role.name.as_str()), ("POSTGRES_PASSWORD", "right")];
    let mut worker = stage.start("tableinator", &login).await?;
    let postgres = stage.postgres().await?;
    postgres.batch_execute(&format!("REVOKE INSERT ON artists FROM {}", role.name)).await?;
    stage.publish(DataType::Artists, records(0..30)).await?;
    let complaint = |w: &Worker| unready(w).is_some_and(|why| why.contains("artists") && why.contains("42501"));
    worker.until("complaining", PATIENCE, complaint).await?;
    let until = Instant::now() + SOME_ATTEMPTS;
    let mut answers = BTreeMap::new();
    while Instant::now() < until {
        *answers.entry(worker.get("/ready")?.0).or_insert(0) += 1;
        sleep(Duration::from_millis(20)).await;
    }
    postgres.batch_execute(&format!("GRANT INSERT ON artists TO {}", role.name)).await?;
    settled(&mut worker, 30).await?;
    worker.ready().await?;
    assert_rows(&stage, DataType::Artists, 0..30).await?;
    assert_no_dead_letters(&stage, "tableinator").await?;
    assert_eq!(worker.stop().await?.code(), Some(0));
    stage.clean_up().await?;
    role.drop().await?;
    assert_eq!(answers.into_keys().collect::<Vec<_>>(), [503], "nothing could be written all the time");
    Ok(())
}

/// The broker dead-letters what was delivered more than twenty times: attempts must not use that up. Replicas, so that
/// it does not take minutes.
#[tokio::test(flavor = "multi_thread")]
async fn attempts_do_not_use_up_the_delivery_limit() -> Result<(), Error> {
    let stage = Stage::new("limit").await?;
    let role = Role::create(&stage, "right").await?;
    let login = [
        ("POSTGRES_USERNAME", role.name.as_str()),
        ("POSTGRES_PASSWORD", "right"),
        ("POSTGRES_BATCH_FLUSH_INTERVAL", "0.01"),
    ];
    let mut worker = stage.start("tableinator", &login).await?;
    let postgres = stage.postgres().await?;
    postgres.batch_execute(&format!("REVOKE INSERT ON artists FROM {}", role.name)).await?;
    stage.publish(DataType::Artists, records(0..30)).await?;
    let mut replicas = Vec::new();
    for _ in 0..4 {
        replicas.push(stage.spawn("tableinator", &login)?);
    }
    sleep(SOME_ATTEMPTS * 4).await;
    drop(replicas);
    postgres.batch_execute(&format!("GRANT INSERT ON artists TO {}", role.name)).await?;
    worker.ready().await?;
    let queue = stage.topology("tableinator", DataType::Artists).queue;
    eventually("empty", async || Ok(stage.ready_count(&queue).await? == 0)).await?;
    assert_eq!(worker.stop().await?.code(), Some(0));
    assert_no_dead_letters(&stage, "tableinator").await?;
    assert_rows(&stage, DataType::Artists, 0..30).await?;
    stage.clean_up().await?;
    role.drop().await
}

// ------------------------------------------------------------------------------------------------- HTTP and metrics

#[tokio::test(flavor = "multi_thread")]
async fn http_and_log_speak_as_the_contract_says() -> Result<(), Error> {
    let stage = Stage::new("http").await?;
    let logs = std::env::temp_dir().join(format!("lifecycle-{}", stage.prefix));
    let dir = logs.to_string_lossy().into_owned();
    let extra = [("LOG_LEVEL", "DEBUG"), ("ENVIRONMENT", "lifecycle"), ("LOG_DIR", dir.as_str())];
    let mut worker = stage.start("tableinator", &extra).await?;
    assert_health(&worker, "tableinator", [0; 4])?;
    assert_eq!(health(&worker)["current_task"], "Idle - waiting for messages");
    stage.publish(DataType::Masters, records(0..7)).await?;
    stage.publish(DataType::Masters, ["{"]).await?;
    stage.publish(DataType::Masters, [file_complete(DataType::Masters, "20260101", 8)]).await?;
    settled(&mut worker, 8).await?;
    worker.until("complete", PATIENCE, |w| health(w)["completed_files"] == json!(["masters"])).await?;
    assert_health(&worker, "tableinator", [0, 0, 8, 0])?;
    assert_eq!(health(&worker)["current_task"], "Processing masters");
    let (code, body) = worker.get("/ready")?;
    assert_eq!((code, parse(&body)?), (200, json!({"ready": true, "reasons": []})));
    for path in ["/healthz", "/health/", "/api"] {
        assert_eq!(worker.get(path)?.0, 404, "{path}");
    }
    let log = worker.log.clone();
    assert_eq!(worker.stop().await?.code(), Some(0));

    let written = std::fs::read_to_string(&log)?;
    assert_log(&written, "tableinator", "lifecycle")?;
    assert_eq!(std::fs::read_to_string(logs.join("tableinator.log"))?, written);
    let complete = "✅ File processing complete for masters! Total records processed: 8";
    assert_eq!(log_lines(&written)?.iter().filter(|line| line["event"] == complete).count(), 1);
    let report = farewell(&log)?;
    assert_adds_up(&report);
    let numbers = ["received", "committed", "dead_lettered", "control_messages", "returned", "remained"];
    assert_eq!(numbers.map(|n| number(&report[n])), [9, 7, 1, 1, 0, 0], "{report}");
    std::fs::remove_dir_all(&logs)?;
    stage.clean_up().await
}

/// Design.md's list, but for `drain_seconds`, which is set when the HTTP server is about to go.
#[tokio::test(flavor = "multi_thread")]
async fn every_metric_of_the_design_is_published() -> Result<(), Error> {
    let stage = Stage::new("metrics").await?;
    let one_writer = [("POSTGRES_BATCH_SIZE", "5"), ("POSTGRES_WRITERS", "1"), ("POSTGRES_BATCH_FLUSH_INTERVAL", "1")];
    let mut worker = stage.start("tableinator", &one_writer).await?;
    let log = worker.log.clone();
    stage.publish(DataType::Artists, records(0..10)).await?;
    stage.publish(DataType::Artists, ["no JSON"]).await?;
    stage.publish(DataType::Artists, [file_complete(DataType::Artists, "20260101", 11)]).await?;
    settled(&mut worker, 11).await?;

    // A name that no index entry can hold, among four good ones: found by splitting.
    let mut random = fastrand::Rng::with_seed(1);
    let name: String = (0..20_000).map(|_| random.alphanumeric()).collect();
    let mut labels = records(0..4);
    labels.insert(2, json!({"type": "data", "id": "x", "sha256": "x", "name": name}).to_string().into());
    stage.publish(DataType::Labels, labels).await?;
    settled(&mut worker, 16).await?;
    assert_rows(&stage, DataType::Labels, 0..4).await?;
    let letters = stage.dead_letters("tableinator", DataType::Labels).await?;
    assert_eq!(letters.len(), 1);
    assert_eq!(
        (letters[0].header("dead-letter-id").as_str(), letters[0].header("dead-letter-code").as_str()),
        ("x", "54000")
    );

    deadlock(&stage, &mut worker).await?;
    let mut next = 100;
    while worker.metric("acks_lost_total", &[]) == 0.0 {
        assert!(next < 300, "no ack was lost in ten attempts");
        lose_an_ack(&stage, &mut worker, next..next + 20).await?;
        next += 20;
    }

    let (_, page) = worker.get("/metrics")?;
    for (name, kind) in [
        ("records_received_total", "counter"),
        ("bytes_received_total", "counter"),
        ("records_committed_total", "counter"),
        ("records_dead_lettered_total", "counter"),
        ("batches_total", "counter"),
        ("batch_records", "histogram"),
        ("batch_bytes", "histogram"),
        ("batch_wait_seconds", "histogram"),
        ("write_seconds", "histogram"),
        ("end_to_end_seconds", "histogram"),
        ("in_flight_batches", "gauge"),
        ("in_flight_records", "gauge"),
        ("unacked_deliveries", "gauge"),
        ("ack_frames_total", "counter"),
        ("acks_lost_total", "counter"),
        ("redelivered_total", "counter"),
        ("retries_total", "counter"),
        ("bisections_total", "counter"),
        ("deadlocks_total", "counter"),
        ("breaker_state", "gauge"),
        ("concurrency_limit", "gauge"),
        ("stage_blocked_seconds_total", "gauge"),
        ("reconnects_total", "counter"),
        ("connected", "gauge"),
        ("build_info", "gauge"),
        // The project's own.
        ("records_returned_total", "counter"),
        ("control_messages_total", "counter"),
        ("queue_ready_messages", "gauge"),
    ] {
        assert_eq!(page.matches(&format!("# TYPE {name} {kind}\n")).count(), 1, "{name}:\n{page}");
        let help = page.lines().filter_map(|line| line.strip_prefix(&format!("# HELP {name} ")));
        assert!(help.clone().count() == 1 && help.clone().all(|text| text.len() > 5), "{name}:\n{page}");
        let series = if kind == "histogram" { format!("{name}_count") } else { name.to_owned() };
        let values = page.lines().filter(|l| l.strip_prefix(&series).is_some_and(|r| r.starts_with(['{', ' '])));
        assert!(values.clone().count() > 0 && values.clone().all(|l| l.contains("service=\"tableinator\"")), "{name}");
    }
    for (name, labels, least) in [
        ("records_committed_total", vec!["outcome=\"inserted\"", "data_type=\"artists\""], 30.0),
        ("records_committed_total", vec!["outcome=\"updated\""], 2.0),
        ("records_committed_total", vec!["outcome=\"unchanged\""], 5.0), // after the lost ack
        ("records_dead_lettered_total", vec!["reason=\"invalid_json\"", "data_type=\"artists\""], 1.0),
        ("records_dead_lettered_total", vec!["reason=\"write_refused\"", "data_type=\"labels\""], 1.0),
        ("bisections_total", vec!["data_type=\"labels\""], 2.0),
        ("retries_total", vec!["class=\"conflict\"", "code=\"40P01\""], 1.0),
        ("acks_lost_total", vec!["data_type=\"artists\""], 5.0),
        ("redelivered_total", vec!["data_type=\"artists\""], 5.0),
        ("control_messages_total", vec!["kind=\"file_complete\"", "data_type=\"artists\""], 1.0),
        ("connected", vec!["peer=\"broker\""], 1.0),
        ("connected", vec!["peer=\"database\""], 1.0),
        ("reconnects_total", vec!["peer=\"broker\""], 1.0),
        ("concurrency_limit", vec!["data_type=\"releases\""], 1.0),
        ("write_seconds_count", vec!["phase=\"copy\""], 1.0),
        ("write_seconds_count", vec!["phase=\"upsert\""], 1.0),
        ("write_seconds_count", vec!["phase=\"commit\""], 1.0),
    ] {
        assert!(worker.metric(name, &labels) >= least, "{name} {labels:?}:\n{page}");
    }
    worker.ready().await?;
    assert_eq!(worker.metric("unacked_deliveries", &[]), 0.0);
    assert_eq!(worker.stop().await?.code(), Some(0));
    assert_adds_up(&farewell(&log)?);
    stage.clean_up().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_connection_is_no_reconnect() -> Result<(), Error> {
    let stage = Stage::new("reconnects").await?;
    let worker = stage.start("tableinator", &[]).await?;
    assert_eq!(
        worker.metric("reconnects_total", &[]),
        0.0,
        "\"Connections made after the first\", but there is one only"
    );
    assert_eq!(worker.stop().await?.code(), Some(0));
    stage.clean_up().await
}

// ------------------------------------------------------------------------------------------------- batches and acks

#[tokio::test(flavor = "multi_thread")]
async fn batches_close_on_count_bytes_control_and_signal() -> Result<(), Error> {
    let stage = Stage::new("triggers").await?;
    let limits = [("POSTGRES_BATCH_SIZE", "10"), ("BATCH_MAX_BYTES", "1024"), ("POSTGRES_BATCH_FLUSH_INTERVAL", "600")];
    let mut worker = stage.start("tableinator", &limits).await?;
    let log = worker.log.clone();
    let closed = |w: &Worker, t: &str, trigger: &str| {
        w.metric("batches_total", &[&format!("data_type=\"{t}\""), &format!("trigger=\"{trigger}\"")])
    };
    // Ten of these are less than 1024 bytes.
    let small = |ids: Range<usize>| ids.map(|id| format!(r#"{{"id":"{id}","sha256":"h"}}"#));
    let large = |ids: Range<usize>| ids.map(|id| format!(r#"{{"id":"{id}","sha256":"h","x":"{}"}}"#, "x".repeat(400)));
    stage.publish(DataType::Artists, small(0..20)).await?;
    settled(&mut worker, 20).await?;
    assert_eq!(closed(&worker, "artists", "count"), 2.0);

    stage.publish(DataType::Labels, large(0..5)).await?;
    settled(&mut worker, 24).await?;
    assert_eq!(closed(&worker, "labels", "bytes"), 2.0);
    assert_eq!(count(&stage, "labels").await?, 4, "the fifth waits for company");

    stage.publish(DataType::Masters, small(0..3)).await?;
    stage.publish(DataType::Masters, [file_complete(DataType::Masters, "20260101", 3)]).await?;
    worker.until("complete", PATIENCE, |w| health(w)["completed_files"] == json!(["masters"])).await?;
    assert_eq!(closed(&worker, "masters", "drain"), 1.0);
    assert_eq!(count(&stage, "masters").await?, 3, "a file is complete when its records are written");

    stage.publish(DataType::Releases, small(0..3)).await?;
    worker.until("holding a batch", PATIENCE, |w| w.metric("records_received_total", &["releases"]) == 3.0).await?;
    assert_eq!(count(&stage, "releases").await?, 0);
    assert_eq!(worker.metric("batches_total", &[]), 5.0, "no batch of another kind");
    assert_eq!(worker.stop().await?.code(), Some(0));
    assert_eq!((count(&stage, "labels").await?, count(&stage, "releases").await?), (5, 3));
    let lines = log_lines(&std::fs::read_to_string(&log)?)?;
    let batches: BTreeSet<(&str, &str, u64)> = lines
        .iter()
        .filter(|line| line["event"] == "✅ Batch processed")
        .map(|line| (text(&line["data_type"]), text(&line["trigger"]), number(&line["batch_size"])))
        .collect();
    let expected = [
        ("artists", "count", 10),
        ("labels", "bytes", 2),
        ("labels", "drain", 1),
        ("masters", "drain", 3),
        ("releases", "drain", 3),
    ];
    assert_eq!(batches, BTreeSet::from(expected));
    let report = farewell(&log)?;
    assert_adds_up(&report);
    assert_eq!((number(&report["received"]), number(&report["committed"])), (32, 31), "{report}");
    stage.clean_up().await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_frame_acknowledges_many() -> Result<(), Error> {
    let stage = Stage::new("acks").await?;
    stage.declare("tableinator").await?;
    stage.publish(DataType::Releases, records(0..2000)).await?;
    let mut worker = stage.start("tableinator", &[("POSTGRES_BATCH_SIZE", "100")]).await?;
    settled(&mut worker, 2000).await?;
    worker.until("done", PATIENCE, |w| w.metric("unacked_deliveries", &[]) == 0.0).await?;
    let frames = worker.metric("ack_frames_total", &["releases"]);
    let batches = worker.metric("batches_total", &["releases"]);
    assert!((1.0..=batches).contains(&frames), "{frames} frames for {batches} batches");
    assert!(batches <= 60.0, "{batches} batches for 2000 messages, although all were waiting");
    assert_eq!(worker.metric("batch_records_sum", &["releases"]), 2000.0);
    assert_rows(&stage, DataType::Releases, 0..2000).await?;
    // A lone message later is flushed by the clock.
    let deadlines = worker.metric("batches_total", &["trigger=\"deadline\""]);
    stage.publish(DataType::Artists, records(0..1)).await?;
    settled(&mut worker, 2001).await?;
    assert_eq!(worker.metric("batches_total", &["trigger=\"deadline\""]), deadlines + 1.0);
    assert_eq!(worker.stop().await?.code(), Some(0));
    assert_eq!(stage.ready_count(&stage.topology("tableinator", DataType::Releases).queue).await?, 0);
    stage.clean_up().await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_batches_every_record_goes_alone() -> Result<(), Error> {
    let stage = Stage::new("single").await?;
    let mut worker = stage.start("tableinator", &[("POSTGRES_BATCH_MODE", "false")]).await?;
    assert_consumers(&stage, "tableinator", 3).await?;
    for t in DataType::ALL {
        stage.publish(t, records(0..25)).await?;
    }
    settled(&mut worker, 100).await?;
    for t in DataType::ALL {
        assert_rows(&stage, t, 0..25).await?;
    }
    assert_eq!(worker.metric("batches_total", &[]), 100.0);
    assert_eq!(worker.metric("batches_total", &["trigger=\"count\""]), 100.0);
    assert_no_dead_letters(&stage, "tableinator").await?;
    assert_eq!(worker.stop().await?.code(), Some(0));
    stage.clean_up().await
}

// ------------------------------------------------------------------------------------------------- the end

#[tokio::test(flavor = "multi_thread")]
async fn either_signal_ends_an_idle_worker_cleanly() -> Result<(), Error> {
    let stage = Stage::new("signals").await?;
    for signal in ["TERM", "INT"] {
        let mut worker = stage.start("tableinator", &[]).await?;
        worker.signal(signal)?;
        assert_eq!(worker.ended().await?.code(), Some(0), "SIG{signal}");
        let report = farewell(&worker.log)?;
        assert_eq!((number(&report["received"]), number(&report["remained"])), (0, 0), "{report}");
        for t in DataType::ALL {
            let queue = stage.topology("tableinator", t).queue;
            assert_eq!(consumer_count(&stage, &queue).await?, 0, "SIG{signal} {queue}");
        }
    }
    stage.clean_up().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_takes_too_long_gives_everything_back() -> Result<(), Error> {
    let stage = Stage::new("forced").await?;
    let extra = [("SHUTDOWN_TIMEOUT", "2"), ("POSTGRES_BATCH_SIZE", "10")];
    let mut worker = stage.start("tableinator", &extra).await?;
    stage.publish(DataType::Labels, records(0..10)).await?;
    settled(&mut worker, 10).await?;
    let mut locker = stage.postgres().await?;
    let lock = locker.transaction().await?;
    lock.batch_execute("LOCK TABLE artists IN ACCESS EXCLUSIVE MODE").await?;
    stage.publish(DataType::Artists, records(0..35)).await?;
    // Two batches are being written and one waits.
    worker.until("stuck", PATIENCE, |w| w.metric("records_received_total", &["artists"]) >= 30.0).await?;
    worker.signal("TERM")?;
    assert_eq!(worker.ended().await?.code(), Some(3));
    let report = farewell(&worker.log)?;
    assert_adds_up(&report);
    assert_eq!((number(&report["received"]), number(&report["committed"])), (40, 10), "{report}");
    assert_eq!(number(&report["returned"]) + number(&report["remained"]), 30, "{report}");
    let errors = log_lines(&worker.log_text())?.into_iter().filter(|line| line["level"] == "error").count();
    assert!(errors >= 1, "it must say that it was forced");

    let queue = stage.topology("tableinator", DataType::Artists).queue;
    eventually("given back", async || Ok(stage.ready_count(&queue).await? == 35)).await?;
    lock.commit().await?;
    assert_eq!(count(&stage, "artists").await?, 0, "written after the end");
    let mut worker = stage.start("tableinator", &extra).await?;
    settled(&mut worker, 35).await?;
    assert_rows(&stage, DataType::Artists, 0..35).await?;
    assert_no_dead_letters(&stage, "tableinator").await?;
    assert_eq!(worker.stop().await?.code(), Some(0));
    stage.clean_up().await
}

// ------------------------------------------------------------------------------------------------- TLS

#[tokio::test(flavor = "multi_thread")]
async fn every_connection_can_be_encrypted_and_verifies() -> Result<(), Error> {
    let stage = Stage::new("tls").await?;
    let s = services();
    let (ours, foreign) = (s.get("SERVICES_CA_FILE"), s.get("SERVICES_FOREIGN_CA_FILE"));
    let rabbitmq = [("RABBITMQ_TLS_ENABLED", "true"), ("RABBITMQ_PORT", s.get("RABBITMQ_TLS_PORT"))];
    let postgres = [("POSTGRES_TLS_ENABLED", "1")];
    let neo4j = [("NEO4J_TLS_ENABLED", "yes")];
    let bolt = [("NEO4J_HOST", &*format!("bolt+s://127.0.0.1:{}", s.get("NEO4J_PORT")))];
    let routed = [("NEO4J_HOST", &*format!("neo4j+s://localhost:{}", s.get("NEO4J_PORT")))];
    for (worker, peer, ca, settings) in [
        ("tableinator", "RabbitMQ", "RABBITMQ_TLS_CA_FILE", &rabbitmq[..]),
        ("tableinator", "PostgreSQL", "POSTGRES_TLS_CA_FILE", &postgres),
        ("graphinator", "Neo4j", "NEO4J_TLS_CA_FILE", &neo4j),
        ("graphinator", "Neo4j", "NEO4J_TLS_CA_FILE", &bolt),
        ("graphinator", "Neo4j", "NEO4J_TLS_CA_FILE", &routed),
    ] {
        let with = |ca_file: &'static str| -> Vec<_> { settings.iter().copied().chain([(ca, ca_file)]).collect() };
        let (code, out) = stage.check(worker, &with(ours))?;
        assert_eq!(code, 0, "{settings:?}: {out}");
        for (what, extra) in [("a foreign CA", with(foreign)), ("the system's CAs", settings.to_vec())] {
            let (code, out) = stage.check(worker, &extra)?;
            assert_eq!(code, 1, "{settings:?} with {what}: {out}");
            let failures: Vec<_> = out.lines().filter(|line| line.starts_with("FAIL ")).collect();
            assert_eq!(failures.len(), 1, "{settings:?} with {what}: {out}");
            assert!(failures[0].starts_with(&format!("FAIL {peer}: ")), "{settings:?} with {what}: {out}");
            assert!(failures[0].to_lowercase().contains("certificate"), "{settings:?} with {what}: {out}");
        }
    }

    // And it carries records.
    let all = [rabbitmq[0], rabbitmq[1], postgres[0], ("RABBITMQ_TLS_CA_FILE", ours), ("POSTGRES_TLS_CA_FILE", ours)];
    let mut worker = stage.start("tableinator", &all).await?;
    stage.publish(DataType::Artists, records(0..10)).await?;
    settled(&mut worker, 10).await?;
    let sessions = "SELECT count(*), count(*) FILTER (WHERE ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                    WHERE datname = current_database() AND application_name = 'tableinator'";
    let row = stage.postgres().await?.query_one(sessions, &[]).await?;
    let (all, encrypted): (i64, i64) = (row.get(0), row.get(1));
    assert!(all > 0 && all == encrypted, "{encrypted} of {all} sessions");
    let (_, details) = broker_api("GET", &format!("connections/{}", encoded(&connection_of(&stage).await?)), "")?;
    assert_eq!(details["ssl"], true, "{details}");
    assert_rows(&stage, DataType::Artists, 0..10).await?;
    assert_eq!(worker.stop().await?.code(), Some(0));
    stage.clean_up().await
}

// ------------------------------------------------------------------------------------------------- graphinator

/// The life that both workers share, once with the other one.
#[tokio::test(flavor = "multi_thread")]
async fn graphinator_lives_the_same_life() -> Result<(), Error> {
    let stage = Stage::with_graph("graphlife").await?;
    let graph = services().neo4j()?;
    stage.declare("graphinator").await?;
    stage.publish(DataType::Artists, records(0..40)).await?;
    // A user that does not exist yet, over TLS.
    let user = stage.prefix.replace(['-', '_'], "");
    let extra = [
        ("NEO4J_USERNAME", user.as_str()),
        ("NEO4J_PASSWORD", "late-but-right"),
        ("NEO4J_TLS_ENABLED", "true"),
        ("NEO4J_TLS_CA_FILE", services().get("SERVICES_CA_FILE")),
        ("ENVIRONMENT", "lifecycle"),
    ];
    let mut worker = stage.spawn("graphinator", &extra)?;
    let log = worker.log.clone();
    worker.until("refused", PATIENCE, |w| unready(w).is_some_and(|why| why.contains("nauthorized"))).await?;
    let (code, body) = worker.get("/health")?;
    assert_eq!((code, &parse(&body)?["active_consumers"]), (200, &json!([])), "{body}");
    let queue = stage.topology("graphinator", DataType::Artists).queue;
    assert_eq!(stage.ready_count(&queue).await?, 40, "it consumes although nothing can be written");

    let create = format!("CREATE USER {user} SET PASSWORD 'late-but-right' CHANGE NOT REQUIRED");
    graph.run_on("system", query(&create)).await?;
    let up = worker.ready().await;
    graph.run_on("system", query(&format!("DROP USER {user}"))).await?;
    up?;
    settled(&mut worker, 40).await?;
    assert_topology(&stage, "graphinator")?;
    assert_consumers(&stage, "graphinator", 1500).await?;
    assert_redeclarable(&stage, "graphinator").await?;
    stage.publish(DataType::Artists, [file_complete(DataType::Artists, "20260101", 40)]).await?;
    worker.until("complete", PATIENCE, |w| health(w)["completed_files"] == json!(["artists"])).await?;
    assert_health(&worker, "graphinator", [40, 0, 0, 0])?;
    assert_eq!(worker.get("/metrics/")?.0, 404);
    let mut rows = graph.execute(query("MATCH (a:Artist) WHERE a.sha256 <> '' RETURN count(a) AS n")).await?;
    let nodes: i64 = rows.next().await?.ok_or("no count")?.get("n")?;
    assert_eq!(nodes, 40);
    assert_no_dead_letters(&stage, "graphinator").await?;
    worker.signal("INT")?;
    assert_eq!(worker.ended().await?.code(), Some(0));
    assert_log(&std::fs::read_to_string(&log)?, "graphinator", "lifecycle")?;
    let report = farewell(&log)?;
    assert_adds_up(&report);
    assert_eq!((number(&report["received"]), number(&report["committed"])), (41, 40), "{report}");
    stage.clean_up().await
}

// ------------------------------------------------------------------------------------------------- records

/// A record's message; its hash and its name follow from its id.
fn record(id: usize) -> Vec<u8> {
    format!(r#"{{"type":"data","id":"{id}","sha256":"{id:064x}","id":"{id}","name":"Name {id}"}}"#).into()
}

fn records(ids: Range<usize>) -> Vec<Vec<u8>> {
    ids.map(record).collect()
}

/// The table holds exactly these records.
async fn assert_rows(stage: &Stage, data_type: DataType, ids: Range<usize>) -> Result<(), Error> {
    let statement = format!("SELECT data_id, hash, data->>'name' FROM {data_type}");
    let rows = stage.postgres().await?.query(&statement, &[]).await?;
    let actual: BTreeSet<(String, String, Option<String>)> =
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    let expected: BTreeSet<_> =
        ids.clone().map(|id| (id.to_string(), format!("{id:064x}"), Some(format!("Name {id}")))).collect();
    let odd = actual.symmetric_difference(&expected).next();
    assert!(odd.is_none(), "{data_type}: {} rows instead of {}, e.g. {odd:?}", actual.len(), ids.len());
    Ok(())
}

async fn count(stage: &Stage, table: &str) -> Result<i64, Error> {
    Ok(stage.postgres().await?.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await?.get(0))
}

async fn assert_no_dead_letters(stage: &Stage, worker: &str) -> Result<(), Error> {
    for t in DataType::ALL {
        let letters = stage.dead_letters(worker, t).await?;
        let first = letters.first().map(|l| (String::from_utf8_lossy(&l.body), l.properties.headers()));
        assert!(letters.is_empty(), "{worker} {t}: {} dead letters, e.g. {first:?}", letters.len());
    }
    Ok(())
}

/// A role of PostgreSQL that owns the stage's database.
struct Role {
    name: String,
}

impl Role {
    async fn create(stage: &Stage, password: &str) -> Result<Role, Error> {
        let name = format!("r_{}", stage.database);
        let statements = format!(
            "CREATE ROLE {name} LOGIN PASSWORD '{password}'; ALTER DATABASE {} OWNER TO {name}; \
             GRANT ALL ON SCHEMA public TO {name}",
            stage.database
        );
        stage.postgres().await?.batch_execute(&statements).await?;
        Ok(Role { name })
    }

    /// After the database that it owned.
    async fn drop(self) -> Result<(), Error> {
        let admin = services().postgres(services().get("POSTGRES_DATABASE")).await?;
        Ok(admin.batch_execute(&format!("DROP ROLE {}", self.name)).await?)
    }
}

/// Makes the worker the victim of a deadlock over the artists 1 and 2, and lets it win in the end.
async fn deadlock(stage: &Stage, worker: &mut Worker) -> Result<(), Error> {
    let mut client = stage.postgres().await?;
    let other = client.transaction().await?;
    // Patient itself, so that the worker notices first.
    other.batch_execute("SET LOCAL deadlock_timeout = '60s'").await?;
    other.batch_execute("UPDATE artists SET updated_at = NOW() WHERE data_id = '2'").await?;
    let changed = [1, 2].map(|id| format!(r#"{{"type":"data","id":"{id}","sha256":"{id:063x}f","name":"Name {id}"}}"#));
    stage.publish(DataType::Artists, changed).await?;
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let watcher = stage.postgres().await?;
    eventually("waiting for the lock", async || Ok(watcher.query_one(waiting, &[]).await?.get::<_, i64>(0) > 0))
        .await?;
    other.batch_execute("UPDATE artists SET updated_at = NOW() WHERE data_id = '1'").await?;
    other.rollback().await?;
    settled(worker, 18).await?;
    assert!(worker.metric("deadlocks_total", &["artists"]) >= 1.0);
    Ok(())
}

/// Closes the worker's connection while one batch is being written and another waits for it, and lets the write succeed
/// at once. With luck its ack comes before the worker looks at its connection.
async fn lose_an_ack(stage: &Stage, worker: &mut Worker, ids: Range<usize>) -> Result<(), Error> {
    let mut locker = stage.postgres().await?;
    let connection = encoded(&connection_of(stage).await?);
    let lock = locker.transaction().await?;
    lock.batch_execute("LOCK TABLE artists IN ACCESS EXCLUSIVE MODE").await?;
    let before = worker.metric("records_received_total", &["artists"]);
    stage.publish(DataType::Artists, records(ids.clone())).await?;
    let full = |w: &Worker| w.metric("records_received_total", &["artists"]) >= before + 10.0;
    worker.until("full", PATIENCE, full).await?;
    assert_eq!(broker_api("DELETE", &format!("connections/{connection}"), "")?.0, 204);
    sleep(Duration::from_millis(50)).await;
    lock.commit().await?;
    let wanted: Vec<String> = ids.map(|id| id.to_string()).collect();
    let there = "SELECT count(*) FROM artists WHERE data_id = ANY($1)";
    let watcher = stage.postgres().await?;
    eventually("loaded", async || {
        Ok(watcher.query_one(there, &[&wanted]).await?.get::<_, i64>(0) == wanted.len() as i64)
    })
    .await?;
    worker.ready().await?;
    let queue = stage.topology("tableinator", DataType::Artists).queue;
    eventually("drained", async || Ok(stage.ready_count(&queue).await? == 0)).await?;
    worker.until("done", PATIENCE, |w| w.metric("unacked_deliveries", &[]) == 0.0).await
}

// ------------------------------------------------------------------------------------------------- the broker

/// A path segment with everything but letters and digits escaped.
fn encoded(text: &str) -> String {
    text.bytes()
        .map(|b| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

/// The broker has exactly the contract's objects (§1.1), each bound once, by its own name (§1.2).
fn assert_topology(stage: &Stage, worker: &str) -> Result<(), Error> {
    for t in ["artists", "labels", "masters", "releases"] {
        let data = format!("{}-{t}", stage.prefix);
        let queue = format!("{}-{worker}-{t}", stage.prefix);
        let (dlx, dlq) = (format!("{queue}.dlx"), format!("{queue}.dlq"));
        for name in [&data, &dlx] {
            let (code, found) = broker_api("GET", &format!("exchanges/%2F/{name}"), "")?;
            let properties = ["type", "durable", "auto_delete", "internal", "arguments"].map(|key| found[key].clone());
            let expected = [json!("fanout"), json!(true), json!(false), json!(false), json!({})];
            assert_eq!((code, properties), (200, expected), "{name}: {found}");
        }
        let quorum = json!({"x-queue-type": "quorum", "x-dead-letter-exchange": dlx, "x-delivery-limit": 20});
        for (name, source, arguments) in [(&dlq, &dlx, json!({"x-queue-type": "classic"})), (&queue, &data, quorum)] {
            let (code, found) = broker_api("GET", &format!("queues/%2F/{name}"), "")?;
            let properties = ["durable", "auto_delete", "exclusive", "arguments"].map(|key| found[key].clone());
            let expected = [json!(true), json!(false), json!(false), arguments];
            assert_eq!((code, properties), (200, expected), "{name}: {found}");
            let (_, bindings) = broker_api("GET", &format!("queues/%2F/{name}/bindings"), "")?;
            let own: Vec<_> = bindings.as_array().into_iter().flatten().filter(|b| b["source"] != "").collect();
            assert_eq!(own.len(), 1, "{name}: {bindings}");
            let binding = ["source", "routing_key", "arguments"].map(|key| own[0][key].clone());
            assert_eq!(binding, [json!(source), json!(name), json!({})], "{name}");
        }
    }
    Ok(())
}

/// One consumer per queue, each on a channel of its own with this prefetch for itself.
async fn assert_consumers(stage: &Stage, worker: &str, prefetch: u64) -> Result<(), Error> {
    // The management learns of consumers at once, but of their channels with the next statistics.
    let known = |c: &Value| !text(&c["channel_details"]["name"]).is_empty();
    eventually("known to the management", async || {
        let found = consumers(stage)?;
        Ok(found.len() >= 4 && found.iter().all(known))
    })
    .await?;
    let found = consumers(stage)?;
    let queues: BTreeSet<&str> = found.iter().map(|c| text(&c["queue"]["name"])).collect();
    let expected: Vec<String> = DataType::ALL.iter().map(|t| stage.topology(worker, *t).queue).collect();
    assert_eq!(queues, expected.iter().map(String::as_str).collect(), "{found:?}");
    assert_eq!(found.len(), 4, "{found:?}");
    for consumer in &found {
        let settings = ["prefetch_count", "ack_required", "exclusive"].map(|key| consumer[key].clone());
        assert_eq!(settings, [json!(prefetch), json!(true), json!(false)], "{consumer}");
    }
    let channels: BTreeSet<&str> = found.iter().map(|c| text(&c["channel_details"]["name"])).collect();
    assert_eq!(channels.len(), 4, "{channels:?}");
    for channel in channels {
        // How the channel was set up is among the statistics, which are a second old.
        let path = format!("channels/{}", encoded(channel));
        eventually("known", async || Ok(broker_api("GET", &path, "")?.1["global_prefetch_count"] == 0)).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_type_of_the_largest_weight_is_written_first() -> Result<(), Error> {
    const EACH: usize = 4000;
    let stage = Stage::new("weights").await?;
    let settings = [
        ("TYPE_WEIGHTS", "masters=1000"),
        ("CONSUMER_PRIORITY", "7"),
        ("POSTGRES_BATCH_SIZE", "20"),
        ("RABBITMQ_PREFETCH", "1000"),
    ];
    let mut worker = stage.start("tableinator", &settings).await?;
    // Both wait for the database before either begins.
    let client = stage.postgres().await?;
    client.batch_execute("BEGIN; LOCK TABLE labels, masters IN ACCESS EXCLUSIVE MODE").await?;
    for data_type in [DataType::Labels, DataType::Masters] {
        let bodies = (0..EACH).map(|i| {
            let hash = format!("{i:064x}");
            json!({"id": i.to_string(), "name": "N", "title": "T", "sha256": hash}).to_string()
        });
        stage.publish(data_type, bodies).await?;
    }
    let count = |w: &Worker, name: &str, t: &str| w.metric(name, &[&format!("data_type=\"{t}\"")]) as usize;
    let waiting = |w: &Worker| ["labels", "masters"].iter().all(|t| count(w, "records_received_total", t) >= 60);
    worker.until("waiting with both types", PATIENCE, waiting).await?;
    client.batch_execute("COMMIT").await?;
    let committed = |w: &Worker, t: &str| count(w, "records_committed_total", t);
    // Labels are read between the two looks, so it may be a few more than when the masters were done.
    let labels = std::sync::Mutex::new(0);
    let first = |w: &Worker| {
        let masters = committed(w, "masters");
        *labels.lock().unwrap() = committed(w, "labels");
        masters == EACH
    };
    worker.until("done with the masters", PATIENCE, first).await?;
    let labels = labels.into_inner().unwrap();
    assert!(labels < EACH / 2, "{labels} of {EACH} labels were written when the masters were done");
    assert!(consumers(&stage)?.iter().all(|consumer| consumer["arguments"]["x-priority"] == 7));
    settled(&mut worker, 2 * EACH).await?;
    stop_clean(&stage, "tableinator", worker).await?;
    stage.clean_up().await
}

/// Somebody else's declaration with the contract's arguments is welcome, one with others is not.
async fn assert_redeclarable(stage: &Stage, worker: &str) -> Result<(), Error> {
    let connection = services().broker().await?;
    let channel = connection.create_channel().await?;
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let text = |text: &str| AMQPValue::LongString(text.into());
    let arguments = |dlx: &str, limit| {
        let mut table = FieldTable::default();
        table.insert("x-queue-type".into(), text("quorum"));
        table.insert("x-dead-letter-exchange".into(), text(dlx));
        table.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(limit)); // as aio-pika sends it
        table
    };
    for t in DataType::ALL {
        let queue = format!("{}-{worker}-{t}", stage.prefix);
        let (dlx, dlq) = (format!("{queue}.dlx"), format!("{queue}.dlq"));
        for exchange in [&dlx, &format!("{}-{t}", stage.prefix)] {
            let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
            let none = FieldTable::default();
            channel.exchange_declare(exchange.as_str().into(), ExchangeKind::Fanout, durable, none).await?;
        }
        let mut classic = FieldTable::default();
        classic.insert("x-queue-type".into(), text("classic"));
        channel.queue_declare(dlq.as_str().into(), durable, classic).await?;
        channel.queue_declare(queue.as_str().into(), durable, arguments(&dlx, 20)).await?;
    }
    let queue = format!("{}-{worker}-artists", stage.prefix);
    let other = channel.queue_declare(queue.as_str().into(), durable, arguments("elsewhere", 20)).await;
    assert!(other.is_err_and(|e| e.to_string().contains("PRECONDITION")), "the broker compares nothing");
    Ok(())
}

/// A queue as somebody might have made it by hand.
async fn declare_classic(stage: &Stage, queue: &str) -> Result<(), Error> {
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("classic".into()));
    stage.channel.queue_declare(queue.into(), durable, arguments).await?;
    Ok(())
}

async fn consumer_count(stage: &Stage, queue: &str) -> Result<u32, Error> {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    Ok(stage.channel.queue_declare(queue.into(), passive, FieldTable::default()).await?.consumer_count())
}

/// The broker's name for the one connection that all consumers of this stage use.
async fn connection_of(stage: &Stage) -> Result<String, Error> {
    let names = || -> Result<BTreeSet<String>, Error> {
        Ok(consumers(stage)?.iter().map(|c| text(&c["channel_details"]["connection_name"]).to_owned()).collect())
    };
    eventually("four consumers on one connection", async || {
        Ok(consumers(stage)?.len() == 4 && names()?.len() == 1 && !names()?.contains(""))
    })
    .await?;
    names()?.pop_first().ok_or_else(|| "no connection".into())
}

// ------------------------------------------------------------------------------------------------- the worker

/// Runs a worker with nothing but this environment: exit status (124 after a minute), stdout, stderr.
fn run(worker: &str, args: &[&str], env: &BTreeMap<String, String>) -> Result<(i32, String, String), Error> {
    let mut command = Command::new("/usr/bin/timeout");
    let out = command.arg("60").arg(binary(worker)).args(args).env_clear().envs(env).output()?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok((out.status.code().unwrap_or(-1), text(out.stdout), text(out.stderr)))
}

fn parse(json: &str) -> Result<Value, Error> {
    serde_json::from_str(json).map_err(|e| format!("{e}: {json}").into())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(u64::MAX)
}

/// What `/health` says; null if nobody answers.
fn health(worker: &Worker) -> Value {
    worker.get("/health").ok().and_then(|(_, body)| parse(&body).ok()).unwrap_or(Value::Null)
}

/// Why the worker is not ready; `None` if it is, or if nobody answers.
fn unready(worker: &Worker) -> Option<String> {
    worker.get("/ready").ok().filter(|(code, _)| *code == 503).map(|(_, body)| body)
}

/// `/health` of a worker that consumes everything: exactly the contract's fields (§6.7).
fn assert_health(worker: &Worker, service: &str, counts: [u64; 4]) -> Result<(), Error> {
    let (code, body) = worker.get("/health")?;
    let health = parse(&body)?;
    let fields: BTreeSet<&str> = health.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
    let expected = [
        "status",
        "service",
        "current_task",
        "progress",
        "message_counts",
        "last_message_time",
        "active_consumers",
        "completed_files",
        "timestamp",
    ];
    assert_eq!((code, fields), (200, BTreeSet::from(expected)), "{body}");
    let [artists, labels, masters, releases] = counts;
    let expected = json!({"artists": artists, "labels": labels, "masters": masters, "releases": releases});
    assert_eq!(health["message_counts"], expected, "{body}");
    assert_eq!(health["status"], "healthy");
    assert_eq!(health["service"], service);
    assert_eq!(health["progress"], json!(0.0));
    assert_eq!(health["active_consumers"], json!(["artists", "labels", "masters", "releases"]));
    assert!(health["completed_files"].is_array() && health["current_task"].is_string(), "{body}");
    let now = chrono::Utc::now().timestamp() as f64;
    for (name, count) in ["artists", "labels", "masters", "releases"].into_iter().zip(counts) {
        let last = health["last_message_time"][name].as_f64().ok_or("no time")?;
        assert!(if count == 0 { last == 0.0 } else { (now - last).abs() < 3600.0 }, "{name}: {last} in {body}");
    }
    let timestamp = text(&health["timestamp"]);
    assert!(timestamp.ends_with("+00:00") && chrono::DateTime::parse_from_rfc3339(timestamp).is_ok(), "{body}");
    Ok(())
}

fn log_lines(log: &str) -> Result<Vec<Value>, Error> {
    log.lines().map(parse).collect()
}

/// Every line has the contract's form (§8), and there is a whole line for each batch.
fn assert_log(log: &str, service: &str, environment: &str) -> Result<(), Error> {
    let mut batches = 0;
    for line in log.lines() {
        let fields = parse(line)?;
        let mut keys: Vec<&str> = Vec::new();
        for (key, _) in fields.as_object().into_iter().flatten() {
            keys.push(key);
        }
        for key in ["environment", "event", "level", "logger", "service", "timestamp"] {
            assert!(!text(&fields[key]).is_empty(), "{key} in {line}");
        }
        assert!(fields["lineno"].is_u64(), "{line}");
        assert_eq!((text(&fields["service"]), text(&fields["environment"])), (service, environment));
        assert!(["debug", "info", "warning", "error"].contains(&text(&fields["level"])), "{line}");
        let timestamp = text(&fields["timestamp"]);
        assert!(chrono::NaiveDateTime::parse_from_str(timestamp, "%Y-%m-%dT%H:%M:%S%.6fZ").is_ok(), "{line}");
        assert_eq!(timestamp.len(), "2026-01-02T03:04:05.123456Z".len(), "{line}");
        // Keys are sorted in the text itself, not only once parsed.
        let positions: Vec<_> = keys.iter().map(|key| line.find(&format!("\"{key}\":"))).collect();
        assert!(positions.iter().all(Option::is_some) && positions.is_sorted(), "{line}");
        if fields["event"] == "✅ Batch processed" {
            batches += 1;
            assert!(!text(&fields["data_type"]).is_empty(), "{line}");
            for key in ["batch_size", "duration_ms", "records_per_sec", "total_processed"] {
                assert!(fields[key].is_u64(), "{key} in {line}");
            }
        }
    }
    assert!(batches > 0, "no batch was logged");
    Ok(())
}

/// The numbers of the last line that a worker logged about its whole life.
fn farewell(log: &std::path::Path) -> Result<Value, Error> {
    let lines = log_lines(&std::fs::read_to_string(log)?)?;
    let last = lines.into_iter().rfind(|line| line["received"].is_u64() && line["remained"].is_u64());
    last.ok_or_else(|| "the log has no final numbers".into())
}

fn assert_adds_up(report: &Value) {
    let fates = ["committed", "dead_lettered", "control_messages", "returned", "remained"];
    let sum: u64 = fates.iter().map(|name| number(&report[name])).sum();
    assert_eq!(number(&report["received"]), sum, "{report}");
}

/// Waits until it is so.
async fn eventually(what: &str, check: impl AsyncFn() -> Result<bool, Error>) -> Result<(), Error> {
    within(PATIENCE, what, check).await
}
