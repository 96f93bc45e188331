//! `cargo xtask bench`: how fast everything is, from generated data, against real services. Times vary with the machine and
//! its neighbours; ratios within a run are what counts.

pub mod compare;
pub mod cpu;
pub mod curves;
pub mod drain;
pub mod extract;
pub mod limit;
pub mod plot;

use std::fmt;
use std::path::PathBuf;

use common::DataType;

use crate::Error;
use crate::services::{Services, build_binaries, root};

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Only these parts
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// Only these types [default: all]
    #[arg(long = "type", value_name = "TYPE", value_parser = data_type)]
    types: Vec<DataType>,
    /// Of the curves only these [default: all]
    #[arg(long = "curve", value_enum, value_name = "CURVE")]
    curves: Vec<curves::Curve>,
    /// A setting of the workers, NAME=VALUE
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = setting)]
    settings: Vec<(String, String)>,
    /// Rounds; the medians are told
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Factor on all numbers of records
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Only copy the workers of now to this folder, as a baseline
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
    /// Only compare the workers of now with this baseline, by turns; fails if they are slower beyond noise
    #[arg(long, value_name = "DIR", conflicts_with = "save")]
    against: Option<PathBuf>,
}

/// What can be measured alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Dump to broker
    Extractor,
    /// Queue to PostgreSQL
    Tableinator,
    /// Queue to Neo4j
    Graphinator,
    /// Curves and plots: batch size, prefetch, record size, table size, replicas (half an hour; the workers that are named with it, or both)
    Curves,
}

impl Options {
    fn scaled(&self, records: usize) -> usize {
        ((records as f64 * self.scale) as usize).max(1)
    }

    fn types(&self) -> Vec<DataType> {
        DataType::ALL.into_iter().filter(|t| self.types.is_empty() || self.types.contains(t)).collect()
    }

    fn includes(&self, part: Part) -> bool {
        self.parts.is_empty() || self.parts.contains(&part)
    }

    /// Whether a worker is measured: it is named, or none is.
    fn measures(&self, worker: &str) -> bool {
        let part = if worker == "tableinator" { Part::Tableinator } else { Part::Graphinator };
        self.includes(part) || self.parts == [Part::Curves]
    }
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("give NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn data_type(text: &str) -> Result<DataType, String> {
    DataType::ALL
        .into_iter()
        .find(|t| t.name() == text)
        .ok_or_else(|| "give artists, labels, masters or releases".to_owned())
}

/// Runs the measurement.
///
/// # Errors
/// Whatever went wrong.
pub fn run(options: &Options) -> Result<(), Error> {
    build_binaries()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        if let Some(to) = &options.save {
            return compare::save(to);
        }
        let services = Services::up()?;
        if let Some(against) = &options.against {
            return compare::run(&services, options, against).await;
        }
        println!("records/s, median of {} rounds (lowest to highest)", options.rounds);
        if options.includes(Part::Extractor) {
            extract::run(&services, options).await?;
        }
        if options.parts.contains(&Part::Curves) {
            return curves::run(&services, options).await;
        }
        let mut lines = Vec::new();
        for worker in compare::WORKERS.into_iter().filter(|worker| options.measures(worker)) {
            lines.extend(drain::run(&services, options, worker).await?);
        }
        let results = directory()?.join("results.json");
        std::fs::write(&results, serde_json::to_vec_pretty(&lines)?)?;
        println!("\nThe workers' figures are in {}", results.display());
        if options.parts.is_empty() { curves::run(&services, options).await } else { Ok(()) }
    })
}

/// Where files of a run go.
fn directory() -> Result<PathBuf, Error> {
    let directory = root().join("target/bench");
    std::fs::create_dir_all(&directory)?;
    Ok(directory)
}

/// Median, lowest and highest of some values.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Spread {
    /// The one in the middle.
    pub median: f64,
    /// The lowest.
    pub lowest: f64,
    /// The highest.
    pub highest: f64,
}

impl Spread {
    /// Of these values; zeros if there are none.
    pub fn of(mut values: Vec<f64>) -> Spread {
        values.sort_by(f64::total_cmp);
        let at = |i: usize| values.get(i).copied().unwrap_or_default();
        Spread { median: at(values.len() / 2), lowest: at(0), highest: at(values.len().saturating_sub(1)) }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>9.0}   ({:.0} to {:.0})", self.median, self.lowest, self.highest)
    }
}
