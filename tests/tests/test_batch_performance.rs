//! What batches are for, as ratios within one run and as counts: no figure of one machine is a measure for another.

use std::time::{Duration, Instant};

use common::DataType;
use integration_tests::stage::{settled, within};
use integration_tests::{Error, Stage};
use xtask::feed::acknowledge;
use xtask::process::Worker;
use xtask::sample::of_type;

/// Longest wait for a load.
const LONG: Duration = Duration::from_secs(180);
/// The slowest rate that an operator would put up with, against what the broker alone does on the machine that this was asked for on:
/// 500 of some 34,000 to 60,000 messages a second.
const LEAST_SHARE: f64 = 500.0 / 34_000.0;

/// Loads what waits in the queues; returns how long that took from the first delivery to the last commit, and the worker.
async fn load(
    stage: &Stage,
    worker: &str,
    settings: &[(&str, &str)],
    count: usize,
) -> Result<(Duration, Worker), Error> {
    let mut loading = stage.spawn(worker, settings)?;
    loading.until("at work", LONG, |w| w.metric("records_received_total", &[]) > 0.0).await?;
    let started = Instant::now();
    settled(&mut loading, count).await?;
    let took = started.elapsed();
    assert_eq!(loading.metric("records_committed_total", &[]), count as f64, "nothing is refused");
    Ok((took, loading))
}

async fn stage(worker: &str, name: &str) -> Result<Stage, Error> {
    let stage = if worker == "graphinator" { Stage::with_graph(name).await? } else { Stage::new(name).await? };
    stage.declare(worker).await?;
    Ok(stage)
}

