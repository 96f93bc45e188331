//! A running worker takes up other settings: from a file, at SIGHUP.

use std::time::Duration;

use common::DataType;
use integration_tests::dumps::Folder;
use integration_tests::management::consumers;
use integration_tests::stage::{settled, within};
use integration_tests::{Error, Stage};
use serde_json::Value;
use tokio::time::Instant;
use xtask::process::Worker;
use xtask::sample::of_type;

const PATIENCE: Duration = Duration::from_secs(60);

/// A tuning file.
struct Tuning {
    folder: Folder,
}

impl Tuning {
    fn new(text: &str) -> Result<Tuning, Error> {
        let tuning = Tuning { folder: Folder::new("tuning")? };
        tuning.write(text)?;
        Ok(tuning)
    }

    fn path(&self) -> String {
        self.folder.path.join("worker").to_string_lossy().into_owned()
    }

    /// Replaces it, as editors do.
    fn write(&self, text: &str) -> Result<(), Error> {
        let new = self.folder.path.join("new");
        std::fs::write(&new, text)?;
        Ok(std::fs::rename(new, self.path())?)
    }

    /// Replaces it, and waits until the worker has read it with this outcome.
    async fn tell(&self, worker: &mut Worker, text: &str, outcome: &str) -> Result<(), Error> {
        self.write(text)?;
        let label = format!("outcome=\"{outcome}\"");
        let before = worker.metric("tuning_reloads_total", &[&label]);
        worker.signal("HUP")?;
        let read = |w: &Worker| w.metric("tuning_reloads_total", &[&label]) == before + 1.0;
        worker.until(outcome, PATIENCE, read).await
    }
}

fn in_force(worker: &Worker, setting: &str) -> f64 {
    worker.metric("tuning", &[&format!("setting=\"{setting}\"")])
}

/// Value and origin of a setting, as `/status` shows it.
fn shown(worker: &Worker, name: &str) -> Result<(String, String), Error> {
    let status: Value = serde_json::from_str(&worker.get("/status")?.1)?;
    let found = status["settings"].as_array().into_iter().flatten().find(|setting| setting["name"] == name);
    let part = |key: &str| found.and_then(|setting| setting[key].as_str()).unwrap_or_default().to_owned();
    Ok((part("value"), part("origin")))
}

/// Waits until the broker has four consumers of this stage, each with this prefetch.
async fn prefetch_is(stage: &Stage, prefetch: u64) -> Result<(), Error> {
    within(PATIENCE, &format!("consumed with a prefetch of {prefetch}"), async || {
        let found = consumers(stage)?;
        Ok(found.len() == 4 && found.iter().all(|consumer| consumer["prefetch_count"] == prefetch))
    })
    .await
}

/// Nothing came twice, nothing went back, no consumer was lost.
fn assert_orderly(worker: &Worker) {
    for name in ["redelivered_total", "records_returned_total", "acks_lost_total", "reconnects_total"] {
        assert_eq!(worker.metric(name, &[]), 0.0, "{name}");
    }
}

