//! The broker's management API: what the broker itself knows of its objects.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

use crate::stage::services;
use crate::{Error, Stage};

/// A request: status and body.
pub fn broker_api(method: &str, path: &str, body: &str) -> Result<(u16, Value), Error> {
    let s = services();
    let login = BASE64_STANDARD.encode(format!("{}:{}", s.get("RABBITMQ_USERNAME"), s.get("RABBITMQ_PASSWORD")));
    let port: u16 = s.get("RABBITMQ_MANAGEMENT_PORT").parse()?;
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    // HTTP/1.0: the answer is not chunked and ends with the connection.
    let request = format!(
        "{method} /api/{path} HTTP/1.0\r\nAuthorization: Basic {login}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no HTTP answer")?;
    let code = head.split(' ').nth(1).ok_or("no status")?.parse()?;
    Ok((code, serde_json::from_str(body).unwrap_or(Value::Null)))
}

/// The consumers of this stage's queues.
pub fn consumers(stage: &Stage) -> Result<Vec<Value>, Error> {
    let (_, mut all) = broker_api("GET", "consumers/%2F", "")?;
    let mine = format!("{}-", stage.prefix);
    let all = all.as_array_mut().map(std::mem::take).unwrap_or_default();
    Ok(all.into_iter().filter(|c| c["queue"]["name"].as_str().is_some_and(|name| name.starts_with(&mine))).collect())
}
