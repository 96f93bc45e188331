//! An extractor as a process of its own, and what it left in the queues.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use common::DataType;
use extractor::state::VersionState;
use lapin::message::Delivery;
use serde_json::Value;
use tokio::time::{Instant, sleep};
use xtask::process::{http_get, sum};

use crate::dumps::{Folder, text};
use crate::proxy::Proxy;
use crate::stage::{binary, services};
use crate::{Error, Stage};

/// Longest wait for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(120);

/// A test's corner of the broker, a folder for its dumps, and how its extractors are started.
pub struct Job {
    /// The corner.
    pub stage: Stage,
    /// The folder; the extractors keep their state in `state` within.
    pub folder: Folder,
    /// What `--expect-queues` says.
    pub workers: &'static str,
    /// The extractors' whole environment.
    pub env: BTreeMap<String, String>,
}

impl Job {
    /// A corner with the queues of these workers (with commas between).
    pub async fn new(name: &str, workers: &'static str) -> Result<Job, Error> {
        services();
        let stage = Stage::new(name).await?;
        for worker in workers.split(',').filter(|worker| *worker != "none") {
            stage.declare(worker).await?;
        }
        Job::on(stage, name, workers)
    }

    /// Extractors for this corner as it is.
    pub fn on(stage: Stage, name: &str, workers: &'static str) -> Result<Job, Error> {
        let mut env = stage.env(&[("HEALTH_PORT", "0")]);
        env.retain(|name, _| {
            ["RABBITMQ_HOST", "RABBITMQ_PORT", "RABBITMQ_USERNAME", "RABBITMQ_PASSWORD"].contains(&name.as_str())
                || ["DISCOGS_EXCHANGE_PREFIX", "HEALTH_PORT"].contains(&name.as_str())
        });
        Ok(Job { stage, folder: Folder::new(name)?, workers, env })
    }

    /// The state directory.
    pub fn directory(&self) -> PathBuf {
        self.folder.path.join("state")
    }

    /// What the state file says of a version.
    pub fn state(&self, version: &str) -> Result<VersionState, Error> {
        let contents: Value = serde_json::from_slice(&std::fs::read(self.directory().join("state.json"))?)?;
        Ok(serde_json::from_value(contents["versions"][version].clone())?)
    }

    /// From now on the extractors reach the broker through a proxy, at this many bytes a second per file.
    pub async fn through_proxy(&mut self, pace: u64) -> Result<Proxy, Error> {
        let proxy = Proxy::start(services().get("RABBITMQ_PORT").parse()?, pace).await?;
        self.env.insert("RABBITMQ_PORT".to_owned(), proxy.port.to_string());
        Ok(proxy)
    }

    /// Starts `extractor run` on the folder.
    pub fn start(&self, extra: &[&str]) -> Result<Extraction, Error> {
        let (folder, state) = (text(&self.folder.path), text(self.directory()));
        let args = [&["run", &folder, "--state", &state, "--expect-queues", self.workers], extra].concat();
        self.start_with(&args)
    }

    /// Starts the extractor with these arguments.
    pub fn start_with(&self, args: &[&str]) -> Result<Extraction, Error> {
        Extraction::start(&self.env, args, Stdio::null())
    }

    /// Runs `extractor run` on the folder to its end.
    pub async fn run(&self, extra: &[&str]) -> Result<Ended, Error> {
        self.start(extra)?.ended().await
    }

    /// Runs the extractor with these arguments to its end.
    pub async fn run_with(&self, args: &[&str]) -> Result<Ended, Error> {
        self.start_with(args)?.ended().await
    }

    /// Takes everything out of a worker's queue.
    pub async fn take(&self, worker: &str, data_type: DataType) -> Result<Taken, Error> {
        Ok(Taken(self.stage.drain(&self.stage.topology(worker, data_type).queue).await?))
    }
}

/// A running extractor. Dropping it kills it.
pub struct Extraction {
    child: Child,
    out: Folder,
    port: OnceLock<u16>,
}

impl Extraction {
    /// Starts the extractor with exactly this environment.
    pub fn start(env: &BTreeMap<String, String>, args: &[&str], stdin: Stdio) -> Result<Extraction, Error> {
        services();
        let out = Folder::new("output")?;
        let child = Command::new(binary("extractor"))
            .args(args)
            .env_clear()
            .envs(env)
            .stdin(stdin)
            .stdout(File::create(out.path.join("stdout"))?)
            .stderr(File::create(out.path.join("stderr"))?)
            .spawn()?;
        Ok(Extraction { child, out, port: OnceLock::new() })
    }

    fn text(&self, name: &str) -> String {
        let bytes = std::fs::read(self.out.path.join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn said(&self) -> String {
        format!("{}\n{}", self.text("stdout"), self.stderr())
    }

    /// What it has written to the standard error.
    pub fn stderr(&self) -> String {
        self.text("stderr")
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Port of its HTTP server, once it has said it.
    pub fn port(&self) -> Option<u16> {
        if let Some(port) = self.port.get() {
            return Some(*port);
        }
        let said = self.stderr();
        let (digits, _) = said.split_once("/metrics and /health on port ")?.1.split_once('\n')?;
        Some(*self.port.get_or_init(|| digits.parse().unwrap_or_default()))
    }

    /// `GET path`: status and body.
    pub fn get(&self, path: &str) -> Result<(u16, String), Error> {
        http_get(self.port().ok_or("the extractor has not said its port yet")?, path)
    }

    /// Sum of a metric over all label sets that contain each of `labels`.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        self.get("/metrics").map_or(0.0, |(_, text)| sum(&text, name, labels))
    }

    /// Records of a type that the broker has confirmed, earlier runs included.
    pub fn published(&self, data_type: DataType) -> u64 {
        let health = self.get("/health").ok().and_then(|(_, body)| serde_json::from_str::<Value>(&body).ok());
        health.and_then(|health| health["files"][data_type.name()]["published"].as_u64()).unwrap_or_default()
    }

    /// Waits until `condition` holds.
    pub async fn until(&mut self, what: &str, condition: impl Fn(&Extraction) -> bool) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("the extractor ended ({status}) before it was {what}:\n{}", self.said()).into());
            }
            if Instant::now() > deadline {
                return Err(format!("the extractor is not {what} within {PATIENCE:?}:\n{}", self.said()).into());
            }
            sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Sends a signal by name, such as `TERM` or `KILL`.
    pub fn signal(&self, name: &str) -> Result<(), Error> {
        let status = Command::new("kill").args(["-s", name, &self.pid().to_string()]).status()?;
        status.success().then_some(()).ok_or_else(|| format!("kill -s {name} failed").into())
    }

