//! The rejects file: a line of JSON for each record that was not published, with its place and the reason.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::input::{Bad, Input};

/// A line of the rejects file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reject {
    /// The file that the record is in.
    pub file: String,
    /// Line of the unpacked file in which the record begins, from 1.
    pub line: u64,
    /// Bytes of the unpacked file before the record.
    pub offset: u64,
    /// Stable name of the fault.
    pub reason: String,
    /// What exactly is wrong.
    pub detail: String,
    /// The beginning of the record's text.
    pub excerpt: String,
}

/// Writes one type's rejects file. It is created with the first reject.
pub struct Rejects {
    path: PathBuf,
    name: String,
    file: Option<File>,
}

impl Rejects {
    /// A writer for an input that is read from `offset` on: what an interrupted run noted from there is dropped, since it
    /// comes again.
    ///
    /// # Errors
    /// [`io::Error`].
    pub fn open(directory: &Path, input: &Input, offset: u64) -> io::Result<Rejects> {
        let path = path(directory, input);
        if path.exists() {
            let mut kept = String::new();
            for line in BufReader::new(File::open(&path)?).lines() {
                let line = line?;
                if serde_json::from_str::<Reject>(&line).is_ok_and(|reject| reject.offset < offset) {
                    kept.push_str(&line);
                    kept.push('\n');
                }
            }
            if kept.is_empty() { fs::remove_file(&path)? } else { fs::write(&path, kept)? }
        }
        Ok(Rejects { path, name: input.name(), file: None })
    }

    /// Writes a line.
    ///
    /// # Errors
    /// [`io::Error`].
    pub fn note(&mut self, bad: &Bad) -> io::Result<()> {
        let reject = Reject {
            file: self.name.clone(),
            line: bad.begin.line,
            offset: bad.begin.offset,
            reason: bad.reason.to_owned(),
            detail: bad.detail.clone(),
            excerpt: bad.excerpt.clone(),
        };
        let mut line = serde_json::to_vec(&reject)?;
        line.push(b'\n');
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(File::options().create(true).append(true).open(&self.path)?),
        };
        file.write_all(&line)
    }
}

/// Where an input's rejects are.
pub fn path(directory: &Path, input: &Input) -> PathBuf {
    directory.join(format!("rejects-{}-{}.jsonl", input.version, input.data_type))
}
