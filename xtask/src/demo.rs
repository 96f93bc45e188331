//! The README's first command: a dump, the extractor, both workers, and what came of it. Then the month after.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{DataType, Topology};
use extractor::generate::command::date;
use neo4rs::query;
use tokio::time::sleep;

use crate::Error;
use crate::process::Worker;
use crate::report;
use crate::services::{Services, build_binaries, root};

/// What to load.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Folder with real dumps to load instead of generated ones (discogs_20260401_artists.xml.gz and so on)
    #[arg(long, value_name = "DIR")]
    dumps: Option<PathBuf>,
    /// Dates of the dumps to load from that folder, one over the other [default: all that there are]
    #[arg(long, value_name = "DATE", requires = "dumps")]
    dump: Vec<String>,
    /// Records to generate over all four types
    #[arg(long, default_value_t = 50_000, conflicts_with = "dumps")]
    records: usize,
    /// Seed of the generated records
    #[arg(long, default_value_t = 1, conflicts_with = "dumps")]
    seed: u64,
    /// Months to generate, each derived from the one before
    #[arg(long, default_value_t = 2, conflicts_with = "dumps", value_parser = clap::value_parser!(u32).range(1..=12))]
    months: u32,
    /// Share of the records that change from month to month
    #[arg(long, default_value_t = 0.03, conflicts_with = "dumps")]
    changed: f64,
    /// Share of the records that vanish from month to month
    #[arg(long, default_value_t = 0.001, conflicts_with = "dumps")]
    removed: f64,
    /// Load over what earlier demos left, instead of starting empty
    #[arg(long)]
    keep: bool,
}

/// Runs the demo.
///
/// # Errors
/// Whatever went wrong, with the end of the log of the program that it was.
pub fn run(options: Options) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(demo(options))
}

async fn demo(options: Options) -> Result<(), Error> {
    step("Building extractor, tableinator and graphinator");
    build_binaries()?;
    step("Starting RabbitMQ, PostgreSQL and Neo4j (installing what is missing)");
    let services = Services::up()?;
    std::fs::create_dir_all(directory())?;
    let (dumps, dates) = match &options.dumps {
        Some(dumps) if options.dump.is_empty() => (dumps.clone(), dates_in(dumps)?),
        Some(dumps) => (dumps.clone(), options.dump.clone()),
        None => generate(&options)?,
    };
    if !options.keep {
        step("Emptying tables and graph of earlier demos");
        empty(&services).await?;
    }

    step("Starting tableinator and graphinator");
    let mut tables = worker(&services, "tableinator")?;
    let mut graph = worker(&services, "graphinator")?;
    for (name, worker) in [("tableinator", &mut tables), ("graphinator", &mut graph)] {
        worker.ready().await?;
        let port = worker.port().unwrap_or_default();
        println!("   {name}: http://127.0.0.1:{port}/metrics  http://127.0.0.1:{port}/health");
    }
    // What an earlier demo noted as published is published again.
    let state = directory().join("state");
    if state.exists() {
        std::fs::remove_dir_all(&state)?;
    }
    let mut loads = Vec::new();
    for (i, date) in dates.iter().enumerate() {
        let over = if i == 0 { String::new() } else { format!(" over {}", dates[i - 1]) };
        step(&format!("Loading {date}{over}"));
        loads.push(load(&services, &dumps, date, &state, &mut tables, &mut graph).await?);
    }

    report::contents(&services).await?;
    report::queries(&services).await?;
    report::loads(&loads);
    step("Stopping both workers");
    for (name, worker) in [("tableinator", tables), ("graphinator", graph)] {
        println!("   {name}: {}", worker.stop().await?);
    }
    report::where_to_look(&services, &directory());
    Ok(())
}

/// Prints what is done next.
pub fn step(what: &str) {
    println!("\n▶ {what}");
}

/// Where dumps, state and logs are.
fn directory() -> PathBuf {
    root().join("target/demo")
}

fn worker(services: &Services, name: &str) -> Result<Worker, Error> {
    let mut env: BTreeMap<String, String> = services.0.clone();
    env.insert("LOG_LEVEL".to_owned(), "INFO".to_owned());
    Worker::start(&binary(name)?, &env, &directory().join(format!("{name}.log")))
}

/// Path of one of the project's binaries, built with this one.
///
/// # Errors
/// If this one's path is unknown.
pub fn binary(name: &str) -> Result<PathBuf, Error> {
    Ok(std::env::current_exe()?.with_file_name(name))
}

