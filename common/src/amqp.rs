//! The broker's side: one connection that is made anew when it is lost, the topology, and a consumer per queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, ExchangeDeclareOptions,
    QueueBindOptions, QueueDeclareOptions,
};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::tcp::OwnedTLSConfig;
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{Channel, Connection, ConnectionProperties, Consumer, ExchangeKind};
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

use crate::config::BrokerConfig;
use crate::data_type::Topology;
use crate::metrics as names;
use crate::settle::{AckFrame, Ledger};

/// Longest wait for the broker's answer to anything: a frozen connection must not hold a queue's loop.
const ANSWER: Duration = Duration::from_secs(15);
/// How long deliveries that keep coming are left to gather: some dozens at full speed, and nothing beside a batch's flush interval.
const GATHER: Duration = Duration::from_millis(1);
/// Deliveries of one message before the broker gives up on it (contract §1.1).
pub const DELIVERY_LIMIT: i32 = 20;

/// What can go wrong with the broker.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BrokerError {
    /// The client library's or the broker's own error.
    #[error(transparent)]
    Amqp(#[from] lapin::Error),
    /// No answer in time.
    #[error("no answer from the broker within {} s", ANSWER.as_secs())]
    Timeout,
    /// The broker took a message but did not route or store it.
    #[error("the broker did not take the message: {0}")]
    NotTaken(String),
    /// It has an alarm, and reads nothing from who publishes.
    #[error("the broker has an alarm, of memory or disk, and takes no messages until it is over")]
    Blocked,
}

/// Awaits the broker's answer for at most [`ANSWER`].
///
/// # Errors
/// [`BrokerError`].
pub async fn answered<T>(future: impl Future<Output = lapin::Result<T>>) -> Result<T, BrokerError> {
    timeout(ANSWER, future).await.map_err(|_| BrokerError::Timeout)?.map_err(BrokerError::from)
}

/// The connection to the broker, shared by all queues of a worker.
pub struct Broker {
    config: BrokerConfig,
    service: &'static str,
    frame_max: Option<u32>,
    /// Whether metrics tell of it.
    shown: bool,
    slot: Mutex<Slot>,
    /// Attempts to connect that have ended.
    attempts: AtomicU64,
    connected_before: AtomicBool,
}

/// What the last attempt to connect led to.
#[derive(Default)]
struct Slot {
    connection: Option<Connection>,
    failure: Option<BrokerError>,
}

impl Broker {
    /// Connects on first use.
    pub fn new(config: BrokerConfig, service: &'static str) -> Arc<Self> {
        Broker::with_frame_max(config, service, None)
    }

    /// Likewise, for what a worker publishes, on a connection of its own: while the broker has an alarm, it reads nothing more from a
    /// connection that has published, and acknowledgements, which free what the alarm is about, must not be behind that. Metrics tell of
    /// the other one only.
    pub fn publishing(config: BrokerConfig, service: &'static str) -> Arc<Self> {
        Arc::new(Broker { shown: false, ..Broker::unconnected(config, service, None) })
    }

    /// Likewise, with frames of at most so many bytes. The client's buffers have room for 32 frames in each direction: with
    /// the broker's usual 128 KiB that is 8 MiB a connection.
    pub fn with_frame_max(config: BrokerConfig, service: &'static str, frame_max: Option<u32>) -> Arc<Self> {
        Arc::new(Broker::unconnected(config, service, frame_max))
    }

    fn unconnected(config: BrokerConfig, service: &'static str, frame_max: Option<u32>) -> Self {
        Broker {
            config,
            service,
            frame_max,
            shown: true,
            slot: Mutex::default(),
            attempts: AtomicU64::new(0),
            connected_before: AtomicBool::new(false),
        }
    }

    fn show(&self, connected: bool) {
        if self.shown {
            metrics::gauge!(names::CONNECTED, "peer" => "broker").set(f64::from(u8::from(connected)));
        }
    }

