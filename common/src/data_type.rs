//! The four kinds of Discogs records, and the names that the broker's objects derive from them.

use std::fmt;

/// One kind of record; each has its own exchange, queue, table and node label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DataType {
    /// Artists: persons and groups.
    Artists,
    /// Labels: record companies.
    Labels,
    /// Masters: what several releases have in common.
    Masters,
    /// Releases: single editions.
    Releases,
}

impl DataType {
    /// All types, in the order that the whole project uses (contract, notation).
    pub const ALL: [DataType; 4] = [DataType::Artists, DataType::Labels, DataType::Masters, DataType::Releases];

    /// The plural lower-case name: part of queue names, table name, metric label.
    pub const fn name(self) -> &'static str {
        match self {
            DataType::Artists => "artists",
            DataType::Labels => "labels",
            DataType::Masters => "masters",
            DataType::Releases => "releases",
        }
    }

    /// Position in [`DataType::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The broker's objects for one worker and one data type (contract §1.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Fanout exchange that the extractor publishes to.
    pub data_exchange: String,
    /// The worker's quorum queue.
    pub queue: String,
    /// Fanout exchange for this worker's dead letters.
    pub dead_letter_exchange: String,
    /// Classic queue that keeps them.
    pub dead_letter_queue: String,
}

impl Topology {
    /// Names for `prefix` (`DISCOGS_EXCHANGE_PREFIX`), `worker` (`graphinator` or `tableinator`) and `data_type`.
    pub fn new(prefix: &str, worker: &str, data_type: DataType) -> Self {
        let queue = format!("{prefix}-{worker}-{data_type}");
        Topology {
            data_exchange: format!("{prefix}-{data_type}"),
            dead_letter_exchange: format!("{queue}.dlx"),
            dead_letter_queue: format!("{queue}.dlq"),
            queue,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_contract() {
        let t = Topology::new("discogsography-discogs", "graphinator", DataType::Artists);
        assert_eq!(t.data_exchange, "discogsography-discogs-artists");
        assert_eq!(t.queue, "discogsography-discogs-graphinator-artists");
        assert_eq!(t.dead_letter_exchange, "discogsography-discogs-graphinator-artists.dlx");
        assert_eq!(t.dead_letter_queue, "discogsography-discogs-graphinator-artists.dlq");
    }
}
