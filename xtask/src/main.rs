//! `cargo xtask`: the project's day-to-day commands.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::{Error, bench, compose, demo, licences, reference, services, soak};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's day-to-day commands")]
struct Args {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Load generated or real dumps by the whole chain, and show what came of it
    Demo(demo::Options),
    /// Run all tests, against real services
    Test {
        /// Passed on to `cargo test`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Measure extractor and workers against what the servers can give
    Bench(bench::Options),
    /// Break everything at random while both workers load, again and again, and count what was lost
    Soak(soak::Options),
    /// Build the images, start the whole stack, and load, scale, restart and watch it (needs Docker)
    Compose(compose::Options),
    /// Generate docs/configuration.md from the code
    Docs,
    /// Install what is missing and start the private RabbitMQ, PostgreSQL and Neo4j
    Up,
    /// Stop them; their data stays
    Down,
}

fn main() -> ExitCode {
    let done = match Args::parse().command {
        Task::Demo(options) => demo::run(options),
        Task::Test { args } => test(&args),
        Task::Bench(options) => bench::run(&options),
        Task::Soak(options) => soak::run(&options),
        Task::Compose(options) => compose::run(&options),
        Task::Docs => reference::write(),
        Task::Up => services(&["up"]),
        Task::Down => services(&["down"]),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

fn services(args: &[&str]) -> Result<(), Error> {
    print!("{}", services::script(args)?);
    Ok(())
}

fn test(args: &[String]) -> Result<(), Error> {
    print!("{}", services::script(&["up"])?);
    let status = services::cargo(&["test", "--workspace"]).args(args).status()?;
    if !status.success() {
        return Err("tests failed".into());
    }
    licences::check_thoroughly()
}
