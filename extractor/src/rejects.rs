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
            let mut kept = Vec::new();
            // The last line may be cut off.
            for line in BufReader::new(File::open(&path)?).split(b'\n') {
                let line = line?;
                if serde_json::from_slice::<Reject>(&line).is_ok_and(|reject| reject.offset < offset) {
                    kept.extend_from_slice(&line);
                    kept.push(b'\n');
                }
            }
            if kept.is_empty() {
                fs::remove_file(&path)?;
            } else {
                // In one step: what is lost here is never noted again.
                let temporary = path.with_extension("jsonl.new");
                fs::write(&temporary, kept)?;
                fs::rename(temporary, &path)?;
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::Place;
    use crate::testing::Folder;
    use common::DataType;

    fn bad(offset: u64) -> Bad {
        let begin = Place { offset, line: offset / 10 };
        Bad {
            reason: "malformed_xml",
            detail: "it \"is\"".to_owned(),
            excerpt: "<a>\né".to_owned(),
            begin,
            end: Place::default(),
        }
    }

    /// Offsets of what is in the file, if there is one.
    fn noted(folder: &Folder, input: &Input) -> Option<Vec<u64>> {
        let text = fs::read_to_string(path(folder.path(), input)).ok()?;
        Some(text.lines().map(|line| serde_json::from_str::<Reject>(line).unwrap().offset).collect())
    }

    #[test]
    fn a_line_has_everything_about_a_record() {
        let folder = Folder::new();
        let input = folder.input("x.xml", DataType::Labels, "");
        let mut rejects = Rejects::open(folder.path(), &input, 0).unwrap();
        assert_eq!(noted(&folder, &input), None);
        rejects.note(&bad(70)).unwrap();
        assert_eq!(
            fs::read_to_string(folder.path().join("rejects-20260401-labels.jsonl")).unwrap(),
            "{\"file\":\"x.xml\",\"line\":7,\"offset\":70,\"reason\":\"malformed_xml\",\"detail\":\"it \\\"is\\\"\",\"excerpt\":\"<a>\\né\"}\n"
        );
    }

    #[test]
    fn what_comes_again_is_dropped() {
        let folder = Folder::new();
        let input = folder.input("x.xml", DataType::Labels, "");
        let open = |offset| Rejects::open(folder.path(), &input, offset).unwrap();
        let mut rejects = open(0);
        [10, 20, 30].iter().for_each(|offset| rejects.note(&bad(*offset)).unwrap());
        let mut rejects = open(20);
        assert_eq!(noted(&folder, &input), Some(vec![10]));
        rejects.note(&bad(20)).unwrap();
        rejects.note(&bad(40)).unwrap();
        assert_eq!(noted(&folder, &input), Some(vec![10, 20, 40]));
        // A line that was cut off, in the middle of a character, is none.
        let path = path(folder.path(), &input);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 4]).unwrap();
        assert!(std::str::from_utf8(&whole[..whole.len() - 4]).is_err());
        open(100).note(&bad(40)).unwrap();
        assert_eq!(noted(&folder, &input), Some(vec![10, 20, 40]));
        open(0);
        assert_eq!(noted(&folder, &input), None);
    }
}
