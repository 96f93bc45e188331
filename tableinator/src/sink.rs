//! A batch in PostgreSQL: ids and hashes first; a note for what is unchanged; COPY into the table for what is new; COPY into the
//! connection's staging table and one upsert for what changed.

use std::collections::HashMap;
use std::pin::pin;

use common::DataType;
use common::config::SchemaMode;
use common::message::{Control, Data};
use common::phases::Phases;
use common::sink::{Class, Record, Sink, SinkError, WriteReport};
use common::turn::Claim;
use common::year;
use deadpool_postgres::{Pool, Transaction};
use futures_util::SinkExt;
use futures_util::future::join;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;

use crate::config::{PostgresConfig, Unchanged};
use crate::connect::Lease;
use crate::errors::classify;
use crate::purge::{Purges, enter};
use crate::rows::{self, Year};
use crate::schema;

/// The worker's database.
pub struct PostgresSink {
    pool: Pool,
    schema: SchemaMode,
    unchanged: Unchanged,
    purges: Purges,
}

impl PostgresSink {
    /// A sink that uses the pool; it connects on first use.
    pub fn new(pool: Pool, schema: SchemaMode, config: &PostgresConfig) -> Self {
        let purges = Purges::new(pool.clone(), config.purge_max_delete_fraction);
        PostgresSink { purges, pool, schema, unchanged: config.unchanged }
    }

    /// A batch, committed under a claim; without one it is rolled back.
    async fn transaction(
        &self,
        data_type: DataType,
        batch: &[&Record<Year>],
        claim: Option<&Claim>,
        phases: &mut Phases,
    ) -> Result<WriteReport, SinkError> {
        let mut lease = Lease::take(&self.pool).await?;
        let client = lease.client()?;
        let mut outcome = write(client, data_type, batch, claim, self.unchanged, New::Copied, phases).await;
        if outcome.as_ref().is_err_and(|e| e.code() == Some(&SqlState::UNIQUE_VIOLATION)) {
            // Somebody else inserted one of them after we had looked.
            outcome = write(client, data_type, batch, claim, self.unchanged, New::Staged, phases).await;
        }
        lease.finish(outcome)?.ok_or_else(SinkError::fenced)
    }
}

/// Which of these records the table has, and whether with the same hash. An empty hash is never equal (contract, D.3).
fn known_statement(table: DataType) -> String {
    format!(
        "/* tableinator known */ SELECT t.data_id, t.hash = seen.hash AND seen.hash <> '' \
         FROM unnest($1::text[], $2::text[]) AS seen(id, hash) JOIN {table} AS t ON t.data_id = seen.id"
    )
}

/// Marks rows as seen in themselves.
fn touch_statement(table: DataType) -> String {
    format!("/* tableinator touch */ UPDATE {table} SET updated_at = NOW() WHERE data_id = ANY($1::text[])")
}

/// Marks rows as seen beside the table.
const NOTE: &str = "/* tableinator note */ INSERT INTO ingest_seen (data_type, ids) VALUES ($1, $2)";

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

