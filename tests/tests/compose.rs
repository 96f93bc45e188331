//! The stack of `docker-compose.yml`, started for real: loaded, scaled, restarted service by service, and watched by its own
//! Prometheus. `cargo xtask compose` runs it; it needs a Docker engine and is no part of `cargo xtask test`.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{DataType, Topology};
use integration_tests::oracle::{self, Messages};
use integration_tests::promql::selectors;
use integration_tests::stage::{graph_maintained, purged, within};
use integration_tests::{Error, states};
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use serde_json::Value;
use tokio::time::sleep;
use xtask::process::http_get;
use xtask::sample::{self, Sample, Spec};
use xtask::services::{Services, root};

/// Name of the Compose project, so that a stack of the operator's own is left alone.
const PROJECT: &str = "discogs-ingest-proof";
/// Default of `DISCOGS_EXCHANGE_PREFIX`.
const PREFIX: &str = "discogsography-discogs";
const WORKERS: [&str; 2] = ["tableinator", "graphinator"];
/// Enough to be still loading after a replica or a server has come and gone.
const RECORDS: usize = 120_000;
const SEED: u64 = 1;
/// Of the second month; much of it changes, so that there is something to write.
const CHANGED: f64 = 0.5;
const REMOVED: f64 = 0.001;
/// Default user, password and database of everything in `docker-compose.yml`.
const PASSWORD: &str = "discogsography";

/// Longest wait for a load, on two cores.
const LOAD: Duration = Duration::from_secs(1200);
/// Longest wait for Prometheus: a look at the DNS, a scrape, the time for which an alert waits, and its evaluation.
const WATCH: Duration = Duration::from_secs(240);
/// Pause between two looks, since the machine has other things to do.
const PAUSE: Duration = Duration::from_secs(1);

