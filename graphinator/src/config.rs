//! The environment variables of this worker.

use common::config::DefaultValue::{Derived, Required, Value};
use common::config::{BatchVariables, Config, ConfigError, Env, Secret, Slots, Variable, secret, tunable, variable};

/// What only this worker reads.
pub const VARIABLES: &[Variable] = &[
    variable("NEO4J_HOST", Required, "host, or a whole URI such as bolt+s://host:7687"),
    variable("NEO4J_PORT", Value("7687"), "port, for a bare host"),
    secret("NEO4J_USERNAME", Required, "user"),
    secret("NEO4J_PASSWORD", Required, "password"),
    variable("NEO4J_DATABASE", Value("neo4j"), "database"),
    variable("NEO4J_TLS_ENABLED", Value("false"), "encrypt the connection to a bare host"),
    variable("NEO4J_TLS_VERIFY", Value("true"), "verify the server's certificate and name"),
    variable("NEO4J_TLS_CA_FILE", Derived("the system's CAs"), "PEM file of the CA to trust instead of the system's"),
    variable(
        "NEO4J_BATCH_MODE",
        Value("true"),
        "false writes every record in a transaction of its own; adaptive follows what the database bears, with size and writers as ceilings",
    ),
    tunable("NEO4J_BATCH_SIZE", Value("500"), "records per batch"),
    tunable("NEO4J_BATCH_FLUSH_INTERVAL", Value("2.0"), "seconds from a batch's first record to its flush"),
    tunable("NEO4J_WRITERS", Value("2"), "batches of one type that are prepared and written at the same time"),
    variable(
        "NEO4J_TRANSACTIONS",
        Value("2"),
        "write transactions of all types together; more than two mostly meet in deadlocks",
    ),
    variable(
        "PURGE_MAX_DELETE_FRACTION",
        Value("0.90"),
        "veto: when a complete run would remove this share of a type's records or more, nothing is removed",
    ),
];

/// Names of the batch variables.
pub const BATCH: BatchVariables = BatchVariables {
    mode: "NEO4J_BATCH_MODE",
    size: "NEO4J_BATCH_SIZE",
    interval: "NEO4J_BATCH_FLUSH_INTERVAL",
    writers: "NEO4J_WRITERS",
};

/// Port of the HTTP server (contract §6.7).
pub const HEALTH_PORT: u16 = 8001;

/// Everything that `--help` lists.
pub const TABLES: [&[Variable]; 3] = [common::config::BROKER, common::config::COMMON, VARIABLES];

/// How to reach and use the database.
#[derive(Clone, Debug)]
pub struct Neo4jConfig {
    /// Bolt URI.
    pub uri: String,
    /// User.
    pub username: String,
    /// Password.
    pub password: Secret,
    /// Database.
    pub database: String,
    /// Whether the server's certificate is verified.
    pub verify: bool,
    /// File of the CA to trust instead of the system's.
    pub ca_file: Option<String>,
    /// Write transactions at the same time.
    pub transactions: usize,
    /// Share of a type's records from which on a run that misses them removes none.
    pub max_delete_fraction: f64,
}

/// Schemes that the client speaks.
const SCHEMES: [&str; 6] = ["bolt", "bolt+s", "bolt+ssc", "neo4j", "neo4j+s", "neo4j+ssc"];

/// Reads the whole configuration.
///
/// # Errors
/// [`ConfigError`] with every problem.
pub fn read(mut env: Env) -> Result<((Config, Neo4jConfig), Vec<String>), ConfigError> {
    let mut common = common::config::common(&mut env, &BATCH, HEALTH_PORT);
    let ca_file = env.optional("NEO4J_TLS_CA_FILE");
    // The client reads it itself; here it is only proved usable.
    if env.file("NEO4J_TLS_CA_FILE").is_some_and(|pem| !pem.contains("BEGIN CERTIFICATE")) {
        env.problem("NEO4J_TLS_CA_FILE holds no certificate: give a PEM file");
    }
    let verify = env.flag("NEO4J_TLS_VERIFY");
    let neo4j = Neo4jConfig {
        uri: uri(&mut env, verify),
        username: env.text("NEO4J_USERNAME"),
        password: env.text("NEO4J_PASSWORD").into(),
        database: env.text("NEO4J_DATABASE"),
        verify,
        ca_file,
        transactions: env.number("NEO4J_TRANSACTIONS", 1..=64),
        max_delete_fraction: env.number("PURGE_MAX_DELETE_FRACTION", 0.0..=1.0),
    };
    common.slots = Slots { count: neo4j.transactions, bound: "transactions" };
    env.finish((common, neo4j))
}

