//! Records that a complete run did not bring: they leave the graph as if they had never been in it.
//!
//! Each batch notes the ids that it saw (`IngestSeen`: a node per batch, which costs next to nothing, where a mark on each
//! record would cost a write). When a run is complete, the nodes of each type are compared with what was seen since the
//! run began. What was not seen is stripped of our properties and edges; [`crate::sweep`] removes it if nothing else is
//! on it. The guards are those of the tables' purge (contract §4.8).

use std::collections::HashSet;
use std::time::Duration;

use common::DataType;
use common::metrics::PURGES;
use common::sink::{Class, SinkError};
use neo4rs::{Graph, Query, query};
use roaring::RoaringBitmap;
use tracing::{error, info, warn};

use crate::connect::finds;
use crate::errors::{classify, taken_over};
use crate::prune::{self, Removed};
use crate::statements::label;
use crate::{gate, sweep};

/// Nodes that are read at a time.
const PAGE: i64 = 5000;
/// Records that are stripped in one transaction.
const CHUNK: usize = 500;
/// A database's clock that is behind the extractor's by more than this says nothing about when the run began.
pub const CLOCK: Duration = Duration::from_secs(60);

/// A note bears the time when its batch began; it is committed later, by no more than this or twice what a batch may take.
const UNDER_WAY: Duration = Duration::from_secs(600);

/// Ids of records. Discogs' are numbers, of which a bitmap holds tens of millions in a few megabytes.
#[derive(Default)]
struct Ids {
    numbers: RoaringBitmap,
    others: HashSet<String>,
}

impl Ids {
    fn insert(&mut self, id: &str) {
        match number(id) {
            Some(n) => _ = self.numbers.insert(n),
            None => _ = self.others.insert(id.to_owned()),
        }
    }

    fn contains(&self, id: &str) -> bool {
        number(id).map_or_else(|| self.others.contains(id), |n| self.numbers.contains(n))
    }

    fn len(&self) -> u64 {
        self.numbers.len() + self.others.len() as u64
    }

    fn iter(&self) -> impl Iterator<Item = String> {
        self.numbers.iter().map(|n| n.to_string()).chain(self.others.iter().cloned())
    }
}

/// The number that an id is, written as numbers are.
fn number(id: &str) -> Option<u32> {
    let is_canonical = id == "0" || id.starts_with(|c: char| ('1'..='9').contains(&c));
    id.parse().ok().filter(|_| is_canonical)
}

/// What keeps records that a run did not bring from being removed.
#[derive(Clone, Debug)]
pub struct Guards {
    /// A run that misses this share of a type's records or more removes none of them.
    pub max_fraction: f64,
    /// Longest transaction of a batch.
    pub batch_timeout: Duration,
    /// Who may remove anything: the owner of the maintenance's lease.
    pub owner: String,
}

impl Guards {
    /// How much older than the newest note one may be that is not committed yet, in milliseconds.
    fn under_way(&self) -> i64 {
        UNDER_WAY.max(2 * self.batch_timeout).as_millis() as i64
    }
}

/// What one type of a complete run asks for.
#[derive(serde::Deserialize)]
pub struct Request {
    key: String,
    #[serde(rename = "type")]
    name: String,
    /// When the run began by the extractor's clock, in milliseconds since 1970; 0 if it did not say.
    started: i64,
    /// By how much the database's clock is behind the extractor's for certain, in milliseconds.
    behind: i64,
    count: Option<i64>,
    /// How many records it has removed already, before it was interrupted.
    removed: usize,
}

/// What is still to be done for a run.
pub fn requests(version: &str) -> Query {
    query(
        "MATCH (v:IngestVanished {version: $version}) WHERE v.finished IS NULL
         RETURN v.key AS key, v.type AS type, v.started AS started, v.behind AS behind, v.count AS count,
                coalesce(v.removed, 0) AS removed
         ORDER BY v.requested",
    )
    .param("version", version)
}