fn generate(options: &Options) -> Result<(PathBuf, Vec<String>), Error> {
    let dumps = directory().join("dumps");
    if dumps.exists() {
        std::fs::remove_dir_all(&dumps)?;
    }
    let mut dates = Vec::new();
    for month in 1..=options.months {
        let derived = if month == 1 {
            String::new()
        } else {
            format!(": {} % changed, {} % vanished, 1 % new", options.changed * 100.0, options.removed * 100.0)
        };
        step(&format!("Generating month {month} with seed {}{derived}", options.seed));
        let mut command = Command::new(binary("extractor")?);
        command.arg("generate").arg("--out").arg(&dumps);
        for (name, value) in [
            ("--records", options.records.to_string()),
            ("--seed", options.seed.to_string()),
            ("--month", month.to_string()),
            ("--changed", options.changed.to_string()),
            ("--removed", options.removed.to_string()),
        ] {
            command.args([name, &value]);
        }
        let status = command.status()?;
        if !status.success() {
            return Err(format!("extractor generate: {status}").into());
        }
        dates.push(date(month));
    }
    Ok((dumps, dates))
}

/// The dates in the names of a folder's dumps, ascending.
fn dates_in(folder: &Path) -> Result<Vec<String>, Error> {
    let mut dates = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let date = name.strip_prefix("discogs_").and_then(|rest| rest.get(..8));
        if let Some(date) = date.filter(|_| name.contains(".xml")) {
            dates.push(date.to_owned());
        }
    }
    dates.sort();
    dates.dedup();
    if dates.is_empty() { Err(format!("{}: no dumps in it", folder.display()).into()) } else { Ok(dates) }
}

/// Drops what earlier runs left in tables, graph and queues.
///
/// # Errors
/// The servers' own.
pub async fn empty(services: &Services) -> Result<(), Error> {
    let postgres = services.postgres(services.get("POSTGRES_DATABASE")).await?;
    let mut tables: Vec<&str> = DataType::ALL.iter().map(|t| t.name()).collect();
    tables.extend(["ingest_purges", "ingest_dead_letters"]);
    for table in tables {
        postgres.batch_execute(&format!("DROP TABLE IF EXISTS {table}")).await?;
    }
    let channel = services.broker().await?.create_channel().await?;
    for worker in ["tableinator", "graphinator"] {
        for t in DataType::ALL {
            let queue = Topology::new(PREFIX, worker, t).queue;
            channel.queue_delete(queue.as_str().into(), lapin::options::QueueDeleteOptions::default()).await?;
        }
    }
    let all = "MATCH (n) CALL (n) { DETACH DELETE n } IN TRANSACTIONS OF 5000 ROWS";
    Ok(services.neo4j()?.run(query(all)).await?)
}

/// Default of `DISCOGS_EXCHANGE_PREFIX`.
const PREFIX: &str = "discogsography-discogs";

/// What loading one dump came to.
#[derive(Clone, Debug)]
pub struct Load {
    /// The dump's date.
    pub date: String,
    /// Messages of records that were published.
    pub records: f64,
    /// Seconds from the extractor's start until it had published everything.
    pub published: f64,
    /// For tableinator and graphinator.
    pub workers: [WorkerLoad; 2],
}

/// What one worker did with a dump.
#[derive(Clone, Copy, Debug, Default)]
pub struct WorkerLoad {
    /// Seconds from the extractor's start until everything was settled.
    pub seconds: f64,
    /// Records by outcome, as its metrics tell: inserted, updated, unchanged, deduplicated.
    pub outcomes: [f64; 4],
    /// Records that went to a dead-letter queue.
    pub dead_lettered: f64,
}

/// Values of the label `outcome` of the workers' metric, in the order of [`WorkerLoad::outcomes`].
pub const OUTCOMES: [&str; 4] = ["inserted", "updated", "unchanged", "deduplicated"];

impl WorkerLoad {
    fn so_far(worker: &Worker) -> Self {
        let committed = |outcome| worker.metric("records_committed_total", &[&format!("outcome=\"{outcome}\"")]);
        WorkerLoad {
            seconds: 0.0,
            outcomes: OUTCOMES.map(committed),
            dead_lettered: worker.metric("records_dead_lettered_total", &[]),
        }
    }

    /// Records that it settled.
    pub fn total(&self) -> f64 {
        self.outcomes.iter().sum::<f64>() + self.dead_lettered
    }

