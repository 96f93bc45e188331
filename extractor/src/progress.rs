//! What a person, and Prometheus, see of a run: bars on a terminal, plain lines elsewhere, and metrics.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::DataType;
use common::http::Probe;
use common::metrics::{CONNECTED, RECONNECTS};
use indicatif::{HumanBytes, HumanCount, HumanDuration, MultiProgress, ProgressBar, ProgressStyle};
use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};
use serde_json::{Value, json};

use crate::input::Input;
use crate::state::Mark;

/// Records by what became of them. Labels `dump`, `data_type`, `outcome`: published, skipped, rejected.
pub const RECORDS: &str = "records_extracted_total";
/// Bytes of the file that were read. Labels `dump`, `data_type`.
pub const BYTES_READ: &str = "dump_read_bytes_total";
/// Size of the file, if it is known. Labels `dump`, `data_type`.
pub const BYTES: &str = "dump_bytes";
/// Records that were read and are neither confirmed nor skipped nor rejected. Labels `dump`, `data_type`.
pub const UNCONFIRMED: &str = "unconfirmed_records";
/// 1 when the file's `file_complete` is confirmed. Labels `dump`, `data_type`.
pub const FILE_COMPLETE: &str = "file_complete";
/// Bodies of confirmed data messages as published. Labels `dump`, `data_type`.
pub const PUBLISHED_BYTES: &str = "published_bytes_total";

/// Describes the extractor's metrics.
pub fn describe() {
    describe_counter!(RECORDS, Unit::Count, "Records by what became of them");
    describe_counter!(BYTES_READ, Unit::Bytes, "Bytes of the dump that were read");
    describe_counter!(PUBLISHED_BYTES, Unit::Bytes, "Bytes of the messages that were sent");
    describe_gauge!(BYTES, Unit::Bytes, "Size of the dump");
    describe_gauge!(UNCONFIRMED, Unit::Count, "Records read that the broker has not confirmed yet");
    describe_gauge!(FILE_COMPLETE, Unit::Count, "1 when the file is published to its end");
    describe_gauge!(CONNECTED, Unit::Count, "1 while connected");
    describe_counter!(RECONNECTS, Unit::Count, "Connections made after a file's first");
    describe_gauge!("build_info", Unit::Count, "Always 1; labels say what runs");
    gauge!("build_info", "version" => env!("CARGO_PKG_VERSION"), "commit" => common::COMMIT).set(1.0);
}

/// What to show on the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Style {
    /// Bars if the standard error is a terminal, else lines.
    #[default]
    Auto,
    /// A bar for each file.
    Bars,
    /// A line for each file every few seconds.
    Plain,
    /// Nothing but the summary.
    None,
}

/// One file's progress.
pub struct FileProgress {
    /// The dump's date.
    pub version: String,
    /// The type.
    pub data_type: DataType,
    /// The file's name.
    pub name: String,
    /// Its size; 0 if unknown.
    pub size: u64,
    /// Bytes of it that were read.
    pub read: Arc<AtomicU64>,
    /// Bytes of the messages that were sent.
    pub sent: AtomicU64,
    /// Records read so far, confirmed or not.
    pub processed: AtomicU64,
    /// Whether its end is confirmed.
    pub complete: AtomicBool,
    /// Whether nothing more happens to it.
    pub over: AtomicBool,
    confirmed: Mutex<Mark>,
    begun: Mutex<Begun>,
}

/// What a run began with: its pace is counted from there.
#[derive(Clone, Copy)]
struct Begun {
    mark: Mark,
    since: Instant,
    /// Bytes of the file that were read until then.
    read: u64,
    /// How long it took, if it is over.
    took: Option<Duration>,
}

impl Begun {
    fn now(mark: Mark, read: u64) -> Self {
        Begun { mark, since: Instant::now(), read, took: None }
    }
}

impl FileProgress {
    /// A file that nothing was read of yet.
    pub fn new(input: &Input, size: u64) -> Self {
        FileProgress {
            version: input.version.clone(),
            data_type: input.data_type,
            name: input.name(),
            size,
            read: Arc::default(),
            sent: AtomicU64::new(0),
            processed: AtomicU64::new(0),
            complete: AtomicBool::new(false),
            over: AtomicBool::new(false),
            confirmed: Mutex::default(),
            begun: Mutex::new(Begun::now(Mark::default(), 0)),
        }
    }

