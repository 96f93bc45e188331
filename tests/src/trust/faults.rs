//! What is broken on purpose: each fault begins, is seen by somebody, and ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use common::DataType;
use lapin::options::QueueDeleteOptions;
use neo4rs::{Graph, query};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use xtask::services::script;

use super::Run;
use crate::Error;
use crate::proxy::Direction;
use crate::stage::{services, within};

/// A worker is frozen for no longer than this.
const TAKEOVER: Duration = Duration::from_secs(15);
/// A way that is slow stays so for this many chunks.
const SLOW: u64 = 40;

/// Everything that can be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// SIGKILL in the middle of the work; started again.
    WorkerKilled,
    /// SIGKILL after a commit whose ack has not reached the broker; started again.
    WorkerKilledBeforeAck,
    /// SIGTERM in the middle of the work; started again.
    WorkerStopped,
    /// SIGSTOP in the middle of the work, until somebody else has its turns; then SIGCONT.
    WorkerFrozen,
    /// The worker's connection to the broker ends.
    BrokerCut,
    /// … with RST.
    BrokerReset,
    /// … takes and brings nothing for a while.
    BrokerFrozen,
    /// … becomes slow.
    BrokerSlow,
    /// The worker's connections to its database end.
    DatabaseCut,
    /// … with RST.
    DatabaseReset,
    /// … take and bring nothing for longer than `WRITE_TIMEOUT`.
    DatabaseFrozen,
    /// … become slow.
    DatabaseSlow,
    /// SIGKILL for the broker; started again.
    BrokerKilled,
    /// The broker is stopped and started.
    BrokerRestarted,
    /// Somebody deletes a queue; what was in it is published again.
    QueueDeleted,
    /// The broker's consumer timeout is shorter than a write takes.
    ConsumerTimeout,
    /// The broker is short of memory and takes no messages.
    MemoryAlarm,
    /// SIGKILL for PostgreSQL; started again.
    PostgresKilled,
    /// PostgreSQL is stopped and started.
    PostgresRestarted,
    /// The worker's backends are terminated.
    BackendsTerminated,
    /// The worker's role may have no connection.
    OutOfConnections,
    /// The database is read-only.
    ReadOnly,
    /// No space left on the device (SQLSTATE 53100, raised by a trigger).
    DiskFull,
    /// Somebody else holds a lock on a table.
    TableLocked,
    /// Somebody else updates the same rows in another order.
    RowsContended,
    /// The password is changed, and the connections are gone.
    PostgresPassword,
    /// SIGKILL for Neo4j; started again.
    Neo4jKilled,
    /// Neo4j is stopped and started.
    Neo4jRestarted,
    /// The worker's transactions are terminated.
    TransactionsTerminated,
    /// Somebody else holds a lock on nodes.
    NodesLocked,
    /// Somebody else writes to the same nodes in another order.
    NodesContended,
    /// The password is changed, and the connections are gone.
    Neo4jPassword,
}

/// What a fault is done to: two faults of the same party would be in each other's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Party {
    /// The worker's process.
    Worker,
    /// Its way to the broker and the database.
    Network,
    /// PostgreSQL.
    Postgres,
    /// Neo4j.
    Neo4j,
    /// RabbitMQ. Last: what it lost is published again when all others work.
    Broker,
}

