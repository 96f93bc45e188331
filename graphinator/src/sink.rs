//! A batch in Neo4j: compare hashes, prune, write, all in one transaction; then the SAME_AS edges that waited for it.

use std::collections::HashSet;
use std::time::Duration;

use common::DataType;
use common::config::SchemaMode;
use common::message::{Control, Data};
use common::phases::Phases;
use common::sink::{Class, Record, Sink, SinkError, WriteReport};
use common::turn::Claim;
use neo4rs::{Query, Txn, query};
use tokio::sync::Mutex;
use tracing::{info, warn};

use crate::config::Neo4jConfig;
use crate::connect::{Connector, finds, first};
use crate::contention::{Contention, Entry};
use crate::errors::{classify, of_one_record};
use crate::maintenance::{self, Maintenance};
use crate::prune::{self, Removed};
use crate::record::Deferred;
use crate::statements::{Edge, Look};
use crate::{schema, statements, sweep};

/// Longest wait for one statement of the maintenance: statistics of the largest genre read millions of releases.
const MAINTENANCE_TIMEOUT: Duration = Duration::from_secs(3600);

/// The worker's database.
pub struct Neo4jSink {
    connector: Connector,
    maintenance: Maintenance,
    schema: SchemaMode,
    preparing: Mutex<()>,
    contention: Contention,
}

impl Neo4jSink {
    /// A sink that connects on first use; `timeout` bounds each wait for an answer of the pipelines.
    pub fn new(config: &Neo4jConfig, schema: SchemaMode, timeout: Duration) -> Self {
        Neo4jSink {
            connector: Connector::new(config.clone(), timeout),
            maintenance: Maintenance::new(
                Connector::new(config.clone(), MAINTENANCE_TIMEOUT),
                config.max_delete_fraction,
                timeout,
            ),
            schema,
            preparing: Mutex::new(()),
            contention: Contention::default(),
        }
    }

    /// Classifies, and gets rid of connections whose state is unknown.
    fn failed(&self, error: &neo4rs::Error) -> SinkError {
        if !matches!(error, neo4rs::Error::Neo4j(_)) {
            self.connector.discard();
        }
        classify(error)
    }

    /// A batch, committed under a claim; without one it is rolled back.
    async fn transaction(
        &self,
        data_type: DataType,
        batch: &[&Record<Deferred>],
        again: bool,
        claim: Option<&Claim>,
        phases: &mut Phases,
    ) -> Result<WriteReport, SinkError> {
        let mut transaction = self.connector.graph()?.start_txn().await.map_err(|e| self.failed(&e))?;
        let written = write(&mut transaction, &self.contention, data_type, batch, again, claim, phases).await;
        let failed = |error| if batch.len() == 1 { of_one_record(self.failed(&error)) } else { self.failed(&error) };
        let Some(Written { report, rest, removed, fresh, locked: _locked }) = written.map_err(failed)? else {
            transaction.rollback().await.map_err(|e| self.failed(&e))?;
            return Err(SinkError::fenced());
        };
        if !fresh {
            // An attempt that was given up, and had committed after all.
            transaction.rollback().await.map_err(|e| self.failed(&e))?;
            return Err(SinkError::new(Class::Conflict, "not_fresh", "a record came into being while it was written"));
        }
        let Some(claim) = claim else {
            // What follows a commit.
            link_awaited(&mut transaction, statements::artist_ids(data_type, batch))
                .await
                .map_err(|e| self.failed(&e))?;
            transaction.rollback().await.map_err(|e| self.failed(&e))?;
            return Ok(report);
        };
        // Last, when this transaction holds the locks of its nodes: whoever claims the queue after this waits for them. (What was
        // only compared holds none, and was noted with the time of then.)
        if !rest.is_empty()
            && !finds(&mut transaction, statements::is_owner(claim)).await.map_err(|e| self.failed(&e))?
        {
            transaction.rollback().await.map_err(|e| self.failed(&e))?;
            return Err(SinkError::fenced());
        }
        phases.begin();
        transaction.commit().await.map_err(|e| self.failed(&e))?;
        phases.end("commit");
        // Once more after the commit, so that this batch and one that runs beside it can't both miss the other: whichever commits
        // last sees the other's artists or waiting credits here. What was written before may lack this step.
        let linkable = statements::artist_ids(data_type, if again { batch } else { &rest });
        if !linkable.is_empty() {
            phases.begin();
            self.link(linkable).await?;
            phases.end("link");
        }
        if !removed.is_empty() {
            phases.begin();
            self.sweep(&removed).await;
            phases.end("sweep");
        }
        Ok(report)
    }

    async fn link(&self, artists: Vec<String>) -> Result<(), SinkError> {
        let awaited = first(&self.connector.graph()?, statements::awaited(artists)).await;
        match awaited
            .and_then(|row| row.map_or(Ok(Vec::new()), |row| Ok(row.get("ids")?)))
            .map_err(|e| self.failed(&e))?
        {
            awaited if awaited.is_empty() => Ok(()),
            awaited => self.run(statements::link(awaited)).await,
        }
    }

