//! The life of one queue's consumer: prepare the database, subscribe, run the pipeline, and again after whatever ended it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::amqp::{self, Broker, BrokerError, Channels, Source};
use crate::backoff::Backoff;
use crate::config::Config;
use crate::data_type::{DataType, Topology};
use crate::dead_letter::DeadLetters;
use crate::kept::Kept;
use crate::metrics as names;
use crate::pipeline;
use crate::presence::Presence;
use crate::rate::RateLimit;
use crate::shares::Shares;
use crate::sink::{Sink, SinkError};
use crate::status::Status;
use crate::trace::export::Exporter;
use crate::tuning::{InForce, Tuned};
use crate::turn::{Claim, Turn, Turns};
use crate::watch::{LOOK, STALLED};
use crate::writer::count_failure;

/// How long a replica that handed a queue over leaves it to the others.
const HAND_OVER: Duration = Duration::from_secs(4);

/// What a queue's pipeline works with.
pub struct Queue<S> {
    /// Which records.
    pub data_type: DataType,
    /// The worker's settings.
    pub config: Arc<Config>,
    /// The connection that consumes and acknowledges.
    pub broker: Arc<Broker>,
    /// The connection that publishes: see [`worker`](crate::worker).
    pub publisher: Arc<Broker>,
    /// The database.
    pub sink: Arc<S>,
    /// Who may write at the same time, over all types.
    pub transactions: Arc<Shares>,
    /// What can change while it runs.
    pub tuning: watch::Receiver<InForce>,
    /// How fast all types together may read.
    pub rate: Arc<RateLimit>,
    /// Where culprits go.
    pub dead_letters: Arc<DeadLetters>,
    /// The queues that this replica consumes.
    pub turns: Arc<Turns>,
    /// Shared state.
    pub status: Arc<Status>,
    /// Where traces go, if anywhere.
    pub exporter: Option<Arc<Exporter>>,
    /// Asks for a drain.
    pub shutdown: CancellationToken,
}

/// How a subscription ended.
pub enum End {
    /// Everything that was read is settled: the shutdown asked for it, or another prefetch, or a fatal error did and is repaired.
    Drained,
    /// The consumer, the channel or the connection is gone, or should be.
    Lost(String),
    /// The channel lives, and the broker has no such consumer any more: somebody deleted the queue, with what was in it.
    Deleted,
    /// The database takes nothing; what was read went back.
    Paused(SinkError),
}

