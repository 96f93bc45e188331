//! Publishing with confirms: a window of messages is under way at any time, in order, and whatever was not confirmed when
//! a connection is lost is sent again on the next one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use common::amqp::{Broker, BrokerError, answered, exists, found};
use common::backoff::Backoff;
use common::config::BrokerConfig;
use common::{DataType, Topology};
use futures_util::FutureExt;
use futures_util::future::try_join_all;
use lapin::options::{
    BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation, ExchangeKind, PublisherConfirm};
use tokio::time::{sleep, timeout};

use crate::compress::Compression;
use crate::state::Mark;

/// Messages that may wait for their confirm: enough to keep the broker's disk busy, and little to send again.
const WINDOW: usize = 1000;
/// Bytes of their bodies, which bounds memory when records are large.
const WINDOW_BYTES: usize = 2 << 20;
/// Messages that are handed to the client at a time. (Up to 30 futures are polled strictly in order.)
const TOGETHER: usize = 30;
/// Attempts in a row that the broker may refuse, as opposed to being away: some thirty seconds.
const REFUSALS: u32 = 8;
/// Bytes of a frame: small ones keep the client's buffers small, and each file has a connection of its own.
const FRAME: u32 = 16 * 1024;
/// How often queues are looked for.
const LOOK: Duration = Duration::from_secs(1);
/// How long the first confirm may be missing before that is said.
const SILENCE: Duration = Duration::from_secs(15);

/// AMQP properties of every message (contract §2.1). A packed body says how in its `content_encoding`.
pub fn properties(compression: Compression) -> BasicProperties {
    BasicProperties::default()
        .with_content_type("application/json".into())
        .with_content_encoding(compression.content_encoding().into())
        .with_delivery_mode(2)
}

/// A connection for publishing, made on first use.
pub fn broker(config: &BrokerConfig) -> Arc<Broker> {
    Broker::with_frame_max(config.clone(), "extractor", Some(FRAME))
}

/// Why a target is not ready.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The broker is away or refuses.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// Its worker would miss every message.
    #[error("queue {0} does not exist: start its worker first, or leave the worker out of --expect-queues")]
    Missing(String),
}

/// Why publishing can't go on.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The broker refuses, again and again.
    #[error("{0}")]
    Refused(String),
}

/// The exchange of one type, and the queues that must be bound to it.
#[derive(Clone, Debug)]
pub struct Target {
    /// The type.
    pub data_type: DataType,
    /// Name of its exchange.
    pub exchange: String,
    /// Names of the queues that get a copy of every message.
    pub queues: Vec<String>,
}

impl Target {
    /// The names under a prefix, for the workers that must not miss a message.
    pub fn new(prefix: &str, data_type: DataType, workers: &[String]) -> Self {
        let queues = workers.iter().map(|worker| Topology::new(prefix, worker, data_type).queue).collect();
        Target { data_type, exchange: Topology::new(prefix, "", data_type).data_exchange, queues }
    }

    /// Makes what tells the queues of a run from later ones of the same names: for each queue an exchange that nobody
    /// publishes to, and that the broker deletes together with the queue, its only binding. A queue that is deleted and
    /// declared again has none.
    ///
    /// # Errors
    /// [`TargetError`].
    pub async fn add_witnesses(&self, broker: &Broker, started_at: &str) -> Result<(), TargetError> {
        let channel = broker.channel().await?;
        let options = ExchangeDeclareOptions { durable: true, auto_delete: true, internal: true, ..Default::default() };
        for queue in &self.queues {
            if !exists(&channel, queue).await? {
                return Err(TargetError::Missing(queue.clone()));
            }
            let (queue, witness) = (queue.as_str(), witness(queue, started_at));
            let witness = witness.as_str();
            let none = FieldTable::default;
            answered(channel.exchange_declare(witness.into(), ExchangeKind::Fanout, options, none())).await?;
            let bind = QueueBindOptions::default();
            answered(channel.queue_bind(queue.into(), witness.into(), queue.into(), bind, none())).await?;
        }
        // Everything was answered: whatever becomes of the channel now is of no meaning.
        let _ = answered(channel.close(200, "added".into())).await;
        Ok(())
    }

    /// Removes what [`Target::add_witnesses`] made. What can't be removed goes with its queue.
    pub async fn remove_witnesses(&self, broker: &Broker, started_at: &str) {
        let Ok(channel) = broker.channel().await else { return };
        for queue in &self.queues {
            let witness = witness(queue, started_at);
            let deleted = channel.exchange_delete(witness.as_str().into(), ExchangeDeleteOptions::default());
            if answered(deleted).await.is_err() {
                return;
            }
        }
        let _ = answered(channel.close(200, "removed".into())).await;
    }

    /// The first of the queues that was deleted since the run's witnesses were added, whether it was declared again or not.
    /// While the broker is away, nothing is known to be missing.
    pub async fn missing(&self, broker: &Broker, started_at: &str) -> Option<String> {
        let channel = broker.channel().await.ok()?;
        let mut missing = None;
        for queue in &self.queues {
            match is_witnessed(&channel, queue, started_at).await {
                Ok(true) => {}
                Ok(false) => {
                    missing = Some(queue.clone());
                    break;
                }
                Err(_) => break,
            }
        }
        // The broker has closed it already if a witness is missing.
        let _ = answered(channel.close(200, "looked".into())).await;
        missing
    }

