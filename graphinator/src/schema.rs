//! Constraints and indexes of the contract (§5.1), and those of the worker's own bookkeeping. Only what is missing is
//! created; nothing is dropped but what an interrupted creation left behind.

use std::collections::HashSet;
use std::time::Duration;

use common::config::SchemaMode;
use neo4rs::{Graph, query};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

/// Seconds to wait for new indexes. On a full graph they take longer: then this fails, and the next attempt finds them.
const AWAIT_INDEXES: i64 = 45;
/// How long another replica may take for what it is creating.
const OTHERS: Duration = Duration::from_secs(20);
/// How often to look whether it has.
const LOOK: Duration = Duration::from_millis(200);

/// One constraint or index: what it is on decides whether it exists, whatever its name.
struct Object {
    /// `UNIQUENESS`, `RANGE` or `FULLTEXT`, as `SHOW` calls them (uniqueness has had two names).
    kind: &'static str,
    name: &'static str,
    label: &'static str,
    property: &'static str,
}

const fn unique(name: &'static str, label: &'static str, property: &'static str) -> Object {
    Object { kind: "UNIQUENESS", name, label, property }
}

const fn range(name: &'static str, label: &'static str, property: &'static str) -> Object {
    Object { kind: "RANGE", name, label, property }
}

const fn fulltext(name: &'static str, label: &'static str, property: &'static str) -> Object {
    Object { kind: "FULLTEXT", name, label, property }
}

const OBJECTS: &[Object] = &[
    unique("artist_id", "Artist", "id"),
    unique("label_id", "Label", "id"),
    unique("master_id", "Master", "id"),
    unique("release_id", "Release", "id"),
    unique("genre_name", "Genre", "name"),
    unique("style_name", "Style", "name"),
    unique("user_id", "User", "id"),
    unique("person_name", "Person", "name"),
    range("artist_sha256", "Artist", "sha256"),
    range("label_sha256", "Label", "sha256"),
    range("master_sha256", "Master", "sha256"),
    range("release_sha256", "Release", "sha256"),
    range("artist_name", "Artist", "name"),
    range("label_name", "Label", "name"),
    range("release_year_index", "Release", "year"),
    range("master_year_index", "Master", "year"),
    range("genre_first_year_index", "Genre", "first_year"),
    range("style_first_year_index", "Style", "first_year"),
    range("person_credit_count", "Person", "credit_count"),
    range("artist_mbid", "Artist", "mbid"),
    range("label_mbid", "Label", "mbid"),
    range("release_mbid", "Release", "mbid"),
    range("master_mbid", "Master", "mbid"),
    fulltext("artist_name_fulltext", "Artist", "name"),
    fulltext("release_title_fulltext", "Release", "title"),
    fulltext("label_name_fulltext", "Label", "name"),
    fulltext("genre_name_fulltext", "Genre", "name"),
    fulltext("style_name_fulltext", "Style", "name"),
    fulltext("person_name_fulltext", "Person", "name"),
    // The worker's own bookkeeping.
    unique("ingest_run_version", "IngestRun", "version"),
    unique("ingest_owner_queue", "IngestOwner", "queue"),
    unique("ingest_gate_type", "IngestGate", "type"),
    unique("ingest_vanished_key", "IngestVanished", "key"),
    unique("ingest_dead_letters_type", "IngestDeadLetters", "type"),
    range("ingest_seen_type", "IngestSeen", "type"),
    range("ingest_pending_link_artist", "IngestPendingLink", "artist"),
];

impl Object {
    fn create(&self) -> String {
        let Object { name, label, property, .. } = self;
        match self.kind {
            "UNIQUENESS" => {
                format!("CREATE CONSTRAINT {name} IF NOT EXISTS FOR (n:{label}) REQUIRE n.{property} IS UNIQUE")
            }
            "FULLTEXT" => format!("CREATE FULLTEXT INDEX {name} IF NOT EXISTS FOR (n:{label}) ON EACH [n.{property}]"),
            _ => format!("CREATE INDEX {name} IF NOT EXISTS FOR (n:{label}) ON (n.{property})"),
        }
    }
}

/// Brings the schema about, or looks whether it is there. Returns the names of what is still missing.
///
/// # Errors
/// The database's.
pub async fn apply(graph: &Graph, mode: SchemaMode) -> Result<Vec<String>, neo4rs::Error> {
    if mode == SchemaMode::Off {
        return Ok(Vec::new());
    }
    let mut absent = missing(graph).await?;
    if absent.is_empty() || mode == SchemaMode::Check {
        return Ok(names(&absent));
    }
    create(graph, &absent).await?;
    // A replica may be creating some of them right now.
    let began = Instant::now();
    while !absent.is_empty() && began.elapsed() < OTHERS {
        sleep(LOOK).await;
        absent = missing(graph).await?;
    }
    if !absent.is_empty() {
        // A server or replica that ended amid the creation of a constraint leaves the constraint's index behind, in whose way no
        // other one can come about.
        for object in absent.iter().filter(|object| object.kind == "UNIQUENESS") {
            warn!(name = object.name, "🏗️ Dropping the index of a constraint that never came about");
            graph.run(query(&format!("DROP INDEX {} IF EXISTS", object.name))).await?;
        }
        create(graph, &absent).await?;
    }
    graph.run(query("CALL db.awaitIndexes($seconds)").param("seconds", AWAIT_INDEXES)).await?;
    Ok(names(&missing(graph).await?))
}

fn names(objects: &[&Object]) -> Vec<String> {
    objects.iter().map(|object| object.name.to_owned()).collect()
}

async fn create(graph: &Graph, objects: &[&Object]) -> Result<(), neo4rs::Error> {
    for object in objects {
        match graph.run(query(&object.create())).await {
            Ok(()) => info!(name = object.name, "🏗️ Created"),
            Err(neo4rs::Error::Neo4j(e)) if e.code().ends_with("AlreadyExists") => {} // a replica was faster
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

async fn missing(graph: &Graph) -> Result<Vec<&'static Object>, neo4rs::Error> {
    let mut present: HashSet<(String, String, String)> = HashSet::new();
    for (show, named) in [
        ("SHOW CONSTRAINTS YIELD type, labelsOrTypes, properties", Some("UNIQUENESS")),
        ("SHOW INDEXES YIELD type, labelsOrTypes, properties", None),
    ] {
        let mut rows = graph.execute(query(show)).await?;
        while let Some(row) = rows.next().await? {
            let kind: String = row.get("type")?;
            // Lookup indexes have neither label nor property.
            let labels: Vec<String> = row.get("labelsOrTypes").unwrap_or_default();
            let properties: Vec<String> = row.get("properties").unwrap_or_default();
            let kind = match named {
                Some(name) if kind.contains("UNIQUENESS") => name.to_owned(), // NODE_PROPERTY_UNIQUENESS since 2025
                Some(_) => continue,
                None => kind,
            };
            if let ([label], [property]) = (&labels[..], &properties[..]) {
                present.insert((kind, label.clone(), property.clone()));
            }
        }
    }
    let key = |o: &Object| (o.kind.to_owned(), o.label.to_owned(), o.property.to_owned());
    Ok(OBJECTS.iter().filter(|o| !present.contains(&key(o))).collect())
}
