//! Collects records until a batch is full, heavy or old enough.

use std::time::Duration;

use lapin::BasicProperties;
use lapin::types::AMQPValue;
use tokio::time::Instant;

use crate::message::Reject;
use crate::settle::SettleToken;
use crate::sink::Record;
use crate::trace::batch::{BatchTrace, Tracer};

/// Why a batch was closed; a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// It holds as many records as a batch may.
    Count,
    /// One more record would have been too many bytes.
    Bytes,
    /// Its first record waited for the flush interval.
    Deadline,
    /// A control message or the shutdown asks for everything.
    Drain,
}

impl Trigger {
    /// Metric label.
    pub const fn name(self) -> &'static str {
        match self {
            Trigger::Count => "count",
            Trigger::Bytes => "bytes",
            Trigger::Deadline => "deadline",
            Trigger::Drain => "drain",
        }
    }
}

/// Where a delivery came from, kept for its settlement and for the headers of a dead letter.
#[derive(Debug)]
pub struct Origin {
    /// The right to settle it.
    pub token: SettleToken,
    /// Whether the broker had delivered it before.
    pub redelivered: bool,
    /// AMQP properties as received.
    pub properties: BasicProperties,
    /// When this worker received it.
    pub received: chrono::DateTime<chrono::Utc>,
}

impl Origin {
    /// How often the broker has delivered it before, as a quorum queue counts. At the first delivery the broker adds no such header,
    /// so that one would be the publisher's.
    pub fn delivery_count(&self) -> i64 {
        if !self.redelivered {
            return 0;
        }
        let headers = self.properties.headers().as_ref();
        let count = headers.and_then(|headers| headers.inner().get("x-delivery-count"));
        match count {
            Some(AMQPValue::LongLongInt(n)) => *n,
            Some(AMQPValue::LongInt(n)) => i64::from(*n),
            Some(AMQPValue::LongUInt(n)) => i64::from(*n),
            _ => 0,
        }
    }
}

/// One delivery in a batch.
#[derive(Debug)]
pub enum Item<P> {
    /// A record to write.
    Record(Record<P>, Origin),
    /// A message that can't be a record, with its body, to be dead-lettered.
    Reject(Reject, Vec<u8>, Origin),
}

impl<P> Item<P> {
    /// Where it came from.
    pub fn origin(&self) -> &Origin {
        match self {
            Item::Record(_, origin) | Item::Reject(_, _, origin) => origin,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Item::Record(record, _) => record.body.len(),
            Item::Reject(_, body, _) => body.len(),
        }
    }
}

/// A closed batch.
#[derive(Debug)]
pub struct Batch<P> {
    /// Deliveries in the order of their arrival.
    pub items: Vec<Item<P>>,
    /// Sum of the bodies' bytes.
    pub bytes: usize,
    /// Why it was closed.
    pub trigger: Trigger,
    /// When its first record came.
    pub opened: Instant,
    /// Its trace, if it is traced.
    pub trace: Option<Box<BatchTrace>>,
}

impl<P> Batch<P> {
    /// The ids of its records.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.items.iter().filter_map(|item| match item {
            Item::Record(record, _) => Some(record.id.as_str()),
            Item::Reject(..) => None,
        })
    }
}

/// When batches close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Records in a batch.
    pub count: usize,
    /// Bytes of bodies in a batch; a record that is larger by itself goes alone.
    pub bytes: usize,
    /// Longest time that the first record waits.
    pub interval: Duration,
}

/// The batch that is being filled.
#[derive(Debug)]
pub struct Batcher<P> {
    limits: Limits,
    tracer: Option<Tracer>,
    open: Option<Batch<P>>,
}

impl<P> Batcher<P> {
    /// An empty batcher.
    pub fn new(limits: Limits, tracer: Option<Tracer>) -> Self {
        Batcher { limits, tracer, open: None }
    }

