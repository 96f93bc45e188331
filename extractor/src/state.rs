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
    /// By type name.
    #[serde(default)]
    pub files: BTreeMap<String, FileState>,
}

impl VersionState {
    /// What is known of a type's file.
    pub fn file(&self, data_type: DataType) -> Option<&FileState> {
        self.files.get(data_type.name())
    }

    /// Records of each type whose file is complete.
    pub fn counts(&self) -> Counts {
        let complete = |t: &DataType| self.file(*t).filter(|file| file.complete).map(|file| (*t, file.mark.processed));
        DataType::ALL.iter().filter_map(complete).collect()
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

    /// The newest announced version before this one, with its counts.
    pub fn before(&self, version: &str) -> Option<(String, Counts)> {
        let contents = self.lock();
        let announced = |(_, state): &(&String, &VersionState)| state.announced_at.is_some();
        contents
            .versions
            .range(..version.to_owned())
            .rev()
            .find(announced)
            .map(|(v, state)| (v.clone(), state.counts()))
    }

    /// Notes that a version is worked on: the first time, or anew if it is `forced`.
    pub fn start(&self, version: &str, forced: bool) {
        let mut contents = self.lock();
        let state = contents.versions.entry(version.to_owned()).or_default();
        if forced || state.started_at.is_empty() {
            *state = VersionState { started_at: timestamp(Utc::now()), ..VersionState::default() };
        }
    }

    /// Changes what is known of a type's file.
    pub fn update(&self, version: &str, data_type: DataType, change: impl FnOnce(&mut FileState)) {
        let mut contents = self.lock();
        let state = contents.versions.entry(version.to_owned()).or_default();
        change(state.files.entry(data_type.name().to_owned()).or_default());
    }

    /// Notes that the end of a version was announced.
    pub fn announced(&self, version: &str) {
        if let Some(state) = self.lock().versions.get_mut(version) {
            state.announced_at = Some(timestamp(Utc::now()));
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
