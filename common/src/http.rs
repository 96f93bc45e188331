//! The HTTP server of workers and extractor: `/health` (liveness), `/ready` (can it work?) and `/metrics` (Prometheus).

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

/// Longest wait of [`ask`], to connect and for the answer.
const ASK: Duration = Duration::from_secs(3);

/// What `/health` and `/ready` tell.
pub trait Probe: Send + Sync + 'static {
    /// Whether the process itself is in order, and the body of `/health`.
    fn health(&self) -> (bool, Value);

    /// Why it can't do its work now; empty if it can.
    fn unready(&self) -> Vec<String>;
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
    let app = Router::new()
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(render))
        .with_state(Shared { probe, metrics });
    axum::serve(listener, app).await
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

fn answer(good: bool, body: String) -> Response {
    let code = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}
