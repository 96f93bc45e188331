//! The way out: a bounded queue, a thread of OpenTelemetry's SDK that empties it, and an account of what was lost. Nobody ever
//! waits for the receiver, but for a moment at the very end.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanExporter, SpanProcessor};
use tracing::{info, warn};

use super::config::TraceConfig;
use super::otlp::Receiver;
use crate::metrics as names;

/// Spans that may wait for the receiver: some ten seconds of a fast load, or some megabytes.
const MAX_QUEUED: usize = 8192;
/// Longest time that a span waits for others.
const DELAY: Duration = Duration::from_secs(1);
/// Longest time that the end of the worker waits for the receiver.
const FLUSH: Duration = Duration::from_secs(2);
/// Shortest time between two warnings.
const QUIET: Duration = Duration::from_secs(60);

/// Where all batches' spans go.
#[derive(Debug)]
pub struct Exporter {
    processor: BatchSpanProcessor,
    shared: Arc<Shared>,
    /// Says what made the spans.
    pub(super) scope: InstrumentationScope,
    /// Share of the batches that are traced.
    pub(super) share: f64,
}

/// What the SDK's thread shares with us.
#[derive(Debug, Default)]
struct Shared {
    /// Spans that are neither delivered nor lost yet.
    queued: AtomicUsize,
    losses: Mutex<Losses>,
}

#[derive(Debug, Default)]
struct Losses {
    said: Option<Instant>,
    unsaid: usize,
}

impl Exporter {
    /// Starts the thread that sends.
    pub fn start(service: &'static str, environment: &str, config: &TraceConfig) -> Arc<Self> {
        let name = config.service.clone().unwrap_or_else(|| service.to_owned());
        // Beside these, what OTEL_RESOURCE_ATTRIBUTES says.
        let resource = Resource::builder()
            .with_service_name(name)
            .with_attribute(KeyValue::new("service.version", crate::VERSION))
            .with_attribute(KeyValue::new("deployment.environment.name", environment.to_owned()))
            .build();
        let shared = Arc::new(Shared::default());
        metrics::counter!(names::SPANS_EXPORTED).increment(0);
        for reason in ["queue_full", "export", "shutdown"] {
            metrics::counter!(names::SPANS_DROPPED, "reason" => reason).increment(0);
        }
        let sender = Sender { receiver: Receiver::new(config, &resource), shared: Arc::clone(&shared) };
        let limits = BatchConfigBuilder::default()
            .with_max_queue_size(MAX_QUEUED)
            .with_max_export_batch_size(512)
            .with_scheduled_delay(DELAY)
            .build();
        info!(endpoint = config.endpoint, share = config.share, "🔭 Batches are traced");
        Arc::new(Exporter {
            processor: BatchSpanProcessor::builder(sender).with_batch_config(limits).build(),
            shared,
            scope: InstrumentationScope::builder("discogs-ingest").with_version(env!("CARGO_PKG_VERSION")).build(),
            share: config.share,
        })
    }

    /// Queues a whole trace, or drops it if there is no room. Never waits.
    pub(super) fn send(&self, spans: Vec<SpanData>) {
        let count = spans.len();
        if self.shared.queued.fetch_add(count, Relaxed) + count > MAX_QUEUED {
            self.shared.queued.fetch_sub(count, Relaxed);
            self.shared.lost(count, "queue_full", "more spans than the receiver takes");
            return;
        }
        spans.into_iter().for_each(|span| self.processor.on_end(span));
    }

    /// Sends what is queued and stops, within some seconds.
    pub async fn shutdown(self: Arc<Self>) {
        let this = Arc::clone(&self);
        let flushed = tokio::task::spawn_blocking(move || this.processor.shutdown_with_timeout(FLUSH)).await;
        let left = self.shared.queued.load(Relaxed);
        if left > 0 {
            self.shared.lost(left, "shutdown", &format!("{flushed:?}"));
        }
    }
}

impl Shared {
    fn lost(&self, count: usize, reason: &'static str, why: &str) {
        metrics::counter!(names::SPANS_DROPPED, "reason" => reason).increment(count as u64);
        let mut losses = self.losses.lock().unwrap_or_else(PoisonError::into_inner);
        losses.unsaid += count;
        if losses.said.is_none_or(|said| said.elapsed() >= QUIET) {
            warn!(spans = losses.unsaid, reason, error = why, "🔭 Spans were lost; batches are loaded all the same");
            *losses = Losses { said: Some(Instant::now()), unsaid: 0 };
        }
    }
}

/// Runs in the SDK's thread.
#[derive(Debug)]
struct Sender {
    receiver: Receiver,
    shared: Arc<Shared>,
}

impl SpanExporter for Sender {
    /// Blocks, which that thread is for. What fails is lost, and counted: a receiver that is away for long would fill any queue.
    async fn export(&self, spans: Vec<SpanData>) -> OTelSdkResult {
        let count = spans.len();
        let (rejected, why) = match self.receiver.send(spans) {
            Ok(rejected) => (rejected.min(count), "the receiver rejected some".to_owned()),
            Err(why) => (count, why),
        };
        self.shared.queued.fetch_sub(count, Relaxed);
        metrics::counter!(names::SPANS_EXPORTED).increment((count - rejected) as u64);
        if rejected > 0 {
            self.shared.lost(rejected, "export", &why);
        }
        Ok(())
    }
}
