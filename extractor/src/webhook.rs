//! One HTTP POST for the whole run, when it is complete. The state says that it is owed until it has arrived, so that it
//! is not lost if this process ends before.

use std::sync::Arc;
use std::time::Duration;

use common::backoff::Backoff;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::sleep;
use ureq::tls::RootCerts;

use crate::file::Shared;

/// Attempts of one run before it is given up.
const ATTEMPTS: u32 = 5;
/// Longest time that one attempt may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time that the end of a run waits for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// The calls of one run, beside everything else that it does.
pub struct Webhook {
    url: Option<String>,
    shared: Arc<Shared>,
    begun: Vec<Value>,
    calls: JoinSet<Result<(), String>>,
}

impl Webhook {
    /// Calls nobody without a `url`.
    pub fn new(url: Option<String>, shared: Arc<Shared>) -> Self {
        Webhook { url, shared, begun: Vec::new(), calls: JoinSet::new() }
    }

    /// Whether there is somebody to call.
    pub fn is_set(&self) -> bool {
        self.url.is_some()
    }

    /// Begins to deliver what the state says is owed, by this run or an earlier one.
    pub fn call(&mut self) {
        let Some(url) = &self.url else { return };
        for (version, event) in self.shared.state.owed() {
            if self.begun.contains(&event) {
                continue;
            }
            self.begun.push(event.clone());
            let (url, shared) = (url.clone(), Arc::clone(&self.shared));
            self.calls.spawn(async move {
                post(url, event.to_string()).await?;
                shared.progress.note(&format!("COMPLETION_WEBHOOK_URL was told of dump {version}"));
                shared.state.delivered(&version, &event);
                shared.state.save().map_err(|e| format!("that it was called can't be saved: {e}"))
            });
        }
    }

    /// Waits for the calls, but not for long. Returns what went wrong.
    pub async fn finish(mut self) -> Vec<String> {
        let mut errors = Vec::new();
        let all = async {
            while let Some(called) = self.calls.join_next().await {
                errors.extend(called.map_err(|e| e.to_string()).flatten().err());
            }
        };
        let cut_short = tokio::select! {
            biased; // nobody is told of an interruption when nothing was to be called
            () = all => None,
            () = self.shared.stop.cancelled() => Some("interrupted".to_owned()),
            () = sleep(PATIENCE) => Some(format!("no answer within {} s", PATIENCE.as_secs())),
        };
        errors.extend(cut_short);
        errors
    }
}

/// Posts the event, several times if it must be. The error is that of the last attempt; the address is not part of it: it
/// may hold a secret.
async fn post(url: String, event: String) -> Result<(), String> {
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(5));
    let mut attempt = 1;
    loop {
        let (url, body) = (url.clone(), event.clone());
        let posted = tokio::task::spawn_blocking(move || post_once(&url, &body)).await;
        match posted.map_err(|e| e.to_string()).flatten() {
            Ok(()) => return Ok(()),
            Err(e) if attempt == ATTEMPTS => return Err(e),
            Err(_) => sleep(backoff.pause()).await,
        }
        attempt += 1;
    }
}

fn post_once(url: &str, body: &str) -> Result<(), String> {
    let client = common::http::client(TIMEOUT, RootCerts::PlatformVerifier);
    let request = client.post(url).header("content-type", "application/json");
    // Redirected, a POST becomes a GET without a body, or is not sent again.
    match request.config().max_redirects(0).build().send(body) {
        Ok(answer) if answer.status().is_success() => Ok(()),
        Ok(answer) => Err(format!("it answered with status {}", answer.status().as_u16())),
        Err(ureq::Error::StatusCode(code)) => Err(format!("it answered with status {code}")),
        Err(e) => Err(e.to_string()),
    }
}
