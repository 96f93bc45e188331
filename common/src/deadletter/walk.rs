//! One look at each message of a queue. Whatever is not taken is handed back in its place.

use lapin::Channel;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicGetOptions, QueueDeclareOptions};
use lapin::types::FieldTable;

use crate::amqp::{Broker, BrokerError, answered, found};

/// A walk over the messages that a queue had at its start, in their order. They stay unacknowledged at the broker while it
/// lasts, so none comes twice; here only the current one is held. When the channel ends, in whatever way, the broker
/// puts back what was not taken.
pub struct Walk {
    channel: Channel,
    queue: String,
    left: u32,
}

impl Walk {
    /// Starts a walk; `None` if there is no such queue.
    ///
    /// # Errors
    /// [`BrokerError`].
    pub async fn open(broker: &Broker, queue: &str) -> Result<Option<Walk>, BrokerError> {
        let channel = broker.channel().await?;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declared = answered(channel.queue_declare(queue.into(), passive, FieldTable::default())).await;
        // A worker may be dead-lettering more, even what is just being replayed: what comes later is not for us.
        Ok(found(declared)?.map(|found| Walk { channel, queue: queue.to_owned(), left: found.message_count() }))
    }

    /// The next message.
    ///
    /// # Errors
    /// [`BrokerError`].
    pub async fn next(&mut self) -> Result<Option<Delivery>, BrokerError> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let got = answered(self.channel.basic_get(self.queue.as_str().into(), BasicGetOptions::default())).await?;
        Ok(got.map(|message| message.delivery))
    }

    /// Takes a message out of the queue, by its delivery tag.
    ///
    /// # Errors
    /// [`BrokerError`]; the message is still there then.
    pub async fn take(&self, tag: u64) -> Result<(), BrokerError> {
        answered(self.channel.basic_ack(tag, BasicAckOptions::default())).await
    }

    /// Hands back what was not taken, and makes sure that the broker knows what was.
    ///
    /// # Errors
    /// [`BrokerError`]; messages that were taken may still be there then.
    pub async fn close(self) -> Result<(), BrokerError> {
        answered(self.channel.close(200, "done".into())).await
    }
}
