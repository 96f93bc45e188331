//! The private RabbitMQ, PostgreSQL and Neo4j, by way of `scripts/services`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use neo4rs::{ConfigBuilder, Graph};

use crate::Error;

/// The project's root.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// A cargo command on this workspace. What an outer cargo says of the package that it runs is taken out of the
/// environment: ring's build script watches those variables, and everything above it would be compiled again.
pub fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let of_package =
            |n: &str| ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"].iter().any(|p| n.starts_with(p));
        if name.to_str().is_some_and(of_package) {
            command.env_remove(name);
        }
    }
    command.args(args).current_dir(root());
    command
}

/// Builds workers and extractor, with the features that the whole workspace has, so that nothing is compiled twice.
///
/// # Errors
/// If they don't compile.
pub fn build_binaries() -> Result<(), Error> {
    let status = cargo(&["build", "--quiet", "--workspace", "--bins"]).status()?;
    status.success().then_some(()).ok_or_else(|| "workers and extractor don't build".into())
}

/// Runs `scripts/services` with these arguments and returns what it printed.
///
/// # Errors
/// What it said, if it failed.
pub fn script(args: &[&str]) -> Result<String, Error> {
    let out = Command::new(root().join("scripts/services")).args(args).output()?;
    if out.status.success() {
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    } else {
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        Err(format!("scripts/services {}: {said}", args.join(" ")).into())
    }
}

/// Addresses and credentials, as the workers' environment variables.
#[derive(Clone, Debug)]
pub struct Services(pub BTreeMap<String, String>);

impl Services {
    /// Starts what does not run yet (installing what is missing) and tells where everything is.
    ///
    /// # Errors
    /// What the script said.
    pub fn up() -> Result<Services, Error> {
        script(&["up"])?;
        let env = script(&["env"])?;
        let pairs = env.lines().filter_map(|line| line.split_once('='));
        Ok(Services(pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect()))
    }

    /// One of the variables; empty if there is none.
    pub fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// A connection to the broker.
    ///
    /// # Errors
    /// The client's.
    pub async fn broker(&self) -> Result<lapin::Connection, Error> {
        let uri = format!(
            "amqp://{}:{}@{}:{}/%2f",
            self.get("RABBITMQ_USERNAME"),
            self.get("RABBITMQ_PASSWORD"),
            self.get("RABBITMQ_HOST"),
            self.get("RABBITMQ_PORT")
        );
        Ok(lapin::Connection::connect(&uri, lapin::ConnectionProperties::default()).await?)
    }

    /// A connection to a database of PostgreSQL.
    ///
    /// # Errors
    /// The client's.
    pub async fn postgres(&self, database: &str) -> Result<tokio_postgres::Client, Error> {
        let settings = format!(
            "host={} port={} user={} password={} dbname={database}",
            self.get("POSTGRES_HOST"),
            self.get("POSTGRES_PORT"),
            self.get("POSTGRES_USERNAME"),
            self.get("POSTGRES_PASSWORD")
        );
        let (client, connection) = tokio_postgres::connect(&settings, tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// A connection pool to Neo4j.
    ///
    /// # Errors
    /// The client's.
    pub fn neo4j(&self) -> Result<Graph, Error> {
        let config = ConfigBuilder::new()
            .uri(format!("bolt://{}:{}", self.get("NEO4J_HOST"), self.get("NEO4J_PORT")))
            .user(self.get("NEO4J_USERNAME"))
            .password(self.get("NEO4J_PASSWORD"))
            .db("neo4j")
            .connection_timeout(std::time::Duration::from_secs(300))
            .build()?;
        Ok(Graph::connect(config)?)
    }
}
