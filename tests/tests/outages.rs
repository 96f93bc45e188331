//! Servers that go away in mid-load and come back. These tests restart the shared services, so they are a target of
//! their own (cargo runs targets one after the other) and run one at a time.

use std::process::Command;
use std::time::Duration;

use common::DataType;
use integration_tests::oracle::{self, Expected, Messages};
use integration_tests::stage::{by_type, services, settled};
use integration_tests::states;
use integration_tests::{Error, Job, Stage};
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

impl Load {
    async fn new(name: &'static str, seed: u64) -> Result<Load, Error> {
        Load::sized(name, seed, 4000).await
    }

    async fn sized(name: &'static str, seed: u64, records: usize) -> Result<Load, Error> {
        services();
        tokio::task::block_in_place(|| script(&["up"]))?; // a test that failed may have left a server down
        let stage = Stage::with_graph("outage").await?;
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

    async fn through(self, outage: &[&str]) -> Result<(), Error> {
        let worker = self.midway(&[]).await?;
        for command in outage {
            let words: Vec<&str> = command.split(' ').collect();
            tokio::task::block_in_place(|| script(&words))?;
        }
        self.finish(worker).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_restarts() -> Result<(), Error> {
    Load::new("tableinator", 21).await?.through(&["restart postgres"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_is_killed() -> Result<(), Error> {
    Load::new("tableinator", 22).await?.through(&["kill postgres", "start postgres"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn neo4j_restarts() -> Result<(), Error> {
    Load::new("graphinator", 23).await?.through(&["restart neo4j"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn neo4j_is_killed() -> Result<(), Error> {
    Load::new("graphinator", 24).await?.through(&["kill neo4j", "start neo4j"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_restarts_under_tableinator() -> Result<(), Error> {
    Load::new("tableinator", 25).await?.through(&["restart rabbitmq"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_is_killed_under_graphinator() -> Result<(), Error> {
    Load::new("graphinator", 26).await?.through(&["kill rabbitmq", "start rabbitmq"]).await
}

/// A long outage: before the broker's consumer timeout the messages go back, nothing is consumed until the database
/// answers again, and then everything arrives.
#[tokio::test(flavor = "multi_thread")]
async fn messages_are_handed_back_in_a_long_outage() -> Result<(), Error> {
    let load = Load::new("tableinator", 27).await?;
    let mut worker = load.midway(&[("RABBITMQ_CONSUMER_TIMEOUT", "10")]).await?;
    script(&["kill", "postgres"])?;
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
    script(&["start", "postgres"])?;
    load.finish(worker).await
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
    let load = Load::sized("graphinator", 29, 1000).await?;
    let little = LittleMemory::new()?;
    let mut worker = load.stage.start("graphinator", &[("NEO4J_BATCH_SIZE", "2000")]).await?;
    settled(&mut worker, load.total).await?;
    assert!(worker.log_text().contains("Neo.TransientError.General.MemoryPoolOutOfMemoryError"));
    assert!(worker.metric("bisections_total", &[]) > 0.0);
    drop(little);
    load.finish(worker).await
}

/// The broker goes away under an extractor in mid-run and comes back; so do the messages that it had not confirmed.
async fn extract_through(name: &str, outage: &[&[&str]]) -> Result<(), Error> {
    services();
    tokio::task::block_in_place(|| script(&["up"]))?;
    let graph = Stage::with_graph("outage").await?; // for itself alone, as every test here
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
