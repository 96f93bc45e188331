//! The trace of one batch: it notes times while the batch lives, and makes spans of them at its end.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use opentelemetry::KeyValue;
use opentelemetry::trace::{Event, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceState};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SpanData, SpanEvents, SpanLinks};

use super::export::Exporter;
use super::links::Links;
use crate::batch::{Origin, Trigger};
use crate::data_type::DataType;
use crate::phases::{Phase, Phases};
use crate::sink::{SinkError, WriteReport};
use crate::writer::Interrupted;

/// Most spans of a trace and most events of a span: a batch that is tried for a quarter of an hour must not grow without end.
const MAX: usize = 128;

/// Begins the traces of one queue's batches.
#[derive(Clone, Debug)]
pub struct Tracer {
    exporter: Arc<Exporter>,
    data_type: DataType,
    queue: String,
}

impl Tracer {
    /// A tracer for the batches of this queue.
    pub fn new(exporter: &Arc<Exporter>, data_type: DataType, queue: &str) -> Self {
        Tracer { exporter: Arc::clone(exporter), data_type, queue: queue.to_owned() }
    }

    /// The trace of a batch whose first record was received then; `None` for one that is not to be traced.
    pub fn begin(&self, opened: Instant) -> Option<Box<BatchTrace>> {
        if fastrand::f64() >= self.exporter.share {
            return None;
        }
        let ids = RandomIdGenerator::default();
        let context =
            SpanContext::new(ids.new_trace_id(), ids.new_span_id(), TraceFlags::SAMPLED, false, TraceState::NONE);
        Some(Box::new(BatchTrace {
            exporter: Arc::clone(&self.exporter),
            context,
            now: (Instant::now(), SystemTime::now()),
            opened,
            decoded: opened,
            decoding: Duration::ZERO,
            last_tag: 0,
            links: Links::default(),
            written: opened,
            report: WriteReport::default(),
            deduplicated: 0,
            dead_lettered: 0,
            attributes: vec![
                KeyValue::new("messaging.system", "rabbitmq"),
                KeyValue::new("messaging.destination.name", self.queue.clone()),
                KeyValue::new("messaging.operation.type", "process"),
                KeyValue::new("data_type", self.data_type.name()),
            ],
            events: SpanEvents::default(),
            children: Vec::new(),
            left_out: 0,
        }))
    }
}

/// What is known of one batch so far.
#[derive(Debug)]
pub struct BatchTrace {
    exporter: Arc<Exporter>,
    /// The span of the batch itself.
    context: SpanContext,
    /// The same moment on both clocks.
    now: (Instant, SystemTime),
    opened: Instant,
    /// When the last record was decoded, and how long decoding took altogether.
    decoded: Instant,
    decoding: Duration,
    /// Highest delivery tag.
    last_tag: u64,
    links: Links,
    /// When everything was settled.
    written: Instant,
    report: WriteReport,
    deduplicated: usize,
    dead_lettered: usize,
    attributes: Vec<KeyValue>,
    events: SpanEvents,
    children: Vec<SpanData>,
    left_out: usize,
}

impl BatchTrace {
    /// The trace's id, as logs and tools write it.
    pub fn id(&self) -> String {
        self.context.trace_id().to_string()
    }

    /// A record that was received then is decoded now, and part of the batch.
    pub fn decoded(&mut self, origin: &Origin, received: Instant) {
        self.decoded = Instant::now();
        self.decoding += self.decoded - received;
        self.last_tag = self.last_tag.max(origin.token.tag());
        self.links.add(&origin.properties);
    }

    /// The batch is closed.
    pub fn closed(&mut self, records: usize, bytes: usize, trigger: Trigger) {
        self.attributes.extend([
            KeyValue::new("batch.records", records as i64),
            KeyValue::new("batch.bytes", bytes as i64),
            KeyValue::new("batch.trigger", trigger.name()),
        ]);
        self.event("closed", vec![]);
        let busy = vec![KeyValue::new("decode.busy_seconds", self.decoding.as_secs_f64())];
        self.child("decode", (self.opened, self.decoded), busy);
    }

    /// A writer takes it.
    pub fn started(&mut self) {
        self.child("wait", (self.opened, Instant::now()), vec![]);
    }

    /// An attempt to write so many records ended now, as `error` tells if it failed. It had asked for its turn and got it at these
    /// times.
    pub fn attempt(
        &mut self,
        (asked, started): (Instant, Instant),
        records: usize,
        phases: Phases,
        error: Option<&SinkError>,
    ) {
        self.child("permit", (asked, started), vec![]);
        let write = self.context.span_id();
        let write =
            self.span(write, "write", (started, Instant::now()), vec![KeyValue::new("batch.records", records as i64)]);
        let Some(write) = write else {
            return;
        };
        write.span_kind = SpanKind::Client;
        if let Some(error) = error {
            write.attributes.extend(describe(error));
            write.status = Status::error(error.message.clone());
        }
        let parent = write.span_context.span_id();
        for Phase { name, start, end } in phases.into_kept() {
            self.span(parent, name, (start, end), vec![]);
        }
    }

