//! Configuration from the environment: every variable is described once, in a table that `--help`, the documentation
//! and the parser share, and all problems are reported together.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use tracing::level_filters::LevelFilter;

use crate::adaptive::Bounds;
use crate::batch::Limits;
use crate::data_type::DataType;
use crate::shares::Weights;
use crate::trace::{self, config::TraceConfig};
use crate::tuning::{self, Assignment, Tuning};

/// Description of one environment variable.
#[derive(Clone, Copy, Debug)]
pub struct Variable {
    /// Its name. With `secret`, `NAME_FILE` may name a file that holds the value and wins.
    pub name: &'static str,
    /// What holds when it is unset or empty.
    pub default: DefaultValue,
    /// Whether `NAME_FILE` is accepted and the value never shown.
    pub secret: bool,
    /// Whether a running worker takes up another value from its `TUNING_FILE`.
    pub tunable: bool,
    /// What it means, with its unit.
    pub help: &'static str,
}

impl Variable {
    /// How lists show what is special about it.
    pub const fn mark(&self) -> &'static str {
        match (self.secret, self.tunable) {
            (true, _) => "*",
            (_, true) => "~",
            _ => "",
        }
    }
}

/// What holds when a variable is unset or empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultValue {
    /// It must be set.
    Required,
    /// This value.
    Value(&'static str),
    /// Nothing, or something that follows from other settings: the text says what.
    Derived(&'static str),
}

use DefaultValue::{Derived, Value};

/// A variable with a default.
pub const fn variable(name: &'static str, default: DefaultValue, help: &'static str) -> Variable {
    Variable { name, default, secret: false, tunable: false, help }
}

/// A variable that can also be changed in a running worker.
pub const fn tunable(name: &'static str, default: DefaultValue, help: &'static str) -> Variable {
    Variable { name, default, secret: false, tunable: true, help }
}

/// A variable that may come from a file and is never shown.
pub const fn secret(name: &'static str, default: DefaultValue, help: &'static str) -> Variable {
    Variable { name, default, secret: true, tunable: false, help }
}

/// How to reach the broker: what the workers and the extractor read.
pub const BROKER: &[Variable] = &[
    variable("RABBITMQ_HOST", Value("rabbitmq"), "broker host"),
    variable("RABBITMQ_PORT", Value("5672"), "broker port (brokers usually listen for TLS on 5671)"),
    secret("RABBITMQ_USERNAME", Value("discogsography"), "broker user"),
    secret("RABBITMQ_PASSWORD", Value("discogsography"), "broker password"),
    variable("RABBITMQ_VHOST", Value("/"), "virtual host"),
    variable("RABBITMQ_TLS_ENABLED", Value("false"), "amqps instead of amqp; the certificate is always verified"),
    variable("RABBITMQ_TLS_CA_FILE", Derived("the system's CAs"), "PEM file of a CA to trust beside the system's"),
    variable("RABBITMQ_HEARTBEAT", Value("10"), "seconds between heartbeats; a dead connection is noticed after two"),
    variable("DISCOGS_EXCHANGE_PREFIX", Value("discogsography-discogs"), "prefix of exchanges and queues"),
];

/// The variables that both workers read, beside [`BROKER`] and their batch variables (see [`BatchVariables`]).
pub const COMMON: &[Variable] = &[
    tunable(
        PREFETCH,
        Derived("batch size x (writers + 1)"),
        "unacknowledged messages per queue; raised when smaller than the default, since a batch could then never fill",
    ),
    variable(
        "CONSUMER_PRIORITY",
        Value("0"),
        "priority of the consumers at the broker (x-priority): it delivers to those of a higher one first",
    ),
    variable(
        "TYPE_WEIGHTS",
        Derived("all alike"),
        "shares in writing, e.g. labels=8,masters=4,artists=2; who is not named has 1. Then writers - 1 batches are written at the same time",
    ),
    variable(
        "RABBITMQ_CONSUMER_TIMEOUT",
        Value("1800"),
        "the broker's consumer_timeout in seconds; messages are handed back after half of it",
    ),
    tunable(
        RATE_LIMIT,
        Value("0"),
        "records per second that a worker takes, all types together, to spare a database that others use; 0: as many as it can",
    ),
    variable("BATCH_MAX_BYTES", Value("8388608"), "bytes of message bodies in a batch; a larger message goes alone"),
    variable(
        "MAX_BODY_BYTES",
        Value("67108864"),
        "bytes that a message body may have, a packed one when it is unpacked; a larger one is dead-lettered",
    ),
    variable("WRITE_TIMEOUT", Value("60"), "seconds that one attempt to write a batch may take"),
    variable("SHUTDOWN_TIMEOUT", Value("25"), "seconds for the drain after SIGTERM or SIGINT"),
    variable(
        "SCHEMA",
        Value("ensure"),
        "database schema at start: ensure (create what is missing), check (only look), off",
    ),
    variable(
        "HEALTH_PORT",
        Derived("8001 graphinator, 8002 tableinator"),
        "port of the page (/), /status, /health, /ready and /metrics",
    ),
    tunable(LOG_LEVEL, Value("INFO"), "DEBUG, INFO, WARNING, ERROR or CRITICAL"),
    variable("LOG_DIR", Derived("/logs if it exists"), "directory for a second copy of the log, WORKER.log"),
    variable("ENVIRONMENT", Value("development"), "value of the log field `environment`"),
    variable(
        TUNING_FILE,
        Derived("none"),
        "file of lines NAME=VALUE, read at start and at SIGHUP: there the variables marked ~ win over the environment",
    ),
    variable(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        Derived("no traces"),
        "base URL of an OpenTelemetry receiver (OTLP over HTTP, protobuf), such as http://collector:4318; traces go to its /v1/traces",
    ),
    secret(
        "OTEL_EXPORTER_OTLP_HEADERS",
        Derived("none"),
        "headers for the receiver: NAME=VALUE,NAME=VALUE, values percent-encoded",
    ),
    variable("OTEL_SERVICE_NAME", Derived("the worker's name"), "service name in traces"),
    variable("OTEL_TRACES_SAMPLER_ARG", Value("1.0"), "share of the batches that are traced, 0 to 1"),
];

/// Unacknowledged messages per queue.
pub const PREFETCH: &str = "RABBITMQ_PREFETCH";
/// Records per second.
pub const RATE_LIMIT: &str = "RATE_LIMIT";
/// The most verbose level that is logged.
pub const LOG_LEVEL: &str = "LOG_LEVEL";
/// Names the file of what a running worker takes up.
pub const TUNING_FILE: &str = "TUNING_FILE";

/// Variables of the predecessors that are accepted without effect: consumers stay subscribed, nothing waits for a delay.
pub const WITHOUT_EFFECT: [&str; 7] = [
    "CONSUMER_CANCEL_DELAY",
    "QUEUE_CHECK_INTERVAL",
    "STUCK_CHECK_INTERVAL",
    "STARTUP_IDLE_TIMEOUT",
    "IDLE_LOG_INTERVAL",
    "STARTUP_DELAY",
    "DB_PROFILING",
];

/// Names of a worker's own batch variables: the contract prefixes them with the database's name.
#[derive(Clone, Copy, Debug)]
pub struct BatchVariables {
    /// `true`, `false` or `adaptive`; false writes each record in a transaction of its own.
    pub mode: &'static str,
    /// Records in a batch.
    pub size: &'static str,
    /// Seconds from the first record to the flush.
    pub interval: &'static str,
    /// Batches of one type that are written at the same time.
    pub writers: &'static str,
}

/// What both workers need to run.
#[derive(Clone, Debug)]
pub struct Config {
    /// Broker connection.
    pub broker: BrokerConfig,
    /// What can be changed while it runs, as it was at the start.
    pub tuning: Tuning,
    /// Batches of all types that the database may be given at the same time.
    pub slots: Slots,
    /// Shares of these, if the types are not alike.
    pub weights: Option<Weights>,
    /// The consumers' priority at the broker.
    pub priority: i16,
    /// Bytes that a body may have, a packed one when it is unpacked.
    pub max_body: usize,
    /// Longest time that one attempt to write may take.
    pub write_timeout: Duration,
    /// Longest time that a message is held back while the database is away.
    pub hold_limit: Duration,
    /// Longest drain after a signal.
    pub shutdown_timeout: Duration,
    /// What to do about the database's schema.
    pub schema: SchemaMode,
    /// Port of the HTTP server.
    pub health_port: u16,
    /// Logging.
    pub log: LogConfig,
    /// Where traces go, if anywhere.
    pub trace: Option<TraceConfig>,
}

/// How many batches may be written at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    /// So many.
    pub count: usize,
    /// What sets that, as a metric's label: `connections`, `transactions`, `weights` or `writers`.
    pub bound: &'static str,
}

