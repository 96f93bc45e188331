//! A queue that somebody deletes.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tracing::error;

use crate::amqp::{self, BrokerError};
use crate::data_type::Topology;
use crate::queue::Queue;
use crate::sink::{Sink, SinkError};

/// How often a queue is declared: somebody may have deleted it, and what is published while there is none is lost.
const DECLARE: Duration = Duration::from_secs(15);

/// Whether the queue that this worker has declared was deleted since. What was in it is lost, and a run must not take for vanished what it
/// would have brought: that counts as a dead letter.
#[derive(Default)]
pub struct Presence {
    declared: bool,
    deleted: bool,
}

impl Presence {
    /// Declares what is missing at the broker. Returns the messages that wait, and the consumers.
    ///
    /// # Errors
    /// [`BrokerError`].
    pub async fn look<S: Sink>(&mut self, queue: &Queue<S>, topology: &Topology) -> Result<(u32, u32), BrokerError> {
        if self.declared {
            self.deleted |= !amqp::exists(&queue.broker.channel().await?, &topology.queue).await?;
        }
        let found = amqp::look(&queue.broker, topology).await?;
        self.declared = true;
        Ok(found)
    }

    /// The same again and again, for as long as it is polled. If the broker is away, the next subscription says so.
    pub async fn keep<S: Sink>(&mut self, queue: &Queue<S>, topology: &Topology) -> Infallible {
        loop {
            sleep(DECLARE).await;
            let _ = self.look(queue, topology).await;
        }
    }

    /// The broker has ended the consumer, which it does when the queue is deleted.
    pub fn deleted(&mut self) {
        self.deleted = true;
    }

    /// Notes a deletion in the database, once.
    ///
    /// # Errors
    /// [`SinkError`] if that can't be done now; the next call tries again.
    pub async fn note<S: Sink>(&mut self, queue: &Queue<S>) -> Result<(), SinkError> {
        if self.deleted {
            let (data_type, limit) = (queue.data_type, queue.config.write_timeout);
            let noted = timeout(limit, queue.sink.note_dead_letter(data_type)).await;
            noted.unwrap_or_else(|_| Err(SinkError::timeout(limit)))?;
            self.deleted = false;
            error!(
                data_type = data_type.name(),
                "🗑️ The queue was deleted: what was in it is lost, and the end of this run removes nothing. Publish the run again"
            );
        }
        Ok(())
    }
}
