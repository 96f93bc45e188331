//! How fast a worker drains a preloaded queue, what processor time that takes where, and how that compares with the limit that
//! broker and database set.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use common::amqp::declare;
use common::{DataType, Topology};
use lapin::options::{QueueDeleteOptions, QueuePurgeOptions};
use tokio::time::sleep;

use super::compare::WORKERS;
use super::{Options, Spread, cpu, directory, limit};
use crate::Error;
use crate::demo::{self, step};
use crate::feed;
use crate::process::Worker;
use crate::sample;
use crate::services::Services;

/// Prefix of the exchanges and queues.
const PREFIX: &str = "bench-drain";
/// Share of the records over which the rate is taken: the last ones may wait for the flush interval, for want of others to fill their batch.
const MEASURED: f64 = 0.75;
/// How often the worker is asked how far it is: its answer takes it half a millisecond, which is counted as its work.
pub const LOOK: Duration = Duration::from_millis(100);
/// Longest wait for a first delivery, and for another record to be committed.
const PATIENCE: Duration = Duration::from_secs(120);

/// How many records of a type a round takes, so that it lasts some seconds. Whole batches of any usual size: the last records of a queue
/// wait for the flush interval when they don't fill one, which says nothing about speed.
pub fn records(worker: &str, data_type: DataType) -> usize {
    match (worker, data_type) {
        ("tableinator", DataType::Releases) => 40_000,
        ("tableinator", DataType::Artists) => 100_000,
        ("tableinator", _) => 60_000,
        (_, DataType::Releases) => 15_000,
        _ => 30_000,
    }
}

/// Microseconds of processor time per record, and the worker's memory.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Cost {
    /// The worker's.
    pub worker: f64,
    /// The broker's.
    pub broker: f64,
    /// The database's.
    pub database: f64,
    /// Largest resident memory of the worker in MiB.
    pub memory: f64,
}

impl Cost {
    /// The median of each part.
    pub fn median(drained: &[Drained]) -> Cost {
        let median = |of: fn(&Cost) -> f64| Spread::of(drained.iter().map(|d| of(&d.cost)).collect()).median;
        Cost {
            worker: median(|c| c.worker),
            broker: median(|c| c.broker),
            database: median(|c| c.database),
            memory: median(|c| c.memory),
        }
    }
}

/// One drain.
#[derive(Clone, Copy, Debug, Default)]
pub struct Drained {
    /// Records a second, from the first delivery to the last commit.
    pub rate: f64,
    /// What it cost.
    pub cost: Cost,
}

impl Drained {
    /// That many records in that time, with the processor time before and after.
    pub fn of<'w>(
        records: f64,
        took: Duration,
        before: [f64; 3],
        after: [f64; 3],
        workers: impl IntoIterator<Item = &'w Worker>,
    ) -> Self {
        let cost = |i: usize| (after[i] - before[i]) * 1e6 / records;
        let memory = workers.into_iter().map(|worker| cpu::peak_mib(worker.pid())).fold(0.0, f64::max);
        Drained {
            rate: records / took.as_secs_f64(),
            cost: Cost { worker: cost(0), broker: cost(1), database: cost(2), memory },
        }
    }
}

/// A worker, a type, and a queue that can be filled again and again.
pub struct Bench<'a> {
    services: &'a Services,
    worker: &'static str,
    data_type: DataType,
    topology: Topology,
    channel: lapin::Channel,
    bodies: Vec<Vec<u8>>,
    servers: [u32; 2],
}

impl<'a> Bench<'a> {
    /// Generates the records.
    ///
    /// # Errors
    /// The broker's.
    pub async fn new(
        services: &'a Services,
        worker: &'static str,
        data_type: DataType,
        records: usize,
    ) -> Result<Self, Error> {
        Self::with(services, worker, data_type, sample::of_type(7, data_type, records)?).await
    }

    /// Takes these messages.
    ///
    /// # Errors
    /// The broker's.
    pub async fn with(
        services: &'a Services,
        worker: &'static str,
        data_type: DataType,
        bodies: Vec<Vec<u8>>,
    ) -> Result<Self, Error> {
        let channel = services.broker().await?.create_channel().await?;
        let topology = Topology::new(PREFIX, worker, data_type);
        declare(&channel, &topology).await?;
        let database = if worker == "tableinator" { "postgres" } else { "neo4j" };
        let servers = [cpu::service("rabbitmq")?, cpu::service(database)?];
        Ok(Bench { services, worker, data_type, topology, channel, bodies, servers })
    }

