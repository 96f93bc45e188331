//! Publishes message bodies as the extractor does: to the type's exchange, persistent, mandatory, confirmed. And takes them
//! out again, for what the broker alone can do.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use extractor::compress::Compression;
use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation, PublisherConfirm};

use crate::Error;

/// Messages that may wait for their confirm.
const WINDOW: usize = 2000;

/// AMQP properties of every message (contract §2.1).
pub fn properties() -> BasicProperties {
    extractor::publish::properties(Compression::None)
}

/// Publishes bodies in order and returns when all are confirmed.
///
/// # Errors
/// If the broker did not take one, or returned it because no queue is bound.
pub async fn publish<B: AsRef<[u8]>>(
    channel: &Channel,
    exchange: &str,
    bodies: impl IntoIterator<Item = B>,
) -> Result<usize, Error> {
    publish_each(channel, exchange, bodies.into_iter().map(|body| (body, properties()))).await
}

/// The same, with properties of its own for each body.
///
/// # Errors
/// As above.
pub async fn publish_each<B: AsRef<[u8]>>(
    channel: &Channel,
    exchange: &str,
    messages: impl IntoIterator<Item = (B, BasicProperties)>,
) -> Result<usize, Error> {
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let mut waiting: VecDeque<PublisherConfirm> = VecDeque::new();
    let mut count = 0;
    for (body, properties) in messages {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let confirm = channel.basic_publish(exchange.into(), "".into(), options, body.as_ref(), properties).await?;
        waiting.push_back(confirm);
        count += 1;
        if waiting.len() >= WINDOW
            && let Some(oldest) = waiting.pop_front()
        {
            confirmed(oldest, exchange).await?;
        }
    }
    for confirm in waiting {
        confirmed(confirm, exchange).await?;
    }
    Ok(count)
}

/// Takes `count` messages out of a queue and does nothing with them but acknowledge as many as `at_a_time` in one frame. Returns how long
/// that took.
///
/// # Errors
/// The broker's.
pub async fn acknowledge(channel: &Channel, queue: &str, count: u64, at_a_time: u16) -> Result<Duration, Error> {
    channel.basic_qos(3 * at_a_time, BasicQosOptions::default()).await?;
    let started = Instant::now();
    let options = BasicConsumeOptions::default();
    let mut consumer = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?;
    for taken in 1..=count {
        let delivery = consumer.next().await.ok_or("the consumer ended")??;
        if taken % u64::from(at_a_time) == 0 || taken == count {
            channel.basic_ack(delivery.delivery_tag, BasicAckOptions { multiple: true }).await?;
        }
    }
    let took = started.elapsed();
    channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await?;
    Ok(took)
}

async fn confirmed(confirm: PublisherConfirm, exchange: &str) -> Result<(), Error> {
    match confirm.await? {
        Confirmation::Ack(None) => Ok(()),
        other => Err(format!("{exchange} did not take a message: {other:?}").into()),
    }
}
