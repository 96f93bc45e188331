//! The worker's entry point.

use std::process::ExitCode;

use common::cli::{self, Worker};
use tableinator::sink::PostgresSink;
use tableinator::{SERVICE, config, connect};

fn main() -> ExitCode {
    let worker = Worker {
        service: SERVICE,
        database: "PostgreSQL",
        about: "Moves Discogs records from RabbitMQ into PostgreSQL, in batches, by COPY.",
        health_port: config::HEALTH_PORT,
        tables: &config::TABLES,
        batch: &config::BATCH,
        read: config::read,
    };
    cli::main(worker, |common, postgres| {
        let pool = connect::pool(&postgres, common.write_timeout)?;
        Ok(PostgresSink::new(pool, common.schema, &postgres))
    })
}