    /// From now on batches close by these limits.
    pub fn set(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// From now on a batch may hold so many records.
    pub fn resize(&mut self, count: usize) {
        self.limits.count = count;
    }

    /// Records that the next batch may hold.
    pub fn size(&self) -> usize {
        self.limits.count
    }

    /// Adds an item that was received at `now` and has been decoded since. Returns the batch that this closed, if any: the one before
    /// (bytes) or the one with it (count).
    pub fn push(&mut self, item: Item<P>, now: Instant) -> Option<Batch<P>> {
        let bytes = item.bytes();
        let overflow = self.open.as_ref().is_some_and(|open| open.bytes + bytes > self.limits.bytes);
        let closed = if overflow { self.close(Trigger::Bytes) } else { None };
        let open = self.open.get_or_insert_with(|| Batch {
            items: Vec::with_capacity(self.limits.count.min(1024)),
            bytes: 0,
            trigger: Trigger::Count,
            opened: now,
            trace: self.tracer.as_ref().and_then(|tracer| tracer.begin(now.into_std())),
        });
        if let Some(trace) = &mut open.trace {
            trace.decoded(item.origin(), now.into_std());
        }
        open.bytes += bytes;
        open.items.push(item);
        // After an overflow the new batch holds one item of at least two: a batch of one never stays open.
        if closed.is_none() && open.items.len() >= self.limits.count {
            return self.close(Trigger::Count);
        }
        closed
    }

    /// Closes the open batch, if there is one.
    pub fn close(&mut self, trigger: Trigger) -> Option<Batch<P>> {
        let mut batch = self.open.take()?;
        batch.trigger = trigger;
        if let Some(trace) = &mut batch.trace {
            trace.closed(batch.items.len(), batch.bytes, trigger);
        }
        Some(batch)
    }

    /// When the open batch must be closed.
    pub fn deadline(&self) -> Option<Instant> {
        self.open.as_ref().map(|b| b.opened + self.limits.interval)
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.open.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settle::Ledger;

    fn batcher(count: usize, bytes: usize) -> Batcher<()> {
        Batcher::new(Limits { count, bytes, interval: Duration::from_secs(2) }, None)
    }

    fn item(tag: u64, size: usize) -> Item<()> {
        let record = Record { id: tag.to_string(), hash: String::new(), body: vec![b'x'; size], payload: () };
        let origin = Origin {
            token: Ledger::new().register(tag),
            redelivered: false,
            properties: BasicProperties::default(),
            received: chrono::Utc::now(),
        };
        Item::Record(record, origin)
    }

    #[test]
    fn a_count_that_the_broker_did_not_make_is_none() {
        let mut headers = lapin::types::FieldTable::default();
        headers.insert("x-delivery-count".into(), AMQPValue::LongLongInt(19));
        let count = |redelivered| Origin {
            token: Ledger::new().register(1),
            redelivered,
            properties: BasicProperties::default().with_headers(headers.clone()),
            received: chrono::Utc::now(),
        };
        assert_eq!((count(false).delivery_count(), count(true).delivery_count()), (0, 19));
    }

    #[test]
    fn closes_on_count() {
        let mut b = batcher(2, 1000);
        let now = Instant::now();
        assert!(b.push(item(1, 10), now).is_none());
        let closed = b.push(item(2, 10), now).expect("full");
        assert_eq!((closed.items.len(), closed.bytes, closed.trigger), (2, 20, Trigger::Count));
        assert!(b.is_empty());
    }

    #[test]
    fn never_overshoots_the_bytes() {
        let mut b = batcher(10, 100);
        let now = Instant::now();
        assert!(b.push(item(1, 60), now).is_none());
        let closed = b.push(item(2, 60), now).expect("too heavy together");
        assert_eq!((closed.items.len(), closed.bytes, closed.trigger), (1, 60, Trigger::Bytes));
        let closed = b.push(item(3, 500), now).expect("too heavy together");
        assert_eq!(closed.bytes, 60);
        let alone = b.close(Trigger::Drain).expect("the big one");
        assert_eq!((alone.items.len(), alone.bytes), (1, 500));
    }

    #[test]
    fn the_deadline_counts_from_the_first_record() {
        let mut b = batcher(10, 1000);
        let now = Instant::now();
        assert_eq!(b.deadline(), None);
        b.push(item(1, 1), now);
        b.push(item(2, 1), now + Duration::from_secs(1));
        assert_eq!(b.deadline(), Some(now + Duration::from_secs(2)));
        assert_eq!(b.close(Trigger::Deadline).map(|b| b.items.len()), Some(2));
        assert_eq!(b.deadline(), None);
    }
}
