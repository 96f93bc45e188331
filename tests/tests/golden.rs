//! Golden messages in, golden states out: month by month, in sequence, and through SIGTERM and SIGKILL.

use std::time::Duration;

use common::DataType;
use integration_tests::oracle::{self, Expected, Messages};
use integration_tests::stage::{by_type, now, run_maintained, services, settled};
use integration_tests::states;
use integration_tests::{Error, Stage};
use tokio::time::{Instant, sleep};
use xtask::process::Worker;
use xtask::sample::{self, Sample, Spec};

/// Longest wait for what must come, on a machine that is busy with other things.
const LONG: Duration = Duration::from_secs(120);

/// One month: its messages and what they must end in, before and after the completion signals.
struct Month {
    version: &'static str,
    messages: Messages,
    expected: Expected,
    maintained: Expected,
}

impl Month {
    fn new(version: &'static str, messages: Messages) -> Month {
        let expected = oracle::expected(&messages);
        let maintained = oracle::maintained(&expected);
        Month { version, messages, expected, maintained }
    }
}

/// The golden months, or three of the project's own making.
fn months(test: &str) -> Result<Vec<Month>, Error> {
    let Some(dir) = states::golden_dir(test) else {
        let spec = Spec { seed: 7, records: 6000 };
        let from =
            |s: Sample| Messages { artists: s.artists, labels: s.labels, masters: s.masters, releases: s.releases };
        return Ok(vec![
            Month::new("20250101", from(sample::generate(&spec))),
            Month::new("20250201", from(sample::next_month(&spec, 0.1, 0.0))),
            Month::new("20250301", from(sample::next_month(&spec, 0.1, 0.1))),
        ]);
    };
    let mut months = Vec::new();
    for version in ["20200801", "20260401", "20260501"] {
        let month = Month::new(version, states::load_messages(&dir.join("messages"), version)?);
        // The oracle is only as good as its agreement with the golden states.
        let golden = states::load_expected(&dir.join("states").join(version))?;
        let same = if version == "20260501" { &month.maintained } else { &month.expected };
        states::compare_tables(&same.tables, &golden.tables)?;
        states::compare_graph(&same.nodes, &same.rels, &golden)?;
        months.push(month);
    }
    Ok(months)
}

async fn assert_tables(stage: &Stage, expected: &Expected) -> Result<(), Error> {
    let actual = states::read_tables(&stage.postgres().await?).await?;
    Ok(states::compare_tables(&actual, &expected.tables)?)
}

async fn assert_graph(expected: &Expected) -> Result<(), Error> {
    let (nodes, rels) = states::read_graph(&services().neo4j()?).await?;
    Ok(states::compare_graph(&nodes, &rels, expected)?)
}

async fn assert_no_dead_letters(stage: &Stage) -> Result<(), Error> {
    for worker in ["tableinator", "graphinator"] {
        for t in DataType::ALL {
            let letters = stage.dead_letters(worker, t).await?;
            assert!(letters.is_empty(), "{worker} {t}: {} dead letters, e.g. {:?}", letters.len(), letters.first());
        }
    }
    Ok(())
}

async fn both(stage: &Stage) -> Result<(Worker, Worker), Error> {
    Ok((stage.start("tableinator", &[]).await?, stage.start("graphinator", &[]).await?))
}

