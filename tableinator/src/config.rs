//! The environment variables of this worker.

use common::config::DefaultValue::{Derived, Required, Value};
use common::config::{BatchVariables, Config, ConfigError, Env, Secret, Slots, Variable, secret, tunable, variable};

/// What only this worker reads.
pub const VARIABLES: &[Variable] = &[
    variable("POSTGRES_HOST", Required, "host, host:port, [v6] or [v6]:port; a port given here wins"),
    variable("POSTGRES_PORT", Value("5432"), "port"),
    secret("POSTGRES_USERNAME", Required, "user"),
    secret("POSTGRES_PASSWORD", Required, "password"),
    variable("POSTGRES_DATABASE", Required, "database"),
    variable("POSTGRES_TLS_ENABLED", Value("false"), "TLS, with the server's certificate and name verified"),
    variable("POSTGRES_TLS_CA_FILE", Derived("the system's CAs"), "PEM file of a CA to trust beside the system's"),
    variable("POSTGRES_POOL_MIN_SIZE", Value("2"), "accepted without effect: connections are made when needed"),
    variable("POSTGRES_POOL_MAX_SIZE", Value("12"), "most connections; all but two of them may write at the same time"),
    variable(
        "POSTGRES_BATCH_MODE",
        Value("true"),
        "false writes every record in a transaction of its own; adaptive follows what the database bears, with size and writers as ceilings",
    ),
    tunable("POSTGRES_BATCH_SIZE", Value("500"), "records per batch"),
    tunable("POSTGRES_BATCH_FLUSH_INTERVAL", Value("2.0"), "seconds from a batch's first record to its flush"),
    variable(
        "POSTGRES_UNCHANGED",
        Value("note"),
        "how a record is marked that a run brings as it is: note (in ingest_seen), touch (updated_at of its row moves)",
    ),
    tunable("POSTGRES_WRITERS", Value("2"), "batches of one type that are written at the same time"),
    variable(
        "PURGE_MAX_DELETE_FRACTION",
        Value("0.90"),
        "a purge that would delete this share of a table, or more, is vetoed",
    ),
];

/// Names of the batch variables.
pub const BATCH: BatchVariables = BatchVariables {
    mode: "POSTGRES_BATCH_MODE",
    size: "POSTGRES_BATCH_SIZE",
    interval: "POSTGRES_BATCH_FLUSH_INTERVAL",
    writers: "POSTGRES_WRITERS",
};

/// Connections that are kept from the writers: for purge, control messages and signs of life.
const SPARE_CONNECTIONS: usize = 2;

/// Port of the HTTP server (contract §6.7).
pub const HEALTH_PORT: u16 = 8002;

/// Everything that `--help` lists.
pub const TABLES: [&[Variable]; 3] = [common::config::BROKER, common::config::COMMON, VARIABLES];

/// How a record is marked as seen that the table has already, as it is. Both keep a purge from deleting its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unchanged {
    /// Its id is noted in `ingest_seen`; the row stays as it is, `updated_at` too.
    Note,
    /// `updated_at` of its row moves, which writes the row and an entry in each of its indexes anew.
    Touch,
}

/// How to reach and use the database.
#[derive(Clone, Debug)]
pub struct PostgresConfig {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// User.
    pub username: String,
    /// Password.
    pub password: Secret,
    /// Database.
    pub database: String,
    /// Whether to use TLS.
    pub tls: bool,
    /// CA certificates (PEM text) to trust beside the system's.
    pub ca_pem: Option<String>,
    /// Most connections.
    pub pool_size: usize,
    /// How unchanged records are marked as seen.
    pub unchanged: Unchanged,
    /// Share of a table from which a purge is vetoed.
    pub purge_max_delete_fraction: f64,
}