use Fault::{
    BackendsTerminated, BrokerCut, BrokerFrozen, BrokerKilled, BrokerReset, BrokerRestarted, BrokerSlow,
    ConsumerTimeout, DatabaseCut, DatabaseFrozen, DatabaseReset, DatabaseSlow, DiskFull, MemoryAlarm, Neo4jKilled,
    Neo4jPassword, Neo4jRestarted, NodesContended, NodesLocked, OutOfConnections, PostgresKilled, PostgresPassword,
    PostgresRestarted, QueueDeleted, ReadOnly, RowsContended, TableLocked, TransactionsTerminated, WorkerFrozen,
    WorkerKilled, WorkerKilledBeforeAck, WorkerStopped,
};

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 32] = [
        WorkerKilled,
        WorkerKilledBeforeAck,
        WorkerStopped,
        WorkerFrozen,
        BrokerCut,
        BrokerReset,
        BrokerFrozen,
        BrokerSlow,
        DatabaseCut,
        DatabaseReset,
        DatabaseFrozen,
        DatabaseSlow,
        BrokerKilled,
        BrokerRestarted,
        QueueDeleted,
        ConsumerTimeout,
        MemoryAlarm,
        PostgresKilled,
        PostgresRestarted,
        BackendsTerminated,
        OutOfConnections,
        ReadOnly,
        DiskFull,
        TableLocked,
        RowsContended,
        PostgresPassword,
        Neo4jKilled,
        Neo4jRestarted,
        TransactionsTerminated,
        NodesLocked,
        NodesContended,
        Neo4jPassword,
    ];

    /// What it is done to.
    pub fn party(self) -> Party {
        match self {
            WorkerKilled | WorkerKilledBeforeAck | WorkerStopped | WorkerFrozen => Party::Worker,
            BrokerCut | BrokerReset | BrokerFrozen | BrokerSlow => Party::Network,
            DatabaseCut | DatabaseReset | DatabaseFrozen | DatabaseSlow => Party::Network,
            BrokerKilled | BrokerRestarted | QueueDeleted | ConsumerTimeout | MemoryAlarm => Party::Broker,
            PostgresKilled | PostgresRestarted | BackendsTerminated | OutOfConnections | ReadOnly => Party::Postgres,
            DiskFull | TableLocked | RowsContended | PostgresPassword => Party::Postgres,
            Neo4jKilled | Neo4jRestarted | TransactionsTerminated | NodesLocked => Party::Neo4j,
            NodesContended | Neo4jPassword => Party::Neo4j,
        }
    }

    /// Whether it can happen to this worker.
    pub fn concerns(self, worker: &str) -> bool {
        match self.party() {
            Party::Postgres => worker == "tableinator",
            Party::Neo4j => worker == "graphinator",
            _ => true,
        }
    }

    /// Whether it happens to everybody who uses the server.
    pub fn is_everybody_s(self) -> bool {
        matches!(
            self,
            BrokerKilled
                | BrokerRestarted
                | ConsumerTimeout
                | MemoryAlarm
                | PostgresKilled
                | PostgresRestarted
                | Neo4jKilled
                | Neo4jRestarted
        )
    }

    /// Whether all workers suffer it at once, whichever it is done to.
    pub fn is_shared(self) -> bool {
        matches!(self, BrokerKilled | BrokerRestarted | MemoryAlarm)
    }

    /// Whether it is seen only when it is over.
    pub fn shows_afterwards(self) -> bool {
        matches!(
            self,
            WorkerKilled
                | WorkerKilledBeforeAck
                | WorkerStopped
                | WorkerFrozen
                | BrokerKilled
                | BrokerRestarted
                | ConsumerTimeout
                | MemoryAlarm
                | QueueDeleted
        )
    }
}

/// A fault that has begun.
pub struct Held {
    /// Which.
    pub fault: Fault,
    /// The worker that it happens to.
    squad: usize,
    grip: Grip,
}

/// What keeps it up.
enum Grip {
    Nothing,
    Queue(DataType),
    Lock(tokio_postgres::Client),
    Nodes(Box<neo4rs::Txn>),
    Rival(Arc<AtomicBool>, JoinHandle<()>),
}

fn services_script(words: &[&str]) -> Result<(), Error> {
    tokio::task::block_in_place(|| script(words)).map(drop)
}

async fn admin() -> Result<tokio_postgres::Client, Error> {
    services().postgres(services().get("POSTGRES_DATABASE")).await
}

