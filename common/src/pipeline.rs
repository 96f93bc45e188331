//! The pipeline that both workers run, once per data type:
//!
//! ```text
//!  queue ──▶ Source ──▶ decode ──▶ Batcher ──▶ waiting ──▶ Writer ──▶ Ledger ──▶ ack (multiple)
//!            channel    id, hash    count |    one closed   bisect,    low
//!            + prefetch             bytes |    batch        retry      watermark
//!                                deadline
//! ```
//!
//! Everything between two stages is bounded: the prefetch bounds what the broker sends, one batch fills, one closed
//! batch waits, and `writers` batches are written at the same time. When the waiting place is taken, nothing is read.
//! One task owns all of this for its queue; only the writes run beside it.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lapin::message::Delivery;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::adaptive::{Adaptive, Observed};
use crate::amqp::Source;
use crate::batch::{Batch, Batcher, Item, Origin, Trigger};
use crate::data_type::Topology;
use crate::encoding;
use crate::kept::Kept;
use crate::message::{self, Control, Message};
use crate::metrics as names;
use crate::queue::{End, Queue};
use crate::rate::Pace;
use crate::settle::SettleToken;
use crate::sink::{Record, Sink};
use crate::trace::batch::{Tracer, Unacked};
use crate::tuning::{Tuned, Tuning};
use crate::turn::{Claim, Turn};
use crate::watch;
use crate::writer::{Effort, Interrupted, Unfinished, Writer};

/// For so long a hand-over or a shutdown waits after the subscription. A broker that is told to cancel a consumer while it is just
/// filling it takes some of these messages back before others, and they come again in another order.
const FIRST: Duration = Duration::from_secs(1);
/// Records of the first batches in adaptive mode.
const FIRST_SIZE: usize = 500;

/// What one of the tasks beside the loop did.
enum Done<P> {
    Batch { ids: HashSet<String>, full: bool, effort: Effort, outcome: Result<(), Unfinished<P>> },
    Control(Control, SettleToken, Result<(), Unfinished<P>>),
}

/// One subscription: the state that lives and dies with a channel.
struct Subscription<'a, S: Sink> {
    queue: &'a Queue<S>,
    turn: &'a Turn,
    source: Source,
    writer: Writer<S>,
    tuned: Tuned,
    pace: Pace,
    batcher: Batcher<S::Payload>,
    /// The closed batch that waits for a writer.
    waiting: Option<(Batch<S::Payload>, Instant)>,
    /// The control message that waits for everything before it.
    control: Option<(Control, SettleToken, Instant)>,
    /// Whether one is taking effect. What came after it waits: it must not be written as if it had come before.
    controlling: bool,
    tasks: JoinSet<Done<S::Payload>>,
    /// What could not be done for so long that everything goes back.
    kept: Option<Kept<S::Payload>>,
    adaptive: Option<Adaptive>,
    /// Ids of the batches that are being written: a batch with one of them waits, so that versions keep their order.
    in_flight: HashSet<String>,
    /// Traces of batches that are written and not acknowledged.
    unacked: Unacked,
    /// Nothing more is fetched, and the end is when everything that was is settled: a shutdown, a hand-over, another prefetch, or a
    /// fatal error.
    draining: bool,
    /// All that was fetched is read, or there is no time left to.
    exhausted: bool,
    /// All that was fetched is read.
    all_read: bool,
    /// In a shutdown, the time after which nothing is read any more.
    read_until: Option<Instant>,
    subscribed: Instant,
    last_delivery: Instant,
}

