//! The mixed faults again and again, with new seeds, for as long as is asked.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};

use crate::Error;
use crate::services::{cargo, script};

/// What to run.
#[derive(Args, Debug)]
pub struct Options {
    /// Runs begin as long as this much time has not passed
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Seed of the first run; each further run has the next one
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Replicas of each worker
    #[arg(long, default_value_t = 1)]
    replicas: usize,
    /// Which workers load
    #[arg(long, value_enum, default_value_t = Which::Both)]
    worker: Which,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Which {
    Tableinator,
    Graphinator,
    Both,
}

/// Runs them and prints the sums of their numbers.
///
/// # Errors
/// If there was a run that lost or misfiled something, or that did not come to its end.
pub fn run(options: &Options) -> Result<(), Error> {
    print!("{}", script(&["up"])?);
    let started = Instant::now();
    let worker = options.worker.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default();
    let (mut totals, mut seeds, mut failed) = (BTreeMap::new(), Vec::new(), Vec::new());
    for seed in options.seed.. {
        if !seeds.is_empty() && started.elapsed() >= Duration::from_secs(options.minutes * 60) {
            break;
        }
        seeds.push(seed);
        let mut test = cargo(&["test", "--quiet", "-p", "integration-tests", "--test", "trust_mixed"])
            .args(["mixed_faults", "--", "--exact", "--nocapture"])
            .env("TRUST_SEED", seed.to_string())
            .env("TRUST_REPLICAS", options.replicas.to_string())
            .env("TRUST_WORKER", &worker)
            .stdout(Stdio::piped())
            .spawn()?;
        for line in test.stdout.take().map(BufReader::new).into_iter().flat_map(BufRead::lines) {
            let line = line?;
            if line.starts_with("trust: ") || line.contains("rror") {
                println!("{line}");
            }
            if line.starts_with("trust: seed=") {
                add(&mut totals, &line);
            }
        }
        if !test.wait()?.success() {
            failed.push(seed);
        }
    }
    let sums: Vec<String> = totals.iter().map(|(name, sum)| format!("{name}={sum}")).collect();
    println!("{} runs in {} s, seeds {seeds:?}: {}", seeds.len(), started.elapsed().as_secs(), sums.join(" "));
    if failed.is_empty() { Ok(()) } else { Err(format!("failed with the seeds {failed:?}").into()) }
}

/// Adds the numbers of a run's last line, `trust: seed=1 replicas=1 published=… lost=0 …`.
fn add(totals: &mut BTreeMap<String, u64>, line: &str) {
    for (name, value) in line.split(' ').filter_map(|word| word.split_once('=')) {
        if let (false, Ok(value)) = (["seed", "replicas"].contains(&name), value.parse::<u64>()) {
            *totals.entry(name.to_owned()).or_default() += value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_add_up() {
        let mut totals = BTreeMap::new();
        add(&mut totals, "trust: seed=1 replicas=3 published=10 lost=0 (tableinator: 1 killed)");
        add(&mut totals, "trust: seed=2 replicas=3 published=5 lost=1");
        assert_eq!(totals, BTreeMap::from([("published".to_owned(), 15), ("lost".to_owned(), 1)]));
    }
}
