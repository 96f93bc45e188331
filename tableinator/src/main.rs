//! The worker's entry point.

use std::process::ExitCode;

use common::cli::{self, Worker};
use mimalloc::MiMalloc;
use tableinator::sink::PostgresSink;
use tableinator::{SERVICE, config, connect};

/// Messages are read in one thread and freed in another, which the C library's allocator is slow at: see docs/PERFORMANCE_IMPROVEMENTS.md.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

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
