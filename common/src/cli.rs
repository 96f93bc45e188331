//! The command line that both workers share: `run` (the default), `check`, `healthcheck` and `deadletter`.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Command;

use crate::config::{BatchVariables, Config, ConfigError, Env, Variable, help_text};
use crate::sink::Sink;
use crate::tuning::Tuner;
use crate::worker::Exit;
use crate::{check, deadletter, http, worker};

/// What makes a worker out of the shared parts.
pub struct Worker<C> {
    /// `graphinator` or `tableinator`.
    pub service: &'static str,
    /// `Neo4j` or `PostgreSQL`.
    pub database: &'static str,
    /// One sentence for `--help`.
    pub about: &'static str,
    /// Port of its HTTP server, unless `HEALTH_PORT` says another one.
    pub health_port: u16,
    /// Every variable that it reads.
    pub tables: &'static [&'static [Variable]],
    /// The names of its batch variables.
    pub batch: &'static BatchVariables,
    /// Reads the configuration.
    #[allow(clippy::type_complexity, reason = "it is read in one place")]
    pub read: fn(Env) -> Result<((Config, C), Vec<String>), ConfigError>,
}

/// A worker's `main`: parses the command line, reads the configuration, runs.
pub fn main<C, S: Sink>(worker: Worker<C>, sink: impl FnOnce(&Config, C) -> Result<S, String>) -> ExitCode {
    let exit_codes = "Exit status: 0 clean stop, 1 check, healthcheck or deadletter failed, 2 could not start, 3 drain took too long";
    let matches = Command::new(worker.service)
        .about(worker.about)
        .version(crate::VERSION)
        .after_help(format!("{}\n{exit_codes}", help_text(worker.tables)))
        .subcommand(
            Command::new("run").about("Consume until SIGTERM or SIGINT (the default); SIGHUP reads TUNING_FILE again"),
        )
        .subcommand(
            Command::new("check")
                .about("Validate the configuration, connect to everything, verify it; changes nothing"),
        )
        .subcommand(
            Command::new("healthcheck").about(
                "Ask the worker on this machine (HEALTH_PORT) whether it is alive: exit status 0 if it is, else 1",
            ),
        )
        .subcommand(deadletter::command())
        .get_matches();
    let checking = match matches.subcommand() {
        Some((deadletter::NAME, arguments)) => return deadletter::main(worker.service, arguments),
        Some(("healthcheck", _)) => return healthcheck(worker.service, worker.health_port),
        subcommand => subcommand.is_some_and(|(name, _)| name == "check"),
    };
    let untuned = Env::from_process(worker.tables);
    let mut env = untuned.clone();
    env.tune();
    let settings = env.settings();
    let ((config, own), notes) = match (worker.read)(env) {
        Ok(read) => read,
        Err(e) => {
            eprintln!("{}: {e}\nSee `{} --help`.", worker.service, worker.service);
            return Exit::Fatal.into();
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("{}: can't start the runtime: {e}", worker.service);
            return Exit::Fatal.into();
        }
    };
    let mut for_sink = config.clone();
    if checking {
        for_sink.schema = check::looking_only(config.schema);
    }
    let sink = match sink(&for_sink, own) {
        Ok(sink) => sink,
        Err(e) => {
            eprintln!("{}: {e}", worker.service);
            return Exit::Fatal.into();
        }
    };
    let exit = if checking {
        runtime.block_on(check::run(worker.service, worker.database, &config, &notes, &sink))
    } else {
        let config = Arc::new(config);
        let tuner = Tuner::new(untuned, worker.batch, Arc::clone(&config), settings, notes.clone());
        runtime.block_on(worker::run(worker.service, worker.database, config, notes, tuner, sink))
    };
    // Whatever still runs after a forced stop must not hold the process.
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    exit.into()
}

/// For a container without a shell. It needs none of the variables that a run needs.
fn healthcheck(service: &str, default_port: u16) -> ExitCode {
    let given = std::env::var("HEALTH_PORT").ok().filter(|text| !text.trim().is_empty());
    let port = given.as_deref().map_or(Ok(default_port), |text| text.trim().parse());
    let asked = match port {
        Ok(port) => http::ask(port).map_err(|e| format!("nobody answers on port {port}: {e}")),
        Err(e) => Err(format!("HEALTH_PORT is no port: {e}")),
    };
    match asked {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("{service}: {e}");
            ExitCode::FAILURE
        }
    }
}
