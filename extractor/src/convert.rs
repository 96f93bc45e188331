//! `extractor convert`: a file's records in another format, in the shape of the messages.

use std::collections::BTreeSet;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use clap::Args;
use common::DataType;

use crate::cli::{data_type, tell};
use crate::input::{Format, Input, Next, Records};
use crate::message::{Canonical, Encoder, Outcome};
use crate::node::{Node, Object};
use crate::plan::{Wanted, plan};
use crate::summary::counted;
use crate::table::cell;

/// What to convert.
#[derive(Clone, Debug, Args)]
pub struct ConvertArgs {
    /// A file, or - for the standard input (JSON lines only: CSV needs two passes)
    pub path: PathBuf,
    /// What to write
    #[arg(long, value_enum)]
    pub to: To,
    /// What is in the file, if its name does not say it
    #[arg(long = "type", value_name = "TYPE", value_parser = data_type)]
    pub data_type: Option<DataType>,
    /// How the records are written, if neither the file's name nor its first byte tells it
    #[arg(long)]
    pub format: Option<Format>,
}

/// Formats that can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum To {
    /// A JSON object on each line, keys ascending.
    Jsonl,
    /// A header row with every field that occurs, and a row for each record.
    Csv,
}

/// Why a file is not converted, or not all of it.
#[derive(Debug)]
enum Fault {
    /// What went wrong, for a person.
    Said(String),
    /// The standard output takes nothing.
    Output(io::Error),
}

impl From<io::Error> for Fault {
    fn from(e: io::Error) -> Self {
        Fault::Output(e)
    }
}

/// Writes the records to the standard output. Bad ones are told on the standard error. If whoever reads the output has
/// enough, as `head` has, that is the end, and no error.
///
/// # Errors
/// What went wrong, for a person.
pub fn run(args: &ConvertArgs) -> Result<(), String> {
    let wanted = Wanted::file(&args.path, args.data_type);
    let input = plan(&wanted)?.remove(0).inputs.remove(0);
    let mut out = BufWriter::new(io::stdout().lock());
    let bad = match args.to {
        To::Jsonl => jsonl(&input, args.format, &mut out),
        To::Csv => csv(&input, args.format, &mut out),
    };
    match bad.and_then(|bad| Ok(out.flush().map(|()| bad)?)) {
        Ok(0) => Ok(()),
        Ok(bad) => Err(format!("{}: {} left out, as told above; all others are written", input.name(), counted(bad))),
        Err(Fault::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(Fault::Output(e)) => Err(format!("the standard output can't be written: {e}")),
        Err(Fault::Said(e)) => Err(e),
    }
}

fn jsonl(input: &Input, format: Option<Format>, out: &mut impl Write) -> Result<u64, Fault> {
    let mut bad = 0;
    let told = |text: String| {
        bad += 1;
        tell(&text);
    };
    each(input, format, told, |mut record| {
        record.write(out)?;
        out.write_all(b"\n")
    })?;
    Ok(bad)
}

/// Two passes: one for the fields that occur, one for the rows.
fn csv(input: &Input, format: Option<Format>, out: &mut impl Write) -> Result<u64, Fault> {
    if input.is_stdin() {
        let why = "CSV needs two passes, and the standard input can be read only once: save it to a file first, or \
                   take --to jsonl";
        return Err(Fault::Said(format!("{}: {why}", input.name())));
    }
    let mut header: BTreeSet<String> = BTreeSet::new();
    each(input, format, drop, |record| {
        for (key, _) in record.entries() {
            if !header.contains(key.as_ref()) {
                header.insert(key.to_string());
            }
        }
        Ok(())
    })?;
    let mut rows = csv::Writer::from_writer(out);
    rows.write_record(&header).map_err(of_csv)?;
    let mut bad = 0;
    let told = |text: String| {
        bad += 1;
        tell(&text);
    };
    each(input, format, told, |mut record| {
        let cells =
            header.iter().map(|name| record.get_mut(name).map(|node: &mut Node<'_>| cell(node)).unwrap_or_default());
        let cells: Vec<String> = cells.collect();
        rows.write_record(&cells).map_err(of_csv)
    })?;
    rows.flush()?;
    Ok(bad)
}

/// The error beneath: whether the output is closed must be told.
fn of_csv(e: csv::Error) -> io::Error {
    match e.into_kind() {
        csv::ErrorKind::Io(e) => e,
        other => io::Error::other(format!("{other:?}")),
    }
}

/// Calls `take` with each record, and `bad` with a line about each that is none.
fn each(
    input: &Input,
    format: Option<Format>,
    mut bad: impl FnMut(String),
    mut take: impl FnMut(Object<'_>) -> io::Result<()>,
) -> Result<(), Fault> {
    let name = input.name();
    let named = |e: &dyn std::fmt::Display| Fault::Said(format!("{name}: {e}"));
    let encoder = Encoder::new(input.data_type, None);
    let mut records = Records::open(input, format, Default::default()).map_err(|e| named(&e))?;
    loop {
        let next = records.next(|record| match encoder.canonical(record) {
            Ok(Canonical { mut record, hash, .. }) => {
                if let Some(hash) = hash {
                    record.insert("sha256", Node::Text(hash.into()));
                }
                take(record).map(|()| None)
            }
            Err(outcome) => Ok(Some(outcome)),
        });
        let (place, reason, detail) = match next.map_err(|e| named(&e))? {
            Next::Record(taken, place) => match taken? {
                Some(Outcome::Unusable { reason, detail, .. }) => (place, reason, detail),
                _ => continue, // without rules nothing is skipped
            },
            Next::Bad(bad) => (bad.begin, bad.reason, bad.detail),
            Next::End => return Ok(()),
        };
        bad(format!("{name}: the record that begins in line {} is left out: {reason}: {detail}", place.line));
    }
}