    /// An attempt failed, and there will be another.
    pub fn retry(&mut self, error: &SinkError) {
        self.event("retry", describe(error).into());
    }

    /// So many records were refused together, and are tried in two halves.
    pub fn bisect(&mut self, records: usize, error: &SinkError) {
        let mut attributes = describe(error).to_vec();
        attributes.push(KeyValue::new("batch.records", records as i64));
        self.event("bisect", attributes);
    }

    /// A part of the batch is committed.
    pub fn committed(&mut self, report: WriteReport, deduplicated: usize) {
        self.report.inserted += report.inserted;
        self.report.updated += report.updated;
        self.report.unchanged += report.unchanged;
        self.deduplicated += deduplicated;
    }

    /// A message is in the dead-letter queue.
    pub fn dead_lettered(&mut self, reason: &'static str) {
        self.dead_lettered += 1;
        self.event("dead_letter", vec![KeyValue::new("reason", reason)]);
    }

    fn event(&mut self, name: &'static str, attributes: Vec<KeyValue>) {
        if self.events.len() < MAX {
            let at = self.time(Instant::now());
            self.events.events.push(Event::new(name, at, attributes, 0));
        } else {
            self.events.dropped_count += 1;
        }
    }

    fn child(&mut self, name: &'static str, time: (Instant, Instant), attributes: Vec<KeyValue>) {
        self.span(self.context.span_id(), name, time, attributes);
    }

    /// Adds a span, unless there are too many.
    fn span(
        &mut self,
        parent: SpanId,
        name: &'static str,
        (start, end): (Instant, Instant),
        attributes: Vec<KeyValue>,
    ) -> Option<&mut SpanData> {
        if self.children.len() >= MAX {
            self.left_out += 1;
            return None;
        }
        let id = RandomIdGenerator::default().new_span_id();
        self.children.push(SpanData {
            span_context: SpanContext::new(self.context.trace_id(), id, TraceFlags::SAMPLED, false, TraceState::NONE),
            parent_span_id: parent,
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: Cow::Borrowed(name),
            start_time: self.time(start),
            end_time: self.time(end),
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: self.exporter.scope.clone(),
        });
        self.children.last_mut()
    }

    fn time(&self, at: Instant) -> SystemTime {
        let (instant, time) = self.now;
        if at >= instant { time + (at - instant) } else { time - (instant - at) }
    }

    /// Makes the batch's own span and sends them all.
    fn finish(mut self, status: Status) {
        for (name, count) in [
            ("batch.inserted", self.report.inserted),
            ("batch.updated", self.report.updated),
            ("batch.unchanged", self.report.unchanged),
            ("batch.deduplicated", self.deduplicated),
            ("batch.dead_lettered", self.dead_lettered),
        ] {
            self.attributes.push(KeyValue::new(name, count as i64));
        }
        if self.left_out > 0 {
            self.attributes.push(KeyValue::new("batch.spans_left_out", self.left_out as i64));
        }
        let root = SpanData {
            parent_span_id: SpanId::INVALID,
            parent_span_is_remote: false,
            span_kind: SpanKind::Consumer,
            name: Cow::Borrowed("batch"),
            start_time: self.time(self.opened),
            end_time: self.time(Instant::now()),
            dropped_attributes_count: 0,
            status,
            instrumentation_scope: self.exporter.scope.clone(),
            span_context: self.context,
            attributes: self.attributes,
            events: self.events,
            links: self.links.into_span_links(),
        };
        let mut spans = self.children;
        spans.push(root);
        self.exporter.send(spans);
    }
}

fn describe(error: &SinkError) -> [KeyValue; 2] {
    [KeyValue::new("error.type", error.code.clone()), KeyValue::new("error.class", error.class.name())]
}

/// The traces of batches that are written and wait for the acknowledgement to be sent. A trace that is left when the channel ends
/// says that it was not.
#[derive(Debug, Default)]
pub struct Unacked(Vec<BatchTrace>);

impl Unacked {
    /// The batch is done with; `interrupted` says why not all of it.
    pub fn add(&mut self, trace: Option<Box<BatchTrace>>, interrupted: Option<&Interrupted>) {
        let Some(mut trace) = trace else {
            return;
        };
        match interrupted {
            Some(Interrupted::HeldTooLong(error)) => trace.finish(Status::error(format!("held too long: {error}"))),
            Some(Interrupted::Fenced(error)) => trace.finish(Status::error(error.to_string())),
            Some(Interrupted::Cancelled) => trace.finish(Status::error("cancelled")),
            None => {
                trace.written = Instant::now();
                self.0.push(*trace);
            }
        }
    }

    /// Every delivery up to this tag is acknowledged.
    pub fn acked(&mut self, tag: u64) {
        for mut trace in self.0.extract_if(.., |trace| trace.last_tag <= tag) {
            trace.child("ack", (trace.written, Instant::now()), vec![]);
            trace.finish(Status::Unset);
        }
    }
}

impl Drop for Unacked {
    fn drop(&mut self) {
        for trace in self.0.drain(..) {
            trace.finish(Status::error("not acknowledged: its messages come back"));
        }
    }
}
