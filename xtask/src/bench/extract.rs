//! How fast the extractor is, against reading alone and publishing alone of the same bytes, in the
//! same run. Times vary with the machine and its neighbours; the ratio within a run is what counts.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use common::amqp::declare;
use common::config::{BrokerConfig, Env};
use common::{DataType, Topology};
use extractor::compress::Compression;
use extractor::file::{CHUNK, Shared, extract};
use extractor::generate::{self, Spec};
use extractor::input::{Input, Records};
use extractor::progress::{FileProgress, Progress, Style};
use extractor::publish::{Publisher, Target, Watch};
use extractor::state::{Mark, State};
use flate2::write::GzEncoder;
use lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions, QueuePurgeOptions};
use tokio_util::sync::CancellationToken;

use super::{Options, Spread, cpu, directory};
use crate::Error;
use crate::demo::step;
use crate::sample::each_message;
use crate::services::Services;

/// Prefix of the exchanges and queues.
const PREFIX: &str = "bench-extract";
/// Every message is copied for each of them, as it is in use.
const WORKERS: [&str; 2] = ["graphinator", "tableinator"];

/// What one round came to.
struct Round {
    /// Records a second.
    rate: f64,
    /// Microseconds of processor time per record: this process.
    own: f64,
    /// The broker's.
    broker: f64,
}

/// Measures a round.
struct Clock {
    broker: u32,
    started: Instant,
    own: f64,
    brokers: f64,
}

impl Clock {
    fn start(broker: u32) -> Self {
        let [own, brokers] = [std::process::id(), broker].map(cpu::seconds);
        Clock { broker, started: Instant::now(), own, brokers }
    }

    fn stop(self, records: usize) -> Round {
        let seconds = self.started.elapsed().as_secs_f64();
        let [own, brokers] = [std::process::id(), self.broker].map(cpu::seconds);
        let each = |seconds: f64| seconds * 1e6 / records as f64;
        Round { rate: records as f64 / seconds, own: each(own - self.own), broker: each(brokers - self.brokers) }
    }
}

/// Keeps the broker on the first core and this process on the second one, until it is dropped: neither takes the other's time, as if
/// the broker was on another machine.
struct Apart([u32; 2]);

impl Apart {
    fn new(broker: u32) -> Result<Self, Error> {
        let apart = Apart([broker, std::process::id()]);
        cpu::pin(apart.0[0], "0")?;
        cpu::pin(apart.0[1], "1")?;
        Ok(apart)
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        for pid in self.0 {
            if let Err(e) = cpu::pin(pid, "0-1023") {
                eprintln!("process {pid} stays on its core: {e}");
            }
        }
    }
}

/// What is measured with.
struct Bench {
    broker: BrokerConfig,
    directory: PathBuf,
    input: Input,
    bodies: Vec<Vec<u8>>,
    queues: Queues,
    pid: u32,
}

impl Bench {
    /// Reading alone, publishing alone, and both, by turns.
    async fn compare(&self, rounds: usize) -> Result<(), Error> {
        let records = self.bodies.len();
        let [mut reading, mut publishing, mut both] = [const { Vec::new() }; 3];
        for _ in 0..rounds {
            cpu::calm(self.pid).await;
            let clock = Clock::start(self.pid);
            tokio::task::block_in_place(|| read(&self.input))?;
            reading.push(clock.stop(records));
            let clock = Clock::start(self.pid);
            publish(&self.broker, self.input.data_type, &self.bodies).await?;
            publishing.push(clock.stop(records));
            self.queues.purge().await?;
            cpu::calm(self.pid).await;
            let clock = Clock::start(self.pid);
            whole(&self.broker, &self.directory, &self.input).await?;
            both.push(clock.stop(records));
            self.queues.purge().await?;
        }
        let rates = [
            ("dump to messages, not published", reading),
            ("those messages published, from memory", publishing),
            ("dump to broker", both),
        ]
        .map(|(what, rounds)| {
            let of = |value: fn(&Round) -> f64| Spread::of(rounds.iter().map(value).collect());
            let rate = of(|round| round.rate);
            let (own, broker) = (of(|round| round.own).median, of(|round| round.broker).median);
            println!("   {what:<40}{:<32}{own:>9.1}{broker:>10.1}", rate.to_string());
            rate.median
        });
        println!("   dump to broker, against the slower of the two: {:.2}", rates[2] / rates[0].min(rates[1]));
        Ok(())
    }
}

