//! The tables of the contract (§4.1), and a few small ones for the worker's own bookkeeping. Only what is missing is
//! created, under an advisory lock; nothing is ever dropped or changed.

use std::collections::HashSet;

use common::DataType;
use common::config::SchemaMode;
use tokio_postgres::Client;
use tracing::info;

/// Key of the advisory lock: replicas that start together create the schema one after the other. ("ingest" in ASCII.)
const LOCK: i64 = 0x69_6e_67_65_73_74;

/// One object, by name, and how to create it.
struct Object {
    name: String,
    create: String,
}

fn table(data_type: DataType) -> Object {
    Object {
        name: data_type.name().to_owned(),
        create: format!(
            "CREATE TABLE IF NOT EXISTS {data_type} (data_id VARCHAR PRIMARY KEY, hash VARCHAR NOT NULL, \
             data JSONB NOT NULL, updated_at TIMESTAMPTZ NOT NULL DEFAULT NOW())"
        ),
    }
}

fn index(table: DataType, suffix: &str, definition: &str) -> Object {
    let name = format!("idx_{table}_{suffix}");
    Object { create: format!("CREATE INDEX IF NOT EXISTS {name} ON {table} {definition}"), name }
}

fn objects() -> Vec<Object> {
    let mut objects = Vec::new();
    for t in DataType::ALL {
        objects.push(table(t));
        objects.push(index(t, "hash", "(hash)"));
        objects.push(index(t, "updated_at", "(updated_at)"));
        let text = match t {
            DataType::Artists | DataType::Labels => "name",
            DataType::Masters | DataType::Releases => "title",
        };
        objects.push(index(t, text, &format!("((data->>'{text}'))")));
        let fts = format!("USING GIN (to_tsvector('english', COALESCE(data->>'{text}', '')))");
        objects.push(index(t, "fts", &fts));
        if matches!(t, DataType::Masters | DataType::Releases) {
            objects.push(index(t, "year", "((data->>'year'))"));
        }
        if t == DataType::Releases {
            objects.push(index(t, "country", "((data->>'country'))"));
            objects.push(index(t, "genres", "USING GIN ((data->'genres'))"));
            objects.push(index(t, "labels", "USING GIN ((data->'labels'))"));
        }
    }
    for (name, columns) in [
        // When a type last had a dead letter: a purge would take that record's row for a stale one.
        ("ingest_dead_letters", "data_type TEXT PRIMARY KEY, last_at TIMESTAMPTZ NOT NULL, total BIGINT NOT NULL"),
        // Which replica may write what a queue delivers.
        (
            "ingest_owners",
            "queue TEXT PRIMARY KEY, owner TEXT NOT NULL, prefetch INTEGER NOT NULL, since TIMESTAMPTZ NOT NULL DEFAULT NOW()",
        ),
        // The purges that extraction_complete asked for, done or not.
        (
            "ingest_purges",
            "data_type TEXT NOT NULL, version TEXT NOT NULL, started_at TEXT NOT NULL, record_count BIGINT, \
             behind DOUBLE PRECISION NOT NULL DEFAULT 0, \
             requested_at TIMESTAMPTZ NOT NULL DEFAULT NOW(), finished_at TIMESTAMPTZ, outcome TEXT, deleted BIGINT, \
             PRIMARY KEY (data_type, version, started_at)",
        ),
        // Records that a run brought as they were: a narrow note for each batch, instead of a new version of each row.
        ("ingest_seen", "data_type TEXT NOT NULL, at TIMESTAMPTZ NOT NULL DEFAULT NOW(), ids TEXT[] NOT NULL"),
    ] {
        objects
            .push(Object { name: name.to_owned(), create: format!("CREATE TABLE IF NOT EXISTS {name} ({columns})") });
    }
    objects
}

/// Names of what the contract demands and the database lacks.
async fn missing(client: &Client) -> Result<Vec<Object>, tokio_postgres::Error> {
    // Not to_regclass: its answers are cached within a session, and another replica may have created things meanwhile.
    let objects = objects();
    let names: Vec<&str> = objects.iter().map(|o| o.name.as_str()).collect();
    let rows = client
        .query(
            "SELECT name FROM unnest($1::text[]) AS name WHERE NOT EXISTS \
             (SELECT FROM pg_class AS c WHERE c.relname = name AND pg_table_is_visible(c.oid))",
            &[&names],
        )
        .await?;
    let absent: HashSet<String> = rows.iter().map(|r| r.get(0)).collect();
    Ok(objects.into_iter().filter(|o| absent.contains(&o.name)).collect())
}

/// Brings the schema about, or looks whether it is there. Returns the names of what is still missing.
///
/// # Errors
/// The database's.
pub async fn apply(client: &mut Client, mode: SchemaMode) -> Result<Vec<String>, tokio_postgres::Error> {
    if mode == SchemaMode::Off {
        return Ok(Vec::new());
    }
    let absent = missing(client).await?;
    if absent.is_empty() || mode == SchemaMode::Check {
        return Ok(absent.into_iter().map(|o| o.name).collect());
    }
    let transaction = client.transaction().await?;
    transaction.batch_execute("SET LOCAL statement_timeout = 0").await?; // as do indexes on tables that are full already
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await?;
    for object in missing(transaction.client()).await? {
        transaction.batch_execute(&object.create).await?;
        info!(name = object.name, "🏗️ Created");
    }
    transaction.commit().await?;
    Ok(Vec::new())
}