    /// Sets the mark that this run begins with.
    pub fn begin(&self, mark: Mark) {
        *self.begun() = Begun::now(mark, 0);
        self.processed.store(mark.processed, Relaxed);
        self.confirm(mark);
    }

    /// The reader has come to that mark, past what an earlier run published: how long that took tells nothing of the rest.
    pub fn resumed(&self) {
        let mut begun = self.begun();
        *begun = Begun::now(begun.mark, self.read.load(Relaxed));
    }

    /// Nothing more happens to the file.
    pub fn end(&self) {
        let mut begun = self.begun();
        begun.took = Some(begun.since.elapsed());
        self.over.store(true, Relaxed);
    }

    fn begun(&self) -> MutexGuard<'_, Begun> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves the confirmed mark.
    pub fn confirm(&self, mark: Mark) {
        *self.confirmed.lock().unwrap_or_else(PoisonError::into_inner) = mark;
    }

    /// Up to here everything is confirmed.
    pub fn confirmed(&self) -> Mark {
        *self.confirmed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records per second in this run.
    pub fn rate(&self) -> f64 {
        let Begun { mark, since, took, .. } = *self.begun();
        let seconds = took.unwrap_or_else(|| since.elapsed()).as_secs_f64();
        self.confirmed().processed.saturating_sub(mark.processed) as f64 / seconds.max(0.001)
    }

    /// Share of the file that was read, and the time that the rest will take at the pace so far.
    fn forecast(&self) -> Option<(f64, Duration)> {
        let begun = *self.begun();
        let read = self.read.load(Relaxed).min(self.size);
        let (done, left) = (read.saturating_sub(begun.read), self.size - read);
        let share = read as f64 / self.size as f64;
        (done > 0).then(|| (share, begun.since.elapsed().mul_f64(left as f64 / done as f64)))
    }

    fn export(&self) {
        let (t, mark) = (self.data_type.name(), self.confirmed());
        let dump = || self.version.clone();
        for (outcome, count) in [("published", mark.published), ("skipped", mark.skipped), ("rejected", mark.rejected)]
        {
            counter!(RECORDS, "dump" => dump(), "data_type" => t, "outcome" => outcome).absolute(count);
        }
        counter!(BYTES_READ, "dump" => dump(), "data_type" => t).absolute(self.read.load(Relaxed));
        counter!(PUBLISHED_BYTES, "dump" => dump(), "data_type" => t).absolute(self.sent.load(Relaxed));
        gauge!(BYTES, "dump" => dump(), "data_type" => t).set(self.size as f64);
        gauge!(UNCONFIRMED, "dump" => dump(), "data_type" => t)
            .set(self.processed.load(Relaxed).saturating_sub(mark.processed) as f64);
        gauge!(FILE_COMPLETE, "dump" => dump(), "data_type" => t).set(f64::from(u8::from(self.complete.load(Relaxed))));
    }
}

/// Shows the progress of all files.
pub struct Progress {
    style: Style,
    bars: MultiProgress,
    files: Mutex<Vec<(Arc<FileProgress>, Option<ProgressBar>)>>,
}

/// How often lines are printed.
const LINES: Duration = Duration::from_secs(5);
/// How often bars and metrics are brought up to date.
pub const TICK: Duration = Duration::from_millis(250);

impl Progress {
    /// Shows nothing yet.
    pub fn new(style: Style) -> Arc<Self> {
        let style = match style {
            Style::Auto if std::io::stderr().is_terminal() => Style::Bars,
            Style::Auto => Style::Plain,
            other => other,
        };
        Arc::new(Progress { style, bars: MultiProgress::new(), files: Mutex::default() })
    }

    /// Adds a file.
    pub fn add(&self, file: Arc<FileProgress>) {
        let bar = (self.style == Style::Bars).then(|| {
            let template = "{prefix:8} {wide_bar:.cyan/blue} {msg}";
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = self.bars.add(ProgressBar::new(file.size.max(1)).with_style(style));
            bar.set_prefix(file.data_type.name());
            bar
        });
        let mut files = self.lock();
        files.retain(|(other, _)| other.data_type != file.data_type); // of the dump before
        files.push((file, bar));
    }