/// Measures it and prints the rates.
///
/// # Errors
/// Whatever went wrong.
pub async fn run(services: &Services, options: &Options) -> Result<(), Error> {
    let directory = directory()?;
    let env = services.0.clone().into_iter().chain([("DISCOGS_EXCHANGE_PREFIX".to_owned(), PREFIX.to_owned())]);
    let pid = cpu::service("rabbitmq")?;
    let (config, _) = extractor::config::read(Env::from_values(&extractor::config::TABLES, env))?;
    for (data_type, records) in [(DataType::Releases, 150_000), (DataType::Artists, 500_000)] {
        if !options.types().contains(&data_type) {
            continue;
        }
        let input = input(&directory, data_type, options.scaled(records))?;
        let bodies = bodies(&input)?;
        let bytes: usize = bodies.iter().map(Vec::len).sum();
        step(&format!("extractor: {} {data_type}, {} bytes of JSON each", bodies.len(), bytes / bodies.len().max(1)));
        let queues = Queues::declare(services, data_type).await?;
        let bench = Bench { broker: config.broker.clone(), directory: directory.clone(), input, bodies, queues, pid };
        println!("   {:<40}{:>9}{:>32}{:>10}", "", "records/s", "µs of CPU: extractor", "broker");
        println!("   extractor and broker share all cores");
        bench.compare(options.rounds).await?;
        if std::thread::available_parallelism()?.get() > 1 {
            println!("   the broker has a core of its own, the extractor another one");
            let apart = Apart::new(pid)?;
            bench.compare(options.rounds).await?;
            drop(apart);
        }
        // Version 3.10 of the broker stumbles over its own log if a queue goes while what was purged is still being written down.
        cpu::calm(pid).await;
        bench.queues.delete().await?;
    }
    Ok(())
}

fn input(directory: &Path, data_type: DataType, records: usize) -> Result<Input, Error> {
    let path = directory.join(format!("discogs_20260101_{data_type}.xml.gz"));
    let spec = Spec { seed: 1, records, month: 1, changed: 0.0, removed: 0.0 };
    let mut out = GzEncoder::new(std::fs::File::create(&path)?, flate2::Compression::default());
    generate::write(&spec, data_type, &mut out)?;
    out.finish()?;
    Ok(Input { path, data_type, version: "20260101".to_owned() })
}

/// Reads the file as the extractor does, and forgets the messages.
fn read(input: &Input) -> Result<(), Error> {
    each(input, |body| drop(std::hint::black_box(body)))
}

fn bodies(input: &Input) -> Result<Vec<Vec<u8>>, Error> {
    let mut bodies = Vec::new();
    each(input, |body| bodies.push(body))?;
    Ok(bodies)
}

fn each(input: &Input, take: impl FnMut(Vec<u8>)) -> Result<(), Error> {
    each_message(Records::open(input, None, Arc::default())?, input.data_type, take)
}

struct Silent;

impl Watch for Silent {
    fn confirmed(&self, _: Mark) {}

    fn note(&self, text: String) {
        eprintln!("{text}");
    }
}

async fn publish(broker: &BrokerConfig, data_type: DataType, bodies: &[Vec<u8>]) -> Result<(), Error> {
    let connection = extractor::publish::broker(broker);
    let target = Target::new(PREFIX, data_type, &WORKERS.map(str::to_owned));
    let mut publisher = Publisher::new(Arc::clone(&connection), target, Compression::None, Silent);
    for chunk in bodies.chunks(CHUNK) {
        publisher.publish(chunk.iter().map(|body| (body.clone(), Mark::default()))).await?;
    }
    publisher.flush().await?;
    connection.close().await;
    Ok(())
}

/// The extractor's own way of one file, state and all.
async fn whole(broker: &BrokerConfig, directory: &Path, input: &Input) -> Result<(), Error> {
    let state = directory.join("state");
    if state.exists() {
        std::fs::remove_dir_all(&state)?;
    }
    let shared = Arc::new(Shared {
        broker: broker.clone(),
        workers: WORKERS.map(str::to_owned).to_vec(),
        compression: Compression::None,
        rules: None,
        format: None,
        verify: false,
        max_rejects: 0,
        state: State::open(&state)?,
        directory: state,
        progress: Progress::new(Style::None),
        stop: CancellationToken::new(),
    });
    let progress = Arc::new(FileProgress::new(input, 0));
    Ok(extract(&shared, input.clone(), progress).await?)
}

/// The queues that the messages go to.
struct Queues {
    channel: lapin::Channel,
    topologies: Vec<Topology>,
}

impl Queues {
    async fn declare(services: &Services, data_type: DataType) -> Result<Self, Error> {
        let channel = services.broker().await?.create_channel().await?;
        let topologies = WORKERS.map(|worker| Topology::new(PREFIX, worker, data_type)).to_vec();
        for topology in &topologies {
            declare(&channel, topology).await?;
        }
        let queues = Queues { channel, topologies };
        queues.purge().await?;
        Ok(queues)
    }

    async fn purge(&self) -> Result<(), Error> {
        for topology in &self.topologies {
            self.channel.queue_purge(topology.queue.as_str().into(), QueuePurgeOptions::default()).await?;
        }
        Ok(())
    }

    async fn delete(&self) -> Result<(), Error> {
        for t in &self.topologies {
            for queue in [&t.queue, &t.dead_letter_queue] {
                self.channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await?;
            }
            for exchange in [&t.dead_letter_exchange, &t.data_exchange] {
                self.channel.exchange_delete(exchange.as_str().into(), ExchangeDeleteOptions::default()).await?;
            }
        }
        Ok(())
    }
}
