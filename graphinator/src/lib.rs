//! RabbitMQ to Neo4j. The pipeline is in `common`; here is what a batch becomes in the graph.
//!
//! [`record`] says what is taken out of a message, [`statements`] what it becomes in Cypher, [`sink`] is the write path.
//! [`schema`], [`errors`], [`roles`], [`maintenance`], [`connect`] and [`config`] are what their names say.

pub mod config;
pub mod connect;
pub mod errors;
pub mod maintenance;
pub mod record;
pub mod roles;
pub mod schema;
pub mod sink;
pub mod statements;

/// The worker's name in queues, logs and metrics.
pub const SERVICE: &str = "graphinator";
