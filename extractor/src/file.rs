//! One file from its first byte to its `file_complete`: read in a thread of its own, published beside it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use chrono::Utc;
use common::amqp::Broker;
use common::backoff::Backoff;
use common::config::BrokerConfig;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::checksum;
use crate::compress::Compression;
use crate::input::{Bad, Format, Input, Next, ReadError, Records};
use crate::message::{Encoder, Outcome, file_complete};
use crate::progress::{FileProgress, Progress};
use crate::publish::{self, PublishError, Publisher, Target, TargetError, Watch, missing_queue};
use crate::rejects::Rejects;
use crate::rules::Rules;
use crate::state::{Mark, State, fingerprint};

/// Records that go from the reading thread to the publisher at a time.
pub const CHUNK: usize = 30;
/// Bytes after which fewer go.
const CHUNK_BYTES: usize = 64 * 1024;
/// Chunks that may wait for the publisher.
const WAITING: usize = 8;
/// Bytes of them, the one included that the publisher is about to send: a record that is larger waits alone.
const WAITING_BYTES: usize = WAITING * CHUNK_BYTES;
/// Attempts to make a file's witnesses: some thirty seconds.
const ATTEMPTS: u32 = 8;
/// Longest wait for the last confirms when the run is interrupted.
const LAST_CONFIRMS: Duration = Duration::from_secs(3);

/// Why a file is not finished.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It could not be opened or read to its end.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Its checksum is wrong.
    #[error("{0}")]
    Checksum(String),
    /// The broker refuses its messages.
    #[error("the broker refuses the messages: {0}")]
    Publish(#[from] PublishError),
    /// A queue was deleted: nobody knows what was in it.
    #[error(
        "queue {0} was deleted meanwhile; when it is there again, the next run publishes the file from its beginning"
    )]
    QueueDeleted(String),
    /// The broker can't be asked to tell when a queue is deleted.
    #[error("the queues can't be watched: {0}")]
    Witnesses(TargetError),
    /// The state can't be written.
    #[error("the state can't be saved: {0}")]
    State(io::Error),
    /// The rejects file can't be written.
    #[error("the rejects file can't be written: {0}")]
    Rejects(io::Error),
    /// More records are bad than is plausible.
    #[error("{0} records were rejected, more than --max-rejects allows: is it the right file?")]
    TooManyRejects(u64),
    /// The run was interrupted.
    #[error("interrupted")]
    Interrupted,
    /// The reading thread died.
    #[error("internal error: {0}")]
    Died(String),
}

impl FileError {
    /// Whether the next run publishes the file from its beginning.
    pub fn begins_anew(&self) -> bool {
        matches!(self, FileError::Read(_) | FileError::QueueDeleted(_))
    }
}

/// What all files of a run share.
pub struct Shared {
    /// How to reach the broker; each file has a connection of its own.
    pub broker: BrokerConfig,
    /// Workers whose queues must be there.
    pub workers: Vec<String>,
    /// How bodies are packed.
    pub compression: Compression,
    /// Rules, if there are any.
    pub rules: Option<Arc<Rules>>,
    /// Format of the files, unless their first bytes are to tell.
    pub format: Option<Format>,
    /// Whether checksum files count.
    pub verify: bool,
    /// Rejected records after which a file is given up.
    pub max_rejects: u64,
    /// Directory of state and rejects.
    pub directory: PathBuf,
    /// What was published so far.
    pub state: State,
    /// What people see.
    pub progress: Arc<Progress>,
    /// Ends everything.
    pub stop: CancellationToken,
}

