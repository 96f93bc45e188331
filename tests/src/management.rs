//! The broker's management API: what the broker itself knows of its objects.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

use crate::stage::services;
use crate::{Error, Stage};

/// A request: status and body.
pub fn broker_api(method: &str, path: &str, body: &str) -> Result<(u16, Value), Error> {
    let s = services();
    let login = base64(format!("{}:{}", s.get("RABBITMQ_USERNAME"), s.get("RABBITMQ_PASSWORD")).as_bytes());
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

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let bits = (0..3).fold(0u32, |bits, i| bits << 8 | u32::from(*chunk.get(i).unwrap_or(&0)));
        for i in 0..4 {
            let letter = char::from(LETTERS[(bits >> (18 - 6 * i)) as usize & 63]);
            out.push(if i <= chunk.len() { letter } else { '=' });
        }
    }
    out
}

/// The consumers of this stage's queues.
pub fn consumers(stage: &Stage) -> Result<Vec<Value>, Error> {
    let (_, mut all) = broker_api("GET", "consumers/%2F", "")?;
    let mine = format!("{}-", stage.prefix);
    let all = all.as_array_mut().map(std::mem::take).unwrap_or_default();
    Ok(all.into_iter().filter(|c| c["queue"]["name"].as_str().is_some_and(|name| name.starts_with(&mine))).collect())
}