impl Run {
    /// A number that grows when the fault is seen, by the worker where it should see it.
    pub async fn trace(&self, fault: Fault, squad: usize) -> Result<f64, Error> {
        let workers = &self.squads[squad];
        let code = |code: &str| workers.metric("retries_total", &[&format!("code=\"{code}")]);
        Ok(match fault {
            WorkerKilled => workers.metric("redelivered_total", &[]),
            // All that was committed comes back, and what was not.
            WorkerKilledBeforeAck => {
                f64::from(u8::from(self.unheard > 0.0 && workers.metric("redelivered_total", &[]) >= self.unheard))
            }
            WorkerStopped => workers.ended as f64,
            WorkerFrozen => workers.aware() as f64,
            BrokerCut | BrokerReset | BrokerKilled | BrokerRestarted => {
                workers.metric("reconnects_total", &["peer=\"broker\""])
            }
            // Heartbeats are missed, and a new connection is as dead.
            BrokerFrozen => f64::from(u8::from(workers.metric("connected", &["peer=\"broker\""]) == 0.0)),
            QueueDeleted => workers.metric("reconnects_total", &["peer=\"queue\""]),
            // Some batches long.
            BrokerSlow => (self.links[squad].broker.held() / SLOW) as f64,
            DatabaseSlow => (self.links[squad].database.held() / SLOW) as f64,
            DatabaseCut | DatabaseReset | PostgresKilled | PostgresRestarted | Neo4jKilled | Neo4jRestarted => {
                workers.metric("retries_total", &["class=\"transient\""])
            }
            DatabaseFrozen => workers.metric("retries_total", &["class=\"transient\""]),
            ConsumerTimeout => workers.logged("delivery acknowledgement on channel") as f64,
            MemoryAlarm => self.publisher.delayed() as f64,
            BackendsTerminated => workers.metric("retries_total", &["class=\"transient\""]),
            OutOfConnections => code("53300"),
            ReadOnly => code("25006"),
            DiskFull => code("53100"),
            PostgresPassword => workers.logged("28P01") as f64,
            Neo4jPassword => workers.logged("nauthorized") as f64,
            RowsContended | NodesContended => workers.metric("deadlocks_total", &[]),
            TransactionsTerminated => code("Neo.ClientError.Transaction") + code("Neo.TransientError.Transaction.Term"),
            TableLocked => {
                let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND usename = $1";
                let row = self.stage.postgres().await?.query_one(waiting, &[&self.user]).await?;
                row.get::<_, i64>(0) as f64
            }
            NodesLocked => {
                let waiting = "SHOW TRANSACTIONS YIELD status, username WHERE username = $user AND status STARTS WITH \
                               'Blocked' RETURN count(*) AS n";
                let rows = services().neo4j()?.execute(query(waiting).param("user", self.user.as_str())).await?;
                let mut rows = rows;
                rows.next().await?.ok_or("no count")?.get::<i64>("n")? as f64
            }
        })
    }

