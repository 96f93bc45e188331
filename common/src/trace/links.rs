//! The producers' trace contexts (W3C: `traceparent`, `tracestate`) in the headers of messages, as links of a batch's span.

use std::collections::HashSet;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{Link, SpanContext, SpanId, TraceContextExt, TraceId};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SpanLinks;

/// Most links of a span, which is OpenTelemetry's own default.
const MAX_LINKS: usize = 128;
/// Bytes of a `tracestate` that is passed on: what W3C wants at least. A longer one is left out.
const MAX_STATE: usize = 512;

/// The distinct trace contexts of a batch's messages.
#[derive(Debug, Default)]
pub struct Links {
    seen: HashSet<(TraceId, SpanId)>,
    kept: Vec<Link>,
}

impl Links {
    /// Takes note of a message's trace context, if it has a valid one.
    pub fn add(&mut self, properties: &BasicProperties) {
        if let Some(context) = context(properties)
            && self.seen.insert((context.trace_id(), context.span_id()))
            && self.kept.len() < MAX_LINKS
        {
            self.kept.push(Link::with_context(context));
        }
    }

    /// The first of them as links, and how many were left out.
    pub fn into_span_links(self) -> SpanLinks {
        let mut links = SpanLinks::default();
        links.dropped_count = (self.seen.len() - self.kept.len()) as u32;
        links.links = self.kept;
        links
    }
}

fn context(properties: &BasicProperties) -> Option<SpanContext> {
    let headers = Headers(properties.headers().as_ref()?);
    headers.get("traceparent")?;
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &headers);
    let context = context.span().span_context().clone();
    context.is_valid().then_some(context)
}

struct Headers<'a>(&'a FieldTable);

impl Extractor for Headers<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        let text = match self.0.inner().get(name)? {
            AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok()?,
            AMQPValue::ShortString(text) => text.as_str(),
            _ => return None,
        };
        (text.len() <= MAX_STATE).then_some(text)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.inner().keys().map(|name| name.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn message(headers: &[(&str, &str)]) -> BasicProperties {
        let mut table = FieldTable::default();
        for (name, value) in headers {
            table.insert((*name).into(), AMQPValue::LongString((*value).into()));
        }
        BasicProperties::default().with_headers(table)
    }

    fn links(messages: &[BasicProperties]) -> SpanLinks {
        let mut links = Links::default();
        messages.iter().for_each(|m| links.add(m));
        links.into_span_links()
    }

    #[test]
    fn a_context_is_linked_once() {
        let state = message(&[("traceparent", PARENT), ("tracestate", "vendor=x")]);
        let links = links(&[state.clone(), state, BasicProperties::default(), message(&[("tracestate", "a=b")])]);
        assert_eq!((links.len(), links.dropped_count), (1, 0));
        let context = &links[0].span_context;
        assert_eq!(context.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(context.span_id().to_string(), "00f067aa0ba902b7");
        assert_eq!(context.trace_state().header(), "vendor=x");
    }

    #[test]
    fn what_is_no_context_is_ignored() {
        for text in [
            "",
            "x",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        ] {
            assert!(links(&[message(&[("traceparent", text)])]).is_empty(), "{text:?}");
        }
        let number = FieldTable::from(
            [("traceparent".into(), AMQPValue::LongInt(7))].into_iter().collect::<std::collections::BTreeMap<_, _>>(),
        );
        assert!(links(&[BasicProperties::default().with_headers(number)]).is_empty());
    }

    #[test]
    fn a_huge_state_is_left_out() {
        let state = format!("a={}", "x".repeat(MAX_STATE));
        let links = links(&[message(&[("traceparent", PARENT), ("tracestate", &state)])]);
        assert_eq!(links[0].span_context.trace_state().header(), "");
    }

    #[test]
    fn more_than_a_span_bears_are_counted() {
        let many: Vec<_> = (1..=200)
            .map(|n| message(&[("traceparent", &format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{n:016x}-01"))]))
            .collect();
        let links = links(&many);
        assert_eq!((links.len(), links.dropped_count), (128, 72));
    }
}