/// Waits until then; for ever if there is none.
async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Runs the pipeline of one subscription to its end. What comes back is written so many records `together`. Returns also what must work before the next one begins, if anything.
pub async fn run<S: Sink>(
    queue: &Queue<S>,
    topology: &Topology,
    turn: &Turn,
    claim: Claim,
    tuned: Tuned,
    source: Source,
    together: usize,
) -> (End, Option<Kept<S::Payload>>) {
    let tuning = tuned.now;
    let cancel = CancellationToken::new();
    let writer = Writer {
        sink: Arc::clone(&queue.sink),
        dead_letters: Arc::clone(&queue.dead_letters),
        data_type: queue.data_type,
        topology: topology.clone(),
        claim,
        status: Arc::clone(&queue.status),
        transactions: Arc::clone(&queue.transactions),
        fatal: Arc::default(),
        write_timeout: queue.config.write_timeout,
        hold_limit: queue.config.hold_limit,
        together,
        cancel: cancel.clone(),
    };
    let tracer = queue.exporter.as_ref().map(|exporter| Tracer::new(exporter, queue.data_type, &topology.queue));
    let mut subscription = Subscription {
        queue,
        turn,
        source,
        writer,
        tuned,
        pace: Pace::new(Arc::clone(&queue.rate), queue.data_type, tuning.rate_limit),
        batcher: Batcher::new(tuning.limits, tracer),
        waiting: None,
        control: None,
        controlling: false,
        tasks: JoinSet::new(),
        kept: None,
        adaptive: tuning.adaptive.map(|bounds| Adaptive::new(bounds, FIRST_SIZE)),
        in_flight: HashSet::new(),
        unacked: Unacked::default(),
        draining: false,
        exhausted: false,
        all_read: false,
        read_until: None,
        subscribed: Instant::now(),
        last_delivery: Instant::now(),
    };
    subscription.adapt();
    let end = subscription.run().await;
    cancel.cancel();
    let kept = subscription.kept.take();
    subscription.finish(&end).await;
    (end, kept)
}