    /// A new channel, on a new connection if the last one is gone. Callers that come meanwhile share that attempt.
    ///
    /// # Errors
    /// [`BrokerError`] if the broker can't be reached or refuses.
    pub async fn channel(&self) -> Result<Channel, BrokerError> {
        let seen = self.attempts.load(Ordering::Acquire);
        let mut slot = self.slot.lock().await;
        let connection = match slot.connection.take().filter(|c| c.status().connected()) {
            Some(connection) => connection,
            None => {
                // Who waited while somebody else tried in vain has its answer: the queues would else try one after the
                // other, and the last of them would wait for all.
                if let Some(failure) = &slot.failure
                    && self.attempts.load(Ordering::Acquire) != seen
                {
                    return Err(failure.clone());
                }
                self.show(false);
                let connected = answered(self.connect()).await;
                self.attempts.fetch_add(1, Ordering::Release);
                slot.failure = connected.as_ref().err().cloned();
                let connection = connected?;
                if self.connected_before.swap(true, Ordering::Relaxed) && self.shown {
                    metrics::counter!(names::RECONNECTS, "peer" => "broker").increment(1);
                }
                connection
            }
        };
        self.show(true);
        let channel = answered(connection.create_channel()).await;
        slot.connection = Some(connection);
        channel
    }

    /// A number that is another one on each connection. Two channels are on the same one if it was this before the first of them and
    /// still is after the second.
    pub fn connection(&self) -> u64 {
        self.attempts.load(Ordering::Acquire)
    }

    /// Whether the last connection still stands, as far as the client knows.
    pub async fn is_connected(&self) -> bool {
        self.slot.lock().await.connection.as_ref().is_some_and(|c| c.status().connected())
    }

    /// Whether the broker reads nothing more from the connection, because of an alarm.
    pub async fn is_blocked(&self) -> bool {
        self.slot.lock().await.connection.as_ref().is_some_and(|c| c.status().blocked())
    }

    async fn connect(&self) -> lapin::Result<Connection> {
        let c = &self.config;
        let uri = AMQPUri {
            scheme: if c.tls { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo { username: c.username.clone(), password: c.password.expose().to_owned() },
                host: c.host.clone(),
                port: c.port,
            },
            vhost: c.vhost.clone(),
            query: AMQPQueryString {
                frame_max: self.frame_max,
                heartbeat: Some(c.heartbeat),
                ..AMQPQueryString::default()
            },
        };
        let tls = OwnedTLSConfig { identity: None, cert_chain: c.ca_pem.clone() };
        let properties = ConnectionProperties::default().with_connection_name(self.service.into());
        Connection::connect_uri_with_config(uri, properties, tls, lapin::runtime::default_runtime()?).await
    }

    /// Closes the connection, if there is one.
    pub async fn close(&self) {
        if let Some(connection) = self.slot.lock().await.connection.take() {
            // A connection that can't be closed politely ends with the process.
            let _ = answered(connection.close(200, "bye".into())).await;
        }
    }
}

/// The dead-letter queue and the main queue with the contract's exact arguments (§1.1).
pub fn queues(topology: &Topology) -> [(&str, FieldTable); 2] {
    let text = |s: &str| AMQPValue::LongString(s.into());
    let mut dead = FieldTable::default();
    dead.insert("x-queue-type".into(), text("classic"));
    let mut main = FieldTable::default();
    main.insert("x-queue-type".into(), text("quorum"));
    main.insert("x-dead-letter-exchange".into(), text(&topology.dead_letter_exchange));
    main.insert("x-delivery-limit".into(), AMQPValue::LongInt(DELIVERY_LIMIT));
    [(&topology.dead_letter_queue, dead), (&topology.queue, main)]
}

