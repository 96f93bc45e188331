//! Every metric of the workers: names, units and help in one table, and the Prometheus exporter.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use crate::data_type::DataType;

/// Messages that the broker delivered. Label `data_type`.
pub const RECEIVED: &str = "records_received_total";
/// Bytes of their bodies. Label `data_type`.
pub const RECEIVED_BYTES: &str = "bytes_received_total";
/// Deliveries that the broker had delivered before. Label `data_type`.
pub const REDELIVERED: &str = "redelivered_total";
/// Records whose fate is in the database. Labels `data_type`, `outcome`: inserted, updated, unchanged, deduplicated.
pub const COMMITTED: &str = "records_committed_total";
/// Messages confirmed by the dead-letter exchange. Labels `data_type`, `reason`.
pub const DEAD_LETTERED: &str = "records_dead_lettered_total";
/// Deliveries handed back to the broker undecided. Label `data_type`.
pub const RETURNED: &str = "records_returned_total";
/// Control messages taken. Labels `data_type`, `kind`.
pub const CONTROL: &str = "control_messages_total";
/// Closed batches. Labels `data_type`, `trigger`: count, bytes, deadline, drain.
pub const BATCHES: &str = "batches_total";
/// Records of a batch. Label `data_type`.
pub const BATCH_RECORDS: &str = "batch_records";
/// Bytes of a batch. Label `data_type`.
pub const BATCH_BYTES: &str = "batch_bytes";
/// From a batch's first record to its closing. Label `data_type`.
pub const BATCH_WAIT: &str = "batch_wait_seconds";
/// Time in the database. Labels `data_type`, `phase`: `total`, and the phases of the worker's sink.
pub const WRITE: &str = "write_seconds";
/// From reception to commit. Label `data_type`.
pub const END_TO_END: &str = "end_to_end_seconds";
/// Batches that are being written. Label `data_type`.
pub const IN_FLIGHT_BATCHES: &str = "in_flight_batches";
/// Records in batches that are being written. Label `data_type`.
pub const IN_FLIGHT_RECORDS: &str = "in_flight_records";
/// Deliveries that are not acknowledged yet. Label `data_type`.
pub const UNACKED: &str = "unacked_deliveries";
/// Messages waiting in the queue, asked every few seconds. Label `data_type`.
pub const QUEUE_READY: &str = "queue_ready_messages";
/// Ack frames sent. Label `data_type`.
pub const ACK_FRAMES: &str = "ack_frames_total";
/// Acks that could not be sent because their channel was gone; those messages come back. Label `data_type`.
pub const ACKS_LOST: &str = "acks_lost_total";
/// Failed attempts to write. Labels `data_type`, `class`, `code`.
pub const RETRIES: &str = "retries_total";
/// Batches split to find a culprit. Label `data_type`.
pub const BISECTIONS: &str = "bisections_total";
/// Attempts that lost against another transaction. Label `data_type`.
pub const DEADLOCKS: &str = "deadlocks_total";
/// 1 while nothing of this type can be written. Label `data_type`.
pub const BREAKER: &str = "breaker_state";
/// Time for which a stage could not go on, a sum of seconds (a gauge, since it has fractions). Labels `data_type`,
/// `stage`: `source` (a full batch waited for a writer, so that nothing was read), `rate` (`RATE_LIMIT` did not let it read),
/// `slot` (a writer waited for its turn with the database).
pub const BLOCKED: &str = "stage_blocked_seconds_total";
/// Connections made after the first. Label `peer`: broker, queue.
pub const RECONNECTS: &str = "reconnects_total";
/// 1 while connected. Label `peer`: broker, database.
pub const CONNECTED: &str = "connected";
/// Duration of the drain at shutdown.
pub const DRAIN: &str = "drain_seconds";
/// 1 while this replica consumes the queue; of all replicas one does. Label `data_type`.
pub const CONSUMING: &str = "consuming";
/// 1 while another replica consumes the queue and this one could. Label `data_type`.
pub const STANDBY: &str = "standby";
/// What runs asked to remove, by what came of it (`deleted`, `vetoed`, `skipped`). Labels `data_type`, `outcome`.
pub const PURGES: &str = "purges_total";
/// Failed attempts to do what the end of a run asks for. They are repeated.
pub const BACKGROUND_FAILURES: &str = "background_failures_total";
/// Batches, of all types, that may be written at the same time. Label `bound`, what sets it: `connections` (of the pool),
/// `transactions` (`NEO4J_TRANSACTIONS`), `weights` (`TYPE_WEIGHTS` needs types that wait for each other).
pub const SLOTS: &str = "write_slots";
/// Of these, those that are taken.
pub const SLOTS_IN_USE: &str = "write_slots_in_use";
/// Batches that wait for one. Label `data_type`.
pub const SLOTS_WAITING: &str = "write_slots_waiting";
/// What is in force of what can be changed in a running worker. Label `setting`, the variable's name; seconds, counts, and for
/// `LOG_LEVEL` 10 (DEBUG), 20, 30 or 40 (ERROR).
pub const TUNING: &str = "tuning";
/// How often `TUNING_FILE` was read again. Label `outcome`: applied, unchanged, refused.
pub const TUNING_RELOADS: &str = "tuning_reloads_total";
/// When this process started, in seconds since 1970.
pub const STARTED: &str = "process_start_time_seconds";
/// Bound of batches in flight per type. Label `data_type`.
pub const CONCURRENCY: &str = "concurrency_limit";
/// Records that the next batch may hold. Label `data_type`.
pub const BATCH_LIMIT: &str = "batch_size_limit";
/// Spans that a receiver of traces took. Only while tracing is on.
pub const SPANS_EXPORTED: &str = "trace_spans_exported_total";
/// Spans that were lost. Only while tracing is on. Label `reason`: queue_full, export (the receiver is away or refused them),
/// shutdown.
pub const SPANS_DROPPED: &str = "trace_spans_dropped_total";
/// Always 1. Labels `version`, `commit`, `service`.
pub const BUILD: &str = "build_info";

