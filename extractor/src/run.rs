//! A run: every version's four files side by side, then the message that ends it.
//!
//! ```text
//!  dump ──▶ unpack ──▶ parse ──▶ rules, normalise, hash ──▶ publish ──▶ confirm ──▶ state
//!           └─────────── one thread per file ──────────┘   window of messages       mark of the last
//!                                                          on the wire              confirmed record
//! ```

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use chrono::Utc;
use common::DataType;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::interval;

use crate::file::{FileError, Shared, extract};
use crate::message::extraction_complete;
use crate::plan::Plan;
use crate::progress::FileProgress;
use crate::publish::{self, PublishError, Publisher, Target, Watch};
use crate::state::{Mark, VersionState};
use crate::summary::Summary;

/// How often the state is saved.
const SAVE: Duration = Duration::from_secs(1);

/// How one file ended: its type, its progress, and what went wrong.
pub type FileOutcome = (Arc<FileProgress>, Result<(), FileError>);

/// What became of a version.
pub enum Done {
    /// It was finished by an earlier run.
    Before,
    /// This run worked on it.
    Now(Summary),
}

/// Publishes one version, or what an earlier run left of it. If there is a `webhook`, it is owed the news of the end.
///
/// # Errors
/// [`std::io::Error`] if the state can't be saved.
pub async fn version(shared: &Arc<Shared>, plan: &Plan, forced: bool, webhook: bool) -> std::io::Result<Done> {
    let started = Instant::now();
    let (state, version) = (&shared.state, plan.version.as_str());
    if forced {
        remove_witnesses(shared, version).await;
    }
    state.start(version, forced);
    // Also after a crash nobody goes on behind what went with a queue.
    for (data_type, queue) in forget_what_is_gone(shared, version).await {
        shared.progress.note(&format!(
            "{data_type}: queue {queue} was deleted since it was published to, or is new; beginning anew"
        ));
    }
    let open: Vec<_> = {
        let known = state.version(version);
        let is_open = |t: DataType| known.file(t).is_none_or(|file| !file.complete);
        plan.inputs.iter().filter(|input| is_open(input.data_type)).cloned().collect()
    };
    if open.is_empty() && !(is_whole(&state.version(version)) && state.version(version).announced_at.is_none()) {
        return Ok(Done::Before);
    }
    state.save()?;

    let mut files = JoinSet::new();
    let mut progress = Vec::new();
    for input in open {
        let size = std::fs::metadata(&input.path).map_or(0, |m| m.len());
        let file = Arc::new(FileProgress::new(&input, size));
        // Until the file's own task has looked at it: the state is saved from the first moment on.
        if let Some(known) = state.version(version).file(input.data_type) {
            file.begin(known.mark);
        }
        shared.progress.add(Arc::clone(&file));
        progress.push(Arc::clone(&file));
        let shared = Arc::clone(shared);
        files.spawn(async move {
            let outcome = extract(&shared, input, Arc::clone(&file)).await;
            file.end();
            (file, outcome)
        });
    }
    let mut outcomes: Vec<FileOutcome> = Vec::new();
    let mut save = interval(SAVE);
    loop {
        tokio::select! {
            joined = files.join_next() => match joined {
                None => break,
                Some(Ok(done)) => {
                    let text = match &done.1 {
                        Ok(()) => "published to its end".to_owned(),
                        Err(e) => format!("NOT finished: {e}"),
                    };
                    shared.progress.note(&format!("{}: {} {text}", done.0.data_type, done.0.name));
                    outcomes.push(done);
                    state.save()?;
                }
                Some(Err(e)) => shared.progress.note(&format!("a file's task died: {e}")),
            },
            _ = save.tick() => {
                for file in progress.iter().filter(|file| !file.over.load(Relaxed)) {
                    state.update(version, file.data_type, |state| state.mark = file.confirmed());
                }
                state.save()?;
            }
        }
    }
    shared.progress.tick();

    let before = state.before(version);
    let mut summary = Summary::new(plan, &state.version(version), before, &outcomes, started.elapsed());
    // Damage is found behind the place where it is: records before it may be wrong already. The next run begins anew.
    for (file, _) in outcomes.iter().filter(|(_, outcome)| outcome.as_ref().is_err_and(FileError::begins_anew)) {
        state.update(version, file.data_type, |state| state.mark = Mark::default());
    }
    for (data_type, queue) in forget_what_is_gone(shared, version).await {
        summary.failures.push(format!("{data_type}: {}", FileError::QueueDeleted(queue)));
    }
    state.save()?;
    if is_whole(&state.version(version)) {
        match announce(shared, version).await {
            Ok(()) => {
                summary.announced = true;
                let event = || json!({"event": "extraction_complete", "run": summary.to_json()});
                state.announced(version, webhook.then(event));
                state.save()?;
                remove_witnesses(shared, version).await;
            }
            Err(e) => summary.failures.push(format!("extraction_complete is not published: {e}")),
        }
    }
    Ok(Done::Now(summary))
}

