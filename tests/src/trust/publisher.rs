//! Publishes a plan while the broker comes and goes. What is not confirmed is sent again, in order.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use common::DataType;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation, Connection};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::plan::{CONTROLS, Plan};
use crate::Error;
use crate::stage::services;

/// Messages that are sent before their confirms are awaited.
const CHUNK: usize = 25;
/// A broker that takes so long to confirm is blocked, or gone without a word.
const PATIENCE: Duration = Duration::from_secs(10);

/// A publisher as a task of its own.
pub struct Publisher {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    plan: Arc<Plan>,
    prefix: String,
    /// What is still to be sent: indexes into the plan, in order.
    pending: Mutex<VecDeque<usize>>,
    /// How much of the plan was ever sent.
    reached: AtomicUsize,
    /// Messages that the broker has confirmed, repetitions included.
    confirmed: AtomicUsize,
    /// Chunks that were confirmed late or not at all.
    delayed: AtomicUsize,
    /// Messages a second; 0: no limit.
    pace: AtomicU64,
    /// How much of the plan may be sent.
    allowed: AtomicUsize,
    /// Nothing is sent for now.
    held: AtomicBool,
}

impl Publisher {
    /// Starts to publish the plan to the exchanges with this prefix, so many messages a second, but not the end of its last
    /// run.
    pub fn start(plan: Arc<Plan>, prefix: &str, pace: u64) -> Publisher {
        let shared = Arc::new(Shared {
            pending: Mutex::new((0..plan.messages.len()).collect()),
            allowed: AtomicUsize::new(plan.messages.len() - CONTROLS),
            plan,
            prefix: prefix.to_owned(),
            reached: AtomicUsize::new(0),
            confirmed: AtomicUsize::new(0),
            delayed: AtomicUsize::new(0),
            pace: AtomicU64::new(pace),
            held: AtomicBool::new(false),
        });
        let task = tokio::spawn(run(Arc::clone(&shared)));
        Publisher { shared, task }
    }

    /// From now on as fast as can be, to the plan's end. Nothing that was lost may be published after that: the last run
    /// would be over before it is complete.
    pub fn finish(&self) {
        self.shared.pace.store(0, Relaxed);
        self.shared.allowed.store(self.shared.plan.messages.len(), Relaxed);
    }

    /// Sends nothing more, or goes on.
    pub fn hold(&self, held: bool) {
        self.shared.held.store(held, Relaxed);
    }

    /// Publishes what was published of this type once more, in order, before anything else of it: a queue was lost.
    pub fn again(&self, data_type: DataType) {
        let mut pending = self.shared.pending();
        let reached = self.shared.reached.load(Relaxed);
        let of_type = |at: &usize| self.shared.plan.messages[*at].data_type == data_type;
        let once_more = (0..reached).filter(of_type);
        let rest = pending.iter().copied().filter(|at| *at >= reached || !of_type(at));
        *pending = once_more.chain(rest).collect();
    }

    /// Messages that were confirmed, repetitions included.
    pub fn confirmed(&self) -> usize {
        self.shared.confirmed.load(Relaxed)
    }

    /// How often the broker kept us waiting.
    pub fn delayed(&self) -> usize {
        self.shared.delayed.load(Relaxed)
    }

    /// Whether everything is confirmed.
    pub fn is_done(&self) -> bool {
        self.shared.pending().is_empty()
    }

    /// Whether there is more to send before [`Publisher::finish`].
    pub fn has_more(&self) -> bool {
        let allowed = self.shared.allowed.load(Relaxed);
        self.shared.pending().iter().any(|at| *at < allowed)
    }

    /// Waits until everything is confirmed.
    pub async fn done(&self, limit: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + limit;
        while !self.is_done() {
            if Instant::now() > deadline {
                return Err(format!("{} messages could not be published", self.shared.pending().len()).into());
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn pending(&self) -> std::sync::MutexGuard<'_, VecDeque<usize>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next messages. They stay pending until they are confirmed: then they are taken off, unless somebody put others
    /// before them.
    fn next(&self) -> Vec<usize> {
        let pending = self.pending();
        let allowed = self.allowed.load(Relaxed);
        let chunk: Vec<usize> = pending.iter().copied().take(CHUNK).take_while(|at| *at < allowed).collect();
        if let Some(last) = chunk.iter().max() {
            self.reached.fetch_max(last + 1, Relaxed);
        }
        chunk
    }

    fn took(&self, chunk: &[usize]) {
        let mut pending = self.pending();
        if pending.iter().zip(chunk).all(|(a, b)| a == b) && pending.len() >= chunk.len() {
            pending.drain(..chunk.len());
        }
        self.confirmed.fetch_add(chunk.len(), Relaxed);
    }
}

async fn run(shared: Arc<Shared>) {
    let mut broker: Option<(Connection, Channel)> = None;
    loop {
        let chunk = if shared.held.load(Relaxed) { Vec::new() } else { shared.next() };
        if chunk.is_empty() {
            sleep(Duration::from_millis(20)).await;
            continue;
        }
        let started = Instant::now();
        let sent = timeout(PATIENCE, send(&shared, &mut broker, &chunk)).await;
        if started.elapsed() > Duration::from_secs(1) {
            shared.delayed.fetch_add(1, Relaxed);
        }
        if matches!(sent, Ok(Ok(()))) {
            shared.took(&chunk);
        } else {
            // Late, refused, returned, or the broker is gone: all of it again, on a new connection.
            broker = None;
            sleep(Duration::from_millis(100)).await;
        }
        let pace = shared.pace.load(Relaxed);
        if pace > 0 {
            sleep(Duration::from_secs_f64(chunk.len() as f64 / pace as f64).saturating_sub(started.elapsed())).await;
        }
    }
}

async fn send(shared: &Shared, broker: &mut Option<(Connection, Channel)>, chunk: &[usize]) -> Result<(), Error> {
    if broker.is_none() {
        let connection = services().broker().await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        *broker = Some((connection, channel));
    }
    let Some((_, channel)) = broker else { return Err("no connection".into()) };
    let mut waiting = Vec::new();
    for at in chunk {
        let message = &shared.plan.messages[*at];
        let exchange = format!("{}-{}", shared.prefix, message.data_type);
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let properties = xtask::feed::properties();
        waiting.push(
            channel.basic_publish(exchange.as_str().into(), "".into(), options, &message.body, properties).await?,
        );
    }
    for confirm in waiting {
        match confirm.await? {
            Confirmation::Ack(None) => {}
            other => return Err(format!("not taken: {other:?}").into()),
        }
    }
    Ok(())
}
