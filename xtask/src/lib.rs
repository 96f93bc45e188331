//! The task runner's parts, which the integration tests use too.

pub mod bench;
pub mod compose;
pub mod demo;
pub mod feed;
pub mod licences;
pub mod process;
pub mod reference;
pub mod report;
pub mod sample;
pub mod services;
pub mod soak;

/// Any error; the task runner only reports them.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