    /// What fails here is still noted, and done by the maintenance.
    async fn sweep(&self, removed: &Removed) {
        for statement in sweep::statements(removed) {
            if let Err(e) = self.run(statement).await {
                info!(code = e.code, error = e.message, "🧹 What was pruned is swept later");
            }
        }
    }

    async fn run(&self, statement: Query) -> Result<(), SinkError> {
        self.connector.graph()?.run(statement).await.map_err(|e| self.failed(&e))
    }
}

impl Sink for Neo4jSink {
    type Payload = Deferred;

    fn extract(&self, data_type: DataType, _: &Data<'_>) -> Deferred {
        Deferred::new(data_type)
    }

    async fn prepare(&self, data_type: DataType) -> Result<(), SinkError> {
        let _one_at_a_time = self.preparing.lock().await;
        let graph = self.connector.graph()?;
        let missing = schema::apply(&graph, self.schema).await.map_err(|e| self.failed(&e))?;
        if !missing.is_empty() {
            let what = format!("missing: {}; create them, or set SCHEMA=ensure", missing.join(", "));
            return Err(SinkError::new(Class::Fatal, "schema", what));
        }
        // The very statements of a write, on nothing: what this server or user can't do is found before records are fetched.
        let prune = prune::statement(data_type, &[]);
        let [free, locked] = [Look::Free, Look::Locked].map(|look| statements::check(data_type, &[], look));
        let note = statements::note_seen(data_type, &[], Some(&Claim::new("", 0)));
        let [awaited, link] = [statements::awaited(Vec::new()), statements::link(Vec::new())];
        let write = statements::write(data_type, &[], Edge::Merge, &self.contention.enter([]));
        for statement in [note, free, locked, prune, write, awaited, link] {
            graph.run(statement).await.map_err(|e| self.failed(&e))?;
        }
        Ok(())
    }

    async fn claim(&self, claim: &Claim) -> Result<u16, SinkError> {
        let graph = self.connector.graph()?;
        let claimed = async {
            let mut rows = graph.execute(statements::claim(claim)).await?;
            let largest = rows.next().await?.map(|row| row.get::<u16>("prefetch")).transpose()?;
            // The end of the result tells whether it is committed.
            while rows.next().await?.is_some() {}
            Ok(largest.unwrap_or(claim.prefetch))
        };
        claimed.await.map_err(|e: neo4rs::Error| self.failed(&e))
    }

    async fn resign(&self, claim: &Claim) -> Result<(), SinkError> {
        self.run(statements::resign(claim)).await
    }

    async fn ping(&self) -> Result<(), SinkError> {
        self.run(query("RETURN 1")).await
    }

    async fn write(
        &self,
        data_type: DataType,
        batch: &[&Record<Deferred>],
        again: bool,
        claim: &Claim,
        phases: &mut Phases,
    ) -> Result<WriteReport, SinkError> {
        let guard = Unfinished(&self.connector);
        let written = self.transaction(data_type, batch, again, Some(claim), phases).await;
        guard.finish();
        written
    }

    async fn rehearse(&self, data_type: DataType, batch: &[&Record<Deferred>]) -> Result<(), SinkError> {
        let guard = Unfinished(&self.connector);
        let rehearsed = self.transaction(data_type, batch, true, None, &mut Phases::new(data_type, false)).await;
        guard.finish();
        rehearsed.map(drop)
    }

    async fn note_dead_letter(&self, data_type: DataType) -> Result<(), SinkError> {
        let note = query("MERGE (d:IngestDeadLetters {type: $type}) SET d.last = timestamp()");
        self.run(note.param("type", data_type.name())).await
    }

    async fn control(&self, data_type: DataType, control: &Control) -> Result<(), SinkError> {
        match control {
            Control::FileComplete { .. } => Ok(()),
            Control::ExtractionComplete(run) => {
                let taken = first(&self.connector.graph()?, maintenance::signal(data_type, run)).await;
                if taken.map_err(|e| self.failed(&e))?.is_none() {
                    warn!(
                        data_type = data_type.name(),
                        version = run.version,
                        started_at = run.started_at,
                        "🏁 This extraction_complete is ignored: a run of the same version that began later is noted"
                    );
                }
                self.maintenance.wake();
                Ok(())
            }
        }
    }

    async fn background(&self) {
        common::background::run(&self.maintenance).await;
    }

    async fn release(&self) {
        self.maintenance.release().await;
    }
}

/// Discards the pool if an attempt is dropped half-way because it took too long: see [`Connector::discard`].
struct Unfinished<'a>(&'a Connector);

impl Unfinished<'_> {
    fn finish(self) {
        std::mem::forget(self);
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        self.0.discard();
    }
}

/// Positions of records that the graph has, as [`statements::check`] returns them.
#[derive(Default, serde::Deserialize)]
struct Found {
    closed: bool,
    unchanged: HashSet<usize>,
    changed: HashSet<usize>,
    bare: HashSet<usize>,
}

