//! What the worker knows of itself: written by the pipeline, read by `/health`, `/ready` and the report at exit.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use chrono::{SecondsFormat, Utc};
use serde_json::{Value, json};

use crate::data_type::DataType;
use crate::http::Probe;
use crate::metrics as names;

/// A queue's loop that did not turn for this long is stuck (it turns every second).
const STUCK_AFTER_MS: u64 = 60_000;
/// A type counts as being processed for this long after its last message (contract §6.7).
const RECENT_MS: u64 = 10_000;

/// State of one data type.
#[derive(Debug, Default)]
pub struct TypeStatus {
    received: AtomicU64,
    records: AtomicU64,
    committed: AtomicU64,
    dead_lettered: AtomicU64,
    returned: AtomicU64,
    controls: AtomicU64,
    last_message_ms: AtomicU64,
    last_turn_ms: AtomicU64,
    consuming: AtomicBool,
    standby: AtomicBool,
    complete: AtomicBool,
    trouble: Mutex<Option<String>>,
}

/// State of the worker.
#[derive(Debug)]
pub struct Status {
    /// `graphinator` or `tableinator`.
    pub service: &'static str,
    /// `Neo4j` or `PostgreSQL`, for people.
    pub database_name: &'static str,
    types: [TypeStatus; 4],
    database_up: AtomicBool,
    stopping: AtomicBool,
}

/// How many deliveries went which way; at exit `received = committed + dead_lettered + controls + returned`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Delivered to the pipeline.
    pub received: u64,
    /// Committed to the database, superseded versions included.
    pub committed: u64,
    /// Confirmed by the dead-letter exchange.
    pub dead_lettered: u64,
    /// Control messages that took effect.
    pub controls: u64,
    /// Handed back undecided.
    pub returned: u64,
}

impl Status {
    /// Nothing happened yet.
    pub fn new(service: &'static str, database_name: &'static str) -> Self {
        Status {
            service,
            database_name,
            types: Default::default(),
            database_up: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
        }
    }

    fn of(&self, data_type: DataType) -> &TypeStatus {
        &self.types[data_type.index()]
    }

    /// A message was delivered; `data` unless it is a control message.
    pub fn received(&self, data_type: DataType, data: bool) {
        let status = self.of(data_type);
        status.received.fetch_add(1, Relaxed);
        if data {
            status.records.fetch_add(1, Relaxed);
            status.last_message_ms.store(now_ms(), Relaxed);
            status.complete.store(false, Relaxed);
        }
    }

    /// Records were committed.
    pub fn committed(&self, data_type: DataType, count: usize) {
        self.of(data_type).committed.fetch_add(count as u64, Relaxed);
    }

    /// Records of this type that were committed since the start.
    pub fn total_committed(&self, data_type: DataType) -> u64 {
        self.of(data_type).committed.load(Relaxed)
    }

    /// A message was confirmed by the dead-letter exchange.
    pub fn dead_lettered(&self, data_type: DataType) {
        self.of(data_type).dead_lettered.fetch_add(1, Relaxed);
    }

    /// Deliveries went back undecided.
    pub fn returned(&self, data_type: DataType, count: usize) {
        self.of(data_type).returned.fetch_add(count as u64, Relaxed);
    }

    /// A control message took effect; either kind marks the type complete (contract §4.7, §4.8).
    pub fn completed(&self, data_type: DataType) {
        let status = self.of(data_type);
        status.controls.fetch_add(1, Relaxed);
        status.complete.store(true, Relaxed);
    }

    /// The queue's loop turned.
    pub fn turn(&self, data_type: DataType) {
        self.of(data_type).last_turn_ms.store(now_ms(), Relaxed);
    }

    /// A consumer is subscribed, or not any more.
    pub fn consuming(&self, data_type: DataType, yes: bool) {
        metrics::gauge!(names::CONSUMING, "data_type" => data_type.name()).set(f64::from(u8::from(yes)));
        self.of(data_type).consuming.store(yes, Relaxed);
        self.set_standby(data_type, false);
    }

    /// Another replica consumes this queue; this one is ready to go on when that one ends.
    pub fn standby(&self, data_type: DataType) {
        self.set_standby(data_type, true);
    }

    fn set_standby(&self, data_type: DataType, yes: bool) {
        metrics::gauge!(names::STANDBY, "data_type" => data_type.name()).set(f64::from(u8::from(yes)));
        self.of(data_type).standby.store(yes, Relaxed);
    }