/// Upper bounds in seconds for everything that is a duration.
const SECONDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0];
/// Upper bounds for records of a batch.
const RECORDS: [f64; 10] = [1.0, 5.0, 10.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0];
/// Upper bounds for bytes of a batch.
const BYTES: [f64; 8] = [1e3, 1e4, 1e5, 5e5, 1e6, 2e6, 4e6, 8e6];

/// Installs the workers' recorder for the whole process and describes every metric.
///
/// # Errors
/// If a recorder is installed already.
pub fn install(service: &'static str) -> Result<PrometheusHandle, BuildError> {
    let mut builder = builder(service);
    for name in [BATCH_WAIT, WRITE, END_TO_END] {
        builder = builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), &SECONDS)?;
    }
    let handle = builder
        .set_buckets_for_metric(Matcher::Full(BATCH_RECORDS.to_owned()), &RECORDS)?
        .set_buckets_for_metric(Matcher::Full(BATCH_BYTES.to_owned()), &BYTES)?
        .install_recorder()?;
    describe();
    describe_gauge!(BUILD, Unit::Count, "Always 1; labels say what runs");
    metrics::gauge!(BUILD, "version" => env!("CARGO_PKG_VERSION"), "commit" => crate::COMMIT).set(1.0);
    describe_gauge!(STARTED, Unit::Seconds, "When this process started, since 1970");
    metrics::gauge!(STARTED).set(chrono::Utc::now().timestamp_millis() as f64 / 1000.0);
    for outcome in ["applied", "unchanged", "refused"] {
        metrics::counter!(TUNING_RELOADS, "outcome" => outcome).increment(0);
    }
    metrics::counter!(BACKGROUND_FAILURES).increment(0);
    metrics::counter!(RECONNECTS, "peer" => "broker").increment(0);
    for peer in ["broker", "database"] {
        metrics::gauge!(CONNECTED, "peer" => peer).set(0.0);
    }
    Ok(handle)
}

/// An exporter whose every metric says which service it comes from.
pub fn builder(service: &'static str) -> PrometheusBuilder {
    PrometheusBuilder::new().add_global_label("service", service)
}

