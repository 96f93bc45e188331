//! RabbitMQ to PostgreSQL. The pipeline is in `common`; here is what a batch becomes in the database.
//!
//! [`sink`] is the write path; [`rows`] encodes it; [`schema`], [`errors`], [`purge`], [`connect`] and [`config`] are
//! what their names say.

pub mod config;
pub mod connect;
pub mod errors;
pub mod purge;
pub mod rows;
pub mod schema;
pub mod sink;

/// The worker's name in queues, logs and metrics.
pub const SERVICE: &str = "tableinator";