    /// Lets a fault begin.
    pub async fn begin(&mut self, fault: Fault, squad: usize) -> Result<Held, Error> {
        let (link, workers) = (&self.links[squad], &mut self.squads[squad]);
        let which = self.rng.usize(..self.replicas);
        let mut grip = Grip::Nothing;
        match fault {
            WorkerKilled => {
                workers.busy(Duration::from_secs(1)).await;
                sleep(Duration::from_millis(self.rng.u64(..30))).await;
                workers.kill(which).await?;
            }
            WorkerKilledBeforeAck => {
                // Until a commit falls into it, but never as long as heartbeats may be missing.
                for _ in 0..10 {
                    link.broker.freeze(Direction::There, true);
                    let before = workers.metric("records_committed_total", &[]);
                    for _ in 0..100 {
                        if workers.metric("records_committed_total", &[]) > before {
                            break;
                        }
                        sleep(Duration::from_millis(10)).await;
                    }
                    // In this order: what is committed meanwhile must not count twice.
                    self.unheard = workers.metric("records_committed_total", &[]) - before;
                    self.unheard += if self.unheard > 0.0 { workers.metric("unacked_deliveries", &[]) } else { 0.0 };
                    if self.unheard > 0.0 {
                        break;
                    }
                    link.broker.freeze(Direction::There, false);
                }
                workers.kill(which).await?;
                // What it had said and was not heard must not be heard later.
                link.broker.cut();
                link.broker.freeze(Direction::There, false);
            }
            WorkerStopped => {
                workers.busy(Duration::from_secs(1)).await;
                workers.stop(which).await?;
            }
            WorkerFrozen => {
                workers.busy(Duration::from_secs(1)).await;
                workers.freeze(which, &self.stage)?;
            }
            BrokerCut => link.broker.cut(),
            BrokerReset => link.broker.reset(),
            BrokerFrozen => {
                [Direction::There, Direction::Back].map(|d| link.broker.freeze(d, true)).into_iter().collect()
            }
            BrokerSlow => link.broker.delay(Duration::from_millis(60)),
            DatabaseCut | DatabaseReset | BackendsTerminated => {
                // Until a write is hit: a connection that nobody uses at the moment is replaced without a word.
                let before = self.trace(fault, squad).await?;
                for _ in 0..40 {
                    match fault {
                        DatabaseCut => self.links[squad].database.cut(),
                        DatabaseReset => self.links[squad].database.reset(),
                        _ => self.terminate_backends().await?,
                    }
                    sleep(Duration::from_millis(25)).await;
                    if self.trace(fault, squad).await? > before {
                        break;
                    }
                }
            }
            DatabaseFrozen => {
                [Direction::There, Direction::Back].map(|d| link.database.freeze(d, true)).into_iter().collect()
            }
            DatabaseSlow => link.database.delay(Duration::from_millis(60)),
            BrokerKilled => services_script(&["kill", "rabbitmq"])?,
            BrokerRestarted => services_script(&["stop", "rabbitmq"])?,
            QueueDeleted => {
                let t = *self.rng.choice(&DataType::ALL).unwrap_or(&DataType::Releases);
                let queue = self.stage.topology(workers.name, t).queue;
                let channel = services().broker().await?.create_channel().await?;
                channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await?;
                self.lost.insert((squad, t));
                grip = Grip::Queue(t);
            }
            ConsumerTimeout => {
                consumer_timeout(1_000, 500)?;
                // A channel keeps what counted when it was made. The database must stand until the new one is consumed
                // from. None of this is certain while other faults go on.
                let reconnects = |run: &Run| run.squads[squad].metric("reconnects_total", &["peer=\"broker\""]);
                let (connected, seen) = (reconnects(self), self.trace(fault, squad).await?);
                self.links[squad].broker.cut();
                for _ in 0..100 {
                    if reconnects(self) > connected {
                        break;
                    }
                    sleep(Duration::from_millis(50)).await;
                }
                sleep(Duration::from_secs(1)).await;
                self.squads[squad].busy(Duration::from_secs(5)).await;
                self.links[squad].database.freeze(Direction::There, true);
                for _ in 0..100 {
                    if self.trace(fault, squad).await? > seen {
                        break;
                    }
                    sleep(Duration::from_millis(100)).await;
                }
            }
            MemoryAlarm => services_script(&["ctl", "set_vm_memory_high_watermark", "absolute", "1MB"])?,
            PostgresKilled => services_script(&["kill", "postgres"])?,
            PostgresRestarted => services_script(&["stop", "postgres"])?,
            OutOfConnections => {
                admin().await?.batch_execute(&format!("ALTER ROLE {} CONNECTION LIMIT 0", self.user)).await?;
                self.terminate_backends().await?;
            }
            ReadOnly => {
                let statement =
                    format!("ALTER DATABASE {} SET default_transaction_read_only = on", self.stage.database);
                admin().await?.batch_execute(&statement).await?;
                self.terminate_backends().await?;
            }
            DiskFull => {
                let mut statements = String::from(
                    "CREATE FUNCTION disk_full() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION \
                     'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$;",
                );
                for t in DataType::ALL {
                    statements += &format!(
                        "CREATE TRIGGER disk_full BEFORE INSERT OR UPDATE ON {t} FOR EACH ROW EXECUTE FUNCTION disk_full();"
                    );
                }
                self.stage.postgres().await?.batch_execute(&statements).await?;
            }
            TableLocked => {
                let client = self.stage.postgres().await?;
                client.batch_execute("BEGIN; LOCK TABLE releases, artists IN ACCESS EXCLUSIVE MODE").await?;
                grip = Grip::Lock(client);
            }
            RowsContended => {
                let (stop, ids) = (Arc::new(AtomicBool::new(false)), self.contended());
                let client = self.stage.postgres().await?;
                grip = Grip::Rival(Arc::clone(&stop), tokio::spawn(contend_rows(client, ids, stop)));
            }
            PostgresPassword => {
                admin().await?.batch_execute(&format!("ALTER ROLE {} PASSWORD 'another'", self.user)).await?;
                self.terminate_backends().await?;
            }
            Neo4jKilled => services_script(&["kill", "neo4j"])?,
            Neo4jRestarted => services_script(&["stop", "neo4j"])?,
            TransactionsTerminated => {
                // Until one is hit, and long enough for that: they last milliseconds.
                let (graph, before) = (services().neo4j()?, self.trace(fault, squad).await?);
                self.links[squad].database.delay(Duration::from_millis(30));
                for _ in 0..100 {
                    self.terminate_transactions(&graph).await?;
                    if self.trace(fault, squad).await? > before {
                        break;
                    }
                    sleep(Duration::from_millis(10)).await;
                }
                self.links[squad].database.delay(Duration::ZERO);
            }
            NodesLocked => {
                let txn = lock_nodes(&services().neo4j()?).await?;
                grip = Grip::Nodes(Box::new(txn));
            }
            NodesContended => {
                let (stop, ids) = (Arc::new(AtomicBool::new(false)), self.contended());
                let graph = services().neo4j()?;
                grip = Grip::Rival(Arc::clone(&stop), tokio::spawn(contend_nodes(graph, ids, stop)));
            }
            Neo4jPassword => {
                self.set_neo4j_password("another-password").await?;
                link.database.cut();
            }
        }
        self.injected += 1;
        Ok(Held { fault, squad, grip })
    }

