//! The command line: `run`, `generate`, `inspect` and `convert`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use common::config::{Env, help_text};
use common::{DataType, http, metrics};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::bindings::Management;
use crate::compress::Compression;
use crate::config::{self, Config, TABLES};
use crate::file::Shared;
use crate::input::Format;
use crate::plan::{Wanted, plan};
use crate::progress::{self, Progress, Style};
use crate::publish::{self, Target};
use crate::rules::Rules;
use crate::run::Done;
use crate::state::{State, VersionState, fingerprint};
use crate::webhook::Webhook;
use crate::{convert, generate, inspect};

const EXIT_CODES: &str = "Exit status of `run`, also if all was done before: 0 everything is published, 1 everything but \
rejected records, 2 could not start, 3 not finished: run it again to go on";

/// Discogs dumps to RabbitMQ: publishes each record as a message, for graphinator and tableinator to load.
#[derive(Parser)]
#[command(name = "extractor", version = common::VERSION, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Publish dumps
    #[command(after_help = format!("{}\n{EXIT_CODES}", help_text(&TABLES)))]
    Run(RunArgs),
    /// Write a made-up dump, for demos, tests and measurements
    Generate(generate::command::GenerateArgs),
    /// Tell what is in a file: counts, sizes, oddities
    Inspect(inspect::InspectArgs),
    /// Write a file's records as JSON lines or CSV to the standard output
    Convert(convert::ConvertArgs),
}

#[derive(Args)]
struct RunArgs {
    /// Folder with dumps (the newest is taken), files of one or more dumps, or - for the standard input
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Dump to take of a folder, or that the files belong to, e.g. 20260401
    #[arg(long, value_name = "DATE", value_parser = date)]
    dump: Option<String>,
    /// What is in files that don't say it in their names
    #[arg(long = "type", value_name = "TYPE", value_parser = data_type)]
    data_type: Option<DataType>,
    /// How the records are written, if neither the file's name nor its first byte tells it
    #[arg(long)]
    format: Option<Format>,
    /// JSON file with data-quality rules [default: DATA_QUALITY_RULES, else none]
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
    /// Workers whose queues must exist, with commas between, or none
    #[arg(long, value_name = "WORKERS", default_value = "graphinator,tableinator")]
    expect_queues: String,
    /// Longest time in seconds to wait for the broker and those queues at the start
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    wait: u64,
    /// Pack message bodies; both workers unpack them, the Python ones don't
    #[arg(long, default_value = "none")]
    compress: Compression,
    /// Directory for the state and the rejects [default: .extractor beside the input]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Publish a version again that is finished or begun, as a new run: what was published of all its types counts no more
    #[arg(long)]
    force: bool,
    /// Don't verify the files against the checksum file
    #[arg(long)]
    no_verify: bool,
    /// Rejected records in a file after which it is given up
    #[arg(long, value_name = "N", default_value_t = 1000)]
    max_rejects: u64,
    /// What to show on the way
    #[arg(long, default_value = "auto")]
    progress: Style,
}

fn date(text: &str) -> Result<String, String> {
    let good = text.len() == 8 && text.bytes().all(|b| b.is_ascii_digit());
    good.then(|| text.to_owned()).ok_or_else(|| "give a date such as 20260401".to_owned())
}

/// Parses a type's name, for command lines.
///
/// # Errors
/// The names that there are.
pub fn data_type(text: &str) -> Result<DataType, String> {
    let named = DataType::ALL.into_iter().find(|t| t.name() == text);
    named.ok_or_else(|| "give artists, labels, masters or releases".to_owned())
}

/// How `run` ended, as its exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Exit {
    Complete,
    Rejects,
    CantStart,
    Unfinished,
}

/// The extractor's `main`.
pub fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(args) => return start(args),
        Command::Generate(args) => generate::command::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Convert(args) => convert::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tell(&format!("extractor: {e}"));
            ExitCode::from(1)
        }
    }
}

fn start(args: RunArgs) -> ExitCode {
    // The work is done by a thread for each file; more of the runtime's would only cost memory.
    let exit = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => {
            let exit = runtime.block_on(run(args));
            // A thread that waits for the standard input must not hold the process.
            runtime.shutdown_timeout(Duration::from_millis(200));
            exit
        }
        Err(e) => Err(format!("can't start the runtime: {e}")),
    };
    let exit = exit.unwrap_or_else(|e| {
        tell(&format!("extractor: {e}"));
        Exit::CantStart
    });
    ExitCode::from(exit as u8)
}

