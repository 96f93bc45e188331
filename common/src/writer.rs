//! Gets one batch into the database, whatever it takes: retries what is transient, bisects down to the culprit what is
//! poisoned, dead-letters the culprit alone, and stops for what nobody's record can survive.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::amqp::DELIVERY_LIMIT;
use crate::backoff::Backoff;
use crate::batch::{Batch, Item, Origin};
use crate::data_type::{DataType, Topology};
use crate::dead_letter::{DeadLetters, Reason};
use crate::kept::Kept;
use crate::message::Control;
use crate::metrics as names;
use crate::phases::Phases;
use crate::shares::Shares;
use crate::sink::{Class, Record, Sink, SinkError, WriteReport};
use crate::status::Status;
use crate::trace::batch::BatchTrace;
use crate::turn::Claim;

/// A message with so few deliveries left counts as lost for the run already.
const NEAR: i64 = 5;
/// Attempts that may take too long before fewer records are tried at a time.
const TIMEOUTS: usize = 3;

/// What a write needs to know about its queue.
pub struct Writer<S> {
    /// The database.
    pub sink: Arc<S>,
    /// Where culprits go.
    pub dead_letters: Arc<DeadLetters>,
    /// What is written.
    pub data_type: DataType,
    /// The queue's names.
    pub topology: Topology,
    /// The right to write.
    pub claim: Claim,
    /// Shared state.
    pub status: Arc<Status>,
    /// Who may write at the same time, over all types. Waiting for it is no part of an attempt.
    pub transactions: Arc<Shares>,
    /// Set while a fatal error holds a batch: nothing more may be fetched.
    pub fatal: Arc<AtomicBool>,
    /// Longest attempt.
    pub write_timeout: Duration,
    /// Longest time that a batch is held while the database is away.
    pub hold_limit: Duration,
    /// Records that are written at a time of those that were delivered before: more took too long when they were rehearsed.
    pub together: usize,
    /// Ends retries: the channel that delivered these messages is gone, or the drain is over.
    pub cancel: CancellationToken,
}

impl<S> Clone for Writer<S> {
    fn clone(&self) -> Self {
        Writer {
            sink: Arc::clone(&self.sink),
            dead_letters: Arc::clone(&self.dead_letters),
            data_type: self.data_type,
            topology: self.topology.clone(),
            claim: self.claim.clone(),
            status: Arc::clone(&self.status),
            transactions: Arc::clone(&self.transactions),
            fatal: Arc::clone(&self.fatal),
            write_timeout: self.write_timeout,
            hold_limit: self.hold_limit,
            together: self.together,
            cancel: self.cancel.clone(),
        }
    }
}

/// What writing a batch took.
#[derive(Debug, Default)]
pub struct Effort {
    /// The attempts that were committed, from begin to end.
    pub took: Duration,
    /// Whether others failed, of which no record was the cause.
    pub troubled: bool,
    /// The batch's trace, if it is traced.
    pub trace: Option<Box<BatchTrace>>,
}

/// Why a batch was not finished. What it still held is undecided and comes back.
#[derive(Clone, Debug)]
pub enum Interrupted {
    /// Nothing could be written for so long that the broker would soon take the messages back by force.
    HeldTooLong(SinkError),
    /// Another replica has taken over the queue, and gets these messages.
    Fenced(SinkError),
    /// The channel is gone, or the drain is over.
    Cancelled,
}

impl Interrupted {
    /// With what could not be done.
    fn keeping<P>(self, kept: Kept<P>) -> Unfinished<P> {
        Unfinished { why: self, kept: Some(kept) }
    }
}

/// Work that was interrupted.
#[derive(Debug)]
pub struct Unfinished<P> {
    /// Why.
    pub why: Interrupted,
    /// What could not be done; `None` if it was not tried, or cannot be tried alone.
    pub kept: Option<Kept<P>>,
}

impl<P> From<Interrupted> for Unfinished<P> {
    fn from(why: Interrupted) -> Self {
        Unfinished { why, kept: None }
    }
}

/// The versions of one record in a batch, oldest first. Only the last is written; the others share its fate.
struct Versions<P>(Vec<(Record<P>, Origin)>);

impl<P> Versions<P> {
    fn newest(&self) -> Option<&Record<P>> {
        self.0.last().map(|(record, _)| record)
    }
}