fn uri(env: &mut Env, verify: bool) -> String {
    let host = env.host("NEO4J_HOST");
    let port: u16 = env.number("NEO4J_PORT", 1..=u16::MAX);
    let encrypt = env.flag("NEO4J_TLS_ENABLED");
    if let Some((scheme, _)) = host.split_once("://") {
        if !SCHEMES.contains(&scheme) {
            env.problem(format!("NEO4J_HOST has the scheme {scheme:?}: give one of {}", SCHEMES.join(", ")));
        }
        if encrypt && !scheme.contains("+s") {
            env.problem(format!("NEO4J_TLS_ENABLED is true, but NEO4J_HOST says {scheme}://: write {scheme}+s://"));
        }
        return host;
    }
    let scheme = match (encrypt, verify) {
        (false, _) => "bolt",
        (true, true) => "bolt+s",
        (true, false) => "bolt+ssc",
    };
    if host.contains(':') && !host.starts_with('[') {
        return format!("{scheme}://[{host}]:{port}"); // a bare IPv6 address
    }
    format!("{scheme}://{host}:{port}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri_of(values: &[(&str, &str)]) -> Result<String, String> {
        let credentials = [("NEO4J_USERNAME", "u"), ("NEO4J_PASSWORD", "p")];
        let all = values.iter().chain(&credentials).map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        read(Env::from_values(&TABLES, all)).map(|((_, neo4j), _)| neo4j.uri).map_err(|e| e.to_string())
    }

    #[test]
    fn bare_hosts_become_uris() {
        assert_eq!(uri_of(&[("NEO4J_HOST", "neo4j")]).as_deref(), Ok("bolt://neo4j:7687"));
        assert_eq!(
            uri_of(&[("NEO4J_HOST", "h"), ("NEO4J_PORT", "1"), ("NEO4J_TLS_ENABLED", "Yes")]).as_deref(),
            Ok("bolt+s://h:1")
        );
        assert_eq!(uri_of(&[("NEO4J_HOST", "::1")]).as_deref(), Ok("bolt://[::1]:7687"));
        let unverified = [("NEO4J_HOST", "h"), ("NEO4J_TLS_ENABLED", "1"), ("NEO4J_TLS_VERIFY", "no")];
        assert_eq!(uri_of(&unverified).as_deref(), Ok("bolt+ssc://h:7687"));
    }

    #[test]
    fn uris_are_taken_as_they_are() {
        assert_eq!(uri_of(&[("NEO4J_HOST", "neo4j+s://a:9")]).as_deref(), Ok("neo4j+s://a:9"));
        for host in ["bolt://u:hidden@a", "u:hidden@a"] {
            let refused = |e: String| e.contains("NEO4J_HOST holds credentials") && !e.contains("hidden");
            assert!(uri_of(&[("NEO4J_HOST", host)]).is_err_and(refused), "{host}");
        }
        let contradiction = [("NEO4J_HOST", "bolt://a"), ("NEO4J_TLS_ENABLED", "true")];
        assert!(uri_of(&contradiction).is_err_and(|e| e.contains("bolt+s://")));
        assert!(uri_of(&[("NEO4J_HOST", "http://a")]).is_err_and(|e| e.contains("bolt+s")));
    }

    #[test]
    fn missing_variables_are_listed_together() {
        let error = read(Env::from_values(&TABLES, [])).expect_err("nothing is set").to_string();
        for name in ["NEO4J_HOST", "NEO4J_USERNAME", "NEO4J_PASSWORD"] {
            assert!(error.contains(&format!("{name} is missing")), "{error}");
        }
    }
}
