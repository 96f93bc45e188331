//! `WORKER check`: is everything there that a run needs? Changes nothing.

use std::cell::Cell;

use lapin::options::QueueDeclareOptions;
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::FieldTable;

use crate::amqp::{self, Broker, BrokerError, answered};
use crate::config::{Config, SchemaMode};
use crate::data_type::{DataType, Topology};
use crate::sink::{Sink, SinkError};
use crate::worker::Exit;

/// The schema mode for a check: never create.
pub fn looking_only(mode: SchemaMode) -> SchemaMode {
    match mode {
        SchemaMode::Ensure | SchemaMode::Check => SchemaMode::Check,
        SchemaMode::Off => SchemaMode::Off,
    }
}

/// Looks at everything and prints a line for each.
pub async fn run<S: Sink>(service: &'static str, database: &str, config: &Config, notes: &[String], sink: &S) -> Exit {
    let failed = Cell::new(false);
    let line = |ok: bool, what: &str, text: String| {
        failed.set(failed.get() || !ok);
        println!("{} {what}: {text}", if ok { "ok  " } else { "FAIL" });
    };
    line(true, "configuration", "valid".to_owned());
    for note in notes {
        println!("note configuration: {note}");
    }
    let needed = config.limits.count * (config.writers + 1);
    let bound = format!("{} for {} batches of {} per queue", config.prefetch, config.writers + 1, config.limits.count);
    line(usize::from(config.prefetch) >= needed, "prefetch", bound);
    // AMQP does not tell the broker's value; what can be checked is that we act well before what we were told.
    let hold = config.hold_limit + config.write_timeout;
    let timeout = config.hold_limit * 2;
    line(
        hold < timeout,
        "consumer timeout",
        format!(
            "messages are handed back after {} s of outage; RABBITMQ_CONSUMER_TIMEOUT is {} s and must not exceed the broker's consumer_timeout",
            config.hold_limit.as_secs(),
            timeout.as_secs()
        ),
    );
    match sink.prepare().await {
        Ok(()) => line(true, database, "reachable, schema complete".to_owned()),
        Err(SinkError { code, message, .. }) if code == "schema" && config.schema == SchemaMode::Ensure => {
            line(true, database, format!("reachable; the schema will be completed at start ({message})"));
        }
        Err(e) => line(false, database, e.to_string()),
    }
    let broker = Broker::new(config.broker.clone(), service);
    let address = format!("{}:{}", config.broker.host, config.broker.port);
    let reached = broker.channel().await;
    match &reached {
        Ok(_) => line(true, "RabbitMQ", format!("{address} reachable")),
        Err(e) => line(false, "RabbitMQ", format!("{address}: {e}")),
    }
    if reached.is_ok() {
        for data_type in DataType::ALL {
            let topology = Topology::new(&config.broker.prefix, service, data_type);
            match queue(&broker, &topology).await {
                Ok(text) => line(true, &topology.queue, text),
                Err(e) => line(false, &topology.queue, e.to_string()),
            }
        }
    }
    broker.close().await;
    if failed.get() { Exit::CheckFailed } else { Exit::Clean }
}

/// Looks whether the queue exists, and if so whether its arguments are ours: declaring an equal queue changes nothing,
/// declaring another one is refused.
async fn queue(broker: &Broker, topology: &Topology) -> Result<String, BrokerError> {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let channel = broker.channel().await?;
    let declared = channel.queue_declare(topology.queue.as_str().into(), passive, FieldTable::default());
    match answered(declared).await {
        Ok(queue) => {
            let (ready, consumers) = (queue.message_count(), queue.consumer_count());
            amqp::declare(&channel, topology).await?;
            Ok(format!("{ready} messages ready, {consumers} consumers, arguments as expected"))
        }
        Err(BrokerError::Amqp(e)) if is_not_found(&e) => Ok("does not exist yet, will be declared at start".to_owned()),
        Err(e) => Err(e),
    }
}

fn is_not_found(error: &lapin::Error) -> bool {
    matches!(error.kind(), lapin::ErrorKind::ProtocolError(e) if *e.kind() == AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND))
}