impl Config {
    /// Batches of all types that may be written at the same time. With weights there is one less than a type alone may have: whoever
    /// comes first must have a batch that waits when a slot becomes free, or the slot goes to another.
    pub fn slots(&self) -> Slots {
        let fewer = self.tuning.writers.saturating_sub(1).max(1);
        if self.weights.is_some() && fewer < self.slots.count {
            Slots { count: fewer, bound: "weights" }
        } else {
            self.slots
        }
    }

    /// The settings with what became of those that follow from others.
    pub fn in_force(&self, tuning: &Tuning, mut settings: Vec<Setting>) -> Vec<Setting> {
        for setting in &mut settings {
            match setting.name {
                PREFETCH => setting.value = tuning.prefetch.to_string(),
                "WRITE_TIMEOUT" => shorten(setting, self.write_timeout),
                name if name.ends_with("_BATCH_FLUSH_INTERVAL") => shorten(setting, tuning.limits.interval),
                "HEALTH_PORT" => setting.value = self.health_port.to_string(),
                _ => {}
            }
        }
        settings
    }
}

/// Shows what is in force of a time that was shortened.
fn shorten(setting: &mut Setting, to: Duration) {
    if setting.value.trim().parse().is_ok_and(|seconds: f64| seconds > to.as_secs_f64()) {
        setting.value = to.as_secs_f64().to_string();
    }
}