async fn run(args: RunArgs) -> Result<Exit, String> {
    let (config, notes) =
        config::read(Env::from_process(&TABLES)).map_err(|e| format!("{e}\nSee `extractor run --help`."))?;
    let wanted = Wanted { paths: args.paths.clone(), version: args.dump.clone(), data_type: args.data_type };
    let plans = plan(&wanted)?;
    let progress = Progress::new(args.progress);
    notes.iter().for_each(|note| progress.note(note));
    let shared = Arc::new(shared(&args, &config, Arc::clone(&progress))?);

    let exporter = metrics::builder("extractor").install_recorder().map_err(|e| e.to_string())?;
    progress::describe();
    let listener = http::bind(config.health_port).await.map_err(|e| {
        format!("can't listen on port {}: {e}; set HEALTH_PORT (0 takes a free one)", config.health_port)
    })?;
    let port = listener.local_addr().map(|a| a.port()).unwrap_or_default();
    progress.note(&format!("/metrics and /health on port {port}"));
    tokio::spawn(http::serve(listener, Arc::clone(&progress) as Arc<dyn http::Probe>, exporter));
    stop_on_signal(shared.stop.clone()).map_err(|e| format!("can't handle signals: {e}"))?;
    tokio::spawn(async move { progress.run().await });

    let (mut exit, mut refused) = (Exit::Complete, Exit::Complete);
    let mut prepared = false;
    let mut webhook = Webhook::new(config.webhook.clone(), Arc::clone(&shared));
    webhook.call(); // what an earlier run owes
    for plan in &plans {
        if exit >= Exit::CantStart {
            say(&format!("Dump {} waits until those before it are whole.\n", plan.version));
            continue;
        }
        let known = shared.state.version(&plan.version);
        if !args.force && known.announced_at.is_some() {
            say(&format!("Dump {} was published before; --force publishes it again.\n", plan.version));
            exit = exit.max(before(&plan.version, &known));
            for input in &plan.inputs {
                let published = known.file(input.data_type).map(|file| &file.fingerprint);
                if !input.is_stdin() && fingerprint(input).ok().as_ref() != published {
                    say(&format!("  warning: {} is not the file that was published\n", input.name()));
                }
            }
            continue;
        }
        if let Some(newer) = shared.state.after(&plan.version).filter(|_| !args.force) {
            say(&format!(
                "Dump {} is older than {newer}, which was published before: its records would come over those; --force \
                 publishes it all the same.\n",
                plan.version
            ));
            refused = Exit::CantStart;
            continue;
        }
        if !prepared {
            prepare(&shared, config.management.as_ref(), Duration::from_secs(args.wait)).await?;
            prepared = true;
        }
        match crate::run::version(&shared, plan, args.force, webhook.is_set()).await {
            Err(e) => {
                tell(&format!("extractor: the state can't be saved in {}: {e}", shared.directory.display()));
                exit = Exit::Unfinished;
            }
            Ok(Done::Before) => {
                let version = &plan.version;
                say(&format!("These files of dump {version} were published before; --force publishes them again.\n"));
                exit = exit.max(before(version, &known));
            }
            Ok(Done::Now(summary)) => {
                say(&summary.to_text());
                if let Some(newer) = shared.state.after(&plan.version) {
                    say(&format!(
                        "  warning: dump {newer} was published before, and these older records came over its own\n"
                    ));
                }
                exit = exit.max(match (summary.failures.is_empty(), summary.rejected()) {
                    (false, _) => Exit::Unfinished,
                    (true, 0) => Exit::Complete,
                    (true, _) => Exit::Rejects,
                });
                webhook.call();
            }
        }
    }
    exit = exit.max(refused);
    for e in webhook.finish().await {
        say(&format!("  warning: COMPLETION_WEBHOOK_URL could not be called: {e}; the next run tries again\n"));
    }
    Ok(exit)
}

/// How a run that has nothing to do ends: as the one that did the work, if records were rejected then.
fn before(version: &str, known: &VersionState) -> Exit {
    match known.rejected() {
        0 => Exit::Complete,
        rejected => {
            let count = crate::summary::counted(rejected);
            say(&format!("  warning: {count} rejected then; rejects-{version}-*.jsonl says why\n"));
            Exit::Rejects
        }
    }
}

fn shared(args: &RunArgs, config: &Config, progress: Arc<Progress>) -> Result<Shared, String> {
    let rules = args.rules.clone().or_else(|| config.rules.clone().map(PathBuf::from));
    let rules = rules.map(|path| Rules::read(&path)).transpose()?.map(Arc::new);
    let directory = args.state.clone().unwrap_or_else(|| {
        let first = &args.paths[0];
        let folder = if first.is_dir() { Some(first.as_path()) } else { first.parent() };
        folder.unwrap_or(first).join(".extractor")
    });
    let workers = args.expect_queues.split(',').map(str::trim).filter(|w| !w.is_empty() && *w != "none");
    Ok(Shared {
        broker: config.broker.clone(),
        workers: workers.map(str::to_owned).collect(),
        compression: args.compress,
        rules,
        format: args.format,
        verify: !args.no_verify,
        max_rejects: args.max_rejects,
        state: State::open(&directory)?,
        directory,
        progress,
        stop: CancellationToken::new(),
    })
}

/// To the standard output, unless nobody reads it.
pub fn say(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// A line to the standard error, unless nobody reads it.
pub fn tell(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Makes sure that the broker is there and that nobody would miss a message.
async fn prepare(shared: &Shared, management: Option<&Management>, wait: Duration) -> Result<(), String> {
    let deadline = Instant::now() + wait;
    let broker = publish::broker(&shared.broker);
    let targets = DataType::ALL.map(|data_type| Target::new(&shared.broker.prefix, data_type, &shared.workers));
    loop {
        let mut problems: Vec<String> = match management {
            Some(management) => management.problems(&targets).await,
            None => Vec::new(),
        };
        let bound = problems.is_empty();
        // Preparing binds the queues: not those that are refused.
        for target in targets.iter().filter(|_| bound) {
            if let Err(e) = target.prepare(&broker).await {
                let problem = e.to_string();
                if !problems.contains(&problem) {
                    problems.push(problem);
                }
            }
        }
        if problems.is_empty() {
            broker.close().await;
            return Ok(());
        }
        if Instant::now() > deadline || shared.stop.is_cancelled() {
            let at = format!("{}:{}", shared.broker.host, shared.broker.port);
            return Err(format!("not all is ready on the broker at {at}:\n  - {}", problems.join("\n  - ")));
        }
        sleep(Duration::from_millis(500)).await;
    }
}

fn stop_on_signal(stop: CancellationToken) -> std::io::Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        stop.cancel();
    });
    Ok(())
}
