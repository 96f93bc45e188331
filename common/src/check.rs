//! `WORKER check`: is everything there that a run needs? Changes nothing.

use std::cell::Cell;

use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use opentelemetry_sdk::Resource;

use crate::amqp::{self, Broker, BrokerError, answered};
use crate::config::{Config, SchemaMode};
use crate::data_type::{DataType, Topology};
use crate::sink::{Sink, SinkError};
use crate::trace::otlp::Receiver;
use crate::tuning::Tuning;
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
    let Tuning { limits, writers, prefetch, .. } = config.tuning;
    line(true, "prefetch", format!("{prefetch} for {} batches of {} per queue", writers + 1, limits.count));
    // AMQP does not tell the broker's value. The consumers ask for ours (x-consumer-timeout), which newer brokers grant.
    line(
        true,
        "consumer timeout",
        format!(
            "messages are handed back after {} s of outage; consumers ask for {} s (RABBITMQ_CONSUMER_TIMEOUT), which must not exceed the consumer_timeout of a broker before 4.3",
            config.hold_limit.as_secs(),
            config.hold_limit.as_secs() * 2
        ),
    );
    let schema = if config.schema == SchemaMode::Off { "not looked at" } else { "complete" };
    match prepare(sink).await {
        Ok(()) => line(true, database, format!("reachable, schema {schema}, writes rehearsed")),
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
    if let Some(trace) = &config.trace {
        let receiver = Receiver::new(trace, &Resource::builder_empty().build());
        match tokio::task::spawn_blocking(move || receiver.send(vec![])).await.map_err(|e| e.to_string()).flatten() {
            Ok(_) => line(true, "traces", format!("{} takes them", trace.endpoint)),
            // Nothing waits for it.
            Err(e) => println!("note traces: {}: {e}; batches are loaded all the same", trace.endpoint),
        }
    }
    if failed.get() { Exit::CheckFailed } else { Exit::Clean }
}

async fn prepare<S: Sink>(sink: &S) -> Result<(), SinkError> {
    for data_type in DataType::ALL {
        sink.prepare(data_type).await?;
    }
    Ok(())
}

/// Looks whether everything of a queue exists, and if the queue does, whether its arguments are ours: declaring an equal
/// queue changes nothing, declaring another one is refused.
async fn queue(broker: &Broker, topology: &Topology) -> Result<String, BrokerError> {
    let mut missing = Vec::new();
    for exchange in [&topology.data_exchange, &topology.dead_letter_exchange] {
        let channel = broker.channel().await?; // a refusal closes it
        let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        let name = exchange.as_str().into();
        let declared = channel.exchange_declare(name, ExchangeKind::Fanout, passive, FieldTable::default());
        if amqp::found(answered(declared).await)?.is_none() {
            missing.push(exchange.as_str());
        }
    }
    let mut text = String::new();
    for (queue, arguments) in amqp::queues(topology) {
        let channel = broker.channel().await?;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declared = answered(channel.queue_declare(queue.into(), passive, FieldTable::default())).await;
        let Some(found) = amqp::found(declared)? else {
            missing.push(queue);
            continue;
        };
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        answered(channel.queue_declare(queue.into(), durable, arguments)).await?;
        let (ready, consumers) = (found.message_count(), found.consumer_count());
        text = format!("{ready} messages ready, {consumers} consumers, arguments as expected");
    }
    if missing.is_empty() {
        return Ok(text);
    }
    Ok(format!("does not exist yet, will be declared at start: {}", missing.join(", ")))
}