async fn stop_clean(workers: (Worker, Worker)) -> Result<(), Error> {
    assert_eq!(workers.0.stop().await?.code(), Some(0));
    assert_eq!(workers.1.stop().await?.code(), Some(0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_month_alone() -> Result<(), Error> {
    for month in months("each_month_alone")? {
        let stage = Stage::with_graph("alone").await?;
        let started_at = now();
        let mut workers = both(&stage).await?;
        let count = stage.publish_month(&month.messages, month.version).await?;
        settled(&mut workers.0, count).await?;
        settled(&mut workers.1, count).await?;
        assert_tables(&stage, &month.expected).await?;
        assert_graph(&month.expected).await?;
        stage.publish_end(&month.messages, month.version, &started_at).await?;
        run_maintained(&stage, month.version).await?;
        assert_tables(&stage, &month.maintained).await?;
        assert_graph(&month.maintained).await?;
        assert_no_dead_letters(&stage).await?;
        stop_clean(workers).await?;
        stage.clean_up().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn months_one_over_the_other() -> Result<(), Error> {
    let stage = Stage::with_graph("sequence").await?;
    let mut workers = both(&stage).await?;
    let mut count = 0;
    for month in months("months_one_over_the_other")? {
        let started_at = now();
        count += stage.publish_month(&month.messages, month.version).await?;
        settled(&mut workers.0, count).await?;
        settled(&mut workers.1, count).await?;
        stage.publish_end(&month.messages, month.version, &started_at).await?;
        run_maintained(&stage, month.version).await?;
        assert_tables(&stage, &month.maintained).await?;
        assert_graph(&month.maintained).await?;
    }
    assert_no_dead_letters(&stage).await?;
    stop_clean(workers).await?;
    stage.clean_up().await
}

/// The second month has all ids of the first one, so that nothing waits for the end of the run.
#[tokio::test(flavor = "multi_thread")]
async fn an_update_is_exact_before_the_run_ends() -> Result<(), Error> {
    let stage = Stage::with_graph("update").await?;
    let mut workers = both(&stage).await?;
    let mut count = 0;
    for month in months("an_update_is_exact_before_the_run_ends")?.iter().take(2) {
        count += stage.publish_month(&month.messages, month.version).await?;
        settled(&mut workers.0, count).await?;
        settled(&mut workers.1, count).await?;
        assert_tables(&stage, &month.expected).await?;
        assert_graph(&month.expected).await?;
    }
    stop_clean(workers).await?;
    stage.clean_up().await
}

/// Messages that are ready in a worker's queues.
async fn left(stage: &Stage, worker: &str) -> Result<u32, Error> {
    let mut ready = 0;
    for t in DataType::ALL {
        ready += stage.ready_count(&stage.topology(worker, t).queue).await?;
    }
    Ok(ready)
}

/// Loads a month while the workers get `signal` again and again; they are started anew each time.
async fn disturbed(name: &str, signal: &'static str) -> Result<(), Error> {
    let Some(month) = months(name)?.into_iter().nth(1) else { return Ok(()) };
    let stage = Stage::with_graph(name).await?;
    stage.declare("tableinator").await?;
    stage.declare("graphinator").await?;
    stage.publish_month(&month.messages, month.version).await?;
    let total: usize = by_type(&month.messages).iter().map(|(_, bodies)| bodies.len()).sum();
    // Small batches, one at a time, and slowly, so that a signal finds them at every stage, long before the end.
    let rate = (total / 10).to_string();
    let small = [
        ("POSTGRES_BATCH_SIZE", "20"),
        ("POSTGRES_WRITERS", "1"),
        ("NEO4J_BATCH_SIZE", "20"),
        ("NEO4J_WRITERS", "1"),
        ("RATE_LIMIT", &rate),
    ];
    for worker in ["tableinator", "graphinator"] {
        let mut rng = fastrand::Rng::with_seed(42);
        for _ in 0..5 {
            let mut running = stage.start(worker, &small).await?;
            // Five times this little can't be all, whatever is written until the signal arrives.
            let some = rng.usize(1..=total / 40);
            let done = |w: &Worker| w.metric("records_committed_total", &[]) >= some as f64;
            running.until("in mid-load", LONG, done).await?;
            running.signal(signal)?;
            let status = running.ended().await?;
            assert_eq!(status.code(), (signal == "TERM").then_some(0), "{worker}: {status}");
        }
        assert!(left(&stage, worker).await? > 0, "{worker}: the last signal came after the load");
        let last = stage.start(worker, &[]).await?;
        let deadline = Instant::now() + LONG;
        while left(&stage, worker).await? > 0 {
            assert!(Instant::now() < deadline, "{worker}: {} messages are left", left(&stage, worker).await?);
            sleep(Duration::from_millis(200)).await;
        }
        assert_eq!(last.stop().await?.code(), Some(0));
        assert_eq!(left(&stage, worker).await?, 0, "{worker}: messages came back");
    }
    assert_tables(&stage, &month.expected).await?;
    assert_graph(&month.expected).await?;
    assert_no_dead_letters(&stage).await?;
    stage.clean_up().await
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_in_mid_load_loses_nothing() -> Result<(), Error> {
    disturbed("sigterm", "TERM").await
}

#[tokio::test(flavor = "multi_thread")]
async fn sigkill_in_mid_load_loses_nothing() -> Result<(), Error> {
    disturbed("sigkill", "KILL").await
}
