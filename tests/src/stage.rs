//! A test's private corner: queues with a prefix of its own, a PostgreSQL database of its own, and the graph, which
//! Neo4j's community edition has only one of, for itself alone.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{DataType, Topology};
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection};
use neo4rs::{Graph, query};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep, timeout};
use xtask::feed;
use xtask::process::Worker;
use xtask::services::Services;

use crate::Error;
use crate::oracle::Messages;

static SERVICES: OnceLock<Services> = OnceLock::new();
static GRAPH: Mutex<()> = Mutex::const_new(());

/// The graph for one test alone: among the tests of this process, and of all others that use the same services.
struct GraphGuard {
    _file: File,
    _mutex: MutexGuard<'static, ()>,
}

async fn lock_graph() -> Result<GraphGuard, Error> {
    let mutex = GRAPH.lock().await;
    let path = PathBuf::from(services().get("SERVICES_DIR")).join("graph.lock");
    let file = tokio::task::spawn_blocking(move || -> std::io::Result<File> {
        let file = File::options().create(true).append(true).open(path)?;
        file.lock()?;
        Ok(file)
    });
    Ok(GraphGuard { _file: file.await??, _mutex: mutex })
}
static COUNTER: AtomicUsize = AtomicUsize::new(0);

/// The services, started on first use, and the workers built from the sources as they are.
pub fn services() -> &'static Services {
    SERVICES.get_or_init(|| {
        xtask::services::build_binaries().unwrap_or_else(|e| panic!("{e}"));
        Services::up().unwrap_or_else(|e| panic!("{e}"))
    })
}

/// This moment, as the extractor writes it.
pub fn now() -> String {
    chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Nanos, true)
}

/// A worker's binary, beside the test's own.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap_or_else(|e| panic!("{e}"));
    let target = test.ancestors().nth(2).unwrap_or_else(|| panic!("no target directory"));
    target.join(name)
}

/// The private corner of one test.
pub struct Stage {
    /// Prefix of exchanges and queues.
    pub prefix: String,
    /// Name of the database.
    pub database: String,
    /// A channel of the test's own.
    pub channel: Channel,
    connection: Connection,
    logs: PathBuf,
    _graph: Option<GraphGuard>,
}

impl Stage {
    /// A stage without the graph.
    pub async fn new(name: &str) -> Result<Stage, Error> {
        Stage::make(name, None).await
    }

    /// A stage with the graph, which is empty then. Tests that need it run one after the other.
    pub async fn with_graph(name: &str) -> Result<Stage, Error> {
        let guard = lock_graph().await?;
        wipe_graph(&services().neo4j()?).await?;
        Stage::make(name, Some(guard)).await
    }

    async fn make(name: &str, graph: Option<GraphGuard>) -> Result<Stage, Error> {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let unique = format!("{name}_{}_{number}", std::process::id());
        let database = format!("t_{unique}").to_lowercase();
        let admin = services().postgres(services().get("POSTGRES_DATABASE")).await?;
        admin.batch_execute(&format!("CREATE DATABASE {database}")).await?;
        let connection = services().broker().await?;
        let logs = std::env::temp_dir().join(format!("ingest-tests-{}", std::process::id()));
        std::fs::create_dir_all(&logs)?;
        Ok(Stage {
            prefix: format!("test-{unique}"),
            database,
            channel: connection.create_channel().await?,
            connection,
            logs,
            _graph: graph,
        })
    }

    /// The environment of this stage's workers.
    pub fn env(&self, extra: &[(&str, &str)]) -> BTreeMap<String, String> {
        let mut env = services().0.clone();
        env.retain(|name, _| !name.starts_with("SERVICES"));
        for (name, value) in [
            ("DISCOGS_EXCHANGE_PREFIX", self.prefix.as_str()),
            ("POSTGRES_DATABASE", self.database.as_str()),
            ("POSTGRES_BATCH_FLUSH_INTERVAL", "0.2"),
            ("NEO4J_BATCH_FLUSH_INTERVAL", "0.2"),
            ("LOG_LEVEL", "INFO"),
        ]
        .iter()
        .chain(extra)
        {
            env.insert((*name).to_owned(), (*value).to_owned());
        }
        env
    }

    /// Starts a worker and waits until it is ready.
    pub async fn start(&self, worker: &str, extra: &[(&str, &str)]) -> Result<Worker, Error> {
        let mut started = self.spawn(worker, extra)?;
        started.ready().await?;
        Ok(started)
    }

    /// Starts a worker.
    pub fn spawn(&self, worker: &str, extra: &[(&str, &str)]) -> Result<Worker, Error> {
        self.spawn_as(worker, "", extra)
    }

    /// Starts a worker whose log has this in its name: those of several at the same time must not get mixed up.
    pub fn spawn_as(&self, worker: &str, name: &str, extra: &[(&str, &str)]) -> Result<Worker, Error> {
        let log = self.logs.join(format!("{}-{worker}{name}.log", self.prefix));
        Worker::start(&binary(worker), &self.env(extra), &log)
    }

