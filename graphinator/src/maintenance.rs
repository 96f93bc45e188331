//! What happens when all four types of a run are complete: isolated stubs go, statistics are computed (contract §5.9).
//!
//! Each `extraction_complete` adds its type to the run's node, in one statement under that node's lock; the last one
//! raises `requested`. The work itself runs beside the pipelines, in one replica (a lease on the node), until `completed`
//! has caught up; so a restart resumes it, and a signal that comes while it runs makes it run once more. One that is repeated
//! when all is done changes nothing.

use std::time::Duration;

use common::DataType;
use common::background::Work;
use common::message::ExtractionComplete;
use common::sink::SinkError;
use neo4rs::{Graph, Query, Row, query};
use tokio::sync::Notify;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::connect::{Connector, first};
use crate::errors::{classify, taken_over};
use crate::statements::label;
use crate::vanished::{CLOCK, Guards};
use crate::{gate, sweep, vanished};

/// How long a replica may be silent before another one takes over its maintenance. One that wakes up later removes nothing.
const LEASE: Duration = Duration::from_secs(60);
/// How often it says that it goes on.
const RENEW: Duration = Duration::from_secs(15);
/// Nodes per transaction of the clean-up. (16 GiB were not enough for the predecessors' single transaction.)
const CLEANUP_PAGE: i64 = 5000;
/// Labels per transaction of the statistics.
const LABEL_PAGE: i64 = 200;

/// Notes that a type of this run is complete, and returns a row. An older run than the one noted changes nothing, and returns none; a
/// newer run of the same version starts from nothing. `ExtractionCompletion` mirrors the result for whoever reads it (contract §5.2).
///
/// A run that began in the database's future, by an extractor's clock that is wrong, counts as one that began when its first
/// signal came, whatever comes when (`began`): else no later run of that version would be newer until that time. A future that is noted
/// all the same is from when the database's own clock was wrong.
pub fn signal(data_type: DataType, run: &ExtractionComplete) -> Query {
    let started = micros(&run.started_at);
    let count = run.record_counts.iter().find(|(t, _)| t == data_type.name()).map(|(_, n)| *n);
    query(
        "MERGE (r:IngestRun {version: $version})
           ON CREATE SET r.started = $started, r.signals = [], r.requested = 0, r.completed = 0
         SET r.touched = datetime()
         WITH r, timestamp() AS now
         OPTIONAL MATCH (other:IngestVanished {version: $version, started: $started / 1000})
         WITH r, now, head(collect(other.began)) AS noted
         WITH r, now, coalesce(noted, CASE WHEN $started > (now + $clock) * 1000 THEN now * 1000 ELSE $started END) AS began
         MERGE (v:IngestVanished {key: $type + ' ' + $version + ' ' + $started})
           ON CREATE SET v.type = $type, v.version = $version, v.started = $started / 1000, v.began = began, v.count = $count,
                         v.requested = now, v.behind = CASE WHEN $latest > now THEN $latest - now ELSE 0 END
         WITH r, now, began WHERE began >= r.started OR r.started > (now + $clock) * 1000
         SET r.signals = CASE WHEN began = r.started THEN r.signals ELSE [] END, r.started = began
         WITH r, size(r.signals) < size($types) OR r.requested > r.completed AS open
         SET r.signals = [t IN $types WHERE t = $type OR t IN r.signals]
         SET r.requested = r.requested + CASE WHEN open AND size(r.signals) = size($types) THEN 1 ELSE 0 END
         MERGE (c:ExtractionCompletion {version: $version}) ON CREATE SET c.created_at = datetime()
         SET c.signals = r.signals, c.updated_at = datetime()
         RETURN 1 AS taken",
    )
    .param("version", run.version.as_str())
    .param("started", started)
    .param("clock", CLOCK.as_millis() as i64)
    .param("latest", started.max(micros(&run.sent_at)) / 1000)
    .param("count", count)
    .param("type", data_type.name())
    .param("types", DataType::ALL.map(|t| t.name()).to_vec())
}

/// Microseconds since 1970; 0 if it is no time. One without a zone counts as UTC.
fn micros(time: &str) -> i64 {
    common::message::parse_time(time).map_or(0, |t| t.timestamp_micros())
}

/// The maintenance of this worker's graph.
pub struct Maintenance {
    connector: Connector,
    guards: Guards,
    requested: Notify,
}

impl Maintenance {
    /// `connector` is beside the pipelines' connections, with more patience.
    /// A run that misses `max_fraction` of a type's records or more removes none of them; no batch takes longer than `batch_timeout`.
    pub fn new(connector: Connector, max_fraction: f64, batch_timeout: Duration) -> Self {
        // Tells replicas apart.
        let owner = format!("{:016x}", fastrand::u64(..));
        Maintenance { connector, guards: Guards { max_fraction, batch_timeout, owner }, requested: Notify::new() }
    }

    /// Something may be to do.
    pub fn wake(&self) {
        self.requested.notify_one();
    }

