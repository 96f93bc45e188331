//! What the database alone must spend: the cheapest write that ends in the same state, prepared beforehand, without a broker and
//! without anything that makes it safe. Together with what the broker must spend it sets the limit of a worker.

use common::DataType;
use common::config::{Config, Env, Variable};
use common::message::{self, Message};
use common::phases::Phases;
use common::sink::{Class, Record, Sink};
use common::turn::Claim;
use futures_util::SinkExt as _;
use futures_util::future::try_join_all;
use neo4rs::{Graph, query};
use tableinator::rows;

use super::cpu;
use crate::Error;
use crate::services::Services;

/// Rows of one COPY, and ids of one comparison.
const MANY: usize = 5000;
/// Records of one transaction in the graph, and how many of these at a time: more run into each other's locks.
const BATCH: usize = 500;
const WRITERS: usize = 2;

/// Microseconds of the database's processor time per record: for records that are new, and for the same ones again.
///
/// # Errors
/// The database's.
pub async fn database(
    services: &Services,
    worker: &str,
    server: u32,
    data_type: DataType,
    bodies: &[Vec<u8>],
) -> Result<[f64; 2], Error> {
    if worker == "tableinator" {
        tables(services, server, data_type, bodies).await
    } else {
        graph(services, server, data_type, bodies).await
    }
}

fn env(services: &Services, tables: &[&'static [Variable]]) -> Env {
    Env::from_values(tables, services.0.clone())
}

/// The records as a sink gets them.
fn records<S: Sink>(sink: &S, data_type: DataType, bodies: &[Vec<u8>]) -> Result<Vec<Record<S::Payload>>, Error> {
    let record = |body: &Vec<u8>| match message::decode(body)? {
        Message::Data(data) => {
            let payload = sink.extract(data_type, &data);
            Ok(Record { id: data.id, hash: data.hash, body: body.clone(), payload })
        }
        Message::Control(_) => Err("a control message".into()),
    };
    let mut records: Vec<_> = bodies.iter().map(record).collect::<Result<_, Error>>()?;
    records.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(records)
}

async fn tables(services: &Services, server: u32, data_type: DataType, bodies: &[Vec<u8>]) -> Result<[f64; 2], Error> {
    let ((common, config), _) = tableinator::config::read(env(services, &tableinator::config::TABLES))?;
    let sink = tableinator::sink::PostgresSink::new(
        tableinator::connect::pool(&config, common.write_timeout)?,
        common.schema,
        &config,
    );
    sink.prepare(data_type).await?;
    let records = records(&sink, data_type, bodies)?;
    let chunks: Vec<_> = records.chunks(MANY).map(|chunk| rows::encode(chunk.iter())).collect();
    let client = services.postgres(services.get("POSTGRES_DATABASE")).await?;
    let copy = format!("COPY {data_type} (data_id, hash, data) FROM STDIN (FORMAT binary)");
    let first = spent(server, records.len(), async {
        for chunk in chunks {
            let mut copy = std::pin::pin!(client.copy_in(&copy).await?);
            copy.send(chunk).await?;
            copy.finish().await?;
        }
        Ok(())
    });
    let first = first.await?;
    let compare = format!(
        "SELECT count(*) FROM unnest($1::text[], $2::text[]) AS k (id, hash) JOIN {data_type} AS t ON t.data_id = k.id AND t.hash = k.hash"
    );
    let again = spent(server, records.len(), async {
        for chunk in records.chunks(MANY) {
            let ids: Vec<_> = chunk.iter().map(|r| r.id.as_str()).collect();
            let hashes: Vec<_> = chunk.iter().map(|r| r.hash.as_str()).collect();
            client.query_one(&compare, &[&ids, &hashes]).await?;
        }
        Ok(())
    });
    Ok([first, again.await?])
}

async fn graph(services: &Services, server: u32, data_type: DataType, bodies: &[Vec<u8>]) -> Result<[f64; 2], Error> {
    let ((common, config), _) = graphinator::config::read(env(services, &graphinator::config::TABLES))?;
    let Config { schema, write_timeout, .. } = common;
    let sink = graphinator::sink::Neo4jSink::new(&config, schema, write_timeout);
    sink.prepare(data_type).await?;
    let claim = Claim::new("bench", 1);
    sink.claim(&claim).await?;
    let records = records(&sink, data_type, bodies)?;
    let batches: Vec<Vec<_>> = records.chunks(BATCH).map(|chunk| chunk.iter().collect()).collect();
    let first = spent(server, records.len(), async {
        let writers = (0..WRITERS).map(|writer| {
            let (sink, claim, batches) = (&sink, &claim, &batches);
            async move {
                let mut phases = Phases::new(data_type, false);
                for batch in batches.iter().skip(writer).step_by(WRITERS) {
                    // Deadlocks are for the client to repeat.
                    while let Err(e) = sink.write(data_type, batch, false, claim, &mut phases).await {
                        if e.class == Class::Fatal {
                            return Err(e);
                        }
                    }
                }
                Ok(())
            }
        });
        try_join_all(writers).await.map(drop).map_err(Error::from)
    });
    let first = first.await?;
    let neo4j = services.neo4j()?;
    let again = spent(server, records.len(), async {
        let readers =
            (0..WRITERS).map(|reader| compare(&neo4j, data_type, batches.iter().skip(reader).step_by(WRITERS)));
        try_join_all(readers).await.map(drop)
    });
    Ok([first, again.await?])
}

async fn compare<'a, P: 'a>(
    graph: &Graph,
    data_type: DataType,
    batches: impl Iterator<Item = &'a Vec<&'a Record<P>>>,
) -> Result<(), Error> {
    let label = graphinator::statements::label(data_type);
    let compare = format!(
        "UNWIND range(0, size($ids) - 1) AS i MATCH (n:{label} {{id: $ids[i]}}) USING INDEX SEEK n:{label}(id) \
         WHERE n.sha256 = $hashes[i] RETURN count(*) AS same"
    );
    for batch in batches {
        let ids: Vec<_> = batch.iter().map(|r| r.id.as_str()).collect();
        let hashes: Vec<_> = batch.iter().map(|r| r.hash.as_str()).collect();
        let mut rows = graph.execute(query(&compare).param("ids", ids).param("hashes", hashes)).await?;
        while rows.next().await?.is_some() {}
    }
    Ok(())
}

/// Microseconds of a server's processor time per record while that is done.
async fn spent(server: u32, records: usize, work: impl Future<Output = Result<(), Error>>) -> Result<f64, Error> {
    let before = cpu::seconds(server);
    work.await?;
    Ok((cpu::seconds(server) - before) * 1e6 / records as f64)
}