    /// Starts one of several replicas of a worker, with a log of its own.
    pub fn spawn_replica(&self, worker: &str, number: usize, extra: &[(&str, &str)]) -> Result<Worker, Error> {
        let log = self.logs.join(format!("{}-{worker}-{number}.log", self.prefix));
        Worker::start(&binary(worker), &self.env(extra), &log)
    }

    /// Runs a worker's `check` and returns its exit status and output.
    pub fn check(&self, worker: &str, extra: &[(&str, &str)]) -> Result<(i32, String), Error> {
        let out = Command::new(binary(worker)).arg("check").env_clear().envs(self.env(extra)).output()?;
        let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
        Ok((out.status.code().unwrap_or(-1), text))
    }

    /// Connects anew, after the broker was away.
    pub async fn reconnect(&mut self) -> Result<(), Error> {
        self.connection = services().broker().await?;
        self.channel = self.connection.create_channel().await?;
        Ok(())
    }

    /// Names of the broker's objects.
    pub fn topology(&self, worker: &str, data_type: DataType) -> Topology {
        Topology::new(&self.prefix, worker, data_type)
    }

    /// Declares a worker's queues, so that messages can wait for it.
    pub async fn declare(&self, worker: &str) -> Result<(), Error> {
        for data_type in DataType::ALL {
            common::amqp::declare(&self.channel, &self.topology(worker, data_type)).await?;
        }
        Ok(())
    }

    /// Publishes bodies to a type's exchange.
    pub async fn publish<B: AsRef<[u8]>>(
        &self,
        data_type: DataType,
        bodies: impl IntoIterator<Item = B>,
    ) -> Result<usize, Error> {
        feed::publish(&self.channel, &format!("{}-{data_type}", self.prefix), bodies).await
    }

    /// Publishes all messages, each type followed by its `file_complete`. Returns how many records there were.
    pub async fn publish_month(&self, messages: &Messages, version: &str) -> Result<usize, Error> {
        let mut count = 0;
        for (data_type, bodies) in by_type(messages) {
            count += self.publish(data_type, bodies).await?;
            self.publish(data_type, [xtask::sample::file_complete(data_type, version, bodies.len())]).await?;
        }
        Ok(count)
    }

    /// Publishes the end of a run to all four exchanges.
    pub async fn publish_end(&self, messages: &Messages, version: &str, started_at: &str) -> Result<(), Error> {
        let counts = by_type(messages).map(|(t, bodies)| (t, bodies.len()));
        for data_type in DataType::ALL {
            self.publish(data_type, [xtask::sample::extraction_complete(version, started_at, counts)]).await?;
        }
        Ok(())
    }

    /// Messages ready in a queue.
    pub async fn ready_count(&self, queue: &str) -> Result<u32, Error> {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let channel = self.connection.create_channel().await?;
        let queue = channel.queue_declare(queue.into(), passive, FieldTable::default()).await?;
        channel.close(200, "done".into()).await?;
        Ok(queue.message_count())
    }

    /// Takes everything out of a queue that nothing is published to meanwhile.
    pub async fn drain(&self, queue: &str) -> Result<Vec<Delivery>, Error> {
        let channel = self.connection.create_channel().await?;
        let mut taken = Vec::new();
        loop {
            let ready = usize::try_from(self.ready_count(queue).await?)?;
            if ready == 0 {
                channel.close(200, "done".into()).await?;
                return Ok(taken);
            }
            let wanted = taken.len() + ready;
            let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
            let mut consumer = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?;
            while taken.len() < wanted {
                let next = timeout(Duration::from_secs(30), consumer.next()).await?;
                taken.push(next.ok_or("the queue is gone")??);
            }
            channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await?;
            while let Some(more) = consumer.next().await {
                taken.push(more?);
            }
        }
    }

    /// Takes everything out of a type's dead-letter queue.
    pub async fn dead_letters(&self, worker: &str, data_type: DataType) -> Result<Vec<DeadLetter>, Error> {
        let queue = self.topology(worker, data_type).dead_letter_queue;
        let mut letters = Vec::new();
        while let Some(message) = self.channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await? {
            message.delivery.acker.ack(BasicAckOptions::default()).await?;
            letters.push(DeadLetter { body: message.delivery.data, properties: message.delivery.properties });
        }
        Ok(letters)
    }

    /// A connection to the stage's database.
    pub async fn postgres(&self) -> Result<tokio_postgres::Client, Error> {
        services().postgres(&self.database).await
    }

    /// Removes queues, exchanges and database.
    pub async fn clean_up(self) -> Result<(), Error> {
        for data_type in DataType::ALL {
            for worker in ["graphinator", "tableinator"] {
                let t = self.topology(worker, data_type);
                for queue in [&t.queue, &t.dead_letter_queue] {
                    self.channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await?;
                }
                self.channel.exchange_delete(t.dead_letter_exchange.as_str().into(), Default::default()).await?;
            }
            let exchange = format!("{}-{data_type}", self.prefix);
            self.channel.exchange_delete(exchange.as_str().into(), Default::default()).await?;
        }
        let admin = services().postgres(services().get("POSTGRES_DATABASE")).await?;
        admin.batch_execute(&format!("DROP DATABASE {} WITH (FORCE)", self.database)).await?;
        Ok(())
    }
}