/// Publishes a file's records and its `file_complete`, from where an earlier run ended.
///
/// # Errors
/// [`FileError`]; what was confirmed until then is in the state.
pub async fn extract(shared: &Arc<Shared>, input: Input, progress: Arc<FileProgress>) -> Result<(), FileError> {
    let (state, version, data_type) = (&shared.state, input.version.as_str(), input.data_type);
    let started_at = state.version(version).started_at;
    if shared.verify {
        verify(shared, &input).await?;
    }
    let fingerprint = fingerprint(&input).map_err(ReadError::Io)?;
    let mut start = Mark::default();
    state.update(version, data_type, |file| {
        // What comes by the standard input now may be something else than before.
        if file.fingerprint == fingerprint && !input.is_stdin() {
            start = file.mark;
        }
        (file.file, file.fingerprint, file.mark, file.complete) = (input.name(), fingerprint, start, false);
        progress.begin(start); // in here, so that nobody saves another mark under this fingerprint
    });
    if start.processed > 0 {
        shared.progress.note(&format!("{data_type}: going on behind record {}", start.processed));
    }
    let target = Target::new(&shared.broker.prefix, data_type, &shared.workers);
    // The queues are looked at by another connection: one whose publisher is held back by the broker gets no answers either.
    let looking = publish::broker(&shared.broker);
    if start == Mark::default() {
        // First on the disk: nobody may find new witnesses beside a mark that older queues were for.
        state.save().map_err(FileError::State)?;
        add_witnesses(shared, &target, &looking, &started_at).await?;
    }

    let (sender, mut chunks) = mpsc::channel::<Chunk>(WAITING);
    let reader = tokio::task::spawn_blocking({
        let (shared, input, progress) = (Arc::clone(shared), input.clone(), Arc::clone(&progress));
        move || read(&shared, &input, start, &progress, Outlet::new(sender))
    });
    let broker = publish::broker(&shared.broker);
    let watch = FileWatch { file: Arc::clone(&progress), progress: Arc::clone(&shared.progress) };
    let mut publisher = Publisher::new(Arc::clone(&broker), target.clone(), shared.compression, watch);
    let published = tokio::select! {
        published = publish_all(&mut publisher, &mut chunks, &progress) => published.map_err(FileError::from),
        queue = missing_queue(&looking, &target, &started_at) => Err(FileError::QueueDeleted(queue)),
        () = shared.stop.cancelled() => Err(FileError::Interrupted),
    };
    let published = match published {
        // Whoever interrupts a run may do so because a queue is gone.
        Ok(()) | Err(FileError::Publish(_) | FileError::Interrupted) => {
            match timeout(LAST_CONFIRMS, target.missing(&looking, &started_at)).await {
                Ok(Some(queue)) => Err(FileError::QueueDeleted(queue)),
                Ok(None) | Err(_) => published,
            }
        }
        other => other,
    };
    drop(chunks); // a reader that still reads finds nobody there
    let outcome = match published {
        Ok(()) => match reader.await.map_err(|e| FileError::Died(e.to_string())).flatten() {
            Ok(end) => finish(shared, &input, &mut publisher, end).await,
            Err(e) => Err(e),
        },
        Err(FileError::QueueDeleted(queue)) => {
            progress.confirm(Mark::default());
            Err(FileError::QueueDeleted(queue))
        }
        Err(e) => {
            // What is under way need not be sent again.
            let _ = timeout(LAST_CONFIRMS, publisher.flush()).await;
            Err(e)
        }
    };
    progress.complete.store(outcome.is_ok(), Relaxed);
    state.update(version, data_type, |file| {
        file.mark = progress.confirmed();
        file.complete = outcome.is_ok();
    });
    // A broker that does not answer need not hear of the end.
    let _ = timeout(LAST_CONFIRMS, broker.close()).await;
    let _ = timeout(LAST_CONFIRMS, looking.close()).await;
    outcome
}

/// Makes the queues' witnesses. The broker may be away a while.
async fn add_witnesses(shared: &Shared, target: &Target, broker: &Broker, started_at: &str) -> Result<(), FileError> {
    let mut backoff = Backoff::outage();
    for attempt in 1.. {
        match target.add_witnesses(broker, started_at).await {
            Ok(()) => break,
            Err(e) if attempt == ATTEMPTS => return Err(FileError::Witnesses(e)),
            Err(e) => shared.progress.note(&format!("{}: {e}; trying again", target.data_type)),
        }
        tokio::select! {
            () = sleep(backoff.pause()) => {}
            () = shared.stop.cancelled() => return Err(FileError::Interrupted),
        }
    }
    Ok(())
}

/// Publishes the message that ends the file, when everything before it is confirmed.
async fn finish(
    shared: &Shared,
    input: &Input,
    publisher: &mut Publisher<FileWatch>,
    end: Mark,
) -> Result<(), FileError> {
    let body = file_complete(input.data_type, end.processed, &input.name(), Utc::now());
    let body = shared.compression.pack(body).map_err(ReadError::Io)?;
    let sent = async {
        publisher.publish([(body, end)]).await?;
        publisher.flush().await
    };
    tokio::select! {
        sent = sent => sent.map_err(FileError::from),
        () = shared.stop.cancelled() => Err(FileError::Interrupted),
    }
}

/// Messages, each with the mark that its confirm moves to.
type Messages = Vec<(Vec<u8>, Mark)>;

/// Messages on their way to the publisher, and the room that they take until it has sent them.
type Chunk = (Messages, OwnedSemaphorePermit);

