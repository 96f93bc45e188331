//! An update ends in the graph that its month alone would make, whatever was there before; what others own stays.

use std::time::Duration;

use common::DataType;
use graphinator::gate;
use graphinator::prune::Removed;
use graphinator::sweep;
use graphinator::vanished::Guards;
use integration_tests::oracle::{self, Messages};
use integration_tests::proxy::{Direction, Proxy};
use integration_tests::stage::{graph_maintained, now, run_graph_maintained, services, settled, within};
use integration_tests::states;
use integration_tests::{Error, Stage};
use neo4rs::{Graph, Txn, query};
use xtask::process::Worker;
use xtask::sample::extraction_complete;

/// Longest wait for what must come.
const LONG: Duration = Duration::from_secs(60);
/// A removal waits for other transactions for no longer than a batch may take.
const SHORT: [(&str, &str); 1] = [("WRITE_TIMEOUT", "3")];

/// A data message; `members` is JSON text.
fn message(id: &str, hash: &str, members: &str) -> Vec<u8> {
    format!(r#"{{"type":"data","id":"{id}","sha256":"{hash}","id":"{id}",{members}}}"#).into_bytes()
}

struct Updates {
    stage: Stage,
    worker: Worker,
    graph: Graph,
    published: usize,
}

impl Updates {
    async fn new(name: &str) -> Result<Updates, Error> {
        Updates::with(name, &[]).await
    }

    async fn with(name: &str, settings: &[(&str, &str)]) -> Result<Updates, Error> {
        let stage = Stage::with_graph(name).await?;
        let worker = stage.start("graphinator", settings).await?;
        Ok(Updates { stage, worker, graph: services().neo4j()?, published: 0 })
    }

    async fn publish(&mut self, messages: &Messages) -> Result<(), Error> {
        for (t, bodies) in integration_tests::stage::by_type(messages) {
            self.published += self.stage.publish(t, bodies).await?;
        }
        settled(&mut self.worker, self.published).await
    }

    async fn complete(&self, version: &str, started_at: &str) -> Result<(), Error> {
        self.announce(version, started_at).await?;
        run_graph_maintained(version).await
    }

    async fn announce(&self, version: &str, started_at: &str) -> Result<(), Error> {
        let counts = DataType::ALL.map(|t| (t, 1));
        for t in DataType::ALL {
            self.stage.publish(t, [extraction_complete(version, started_at, counts)]).await?;
        }
        Ok(())
    }

    /// Takes a node from everybody else.
    async fn lock(&self, label: &str, id: &str) -> Result<Txn, Error> {
        let mut txn = self.graph.start_txn().await?;
        txn.run(query(&format!("MATCH (n:{label} {{id: '{id}'}}) SET n._rival = 1"))).await?;
        Ok(txn)
    }

    /// Waits until somebody waits for a lock.
    async fn blocked(&self) -> Result<(), Error> {
        let blocked = "SHOW TRANSACTIONS YIELD status WHERE status STARTS WITH 'Blocked' RETURN status";
        within(LONG, "waiting for a lock", async || {
            Ok(self.graph.execute(query(blocked)).await?.next().await?.is_some())
        })
        .await
    }

    async fn run(&self, statement: &str) -> Result<(), Error> {
        Ok(self.graph.run(query(statement)).await?)
    }

    async fn count(&self, pattern: &str) -> Result<i64, Error> {
        let mut rows = self.graph.execute(query(&format!("MATCH {pattern} RETURN count(*) AS x"))).await?;
        Ok(rows.next().await?.ok_or("no row")?.get("x")?)
    }

    async fn assert_is(&self, messages: &Messages, maintained: bool) -> Result<(), Error> {
        let expected = oracle::expected(messages);
        let expected = if maintained { oracle::maintained(&expected) } else { expected };
        let (nodes, rels) = states::read_graph(&self.graph).await?;
        Ok(states::compare_graph(&nodes, &rels, &expected)?)
    }

    async fn end(self) -> Result<(), Error> {
        assert_eq!(self.worker.stop().await?.code(), Some(0));
        self.stage.clean_up().await
    }
}

fn month_one() -> Messages {
    Messages {
        artists: vec![
            message("1", "a", r#""name":"Group","members":[{"id":"2"},{"id":"3"},{"id":"9"}],"aliases":[{"id":"4"}]"#),
            message("2", "a", r#""name":"Both say so","groups":[{"id":"1"}]"#),
            message("3", "a", r#""name":"Only the group says so""#),
            message("5", "a", r#""name":"Vanishes","members":[{"id":"2"}],"groups":[{"id":"8"}]"#),
            message("7", "a", r#""name":"Says it alone","groups":[{"id":"1"}]"#),
        ],
        labels: vec![
            message("1", "a", r#""name":"Parent","sublabels":[{"id":"2"},{"id":"3"}]"#),
            message("2", "a", r#""name":"Both","parentLabel":{"id":"1"}"#),
            message("4", "a", r#""name":"Child","parentLabel":{"id":"5"}"#),
        ],
        masters: vec![
            message("1", "a", r#""title":"M","genres":["Rock"],"styles":["Punk","Emo"],"artists":[{"id":"1"}]"#),
            message("2", "a", r#""title":"N","genres":["Rock"],"styles":["Punk"]"#),
        ],
        releases: vec![
            message(
                "1",
                "a",
                r#""title":"R","genres":["Jazz"],"styles":["Bop"],"labels":[{"id":"1","catno":"X"},{"id":"6"}],"master_id":"1",
                   "artists":[{"id":"6"}],"extraartists":[{"id":"6","name":"P","role":"Bass"},{"id":"2","name":"P","role":"Mix"},
                   {"id":"77","name":"Q","role":"Bass"},{"id":"2","name":"S","role":"Bass"}]"#,
            ),
            message(
                "2",
                "a",
                r#""title":"T","extraartists":[{"id":"2","name":"S","role":"Bass"}],"genres":["Rock","Pop"]"#,
            ),
            message(
                "3",
                "a",
                r#""title":"Vanishes","genres":["Blues"],"styles":["Delta"],"labels":[{"id":"4","catno":"Y"}]"#,
            ),
        ],
    }
}

/// Everything that could be taken away is taken away somewhere, and some of it only from one side.
fn month_two() -> Messages {
    Messages {
        artists: vec![
            message("1", "b", r#""name":"Group","members":[{"id":"9"}]"#),
            message("2", "a", r#""name":"Both say so","groups":[{"id":"1"}]"#),
            message("3", "b", r#""name":"Renamed","aliases":[{"id":"1"}]"#),
            message("7", "b", r#""name":"Says it no more""#),
        ],
        labels: vec![
            message("1", "b", r#""name":"Parent""#),
            message("2", "a", r#""name":"Both","parentLabel":{"id":"1"}"#),
            message("4", "b", r#""name":"Child""#),
        ],
        masters: vec![
            message("1", "b", r#""title":"M","genres":["Rock","Pop"],"styles":["Punk","Emo"]"#),
            message("2", "a", r#""title":"N","genres":["Rock"],"styles":["Punk"]"#),
        ],
        releases: vec![
            message(
                "1",
                "b",
                r#""title":"R","labels":[{"id":"1"}],"extraartists":[{"id":"2","name":"P","role":"Mix"}]"#,
            ),
            message(
                "2",
                "a",
                r#""title":"T","extraartists":[{"id":"2","name":"S","role":"Bass"}],"genres":["Rock","Pop"]"#,
            ),
        ],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_month_ends_as_if_it_were_the_first() -> Result<(), Error> {
    let mut updates = Updates::new("second").await?;
    updates.publish(&month_one()).await?;
    updates.assert_is(&month_one(), false).await?;
    // Back and forth: the first month once more is another update.
    for (version, month) in [("20260201", month_two()), ("20260301", month_one()), ("20260401", month_two())] {
        let started_at = now();
        updates.publish(&month).await?;
        updates.complete(version, &started_at).await?;
        updates.assert_is(&month, true).await?;
    }
    // What was seen is kept for the last run only: three of its types had records in one batch or more.
    assert_eq!(updates.count("(:IngestRecheck)").await?, 0);
    let before = "(v:IngestVanished {version: '20260401'}) MATCH (s:IngestSeen {type: v.type}) WHERE s.at < v.started";
    assert_eq!(updates.count(before).await?, 0);
    updates.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_other_services_own_stays() -> Result<(), Error> {
    let mut updates = Updates::new("foreign").await?;
    updates.publish(&month_one()).await?;
    for statement in [
        "MATCH (a:Artist {id: '5'}) SET a.mbid = 'm5'",
        "MATCH (a:Artist {id: '1'}) SET a.mbid = 'm1'",
        "MATCH (r:Release {id: '3'}) CREATE (:User {id: 'u'})-[:COLLECTED {rating: 5}]->(r)",
        "MATCH (r:Release {id: '3'}) SET r.catalog_number = 'of the API'",
        "MATCH (:Artist {id: '3'})-[e:MEMBER_OF]->(:Artist {id: '1'}) SET e.source = 'musicbrainz'",
        "MATCH (a:Artist {id: '2'}), (b:Artist {id: '7'}) CREATE (a)-[:MEMBER_OF {source: 'musicbrainz'}]->(b)",
        "CREATE (:Artist {id: '1000', mbid: 'only there'})",
        "MATCH (:Person {name: 'P'})-[e:CREDITED_ON {role: 'Bass'}]->(:Release {id: '1'}) SET e.source = 'somebody'",
    ] {
        updates.run(statement).await?;
    }
    let started_at = now();
    updates.publish(&month_two()).await?;
    updates.complete("20260201", &started_at).await?;
    for pattern in [
        "(a:Artist {id: '5', mbid: 'm5'}) WHERE a.name IS NULL AND a.sha256 IS NULL",
        "(a:Artist {id: '1', mbid: 'm1', name: 'Group'})",
        "(:User {id: 'u'})-[:COLLECTED {rating: 5}]->(r:Release {id: '3', catalog_number: 'of the API'}) WHERE r.title IS NULL",
        "(:Artist {id: '3'})-[:MEMBER_OF {source: 'musicbrainz'}]->(:Artist {id: '1'})",
        "(:Artist {id: '2'})-[:MEMBER_OF {source: 'musicbrainz'}]->(:Artist {id: '7'})",
        "(:Artist {id: '1000', mbid: 'only there'})",
        "(:Person {name: 'P'})-[:CREDITED_ON {role: 'Bass', source: 'somebody'}]->(:Release {id: '1'})",
    ] {
        assert_eq!(updates.count(pattern).await?, 1, "{pattern}");
    }
    // The credit that stays as an edge of somebody else's is no reason for SAME_AS any more.
    for pattern in [
        "(:Artist {id: '5'})--()",
        "(:Release {id: '3'})-[:IS|ON]->()",
        "(:Style {name: 'Delta'})",
        "(:Person {name: 'P'})-[:SAME_AS]->(:Artist {id: '6'})",
        "(:IngestPendingLink {artist: '6', person: 'P'})",
    ] {
        assert_eq!(updates.count(pattern).await?, 0, "{pattern}");
    }
    updates.end().await
}

/// Records of a graph that somebody else wrote say nothing of their claims: what they may claim stays.
#[tokio::test(flavor = "multi_thread")]
async fn claims_that_nobody_marked_are_believed() -> Result<(), Error> {
    let mut updates = Updates::new("unmarked").await?;
    updates
        .run(
            "CREATE (g:Artist {id: '1', name: 'G', sha256: 'x'}), (m:Artist {id: '2', name: 'M', sha256: 'x'}),
               (m)-[:MEMBER_OF]->(g), (p:Person {name: 'P'})-[:SAME_AS]->(m),
               (p)-[:CREDITED_ON {role: 'Bass', category: 'session'}]->(:Release {id: '1', title: 'T', sha256: 'x'}),
               (:Genre {name: 'Rock'})<-[:IS]-(:Master {id: '1', title: 'T', sha256: 'x'})-[:IS]->(s:Style {name: 'Punk'})
             WITH s MATCH (g:Genre) CREATE (s)-[:PART_OF]->(g)",
        )
        .await?;
    let with = |credit: &str| Messages {
        artists: vec![message(
            "1",
            credit,
            if credit == "a" { r#""name":"G","members":[{"id":"2"}]"# } else { r#""name":"G""# },
        )],
        masters: vec![message(
            "2",
            credit,
            if credit == "a" { r#""genres":["Rock"],"styles":["Punk"]"# } else { r#""title":"x""# },
        )],
        releases: vec![message(
            "2",
            credit,
            if credit == "a" { r#""extraartists":[{"id":"2","name":"P","role":"Mix"}]"# } else { r#""title":"x""# },
        )],
        ..Messages::default()
    };
    updates.publish(&with("a")).await?;
    updates.publish(&with("b")).await?;
    for pattern in [
        "(:Artist {id: '2'})-[:MEMBER_OF]->(:Artist {id: '1'})",
        "(:Person {name: 'P'})-[:SAME_AS]->(:Artist {id: '2'})",
        "(:Style {name: 'Punk'})-[:PART_OF]->(:Genre {name: 'Rock'})",
    ] {
        assert_eq!(updates.count(pattern).await?, 1, "{pattern}");
    }
    assert_eq!(updates.count("(:Person)-[:CREDITED_ON {role: 'Mix'}]->()").await?, 0);
    updates.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn guards_keep_what_a_run_did_not_bring() -> Result<(), Error> {
    let mut updates = Updates::new("guards").await?;
    let names = |ids: std::ops::Range<usize>| -> Vec<Vec<u8>> {
        ids.map(|id| message(&id.to_string(), "a", r#""name":"x""#)).collect()
    };
    let all = Messages { artists: names(1..21), ..Messages::default() };
    updates.publish(&all).await?;
    let one = |started_at: String| Messages {
        artists: vec![message("1", &started_at, r#""name":"y""#)],
        ..Messages::default()
    };
    let count = "(:Artist)";
    // Nearly all would go.
    let started_at = now();
    updates.publish(&one(started_at.clone())).await?;
    updates.complete("v1", &started_at).await?;
    assert_eq!(updates.count(count).await?, 20, "vetoed");
    // The run began in the database's future: its clock is behind, and nothing is fresh for certain.
    let future = (chrono::Utc::now() + chrono::Duration::hours(1)).to_rfc3339();
    updates.publish(&Messages { artists: names(1..16), ..Messages::default() }).await?;
    updates.complete("v2", &future).await?;
    assert_eq!(updates.count(count).await?, 20, "the clock");
    // A record that could not be written only looks vanished.
    let started_at = now();
    updates.publish(&Messages { artists: names(1..16), ..Messages::default() }).await?;
    updates.stage.publish(DataType::Artists, ["nonsense"]).await?;
    updates.published += 1;
    settled(&mut updates.worker, updates.published).await?;
    updates.complete("v3", &started_at).await?;
    assert_eq!(updates.count(count).await?, 20, "dead letters");
    // No start, no comparison; the same for a run without records.
    updates.complete("v4", "").await?;
    assert_eq!(updates.count(count).await?, 20, "no started_at");
    let started_at = now();
    updates.publish(&Messages { artists: names(1..16), ..Messages::default() }).await?;
    updates.complete("v5", &started_at).await?;
    assert_eq!(updates.count(count).await?, 15, "without any of that they go");
    // The same signals again change nothing, although nothing was seen since.
    updates.complete("v5", &started_at).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(updates.count(count).await?, 15, "repeated");
    updates.end().await
}

/// A batch of the next run has seen a vanished record just before it is removed, and is not committed yet.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_next_run_brings_meanwhile_stays() -> Result<(), Error> {
    let mut updates = Updates::new("meanwhile").await?;
    let artists = |ids| Messages { artists: many(ids, "a"), ..Messages::default() };
    updates.publish(&artists(1..=20)).await?;
    let started_at = now();
    updates.publish(&artists(1..=15)).await?;
    let mut batch = updates.graph.start_txn().await?;
    batch.run(query("CREATE (:IngestSeen {type: 'artists', at: timestamp(), ids: ['16']})")).await?;
    updates.announce("20260201", &started_at).await?;
    let gate = "(:IngestGate {type: 'artists'})";
    let closed = async || Ok(updates.count(gate).await? == 1);
    within(LONG, "closed", closed).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(updates.count("(:Artist)").await?, 20, "removed beside a batch");
    batch.commit().await?;
    run_graph_maintained("20260201").await?;
    assert_eq!(updates.count("(:Artist)").await?, 16);
    assert_eq!(updates.count("(:Artist {id: '16', name: 'x'})").await?, 1);
    assert_eq!(updates.count(gate).await?, 0);

    // While the gate is closed, a batch waits for whoever has the node, although it has nothing to write.
    updates.run("CREATE (:IngestGate {type: 'artists'})").await?;
    let removal = updates.lock("Artist", "16").await?;
    let committed = |w: &Worker| w.metric("records_committed_total", &[]);
    let before = committed(&updates.worker);
    updates.stage.publish(DataType::Artists, many(16..=16, "a")).await?;
    updates.published += 1;
    let writing = |w: &Worker| w.metric("in_flight_batches", &["data_type=\"artists\""]) == 1.0;
    updates.worker.until("writing", LONG, writing).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(committed(&updates.worker), before, "not waited for");
    removal.rollback().await?;
    settled(&mut updates.worker, updates.published).await?;
    updates.end().await
}

/// A batch may take longer than most: what it noted before, and commits only now, was seen all the same.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_slow_batch_has_seen_stays() -> Result<(), Error> {
    let mut updates = Updates::with("slow", &[("WRITE_TIMEOUT", "400")]).await?;
    let artists = |ids| Messages { artists: many(ids, "a"), ..Messages::default() };
    updates.publish(&artists(1..=20)).await?;
    updates.run("MATCH (s:IngestSeen) SET s.at = s.at - 3600000").await?;
    let started_at = (chrono::Utc::now() - chrono::Duration::minutes(15)).to_rfc3339();
    updates.publish(&artists(1..=15)).await?;
    let mut batch = updates.graph.start_txn().await?;
    batch.run(query("CREATE (:IngestSeen {type: 'artists', at: timestamp() - 700000, ids: ['16']})")).await?;
    updates.announce("20260201", &started_at).await?;
    let closed = async || Ok(updates.count("(:IngestGate {type: 'artists'})").await? == 1);
    within(LONG, "closed", closed).await?;
    batch.commit().await?;
    run_graph_maintained("20260201").await?;
    assert_eq!(updates.count("(:Artist)").await?, 16);
    updates.end().await
}

/// Records with these ids: more than are removed in one step.
fn many(ids: std::ops::RangeInclusive<usize>, hash: &str) -> Vec<Vec<u8>> {
    ids.map(|id| message(&id.to_string(), hash, r#""name":"x""#)).collect()
}

/// The next run begins while records are removed that an earlier one did not bring, and brings some of them just then, changed
/// or as they were. These stay.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_comes_back_is_not_removed() -> Result<(), Error> {
    let mut updates = Updates::with("comesback", &SHORT).await?;
    updates.publish(&Messages { artists: many(1..=1300, "a"), ..Messages::default() }).await?;
    let started_at = now();
    let brought = many(601..=1300, "a");
    updates.publish(&Messages { artists: brought.clone(), ..Messages::default() }).await?;
    // Two steps: 1 to 500, of which somebody has one, and 501 to 600.
    let rival = updates.lock("Artist", "1").await?;
    updates.announce("20260201", &started_at).await?;
    updates.blocked().await?;
    let back = [many(550..=550, "b"), many(551..=551, "a")].concat();
    updates.publish(&Messages { artists: back.clone(), ..Messages::default() }).await?;
    rival.rollback().await?;
    run_graph_maintained("20260201").await?;
    updates.assert_is(&Messages { artists: [brought, back].concat(), ..Messages::default() }, true).await?;
    updates.end().await
}

/// Killed in the midst of the removal, and of the statistics: the next worker goes on.
#[tokio::test(flavor = "multi_thread")]
async fn maintenance_that_was_killed_is_resumed() -> Result<(), Error> {
    let mut updates = Updates::with("resumed", &SHORT).await?;
    let labels = month_one().labels;
    let before = Messages { artists: many(1..=1300, "a"), labels: labels.clone(), ..Messages::default() };
    updates.publish(&before).await?;
    let started_at = now();
    let mut brought = Messages { artists: many(601..=1300, "a"), labels, ..Messages::default() };
    brought.releases = vec![message("1", "a", r#""title":"R","genres":["Jazz"],"labels":[{"id":"1"}]"#)];
    updates.publish(&brought).await?;
    let rivals = [updates.lock("Artist", "550").await?, updates.lock("Label", "2").await?];
    updates.announce("20260201", &started_at).await?;
    for (rival, left) in rivals.into_iter().zip([800, 700]) {
        let left_are = async || Ok(updates.count("(a:Artist) WHERE a.sha256 IS NOT NULL").await? == left);
        within(LONG, "where it is to be killed", left_are).await?;
        updates.blocked().await?;
        updates.worker.signal("KILL")?;
        updates.worker.ended().await?;
        rival.rollback().await?;
        assert_eq!(updates.count("(r:IngestRun) WHERE r.completed >= r.requested").await?, 0);
        // As if a minute had passed.
        updates.run("MATCH (r:IngestRun) SET r.lease = timestamp() - 1").await?;
        updates.worker = updates.stage.start("graphinator", &SHORT).await?;
    }
    run_graph_maintained("20260201").await?;
    updates.assert_is(&brought, true).await?;
    let counted = "(v:IngestVanished {type: 'artists', outcome: 'removed 600 of 1300'})";
    assert_eq!(updates.count(counted).await?, 1, "what was removed before the crash counts too");
    updates.end().await
}

/// Whoever does the maintenance is stopped on the way to removing a record, and another replica takes over meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn maintenance_that_was_frozen_removes_nothing() -> Result<(), Error> {
    let way = Proxy::start(services().get("NEO4J_PORT").parse()?, u64::MAX).await?;
    let uri = format!("bolt://127.0.0.1:{}", way.port);
    let mut updates = Updates::with("supplanted", &[("NEO4J_HOST", uri.as_str()), SHORT[0]]).await?;
    let artists = |ids| Messages { artists: many(ids, "a"), ..Messages::default() };
    updates.publish(&artists(1..=20)).await?;
    let started_at = now();
    updates.publish(&artists(1..=19)).await?;
    way.freeze_at(Direction::There, b"(n:Artist {id: id}) USING INDEX SEEK n:Artist(id) SET n._v = n._v");
    updates.announce("20260201", &started_at).await?;
    updates.worker.until("about to remove a record", LONG, |_| way.held() > 0).await?;
    updates.worker.signal("STOP")?;
    // As if a minute had passed and another replica were doing it.
    updates.run("MATCH (r:IngestRun) SET r.owner = 'next', r.lease = timestamp() + 60000").await?;
    way.freeze(Direction::There, false);
    updates.worker.signal("CONT")?;
    let told = |w: &Worker| w.log_text().contains("another replica took over the maintenance");
    updates.worker.until("told that it is over", LONG, told).await?;
    assert_eq!(updates.count("(a:Artist {id: '20', name: 'x'}) WHERE a.sha256 IS NOT NULL").await?, 1);
    // That one ended, without having done it. The signals come once more.
    updates.run("MATCH (r:IngestRun) SET r.owner = NULL").await?;
    updates.complete("20260201", &started_at).await?;
    updates.assert_is(&artists(1..=19), true).await?;
    updates.end().await
}

/// A second run is complete while another replica is at the end of the first one.
#[tokio::test(flavor = "multi_thread")]
async fn one_replica_at_a_time_maintains() -> Result<(), Error> {
    let mut updates = Updates::new("oneatatime").await?;
    let started_at = now();
    updates.publish(&Messages { artists: many(1..=5, "a"), ..Messages::default() }).await?;
    updates
        .run(
            "CREATE (:IngestRun {version: '20260101', started: 0, signals: [], requested: 1, completed: 0, owner: 'another', \
             lease: timestamp() + 3600000})",
        )
        .await?;
    updates.announce("20260201", &started_at).await?;
    let graph = services().neo4j()?;
    let asked = "(r:IngestRun {version: '20260201'}) WHERE r.requested > 0";
    within(LONG, "asked for", async || Ok(updates.count(asked).await? == 1)).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!graph_maintained(&graph, "20260201").await?, "beside another replica");
    // That one is frozen. Its lease is over, for whatever run.
    updates.run("MATCH (r:IngestRun {version: '20260101'}) SET r.lease = timestamp() - 1").await?;
    run_graph_maintained("20260201").await?;
    assert_eq!(updates.count("(r:IngestRun) WHERE r.owner = 'another' OR r.completed < r.requested").await?, 0);
    updates.end().await
}

/// Two replicas have closed a gate, one after the other: the first one's removal is over, the second one's is not. Then it ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_gate_is_opened_by_who_closed_it_last() -> Result<(), Error> {
    let stage = Stage::with_graph("gate").await?;
    let graph = services().neo4j()?;
    let guards =
        |owner: &str| Guards { max_fraction: 1.0, batch_timeout: Duration::from_secs(1), owner: owner.to_owned() };
    let closed = async || -> Result<i64, Error> {
        let mut rows = graph.execute(query("MATCH (g:IngestGate) RETURN count(*) AS x")).await?;
        Ok(rows.next().await?.ok_or("no row")?.get("x")?)
    };
    let run = |owner: &str| query("MERGE (r:IngestRun {version: 'x'}) SET r.owner = $owner").param("owner", owner);
    gate::close(&graph, DataType::Artists, &guards("frozen")).await?;
    gate::close(&graph, DataType::Artists, &guards("next")).await?;
    graph.run(run("next")).await?;
    gate::open(&graph, DataType::Artists, &guards("frozen")).await?;
    gate::open(&graph, DataType::Labels, &guards("next")).await?;
    assert_eq!(closed().await?, 1);
    gate::open(&graph, DataType::Artists, &guards("next")).await?;
    assert_eq!(closed().await?, 0);
    // One that crashed has left it closed.
    gate::close(&graph, DataType::Artists, &guards("next")).await?;
    graph.run(run("another")).await?;
    gate::open(&graph, DataType::Artists, &guards("another")).await?;
    assert_eq!(closed().await?, 0);
    stage.clean_up().await
}

/// The end of a run takes its time, and the next run begins meanwhile. What that brings comes after this end, and is not
/// forgotten with what came before.
#[tokio::test(flavor = "multi_thread")]
async fn the_next_run_s_records_come_after_the_end_of_this_one() -> Result<(), Error> {
    let mut updates = Updates::with("endofrun", &SHORT).await?;
    let artists = |ids| Messages { artists: many(ids, "a"), ..Messages::default() };
    updates.publish(&artists(1..=20)).await?;
    let started_at = now();
    updates.publish(&artists(1..=20)).await?;
    updates
        .run("CREATE (:IngestRun {id: 'x', version: '20260201', started: 0, signals: [], requested: 0, completed: 0})")
        .await?;
    let rival = updates.lock("IngestRun", "x").await?;
    updates.announce("20260201", &started_at).await?;
    updates.blocked().await?;
    let next_started_at = now();
    updates.stage.publish(DataType::Artists, artists(1..=5).artists).await?;
    let again = |w: &Worker| w.metric("retries_total", &["data_type=\"artists\"", "code=\"timeout\""]) > 0.0;
    updates.worker.until("trying again", LONG, again).await?;
    rival.rollback().await?;
    updates.published += 5;
    updates.publish(&artists(6..=20)).await?;
    run_graph_maintained("20260201").await?;
    updates.complete("20260301", &next_started_at).await?;
    updates.assert_is(&artists(1..=20), true).await?;
    updates.end().await
}

/// Two runs that overlap: the second one's records come partly before the end of the first.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_run_brought_before_the_end_of_the_one_before_it_stays() -> Result<(), Error> {
    let mut updates = Updates::new("overlap").await?;
    let artists = |ids| Messages { artists: many(ids, "a"), ..Messages::default() };
    let first = now();
    updates.publish(&artists(1..=20)).await?;
    let second = now();
    updates.publish(&artists(1..=5)).await?;
    updates.complete("20260201", &first).await?;
    updates.publish(&artists(6..=20)).await?;
    updates.complete("20260301", &second).await?;
    assert_eq!(updates.count("(:Artist)").await?, 20);
    updates.end().await
}

/// The other way round: the node was found, and is deleted before it is locked.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_whose_node_is_deleted_meanwhile_is_written_all_the_same() -> Result<(), Error> {
    let mut updates = Updates::new("deletedmeanwhile").await?;
    for (t, label) in DataType::ALL.into_iter().zip(["Artist", "Label", "Master", "Release"]) {
        updates.run(&format!("CREATE (:{label} {{id: '7'}})")).await?;
        let mut deletion = updates.graph.start_txn().await?;
        deletion.run(query(&format!("MATCH (n:{label} {{id: '7'}}) DELETE n"))).await?;
        updates.stage.publish(t, many(7..=7, "a")).await?;
        updates.published += 1;
        updates.blocked().await?;
        deletion.commit().await?;
        settled(&mut updates.worker, updates.published).await?;
        assert_eq!(updates.count(&format!("(:{label} {{id: '7', sha256: 'a'}})")).await?, 1, "{label}");
    }
    updates.end().await
}

/// The end of a run finds an edge that nobody claims. A batch of the next run has found it, too, and is about to commit its claim.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_is_about_to_be_committed_keeps_its_edge() -> Result<(), Error> {
    let updates = Updates::new("claim").await?;
    let nodes = "CREATE (:Person {name: 'P'})-[:SAME_AS]->(:Artist {id: '5', sha256: 'x', _v: 1}), (:Release {id: '1', sha256: 'x', _v: 1})";
    updates.run(nodes).await?;
    updates.graph.run(sweep::note(&Removed { same_as: vec![("P".into(), "5".into())], ..Removed::default() })).await?;
    let mut batch = updates.graph.start_txn().await?;
    let claim = "MATCH (p:Person {name: 'P'}), (a:Artist {id: '5'}), (r:Release {id: '1'}) \
                 MERGE (p)-[:SAME_AS]->(a) CREATE (p)-[:CREDITED_ON {role: 'Producer', _artists: '5'}]->(r)";
    batch.run(query(claim)).await?;
    updates.announce("20260201", &now()).await?;
    let asked = "(r:IngestRun {version: '20260201'}) WHERE r.requested > 0";
    within(LONG, "asked for", async || Ok(updates.count(asked).await? == 1)).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    batch.commit().await?;
    run_graph_maintained("20260201").await?;
    assert_eq!(updates.count("(:Person {name: 'P'})-[:SAME_AS]->(:Artist {id: '5'})").await?, 1);
    assert_eq!(updates.count("(:IngestRecheck)").await?, 0);
    updates.end().await
}

/// A node that is there for others only becomes a record without edges while a sweep looks at it.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_becomes_a_record_meanwhile_is_not_swept() -> Result<(), Error> {
    let stage = Stage::with_graph("swept").await?;
    let worker = stage.start("graphinator", &[]).await?; // makes the indexes
    assert_eq!(worker.stop().await?.code(), Some(0));
    let graph = services().neo4j()?;
    graph.run(query("CREATE (:Artist {id: '7'}), (:Label {id: '7'})")).await?;
    let mut record = graph.start_txn().await?;
    record.run(query("MATCH (n {id: '7'}) SET n.sha256 = 'x', n.name = 'no edge'")).await?;
    let removed = Removed { artists: vec!["7".to_owned()], labels: vec!["7".to_owned()], ..Removed::default() };
    let sweeping = tokio::spawn({
        let graph = graph.clone();
        async move {
            for statement in sweep::statements(&removed) {
                graph.run(statement).await?;
            }
            Ok::<_, neo4rs::Error>(())
        }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    if sweeping.is_finished() {
        return Err(format!("it does not wait for who has the nodes: {:?}", sweeping.await).into());
    }
    record.commit().await?;
    sweeping.await??;
    let left = graph.execute(query("MATCH (n {id: '7'}) RETURN count(*) AS x")).await?.next().await?;
    assert_eq!(left.ok_or("no count")?.get::<i64>("x")?, 2);
    stage.clean_up().await
}
