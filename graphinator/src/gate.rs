//! The gate between batches and the removal of vanished records, one for each type.
//!
//! A batch that finds a record unchanged only notes that it saw it, and locks nothing. If the record were removed at the same time, as one that
//! an earlier run did not bring, it would be gone although the new run brought it. So whoever removes records closes the gate first, and
//! waits for the transactions that began before. Batches that find it closed lock every node that they look at
//! ([`crate::statements::check`]): they see what was removed, or are seen.

use std::collections::HashSet;
use std::time::Duration;

use common::DataType;
use neo4rs::{Graph, Query, query};
use tokio::time::{Instant, sleep};

use crate::vanished::Guards;

/// How often to look whether earlier transactions have ended.
const LOOK: Duration = Duration::from_millis(100);

/// Closes the gate, and waits until no transaction is left that may have found it open.
///
/// # Errors
/// The database's.
pub async fn close(graph: &Graph, data_type: DataType, guards: &Guards) -> Result<(), neo4rs::Error> {
    graph.run(of("MERGE (g:IngestGate {type: $type}) SET g.owner = $owner", data_type, guards)).await?;
    earlier_ones(graph, guards).await
}

/// Waits until no transaction is left that is under way now; no longer than a batch may take. (What runs that long is somebody else's.)
///
/// # Errors
/// The database's.
pub async fn earlier_ones(graph: &Graph, guards: &Guards) -> Result<(), neo4rs::Error> {
    let began = Instant::now();
    let mut before = transactions(graph).await?;
    while !before.is_empty() && began.elapsed() < guards.batch_timeout {
        sleep(LOOK).await;
        let now = transactions(graph).await?;
        before.retain(|id| now.contains(id));
    }
    Ok(())
}

/// Opens it again, unless somebody has closed it since who has the maintenance's lease. Who closed it and has none any more has crashed.
///
/// # Errors
/// The database's.
pub async fn open(graph: &Graph, data_type: DataType, guards: &Guards) -> Result<(), neo4rs::Error> {
    let statement = "MATCH (g:IngestGate {type: $type}) \
                     WHERE g.owner = $owner OR NOT EXISTS { MATCH (r:IngestRun) WHERE r.owner = g.owner } DELETE g";
    graph.run(of(statement, data_type, guards)).await
}

fn of(statement: &str, data_type: DataType, guards: &Guards) -> Query {
    query(statement).param("type", data_type.name()).param("owner", guards.owner.as_str())
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
