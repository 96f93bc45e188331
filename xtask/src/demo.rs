//! The README's first command: services, sample, both workers, and what came of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::{DataType, Topology};
use neo4rs::query;
use tokio::time::sleep;

use crate::process::Worker;
use crate::sample::{self, Sample, Spec};
use crate::services::{Services, build_workers, root};
use crate::{Error, feed};

/// What to feed.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Records to generate over all four types
    #[arg(long, default_value_t = 20_000)]
    records: usize,
    /// Seed of the generated records
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Folder with real message bodies to feed instead, one per line: {artists,labels,masters,releases}.MONTH.jsonl[.gz]
    #[arg(long, requires = "month")]
    messages: Option<PathBuf>,
    /// Load over what earlier demos left, instead of starting empty
    #[arg(long)]
    keep: bool,
    /// MONTH in the names of those files
    #[arg(long)]
    month: Option<String>,
}

/// Date of the generated dump.
const VERSION: &str = "20260101";

/// Runs the demo.
///
/// # Errors
/// Whatever went wrong, with the end of the worker's log if it was a worker.
pub fn run(options: Options) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(demo(options))
}

async fn demo(options: Options) -> Result<(), Error> {
    step("Building both workers");
    build_workers()?;
    step("Starting RabbitMQ, PostgreSQL and Neo4j (installing what is missing)");
    let services = Services::up()?;
    let sample = match (&options.messages, &options.month) {
        (Some(dir), Some(month)) => {
            step(&format!("Reading {month} from {}", dir.display()));
            read(dir, month)?
        }
        _ => {
            step(&format!("Generating {} records with seed {}", options.records, options.seed));
            sample::generate(&Spec { seed: options.seed, records: options.records })
        }
    };
    if !options.keep {
        step("Emptying tables and graph of earlier demos");
        empty(&services).await?;
    }
    let version = options.month.as_deref().unwrap_or(VERSION);
    let started_at = chrono::Utc::now().to_rfc3339();

    step("Starting tableinator and graphinator");
    let mut tables = worker(&services, "tableinator")?;
    let mut graph = worker(&services, "graphinator")?;
    tables.ready().await?;
    graph.ready().await?;
    println!(
        "   tableinator: http://127.0.0.1:{0}/metrics  http://127.0.0.1:{0}/health",
        tables.port().unwrap_or_default()
    );
    println!(
        "   graphinator: http://127.0.0.1:{0}/metrics  http://127.0.0.1:{0}/health",
        graph.port().unwrap_or_default()
    );

    step("Publishing the messages");
    let started = Instant::now();
    let count = publish(&services, &sample, version, &started_at).await?;
    println!("   {count} records in {:.1} s", started.elapsed().as_secs_f64());
    let rates = watch(&mut tables, &mut graph, count, started).await?;
    step("Waiting for the post-import maintenance");
    maintained(&services, version, &started_at).await?;

    show(&services).await?;
    step("Rates (records/s, from the first message published to the last record committed)");
    println!("   tableinator {:>7.0}\n   graphinator {:>7.0}", rates.0, rates.1);
    step("Stopping both workers");
    for (name, worker) in [("tableinator", tables), ("graphinator", graph)] {
        println!("   {name}: {}", worker.stop().await?);
    }
    step("Where to look");
    println!(
        "   psql: postgres://{u}:{p}@127.0.0.1:{port}/{db}",
        u = services.get("POSTGRES_USERNAME"),
        p = services.get("POSTGRES_PASSWORD"),
        port = services.get("POSTGRES_PORT"),
        db = services.get("POSTGRES_DATABASE")
    );
    println!(
        "   Neo4j: bolt://127.0.0.1:{} as {}/{}",
        services.get("NEO4J_PORT"),
        services.get("NEO4J_USERNAME"),
        services.get("NEO4J_PASSWORD")
    );
    println!(
        "   RabbitMQ: http://127.0.0.1:{} as {}/{}",
        services.get("RABBITMQ_MANAGEMENT_PORT"),
        services.get("RABBITMQ_USERNAME"),
        services.get("RABBITMQ_PASSWORD")
    );
    println!("   Logs: {}", log_dir().display());
    println!("   The services keep running; `cargo xtask down` stops them.");
    Ok(())
}

