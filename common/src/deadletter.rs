//! `WORKER deadletter`: looks at this worker's dead letters, replays them, deletes them.
//!
//! All four actions go over a queue in the same way ([`walk`]), read what a message says about itself ([`letter`]) and ask
//! the same filter ([`args`]).

pub mod args;
pub mod counts;
pub mod letter;
pub mod list;
pub mod purge;
pub mod replay;
pub mod show;
pub mod text;
pub mod walk;

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{ArgMatches, Command, FromArgMatches, Subcommand};
use lapin::message::Delivery;

use crate::amqp::{Broker, BrokerError};
use crate::config::{BROKER, COMMON, Env, broker, help_text};
use crate::{DataType, Topology};
use args::Action;
use letter::Letter;
use walk::Walk;

/// The subcommand's name.
pub const NAME: &str = "deadletter";

const ABOUT: &str = "Look at this worker's dead letters, replay them, delete them";
const EXIT_CODES: &str = "Exit status: 0 done, 1 something was not replayed, or the answer was no, 2 wrong command line or \
configuration, no terminal to ask on, or trouble with the broker";

/// What ends the command early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The broker is away or refuses.
    #[error("RabbitMQ: {0}")]
    Broker(#[from] BrokerError),
    /// Of the output, or of the terminal.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// `purge` can't ask.
    #[error("purge asks before it deletes, and there is no terminal to ask on: add --yes to delete without asking")]
    NoTerminal,
}

/// The command line of the subcommand.
pub fn command() -> Command {
    let variables = format!(
        "Needs no settings of the database; of the worker's others, MAX_BODY_BYTES counts.\n{}\n{EXIT_CODES}",
        help_text(&[BROKER])
    );
    let command = Command::new(NAME).about(ABOUT).after_help(variables).subcommand_required(true);
    Action::augment_subcommands(command).arg_required_else_help(true)
}

/// Runs the subcommand.
pub fn main(service: &'static str, arguments: &ArgMatches) -> ExitCode {
    let failed = |text: String| {
        eprintln!("{service}: {text}");
        ExitCode::from(2)
    };
    let action = match Action::from_arg_matches(arguments) {
        Ok(action) => action,
        Err(e) => e.exit(),
    };
    let mut env = Env::from_process(&[BROKER, COMMON]);
    let (broker, max_body) = (broker(&mut env), env.number("MAX_BODY_BYTES", 1024..=1 << 30));
    let broker = match env.finish(broker) {
        Ok((broker, _)) => broker,
        Err(e) => return failed(e.to_string()),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return failed(format!("can't start the runtime: {e}")),
    };
    let address = format!("{}:{}", broker.host, broker.port);
    let queues = Queues { prefix: broker.prefix.clone(), broker: Broker::new(broker, service), service, max_body };
    let ended = runtime.block_on(async {
        let ended = run(&queues, &action, &mut io::stdout()).await;
        queues.broker.close().await;
        ended
    });
    let only_looks = matches!(action, Action::List(_) | Action::Show(_));
    // A thread that still waits for the terminal must not hold the process.
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // Whoever reads has seen enough, e.g. `head`.
        Err(Error::Io(e)) if only_looks && e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(Error::Broker(e)) => failed(format!("RabbitMQ at {address}: {e}")),
        Err(e) => failed(e.to_string()),
    }
}

async fn run(queues: &Queues, action: &Action, out: &mut impl Write) -> Result<bool, Error> {
    match action {
        Action::List(args) => list::run(queues, args, out).await.map(|()| true),
        Action::Show(args) => show::run(queues, args, out).await.map(|()| true),
        Action::Replay(args) => replay::run(queues, args, out).await,
        Action::Purge(args) => purge::run(queues, args, out).await,
    }
}

/// This worker's dead-letter queues.
pub struct Queues {
    broker: Arc<Broker>,
    prefix: String,
    service: &'static str,
    max_body: usize,
}

impl Queues {
    fn topology(&self, data_type: DataType) -> Topology {
        Topology::new(&self.prefix, self.service, data_type)
    }

    /// A walk over a type's dead letters. If there is no such queue, says so on standard error.
    async fn walk(&self, data_type: DataType) -> Result<Option<Walk>, BrokerError> {
        let queue = self.topology(data_type).dead_letter_queue;
        let walk = Walk::open(&self.broker, &queue).await?;
        if walk.is_none() {
            eprintln!("{}: there is no queue {queue}; the worker declares it when it starts", self.service);
        }
        Ok(walk)
    }

    fn read(&self, data_type: DataType, message: &Delivery) -> Letter {
        Letter::read(data_type, &message.properties, &message.data, self.max_body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_help_names_every_variable() {
        let mut command = command();
        command.clone().debug_assert();
        let help = command.render_help().to_string();
        for word in BROKER.iter().map(|v| v.name).chain(["list", "show", "replay", "purge", "Exit status"]) {
            assert!(help.contains(word), "{word}");
        }
    }
}
