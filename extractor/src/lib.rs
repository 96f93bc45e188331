//! Discogs dumps in, messages out.
//!
//! Read [`run`] first; it is the whole flow. Then, in the order of the flow: [`plan`] (which files), [`input`] with
//! [`xml`], [`jsonl`] and [`table`] (records out of a stream), [`node`] (a record), [`rules`], [`normalize`], [`message`]
//! (its bytes), [`bindings`] (are the queues bound?), [`file`] (one file from end to end), [`publish`] (confirms and reconnects), [`state`] and [`rejects`]
//! (what survives a crash). Around it: [`progress`], [`summary`], [`webhook`]. [`generate`] makes dumps, [`inspect`] and
//! [`convert`] look into them.

pub mod bindings;
pub mod checksum;
pub mod cli;
pub mod compress;
pub mod config;
pub mod convert;
pub mod file;
pub mod generate;
pub mod input;
pub mod inspect;
pub mod jsonl;
pub mod message;
pub mod node;
pub mod normalize;
pub mod plan;
pub mod progress;
pub mod publish;
pub mod rejects;
pub mod rules;
pub mod run;
pub mod state;
pub mod summary;
pub mod table;
#[cfg(test)]
mod testing;
pub mod webhook;
pub mod xml;
