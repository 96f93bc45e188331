//! What both workers share: the pipeline from a RabbitMQ queue to a database, and everything around it.
//!
//! Read [`pipeline`] first; it is the whole flow. Then, in the order of the flow: [`amqp`] (source), [`encoding`] and
//! [`message`] (decode), [`batch`] (batcher), [`writer`] (retry and bisect), [`sink`] (what a worker adds), [`settle`] (acks),
//! [`dead_letter`]; [`deadletter`] is the command that looks at dead letters and replays them. Around it: [`queue`] (one consumer's life),
//! [`turn`] (which replica consumes), [`watch`] (is it alive?), [`worker`] (the process), [`background`] (what control messages ask for), [`config`], [`tuning`] (what changes while it runs), [`rate`], [`status`] and [`http`], [`metrics`] and [`phases`], [`trace`], [`logging`].

pub mod adaptive;
pub mod amqp;
pub mod background;
pub mod backoff;
pub mod batch;
pub mod check;
pub mod cli;
pub mod config;
pub mod data_type;
pub mod dead_letter;
pub mod deadletter;
pub mod encoding;
pub mod http;
pub mod kept;
pub mod logging;
pub mod message;
pub mod metrics;
pub mod phases;
pub mod pipeline;
pub mod presence;
pub mod queue;
pub mod rate;
pub mod settle;
pub mod shares;
pub mod sink;
pub mod status;
pub mod trace;
pub mod tuning;
pub mod turn;
pub mod watch;
pub mod worker;
pub mod writer;
pub mod year;

pub use data_type::{DataType, Topology};

/// The commit that this is made of, as `build.rs` found out; `development` unless it is a release.
pub const COMMIT: &str = env!("BUILD_COMMIT");
/// What `--version` says behind the program's name.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("BUILD_COMMIT"), ")");