/// Runs one queue until the shutdown: subscribe, pipeline, and again after whatever ended it.
pub async fn run<S: Sink>(queue: Queue<S>) {
    let data_type = queue.data_type;
    let topology = Topology::new(&queue.config.broker.prefix, queue.status.service, data_type);
    let mut backoff = Backoff::outage();
    // What could not be written. Until it can, nothing is fetched.
    let mut kept = None;
    // Records that could be rehearsed at a time, for the next subscription.
    let mut together = usize::MAX;
    let mut rehearsals = rehearsal();
    // Each time that messages go back uses up one of their deliveries, so these pauses grow to a quarter of an hour. They do so only
    // if rehearsals are no use.
    let mut pauses = handed_back();
    let mut presence = Presence::default();
    while !queue.shutdown.is_cancelled() {
        let subscribed = subscribe(&queue, &topology, &mut presence, &mut kept, &mut together);
        let end = match until_shutdown(&queue, subscribed).await {
            None => return,
            Some(Err(end)) => end,
            Some(Ok((turn, claim, tuned, source))) => {
                info!(
                    data_type = data_type.name(),
                    queue = topology.queue,
                    prefetch_count = claim.prefetch,
                    "👂 Consuming"
                );
                queue.status.trouble(data_type, None);
                queue.status.consuming(data_type, true);
                let (subscribed, before) = (Instant::now(), queue.status.total_committed(data_type));
                let end;
                // A batch that can't be written holds the pipeline for as long as the database is away.
                (end, kept) = tokio::select! {
                    ended = pipeline::run(&queue, &topology, &turn, claim, tuned, source, together) => ended,
                    never = presence.keep(&queue, &topology) => match never {},
                };
                if matches!(end, End::Deleted) {
                    presence.deleted();
                }
                // Before another replica may take the end of a run for that of a whole one. If it can't be, the next subscription does it.
                let _ = presence.note(&queue).await;
                together = usize::MAX;
                rehearsals = rehearsal();
                queue.status.consuming(data_type, false);
                let handed_over = turn.hand_over.is_cancelled();
                turn.end().await;
                if handed_over {
                    info!(data_type = data_type.name(), "🤝 Handed over to a replica that has less to do");
                    until_shutdown(&queue, sleep(HAND_OVER)).await;
                }
                if subscribed.elapsed() > STALLED {
                    backoff = Backoff::outage();
                }
                if queue.status.total_committed(data_type) > before {
                    pauses = handed_back();
                }
                if let End::Paused(error) = &end {
                    let pause = pauses.pause();
                    error!(
                        data_type = data_type.name(),
                        code = error.code,
                        error = error.message,
                        pause_secs = pause.as_secs(),
                        "⏸️ Handed the messages back: nothing could be written for too long"
                    );
                    queue.status.trouble(data_type, Some(error.to_string()));
                    wait_declared(&queue, &topology, &mut presence, pause).await;
                    continue;
                }
                end
            }
        };
        let lost = match end {
            End::Drained => continue,
            End::Lost(reason) => Some(reason),
            End::Deleted => Some("the queue was deleted, or the broker forgot its consumer".to_owned()),
            End::Paused(error) => {
                error!(
                    data_type = data_type.name(),
                    code = error.code,
                    error = error.message,
                    "⏸️ Not consuming: the database is not ready"
                );
                queue.status.trouble(data_type, Some(error.to_string()));
                None
            }
        };
        if let Some(reason) = lost {
            warn!(data_type = data_type.name(), reason, "🔌 Consumer lost, subscribing again");
            metrics::counter!(names::RECONNECTS, "peer" => "queue").increment(1);
            queue.status.lost(data_type, reason);
        }
        let pause = if kept.is_some() { rehearsals.pause() } else { backoff.pause() };
        wait_declared(&queue, &topology, &mut presence, pause).await;
    }
}

/// Sleeps, and keeps the queue declared meanwhile.
async fn wait_declared<S: Sink>(queue: &Queue<S>, topology: &Topology, presence: &mut Presence, pause: Duration) {
    let pause = async {
        tokio::select! {
            () = sleep(pause) => {}
            never = presence.keep(queue, topology) => match never {},
        }
    };
    until_shutdown(queue, pause).await;
}

/// Pauses after messages went back, 1 s to a quarter of an hour.
fn handed_back() -> Backoff {
    Backoff::new(Duration::from_secs(2), Duration::from_secs(900))
}

/// Pauses between rehearsals, 0.12 s to a minute: what PostgreSQL rolls back takes room until the next vacuum.
fn rehearsal() -> Backoff {
    Backoff::new(Duration::from_millis(250), Duration::from_secs(60))
}

