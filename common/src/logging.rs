//! One JSON object per line, with the field names of the contract (§8): `event`, `level`, `logger`, `lineno`,
//! `timestamp`, `service`, `environment`, and the event's own fields, keys sorted.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{SecondsFormat, Utc};
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_log::NormalizeEvent;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::{Layer, Registry, reload};

use crate::config::LogConfig;

/// Lines that [`Recent`] keeps.
const KEPT: usize = 20;

/// The newest warnings and errors that were logged.
#[derive(Clone, Debug, Default)]
pub struct Recent(Arc<Mutex<VecDeque<Value>>>);

impl Recent {
    /// Oldest first.
    pub fn lines(&self) -> Vec<Value> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    fn keep(&self, line: Value) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == KEPT {
            lines.pop_front();
        }
        lines.push_back(line);
    }
}

/// The most verbose level that is written, while the process runs.
#[derive(Clone, Debug)]
pub struct Verbosity(reload::Handle<Targets, Registry>);

impl Verbosity {
    /// From now on this level.
    pub fn set(&self, level: LevelFilter) {
        // It fails only when nothing is logged any more.
        let _ = self.0.reload(targets(level));
    }
}

/// Of the libraries' own messages only warnings are kept.
fn targets(level: LevelFilter) -> Targets {
    let own = ["common", "graphinator", "tableinator"].map(|target| (target, level));
    Targets::new().with_targets(own).with_default(level.min(LevelFilter::WARN))
}

/// Starts logging for the whole process.
pub fn init(service: &'static str, config: &LogConfig, level: LevelFilter) -> (Recent, Verbosity) {
    let recent = Recent::default();
    let file = config.dir.as_ref().and_then(|dir| open(dir, service));
    let (environment, recent_too) = (config.environment.clone(), recent.clone());
    let layer = JsonLines { service, environment, file: file.map(Mutex::new), recent: recent_too };
    let (filter, handle) = reload::Layer::new(targets(level));
    let subscriber = tracing_subscriber::registry().with(layer.with_filter(filter));
    if tracing::subscriber::set_global_default(subscriber).is_ok() {
        // neo4rs and tokio-postgres log through the `log` crate.
        let _ = tracing_log::LogTracer::builder().with_max_level(tracing_log::log::LevelFilter::Warn).init();
    }
    (recent, Verbosity(handle))
}

fn open(dir: &str, service: &str) -> Option<File> {
    let path = std::path::Path::new(dir).join(format!("{service}.log"));
    let opened = std::fs::create_dir_all(dir).and_then(|()| File::options().create(true).append(true).open(&path));
    opened.map_err(|e| eprintln!("no log file: can't open {}: {e}", path.display())).ok()
}

struct JsonLines {
    service: &'static str,
    environment: String,
    file: Option<Mutex<File>>,
    recent: Recent,
}

impl<S: Subscriber> Layer<S> for JsonLines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let normalized = event.normalized_metadata();
        let metadata = normalized.as_ref().unwrap_or_else(|| event.metadata());
        let mut fields = Fields(Map::new());
        event.record(&mut fields);
        if metadata.target().starts_with("lapin") && fields.0.get("error").is_some_and(is_locked) {
            return; // another replica has the turn, which is as it should be
        }
        let mut line = fields.0;
        let timestamp = Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true);
        for (key, value) in [
            ("environment", Value::from(self.environment.as_str())),
            ("level", level(metadata.level()).into()),
            ("lineno", metadata.line().into()),
            ("logger", metadata.target().into()),
            ("service", self.service.into()),
            ("timestamp", timestamp.into()),
        ] {
            line.insert(key.to_owned(), value);
        }
        let line = Value::Object(line);
        let mut text = line.to_string();
        text.push('\n');
        // Nowhere to report a log that can't be written.
        let _ = std::io::stdout().lock().write_all(text.as_bytes());
        if let Some(file) = &self.file {
            let _ = file.lock().unwrap_or_else(PoisonError::into_inner).write_all(text.as_bytes());
        }
        if *metadata.level() <= Level::WARN {
            self.recent.keep(line);
        }
    }
}

/// Whether the broker said that somebody else holds an exclusive queue.
fn is_locked(error: &Value) -> bool {
    error.as_str().is_some_and(|text| text.contains("RESOURCELOCKED"))
}

fn level(level: &Level) -> &'static str {
    match *level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        _ => "debug",
    }
}

/// Collects an event's fields; the message becomes `event`.
struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        let name = match field.name() {
            "message" => "event",
            name if name.starts_with("log.") => return, // what tracing-log adds for its own use
            name => name,
        };
        self.0.insert(name.to_owned(), value);
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }
}