/// Declares everything that a worker needs for one type, with the contract's exact arguments (§1.1, §1.2).
///
/// # Errors
/// [`BrokerError`], e.g. PRECONDITION_FAILED if an object exists with other arguments.
pub async fn declare(channel: &Channel, topology: &Topology) -> Result<(), BrokerError> {
    let t = topology;
    let exchange = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let queue = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    for name in [&t.data_exchange, &t.dead_letter_exchange] {
        let none = FieldTable::default();
        answered(channel.exchange_declare(name.as_str().into(), ExchangeKind::Fanout, exchange, none)).await?;
    }
    let sources = [&t.dead_letter_exchange, &t.data_exchange];
    for ((name, arguments), source) in queues(t).into_iter().zip(sources) {
        answered(channel.queue_declare(name.into(), queue, arguments)).await?;
        // The routing key that the predecessors' library used: with another one there would be a second binding.
        let none = FieldTable::default();
        let bound =
            channel.queue_bind(name.into(), source.as_str().into(), name.into(), QueueBindOptions::default(), none);
        answered(bound).await?;
    }
    Ok(())
}

/// Messages waiting in the queue, and its consumers. On the way declares what somebody may have deleted: without its
/// exchange or binding a queue stays empty for ever, and nobody tells.
async fn depth(channel: &Channel, topology: &Topology) -> Result<(u32, u32), BrokerError> {
    declare(channel, topology).await?;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let declared = channel.queue_declare(topology.queue.as_str().into(), passive, FieldTable::default());
    let queue = answered(declared).await?;
    Ok((queue.message_count(), queue.consumer_count()))
}

/// Whether there is such a queue. If not, the broker has closed the channel.
///
/// # Errors
/// [`BrokerError`].
pub async fn exists(channel: &Channel, queue: &str) -> Result<bool, BrokerError> {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let asked = channel.queue_declare(queue.into(), passive, FieldTable::default());
    Ok(found(answered(asked).await)?.is_some())
}

/// What a passive declaration found; `None` if the broker said that there is no such object, and closed the channel.
///
/// # Errors
/// Any other [`BrokerError`].
pub fn found<T>(declared: Result<T, BrokerError>) -> Result<Option<T>, BrokerError> {
    match declared {
        Err(BrokerError::Amqp(e)) if is(&e, AMQPSoftError::NOTFOUND) => Ok(None),
        other => other.map(Some),
    }
}

/// Whether the broker refused something for this reason.
pub(crate) fn is(error: &lapin::Error, kind: AMQPSoftError) -> bool {
    matches!(error.kind(), lapin::ErrorKind::ProtocolError(e) if *e.kind() == AMQPErrorKind::Soft(kind))
}

/// The same as [`depth`], for who has no channel yet.
///
/// # Errors
/// [`BrokerError`].
pub async fn look(broker: &Broker, topology: &Topology) -> Result<(u32, u32), BrokerError> {
    let channel = broker.channel().await?;
    let depth = depth(&channel, topology).await;
    let _ = answered(channel.close(200, "looked".into())).await;
    depth
}

/// A consumer on a channel of its own, with the ledger of what that channel delivered.
pub struct Source {
    channel: Channel,
    consumer: Consumer,
    /// Whether something was delivered since the last look.
    flowing: bool,
    /// Who may be acknowledged.
    pub ledger: Arc<Ledger>,
    monitor: Channel,
    topology: Topology,
}

/// Where a consumer will be: made before the claim in the database, so that nothing is fetched by a connection that is younger than the turn.
pub struct Channels {
    consumer: Channel,
    monitor: Channel,
}

impl Channels {
    /// Opens them, and declares the topology.
    ///
    /// # Errors
    /// [`BrokerError`].
    pub async fn open(broker: &Broker, topology: &Topology) -> Result<Channels, BrokerError> {
        let channels = Channels { consumer: broker.channel().await?, monitor: broker.channel().await? };
        declare(&channels.consumer, topology).await?;
        Ok(channels)
    }
}

