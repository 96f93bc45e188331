//! A worker as a process of its own: started, watched over HTTP, stopped by a signal.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::Error;

/// A running worker. Dropping it kills it.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    /// Port of its HTTP server, once it has said it.
    port: OnceLock<u16>,
    /// File with its log, and with those of workers before it.
    pub log: PathBuf,
    /// Where in the file its own log begins.
    log_start: usize,
}

impl Worker {
    /// Starts `binary` with exactly this environment; its log goes to `log`.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start(binary: &Path, env: &BTreeMap<String, String>, log: &Path) -> Result<Worker, Error> {
        let out = File::options().create(true).append(true).open(log)?;
        let log_start = usize::try_from(out.metadata()?.len())?;
        let child = Command::new(binary)
            .env_clear()
            .envs(env)
            .env("HEALTH_PORT", "0") // a free one; the log says which
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .map_err(|e| format!("can't start {}: {e}", binary.display()))?;
        Ok(Worker { child, port: OnceLock::new(), log: log.to_owned(), log_start })
    }

    /// Port of its HTTP server, as its log says.
    pub fn port(&self) -> Option<u16> {
        if let Some(port) = self.port.get() {
            return Some(*port);
        }
        let log = self.log_text();
        let own = log.get(self.log_start..)?;
        // The comma after the number shows that the line is not just being written.
        let (digits, _) = own.split_once(r#""health_port":"#)?.1.split_once(',')?;
        Some(*self.port.get_or_init(|| digits.parse().unwrap_or_default()))
    }

    /// `GET path`: status and body.
    ///
    /// # Errors
    /// If nobody answers.
    pub fn get(&self, path: &str) -> Result<(u16, String), Error> {
        http_get(self.port().ok_or("the worker has not said its port yet")?, path)
    }

    /// Sum of a metric over all label sets that contain each of `labels`, e.g. `data_type="artists"`.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let Ok((_, text)) = self.get("/metrics") else { return 0.0 };
        sum(&text, name, labels)
    }

    /// Waits until `/ready` says yes.
    ///
    /// # Errors
    /// After a minute, or when the worker ended, with the end of its log.
    pub async fn ready(&mut self) -> Result<(), Error> {
        self.until("ready", Duration::from_secs(60), |w| w.get("/ready").is_ok_and(|(code, _)| code == 200)).await
    }

    /// Waits until `condition` holds.
    ///
    /// # Errors
    /// After `limit`, or when the worker ended, with the end of its log.
    pub async fn until(
        &mut self,
        what: &str,
        limit: Duration,
        condition: impl Fn(&Worker) -> bool,
    ) -> Result<(), Error> {
        let deadline = Instant::now() + limit;
        loop {
            if condition(self) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("the worker ended ({status}) before it was {what}:\n{}", self.log_tail()).into());
            }
            if Instant::now() > deadline {
                let reasons = self.get("/ready").map(|(_, body)| body).unwrap_or_default();
                return Err(format!("not {what} within {limit:?}; {reasons}\n{}", self.log_tail()).into());
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by name, such as `TERM`, `STOP` or `KILL`.
    ///
    /// # Errors
    /// If `kill` fails.
    pub fn signal(&self, name: &str) -> Result<(), Error> {
        let status = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status()?;
        status.success().then_some(()).ok_or_else(|| format!("kill -s {name} failed").into())
    }

    /// SIGTERM, then waits for the end.
    ///
    /// # Errors
    /// If it does not end within a minute.
    pub async fn stop(mut self) -> Result<ExitStatus, Error> {
        self.signal("TERM")?;
        self.ended().await
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// If it does not end within a minute.
    pub async fn ended(&mut self) -> Result<ExitStatus, Error> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                return Err(format!("did not end within a minute:\n{}", self.log_tail()).into());
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// What it logged.
    pub fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn log_tail(&self) -> String {
        let text = self.log_text();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Ended already, or about to be: there is nobody to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sum of a metric in Prometheus' text format over the label sets that contain each of `labels`.
pub fn sum(text: &str, name: &str, labels: &[&str]) -> f64 {
    text.lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

/// `GET path` on a local port: status and body.
///
/// # Errors
/// If nobody answers in HTTP.
pub fn http_get(port: u16, path: &str) -> Result<(u16, String), Error> {
    let mut stream = TcpStream::connect_timeout(&([127, 0, 0, 1], port).into(), Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no HTTP answer")?;
    let code = head.split(' ').nth(1).ok_or("no status")?.parse()?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Ok((code, if chunked { unchunk(body) } else { body.to_owned() }))
}

fn unchunk(mut body: &str) -> String {
    let mut out = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap_or(0);
        match (size, rest.get(..size), rest.get(size + 2..)) {
            (1.., Some(chunk), Some(next)) => {
                out.push_str(chunk);
                body = next;
            }
            _ => break,
        }
    }
    out
}