/// How to reach the broker.
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// User.
    pub username: String,
    /// Password.
    pub password: Secret,
    /// Virtual host.
    pub vhost: String,
    /// Whether to use TLS.
    pub tls: bool,
    /// CA certificates (PEM text) to trust beside the system's.
    pub ca_pem: Option<String>,
    /// Heartbeat interval in seconds.
    pub heartbeat: u16,
    /// Prefix of exchanges and queues.
    pub prefix: String,
}

/// Logging settings.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// Directory of the second copy.
    pub dir: Option<String>,
    /// Value of the field `environment`.
    pub environment: String,
}

/// What a worker does about its database's schema when it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchemaMode {
    /// Create what is missing; never drop anything.
    Ensure,
    /// Report what is missing and wait for it.
    Check,
    /// Don't look.
    Off,
}

/// A value that must not appear in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The value itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(value: String) -> Self {
        Secret(value)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A variable and what holds, for people.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Setting {
    /// The variable's name.
    pub name: &'static str,
    /// Its value; that of a secret is `***`.
    pub value: String,
    /// Where it comes from: `set`, `tuned` (by `TUNING_FILE`), `file`, `default`, or `missing`.
    pub origin: &'static str,
}

/// All that is wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(Vec<String>);

impl ConfigError {
    /// What is wrong and what to do about it, one after the other.
    pub fn problems(&self) -> &[String] {
        &self.0
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} problem(s) in the configuration:", self.0.len())?;
        self.0.iter().try_for_each(|p| write!(f, "\n  - {p}"))
    }
}

impl std::error::Error for ConfigError {}

/// Reads described variables and collects every problem.
#[derive(Clone)]
pub struct Env {
    values: HashMap<String, String>,
    /// Where in the tuning file a value comes from: `FILE:LINE: `.
    tuned: HashMap<String, String>,
    tables: Vec<&'static [Variable]>,
    problems: Vec<String>,
    notes: Vec<String>,
}