impl Source {
    /// Subscribes.
    ///
    /// # Errors
    /// [`BrokerError`].
    pub async fn open(
        channels: Channels,
        topology: &Topology,
        prefetch: u16,
        priority: i16,
        consumer_timeout: Duration,
    ) -> Result<Source, BrokerError> {
        let Channels { consumer: channel, monitor } = channels;
        answered(channel.basic_qos(prefetch, BasicQosOptions { global: false })).await?;
        let queue = topology.queue.clone();
        // Brokers that know this argument hold to what we were told; for older ones their own setting counts.
        let mut arguments = FieldTable::default();
        let timeout_ms = i64::try_from(consumer_timeout.as_millis()).unwrap_or(i64::MAX);
        arguments.insert("x-consumer-timeout".into(), AMQPValue::LongLongInt(timeout_ms));
        if priority != 0 {
            arguments.insert("x-priority".into(), AMQPValue::LongInt(priority.into()));
        }
        let consumer = answered(channel.basic_consume(
            queue.as_str().into(),
            "".into(), // the broker chooses: replicas share the queue, and a fixed tag tells nothing more
            BasicConsumeOptions::default(),
            arguments,
        ))
        .await?;
        Ok(Source { channel, consumer, flowing: false, ledger: Ledger::new(), monitor, topology: topology.clone() })
    }

    /// The next delivery; `None` when the consumer ended: cancelled by the broker, queue deleted, channel or connection lost.
    ///
    /// While deliveries keep coming, an empty moment is slept through instead of waited through: otherwise the client's thread wakes
    /// this one, and this one goes to sleep, for each single message.
    pub async fn next(&mut self) -> Option<Result<Delivery, lapin::Error>> {
        if let Some(delivery) = self.consumer.next().now_or_never() {
            self.flowing = true;
            return delivery;
        }
        if std::mem::take(&mut self.flowing) {
            sleep(GATHER).await;
        }
        let delivery = self.consumer.next().await;
        self.flowing = true;
        delivery
    }

    /// Whether the channel still stands, as far as the client knows.
    pub fn is_alive(&self) -> bool {
        self.channel.status().connected() && self.monitor.status().connected()
    }

    /// Messages waiting in the queue, and its consumers: see [`depth`].
    ///
    /// # Errors
    /// [`BrokerError`].
    pub async fn depth(&self) -> Result<(u32, u32), BrokerError> {
        depth(&self.monitor, &self.topology).await
    }

    /// The queue's name.
    pub fn queue(&self) -> &str {
        &self.topology.queue
    }

    /// Sends one ack frame.
    ///
    /// # Errors
    /// [`BrokerError`]; the messages come back then.
    pub async fn ack(&self, frame: AckFrame) -> Result<(), BrokerError> {
        answered(self.channel.basic_ack(frame.tag, BasicAckOptions { multiple: frame.multiple })).await
    }

    /// Ends the subscription; the channel stays open for acks.
    ///
    /// # Errors
    /// [`BrokerError`].
    pub async fn cancel(&self) -> Result<(), BrokerError> {
        answered(self.channel.basic_cancel(self.consumer.tag(), BasicCancelOptions::default())).await
    }

    /// Closes the channel: the broker takes back whatever was not acknowledged. Returns whether the broker has answered, so that it
    /// has heard of every acknowledgement.
    pub async fn close(self) -> bool {
        let closed = answered(self.channel.close(200, "done".into())).await;
        let _ = answered(self.monitor.close(200, "done".into())).await;
        closed.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::{BROKER, Env, broker};

    /// Somebody who takes connections, and ends each of them a while after it has said something.
    async fn deaf() -> (u16, Arc<AtomicU64>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let taken = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&taken);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    let _ = client.read(&mut [0; 8]).await;
                    tokio::time::sleep(Duration::from_millis(300)).await;
                });
            }
        });
        (port, taken)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_waits_for_an_attempt_shares_its_failure() {
        let (port, taken) = deaf().await;
        let values = [("RABBITMQ_HOST", "127.0.0.1".to_owned()), ("RABBITMQ_PORT", port.to_string())];
        let mut env = Env::from_values(&[BROKER], values.map(|(name, value)| (name.to_owned(), value)));
        let broker = Broker::new(broker(&mut env), "test");
        let all = (0..5).map(|_| broker.channel());
        let failed = futures_util::future::join_all(all).await.iter().filter(|channel| channel.is_err()).count();
        assert_eq!((failed, taken.load(Ordering::Relaxed)), (5, 1));
        // Who comes later tries anew.
        assert!(broker.channel().await.is_err());
        assert_eq!(taken.load(Ordering::Relaxed), 2);
    }
}
