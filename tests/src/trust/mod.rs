//! Conservation: whatever breaks while workers load, in the end every message that the broker has confirmed is in the
//! database in its record's last version, or a dead letter with its reason; and nothing else is.
//!
//! A [`Run`] publishes a seeded [`plan`], lets replicas of the workers load it, breaks what it is told to (see
//! [`faults`]), and compares the end with what [`crate::oracle`] computes from the last versions.

pub mod faults;
pub mod plan;
pub mod publisher;
pub mod squad;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use common::DataType;
use neo4rs::query;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::time::{Instant, sleep};
use xtask::services::script;

use crate::oracle::{self, TYPES};
use crate::proxy::Proxy;
use crate::stage::{DeadLetter, services, within};
use crate::states;
use crate::{Error, Stage};
use faults::{Fault, Held, Party};
use plan::{CONTROLS, Due, Plan, RUNS};
use publisher::Publisher;
use squad::Squad;

/// Longest wait for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(120);
/// Records that a worker must have committed before the next fault comes: some batches.
const UNDER_WAY: f64 = 60.0;
/// Of the users that the workers are.
const PASSWORD: &str = "the-right-password";

/// Runs that break what all use are alone with it; others may be several at a time.
static SERVERS: RwLock<()> = RwLock::const_new(());

/// Held during a run.
enum Servers {
    Alone { _guard: RwLockWriteGuard<'static, ()> },
    Shared { _guard: RwLockReadGuard<'static, ()> },
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Of messages and faults.
    pub seed: u64,
    /// Which workers.
    pub workers: Vec<&'static str>,
    /// How many of each.
    pub replicas: usize,
    /// How many messages.
    pub messages: usize,
    /// Messages a second, as long as faults are injected.
    pub pace: u64,
    /// Whether faults hit whole servers.
    pub alone: bool,
}

/// A load that goes on, and everything that can be broken about it.
pub struct Run {
    options: Options,
    /// Where it happens.
    pub stage: Stage,
    /// What is published.
    pub plan: Arc<Plan>,
    /// Who publishes it.
    pub publisher: Publisher,
    /// The workers.
    pub squads: Vec<Squad>,
    links: Vec<Link>,
    replicas: usize,
    rng: fastrand::Rng,
    /// The workers' name in PostgreSQL and Neo4j.
    user: String,
    injected: usize,
    began: Instant,
    /// What a worker had committed, and acknowledged in vain, when it was killed, and what else it had.
    unheard: f64,
    /// Queues that were deleted, by squad and type. While what was in them is away, the end of a run may take effect.
    lost: BTreeSet<(usize, DataType)>,
    _servers: Servers,
}

/// A squad's ways to its servers.
struct Link {
    broker: Proxy,
    database: Proxy,
}

/// What came of one or more runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// Messages of the plan, each of which was confirmed.
    pub published: usize,
    /// Messages that were confirmed, repetitions included.
    pub confirmed: usize,
    /// Records that each database holds in their last version.
    pub committed: usize,
    /// Messages that each worker dead-lettered, each counted once.
    pub dead_lettered: usize,
    /// Faults.
    pub faults: usize,
    /// Records and messages that are nowhere, or only in an older version.
    pub lost: usize,
    /// What is where it should not be: ids that nobody published, good messages among the dead letters, wrong reasons.
    pub misfiled: usize,
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Totals { published, confirmed, committed, dead_lettered, faults, lost, misfiled } = self;
        write!(
            f,
            "published={published} confirmed={confirmed} committed={committed} dead_lettered={dead_lettered} \
             faults={faults} lost={lost} misfiled={misfiled}"
        )
    }
}

