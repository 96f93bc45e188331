//! Is the consumer still alive? A broker can forget one without a word, and a connection can freeze.

use std::time::Duration;

use tokio::time::Instant;

use crate::amqp::Source;
use crate::data_type::DataType;
use crate::metrics as names;
use crate::queue::End;

/// How often to look whether the channel still lives.
pub const LOOK: Duration = Duration::from_secs(1);
/// How often to ask for the queue's depth.
pub const DEPTH: Duration = Duration::from_secs(5);
/// A consumer that gets nothing for this long although messages are waiting is made anew.
pub const STALLED: Duration = Duration::from_secs(15);

/// What is wrong with the channel, as far as the client knows without asking.
pub fn channel(source: &Source) -> Option<String> {
    (!source.is_alive()).then(|| "the channel is closed".to_owned())
}

/// Asks the broker about the queue; says if something is wrong with the consumer. `idle_since` is when it last got a message,
/// if it could take more.
///
/// # Errors
/// [`End`]: how the subscription ended.
pub async fn queue(source: &Source, data_type: DataType, idle_since: Option<Instant>) -> Result<(), End> {
    let depth = source.depth().await;
    let (ready, consumers) = depth.map_err(|e| End::Lost(format!("{}: {e}", source.queue())))?;
    metrics::gauge!(names::QUEUE_READY, "data_type" => data_type.name()).set(f64::from(ready));
    if consumers == 0 {
        return Err(End::Deleted);
    }
    let stalled = ready > 0 && idle_since.is_some_and(|since| since.elapsed() > STALLED);
    if stalled { Err(End::Lost(format!("{ready} messages wait, none was delivered"))) } else { Ok(()) }
}