    /// Number of messages.
    pub fn count(&self) -> usize {
        self.bodies.len()
    }

    /// Takes everything out of the queue.
    ///
    /// # Errors
    /// The broker's.
    pub async fn purge(&self) -> Result<(), Error> {
        self.channel.queue_purge(self.topology.queue.as_str().into(), QueuePurgeOptions::default()).await?;
        Ok(())
    }

    /// Waits until broker and database have nothing more to do.
    pub async fn calm(&self) {
        for server in self.servers {
            cpu::calm(server).await;
        }
    }

    /// Adds every record to the queue.
    ///
    /// # Errors
    /// The broker's.
    pub async fn publish(&self) -> Result<(), Error> {
        let channel = self.services.broker().await?.create_channel().await?;
        feed::publish(&channel, &self.topology.data_exchange, &self.bodies).await?;
        Ok(())
    }

    /// Puts every record into the queue, and nothing else.
    ///
    /// # Errors
    /// The broker's.
    pub async fn fill(&self) -> Result<(), Error> {
        self.purge().await?;
        self.publish().await?;
        self.calm().await;
        Ok(())
    }

    /// Lets a worker drain the queue. Its metrics stay in a file that bears the name of this work.
    ///
    /// # Errors
    /// If it does not.
    pub async fn drain(&self, binary: &Path, settings: &[(String, String)], what: &str) -> Result<Drained, Error> {
        self.fill().await?;
        let env = environment(self.services, settings);
        let mut worker = Worker::start(binary, &env, &directory()?.join(format!("{}.log", self.worker)))?;
        let count = self.bodies.len() as f64;
        worker.until("at work", PATIENCE, |w| w.metric("records_received_total", &[]) > 0.0).await?;
        let (before, started, done) = (self.spent(&worker), Instant::now(), committed(&worker));
        let (mut rate, mut last) = (None, (done, started));
        loop {
            let now = committed(&worker);
            if now > last.0 {
                last = (now, Instant::now());
            }
            if rate.is_none() && now - done >= MEASURED * (count - done) {
                rate = Some((now - done) / started.elapsed().as_secs_f64());
            }
            if now >= count {
                break;
            }
            if last.1.elapsed() > PATIENCE {
                return Err(format!(
                    "{} drained {now} of {count} messages, and then none for a long time",
                    self.worker
                )
                .into());
            }
            sleep(LOOK).await;
        }
        let mut drained = Drained::of(count - done, started.elapsed(), before, self.spent(&worker), [&worker]);
        drained.rate = rate.unwrap_or(drained.rate);
        let (_, metrics) = worker.get("/metrics")?;
        std::fs::write(directory()?.join(format!("{}-{}-{what}.metrics", self.worker, self.data_type)), metrics)?;
        worker.stop().await?;
        Ok(drained)
    }

    /// Loads everything once and again without measuring it. Neo4j compiles what it runs often while it runs: a type's first round takes
    /// it several times as much processor time as any later one, and a load of hours has it only once.
    ///
    /// # Errors
    /// If it does not end.
    pub async fn warm_up(&self, binary: &Path, settings: &[(String, String)]) -> Result<(), Error> {
        demo::empty(self.services).await?;
        for _ in 0..2 {
            self.drain(binary, settings, "warm-up").await?;
        }
        Ok(())
    }

    /// Takes everything out of the queue and does nothing with it: what the broker alone costs, and how fast it is.
    ///
    /// # Errors
    /// The broker's.
    pub async fn consume(&self) -> Result<Drained, Error> {
        self.fill().await?;
        let channel = self.services.broker().await?.create_channel().await?;
        let count = self.bodies.len() as u64;
        let before = cpu::seconds(self.servers[0]);
        let took = feed::acknowledge(&channel, &self.topology.queue, count, 500).await?;
        let broker = (cpu::seconds(self.servers[0]) - before) * 1e6 / count as f64;
        Ok(Drained { rate: count as f64 / took.as_secs_f64(), cost: Cost { broker, ..Cost::default() } })
    }

    /// Seconds of processor time so far: the worker's, the broker's, the database's.
    pub fn spent(&self, worker: &Worker) -> [f64; 3] {
        [worker.pid(), self.servers[0], self.servers[1]].map(cpu::seconds)
    }
}

