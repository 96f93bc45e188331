//! The proof that the stack of `docker-compose.yml` works, where there is a Docker engine.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use clap::Args;

use crate::Error;
use crate::services::cargo;

/// The stand-ins have no release of Grafana, only this.
const STANDIN_GRAFANA: &str = "12";

/// How to run it.
#[derive(Args, Debug)]
pub struct Options {
    /// Run DIR/build first: it makes local images under the official names, where none can be pulled
    #[arg(long, value_name = "DIR")]
    standins: Option<PathBuf>,
}

/// Runs it.
///
/// # Errors
/// If there is no engine, or something does not work as it should.
pub fn run(options: &Options) -> Result<(), Error> {
    if let Some(directory) = &options.standins
        && !Command::new(directory.join("build")).status()?.success()
    {
        return Err("the stand-ins for the images could not be built".into());
    }
    for (arguments, what) in
        [(&["info"][..], "no Docker engine answers"), (&["compose", "version"], "Docker has no Compose")]
    {
        if !succeeds(arguments) {
            return Err(format!("{what} (docker {})", arguments.join(" ")).into());
        }
    }
    let test = ["test", "-p", "integration-tests", "--test", "compose", "--", "--nocapture"];
    let mut test = cargo(&test);
    if options.standins.is_some() && std::env::var_os("GRAFANA_TAG").is_none() {
        test.env("GRAFANA_TAG", STANDIN_GRAFANA);
    }
    let status = test.status()?;
    status.success().then_some(()).ok_or_else(|| "the stack does not work as it should".into())
}

fn succeeds(arguments: &[&str]) -> bool {
    let mut docker = Command::new("docker");
    docker.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
    docker.status().is_ok_and(|status| status.success())
}
