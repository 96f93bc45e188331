//! OpenTelemetry: one trace per batch, with links to the producers' traces, for whoever sets `OTEL_EXPORTER_OTLP_ENDPOINT`.
//!
//! A batch carries its trace ([`batch::BatchTrace`]) from its first record to its acknowledgement; only then the spans are made, all at
//! once, from the times that it noted. [`links`] reads the producers' trace contexts from the messages' headers, [`export`] is
//! the bounded way out, [`otlp`] the receiver's protocol. While tracing is off, a batch has no trace (`None`), and of a message nothing
//! is looked at.

pub mod batch;
pub mod config;
pub mod export;
pub mod links;
pub mod otlp;
