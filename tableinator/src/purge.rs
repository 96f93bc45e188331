//! What `extraction_complete` asks for: delete the rows that the run did not see (contract §4.8).
//!
//! The signal only writes down what to do, so that its message is settled at once. The purge itself may take long; it
//! runs beside the pipelines, holds its request's row locked meanwhile, and so happens once, in one replica, and again
//! by another one if that replica dies.

use std::time::Duration;

use common::DataType;
use common::background::Work;
use common::message::{self, ExtractionComplete};
use common::metrics::PURGES;
use common::sink::{Class, SinkError};
use deadpool_postgres::{Pool, Transaction};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::connect::Lease;
use crate::errors::classify;
use crate::rows;

/// A database's clock that is behind the extractor's by more than this says nothing about which rows are stale; by less,
/// the run's beginning is moved.
const CLOCK: Duration = Duration::from_secs(60);

/// How often to look whether the server still works on a purge, and how long to wait for an answer to that.
const LOOK: Duration = Duration::from_secs(15);

/// The purges of this worker's database.
pub struct Purges {
    pool: Pool,
    max_fraction: f64,
    requested: Notify,
}

impl Purges {
    /// A purge of `max_fraction` of a table or more is vetoed.
    pub fn new(pool: Pool, max_fraction: f64) -> Self {
        Purges { pool, max_fraction, requested: Notify::new() }
    }

    /// Writes down that a type is to be purged. The same signal again changes nothing; a new `started_at` is a new run.
    ///
    /// # Errors
    /// [`SinkError`].
    pub async fn request(&self, data_type: DataType, run: &ExtractionComplete) -> Result<(), SinkError> {
        let count = run.record_counts.iter().find(|(t, _)| t == data_type.name()).map(|(_, n)| *n);
        // What the extractor's clock has said is in the past; by how much it is not, the database's clock is behind.
        let latest = [&run.started_at, &run.sent_at].into_iter().filter_map(|time| message::parse_time(time)).max();
        let latest = latest.unwrap_or_default();
        let mut lease = Lease::take(&self.pool).await?;
        let outcome = lease
            .client()?
            .execute(
                "INSERT INTO ingest_purges (data_type, version, started_at, record_count, behind) \
                 VALUES ($1, $2, $3, $4, GREATEST(0, EXTRACT(EPOCH FROM $5::timestamptz - clock_timestamp()))::float8) \
                 ON CONFLICT (data_type, version, started_at) DO NOTHING",
                &[&data_type.name(), &rows::storable(&run.version), &rows::storable(&run.started_at), &count, &latest],
            )
            .await;
        lease.finish(outcome)?;
        self.requested.notify_one();
        Ok(())
    }
}

impl Work for Purges {
    const NAME: &str = "Purge";

    fn requested(&self) -> &Notify {
        &self.requested
    }

    async fn next(&self) -> Result<bool, SinkError> {
        let mut lease = Lease::take(&self.pool).await?;
        let asked = timeout(LOOK, lease.client()?.query_one("SELECT pg_backend_pid()", &[])).await;
        let backend = asked.map_err(|_| SinkError::timeout(LOOK))?.map_err(|e| classify(&e))?.get(0);
        let outcome = tokio::select! {
            outcome = claim_and_purge(lease.client()?, self.max_fraction) => outcome,
            () = self.forsaken(backend) => {
                let what = format!("the server does nothing more for connection {backend}, and its answer has not come");
                return Err(SinkError::new(Class::Transient, "io", what));
            }
        };
        lease.finish(outcome)
    }
}

impl Purges {
    /// Returns when the server has not worked for this backend for a while, or has none of that number. A purge may take hours, so
    /// there is no other way to tell that its answer was lost.
    async fn forsaken(&self, backend: i32) {
        let works = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1 \
                     AND (state = 'active' OR clock_timestamp() - state_change < interval '30 s'))";
        loop {
            sleep(LOOK).await;
            let look = async {
                let mut lease = Lease::take(&self.pool).await?;
                let outcome = lease.client()?.query_one(works, &[&backend]).await;
                lease.finish(outcome)
            };
            // Whoever can't be asked says nothing.
            if matches!(timeout(LOOK, look).await, Ok(Ok(row)) if !row.get::<_, bool>(0)) {
                return;
            }
        }
    }
}

async fn claim_and_purge(
    client: &mut deadpool_postgres::Client,
    max_fraction: f64,
) -> Result<bool, tokio_postgres::Error> {
    // Before the schema exists there is nothing to do; asking for the table would be an error in the server's log.
    let exists = client.query_one("SELECT to_regclass('ingest_purges') IS NOT NULL", &[]).await?;
    if !exists.get::<_, bool>(0) {
        return Ok(false);
    }
    let transaction = client.transaction().await?;
    transaction.batch_execute("SET LOCAL statement_timeout = 0").await?; // millions of rows take their time
    let request = transaction
        .query_opt(
            "SELECT data_type, version, started_at, record_count, behind FROM ingest_purges WHERE finished_at IS NULL \
             ORDER BY requested_at LIMIT 1 FOR UPDATE SKIP LOCKED",
            &[],
        )
        .await?;
    let Some(request) = request else {
        return Ok(false);
    };
    let (name, version, started_at): (&str, &str, &str) = (request.get(0), request.get(1), request.get(2));
    let outcome = match DataType::ALL.into_iter().find(|t| t.name() == name) {
        Some(data_type) => {
            purge(&transaction, data_type, started_at, request.get(3), request.get(4), max_fraction).await?
        }
        None => Outcome::Skipped("unknown data type"),
    };
    outcome.log(name, version);
    transaction
        .execute(
            "UPDATE ingest_purges SET finished_at = clock_timestamp(), outcome = $4, deleted = $5 \
             WHERE data_type = $1 AND version = $2 AND started_at = $3",
            &[&name, &version, &started_at, &outcome.name(), &outcome.deleted()],
        )
        .await?;
    transaction.commit().await?;
    metrics::counter!(PURGES, "data_type" => name.to_owned(), "outcome" => outcome.kind()).increment(1);
    Ok(true)
}

