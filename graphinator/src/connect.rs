//! The connection to Neo4j, replaced as a whole when it misbehaved.

use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use common::sink::{Class, SinkError};
use neo4rs::{ConfigBuilder, Graph, Query, Row, Txn};

use crate::config::Neo4jConfig;
use crate::errors::classify;

/// Connections beside those that write: prepare, control, links.
const SPARE_CONNECTIONS: usize = 6;

/// Whether a statement of a transaction returns anything.
///
/// # Errors
/// The database's.
pub async fn finds(transaction: &mut Txn, statement: Query) -> Result<bool, neo4rs::Error> {
    let mut rows = transaction.execute(statement).await?;
    let mut found = false;
    while rows.next(&mut *transaction).await?.is_some() {
        found = true;
    }
    Ok(found)
}

/// The first row that a statement returns, if any. All are read: the end of the result tells whether it is committed.
///
/// # Errors
/// The database's.
pub async fn first(graph: &Graph, statement: Query) -> Result<Option<Row>, neo4rs::Error> {
    let mut rows = graph.execute(statement).await?;
    let first = rows.next().await?;
    while rows.next().await?.is_some() {}
    Ok(first)
}

/// Makes pools and keeps the current one.
pub struct Connector {
    config: Neo4jConfig,
    timeout: Duration,
    current: RwLock<Option<Graph>>,
}

impl Connector {
    /// Connects on first use. `timeout` bounds connecting and each wait for an answer.
    pub fn new(config: Neo4jConfig, timeout: Duration) -> Self {
        Connector { config, timeout, current: RwLock::new(None) }
    }

    /// The current pool.
    ///
    /// # Errors
    /// [`SinkError`] if the settings can't work, e.g. an unusable CA file.
    pub fn graph(&self) -> Result<Graph, SinkError> {
        if let Some(graph) = self.current.read().unwrap_or_else(PoisonError::into_inner).as_ref() {
            return Ok(graph.clone());
        }
        let graph = self.connect()?;
        Ok(self.current.write().unwrap_or_else(PoisonError::into_inner).get_or_insert(graph).clone())
    }

    /// Drops the pool after an error without an answer: a connection in an unknown state would go back to it, its
    /// transaction still open on the server, and hold its locks until somebody happens to draw it.
    pub fn discard(&self) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn connect(&self) -> Result<Graph, SinkError> {
        let c = &self.config;
        let mut builder = ConfigBuilder::new()
            .uri(c.uri.as_str())
            .user(c.username.as_str())
            .password(c.password.expose())
            .db(c.database.as_str())
            .max_connections(c.transactions + SPARE_CONNECTIONS)
            .connection_timeout(self.timeout);
        if let Some(ca) = &c.ca_file {
            builder = builder.with_client_certificate(ca);
        }
        if !c.verify {
            builder = builder.skip_ssl_validation();
        }
        builder.build().and_then(Graph::connect).map_err(|e| {
            let classified = classify(&e);
            SinkError::new(Class::Fatal, classified.code, format!("can't use {}: {}", c.uri, classified.message))
        })
    }
}
