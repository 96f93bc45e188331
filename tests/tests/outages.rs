//! Servers that go away in mid-load and come back. These tests restart the shared services, so they are a target of
//! their own (cargo runs targets one after the other) and run one at a time.

use std::process::Command;
use std::time::{Duration, Instant};

use common::DataType;
use integration_tests::oracle::{self, Expected, Messages};
use integration_tests::stage::{by_type, services, settled};
use integration_tests::states;
use integration_tests::{Error, Job, Stage};
use lapin::options::{BasicGetOptions, BasicNackOptions, QueuePurgeOptions};
use lapin::types::AMQPValue;
use neo4rs::query;
use tokio::time::sleep;
use xtask::bench::cpu::peak_mib;
use xtask::process::Worker;
use xtask::sample::{self, Spec};
use xtask::services::{root, script};

/// A stage with a loaded queue for one worker, in small batches so that the load takes a while.
struct Load {
    stage: Stage,
    name: &'static str,
    expected: Expected,
    total: usize,
}

const SMALL: [(&str, &str); 2] = [("POSTGRES_BATCH_SIZE", "20"), ("NEO4J_BATCH_SIZE", "50")];

/// A stage that no other test has beside it, with all servers up: a test that failed may have left one down.
async fn alone() -> Result<Stage, Error> {
    services();
    tokio::task::block_in_place(|| script(&["up"]))?;
    Stage::with_graph("outage").await
}

impl Load {
    async fn new(name: &'static str, seed: u64, records: usize) -> Result<Load, Error> {
        let stage = alone().await?;
        stage.declare(name).await?;
        let s = sample::generate(&Spec { seed, records });
        let messages = Messages { artists: s.artists, labels: s.labels, masters: s.masters, releases: s.releases };
        for (data_type, bodies) in by_type(&messages) {
            stage.publish(data_type, bodies).await?;
        }
        let total = by_type(&messages).iter().map(|(_, bodies)| bodies.len()).sum();
        Ok(Load { stage, name, expected: oracle::expected(&messages), total })
    }

    /// Starts the worker and returns when it is in the middle of its work.
    async fn midway(&self, extra: &[(&str, &str)]) -> Result<Worker, Error> {
        let mut worker = self.stage.start(self.name, &[&SMALL, extra].concat()).await?;
        let quarter = (self.total / 4) as f64;
        let midway = |w: &Worker| w.metric("records_committed_total", &[]) >= quarter;
        worker.until("midway", Duration::from_secs(60), midway).await?;
        Ok(worker)
    }

    /// Waits for the end of the load without a restart of the worker, and compares.
    async fn finish(self, mut worker: Worker) -> Result<(), Error> {
        settled(&mut worker, self.total).await?;
        // After a lost connection messages come twice: wait for the queues, too.
        let unacked = |w: &Worker| w.metric("unacked_deliveries", &[]) == 0.0;
        worker.until("without unacked deliveries", Duration::from_secs(60), unacked).await?;
        worker.ready().await?;
        let mut stage = self.stage;
        stage.reconnect().await?;
        assert_eq!(worker.stop().await?.code(), Some(0));
        for t in DataType::ALL {
            assert_eq!(stage.ready_count(&stage.topology(self.name, t).queue).await?, 0, "{t}");
            assert!(stage.dead_letters(self.name, t).await?.is_empty(), "{t} has dead letters");
        }
        if self.name == "tableinator" {
            let actual = states::read_tables(&stage.postgres().await?).await?;
            states::compare_tables(&actual, &self.expected.tables)?;
        } else {
            let (nodes, rels) = states::read_graph(&services().neo4j()?).await?;
            states::compare_graph(&nodes, &rels, &self.expected)?;
        }
        stage.clean_up().await
    }
}