    /// Waits for the end.
    pub async fn ended(mut self) -> Result<Ended, Error> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Ended { status, out: self.text("stdout"), err: self.stderr() });
            }
            if Instant::now() > deadline {
                return Err(format!("the extractor did not end within {PATIENCE:?}:\n{}", self.said()).into());
            }
            sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Extraction {
    fn drop(&mut self) {
        // Ended already, or about to be: there is nobody to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How an extractor ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Ended {
    /// Asserts the exit status.
    pub fn with(self, code: i32) -> Ended {
        assert_eq!(self.status.code(), Some(code), "{}\n{}", self.out, self.err);
        self
    }

    /// Asserts that it said each of these, on whichever output.
    pub fn saying(self, parts: &[&str]) -> Ended {
        for part in parts {
            assert!(self.out.contains(part) || self.err.contains(part), "no {part:?} in:\n{}\n{}", self.out, self.err);
        }
        self
    }

    /// Asserts that it said none of these.
    pub fn without(self, parts: &[&str]) -> Ended {
        for part in parts {
            assert!(!self.out.contains(part) && !self.err.contains(part), "{part:?} in:\n{}\n{}", self.out, self.err);
        }
        self
    }
}

/// What was in a queue.
pub struct Taken(pub Vec<Delivery>);

impl Taken {
    /// The bodies of the data messages.
    pub fn data(&self) -> Vec<&[u8]> {
        self.0.iter().map(|message| message.data.as_slice()).filter(|body| body.starts_with(DATA)).collect()
    }

    /// The control messages.
    pub fn controls(&self) -> Result<Vec<Value>, Error> {
        let bodies = self.0.iter().map(|message| message.data.as_slice()).filter(|body| !body.starts_with(DATA));
        Ok(bodies.map(serde_json::from_slice).collect::<Result<_, _>>()?)
    }

    /// The types of the control messages, of which all must come behind the data.
    pub fn ending(&self) -> Result<Vec<String>, Error> {
        let first = self.0.iter().position(|message| !message.data.starts_with(DATA)).unwrap_or(self.0.len());
        let late = self.0[first..].iter().filter(|message| message.data.starts_with(DATA)).count();
        assert_eq!(late, 0, "data messages behind a control message");
        Ok(self.controls()?.iter().map(|control| control["type"].as_str().unwrap_or_default().to_owned()).collect())
    }

    /// What the control messages are of: the version of an `extraction_complete`, else `file_complete`.
    pub fn controlled(&self) -> Result<Vec<String>, Error> {
        let of = |control: &Value| control["version"].as_str().unwrap_or("file_complete").to_owned();
        Ok(self.controls()?.iter().map(of).collect())
    }

    /// Asserts that the data messages are these, in order, byte by byte.
    pub fn assert_data(&self, what: &str, expected: &[Vec<u8>]) {
        let data = self.data();
        for (at, (got, expected)) in data.iter().zip(expected).enumerate() {
            let [got, expected] = [got, expected.as_slice()].map(String::from_utf8_lossy);
            assert_eq!(got, expected, "{what}: message {at}");
        }
        assert_eq!(data.len(), expected.len(), "{what}: number of messages");
    }

    /// Asserts that everything of a run is here, once and in order.
    pub fn assert_whole(&self, what: &str, expected: &[Vec<u8>]) -> Result<(), Error> {
        self.assert_data(what, expected);
        assert_eq!(self.ending()?, ["file_complete", "extraction_complete"], "{what}");
        Ok(())
    }

    /// Asserts that every expected message is here and no other, first occurrences in order. Returns to which indexes it
    /// was gone back, in order.
    pub fn assert_resumed(&self, what: &str, expected: &[Vec<u8>]) -> Vec<usize> {
        let places: HashMap<&[u8], usize> =
            expected.iter().enumerate().map(|(at, body)| (body.as_slice(), at)).collect();
        assert_eq!(places.len(), expected.len(), "{what}: the records must differ");
        let (mut last, mut seen, mut back) = (None, 0, Vec::new());
        for body in self.data() {
            let place = places.get(body).copied();
            let place = place.unwrap_or_else(|| panic!("{what}: invented {}", String::from_utf8_lossy(body)));
            assert!(place <= seen, "{what}: message {place} came, but {seen} did not");
            if place != last.map_or(0, |last| last + 1) {
                back.push(place);
            }
            (last, seen) = (Some(place), seen.max(place + 1));
        }
        assert_eq!(seen, expected.len(), "{what}: messages are missing at the end");
        back
    }
}

/// How a data message begins.
const DATA: &[u8] = br#"{"type":"data","#;
