//! What could not be done before its messages had to go back, kept to be tried before they are fetched again: fetching them to find
//! out whether it works by now would cost each of them one of its [`DELIVERY_LIMIT`](crate::amqp::DELIVERY_LIMIT) deliveries.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::data_type::DataType;
use crate::message::Control;
use crate::shares::Shares;
use crate::sink::{Class, Record, Sink, SinkError};

/// One piece of work, without the right to settle anything: the messages are with the broker.
#[derive(Debug)]
pub enum Kept<P> {
    /// The records of one transaction, no more than a batch: distinct ids, sorted. So many are tried at a time.
    Records(Vec<Record<P>>, usize),
    /// A control message. Everything before it is settled.
    Control(Control),
    /// The note that comes before a dead letter.
    DeadLetter,
}

impl<P> Kept<P> {
    /// These records, to be tried together.
    pub fn records(records: impl Iterator<Item = Record<P>>) -> Self {
        let records: Vec<_> = records.collect();
        let all = records.len().max(1);
        Kept::Records(records, all)
    }

    /// Records that could be tried at a time.
    pub fn together(&self) -> usize {
        if let Kept::Records(_, together) = self { *together } else { usize::MAX }
    }

    /// Tries it, each attempt for at most `limit` and with a slot of its own. Records are not committed; the others may be repeated, so they are done.
    ///
    /// # Errors
    /// [`SinkError`] as long as fetching the messages makes no sense. What the writer would divide is no such error. Of records that take
    /// too long fewer are tried at a time from then on, but always all of them: what keeps them from being written must not be left out.
    pub async fn rehearse<S: Sink<Payload = P>>(
        &mut self,
        sink: &S,
        data_type: DataType,
        limit: Duration,
        slots: &Arc<Shares>,
    ) -> Result<(), SinkError> {
        let bounded = |outcome: Result<_, _>| outcome.unwrap_or_else(|_| Err(SinkError::timeout(limit)));
        match self {
            Kept::Records(records, together) => {
                for part in records.chunks(*together) {
                    let part: Vec<_> = part.iter().collect();
                    let _slot = slots.acquire(data_type, part.len()).await;
                    match bounded(timeout(limit, sink.rehearse(data_type, &part)).await) {
                        // A race that was lost to others says that it works.
                        Err(e) if matches!(e.class, Class::Poison | Class::Conflict) => {}
                        Err(e) if e.class == Class::TooLarge && part.len() > 1 => {}
                        Err(e) if e.is_timeout() => {
                            *together = part.len().div_ceil(2);
                            return Err(e);
                        }
                        outcome => outcome?,
                    }
                }
                Ok(())
            }
            // What has no records takes no slot when it is written, either.
            Kept::Control(control) => bounded(timeout(limit, sink.control(data_type, control)).await),
            Kept::DeadLetter => bounded(timeout(limit, sink.note_dead_letter(data_type)).await),
        }
    }
}
