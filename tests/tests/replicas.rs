//! Several replicas of a worker: they share the types, take over from each other in order, and complete a run once.

use std::time::Duration;

use common::DataType;
use integration_tests::oracle::{self, Expected, Messages};
use integration_tests::proxy::{Direction, Proxy};
use integration_tests::stage::{PATIENT, now, run_maintained, services, settled, within};
use integration_tests::states;
use integration_tests::{Error, Stage};
use neo4rs::query;
use tokio::time::{Instant, sleep};
use xtask::process::Worker;
use xtask::sample::{extraction_complete, file_complete};

/// Longest wait for what must come, on a machine that is busy with other things.
const LONG: Duration = Duration::from_secs(90);

/// A version of a record: its hash and its name say which.
fn version(id: usize, version: usize) -> Vec<u8> {
    format!(r#"{{"type":"data","id":"{id}","sha256":"{version}","id":"{id}","name":"{version}","title":"{version}"}}"#)
        .into_bytes()
}

/// What a replica consumes.
fn consumes(replica: &Worker) -> Vec<&'static str> {
    let is = |t: &&str| replica.metric("consuming", &[&format!("data_type=\"{t}\"")]) == 1.0;
    DataType::ALL.map(DataType::name).into_iter().filter(is).collect()
}

/// Waits until all types are consumed, each by one replica, and the replicas' shares differ by one at most.
async fn shared(replicas: &[Worker]) -> Result<(), Error> {
    let deadline = Instant::now() + LONG;
    loop {
        let shares: Vec<_> = replicas.iter().map(consumes).collect();
        let mut all: Vec<_> = shares.concat();
        all.sort_unstable();
        let sizes = || shares.iter().map(Vec::len);
        if all == ["artists", "labels", "masters", "releases"]
            && sizes().max().unwrap_or(0) <= sizes().min().unwrap_or(0) + 1
        {
            return Ok(());
        }
        assert!(Instant::now() < deadline, "{shares:?}");
        sleep(Duration::from_millis(200)).await;
    }
}

async fn start(stage: &Stage, worker: &str, count: usize, extra: &[(&str, &str)]) -> Result<Vec<Worker>, Error> {
    let mut replicas = Vec::new();
    for number in 0..count {
        replicas.push(stage.spawn_replica(worker, number, extra)?);
    }
    for replica in &mut replicas {
        replica.ready().await?;
    }
    Ok(replicas)
}

/// Waits until a type's queue is empty and nobody holds anything of it.
async fn finished(stage: &Stage, worker: &str, replicas: &[Worker]) -> Result<(), Error> {
    let deadline = Instant::now() + LONG;
    'again: loop {
        assert!(Instant::now() < deadline, "{worker}: not finished");
        sleep(Duration::from_millis(300)).await;
        for t in DataType::ALL {
            if stage.ready_count(&stage.topology(worker, t).queue).await? > 0 {
                continue 'again;
            }
        }
        if replicas.iter().all(|r| r.metric("unacked_deliveries", &[]) == 0.0)
            && replicas.iter().map(|r| consumes(r).len()).sum::<usize>() == 4
        {
            return Ok(());
        }
    }
}

async fn assert_state(stage: &Stage, worker: &str, messages: &Messages) -> Result<(), Error> {
    assert_is(stage, worker, &oracle::expected(messages)).await
}