    /// Ends it.
    pub async fn end(&mut self, held: Held) -> Result<(), Error> {
        let Held { fault, squad, grip } = held;
        let link = &self.links[squad];
        match fault {
            WorkerKilled | WorkerKilledBeforeAck | WorkerStopped => self.squads[squad].fill(&self.stage)?,
            WorkerFrozen => {
                // The broker misses its heartbeats after some seconds. While other faults go on, nobody may be able to take over.
                let taken_over = async || Ok(self.squads[squad].metric("consuming", &[]) == 4.0);
                let _ = within(TAKEOVER, "taken over", taken_over).await;
                self.squads[squad].wake()?;
            }
            BrokerFrozen => {
                [Direction::There, Direction::Back].map(|d| link.broker.freeze(d, false)).into_iter().collect()
            }
            DatabaseFrozen => {
                [Direction::There, Direction::Back].map(|d| link.database.freeze(d, false)).into_iter().collect()
            }
            BrokerSlow => link.broker.delay(Duration::ZERO),
            DatabaseSlow => link.database.delay(Duration::ZERO),
            BrokerKilled | BrokerRestarted => {
                services_script(&["start", "rabbitmq"])?;
                self.stage.reconnect().await?;
            }
            ConsumerTimeout => {
                consumer_timeout(1_800_000, 60_000)?;
                link.database.freeze(Direction::There, false);
                link.broker.cut();
            }
            MemoryAlarm => {
                sleep(Duration::from_millis(1500)).await;
                services_script(&["ctl", "set_vm_memory_high_watermark", "absolute", "2GB"])?;
            }
            PostgresKilled | PostgresRestarted => services_script(&["start", "postgres"])?,
            OutOfConnections => {
                admin().await?.batch_execute(&format!("ALTER ROLE {} CONNECTION LIMIT -1", self.user)).await?;
            }
            ReadOnly => {
                let statement = format!("ALTER DATABASE {} RESET default_transaction_read_only", self.stage.database);
                admin().await?.batch_execute(&statement).await?;
            }
            DiskFull => {
                self.stage.postgres().await?.batch_execute("DROP FUNCTION disk_full CASCADE").await?;
            }
            PostgresPassword => {
                let statement = format!("ALTER ROLE {} PASSWORD '{}'", self.user, super::PASSWORD);
                admin().await?.batch_execute(&statement).await?;
            }
            Neo4jKilled | Neo4jRestarted => services_script(&["start", "neo4j"])?,
            Neo4jPassword => self.set_neo4j_password(super::PASSWORD).await?,
            _ => {}
        }
        match grip {
            Grip::Nothing => {}
            Grip::Queue(t) => {
                let channel = services().broker().await?.create_channel().await?;
                common::amqp::declare(&channel, &self.stage.topology(self.squads[squad].name, t)).await?;
                self.publisher.again(t);
            }
            Grip::Lock(client) => client.batch_execute("ROLLBACK").await?,
            Grip::Nodes(txn) => txn.rollback().await?,
            Grip::Rival(stop, task) => {
                stop.store(true, Relaxed);
                task.await?;
            }
        }
        Ok(())
    }