/// The same messages one by one and in batches, each into a database that has none of them.
async fn batches_against_single_records(worker: &'static str, count: usize) -> Result<(), Error> {
    let bodies = of_type(1, DataType::Artists, count)?;
    let mut took = Vec::new();
    for mode in ["false", "true"] {
        let stage = stage(worker, "mode").await?;
        stage.publish(DataType::Artists, &bodies).await?;
        let settings = [("POSTGRES_BATCH_MODE", mode), ("NEO4J_BATCH_MODE", mode)];
        let (time, loading) = load(&stage, worker, &settings, count).await?;
        let batches = loading.metric("batch_records_count", &[]);
        assert!(if mode == "true" { batches < count as f64 / 50.0 } else { batches == count as f64 }, "{batches}");
        took.push(time.as_secs_f64());
        assert_eq!(loading.stop().await?.code(), Some(0));
        stage.clean_up().await?;
    }
    let ratio = took[0] / took[1];
    println!("{worker}: batches are {ratio:.1} times as fast as single records");
    assert!(ratio > 2.0, "{took:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_are_faster_than_single_records_in_the_tables() -> Result<(), Error> {
    batches_against_single_records("tableinator", 2000).await
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_are_faster_than_single_records_in_the_graph() -> Result<(), Error> {
    batches_against_single_records("graphinator", 1000).await
}

/// Four types at once take no longer than the same four one after the other, with some leave for noise; and no more connections to
/// the database than the pool may have.
#[tokio::test(flavor = "multi_thread")]
async fn several_types_at_once_share_the_pool() -> Result<(), Error> {
    let count = 4000;
    let bodies = DataType::ALL.map(|t| of_type(2, t, count).map(|bodies| (t, bodies)));
    let bodies = bodies.into_iter().collect::<Result<Vec<_>, _>>()?;
    let pool = [("POSTGRES_POOL_MAX_SIZE", "4")];

    let alone = stage("tableinator", "alone").await?;
    let mut one_by_one = Duration::ZERO;
    for (t, bodies) in &bodies {
        alone.publish(*t, bodies).await?;
        let (took, loading) = load(&alone, "tableinator", &pool, count).await?;
        one_by_one += took;
        assert_eq!(loading.stop().await?.code(), Some(0));
    }
    alone.clean_up().await?;

    let together = stage("tableinator", "together").await?;
    for (t, bodies) in &bodies {
        together.publish(*t, bodies).await?;
    }
    let postgres = together.postgres().await?;
    let (most, loaded) = tokio::join!(
        async {
            let mut most = 0;
            for _ in 0..100 {
                let asked = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'tableinator'";
                most = most.max(postgres.query_one(asked, &[]).await?.get::<_, i64>(0));
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Ok::<_, Error>(most)
        },
        load(&together, "tableinator", &pool, 4 * count)
    );
    let ((took, loading), most) = (loaded?, most?);
    let ratio = took.as_secs_f64() / one_by_one.as_secs_f64();
    println!("four types at once take {ratio:.2} of the time of one after the other, with {most} connections of 4");
    assert!((2..=4).contains(&most), "{most}");
    assert!(ratio < 1.5, "{took:?} against {one_by_one:?}");
    assert_eq!(loading.stop().await?.code(), Some(0));
    together.clean_up().await
}

/// A record that no other one follows is written by the clock.
#[tokio::test(flavor = "multi_thread")]
async fn the_flush_interval_closes_batches_that_do_not_fill() -> Result<(), Error> {
    let stage = stage("tableinator", "interval").await?;
    let mut worker = stage.start("tableinator", &[]).await?;
    for (at, body) in of_type(3, DataType::Labels, 3)?.into_iter().enumerate() {
        stage.publish(DataType::Labels, [body]).await?;
        settled(&mut worker, at + 1).await?;
    }
    assert_eq!(worker.metric("batches_total", &["trigger=\"deadline\""]), 3.0);
    assert_eq!(worker.metric("batches_total", &[]), 3.0);
    assert_eq!(worker.stop().await?.code(), Some(0));
    stage.clean_up().await
}

/// A sustained load, against what the broker alone does in the same run; and what an unchanged record may cost at most.
#[tokio::test(flavor = "multi_thread")]
async fn a_sustained_load_keeps_up_and_unchanged_records_write_no_rows() -> Result<(), Error> {
    let count = 20_000;
    let stage = stage("tableinator", "sustained").await?;
    let queue = stage.topology("tableinator", DataType::Artists).queue;
    let bodies = of_type(4, DataType::Artists, count)?;
    stage.publish(DataType::Artists, &bodies).await?;
    let broker = acknowledge(&stage.channel, &queue, count as u64, 500).await?;
    let postgres = stage.postgres().await?;
    let written = async || -> Result<i64, Error> {
        let asked = "SELECT coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0)::bigint FROM pg_stat_user_tables WHERE relname = 'artists'";
        Ok(postgres.query_one(asked, &[]).await?.get(0))
    };
    for again in [false, true] {
        stage.publish(DataType::Artists, &bodies).await?;
        let (took, loading) = load(&stage, "tableinator", &[], count).await?;
        let share = broker.as_secs_f64() / took.as_secs_f64();
        println!("{} records/s, {share:.2} of a consumer that only acknowledges", count as f64 / took.as_secs_f64());
        assert!(share > LEAST_SHARE, "{took:?} against {broker:?}");
        // Guards: batches are full, and are acknowledged as wholes.
        let (batches, acks) = (loading.metric("batches_total", &[]), loading.metric("ack_frames_total", &[]));
        assert!(batches <= count as f64 / 500.0 + 2.0, "{batches}");
        assert!(acks <= batches, "{acks} for {batches}");
        let unchanged = loading.metric("records_committed_total", &["outcome=\"unchanged\""]);
        assert_eq!(unchanged, if again { count as f64 } else { 0.0 });
        assert_eq!(loading.stop().await?.code(), Some(0));
    }
    // PostgreSQL tells of what a backend did when that ended.
    let rows = async || Ok(written().await? >= count as i64);
    within(Duration::from_secs(30), "counted", rows).await?;
    // A row that is written and rolled back before the fetch, to see whether the table takes any, counts too.
    let all = written().await?;
    assert!(all < count as i64 + 100, "the second load wrote rows: {all}");
    stage.clean_up().await
}
