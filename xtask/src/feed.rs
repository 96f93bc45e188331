//! Publishes message bodies as the extractor does: to the type's exchange, persistent, mandatory, confirmed.

use std::collections::VecDeque;

use extractor::compress::Compression;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
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
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let mut waiting: VecDeque<PublisherConfirm> = VecDeque::new();
    let mut count = 0;
    for body in bodies {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let confirm = channel.basic_publish(exchange.into(), "".into(), options, body.as_ref(), properties()).await?;
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

async fn confirmed(confirm: PublisherConfirm, exchange: &str) -> Result<(), Error> {
    match confirm.await? {
        Confirmation::Ack(None) => Ok(()),
        other => Err(format!("{exchange} did not take a message: {other:?}").into()),
    }
}
