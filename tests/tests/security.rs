//! What must not be possible: a stranger's or an expired certificate, a secret where somebody may read it, a message or a
//! setting that is taken for a statement, a body without an end.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use common::DataType;
use integration_tests::oracle::{self, Messages};
use integration_tests::stage::{DeadLetter, PATIENT, binary, controlled, services, settled, stop_clean};
use integration_tests::states::{self, Allowed};
use integration_tests::tls::{Certificates, Front};
use integration_tests::{Error, Job, Stage};
use lapin::BasicProperties;
use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldTable};
use neo4rs::query;
use serde_json::json;
use xtask::process::Worker;
use xtask::sample;
use xtask::services::script;

/// Longest wait for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(60);

fn ready_body(worker: &Worker) -> String {
    worker.get("/ready").map(|(_, body)| body).unwrap_or_default()
}

// ------------------------------------------------------------------------------------------------- TLS

/// A connection that can be encrypted.
struct Link {
    worker: &'static str,
    /// As `check` calls the other end.
    peer: &'static str,
    /// The variable with the server's port.
    port: &'static str,
    /// What switches TLS on.
    on: &'static str,
    ca: &'static str,
}

const LINKS: [Link; 4] = [
    Link {
        worker: "tableinator",
        peer: "RabbitMQ",
        port: "RABBITMQ_PORT",
        on: "RABBITMQ_TLS_ENABLED",
        ca: "RABBITMQ_TLS_CA_FILE",
    },
    Link {
        worker: "tableinator",
        peer: "PostgreSQL",
        port: "POSTGRES_PORT",
        on: "POSTGRES_TLS_ENABLED",
        ca: "POSTGRES_TLS_CA_FILE",
    },
    Link {
        worker: "graphinator",
        peer: "RabbitMQ",
        port: "RABBITMQ_PORT",
        on: "RABBITMQ_TLS_ENABLED",
        ca: "RABBITMQ_TLS_CA_FILE",
    },
    Link {
        worker: "graphinator",
        peer: "Neo4j",
        port: "NEO4J_PORT",
        on: "NEO4J_TLS_ENABLED",
        ca: "NEO4J_TLS_CA_FILE",
    },
];

/// Each connection of each worker before a server whose certificate has expired, or was signed by somebody else: `check`
/// says so, and the worker waits, says why and gives nothing away. When the certificate is renewed it begins to work.
#[tokio::test(flavor = "multi_thread")]
async fn an_expired_or_a_foreign_certificate_is_refused_and_a_renewed_one_is_taken() -> Result<(), Error> {
    let stage = Stage::with_graph("certificates").await?;
    let certificates = Certificates::new(&stage.database)?;
    let ca = certificates.ca_file();
    for Link { worker: name, peer, port, on, ca: ca_variable } in LINKS {
        let target = services().get(port).parse()?;
        let front = Front::start(target, &certificates, "expired", peer == "PostgreSQL").await?;
        let through = front.port.to_string();
        let settings = [(on, "true"), (port, through.as_str()), (ca_variable, ca.as_str())];

        for (certificate, said) in [("foreign", "unknownissuer"), ("expired", "expired")] {
            front.present(&certificates, certificate)?;
            let before = front.seen().refusals.len();
            let (code, out) = tokio::task::block_in_place(|| stage.check(name, &settings))?;
            let failures: Vec<_> = out.lines().filter(|line| line.starts_with("FAIL ")).collect();
            assert_eq!((code, failures.len()), (1, 1), "{name} {peer} {certificate}: {out}");
            assert!(failures[0].starts_with(&format!("FAIL {peer}: ")), "{name} {peer} {certificate}: {out}");
            assert!(failures[0].to_lowercase().contains(said), "{name} {peer} {certificate}: {out}");
            assert!(front.seen().refusals.len() > before, "{name} {peer} {certificate}: nobody came");
        }

        let mut worker = stage.spawn(name, &settings)?;
        let refused = |w: &Worker| ready_body(w).to_lowercase().contains("expired");
        worker.until("refusing the certificate", PATIENCE, refused).await?;
        assert_eq!(worker.get("/health")?.0, 200, "{name} {peer}: it stays up");
        let seen = front.seen();
        assert_eq!((seen.taken, seen.plain.len()), (0, 0), "{name} {peer}: {seen:?}");

        front.present(&certificates, "good")?;
        worker.ready().await?;
        assert!(front.seen().taken > 0, "{name} {peer}");
        assert_eq!(worker.stop().await?.code(), Some(0));
    }

    // The extractor's connection.
    let front = Front::start(services().get("RABBITMQ_PORT").parse()?, &certificates, "expired", false).await?;
    let through = front.port.to_string();
    let mut job = Job::on(stage, "certificates", "none")?;
    job.folder.generate(40, 1)?;
    for (name, value) in
        [("RABBITMQ_TLS_ENABLED", "true"), ("RABBITMQ_PORT", &through), ("RABBITMQ_TLS_CA_FILE", &ca)]
    {
        job.env.insert(name.to_owned(), value.to_owned());
    }
    let log = job.folder.path.join("log");
    let out = std::fs::File::create(&log)?;
    let mut child = Command::new(binary("extractor"))
        .args(["run", &job.folder.path.to_string_lossy(), "--state", &job.directory().to_string_lossy()])
        .args(["--expect-queues", "none"])
        .env_clear()
        .envs(&job.env)
        .stdout(out.try_clone()?)
        .stderr(out)
        .spawn()?;
    let mut said = String::new();
    for _ in 0..600 {
        said = std::fs::read_to_string(&log)?.to_lowercase();
        if said.contains("expired") || child.try_wait()?.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    child.kill()?;
    child.wait()?;
    assert!(said.contains("expired"), "{said}");
    let seen = front.seen();
    assert!(!seen.refusals.is_empty(), "{seen:?}\n{said}");
    assert_eq!((seen.taken, seen.plain.len()), (0, 0), "{seen:?}");
    job.stage.clean_up().await
}