    /// Releases, from the last to the first: the worker writes them the other way round.
    fn contended(&self) -> Vec<String> {
        self.plan.ids[&DataType::Releases].iter().rev().cloned().collect()
    }

    async fn terminate_backends(&self) -> Result<(), Error> {
        let statement = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = $1";
        admin().await?.query_one(statement, &[&self.user]).await?;
        Ok(())
    }

    async fn terminate_transactions(&self, graph: &Graph) -> Result<(), Error> {
        let theirs = "SHOW TRANSACTIONS YIELD transactionId AS id, username WHERE username = $user RETURN id";
        let mut rows = graph.execute(query(theirs).param("user", self.user.as_str())).await?;
        let mut ids: Vec<String> = Vec::new();
        while let Some(row) = rows.next().await? {
            ids.push(row.get("id")?);
        }
        if !ids.is_empty() {
            // Each is terminated when its row is fetched.
            let mut rows = graph.execute(query("TERMINATE TRANSACTIONS $ids").param("ids", ids)).await?;
            while rows.next().await?.is_some() {}
        }
        Ok(())
    }

    async fn set_neo4j_password(&self, password: &str) -> Result<(), Error> {
        let statement = format!("ALTER USER {} SET PASSWORD '{password}' CHANGE NOT REQUIRED", self.user);
        Ok(services().neo4j()?.run_on("system", query(&statement)).await?)
    }
}

/// Sets after how many milliseconds the broker wants its deliveries back, and how often it looks.
fn consumer_timeout(after: u32, look: u32) -> Result<(), Error> {
    let set = format!(
        "application:set_env(rabbit, consumer_timeout, {after}), application:set_env(rabbit, channel_tick_interval, {look})."
    );
    services_script(&["ctl", "eval", &set])
}

/// Takes nodes from everybody else. The worker has some of them already, so this may be a deadlock's victim itself.
async fn lock_nodes(graph: &Graph) -> Result<neo4rs::Txn, Error> {
    let mut attempt = 0;
    loop {
        let mut txn = graph.start_txn().await?;
        let locked = txn.run(query("MATCH (n:Artist|Genre) SET n._rival = 1")).await;
        attempt += 1;
        match locked {
            Ok(_) => return Ok(txn),
            Err(e) if attempt == 50 => return Err(e.into()),
            Err(_) => {
                // The server has rolled it back; there is nothing to add if it says so once more.
                let _ = txn.rollback().await;
                sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// Locks rows one after the other, in the order given, and gives them back, until it is told to stop. Patient, so that the
/// worker notices a deadlock first.
async fn contend_rows(client: tokio_postgres::Client, ids: Vec<String>, stop: Arc<AtomicBool>) {
    while !stop.load(Relaxed) {
        let turn = async {
            client.batch_execute("BEGIN; SET LOCAL deadlock_timeout = '60s'").await?;
            for id in &ids {
                client.execute("UPDATE releases SET updated_at = updated_at WHERE data_id = $1", &[id]).await?;
                if stop.load(Relaxed) {
                    break;
                }
            }
            client.batch_execute("ROLLBACK").await
        };
        if turn.await.is_err() {
            // A victim after all, or the server is away: others tell.
            let _ = client.batch_execute("ROLLBACK").await;
            sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Likewise with nodes, of which it changes what no worker looks at.
async fn contend_nodes(graph: Graph, ids: Vec<String>, stop: Arc<AtomicBool>) {
    while !stop.load(Relaxed) {
        let turn = async {
            let mut txn = graph.start_txn().await?;
            for ids in ids.chunks(5) {
                let statement = "UNWIND $ids AS id MATCH (n:Release {id: id}) SET n._rival = 1";
                txn.run(query(statement).param("ids", ids.to_vec())).await?;
                if stop.load(Relaxed) {
                    break;
                }
            }
            txn.rollback().await
        };
        if turn.await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    }
}