async fn assert_is(stage: &Stage, worker: &str, expected: &Expected) -> Result<(), Error> {
    if worker == "tableinator" {
        return Ok(states::compare_tables(&states::read_tables(&stage.postgres().await?).await?, &expected.tables)?);
    }
    let (nodes, rels) = states::read_graph(&services().neo4j()?).await?;
    Ok(states::compare_graph(&nodes, &rels, expected)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_share_the_types_and_take_over() -> Result<(), Error> {
    let stage = Stage::new("share").await?;
    let mut replicas = vec![stage.spawn_replica("tableinator", 0, &[])?];
    replicas[0].ready().await?;
    shared(&replicas).await?;
    for number in 1..3 {
        let mut more = stage.spawn_replica("tableinator", number, &[])?;
        more.ready().await?;
        replicas.push(more);
        shared(&replicas).await?;
    }
    // Every queue has one consumer, and work is done by all.
    for t in DataType::ALL {
        stage.publish(t, (1..50).map(|id| version(id, 1))).await?;
    }
    finished(&stage, "tableinator", &replicas).await?;
    assert!(replicas.iter().all(|r| r.metric("records_committed_total", &[]) >= 49.0));
    replicas.remove(0).signal("KILL")?;
    shared(&replicas).await?;
    assert_eq!(replicas.remove(0).stop().await?.code(), Some(0));
    shared(&replicas).await?;
    for replica in &mut replicas {
        replica.ready().await?;
    }
    drop(replicas);
    stage.clean_up().await
}

/// Versions of few ids, while replicas are killed and stopped and others take over: the last one stays.
async fn last_version_wins(worker: &'static str, seed: u64) -> Result<(), Error> {
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let stage = if worker == "graphinator" { Stage::with_graph("order").await? } else { Stage::new("order").await? };
    let small = [("POSTGRES_BATCH_SIZE", "7"), ("NEO4J_BATCH_SIZE", "7"), ("RABBITMQ_PREFETCH", "40")];
    stage.declare(worker).await?;
    let mut replicas = start(&stage, worker, 3, &small).await?;
    let mut messages = Messages::default();
    for round in 0..6 {
        for t in DataType::ALL {
            let bodies: Vec<_> = (0..150).map(|i| version(rng.usize(1..20), round * 1000 + i)).collect();
            stage.publish(t, &bodies).await?;
            messages.of(t).extend(bodies);
        }
        sleep(Duration::from_millis(rng.u64(100..800))).await;
        let victim = rng.usize(..replicas.len());
        replicas[victim].signal(if rng.bool() { "KILL" } else { "TERM" })?;
        replicas[victim].ended().await?;
        replicas[victim] = stage.spawn_replica(worker, 3 + round, &small)?;
    }
    finished(&stage, worker, &replicas).await?;
    assert_state(&stage, worker, &messages).await?;
    for t in DataType::ALL {
        assert!(stage.dead_letters(worker, t).await?.is_empty(), "{t} has dead letters");
    }
    drop(replicas);
    stage.clean_up().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_version_wins_in_the_tables() -> Result<(), Error> {
    last_version_wins("tableinator", 31).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_version_wins_in_the_graph() -> Result<(), Error> {
    last_version_wins("graphinator", 32).await
}

/// What one replica left behind is more than the next one is set to fetch, and that one dies too: if it had taken only some of it, the
/// broker would put these messages behind the others.
async fn smaller_prefetch(worker: &'static str) -> Result<(), Error> {
    let stage =
        if worker == "graphinator" { Stage::with_graph("smaller").await? } else { Stage::new("smaller").await? };
    let large = [("POSTGRES_BATCH_SIZE", "20"), ("NEO4J_BATCH_SIZE", "20"), ("RABBITMQ_PREFETCH", "60")];
    let small = [("POSTGRES_BATCH_SIZE", "2"), ("NEO4J_BATCH_SIZE", "2"), ("RABBITMQ_PREFETCH", "6")];
    let mut first = stage.spawn_replica(worker, 0, &large)?;
    first.ready().await?;
    shared(std::slice::from_ref(&first)).await?;
    stage.publish(DataType::Labels, [version(1, 0)]).await?;
    settled(&mut first, 1).await?;
    // Nobody can write the record for a while.
    let (mut postgres, graph) = (stage.postgres().await?, services().neo4j()?);
    let row = postgres.transaction().await?;
    let mut node = None;
    if worker == "graphinator" {
        let mut locked = graph.start_txn().await?;
        locked.run(query("MATCH (l:Label {id: '1'}) SET l._v = l._v")).await?;
        node = Some(locked);
    } else {
        row.execute("SELECT FROM labels WHERE data_id = '1' FOR UPDATE", &[]).await?;
    }
    stage.publish(DataType::Labels, (1..=60).map(|v| version(1, v))).await?;
    let writing = |w: &Worker| w.metric("in_flight_batches", &["data_type=\"labels\""]) > 0.0;
    let received = |w: &Worker| w.metric("records_received_total", &["data_type=\"labels\""]);
    first.until("holding many", LONG, |w| writing(w) && received(w) > 20.0).await?;
    first.signal("KILL")?;
    first.ended().await?;
    let mut second = stage.spawn_replica(worker, 1, &small)?;
    second.until("holding some", LONG, writing).await?;
    second.signal("KILL")?;
    second.ended().await?;
    row.rollback().await?;
    if let Some(node) = node {
        node.rollback().await?;
    }
    let mut third = stage.spawn_replica(worker, 2, &small)?;
    third.ready().await?;
    settled(&mut third, 60).await?;
    let messages = Messages { labels: vec![version(1, 60)], ..Messages::default() };
    assert_state(&stage, worker, &messages).await?;
    // It ends in order, with nothing left behind: the next one fetches as it is set to.
    assert_eq!(third.stop().await?.code(), Some(0));
    let queue = stage.topology(worker, DataType::Labels).queue;
    let left = if worker == "graphinator" {
        let asked = query("MATCH (o:IngestOwner {queue: $queue}) RETURN o.prefetch AS x").param("queue", queue);
        graph.execute(asked).await?.next().await?.ok_or("no claim")?.get("x")?
    } else {
        let asked = "SELECT prefetch FROM ingest_owners WHERE queue = $1";
        stage.postgres().await?.query_one(asked, &[&queue]).await?.get::<_, i32>(0)
    };
    assert_eq!(left, 0);
    stage.clean_up().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_smaller_prefetch_keeps_the_order_in_the_tables() -> Result<(), Error> {
    smaller_prefetch("tableinator").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_smaller_prefetch_keeps_the_order_in_the_graph() -> Result<(), Error> {
    smaller_prefetch("graphinator").await
}

/// A replica is frozen in the middle of a write that has not reached the database; another one takes over and writes what
/// came later. When the first one wakes up, its write goes on, and must not overwrite that. If its records were `known`, it has nothing to
/// write; then it must not say either that it sees them now.
async fn frozen_replica(worker: &'static str, known: bool) -> Result<(), Error> {
    let stage = if worker == "graphinator" { Stage::with_graph("frozen").await? } else { Stage::new("frozen").await? };
    let port = if worker == "graphinator" { "NEO4J_PORT" } else { "POSTGRES_PORT" };
    let way = Proxy::start(services().get(port).parse()?, u64::MAX).await?;
    let proxied = way.port.to_string();
    let slow = [
        ("RABBITMQ_HEARTBEAT", "2"),
        ("POSTGRES_BATCH_FLUSH_INTERVAL", "2"),
        ("NEO4J_BATCH_FLUSH_INTERVAL", "2"),
        (port, &proxied),
    ];
    let mut frozen = stage.spawn_replica(worker, 0, &slow)?;
    frozen.ready().await?;
    shared(std::slice::from_ref(&frozen)).await?;
    let bodies = |hash| (1..=5).map(move |id| version(id, hash));
    let committed = |w: &Worker| w.metric("records_committed_total", &["data_type=\"labels\""]);
    let before = if known { 5.0 } else { 0.0 };
    if known {
        stage.publish(DataType::Labels, bodies(1)).await?;
        frozen.until("through the first version", LONG, |w| committed(w) == before).await?;
    }
    stage.publish(DataType::Labels, bodies(1)).await?;
    let received = |w: &Worker| w.metric("records_received_total", &["data_type=\"labels\""]) == before + 5.0;
    frozen.until("holding a batch", LONG, received).await?;
    way.freeze(Direction::There, true);
    let writing = |w: &Worker| w.metric("in_flight_batches", &["data_type=\"labels\""]) == 1.0 && way.held() > 0;
    frozen.until("writing", LONG, writing).await?;
    frozen.signal("STOP")?;
    let mut next = stage.spawn_replica(worker, 1, &[("RABBITMQ_HEARTBEAT", "2")])?;
    next.ready().await?;
    // Known ones come once more, so that they are unchanged when it wakes up.
    let last = if known { 1 } else { 2 };
    stage.publish(DataType::Labels, bodies(last)).await?;
    next.until("through both versions", LONG, |w| committed(w) == 10.0).await?;
    let graph = services().neo4j()?;
    if known {
        graph.run(query("MATCH (s:IngestSeen) DELETE s")).await?;
    }
    way.freeze(Direction::There, false);
    frozen.signal("CONT")?;
    let fenced = |w: &Worker| w.metric("retries_total", &["code=\"fenced\""]) > 0.0;
    frozen.until("told that its turn is over", LONG, fenced).await?;
    let messages = Messages { labels: bodies(last).collect(), ..Messages::default() };
    assert_state(&stage, worker, &messages).await?;
    assert_eq!(committed(&frozen), before);
    if known {
        let notes = graph.execute(query("MATCH (s:IngestSeen) RETURN count(*) AS x")).await?.next().await?;
        assert_eq!(notes.ok_or("no count")?.get::<i64>("x")?, 0, "it says that it sees them now");
    }
    drop((frozen, next));
    stage.clean_up().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_replica_overwrites_no_row() -> Result<(), Error> {
    frozen_replica("tableinator", false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_replica_overwrites_no_node() -> Result<(), Error> {
    frozen_replica("graphinator", false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_replica_has_seen_nothing() -> Result<(), Error> {
    frozen_replica("graphinator", true).await
}

/// A replica loses its turn between its look at the claim and its commit, which comes later. What the next one gets leads back
/// to the version that is there until then: its claim (tables) or its comparison (graph) must wait for that commit, or it would take the
/// records for unchanged.
async fn late_commit(
    worker: &'static str,
    stage: Stage,
    commit: &[u8],
    waiting: impl AsyncFn(&Stage) -> Result<bool, Error>,
) -> Result<(), Error> {
    let port = if worker == "graphinator" { "NEO4J_PORT" } else { "POSTGRES_PORT" };
    let way = Proxy::start(services().get(port).parse()?, u64::MAX).await?;
    let proxied = way.port.to_string();
    let mut late = stage.spawn_replica(worker, 0, &[("RABBITMQ_HEARTBEAT", "2"), (port, &proxied)])?;
    late.ready().await?;
    shared(std::slice::from_ref(&late)).await?;
    let bodies = |hash| (1..=5).map(move |id| version(id, hash));
    stage.publish(DataType::Labels, bodies(1)).await?;
    let committed = |w: &Worker| w.metric("records_committed_total", &["data_type=\"labels\""]);
    late.until("through the first version", LONG, |w| committed(w) == 5.0).await?;
    way.freeze_at(Direction::There, commit);
    stage.publish(DataType::Labels, bodies(2)).await?;
    late.until("committing", LONG, |_| way.held() > 0).await?;
    late.signal("STOP")?;
    stage.publish(DataType::Labels, bodies(1)).await?;
    // Long enough for both versions to be in one batch.
    // To create what is there already would wait for that commit as well.
    let patient = [
        ("SCHEMA", "check"),
        ("RABBITMQ_HEARTBEAT", "2"),
        ("POSTGRES_BATCH_FLUSH_INTERVAL", "2"),
        ("NEO4J_BATCH_FLUSH_INTERVAL", "2"),
    ];
    let mut next = stage.spawn_replica(worker, 1, &patient)?;
    within(LONG, "waiting for the late commit", async || waiting(&stage).await).await?;
    way.freeze(Direction::There, false);
    next.until("through both versions", LONG, |w| committed(w) == 10.0).await?;
    late.signal("CONT")?;
    let messages = Messages { labels: bodies(1).collect(), ..Messages::default() };
    assert_state(&stage, worker, &messages).await?;
    // By another commit, after the late one: in between it was the second version.
    assert_eq!(next.metric("records_committed_total", &["data_type=\"labels\"", "outcome=\"updated\""]), 5.0);
    drop((late, next));
    stage.clean_up().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_commit_to_the_tables_is_waited_for() -> Result<(), Error> {
    let claims = async |stage: &Stage| {
        let claims = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                      AND wait_event_type = 'Lock' AND query LIKE 'INSERT INTO ingest_owners%'";
        Ok(stage.postgres().await?.query_one(claims, &[]).await?.get::<_, i64>(0) > 0)
    };
    late_commit("tableinator", Stage::new("late").await?, b"COMMIT", claims).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_commit_to_the_graph_is_waited_for() -> Result<(), Error> {
    let blocked = async |_: &Stage| {
        let comparing = "SHOW TRANSACTIONS YIELD status, currentQuery
                         WHERE status STARTS WITH 'Blocked' AND currentQuery CONTAINS 'SET n._v = n._v' RETURN status";
        Ok(services().neo4j()?.execute(query(comparing)).await?.next().await?.is_some())
    };
    // Bolt's COMMIT, in a chunk of two bytes.
    late_commit("graphinator", Stage::with_graph("late").await?, b"\x00\x02\xb0\x12\x00\x00", blocked).await
}

/// A replica is stopped when it has waited for its turn and is about to claim the queue, until that turn is another one's.
#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_is_over_is_not_claimed() -> Result<(), Error> {
    let stage = Stage::new("over").await?;
    let way = Proxy::start(services().get("RABBITMQ_PORT").parse()?, u64::MAX).await?;
    let proxied = way.port.to_string();
    let queue = stage.topology("tableinator", DataType::Labels).queue;
    // The question whether the turn is still granted: a declaration that is passive (1) and exclusive (4).
    way.freeze_at(Direction::There, format!("ingest-turn.{queue}\x05").as_bytes());
    let slow = [("RABBITMQ_HEARTBEAT", "2"), ("RABBITMQ_PORT", proxied.as_str())];
    let mut first = stage.spawn_replica("tableinator", 0, &slow)?;
    first.until("about to claim the queue", LONG, |_| way.held() > 0).await?;
    first.signal("STOP")?;
    let second = stage.spawn_replica("tableinator", 1, &[])?;
    shared(std::slice::from_ref(&second)).await?;
    first.signal("CONT")?;
    way.freeze(Direction::There, false);
    let told = |w: &Worker| w.log_text().contains("the broker took the turn back");
    first.until("told that its turn is over", LONG, told).await?;
    let replicas = [first, second];
    shared(&replicas).await?;
    stage.publish(DataType::Labels, (1..=5).map(|id| version(id, 1))).await?;
    finished(&stage, "tableinator", &replicas).await?;
    let messages = Messages { labels: (1..=5).map(|id| version(id, 1)).collect(), ..Messages::default() };
    assert_state(&stage, "tableinator", &messages).await?;
    assert_eq!(replicas[1].metric("retries_total", &["code=\"fenced\""]), 0.0, "nobody took its claim away");
    assert_eq!(replicas[1].metric("reconnects_total", &["peer=\"queue\""]), 0.0);
    drop(replicas);
    stage.clean_up().await
}

/// A run is complete only when what one replica still holds is written, also if that replica dies; and once.
#[tokio::test(flavor = "multi_thread")]
async fn completion_waits_for_what_any_replica_holds() -> Result<(), Error> {
    let stage = Stage::with_graph("completion").await?;
    let mut tables = start(&stage, "tableinator", 3, &PATIENT).await?;
    let graphs = start(&stage, "graphinator", 3, &[]).await?;
    let old: Vec<_> = (1..=30).map(|id| version(id, 1)).collect();
    for t in DataType::ALL {
        stage.publish(t, &old).await?;
        stage.publish(t, [file_complete(t, "20260101", old.len())]).await?;
    }
    finished(&stage, "tableinator", &tables).await?;
    finished(&stage, "graphinator", &graphs).await?;
    let started_at = now();
    let mut lock = stage.postgres().await?;
    let locked = lock.transaction().await?;
    locked.batch_execute("LOCK TABLE artists IN EXCLUSIVE MODE").await?;
    // Records 1 to 10 vanished.
    let new: Vec<_> = (11..=40).map(|id| version(id, 2)).collect();
    let counts = DataType::ALL.map(|t| (t, new.len()));
    for t in DataType::ALL {
        stage.publish(t, &new).await?;
        stage.publish(t, [file_complete(t, "20260201", new.len())]).await?;
        for _ in 0..2 {
            stage.publish(t, [extraction_complete("20260201", &started_at, counts)]).await?;
        }
    }
    let requested = "SELECT count(*) FROM ingest_purges WHERE version = '20260201' AND data_type = 'artists'";
    let client = stage.postgres().await?;
    let holds = |w: &&mut Worker| w.metric("in_flight_batches", &["data_type=\"artists\""]) > 0.0;
    let deadline = Instant::now() + LONG;
    let holder = loop {
        assert!(Instant::now() < deadline, "nobody holds the artists");
        if let Some(holder) = tables.iter_mut().find(holds) {
            break holder;
        }
        sleep(Duration::from_millis(100)).await;
    };
    sleep(Duration::from_secs(2)).await;
    assert_eq!(client.query_one(requested, &[]).await?.get::<_, i64>(0), 0, "the purge was asked for too early");
    holder.signal("KILL")?;
    holder.ended().await?;
    sleep(Duration::from_secs(3)).await;
    assert_eq!(client.query_one(requested, &[]).await?.get::<_, i64>(0), 0, "the purge was asked for too early");
    locked.rollback().await?;
    run_maintained(&stage, "20260201").await?;
    let messages = Messages { artists: new.clone(), labels: new.clone(), masters: new.clone(), releases: new.clone() };
    assert_state(&stage, "tableinator", &messages).await?;
    assert_is(&stage, "graphinator", &oracle::maintained(&oracle::expected(&messages))).await?;
    let purges = "SELECT data_type || ' ' || outcome || ' ' || deleted AS x FROM ingest_purges WHERE version = '20260201' ORDER BY 1";
    let purges: Vec<String> = client.query(purges, &[]).await?.iter().map(|row| row.get(0)).collect();
    assert_eq!(purges, ["artists deleted 10", "labels deleted 10", "masters deleted 10", "releases deleted 10"]);
    drop((tables, graphs));
    stage.clean_up().await
}