/// A measured worker's environment.
pub fn environment(services: &Services, settings: &[(String, String)]) -> BTreeMap<String, String> {
    let mut env = services.0.clone();
    env.insert("DISCOGS_EXCHANGE_PREFIX".to_owned(), PREFIX.to_owned());
    env.insert("LOG_LEVEL".to_owned(), "INFO".to_owned());
    env.extend(settings.iter().cloned());
    env
}

/// Records that a worker has committed.
pub fn committed(worker: &Worker) -> f64 {
    worker.metric("records_committed_total", &[])
}

/// Deletes every queue of both workers that a bench has left. The exchanges are fanouts: what one worker is measured with would go to the
/// queues of the other, too, and would be drained beside what that one is measured with later.
///
/// # Errors
/// The broker's.
pub async fn clear(services: &Services) -> Result<(), Error> {
    let channel = services.broker().await?.create_channel().await?;
    for worker in WORKERS {
        for data_type in DataType::ALL {
            let queue = Topology::new(PREFIX, worker, data_type).queue;
            channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await?;
        }
    }
    Ok(())
}

/// Measures a worker over all types: first load, then the same records again, and what broker and database would allow.
///
/// # Errors
/// Whatever went wrong.
pub async fn run(services: &Services, options: &Options, worker: &'static str) -> Result<Vec<Line>, Error> {
    step(&format!("{worker}: records/s; processor time per record in the worker, the broker and the database; memory"));
    clear(services).await?;
    let binary = demo::binary(worker)?;
    let mut lines = Vec::new();
    for data_type in options.types() {
        let bench = Bench::new(services, worker, data_type, options.scaled(records(worker, data_type))).await?;
        let (mut first, mut unchanged, mut consumed, mut least) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        if worker == "graphinator" {
            bench.warm_up(&binary, &options.settings).await?;
        }
        for _ in 0..options.rounds {
            consumed.push(bench.consume().await?);
            demo::empty(services).await?;
            least.push(limit::database(services, worker, bench.servers[1], data_type, &bench.bodies).await?);
            demo::empty(services).await?;
            first.push(bench.drain(&binary, &options.settings, "first").await?);
            unchanged.push(bench.drain(&binary, &options.settings, "unchanged").await?);
        }
        let broker = Spread::of(consumed.iter().map(|d| d.cost.broker).collect()).median;
        let limit = |i: usize| {
            let database = Spread::of(least.iter().map(|l| l[i]).collect()).median;
            println!(
                "   {:<9} {} at least{:>39.1} + {database:>6.1} µs",
                data_type.name(),
                ["first load", "unchanged "][i],
                broker
            );
            cores() * 1e6 / (broker + database)
        };
        let line = |what, drained: &[Drained], limit| Line::new(worker, data_type, what, drained, limit);
        let limits = [limit(0), limit(1)];
        for line in [
            line("only acked", &consumed, None),
            line("first load", &first, Some(limits[0])),
            line("unchanged", &unchanged, Some(limits[1])),
        ] {
            println!("   {line}");
            lines.push(line);
        }
    }
    Ok(lines)
}

/// Processors of this machine.
fn cores() -> f64 {
    std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64)
}

/// What was measured of one kind of work.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Line {
    /// The worker.
    pub worker: &'static str,
    /// The type's name.
    pub data_type: &'static str,
    /// Which work.
    pub what: &'static str,
    /// Records a second.
    pub rate: Spread,
    /// Medians.
    pub cost: Cost,
    /// Records a second that processor time allows if the worker took none: cores / (broker + database, each alone).
    pub limit: Option<f64>,
}

impl Line {
    fn new(
        worker: &'static str,
        data_type: DataType,
        what: &'static str,
        drained: &[Drained],
        limit: Option<f64>,
    ) -> Line {
        let cost = Cost::median(drained);
        let rate = Spread::of(drained.iter().map(|d| d.rate).collect());
        Line { worker, data_type: data_type.name(), what, rate, cost, limit }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cost { worker, broker, database, memory } = self.cost;
        let Line { data_type, what, rate, .. } = self;
        write!(
            f,
            "{data_type:<9} {what:<11}{rate}   {worker:>5.1} + {broker:>5.1} + {database:>6.1} µs   {memory:>4.0} MiB"
        )?;
        match self.limit {
            Some(limit) => write!(f, "   {:.2} of {limit:.0}/s", rate.median / limit),
            None => Ok(()),
        }
    }
}
