//! `extractor convert`: a file's records in another format, in the shape of the messages.

use std::collections::BTreeSet;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use clap::Args;
use common::DataType;

use crate::cli::data_type;
use crate::input::{Input, Next, Records};
use crate::message::{Canonical, Encoder};
use crate::node::{Node, Object};
use crate::plan::{Wanted, plan};
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
}

/// Formats that can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum To {
    /// A JSON object on each line, keys ascending.
    Jsonl,
    /// A header row with every field that occurs, and a row for each record.
    Csv,
}

/// Writes the records to the standard output. Bad ones are told on the standard error.
///
/// # Errors
/// What went wrong, for a person.
pub fn run(args: &ConvertArgs) -> Result<(), String> {
    let wanted = Wanted::file(&args.path, args.data_type);
    let input = plan(&wanted)?.remove(0).inputs.remove(0);
    let mut out = BufWriter::new(io::stdout().lock());
    let bad = match args.to {
        To::Jsonl => jsonl(&input, &mut out),
        To::Csv => csv(&input, &mut out),
    }?;
    out.flush().map_err(|e| e.to_string())?;
    if bad > 0 { Err(format!("{bad} records of {} can't be converted", input.name())) } else { Ok(()) }
}

fn jsonl(input: &Input, out: &mut impl Write) -> Result<u64, String> {
    let mut line = Vec::new();
    each(input, |mut record| {
        line.clear();
        record.write(&mut line);
        line.push(b'\n');
        out.write_all(&line)
    })
}

/// Two passes: one for the fields that occur, one for the rows.
fn csv(input: &Input, out: &mut impl Write) -> Result<u64, String> {
    if input.is_stdin() {
        return Err("CSV needs two passes over the file, and the standard input can be read only once".to_owned());
    }
    let mut header: BTreeSet<String> = BTreeSet::new();
    each(input, |record| {
        for (key, _) in record.entries() {
            if !header.contains(key.as_ref()) {
                header.insert(key.to_string());
            }
        }
        Ok(())
    })?;
    let mut rows = csv::Writer::from_writer(out);
    rows.write_record(&header).map_err(|e| e.to_string())?;
    let bad = each(input, |mut record| {
        let cells =
            header.iter().map(|name| record.get_mut(name).map(|node: &mut Node<'_>| cell(node)).unwrap_or_default());
        let cells: Vec<String> = cells.collect();
        rows.write_record(&cells).map_err(io::Error::other)
    })?;
    rows.flush().map_err(|e| e.to_string())?;
    Ok(bad)
}

/// Calls `take` with each record. Returns how many are bad.
fn each(input: &Input, mut take: impl FnMut(Object<'_>) -> io::Result<()>) -> Result<u64, String> {
    let named = |e: &dyn std::fmt::Display| format!("{}: {e}", input.name());
    let encoder = Encoder::new(input.data_type, None);
    let mut records = Records::open(input, None, Default::default()).map_err(|e| named(&e))?;
    let mut bad = 0;
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
        match next.map_err(|e| named(&e))? {
            Next::Record(Ok(None), _) => {}
            Next::Record(Ok(Some(outcome)), place) => {
                bad += 1;
                eprintln!("line {}: {outcome:?}", place.line);
            }
            Next::Record(Err(e), _) => return Err(e.to_string()),
            Next::Bad(found) => {
                bad += 1;
                eprintln!("line {}: {}: {}", found.begin.line, found.reason, found.detail);
            }
            Next::End => return Ok(bad),
        }
    }
}
