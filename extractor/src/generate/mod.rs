//! A seeded generator of Discogs' monthly dumps: the XML files as published, in any size, without Discogs' data.
//!
//! A record is a pure function of seed, kind and number, and of the months in which it changed, so that months agree
//! byte by byte where nothing changed. Nothing is kept beyond the record being written and the relations of its
//! neighbourhood, so memory does not grow with the size.
//!
//! Proportions follow the real dumps, oddities included: empty items, ids missing or 0, dangling references, hubs, two
//! layouts (the older one, before 2025, has a status, images, empty elements), junk dates, scripts, odd characters.
//! The numbers come from published counts of whole dumps and from 1,000 records of each kind, taken evenly over the
//! ids of the dump of August 2020.

mod change;
pub mod command;
mod maker;
mod parts;
mod records;
#[cfg(test)]
mod tests;
mod words;
mod world;
mod xml;

use maker::{Maker, Stream};
use std::io;

use common::DataType;
use world::World;

/// How much to generate, from which seed.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// The same seed gives the same bytes.
    pub seed: u64,
    /// Records over all four types in month 1, in Discogs' proportions (29 % artists, 7 % labels, 8 % masters, 56 %
    /// releases), each type at least one.
    pub records: usize,
    /// Months count from 1. Each is derived from the month before: some records change, some vanish for good, and one
    /// for every 100 of month 1 is new, with a higher id. All others are byte-equal.
    pub month: u32,
    /// The fraction (0 to 1) of a month's records that differ from the month before in a field or two that show in
    /// graph or tables. The same for all months after the first.
    pub changed: f64,
    /// The fraction (0 to 1) of a month's records that the next month does not have. The same for all months.
    pub removed: f64,
}

/// What went into a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Records, all with an id of their own.
    pub records: u64,
    /// Bytes of XML.
    pub bytes: u64,
}

/// Bytes to collect before they are written, so that the output needs no buffer of its own.
const CHUNK: usize = 64 * 1024;

/// Writes the file of one type as the real ones are: no XML declaration, `<artists>`, each record at a line start
/// (line breaks inside a text are raw), `</artists>`. Ids ascend, with gaps.
pub fn write(spec: &Spec, kind: DataType, out: &mut impl io::Write) -> io::Result<Written> {
    let world = World::new(spec);
    let mut neighbours = world.neighbours(kind, 0);
    let mut text = format!("<{}>\n", kind.name());
    let mut written = Written { records: 0, bytes: 0 };
    for index in 0..world.size(kind) {
        let Some(changes) = world.changes(kind, index) else { continue };
        if !neighbours.include(index) {
            neighbours = world.neighbours(kind, index);
        }
        let id = world.id(kind, index);
        let mut maker = world.maker(Stream::Record(kind), id);
        let mut record = maker.record(kind, index, &neighbours);
        for month in changes {
            Maker { old: maker.old, ..world.maker(Stream::Change(kind, month), id) }.change(kind, &mut record);
        }
        record.write(&mut text);
        text.push('\n');
        written.records += 1;
        if text.len() >= CHUNK {
            flush(&mut text, &mut written, out)?;
        }
    }
    text += &format!("</{}>\n", kind.name());
    flush(&mut text, &mut written, out)?;
    Ok(written)
}

fn flush(text: &mut String, written: &mut Written, out: &mut impl io::Write) -> io::Result<()> {
    out.write_all(text.as_bytes())?;
    written.bytes += text.len() as u64;
    text.clear();
    Ok(())
}
