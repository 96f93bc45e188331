//! What was published so far, in a file: so that a run that was interrupted goes on behind the last confirmed record, and
//! one that is finished is not repeated.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use chrono::Utc;
use common::DataType;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::input::{Input, Place};
use crate::message::{Counts, hex, timestamp};

/// How far a file was read, and what became of its records up to there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Place in the unpacked file behind the last record.
    #[serde(flatten)]
    pub place: Place,
    /// Records that were read, whatever became of them: the contract's `total_processed`.
    pub processed: u64,
    /// Records whose message the broker confirmed.
    pub published: u64,
    /// Records that a rule skipped.
    pub skipped: u64,
    /// Records in the rejects file.
    pub rejected: u64,
}

impl Mark {
    /// Everything in the file up to there: also what could not be read, which `processed` has not.
    pub fn records(&self) -> u64 {
        self.published + self.skipped + self.rejected
    }
}

/// What is known of one type's file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileState {
    /// The file's name.
    pub file: String,
    /// Tells this file from another one of the same name.
    pub fingerprint: String,
    /// Up to here everything is confirmed.
    pub mark: Mark,
    /// Whether `file_complete` is confirmed.
    pub complete: bool,
}

/// What is known of one version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionState {
    /// When it was first started, RFC 3339; the `started_at` of `extraction_complete`.
    pub started_at: String,
    /// When `extraction_complete` was confirmed by all four exchanges.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announced_at: Option<String>,
    /// The event that `COMPLETION_WEBHOOK_URL` is still to be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owed: Option<Value>,
    /// By type name.
    #[serde(default)]
    pub files: BTreeMap<String, FileState>,
}

impl VersionState {
    /// What is known of a type's file.
    pub fn file(&self, data_type: DataType) -> Option<&FileState> {
        self.files.get(data_type.name())
    }

    /// Records that were read of each type whose file is complete: the contract's `record_counts`.
    pub fn counts(&self) -> Counts {
        self.complete(|mark| mark.processed)
    }

    /// Records that were rejected, of all types.
    pub fn rejected(&self) -> u64 {
        self.files.values().map(|file| file.mark.rejected).sum()
    }

    fn complete(&self, count: impl Fn(&Mark) -> u64) -> Counts {
        let of = |t: &DataType| self.file(*t).filter(|file| file.complete).map(|file| (*t, count(&file.mark)));
        DataType::ALL.iter().filter_map(of).collect()
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Contents {
    versions: BTreeMap<String, VersionState>,
}

/// The state file, held by this process alone.
pub struct State {
    path: PathBuf,
    contents: Mutex<Contents>,
    _lock: File,
}

impl State {
    /// Opens or creates the state in a directory.
    ///
    /// # Errors
    /// What is wrong, for a person: not writable, held by another process, not readable as a state.
    pub fn open(directory: &Path) -> Result<State, String> {
        let named =
            |what: &str, e: &dyn std::fmt::Display| format!("state directory {}: {what}: {e}", directory.display());
        fs::create_dir_all(directory).map_err(|e| named("can't be created (choose another with --state)", &e))?;
        let lock = File::options()
            .create(true)
            .append(true)
            .open(directory.join("lock"))
            .map_err(|e| named("can't be written (choose another with --state)", &e))?;
        lock.try_lock().map_err(|e| named("another extractor is using it", &e))?;
        let path = directory.join("state.json");
        let contents = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| named("state.json is damaged; remove it to start over", &e))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Contents::default(),
            Err(e) => return Err(named("state.json can't be read", &e)),
        };
        Ok(State { path, contents: Mutex::new(contents), _lock: lock })
    }

    /// What is known of a version.
    pub fn version(&self, version: &str) -> VersionState {
        self.lock().versions.get(version).cloned().unwrap_or_default()
    }

    /// The newest announced version before this one, with the records of its files.
    pub fn before(&self, version: &str) -> Option<(String, Counts)> {
        let contents = self.lock();
        let announced = |(_, state): &(&String, &VersionState)| state.announced_at.is_some();
        contents
            .versions
            .range(..version.to_owned())
            .rev()
            .find(announced)
            .map(|(v, state)| (v.clone(), state.complete(Mark::records)))
    }

    /// The newest announced version after this one.
    pub fn after(&self, version: &str) -> Option<String> {
        let contents = self.lock();
        let mut newest = contents.versions.iter().rev().filter(|(_, state)| state.announced_at.is_some());
        newest.next().map(|(v, _)| v.clone()).filter(|v| v.as_str() > version)
    }