/// Removes the records of one type. Nothing that was begun is lost by a crash: it begins anew.
///
/// # Errors
/// [`SinkError`].
pub async fn remove(graph: &Graph, request: &Request, guards: &Guards) -> Result<(), SinkError> {
    let Some(data_type) = DataType::ALL.into_iter().find(|t| t.name() == request.name) else { return Ok(()) };
    let (kind, outcome) = match why_not(graph, request).await? {
        Some(why) => {
            warn!(data_type = data_type.name(), why, "🧹 Vanished records are kept");
            ("skipped", why.to_owned())
        }
        None => compare(graph, data_type, request, guards).await?,
    };
    // Whoever closed it, perhaps in an attempt that a crash ended.
    gate::open(graph, data_type, guards).await.map_err(|e| classify(&e))?;
    // Only what was seen before the run began: the next one may have begun before this one ended.
    let forget =
        "MATCH (s:IngestSeen {type: $type}) WHERE s.at < $started CALL (s) { DELETE s } IN TRANSACTIONS OF 500 ROWS";
    let started = request.started - request.behind;
    run(graph, query(forget).param("type", data_type.name()).param("started", started)).await?;
    let done = "MATCH (v:IngestVanished {key: $key}) SET v.finished = datetime(), v.outcome = $outcome";
    run(graph, query(done).param("key", request.key.as_str()).param("outcome", outcome)).await?;
    metrics::counter!(PURGES, "data_type" => data_type.name(), "outcome" => kind).increment(1);
    Ok(())
}

async fn why_not(graph: &Graph, request: &Request) -> Result<Option<&'static str>, SinkError> {
    if request.started == 0 {
        return Ok(Some("no started_at"));
    }
    if request.count == Some(0) {
        return Ok(Some("the run had no records"));
    }
    if request.behind > CLOCK.as_millis() as i64 {
        return Ok(Some("the database's clock is behind the extractor's"));
    }
    let dead = query("MATCH (d:IngestDeadLetters {type: $type}) WHERE d.last >= $started RETURN d.last AS last")
        .param("type", request.name.as_str())
        .param("started", request.started - request.behind);
    let mut rows = graph.execute(dead).await.map_err(|e| classify(&e))?;
    let found = rows.next().await.map_err(|e| classify(&e))?.is_some();
    Ok(found.then_some("records were dead-lettered in this run"))
}

async fn compare(
    graph: &Graph,
    data_type: DataType,
    request: &Request,
    guards: &Guards,
) -> Result<(&'static str, String), SinkError> {
    let mut seen = Ids::default();
    let started = request.started - request.behind;
    let mut newest = started;
    let mut rows = graph.execute(batches_since(data_type, newest)).await.map_err(|e| classify(&e))?;
    while let Some(row) = rows.next().await.map_err(|e| classify(&e))? {
        newest = newest.max(note(&row, &mut seen).map_err(|e| classify(&neo4rs::Error::DeserializationError(e)))?);
    }
    let (total, vanished) = unseen(graph, data_type, &seen).await?;
    let count = vanished.len();
    if count > 0 && count as f64 / total as f64 >= guards.max_fraction {
        error!(
            data_type = data_type.name(),
            stale = count,
            total,
            "🛡️ Refusing to remove {count}/{total} {data_type} that the run did not bring: set PURGE_MAX_DELETE_FRACTION higher if that is right"
        );
        return Ok(("vetoed", format!("vetoed: {count} of {total}")));
    }
    let mut removed = request.removed;
    if count > 0 {
        gate::close(graph, data_type, guards).await.map_err(|e| classify(&e))?;
        let ids: Vec<String> = vanished.iter().collect();
        for chunk in ids.chunks(CHUNK) {
            let from = started.max(newest - guards.under_way());
            let stripped = strip(graph, data_type, chunk, from, &mut seen, &request.key, &guards.owner).await;
            let Some(stripped) = stripped.map_err(|e| classify(&e))? else {
                return Err(taken_over());
            };
            removed += stripped;
        }
    }
    info!(data_type = data_type.name(), removed, "🧹 Removed {removed} {data_type} that the run did not bring");
    Ok(("deleted", format!("removed {removed} of {}", total + request.removed as u64)))
}

/// The notes of batches since then.
fn batches_since(data_type: DataType, from: i64) -> Query {
    query("MATCH (s:IngestSeen {type: $type}) WHERE s.at >= $from RETURN s.at AS at, s.ids AS ids")
        .param("type", data_type.name())
        .param("from", from)
}

/// Adds what one batch has seen; returns when.
fn note(row: &neo4rs::Row, seen: &mut Ids) -> Result<i64, neo4rs::DeError> {
    row.get::<Vec<String>>("ids")?.iter().for_each(|id| seen.insert(id));
    row.get("at")
}

