//! Dumps for the extractor: generated or written by hand, and the messages that must become of them.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::DataType;
use extractor::generate::{Spec, write};
use extractor::input::{Input, Next, Records};
use extractor::message::{Encoder, Outcome, hex};
use extractor::rules::Rules;
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};

use crate::Error;

/// Date of the dumps that a [`Folder`] makes unless told otherwise.
pub const MONTH: &str = "20260101";

/// Message bodies in the order of [`DataType::ALL`].
pub type Bodies = [Vec<Vec<u8>>; 4];

static COUNTER: AtomicUsize = AtomicUsize::new(0);

/// A directory for one test. It goes with the test, unless the test fails.
#[derive(Debug)]
pub struct Folder {
    /// Where it is.
    pub path: PathBuf,
}

impl Folder {
    /// An empty directory.
    pub fn new(name: &str) -> Result<Folder, Error> {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("extractor-{name}-{}-{number}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Folder { path })
    }

    /// Path of a type's file of [`MONTH`] with this ending, such as `xml.gz`.
    pub fn file(&self, data_type: DataType, ending: &str) -> PathBuf {
        self.path.join(format!("discogs_{MONTH}_{data_type}.{ending}"))
    }

    /// Paths of all packed files of these months, as arguments.
    pub fn packed(&self, dates: &[&str]) -> Vec<String> {
        let names = dates.iter().flat_map(|date| DataType::ALL.map(|t| format!("discogs_{date}_{t}.xml.gz")));
        names.map(|name| text(self.path.join(name))).collect()
    }

    /// Writes a type's file.
    pub fn write(&self, data_type: DataType, ending: &str, bytes: impl AsRef<[u8]>) -> Result<PathBuf, Error> {
        let path = self.file(data_type, ending);
        fs::write(&path, bytes)?;
        Ok(path)
    }

    /// Writes a generated dump, packed as the real ones are, and tells the messages that must become of it.
    pub fn generate(&self, records: usize, seed: u64) -> Result<Bodies, Error> {
        self.generate_month(&Spec { seed, records, month: 1, changed: 0.0, removed: 0.0 }, MONTH)
    }

    /// Writes the checksum file of [`MONTH`]'s packed dump, as the real one is: one blank before the name.
    pub fn write_checksums(&self) -> Result<PathBuf, Error> {
        let mut sums = String::new();
        for t in DataType::ALL {
            let sum = hex(&Sha256::digest(fs::read(self.file(t, "xml.gz"))?));
            sums += &format!("{sum} discogs_{MONTH}_{t}.xml.gz\n");
        }
        let path = self.path.join(format!("discogs_{MONTH}_CHECKSUM.txt"));
        fs::write(&path, sums)?;
        Ok(path)
    }

    /// The dump of any month, under any date.
    pub fn generate_month(&self, spec: &Spec, date: &str) -> Result<Bodies, Error> {
        let mut all = Bodies::default();
        for data_type in DataType::ALL {
            let path = self.path.join(format!("discogs_{date}_{data_type}.xml.gz"));
            let mut out = GzEncoder::new(File::create(&path)?, Compression::fast());
            write(spec, data_type, &mut out)?;
            out.finish()?.flush()?;
            all[data_type.index()] = bodies(&path, data_type)?;
        }
        Ok(all)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // What is left in the temporary directory does no harm.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// The messages of all records of a file.
pub fn bodies(path: &Path, data_type: DataType) -> Result<Vec<Vec<u8>>, Error> {
    bodies_under(path, data_type, None)
}

/// The messages of all records of a file that the rules leave.
pub fn bodies_under(path: &Path, data_type: DataType, rules: Option<Arc<Rules>>) -> Result<Vec<Vec<u8>>, Error> {
    let input = Input { path: path.to_owned(), data_type, version: MONTH.to_owned() };
    let mut records = Records::open(&input, None, Arc::default())?;
    let mut encoder = Encoder::new(data_type, rules);
    let mut all = Vec::new();
    loop {
        match records.next(|record| encoder.encode(record))? {
            Next::Record(Outcome::Message(body), _) => all.push(body),
            Next::Record(Outcome::Skipped, _) => {}
            Next::End => return Ok(all),
            other => return Err(format!("{}: {other:?}", path.display()).into()),
        }
    }
}

/// A path as an argument.
pub fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().to_string_lossy().into_owned()
}
