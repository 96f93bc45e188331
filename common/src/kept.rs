//! What could not be done before its messages had to go back, kept to be tried before they are fetched again: fetching them to find
//! out whether it works by now would cost each of them one of its [`DELIVERY_LIMIT`](crate::amqp::DELIVERY_LIMIT) deliveries.

use crate::data_type::DataType;
use crate::message::Control;
use crate::sink::{Class, Record, Sink, SinkError};

/// One piece of work, without the right to settle anything: the messages are with the broker.
#[derive(Debug)]
pub enum Kept<P> {
    /// The records of one transaction, no more than a batch: distinct ids, sorted.
    Records(Vec<Record<P>>),
    /// A control message. Everything before it is settled.
    Control(Control),
    /// The note that comes before a dead letter.
    DeadLetter,
}

impl<P> Kept<P> {
    /// Number of its records.
    pub fn records(&self) -> usize {
        if let Kept::Records(records) = self { records.len() } else { 0 }
    }

    /// Tries it. Records are not committed; the others may be repeated, so they are done.
    ///
    /// # Errors
    /// [`SinkError`] as long as fetching the messages makes no sense. What the writer would divide is no such error.
    pub async fn rehearse<S: Sink<Payload = P>>(&self, sink: &S, data_type: DataType) -> Result<(), SinkError> {
        match self {
            Kept::Records(records) => {
                let batch: Vec<_> = records.iter().collect();
                match sink.rehearse(data_type, &batch).await {
                    // A race that was lost to others says that it works.
                    Err(e) if matches!(e.class, Class::Poison | Class::Conflict) => Ok(()),
                    Err(e) if e.class == Class::TooLarge && batch.len() > 1 => Ok(()),
                    outcome => outcome,
                }
            }
            Kept::Control(control) => sink.control(data_type, control).await,
            Kept::DeadLetter => sink.note_dead_letter(data_type).await,
        }
    }
}
