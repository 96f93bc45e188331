//! `replay`: back into the worker's own queue.

use std::io::Write;

use chrono::Utc;
use lapin::message::Delivery;
use lapin::options::ConfirmSelectOptions;

use super::args::ReplayArgs;
use super::counts::Counts;
use super::letter::restored;
use super::walk::Walk;
use super::{Error, Queues};
use crate::DataType;
use crate::amqp::{BrokerError, answered};
use crate::dead_letter::publish;

#[derive(Default)]
struct Tally {
    replayed: Counts,
    refused: Counts,
    /// What the broker said to the first that it refused.
    refusal: Option<String>,
}

/// Publishes matching messages to the worker's queues and takes each out of its dead-letter queue once the broker has
/// confirmed it: in between it is in both. Returns whether all matching messages, up to the limit, were replayed.
///
/// # Errors
/// [`Error`]; what was done until then is printed nevertheless.
pub async fn run(queues: &Queues, args: &ReplayArgs, out: &mut impl Write) -> Result<bool, Error> {
    let mut tally = Tally::default();
    let ended = replay(queues, args, &mut tally).await;
    let done = if args.dry_run { "would be replayed" } else { "replayed" };
    for (counts, what) in [(&tally.replayed, done), (&tally.refused, "not replayed")] {
        if counts.total() > 0 {
            writeln!(out, "{counts}")?;
        }
        if counts.total() > 0 || what == done {
            writeln!(out, "{:>9}  {what}", counts.total())?;
        }
    }
    if let Some(refusal) = &tally.refusal {
        writeln!(out, "{refusal}. Does the worker's queue exist? The worker declares it when it starts.")?;
    }
    ended?;
    Ok(tally.refused.total() == 0)
}

async fn replay(queues: &Queues, args: &ReplayArgs, tally: &mut Tally) -> Result<(), Error> {
    let now = Utc::now();
    let mut left = args.limit.unwrap_or(usize::MAX);
    let publisher = queues.broker.channel().await?;
    answered(publisher.confirm_select(ConfirmSelectOptions::default())).await?;
    for data_type in args.filter.types() {
        let Some(mut walk) = queues.walk(data_type).await? else { continue };
        while left > 0
            && let Some(message) = walk.next().await?
        {
            let letter = queues.read(data_type, &message);
            if !args.filter.matches(&letter, now) {
                continue;
            }
            left -= 1;
            if !args.dry_run
                && let Err(refusal) = one(queues, &publisher, &walk, data_type, &message).await?
            {
                tally.refused.add(&letter);
                tally.refusal.get_or_insert(refusal);
            } else {
                tally.replayed.add(&letter);
            }
        }
        walk.close().await?;
    }
    Ok(())
}

/// The worker's own queue is reached by the default exchange; the data exchange would hand the message to the other worker
/// too.
async fn one(
    queues: &Queues,
    publisher: &lapin::Channel,
    walk: &Walk,
    data_type: DataType,
    message: &Delivery,
) -> Result<Result<(), String>, Error> {
    let queue = queues.topology(data_type).queue;
    match publish(publisher, "", &queue, &message.data, restored(&message.properties)).await {
        Ok(()) => Ok(Ok(walk.take(message.delivery_tag).await?)),
        Err(refused @ BrokerError::NotTaken(_)) => Ok(Err(refused.to_string())),
        Err(e) => Err(e.into()),
    }
}
