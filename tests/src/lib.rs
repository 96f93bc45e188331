//! What the integration tests share: real services, a private corner of them for each test, workers as processes, and
//! the comparison of what they did with what must be.

pub mod browser;
#[cfg(test)]
mod citations;
pub mod dumps;
pub mod job;
pub mod management;
pub mod oracle;
pub mod otlp;
pub mod promql;
pub mod proxy;
pub mod stage;
pub mod states;
pub mod tls;
pub mod trust;

pub use job::Job;
pub use stage::Stage;
/// Any error.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
