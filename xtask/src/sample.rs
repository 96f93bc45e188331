//! Generated messages in memory, for the tests: a generated dump, read as the extractor reads it.

use common::DataType;
use extractor::generate;
use extractor::input::{Format, Next, Records};
use extractor::message::{self, Encoder, Outcome};

/// How much to generate, from which seed.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The same seed gives the same bytes.
    pub seed: u64,
    /// Records over all four types, in Discogs' proportions, each type at least one.
    pub records: usize,
}

/// The bodies of one month's data messages, per type, in ascending id order, exactly as on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Messages of the exchange for artists.
    pub artists: Vec<Vec<u8>>,
    /// Messages of the exchange for labels.
    pub labels: Vec<Vec<u8>>,
    /// Messages of the exchange for masters.
    pub masters: Vec<Vec<u8>>,
    /// Messages of the exchange for releases.
    pub releases: Vec<Vec<u8>>,
}

/// The first month.
pub fn generate(spec: &Spec) -> Sample {
    month(&generate::Spec { seed: spec.seed, records: spec.records, month: 1, changed: 0.0, removed: 0.0 })
}

/// The month after `generate(spec)`: the fraction `changed` of the records differs in a field or two that show in graph
/// or tables, the fraction `removed` is gone, about 1 % are new; all others are byte-equal.
pub fn next_month(spec: &Spec, changed: f64, removed: f64) -> Sample {
    month(&generate::Spec { seed: spec.seed, records: spec.records, month: 2, changed, removed })
}

/// `count` messages of one type, as [`generate`] makes them.
///
/// # Errors
/// If a record can't be a message.
pub fn of_type(seed: u64, data_type: DataType, count: usize) -> Result<Vec<Vec<u8>>, crate::Error> {
    let percent = match data_type {
        DataType::Artists => 29,
        DataType::Labels => 7,
        DataType::Masters => 8,
        DataType::Releases => 56,
    };
    let records = (count * 100).div_ceil(percent);
    let mut bodies = bodies(&generate::Spec { seed, records, month: 1, changed: 0.0, removed: 0.0 }, data_type)?;
    bodies.truncate(count);
    Ok(bodies)
}

fn month(spec: &generate::Spec) -> Sample {
    let bodies = |data_type| bodies(spec, data_type).unwrap_or_else(|e| panic!("generated {data_type}: {e}"));
    Sample {
        artists: bodies(DataType::Artists),
        labels: bodies(DataType::Labels),
        masters: bodies(DataType::Masters),
        releases: bodies(DataType::Releases),
    }
}

fn bodies(spec: &generate::Spec, data_type: DataType) -> Result<Vec<Vec<u8>>, crate::Error> {
    let mut xml = Vec::new();
    generate::write(spec, data_type, &mut xml)?;
    let mut bodies = Vec::new();
    let records = Records::from_reader(Box::new(std::io::Cursor::new(xml)), data_type, Some(Format::Xml))?;
    each_message(records, data_type, |body| bodies.push(body))?;
    Ok(bodies)
}

/// Calls `take` with the message of each record, as the extractor makes it.
///
/// # Errors
/// If a record can't be a message.
pub fn each_message(
    mut records: Records,
    data_type: DataType,
    mut take: impl FnMut(Vec<u8>),
) -> Result<(), crate::Error> {
    let mut encoder = Encoder::new(data_type, None);
    loop {
        match records.next(|record| encoder.encode(record))? {
            Next::Record(Outcome::Message(body), _) => take(body),
            Next::End => return Ok(()),
            other => return Err(format!("not a message: {other:?}").into()),
        }
    }
}

/// The message that ends a type's file.
pub fn file_complete(data_type: DataType, version: &str, records: usize) -> Vec<u8> {
    let file = format!("discogs_{version}_{data_type}.xml.gz");
    message::file_complete(data_type, records as u64, &file, chrono::Utc::now())
}

/// The message that ends a month, one copy for each exchange.
pub fn extraction_complete(version: &str, started_at: &str, counts: [(DataType, usize); 4]) -> Vec<u8> {
    let counts = counts.iter().map(|(t, count)| (*t, *count as u64)).collect();
    message::extraction_complete(version, started_at, &counts, chrono::Utc::now())
}
