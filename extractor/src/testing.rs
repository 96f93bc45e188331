//! What the tests of several modules share.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use common::DataType;
use flate2::read::GzDecoder;

use crate::input::Input;
use crate::node::Object;

/// A folder that lives as long as this.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Folder {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("extractor-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file; its path.
    pub fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Writes a file of the dump 20260401.
    pub fn input(&self, name: &str, data_type: DataType, bytes: impl AsRef<[u8]>) -> Input {
        Input { path: self.file(name, bytes), data_type, version: "20260401".to_owned() }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Gives at most `step` bytes at a time; then ends, or fails.
pub struct Trickle<'a> {
    pub bytes: &'a [u8],
    pub step: usize,
    pub fails: bool,
}

impl Read for Trickle<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.bytes.is_empty() && self.fails {
            return Err(io::Error::other("the device is gone"));
        }
        let n = self.step.min(buffer.len()).min(self.bytes.len());
        buffer[..n].copy_from_slice(&self.bytes[..n]);
        self.bytes = &self.bytes[n..];
        Ok(n)
    }
}

/// A record's canonical JSON.
pub fn json(mut record: Object<'_>) -> String {
    let mut out = Vec::new();
    record.write(&mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// A text of so many bytes.
pub fn long(bytes: usize) -> String {
    "long text ".repeat(bytes / 10 + 1)[..bytes].to_owned()
}

/// A real dump's file.
pub struct RealFile {
    pub month: &'static str,
    pub data_type: DataType,
    pub path: PathBuf,
    pub xml: Vec<u8>,
    /// The golden messages, one on each line.
    pub messages: Vec<u8>,
}

/// The real dumps with their golden messages. If they are not there, says loudly, past the test harness's capture, that
/// `who` goes without them.
pub fn real_files(who: &str) -> Vec<RealFile> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/golden");
    let golden = std::env::var_os("GOLDEN_DIR").map_or_else(beside, PathBuf::from);
    let data = golden.join("../data");
    if !data.is_dir() || !golden.join("messages").is_dir() {
        let at = golden.display();
        let note =
            format!("\n*** SKIPPED by {who}: no real dumps in {} for {at} (set GOLDEN_DIR) ***\n", data.display());
        let _ = writeln!(io::stderr(), "{note}");
        return Vec::new();
    }
    let unpacked = |path: &Path| {
        let mut bytes = Vec::new();
        GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_end(&mut bytes).unwrap();
        bytes
    };
    let mut files = Vec::new();
    for month in ["20200801", "20260401"] {
        for data_type in DataType::ALL {
            let path = data.join(format!("discogs_{month}_{data_type}.xml.gz"));
            let messages = unpacked(&golden.join(format!("messages/{data_type}.{month}.jsonl.gz")));
            files.push(RealFile { month, data_type, xml: unpacked(&path), path, messages });
        }
    }
    files
}