enum Outcome {
    Deleted(i64),
    Skipped(&'static str),
    Vetoed { stale: i64, total: i64 },
}

impl Outcome {
    fn name(&self) -> &'static str {
        match self {
            Outcome::Deleted(_) => "deleted",
            Outcome::Skipped(why) => why,
            Outcome::Vetoed { .. } => "vetoed",
        }
    }

    /// For the metric.
    fn kind(&self) -> &'static str {
        match self {
            Outcome::Deleted(_) => "deleted",
            Outcome::Skipped(_) => "skipped",
            Outcome::Vetoed { .. } => "vetoed",
        }
    }

    fn deleted(&self) -> i64 {
        match self {
            Outcome::Deleted(count) => *count,
            _ => 0,
        }
    }

    fn log(&self, name: &str, version: &str) {
        match self {
            Outcome::Deleted(count) => {
                info!(
                    data_type = name,
                    version, count, "🧹 Purged {count} stale {name} rows (not updated since extraction started)"
                );
            }
            Outcome::Skipped(why) => warn!(data_type = name, version, why, "🧹 Purge skipped"),
            Outcome::Vetoed { stale, total } => {
                let fraction = *stale as f64 / *total as f64;
                tracing::error!(
                    data_type = name,
                    version,
                    stale,
                    total,
                    fraction,
                    "🛡️ Refusing to purge {stale}/{total} {name} rows ({:.1}% of table): set PURGE_MAX_DELETE_FRACTION higher if that is right",
                    fraction * 100.0
                );
            }
        }
    }
}

/// Counts, checks the guards and deletes, in the caller's transaction and in constant memory.
async fn purge(
    transaction: &Transaction<'_>,
    table: DataType,
    started_at: &str,
    record_count: Option<i64>,
    behind: f64,
    max_fraction: f64,
) -> Result<Outcome, tokio_postgres::Error> {
    if started_at.is_empty() {
        return Ok(Outcome::Skipped("no started_at"));
    }
    if record_count == Some(0) {
        return Ok(Outcome::Skipped("the run had no records"));
    }
    let Some(started) = message::parse_time(started_at) else {
        return Ok(Outcome::Skipped("started_at is no time"));
    };
    if behind > CLOCK.as_secs_f64() {
        return Ok(Outcome::Skipped("the database's clock is behind the extractor's"));
    }
    let started = started - Duration::from_secs_f64(behind);
    let dead = transaction
        .query_opt(
            "SELECT 1 FROM ingest_dead_letters WHERE data_type = $1 AND last_at >= $2",
            &[&table.name(), &started],
        )
        .await?;
    if dead.is_some() {
        // Their rows look stale only because they could not be written.
        return Ok(Outcome::Skipped("records were dead-lettered in this run"));
    }
    let seen =
        "WITH seen AS MATERIALIZED (SELECT unnest(ids) AS data_id FROM ingest_seen WHERE data_type = $2 AND at >= $1)";
    let unseen = "t.updated_at < $1 AND NOT EXISTS (SELECT FROM seen WHERE seen.data_id = t.data_id)";
    // Finding them may take minutes, in which records are written as always.
    transaction.batch_execute("CREATE TEMPORARY TABLE ingest_stale (data_id text NOT NULL) ON COMMIT DROP").await?;
    let find = format!("{seen} INSERT INTO ingest_stale SELECT t.data_id FROM {table} AS t WHERE {unseen}");
    let stale = transaction.execute(&find, &[&started, &table.name()]).await?;
    let stale = i64::try_from(stale).unwrap_or(i64::MAX);
    let total: i64 = transaction.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await?.get(0);
    if stale > 0 && stale as f64 / total as f64 >= max_fraction {
        return Ok(Outcome::Vetoed { stale, total });
    }
    // A note locks no row. So no batch may be under way that has found one of these rows unchanged, while they go.
    transaction.batch_execute(&leave(table)).await?;
    let delete =
        format!("{seen} DELETE FROM {table} AS t USING ingest_stale AS s WHERE t.data_id = s.data_id AND {unseen}");
    let deleted = transaction.execute(&delete, &[&started, &table.name()]).await?;
    // Every row that is left was written or seen since then, so nobody needs older notes: not this run, should it be
    // announced again, not an earlier one that is announced late, and not the next one.
    transaction.execute("DELETE FROM ingest_seen WHERE data_type = $1 AND at < $2", &[&table.name(), &started]).await?;
    Ok(Outcome::Deleted(i64::try_from(deleted).unwrap_or(i64::MAX)))
}

/// First key of the advisory locks that batches and purges of a type take against each other. ("ings" in ASCII.)
const LOCK: i32 = 0x69_6e_67_73;

/// The statement by which a batch keeps purges of its type away until it is committed. It must be complete before the
/// next one takes its snapshot.
pub fn enter(table: DataType) -> String {
    format!("SELECT pg_advisory_xact_lock_shared({LOCK}, {})", table.index())
}

/// The statement by which a purge keeps batches of its type away. It does not wait for long: new ones would wait behind it.
fn leave(table: DataType) -> String {
    format!("SET LOCAL lock_timeout = '3s'; SELECT pg_advisory_xact_lock({LOCK}, {})", table.index())
}