impl Env {
    /// Reads from the process's environment. `tables` describe all variables that will be asked for.
    pub fn from_process(tables: &[&'static [Variable]]) -> Self {
        // A variable that is not UTF-8 counts as unset; that it is there is said without its value.
        let (mut values, mut odd) = (Vec::new(), Vec::new());
        for (name, value) in std::env::vars_os() {
            match (name.into_string(), value.into_string()) {
                (Ok(name), Ok(value)) => values.push((name, value)),
                (Ok(name), Err(_)) => odd.push(name),
                (Err(_), _) => {}
            }
        }
        let mut env = Env::from_values(tables, values);
        let described = |name: &String| tables.iter().copied().flatten().any(|v| v.name == *name);
        for name in odd.iter().filter(|name| described(name)) {
            env.problem(format!("{name} is not UTF-8"));
        }
        env
    }

    /// Reads from the given values.
    pub fn from_values(tables: &[&'static [Variable]], values: impl IntoIterator<Item = (String, String)>) -> Self {
        let values: HashMap<_, _> = values
            .into_iter()
            .filter(|(_, value)| !value.trim().is_empty()) // set but empty is unset (contract §7)
            .collect();
        let mut notes = Vec::new();
        let ignored: Vec<_> = WITHOUT_EFFECT.iter().filter(|n| values.contains_key(**n)).copied().collect();
        if !ignored.is_empty() {
            notes.push(format!("no effect here, may be removed: {}", ignored.join(", ")));
        }
        Env { values, tuned: HashMap::new(), tables: tables.to_vec(), problems: Vec::new(), notes }
    }

    fn described(&self) -> impl Iterator<Item = &'static Variable> + use<'_> {
        self.tables.iter().copied().flatten()
    }

    /// Lets what is said in the file that `TUNING_FILE` names win, if that is set. Whatever is wrong with the file is a problem.
    pub fn tune(&mut self) {
        let Some(path) = self.optional(TUNING_FILE) else { return };
        let assignments = match tuning::read(&path) {
            Ok(assignments) => assignments,
            Err(problems) => return self.problems.extend(problems),
        };
        let tunable: Vec<_> = self.described().filter(|v| v.tunable).map(|v| v.name).collect();
        let mut seen = HashSet::new();
        for Assignment { name, value, place } in assignments {
            if !tunable.contains(&name.as_str()) {
                let known =
                    self.described().any(|v| v.name == name || (v.secret && name == format!("{}_FILE", v.name)));
                let remedy = if known {
                    "can't be changed in a running worker: set it in the environment and restart; here are"
                } else {
                    "is unknown: here are"
                };
                self.problem(format!("{place}{name} {remedy} {}", tunable.join(", ")));
                continue;
            }
            if !seen.insert(name.clone()) {
                self.problem(format!("{place}{name} is there twice: remove one of the lines"));
            }
            if !value.is_empty() {
                self.tuned.insert(name.clone(), place);
                self.values.insert(name, value);
            }
        }
    }

    /// What goes before a problem with a value: its place, if it is from the tuning file.
    fn place(&self, name: &str) -> &str {
        self.tuned.get(name).map_or("", String::as_str)
    }

    /// The value, or its default; `None` if there is neither. A required variable that is missing is a problem.
    pub fn optional(&mut self, name: &str) -> Option<String> {
        let described = self.described().find(|v| v.name == name);
        debug_assert!(described.is_some(), "{name} is in no table");
        let described = described?;
        let file = format!("{name}_FILE");
        if let Some(path) = self.values.get(&file).filter(|_| described.secret) {
            match std::fs::read_to_string(path) {
                Ok(text) if text.trim().is_empty() => self.problem(format!("{file}: {path} is empty")),
                Ok(text) => return Some(text.trim().to_owned()),
                Err(e) => {
                    let problem = format!("{file}: can't read {path}: {e}");
                    self.problem(problem);
                }
            }
            return Some(String::new());
        }
        match (self.values.get(name), described.default) {
            (Some(value), _) => Some(value.clone()),
            (None, Value(default)) => Some(default.to_owned()),
            (None, Derived(_)) => None,
            (None, DefaultValue::Required) => {
                let or_file = if described.secret { format!(" or {file}") } else { String::new() };
                self.problem(format!("{name} is missing ({}): set {name}{or_file}", described.help));
                None
            }
        }
    }

    /// Every described variable with its value or default, without secrets.
    pub fn settings(&self) -> Vec<Setting> {
        let setting = |v: &Variable| {
            let from_file = v.secret && self.values.contains_key(&format!("{}_FILE", v.name));
            let (value, origin) = match (self.values.get(v.name), v.default) {
                _ if from_file => ("", "file"),
                (Some(value), _) if self.tuned.contains_key(v.name) => (value.as_str(), "tuned"),
                (Some(value), _) => (value.as_str(), "set"),
                (None, Value(default) | Derived(default)) => (default, "default"),
                (None, DefaultValue::Required) => ("", "missing"),
            };
            Setting { name: v.name, value: if v.secret { "***" } else { value }.to_owned(), origin }
        };
        self.described().map(setting).collect()
    }

    /// The value or its default as text; empty if it is missing, which was noted as a problem.
    pub fn text(&mut self, name: &str) -> String {
        self.optional(name).unwrap_or_default()
    }

    /// A host. One with credentials is a problem, and not repeated: where a host is shown, in errors and logs, they would be
    /// too.
    pub fn host(&mut self, name: &str) -> String {
        let host = self.text(name);
        if !host.contains('@') {
            return host;
        }
        self.problem(format!("{name} holds credentials, which would end up in logs: give a host, and user and password in their own variables"));
        String::new()
    }

    /// A number within `range`; the range's start stands in for a wrong one, which is noted as a problem.
    pub fn number<T>(&mut self, name: &str, range: std::ops::RangeInclusive<T>) -> T
    where
        T: FromStr + PartialOrd + Copy + fmt::Display,
    {
        self.optional_number(name, range.clone()).unwrap_or(*range.start())
    }

    /// Like [`Env::number`], for a variable without a fixed default.
    pub fn optional_number<T>(&mut self, name: &str, range: std::ops::RangeInclusive<T>) -> Option<T>
    where
        T: FromStr + PartialOrd + Copy + fmt::Display,
    {
        let text = self.optional(name)?;
        match text.trim().parse() {
            Ok(number) if range.contains(&number) => Some(number),
            _ => {
                let (min, max) = (range.start(), range.end());
                self.problem(format!("{}{name} is {text:?}: give a number from {min} to {max}", self.place(name)));
                Some(*range.start())
            }
        }
    }

    /// A switch: `true`, `1`, `yes` or `false`, `0`, `no`, in any case.
    pub fn flag(&mut self, name: &str) -> bool {
        let text = self.text(name);
        match text.trim().to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" => true,
            "false" | "0" | "no" => false,
            _ => {
                self.problem(format!("{name} is {text:?}: give true or false"));
                false
            }
        }
    }

    /// The text of a file that the variable names.
    pub fn file(&mut self, name: &str) -> Option<String> {
        let path = self.optional(name)?;
        std::fs::read_to_string(&path).map_err(|e| self.problem(format!("{name}: can't read {path}: {e}"))).ok()
    }

    /// Notes something wrong. Say what, and what to do.
    pub fn problem(&mut self, problem: impl Into<String>) {
        self.problems.push(problem.into());
    }

    /// Notes something that the operator should know, to be logged once.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// The configuration with its notes, unless there was a problem.
    ///
    /// # Errors
    /// [`ConfigError`] with all problems.
    pub fn finish<T>(self, config: T) -> Result<(T, Vec<String>), ConfigError> {
        if self.problems.is_empty() { Ok((config, self.notes)) } else { Err(ConfigError(self.problems)) }
    }
}

/// Largest prefetch that AMQP can express.
const MAX_PREFETCH: usize = u16::MAX as usize;

/// Records that a batch holds at least in adaptive mode, and by how many it grows.
const ADAPTIVE_FLOOR: usize = 50;

/// Reads what both workers need. Problems stay in `env`.
pub fn common(env: &mut Env, batch: &BatchVariables, default_port: u16) -> Config {
    let hold_limit = seconds(env, "RABBITMQ_CONSUMER_TIMEOUT", 10.0..=86_400.0 * 7.0) / 2;
    let max_bytes = env.number("BATCH_MAX_BYTES", 1024..=1 << 30);
    let tuning = tuning(env, batch, max_bytes, hold_limit);
    Config {
        tuning,
        slots: Slots { count: tuning.writers * 4, bound: "writers" }, // no bound; a worker that has one sets it
        weights: weights(env, tuning.writers),
        priority: env.number("CONSUMER_PRIORITY", i16::MIN..=i16::MAX),
        max_body: env.number("MAX_BODY_BYTES", 1024..=1 << 30),
        // An attempt that begins right before the end of the hold must be over before the broker takes the messages back.
        write_timeout: seconds(env, "WRITE_TIMEOUT", 1.0..=3600.0).min(hold_limit / 2),
        hold_limit,
        shutdown_timeout: seconds(env, "SHUTDOWN_TIMEOUT", 1.0..=3600.0),
        schema: schema_mode(env),
        health_port: env.optional_number("HEALTH_PORT", 0..=u16::MAX).unwrap_or(default_port),
        log: log_config(env),
        trace: trace::config::read(env),
        broker: broker(env),
    }
}

/// Reads what can be changed in a running worker, and needs nothing else for it. Problems stay in `env`.
pub fn tuning(env: &mut Env, batch: &BatchVariables, max_bytes: usize, hold_limit: Duration) -> Tuning {
    let size = env.number(batch.size, 1..=20_000);
    let writers = env.number(batch.writers, 1..=16);
    let adaptive = env.text(batch.mode).eq_ignore_ascii_case("adaptive");
    let adaptive = adaptive.then_some(Bounds { floor: ADAPTIVE_FLOOR.min(size), ceiling: size, writers });
    let size = if adaptive.is_some() || env.flag(batch.mode) { size } else { 1 };
    let prefetch = prefetch(env, batch, size, writers);
    let (asked, most) = (seconds(env, batch.interval, 0.01..=600.0), hold_limit / 2);
    if asked > most {
        env.note(format!(
            "{} is {}, so that batches would be held for as long as RABBITMQ_CONSUMER_TIMEOUT lets them: they are closed after {}",
            batch.interval,
            asked.as_secs_f64(),
            most.as_secs_f64()
        ));
    }
    let interval = asked.min(most);
    Tuning {
        limits: Limits { count: size, bytes: max_bytes, interval },
        writers,
        adaptive,
        prefetch,
        rate_limit: rate_limit(env, prefetch, hold_limit),
        log_level: log_level(env),
    }
}

/// Longest prefix in bytes: AMQP names have at most 255, and ours add up to 52.
const MAX_PREFIX: usize = 200;

/// Reads [`BROKER`]. Problems stay in `env`.
pub fn broker(env: &mut Env) -> BrokerConfig {
    let prefix = env.text("DISCOGS_EXCHANGE_PREFIX");
    if prefix.len() > MAX_PREFIX {
        env.problem(format!("DISCOGS_EXCHANGE_PREFIX has {} bytes: give at most {MAX_PREFIX}", prefix.len()));
    }
    if prefix.starts_with("amq.") {
        env.problem(
            "DISCOGS_EXCHANGE_PREFIX begins with \"amq.\", which brokers reserve for themselves: give another one",
        );
    }
    BrokerConfig {
        host: env.host("RABBITMQ_HOST"),
        port: env.number("RABBITMQ_PORT", 1..=u16::MAX),
        username: env.text("RABBITMQ_USERNAME"),
        password: env.text("RABBITMQ_PASSWORD").into(),
        vhost: env.text("RABBITMQ_VHOST"),
        tls: env.flag("RABBITMQ_TLS_ENABLED"),
        ca_pem: env.file("RABBITMQ_TLS_CA_FILE"),
        heartbeat: env.number("RABBITMQ_HEARTBEAT", 1..=3600),
        prefix,
    }
}

/// A duration given in seconds, with fractions.
pub fn seconds(env: &mut Env, name: &str, range: std::ops::RangeInclusive<f64>) -> Duration {
    Duration::from_secs_f64(env.number(name, range))
}

fn prefetch(env: &mut Env, batch: &BatchVariables, size: usize, writers: usize) -> u16 {
    let needed = size * (writers + 1);
    if needed > MAX_PREFETCH {
        let place = [batch.size, batch.writers].map(|name| env.place(name)).concat();
        env.problem(format!(
            "{place}{} x ({} + 1) is {needed}, but a prefetch can't exceed {MAX_PREFETCH}: lower one of them",
            batch.size, batch.writers
        ));
    }
    let needed = needed.min(MAX_PREFETCH) as u16;
    match env.optional_number(PREFETCH, 1..=u16::MAX) {
        Some(asked) if asked < needed => {
            env.note(format!(
                "RABBITMQ_PREFETCH raised from {asked} to {needed}: it counts messages, and {} batches of {size} could \
                 never fill with fewer unacknowledged ones",
                writers + 1
            ));
            needed
        }
        Some(asked) => asked,
        None => needed,
    }
}

/// Largest weight: enough for "this one first".
const MAX_WEIGHT: u32 = 1000;

fn weights(env: &mut Env, writers: usize) -> Option<Weights> {
    let text = env.optional("TYPE_WEIGHTS")?;
    let mut weights = [1; 4];
    for part in text.split(',').map(str::trim) {
        let named = part.split_once('=').and_then(|(name, weight)| {
            let at = DataType::ALL.iter().position(|t| t.name() == name.trim())?;
            Some((at, weight.trim().parse().ok().filter(|weight| (1..=MAX_WEIGHT).contains(weight))?))
        });
        match named {
            Some((at, weight)) => weights[at] = weight,
            None => env.problem(format!(
                "TYPE_WEIGHTS has {part:?}: give TYPE=WEIGHT for artists, labels, masters or releases, weights from 1 to {MAX_WEIGHT}, \
                 with commas between"
            )),
        }
    }
    if writers == 1 {
        env.note("TYPE_WEIGHTS has hardly any effect with one writer: give two or more");
    }
    Some(weights)
}

/// What is fetched waits for its turn in the client's hands, and the broker would take it back after a while.
fn rate_limit(env: &mut Env, prefetch: u16, hold_limit: Duration) -> u32 {
    let limit = env.number(RATE_LIMIT, 0..=1_000_000);
    let fetched = DataType::ALL.len() as f64 * f64::from(prefetch);
    let least = (fetched / hold_limit.as_secs_f64()).ceil();
    if limit > 0 && f64::from(limit) < least {
        let place = env.place(RATE_LIMIT);
        env.problem(format!(
            "{place}{RATE_LIMIT} is {limit}: so slowly the {fetched} messages that are fetched ahead would take longer than half of \
             RABBITMQ_CONSUMER_TIMEOUT; give at least {least}, or 0, or a smaller batch size"
        ));
    }
    limit
}

fn schema_mode(env: &mut Env) -> SchemaMode {
    let text = env.text("SCHEMA");
    match text.to_ascii_lowercase().as_str() {
        "check" => SchemaMode::Check,
        "off" => SchemaMode::Off,
        "ensure" => SchemaMode::Ensure,
        _ => {
            env.problem(format!("SCHEMA is {text:?}: give ensure, check or off"));
            SchemaMode::Check
        }
    }
}

fn log_level(env: &mut Env) -> LevelFilter {
    let text = env.text(LOG_LEVEL);
    match text.trim().to_ascii_uppercase().as_str() {
        "DEBUG" => LevelFilter::DEBUG,
        "INFO" => LevelFilter::INFO,
        "WARNING" => LevelFilter::WARN,
        "ERROR" | "CRITICAL" => LevelFilter::ERROR,
        _ => {
            let place = env.place(LOG_LEVEL);
            let what = format!("{place}{LOG_LEVEL} is {text:?}");
            let remedy = "give DEBUG, INFO, WARNING, ERROR or CRITICAL";
            // A wrong level in the environment is no reason not to work (contract §7).
            if place.is_empty() {
                env.note(format!("{what}: INFO is used; {remedy}"));
            } else {
                env.problem(format!("{what}: {remedy}"));
            }
            LevelFilter::INFO
        }
    }
}

fn log_config(env: &mut Env) -> LogConfig {
    LogConfig {
        dir: env.optional("LOG_DIR").or_else(|| std::path::Path::new("/logs").is_dir().then(|| "/logs".to_owned())),
        environment: env.text("ENVIRONMENT"),
    }
}

/// The variables as an aligned list for `--help`.
pub fn help_text(tables: &[&'static [Variable]]) -> String {
    let mut out = String::from(
        "Environment variables (*: NAME_FILE names a file with the value and wins; ~: can be changed in TUNING_FILE):\n",
    );
    for v in tables.iter().copied().flatten() {
        let mark = v.mark();
        let default = match v.default {
            DefaultValue::Required => "required".to_owned(),
            Value(d) => format!("default {d}"),
            Derived(d) => format!("default: {d}"),
        };
        out.push_str(&format!("  {}{mark}\n      {} [{default}]\n", v.name, v.help));
    }
    out.push_str(&format!("Accepted without effect: {}\n", WITHOUT_EFFECT.join(", ")));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const BATCH: BatchVariables = BatchVariables {
        mode: "X_BATCH_MODE",
        size: "X_BATCH_SIZE",
        interval: "X_BATCH_FLUSH_INTERVAL",
        writers: "X_WRITERS",
    };
    const OWN: &[Variable] = &[
        variable("X_BATCH_MODE", Value("true"), ""),
        tunable("X_BATCH_SIZE", Value("500"), ""),
        tunable("X_BATCH_FLUSH_INTERVAL", Value("2.0"), ""),
        tunable("X_WRITERS", Value("2"), ""),
        secret("X_PASSWORD", DefaultValue::Required, "a password"),
    ];

    fn read(values: &[(&str, &str)]) -> Result<(Config, Vec<String>), ConfigError> {
        let values = values.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let mut env = Env::from_values(&[BROKER, COMMON, OWN], values);
        let config = common(&mut env, &BATCH, 8001);
        env.text("X_PASSWORD");
        env.finish(config)
    }

    #[test]
    fn nothing_is_held_for_longer_than_the_broker_waits() {
        let (config, notes) =
            read(&[("X_PASSWORD", "p"), ("RABBITMQ_CONSUMER_TIMEOUT", "60"), ("X_BATCH_FLUSH_INTERVAL", "40")])
                .expect("valid");
        assert_eq!((config.hold_limit.as_secs(), config.write_timeout.as_secs()), (30, 15), "WRITE_TIMEOUT is 60");
        assert_eq!(config.tuning.limits.interval.as_secs(), 15);
        let shown = |name| Setting { name, value: "40".to_owned(), origin: "set" };
        let settings = vec![shown("WRITE_TIMEOUT"), shown("X_BATCH_FLUSH_INTERVAL"), shown("X_BATCH_SIZE")];
        let values: Vec<_> = config.in_force(&config.tuning, settings).into_iter().map(|s| s.value).collect();
        assert_eq!(values, ["15", "15", "40"]);
        assert!(
            notes.iter().any(|note| note.contains("X_BATCH_FLUSH_INTERVAL is 40") && note.contains("after 15")),
            "{notes:?}"
        );
    }

    #[test]
    fn defaults() {
        let (config, notes) = read(&[("X_PASSWORD", "p"), ("RABBITMQ_HOST", "")]).expect("valid");
        assert_eq!((config.tuning.limits.count, config.tuning.prefetch, config.tuning.writers), (500, 1500, 2));
        assert_eq!(config.tuning.limits.interval, Duration::from_secs(2));
        assert_eq!((config.broker.host.as_str(), config.broker.port, config.health_port), ("rabbitmq", 5672, 8001));
        assert!(notes.is_empty(), "{notes:?}");
    }

    #[test]
    fn a_prefetch_that_can_t_fill_a_batch_is_raised_with_a_warning() {
        let (config, notes) = read(&[("X_PASSWORD", "p"), ("RABBITMQ_PREFETCH", "10")]).expect("valid");
        assert_eq!(config.tuning.prefetch, 1500);
        assert!(notes[0].contains("raised from 10 to 1500"), "{notes:?}");
        let (config, notes) = read(&[("X_PASSWORD", "p"), ("RABBITMQ_PREFETCH", "9000")]).expect("valid");
        assert_eq!((config.tuning.prefetch, notes.len()), (9000, 0));
    }

    #[test]
    fn batch_mode_false_writes_single_records() {
        let (config, _) = read(&[("X_PASSWORD", "p"), ("X_BATCH_MODE", "False")]).expect("valid");
        assert_eq!((config.tuning.limits.count, config.tuning.prefetch), (1, 3));
    }

    #[test]
    fn adaptive_batches_have_size_and_writers_as_their_bounds() {
        let (config, _) =
            read(&[("X_PASSWORD", "p"), ("X_BATCH_MODE", "Adaptive"), ("X_BATCH_SIZE", "2000")]).expect("valid");
        assert_eq!(config.tuning.adaptive, Some(Bounds { floor: 50, ceiling: 2000, writers: 2 }));
        assert_eq!((config.tuning.limits.count, config.tuning.prefetch), (2000, 6000));
        // A batch that is larger than what may be fetched would never be full.
        let (small, _) =
            read(&[("X_PASSWORD", "p"), ("X_BATCH_MODE", "adaptive"), ("X_BATCH_SIZE", "10")]).expect("valid");
        assert_eq!(small.tuning.adaptive, Some(Bounds { floor: 10, ceiling: 10, writers: 2 }));
        assert!(read(&[("X_PASSWORD", "p"), ("X_BATCH_MODE", "clever")]).is_err());
    }

    #[test]
    fn all_problems_are_reported_at_once_with_a_remedy() {
        let error = read(&[
            ("X_BATCH_SIZE", "many"),
            ("RABBITMQ_PORT", "0"),
            ("SCHEMA", "drop"),
            ("RABBITMQ_TLS_CA_FILE", "/nowhere/ca.pem"),
        ])
        .expect_err("invalid");
        let text = error.to_string();
        for part in [
            "X_BATCH_SIZE",
            "RABBITMQ_PORT",
            "SCHEMA",
            "/nowhere/ca.pem",
            "set X_PASSWORD or X_PASSWORD_FILE",
            "5 problem",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }

    #[test]
    fn a_file_wins_over_the_plain_variable_and_is_trimmed() {
        let path = std::env::temp_dir().join(format!("secret-{}", std::process::id()));
        std::fs::write(&path, "from file\n").expect("temp file");
        let file = path.to_string_lossy().into_owned();
        let values = [("RABBITMQ_PASSWORD", "plain"), ("RABBITMQ_PASSWORD_FILE", file.as_str()), ("X_PASSWORD", "p")];
        let (config, _) = read(&values).expect("valid");
        assert_eq!(config.broker.password.expose(), "from file");
        assert!(!format!("{config:?}").contains("from file"));
        std::fs::remove_file(path).expect("temp file");
    }

    #[test]
    fn settings_are_shown_without_secrets_and_as_they_are_in_force() {
        let values = [
            ("X_PASSWORD", "hidden"),
            ("RABBITMQ_PASSWORD_FILE", "/secret/path"),
            ("X_BATCH_SIZE", "20"),
            ("RABBITMQ_PREFETCH", "10"),
        ];
        let owned = values.map(|(k, v)| (k.to_owned(), v.to_owned()));
        let settings = Env::from_values(&[BROKER, COMMON, OWN], owned).settings();
        let (config, _) =
            read(&[("X_PASSWORD", "p"), ("X_BATCH_SIZE", "20"), ("RABBITMQ_PREFETCH", "10")]).expect("valid");
        let settings = config.in_force(&config.tuning, settings);
        assert_eq!(settings.len(), BROKER.len() + COMMON.len() + OWN.len());
        for (name, value, origin) in [
            ("X_PASSWORD", "***", "set"),
            ("RABBITMQ_PASSWORD", "***", "file"),
            ("RABBITMQ_USERNAME", "***", "default"),
            ("RABBITMQ_HOST", "rabbitmq", "default"),
            ("X_BATCH_SIZE", "20", "set"),
            ("RABBITMQ_PREFETCH", "60", "set"), // raised
            ("HEALTH_PORT", "8001", "default"),
        ] {
            let expected = Setting { name, value: value.to_owned(), origin };
            assert!(settings.contains(&expected), "{expected:?} is not in {settings:?}");
        }
    }

    #[test]
    fn an_unreadable_secret_file_is_a_problem() {
        let error = read(&[("X_PASSWORD", "p"), ("X_PASSWORD_FILE", "/nowhere")]).expect_err("invalid");
        assert!(error.to_string().contains("X_PASSWORD_FILE: can't read /nowhere"));
    }

    #[test]
    fn variables_without_effect_are_named_once() {
        let (_, notes) =
            read(&[("X_PASSWORD", "p"), ("CONSUMER_CANCEL_DELAY", "300"), ("STARTUP_DELAY", "5")]).expect("valid");
        assert_eq!(notes.len(), 1);
        assert!(notes[0].contains("CONSUMER_CANCEL_DELAY, STARTUP_DELAY"));
    }

    #[test]
    fn an_unknown_log_level_falls_back_with_a_note() {
        let (config, notes) = read(&[("X_PASSWORD", "p"), ("LOG_LEVEL", "loud")]).expect("valid");
        assert_eq!(config.tuning.log_level, LevelFilter::INFO);
        assert_eq!(notes.len(), 1);
    }

    #[test]
    fn prefixes_that_no_broker_takes_are_refused() {
        for prefix in ["amq.x", &"p".repeat(201)] {
            let error = read(&[("X_PASSWORD", "p"), ("DISCOGS_EXCHANGE_PREFIX", prefix)]).expect_err("invalid");
            assert!(error.to_string().contains("DISCOGS_EXCHANGE_PREFIX"), "{error}");
        }
    }

    #[test]
    fn a_batch_too_large_for_any_prefetch_is_refused() {
        let error = read(&[("X_PASSWORD", "p"), ("X_BATCH_SIZE", "20000"), ("X_WRITERS", "8")]).expect_err("invalid");
        assert!(error.to_string().contains("can't exceed 65535"));
    }

    #[test]
    fn a_host_with_credentials_is_refused_and_not_repeated() {
        let mut env = Env::from_values(&[BROKER], [("RABBITMQ_HOST".to_owned(), "amqp://u:hidden@h".to_owned())]);
        broker(&mut env);
        let problems = env.finish(()).expect_err("credentials").to_string();
        assert!(problems.contains("RABBITMQ_HOST holds credentials") && !problems.contains("hidden"), "{problems}");
    }

    #[test]
    fn help_names_every_variable() {
        let help = help_text(&[BROKER, COMMON, OWN]);
        for v in BROKER.iter().chain(COMMON).chain(OWN) {
            assert!(help.contains(v.name));
        }
    }
}
