//! Curves: how rate and processor time per record follow the batch size, the prefetch, the size of the records, the number of
//! records that the database has, and the number of replicas.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use common::DataType;
use neo4rs::query;
use sha2::{Digest, Sha256};
use tokio::time::sleep;

use super::drain::{Bench, Cost, Drained, LOOK, clear, committed, environment, records};
use super::{Options, Spread, compare, directory, plot};
use crate::Error;
use crate::demo::{self, step};
use crate::process::Worker;
use crate::services::Services;

/// Records of a batch.
const BATCH_SIZES: [usize; 8] = [1, 10, 50, 200, 500, 1000, 2000, 5000];
/// The adaptive mode is measured beside the sizes from this one on, with so many times as many records: it has to find its size first.
const ADAPTIVE_FROM: usize = 500;
const ADAPTIVE_TIMES: usize = 4;
/// Batch size of the sweep over prefetches, and these: two batches being written and one that fills, and more.
const SMALL_BATCH: usize = 100;
const PREFETCHES: [usize; 5] = [300, 600, 1500, 5000, 20_000];
/// Bytes of a message.
const RECORD_SIZES: [usize; 6] = [300, 1000, 3000, 10_000, 30_000, 100_000];
/// Bytes of all messages of one size.
const RECORD_BYTES: usize = 40_000_000;
/// Records that the table or the graph has before.
const ROWS: [usize; 3] = [0, 1_000_000, 5_000_000];
const NODES: [usize; 3] = [0, 200_000, 1_000_000];
/// Replicas of a worker.
const REPLICAS: [usize; 3] = [1, 2, 4];
/// Longest wait for replicas to share the queues, and for them to drain these.
const PATIENCE: Duration = Duration::from_secs(180);

/// What is varied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Curve {
    /// Records per batch, and the adaptive mode against the best of them
    BatchSize,
    /// Messages that a worker may hold
    Prefetch,
    /// Bytes of a message
    RecordSize,
    /// Records that table or graph have before
    Stock,
    /// Workers of a kind
    Replicas,
}

/// One place on a curve.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Point {
    /// What was varied.
    pub x: f64,
    /// Records a second.
    pub rate: Spread,
    /// Medians.
    pub cost: Cost,
}

impl Point {
    fn of(x: f64, rounds: &[Drained]) -> Self {
        Point { x, rate: Spread::of(rounds.iter().map(|d| d.rate).collect()), cost: Cost::median(rounds) }
    }
}

/// A curve of one worker.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Chart {
    /// The worker.
    pub worker: &'static str,
    /// What it is called, also as a file.
    pub name: &'static str,
    /// What is varied.
    pub x: &'static str,
    /// What was done.
    pub work: &'static str,
    /// Ascending by x.
    pub points: Vec<Point>,
}

impl Chart {
    fn print(&self) {
        println!(
            "   {} ({}), {}: records/s; worker + broker + database, µs per record; worker's memory",
            self.name, self.work, self.x
        );
        for Point { x, rate, cost } in &self.points {
            let Cost { worker, broker, database, memory } = cost;
            println!("   {x:>9}{rate:<32}   {worker:>6.1} + {broker:>5.1} + {database:>6.1}   {memory:>4.0} MiB");
        }
    }
}

/// Measures all curves, prints them, and writes `curves.json` and a plot of each.
///
/// # Errors
/// Whatever went wrong.
pub async fn run(services: &Services, options: &Options) -> Result<(), Error> {
    let mut charts = Vec::new();
    for worker in compare::WORKERS.into_iter().filter(|worker| options.measures(worker)) {
        step(&format!("curves of the {worker}"));
        clear(services).await?;
        let sweep = Sweep { services, options, worker, binary: demo::binary(worker)? };
        if !sweep.tables() {
            let bench = Bench::new(services, worker, DataType::Releases, records(worker, DataType::Releases)).await?;
            bench.warm_up(&sweep.binary, &options.settings).await?;
        }
        let wanted = |curve: &&Curve| options.curves.is_empty() || options.curves.contains(curve);
        for curve in Curve::value_variants().iter().filter(wanted) {
            let taken = match curve {
                Curve::BatchSize => vec![sweep.batch_sizes().await?],
                Curve::Prefetch => vec![sweep.prefetches().await?],
                Curve::RecordSize => vec![sweep.record_sizes().await?],
                Curve::Stock => sweep.stocks().await?,
                Curve::Replicas => vec![sweep.replicas().await?],
            };
            for chart in &taken {
                chart.print();
                plot::draw(chart, &directory()?.join(format!("{worker}-{}.svg", chart.name)))?;
            }
            charts.extend(taken);
        }
    }
    demo::empty(services).await?;
    let path = directory()?.join("curves.json");
    std::fs::write(&path, serde_json::to_vec_pretty(&charts)?)?;
    println!("\nThe curves are in {}, a plot of each beside it", path.display());
    Ok(())
}