/// Declares what is missing at the broker, makes sure that the database takes records, waits for this replica's turn, and subscribes. In this order: who can't
/// write takes no turn from others, and a replica on standby is able to go on.
async fn subscribe<S: Sink>(
    queue: &Queue<S>,
    topology: &Topology,
    presence: &mut Presence,
    kept: &mut Option<Kept<S::Payload>>,
    together: &mut usize,
) -> Result<(Turn, Claim, Tuned, Source), End> {
    // Whatever the database says: what is published while there is no queue is lost.
    presence.look(queue, topology).await.map_err(|e| End::Lost(e.to_string()))?;
    prepare(queue).await.map_err(End::Paused)?;
    presence.note(queue).await.map_err(End::Paused)?;
    if let Some(work) = kept {
        let rehearsed = rehearse(queue, work).await;
        // Its messages may have been purged: then it must not stop those that come after.
        if rehearsed.is_err() && is_abandoned(queue, topology).await.unwrap_or(false) {
            *kept = None;
        }
        rehearsed.map_err(End::Paused)?;
        *together = kept.take().map_or(usize::MAX, |work| work.together());
    }
    let waiting = || {
        queue.status.trouble(queue.data_type, None);
        queue.status.standby(queue.data_type);
    };
    let turn = Turn::wait(queue, topology, presence, waiting).await.map_err(|e| End::Lost(e.to_string()))?;
    queue.status.consuming(queue.data_type, false); // and not on standby any more
    let tuned = Tuned::new(queue.tuning.clone());
    let claim = Claim::new(&topology.queue, tuned.now.prefetch);
    let lost = || End::Lost("the broker took the turn back".to_owned());
    let source = async {
        // Deleted while another replica was about to lose its turn.
        presence.note(queue).await.map_err(End::Paused)?;
        let channels =
            turn.channels(&queue.broker, topology).await.map_err(|e| End::Lost(e.to_string()))?.ok_or_else(lost)?;
        // Right before the claim, which would stop whoever has the turn by now.
        if turn.is_granted().await { open(queue, channels, topology, &claim).await } else { Err(lost()) }
    };
    match source.await {
        Ok(_) if !turn.is_held() => Err(lost()),
        Ok(source) => Ok((turn, claim, tuned, source)),
        Err(end) => {
            turn.end().await;
            Err(end)
        }
    }
}

/// Whether the queue has no message, none in a replica's hands either.
async fn is_abandoned<S: Sink>(queue: &Queue<S>, topology: &Topology) -> Result<bool, BrokerError> {
    // First the turn: who has it while the queue is empty may give its messages back in between.
    Ok(Turn::is_free(&queue.broker, topology).await? && amqp::look(&queue.broker, topology).await? == (0, 0))
}

/// Looks whether the database is there, and creates what is missing in it.
async fn prepare<S: Sink>(queue: &Queue<S>) -> Result<(), SinkError> {
    // A server that does not answer at all must not hold us; one that builds an index may take its time.
    let limit = queue.config.write_timeout;
    let alive = timeout(limit, queue.sink.ping()).await.unwrap_or_else(|_| Err(SinkError::timeout(limit)));
    queue.status.database(alive.is_ok());
    alive?;
    queue.sink.prepare(queue.data_type).await
}

/// Tries what could not be written.
async fn rehearse<S: Sink>(queue: &Queue<S>, work: &mut Kept<S::Payload>) -> Result<(), SinkError> {
    let data_type = queue.data_type;
    let tried = work.rehearse(&*queue.sink, data_type, queue.config.write_timeout, &queue.transactions).await;
    match &tried {
        Ok(()) => info!(data_type = data_type.name(), "▶️ Rehearsed what could not be written, consuming again"),
        Err(error) => count_failure(data_type, error),
    }
    tried
}

/// Takes the right to write in the database before anything is fetched. What earlier owners left behind must fit into the prefetch: if this
/// one took only some of it and died, the broker would put that behind the rest, and versions of a record would change places.
async fn open<S: Sink>(
    queue: &Queue<S>,
    channels: Channels,
    topology: &Topology,
    claim: &Claim,
) -> Result<Source, End> {
    let limit = queue.config.write_timeout;
    let claimed = timeout(limit, queue.sink.claim(claim)).await.unwrap_or_else(|_| Err(SinkError::timeout(limit)));
    let prefetch = claimed.map_err(End::Paused)?;
    if prefetch > claim.prefetch {
        warn!(
            queue = topology.queue,
            prefetch,
            configured = claim.prefetch,
            "👥 An earlier owner of this queue may have left more deliveries behind than RABBITMQ_PREFETCH: its prefetch is kept \
             until the next orderly end, so that they stay in order"
        );
    }
    let (priority, consumer_timeout) = (queue.config.priority, queue.config.hold_limit * 2);
    let source = Source::open(channels, topology, prefetch, priority, consumer_timeout).await;
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