/// What may have no data in a run that goes well: part of a query of the dashboard, and why.
const MAY_BE_EMPTY: [(&str, &str); 3] = [
    (r#"code="pool""#, "nobody waits in vain for a connection"),
    (
        r#"(up{job=~"$service"} == 0)"#,
        "a replica that is scaled away leaves the DNS before Prometheus asks for it in vain",
    ),
    (
        "records_extracted_total{",
        "the demo may be published before Prometheus has found the extractor and asked it twice",
    ),
];

/// What rules read and a run that goes well has not, and why.
const MAY_BE_ABSENT: [(&str, &str); 2] = [
    (r#"retries_total{code="pool"}"#, "nobody waits in vain for a connection"),
    ("trace_spans_dropped_total", "nobody is named to send traces to"),
];

#[tokio::test(flavor = "multi_thread")]
async fn the_stack_loads_scales_restarts_and_is_watched() -> Result<(), Error> {
    let stack = Stack::new()?;
    stack.remove()?; // what a run that was killed has left
    stack.prove().await?;
    stack.proven.set(true);
    Ok(())
}

struct Stack {
    /// What Compose reads from the environment.
    env: BTreeMap<String, String>,
    /// The same services as this test reaches them.
    services: Services,
    prometheus: u16,
    commit: String,
    started: Instant,
    proven: Cell<bool>,
}

impl Drop for Stack {
    /// Leaves nothing behind; if something went wrong, what the containers said.
    fn drop(&mut self) {
        let last_words = [&["ps", "--all"][..], &["logs", "--no-color", "--tail", "15"]];
        for words in last_words.into_iter().filter(|_| !self.proven.get()) {
            println!("{}", self.compose(words).unwrap_or_else(|e| e.to_string()));
        }
        if let Err(e) = self.remove() {
            println!("the containers are left: {e}");
        }
    }
}

impl Stack {
    fn new() -> Result<Stack, Error> {
        // All at the same time, so that they differ.
        let listeners = (0..6).map(|_| TcpListener::bind(("127.0.0.1", 0))).collect::<Result<Vec<_>, _>>()?;
        let ports = listeners.iter().map(|l| Ok(l.local_addr()?.port())).collect::<Result<Vec<u16>, Error>>()?;
        let head = || said(Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).current_dir(root()));
        let commit = std::env::var("COMMIT").map_or_else(|_| head(), Ok)?;
        let names = ["RABBITMQ", "RABBITMQ_MANAGEMENT", "POSTGRES", "NEO4J", "GRAFANA", "PROMETHEUS"];
        let [commit, records] = [commit.trim().to_owned(), RECORDS.to_string()];
        // Without rules: every record that is generated is to be found.
        let settings =
            [("COMMIT", commit.as_str()), ("TAG", "proof"), ("DEMO_RECORDS", &records), ("DATA_QUALITY_RULES", "")];
        let mut env = BTreeMap::from(settings.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let mut services = BTreeMap::new();
        for (name, port) in names.into_iter().zip(&ports) {
            env.insert(format!("{name}_HOST_PORT"), port.to_string());
            services.insert(format!("{name}_PORT"), port.to_string());
            services.insert(format!("{name}_HOST"), "127.0.0.1".to_owned());
            services.insert(format!("{name}_USERNAME"), if name == "NEO4J" { "neo4j" } else { PASSWORD }.to_owned());
            services.insert(format!("{name}_PASSWORD"), PASSWORD.to_owned());
        }
        let prometheus = ports.last().copied().unwrap_or_default();
        Ok(Stack {
            env,
            services: Services(services),
            prometheus,
            commit,
            started: Instant::now(),
            proven: Cell::new(false),
        })
    }

    fn step(&self, what: &str) {
        println!("{:>5} s  {what}", self.started.elapsed().as_secs());
    }

    /// Runs `docker compose` with these arguments and returns what it printed.
    fn compose(&self, arguments: &[&str]) -> Result<String, Error> {
        let mut command = Command::new("docker");
        command.args(["compose", "--project-name", PROJECT, "--profile", "demo"]).args(arguments);
        said(command.current_dir(root()).envs(&self.env))
    }

    fn remove(&self) -> Result<(), Error> {
        self.compose(&["down", "--volumes", "--remove-orphans", "--timeout", "30"]).map(|_| ())
    }

    /// Starts what belongs to the running stack, with this many replicas.
    fn scale(&self, tableinators: usize, graphinators: usize, options: &[&str]) -> Result<(), Error> {
        let scale = [format!("tableinator={tableinators}"), format!("graphinator={graphinators}")];
        let scale = ["up", "--detach", "--no-recreate", "--scale", &scale[0], "--scale", &scale[1]];
        let services = ["rabbitmq", "postgres", "neo4j", "tableinator", "graphinator", "prometheus", "grafana"];
        self.compose(&[&scale[..], options, &services].concat()).map(|_| ())
    }

    /// The same, and waits until all of it is healthy.
    fn up(&self, tableinators: usize, graphinators: usize) -> Result<(), Error> {
        self.scale(tableinators, graphinators, &["--wait", "--wait-timeout", "300"])
    }

    /// Ids of a service's containers.
    fn containers(&self, service: &str) -> Result<Vec<String>, Error> {
        let ids = self.compose(&["ps", "--all", "--quiet", service])?;
        Ok(ids.lines().map(str::to_owned).collect())
    }

    async fn prove(&self) -> Result<(), Error> {
        self.step("building the images");
        self.compose(&["build"])?;
        for program in ["tableinator", "graphinator"] {
            let version = self.compose(&["run", "--rm", "--no-deps", program, "--version"])?;
            assert_eq!(version.trim(), format!("{program} {} ({})", env!("CARGO_PKG_VERSION"), self.commit));
        }

        self.step("up with --profile demo, nothing else: the first month");
        self.compose(&["up", "--detach"])?;
        self.up(1, 1)?;
        self.assert_locked_down()?;
        within(LOAD, "loading both", async || {
            sleep(PAUSE).await;
            Ok(self.rows().await.is_ok_and(|rows| rows > 1000) && self.nodes().await.is_ok_and(|nodes| nodes > 1000))
        })
        .await?;
        self.step("scaled to 4 tableinators and 2 graphinators in mid-load");
        self.up(4, 2)?;
        assert_eq!((self.containers("tableinator")?.len(), self.containers("graphinator")?.len()), (4, 2));
        self.step("scaled down to one of each in mid-load");
        let rows = self.rows().await?;
        self.up(1, 1)?;
        assert!(rows < RECORDS as i64 / 10 * 9, "{rows} rows: the tables were loaded before a replica went");
        assert!(self.waiting("graphinator").await? > 0, "the graph was loaded before a replica went");
        self.assert_published("demo")?;
        let spec = Spec { seed: SEED, records: RECORDS };
        self.loaded("20260101", &sample::generate(&spec)).await?;

        self.step("scaled up again: Prometheus finds every replica");
        self.up(4, 2)?;
        self.until_is(r#"count(up{job="tableinator"} == 1)"#, 4.0).await?;
        self.until_is(r#"count(up{job="graphinator"} == 1)"#, 2.0).await?;
        // One replica for each queue, and none too few.
        self.until_is("count(sum by (service, data_type) (consuming) == 1)", 8.0).await?;
        self.until_is("count(ingest:queue_consumers == 1)", 8.0).await?;

        self.step("a message that is no JSON: a dead letter of each worker, and an alert");
        self.publish_garbage().await?;
        self.until_is(r#"count(ALERTS{alertname="DeadLetters", alertstate="firing", reason="invalid_json"})"#, 2.0)
            .await?;
        for worker in WORKERS {
            let list = self.compose(&["exec", "-T", worker, worker, "deadletter", "list"])?;
            assert!(list.contains("invalid_json"), "{list}");
            self.compose(&["exec", "-T", worker, worker, "check"])?;
        }

        self.step("both workers stopped while the second month is published: alerts");
        self.compose(&["stop", "tableinator", "graphinator"])?;
        let (records, changed, removed) = (RECORDS.to_string(), CHANGED.to_string(), REMOVED.to_string());
        let generate = ["run", "--rm", "sample", "generate", "--out", "/dumps", "--month", "2", "--records", &records];
        self.compose(&[&generate[..], &["--changed", &changed, "--removed", &removed]].concat())?;
        self.compose(&["run", "--rm", "--no-deps", "--use-aliases", "demo"])?;
        self.until_is(r#"count(ALERTS{alertname="WorkerGone", alertstate="firing"})"#, 2.0).await?;
        self.until_is(r#"count(ALERTS{alertname="NobodyConsumes", alertstate="firing"})"#, 8.0).await?;

        self.step("two of each; each service restarted while they load");
        let mut before = [self.waiting(WORKERS[0]).await?, self.waiting(WORKERS[1]).await?];
        // Without waiting until all is healthy: the tables would be loaded by then.
        self.scale(2, 2, &[])?;
        for (service, loading) in [
            ("rabbitmq", &[0, 1][..]),
            ("postgres", &[0]),
            ("tableinator", &[0]),
            ("neo4j", &[1]),
            ("graphinator", &[1]),
            ("prometheus", &[]),
            ("grafana", &[]),
        ] {
            for worker in loading {
                let goes_on = async || Ok(self.waiting(WORKERS[*worker]).await.is_ok_and(|now| now < before[*worker]));
                within(WATCH, &format!("{} loading again", WORKERS[*worker]), goes_on).await?;
            }
            before = [self.waiting(WORKERS[0]).await?, self.waiting(WORKERS[1]).await?];
            self.step(&format!("  {service} ({} for the tables and {} for the graph wait)", before[0], before[1]));
            assert!(loading.iter().all(|worker| before[*worker] > 0), "{service} is restarted when all is loaded");
            self.compose(&["restart", service])?;
        }
        self.up(2, 2)?;
        self.loaded("20260201", &sample::next_month(&spec, CHANGED, REMOVED)).await?;
        for worker in WORKERS {
            assert_eq!(self.waiting(worker).await?, 0, "{worker}");
        }
        self.until_is(r#"count(ALERTS{alertname=~"WorkerGone|NobodyConsumes"}) or vector(0)"#, 0.0).await?;

        self.step("every rule and every query of the dashboard");
        self.assert_rules()?;
        self.assert_broker_s_metrics()?;
        self.assert_dashboard()?;
        self.step("done");
        Ok(())
    }

    /// Asserts that the workers' containers are as closed as they can be.
    fn assert_locked_down(&self) -> Result<(), Error> {
        for worker in WORKERS {
            for id in self.containers(worker)? {
                let format = "{{.Config.User}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.HostConfig.SecurityOpt}} {{gt .HostConfig.Memory 0}}";
                let is = said(Command::new("docker").args(["inspect", "--format", format, &id]))?;
                assert_eq!(is.trim(), "1000:1000 true [ALL] [no-new-privileges:true] true", "{worker}");
            }
        }
        Ok(())
    }

    /// Waits for the end of a service that runs once, and asserts that it published everything.
    fn assert_published(&self, service: &str) -> Result<(), Error> {
        let ids = self.containers(service)?;
        let status = said(Command::new("docker").arg("wait").args(&ids))?;
        assert_eq!(
            status.trim(),
            "0",
            "{service}: {}",
            self.compose(&["logs", "--no-color", "--tail", "20", service])?
        );
        Ok(())
    }

    /// Rows of all tables.
    async fn rows(&self) -> Result<i64, Error> {
        let client = self.services.postgres(PASSWORD).await?;
        let count = DataType::ALL.map(|t| format!("(SELECT count(*) FROM {t})")).join(" + ");
        Ok(client.query_one(&format!("SELECT {count}"), &[]).await?.get(0))
    }

    async fn nodes(&self) -> Result<i64, Error> {
        let mut rows = self.services.neo4j()?.execute(neo4rs::query("MATCH (n) RETURN count(n) AS count")).await?;
        Ok(rows.next().await?.ok_or("no row")?.get("count")?)
    }

    /// Messages that are ready in a worker's queues.
    async fn waiting(&self, worker: &str) -> Result<u32, Error> {
        let connection = self.services.broker().await?;
        let channel = connection.create_channel().await?;
        let mut waiting = 0;
        for t in DataType::ALL {
            let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
            let queue = Topology::new(PREFIX, worker, t).queue;
            waiting +=
                channel.queue_declare(queue.as_str().into(), passive, FieldTable::default()).await?.message_count();
        }
        connection.close(200, "done".into()).await?;
        Ok(waiting)
    }

    async fn publish_garbage(&self) -> Result<(), Error> {
        let connection = self.services.broker().await?;
        let channel = connection.create_channel().await?;
        xtask::feed::publish(&channel, &format!("{PREFIX}-artists"), ["no JSON"]).await?;
        Ok(connection.close(200, "done".into()).await?)
    }

    /// Waits until a month is loaded, purged and maintained, and compares tables and graph with what must be.
    async fn loaded(&self, version: &str, month: &Sample) -> Result<(), Error> {
        within(LOAD, "loaded, purged and maintained", async || {
            sleep(PAUSE).await;
            // A server that has just been restarted may not answer yet.
            let Ok(client) = self.services.postgres(PASSWORD).await else { return Ok(false) };
            Ok(purged(&client, version).await? && graph_maintained(&self.services.neo4j()?, version).await?)
        })
        .await?;
        self.step("loaded; comparing tables and graph with the oracle");
        let messages = Messages {
            artists: month.artists.clone(),
            labels: month.labels.clone(),
            masters: month.masters.clone(),
            releases: month.releases.clone(),
        };
        let expected = oracle::maintained(&oracle::expected(&messages));
        let tables = states::read_tables(&self.services.postgres(PASSWORD).await?).await?;
        states::compare_tables(&tables, &expected.tables)?;
        let (nodes, rels) = states::read_graph(&self.services.neo4j()?).await?;
        Ok(states::compare_graph(&nodes, &rels, &expected)?)
    }

    /// What Prometheus answers to a path of its API.
    fn prometheus(&self, path: &str) -> Result<Value, Error> {
        let (code, body) = http_get(self.prometheus, &format!("/api/v1/{path}"))?;
        let mut answer: Value = serde_json::from_str(&body).map_err(|e| format!("{path}: {code}: {e}: {body}"))?;
        if answer["status"] != "success" {
            return Err(format!("{path}: {code}: {body}").into());
        }
        Ok(answer["data"].take())
    }

    /// Waits until a query has this value.
    async fn until_is(&self, query: &str, value: f64) -> Result<(), Error> {
        let path = format!("query?query={}", escape(query));
        within(WATCH, &format!("{query} = {value}"), async || {
            sleep(PAUSE).await;
            let Ok(answer) = self.prometheus(&path) else { return Ok(false) };
            Ok(answer["result"][0]["value"][1].as_str().and_then(|text| text.parse().ok()) == Some(value))
        })
        .await
    }

    /// Asserts that every rule was loaded and could be evaluated, and that everything it reads was there in the time of this
    /// test: a rule that asks for a name or label that nobody exports is silent and well.
    fn assert_rules(&self) -> Result<(), Error> {
        let text = std::fs::read_to_string(root().join("ops/prometheus/alerts.yml"))?;
        let written = text
            .lines()
            .filter(|l| l.trim_start().starts_with("- alert: ") || l.trim_start().starts_with("- record: "));
        let groups = self.prometheus("rules")?["groups"].take();
        let rules: Vec<&Value> =
            groups.as_array().into_iter().flatten().filter_map(|g| g["rules"].as_array()).flatten().collect();
        let ill: Vec<&&Value> = rules.iter().filter(|rule| rule["health"] != "ok").collect();
        assert!(ill.is_empty(), "{ill:?}");
        assert_eq!(rules.len(), written.count(), "rules");
        let mut read = BTreeSet::new();
        for rule in &rules {
            read.extend(selectors(rule["query"].as_str().ok_or("a rule without an expression")?));
        }
        let lasted = self.started.elapsed().as_secs();
        let mut absent = Vec::new();
        for selector in &read {
            let query = format!("count(count_over_time({selector}[{lasted}s]))");
            let answer = self.prometheus(&format!("query?query={}", escape(&query)))?;
            let excused = MAY_BE_ABSENT.iter().any(|(name, _)| selector == name);
            if !excused && answer["result"].as_array().is_none_or(Vec::is_empty) {
                absent.push(selector);
            }
        }
        assert!(
            !read.is_empty() && absent.is_empty(),
            "of {} selectors in rules these have no data: {absent:#?}",
            read.len()
        );
        self.step(&format!("  {} rules, all evaluated, and {} selectors in them", rules.len(), read.len()));
        Ok(())
    }

    /// Asserts that the broker exports what rules and dashboard may use of it.
    fn assert_broker_s_metrics(&self) -> Result<(), Error> {
        let names = self.prometheus("label/__name__/values")?;
        let known: Vec<&str> = names.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let text = std::fs::read_to_string(root().join("ops/rabbitmq-metrics.txt"))?;
        let listed = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let missing: Vec<&str> = listed.filter(|name| !known.contains(name)).collect();
        assert!(missing.is_empty(), "not exported by this broker: {missing:?}");
        Ok(())
    }

    /// Asserts that every query of the dashboard is accepted, and has data for the time of this test.
    fn assert_dashboard(&self) -> Result<(), Error> {
        let text = std::fs::read_to_string(root().join("ops/grafana/dashboards/ingest.json"))?;
        let dashboard: Value = serde_json::from_str(&text)?;
        let end = chrono::Utc::now().timestamp();
        let start = end - i64::try_from(self.started.elapsed().as_secs())?;
        let (mut count, mut empty) = (0, Vec::new());
        for panel in dashboard["panels"].as_array().into_iter().flatten() {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let expression = target["expr"].as_str().ok_or("a target without expression")?;
                let query = expression.replace("$__rate_interval", "1m").replace("$service", "tableinator|graphinator");
                let path = format!("query_range?query={}&start={start}&end={end}&step=15", escape(&query));
                let answer = self.prometheus(&path).map_err(|e| format!("{}: {e}", panel["title"]))?;
                count += 1;
                let excused = MAY_BE_EMPTY.iter().any(|(part, _)| expression.contains(part));
                if !excused && answer["result"].as_array().is_none_or(Vec::is_empty) {
                    empty.push(format!("{}: {query}", panel["title"]));
                }
            }
        }
        assert!(count > 0 && empty.is_empty(), "of {count} queries these have no data: {empty:#?}");
        self.step(&format!("  {count} queries of the dashboard"));
        Ok(())
    }
}

/// Runs a command and returns its standard output.
fn said(command: &mut Command) -> Result<String, Error> {
    let out = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
    Err(format!("{command:?}: {}\n{said}", out.status).into())
}

/// For a URL's query.
fn escape(text: &str) -> String {
    let escaped =
        |byte: u8| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(escaped).collect()
}