impl<S: Sink> Writer<S> {
    /// Writes a batch. On return every delivery in it is settled, or undecided because of the error.
    pub async fn write(&self, mut batch: Batch<S::Payload>) -> (Effort, Result<(), Unfinished<S::Payload>>) {
        let mut effort = Effort { trace: batch.trace.take(), ..Effort::default() };
        let outcome = self.write_all(batch, &mut effort).await;
        (effort, outcome)
    }

    async fn write_all(&self, batch: Batch<S::Payload>, effort: &mut Effort) -> Result<(), Unfinished<S::Payload>> {
        let started = Instant::now();
        let size = batch.items.len();
        // The broker dead-letters without asking. Whoever compares what a run has brought must know that before.
        if batch.items.iter().any(|item| item.origin().delivery_count() >= i64::from(DELIVERY_LIMIT) - NEAR) {
            self.note_dead_letter(batch.opened).await?;
        }
        let (records, rejects) = sort(batch.items);
        if !records.is_empty() {
            self.write_parts(records, batch.opened, effort).await?;
        }
        for (reason, body, origin) in rejects {
            self.dead_letter(&body, origin, reason, batch.opened, effort).await?;
        }
        let took = started.elapsed();
        info!(
            data_type = self.data_type.name(),
            batch_size = size,
            batch_bytes = batch.bytes,
            trigger = batch.trigger.name(),
            duration_ms = took.as_millis() as u64,
            records_per_sec = (size as f64 / took.as_secs_f64().max(1e-6)).round() as u64,
            total_processed = self.status.total_committed(self.data_type),
            trace_id = effort.trace.as_ref().map(|trace| trace.id()),
            "✅ Batch processed"
        );
        Ok(())
    }

    async fn write_parts(
        &self,
        records: Vec<Versions<S::Payload>>,
        opened: Instant,
        effort: &mut Effort,
    ) -> Result<(), Unfinished<S::Payload>> {
        let mut again = records.iter().flat_map(|v| &v.0).any(|(_, origin)| origin.redelivered);
        let mut parts = vec![records];
        // Records that are tried at a time: fewer when that has taken too long.
        let mut together = if again { self.together } else { usize::MAX };
        while let Some(mut part) = parts.pop() {
            if self.cancel.is_cancelled() {
                return Err(Interrupted::Cancelled.into());
            }
            if part.len() > together {
                parts.push(part.split_off(together));
                parts.push(part);
                continue;
            }
            let tried = match self.attempts(&part, &mut again, opened, effort).await {
                Ok(tried) => tried,
                Err(why) => {
                    let newest = part.into_iter().filter_map(|mut versions| versions.0.pop());
                    return Err(why.keeping(Kept::records(newest.map(|(record, _)| record))));
                }
            };
            match tried {
                Ok(report) => self.committed(part, report, effort),
                Err(poison) if part.len() > 1 => {
                    if poison.is_timeout() {
                        together = part.len().div_ceil(2);
                    }
                    if let Some(trace) = &mut effort.trace {
                        trace.bisect(part.len(), &poison);
                    }
                    metrics::counter!(names::BISECTIONS, "data_type" => self.data_type.name()).increment(1);
                    warn!(data_type = self.data_type.name(), batch_size = part.len(), error = %poison, "🔬 Batch refused, splitting it");
                    let half = part.split_off(part.len() / 2);
                    parts.push(half);
                    parts.push(part);
                }
                Err(poison) => {
                    if let Some((record, origin)) = part.first_mut().and_then(|v| v.0.pop()) {
                        let reason = Reason {
                            reason: "write_refused",
                            code: poison.code,
                            detail: poison.message,
                            id: Some(record.id),
                        };
                        self.dead_letter(&record.body, origin, reason, opened, effort).await?;
                    }
                    // The version before it was fine, as far as anybody knows: it is the newest now.
                    part.retain(|versions| !versions.0.is_empty());
                    if !part.is_empty() {
                        parts.push(part);
                    }
                }
            }
        }
        Ok(())
    }