/// Finds the claim, if it still is the last one, and keeps it so until the commit: the next claim waits for it.
const OWNER: &str = "/* tableinator fence */ SELECT FROM ingest_owners WHERE queue = $1 AND owner = $2 FOR SHARE";

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
        let look = async {
            let encoding: String = client.query_one("SHOW server_encoding", &[]).await?.get(0);
            if encoding != "UTF8" {
                // Each record with a character that it lacks would be refused, as if that were the record's fault.
                let what = "which can't hold every character; create one with ENCODING 'UTF8'";
                return Ok(Some(("encoding", format!("the database has the encoding {encoding}, {what}"))));
            }
            let missing = schema::apply(client, self.schema).await?;
            if !missing.is_empty() {
                let what = format!("missing: {}; create them, or set SCHEMA=ensure", missing.join(", "));
                return Ok(Some(("schema", what)));
            }
            write_nothing(client, data_type).await.map(|()| None)
        };
        let looked = look.await;
        match lease.finish(looked)? {
            Some((code, what)) => Err(SinkError::new(Class::Fatal, code, what)),
            None => Ok(()),
        }
    }

    async fn claim(&self, claim: &Claim) -> Result<u16, SinkError> {
        let mut lease = Lease::take(&self.pool).await?;
        let outcome = lease
            .client()?
            .query_one(
                "INSERT INTO ingest_owners AS o (queue, owner, prefetch) VALUES ($1, $2, $3) \
                 ON CONFLICT (queue) DO UPDATE SET owner = excluded.owner, since = NOW(), \
                 prefetch = GREATEST(o.prefetch, excluded.prefetch) RETURNING prefetch",
                &[&claim.queue, &claim.owner, &i32::from(claim.prefetch)],
            )
            .await;
        let largest: i32 = lease.finish(outcome)?.get(0);
        Ok(u16::try_from(largest).unwrap_or(claim.prefetch))
    }

    async fn resign(&self, claim: &Claim) -> Result<(), SinkError> {
        let mut lease = Lease::take(&self.pool).await?;
        let outcome = lease
            .client()?
            .execute(
                "UPDATE ingest_owners SET prefetch = 0 WHERE queue = $1 AND owner = $2",
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
        phases: &mut Phases,
    ) -> Result<WriteReport, SinkError> {
        self.transaction(data_type, batch, Some(claim), phases).await
    }

    async fn rehearse(&self, data_type: DataType, batch: &[&Record<Year>]) -> Result<(), SinkError> {
        self.transaction(data_type, batch, None, &mut Phases::new(data_type, false)).await.map(drop)
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
async fn write_nothing(
    client: &mut deadpool_postgres::Client,
    data_type: DataType,
) -> Result<(), tokio_postgres::Error> {
    let transaction = client.transaction().await?;
    let nothing: [&str; 0] = [];
    transaction.batch_execute(&enter(data_type)).await?;
    transaction.query(&known_statement(data_type), &[&&nothing[..], &&nothing[..]]).await?;
    transaction.execute(&touch_statement(data_type), &[&&nothing[..]]).await?;
    copy(&transaction, &copy_statement(data_type), [].into_iter()).await?;
    copy(&transaction, STAGE, [].into_iter()).await?;
    transaction.query_one(&upsert_statement(data_type), &[]).await?;
    transaction.batch_execute("SELECT prefetch FROM ingest_purges, ingest_dead_letters, ingest_owners LIMIT 0").await?;
    transaction.batch_execute("INSERT INTO ingest_seen SELECT * FROM ingest_seen LIMIT 0").await?;
    transaction.commit().await?;
    // A disk without room, or a trigger that refuses, shows only with a row: found here, it uses up no delivery.
    let transaction = client.transaction().await?;
    let row =
        format!("INSERT INTO {data_type} (data_id, hash, data) VALUES ('rehearsal ' || gen_random_uuid(), '', '{{}}')");
    match transaction.execute(&row, &[]).await {
        // A check of the operator's own, which real records may well pass.
        Err(e) if classify(&e).class != Class::Poison => return Err(e),
        _ => {}
    }
    transaction.rollback().await
}

/// Binary COPY of id, hash and JSON into the connection's staging table.
const STAGE: &str = "COPY ingest_staging FROM STDIN (FORMAT binary)";

/// The same into the table itself; `updated_at` has its default.
fn copy_statement(table: DataType) -> String {
    format!("COPY {table} (data_id, hash, data) FROM STDIN (FORMAT binary)")
}

async fn copy<'a>(
    transaction: &Transaction<'_>,
    statement: &str,
    records: impl Iterator<Item = &'a Record<Year>> + Clone,
) -> Result<u64, tokio_postgres::Error> {
    let mut copy = pin!(transaction.copy_in(statement).await?);
    copy.send(rows::encode(records)).await?;
    copy.finish().await
}

/// How records get into the table that it does not have yet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum New {
    /// Straight.
    Copied,
    /// By way of the staging table, which bears that somebody else inserts them meanwhile.
    Staged,
}