/// If a queue was deleted, what was published of its type may be lost, however complete: it is to be published from its
/// beginning. Returns the types of which that is so, with the queue.
async fn forget_what_is_gone(shared: &Shared, version: &str) -> Vec<(DataType, String)> {
    let known = shared.state.version(version);
    let broker = publish::broker(&shared.broker);
    let mut gone = Vec::new();
    let begun = |t: &DataType| known.file(*t).is_some_and(|file| file.complete || file.mark != Mark::default());
    for data_type in DataType::ALL.into_iter().filter(begun) {
        let target = Target::new(&shared.broker.prefix, data_type, &shared.workers);
        if let Some(queue) = target.missing(&broker, &known.started_at).await {
            shared.state.update(version, data_type, |file| (file.mark, file.complete) = (Mark::default(), false));
            gone.push((data_type, queue));
        }
    }
    broker.close().await;
    gone
}

/// Removes the witnesses of a version that is published, or published anew.
async fn remove_witnesses(shared: &Shared, version: &str) {
    let known = shared.state.version(version);
    let broker = publish::broker(&shared.broker);
    for data_type in DataType::ALL.into_iter().filter(|t| known.file(*t).is_some()) {
        let target = Target::new(&shared.broker.prefix, data_type, &shared.workers);
        target.remove_witnesses(&broker, &known.started_at).await;
    }
    broker.close().await;
}

/// Whether all four files are complete.
fn is_whole(state: &VersionState) -> bool {
    state.counts().len() == DataType::ALL.len()
}

/// Publishes `extraction_complete` to the four exchanges in order, each confirmed before the next.
async fn announce(shared: &Arc<Shared>, version: &str) -> Result<(), FileError> {
    let known = shared.state.version(version);
    let body = extraction_complete(version, &known.started_at, &known.counts(), Utc::now());
    let body = shared.compression.pack(body).map_err(|e| FileError::Read(e.into()))?;
    let broker = publish::broker(&shared.broker);
    let all = async {
        for data_type in DataType::ALL {
            let target = Target::new(&shared.broker.prefix, data_type, &shared.workers);
            let mut publisher =
                Publisher::new(Arc::clone(&broker), target, shared.compression, Notes(Arc::clone(shared)));
            publisher.publish([(body.clone(), Mark::default())]).await?;
            publisher.flush().await?;
        }
        Ok::<_, PublishError>(())
    };
    let announced = tokio::select! {
        announced = all => announced.map_err(FileError::from),
        () = shared.stop.cancelled() => Err(FileError::Interrupted),
    };
    broker.close().await;
    announced
}

struct Notes(Arc<Shared>);

impl Watch for Notes {
    fn confirmed(&self, _: Mark) {}

    fn note(&self, text: String) {
        self.0.progress.note(&text);
    }
}