async fn empty(services: &Services) -> Result<(), Error> {
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

fn step(what: &str) {
    println!("\n▶ {what}");
}

fn log_dir() -> PathBuf {
    root().join("target/demo")
}

fn worker(services: &Services, name: &str) -> Result<Worker, Error> {
    std::fs::create_dir_all(log_dir())?;
    let binary = std::env::current_exe()?.with_file_name(name);
    let mut env: BTreeMap<String, String> = services.0.clone();
    env.insert("LOG_LEVEL".to_owned(), "INFO".to_owned());
    Worker::start(&binary, &env, &log_dir().join(format!("{name}.log")))
}

/// Message bodies of one month from files, one a line.
fn read(dir: &std::path::Path, month: &str) -> Result<Sample, Error> {
    let lines = |t: &str| -> Result<Vec<Vec<u8>>, Error> {
        let plain = dir.join(format!("{t}.{month}.jsonl"));
        let bytes = if plain.exists() {
            std::fs::read(&plain)?
        } else {
            let path = dir.join(format!("{t}.{month}.jsonl.gz"));
            let file = std::fs::File::open(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(file), &mut bytes)?;
            bytes
        };
        Ok(bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(<[u8]>::to_vec).collect())
    };
    Ok(Sample {
        artists: lines("artists")?,
        labels: lines("labels")?,
        masters: lines("masters")?,
        releases: lines("releases")?,
    })
}

async fn publish(services: &Services, sample: &Sample, version: &str, started_at: &str) -> Result<usize, Error> {
    let connection = services.broker().await?;
    let exchange = |t: DataType| Topology::new(PREFIX, "", t).data_exchange;
    let all = [&sample.artists, &sample.labels, &sample.masters, &sample.releases];
    let mut jobs = tokio::task::JoinSet::new();
    for (t, bodies) in DataType::ALL.into_iter().zip(all) {
        // A channel and a task for each type, as the extractor publishes its four files side by side.
        let (channel, bodies, exchange) = (connection.create_channel().await?, bodies.clone(), exchange(t));
        let complete = sample::file_complete(t.name(), version, bodies.len());
        jobs.spawn(async move {
            feed::publish(&channel, &exchange, &bodies).await?;
            feed::publish(&channel, &exchange, [complete]).await
        });
    }
    while let Some(done) = jobs.join_next().await {
        done??;
    }
    let counts = [0, 1, 2, 3].map(|i| (DataType::ALL[i].name(), all[i].len()));
    let channel = connection.create_channel().await?;
    for t in DataType::ALL {
        feed::publish(&channel, &exchange(t), [sample::extraction_complete(version, started_at, counts)]).await?;
    }
    connection.close(200, "done".into()).await?;
    Ok(all.iter().map(|bodies| bodies.len()).sum())
}

/// Default of `DISCOGS_EXCHANGE_PREFIX`.
const PREFIX: &str = "discogsography-discogs";

/// Shows progress until both workers have settled everything; returns their rates.
async fn watch(tables: &mut Worker, graph: &mut Worker, count: usize, started: Instant) -> Result<(f64, f64), Error> {
    let mut rates = (0.0, 0.0);
    let mut shown = Instant::now();
    while rates.0 == 0.0 || rates.1 == 0.0 {
        let done = |w: &Worker| w.metric("records_committed_total", &[]) + w.metric("records_dead_lettered_total", &[]);
        let (t, g) = (done(tables), done(graph));
        let seconds = started.elapsed().as_secs_f64();
        if rates.0 == 0.0 && t >= count as f64 {
            rates.0 = t / seconds;
        }
        if rates.1 == 0.0 && g >= count as f64 {
            rates.1 = g / seconds;
        }
        if shown.elapsed() > Duration::from_secs(2) {
            shown = Instant::now();
            println!("   {seconds:>5.0} s   tables {t:>8} of {count}   graph {g:>8} of {count}");
        }
        for worker in [&mut *tables, &mut *graph] {
            worker.until("alive", Duration::from_secs(1), |_| true).await?;
        }
        sleep(Duration::from_millis(200)).await;
    }
    Ok(rates)
}

/// Waits until the purges and the maintenance of this run are done.
async fn maintained(services: &Services, version: &str, started_at: &str) -> Result<(), Error> {
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

/// Counts of everything, and a few things to see.
async fn show(services: &Services) -> Result<(), Error> {
    step("Tables");
    let postgres = services.postgres(services.get("POSTGRES_DATABASE")).await?;
    for t in DataType::ALL {
        let count: i64 = postgres.query_one(&format!("SELECT count(*) FROM {t}"), &[]).await?.get(0);
        println!("   {t:<22} {count:>9}");
    }
    let graph = services.neo4j()?;
    for (title, statement) in [
        ("Nodes", "MATCH (n) WITH labels(n)[0] AS name, count(*) AS count RETURN name, count ORDER BY name"),
        ("Relationships", "MATCH ()-[r]->() WITH type(r) AS name, count(*) AS count RETURN name, count ORDER BY name"),
        (
            "Genres with most releases",
            "MATCH (g:Genre) WHERE g.release_count > 0 RETURN g.name AS name, g.release_count AS count ORDER BY count DESC LIMIT 5",
        ),
    ] {
        step(title);
        let mut rows = graph.execute(query(statement)).await?;
        while let Some(row) = rows.next().await? {
            println!("   {:<22} {:>9}", row.get::<String>("name")?, row.get::<i64>("count")?);
        }
    }
    Ok(())
}