/// One worker, and what it is measured with.
struct Sweep<'a> {
    services: &'a Services,
    options: &'a Options,
    worker: &'static str,
    binary: PathBuf,
}

impl<'a> Sweep<'a> {
    fn tables(&self) -> bool {
        self.worker == "tableinator"
    }

    /// Whole batches, so that none waits for its flush.
    fn count(&self, data_type: DataType, batch: usize) -> usize {
        let most = self.options.scaled(records(self.worker, data_type)).min((batch * 300).max(1000));
        most.div_ceil(batch) * batch
    }

    fn database(&self) -> &'static str {
        if self.tables() { "POSTGRES" } else { "NEO4J" }
    }

    fn settings(&self, batch: usize, prefetch: Option<usize>) -> Vec<(String, String)> {
        let database = self.database();
        let mut settings = self.options.settings.clone();
        settings.push((format!("{database}_BATCH_SIZE"), batch.to_string()));
        settings.extend(prefetch.map(|prefetch| ("RABBITMQ_PREFETCH".to_owned(), prefetch.to_string())));
        settings
    }

    fn chart(&self, name: &'static str, x: &'static str, work: &'static str, points: Vec<Point>) -> Chart {
        Chart { worker: self.worker, name, x, work, points }
    }

    /// First loads into an empty database.
    async fn first_loads(&self, bench: &Bench<'a>, settings: &[(String, String)], x: usize) -> Result<Point, Error> {
        let mut drained = Vec::new();
        for _ in 0..self.options.rounds {
            demo::empty(self.services).await?;
            drained.push(bench.drain(&self.binary, settings, "curve").await?);
        }
        Ok(Point::of(x as f64, &drained))
    }

    /// Fixed sizes, and the adaptive mode in its turn among them: it may go up to the largest of these.
    async fn batch_sizes(&self) -> Result<Chart, Error> {
        let (mut points, mut adaptive) = (Vec::new(), Vec::new());
        let largest = BATCH_SIZES.into_iter().max().unwrap_or_default();
        let mut settings = self.settings(largest, None);
        settings.push((format!("{}_BATCH_MODE", self.database()), "adaptive".to_owned()));
        for size in BATCH_SIZES {
            let count = self.count(DataType::Releases, size);
            let bench = Bench::new(self.services, self.worker, DataType::Releases, count).await?;
            points.push(self.first_loads(&bench, &self.settings(size, None), size).await?);
            if size >= ADAPTIVE_FROM {
                let bench = Bench::new(self.services, self.worker, DataType::Releases, count * ADAPTIVE_TIMES).await?;
                adaptive.push(self.first_loads(&bench, &settings, size).await?.rate.median);
            }
        }
        let best = Spread::of(points.iter().map(|point| point.rate.median).collect()).highest;
        let adaptive = Spread::of(adaptive);
        println!("   adaptive  {adaptive:<32}   {:.2} of the best fixed size", adaptive.median / best);
        Ok(self.chart("batch-size", "records per batch", "releases, first load", points))
    }

    async fn prefetches(&self) -> Result<Chart, Error> {
        let count = self.count(DataType::Releases, SMALL_BATCH);
        let bench = Bench::new(self.services, self.worker, DataType::Releases, count).await?;
        let mut points = Vec::new();
        for prefetch in PREFETCHES {
            points.push(self.first_loads(&bench, &self.settings(SMALL_BATCH, Some(prefetch)), prefetch).await?);
        }
        Ok(self.chart("prefetch", "prefetch", "releases in batches of 100, first load", points))
    }

    async fn record_sizes(&self) -> Result<Chart, Error> {
        let mut points = Vec::new();
        for size in RECORD_SIZES {
            let count = (self.options.scaled(RECORD_BYTES) / size).clamp(1000, 30_000) / 500 * 500;
            let bodies = (0..count).map(|i| body(i, size)).collect();
            let bench = Bench::with(self.services, self.worker, DataType::Artists, bodies).await?;
            points.push(self.first_loads(&bench, &self.settings(500, None), size).await?);
        }
        Ok(self.chart("record-size", "bytes per message", "artists with a long profile, first load", points))
    }

    /// New records, and the same ones again, beside more and more others; in the tables also marked in their rows, for comparison.
    async fn stocks(&self) -> Result<Vec<Chart>, Error> {
        let count = records(self.worker, DataType::Artists);
        let bench = Bench::new(self.services, self.worker, DataType::Artists, count).await?;
        let (mut first, mut unchanged, mut touched) = (Vec::new(), Vec::new(), Vec::new());
        let touch =
            [self.options.settings.clone(), vec![("POSTGRES_UNCHANGED".to_owned(), "touch".to_owned())]].concat();
        let mut stock = 0;
        demo::empty(self.services).await?;
        for size in if self.tables() { ROWS } else { NODES }.map(|size| self.options.scaled(size)) {
            if size > 1 {
                self.stock(stock, size).await?;
                stock = size;
            }
            let (mut news, mut olds, mut touches) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..self.options.rounds {
                news.push(bench.drain(&self.binary, &self.options.settings, "curve").await?);
                olds.push(bench.drain(&self.binary, &self.options.settings, "curve").await?);
                if self.tables() {
                    touches.push(bench.drain(&self.binary, &touch, "curve").await?);
                }
                self.remove_measured().await?;
            }
            let x = (stock + count) as f64;
            first.push(Point::of(x, &news));
            unchanged.push(Point::of(x, &olds));
            touched.push(Point::of(x, &touches));
        }
        let x = if self.tables() { "rows in the table" } else { "artists in the graph" };
        let mut charts = vec![
            self.chart("stock-first", x, "artists, first load", first),
            self.chart("stock-unchanged", x, "artists, unchanged", unchanged),
        ];
        if self.tables() {
            charts.push(self.chart("stock-touched", x, "artists, unchanged, with POSTGRES_UNCHANGED=touch", touched));
        }
        Ok(charts)
    }

    /// Adds artists with ids of ten digits, longer than any other, from the `from`th to the `to`th.
    async fn stock(&self, from: usize, to: usize) -> Result<(), Error> {
        const AT_A_TIME: usize = 20_000;
        if self.tables() {
            let client = self.services.postgres(self.services.get("POSTGRES_DATABASE")).await?;
            let insert = "INSERT INTO artists (data_id, hash, data) \
                SELECT id, hash || hash, jsonb_build_object('id', id, 'name', 'Artist ' || i, 'profile', repeat(hash, 8)) \
                FROM generate_series($1::int8, $2::int8) AS i, LATERAL (SELECT (9000000000 + i)::text AS id, md5(i::text) AS hash) AS k";
            for begin in (from..to).step_by(10 * AT_A_TIME) {
                let end = (begin + 10 * AT_A_TIME).min(to);
                client.execute(insert, &[&(begin as i64), &(end as i64 - 1)]).await?;
            }
            // A statement for each: together they would be a transaction, which VACUUM refuses.
            client.batch_execute("VACUUM ANALYZE artists").await?;
            return Ok(client.batch_execute("CHECKPOINT").await?);
        }
        let graph = self.services.neo4j()?;
        let create = "UNWIND range($begin, $end) AS i WITH toString(9000000000 + i) AS id \
            CREATE (:Artist {id: id, sha256: id + id, name: 'Artist ' + id})";
        for begin in (from..to).step_by(AT_A_TIME) {
            let end = (begin + AT_A_TIME).min(to) as i64 - 1;
            graph.run(query(create).param("begin", begin as i64).param("end", end)).await?;
        }
        Ok(())
    }

    /// Removes what was measured with, and leaves the stock.
    async fn remove_measured(&self) -> Result<(), Error> {
        if self.tables() {
            let client = self.services.postgres(self.services.get("POSTGRES_DATABASE")).await?;
            client.batch_execute("DELETE FROM artists WHERE length(data_id) < 10; DELETE FROM ingest_seen").await?;
            return Ok(client.batch_execute("VACUUM ANALYZE artists").await?);
        }
        let graph = self.services.neo4j()?;
        for measured in ["(n:Artist) WHERE size(n.id) < 10", "(n) WHERE NOT n:Artist"] {
            let remove = format!("MATCH {measured} CALL (n) {{ DETACH DELETE n }} IN TRANSACTIONS OF 5000 ROWS");
            graph.run(query(&remove)).await?;
        }
        Ok(())
    }

    /// All four queues at once, drained by several replicas that share them.
    async fn replicas(&self) -> Result<Chart, Error> {
        let mut queues = Vec::new();
        for data_type in DataType::ALL {
            let count = self.count(data_type, 500);
            queues.push(Bench::new(self.services, self.worker, data_type, count).await?);
        }
        let mut points = Vec::new();
        for replicas in REPLICAS {
            let mut drained = Vec::new();
            for _ in 0..self.options.rounds {
                demo::empty(self.services).await?;
                drained.push(self.together(&queues, replicas).await?);
            }
            points.push(Point::of(replicas as f64, &drained));
        }
        Ok(self.chart("replicas", "replicas", "all four types at once, first load", points))
    }

    /// The replicas share the queues first, and stand still while these are filled.
    async fn together(&self, queues: &[Bench<'a>], replicas: usize) -> Result<Drained, Error> {
        let mut settings = vec![("RABBITMQ_HEARTBEAT".to_owned(), "60".to_owned())];
        settings.extend(self.options.settings.iter().cloned());
        let env = environment(self.services, &settings);
        for queue in queues {
            queue.purge().await?;
        }
        let mut workers = Vec::new();
        for replica in 0..replicas {
            let log = directory()?.join(format!("{}-{replica}.log", self.worker));
            workers.push(Worker::start(&self.binary, &env, &log)?);
        }
        let most = queues.len().div_ceil(replicas) as f64;
        let started = Instant::now();
        let shares = |workers: &[Worker]| workers.iter().map(|w| w.metric("consuming", &[])).collect::<Vec<_>>();
        loop {
            let shares = shares(&workers);
            if shares.iter().sum::<f64>() == queues.len() as f64 && shares.iter().all(|share| *share <= most) {
                break;
            }
            if started.elapsed() > PATIENCE {
                return Err(format!("the replicas of the {} do not share the queues: {shares:?}", self.worker).into());
            }
            sleep(Duration::from_millis(200)).await;
        }
        // No hand-over is under way any more.
        sleep(Duration::from_secs(2)).await;
        for worker in &workers {
            worker.signal("STOP")?;
        }
        for queue in queues {
            queue.publish().await?;
        }
        queues[0].calm().await;
        let count: usize = queues.iter().map(Bench::count).sum();
        let spent =
            || workers.iter().map(|w| queues[0].spent(w)).reduce(|a, b| [a[0] + b[0], a[1], a[2]]).unwrap_or_default();
        let (before, started) = (spent(), Instant::now());
        for worker in &workers {
            worker.signal("CONT")?;
        }
        while workers.iter().map(committed).sum::<f64>() < count as f64 {
            if started.elapsed() > PATIENCE {
                return Err(format!("the replicas of the {} did not drain the queues", self.worker).into());
            }
            sleep(LOOK).await;
        }
        let drained = Drained::of(count as f64, started.elapsed(), before, spent(), &workers);
        for worker in workers {
            worker.stop().await?;
        }
        Ok(drained)
    }
}

/// An artist's message of about that size; half of the profile's words recur.
fn body(i: usize, size: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(i as u64);
    let id = (1_000_000 + i).to_string();
    let mut profile = String::with_capacity(size);
    while profile.len() + 180 < size {
        let word: u32 = if random.bool() { random.u32(..2000) } else { random.u32(..) };
        profile.push_str(&format!("{word:x} "));
    }
    let hash: String = Sha256::digest(&profile).iter().map(|byte| format!("{byte:02x}")).collect();
    let record = serde_json::json!({"id": id, "name": format!("Artist {id}"), "profile": profile, "sha256": hash});
    record.to_string().into_bytes()
}
