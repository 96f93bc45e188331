//! What must not be possible: a stranger's or an expired certificate, a secret where somebody may read it, a message or a
//! setting that is taken for a statement, a body without an end.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use common::DataType;
use integration_tests::oracle::{self, Messages};
use integration_tests::stage::{DeadLetter, PATIENT, binary, controlled, services, settled, stop_clean};
use integration_tests::states;
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
    Link { worker: "graphinator", peer: "Neo4j", port: "NEO4J_PORT", on: "NEO4J_TLS_ENABLED", ca: "NEO4J_TLS_CA_FILE" },
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
            for _ in 0..100 {
                // The front may notice after the client has gone.
                if front.seen().refusals.len() > before {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
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
    for (name, value) in [("RABBITMQ_TLS_ENABLED", "true"), ("RABBITMQ_PORT", &through), ("RABBITMQ_TLS_CA_FILE", &ca)]
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

// ------------------------------------------------------------------------------------------------- secrets

/// What no output may hold, as it is or percent-encoded: each of the passwords has this in it.
const MARK: &str = "S3cr3t";
/// A password with everything that an address would have to escape.
const RIGHT: &str = "S3cr3t-right/@:?#[]&=+ %41'\\$\"ü";
const WRONG: &str = "S3cr3t-wrong/@:?#[]&=+ %41'\\$\"ü";

/// Every letter and digit as it is, the rest escaped; then everything escaped.
fn percent_encoded(text: &str) -> [String; 2] {
    let escaped = |all: bool| -> String {
        text.bytes()
            .map(|b| match b {
                b if b.is_ascii_alphanumeric() && !all => char::from(b).to_string(),
                b => format!("%{b:02X}"),
            })
            .collect()
    };
    [escaped(false), escaped(true)]
}

/// What was shown, and by whom.
#[derive(Default)]
struct Shown(Vec<(String, String)>);

impl Shown {
    fn add(&mut self, what: impl Into<String>, text: impl Into<String>) {
        self.0.push((what.into(), text.into()));
    }

    /// Everything that a running worker tells, and its log.
    fn worker(&mut self, what: &str, worker: &Worker) -> Result<(), Error> {
        for path in ["/health", "/ready", "/metrics", "/", "/status"] {
            self.add(format!("{what}: {path}"), worker.get(path)?.1);
        }
        self.add(format!("{what}: log"), worker.log_text());
        Ok(())
    }

    /// Fails if there is a secret in it, or if nothing was shown where something must have been.
    fn assert_harmless(&self) {
        let mut marks = vec![MARK.to_owned()];
        for secret in [RIGHT, WRONG] {
            marks.extend(percent_encoded(secret));
            // What a debugger's or a JSON form makes of it.
            marks.push(format!("{secret:?}").trim_matches('"').to_owned());
            marks.push(json!(secret).to_string().trim_matches('"').to_owned());
        }
        let [_, all] = percent_encoded(MARK);
        marks.extend([all.to_lowercase(), all, "UzNjcjN0".to_owned()]); // and in base64, where it begins
        for (what, text) in &self.0 {
            assert!(!text.is_empty(), "{what} showed nothing");
            for mark in &marks {
                assert!(!text.contains(mark.as_str()), "{what} shows {mark:?}:\n{text}");
            }
        }
    }
}

/// A worker's whole output when it is run to its end.
fn output(worker: &str, arguments: &[&str], env: &BTreeMap<String, String>) -> Result<(i32, String), Error> {
    let mut command = Command::new("/usr/bin/timeout");
    let out = command.arg("60").arg(binary(worker)).args(arguments).env_clear().envs(env).output()?;
    let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
    Ok((out.status.code().unwrap_or(-1), text))
}

fn ctl(arguments: &[&str]) -> Result<String, Error> {
    tokio::task::block_in_place(|| script(&[&["ctl"], arguments].concat()))
}

/// Users of all three services with the password [`RIGHT`], for one stage.
struct Users {
    name: String,
    role: String,
}

impl Users {
    async fn create(stage: &Stage) -> Result<Users, Error> {
        let users = Users { name: stage.prefix.replace(['-', '_'], ""), role: format!("r_{}", stage.database) };
        ctl(&["add_user", &users.name, RIGHT])?;
        ctl(&["set_permissions", &users.name, ".*", ".*", ".*"])?;
        let create = format!(
            "CREATE ROLE {0} LOGIN PASSWORD '{1}'; ALTER DATABASE {2} OWNER TO {0}; GRANT ALL ON SCHEMA public TO {0}",
            users.role,
            RIGHT.replace('\'', "''"),
            stage.database
        );
        stage.postgres().await?.batch_execute(&create).await?;
        let create = format!("CREATE USER {} SET PASSWORD $password CHANGE NOT REQUIRED", users.name);
        services().neo4j()?.run_on("system", query(&create).param("password", RIGHT)).await?;
        Ok(users)
    }

    fn login(&self) -> [(&str, &str); 6] {
        [
            ("RABBITMQ_USERNAME", &self.name),
            ("RABBITMQ_PASSWORD", RIGHT),
            ("POSTGRES_USERNAME", &self.role),
            ("POSTGRES_PASSWORD", RIGHT),
            ("NEO4J_USERNAME", &self.name),
            ("NEO4J_PASSWORD", RIGHT),
        ]
    }

    /// After the stage.
    async fn drop(self) -> Result<(), Error> {
        ctl(&["delete_user", &self.name])?;
        services().neo4j()?.run_on("system", query(&format!("DROP USER {}", self.name))).await?;
        let admin = services().postgres(services().get("POSTGRES_DATABASE")).await?;
        Ok(admin.batch_execute(&format!("DROP ROLE {}", self.role)).await?)
    }
}

const WORKERS: [(&str, &str); 2] = [("tableinator", "POSTGRES"), ("graphinator", "NEO4J")];

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_shows_whatever_happens() -> Result<(), Error> {
    let stage = Stage::with_graph("unseen").await?;
    let users = Users::create(&stage).await?;
    let logs = std::env::temp_dir().join(format!("security-{}", stage.prefix));
    let directory = logs.to_string_lossy().into_owned();
    let mut right = users.login().to_vec();
    right.extend([("LOG_LEVEL", "DEBUG"), ("LOG_DIR", directory.as_str())]);
    let mut shown = Shown::default();

    for (name, database) in WORKERS {
        // All is well, and some messages are not.
        let mut worker = stage.start(name, &right).await?;
        let too_long = "x".repeat(100_000) + &(0..40_000).map(|_| fastrand::alphanumeric()).collect::<String>();
        let refused = json!({"type": "data", "id": "r", "sha256": "h", "name": too_long}).to_string();
        let good = (0..20).map(|n| format!(r#"{{"type":"data","id":"{n}","sha256":"{name}","name":"N {n}"}}"#));
        stage.publish(DataType::Artists, good.chain(["no JSON".to_owned(), refused])).await?;
        settled(&mut worker, 22).await?;
        shown.worker(name, &worker)?;
        for letter in stage.dead_letters(name, DataType::Artists).await? {
            shown.add(format!("{name}: dead letter"), format!("{:?}", letter.properties));
        }
        assert_eq!(worker.stop().await?.code(), Some(0));
        let (code, out) = output(name, &["check"], &stage.env(&right))?;
        assert_eq!(code, 0, "{out}");
        shown.add(format!("{name} check"), out);

        // A wrong password, nobody there, and something else there. Neo4j locks users out, so there it is another user.
        let port = format!("{database}_PORT");
        let host = format!("{database}_HOST");
        let password = format!("{database}_PASSWORD");
        let user = format!("{database}_USERNAME");
        for wrong in [
            vec![("RABBITMQ_PASSWORD", WRONG)],
            vec![(password.as_str(), WRONG), (user.as_str(), "nobody")],
            vec![("RABBITMQ_PORT", "1"), (port.as_str(), "1")],
            vec![("RABBITMQ_HOST", "nowhere.invalid"), (host.as_str(), "nowhere.invalid")],
            vec![("RABBITMQ_PORT", services().get(&port))],
            vec![(port.as_str(), services().get("RABBITMQ_PORT"))],
        ] {
            let all = [&right[..], &wrong].concat();
            let mut worker = stage.spawn(name, &all)?;
            let complaining = |w: &Worker| {
                let reasons = ready_body(w);
                reasons.contains("reasons") && !reasons.contains("no consumer") && reasons.contains("artists: ")
            };
            worker.until("complaining", PATIENCE, complaining).await?;
            shown.worker(&format!("{name} with {wrong:?}").replace(MARK, "…"), &worker)?;
            worker.signal("KILL")?;
            worker.ended().await?;
        }
        for wrong in [vec![("RABBITMQ_PASSWORD", WRONG)], vec![(password.as_str(), WRONG), (user.as_str(), "nobody")]] {
            let (code, out) = output(name, &["check"], &stage.env(&[&right[..], &wrong].concat()))?;
            assert_eq!(code, 1, "{out}");
            shown.add(format!("{name} check refused"), out);
        }
        shown.add(format!("{name}: LOG_DIR"), std::fs::read_to_string(logs.join(format!("{name}.log")))?);

        // What ends before it begins.
        let address = format!("scheme://user:{MARK}@host:1");
        for (arguments, wrong, status) in [
            (&["--help"][..], vec![], 0),
            (&["--version"], vec![], 0),
            (&["--nonsense"], vec![], 2),
            (&["run"], vec![("RABBITMQ_PORT", "none")], 2),
            (&["check"], vec![("RABBITMQ_PORT", "none"), (port.as_str(), "none")], 2),
            (&["run"], vec![("RABBITMQ_HOST", address.as_str())], 2),
            (&["run"], vec![(host.as_str(), address.as_str())], 2),
            (&["check"], vec![(host.as_str(), "user:S3cr3t@host")], 2),
        ] {
            let (code, out) = output(name, arguments, &stage.env(&[&right[..], &wrong].concat()))?;
            assert_eq!(code, status, "{name} {arguments:?}: {out}");
            shown.add(format!("{name} {arguments:?}"), out);
        }
    }
    std::fs::remove_dir_all(&logs)?;

    // The extractor: published, refused by the broker, unable to start, and a webhook whose address is a secret.
    let mut job = Job::on(stage, "unseen", "tableinator,graphinator")?;
    job.folder.generate(40, 1)?;
    for (name, value) in &right[..2] {
        job.env.insert((*name).to_owned(), (*value).to_owned());
    }
    let webhook = format!("http://user:{}@127.0.0.1:1/{MARK}?key={MARK}", percent_encoded(RIGHT)[0]);
    job.env.insert("COMPLETION_WEBHOOK_URL".to_owned(), webhook);
    let (folder, state) =
        (job.folder.path.to_string_lossy().into_owned(), job.directory().to_string_lossy().into_owned());
    let run = ["run", &folder, "--state", &state, "--expect-queues", "tableinator,graphinator"];
    let (code, out) = output("extractor", &run, &job.env)?;
    assert_eq!(code, 0, "{out}");
    shown.add("extractor run", out);
    for file in std::fs::read_dir(job.directory())? {
        let file = file?.path();
        if std::fs::metadata(&file)?.len() > 0 {
            shown.add(file.to_string_lossy(), String::from_utf8_lossy(&std::fs::read(&file)?));
        }
    }
    for (arguments, wrong) in [
        (&["--help"][..], None),
        (&["run", "--help"], None),
        (&run, Some(("RABBITMQ_HOST", "user:S3cr3t@host"))),
        (&run, Some(("RABBITMQ_PORT", "none"))),
        (&run, Some(("COMPLETION_WEBHOOK_URL", "ftp://user:S3cr3t@host"))),
    ] {
        let mut env = job.env.clone();
        env.extend(wrong.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let (code, out) = output("extractor", arguments, &env)?;
        assert_ne!(code, 124, "{arguments:?} {out}");
        shown.add(format!("extractor {arguments:?}"), out);
    }
    job.env.insert("RABBITMQ_PASSWORD".to_owned(), WRONG.to_owned());
    let mut refused = job.start_with(&[&run[..], &["--force"]].concat())?;
    refused.until("refused", |e| e.stderr().contains("ACCESS_REFUSED")).await?;
    shown.add("extractor refused", refused.stderr());
    drop(refused);
    // And what it tells while it is at work, which takes a while on a slow way.
    job.env.insert("RABBITMQ_PASSWORD".to_owned(), RIGHT.to_owned());
    let proxy = job.through_proxy(1000).await?;
    let mut busy = job.start_with(&[&run[..], &["--force"]].concat())?;
    busy.until("at work", |e| e.get("/health").is_ok()).await?;
    for path in ["/health", "/ready", "/metrics"] {
        shown.add(format!("extractor {path}"), busy.get(path)?.1);
    }
    drop((busy, proxy));

    shown.assert_harmless();
    job.stage.clean_up().await?;
    users.drop().await
}

// ------------------------------------------------------------------------------------------------- injection

/// What ends a string, a name, a statement or a parameter list in SQL, Cypher, JSON or a shell.
const EVIL: [&str; 14] = [
    "'; DROP TABLE artists; --",
    "\"; DROP TABLE artists; --",
    "x') ON CONFLICT DO NOTHING; DELETE FROM artists; --",
    "$1, $2); TRUNCATE artists; --",
    "\\'; DROP TABLE artists; /*",
    "1'}) DETACH DELETE (n) //",
    "x\"}) WITH 1 AS x MATCH (n) DETACH DELETE n //",
    "`}) MATCH (n) DETACH DELETE n //",
    "`:Artist`]->() DELETE r //",
    "$rows",
    "$ids[0] {id: $url} ${HOME} $(id) `id` %s %n {} {0}",
    "\\. \\N \\x00 \t \n \r\n",
    "a\0b",
    "\u{202e}\u{feff}é😀\u{2028}</script>",
];

/// An identifier that a name put into a statement would end.
const IDENTIFIER: &str = "x'; DROP TABLE artists; --`}) \"$1\" {n} é";

/// Records of all types whose every member is evil, and where they can be, whose members' names are too.
fn evil_records() -> Messages {
    let mut texts: Vec<String> = EVIL.iter().map(|text| (*text).to_owned()).collect();
    texts.push(EVIL.concat());
    texts.push("' OR 1=1 --".repeat(150)); // as long as an index takes
    let mut messages = Messages::default();
    for (at, evil) in texts.iter().enumerate() {
        let next = &texts[(at + 1) % texts.len()];
        let hash = format!("{at}{evil}");
        let link = json!([{"id": next, "name": evil}, {"id": format!("{evil}#"), "name": next}]);
        let own = json!({evil: next, "a": {evil: [evil]}});
        let add = |bodies: &mut Vec<Vec<u8>>, members: serde_json::Value| {
            let mut body = json!({"type": "data", "id": evil, "sha256": hash});
            for part in [&own, &members] {
                for (name, value) in part.as_object().into_iter().flatten() {
                    body[name] = value.clone();
                }
            }
            bodies.push(body.to_string().into_bytes());
        };
        add(&mut messages.artists, json!({"name": evil, "members": link, "groups": link, "aliases": link}));
        add(&mut messages.labels, json!({"name": evil, "parentLabel": {"id": next, "name": evil}, "sublabels": link}));
        let work = json!({"title": evil, "artists": link, "genres": [evil], "styles": [evil, next], "year": evil});
        add(&mut messages.masters, work.clone());
        let mut edition = work;
        let catno = [json!({"id": next, "catno": evil, "name": evil})];
        for (member, value) in [
            ("labels", json!(catno)),
            ("formats", json!([{"name": evil}, {"name": next}])),
            ("master_id", json!(next)),
            ("released", json!(evil)),
            ("country", json!(evil)),
            ("extraartists", json!([{"id": next, "name": evil, "role": next}, {"name": next, "role": evil}])),
        ] {
            edition[member] = value;
        }
        add(&mut messages.releases, edition);
    }
    messages
}

/// What no worker has to do with, in both databases.
const BYSTANDERS: &str = "CREATE TABLE bystanders (id TEXT); INSERT INTO bystanders VALUES ('a'), ('b');
    CREATE FUNCTION evil() RETURNS void LANGUAGE sql AS 'DELETE FROM bystanders'";

async fn assert_bystanders(postgres: &tokio_postgres::Client) -> Result<(), Error> {
    let count = "SELECT count(*) FROM bystanders";
    assert_eq!(postgres.query_one(count, &[]).await?.get::<_, i64>(0), 2);
    let relations = "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace \
         AND relname NOT LIKE 'ingest\\_%' AND relname NOT IN ('artists', 'labels', 'masters', 'releases', 'bystanders')";
    assert_eq!(postgres.query_one(relations, &[]).await?.get::<_, i64>(0), 0, "tables came about");
    let graph = services().neo4j()?;
    let mut rows = graph.execute(query("MATCH (:User)-[c:COLLECTED]->(:Thing) RETURN count(c) AS n")).await?;
    assert_eq!(rows.next().await?.ok_or("no count")?.get::<i64>("n")?, 1);
    let mut rows = graph.execute(query("MATCH (n) UNWIND labels(n) AS l RETURN collect(DISTINCT l) AS labels")).await?;
    let labels: BTreeSet<String> = rows.next().await?.ok_or("no labels")?.get("labels")?;
    let known = ["Artist", "Label", "Master", "Release", "Genre", "Style", "Person", "User", "Thing"];
    let strange: Vec<_> = labels
        .iter()
        .filter(|l| !known.contains(&l.as_str()) && !l.starts_with("Ingest") && *l != "ExtractionCompletion")
        .collect();
    assert!(strange.is_empty(), "labels came about: {strange:?}");
    Ok(())
}

/// A connection to a database of any name.
async fn postgres_named(database: &str) -> Result<tokio_postgres::Client, Error> {
    let s = services();
    let mut config = tokio_postgres::Config::new();
    config.host(s.get("POSTGRES_HOST")).port(s.get("POSTGRES_PORT").parse()?).user(s.get("POSTGRES_USERNAME"));
    config.password(s.get("POSTGRES_PASSWORD")).dbname(database);
    let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Messages, their headers, control messages and configuration are values wherever they go.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_comes_from_outside_becomes_a_statement() -> Result<(), Error> {
    let mut stage = Stage::with_graph("injection").await?;
    // The configuration's names: prefix of exchanges and queues, database, environment.
    stage.prefix = format!("{}-{IDENTIFIER}", stage.prefix);
    let database = format!("{}{IDENTIFIER}", stage.database);
    let quoted = database.replace('"', "\"\"");
    stage.postgres().await?.batch_execute(&format!("CREATE DATABASE \"{quoted}\"")).await?;
    let postgres = postgres_named(&database).await?;
    postgres.batch_execute(BYSTANDERS).await?;
    let graph = services().neo4j()?;
    graph.run(query("CREATE (:User {id: 'u'})-[:COLLECTED]->(:Thing {id: 't'})")).await?;
    let settings = [
        ("POSTGRES_DATABASE", database.as_str()),
        ("ENVIRONMENT", "\"},{\"level\":\"forged\"}\n{\"x\":\""),
        ("NEO4J_BATCH_SIZE", "1000"),
        ("POSTGRES_BATCH_SIZE", "1000"),
    ];
    let mut workers = Vec::new();
    for (name, _) in WORKERS {
        stage.declare(name).await?;
        // The log's path has the prefix in it, which is no path here.
        let log = std::env::temp_dir().join(format!("security-{}-{name}.log", stage.database));
        let mut worker = Worker::start(&binary(name), &stage.env(&settings), &log)?;
        worker.ready().await?;
        workers.push((name, worker));
    }

    let messages = evil_records();
    let mut headers = FieldTable::default();
    for evil in EVIL {
        headers.insert(evil.replace('\0', "").chars().take(100).collect::<String>().into(), text(evil));
    }
    let mut all = [0; 4];
    for (t, bodies) in integration_tests::stage::by_type(&messages) {
        let exchange = format!("{}-{t}", stage.prefix);
        // What can be no record, too, with an id or a reason that tells of it.
        let broken = EVIL.iter().flat_map(|evil| {
            [evil.as_bytes().to_vec(), json!({"id": [evil]}).to_string().into_bytes(), json!([evil]).to_string().into()]
        });
        for body in bodies.iter().cloned().chain(broken) {
            let properties = BasicProperties::default()
                .with_headers(headers.clone())
                .with_content_type(EVIL[0].into())
                .with_content_encoding(EVIL[1].into())
                .with_message_id(EVIL[5].into())
                .with_type(EVIL[6].into())
                .with_app_id(EVIL[7].into());
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            stage.channel.basic_publish(exchange.as_str().into(), "".into(), options, &body, properties).await?;
            all[t.index()] += 1;
        }
    }
    let total: usize = all.iter().sum();
    for (name, worker) in &mut workers {
        settled(worker, total).await?;
        let committed: usize = integration_tests::stage::by_type(&messages).iter().map(|(_, b)| b.len()).sum();
        assert_eq!(worker.metric("records_committed_total", &[]), committed as f64, "{name}");
    }
    // Everything is there, verbatim, and nothing else is.
    let expected = oracle::expected(&messages);
    states::compare_tables(&states::read_tables(&postgres).await?, &expected.tables)?;
    let (nodes, rels) = states::read_graph(&graph).await?;
    states::compare_graph(&nodes, &rels, &expected)?;
    assert_bystanders(&postgres).await?;

    // Control messages: their texts become keys in both databases.
    let mut controls = Vec::new();
    for evil in EVIL {
        controls.push(json!({"type": "file_complete", "data_type": evil, "file": evil, "timestamp": evil}));
        controls.push(json!({
            "type": "extraction_complete",
            "version": evil,
            "started_at": evil,
            "timestamp": evil,
            "record_counts": {evil: 1, "artists": evil},
        }));
    }
    for t in DataType::ALL {
        stage.publish(t, controls.iter().map(|c| c.to_string().into_bytes())).await?;
    }
    for (_, worker) in &mut workers {
        for t in DataType::ALL {
            controlled(worker, t, controls.len() as f64).await?;
        }
    }
    states::compare_tables(&states::read_tables(&postgres).await?, &expected.tables)?;
    assert_bystanders(&postgres).await?;

    for (name, worker) in workers {
        let log = worker.log.clone();
        for t in DataType::ALL {
            let letters: Vec<DeadLetter> = stage.dead_letters(name, t).await?;
            assert_eq!(letters.len(), EVIL.len() * 3, "{name} {t}");
            for letter in letters {
                let kept = letter.properties.headers().clone().unwrap_or_default();
                assert!(headers.inner().iter().all(|(key, value)| kept.inner().get(key.as_str()) == Some(value)));
                assert_eq!(letter.header("dead-letter-queue"), stage.topology(name, t).queue);
            }
        }
        stop_clean(&stage, name, worker).await?;
        // A log line is one object, whatever is in it.
        for line in std::fs::read_to_string(&log)?.lines() {
            let fields: serde_json::Value = serde_json::from_str(line).map_err(|e| format!("{e}: {line}"))?;
            assert_eq!(fields["environment"], settings[1].1, "{line}");
            assert!(["debug", "info", "warning", "error"].contains(&fields["level"].as_str().unwrap_or_default()));
        }
        std::fs::remove_file(&log)?;
    }

    // Names of databases and users that are none.
    for (name, variable, extra) in [
        ("tableinator", "POSTGRES_DATABASE", IDENTIFIER),
        ("tableinator", "POSTGRES_USERNAME", IDENTIFIER),
        ("graphinator", "NEO4J_DATABASE", IDENTIFIER),
        ("graphinator", "NEO4J_USERNAME", IDENTIFIER),
        ("tableinator", "RABBITMQ_VHOST", IDENTIFIER),
    ] {
        let settings = [("POSTGRES_DATABASE", database.as_str()), (variable, extra)];
        let (code, out) = output(name, &["check"], &stage.env(&settings))?;
        assert_eq!(code, 1, "{name} {variable}: {out}");
    }
    assert_bystanders(&postgres).await?;
    drop(postgres);
    let drop_database = format!("DROP DATABASE \"{quoted}\" WITH (FORCE)");
    services().postgres(services().get("POSTGRES_DATABASE")).await?.batch_execute(&drop_database).await?;
    stage.clean_up().await
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

// ------------------------------------------------------------------------------------------------- sizes

/// A record of exactly so many bytes.
fn sized(id: &str, bytes: usize) -> Vec<u8> {
    let empty = format!(r#"{{"id":"{id}","sha256":"h","notes":""}}"#).len();
    format!(r#"{{"id":"{id}","sha256":"h","notes":"{}"}}"#, "x".repeat(bytes - empty)).into_bytes()
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>, Error> {
    use std::io::Write;
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    out.write_all(bytes)?;
    Ok(out.finish()?)
}

/// What is larger than the limit, packed or not, is dead-lettered as it came; what is just as large is written, and so are
/// its neighbours. What the predecessors' broker refused, 17 MB, is nothing special.
#[tokio::test(flavor = "multi_thread")]
async fn bodies_beyond_the_limit_are_dead_lettered_and_large_ones_are_written() -> Result<(), Error> {
    const LIMIT: usize = 20 << 20;
    let stage = Stage::with_graph("sizes").await?;
    let t = DataType::Artists;
    let limit = LIMIT.to_string();
    let plain = "UTF-8";
    let packed = "gzip";
    // A bomb: some kilobytes that become more than the limit.
    let (fits, bomb) = (gzip(&sized("packed", LIMIT))?, gzip(&sized("bomb", LIMIT * 4))?);
    assert!(bomb.len() < 200_000);
    let bodies = [
        (sized("small", 100), plain, true),
        (sized("large", 17 << 20), plain, true),
        (sized("exact", LIMIT), plain, true),
        (sized("beyond", LIMIT + 1), plain, false),
        (fits, packed, true),
        (bomb, packed, false),
        (sized("last", 100), plain, true),
    ];
    for (name, _) in WORKERS {
        stage.declare(name).await?;
    }
    let exchange = format!("{}-{t}", stage.prefix);
    for (body, encoding, _) in &bodies {
        let properties = BasicProperties::default().with_content_encoding((*encoding).into());
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        stage.channel.basic_publish(exchange.as_str().into(), "".into(), options, body, properties).await?;
    }
    stage.publish(t, [sample::file_complete(t, "20260101", bodies.len())]).await?;
    for (name, _) in WORKERS {
        let mut worker = stage.start(name, &[&PATIENT[..], &[("MAX_BODY_BYTES", limit.as_str())]].concat()).await?;
        controlled(&mut worker, t, 1.0).await?;
        assert_eq!(worker.metric("records_committed_total", &[]), 5.0, "{name}");
        let letters = stage.dead_letters(name, t).await?;
        let dead: Vec<_> = bodies.iter().filter(|(_, _, written)| !written).map(|(body, _, _)| body).collect();
        assert_eq!(letters.len(), dead.len(), "{name}");
        for letter in &letters {
            assert_eq!(letter.header("dead-letter-reason"), "body_too_large", "{name}");
            assert!(letter.header("dead-letter-detail").contains(&limit), "{name}");
            assert!(dead.contains(&&letter.body), "{name}: the body changed");
        }
        stop_clean(&stage, name, worker).await?;
    }
    let ids = "SELECT string_agg(data_id || ' ' || length(data->>'notes'), ', ' ORDER BY data_id) FROM artists";
    let found: String = stage.postgres().await?.query_one(ids, &[]).await?.get(0);
    let notes = |id: &str, bytes: usize| format!("{id} {}", bytes - sized(id, 100).len() + notes_of(id));
    let expected = [notes("exact", LIMIT), notes("large", 17 << 20), notes("last", 100), notes("packed", LIMIT)];
    assert_eq!(found, [&expected[..], &[notes("small", 100)]].concat().join(", "));
    let mut rows =
        services().neo4j()?.execute(query("MATCH (a:Artist) WITH a ORDER BY a.id RETURN collect(a.id) AS ids")).await?;
    let found: Vec<String> = rows.next().await?.ok_or("no ids")?.get("ids")?;
    assert_eq!(found, ["exact", "large", "last", "packed", "small"]);
    stage.clean_up().await
}

/// Bytes of the notes of a record of 100 bytes.
fn notes_of(id: &str) -> usize {
    100 - format!(r#"{{"id":"{id}","sha256":"h","notes":""}}"#).len()
}
