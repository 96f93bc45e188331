//! Dead letters: published by us, with confirms, and with headers that say why.

use std::sync::Arc;

use chrono::{SecondsFormat, Utc};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::Mutex;

use crate::amqp::{Broker, BrokerError, answered, declare};
use crate::batch::Origin;
use crate::data_type::Topology;

/// Longest text in a header of ours, in characters: all headers of a message must fit into one AMQP frame.
const MAX_TEXT: usize = 1000;
/// Most bytes of headers that came with the message; more are left out, since frames have 128 KiB.
const MAX_RECEIVED: usize = 32 * 1024;

/// RabbitMQ's pseudo-queue for direct replies.
const DIRECT_REPLY: &str = "amq.rabbitmq.reply-to";

/// Why a message is dead-lettered.
#[derive(Clone, Debug)]
pub struct Reason {
    /// Stable name: that of a [`crate::message::Reject`], or `write_refused`.
    pub reason: &'static str,
    /// The database's code, or the reason again.
    pub code: String,
    /// The error's text.
    pub detail: String,
    /// The record's id, if it is known.
    pub id: Option<String>,
}

/// Publishes to the dead-letter exchanges, on one channel in confirm mode.
pub struct DeadLetters {
    broker: Arc<Broker>,
    worker: String,
    channel: Mutex<Option<Channel>>,
}

impl DeadLetters {
    /// A publisher that opens its channel on first use.
    pub fn new(broker: Arc<Broker>, service: &str) -> Self {
        DeadLetters { broker, worker: format!("{service}/{}", env!("CARGO_PKG_VERSION")), channel: Mutex::new(None) }
    }

    /// Publishes a message as it was received, with headers, and waits until the broker has it in the queue.
    ///
    /// # Errors
    /// [`BrokerError`]: nothing may be acknowledged then.
    pub async fn publish(
        &self,
        topology: &Topology,
        body: &[u8],
        origin: &Origin,
        why: &Reason,
    ) -> Result<(), BrokerError> {
        let channel = self.channel().await?;
        let properties = self.properties(topology, origin, why);
        publish(&channel, &topology.dead_letter_exchange, &topology.queue, body, properties).await
    }

    fn properties(&self, topology: &Topology, origin: &Origin, why: &Reason) -> BasicProperties {
        let received = origin.properties.headers().clone().unwrap_or_default();
        let mut headers = if format!("{received:?}").len() <= MAX_RECEIVED { received } else { FieldTable::default() };
        put(&mut headers, "dead-letter-reason", why.reason);
        put(&mut headers, "dead-letter-code", &why.code);
        put(&mut headers, "dead-letter-detail", &why.detail);
        put(&mut headers, "dead-letter-queue", &topology.queue);
        put(&mut headers, "dead-letter-worker", &self.worker);
        let stamp = |t: chrono::DateTime<Utc>| t.to_rfc3339_opts(SecondsFormat::Millis, true);
        put(&mut headers, "dead-letter-received", &stamp(origin.received));
        put(&mut headers, "dead-letter-time", &stamp(Utc::now()));
        if let Some(id) = &why.id {
            put(&mut headers, "dead-letter-id", id);
        }
        carried_over(&origin.properties, headers)
    }

    /// Declares the queue's objects again: somebody may have deleted the exchange that did not take a message.
    ///
    /// # Errors
    /// [`BrokerError`].
    pub async fn declare(&self, topology: &Topology) -> Result<(), BrokerError> {
        declare(&self.channel().await?, topology).await
    }

    async fn channel(&self) -> Result<Channel, BrokerError> {
        // The client would keep what it can't send, a copy for each attempt, and send them all when the alarm is over.
        if self.broker.is_blocked().await {
            return Err(BrokerError::Blocked);
        }
        let mut slot = self.channel.lock().await;
        if let Some(channel) = slot.as_ref().filter(|c| c.status().connected()) {
            return Ok(channel.clone());
        }
        let channel = self.broker.channel().await?;
        answered(channel.confirm_select(ConfirmSelectOptions::default())).await?;
        *slot = Some(channel.clone());
        Ok(channel)
    }
}

/// Publishes a message, mandatory, on a channel in confirm mode, and waits until the broker has it in a queue.
///
/// # Errors
/// [`BrokerError`]; with [`BrokerError::NotTaken`] the channel is still good.
pub(crate) async fn publish(
    channel: &Channel,
    exchange: &str,
    routing_key: &str,
    body: &[u8],
    properties: BasicProperties,
) -> Result<(), BrokerError> {
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let published = channel.basic_publish(exchange.into(), routing_key.into(), options, body, properties);
    match answered(async { published.await?.await }).await? {
        Confirmation::Ack(None) => Ok(()),
        Confirmation::Ack(Some(returned)) => {
            let to = if exchange.is_empty() { routing_key } else { exchange };
            Err(BrokerError::NotTaken(format!("{} {}: {to}", returned.reply_code, returned.reply_text)))
        }
        Confirmation::Nack(_) => Err(BrokerError::NotTaken("refused".to_owned())),
        Confirmation::NotRequested => Err(BrokerError::NotTaken("not in confirm mode".to_owned())),
    }
}

/// A message's properties with other headers, for publishing it again, persistent. Not taken over: `user_id` and
/// `cluster_id`, which the broker checks against us, a direct `reply_to`, which only its own channel may use, and
/// `expiration`, which would delete the evidence.
pub(crate) fn carried_over(p: &BasicProperties, headers: FieldTable) -> BasicProperties {
    let mut out = BasicProperties::default().with_delivery_mode(2);
    if !headers.inner().is_empty() {
        out = out.with_headers(headers);
    }
    if let Some(v) = p.content_type() {
        out = out.with_content_type(v.clone());
    }
    if let Some(v) = p.content_encoding() {
        out = out.with_content_encoding(v.clone());
    }
    if let Some(v) = p.correlation_id() {
        out = out.with_correlation_id(v.clone());
    }
    if let Some(v) = p.reply_to().as_ref().filter(|v| !v.as_str().starts_with(DIRECT_REPLY)) {
        out = out.with_reply_to(v.clone());
    }
    if let Some(v) = p.message_id() {
        out = out.with_message_id(v.clone());
    }
    if let Some(v) = p.timestamp() {
        out = out.with_timestamp(*v);
    }
    if let Some(v) = p.kind() {
        out = out.with_type(v.clone());
    }
    if let Some(v) = p.app_id() {
        out = out.with_app_id(v.clone());
    }
    if let Some(v) = p.priority() {
        out = out.with_priority(*v);
    }
    out
}

fn put(headers: &mut FieldTable, key: &str, value: &str) {
    let text: String = value.chars().take(MAX_TEXT).collect();
    headers.insert(key.into(), AMQPValue::LongString(text.as_str().into()));
}
