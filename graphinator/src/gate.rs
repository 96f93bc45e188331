//! The gate between batches and the removal of vanished records, one for each type.
//!
//! A batch that finds a record unchanged only notes that it saw it, and locks nothing. If the record were removed at the same time, as one that
//! an earlier run did not bring, it would be gone although the new run brought it. So whoever removes records closes the gate first, and
//! waits for the transactions that began before. Batches that find it closed lock every node that they look at
//! ([`crate::statements::check`]): they see what was removed, or are seen.

use std::collections::HashSet;
use std::time::Duration;

use common::DataType;
use neo4rs::{Graph, query};
use tokio::time::{Instant, sleep};

/// How often to look whether earlier transactions have ended.
const LOOK: Duration = Duration::from_millis(100);

/// Closes the gate, and waits until no transaction is left that may have found it open; at most for `limit`, which no batch outlasts.
/// (What runs that long is somebody else's.)
///
/// # Errors
/// The database's.
pub async fn close(graph: &Graph, data_type: DataType, limit: Duration) -> Result<(), neo4rs::Error> {
    graph.run(query("MERGE (:IngestGate {type: $type})").param("type", data_type.name())).await?;
    let closed = Instant::now();
    let mut before = transactions(graph).await?;
    while !before.is_empty() && closed.elapsed() < limit {
        sleep(LOOK).await;
        let now = transactions(graph).await?;
        before.retain(|id| now.contains(id));
    }
    Ok(())
}

/// Opens it again. If a crash leaves it closed, batches are a little slower until the next removal.
///
/// # Errors
/// The database's.
pub async fn open(graph: &Graph, data_type: DataType) -> Result<(), neo4rs::Error> {
    graph.run(query("MATCH (g:IngestGate {type: $type}) DELETE g").param("type", data_type.name())).await
}

/// Ids of the transactions that are under way. (The one that asks is another one each time.)
async fn transactions(graph: &Graph) -> Result<HashSet<String>, neo4rs::Error> {
    let mut rows = graph.execute(query("SHOW TRANSACTIONS YIELD transactionId RETURN transactionId")).await?;
    let mut ids = HashSet::new();
    while let Some(row) = rows.next().await? {
        ids.insert(row.get("transactionId")?);
    }
    Ok(ids)
}