    /// Tries until the part is committed (`Ok(Ok)`), or is to be divided or dead-lettered (`Ok(Err)`).
    async fn attempts(
        &self,
        part: &[Versions<S::Payload>],
        again: &mut bool,
        opened: Instant,
        effort: &mut Effort,
    ) -> Result<Result<WriteReport, SinkError>, Interrupted> {
        let newest: Vec<_> = part.iter().filter_map(Versions::newest).collect();
        let mut retry = Retry::new(self, opened);
        let mut timeouts = 0;
        loop {
            let asked = Instant::now();
            let slot = tokio::select! {
                slot = self.transactions.acquire(self.data_type, part.len()) => slot,
                () = self.cancel.cancelled() => return Err(Interrupted::Cancelled),
            };
            let started = Instant::now();
            let mut phases = Phases::new(self.data_type, effort.trace.is_some());
            let write = self.sink.write(self.data_type, &newest, *again, &self.claim, &mut phases);
            let written = self.bounded(write).await;
            drop(slot);
            if let Some(trace) = &mut effort.trace {
                trace.attempt((asked.into_std(), started.into_std()), part.len(), phases, written.as_ref().err());
            }
            match written {
                Ok(report) => {
                    self.status.trouble(self.data_type, None);
                    let took = started.elapsed();
                    effort.took += took;
                    metrics::histogram!(names::WRITE, "data_type" => self.data_type.name(), "phase" => "total")
                        .record(took.as_secs_f64());
                    return Ok(Ok(report));
                }
                Err(error) => {
                    *again = true; // parts of a write that come after its commit may be missing
                    if error.class == Class::Poison {
                        return Ok(Err(error));
                    }
                    effort.troubled = true;
                    timeouts += usize::from(error.is_timeout());
                    // While there is time to try the parts: when it is over, what could not be written must be in the one that is kept.
                    let too_long = timeouts >= TIMEOUTS && opened.elapsed() < self.hold_limit / 2;
                    if part.len() > 1 && (error.class == Class::TooLarge || too_long) {
                        return Ok(Err(error));
                    }
                    if let Some(trace) = &mut effort.trace {
                        trace.retry(&error);
                    }
                    retry.after(error).await?;
                }
            }
        }
    }

    fn committed(&self, part: Vec<Versions<S::Payload>>, report: WriteReport, effort: &mut Effort) {
        let data_type = self.data_type.name();
        let deliveries: usize = part.iter().map(|v| v.0.len()).sum();
        if let Some(trace) = &mut effort.trace {
            trace.committed(report, deliveries - part.len());
        }
        for (outcome, count) in [
            ("inserted", report.inserted),
            ("updated", report.updated),
            ("unchanged", report.unchanged),
            ("deduplicated", deliveries - part.len()),
        ] {
            metrics::counter!(names::COMMITTED, "data_type" => data_type, "outcome" => outcome).increment(count as u64);
        }
        let now = chrono::Utc::now();
        let latency = metrics::histogram!(names::END_TO_END, "data_type" => data_type);
        for (_, origin) in part.into_iter().flat_map(|v| v.0) {
            latency.record((now - origin.received).as_seconds_f64().max(0.0));
            origin.token.settle();
        }
        self.status.committed(self.data_type, deliveries);
    }

    async fn note_dead_letter(&self, since: Instant) -> Result<(), Unfinished<S::Payload>> {
        let mut retry = Retry::new(self, since);
        while let Err(error) = self.bounded(self.sink.note_dead_letter(self.data_type)).await {
            retry.after(error).await.map_err(|why| why.keeping(Kept::DeadLetter))?;
        }
        Ok(())
    }

    async fn dead_letter(
        &self,
        body: &[u8],
        origin: Origin,
        reason: Reason,
        since: Instant,
        effort: &mut Effort,
    ) -> Result<(), Unfinished<S::Payload>> {
        self.note_dead_letter(since).await?;
        let mut retry = Retry::new(self, since);
        while let Err(error) = self.dead_letters.publish(&self.topology, body, &origin, &reason).await {
            retry.after(SinkError::new(Class::Transient, "dead_letter", error.to_string())).await?;
            // If this fails too, the next attempt to publish says so.
            let _ = self.dead_letters.declare(&self.topology).await;
        }
        origin.token.settle();
        self.status.trouble(self.data_type, None); // what delayed it is over
        if let Some(trace) = &mut effort.trace {
            trace.dead_lettered(reason.reason);
        }
        self.status.dead_lettered(self.data_type);
        metrics::counter!(names::DEAD_LETTERED, "data_type" => self.data_type.name(), "reason" => reason.reason)
            .increment(1);
        warn!(
            data_type = self.data_type.name(),
            reason = reason.reason,
            code = reason.code,
            id = reason.id.as_deref().map(crate::message::shorten),
            detail = crate::message::shorten(&reason.detail),
            "☠️ Message dead-lettered"
        );
        Ok(())
    }

