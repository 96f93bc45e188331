//! A batch in PostgreSQL: touch what is unchanged, COPY the rest into the connection's staging table, one upsert.

use std::collections::HashSet;
use std::pin::pin;
use std::time::Instant;

use common::DataType;
use common::config::SchemaMode;
use common::message::{Control, Data};
use common::metrics::WRITE;
use common::sink::{Class, Record, Sink, SinkError, WriteReport};
use common::turn::Claim;
use common::year;
use deadpool_postgres::{Pool, Transaction};
use futures_util::SinkExt;

use crate::connect::Lease;
use crate::purge::Purges;
use crate::rows::{self, Year};
use crate::schema;

/// The worker's database.
pub struct PostgresSink {
    pool: Pool,
    schema: SchemaMode,
    purges: Purges,
}

impl PostgresSink {
    /// A sink that uses the pool; it connects on first use.
    pub fn new(pool: Pool, schema: SchemaMode, purge_max_delete_fraction: f64) -> Self {
        PostgresSink { purges: Purges::new(pool.clone(), purge_max_delete_fraction), pool, schema }
    }
}

/// Marks rows as seen whose hash is the same, and returns their ids. An empty hash is never equal (contract, D.3).
fn touch_statement(table: DataType) -> String {
    format!(
        "/* tableinator touch */ UPDATE {table} AS t SET updated_at = NOW() \
         FROM unnest($1::text[], $2::text[]) AS seen(id, hash) \
         WHERE t.data_id = seen.id AND t.hash = seen.hash AND seen.hash <> '' RETURNING t.data_id"
    )
}

/// Moves the staged rows into the table. A row that got the same hash meanwhile is left alone. Returns the numbers of
/// inserted and updated rows; xmax is 0 only in a row version that was inserted.
fn upsert_statement(table: DataType) -> String {
    format!(
        "/* tableinator upsert */ WITH written AS (\
         INSERT INTO {table} AS t (data_id, hash, data, updated_at) \
         SELECT data_id, hash, data, NOW() FROM ingest_staging \
         ON CONFLICT (data_id) DO UPDATE SET hash = excluded.hash, data = excluded.data, updated_at = excluded.updated_at \
         WHERE t.hash <> excluded.hash OR excluded.hash = '' \
         RETURNING t.xmax = 0 AS inserted) \
         SELECT count(*) FILTER (WHERE inserted), count(*) FILTER (WHERE NOT inserted) FROM written"
    )
}

/// Finds the claim, if it still is the last one.
const OWNER: &str = "/* tableinator fence */ SELECT FROM ingest_owners WHERE queue = $1 AND owner = $2";

impl Sink for PostgresSink {
    type Payload = Year;

    fn extract(&self, data_type: DataType, data: &Data<'_>) -> Year {
        match data_type {
            DataType::Artists | DataType::Labels => Year::Absent,
            DataType::Masters => Year::Known(year::parse(data.object.get("year"))),
            DataType::Releases => Year::Known(year::parse(data.object.get("released"))),
        }
    }

    async fn prepare(&self, data_type: DataType) -> Result<(), SinkError> {
        let mut lease = Lease::take(&self.pool).await?;
        let client = lease.client()?;
        let outcome = match schema::apply(client, self.schema).await {
            Ok(missing) if missing.is_empty() => rehearse(client, data_type).await.map(|()| missing),
            other => other,
        };
        let missing = lease.finish(outcome)?;
        if missing.is_empty() {
            return Ok(());
        }
        let what = format!("missing: {}; create them, or set SCHEMA=ensure", missing.join(", "));
        Err(SinkError::new(Class::Fatal, "schema", what))
    }

    async fn claim(&self, claim: &Claim) -> Result<(), SinkError> {
        let mut lease = Lease::take(&self.pool).await?;
        let outcome = lease
            .client()?
            .execute(
                "INSERT INTO ingest_owners (queue, owner) VALUES ($1, $2) \
                 ON CONFLICT (queue) DO UPDATE SET owner = excluded.owner, since = NOW()",
                &[&claim.queue, &claim.owner],
            )
            .await;
        lease.finish(outcome).map(|_| ())
    }

    async fn ping(&self) -> Result<(), SinkError> {
        let mut lease = Lease::take(&self.pool).await?;
        let outcome = lease.client()?.batch_execute("SELECT 1").await;
        lease.finish(outcome)
    }

    async fn write(
        &self,
        data_type: DataType,
        batch: &[&Record<Year>],
        _again: bool,
        claim: &Claim,
    ) -> Result<WriteReport, SinkError> {
        let mut lease = Lease::take(&self.pool).await?;
        let outcome = write(lease.client()?, data_type, batch, claim).await;
        lease.finish(outcome)?.ok_or_else(SinkError::fenced)
    }

