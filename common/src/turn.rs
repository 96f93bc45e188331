//! Whose turn it is to consume a queue. Of all replicas of a worker, one consumes a queue at a time: so records keep the
//! order in which the broker has them, and a control message comes after everything before it, whoever dies meanwhile.
//!
//! The turn is an exclusive queue, which the broker grants to one connection at a time and takes back when that
//! connection ends, in the same moment as it takes back the messages. Replicas that wait for their turn write to that
//! queue how many queues they consume; who consumes two more than that hands one over. A replica that was frozen and
//! does not know that its turn is over is stopped by the database: see [`Claim`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::amqp::{Broker, BrokerError, Channels, answered, found, is};
use crate::data_type::{DataType, Topology};
use crate::presence::Presence;
use crate::queue::Queue;
use crate::sink::Sink;

/// How often a waiting replica asks for its turn, and one second more for each queue that it consumes already: who has
/// fewer comes first.
const ASK: Duration = Duration::from_secs(1);
/// From the turn's beginning to the first fetch: what a connection that just ended held is back in the queue by then.
const SETTLE: Duration = Duration::from_millis(300);

/// How often to look whether its last consumer is gone.
const LOOKS: usize = 20;

/// A fencing token: who may write what a queue delivers. It is taken in the database before anything is fetched, and
/// looked at in each write's transaction once that holds its locks. So a write of an earlier owner either ends before any
/// of the new owner's, or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Name of the queue.
    pub queue: String,
    /// The subscription, different each time.
    pub owner: String,
    /// How many unacknowledged deliveries it asks for.
    pub prefetch: u16,
}

impl Claim {
    /// A new one for this queue.
    pub fn new(queue: &str, prefetch: u16) -> Self {
        Claim { queue: queue.to_owned(), owner: format!("{:016x}", fastrand::u64(..)), prefetch }
    }
}

/// How a type stands with this replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Hold {
    #[default]
    Nothing,
    Turn,
    HandingOver,
}

/// The turns that this replica has, over all types.
#[derive(Debug, Default)]
pub struct Turns([Mutex<Hold>; 4], Mutex<()>);

impl Turns {
    fn hold(&self, data_type: DataType) -> MutexGuard<'_, Hold> {
        self.0[data_type.index()].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many it has and keeps.
    fn count(&self) -> usize {
        DataType::ALL.iter().filter(|t| *self.hold(**t) == Hold::Turn).count()
    }

    /// Whether this type's turn is to be handed to a replica with so few. The types go in their fixed order, so that
    /// releases, most of the work, are the last to move.
    fn hands_over(&self, data_type: DataType, to: usize) -> bool {
        let _one_decision_at_a_time = self.1.lock().unwrap_or_else(PoisonError::into_inner);
        let first = DataType::ALL.into_iter().find(|t| *self.hold(*t) == Hold::Turn);
        let over = first == Some(data_type) && self.count() >= to + 2;
        if over {
            *self.hold(data_type) = Hold::HandingOver;
        }
        over
    }
}

/// The right to consume a queue, for as long as its channel lives.
pub struct Turn {
    channel: Channel,
    /// [`Broker::connection`] of the channel.
    connection: u64,
    name: String,
    data_type: DataType,
    turns: Arc<Turns>,
    lost: Arc<AtomicBool>,
    /// Another replica has too little to do: finish what was read, and let it go on.
    pub hand_over: CancellationToken,
    requests: JoinHandle<()>,
}

fn name(topology: &Topology) -> String {
    // Not below the prefix of the contract's queues, which other services list.
    format!("ingest-turn.{}", topology.queue)
}

impl Turn {
    /// Waits until it is this replica's turn. `waiting` is called whenever another one has it. What is published goes by a connection of
    /// its own. A queue that was deleted in the takeover is declared again, and `presence` knows.
    ///
    /// # Errors
    /// [`BrokerError`] if the broker is away.
    pub async fn wait<S: Sink>(
        queue: &Queue<S>,
        topology: &Topology,
        presence: &mut Presence,
        waiting: impl Fn(),
    ) -> Result<Turn, BrokerError> {
        let Queue { broker, publisher, turns, .. } = queue;
        // Replicas that start together do not all take the first type first.
        sleep(ASK.mul_f64(fastrand::f64() * 0.2 * turns.count() as f64)).await;
        loop {
            let (channel, connection) = channel(broker).await?;
            if let Some(turn) = Turn::take(channel, connection, topology, queue.data_type, turns).await? {
                sleep(SETTLE).await;
                let mut looks = 0;
                while presence.look(queue, topology).await?.1 > 0 && looks < LOOKS {
                    looks += 1;
                    sleep(SETTLE).await;
                }
                if looks == LOOKS {
                    warn!(queue = topology.queue, "👥 Somebody who knows nothing of turns consumes this queue too");
                }
                return Ok(turn);
            }
            waiting();
            // A request that does not arrive is made again; whether the broker is there, the next turn of this loop finds out.
            let _ = ask(publisher, topology, turns.count()).await;
            sleep(ASK.mul_f64(0.75 + fastrand::f64() / 2.0) + ASK * turns.count() as u32).await;
        }
    }