/// How a record stands with the table.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stand {
    New,
    Changed,
    Unchanged,
}

/// The statements of one batch; `None` if the queue was claimed by somebody else, and nothing is written. Without a claim
/// everything is rolled back.
async fn write(
    client: &mut deadpool_postgres::Client,
    data_type: DataType,
    batch: &[&Record<Year>],
    claim: Option<&Claim>,
    unchanged: Unchanged,
    new: New,
    phases: &mut Phases,
) -> Result<Option<WriteReport>, tokio_postgres::Error> {
    let known = client.prepare_cached(&known_statement(data_type)).await?;
    let upsert = client.prepare_cached(&upsert_statement(data_type)).await?;
    let owner = client.prepare_cached(OWNER).await?;
    phases.begin();
    let transaction = client.transaction().await?;

    let ids: Vec<_> = batch.iter().map(|r| rows::storable(&r.id)).collect();
    let hashes: Vec<_> = batch.iter().map(|r| rows::storable(&r.hash)).collect();
    let parameters: [&(dyn ToSql + Sync); 2] = [&ids, &hashes];
    // One after the other, but without waiting in between.
    let enter = enter(data_type);
    let (entered, found) = join(transaction.batch_execute(&enter), transaction.query(&known, &parameters)).await;
    entered?;
    let found = found?;
    let found: HashMap<&str, bool> = found.iter().map(|row| (row.get(0), row.get(1))).collect();
    let stand = |id: &str| match found.get(id) {
        Some(true) => Stand::Unchanged,
        None if new == New::Copied => Stand::New,
        _ => Stand::Changed,
    };
    let that = |is: Stand| {
        let stand = &stand;
        batch.iter().zip(&ids).filter(move |(_, id)| stand(id) == is).map(|(record, id)| (*record, id.as_ref()))
    };
    phases.end("known");

    let mut report = WriteReport::default();
    let seen: Vec<&str> = that(Stand::Unchanged).map(|(_, id)| id).collect();
    if !seen.is_empty() {
        report.unchanged = seen.len();
        match unchanged {
            Unchanged::Note => {
                let note = transaction.prepare_cached(NOTE).await?;
                transaction.execute(&note, &[&data_type.name(), &seen]).await?;
            }
            Unchanged::Touch => {
                let touch = transaction.prepare_cached(&touch_statement(data_type)).await?;
                transaction.execute(&touch, &[&seen]).await?;
            }
        }
        phases.end("seen");
    }
    if that(Stand::New).next().is_some() {
        let copied = copy(&transaction, &copy_statement(data_type), that(Stand::New).map(|(record, _)| record)).await?;
        report.inserted = usize::try_from(copied).unwrap_or_default();
        phases.end("copy");
    }
    if that(Stand::Changed).next().is_some() {
        copy(&transaction, STAGE, that(Stand::Changed).map(|(record, _)| record)).await?;
        let row = transaction.query_one(&upsert, &[]).await?;
        let (inserted, updated): (i64, i64) = (row.get(0), row.get(1));
        report.inserted += usize::try_from(inserted).unwrap_or_default();
        report.updated = usize::try_from(updated).unwrap_or_default();
        report.unchanged = batch.len() - report.inserted - report.updated;
        phases.end("upsert");
    }
    let Some(claim) = claim else {
        transaction.batch_execute("SET CONSTRAINTS ALL IMMEDIATE").await?; // what a commit would look at
        transaction.rollback().await?;
        return Ok(Some(report));
    };
    // Last, when this transaction holds the locks of its rows.
    if transaction.query_opt(&owner, &[&claim.queue, &claim.owner]).await?.is_none() {
        return Ok(None); // dropping the transaction rolls it back
    }
    transaction.commit().await?;
    phases.end("commit");
    Ok(Some(report))
}