/// What the statements of one batch did.
struct Written<'a> {
    report: WriteReport,
    /// The records that were new or changed.
    rest: Vec<&'a Record<Deferred>>,
    /// What was taken away.
    removed: Removed,
    /// Whether the records that were taken for new still were when their nodes were locked.
    fresh: bool,
    /// What the transaction has locked by now, until it ends.
    locked: Entry<'a>,
}

/// Makes the SAME_AS edges that are waiting for one of these artists.
async fn link_awaited(transaction: &mut Txn, artists: Vec<String>) -> Result<(), neo4rs::Error> {
    let mut rows = transaction.execute(statements::awaited(artists)).await?;
    let mut awaited: Vec<String> = Vec::new();
    while let Some(row) = rows.next(&mut *transaction).await? {
        awaited = row.get("ids")?;
    }
    if awaited.is_empty() { Ok(()) } else { transaction.run(statements::link(awaited)).await }
}

async fn compare(
    transaction: &mut Txn,
    data_type: DataType,
    batch: &[&Record<Deferred>],
    look: Look,
) -> Result<Found, neo4rs::Error> {
    let mut rows = transaction.execute(statements::check(data_type, batch, look)).await?;
    let mut found = Found::default(); // without a row none of them is there
    while let Some(row) = rows.next(&mut *transaction).await? {
        found = row.to()?;
    }
    Ok(found)
}

/// The statements of one batch; `None` if the queue was claimed by somebody else, and nothing is to be committed.
async fn write<'a>(
    transaction: &mut Txn,
    contention: &'a Contention,
    data_type: DataType,
    batch: &[&'a Record<Deferred>],
    again: bool,
    claim: Option<&Claim>,
    phases: &mut Phases,
) -> Result<Option<Written<'a>>, neo4rs::Error> {
    phases.begin();
    if !finds(transaction, statements::note_seen(data_type, batch, claim)).await? {
        return Ok(None);
    }
    // What was delivered before may be in the hands of a replica that has lost its turn and is about to commit.
    let mut found = compare(transaction, data_type, batch, if again { Look::Locked } else { Look::Free }).await?;
    if found.closed && !again {
        found = compare(transaction, data_type, batch, Look::Locked).await?;
    }
    let Found { unchanged, changed, bare, .. } = found;
    phases.end("check");
    let report = WriteReport {
        unchanged: unchanged.len(),
        updated: changed.len(),
        inserted: batch.len() - unchanged.len() - changed.len(),
    };
    let at = |positions: &dyn Fn(usize) -> bool| -> Vec<&'a Record<Deferred>> {
        batch.iter().enumerate().filter(|(i, _)| positions(*i)).map(|(_, r)| *r).collect()
    };
    let mut removed = Removed::default();
    if !changed.is_empty() {
        phases.begin();
        let statement = prune::statement(data_type, &at(&|i| changed.contains(&i)));
        let mut rows = transaction.execute(statement).await?;
        while let Some(row) = rows.next(&mut *transaction).await? {
            removed.add(&row)?;
        }
        if !removed.is_empty() {
            transaction.run(sweep::note(&removed)).await?;
        }
        phases.end("prune");
    }
    phases.begin();
    let rest = at(&|i| !unchanged.contains(&i));
    let locked = contention.enter(statements::nodes(data_type, &rest));
    // Edges of artists and labels have two records that can claim them, so none of theirs is new for certain.
    let own_edges = matches!(data_type, DataType::Masters | DataType::Releases);
    let new = |i: &usize| own_edges && !unchanged.contains(i) && !changed.contains(i) && !bare.contains(i);
    let mut fresh = true;
    let positions = |wanted: &dyn Fn(usize) -> bool| (0..batch.len()).filter(|i| wanted(*i)).collect::<Vec<_>>();
    let merged = |i: usize| !new(&i) && !unchanged.contains(&i);
    for (positions, edge) in [(positions(&|i| new(&i)), Edge::Create), (positions(&merged), Edge::Merge)] {
        if !positions.is_empty() {
            let records: Vec<_> = positions.iter().map(|i| batch[*i]).collect();
            let mut rows = transaction.execute(statements::write(data_type, &records, edge, &locked)).await?;
            while let Some(row) = rows.next(&mut *transaction).await? {
                let had: Vec<usize> = row.get("had")?;
                fresh &= had.iter().all(|at| positions.get(*at).is_some_and(|i| changed.contains(i)));
            }
        }
    }
    // For artists after the commit only: they hold what credits of releases wait for, and would want what these hold.
    let made = if own_edges { statements::made_artists(&rest) } else { Vec::new() };
    if !made.is_empty() {
        link_awaited(transaction, made).await?;
    }
    if !rest.is_empty() {
        phases.end("merge");
    }
    Ok(Some(Written { report, rest, removed, fresh, locked }))
}
