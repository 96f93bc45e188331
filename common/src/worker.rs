//! A worker's life: start, run the four pipelines, drain on a signal, report, exit.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::amqp::Broker;
use crate::config::Config;
use crate::data_type::DataType;
use crate::dead_letter::DeadLetters;
use crate::http::{self, About, Probe};
use crate::queue::{self, Queue};
use crate::rate::RateLimit;
use crate::shares::Shares;
use crate::sink::Sink;
use crate::status::Status;
use crate::trace::export::Exporter;
use crate::tuning::{InForce, Tuner};
use crate::turn::Turns;
use crate::{logging, metrics};

/// How often the database is asked for a sign of life.
const PING: Duration = Duration::from_secs(5);

/// How a worker ended, as its exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0: asked to stop; what was committed is acknowledged, and what was not is back in its queue.
    Clean,
    /// 1: `check` found something wrong.
    CheckFailed,
    /// 2: can't run: the configuration is wrong, the HTTP port is taken, or a pipeline died.
    Fatal,
    /// 3: asked to stop, and the drain took too long; what was not acknowledged comes back.
    Forced,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(match exit {
            Exit::Clean => 0,
            Exit::CheckFailed => 1,
            Exit::Fatal => 2,
            Exit::Forced => 3,
        })
    }
}

/// Runs a worker until SIGTERM or SIGINT. `notes` are what the configuration wants to have said once, `tuner` what changes it at
/// SIGHUP.
pub async fn run<S: Sink>(
    service: &'static str,
    database: &'static str,
    config: Arc<Config>,
    notes: Vec<String>,
    mut tuner: Tuner,
    sink: S,
) -> Exit {
    let (recent, verbosity) = logging::init(service, &config.log, config.tuning.log_level);
    let status = Arc::new(Status::new(service, database));
    let started = async {
        let prometheus = metrics::install(service).map_err(|e| e.to_string())?;
        let listener = http::bind(config.health_port)
            .await
            .map_err(|e| format!("can't listen on port {}: {e}; set HEALTH_PORT", config.health_port))?;
        let handled = |kind| signal(kind).map_err(|e| format!("can't handle signals: {e}"));
        let (term, int) = (handled(SignalKind::terminate())?, handled(SignalKind::interrupt())?);
        Ok((prometheus, listener, term, int, handled(SignalKind::hangup())?))
    };
    let started: Result<_, String> = started.await;
    let (prometheus, listener, mut term, mut int, mut hangup) = match started {
        Ok(started) => started,
        Err(reason) => {
            error!(reason, "❌ Can't start");
            return Exit::Fatal;
        }
    };
    info!(
        version = crate::VERSION,
        health_port = listener.local_addr().map(|a| a.port()).unwrap_or_default(),
        batch_size = config.tuning.limits.count,
        flush_interval = config.tuning.limits.interval.as_secs_f64(),
        prefetch_count = config.tuning.prefetch,
        writers = config.tuning.writers,
        rate_limit = config.tuning.rate_limit,
        "🚀 Starting {service}"
    );
    for note in notes {
        warn!("⚙️ {note}");
    }
    let probe = Arc::clone(&status) as Arc<dyn Probe>;
    tuner.show();
    let in_force = tuner.watch();
    let about = About { in_force: in_force.clone(), recent };
    let http = tokio::spawn(http::serve_with_page(listener, probe, prometheus, about));
    let tuning = tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            tuner.reload(&verbosity);
        }
    });
    let exporter = config.trace.as_ref().map(|trace| Exporter::start(service, &config.log.environment, trace));
    let exit = pipelines(config, in_force, sink, &status, &exporter, async {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
    .await;
    tuning.abort();
    if let Some(exporter) = exporter {
        exporter.shutdown().await;
    }
    http.abort();
    exit
}

async fn pipelines<S: Sink>(
    config: Arc<Config>,
    tuning: watch::Receiver<InForce>,
    sink: S,
    status: &Arc<Status>,
    exporter: &Option<Arc<Exporter>>,
    stop: impl Future<Output = ()>,
) -> Exit {
    let sink = Arc::new(sink);
    let broker = Broker::new(config.broker.clone(), status.service);
    let publisher = Broker::publishing(config.broker.clone(), status.service);
    let dead_letters = Arc::new(DeadLetters::new(Arc::clone(&publisher), status.service));
    let shutdown = CancellationToken::new();
    let slots = config.slots();
    ::metrics::gauge!(metrics::SLOTS, "bound" => slots.bound).set(slots.count as f64);
    let transactions = Shares::new(slots.count, config.weights.unwrap_or([1; 4]));
    let turns = Arc::new(Turns::default());
    let rate = RateLimit::new();
    let mut queues = JoinSet::new();
    for data_type in DataType::ALL {
        metrics::start_at_zero(data_type);
        ::metrics::gauge!(metrics::CONCURRENCY, "data_type" => data_type.name()).set(config.tuning.writers as f64);
        ::metrics::gauge!(metrics::BATCH_LIMIT, "data_type" => data_type.name()).set(config.tuning.limits.count as f64);
        queues.spawn(queue::run(Queue {
            data_type,
            config: Arc::clone(&config),
            broker: Arc::clone(&broker),
            publisher: Arc::clone(&publisher),
            sink: Arc::clone(&sink),
            transactions: Arc::clone(&transactions),
            turns: Arc::clone(&turns),
            tuning: tuning.clone(),
            rate: Arc::clone(&rate),
            dead_letters: Arc::clone(&dead_letters),
            status: Arc::clone(status),
            exporter: exporter.clone(),
            shutdown: shutdown.clone(),
        }));
    }
    let background = tokio::spawn({
        let sink = Arc::clone(&sink);
        async move { sink.background().await }
    });
    let pings = tokio::spawn(ping(Arc::clone(&sink), Arc::clone(status)));
    let died = tokio::select! {
        () = stop => false,
        Some(ended) = queues.join_next() => {
            error!(reason = ?ended, "❌ A queue's pipeline died");
            true
        }
    };
    let drain_started = Instant::now();
    info!(timeout_secs = config.shutdown_timeout.as_secs_f64(), "🛑 Stopping: cancel consumers, flush, commit, ack");
    status.stopping();
    shutdown.cancel();
    let clean = drain(&mut queues, drain_started + config.shutdown_timeout, status).await;
    background.abort();
    pings.abort();
    if clean {
        // Somebody else can take over at once what this process held; if the database is away, after a while.
        let _ = timeout(Duration::from_secs(2), sink.release()).await;
        broker.close().await;
        publisher.close().await;
    }
    let exit = report(status, drain_started.elapsed(), clean);
    if died { Exit::Fatal } else { exit }
}

/// Looks every few seconds whether the database is there, also while there is nothing to write.
async fn ping<S: Sink>(sink: Arc<S>, status: Arc<Status>) {
    let mut tick = interval(PING);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let alive = timeout(PING, sink.ping()).await.is_ok_and(|pong| pong.is_ok());
        status.database(alive);
    }
}

