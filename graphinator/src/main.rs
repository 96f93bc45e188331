//! The worker's entry point.

use std::process::ExitCode;

use common::cli::{self, Worker};
use graphinator::sink::Neo4jSink;
use graphinator::{SERVICE, config};

fn main() -> ExitCode {
    let worker = Worker {
        service: SERVICE,
        database: "Neo4j",
        about: "Moves Discogs records from RabbitMQ into Neo4j, in batches, by UNWIND.",
        health_port: config::HEALTH_PORT,
        tables: &config::TABLES,
        batch: &config::BATCH,
        read: config::read,
    };
    cli::main(worker, |common, neo4j| Ok(Neo4jSink::new(&neo4j, common.schema, common.write_timeout)))
}