    /// Lets a control message take effect that came at `received`. Every earlier delivery of this channel must be settled.
    ///
    /// # Errors
    /// [`Unfinished`]; the control message comes back then.
    pub async fn control(&self, control: &Control, received: Instant) -> Result<(), Unfinished<S::Payload>> {
        let mut retry = Retry::new(self, received);
        while let Err(error) = self.bounded(self.sink.control(self.data_type, control)).await {
            retry.after(error).await.map_err(|why| why.keeping(Kept::Control(control.clone())))?;
        }
        self.status.trouble(self.data_type, None);
        Ok(())
    }

    async fn bounded<T>(&self, work: impl Future<Output = Result<T, SinkError>>) -> Result<T, SinkError> {
        timeout(self.write_timeout, work).await.unwrap_or_else(|_| Err(SinkError::timeout(self.write_timeout)))
    }
}

/// The pauses after failed attempts of one piece of work.
struct Retry<'a, S> {
    writer: &'a Writer<S>,
    since: Instant,
    outage: Backoff,
    conflict: Backoff,
}

impl<'a, S: Sink> Retry<'a, S> {
    fn new(writer: &'a Writer<S>, since: Instant) -> Self {
        Retry { writer, since, outage: Backoff::outage(), conflict: Backoff::conflict() }
    }

    /// Waits as the error's class demands, or says why waiting makes no sense.
    async fn after(&mut self, error: SinkError) -> Result<(), Interrupted> {
        let data_type = self.writer.data_type.name();
        count_failure(self.writer.data_type, &error);
        if error.is_fenced() {
            return Err(Interrupted::Fenced(error));
        }
        if self.since.elapsed() > self.writer.hold_limit {
            return Err(Interrupted::HeldTooLong(error));
        }
        let pause = match error.class {
            Class::Conflict => {
                metrics::counter!(names::DEADLOCKS, "data_type" => data_type).increment(1);
                debug!(
                    data_type,
                    code = error.code,
                    error = error.message,
                    "🔁 Lost against another transaction, trying again"
                );
                self.conflict.pause()
            }
            Class::Transient | Class::TooLarge => {
                let pause = self.outage.pause();
                warn!(
                    data_type,
                    code = error.code,
                    error = error.message,
                    backoff_ms = pause.as_millis() as u64,
                    "⏳ Backing off before retry"
                );
                pause
            }
            // (A record's fault can't come from work that has no record.)
            Class::Fatal | Class::Poison => {
                self.writer.fatal.store(true, Ordering::Relaxed);
                let pause = self.outage.pause();
                error!(
                    data_type,
                    code = error.code,
                    error = error.message,
                    backoff_ms = pause.as_millis() as u64,
                    "⛔ Nothing can be written until this is repaired"
                );
                pause
            }
        };
        if error.class != Class::Conflict {
            self.writer.status.trouble(self.writer.data_type, Some(error.to_string()));
        }
        tokio::select! {
            () = self.writer.cancel.cancelled() => Err(Interrupted::Cancelled),
            () = sleep(pause) => Ok(()),
        }
    }
}

/// Counts a failed attempt.
pub fn count_failure(data_type: DataType, error: &SinkError) {
    let labels = [
        ("data_type", data_type.name().to_owned()),
        ("class", error.class.name().to_owned()),
        ("code", error.code.clone()),
    ];
    metrics::counter!(names::RETRIES, &labels).increment(1);
}

type Rejected = (Reason, Vec<u8>, Origin);

/// Gathers the versions of each record, sorted by id, since a common order of locks prevents deadlocks; and the rejects.
fn sort<P>(items: Vec<Item<P>>) -> (Vec<Versions<P>>, Vec<Rejected>) {
    let mut by_id: HashMap<String, usize> = HashMap::with_capacity(items.len());
    let mut records: Vec<Versions<P>> = Vec::with_capacity(items.len());
    let mut rejects = Vec::new();
    for item in items {
        match item {
            Item::Record(record, origin) => {
                let at = *by_id.entry(record.id.clone()).or_insert_with(|| {
                    records.push(Versions(Vec::with_capacity(1)));
                    records.len() - 1
                });
                records[at].0.push((record, origin));
            }
            Item::Reject(reject, body, origin) => {
                let reason =
                    Reason { reason: reject.reason, code: reject.reason.to_owned(), detail: reject.detail, id: None };
                rejects.push((reason, body, origin));
            }
        }
    }
    records.sort_by(|a, b| a.newest().map(|r| &r.id).cmp(&b.newest().map(|r| &r.id)));
    (records, rejects)
}