/// Shows the counters of rare events from the start: an alert can't see the first one of a series that was not there.
pub fn start_at_zero(data_type: DataType) {
    for name in [RECEIVED, RECEIVED_BYTES, REDELIVERED, RETURNED, ACK_FRAMES, ACKS_LOST, BISECTIONS, DEADLOCKS] {
        metrics::counter!(name, "data_type" => data_type.name()).increment(0);
    }
    for outcome in ["deleted", "vetoed", "skipped"] {
        metrics::counter!(PURGES, "data_type" => data_type.name(), "outcome" => outcome).increment(0);
    }
    for name in [CONSUMING, STANDBY, SLOTS_WAITING] {
        metrics::gauge!(name, "data_type" => data_type.name()).set(0.0);
    }
}

fn describe() {
    for (name, unit, help) in [
        (RECEIVED, Unit::Count, "Messages that the broker delivered"),
        (RECEIVED_BYTES, Unit::Bytes, "Bytes of the delivered bodies"),
        (REDELIVERED, Unit::Count, "Deliveries that the broker had delivered before"),
        (COMMITTED, Unit::Count, "Records whose fate is in the database, by outcome"),
        (DEAD_LETTERED, Unit::Count, "Messages confirmed by the dead-letter exchange, by reason"),
        (RETURNED, Unit::Count, "Deliveries handed back to the broker undecided"),
        (CONTROL, Unit::Count, "Control messages taken"),
        (BATCHES, Unit::Count, "Closed batches, by what closed them"),
        (ACK_FRAMES, Unit::Count, "Ack frames sent"),
        (ACKS_LOST, Unit::Count, "Acks whose channel was gone; their messages come back"),
        (RETRIES, Unit::Count, "Failed attempts to write, by class and code"),
        (BISECTIONS, Unit::Count, "Batches split to find a culprit"),
        (DEADLOCKS, Unit::Count, "Attempts that lost against another transaction"),
        (RECONNECTS, Unit::Count, "Connections made after the first"),
        (TUNING_RELOADS, Unit::Count, "How often TUNING_FILE was read again, by outcome"),
        (PURGES, Unit::Count, "Removals of what a run did not bring, by outcome"),
        (BACKGROUND_FAILURES, Unit::Count, "Failed attempts to do what the end of a run asks for"),
        (SPANS_EXPORTED, Unit::Count, "Spans that the receiver of traces took"),
        (SPANS_DROPPED, Unit::Count, "Spans that were lost, by reason"),
    ] {
        describe_counter!(name, unit, help);
    }
    for (name, unit, help) in [
        (IN_FLIGHT_BATCHES, Unit::Count, "Batches that are being written"),
        (IN_FLIGHT_RECORDS, Unit::Count, "Records in batches that are being written"),
        (UNACKED, Unit::Count, "Deliveries that are not acknowledged yet"),
        (QUEUE_READY, Unit::Count, "Messages waiting in the queue"),
        (BREAKER, Unit::Count, "1 while nothing of this type can be written"),
        (CONNECTED, Unit::Count, "1 while connected"),
        (CONSUMING, Unit::Count, "1 while this replica consumes the queue; of all replicas one does"),
        (STANDBY, Unit::Count, "1 while another replica consumes the queue and this one could"),
        (BLOCKED, Unit::Seconds, "Time for which a stage could not go on, summed up"),
        (DRAIN, Unit::Seconds, "Duration of the drain at shutdown"),
        (SLOTS, Unit::Count, "Batches that may be written at the same time, of all types, by what bounds them"),
        (SLOTS_IN_USE, Unit::Count, "Batches that are written with one of the slots"),
        (SLOTS_WAITING, Unit::Count, "Batches that wait for a slot"),
        (CONCURRENCY, Unit::Count, "Bound of batches in flight per type"),
        (BATCH_LIMIT, Unit::Count, "Records that the next batch may hold"),
        (TUNING, Unit::Count, "What is in force of what can be changed in a running worker, by setting"),
    ] {
        describe_gauge!(name, unit, help);
    }
    for (name, unit, help) in [
        (BATCH_RECORDS, Unit::Count, "Records of a batch"),
        (BATCH_BYTES, Unit::Bytes, "Bytes of a batch"),
        (BATCH_WAIT, Unit::Seconds, "From a batch's first record to its closing"),
        (WRITE, Unit::Seconds, "Time in the database, by phase"),
        (END_TO_END, Unit::Seconds, "From reception to commit"),
    ] {
        describe_histogram!(name, unit, help);
    }
}
