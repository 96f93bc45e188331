//! RabbitMQ to Neo4j. The pipeline is in `common`; here is what a batch becomes in the graph.
//!
//! [`record`] says what is taken out of a message, [`statements`] what it becomes in Cypher, [`prune`] what
//! it no longer has, [`sweep`] what is left of that; [`sink`] is the write path. [`maintenance`] follows a complete run, and
//! [`vanished`] is its part for records that the run did not bring, with [`gate`] between it and the batches of the next run.
//! [`schema`], [`errors`], [`roles`], [`connect`] and [`config`] are what their names say.

pub mod config;
pub mod connect;
pub mod contention;
pub mod errors;
pub mod gate;
pub mod maintenance;
pub mod prune;
pub mod record;
pub mod roles;
pub mod schema;
pub mod sink;
pub mod statements;
pub mod sweep;
pub mod vanished;

/// The worker's name in queues, logs and metrics.
pub const SERVICE: &str = "graphinator";
