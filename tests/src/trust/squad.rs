//! The replicas of one worker, and the sums of what they said about themselves.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use xtask::process::{Worker, sum};

use crate::{Error, Stage};

/// Some replicas of a worker.
pub struct Squad {
    /// `tableinator` or `graphinator`.
    pub name: &'static str,
    /// Its environment, beside the stage's.
    env: Vec<(String, String)>,
    /// Those that run; a place is empty between a member's end and its next start.
    members: Vec<Option<Worker>>,
    /// Those that are stopped (SIGSTOP), each with the connections that it had lost before.
    frozen: Vec<(Worker, f64)>,
    /// Those that were, and go on.
    woken: Vec<(Worker, f64)>,
    started: usize,
    /// Members that ended in order.
    pub ended: usize,
    /// Members that were killed.
    pub killed: usize,
    /// What those that ended in order settled: committed and dead-lettered.
    pub settled: u64,
}

/// What must add up at the end of each worker's life (README, "Exit status").
const FATES: [&str; 5] = ["committed", "dead_lettered", "control_messages", "returned", "remained"];

impl Squad {
    /// A squad of this size, of which nobody runs yet.
    pub fn new(name: &'static str, size: usize, env: Vec<(String, String)>) -> Squad {
        let members = (0..size).map(|_| None).collect();
        let (frozen, woken) = (Vec::new(), Vec::new());
        Squad { name, env, members, frozen, woken, started: 0, ended: 0, killed: 0, settled: 0 }
    }

    /// Starts whoever does not run.
    pub fn fill(&mut self, stage: &Stage) -> Result<(), Error> {
        for place in self.members.iter_mut().filter(|place| place.is_none()) {
            let env: Vec<(&str, &str)> = self.env.iter().map(|(name, value)| (&**name, &**value)).collect();
            *place = Some(stage.spawn_as(self.name, &format!("-{}", self.started), &env)?);
            self.started += 1;
        }
        Ok(())
    }

    /// Those that run.
    pub fn running(&self) -> impl Iterator<Item = &Worker> {
        self.members.iter().flatten().chain(self.woken.iter().map(|(worker, _)| worker))
    }

    /// Waits until somebody is ready.
    pub async fn ready(&mut self) -> Result<(), Error> {
        match self.members.iter_mut().flatten().next() {
            Some(first) => first.ready().await,
            None => Err("nobody runs".into()),
        }
    }

    /// A metric, summed up over all that run.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        self.running().map(|worker| worker.metric(name, labels)).sum::<f64>() + 0.0 // a sum of nothing is -0
    }

    /// How often something is in the logs of those that run.
    pub fn logged(&self, what: &str) -> usize {
        self.running().map(|worker| worker.log_text().matches(what).count()).sum()
    }

    /// SIGKILL for one of them.
    pub async fn kill(&mut self, which: usize) -> Result<(), Error> {
        let which = which % self.members.len();
        if let Some(mut worker) = self.members[which].take() {
            worker.signal("KILL")?;
            let status = worker.ended().await?;
            if status.code().is_some() {
                return Err(format!("{} had ended before it was killed: {status}", self.name).into());
            }
            self.killed += 1;
        }
        Ok(())
    }

    /// SIGSTOP for one of them; somebody else takes its place.
    pub fn freeze(&mut self, which: usize, stage: &Stage) -> Result<(), Error> {
        let which = which % self.members.len();
        if let Some(worker) = self.members[which].take() {
            let lost = worker.metric("reconnects_total", &[]);
            worker.signal("STOP")?;
            self.frozen.push((worker, lost));
        }
        self.fill(stage)
    }

    /// SIGCONT for those that are frozen. They go on beside the others, and stay.
    pub fn wake(&mut self) -> Result<(), Error> {
        for (worker, lost) in self.frozen.drain(..) {
            worker.signal("CONT")?;
            self.woken.push((worker, lost));
        }
        Ok(())
    }

    /// How many of those that were frozen have noticed that their connection is gone.
    pub fn aware(&self) -> usize {
        self.woken.iter().filter(|(worker, lost)| worker.metric("reconnects_total", &[]) > *lost).count()
    }

    /// SIGTERM for one of them; what it says at its end must add up.
    pub async fn stop(&mut self, which: usize) -> Result<(), Error> {
        let which = which % self.members.len();
        let Some(mut worker) = self.members[which].take() else { return Ok(()) };
        worker.signal("TERM")?;
        self.farewell(&mut worker).await.map(drop)
    }

    /// SIGTERM for all, who must have nothing to do; also their metrics must say what their last words say.
    pub async fn stop_idle(&mut self) -> Result<(), Error> {
        let woken = std::mem::take(&mut self.woken).into_iter().map(|(worker, _)| worker);
        for mut worker in std::mem::take(&mut self.members).into_iter().flatten().chain(woken) {
            let (_, page) = worker.get("/metrics")?;
            worker.signal("TERM")?;
            let report = self.farewell(&mut worker).await?;
            for (fate, metric) in [
                ("received", "records_received_total"),
                ("committed", "records_committed_total"),
                ("dead_lettered", "records_dead_lettered_total"),
                ("control_messages", "control_messages_total"),
                ("returned", "records_returned_total"),
            ] {
                let counted = sum(&page, metric, &[]);
                if report[fate].as_u64().map(|n| n as f64) != Some(counted) {
                    return Err(format!("{}: {metric} was {counted}, but {report}", self.name).into());
                }
            }
        }
        Ok(())
    }

    async fn farewell(&mut self, worker: &mut Worker) -> Result<Value, Error> {
        let status = worker.ended().await?;
        let report = last_words(&worker.log)?;
        let number = |name: &str| report[name].as_u64().unwrap_or(u64::MAX / 16);
        let fates: u64 = FATES.iter().map(|fate| number(fate)).sum();
        let (received, remained) = (number("received"), number("remained"));
        match status.code() {
            Some(0) if received == fates && remained == 0 => {}
            // The drain took too long: an outage may be going on.
            Some(3) if received == fates => {}
            _ => return Err(format!("{} ended with {status} and does not add up: {report}", self.name).into()),
        }
        self.ended += 1;
        self.settled += number("committed") + number("dead_lettered");
        Ok(report)
    }

    /// Whether nobody holds anything.
    pub fn is_idle(&self) -> bool {
        self.running().all(|worker| {
            worker.get("/metrics").is_ok_and(|(_, page)| {
                // (A spare that never had a queue has no such series.)
                page.contains("connected{") && sum(&page, "unacked_deliveries", &[]) == 0.0
            })
        })
    }

    /// Waits until one of them has deliveries that it has not settled. Says whether that was so in time.
    pub async fn busy(&self, limit: Duration) -> bool {
        let deadline = tokio::time::Instant::now() + limit;
        while self.metric("unacked_deliveries", &[]) == 0.0 {
            if tokio::time::Instant::now() > deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        true
    }
}

/// The numbers of the last line that a worker logged about its whole life.
fn last_words(log: &Path) -> Result<Value, Error> {
    let text = std::fs::read_to_string(log)?;
    let mut lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let last = lines.rfind(|line| line["received"].is_u64() && line["remained"].is_u64());
    last.ok_or_else(|| format!("{} has no final numbers", log.display()).into())
}