    /// What keeps this type from being written; `None` when it goes on.
    pub fn trouble(&self, data_type: DataType, trouble: Option<String>) {
        metrics::gauge!(names::BREAKER, "data_type" => data_type.name()).set(if trouble.is_some() { 1.0 } else { 0.0 });
        *self.of(data_type).trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// The consumer is gone: why nothing of this type is read. The database has no part in that.
    pub fn lost(&self, data_type: DataType, reason: String) {
        *self.of(data_type).trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
    }

    /// The database gave a sign of life, or did not.
    pub fn database(&self, yes: bool) {
        metrics::gauge!(names::CONNECTED, "peer" => "database").set(if yes { 1.0 } else { 0.0 });
        self.database_up.store(yes, Relaxed);
    }

    /// The worker was asked to stop.
    pub fn stopping(&self) {
        self.stopping.store(true, Relaxed);
    }

    /// Totals over all types.
    pub fn totals(&self) -> Totals {
        self.types.iter().fold(Totals::default(), |t, s| Totals {
            received: t.received + s.received.load(Relaxed),
            committed: t.committed + s.committed.load(Relaxed),
            dead_lettered: t.dead_lettered + s.dead_lettered.load(Relaxed),
            controls: t.controls + s.controls.load(Relaxed),
            returned: t.returned + s.returned.load(Relaxed),
        })
    }

    fn current_task(&self, now: u64) -> Option<String> {
        let recent = |s: &TypeStatus| now.saturating_sub(s.last_message_ms.load(Relaxed)) < RECENT_MS;
        if let Some(t) = DataType::ALL.iter().find(|t| recent(self.of(**t))) {
            return Some(format!("Processing {t}"));
        }
        if self.types.iter().any(|s| s.consuming.load(Relaxed)) {
            return Some("Idle - waiting for messages".to_owned());
        }
        (!self.database_up.load(Relaxed)).then(|| format!("Initializing {} connection", self.database_name))
    }
}

impl Probe for Status {
    /// The object that `/health` returns (contract §6.7), and whether it is healthy. A database or broker that is
    /// away is no fault of this process: that is what `/ready` tells.
    fn health(&self) -> (bool, Value) {
        let now = now_ms();
        let by_type = |f: &dyn Fn(&TypeStatus) -> Value| -> Value {
            DataType::ALL.iter().map(|t| (t.name().to_owned(), f(self.of(*t)))).collect()
        };
        let names_of = |f: &dyn Fn(&TypeStatus) -> bool| -> Vec<&str> {
            DataType::ALL.iter().filter(|t| f(self.of(**t))).map(|t| t.name()).collect()
        };
        let started = self.types.iter().any(|s| s.last_turn_ms.load(Relaxed) > 0);
        let stuck = self.types.iter().any(|s| {
            let turn = s.last_turn_ms.load(Relaxed);
            turn > 0 && now.saturating_sub(turn) > STUCK_AFTER_MS
        });
        let status = match (stuck, started) {
            (true, _) => "unhealthy",
            (false, false) => "starting",
            (false, true) => "healthy",
        };
        let body = json!({
            "status": status,
            "service": self.service,
            "current_task": self.current_task(now),
            "progress": 0.0,
            "message_counts": by_type(&|s| s.records.load(Relaxed).into()),
            "last_message_time": by_type(&|s| (s.last_message_ms.load(Relaxed) as f64 / 1000.0).into()),
            "active_consumers": names_of(&|s| s.consuming.load(Relaxed)),
            "completed_files": names_of(&|s| s.complete.load(Relaxed)),
            "timestamp": Utc::now().to_rfc3339_opts(SecondsFormat::Micros, false),
        });
        (status == "healthy", body)
    }

    /// Why the worker is not ready; empty if it is: database answering, every queue consumed here or by another replica,
    /// nothing in trouble.
    fn unready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.stopping.load(Relaxed) {
            reasons.push("shutting down".to_owned());
        }
        if !self.database_up.load(Relaxed) {
            reasons.push(format!("{} does not answer", self.database_name));
        }
        for t in DataType::ALL {
            if let Some(trouble) = &*self.of(t).trouble.lock().unwrap_or_else(PoisonError::into_inner) {
                reasons.push(format!("{t}: {trouble}"));
            } else if !self.of(t).consuming.load(Relaxed) && !self.of(t).standby.load(Relaxed) {
                reasons.push(format!("{t}: no consumer"));
            }
        }
        reasons
    }
}

fn now_ms() -> u64 {
    Utc::now().timestamp_millis().unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_has_exactly_the_contract_s_fields() {
        let status = Status::new("tableinator", "PostgreSQL");
        let (healthy, body) = status.health();
        assert!(!healthy);
        assert_eq!(body["status"], "starting");
        assert_eq!(body["current_task"], "Initializing PostgreSQL connection");
        let mut fields: Vec<_> = body.as_object().expect("object").keys().map(String::as_str).collect();
        fields.sort_unstable();
        assert_eq!(
            fields,
            [
                "active_consumers",
                "completed_files",
                "current_task",
                "last_message_time",
                "message_counts",
                "progress",
                "service",
                "status",
                "timestamp"
            ]
        );
        status.turn(DataType::Masters);
        status.received(DataType::Masters, true);
        let (healthy, body) = status.health();
        assert!(healthy);
        assert_eq!(body["current_task"], "Processing masters");
        assert_eq!(body["message_counts"]["masters"], 1);
    }

    #[test]
    fn ready_needs_everything() {
        let status = Status::new("graphinator", "Neo4j");
        assert_eq!(status.unready().len(), 5);
        status.database(true);
        DataType::ALL.iter().for_each(|t| status.consuming(*t, true));
        assert!(status.unready().is_empty());
        status.consuming(DataType::Masters, false);
        assert_eq!(status.unready(), ["masters: no consumer"]);
        status.standby(DataType::Masters);
        assert!(status.unready().is_empty());
        status.trouble(DataType::Labels, Some("wrong password".to_owned()));
        assert_eq!(status.unready(), ["labels: wrong password"]);
    }

    #[test]
    fn a_new_record_reopens_a_completed_type() {
        let status = Status::new("graphinator", "Neo4j");
        status.completed(DataType::Artists);
        assert_eq!(status.health().1["completed_files"][0], "artists");
        status.received(DataType::Artists, true);
        assert_eq!(status.health().1["completed_files"].as_array().map(Vec::len), Some(0));
    }
}
