//! What the demo shows at its end: what is in tables and graph, example queries, rates, and where to look.

use std::path::Path;

use common::DataType;
use neo4rs::query;

use crate::Error;
use crate::demo::{Load, OUTCOMES, step};
use crate::services::Services;

/// Counts per table, node label and relationship type.
///
/// # Errors
/// The databases' own.
pub async fn contents(services: &Services) -> Result<(), Error> {
    step("Tables");
    let postgres = services.postgres(services.get("POSTGRES_DATABASE")).await?;
    for t in DataType::ALL {
        let count: i64 = postgres.query_one(&format!("SELECT count(*) FROM {t}"), &[]).await?.get(0);
        println!("   {:<22} {count:>9}", t.name());
    }
    let graph = services.neo4j()?;
    for (title, statement) in [
        ("Nodes", "MATCH (n) WITH labels(n)[0] AS name, count(*) AS count RETURN name, count ORDER BY name"),
        ("Relationships", "MATCH ()-[r]->() WITH type(r) AS name, count(*) AS count RETURN name, count ORDER BY name"),
    ] {
        step(title);
        let mut rows = graph.execute(query(statement)).await?;
        while let Some(row) = rows.next().await? {
            println!("   {:<22} {:>9}", row.get::<String>("name")?, row.get::<i64>("count")?);
        }
    }
    Ok(())
}

/// Questions to PostgreSQL: a title and a statement of one text column.
const SQL: [(&str, &str); 2] = [
    (
        "Releases by decade",
        "SELECT (data->>'year')::int / 10 * 10 || 's  ' || count(*) FROM releases
         WHERE data->>'year' IS NOT NULL GROUP BY (data->>'year')::int / 10 ORDER BY count(*) DESC LIMIT 5",
    ),
    (
        "Full-text search for \"night\" in release titles",
        "SELECT data_id || '  ' || (data->>'title') FROM releases
         WHERE to_tsvector('english', COALESCE(data->>'title', '')) @@ to_tsquery('english', 'night')
         ORDER BY data_id::bigint LIMIT 5",
    ),
];

/// Questions to Neo4j, likewise; the column is `line`.
const CYPHER: [(&str, &str); 3] = [
    (
        "Genres with most releases",
        "MATCH (g:Genre) WHERE g.release_count > 0
         RETURN g.name + '  ' + g.release_count AS line ORDER BY g.release_count DESC LIMIT 5",
    ),
    (
        "Artists with releases on most labels",
        "MATCH (a:Artist)<-[:BY]-(r:Release)-[:ON]->(l:Label) WHERE a.name <> 'Various'
         WITH a, count(DISTINCT l) AS labels, count(DISTINCT r) AS releases
         RETURN a.name + '  ' + labels + ' labels, ' + releases + ' releases' AS line ORDER BY labels DESC, a.id LIMIT 5",
    ),
    (
        "Who is credited together with whom",
        "MATCH (p:Person)-[:CREDITED_ON]->(r:Release) WITH p, count(DISTINCT r) AS works ORDER BY works DESC LIMIT 3
         MATCH (p)-[:CREDITED_ON]->(r:Release)<-[:CREDITED_ON]-(q:Person) WHERE p <> q
         WITH p, q, count(DISTINCT r) AS together ORDER BY together DESC
         WITH p, collect(q.name + ' (' + together + ')')[..3] AS others
         RETURN p.name + '  with ' + others[0] + ', ' + others[1] + ', ' + others[2] AS line",
    ),
];

/// Example queries with their results.
///
/// # Errors
/// The databases' own.
pub async fn queries(services: &Services) -> Result<(), Error> {
    let postgres = services.postgres(services.get("POSTGRES_DATABASE")).await?;
    for (title, statement) in SQL {
        show(&format!("{title} (SQL)"), statement);
        for row in postgres.query(statement, &[]).await? {
            println!("   → {}", row.get::<_, String>(0));
        }
    }
    let graph = services.neo4j()?;
    for (title, statement) in CYPHER {
        show(&format!("{title} (Cypher)"), statement);
        let mut rows = graph.execute(query(statement)).await?;
        while let Some(row) = rows.next().await? {
            println!("   → {}", row.get::<Option<String>>("line")?.unwrap_or_default());
        }
    }
    Ok(())
}

fn show(title: &str, statement: &str) {
    step(title);
    for line in statement.lines() {
        println!("     {}", line.trim());
    }
}

/// What was written of each dump, and how fast.
pub fn loads(loads: &[Load]) {
    for load in loads {
        let rate = |seconds: f64| load.records / seconds.max(0.001);
        step(&format!(
            "Dump {}: {} records, published in {:.1} s ({:.0}/s)",
            load.date,
            load.records,
            load.published,
            rate(load.published)
        ));
        for (name, worker) in ["tableinator", "graphinator"].iter().zip(&load.workers) {
            let outcomes = OUTCOMES.iter().zip(worker.outcomes).filter(|(_, count)| *count > 0.0);
            let outcomes: Vec<_> = outcomes.map(|(outcome, count)| format!("{count} {outcome}")).collect();
            println!(
                "   {name:<12} {:>6.0} records/s until the last commit: {}, {} dead-lettered",
                rate(worker.seconds),
                outcomes.join(", "),
                worker.dead_lettered
            );
        }
    }
}

/// Addresses, credentials and logs.
pub fn where_to_look(services: &Services, logs: &Path) {
    let get = |name| services.get(name);
    step("Where to look");
    println!(
        "   psql: postgres://{}:{}@127.0.0.1:{}/{}",
        get("POSTGRES_USERNAME"),
        get("POSTGRES_PASSWORD"),
        get("POSTGRES_PORT"),
        get("POSTGRES_DATABASE")
    );
    println!("   Neo4j: bolt://127.0.0.1:{} as {}/{}", get("NEO4J_PORT"), get("NEO4J_USERNAME"), get("NEO4J_PASSWORD"));
    println!(
        "   RabbitMQ: http://127.0.0.1:{} as {}/{}",
        get("RABBITMQ_MANAGEMENT_PORT"),
        get("RABBITMQ_USERNAME"),
        get("RABBITMQ_PASSWORD")
    );
    println!("   Dumps, logs and the extractor's state: {}", logs.display());
    println!("   The services keep running; `cargo xtask down` stops them.");
}
