//! What a worker adds to the pipeline: how its database takes a batch, and what it does when a file or a run is complete.

use std::future::Future;
use std::time::Duration;

use crate::data_type::DataType;
use crate::message::{Control, Data};
use crate::phases::Phases;
use crate::turn::Claim;

/// A decoded record on its way to the database.
#[derive(Debug)]
pub struct Record<P> {
    /// Record id (contract §2.2).
    pub id: String,
    /// The extractor's hash; empty if unknown.
    pub hash: String,
    /// The message as it was received.
    pub body: Vec<u8>,
    /// What this worker's sink took out of it.
    pub payload: P,
}

/// The database side of a worker. A sink sees records and returns outcomes; it can't acknowledge anything.
pub trait Sink: Send + Sync + 'static {
    /// What the sink needs of a record beside id, hash and body.
    type Payload: Send + Sync + 'static;

    /// Takes what it needs out of a record. Misshapen members are skipped, not refused (contract, appendix D).
    fn extract(&self, data_type: DataType, data: &Data<'_>) -> Self::Payload;

    /// Makes the database ready for this type: at start, and again after every interruption. Brings the schema about,
    /// and runs the very statements of a write on nothing, so that a missing column or privilege is found before any
    /// record was fetched.
    fn prepare(&self, data_type: DataType) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// Takes the right to write what a queue delivers: from now on no transaction of an earlier claim can commit. Returns the largest
    /// prefetch of this claim and the earlier ones since the last that was [resigned](Sink::resign): what they left behind fits
    /// into it.
    fn claim(&self, claim: &Claim) -> impl Future<Output = Result<u16, SinkError>> + Send;

    /// Notes that this claim, and so those before it, left nothing behind: all that was delivered is acknowledged.
    fn resign(&self, claim: &Claim) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// Asks the database for a sign of life.
    fn ping(&self) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// Writes a batch in one transaction, all or nothing. Ids are distinct and sorted.
    ///
    /// `again` says that these records may have been written before: an earlier attempt failed in an unknown state, or
    /// the broker delivered them earlier. Then even unchanged records need what follows their commit.
    ///
    /// Nothing is committed if somebody else has claimed the queue meanwhile: [`SinkError::fenced`].
    ///
    /// What takes its time is told to `phases`.
    ///
    /// # Errors
    /// [`SinkError`], classified; nothing of the batch was committed, or all of it was and the reply got lost.
    fn write(
        &self,
        data_type: DataType,
        batch: &[&Record<Self::Payload>],
        again: bool,
        claim: &Claim,
        phases: &mut Phases,
    ) -> impl Future<Output = Result<WriteReport, SinkError>> + Send;

    /// Does what [`write`](Sink::write) does with records that may have been written before, but commits nothing, for as long as nobody
    /// may write them: their messages are with the broker.
    ///
    /// # Errors
    /// [`SinkError`], classified as that of a write.
    fn rehearse(
        &self,
        data_type: DataType,
        batch: &[&Record<Self::Payload>],
    ) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// Remembers durably that a record of this type is about to be dead-lettered in this run.
    fn note_dead_letter(&self, data_type: DataType) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// Takes a control message, after every record delivered before it was committed or dead-lettered. Must be quick
    /// and may be repeated: long work is written down here and done by [`Sink::background`].
    fn control(&self, data_type: DataType, control: &Control) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// Does the long work that `control` wrote down, for ever, until the future is dropped.
    fn background(&self) -> impl Future<Output = ()> + Send;

    /// Gives up what this process holds for its background work, so that another one need not wait for it.
    fn release(&self) -> impl Future<Output = ()> + Send;
}

/// What became of the records of a committed batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteReport {
    /// Records that the database did not have.
    pub inserted: usize,
    /// Records that it had with another hash.
    pub updated: usize,
    /// Records that it had already, equal.
    pub unchanged: usize,
}

/// How the pipeline goes on after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Lost a race (deadlock, serialisation): again within milliseconds.
    Conflict,
    /// The server is away or busy: hold the batch and retry, with growing pauses.
    Transient,
    /// The server has no room for that many records in one transaction: fewer, and one alone as if it were transient.
    TooLarge,
    /// Nobody's record can be written (wrong password, missing table): stop consuming until somebody repaired it.
    Fatal,
    /// A record's own fault: find it and dead-letter it alone.
    Poison,
}

impl Class {
    /// Metric label.
    pub const fn name(self) -> &'static str {
        match self {
            Class::Conflict => "conflict",
            Class::Transient => "transient",
            Class::TooLarge => "too_large",
            Class::Fatal => "fatal",
            Class::Poison => "poison",
        }
    }
}

/// Code of [`SinkError::fenced`].
const FENCED: &str = "fenced";
/// Code of an attempt that took too long.
const TIMEOUT: &str = "timeout";

/// A classified database error.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message} ({code})")]
pub struct SinkError {
    /// What to do about it.
    pub class: Class,
    /// The backend's code: an SQLSTATE, a Neo4j status code, or a word of ours such as `io` or `timeout`.
    pub code: String,
    /// What happened, without secrets.
    pub message: String,
}

impl SinkError {
    /// An error of the given class.
    pub fn new(class: Class, code: impl Into<String>, message: impl Into<String>) -> Self {
        SinkError { class, code: code.into(), message: message.into() }
    }

    /// Another replica consumes the queue by now. The channel that delivered these records is gone, or will be found so.
    pub fn fenced() -> Self {
        SinkError::new(Class::Transient, FENCED, "another replica has taken over the queue")
    }

    /// Whether it is [`SinkError::fenced`].
    pub fn is_fenced(&self) -> bool {
        self.code == FENCED
    }

    /// The attempt took longer than `limit`.
    pub fn timeout(limit: Duration) -> Self {
        SinkError::new(Class::Transient, TIMEOUT, format!("no answer within {} s", limit.as_secs()))
    }

    /// Whether it is [`SinkError::timeout`].
    pub fn is_timeout(&self) -> bool {
        self.code == TIMEOUT
    }
}