async fn publish_all(
    publisher: &mut Publisher<FileWatch>,
    chunks: &mut mpsc::Receiver<Chunk>,
    progress: &FileProgress,
) -> Result<(), PublishError> {
    while let Some((messages, _room)) = chunks.recv().await {
        let bytes: usize = messages.iter().map(|(body, _)| body.len()).sum();
        progress.sent.fetch_add(bytes as u64, Relaxed);
        publisher.publish(messages).await?;
    }
    publisher.flush().await
}

/// Where the reading thread puts its messages.
struct Outlet {
    chunks: mpsc::Sender<Chunk>,
    room: Arc<Semaphore>,
    messages: Messages,
    bytes: usize,
}

impl Outlet {
    fn new(chunks: mpsc::Sender<Chunk>) -> Self {
        Outlet { chunks, room: Arc::new(Semaphore::new(WAITING_BYTES)), messages: Messages::new(), bytes: 0 }
    }

    fn push(&mut self, body: Vec<u8>, mark: Mark) {
        self.bytes += body.len();
        self.messages.push((body, mark));
    }

    /// Enough for a chunk.
    fn is_full(&self) -> bool {
        self.messages.len() >= CHUNK || self.bytes >= CHUNK_BYTES
    }

    /// Hands over what there is, when there is room for it. False if nobody takes it.
    fn send(&mut self) -> bool {
        let bytes = std::mem::take(&mut self.bytes).min(WAITING_BYTES) as u32;
        let room = Handle::current().block_on(Arc::clone(&self.room).acquire_many_owned(bytes));
        room.is_ok_and(|room| self.chunks.blocking_send((std::mem::take(&mut self.messages), room)).is_ok())
    }
}

/// Reads the file to its end. Returns the mark there.
fn read(
    shared: &Shared,
    input: &Input,
    start: Mark,
    progress: &FileProgress,
    mut outlet: Outlet,
) -> Result<Mark, FileError> {
    let mut records = Records::open(input, shared.format, Arc::clone(&progress.read)).map_err(ReadError::Io)?;
    let mut rejects = Rejects::open(&shared.directory, input, start.place.offset).map_err(FileError::Rejects)?;
    let mut encoder = Encoder::new(input.data_type, shared.rules.clone());
    let mut mark = start;
    if start.processed + start.rejected > 0 {
        records.resume(start.place)?;
        progress.resumed();
    }
    loop {
        let next = match records.next(|record| encoder.encode(record)) {
            Ok(next) => next,
            Err(e) => {
                // Everything before is published.
                outlet.send();
                return Err(e.into());
            }
        };
        if !matches!(next, Next::End) {
            mark.place = records.place(); // the file's end is no place to go on from
        }
        match next {
            Next::Record(Outcome::Message(body), _) => {
                mark.processed += 1;
                mark.published += 1;
                outlet.push(shared.compression.pack(body).map_err(ReadError::Io)?, mark);
            }
            Next::Record(Outcome::Skipped, _) => {
                mark.processed += 1;
                mark.skipped += 1;
            }
            Next::Record(Outcome::Unusable { reason, detail, excerpt }, begin) => {
                mark.processed += 1;
                mark.rejected += 1;
                let bad = Bad { reason, detail, excerpt, begin, end: mark.place };
                rejects.note(&bad).map_err(FileError::Rejects)?;
            }
            Next::Bad(bad) => {
                mark.rejected += 1;
                rejects.note(&bad).map_err(FileError::Rejects)?;
            }
            Next::End => {
                outlet.send();
                return Ok(mark);
            }
        }
        progress.processed.store(mark.processed, Relaxed);
        if mark.rejected > shared.max_rejects {
            outlet.send();
            return Err(FileError::TooManyRejects(mark.rejected));
        }
        if outlet.is_full() && !outlet.send() {
            return Err(FileError::Interrupted);
        }
    }
}

async fn verify(shared: &Arc<Shared>, input: &Input) -> Result<(), FileError> {
    if checksum::list(input).is_some_and(|list| list.is_file()) {
        // Minutes, with a large file.
        shared.progress.note(&format!("{}: comparing {} with its checksum", input.data_type, input.name()));
    }
    let input = input.clone();
    let stop = shared.stop.clone();
    let verified = tokio::task::spawn_blocking(move || checksum::verify(&input, || stop.is_cancelled())).await;
    verified.map_err(|e| FileError::Died(e.to_string()))?.map_err(FileError::Checksum)?;
    if shared.stop.is_cancelled() { Err(FileError::Interrupted) } else { Ok(()) }
}

struct FileWatch {
    file: Arc<FileProgress>,
    progress: Arc<Progress>,
}

impl Watch for FileWatch {
    fn confirmed(&self, mark: Mark) {
        self.file.confirm(mark);
    }

    fn note(&self, text: String) {
        self.progress.note(&text);
    }
}
