//! Where traces go, from the variables that OpenTelemetry gives these names.

use percent_encoding::percent_decode_str;
use ureq::http::{HeaderName, HeaderValue, Uri};

use crate::config::{Env, Secret};

/// Where traces go, and how many.
#[derive(Clone, Debug)]
pub struct TraceConfig {
    /// Base URL of the receiver, without a slash at its end.
    pub endpoint: String,
    /// Headers that it wants: names, and values that are mostly keys.
    pub headers: Vec<(String, Secret)>,
    /// Service name, if not the worker's.
    pub service: Option<String>,
    /// Share of the batches that are traced, 0 to 1.
    pub share: f64,
}

/// Reads the variables; `None` if nobody wants traces. Problems stay in `env`.
pub fn read(env: &mut Env) -> Option<TraceConfig> {
    let endpoint = env.optional("OTEL_EXPORTER_OTLP_ENDPOINT");
    let given = env.optional("OTEL_EXPORTER_OTLP_HEADERS").unwrap_or_default();
    let service = env.optional("OTEL_SERVICE_NAME");
    let endpoint = endpoint?;
    // Other samplers' arguments, which may be set for all programs of a cluster, are of no concern to one that traces nothing.
    let share = env.number("OTEL_TRACES_SAMPLER_ARG", 0.0..=1.0);
    let endpoint = endpoint.trim().trim_end_matches('/').to_owned();
    // Neither is repeated: the one may hold credentials, the other does.
    if !is_base_url(&endpoint) {
        env.problem(
            "OTEL_EXPORTER_OTLP_ENDPOINT is no base URL: give http://HOST:PORT or https://HOST:PORT, without credentials and query",
        );
    }
    let headers = headers(&given);
    if headers.is_none() {
        env.problem("OTEL_EXPORTER_OTLP_HEADERS can't be read: give NAME=VALUE,NAME=VALUE, values percent-encoded");
    }
    Some(TraceConfig { endpoint, headers: headers.unwrap_or_default(), service, share })
}

fn is_base_url(text: &str) -> bool {
    text.parse::<Uri>().is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
            && uri.query().is_none()
            && !text.contains('#')
    })
}

/// `None` if a pair is none, or no header.
fn headers(text: &str) -> Option<Vec<(String, Secret)>> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=')?;
            let name: HeaderName = name.trim().parse().ok()?;
            let value = percent_decode_str(value.trim()).decode_utf8().ok()?.into_owned();
            HeaderValue::from_str(&value).ok()?;
            Some((name.as_str().to_owned(), Secret::from(value)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{COMMON, ConfigError};

    fn read_from(values: &[(&str, &str)]) -> Result<Option<TraceConfig>, ConfigError> {
        let values = values.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let mut env = Env::from_values(&[COMMON], values);
        let config = read(&mut env);
        env.finish(config).map(|(config, _)| config)
    }

    #[test]
    fn off_without_an_endpoint() {
        assert!(
            read_from(&[("OTEL_EXPORTER_OTLP_ENDPOINT", ""), ("OTEL_SERVICE_NAME", "x")]).expect("valid").is_none()
        );
    }

    #[test]
    fn headers_are_decoded_and_not_shown() {
        let config = read_from(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4318/base/"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Basic%20hidden==, x-key=b"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
        ]);
        let config = config.expect("valid").expect("on");
        let headers: Vec<_> = config.headers.iter().map(|(name, value)| (name.as_str(), value.expose())).collect();
        assert_eq!(headers, [("authorization", "Basic hidden=="), ("x-key", "b")]);
        assert_eq!((config.endpoint.as_str(), config.share), ("https://collector:4318/base", 0.25));
        assert!(!format!("{config:?}").contains("hidden"));
    }

    #[test]
    fn what_can_t_be_used_is_refused_and_not_repeated() {
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://u:hidden@collector:4318"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318?key=hidden"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "grpc://collector:4317"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "hidden"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a b=hidden"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=hidden%0Ab:c"),
        ] {
            let values = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318"), (name, value)];
            let problems = read_from(&values).expect_err(value).to_string();
            assert!(problems.contains(name) && !problems.contains("hidden"), "{value}: {problems}");
        }
    }
}
