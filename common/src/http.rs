//! The HTTP server of workers and extractor: `/health` (liveness), `/ready` (can it work?) and `/metrics` (Prometheus). The
//! workers also have a page for people at `/`, which reads these and `/status`. And [`client`], for calls to others.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use ureq::Agent;
use ureq::tls::{RootCerts, TlsConfig};

use crate::logging::Recent;
use crate::tuning::InForce;

/// Longest wait of [`ask`], to connect and for the answer.
const ASK: Duration = Duration::from_secs(3);

/// What `/health` and `/ready` tell.
pub trait Probe: Send + Sync + 'static {
    /// Whether the process itself is in order, and the body of `/health`.
    fn health(&self) -> (bool, Value);

    /// Why it can't do its work now; empty if it can.
    fn unready(&self) -> Vec<String>;
}

/// What `/status` tells: what the page at `/` shows beside health and metrics.
#[derive(Debug)]
pub struct About {
    /// The configuration in force, without secrets.
    pub in_force: watch::Receiver<InForce>,
    /// Newest warnings and errors.
    pub recent: Recent,
}

#[derive(Clone)]
struct Shared {
    probe: Arc<dyn Probe>,
    metrics: PrometheusHandle,
}

/// Binds the port on all interfaces. Port 0 takes a free one.
///
/// # Errors
/// If the port is taken.
pub async fn bind(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind(("0.0.0.0", port)).await
}

/// Serves until the future is dropped.
///
/// # Errors
/// If the listener fails.
pub async fn serve(listener: TcpListener, probe: Arc<dyn Probe>, metrics: PrometheusHandle) -> io::Result<()> {
    axum::serve(listener, endpoints(probe, metrics)).await
}

/// The same with the page at `/`.
///
/// # Errors
/// If the listener fails.
pub async fn serve_with_page(
    listener: TcpListener,
    probe: Arc<dyn Probe>,
    metrics: PrometheusHandle,
    about: About,
) -> io::Result<()> {
    let about = Arc::new(about);
    let app = endpoints(probe, metrics)
        .route("/", get(page))
        .route("/status", get(move || async move { answer(true, about.to_json().to_string()) }));
    axum::serve(listener, app).await
}

fn endpoints(probe: Arc<dyn Probe>, metrics: PrometheusHandle) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(render))
        .with_state(Shared { probe, metrics })
}

impl About {
    fn to_json(&self) -> Value {
        let settings = &self.in_force.borrow().settings;
        json!({"version": crate::VERSION, "settings": settings, "recent": self.recent.lines()})
    }
}

/// A client for addresses out there, which blocks. It trusts these CAs ([`RootCerts::PlatformVerifier`]: the system's), and no request takes
/// longer than `timeout`.
pub fn client(timeout: Duration, roots: RootCerts) -> Agent {
    let tls = TlsConfig::builder().root_certs(roots).build();
    Agent::config_builder().timeout_global(Some(timeout)).tls_config(tls).build().into()
}

/// Asks a process of this machine for `/health`; whether it is in order.
///
/// # Errors
/// If nobody answers on that port within some seconds.
pub fn ask(port: u16) -> io::Result<bool> {
    let mut stream = TcpStream::connect_timeout(&([127, 0, 0, 1], port).into(), ASK)?;
    stream.set_read_timeout(Some(ASK))?;
    stream.write_all(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.split(' ').nth(1) == Some("200"))
}

async fn health(State(shared): State<Shared>) -> Response {
    let (healthy, body) = shared.probe.health();
    answer(healthy, body.to_string())
}

async fn ready(State(shared): State<Shared>) -> Response {
    let reasons = shared.probe.unready();
    answer(reasons.is_empty(), json!({"ready": reasons.is_empty(), "reasons": reasons}).to_string())
}

async fn render(State(shared): State<Shared>) -> Response {
    shared.metrics.run_upkeep();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], shared.metrics.render()).into_response()
}

async fn page() -> Response {
    // All that it needs is in it, and it may ask nobody else.
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                  base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, include_str!("page.html")).into_response()
}

fn answer(good: bool, body: String) -> Response {
    let code = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}
