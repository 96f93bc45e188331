//! How fast the extractor is, against reading alone and publishing alone of the same bytes, in the
//! same run. Times vary with the machine and its neighbours; the ratio within a run is what counts.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use common::amqp::declare;
use common::config::Env;
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

use super::{Options, Spread, directory};
use crate::Error;
use crate::demo::step;
use crate::sample::each_message;
use crate::services::Services;

/// Prefix of the exchanges and queues.
const PREFIX: &str = "bench-extract";
/// Every message is copied for each of them, as it is in use.
const WORKERS: [&str; 2] = ["graphinator", "tableinator"];

/// Measures it and prints the rates.
///
/// # Errors
/// Whatever went wrong.
pub async fn run(services: &Services, options: &Options) -> Result<(), Error> {
    let directory = directory()?;
    let env = services.0.clone().into_iter().chain([("DISCOGS_EXCHANGE_PREFIX".to_owned(), PREFIX.to_owned())]);
    let (config, _) = extractor::config::read(Env::from_values(&extractor::config::TABLES, env))?;
    for (data_type, records) in [(DataType::Releases, 150_000), (DataType::Artists, 500_000)] {
        let input = input(&directory, data_type, options.scaled(records))?;
        let bodies = bodies(&input)?;
        let bytes: usize = bodies.iter().map(Vec::len).sum();
        step(&format!("extractor: {} {data_type}, {} bytes of JSON each", bodies.len(), bytes / bodies.len().max(1)));
        let queues = Queues::declare(services, data_type).await?;
        let mut rates = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..options.rounds {
            let started = Instant::now();
            let read = tokio::task::block_in_place(|| read(&input))?;
            rates[0].push(read as f64 / started.elapsed().as_secs_f64());
            let started = Instant::now();
            publish(&config.broker, data_type, &bodies).await?;
            rates[1].push(bodies.len() as f64 / started.elapsed().as_secs_f64());
            queues.purge().await?;
            let started = Instant::now();
            whole(&config.broker, &directory, &input).await?;
            rates[2].push(bodies.len() as f64 / started.elapsed().as_secs_f64());
            queues.purge().await?;
        }
        queues.delete().await?;
        let [read, published, whole] = rates.map(Spread::of);
        for (what, rate) in [
            ("dump to messages, not published", &read),
            ("those messages published, from memory", &published),
            ("dump to broker", &whole),
        ] {
            println!("   {what:<40}{rate}");
        }
        println!(
            "   dump to broker, against the slower of the two: {:.2}",
            whole.median / read.median.min(published.median)
        );
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
fn read(input: &Input) -> Result<usize, Error> {
    let mut count = 0;
    each(input, |_| count += 1)?;
    Ok(count)
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

async fn publish(broker: &common::config::BrokerConfig, data_type: DataType, bodies: &[Vec<u8>]) -> Result<(), Error> {
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
async fn whole(broker: &common::config::BrokerConfig, directory: &Path, input: &Input) -> Result<(), Error> {
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
