//! The connection pool, with TLS and the staging table that each connection keeps.

use std::sync::Arc;
use std::time::Duration;

use common::sink::SinkError;
use deadpool_postgres::{Hook, HookError, Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio_postgres::NoTls;
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::config::PostgresConfig;
use crate::errors::{classify, classify_pool};

/// Longest wait for a connection: for a free one, and for a new one to be made.
const CONNECT: Duration = Duration::from_secs(15);

/// How much longer than the client the server waits: an attempt that the client gave up must not wait for a lock for ever.
const STATEMENT_GRACE: Duration = Duration::from_secs(5);

/// Where COPY puts a batch before the upsert. It belongs to its connection and empties itself at commit.
const STAGING: &str = "CREATE TEMPORARY TABLE IF NOT EXISTS ingest_staging \
     (data_id text NOT NULL, hash text NOT NULL, data jsonb NOT NULL) ON COMMIT DELETE ROWS; \
     ALTER TABLE ingest_staging ALTER COLUMN data SET STORAGE EXTERNAL"; // not compressed twice

/// A plan that was made for an empty table, and kept, would read all of it when it has grown. And a batch's few rows are
/// always found by index: the pages above the leaves are in memory.
const PLANS: &str = "SET plan_cache_mode = force_custom_plan; SET random_page_cost = 1.1";

/// What is new is compressed faster, where the server can (PostgreSQL 14, built with lz4). Everybody can read it.
const COMPRESSION: &str = "DO $$ BEGIN SET default_toast_compression = 'lz4'; EXCEPTION WHEN OTHERS THEN NULL; END $$";

/// A pool with a hard maximum; it connects on demand. `write_timeout` is the longest that a statement may take.
///
/// # Errors
/// A sentence for the operator, if the TLS settings can't work.
pub fn pool(config: &PostgresConfig, write_timeout: Duration) -> Result<Pool, String> {
    let mut pg = tokio_postgres::Config::new();
    pg.host(&config.host)
        .port(config.port)
        .user(&config.username)
        .password(config.password.expose())
        .dbname(&config.database)
        .application_name(crate::SERVICE)
        .connect_timeout(CONNECT)
        .keepalives_idle(Duration::from_secs(30))
        .tcp_user_timeout(Duration::from_secs(60));
    let recycle = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let manager = if config.tls {
        pg.ssl_mode(tokio_postgres::config::SslMode::Require);
        Manager::from_config(pg, MakeRustlsConnect::new(tls(config.ca_pem.as_deref())?), recycle)
    } else {
        pg.ssl_mode(tokio_postgres::config::SslMode::Disable);
        Manager::from_config(pg, NoTls, recycle)
    };
    let limit = (write_timeout + STATEMENT_GRACE).as_millis();
    // A process that was stopped in the middle of a transaction must not hold its locks for ever either.
    let session = format!(
        "SET statement_timeout = {limit}; SET idle_in_transaction_session_timeout = {limit}; {PLANS}; {COMPRESSION}; {STAGING}"
    );
    Pool::builder(manager)
        .max_size(config.pool_size)
        .runtime(Runtime::Tokio1)
        .wait_timeout(Some(CONNECT))
        .create_timeout(Some(CONNECT))
        .post_create(Hook::async_fn(move |client, _| {
            let session = session.clone();
            Box::pin(async move { client.batch_execute(&session).await.map_err(HookError::Backend) })
        }))
        .build()
        .map_err(|e| e.to_string())
}

fn tls(ca_pem: Option<&str>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(pem) = ca_pem {
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            certificate
                .map_err(|e| e.to_string())
                .and_then(|c| roots.add(c).map_err(|e| e.to_string()))
                .map_err(|e| format!("POSTGRES_TLS_CA_FILE holds no usable certificate: {e}"))?;
        }
    }
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map(|builder| builder.with_root_certificates(roots).with_no_client_auth())
        .map_err(|e| e.to_string())
}

/// A connection on loan. Unless it is given back by [`Lease::finish`], its state is unknown and it is closed: a
/// cancelled or timed-out attempt must not hand its leftovers to the next one.
pub struct Lease(Option<Object>);

impl Lease {
    /// Takes a connection.
    ///
    /// # Errors
    /// [`SinkError`].
    pub async fn take(pool: &Pool) -> Result<Lease, SinkError> {
        pool.get().await.map(|c| Lease(Some(c))).map_err(|e| classify_pool(&e))
    }

    /// The connection.
    ///
    /// # Errors
    /// Never while the lease is held; typed so that nothing can panic.
    pub fn client(&mut self) -> Result<&mut Object, SinkError> {
        self.0
            .as_mut()
            .ok_or_else(|| SinkError::new(common::sink::Class::Transient, "pool", "the connection was given back"))
    }

    /// Ends the loan after `outcome`: the connection is kept if the server answered, even with an error.
    ///
    /// # Errors
    /// The classified error of `outcome`.
    pub fn finish<T>(mut self, outcome: Result<T, tokio_postgres::Error>) -> Result<T, SinkError> {
        let answered = match &outcome {
            Ok(_) => true,
            // A standby says 25006 for ever: another connection may find the new primary. And what was prepared before a column
            // changed its type stays wrong (0A000).
            Err(e) => e.code().is_some_and(|c| !["25006", "0A000"].contains(&c.code())),
        };
        if answered {
            drop(self.0.take());
        }
        outcome.map_err(|e| classify(&e))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(object) = self.0.take() {
            drop(Object::take(object));
        }
    }
}
