//! A receiver of traces, as OpenTelemetry's protocol wants it (OTLP over HTTP, protobuf), which keeps what it gets.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;

use crate::Error;
use crate::stage::within;

/// One request.
#[derive(Clone, Debug)]
pub struct Request {
    /// Request line and headers.
    pub head: String,
    /// The body, as it came.
    pub body: Vec<u8>,
    /// What it says.
    pub export: ExportTraceServiceRequest,
}

/// The receiver.
pub struct Receiver {
    /// Its base URL.
    pub endpoint: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Receiver {
    /// Starts it on a free port.
    ///
    /// # Errors
    /// If there is none.
    pub fn start() -> Result<Receiver, Error> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let endpoint = format!("http://127.0.0.1:{}", listener.local_addr()?.port());
        let requests: Arc<Mutex<Vec<Request>>> = Arc::default();
        let kept = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let kept = Arc::clone(&kept);
                // Until the client closes the connection.
                std::thread::spawn(move || while answer(&stream, &kept).is_ok() {});
            }
        });
        Ok(Receiver { endpoint, requests })
    }

    /// What came so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All spans that came so far.
    pub fn spans(&self) -> Vec<Span> {
        let resources = self.requests().into_iter().flat_map(|request| request.export.resource_spans);
        resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans).collect()
    }

    /// Waits until so many traces have come, and returns them in the order of their beginning.
    ///
    /// # Errors
    /// If they don't come, or are no whole traces of one batch each.
    pub async fn traces(&self, count: usize) -> Result<Vec<Trace>, Error> {
        let roots = || self.spans().iter().filter(|span| span.parent_span_id.is_empty()).count();
        within(Duration::from_secs(30), "all traced", async || Ok(roots() >= count)).await?;
        let mut traces = Trace::all(self.spans())?;
        traces.sort_by_key(|trace| trace.root.start_time_unix_nano);
        Ok(traces)
    }
}

fn answer(mut stream: &TcpStream, kept: &Mutex<Vec<Request>>) -> Result<(), Error> {
    let mut reader = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    while reader.read_line(&mut head)? > 2 {
        let line = head.lines().last().unwrap_or_default().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let export = ExportTraceServiceRequest::decode(body.as_slice());
    let right = head.starts_with("POST /v1/traces ") && head.contains("content-type: application/x-protobuf");
    let code = if right && export.is_ok() { 200 } else { 400 };
    let text = ExportTraceServiceResponse::default().encode_to_vec();
    write!(
        stream,
        "HTTP/1.1 {code} Hm\r\nContent-Type: application/x-protobuf\r\nContent-Length: {}\r\n\r\n",
        text.len()
    )?;
    stream.write_all(&text)?;
    kept.lock().unwrap_or_else(PoisonError::into_inner).push(Request { head, body, export: export? });
    Ok(())
}

/// The trace of one batch.
#[derive(Debug)]
pub struct Trace {
    /// The batch's own span.
    pub root: Span,
    spans: Vec<Span>,
}

impl Trace {
    fn all(spans: Vec<Span>) -> Result<Vec<Trace>, Error> {
        let (roots, others): (Vec<_>, Vec<_>) = spans.into_iter().partition(|span| span.parent_span_id.is_empty());
        let mut traces: Vec<_> = roots.into_iter().map(|root| Trace { root, spans: vec![] }).collect();
        for span in others {
            let trace = traces.iter_mut().find(|trace| trace.root.trace_id == span.trace_id);
            trace.ok_or_else(|| format!("{} belongs to no batch", span.name))?.spans.push(span);
        }
        traces.iter().try_for_each(Trace::check)?;
        Ok(traces)
    }

    /// Each span has a parent, which is there, and lies within its time.
    fn check(&self) -> Result<(), Error> {
        for span in &self.spans {
            let parent = std::iter::once(&self.root).chain(&self.spans).find(|p| p.span_id == span.parent_span_id);
            let parent = parent.ok_or_else(|| format!("the parent of {} is missing", span.name))?;
            let ordered = [
                parent.start_time_unix_nano,
                span.start_time_unix_nano,
                span.end_time_unix_nano,
                parent.end_time_unix_nano,
            ]
            .is_sorted();
            if !ordered {
                return Err(format!("{} is not within {}: {span:?} {parent:?}", span.name, parent.name).into());
            }
        }
        Ok(())
    }

    /// The spans below this one, in the order of their beginning.
    pub fn children(&self, parent: &Span) -> Vec<&Span> {
        let mut children: Vec<_> = self.spans.iter().filter(|span| span.parent_span_id == parent.span_id).collect();
        children.sort_by_key(|span| (span.start_time_unix_nano, span.end_time_unix_nano));
        children
    }

    /// The batch's own children of this name.
    pub fn named(&self, name: &str) -> Vec<&Span> {
        self.children(&self.root).into_iter().filter(|span| span.name == name).collect()
    }

    /// Names of the phases of its attempts to write, each attempt's in their order.
    pub fn phases(&self) -> Vec<Vec<&str>> {
        let writes = self.named("write").into_iter();
        writes.map(|write| self.children(write).into_iter().map(|span| span.name.as_str()).collect()).collect()
    }

    /// How often each event happened to the batch.
    pub fn events(&self, name: &str) -> usize {
        self.root.events.iter().filter(|event| event.name == name).count()
    }
}

/// An attribute's text; empty if there is none.
pub fn text(attributes: &[KeyValue], key: &str) -> String {
    match value(attributes, key) {
        Some(Value::StringValue(text)) => text.clone(),
        _ => String::new(),
    }
}

/// An attribute's number; -1 if there is none.
pub fn number(attributes: &[KeyValue], key: &str) -> i64 {
    match value(attributes, key) {
        Some(Value::IntValue(number)) => *number,
        _ => -1,
    }
}

fn value<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Value> {
    let AnyValue { value } = attributes.iter().find(|attribute| attribute.key == key)?.value.as_ref()?;
    value.as_ref()
}