impl<S: Sink> Subscription<'_, S> {
    async fn run(&mut self) -> End {
        let shutdown = self.queue.shutdown.clone();
        let first = self.subscribed + FIRST;
        let mut stop = pin!(async {
            shutdown.cancelled().await;
            sleep_until(first).await;
        });
        let mut look = interval(watch::LOOK);
        let mut depth = interval(watch::DEPTH);
        // One timer for all batches. Setting a timer may wake the thread that waits for the next one to expire, which for each message
        // would cost more than the message.
        let mut flush = pin!(sleep_until(Instant::now()));
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        depth.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if let Some(tuning) = self.tuned.news() {
                self.tune(tuning);
            }
            self.dispatch();
            if self.exhausted && self.is_idle() {
                return End::Drained;
            }
            let stopping = shutdown.is_cancelled() && !self.draining;
            let reading = !self.exhausted && !stopping && self.waiting.is_none() && self.control.is_none();
            // A shutdown does not wait for it.
            let held = if reading && self.read_until.is_none() { self.pace.wait() } else { None };
            let deadline = self.batcher.deadline().filter(|_| self.waiting.is_none());
            if let Some(deadline) = deadline.filter(|deadline| *deadline != flush.deadline()) {
                flush.as_mut().reset(deadline);
            }
            let turn = tokio::select! {
                biased; // finishing comes before starting
                Some(done) = self.tasks.join_next() => self.settle(done).await,
                () = &mut stop, if self.read_until.is_none() => self.stop().await,
                () = self.turn.hand_over.cancelled(), if !self.draining && Instant::now() > first => self.drain().await,
                () = at(self.read_until), if !self.exhausted => {
                    self.exhausted = true;
                    Ok(())
                }
                () = &mut flush, if deadline.is_some() => {
                    self.close(Trigger::Deadline);
                    Ok(())
                }
                _ = look.tick() => self.look().await,
                _ = depth.tick(), if !self.draining => self.depth().await,
                () = at(held), if held.is_some() => Ok(()),
                delivery = self.source.next(), if reading && held.is_none() => self.receive(delivery),
            };
            if let Err(end) = turn {
                return end;
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.batcher.is_empty() && self.waiting.is_none() && self.tasks.is_empty() && self.control.is_none()
    }

    /// Decode and batch one delivery.
    fn receive(&mut self, delivery: Option<Result<Delivery, lapin::Error>>) -> Result<(), End> {
        let delivery = match delivery {
            Some(Ok(delivery)) => delivery,
            Some(Err(e)) => return Err(End::Lost(e.to_string())),
            None if self.draining => {
                (self.exhausted, self.all_read) = (true, true);
                return Ok(());
            }
            None if self.source.is_alive() => return Err(End::Deleted),
            None => return Err(End::Lost("the channel is closed".to_owned())),
        };
        let now = Instant::now();
        self.last_delivery = now;
        self.pace.took();
        let data_type = self.queue.data_type;
        metrics::counter!(names::RECEIVED, "data_type" => data_type.name()).increment(1);
        metrics::counter!(names::RECEIVED_BYTES, "data_type" => data_type.name()).increment(delivery.data.len() as u64);
        if delivery.redelivered {
            metrics::counter!(names::REDELIVERED, "data_type" => data_type.name()).increment(1);
        }
        let token = self.source.ledger.register(delivery.delivery_tag);
        let (body, mut properties) = (delivery.data, delivery.properties);
        let encoding = properties.content_encoding().as_ref().map(|e| e.as_str());
        let unpacked = encoding::unpack(&body, encoding, self.queue.config.max_body);
        if let Ok(Some(_)) = unpacked {
            // As it is kept from here on, and would be dead-lettered.
            properties = properties.with_content_encoding("UTF-8".into());
        }
        let origin = Origin { token, redelivered: delivery.redelivered, properties, received: chrono::Utc::now() };
        let body = match unpacked {
            Ok(unpacked) => unpacked.unwrap_or(body),
            Err(reject) => {
                self.take(Item::Reject(reject, body, origin), now);
                return Ok(());
            }
        };
        let item = match message::decode(&body) {
            Ok(Message::Control(control)) => {
                self.queue.status.received(data_type, false);
                info!(data_type = data_type.name(), control = ?control, "🏁 Control message received");
                self.control = Some((control, origin.token, now));
                self.close(Trigger::Drain);
                return Ok(());
            }
            Ok(Message::Data(data)) => {
                let payload = self.queue.sink.extract(data_type, &data);
                let (id, hash) = (data.id, data.hash);
                Item::Record(Record { id, hash, body, payload }, origin)
            }
            Err(reject) => Item::Reject(reject, body, origin),
        };
        self.take(item, now);
        Ok(())
    }

    /// Batch one item.
    fn take(&mut self, item: Item<S::Payload>, now: Instant) {
        self.queue.status.received(self.queue.data_type, true);
        if let Some(batch) = self.batcher.push(item, now) {
            self.closed(batch);
        }
    }

    fn close(&mut self, trigger: Trigger) {
        if let Some(batch) = self.batcher.close(trigger) {
            self.closed(batch);
        }
    }

    fn closed(&mut self, batch: Batch<S::Payload>) {
        let data_type = self.queue.data_type.name();
        metrics::counter!(names::BATCHES, "data_type" => data_type, "trigger" => batch.trigger.name()).increment(1);
        metrics::histogram!(names::BATCH_RECORDS, "data_type" => data_type).record(batch.items.len() as f64);
        metrics::histogram!(names::BATCH_BYTES, "data_type" => data_type).record(batch.bytes as f64);
        metrics::histogram!(names::BATCH_WAIT, "data_type" => data_type).record(batch.opened.elapsed().as_secs_f64());
        debug!(
            data_type,
            batch_size = batch.items.len(),
            batch_bytes = batch.bytes,
            trigger = batch.trigger.name(),
            "📦 Batch closed"
        );
        debug_assert!(self.waiting.is_none(), "nothing is read while a batch waits");
        self.waiting = Some((batch, Instant::now()));
    }

    /// Starts what may start: the waiting batch, or the control message once everything before it is settled.
    fn dispatch(&mut self) {
        if let Some((batch, _)) = &self.waiting
            && !self.controlling
            && self.tasks.len() < self.writers()
            && !batch.ids().any(|id| self.in_flight.contains(id))
        {
            self.start_waiting();
        }
        if self.exhausted && self.waiting.is_none() && !self.batcher.is_empty() {
            self.close(Trigger::Drain);
            return self.dispatch();
        }
        if self.batcher.is_empty()
            && self.waiting.is_none()
            && self.tasks.is_empty()
            && let Some((control, token, received)) = self.control.take()
        {
            let writer = self.writer.clone();
            self.controlling = true;
            self.tasks.spawn(async move {
                let outcome = writer.control(&control, received).await;
                Done::Control(control, token, outcome)
            });
        }
    }

    fn start_waiting(&mut self) {
        let Some((mut batch, since)) = self.waiting.take() else {
            return;
        };
        if let Some(trace) = &mut batch.trace {
            trace.started();
        }
        let data_type = self.queue.data_type.name();
        metrics::gauge!(names::BLOCKED, "data_type" => data_type, "stage" => "source")
            .increment(since.elapsed().as_secs_f64());
        let ids: HashSet<String> = batch.ids().map(str::to_owned).collect();
        self.in_flight.extend(ids.iter().cloned());
        let (writer, full) = (self.writer.clone(), batch.trigger == Trigger::Count);
        self.tasks.spawn(async move {
            let (effort, outcome) = writer.write(batch).await;
            Done::Batch { ids, full, effort, outcome }
        });
        self.gauges();
    }

    /// Takes note of a finished task and acknowledges what may be acknowledged.
    async fn settle(&mut self, done: Result<Done<S::Payload>, tokio::task::JoinError>) -> Result<(), End> {
        let outcome = match done {
            Ok(Done::Batch { ids, full, effort, outcome }) => {
                ids.iter().for_each(|id| {
                    self.in_flight.remove(id);
                });
                let Effort { took, troubled, trace } = effort;
                self.unacked.add(trace, outcome.as_ref().err().map(|unfinished| &unfinished.why));
                if let (Some(adaptive), Ok(())) = (&mut self.adaptive, &outcome) {
                    adaptive.observe(Observed { took, full, troubled, pressed: self.waiting.is_some() });
                    self.adapt();
                }
                outcome
            }
            Ok(Done::Control(control, token, outcome)) => {
                self.controlling = false;
                if outcome.is_ok() {
                    self.control_done(&control);
                    token.settle();
                }
                outcome
            }
            Err(panic) => return Err(End::Lost(format!("a write died: {panic}"))),
        };
        let outcome = outcome.map_err(|Unfinished { why, kept }| match why {
            Interrupted::HeldTooLong(error) => {
                self.kept = kept; // even if the acks are lost
                End::Paused(error)
            }
            Interrupted::Fenced(error) => End::Lost(error.message),
            Interrupted::Cancelled => End::Lost("cancelled".to_owned()),
        });
        self.ack().await?;
        self.gauges();
        outcome
    }

    /// Batches that may be written at the same time.
    fn writers(&self) -> usize {
        self.adaptive.as_ref().map_or(self.tuned.now.writers, Adaptive::writers)
    }

    /// Takes up other settings, but for the prefetch: see [`Self::look`].
    fn tune(&mut self, tuning: Tuning) {
        self.pace.set(tuning.rate_limit);
        self.batcher.set(tuning.limits);
        if let (Some(adaptive), Some(bounds)) = (&mut self.adaptive, tuning.adaptive) {
            adaptive.bound(bounds);
        }
        self.tuned.now = tuning;
        self.adapt();
    }

    /// Puts into force what the adaptive mode has come to, and shows what is in force.
    fn adapt(&mut self) {
        if let Some(adaptive) = &self.adaptive {
            self.batcher.resize(adaptive.size());
        }
        let data_type = self.queue.data_type.name();
        metrics::gauge!(names::BATCH_LIMIT, "data_type" => data_type).set(self.batcher.size() as f64);
        metrics::gauge!(names::CONCURRENCY, "data_type" => data_type).set(self.writers() as f64);
    }

    fn control_done(&self, control: &Control) {
        let data_type = self.queue.data_type;
        let kind = match control {
            Control::FileComplete { total_processed } => {
                let total = total_processed.unwrap_or_default();
                info!(
                    data_type = data_type.name(),
                    total_processed = total,
                    "✅ File processing complete for {data_type}! Total records processed: {total}"
                );
                "file_complete"
            }
            Control::ExtractionComplete(run) => {
                info!(data_type = data_type.name(), version = run.version, "🏁 Received extraction_complete signal");
                "extraction_complete"
            }
        };
        metrics::counter!(names::CONTROL, "data_type" => data_type.name(), "kind" => kind).increment(1);
        self.queue.status.completed(data_type);
    }

    async fn ack(&mut self) -> Result<(), End> {
        let Some(frame) = self.source.ledger.ackable() else {
            return Ok(());
        };
        let data_type = self.queue.data_type.name();
        match self.source.ack(frame).await {
            Ok(()) => {
                debug!(data_type, delivery_tag = frame.tag, count = frame.count, "📮 Acknowledged");
                metrics::counter!(names::ACK_FRAMES, "data_type" => data_type).increment(1);
                self.unacked.acked(frame.tag);
                Ok(())
            }
            Err(e) => {
                metrics::counter!(names::ACKS_LOST, "data_type" => data_type).increment(frame.count as u64);
                Err(End::Lost(format!("ack failed: {e}")))
            }
        }
    }

    /// Half of the shutdown's time is for reading, the other half for writing what was read.
    async fn stop(&mut self) -> Result<(), End> {
        self.read_until = Some(Instant::now() + self.queue.config.shutdown_timeout / 2);
        if self.draining { Ok(()) } else { self.drain().await }
    }

    /// No new deliveries; those that the client holds already are read and written, because each that goes back uses up one of its
    /// [`DELIVERY_LIMIT`](crate::amqp::DELIVERY_LIMIT). In a fatal error that takes until somebody repaired it.
    async fn drain(&mut self) -> Result<(), End> {
        self.draining = true;
        self.queue.status.consuming(self.queue.data_type, false);
        self.source.cancel().await.map_err(|e| End::Lost(e.to_string()))
    }

    async fn look(&mut self) -> Result<(), End> {
        self.queue.status.turn(self.queue.data_type);
        if self.source.ledger.returned() > 0 && self.tasks.is_empty() {
            return Err(End::Lost("undecided deliveries must go back".to_owned()));
        }
        if self.writer.fatal.load(Ordering::Relaxed) && !self.draining {
            self.drain().await?;
        }
        // The broker takes up another prefetch only for a new consumer, and the claim has to say it before that one fetches anything.
        if self.tuned.now.prefetch != self.writer.claim.prefetch && !self.draining && self.subscribed.elapsed() > FIRST
        {
            info!(
                data_type = self.queue.data_type.name(),
                from = self.writer.claim.prefetch,
                to = self.tuned.now.prefetch,
                "🎛️ Another prefetch: finishing what was fetched, then consuming again"
            );
            self.drain().await?;
        }
        if !self.turn.is_held() {
            return Err(End::Lost("the broker took the turn back".to_owned()));
        }
        watch::channel(&self.source).map_or(Ok(()), |wrong| Err(End::Lost(wrong)))
    }

    async fn depth(&self) -> Result<(), End> {
        let could_take_more = self.is_idle() && self.source.ledger.open() == 0;
        let idle_since = could_take_more.then_some(self.last_delivery);
        watch::queue(&self.source, self.queue.data_type, idle_since).await
    }

    fn gauges(&self) {
        let data_type = self.queue.data_type.name();
        metrics::gauge!(names::IN_FLIGHT_BATCHES, "data_type" => data_type).set(self.tasks.len() as f64);
        metrics::gauge!(names::IN_FLIGHT_RECORDS, "data_type" => data_type).set(self.in_flight.len() as f64);
        metrics::gauge!(names::UNACKED, "data_type" => data_type).set(self.source.ledger.unacked() as f64);
    }

    /// Lets running attempts end, acknowledges what they committed, and hands the rest back by closing the channel.
    async fn finish(mut self, end: &End) {
        let mut look = interval(watch::LOOK);
        while !self.tasks.is_empty() {
            tokio::select! {
                _ = look.tick() => self.queue.status.turn(self.queue.data_type),
                Some(done) = self.tasks.join_next() => match done {
                    Ok(Done::Control(control, token, Ok(()))) => {
                        self.control_done(&control);
                        token.settle();
                    }
                    Ok(Done::Batch { effort, outcome, .. }) => {
                        self.unacked.add(effort.trace, outcome.as_ref().err().map(|unfinished| &unfinished.why));
                    }
                    _ => {}
                }
            }
        }
        self.in_flight.clear();
        drop((self.waiting.take(), self.control.take(), self.batcher.close(Trigger::Drain)));
        self.gauges();
        if !matches!(end, End::Lost(_)) || self.source.is_alive() {
            let _ = self.ack().await; // lost acks were counted; their messages come back
            for frame in self.source.ledger.scattered() {
                if self.source.ack(frame).await.is_ok() {
                    self.unacked.acked(frame.tag);
                }
            }
        }
        let returned = self.source.ledger.returned();
        self.queue.status.returned(self.queue.data_type, returned);
        metrics::counter!(names::RETURNED, "data_type" => self.queue.data_type.name()).increment(returned as u64);
        // The broker has them back; who consumes next tells of the queue.
        for name in [names::UNACKED, names::QUEUE_READY] {
            metrics::gauge!(name, "data_type" => self.queue.data_type.name()).set(0.0);
        }
        let heard = self.source.close().await;
        if heard && self.all_read && returned == 0 {
            let Writer { sink, claim, write_timeout, .. } = &self.writer;
            // If that fails, the next owner may fetch more at a time than it is set to; nothing else.
            let _ = timeout(*write_timeout, sink.resign(claim)).await;
        }
    }
}