impl Run {
    /// Starts workers and publisher.
    pub async fn start(options: &Options) -> Result<Run, Error> {
        services();
        let servers = if options.alone {
            Servers::Alone { _guard: SERVERS.write().await }
        } else {
            Servers::Shared { _guard: SERVERS.read().await }
        };
        tokio::task::block_in_place(|| script(&["up"]))?; // a run that failed may have left a server down
        // The graph is there once only.
        let graph = options.workers.contains(&"graphinator");
        let stage = if graph { Stage::with_graph("trust").await? } else { Stage::new("trust").await? };
        let began = Instant::now();
        println!("trust: seed {} of {options:?}", options.seed);
        let user = format!("u{}", stage.database.replace('_', ""));
        let admin = stage.postgres().await?;
        let role = format!(
            "CREATE ROLE {user} LOGIN PASSWORD '{PASSWORD}'; ALTER DATABASE {} OWNER TO {user}; GRANT ALL ON SCHEMA public TO {user}",
            stage.database
        );
        admin.batch_execute(&role).await?;
        let create = format!("CREATE USER {user} SET PASSWORD '{PASSWORD}' CHANGE NOT REQUIRED");
        services().neo4j()?.run_on("system", query(&create)).await?;

        let (mut squads, mut links) = (Vec::new(), Vec::new());
        for &name in &options.workers {
            stage.declare(name).await?;
            let database = if name == "tableinator" { "POSTGRES" } else { "NEO4J" };
            let target = |service: &str| services().get(&format!("{service}_PORT")).parse::<u16>();
            let link = Link {
                broker: Proxy::start(target("RABBITMQ")?, u64::MAX).await?,
                database: Proxy::start(target(database)?, u64::MAX).await?,
            };
            let mut env: Vec<(String, String)> = [
                ("RABBITMQ_PORT", link.broker.port.to_string().as_str()),
                ("RABBITMQ_HEARTBEAT", "2"),
                (&format!("{database}_PORT"), &link.database.port.to_string()),
                (&format!("{database}_USERNAME"), &user),
                (&format!("{database}_PASSWORD"), PASSWORD),
                ("POSTGRES_BATCH_SIZE", "20"),
                ("NEO4J_BATCH_SIZE", "20"),
                ("WRITE_TIMEOUT", "3"),
                ("SHUTDOWN_TIMEOUT", "10"),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec();
            if name == "graphinator" {
                // A bare host might be asked for a route, which would lead around the proxy.
                env.push(("NEO4J_HOST".to_owned(), format!("bolt://127.0.0.1:{}", link.database.port)));
            }
            let mut squad = Squad::new(name, options.replicas, env);
            squad.fill(&stage)?;
            squad.ready().await?;
            squads.push(squad);
            links.push(link);
        }
        let mut plan = Plan::new(options.seed, options.messages);
        for (t, bodies) in &plan.earlier {
            stage.publish(*t, bodies).await?;
        }
        for squad in &squads {
            let loaded = async || Ok(squad.metric("records_committed_total", &[]) >= earlier(&plan));
            eventually("through with the earlier run", loaded).await?;
        }
        plan.complete(chrono::Utc::now());
        let plan = Arc::new(plan);
        let publisher = Publisher::start(Arc::clone(&plan), &stage.prefix, options.pace);
        Ok(Run {
            options: options.clone(),
            stage,
            plan,
            publisher,
            squads,
            links,
            replicas: options.replicas,
            rng: fastrand::Rng::with_seed(options.seed),
            user,
            injected: 0,
            began,
            unheard: 0.0,
            lost: BTreeSet::new(),
            _servers: servers,
        })
    }

    /// One fault in the middle of the load, of one squad or of what these squads share, which each of them must notice. The workers must have
    /// got on with it since the one before.
    pub async fn suffer(&mut self, fault: Fault, squads: &[usize]) -> Result<(), Error> {
        let mut before = Vec::new();
        for &squad in squads {
            self.under_way(squad).await?;
            let of_the_next_one = matches!(fault, Fault::WorkerKilled | Fault::WorkerKilledBeforeAck);
            before.push(if of_the_next_one { 0.0 } else { self.trace(fault, squad).await? });
        }
        let mut held = Some(self.begin(fault, squads[0]).await?);
        if let Some(over) = held.take_if(|_| fault.shows_afterwards()) {
            self.end(over).await?;
        }
        let mut noticed = Vec::new();
        for (&squad, before) in squads.iter().zip(before) {
            let seen = async || Ok(self.trace(fault, squad).await? > before);
            noticed.push(eventually(&format!("noticing {fault:?}"), seen).await);
            let (trace, after) = (self.trace(fault, squad).await, self.began.elapsed());
            println!("trust: {fault:?}: {before} before, {trace:?} when seen, {after:.1?} after the start");
        }
        if let Some(held) = held {
            // Nothing more is published until it is overcome, which can take a minute: there must be some load left for the next one.
            self.publisher.hold(true);
            // Also if nobody saw it: other tests use the same servers.
            self.end(held).await?;
            for &squad in squads {
                let squad = &self.squads[squad];
                let before = squad.metric("records_committed_total", &[]);
                let goes_on = async || Ok(squad.metric("records_committed_total", &[]) > before || squad.is_idle());
                noticed.push(eventually(&format!("overcoming {fault:?}"), goes_on).await);
            }
            self.publisher.hold(false);
        }
        noticed.into_iter().collect()
    }

    /// Waits until a worker has settled some messages more, of which others must be left to publish.
    async fn under_way(&self, squad: usize) -> Result<(), Error> {
        let settled = || self.squads[squad].metric("records_committed_total", &[]);
        let before = settled();
        let grows = async || Ok(settled() >= before + UNDER_WAY);
        eventually("at work", grows).await?;
        if self.publisher.has_more() { Ok(()) } else { Err("the load is over already".into()) }
    }

    /// Faults from the seed, one to three at a time, for so long.
    pub async fn suffer_mixed(&mut self, duration: Duration) -> Result<(), Error> {
        let until = Instant::now() + duration;
        while Instant::now() < until {
            self.pause(100, 800).await;
            let mut chosen: Vec<(Fault, usize)> = Vec::new();
            for _ in 0..self.rng.usize(1..=3) {
                let squad = self.rng.usize(..self.squads.len());
                let name = self.squads[squad].name;
                let possible: Vec<Fault> = Fault::ALL
                    .into_iter()
                    .filter(|f| f.concerns(name) && chosen.iter().all(|(other, _)| other.party() != f.party()))
                    .collect();
                let Some(&fault) = self.rng.choice(&possible) else { continue };
                chosen.push((fault, squad));
            }
            println!("trust: {chosen:?}");
            // The broker goes last and comes back last: what it lost is published again when everything else works.
            chosen.sort_by_key(|(fault, _)| fault.party() == Party::Broker);
            let mut held: Vec<Held> = Vec::new();
            for (fault, squad) in chosen {
                held.push(self.begin(fault, squad).await?);
                self.pause(0, 500).await;
            }
            self.pause(100, 1500).await;
            held.sort_by_key(|held| held.fault.party());
            for held in held {
                self.end(held).await?;
                self.pause(0, 200).await;
            }
        }
        Ok(())
    }

    async fn pause(&mut self, from: u64, to: u64) {
        sleep(Duration::from_millis(self.rng.u64(from..=to))).await;
    }

    /// Lets the load come to its end and judges.
    ///
    /// # Errors
    /// Whatever is not as it must be, with the seed.
    pub async fn finish(mut self) -> Result<Totals, Error> {
        let seed = self.options.seed;
        let judged = self.judge().await;
        let said: Vec<String> = self
            .squads
            .iter()
            .map(|s| format!("{}: {} killed, {} ended in order", s.name, s.killed, s.ended))
            .collect();
        let (totals, complaints) = judged.map_err(|e| format!("seed {seed}: {e}"))?;
        let (replicas, took, said) = (self.replicas, self.began.elapsed(), said.join("; "));
        println!("trust: seed={seed} replicas={replicas} {totals} in {took:.1?} ({said})");
        if !complaints.is_empty() {
            return Err(format!("seed {seed}: {totals}\n{}", complaints.join("\n")).into());
        }
        let (user, publisher) = (self.user.clone(), self.publisher);
        drop(publisher);
        services().neo4j()?.run_on("system", query(&format!("DROP USER {user}"))).await?;
        self.stage.clean_up().await?;
        let admin = services().postgres(services().get("POSTGRES_DATABASE")).await?;
        admin.batch_execute(&format!("DROP ROLE {user}")).await?;
        Ok(totals)
    }

    async fn judge(&mut self) -> Result<(Totals, Vec<String>), Error> {
        self.publisher.finish();
        self.publisher.done(PATIENCE).await?;
        self.stage.reconnect().await?;
        let mut totals = Totals {
            published: self.plan.messages.len(),
            confirmed: self.publisher.confirmed(),
            faults: self.injected,
            ..Totals::default()
        };
        let mut complaints = Vec::new();
        for (which, squad) in self.squads.iter_mut().enumerate() {
            let name = squad.name;
            let queues = DataType::ALL.map(|t| self.stage.topology(name, t).queue);
            let mut quiet = 0; // looks in a row
            let deadline = Instant::now() + PATIENCE;
            while quiet < 3 {
                let mut left = 0;
                for queue in &queues {
                    left += self.stage.ready_count(queue).await?;
                }
                quiet = if left == 0 && squad.is_idle() { quiet + 1 } else { 0 };
                if Instant::now() > deadline {
                    let held = squad.metric("unacked_deliveries", &[]);
                    let reasons: Vec<_> = squad.running().map(|w| w.get("/ready")).collect();
                    return Err(format!("{name}: {left} messages wait, {held} are held; {reasons:?}").into());
                }
                sleep(Duration::from_millis(100)).await;
            }
            eventually("maintained", async || Ok(ends(&self.stage, name).await?.0)).await?;
            squad.stop_idle().await?;
            for queue in &queues {
                // What was not acknowledged would be back now.
                let left = self.stage.ready_count(queue).await?;
                if left > 0 {
                    complaints.push(format!("{left} messages came back to {queue}"));
                }
            }
            let records = totals.published - RUNS.len() * CONTROLS + earlier(&self.plan) as usize;
            if squad.killed == 0 && squad.settled < records as u64 {
                complaints.push(format!("{name} counted {} of {records} messages", squad.settled));
            }
            let mut due = self.plan.due(name);
            let mut letters = BTreeMap::new();
            for t in DataType::ALL {
                letters.insert(t, self.stage.dead_letters(name, t).await?);
            }
            let dead: BTreeSet<DataType> = letters.iter().filter(|(_, l)| !l.is_empty()).map(|(t, _)| *t).collect();
            judge_letters(name, &due, letters, &mut totals, &mut complaints);
            let (_, ends) = ends(&self.stage, name).await?;
            let lost = self.lost.iter().filter(|(squad, _)| *squad == which).map(|(_, t)| *t).collect();
            let (kept, wrong) = judge_ends(name, &self.plan, &due, &dead, &lost, &ends);
            totals.misfiled += wrong.len();
            complaints.extend(wrong);
            for t in kept {
                // They came first.
                due.written.of(t).splice(..0, self.plan.gone[&t].iter().cloned());
            }
            let expected = oracle::expected(&due.written);
            let expected = if name == "graphinator" { oracle::maintained(&expected) } else { expected };
            let compared = if name == "tableinator" {
                let actual = states::read_tables(&self.stage.postgres().await?).await?;
                let versions = |tables: &oracle::Tables| -> Versions {
                    let rows = |t: &str| tables.get(t).into_iter().flatten();
                    TYPES
                        .iter()
                        .flat_map(|t| rows(t).map(|(id, row)| ((t.to_string(), id.clone()), row.hash.clone())))
                        .collect()
                };
                judge_versions(name, &versions(&actual), &versions(&expected.tables), &mut totals, &mut complaints);
                states::compare_tables(&actual, &expected.tables)
            } else {
                // Two nodes of the same id, or two equal relationships, are an error of reading.
                let (nodes, rels) = states::read_graph(&services().neo4j()?).await?;
                judge_versions(name, &of_nodes(&nodes), &of_nodes(&expected.nodes), &mut totals, &mut complaints);
                states::compare_graph(&nodes, &rels, &expected)
            };
            if let Err(difference) = compared {
                complaints.push(format!("{name}: {difference}"));
                // Even if each record is there in its last version: content is wrong.
                totals.misfiled += usize::from(totals.lost + totals.misfiled == 0);
            }
        }
        Ok((totals, complaints))
    }
}

/// Records of the earlier run.
fn earlier(plan: &Plan) -> f64 {
    plan.earlier.values().map(Vec::len).sum::<usize>() as f64
}

/// What came of the end of a run for one type: what it says of itself, and how many records were removed, if any might be.
type Ends = BTreeMap<(String, String), (String, Option<i64>)>;

/// Whether everything that the ends of the runs ask for is done, and what came of it.
async fn ends(stage: &Stage, worker: &str) -> Result<(bool, Ends), Error> {
    let mut ends = Ends::new();
    let done;
    if worker == "tableinator" {
        let purges = "SELECT version, data_type, outcome, deleted, finished_at IS NOT NULL FROM ingest_purges";
        let rows = stage.postgres().await?.query(purges, &[]).await?;
        done = rows.iter().filter(|row| row.get(4)).count() == RUNS.len() * TYPES.len();
        for row in rows.iter().filter(|row| row.get(4)) {
            let outcome: String = row.get(2);
            let deleted = (outcome == "deleted").then(|| row.get(3));
            ends.insert((row.get(0), row.get(1)), (outcome, deleted));
        }
    } else {
        let graph = services().neo4j()?;
        let runs = "MATCH (r:IngestRun) WHERE r.requested > 0 AND r.completed >= r.requested RETURN count(*) AS runs";
        let runs = graph.execute(query(runs)).await?.next().await?.ok_or("no count")?.get::<i64>("runs")?;
        done = runs == RUNS.len() as i64;
        let removals = "MATCH (v:IngestVanished) WHERE v.finished IS NOT NULL
                        RETURN v.version AS version, v.type AS type, v.outcome AS outcome";
        let mut rows = graph.execute(query(removals)).await?;
        while let Some(row) = rows.next().await? {
            let outcome: String = row.get("outcome")?;
            let removed = outcome.strip_prefix("removed ").and_then(|rest| rest.split(' ').next()?.parse().ok());
            ends.insert((row.get("version")?, row.get("type")?), (outcome, removed));
        }
    }
    Ok((done, ends))
}

/// The types of which nothing could be removed, and what is wrong with the ends of the runs. Types with dead letters are kept
/// as they are; of others goes what neither run brings, all at once at one of the ends, and at the first one's for a while what only the
/// second run brings. (If a queue was lost, also what was in it.)
fn judge_ends(
    worker: &str,
    plan: &Plan,
    due: &Due,
    dead: &BTreeSet<DataType>,
    lost: &BTreeSet<DataType>,
    ends: &Ends,
) -> (Vec<DataType>, Vec<String>) {
    let (mut kept, mut complaints) = (Vec::new(), Vec::new());
    for t in DataType::ALL {
        let mut removed = Vec::new();
        for (version, vetoed) in RUNS.iter().zip(&due.vetoed) {
            let end = ends.get(&((*version).to_owned(), t.name().to_owned()));
            let fits = match end {
                Some((_, Some(_))) => !vetoed.contains(&t),
                // A deleted queue counts as dead letters.
                Some((why, None)) => {
                    why == "records were dead-lettered in this run" && (dead.contains(&t) || lost.contains(&t))
                }
                None => false,
            };
            if !fits {
                complaints.push(format!("{worker} {t}: the end of {version} was {end:?}"));
            }
            removed.push(end.and_then(|(_, count)| *count));
        }
        let gone = plan.gone[&t].len() as i64;
        let late = if removed[0].is_some() { plan.late[&t] as i64 } else { 0 };
        let (sum, last) = (removed.iter().flatten().sum::<i64>(), removed[1].unwrap_or_default());
        let fits = if lost.contains(&t) {
            sum >= gone
        } else {
            (gone..=gone + late).contains(&sum) && [0, gone].contains(&last)
        };
        if removed == [None, None] {
            kept.push(t);
        } else if !fits {
            complaints.push(format!("{worker} {t}: {removed:?} were removed; {gone} are gone, and {late} may be late"));
        }
    }
    (kept, complaints)
}

/// Hashes of the records that are there, by type and id.
type Versions = BTreeMap<(String, String), String>;

fn of_nodes(nodes: &oracle::Nodes) -> Versions {
    let hash = |props: &serde_json::Value| Some(props.get("sha256")?.as_str()?.to_owned());
    nodes.iter().filter_map(|(node, props)| Some((node.clone(), hash(props)?))).collect()
}

fn judge_versions(
    worker: &str,
    actual: &Versions,
    expected: &Versions,
    totals: &mut Totals,
    complaints: &mut Vec<String>,
) {
    for (record, hash) in expected {
        match actual.get(record) {
            Some(found) if found == hash => totals.committed += 1,
            found => {
                totals.lost += 1;
                complaints.push(format!("{worker}: lost {record:?} {hash}, there is {found:?}"));
            }
        }
    }
    for (record, hash) in actual.iter().filter(|(record, _)| !expected.contains_key(*record)) {
        totals.misfiled += 1;
        complaints.push(format!("{worker}: nobody published {record:?} {hash}"));
    }
}

fn judge_letters(
    worker: &str,
    due: &Due,
    letters: BTreeMap<DataType, Vec<DeadLetter>>,
    totals: &mut Totals,
    complaints: &mut Vec<String>,
) {
    let mut found = BTreeSet::new();
    let short = |body: &[u8]| String::from_utf8_lossy(&body[..body.len().min(120)]).into_owned();
    for (t, letters) in letters {
        for letter in letters {
            let reason = letter.header("dead-letter-reason");
            let key = (t, letter.body.clone());
            match due.dead.get(&key).or_else(|| due.maybe_dead.get(&key)) {
                Some(expected) if *expected == reason => _ = found.insert(key),
                expected => {
                    totals.misfiled += 1;
                    let headers = letter.properties.headers();
                    complaints.push(format!(
                        "{worker} {t}: a dead letter for {reason:?} instead of {expected:?}: {} {headers:?}",
                        short(&letter.body)
                    ));
                }
            }
        }
    }
    for ((t, body), reason) in due.dead.iter().filter(|(key, _)| !found.contains(*key)) {
        totals.lost += 1;
        complaints.push(format!("{worker} {t}: no dead letter for {reason}: {}", short(body)));
    }
    totals.dead_lettered += found.len();
}

/// Waits until it is so.
pub async fn eventually(what: &str, check: impl AsyncFn() -> Result<bool, Error>) -> Result<(), Error> {
    within(PATIENCE, what, check).await
}
