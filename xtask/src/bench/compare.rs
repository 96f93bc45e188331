//! Against a baseline: the binaries of an earlier state, run by turns with those of now, in one run. What the same binary differs by
//! from itself in that run is its noise; a change is a regression if it is beyond that.

use std::path::{Path, PathBuf};

use common::DataType;

use super::drain::{Bench, Drained, clear, records};
use super::{Options, Spread};
use crate::Error;
use crate::demo::{self, step};
use crate::services::Services;

/// The workers whose binaries a baseline holds.
pub const WORKERS: [&str; 2] = ["tableinator", "graphinator"];
/// A loss that small is none, however quiet the machine is.
const TOLERANCE: f64 = 0.05;
/// Times that a ratio must be beyond the noise.
const BEYOND: f64 = 2.0;

/// Copies the binaries of now to where `--against` finds them.
///
/// # Errors
/// The file system's.
pub fn save(to: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(to)?;
    for worker in WORKERS {
        std::fs::copy(demo::binary(worker)?, to.join(worker))?;
    }
    println!("The baseline is in {}", to.display());
    Ok(())
}

/// Natural logarithms of ratios within a round, of one kind of work.
#[derive(Default)]
struct Ratios {
    /// Now against the baseline.
    change: Vec<f64>,
    /// The baseline against itself.
    noise: Vec<f64>,
}

impl Ratios {
    fn add(&mut self, before: f64, now: f64, after: f64) {
        self.change.push((now / (before * after).sqrt()).ln());
        self.noise.push((after / before).ln().abs());
    }

    /// Median ratio, noise (a share), and whether that is a loss.
    fn judged(&self) -> (f64, f64, bool) {
        let change = Spread::of(self.change.clone()).median;
        let noise = Spread::of(self.noise.clone()).median;
        (change.exp(), noise.exp_m1(), change < -TOLERANCE.max(BEYOND * noise))
    }
}

/// Drains every queue with the baseline, with the binary of now, and with the baseline again.
///
/// # Errors
/// What went wrong, or which work has become slower.
pub async fn run(services: &Services, options: &Options, against: &Path) -> Result<(), Error> {
    let mut lost = Vec::new();
    for worker in WORKERS.into_iter().filter(|worker| options.measures(worker)) {
        step(&format!(
            "{worker}: now against {}, rate and (1 / processor time of the worker), median and noise",
            against.display()
        ));
        clear(services).await?;
        let binaries: [PathBuf; 3] = [against.join(worker), demo::binary(worker)?, against.join(worker)];
        for data_type in options.types() {
            for (what, [rate, cpu]) in rounds(services, options, worker, data_type, &binaries).await? {
                let ((rate, noise, slower), (cpu, cpu_noise, dearer)) = (rate.judged(), cpu.judged());
                println!("   {:<9} {what:<11}{rate:>6.2} ±{noise:.2}   {cpu:>6.2} ±{cpu_noise:.2}", data_type.name());
                if slower || dearer {
                    lost.push(format!("{worker} {data_type} {what}"));
                }
            }
        }
    }
    if lost.is_empty() {
        Ok(())
    } else {
        Err(format!("slower than the baseline, beyond noise: {}", lost.join(", ")).into())
    }
}

async fn rounds(
    services: &Services,
    options: &Options,
    worker: &'static str,
    data_type: DataType,
    binaries: &[PathBuf; 3],
) -> Result<[(&'static str, [Ratios; 2]); 2], Error> {
    let bench = Bench::new(services, worker, data_type, options.scaled(records(worker, data_type))).await?;
    let mut works = [("first load", [Ratios::default(), Ratios::default()]), ("unchanged", Default::default())];
    for _ in 0..options.rounds {
        let mut drained: [[Drained; 3]; 2] = Default::default();
        for (at, binary) in binaries.iter().enumerate() {
            demo::empty(services).await?;
            for (work, name) in drained.iter_mut().zip(["first", "unchanged"]) {
                work[at] = bench.drain(binary, &options.settings, name).await?;
            }
        }
        for ((_, [rate, cpu]), [before, now, after]) in works.iter_mut().zip(drained) {
            rate.add(before.rate, now.rate, after.rate);
            cpu.add(1.0 / before.cost.worker, 1.0 / now.cost.worker, 1.0 / after.cost.worker);
        }
    }
    Ok(works)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_what_goes_beyond_the_noise() {
        let ratios = |rounds: &[[f64; 3]]| {
            let mut ratios = Ratios::default();
            rounds.iter().for_each(|[before, now, after]| ratios.add(*before, *now, *after));
            ratios.judged()
        };
        let (change, noise, lost) = ratios(&[[100.0, 80.0, 100.0], [100.0, 81.0, 101.0], [99.0, 80.0, 100.0]]);
        assert!(lost && (change - 0.80).abs() < 0.01 && noise < 0.02, "{change} {noise}");
        assert!(!ratios(&[[100.0, 97.0, 100.0]; 3]).2, "within the tolerance");
        assert!(!ratios(&[[100.0, 80.0, 130.0]; 3]).2, "within the noise");
        assert!(!ratios(&[[100.0, 140.0, 100.0]; 3]).2, "faster");
    }
}