/// A message from a dead-letter queue.
#[derive(Debug)]
pub struct DeadLetter {
    /// Its body.
    pub body: Vec<u8>,
    /// Its properties.
    pub properties: BasicProperties,
}

impl DeadLetter {
    /// A header's text; empty if there is none.
    pub fn header(&self, name: &str) -> String {
        let headers = self.properties.headers().as_ref();
        let value = headers.and_then(|h| h.inner().get(name)).and_then(|v| v.as_long_string());
        value.map(ToString::to_string).unwrap_or_default()
    }
}

/// The bodies of each type.
pub fn by_type(messages: &Messages) -> [(DataType, &Vec<Vec<u8>>); 4] {
    [
        (DataType::Artists, &messages.artists),
        (DataType::Labels, &messages.labels),
        (DataType::Masters, &messages.masters),
        (DataType::Releases, &messages.releases),
    ]
}

/// Waits until a worker has settled this many data messages since its start.
pub async fn settled(worker: &mut Worker, count: usize) -> Result<(), Error> {
    let done = |w: &Worker| {
        w.metric("records_committed_total", &[]) + w.metric("records_dead_lettered_total", &[]) >= count as f64
    };
    worker.until("done", Duration::from_secs(180), done).await
}

/// Removes every node.
pub async fn wipe_graph(graph: &Graph) -> Result<(), Error> {
    Ok(graph.run(query("MATCH (n) CALL (n) { DETACH DELETE n } IN TRANSACTIONS OF 5000 ROWS")).await?)
}

/// Settings under which only a full batch or a control message closes a batch.
pub const PATIENT: [(&str, &str); 2] =
    [("POSTGRES_BATCH_FLUSH_INTERVAL", "600"), ("NEO4J_BATCH_FLUSH_INTERVAL", "600")];

/// How many control messages of a type a worker has taken.
pub fn controls(worker: &Worker, data_type: DataType) -> Result<f64, Error> {
    let (_, text) = worker.get("/metrics")?;
    Ok(xtask::process::sum(&text, "control_messages_total", &[&format!("data_type=\"{data_type}\"")]))
}

/// Waits until a worker has taken this many control messages of a type, and so settled all that came before.
pub async fn controlled(worker: &mut Worker, data_type: DataType, count: f64) -> Result<(), Error> {
    let done = |w: &Worker| controls(w, data_type).is_ok_and(|taken| taken >= count);
    worker.until("past the control message", Duration::from_secs(60), done).await
}

/// Waits until purges and maintenance of this run are done.
pub async fn run_maintained(stage: &Stage, version: &str) -> Result<(), Error> {
    let postgres = stage.postgres().await?;
    within(Duration::from_secs(60), "purged", async || purged(&postgres, version).await).await?;
    run_graph_maintained(version).await
}

/// Whether the purges of this run are done.
pub async fn purged(client: &tokio_postgres::Client, version: &str) -> Result<bool, Error> {
    let purges = "SELECT count(*) FROM ingest_purges WHERE version = $1 AND finished_at IS NOT NULL";
    Ok(client.query_one(purges, &[&version]).await?.get::<_, i64>(0) == 4)
}

/// Waits until the maintenance of this run is done.
pub async fn run_graph_maintained(version: &str) -> Result<(), Error> {
    let graph = services().neo4j()?;
    within(Duration::from_secs(60), "maintained", async || graph_maintained(&graph, version).await).await
}

/// Whether the maintenance of this run is done.
pub async fn graph_maintained(graph: &Graph, version: &str) -> Result<bool, Error> {
    let done = "MATCH (r:IngestRun {version: $v}) WHERE r.requested > 0 RETURN r.completed >= r.requested AS done";
    let row = graph.execute(query(done).param("v", version)).await?.next().await?;
    Ok(row.is_some_and(|r| r.get::<bool>("done").unwrap_or(false)))
}

/// Asserts what holds at the end of every test without outages: nothing came twice, nothing waits, a clean exit.
pub async fn stop_clean(stage: &Stage, name: &str, worker: Worker) -> Result<(), Error> {
    assert_eq!(worker.metric("redelivered_total", &[]), 0.0, "{name}: something was delivered twice");
    let status = worker.stop().await?;
    assert_eq!(status.code(), Some(0), "{name}");
    for data_type in DataType::ALL {
        assert_eq!(stage.ready_count(&stage.topology(name, data_type).queue).await?, 0, "{name} {data_type}");
    }
    Ok(())
}

/// Waits until it is so, for no longer than `limit`.
///
/// # Errors
/// If it is not, or can't be found out.
pub async fn within(limit: Duration, what: &str, check: impl AsyncFn() -> Result<bool, Error>) -> Result<(), Error> {
    let deadline = Instant::now() + limit;
    while !check().await? {
        if Instant::now() > deadline {
            return Err(format!("not {what} within {limit:?}").into());
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