/// A load begins with batches of 10 and goes on with batches of 500.
async fn batches_grow(stage: &Stage, worker: &str, prefix: &str) -> Result<(), Error> {
    let count = 3000;
    let [size, interval, writers] =
        ["BATCH_SIZE", "BATCH_FLUSH_INTERVAL", "WRITERS"].map(|name| format!("{prefix}_{name}"));
    stage.declare(worker).await?;
    stage.publish(DataType::Artists, of_type(1, DataType::Artists, count)?).await?;
    // So slowly that most of it waits when the batches grow.
    let tuning = Tuning::new("RATE_LIMIT=200")?;
    let path = tuning.path();
    let mut loading = stage.start(worker, &[(&size, "10"), ("TUNING_FILE", &path)]).await?;
    prefetch_is(stage, 30).await?;
    loading.until("at work", PATIENCE, |w| w.metric("batch_records_count", &[]) >= 5.0).await?;
    let small = |w: &Worker| w.metric("batch_records_bucket", &["le=\"10\""]);
    assert_eq!(small(&loading), loading.metric("batch_records_count", &[]));
    assert_eq!((in_force(&loading, &size), in_force(&loading, "RATE_LIMIT")), (10.0, 200.0));

    let text = format!("# larger\n{size}=500\n{interval}=5\n{writers}=3\n");
    tuning.tell(&mut loading, &text, "applied").await?;
    for (name, value) in [(&size, 500.0), (&interval, 5.0), (&writers, 3.0)] {
        assert_eq!(in_force(&loading, name), value, "{name}");
    }
    assert_eq!((in_force(&loading, "RABBITMQ_PREFETCH"), in_force(&loading, "RATE_LIMIT")), (2000.0, 0.0));
    assert_eq!(shown(&loading, &size)?, ("500".to_owned(), "tuned".to_owned()));
    assert_eq!(shown(&loading, "RABBITMQ_PREFETCH")?, ("2000".to_owned(), "default".to_owned()));
    prefetch_is(stage, 2000).await?;
    for (name, value) in [("batch_size_limit", 500.0), ("concurrency_limit", 3.0)] {
        let taken_up = |w: &Worker| w.metric(name, &[]) == 4.0 * value;
        loading.until(name, PATIENCE, taken_up).await?;
    }
    settled(&mut loading, count).await?;
    assert_eq!(loading.metric("records_committed_total", &[]), count as f64);
    let large = loading.metric("batch_records_count", &[]) - loading.metric("batch_records_bucket", &["le=\"250\""]);
    assert!(large >= 2.0, "{large} large batches");

    // What the file does not name is as the environment has it.
    tuning.tell(&mut loading, "", "applied").await?;
    assert_eq!((in_force(&loading, &size), in_force(&loading, &writers)), (10.0, 2.0));
    assert_eq!(shown(&loading, &size)?, ("10".to_owned(), "set".to_owned()));
    prefetch_is(stage, 30).await?;
    tuning.tell(&mut loading, "# nothing either", "unchanged").await?;
    loading.ready().await?;
    assert_orderly(&loading);
    for (name, from, to) in [(&size, "10", "500"), (&size, "500", "10"), (&writers, "2", "3")] {
        assert!(loading.log_text().contains(&format!("{name} changes from {from} to {to}")), "{name}");
    }
    assert_eq!(loading.stop().await?.code(), Some(0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_grow_in_the_middle_of_a_load_of_the_tables() -> Result<(), Error> {
    let stage = Stage::new("grow").await?;
    batches_grow(&stage, "tableinator", "POSTGRES").await?;
    stage.clean_up().await
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_grow_in_the_middle_of_a_load_of_the_graph() -> Result<(), Error> {
    let stage = Stage::with_graph("grow").await?;
    batches_grow(&stage, "graphinator", "NEO4J").await?;
    stage.clean_up().await
}

/// Many versions each of some records, while the prefetch goes up and down: the last ones win, and nothing comes twice.
#[tokio::test(flavor = "multi_thread")]
async fn another_prefetch_keeps_the_order_and_hands_nothing_back() -> Result<(), Error> {
    let stage = Stage::new("prefetch").await?;
    stage.declare("tableinator").await?;
    let versions = (0..150).flat_map(|version| (0..20).map(move |id| (id, version)));
    let bodies = versions.map(|(id, version)| {
        format!(r#"{{"type":"data","id":"{id}","sha256":"{id}-{version}","id":"{id}","name":"{version}"}}"#)
    });
    let count = stage.publish(DataType::Artists, bodies).await?;
    // The broker tells of its consumers some seconds late.
    let tuning = Tuning::new("RATE_LIMIT=60")?;
    let path = tuning.path();
    let mut loading = stage.start("tableinator", &[("POSTGRES_BATCH_SIZE", "5"), ("TUNING_FILE", &path)]).await?;
    for prefetch in [300, 15, 100] {
        prefetch_is(&stage, in_force(&loading, "RABBITMQ_PREFETCH") as u64).await?;
        tuning.tell(&mut loading, &format!("RATE_LIMIT=60\nRABBITMQ_PREFETCH={prefetch}"), "applied").await?;
    }
    prefetch_is(&stage, 100).await?;
    assert!(loading.metric("records_received_total", &[]) < count as f64, "the load was over before the last change");
    tuning.tell(&mut loading, "RABBITMQ_PREFETCH=100", "applied").await?;
    settled(&mut loading, count).await?;
    assert_orderly(&loading);
    let rows = stage.postgres().await?.query("SELECT data->>'name' FROM artists", &[]).await?;
    assert_eq!(rows.len(), 20);
    assert!(rows.iter().all(|row| row.get::<_, String>(0) == "149"), "an older version won");
    assert_eq!(loading.stop().await?.code(), Some(0));
    stage.clean_up().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_holds_for_all_types_together_and_not_for_the_end() -> Result<(), Error> {
    let (limit, each) = (200, 1000);
    let stage = Stage::new("rate").await?;
    stage.declare("tableinator").await?;
    for data_type in [DataType::Artists, DataType::Labels] {
        stage.publish(data_type, of_type(2, data_type, each)?).await?;
    }
    let tuning = Tuning::new(&format!("RATE_LIMIT={limit}"))?;
    let path = tuning.path();
    let mut loading = stage.start("tableinator", &[("POSTGRES_BATCH_SIZE", "50"), ("TUNING_FILE", &path)]).await?;
    let received = |w: &Worker, labels: &[&str]| w.metric("records_received_total", labels);
    // As docs/settings.md has it: what four queues may take at once.
    let burst = f64::from(limit) / 7.0 + 4.0;
    let (started, before) = (Instant::now(), received(&loading, &[]));
    loop {
        let taken = received(&loading, &[]) - before;
        let allowed = f64::from(limit) * started.elapsed().as_secs_f64() + burst;
        assert!(taken <= allowed, "{taken} taken, {allowed} allowed");
        if taken >= 600.0 {
            break;
        }
        assert!(started.elapsed() < PATIENCE, "only {taken}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let parts = [DataType::Artists, DataType::Labels].map(|t| received(&loading, &[&format!("\"{t}\"")]));
    assert!(parts.iter().all(|part| *part >= 200.0), "one type gets nearly all: {parts:?}");
    assert!(loading.metric("stage_blocked_seconds_total", &["stage=\"rate\""]) > 0.0);

    tuning.tell(&mut loading, "", "applied").await?;
    settled(&mut loading, 2 * each).await?;
    assert_eq!(received(&loading, &[]), 2.0 * each as f64);

    // What is fetched when it ends is not left to the limit: it would take minutes.
    tuning.tell(&mut loading, "RATE_LIMIT=1", "applied").await?;
    stage.publish(DataType::Masters, of_type(2, DataType::Masters, 100)?).await?;
    let queue = stage.topology("tableinator", DataType::Masters).queue;
    within(PATIENCE, "fetched", async || Ok(stage.ready_count(&queue).await? == 0)).await?;
    loading.until("at it", PATIENCE, |w| received(w, &["masters"]) > 0.0).await?;
    assert!(received(&loading, &["masters"]) < 50.0, "it does not hold any more");
    assert_orderly(&loading);
    assert_eq!(loading.stop().await?.code(), Some(0));
    let count = stage.postgres().await?.query_one("SELECT count(*) FROM masters", &[]).await?;
    assert_eq!(count.get::<_, i64>(0), 100);
    stage.clean_up().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_level_changes() -> Result<(), Error> {
    let stage = Stage::new("level").await?;
    let tuning = Tuning::new("")?;
    let path = tuning.path();
    let mut worker = stage.start("tableinator", &[("TUNING_FILE", &path)]).await?;
    let bodies = of_type(3, DataType::Labels, 3)?;
    let debug = |w: &Worker| w.log_text().matches(r#""level":"debug""#).count();
    let mut lines = Vec::new();
    for (at, level) in ["INFO", "debug", "INFO"].into_iter().enumerate() {
        if at > 0 {
            tuning.tell(&mut worker, &format!("LOG_LEVEL={level}"), "applied").await?;
        }
        stage.publish(DataType::Labels, &bodies[at..=at]).await?;
        settled(&mut worker, at + 1).await?;
        worker.until("acknowledged", PATIENCE, |w| w.metric("ack_frames_total", &[]) == at as f64 + 1.0).await?;
        lines.push(debug(&worker));
    }
    assert!(lines[0] == 0 && lines[1] > 0, "{lines:?}");
    // The last load is in the log, and no debug line with it.
    assert_eq!(lines[1], lines[2]);
    assert_eq!(in_force(&worker, "LOG_LEVEL"), 20.0);
    assert!(worker.log_text().contains("LOG_LEVEL changes from DEBUG to INFO"));
    assert_eq!(worker.stop().await?.code(), Some(0));
    stage.clean_up().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_with_anything_wrong_changes_nothing() -> Result<(), Error> {
    let stage = Stage::new("refused").await?;
    let tuning = Tuning::new("POSTGRES_BATCH_SIZE=20")?;
    let path = tuning.path();
    let mut worker = stage.start("tableinator", &[("TUNING_FILE", &path)]).await?;
    let settings = |w: &Worker| w.get("/status").map(|(_, text)| text.split("\"recent\"").next().map(str::len));
    let before = settings(&worker)?;
    tuning
        .tell(&mut worker, "POSTGRES_BATCH_SIZE=500\nPOSTGRES_PASSWORD=hunter2\n\nRATE_LIMIT=fast", "refused")
        .await?;
    std::fs::remove_file(&path)?;
    worker.signal("HUP")?;
    worker.until("refused", PATIENCE, |w| w.metric("tuning_reloads_total", &["refused"]) == 2.0).await?;
    let log = worker.log_text();
    for part in [
        format!(
            "{path}:2: POSTGRES_PASSWORD can't be changed in a running worker: set it in the environment and restart"
        ),
        format!("{path}:4: RATE_LIMIT is \\\"fast\\\": give a number from 0 to 1000000"),
        format!("TUNING_FILE: can't read {path}"),
    ] {
        assert!(log.lines().any(|line| line.contains(&part) && line.contains("\"level\":\"error\"")), "{part}");
    }
    assert!(!log.contains("hunter2"));
    assert_eq!((in_force(&worker, "POSTGRES_BATCH_SIZE"), in_force(&worker, "RATE_LIMIT")), (20.0, 0.0));
    assert_eq!(settings(&worker)?, before);
    prefetch_is(&stage, 60).await?;

    // A start is refused too, and `check` says why.
    tuning.write("POSTGRES_WRITERS=many")?;
    let (code, said) = stage.check("tableinator", &[("TUNING_FILE", &path)])?;
    assert!(code == 2 && said.contains(&format!("{path}:1: POSTGRES_WRITERS is \"many\"")), "{code} {said}");
    tuning.tell(&mut worker, "POSTGRES_BATCH_SIZE=30", "applied").await?;
    assert_eq!(in_force(&worker, "POSTGRES_BATCH_SIZE"), 30.0);
    assert_orderly(&worker);
    assert_eq!(worker.stop().await?.code(), Some(0));
    stage.clean_up().await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_file_a_hangup_changes_nothing() -> Result<(), Error> {
    let stage = Stage::new("hangup").await?;
    let mut worker = stage.start("tableinator", &[]).await?;
    worker.signal("HUP")?;
    worker.until("refused", PATIENCE, |w| w.log_text().contains("TUNING_FILE is not set")).await?;
    stage.publish(DataType::Labels, of_type(3, DataType::Labels, 1)?).await?;
    settled(&mut worker, 1).await?;
    assert_eq!(worker.stop().await?.code(), Some(0));
    stage.clean_up().await
}
