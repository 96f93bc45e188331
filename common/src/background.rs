//! Work that a control message asks for and that goes on beside the pipelines. It is written down in the database, so a
//! restart or another replica goes on with it.

use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tracing::warn;

use crate::backoff::Backoff;
use crate::metrics::BACKGROUND_FAILURES;
use crate::sink::SinkError;

/// How often to look for work that a replica left behind when it died.
const LOOK: Duration = Duration::from_secs(30);

/// What is written down for later.
pub trait Work {
    /// What it is, for the log.
    const NAME: &str;

    /// Wakes whoever does it.
    fn requested(&self) -> &Notify;

    /// Does one piece of it; false if there is none.
    fn next(&self) -> impl Future<Output = Result<bool, SinkError>> + Send;
}

/// Does whatever is written down, for ever: when it is woken, and now and then.
pub async fn run<W: Work>(work: &W) {
    let mut backoff = Backoff::outage();
    loop {
        match work.next().await {
            Ok(true) => backoff = Backoff::outage(),
            Ok(false) => {
                let _ = timeout(LOOK, work.requested().notified()).await;
            }
            Err(e) => {
                metrics::counter!(BACKGROUND_FAILURES).increment(1);
                warn!(code = e.code, error = e.message, "🧹 {} failed, trying again", W::NAME);
                sleep(backoff.pause()).await;
            }
        }
    }
}