/// Reads the whole configuration.
///
/// # Errors
/// [`ConfigError`] with every problem.
pub fn read(mut env: Env) -> Result<((Config, PostgresConfig), Vec<String>), ConfigError> {
    let mut common = common::config::common(&mut env, &BATCH, HEALTH_PORT);
    let given = env.host("POSTGRES_HOST");
    let (host, port) = match split_host(&given) {
        Some((host, Some(port))) => (host, port),
        Some((host, None)) => (host, env.number("POSTGRES_PORT", 1..=u16::MAX)),
        None => {
            env.problem(format!("POSTGRES_HOST is {given:?}: give host, host:port, [v6] or [v6]:port"));
            (String::new(), 0)
        }
    };
    let postgres = PostgresConfig {
        host,
        port,
        username: env.text("POSTGRES_USERNAME"),
        password: env.text("POSTGRES_PASSWORD").into(),
        database: env.text("POSTGRES_DATABASE"),
        tls: env.flag("POSTGRES_TLS_ENABLED"),
        ca_pem: env.file("POSTGRES_TLS_CA_FILE"),
        pool_size: env.number("POSTGRES_POOL_MAX_SIZE", 1..=1000),
        unchanged: unchanged(&mut env),
        purge_max_delete_fraction: env.number("PURGE_MAX_DELETE_FRACTION", 0.0..=1.0),
    };
    let count = postgres.pool_size.saturating_sub(SPARE_CONNECTIONS).max(1);
    common.slots = Slots { count, bound: "connections" };
    env.finish((common, postgres))
}

fn unchanged(env: &mut Env) -> Unchanged {
    match env.text("POSTGRES_UNCHANGED").as_str() {
        "note" => Unchanged::Note,
        "touch" => Unchanged::Touch,
        other => {
            env.problem(format!("POSTGRES_UNCHANGED is {other:?}: give note or touch"));
            Unchanged::Note
        }
    }
}

/// Splits a port off a host. `None` if the port is no number. (A missing host was reported as missing already.)
fn split_host(given: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = if let Some(rest) = given.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) })
    } else {
        match given.split_once(':') {
            Some((_, rest)) if rest.contains(':') => (given, None), // a bare IPv6 address
            Some((host, port)) => (host, Some(port)),
            None => (given, None),
        }
    };
    match port {
        None => Some((host.to_owned(), None)),
        Some(port) => Some((host.to_owned(), Some(port.parse().ok()?))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_with_and_without_port() {
        let split = |s| split_host(s).map(|(h, p)| (h, p.unwrap_or_default()));
        assert_eq!(split("db"), Some(("db".to_owned(), 0)));
        assert_eq!(split("db:6000"), Some(("db".to_owned(), 6000)));
        assert_eq!(split("[::1]"), Some(("::1".to_owned(), 0)));
        assert_eq!(split("[::1]:6000"), Some(("::1".to_owned(), 6000)));
        assert_eq!(split("fe80::1"), Some(("fe80::1".to_owned(), 0)));
        assert_eq!(split("db:x"), None);
        assert_eq!(split("[::1]x"), None);
    }

    #[test]
    fn missing_variables_are_listed_together() {
        let error = read(Env::from_values(&TABLES, [])).expect_err("nothing is set").to_string();
        for name in ["POSTGRES_HOST", "POSTGRES_USERNAME", "POSTGRES_PASSWORD", "POSTGRES_DATABASE"] {
            assert!(error.contains(&format!("{name} is missing")), "{error}");
        }
    }

    #[test]
    fn a_host_with_credentials_is_refused_and_not_repeated() {
        for host in ["u:hidden@db", "postgres://u:hidden@db:5432/d"] {
            let env = Env::from_values(&TABLES, [("POSTGRES_HOST".to_owned(), host.to_owned())]);
            let problems = read(env).expect_err("credentials").to_string();
            assert!(problems.contains("POSTGRES_HOST holds credentials") && !problems.contains("hidden"), "{problems}");
        }
    }

    #[test]
    fn an_embedded_port_wins() {
        let values = [
            ("POSTGRES_HOST", "db:6000"),
            ("POSTGRES_PORT", "7000"),
            ("POSTGRES_USERNAME", "u"),
            ("POSTGRES_PASSWORD", "p"),
            ("POSTGRES_DATABASE", "d"),
        ];
        let env = Env::from_values(&TABLES, values.map(|(k, v)| (k.to_owned(), v.to_owned())));
        let ((common, postgres), _) = read(env).expect("valid");
        assert_eq!((postgres.host.as_str(), postgres.port), ("db", 6000));
        assert_eq!((common.health_port, common.tuning.limits.count), (8002, 500));
    }
}
