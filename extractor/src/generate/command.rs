//! `extractor generate`.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use clap::Args;
use flate2::write::GzEncoder;
use indicatif::{HumanBytes, HumanCount};
use sha2::{Digest, Sha256};

use super::{Spec, write};
use crate::cli::say;
use crate::message::hex;
use common::DataType;

/// What to generate.
#[derive(Clone, Debug, Args)]
pub struct GenerateArgs {
    /// Folder for the files; those of the same date are replaced
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Records over all four types, in Discogs' proportions
    #[arg(long, default_value_t = 50_000)]
    pub records: usize,
    /// The same seed gives the same files
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// 1, or the number of a month after it; each is derived from the one before
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=120))]
    pub month: u32,
    /// Share of the records that change from month to month
    #[arg(long, default_value_t = 0.03, value_parser = share)]
    pub changed: f64,
    /// Share of the records that vanish from month to month
    #[arg(long, default_value_t = 0.001, value_parser = share)]
    pub removed: f64,
    /// Date in the files' names [default: 20260101 and so on, by month]
    #[arg(long, value_name = "DATE")]
    pub dump: Option<String>,
    /// Write .xml instead of .xml.gz
    #[arg(long)]
    pub plain: bool,
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "give a number from 0 to 1".to_owned())?;
    (0.0..=1.0).contains(&share).then_some(share).ok_or_else(|| "give a number from 0 to 1".to_owned())
}

/// The date of a generated month's dump.
pub fn date(month: u32) -> String {
    let months = month.saturating_sub(1);
    format!("{}{:02}01", 2026 + months / 12, months % 12 + 1)
}

/// Writes the four files and their checksum file.
///
/// # Errors
/// What went wrong, for a person.
pub fn run(args: &GenerateArgs) -> Result<(), String> {
    let named = |e: io::Error| format!("{}: {e}", args.out.display());
    let dump = args.dump.clone().unwrap_or_else(|| date(args.month));
    let spec = Spec {
        seed: args.seed,
        records: args.records,
        month: args.month,
        changed: args.changed,
        removed: args.removed,
    };
    fs::create_dir_all(&args.out).map_err(named)?;
    let mut sums = String::new();
    for kind in DataType::ALL {
        let name = format!("discogs_{dump}_{}.xml{}", kind.name(), if args.plain { "" } else { ".gz" });
        let mut file =
            Summed { inner: BufWriter::new(File::create(args.out.join(&name)).map_err(named)?), hash: Sha256::new() };
        let written = if args.plain {
            write(&spec, kind, &mut file)
        } else {
            let mut packed = GzEncoder::new(&mut file, flate2::Compression::default());
            write(&spec, kind, &mut packed).and_then(|written| packed.finish().map(|_| written))
        };
        let written = written.and_then(|written| file.inner.flush().map(|()| written)).map_err(named)?;
        sums.push_str(&format!("{} {name}\n", hex(&file.hash.finalize())));
        say(&format!("{name}: {} records, {} of XML\n", HumanCount(written.records), HumanBytes(written.bytes)));
    }
    fs::write(args.out.join(format!("discogs_{dump}_CHECKSUM.txt")), sums).map_err(named)
}

/// Takes the checksum of what is written.
struct Summed<W> {
    inner: W,
    hash: Sha256,
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hash.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