    /// Gives up the lease, so that whoever comes next need not wait for its end.
    pub async fn release(&self) {
        if let Ok(graph) = self.connector.graph() {
            let statement = query("MATCH (r:IngestRun {owner: $owner}) SET r.owner = NULL");
            if let Err(e) = graph.run(statement.param("owner", self.guards.owner.as_str())).await {
                warn!(error = %e, "the maintenance's lease stays until it expires");
            }
        }
    }
}

impl Work for Maintenance {
    const NAME: &str = "Post-import maintenance";

    fn requested(&self) -> &Notify {
        &self.requested
    }

    async fn next(&self) -> Result<bool, SinkError> {
        let done = self.one().await;
        if done.is_err() {
            self.connector.discard();
        }
        done
    }
}

impl Maintenance {
    /// Does the maintenance of one run. False if none is asked for, or another replica does it.
    async fn one(&self) -> Result<bool, SinkError> {
        let graph = self.connector.graph()?;
        let Some(row) = one(&graph, claim(&self.guards.owner)).await? else {
            return Ok(false);
        };
        let (version, requested): (String, i64) = (get(&row, "version")?, get(&row, "requested")?);
        info!(version, "🏁 All data types complete — running post-import maintenance");
        let job = Job { graph, version, guards: &self.guards };
        tokio::select! {
            done = job.run() => done?,
            lost = job.keep() => return Err(lost),
        }
        let done = query(
            "MATCH (r:IngestRun {version: $version, owner: $owner}) SET r.completed = $requested, r.owner = NULL RETURN 1 AS done",
        )
        .param("version", job.version.as_str())
        .param("owner", self.guards.owner.as_str())
        .param("requested", requested);
        one(&job.graph, done).await?.ok_or_else(taken_over)?;
        info!(version = job.version, "✅ Post-import maintenance complete");
        Ok(true)
    }
}

/// The oldest run that is to be maintained, unless another replica is at one: both would open and close the same gates. Whoever
/// was at one of them for longer than its lease is at none any more.
fn claim(owner: &str) -> Query {
    query(
        "MATCH (r:IngestRun) WHERE r.requested > r.completed
         SET r.touched = datetime()
         WITH r WHERE r.requested > r.completed
         WITH collect(r) AS runs
         WHERE none(r IN runs WHERE coalesce(r.owner <> $owner AND r.lease >= timestamp(), false))
         FOREACH (r IN runs | SET r.owner = NULL)
         WITH runs UNWIND runs AS r WITH r ORDER BY r.started LIMIT 1
         SET r.owner = $owner, r.lease = timestamp() + $lease
         RETURN r.version AS version, r.requested AS requested",
    )
    .param("owner", owner)
    .param("lease", LEASE.as_millis() as i64)
}

/// The maintenance of one run.
struct Job<'a> {
    graph: Graph,
    version: String,
    guards: &'a Guards,
}