    /// Notes that a version is worked on: the first time, or anew if it is `forced`.
    pub fn start(&self, version: &str, forced: bool) {
        let mut contents = self.lock();
        let state = contents.versions.entry(version.to_owned()).or_default();
        if forced || state.started_at.is_empty() {
            let owed = state.owed.take();
            *state = VersionState { started_at: timestamp(Utc::now()), owed, ..VersionState::default() };
        }
    }

    /// Changes what is known of a type's file.
    pub fn update(&self, version: &str, data_type: DataType, change: impl FnOnce(&mut FileState)) {
        let mut contents = self.lock();
        let state = contents.versions.entry(version.to_owned()).or_default();
        change(state.files.entry(data_type.name().to_owned()).or_default());
    }

    /// Notes that the end of a version was announced, and what `COMPLETION_WEBHOOK_URL` is to be told of it.
    pub fn announced(&self, version: &str, owed: Option<Value>) {
        if let Some(state) = self.lock().versions.get_mut(version) {
            state.announced_at = Some(timestamp(Utc::now()));
            state.owed = owed;
        }
    }

    /// What `COMPLETION_WEBHOOK_URL` is still to be told, by version.
    pub fn owed(&self) -> Vec<(String, Value)> {
        let owed = |(version, state): (&String, &VersionState)| Some((version.clone(), state.owed.clone()?));
        self.lock().versions.iter().filter_map(owed).collect()
    }

    /// Notes that `COMPLETION_WEBHOOK_URL` was told this.
    pub fn delivered(&self, version: &str, event: &Value) {
        if let Some(state) = self.lock().versions.get_mut(version) {
            state.owed.take_if(|owed| owed == event);
        }
    }