/// How many records there are, and which of them were not seen.
async fn unseen(graph: &Graph, data_type: DataType, seen: &Ids) -> Result<(u64, Ids), SinkError> {
    let page = format!(
        "MATCH (n:{label}) WHERE n.id > $after WITH n ORDER BY n.id LIMIT $page
         RETURN max(n.id) AS last, collect(CASE WHEN n.sha256 IS NOT NULL THEN n.id END) AS ids",
        label = label(data_type)
    );
    let (mut after, mut total, mut vanished) = (String::new(), 0, Ids::default());
    loop {
        let statement = query(&page).param("after", after.as_str()).param("page", PAGE);
        let mut rows = graph.execute(statement).await.map_err(|e| classify(&e))?;
        let Some(row) = rows.next().await.map_err(|e| classify(&e))? else { break };
        let ids: Vec<String> = get(&row, "ids")?;
        total += ids.len() as u64;
        ids.iter().filter(|id| !seen.contains(id)).for_each(|id| vanished.insert(id));
        match get::<Option<String>>(&row, "last")? {
            Some(last) => after = last,
            None => break,
        }
    }
    Ok((total, vanished))
}

/// Takes back all that these records brought. A record that comes back just now is none that vanished: who brings it has its
/// node locked, or waits for us. (Notes since `from` may be new.) Returns how many went, which the request `key` counts in the same
/// transaction; `None`, and nothing is done, if the lease has another `owner`.
async fn strip(
    graph: &Graph,
    data_type: DataType,
    ids: &[String],
    from: i64,
    seen: &mut Ids,
    key: &str,
    owner: &str,
) -> Result<Option<usize>, neo4rs::Error> {
    let properties = match data_type {
        DataType::Artists => "n.name = NULL, n.resource_url = NULL, n.releases_url = NULL",
        DataType::Labels => "n.name = NULL",
        DataType::Masters => "n.title = NULL, n.year = NULL, n._only_genre = NULL",
        DataType::Releases => {
            "n.title = NULL, n.year = NULL, n.formats = NULL, n._only_genre = NULL,
             n.catalog_number = CASE WHEN n.catalog_number = n._catalog_number THEN NULL ELSE n.catalog_number END,
             n._catalog_number = NULL"
        }
    };
    let label = label(data_type);
    let mut transaction = graph.start_txn().await?;
    let lock = format!("UNWIND $ids AS id MATCH (n:{label} {{id: id}}) USING INDEX SEEK n:{label}(id) SET n._v = n._v");
    transaction.run(query(&lock).param("ids", ids.to_vec())).await?;
    // As with a batch: whoever holds the lease by now begins when these nodes are free again.
    let lease = query("MATCH (r:IngestRun {owner: $owner}) RETURN 1 AS mine").param("owner", owner);
    if !finds(&mut transaction, lease).await? {
        transaction.rollback().await?;
        return Ok(None);
    }
    let mut rows = transaction.execute(batches_since(data_type, from)).await?;
    while let Some(row) = rows.next(&mut transaction).await? {
        note(&row, seen)?;
    }
    let ids: Vec<String> = ids.iter().filter(|id| !seen.contains(id)).cloned().collect();
    let ids = ids.as_slice();
    let mut removed = Removed::default();
    let mut rows = transaction.execute(prune::everything(data_type, ids)).await?;
    while let Some(row) = rows.next(&mut transaction).await? {
        removed.add(&row)?;
    }
    match data_type {
        DataType::Artists => &mut removed.artists,
        DataType::Labels => &mut removed.labels,
        DataType::Masters => &mut removed.masters,
        DataType::Releases => &mut removed.releases,
    }
    .extend_from_slice(ids);
    let bare = format!("UNWIND $ids AS id MATCH (n:{label} {{id: id}}) SET {properties}, n.sha256 = NULL, n._v = NULL");
    transaction.run(query(&bare).param("ids", ids.to_vec())).await?;
    transaction.run(sweep::note(&removed)).await?;
    let count = query("MATCH (v:IngestVanished {key: $key}) SET v.removed = coalesce(v.removed, 0) + $count");
    transaction.run(count.param("key", key).param("count", ids.len() as i64)).await?;
    transaction.commit().await?;
    Ok(Some(ids.len()))
}

async fn run(graph: &Graph, statement: Query) -> Result<(), SinkError> {
    graph.run(statement).await.map_err(|e| classify(&e))
}

fn get<'a, T: serde::Deserialize<'a>>(row: &'a neo4rs::Row, key: &str) -> Result<T, SinkError> {
    row.get(key).map_err(|e| SinkError::new(Class::Fatal, "result", e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_told_apart_whatever_they_look_like() {
        let all = ["0", "7", "07", "+7", "4294967295", "4294967296", "", "x", "7 "];
        let mut ids = Ids::default();
        for (at, id) in all.iter().enumerate() {
            assert!(!ids.contains(id), "{id}");
            ids.insert(id);
            assert_eq!(ids.len(), at as u64 + 1);
        }
        let mut back: Vec<_> = ids.iter().collect();
        back.sort();
        let mut all = all.map(str::to_owned);
        all.sort();
        assert_eq!(back, all);
    }
}
