//! Which nodes the transactions of this worker are about to lock, so that one that begins leaves those of the others for its end.
//!
//! Neo4j locks the key of a node that a statement makes, or does not find, until the transaction ends. Two batches almost always have a new
//! artist or person in common, and the second one to want it waits for the first one's commit: had it come early in the statement, the
//! two would take turns. As nobody wants what a transaction that began before it holds until all else is done, transactions of one
//! worker can't wait for each other crosswise either.

use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

/// The nodes of one transaction, as hashes of label and key: two that are the same only cost time.
type Nodes = Arc<HashSet<u64>>;

/// The transactions under way.
#[derive(Debug, Default)]
pub struct Contention(Mutex<Vec<Nodes>>);

/// The nodes of one transaction, known to the others for as long as this lives.
#[derive(Debug)]
pub struct Entry<'a> {
    contention: &'a Contention,
    nodes: Nodes,
    others: Vec<Nodes>,
}

impl Contention {
    /// Tells the others of the nodes, by label and key, that a transaction is about to lock.
    pub fn enter<'k>(&self, nodes: impl IntoIterator<Item = (&'static str, &'k str)>) -> Entry<'_> {
        let nodes = Arc::new(nodes.into_iter().map(hash).collect::<HashSet<_>>());
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let others = running.clone();
        running.push(Arc::clone(&nodes));
        Entry { contention: self, nodes, others }
    }
}

impl Entry<'_> {
    /// Whether a transaction that was there before is about to lock this node, too.
    pub fn is_contended(&self, label: &'static str, key: &str) -> bool {
        let node = hash((label, key));
        self.others.iter().any(|nodes| nodes.contains(&node))
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        let mut running = self.contention.0.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|nodes| !Arc::ptr_eq(nodes, &self.nodes));
    }
}

fn hash(node: (&'static str, &str)) -> u64 {
    let mut hasher = DefaultHasher::new();
    node.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_came_before_and_is_still_there_counts() {
        let contention = Contention::default();
        let first = contention.enter([("Artist", "1"), ("Label", "2")]);
        let second = contention.enter([("Artist", "1"), ("Artist", "2")]);
        assert!(!first.is_contended("Artist", "1"), "the first one waits for nobody");
        assert!(second.is_contended("Artist", "1"));
        assert!(!second.is_contended("Artist", "2"), "a label is no artist");
        drop(first);
        let third = contention.enter([("Artist", "1")]);
        assert!(third.is_contended("Artist", "2") && !third.is_contended("Label", "2"));
        drop((second, third));
        assert!(!contention.enter([]).is_contended("Artist", "1"));
    }
}