/// Waits for the queues until the deadline, and says every five seconds that some are not done.
async fn drain(queues: &mut JoinSet<()>, deadline: Instant, status: &Status) -> bool {
    let mut tick = interval(Duration::from_secs(5));
    tick.tick().await;
    loop {
        let joined = tokio::select! {
            joined = timeout_at(deadline, queues.join_next()) => joined,
            _ = tick.tick() => {
                warn!(queues = queues.len(), reasons = ?status.unready(), "⏳ Still draining");
                continue;
            }
        };
        match joined {
            Ok(None) => return true,
            Ok(Some(Ok(()))) => {}
            Ok(Some(Err(e))) => error!(error = %e, "a queue's pipeline died"),
            Err(_) => return false,
        }
    }
}

fn report(status: &Status, took: Duration, clean: bool) -> Exit {
    ::metrics::gauge!(metrics::DRAIN).set(took.as_secs_f64());
    let t = status.totals();
    let settled = t.committed + t.dead_lettered + t.controls + t.returned;
    info!(
        drain_ms = took.as_millis() as u64,
        received = t.received,
        committed = t.committed,
        dead_lettered = t.dead_lettered,
        control_messages = t.controls,
        returned = t.returned,
        remained = t.received.saturating_sub(settled),
        "👋 received = committed + dead-lettered + control messages + returned + remained"
    );
    if clean {
        Exit::Clean
    } else {
        error!(
            remained = t.received.saturating_sub(settled),
            "the drain took too long; what remained comes back to the queues"
        );
        Exit::Forced
    }
}