    fn since(self, before: Self, seconds: f64) -> Self {
        let mut outcomes = self.outcomes;
        outcomes.iter_mut().zip(before.outcomes).for_each(|(now, then)| *now -= then);
        WorkerLoad { seconds, outcomes, dead_lettered: self.dead_lettered - before.dead_lettered }
    }
}

/// Runs the extractor on one dump, and shows progress until both workers have settled everything.
async fn load(
    services: &Services,
    dumps: &Path,
    date: &str,
    state: &Path,
    tables: &mut Worker,
    graph: &mut Worker,
) -> Result<Load, Error> {
    let started = Instant::now();
    let before = [WorkerLoad::so_far(tables), WorkerLoad::so_far(graph)];
    let mut extractor = tokio::process::Command::new(binary("extractor")?)
        .args(["run", "--progress", "plain", "--dump", date, "--state"])
        .arg(state)
        .arg(dumps)
        .env_clear()
        .envs(&services.0)
        .env("HEALTH_PORT", "0")
        .kill_on_drop(true)
        .spawn()?;
    let (mut published, mut ended) = (None, [None, None]);
    let mut shown = Instant::now();
    loop {
        let now = [WorkerLoad::so_far(tables), WorkerLoad::so_far(graph)];
        let seconds = started.elapsed().as_secs_f64();
        if published.is_none()
            && let Some(status) = extractor.try_wait()?
        {
            // 1 means that records were rejected; the extractor said which.
            if !matches!(status.code(), Some(0 | 1)) {
                return Err(format!("extractor run: {status}").into());
            }
            published = Some((published_of(state, date)?, seconds));
        }
        let done = [0, 1].map(|i| now[i].total() - before[i].total());
        if let Some((records, published)) = published {
            for i in [0, 1] {
                if ended[i].is_none() && done[i] >= records {
                    ended[i] = Some(now[i].since(before[i], seconds));
                }
            }
            if let [Some(tables), Some(graph)] = ended {
                println!("   Waiting for the purge and the post-import maintenance");
                maintained(services, state, date).await?;
                return Ok(Load { date: date.to_owned(), records, published, workers: [tables, graph] });
            }
        }
        if shown.elapsed() > Duration::from_secs(2) {
            shown = Instant::now();
            let of = published.map_or(String::new(), |(records, _)| format!(" of {records}"));
            println!("   {seconds:>5.0} s   tables {:>8}{of}   graph {:>8}{of}", done[0], done[1]);
        }
        for worker in [&mut *tables, &mut *graph] {
            worker.until("alive", Duration::from_secs(1), |_| true).await?;
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// The extractor's state of a version.
fn state_of(state: &Path, date: &str) -> Result<serde_json::Value, Error> {
    let text = std::fs::read(state.join("state.json"))?;
    Ok(serde_json::from_slice::<serde_json::Value>(&text)?["versions"][date].take())
}

fn published_of(state: &Path, date: &str) -> Result<f64, Error> {
    let version = state_of(state, date)?;
    let files = version["files"].as_object().ok_or("the extractor left no state")?;
    Ok(files.values().filter_map(|file| file["mark"]["published"].as_f64()).sum())
}

/// Waits until the purges and the maintenance of this run are done. Without all four types there are none.
async fn maintained(services: &Services, state: &Path, version: &str) -> Result<(), Error> {
    let known = state_of(state, version)?;
    let (Some(started_at), Some(_)) = (known["started_at"].as_str(), known["announced_at"].as_str()) else {
        println!("   {version} is not complete: no purge, no maintenance");
        return Ok(());
    };
    let postgres = services.postgres(services.get("POSTGRES_DATABASE")).await?;
    let graph = services.neo4j()?;
    let purged =
        "SELECT count(*) FROM ingest_purges WHERE version = $1 AND started_at = $2 AND finished_at IS NOT NULL";
    let done = "MATCH (r:IngestRun {version: $version}) WHERE r.started = $started AND r.requested > 0 \
                RETURN r.completed >= r.requested AS done";
    let started = chrono::DateTime::parse_from_rfc3339(started_at)?.timestamp_micros();
    let deadline = Instant::now() + Duration::from_secs(600);
    while Instant::now() < deadline {
        let purges: i64 = postgres.query_one(purged, &[&version, &started_at]).await?.get(0);
        let statement = query(done).param("version", version).param("started", started);
        let row = graph.execute(statement).await?.next().await?;
        if purges == 4 && row.is_some_and(|row| row.get::<bool>("done").unwrap_or(false)) {
            return Ok(());
        }
        sleep(Duration::from_millis(300)).await;
    }
    Err("purge or maintenance did not end within ten minutes; see the logs".into())
}
