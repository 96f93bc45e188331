//! Processor time and memory of processes, from Linux' /proc.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::Error;
use crate::services::script;

/// Ticks a second of the times in /proc (`USER_HZ`, 100 on every Linux that this runs on).
const HZ: f64 = 100.0;

/// A process and everything below it, each with its seconds of processor time, those of what ended below it included.
fn family(root: u32) -> Vec<(u32, f64)> {
    let mut stats: HashMap<u32, (u32, f64)> = HashMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // The name (field 2) may hold spaces, so count behind its closing parenthesis.
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
        let fields: Vec<f64> = rest.split(' ').skip(1).map(|field| field.parse().unwrap_or_default()).collect();
        // ppid, then from field 14 on: utime, stime, cutime, cstime
        let [parent, times] =
            [fields.first().copied().unwrap_or_default(), fields.iter().skip(10).take(4).sum::<f64>()];
        stats.insert(pid, (parent as u32, times));
    }
    let below = |mut pid: u32| {
        while pid > 1 && pid != root {
            pid = stats.get(&pid).map_or(0, |(parent, _)| *parent);
        }
        pid == root
    };
    stats.iter().filter(|(pid, _)| below(**pid)).map(|(pid, (_, ticks))| (*pid, ticks / HZ)).collect()
}

/// Seconds of processor time of a process and everything below it.
pub fn seconds(root: u32) -> f64 {
    family(root).iter().map(|(_, seconds)| seconds).sum()
}

/// Keeps all threads of a process and everything below it, and those that they start, on these cores.
///
/// # Errors
/// Those of `taskset`.
pub fn pin(root: u32, cores: &str) -> Result<(), Error> {
    for (pid, _) in family(root) {
        let args = ["--all-tasks", "--cpu-list", "--pid", cores, &pid.to_string()];
        let done = Command::new("taskset").args(args).output()?;
        // One that has ended meanwhile needs no core.
        if !done.status.success() && Path::new(&format!("/proc/{pid}")).exists() {
            return Err(String::from_utf8_lossy(&done.stderr).trim().into());
        }
    }
    Ok(())
}

/// The largest resident memory that a process ever had, in MiB.
pub fn peak_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok()).unwrap_or_default() / 1024.0
}

/// Process id of a service, `rabbitmq`, `postgres` or `neo4j`.
///
/// # Errors
/// If it does not run.
pub fn service(name: &str) -> Result<u32, Error> {
    let status = script(&["status"])?;
    let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    let pid = line.split_once("pid ").and_then(|(_, rest)| rest.trim_end_matches(')').parse().ok());
    pid.ok_or_else(|| format!("{name} does not run: {line}").into())
}

/// Waits until a server has done what it does after its answers. A broker moves messages that it has confirmed from its log into
/// segments, which takes it as long as delivering them.
pub async fn calm(pid: u32) {
    const LONGEST: Duration = Duration::from_secs(20);
    const LOOK: Duration = Duration::from_millis(300);
    const IDLE: f64 = 0.1;
    let started = Instant::now();
    while started.elapsed() < LONGEST {
        let before = seconds(pid);
        sleep(LOOK).await;
        if seconds(pid) - before < IDLE * LOOK.as_secs_f64() {
            return;
        }
    }
}
