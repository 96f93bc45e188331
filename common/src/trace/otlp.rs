//! OTLP over HTTP: spans as protobuf, in a POST to the receiver's `/v1/traces`.

use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanData;
use prost::Message;
use ureq::Agent;
use ureq::tls::RootCerts;

use super::config::TraceConfig;
use crate::config::Secret;

/// Longest time that one request may take, which is OpenTelemetry's own default.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A receiver of spans.
#[derive(Debug)]
pub struct Receiver {
    agent: Agent,
    url: String,
    headers: Vec<(String, Secret)>,
    resource: ResourceAttributesWithSchema,
}

impl Receiver {
    /// The receiver that the settings name. `resource` says whose spans they are.
    pub fn new(config: &TraceConfig, resource: &Resource) -> Self {
        Receiver {
            agent: crate::http::client(TIMEOUT, RootCerts::PlatformVerifier),
            url: format!("{}/v1/traces", config.endpoint),
            headers: config.headers.clone(),
            resource: resource.into(),
        }
    }

    /// Sends spans, and waits for the answer. Returns how many of them the receiver rejected.
    ///
    /// # Errors
    /// Why none was taken, without secrets.
    pub fn send(&self, spans: Vec<SpanData>) -> Result<usize, String> {
        let resource_spans = group_spans_by_resource_and_scope(spans, &self.resource);
        let body = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
        // A redirect would take the headers elsewhere.
        let post = self.agent.post(&self.url).config().max_redirects(0).build();
        let post = post.header("content-type", "application/x-protobuf");
        let post = self.headers.iter().fold(post, |post, (name, value)| post.header(name, value.expose()));
        let mut answer = post.send(&body).map_err(|e| match e {
            ureq::Error::StatusCode(code) => format!("it answered with status {code}"),
            e => e.to_string(),
        })?;
        if !answer.status().is_success() {
            return Err(format!("it answered with status {}", answer.status().as_u16()));
        }
        let answer = answer.body_mut().read_to_vec().map_err(|e| e.to_string())?;
        // An answer of some other kind is no reason to doubt its status.
        let answer = ExportTraceServiceResponse::decode(answer.as_slice()).unwrap_or_default();
        let rejected = answer.partial_success.map_or(0, |partial| partial.rejected_spans);
        Ok(usize::try_from(rejected).unwrap_or_default())
    }
}