/// A long outage: before the broker's consumer timeout the messages go back, nothing is consumed until the database
/// answers again, memory does not grow meanwhile, and then everything arrives.
async fn messages_are_handed_back(worker: &'static str, database: &str, seed: u64) -> Result<(), Error> {
    let load = Load::new(worker, seed, 4000).await?;
    let mut worker = load.midway(&[("RABBITMQ_CONSUMER_TIMEOUT", "10")]).await?;
    let before = peak_mib(worker.pid());
    tokio::task::block_in_place(|| script(&["kill", database]))?;
    // The other types may be through already; an idle consumer holds nothing and stays.
    let given_up = |w: &Worker| {
        let consumers =
            w.get("/health").ok().and_then(|(_, body)| Some(body.split_once("active_consumers")?.1.to_owned()));
        consumers.is_some_and(|c| !c.split(']').next().unwrap_or(&c).contains("releases"))
    };
    worker.until("without a consumer of releases", Duration::from_secs(60), given_up).await?;
    let releases = load.stage.topology(load.name, DataType::Releases).queue;
    assert!(load.stage.ready_count(&releases).await? > 0, "the messages are with the broker");
    let (code, reasons) = worker.get("/ready")?;
    assert!(code == 503 && reasons.contains("releases: "), "{reasons}");
    // Several looks whether it is back.
    sleep(Duration::from_secs(10)).await;
    let grown = peak_mib(worker.pid()) - before;
    assert!(before > 0.0 && grown < 8.0, "{grown} MiB more than {before} in the outage");
    tokio::task::block_in_place(|| script(&["start", database]))?;
    load.finish(worker).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_outage_of_postgres_hands_messages_back() -> Result<(), Error> {
    messages_are_handed_back("tableinator", "postgres", 27).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_outage_of_neo4j_hands_messages_back() -> Result<(), Error> {
    messages_are_handed_back("graphinator", "neo4j", 28).await
}

/// How often a worker has paused a type.
fn pauses(worker: &Worker, data_type: DataType) -> usize {
    let of_type = format!(r#""data_type":"{data_type}""#);
    let is = |line: &&str| line.contains("⏸️ Not consuming") && line.contains(&of_type);
    worker.log_text().lines().filter(is).count()
}

fn number(worker: &Worker, metric: &str, data_type: DataType) -> f64 {
    worker.metric(metric, &[&format!("data_type=\"{data_type}\"")])
}

/// Gives back before the hold would be over for the tests' patience.
const SHORT_HOLD: [(&str, &str); 2] = [("RABBITMQ_CONSUMER_TIMEOUT", "10"), ("POSTGRES_BATCH_SIZE", "20")];

fn artist(id: usize, version: usize) -> Vec<u8> {
    format!(r#"{{"type":"data","id":"{id}","sha256":"{version}","id":"{id}","name":"{version}"}}"#).into_bytes()
}

/// Certain rows can't be written for long: the disk is full (artists), a privilege is missing (labels), the commit fails (masters).
/// The messages come back once, not each time that somebody looks whether it works by now.
#[tokio::test(flavor = "multi_thread")]
async fn what_only_certain_rows_show_uses_up_no_deliveries() -> Result<(), Error> {
    let stage = alone().await?;
    let mut worker = stage.start("tableinator", &SHORT_HOLD).await?;
    let postgres = stage.postgres().await?;
    let refused = [(DataType::Artists, "53100"), (DataType::Labels, "42501"), (DataType::Masters, "53100")];
    for (t, code) in refused {
        let trigger = match t {
            DataType::Masters => {
                "CONSTRAINT TRIGGER refuse AFTER INSERT ON masters DEFERRABLE INITIALLY DEFERRED".to_owned()
            }
            _ => format!("TRIGGER refuse BEFORE INSERT ON {t}"),
        };
        let refuse = format!(
            "CREATE FUNCTION refuse_{t}() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN RAISE EXCEPTION 'not this one' USING ERRCODE = '{code}'; END $$; \
             CREATE {trigger} FOR EACH ROW WHEN (NEW.data_id LIKE '%7') EXECUTE FUNCTION refuse_{t}()"
        );
        postgres.batch_execute(&refuse).await?;
        stage.publish(t, (1..=30).map(|id| artist(id, 1))).await?;
    }
    let five = |w: &Worker| refused.iter().all(|(t, _)| pauses(w, *t) > 5);
    worker.until("through five pauses", Duration::from_secs(180), five).await?;
    let (code, reasons) = worker.get("/ready")?;
    assert_eq!(code, 503, "{reasons}");
    for (t, code) in refused {
        assert!(reasons.contains(&format!("{t}: ")) && reasons.contains(code), "{reasons}");
        assert_eq!(number(&worker, "records_received_total", t), 30.0, "{t}: delivered once");
        assert!(number(&worker, "retries_total", t) > 5.0 && number(&worker, "breaker_state", t) == 1.0, "{t}");
        let queue = stage.topology("tableinator", t).queue;
        let message = stage.channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await?;
        let delivery = message.ok_or("nothing came back")?.delivery;
        let headers = delivery.properties.headers().clone().unwrap_or_default();
        assert_eq!(headers.inner().get("x-delivery-count"), Some(&AMQPValue::LongLongInt(1)), "{t}");
        delivery.acker.nack(BasicNackOptions { requeue: true, ..BasicNackOptions::default() }).await?;
    }
    // The artists are repaired. Of the labels it turns out that it is their own fault.
    let repair = "DROP FUNCTION refuse_artists CASCADE; CREATE OR REPLACE FUNCTION refuse_labels() RETURNS trigger \
                  LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'nonsense' USING ERRCODE = '22000'; END $$";
    postgres.batch_execute(repair).await?;
    for (t, refused) in [(DataType::Artists, 0), (DataType::Labels, 3)] {
        let settled = |w: &Worker| {
            let dead = number(w, "records_dead_lettered_total", t);
            number(w, "records_committed_total", t) + dead >= 30.0 && dead == f64::from(refused)
        };
        worker.until("settled", Duration::from_secs(60), settled).await?;
        let received = number(&worker, "records_received_total", t);
        assert!(received <= 60.0, "{t}: {received} deliveries of 30 messages");
        let rows = postgres.query_one(&format!("SELECT count(*) FROM {t}"), &[]).await?;
        assert_eq!(rows.get::<_, i64>(0), 30 - i64::from(refused), "{t}");
    }
    // A pause ends at once: masters are in one.
    let asked = Instant::now();
    assert_eq!(worker.stop().await?.code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    for (t, refused) in DataType::ALL.into_iter().zip([0, 3, 0, 0]) {
        let letters = stage.dead_letters("tableinator", t).await?;
        assert_eq!(letters.len(), refused, "{t}");
        assert!(letters.iter().all(|letter| letter.header("dead-letter-reason") == "write_refused"), "{t}");
    }
    stage.clean_up().await
}

/// Somebody holds a node of the graph for longer than a batch is held.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_locked_for_long_uses_up_no_deliveries() -> Result<(), Error> {
    let stage = alone().await?;
    let mut worker = stage.start("graphinator", &[SHORT_HOLD[0], ("WRITE_TIMEOUT", "2")]).await?;
    stage.publish(DataType::Artists, (1..=3).map(|id| artist(id, 1))).await?;
    settled(&mut worker, 3).await?;
    let graph = services().neo4j()?;
    let mut rival = graph.start_txn().await?;
    rival.run(query("MATCH (a:Artist {id: '2'}) SET a._rival = 1")).await?;
    stage.publish(DataType::Artists, (1..=3).map(|id| artist(id, 2))).await?;
    let paused = |w: &Worker| pauses(w, DataType::Artists) > 3;
    worker.until("through three pauses", Duration::from_secs(120), paused).await?;
    assert_eq!(number(&worker, "records_received_total", DataType::Artists), 6.0, "each was delivered once");
    assert_eq!(stage.ready_count(&stage.topology("graphinator", DataType::Artists).queue).await?, 3);
    rival.rollback().await?;
    settled(&mut worker, 6).await?;
    assert_eq!(number(&worker, "records_received_total", DataType::Artists), 9.0);
    assert_eq!(worker.stop().await?.code(), Some(0));
    let messages = Messages { artists: (1..=3).map(|id| artist(id, 2)).collect(), ..Messages::default() };
    let (nodes, rels) = states::read_graph(&graph).await?;
    states::compare_graph(&nodes, &rels, &oracle::expected(&messages))?;
    assert!(stage.dead_letters("graphinator", DataType::Artists).await?.is_empty());
    stage.clean_up().await
}

/// Waits until two replicas have two queues each.
async fn share(workers: &mut [Worker]) -> Result<(), Error> {
    for worker in workers {
        let shared = |w: &Worker| w.metric("consuming", &[]) == 2.0;
        worker.until("a consumer of two queues", Duration::from_secs(60), shared).await?;
    }
    Ok(())
}

/// Replicas must not use up the deliveries by turns, one after the other, of what none of them can write.
#[tokio::test(flavor = "multi_thread")]
async fn what_only_certain_rows_show_costs_each_replica_one_delivery() -> Result<(), Error> {
    let stage = alone().await?;
    // Each with a log of its own, in which its pauses are counted.
    let workers = [0, 1].map(|number| stage.spawn_replica("tableinator", number, &SHORT_HOLD));
    let mut workers = workers.into_iter().collect::<Result<Vec<_>, _>>()?;
    share(&mut workers).await?;
    let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
                  $$ BEGIN RAISE EXCEPTION 'not this one' USING ERRCODE = '53100'; END $$; \
                  CREATE TRIGGER refuse BEFORE INSERT ON artists FOR EACH ROW WHEN (NEW.data_id = '2') EXECUTE FUNCTION refuse()";
    let postgres = stage.postgres().await?;
    postgres.batch_execute(refuse).await?;
    stage.publish(DataType::Artists, (1..=3).map(|id| artist(id, 1))).await?;
    for worker in &mut workers {
        worker.until("through three pauses", Duration::from_secs(120), |w| pauses(w, DataType::Artists) > 3).await?;
    }
    let queue = stage.topology("tableinator", DataType::Artists).queue;
    let message = stage.channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await?;
    let delivery = message.ok_or("nothing came back")?.delivery;
    let headers = delivery.properties.headers().clone().unwrap_or_default();
    assert_eq!(headers.inner().get("x-delivery-count"), Some(&AMQPValue::LongLongInt(2)));
    delivery.acker.nack(BasicNackOptions { requeue: true, ..BasicNackOptions::default() }).await?;
    postgres.batch_execute("DROP FUNCTION refuse CASCADE").await?;
    let written = |workers: &[Worker]| -> f64 {
        workers.iter().map(|w| number(w, "records_committed_total", DataType::Artists)).sum()
    };
    let began = Instant::now();
    while written(&workers) < 3.0 {
        assert!(began.elapsed() < Duration::from_secs(120), "not written");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    for worker in workers {
        assert_eq!(worker.stop().await?.code(), Some(0));
    }
    stage.clean_up().await
}

/// A copy of messages that somebody has purged must not hold up those that come after them.
#[tokio::test(flavor = "multi_thread")]
async fn the_copy_of_purged_messages_holds_up_nothing() -> Result<(), Error> {
    let stage = alone().await?;
    let mut worker = stage.start("tableinator", &[SHORT_HOLD[0], ("WRITE_TIMEOUT", "2")]).await?;
    stage.publish(DataType::Artists, (1..=3).map(|id| artist(id, 1))).await?;
    settled(&mut worker, 3).await?;
    let mut postgres = stage.postgres().await?;
    let rival = postgres.transaction().await?;
    rival.execute("SELECT FROM artists WHERE data_id = '2' FOR UPDATE", &[]).await?;
    stage.publish(DataType::Artists, (1..=3).map(|id| artist(id, 2))).await?;
    worker.until("paused", Duration::from_secs(120), |w| pauses(w, DataType::Artists) > 0).await?;
    let queue = stage.topology("tableinator", DataType::Artists).queue;
    assert_eq!(stage.ready_count(&queue).await?, 3);
    stage.channel.queue_purge(queue.as_str().into(), QueuePurgeOptions::default()).await?;
    // The lock is still held, so that the copy can't be written.
    let consuming = |w: &Worker| number(w, "breaker_state", DataType::Artists) == 0.0;
    worker.until("consuming again", Duration::from_secs(90), consuming).await?;
    stage.publish(DataType::Artists, [artist(4, 1)]).await?;
    settled(&mut worker, 4).await?;
    let versions = "SELECT string_agg(data_id || '.' || hash, ' ' ORDER BY data_id) FROM artists";
    assert_eq!(rival.query_one(versions, &[]).await?.get::<_, String>(0), "1.1 2.1 3.1 4.1");
    rival.rollback().await?;
    assert_eq!(worker.stop().await?.code(), Some(0));
    stage.clean_up().await
}

/// Neo4j with little memory for a transaction, until this is dropped: other tests use it too.
struct LittleMemory;

impl LittleMemory {
    fn new() -> Result<LittleMemory, Error> {
        let little = LittleMemory;
        LittleMemory::restart("db.memory.transaction.max=2m")?;
        Ok(little)
    }

    fn restart(settings: &str) -> Result<(), Error> {
        let mut restart = Command::new(root().join("scripts/services"));
        let status = restart.args(["restart", "neo4j"]).env("NEO4J_SETTINGS", settings).status()?;
        status.success().then_some(()).ok_or_else(|| "Neo4j does not restart".into())
    }
}

impl Drop for LittleMemory {
    fn drop(&mut self) {
        if let Err(e) = LittleMemory::restart("") {
            eprintln!("{e}"); // the next test fails, and says why
        }
    }
}

/// Neo4j has no room for a whole batch in one transaction: it is halved until its parts fit, and nobody is blamed.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_beyond_neo4j_s_memory_is_halved() -> Result<(), Error> {
    let load = Load::new("graphinator", 29, 1000).await?;
    let little = LittleMemory::new()?;
    let mut worker = load.stage.start("graphinator", &[("NEO4J_BATCH_SIZE", "2000")]).await?;
    settled(&mut worker, load.total).await?;
    assert!(worker.log_text().contains("Neo.TransientError.General.MemoryPoolOutOfMemoryError"));
    assert!(worker.metric("bisections_total", &[]) > 0.0);
    drop(little);
    load.finish(worker).await
}

/// A record that alone is more than a transaction may have is its own fault.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_alone_is_beyond_neo4j_s_memory_is_dead_lettered() -> Result<(), Error> {
    let stage = alone().await?;
    let little = LittleMemory::new()?;
    let mut worker = stage.start("graphinator", &[SHORT_HOLD[0]]).await?;
    let members: Vec<_> = (1..=20_000).map(|id| format!(r#"{{"id":"{id}","name":"member {id}"}}"#)).collect();
    let members = members.join(",");
    let huge = format!(r#"{{"type":"data","id":"2","sha256":"2","name":"2","members":[{members}]}}"#);
    stage.publish(DataType::Artists, [artist(1, 1), huge.into_bytes(), artist(3, 1)]).await?;
    settled(&mut worker, 3).await?;
    assert_eq!(number(&worker, "records_committed_total", DataType::Artists), 2.0);
    let letters = stage.dead_letters("graphinator", DataType::Artists).await?;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].header("dead-letter-reason"), "write_refused");
    assert_eq!(letters[0].header("dead-letter-id"), "2");
    assert_eq!(worker.stop().await?.code(), Some(0));
    drop(little);
    stage.clean_up().await
}

/// A batch that takes longer than an attempt may: fewer records are tried at a time until they fit, and nothing goes back.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_takes_too_long_is_divided() -> Result<(), Error> {
    let stage = alone().await?;
    let settings = [("RABBITMQ_CONSUMER_TIMEOUT", "120"), ("WRITE_TIMEOUT", "2"), ("POSTGRES_BATCH_SIZE", "40")];
    let mut worker = stage.start("tableinator", &settings).await?;
    let slow = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.1); RETURN NEW; END $$;                 CREATE TRIGGER slow BEFORE INSERT ON artists FOR EACH ROW EXECUTE FUNCTION slow()";
    stage.postgres().await?.batch_execute(slow).await?;
    stage.publish(DataType::Artists, (1..=40).map(|id| artist(id, 1))).await?;
    settled(&mut worker, 40).await?;
    assert_eq!(number(&worker, "records_received_total", DataType::Artists), 40.0, "each was delivered once");
    assert!(number(&worker, "bisections_total", DataType::Artists) >= 2.0);
    assert_eq!(worker.stop().await?.code(), Some(0));
    stage.clean_up().await
}

/// The broker is short of memory, and reads nothing more from connections that publish, as replicas do that wait for their turn, and
/// whoever has a dead letter: acknowledgements must get through, since they are what frees it.
#[tokio::test(flavor = "multi_thread")]
async fn queues_are_drained_while_the_broker_has_an_alarm() -> Result<(), Error> {
    let stage = alone().await?;
    stage.declare("tableinator").await?;
    for t in DataType::ALL {
        stage.publish(t, (1..=2000).map(|id| artist(id, 1))).await?;
    }
    let slowly = [SMALL[0], ("RATE_LIMIT", "150")];
    let mut workers = [stage.start("tableinator", &slowly).await?, stage.start("tableinator", &slowly).await?];
    share(&mut workers).await?; // both have asked by now
    let alarm = Alarm::new()?;
    let queues = DataType::ALL.map(|t| stage.topology("tableinator", t).queue);
    let began = Instant::now();
    for queue in &queues {
        assert!(stage.ready_count(queue).await? > 0, "{queue} was drained before");
    }
    loop {
        let listed = script(&["ctl", "-q", "list_queues", "name", "messages"])?;
        let ours = listed
            .lines()
            .filter_map(|line| line.split_once('\t'))
            .filter(|(name, _)| queues.iter().any(|q| q == name));
        let left: Vec<_> = ours.map(|(_, messages)| messages.trim()).collect();
        if left == ["0"; 4] {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(90), "{left:?} messages are left");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    drop(alarm);
    for worker in workers {
        assert_eq!(worker.stop().await?.code(), Some(0));
    }
    stage.clean_up().await
}

/// What can't be published while the broker has an alarm is not piled up in the client, a copy for each attempt.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_waits_for_the_end_of_an_alarm() -> Result<(), Error> {
    let stage = alone().await?;
    stage.declare("tableinator").await?;
    stage.publish(DataType::Artists, [b"{".to_vec()]).await?;
    let alarm = Alarm::new()?;
    let mut worker = stage.start("tableinator", &[]).await?;
    let again = |w: &Worker| w.metric("retries_total", &["code=\"dead_letter\""]) >= 3.0;
    worker.until("tried again", Duration::from_secs(180), again).await?;
    drop(alarm);
    let dead_lettered = |w: &Worker| w.metric("records_dead_lettered_total", &[]) > 0.0;
    worker.until("dead-lettered", Duration::from_secs(60), dead_lettered).await?;
    assert_eq!(worker.stop().await?.code(), Some(0));
    // The first attempt finds out that there is an alarm.
    let copies = stage.dead_letters("tableinator", DataType::Artists).await?.len();
    assert!((1..=2).contains(&copies), "{copies} copies");
    stage.clean_up().await
}

/// The broker's memory alarm, until this is dropped.
struct Alarm;

impl Alarm {
    fn new() -> Result<Alarm, Error> {
        let alarm = Alarm;
        script(&["ctl", "set_vm_memory_high_watermark", "absolute", "1MB"])?;
        Ok(alarm)
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if let Err(e) = script(&["ctl", "set_vm_memory_high_watermark", "absolute", "2GB"]) {
            eprintln!("{e}");
        }
    }
}

/// The broker goes away under an extractor in mid-run and comes back; so do the messages that it had not confirmed.
async fn extract_through(name: &str, outage: &[&[&str]]) -> Result<(), Error> {
    let graph = alone().await?;
    let mut job = Job::new(name, "graphinator,tableinator").await?;
    let expected = job.folder.generate(4000, 28)?;
    // Slow enough to be in its middle when the broker goes. The proxy refuses nobody while the broker is away.
    let proxy = job.through_proxy(1_000_000).await?;
    let releases = expected[DataType::Releases.index()].len() as u64;
    let mut running = job.start(&[])?;
    running.until("midway", |e| e.published(DataType::Releases) >= releases / 4).await?;
    for command in outage {
        tokio::task::block_in_place(|| script(command))?;
    }
    assert!(running.published(DataType::Releases) < releases, "it was through before the broker was away");
    proxy.pace(u64::MAX);
    running.ended().await?.with(0).saying(&["releases: ", "trying again", "the workers were told"]);
    job.stage.reconnect().await?;
    for worker in ["graphinator", "tableinator"] {
        for t in DataType::ALL {
            let (taken, what) = (job.take(worker, t).await?, format!("{worker} {t}"));
            taken.assert_resumed(&what, &expected[t.index()]);
            let ending = taken.ending()?;
            let files = ending.iter().filter(|control| *control == "file_complete").count();
            assert!((1..3).contains(&files) && ending.last().is_some_and(|e| e == "extraction_complete"), "{ending:?}");
        }
    }
    job.stage.clean_up().await?;
    let mut graph = graph;
    graph.reconnect().await?;
    graph.clean_up().await
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_restarts_under_the_extractor() -> Result<(), Error> {
    extract_through("restarted", &[&["restart", "rabbitmq"]]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_is_killed_under_the_extractor() -> Result<(), Error> {
    extract_through("brokerkill", &[&["kill", "rabbitmq"], &["start", "rabbitmq"]]).await
}
