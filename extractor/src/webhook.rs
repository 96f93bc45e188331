//! One HTTP POST for the whole run, when it is complete.

use std::time::Duration;

use common::backoff::Backoff;
use serde_json::Value;

/// Attempts before it is given up.
const ATTEMPTS: u32 = 5;
/// Longest time that one attempt may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Posts the event, several times if it must be.
///
/// # Errors
/// Why the last attempt failed. The address is not part of it: it may hold a secret.
pub async fn post(url: String, event: Value) -> Result<(), String> {
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(5));
    let mut attempt = 1;
    loop {
        let (url, body) = (url.clone(), event.to_string());
        let posted = tokio::task::spawn_blocking(move || post_once(&url, &body)).await;
        match posted.map_err(|e| e.to_string()).flatten() {
            Ok(()) => return Ok(()),
            Err(e) if attempt == ATTEMPTS => return Err(e),
            Err(_) => tokio::time::sleep(backoff.pause()).await,
        }
        attempt += 1;
    }
}

fn post_once(url: &str, body: &str) -> Result<(), String> {
    let request = common::http::client(TIMEOUT).post(url).header("content-type", "application/json");
    match request.send(body) {
        Ok(_) => Ok(()),
        Err(ureq::Error::StatusCode(code)) => Err(format!("it answered with status {code}")),
        Err(e) => Err(e.to_string()),
    }
}