    async fn note_dead_letter(&self, data_type: DataType) -> Result<(), SinkError> {
        let mut lease = Lease::take(&self.pool).await?;
        let outcome = lease
            .client()?
            .execute(
                "INSERT INTO ingest_dead_letters AS d (data_type, last_at, total) VALUES ($1, clock_timestamp(), 1) \
                 ON CONFLICT (data_type) DO UPDATE SET last_at = excluded.last_at, total = d.total + 1",
                &[&data_type.name()],
            )
            .await;
        lease.finish(outcome).map(|_| ())
    }

    async fn control(&self, data_type: DataType, control: &Control) -> Result<(), SinkError> {
        match control {
            Control::FileComplete { .. } => Ok(()),
            Control::ExtractionComplete(run) => self.purges.request(data_type, run).await,
        }
    }

    async fn background(&self) {
        common::background::run(&self.purges).await;
    }

    async fn release(&self) {} // a purge's lock goes with its connection
}

/// Runs every statement of a write, on nothing: missing columns and privileges are found before records are fetched.
async fn rehearse(client: &mut deadpool_postgres::Client, data_type: DataType) -> Result<(), tokio_postgres::Error> {
    let transaction = client.transaction().await?;
    let nothing: [&str; 0] = [];
    transaction.execute(&touch_statement(data_type), &[&&nothing[..], &&nothing[..]]).await?;
    copy(&transaction, std::iter::empty()).await?;
    transaction.query_one(&upsert_statement(data_type), &[]).await?;
    transaction.batch_execute("SELECT 1 FROM ingest_purges, ingest_dead_letters, ingest_owners LIMIT 0").await?;
    transaction.commit().await
}

async fn copy<'a>(
    transaction: &Transaction<'_>,
    records: impl Iterator<Item = &'a Record<Year>> + Clone,
) -> Result<(), tokio_postgres::Error> {
    let mut copy = pin!(transaction.copy_in("COPY ingest_staging FROM STDIN (FORMAT binary)").await?);
    copy.send(rows::encode(records)).await?;
    copy.finish().await?;
    Ok(())
}

/// The statements of one batch; `None` if the queue was claimed by somebody else, and nothing is written.
async fn write(
    client: &mut deadpool_postgres::Client,
    data_type: DataType,
    batch: &[&Record<Year>],
    claim: &Claim,
) -> Result<Option<WriteReport>, tokio_postgres::Error> {
    let touch = client.prepare_cached(&touch_statement(data_type)).await?;
    let upsert = client.prepare_cached(&upsert_statement(data_type)).await?;
    let owner = client.prepare_cached(OWNER).await?;
    let mut clock = Phases::new(data_type);
    let transaction = client.transaction().await?;

    let ids: Vec<_> = batch.iter().map(|r| rows::storable(&r.id)).collect();
    let hashes: Vec<_> = batch.iter().map(|r| rows::storable(&r.hash)).collect();
    let touched = transaction.query(&touch, &[&ids, &hashes]).await?;
    let unchanged: HashSet<&str> = touched.iter().map(|row| row.get(0)).collect();
    clock.end("touch");

    let mut report = WriteReport { unchanged: unchanged.len(), ..WriteReport::default() };
    if unchanged.len() < batch.len() {
        let rest = batch.iter().zip(&ids).filter(|(_, id)| !unchanged.contains(id.as_ref())).map(|(r, _)| *r);
        copy(&transaction, rest).await?;
        clock.end("copy");
        let row = transaction.query_one(&upsert, &[]).await?;
        let (inserted, updated): (i64, i64) = (row.get(0), row.get(1));
        report.inserted = usize::try_from(inserted).unwrap_or_default();
        report.updated = usize::try_from(updated).unwrap_or_default();
        report.unchanged = batch.len() - report.inserted - report.updated;
        clock.end("upsert");
    }
    // Last, when this transaction holds the locks of its rows: whoever claims the queue after this waits for them.
    if transaction.query_opt(&owner, &[&claim.queue, &claim.owner]).await?.is_none() {
        return Ok(None); // dropping the transaction rolls it back
    }
    transaction.commit().await?;
    clock.end("commit");
    Ok(Some(report))
}

/// Times the phases of one write.
struct Phases {
    data_type: DataType,
    since: Instant,
}

impl Phases {
    fn new(data_type: DataType) -> Self {
        Phases { data_type, since: Instant::now() }
    }

    fn end(&mut self, phase: &'static str) {
        metrics::histogram!(WRITE, "data_type" => self.data_type.name(), "phase" => phase)
            .record(self.since.elapsed().as_secs_f64());
        self.since = Instant::now();
    }
}
