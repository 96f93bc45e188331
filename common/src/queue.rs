//! The life of one queue's consumer: prepare the database, subscribe, run the pipeline, and again after whatever ended it.

use std::sync::Arc;

use tokio::time::{Instant, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::amqp::{Broker, Source};
use crate::backoff::Backoff;
use crate::config::Config;
use crate::data_type::{DataType, Topology};
use crate::dead_letter::DeadLetters;
use crate::metrics as names;
use crate::pipeline;
use crate::sink::{Sink, SinkError};
use crate::status::Status;
use crate::watch::{LOOK, STALLED};

/// What a queue's pipeline works with.
pub struct Queue<S> {
    /// Which records.
    pub data_type: DataType,
    /// The worker's settings.
    pub config: Arc<Config>,
    /// The broker.
    pub broker: Arc<Broker>,
    /// The database.
    pub sink: Arc<S>,
    /// Where culprits go.
    pub dead_letters: Arc<DeadLetters>,
    /// Shared state.
    pub status: Arc<Status>,
    /// Asks for a drain.
    pub shutdown: CancellationToken,
}

/// How a subscription ended.
pub enum End {
    /// Everything that was read is settled; the shutdown asked for it.
    Drained,
    /// The consumer, the channel or the connection is gone, or should be.
    Lost(String),
    /// The database takes nothing until somebody repairs it.
    Paused(SinkError),
}

/// Runs one queue until the shutdown: subscribe, pipeline, and again after whatever ended it.
pub async fn run<S: Sink>(queue: Queue<S>) {
    let data_type = queue.data_type;
    let topology = Topology::new(&queue.config.broker.prefix, queue.status.service, data_type);
    let mut backoff = Backoff::outage();
    while !queue.shutdown.is_cancelled() {
        let end = match until_shutdown(&queue, prepare(&queue, &topology)).await {
            None => return,
            Some(Err(end)) => end,
            Some(Ok(source)) => {
                info!(
                    data_type = data_type.name(),
                    queue = topology.queue,
                    prefetch_count = queue.config.prefetch,
                    "👂 Consuming"
                );
                queue.status.trouble(data_type, None);
                queue.status.consuming(data_type, true);
                let subscribed = Instant::now();
                let end = pipeline::run(&queue, &topology, source).await;
                queue.status.consuming(data_type, false);
                if subscribed.elapsed() > STALLED {
                    backoff = Backoff::outage();
                }
                end
            }
        };
        let trouble = match end {
            End::Drained => return,
            End::Lost(reason) => {
                warn!(data_type = data_type.name(), reason, "🔌 Consumer lost, subscribing again");
                metrics::counter!(names::RECONNECTS, "peer" => "queue").increment(1);
                reason
            }
            End::Paused(error) => {
                error!(
                    data_type = data_type.name(),
                    code = error.code,
                    error = error.message,
                    "⏸️ Paused: nothing can be written until this is repaired"
                );
                error.to_string()
            }
        };
        queue.status.trouble(data_type, Some(trouble));
        until_shutdown(&queue, sleep(backoff.pause())).await;
    }
}

/// Makes sure that the database takes records before any is fetched, then subscribes.
async fn prepare<S: Sink>(queue: &Queue<S>, topology: &Topology) -> Result<Source, End> {
    let prepared = queue.sink.prepare().await;
    queue.status.prepared(prepared.is_ok());
    prepared.map_err(End::Paused)?;
    let source = Source::open(&queue.broker, topology, queue.config.prefetch).await;
    source.map_err(|e| End::Lost(e.to_string()))
}

/// The outcome of `future`, or `None` if the shutdown came first. Meanwhile the queue shows that it is alive: creating
/// indexes on large tables may take long.
async fn until_shutdown<S, T>(queue: &Queue<S>, future: impl Future<Output = T>) -> Option<T> {
    let mut look = interval(LOOK);
    let mut future = std::pin::pin!(future);
    loop {
        tokio::select! {
            () = queue.shutdown.cancelled() => return None,
            outcome = &mut future => return Some(outcome),
            _ = look.tick() => queue.status.turn(queue.data_type),
        }
    }
}