    /// Says something to a person.
    pub fn note(&self, text: &str) {
        let now = chrono::Local::now().format("%H:%M:%S");
        match self.style {
            // While bars are drawn, only they know where a line may go.
            Style::Bars => drop(self.bars.println(format!("{now} {text}"))),
            _ => crate::cli::tell(&format!("{now} {text}")),
        }
    }

    /// Brings bars, lines and metrics up to date until the future is dropped.
    pub async fn run(&self) {
        let mut shown = Instant::now();
        loop {
            tokio::time::sleep(TICK).await;
            self.tick();
            if self.style == Style::Plain && shown.elapsed() >= LINES {
                shown = Instant::now();
                self.lines();
            }
        }
    }

    /// Brings bars and metrics up to date.
    pub fn tick(&self) {
        for (file, bar) in &*self.lock() {
            file.export();
            let Some(bar) = bar else { continue };
            bar.set_position(if file.size > 0 { file.read.load(Relaxed) } else { 0 });
            let left = match file.forecast() {
                _ if file.over.load(Relaxed) => String::new(),
                Some((_, left)) => format!(", {} left", HumanDuration(left)),
                None => String::new(),
            };
            bar.set_message(format!("{}{left}", describe_file(file)));
            if file.over.load(Relaxed) && !bar.is_finished() {
                bar.abandon();
            }
        }
    }

    fn lines(&self) {
        for (file, _) in &*self.lock() {
            if file.over.load(Relaxed) || file.processed.load(Relaxed) == 0 {
                continue;
            }
            let forecast =
                file.forecast().map(|(share, left)| format!(", {:.0} %, {} left", share * 100.0, HumanDuration(left)));
            self.note(&format!("{}: {}{}", file.data_type, describe_file(file), forecast.unwrap_or_default()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Arc<FileProgress>, Option<ProgressBar>)>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn describe_file(file: &FileProgress) -> String {
    let mark = file.confirmed();
    let mut text =
        format!("{} records, {}/s", HumanCount(mark.processed), HumanCount(file.rate().round().max(0.0) as u64));
    let read = HumanBytes(file.read.load(Relaxed));
    match file.size {
        0 => text.push_str(&format!(", {read}")),
        size => text.push_str(&format!(", {read} of {}", HumanBytes(size))),
    }
    if mark.rejected > 0 {
        text.push_str(&format!(", {} rejected", HumanCount(mark.rejected)));
    }
    text
}

impl Probe for Progress {
    fn health(&self) -> (bool, Value) {
        let files: serde_json::Map<String, Value> = self
            .lock()
            .iter()
            .map(|(file, _)| {
                let mark = file.confirmed();
                let value = json!({
                    "file": file.name,
                    "complete": file.complete.load(Relaxed),
                    "processed": mark.processed,
                    "published": mark.published,
                    "skipped": mark.skipped,
                    "rejected": mark.rejected,
                    "bytes_read": file.read.load(Relaxed),
                    "bytes": file.size,
                });
                (file.data_type.name().to_owned(), value)
            })
            .collect();
        (true, json!({"status": "healthy", "service": "extractor", "files": files}))
    }

    fn unready(&self) -> Vec<String> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_that_of_this_run() {
        let input = Input { path: "x.xml".into(), data_type: DataType::Labels, version: "20260401".to_owned() };
        let file = FileProgress::new(&input, 1000);
        assert!(file.forecast().is_none());
        let mark = |processed| Mark { processed, ..Mark::default() };
        file.begin(mark(900));
        // What an earlier run published is read in no time, and says nothing about the rest.
        file.read.store(600, Relaxed);
        assert!(file.forecast().is_some_and(|(_, left)| left < Duration::from_secs(1)));
        file.resumed();
        assert!(file.forecast().is_none());
        file.begun().since -= Duration::from_secs(10);
        file.read.store(700, Relaxed);
        file.confirm(mark(1000));
        let (share, left) = file.forecast().unwrap();
        assert!((0.7 - share).abs() < 1e-9 && (29.9..31.0).contains(&left.as_secs_f64()), "{share} {left:?}");
        assert!((9.0..=10.0).contains(&file.rate()), "{}", file.rate());
        // A pipe may give more than its size says.
        file.read.store(2000, Relaxed);
        assert_eq!(file.forecast(), Some((1.0, Duration::ZERO)));
    }
}