    async fn take(
        channel: Channel,
        connection: u64,
        topology: &Topology,
        data_type: DataType,
        turns: &Arc<Turns>,
    ) -> Result<Option<Turn>, BrokerError> {
        let name = name(topology);
        let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let mut arguments = FieldTable::default();
        // Whatever the broker's default is: quorum queues can't be exclusive.
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("classic".into()));
        match answered(channel.queue_declare(name.as_str().into(), exclusive, arguments)).await {
            Ok(_) => {}
            Err(BrokerError::Amqp(e)) if is(&e, AMQPSoftError::RESOURCELOCKED) => return Ok(None),
            Err(e) => return Err(e),
        }
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consumed = channel.basic_consume(name.as_str().into(), "".into(), options, FieldTable::default());
        let mut consumer = answered(consumed).await?;
        *turns.hold(data_type) = Hold::Turn;
        let (hand_over, lost) = (CancellationToken::new(), Arc::new(AtomicBool::new(false)));
        let requests = tokio::spawn({
            let (turns, hand_over, lost) = (Arc::clone(turns), hand_over.clone(), Arc::clone(&lost));
            async move {
                while let Some(Ok(request)) = consumer.next().await {
                    let has = std::str::from_utf8(&request.data).ok().and_then(|count| count.parse().ok());
                    if has.is_some_and(|has| turns.hands_over(data_type, has)) {
                        hand_over.cancel();
                    }
                }
                lost.store(true, Ordering::Relaxed);
            }
        });
        Ok(Some(Turn { channel, connection, name, data_type, turns: Arc::clone(turns), lost, hand_over, requests }))
    }

    /// Whether no replica has it, so that none holds a message of the queue.
    ///
    /// # Errors
    /// [`BrokerError`] if the broker is away.
    pub async fn is_free(broker: &Broker, topology: &Topology) -> Result<bool, BrokerError> {
        let channel = broker.channel().await?;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let asked = channel.queue_declare(name(topology).as_str().into(), passive, FieldTable::default());
        match found(answered(asked).await) {
            Err(BrokerError::Amqp(e)) if is(&e, AMQPSoftError::RESOURCELOCKED) => Ok(false),
            found => Ok(found?.is_none()),
        }
    }

    /// Channels to consume by, on the same connection: if they live, so does the turn. `None` if the connection is another one by now.
    ///
    /// # Errors
    /// [`BrokerError`].
    pub async fn channels(&self, broker: &Broker, topology: &Topology) -> Result<Option<Channels>, BrokerError> {
        let channels = Channels::open(broker, topology).await?;
        Ok((broker.connection() == self.connection).then_some(channels))
    }

    /// Whether the broker still grants it, as far as the client knows.
    pub fn is_held(&self) -> bool {
        self.channel.status().connected() && !self.lost.load(Ordering::Relaxed)
    }

    /// Asks the broker whether it still grants it. A process that was frozen does not know what happened meanwhile.
    pub async fn is_granted(&self) -> bool {
        let passive = QueueDeclareOptions { passive: true, exclusive: true, ..QueueDeclareOptions::default() };
        let asked = self.channel.queue_declare(self.name.as_str().into(), passive, FieldTable::default());
        answered(asked).await.is_ok() && self.is_held()
    }

    /// Ends it: the next replica may begin. Only when everything that was delivered is acknowledged or given back.
    pub async fn end(self) {
        self.requests.abort();
        // If the broker does not hear it, the connection's end says the same.
        let _ = answered(self.channel.queue_delete(self.name.as_str().into(), QueueDeleteOptions::default())).await;
        let _ = answered(self.channel.close(200, "done".into())).await;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.requests.abort();
        *self.turns.hold(self.data_type) = Hold::Nothing;
    }
}

/// A channel, and which connection it is on.
async fn channel(broker: &Broker) -> Result<(Channel, u64), BrokerError> {
    loop {
        let before = broker.connection();
        let channel = broker.channel().await?;
        if broker.connection() == before {
            return Ok((channel, before));
        }
    }
}

/// Tells who has the turn how few this replica has.
async fn ask(publisher: &Broker, topology: &Topology, count: usize) -> Result<(), BrokerError> {
    if publisher.is_blocked().await {
        return Ok(()); // nobody would hear it
    }
    let (channel, name) = (publisher.channel().await?, name(topology));
    let body = count.to_string();
    let properties = BasicProperties::default().with_expiration("5000".into());
    let options = BasicPublishOptions::default();
    let asked = channel.basic_publish("".into(), name.as_str().into(), options, body.as_bytes(), properties);
    answered(asked).await?;
    answered(channel.close(200, "asked".into())).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(held: &[DataType]) -> Turns {
        let turns = Turns::default();
        held.iter().for_each(|t| *turns.hold(*t) = Hold::Turn);
        turns
    }

    #[test]
    fn who_has_two_more_hands_over_one_in_order() {
        let four = turns(&DataType::ALL);
        assert!(!four.hands_over(DataType::Releases, 0));
        assert!(four.hands_over(DataType::Artists, 0));
        assert!(!four.hands_over(DataType::Artists, 0), "it is on its way already");
        assert!(four.hands_over(DataType::Labels, 1));
        assert!(!four.hands_over(DataType::Masters, 1));
        assert_eq!(four.count(), 2);
        assert!(!turns(&[DataType::Releases]).hands_over(DataType::Releases, 0), "one is not handed on");
    }
}
