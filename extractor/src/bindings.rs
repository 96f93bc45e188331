//! Whether queues are bound, asked of RabbitMQ's management API: AMQP has no question for it.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use common::config::{BrokerConfig, Secret};
use common::http;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::Deserialize;
use ureq::Agent;
use ureq::tls::{Certificate, PemItem, RootCerts, parse_pem};

use crate::publish::{Target, TargetError};

/// Longest time that one answer may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Largest answer in bytes: a queue has a binding or two.
const MOST: u64 = 1 << 20;

/// How to reach the management API.
#[derive(Clone, Debug)]
pub struct Management {
    /// Address without user and password.
    base: String,
    /// Host and port, to be told.
    host: String,
    /// Value of the header.
    authorization: Secret,
    vhost: String,
    ca_pem: Option<String>,
}

#[derive(Deserialize)]
struct Binding {
    source: String,
}

impl Management {
    /// Reads an address such as `http://user:password@rabbitmq:15672`. User and password are those of AMQP unless it has some.
    ///
    /// # Errors
    /// What is wrong, without the address: it may hold a password.
    pub fn new(url: &str, broker: &BrokerConfig) -> Result<Management, &'static str> {
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        if !matches!(scheme, "http" | "https") {
            return Err("does not begin with http:// or https://");
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        if path.contains(['@', '?', '#']) {
            return Err("is no address of a server (in a user or password, /, ?, # and @ must be percent-encoded)");
        }
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let (login, host) = match authority.rsplit_once('@') {
            Some((login, host)) => {
                let (user, password) = login.split_once(':').unwrap_or((login, ""));
                (format!("{}:{}", decoded(user), decoded(password)), host)
            }
            None => (format!("{}:{}", broker.username, broker.password.expose()), authority),
        };
        if host.is_empty() {
            return Err("has no host");
        }
        Ok(Management {
            base: format!("{scheme}://{host}/{path}").trim_end_matches('/').to_owned(),
            host: host.to_owned(),
            authorization: format!("Basic {}", BASE64_STANDARD.encode(login)).into(),
            vhost: broker.vhost.clone(),
            ca_pem: broker.ca_pem.clone(),
        })
    }

    /// What keeps messages from reaching the targets' queues, for a person: nothing if each queue is bound to its exchange.
    pub async fn problems(&self, targets: &[Target]) -> Vec<String> {
        let (this, targets) = (self.clone(), targets.to_vec());
        let looked = tokio::task::spawn_blocking(move || this.look(&targets)).await;
        looked.map_err(|e| e.to_string()).flatten().unwrap_or_else(|e| {
            vec![format!(
                "the management API at {} (RABBITMQ_MANAGEMENT_URL) can't be asked for bindings: {e}",
                self.host
            )]
        })
    }

    fn look(&self, targets: &[Target]) -> Result<Vec<String>, String> {
        let agent = self.agent()?;
        let mut problems = Vec::new();
        for Target { exchange, queues, .. } in targets {
            for queue in queues {
                match self.bindings(&agent, queue)? {
                    None => problems.push(TargetError::Missing(queue.clone()).to_string()),
                    Some(bindings) if bindings.iter().any(|binding| binding.source == *exchange) => {}
                    Some(_) => problems.push(format!(
                        "queue {queue} is not bound to exchange {exchange}, so that it would miss every message: restart \
                         its worker, which binds it, or leave the worker out of --expect-queues"
                    )),
                }
            }
        }
        Ok(problems)
    }

    fn agent(&self) -> Result<Agent, String> {
        let roots = match &self.ca_pem {
            None => RootCerts::PlatformVerifier,
            Some(pem) => {
                let mut certificates: Vec<Certificate<'static>> = Vec::new();
                for item in parse_pem(pem.as_bytes()) {
                    if let PemItem::Certificate(certificate) = item.map_err(|e| e.to_string())? {
                        certificates.push(certificate);
                    }
                }
                RootCerts::from(certificates)
            }
        };
        Ok(http::client(TIMEOUT, roots))
    }

    /// A queue's bindings; `None` if there is no such queue.
    fn bindings(&self, agent: &Agent, queue: &str) -> Result<Option<Vec<Binding>>, String> {
        let encoded = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
        let url = format!("{}/api/queues/{}/{}", self.base, encoded(&self.vhost), encoded(queue));
        // The bindings of a queue that does not exist look like those of one that is not bound.
        let Some(_) = self.ask(agent, &url)? else { return Ok(None) };
        let Some(text) = self.ask(agent, &format!("{url}/bindings"))? else { return Ok(None) };
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|_| "it answered with something else: is that its address?".to_owned())
    }

    /// The answer to GET; `None` if there is nothing of that name.
    fn ask(&self, agent: &Agent, url: &str) -> Result<Option<String>, String> {
        // A redirect would take the password elsewhere.
        let get = agent.get(url).config().max_redirects(0).build();
        match get.header("authorization", self.authorization.expose()).call() {
            Ok(mut answer) => {
                let text = answer.body_mut().with_config().limit(MOST).read_to_string();
                text.map(Some).map_err(|e| e.to_string())
            }
            Err(ureq::Error::StatusCode(404)) => Ok(None),
            Err(ureq::Error::StatusCode(code @ (401 | 403))) => {
                Err(format!("status {code}: its user needs the tag `management`, and may be given in the address"))
            }
            Err(ureq::Error::StatusCode(code)) => Err(format!("it answered with status {code}")),
            Err(e) => Err(e.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::config::{self, Env};

    fn broker() -> BrokerConfig {
        let values = [("RABBITMQ_USERNAME", "amqp"), ("RABBITMQ_PASSWORD", "p:w"), ("RABBITMQ_VHOST", "/a b")];
        let values = values.map(|(name, value)| (name.to_owned(), value.to_owned()));
        config::broker(&mut Env::from_values(&[config::BROKER], values))
    }

    #[test]
    fn user_and_password_are_those_of_amqp_unless_the_address_has_some() {
        for (url, base, host, login) in [
            ("http://rabbitmq:15672", "http://rabbitmq:15672", "rabbitmq:15672", "amqp:p:w"),
            ("http://rabbitmq:15672/", "http://rabbitmq:15672", "rabbitmq:15672", "amqp:p:w"),
            ("https://u:p%2F%40@h/rabbit/", "https://h/rabbit", "h", "u:p/@"),
            ("http://u@[::1]:1", "http://[::1]:1", "[::1]:1", "u:"),
            ("http://u:a@b@h", "http://h", "h", "u:a@b"),
        ] {
            let management = Management::new(url, &broker()).unwrap();
            assert_eq!((management.base.as_str(), management.host.as_str()), (base, host), "{url}");
            let expected = format!("Basic {}", BASE64_STANDARD.encode(login));
            assert_eq!(management.authorization.expose(), expected, "{url}");
            assert!(!format!("{management:?}").contains(&expected), "{management:?}");
        }
        for url in ["rabbitmq:15672", "amqp://h", "http://", "http:///x", "http://u:p/w@h", "http://h/?x", ""] {
            assert!(Management::new(url, &broker()).is_err(), "{url}");
        }
    }
}