    /// Writes everything to the disk, in one step.
    ///
    /// # Errors
    /// [`io::Error`].
    pub fn save(&self) -> io::Result<()> {
        let contents = self.lock();
        let text = serde_json::to_vec_pretty(&*contents)?;
        let temporary = self.path.with_extension("json.new");
        let mut file = File::create(&temporary)?;
        file.write_all(&text)?;
        file.sync_data()?;
        fs::rename(temporary, &self.path)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes at each end of a file that its fingerprint takes in. A packed file's last bytes are its checksum.
const FINGERPRINT: u64 = 64 * 1024;

/// What tells a file from another one of the same name: its length, its beginning and its end.
///
/// # Errors
/// [`io::Error`] if it can't be read.
pub fn fingerprint(input: &Input) -> io::Result<String> {
    if input.is_stdin() {
        return Ok("stdin".to_owned());
    }
    let mut file = File::open(&input.path)?;
    let length = file.metadata()?.len();
    let mut hash = Sha256::new();
    let mut bytes = Vec::new();
    for begin in [0, length.saturating_sub(FINGERPRINT)] {
        bytes.clear();
        file.seek(SeekFrom::Start(begin))?;
        Read::by_ref(&mut file).take(FINGERPRINT).read_to_end(&mut bytes)?;
        hash.update(&bytes);
    }
    Ok(format!("{length}-{}", &hex(&hash.finalize())[..16]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Folder;

    fn mark(processed: u64) -> Mark {
        Mark {
            place: Place { offset: 10 * processed, line: processed },
            processed,
            published: processed,
            skipped: 1,
            rejected: 2,
        }
    }

    fn file(processed: u64, complete: bool) -> FileState {
        FileState { file: "x".to_owned(), fingerprint: "1-a".to_owned(), mark: mark(processed), complete }
    }

    #[test]
    fn what_is_saved_is_there_when_it_is_opened_again() {
        let folder = Folder::new();
        let directory = folder.path().join("a/b");
        let state = State::open(&directory).unwrap();
        assert_eq!(state.version("20260401"), VersionState::default());
        state.start("20260401", false);
        state.update("20260401", DataType::Labels, |known| *known = file(5, false));
        state.update("20260401", DataType::Masters, |known| *known = file(7, true));
        state.announced("20260401", Some(Value::from("x")));
        state.announced("20260501", None); // which is not known
        let known = state.version("20260401");
        state.save().unwrap();
        state.update("20260401", DataType::Labels, |known| known.complete = true); // not saved
        drop(state);

        let state = State::open(&directory).unwrap();
        assert_eq!(state.version("20260401"), known);
        assert_eq!(known.file(DataType::Labels), Some(&file(5, false)));
        assert_eq!((known.file(DataType::Artists), known.counts()), (None, vec![(DataType::Masters, 7)]));
        assert!(known.announced_at.is_some() && state.version("20260501") == VersionState::default());
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 2);
    }

    #[test]
    fn a_version_keeps_its_start_unless_it_is_forced() {
        let folder = Folder::new();
        let state = State::open(folder.path()).unwrap();
        state.start("20260401", false);
        state.update("20260401", DataType::Labels, |known| *known = file(5, true));
        state.announced("20260401", Some(Value::from("x")));
        let known = state.version("20260401");
        assert!(chrono::DateTime::parse_from_rfc3339(&known.started_at).is_ok() && known.started_at.ends_with('Z'));
        state.start("20260401", false);
        assert_eq!(state.version("20260401"), known);
        state.start("20260401", true);
        let forced = state.version("20260401");
        assert!(forced.started_at > known.started_at);
        assert_eq!((forced.announced_at, forced.files.len()), (None, 0));
        assert_eq!(forced.owed, Some(Value::from("x")), "the first run's");
    }

    #[test]
    fn what_is_owed_is_owed_until_it_is_delivered() {
        let folder = Folder::new();
        let state = State::open(folder.path()).unwrap();
        let (old, new) = (Value::from("old"), Value::from("new"));
        for version in ["20260401", "20260501"] {
            state.start(version, false);
            state.announced(version, Some(old.clone()));
        }
        state.announced("20260501", Some(new.clone()));
        state.delivered("20260501", &old); // which was begun before the new one
        assert_eq!(state.owed(), [("20260401".to_owned(), old.clone()), ("20260501".to_owned(), new)]);
        state.delivered("20260401", &old);
        assert_eq!(state.owed().len(), 1);
        state.announced("20260501", None);
        assert_eq!(state.owed(), []);
    }

    #[test]
    fn the_version_before_is_the_newest_announced_one() {
        let folder = Folder::new();
        let state = State::open(folder.path()).unwrap();
        for (version, announced) in [("20260101", true), ("20260201", true), ("20260301", false), ("20260501", true)] {
            state.start(version, false);
            state.update(version, DataType::Labels, |known| *known = file(version.len() as u64, true));
            if announced {
                state.announced(version, None);
            }
        }
        assert_eq!(state.before("20260401"), Some(("20260201".to_owned(), vec![(DataType::Labels, 8 + 1 + 2)])));
        assert_eq!(state.before("20260101"), None);
    }

    #[test]
    fn a_second_extractor_is_refused() {
        let folder = Folder::new();
        let state = State::open(folder.path()).unwrap();
        let error = State::open(folder.path()).err().unwrap();
        assert!(error.contains("another extractor is using it"), "{error}");
        drop(state);
        assert!(State::open(folder.path()).is_ok());
    }

    #[test]
    fn a_damaged_state_is_told_and_left_alone() {
        let folder = Folder::new();
        for text in ["", "{", r#"{"versions":{"20260401":{}}}"#, "[]"] {
            let path = folder.file("state.json", text);
            let error = State::open(folder.path()).err().unwrap();
            assert!(error.contains("state.json is damaged; remove it to start over"), "{error}");
            assert_eq!(fs::read_to_string(path).unwrap(), text);
        }
        let file = folder.file("file", "");
        assert!(State::open(&file).err().unwrap().contains("choose another with --state"));
    }

    #[test]
    fn a_fingerprint_tells_files_apart() {
        let folder = Folder::new();
        let of = |bytes: &[u8]| fingerprint(&folder.input("x", DataType::Labels, bytes)).unwrap();
        for length in [0, 1, 1000, FINGERPRINT as usize, FINGERPRINT as usize + 1, 3 * FINGERPRINT as usize] {
            let bytes = vec![b'x'; length];
            let print = of(&bytes);
            assert_eq!(of(&bytes), print);
            assert!(print.starts_with(&format!("{length}-")));
            assert_ne!(of(&[&bytes[..], b"x"].concat()), print);
            for at in [0, length / 8, length.saturating_sub(1)] {
                let mut other = bytes.clone();
                if let Some(byte) = other.get_mut(at) {
                    *byte = b'y';
                    assert_ne!(of(&other), print, "{at} of {length}");
                }
            }
        }
        let stdin = Input { path: "-".into(), data_type: DataType::Labels, version: String::new() };
        assert_eq!(fingerprint(&stdin).unwrap(), "stdin");
        assert!(fingerprint(&Input { path: folder.path().join("none"), ..stdin }).is_err());
    }
}