impl Job<'_> {
    async fn run(&self) -> Result<(), SinkError> {
        self.recheck().await?;
        self.remove_vanished().await?;
        self.recheck().await?;
        for data_type in DataType::ALL {
            self.remove_stubs(data_type).await?;
        }
        self.named_statistics("Genre", "style", "Style").await?;
        self.named_statistics("Style", "genre", "Genre").await?;
        self.label_statistics().await
    }

    /// Keeps other replicas from taking over, beside the statements, which may take long. Returns when one did.
    async fn keep(&self) -> SinkError {
        loop {
            sleep(RENEW).await;
            if let Err(e) = self.renew().await {
                return e;
            }
        }
    }

    async fn renew(&self) -> Result<(), SinkError> {
        let renew = query("MATCH (r:IngestRun {version: $version, owner: $owner}) SET r.lease = timestamp() + $lease RETURN 1 AS mine")
            .param("version", self.version.as_str())
            .param("owner", self.guards.owner.as_str())
            .param("lease", LEASE.as_millis() as i64);
        match one(&self.graph, renew).await? {
            Some(_) => Ok(()),
            None => Err(taken_over()),
        }
    }

    /// Looks twice more at everything that pruning may have left behind, and forgets it. The next run may be loading: a batch that found an
    /// edge, and says that it claims it only when it commits, must not lose it to a look that came before that. So the second look comes when
    /// the transactions have ended that were under way at the first one.
    async fn recheck(&self) -> Result<(), SinkError> {
        let Some(row) = one(&self.graph, sweep::notes()).await? else { return Ok(()) };
        let notes: Vec<String> = get(&row, "notes")?;
        for note in &notes {
            self.sweep(note).await?;
        }
        if !notes.is_empty() {
            gate::earlier_ones(&self.graph, self.guards).await.map_err(|e| classify(&e))?;
        }
        for note in &notes {
            self.sweep(note).await?;
            self.graph.run(sweep::forget(note)).await.map_err(|e| classify(&e))?;
        }
        Ok(())
    }

    async fn sweep(&self, note: &str) -> Result<(), SinkError> {
        let Some(row) = one(&self.graph, sweep::note_of(note)).await? else { return Ok(()) };
        let removed = sweep::noted(&row).map_err(|e| unreadable(&e))?;
        for statement in sweep::statements(&removed) {
            self.graph.run(statement).await.map_err(|e| classify(&e))?;
        }
        Ok(())
    }

    /// Records that the run did not bring.
    async fn remove_vanished(&self) -> Result<(), SinkError> {
        loop {
            let Some(row) = one(&self.graph, vanished::requests(&self.version)).await? else { return Ok(()) };
            let request = row.to().map_err(|e| unreadable(&e))?;
            vanished::remove(&self.graph, &request, self.guards).await?;
        }
    }

    /// Deletes nodes without hash that nothing refers to, page by page along the index of ids.
    async fn remove_stubs(&self, data_type: DataType) -> Result<(), SinkError> {
        let label = label(data_type);
        let page = format!(
            "MATCH (n:{label}) WHERE n.id > $after WITH n ORDER BY n.id LIMIT $page
             WITH collect(n) AS nodes, max(n.id) AS last
             CALL (nodes) {{
               UNWIND nodes AS n WITH n WHERE NOT (n)--() {lock} WITH n WHERE {bare} AND NOT (n)--() DELETE n RETURN count(*) AS deleted
             }}
             RETURN last, deleted",
            lock = sweep::LOCK,
            bare = sweep::is_bare("id")
        );
        let (mut after, mut deleted) = (String::new(), 0);
        loop {
            let statement = query(&page).param("after", after.as_str()).param("page", CLEANUP_PAGE);
            let Some(row) = one(&self.graph, statement).await? else { break };
            deleted += get::<i64>(&row, "deleted")?;
            match get::<Option<String>>(&row, "last")? {
                Some(last) => after = last,
                None => break,
            }
        }
        info!(label, deleted, "🧹 Cleaned up {deleted} stub {label} nodes (no sha256 property)");
        Ok(())
    }

    /// Statistics of genres or styles, one per transaction. `other` is the kind that is counted beside it.
    async fn named_statistics(&self, label: &str, other: &str, other_label: &str) -> Result<(), SinkError> {
        let statement = format!(
            "MATCH (x:{label} {{name: $name}})
             CALL (x) {{ MATCH (r:Release)-[:IS]->(x) RETURN count(DISTINCT r) AS releases, min(CASE WHEN r.year > 0 THEN r.year END) AS first }}
             CALL (x) {{ MATCH (r:Release)-[:IS]->(x) MATCH (r)-[:BY]->(a:Artist) RETURN count(DISTINCT a) AS artists }}
             CALL (x) {{ MATCH (r:Release)-[:IS]->(x) MATCH (r)-[:ON]->(l:Label) RETURN count(DISTINCT l) AS labels }}
             CALL (x) {{ MATCH (r:Release)-[:IS]->(x) MATCH (r)-[:IS]->(o:{other_label}) RETURN count(DISTINCT o) AS others }}
             SET x.release_count = releases, x.artist_count = artists, x.label_count = labels, x.{other}_count = others, x.first_year = first
             RETURN 1 AS done"
        );
        let names = query(&format!("MATCH (x:{label}) RETURN collect(x.name) AS names"));
        let names: Vec<String> = match one(&self.graph, names).await? {
            Some(row) => get(&row, "names")?,
            None => Vec::new(),
        };
        for name in names {
            one(&self.graph, query(&statement).param("name", name)).await?;
        }
        Ok(())
    }

    /// Statistics of labels, page by page.
    async fn label_statistics(&self) -> Result<(), SinkError> {
        let statement = "MATCH (x:Label) WHERE x.id > $after WITH x ORDER BY x.id LIMIT $page
             CALL (x) { MATCH (r:Release)-[:ON]->(x) RETURN count(DISTINCT r) AS releases }
             CALL (x) { MATCH (r:Release)-[:ON]->(x) MATCH (r)-[:BY]->(a:Artist) RETURN count(DISTINCT a) AS artists }
             CALL (x) { MATCH (r:Release)-[:ON]->(x) MATCH (r)-[:IS]->(g:Genre) RETURN count(DISTINCT g) AS genres }
             SET x.release_count = releases, x.artist_count = artists, x.genre_count = genres
             RETURN max(x.id) AS last";
        let mut after = String::new();
        loop {
            let page = query(statement).param("after", after.as_str()).param("page", LABEL_PAGE);
            match one(&self.graph, page).await? {
                Some(row) => match get::<Option<String>>(&row, "last")? {
                    Some(last) => after = last,
                    None => return Ok(()),
                },
                None => return Ok(()),
            }
        }
    }
}

/// Runs a statement, retried by the client while it is transient, and returns its first row.
async fn one(graph: &Graph, statement: Query) -> Result<Option<Row>, SinkError> {
    first(graph, statement).await.map_err(|e| classify(&e))
}

fn get<'a, T: serde::Deserialize<'a>>(row: &'a Row, key: &str) -> Result<T, SinkError> {
    row.get(key).map_err(|e| unreadable(&e))
}

fn unreadable(error: &neo4rs::DeError) -> SinkError {
    SinkError::new(common::sink::Class::Fatal, "result", error.to_string())
}