    /// Declares the exchange and makes sure that the queues exist and are bound to it. Binding is what the worker itself
    /// does, with the same routing key; AMQP has no way to only ask.
    ///
    /// # Errors
    /// [`TargetError`].
    pub async fn prepare(&self, broker: &Broker) -> Result<Channel, TargetError> {
        let channel = broker.channel().await?;
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let exchange = self.exchange.as_str();
        answered(channel.exchange_declare(exchange.into(), ExchangeKind::Fanout, durable, FieldTable::default()))
            .await?;
        for queue in &self.queues {
            if !exists(&channel, queue).await? {
                return Err(TargetError::Missing(queue.clone()));
            }
            let name = queue.as_str();
            let bind = QueueBindOptions::default();
            answered(channel.queue_bind(name.into(), exchange.into(), name.into(), bind, FieldTable::default()))
                .await?;
        }
        answered(channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(channel)
    }
}

/// Looks every second whether a target's queues are still those of the run, and returns the name of one that is not, twice
/// in a row.
/// What was confirmed for a queue that somebody deleted is gone, and the broker tells only if no other queue is bound.
pub async fn missing_queue(broker: &Broker, target: &Target, started_at: &str) -> String {
    let mut last = None;
    loop {
        sleep(LOOK).await;
        let missing = target.missing(broker, started_at).await;
        if let Some(queue) = &missing
            && missing == last
        {
            return queue.clone();
        }
        last = missing;
    }
}

/// Name of the exchange that stands for a queue in one run.
fn witness(queue: &str, started_at: &str) -> String {
    format!("{queue}.{started_at}")
}

/// Whether a queue's witness exists. If not, the broker has closed the channel.
async fn is_witnessed(channel: &Channel, queue: &str, started_at: &str) -> Result<bool, BrokerError> {
    let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    let witness = witness(queue, started_at);
    let looked =
        channel.exchange_declare(witness.as_str().into(), ExchangeKind::Fanout, passive, FieldTable::default());
    Ok(found(answered(looked).await)?.is_some())
}

/// A message that is not confirmed yet.
struct Pending {
    body: Vec<u8>,
    /// Where its file is when it is confirmed.
    mark: Mark,
    /// `None` while it must be sent (again).
    confirm: Option<PublisherConfirm>,
}

/// What a publisher tells while it works.
pub trait Watch: Send + Sync {
    /// Everything up to this mark is confirmed.
    fn confirmed(&self, mark: Mark);

    /// Something that a person may want to know.
    fn note(&self, text: String);
}

/// Publishes to one exchange, in order.
pub struct Publisher<W> {
    broker: Arc<Broker>,
    target: Target,
    properties: BasicProperties,
    watch: W,
    channel: Option<Channel>,
    window: VecDeque<Pending>,
    bytes: usize,
    /// Refusals since the last confirm.
    refusals: u32,
    backoff: Backoff,
}

impl<W: Watch> Publisher<W> {
    /// A publisher that connects when the first message comes.
    pub fn new(broker: Arc<Broker>, target: Target, compression: Compression, watch: W) -> Self {
        Publisher {
            broker,
            target,
            properties: properties(compression),
            watch,
            channel: None,
            window: VecDeque::new(),
            bytes: 0,
            refusals: 0,
            backoff: Backoff::outage(),
        }
    }

    /// Sends messages, in order, as soon as the window has room for them.
    ///
    /// # Errors
    /// [`PublishError`] if the broker refuses messages; nothing behind the last confirmed mark is known to be taken.
    pub async fn publish(&mut self, messages: impl IntoIterator<Item = (Vec<u8>, Mark)>) -> Result<(), PublishError> {
        let messages = messages.into_iter().map(|(body, mark)| Pending { body, mark, confirm: None });
        let mut messages: VecDeque<Pending> = messages.collect();
        while !messages.is_empty() {
            let first = self.window.len();
            while let Some(message) = messages.pop_front() {
                if !self.has_room(message.body.len()) {
                    messages.push_front(message);
                    break;
                }
                self.bytes += message.body.len();
                self.window.push_back(message);
            }
            self.send_from(first).await?;
            if messages.is_empty() { self.settle_ready().await? } else { self.settle().await? }
        }
        Ok(())
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.window.is_empty() || (self.window.len() < WINDOW && self.bytes + bytes <= WINDOW_BYTES)
    }

    /// Waits until everything is confirmed.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn flush(&mut self) -> Result<(), PublishError> {
        while !self.window.is_empty() {
            self.settle().await?;
        }
        Ok(())
    }

    /// Sends the window's messages from there on.
    async fn send_from(&mut self, first: usize) -> Result<(), PublishError> {
        let Some(channel) = self.channel.clone() else { return self.resend().await };
        match self.send(&channel, first).await {
            Ok(()) => Ok(()),
            Err(e) => self.failed(e.into()).await,
        }
    }

    /// Several at once: each one alone would wait until the client's own thread has written it to the socket.
    async fn send(&mut self, channel: &Channel, mut first: usize) -> Result<(), BrokerError> {
        let mandatory = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        while first < self.window.len() {
            let sends = self.window.iter().skip(first).take(TOGETHER).map(|message| {
                let exchange = self.target.exchange.as_str().into();
                channel.basic_publish(exchange, "".into(), mandatory, &message.body, self.properties.clone())
            });
            let confirms = {
                let mut sent = std::pin::pin!(try_join_all(sends));
                loop {
                    match timeout(SILENCE, &mut sent).await {
                        Ok(confirms) => break confirms?,
                        Err(_) => self.watch.note(silence(&self.target)),
                    }
                }
            };
            for (message, confirm) in self.window.iter_mut().skip(first).zip(confirms) {
                message.confirm = Some(confirm);
            }
            first += TOGETHER;
        }
        Ok(())
    }

    /// Takes the confirms that are there already, without waiting.
    async fn settle_ready(&mut self) -> Result<(), PublishError> {
        let mut last = None;
        let outcome = loop {
            let Some(confirm) = self.window.front_mut().and_then(|first| first.confirm.as_mut()) else { break None };
            match confirm.now_or_never() {
                Some(Ok(Confirmation::Ack(None))) => last = self.taken().or(last),
                Some(other) => break Some(other),
                None => break None,
            }
        };
        self.confirmed(last);
        match outcome {
            None => Ok(()),
            Some(other) => self.failed(refusal(other)).await,
        }
    }

    /// Waits for the first message's confirm.
    async fn settle(&mut self) -> Result<(), PublishError> {
        let Some(confirm) = self.window.front_mut().and_then(|first| first.confirm.as_mut()) else {
            return self.resend().await;
        };
        let outcome = loop {
            match timeout(SILENCE, &mut *confirm).await {
                Ok(outcome) => break outcome,
                Err(_) => self.watch.note(silence(&self.target)),
            }
        };
        match outcome {
            Ok(Confirmation::Ack(None)) => {
                let mark = self.taken();
                self.confirmed(mark);
                self.settle_ready().await
            }
            other => self.failed(refusal(other)).await,
        }
    }

    fn taken(&mut self) -> Option<Mark> {
        let first = self.window.pop_front()?;
        self.bytes -= first.body.len();
        Some(first.mark)
    }

    fn confirmed(&mut self, mark: Option<Mark>) {
        if let Some(mark) = mark {
            self.refusals = 0;
            self.backoff = Backoff::outage();
            self.watch.confirmed(mark);
        }
    }

    /// After a failure: everything in the window is sent again.
    async fn failed(&mut self, e: TargetError) -> Result<(), PublishError> {
        self.pause(e).await?;
        self.resend().await
    }

    /// Closes the channel and waits a while; gives up if the broker keeps refusing.
    async fn pause(&mut self, e: TargetError) -> Result<(), PublishError> {
        if let Some(channel) = self.channel.take() {
            // It may be gone already.
            let _ = answered(channel.close(200, "again".into())).await;
        }
        for message in &mut self.window {
            message.confirm = None;
        }
        let away = match &e {
            // A connection that still stands means that only the channel was closed, for a reason.
            TargetError::Broker(BrokerError::Amqp(_)) => !self.broker.is_connected().await,
            TargetError::Broker(BrokerError::Timeout | BrokerError::Blocked) => true,
            TargetError::Broker(BrokerError::NotTaken(_)) | TargetError::Missing(_) => false,
        };
        if !away {
            self.refusals += 1;
            if self.refusals > REFUSALS {
                return Err(PublishError::Refused(format!("{}: {e}", self.target.exchange)));
            }
        }
        let pause = self.backoff.pause();
        self.watch.note(format!("{}: {e}; trying again in {:.1} s", self.target.exchange, pause.as_secs_f64()));
        sleep(pause).await;
        Ok(())
    }

    /// Connects and sends everything in the window that is not on its way.
    async fn resend(&mut self) -> Result<(), PublishError> {
        loop {
            match self.try_resend().await {
                Ok(()) => return Ok(()),
                Err(e) => self.pause(e).await?,
            }
        }
    }

    async fn try_resend(&mut self) -> Result<(), TargetError> {
        let channel = self.target.prepare(&self.broker).await?;
        self.send(&channel, 0).await?;
        self.channel = Some(channel);
        Ok(())
    }
}

fn silence(target: &Target) -> String {
    let seconds = SILENCE.as_secs();
    format!("{}: the broker takes nothing for {seconds} s (an alarm of its memory or disk?); waiting", target.exchange)
}

fn refusal(outcome: lapin::Result<Confirmation>) -> TargetError {
    let refusal = match outcome {
        Err(e) => e.into(),
        Ok(Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned))) => {
            BrokerError::NotTaken(format!("{} (no queue is bound to the exchange)", returned.reply_text))
        }
        Ok(other) => BrokerError::NotTaken(format!("{other:?}")),
    };
    refusal.into()
}
