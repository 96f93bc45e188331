//! What goes wrong under an extractor, or with its input: kills, signals, lost connections, queues that vanish, files that
//! are cut off, damaged or malformed. (A broker that restarts is in `outages`.)

use std::fs;
use std::io::{Read, Write};

use common::DataType;
use extractor::generate::Spec;
use extractor::rejects::Reject;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use integration_tests::dumps::{Bodies, MONTH, bodies, text};
use integration_tests::job::{Ended, Extraction};
use integration_tests::stage::services;
use integration_tests::{Error, Job};
use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;

const BOTH: &str = "graphinator,tableinator";
const ONE: &str = "tableinator";
/// Bytes a second and file at which a dump of some thousand records takes some seconds.
const SLOW: u64 = 2_000_000;
/// As fast as it goes.
const FAST: u64 = u64::MAX;

/// Takes a whole, undisturbed run out of the queues.
async fn assert_whole(job: &Job, expected: &Bodies) -> Result<(), Error> {
    for worker in job.workers.split(',') {
        for t in DataType::ALL {
            job.take(worker, t).await?.assert_whole(&format!("{worker} {t}"), &expected[t.index()])?;
        }
    }
    Ok(())
}

/// Waits until so many records of a type are confirmed.
async fn until_published(running: &mut Extraction, t: DataType, count: usize) -> Result<(), Error> {
    running.until(&format!("at {count} {t}"), |e| e.published(t) >= count as u64).await
}

// ------------------------------------------------------------------------------------------------- kills and signals

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_at_any_point_loses_nothing_and_invents_nothing() -> Result<(), Error> {
    let mut job = Job::new("killed", BOTH).await?;
    let expected = job.folder.generate(4000, 31)?;
    let releases = DataType::Releases;
    let count = expected[releases.index()].len();
    let broken = add_broken_releases(&job)?;
    job.folder.write_checksums()?; // verifying takes its time before the first record
    let proxy = job.through_proxy(SLOW).await?;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    // One that is likely to come before the state was saved, then some in order, the last one past the half.
    let mut points =
        [1, rng.usize(1..count * 8 / 10), rng.usize(1..count * 8 / 10), rng.usize(count / 2..count * 8 / 10)];
    points.sort_unstable();
    println!("killed at {points:?} of {count} releases");
    let (mut started_at, mut marks) = (None, Vec::new());
    for point in points {
        let mut running = job.start(&[])?;
        until_published(&mut running, releases, point).await?;
        running.signal("KILL")?;
        assert_eq!(running.ended().await?.status.code(), None, "it ended before it was killed");
        proxy.cut(); // what is in the proxy's hands would have been with the broker or nowhere
        let state = job.state(MONTH)?;
        assert!(state.announced_at.is_none() && !state.files["releases"].complete, "{state:?}");
        let of = |t: DataType| state.file(t).map_or(0, |file| file.mark.published as usize);
        marks.push(DataType::ALL.map(of));
        let first = started_at.get_or_insert(state.started_at.clone());
        assert_eq!(*first, state.started_at, "the version was started before");
    }
    println!("marks after each kill: {marks:?}");
    assert!(marks.iter().any(|of| of[releases.index()] > 0), "no state was saved");
    proxy.pace(FAST);
    job.run(&[])
        .await?
        .with(1)
        .saying(&["going on behind record", &format!("releases: {broken} records were rejected")]);
    let lines = fs::read_to_string(job.directory().join(format!("rejects-{MONTH}-releases.jsonl")))?;
    let rejects: Vec<Reject> = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    assert_eq!(rejects.len(), broken, "each is noted once, though several runs saw it");
    assert!(rejects.is_sorted_by(|a, b| a.offset < b.offset && a.line < b.line), "{lines}");

    for worker in ["graphinator", "tableinator"] {
        for t in DataType::ALL {
            let (taken, what) = (job.take(worker, t).await?, format!("{worker} {t}"));
            let back = taken.assert_resumed(&what, &expected[t.index()]);
            // Each run went on at the mark that the one before had saved, and nowhere else.
            let mut marks = marks.iter().map(|of| of[t.index()]);
            assert!(back.iter().all(|place| marks.any(|mark| mark == *place)), "{what}: went back to {back:?}");
            let ending = taken.ending()?;
            let (files, runs) = ending.split_at(ending.len() - 1);
            assert_eq!(runs, ["extraction_complete"], "{what}");
            assert!(files.iter().all(|control| control == "file_complete") && files.len() < 3, "{what}: {ending:?}");
            let controls = taken.controls()?;
            assert_eq!(controls[0]["total_processed"], expected[t.index()].len(), "{what}");
            let end = controls.last().map(|end| end["started_at"].clone()).unwrap_or_default();
            assert_eq!(Some(end.as_str().unwrap_or_default()), started_at.as_deref(), "{what}");
        }
    }
    job.stage.clean_up().await
}

/// Puts a record that can't be read behind every fiftieth release. Returns how many there are.
fn add_broken_releases(job: &Job) -> Result<usize, Error> {
    let file = job.folder.file(DataType::Releases, "xml.gz");
    let (mut text, mut broken) = (String::new(), 0);
    for (at, record) in beginning(&fs::read(&file)?).split_inclusive("</release>\n").enumerate() {
        text.push_str(record);
        if at % 50 == 49 && record.ends_with("</release>\n") {
            text.push_str("<release id=\"0\"><title>broken</release>\n");
            broken += 1;
        }
    }
    fs::write(file, gzip(text.as_bytes())?)?;
    Ok(broken)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_killed_past_its_half_does_not_begin_again() -> Result<(), Error> {
    let mut job = Job::new("half", ONE).await?;
    let expected = job.folder.generate(5000, 32)?;
    let proxy = job.through_proxy(SLOW).await?;
    let releases = DataType::Releases;
    let count = expected[releases.index()].len();
    let mut running = job.start(&[])?;
    let saved = || job.state(MONTH).ok().and_then(|state| Some(state.file(releases)?.mark.published as usize));
    running.until("saved past its half", |_| saved() > Some(count / 2)).await?;
    running.signal("KILL")?;
    assert_eq!(running.ended().await?.status.code(), None, "it ended before it was killed");
    proxy.cut();
    let mark = saved().unwrap_or_default();
    proxy.pace(FAST);
    job.run(&[]).await?.with(0).saying(&[&format!("releases: going on behind record {mark}")]);
    let taken = job.take(ONE, releases).await?;
    let back = taken.assert_resumed("releases", &expected[releases.index()]);
    assert!(back.is_empty() || back == [mark], "went back to {back:?}, the mark is {mark}");
    let total = taken.data().len();
    println!("mark {mark} of {count}, {total} messages");
    assert!((count..count + count / 2).contains(&total), "{total} messages for {count} records, mark at {mark}");
    assert_eq!(taken.ending()?, ["file_complete", "extraction_complete"]);
    job.stage.clean_up().await
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_a_run_in_order_and_the_next_one_goes_on() -> Result<(), Error> {
    let mut job = Job::new("term", ONE).await?;
    let expected = job.folder.generate(4000, 33)?;
    job.folder.write_checksums()?; // verifying takes its time before the first record
    let proxy = job.through_proxy(SLOW).await?;
    let releases = DataType::Releases;
    for signal in ["TERM", "INT"] {
        let mut running = job.start(&[])?;
        let before = job.state(MONTH).ok().and_then(|state| Some(state.file(releases)?.mark.published as usize));
        let point = before.unwrap_or_default() + expected[releases.index()].len() / 5;
        until_published(&mut running, releases, point).await?;
        running.signal(signal)?;
        running.ended().await?.with(3).saying(&["interrupted", "not finished", "run it again"]);
        let mark = job.state(MONTH)?.files["releases"].mark.published as usize;
        assert!(mark >= point, "{mark} is saved, {point} were confirmed");
    }
    proxy.pace(FAST);
    job.run(&[]).await?.with(0).saying(&["going on behind record"]);
    for t in DataType::ALL {
        let taken = job.take(ONE, t).await?;
        taken.assert_resumed(t.name(), &expected[t.index()]);
        // Whatever was under way was confirmed before the end: at most the group that was just being sent comes again.
        let twice = taken.data().len() - expected[t.index()].len();
        assert!(twice <= 2 * 32, "{t}: {twice} messages came twice");
        assert_eq!(taken.ending()?, ["file_complete", "extraction_complete"], "{t}");
    }
    job.stage.clean_up().await
}

// ------------------------------------------------------------------------------------------------- the broker

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_cut_again_and_again_loses_nothing() -> Result<(), Error> {
    let mut job = Job::new("cut", BOTH).await?;
    let expected = job.folder.generate(4000, 34)?;
    let proxy = job.through_proxy(SLOW).await?;
    let releases = DataType::Releases;
    let count = expected[releases.index()].len();
    let mut running = job.start(&[])?;
    for quarter in 1..4 {
        until_published(&mut running, releases, count * quarter / 4).await?;
        proxy.cut();
    }
    proxy.pace(FAST);
    let ended = running.ended().await?.with(0);
    let again = ended.err.lines().filter(|line| line.contains("releases") && line.contains("trying again")).count();
    assert!(again >= 3, "{again} of 3 cuts were noticed:\n{}", ended.err);
    for worker in ["graphinator", "tableinator"] {
        for t in DataType::ALL {
            let (taken, what) = (job.take(worker, t).await?, format!("{worker} {t}"));
            taken.assert_resumed(&what, &expected[t.index()]);
            let ending = taken.ending()?;
            let files = ending.iter().filter(|control| *control == "file_complete").count();
            assert!(ending.last().is_some_and(|end| end == "extraction_complete"), "{what}: {ending:?}");
            assert!((1..=4).contains(&files), "{what}: {ending:?}");
        }
    }
    job.stage.clean_up().await
}

/// Two extractors that nobody listens to, at the same time, since both try again for half a minute.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_nobody_gets_is_an_error() -> Result<(), Error> {
    let (unbound, only, one_of_two) = tokio::join!(
        no_queue_at_all(),
        a_queue_deleted_in_mid_run(ONE, false),
        a_queue_deleted_in_mid_run(BOTH, false)
    );
    unbound.and(only).and(one_of_two)
}

/// Whoever stops a run because a queue is gone must not make the next one go on behind what went with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_stopped_after_a_queue_was_deleted_begins_anew() -> Result<(), Error> {
    a_queue_deleted_in_mid_run(BOTH, true).await
}

/// A crash right after a queue was deleted: nobody was there to notice, and its worker has declared it again since.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_killed_before_a_queue_is_deleted_begins_anew() -> Result<(), Error> {
    let mut job = Job::new("gonekilled", BOTH).await?;
    let expected = job.folder.generate(5000, 38)?;
    let proxy = job.through_proxy(SLOW).await?;
    let (labels, releases) = (DataType::Labels, DataType::Releases);
    let mut running = job.start(&[])?;
    let saved = || {
        let state = job.state(MONTH).ok()?;
        (state.file(labels)?.complete && state.file(releases)?.mark.published > 0).then_some(state)
    };
    running.until("saved with labels and some releases", |_| saved().is_some()).await?;
    running.signal("KILL")?;
    assert_eq!(running.ended().await?.status.code(), None, "it ended before it was killed");
    proxy.cut();
    let state = saved().unwrap_or_default();
    for t in DataType::ALL {
        assert!(has_witness(&job, "graphinator", t, &state.started_at).await?, "{t}");
    }
    for t in [labels, releases] {
        let queue = job.stage.topology(ONE, t).queue;
        job.stage.channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await?;
    }
    job.stage.declare(ONE).await?;

    proxy.pace(FAST);
    let queues = [labels, releases].map(|t| {
        let queue = job.stage.topology(ONE, t).queue;
        format!("{t}: queue {queue} was deleted since it was published to")
    });
    job.run(&[]).await?.with(0).saying(&[&queues[0], &queues[1]]).without(&["artists: queue", "masters: queue"]);
    for t in DataType::ALL {
        let taken = job.take(ONE, t).await?;
        if [labels, releases].contains(&t) {
            taken.assert_whole(t.name(), &expected[t.index()])?;
        }
        taken.assert_resumed(t.name(), &expected[t.index()]);
        for worker in ["graphinator", ONE] {
            assert!(!has_witness(&job, worker, t, &state.started_at).await?, "{worker} {t}: left behind");
        }
    }
    job.stage.clean_up().await
}

/// Whether the exchange is there that stands for a queue in one run.
async fn has_witness(job: &Job, worker: &str, t: DataType, started_at: &str) -> Result<bool, Error> {
    let connection = services().broker().await?;
    let channel = connection.create_channel().await?;
    let name = format!("{}.{started_at}", job.stage.topology(worker, t).queue);
    let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    let looked =
        channel.exchange_declare(name.as_str().into(), ExchangeKind::Fanout, passive, FieldTable::default()).await;
    connection.close(200, "looked".into()).await?;
    Ok(looked.is_ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_begun_version_that_is_forced_leaves_nothing_of_its_first_run() -> Result<(), Error> {
    let job = Job::new("forced", ONE).await?;
    job.folder.generate(100, 40)?;
    let masters = job.folder.file(DataType::Masters, "xml.gz");
    let away = job.folder.path.join("away");
    fs::rename(&masters, &away)?;
    job.run(&[]).await?.with(0).saying(&["no file of masters"]);
    let first = job.state(MONTH)?.started_at;
    assert!(has_witness(&job, ONE, DataType::Labels, &first).await?, "it may still be looked for");
    fs::rename(&away, &masters)?;
    job.run(&["--force"]).await?.with(0);
    let second = job.state(MONTH)?.started_at;
    assert_ne!(first, second);
    for t in DataType::ALL {
        for started_at in [&first, &second] {
            assert!(!has_witness(&job, ONE, t, started_at).await?, "{t}, {started_at}: left behind");
        }
    }
    job.stage.clean_up().await
}

/// Faster than anybody could look whether it is still there.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_deleted_and_declared_again_at_once_is_noticed() -> Result<(), Error> {
    let mut job = Job::new("goneback", BOTH).await?;
    let expected = job.folder.generate(3000, 39)?;
    let proxy = job.through_proxy(SLOW).await?;
    let releases = DataType::Releases;
    let queue = job.stage.topology(ONE, releases).queue;
    let mut running = job.start(&[])?;
    until_published(&mut running, releases, expected[releases.index()].len() / 3).await?;
    job.stage.channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await?;
    job.stage.declare(ONE).await?;
    proxy.pace(FAST);
    let failure = format!("error: discogs_{MONTH}_releases.xml.gz: queue {queue} was deleted meanwhile");
    let again = format!("error: releases: queue {queue} was deleted meanwhile"); // if the file had come to its end
    let ended = running.ended().await?.with(3).without(&["the workers were told"]);
    assert!(ended.out.contains(&failure) || ended.out.contains(&again), "{}", ended.out);
    let state = job.state(MONTH)?;
    assert_eq!((state.files["releases"].mark.published, state.files["releases"].complete), (0, false));
    job.take(ONE, releases).await?;
    job.run(&[]).await?.with(0);
    job.take(ONE, releases).await?.assert_whole("releases", &expected[releases.index()])?;
    job.stage.clean_up().await
}

async fn no_queue_at_all() -> Result<(), Error> {
    let mut job = Job::new("nobody", "none").await?;
    let expected = job.folder.generate(10, 35)?;
    let ended = job.run(&[]).await?.with(3).saying(&["NO_ROUTE", "no queue is bound", "run it again"]);
    let ended = ended.without(&["the workers were told"]);
    for t in DataType::ALL {
        let failure =
            format!("error: discogs_{MONTH}_{t}.xml.gz: the broker refuses the messages: {}-{t}", job.stage.prefix);
        assert!(ended.out.contains(&failure), "{failure}: {}", ended.out);
    }
    job.stage.declare(ONE).await?;
    job.workers = ONE;
    job.run(&[]).await?.with(0);
    assert_whole(&job, &expected).await?;
    job.stage.clean_up().await
}

/// Also if another queue still takes every message, so that the broker returns none.
async fn a_queue_deleted_in_mid_run(workers: &'static str, stopped: bool) -> Result<(), Error> {
    let mut job = Job::new(if stopped { "gonestopped" } else { "gone" }, workers).await?;
    let expected = job.folder.generate(3000, 36)?;
    let proxy = job.through_proxy(SLOW).await?;
    let releases = DataType::Releases;
    let queue = job.stage.topology(ONE, releases).queue;
    let mut running = job.start(&[])?;
    until_published(&mut running, releases, expected[releases.index()].len() / 3).await?;
    job.stage.channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await?;
    if stopped {
        running.signal("TERM")?;
    }
    proxy.pace(FAST);
    let failure = format!("error: discogs_{MONTH}_releases.xml.gz: queue {queue} was deleted meanwhile");
    running.ended().await?.with(3).saying(&[&failure]).without(&["the workers were told"]);
    let state = job.state(MONTH)?;
    assert_eq!((state.files["releases"].mark.published, state.files["releases"].complete), (0, false));
    if stopped {
        job.stage.declare(ONE).await?;
        job.run(&[]).await?.with(0);
        job.take(ONE, releases).await?.assert_whole("releases", &expected[releases.index()])?;
        return job.stage.clean_up().await;
    }
    for t in [DataType::Artists, DataType::Labels, DataType::Masters] {
        let taken = job.take(ONE, t).await?;
        taken.assert_data(t.name(), &expected[t.index()]);
        assert_eq!(taken.ending()?, ["file_complete"], "{t}");
    }
    job.stage.declare(ONE).await?;
    job.run(&[]).await?.with(0);
    job.take(ONE, releases).await?.assert_whole("releases", &expected[releases.index()])?;
    for t in [DataType::Artists, DataType::Labels, DataType::Masters] {
        assert_eq!(job.take(ONE, t).await?.ending()?, ["extraction_complete"], "{t}");
    }
    job.stage.clean_up().await
}

// ------------------------------------------------------------------------------------------------- damaged files

/// Packs a text into a gzip file.
fn gzip(text: &[u8]) -> Result<Vec<u8>, Error> {
    let mut out = GzEncoder::new(Vec::new(), Compression::default());
    out.write_all(text)?;
    Ok(out.finish()?)
}

/// How much of a file that is cut off can be unpacked.
fn beginning(packed: &[u8]) -> String {
    let mut text = Vec::new();
    let _ = GzDecoder::new(packed).read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_cut_off_is_published_up_to_there_and_not_called_complete() -> Result<(), Error> {
    let job = Job::new("truncated", ONE).await?;
    let expected = job.folder.generate(1500, 41)?;
    let (masters, releases) = (DataType::Masters, DataType::Releases);
    let whole = fs::read(job.folder.file(releases, "xml.gz"))?;
    // In the middle; only the checksum at the end is missing; and another file that ends between two records.
    let cut = &whole[..whole.len() / 2];
    job.folder.write(releases, "xml.gz", cut)?;
    let records = beginning(cut).matches("</release>\n").count();
    assert!(records > 10, "{records}");
    let all = fs::read(job.folder.file(masters, "xml.gz"))?;
    let text = beginning(&all);
    job.folder.write(masters, "xml.gz", gzip(text.strip_suffix("</masters>\n").unwrap_or_default().as_bytes())?)?;
    let artists = fs::read(job.folder.file(DataType::Artists, "xml.gz"))?;
    job.folder.write(DataType::Artists, "xml.gz", &artists[..artists.len() - 3])?;

    let ended = job.run(&[]).await?.with(3);
    let counts = [expected[0].len(), expected[1].len(), expected[2].len(), records];
    for t in DataType::ALL {
        let taken = job.take(ONE, t).await?;
        taken.assert_data(t.name(), &expected[t.index()][..counts[t.index()]]);
        let complete = t == DataType::Labels;
        assert_eq!(taken.ending()?, if complete { vec!["file_complete"] } else { vec![] }, "{t}");
        let error = format!("error: discogs_{MONTH}_{t}.xml.gz: the file is ");
        assert_eq!(ended.out.contains(&error), !complete, "{error}: {}", ended.out);
    }
    let of_masters = "discogs_20260101_masters.xml.gz: the file is cut off: it ends before </masters>";
    let ended = ended.saying(&[
        of_masters,
        "damaged or cut off",
        "releases.xml.gz",
        &format!("behind record {records}; the next run begins anew"),
    ]);
    ended.without(&["the workers were told", "panicked"]);

    job.folder.write(releases, "xml.gz", whole)?;
    job.folder.write(masters, "xml.gz", all)?;
    job.folder.write(DataType::Artists, "xml.gz", artists)?;
    job.run(&[]).await?.with(0);
    for t in DataType::ALL {
        let taken = job.take(ONE, t).await?;
        if t == DataType::Labels {
            assert_eq!(taken.ending()?, ["extraction_complete"]);
            taken.assert_data("labels", &[]);
        } else {
            taken.assert_whole(t.name(), &expected[t.index()])?;
        }
    }
    job.stage.clean_up().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_that_is_not_whole_holds_up_the_next_one() -> Result<(), Error> {
    let job = Job::new("holdup", ONE).await?;
    let spec = Spec { seed: 42, records: 100, month: 1, changed: 0.1, removed: 0.0 };
    let first = job.folder.generate_month(&spec, MONTH)?;
    let second = job.folder.generate_month(&Spec { month: 2, ..spec }, "20260201")?;
    let damaged = job.folder.file(DataType::Releases, "xml.gz");
    let whole = fs::read(&damaged)?;
    fs::write(&damaged, &whole[..whole.len() / 2])?;
    let files = job.folder.packed(&["20260201", MONTH]);
    let mut args = vec!["run", "--expect-queues", ONE];
    args.extend(files.iter().map(String::as_str));

    job.run_with(&args).await?.with(3).saying(&["Dump 20260201 waits until those before it are whole"]);
    for t in [DataType::Artists, DataType::Labels, DataType::Masters] {
        let taken = job.take(ONE, t).await?;
        taken.assert_data(t.name(), &first[t.index()]);
        assert_eq!(taken.ending()?, ["file_complete"], "{t}");
    }
    let state = fs::read_to_string(job.folder.path.join(".extractor/state.json"))?;
    assert!(!state.contains("20260201"), "it was not begun: {state}");

    fs::write(&damaged, whole)?;
    job.run_with(&args).await?.with(0).saying(&["against 20260101"]);
    for t in [DataType::Artists, DataType::Labels, DataType::Masters] {
        let taken = job.take(ONE, t).await?;
        taken.assert_data(t.name(), &second[t.index()]);
        assert_eq!(taken.controlled()?, [MONTH, "file_complete", "20260201"], "{t}");
    }

    // An older one that nobody asked for before.
    let older = job.folder.generate_month(&spec, "20251201")?;
    let files = job.folder.packed(&["20251201"]);
    let mut args = vec!["run", "--expect-queues", ONE];
    args.extend(files.iter().map(String::as_str));
    job.run_with(&args).await?.with(2).saying(&["Dump 20251201 is older than 20260201"]);
    args.push("--force");
    job.run_with(&args).await?.with(0).saying(&["the workers were told"]);
    let taken = job.take(ONE, DataType::Artists).await?;
    taken.assert_data("older", &older[DataType::Artists.index()]);
    job.stage.clean_up().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_never_complete() -> Result<(), Error> {
    let job = Job::new("damaged", ONE).await?;
    let expected = job.folder.generate(1500, 42)?;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    for t in DataType::ALL {
        let mut bytes = fs::read(job.folder.file(t, "xml.gz"))?;
        let at = rng.usize(bytes.len() / 4..bytes.len() * 3 / 4);
        bytes[at] ^= 1 << rng.u8(..8);
        job.folder.write(t, "xml.gz", bytes)?;
    }
    // What a wrong bit makes of the records before it is noticed may look like garbage, and is no reason to give up.
    let ended = job.run(&["--max-rejects", "1000000"]).await?.with(3).without(&["the workers were told", "panicked"]);
    for t in DataType::ALL {
        let error = format!("error: discogs_{MONTH}_{t}.xml.gz: the file is ");
        assert!(ended.out.contains(&error), "{error}: {}", ended.out);
        let taken = job.take(ONE, t).await?;
        assert!(taken.ending()?.is_empty(), "{t}: {:?}", taken.controls()?);
        assert!(taken.data().len() < expected[t.index()].len() * 2);
    }
    // The good files in their place: whatever the damage had spoilt before it was noticed is published as it should be.
    let good = Job::new("damaged", ONE).await?;
    good.folder.generate(1500, 42)?;
    for t in DataType::ALL {
        job.folder.write(t, "xml.gz", fs::read(good.folder.file(t, "xml.gz"))?)?;
    }
    job.run(&[]).await?.with(0);
    for t in DataType::ALL {
        job.take(ONE, t).await?.assert_whole(t.name(), &expected[t.index()])?;
    }
    good.stage.clean_up().await?;
    job.stage.clean_up().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checksum_that_does_not_fit_keeps_a_file_from_being_published() -> Result<(), Error> {
    let job = Job::new("checksum", ONE).await?;
    let expected = job.folder.generate(300, 43)?;
    let checksums = job.folder.write_checksums()?;
    // The same records, packed otherwise: whole, but not what the checksum is of.
    let good = fs::read(job.folder.file(DataType::Artists, "xml.gz"))?;
    job.folder.write(DataType::Artists, "xml.gz", gzip(beginning(&good).as_bytes())?)?;

    let ended = job.run(&[]).await?.with(3).saying(&[&text(checksums), "--no-verify"]);
    let error = format!("error: discogs_{MONTH}_artists.xml.gz: its checksum is not the one in ");
    assert!(ended.out.contains(&error), "{error}: {}", ended.out);
    ended.without(&["behind record"]);
    for t in DataType::ALL {
        let taken = job.take(ONE, t).await?;
        let refused = t == DataType::Artists;
        taken.assert_data(t.name(), if refused { &[] } else { &expected[t.index()] });
        assert_eq!(taken.ending()?.len(), usize::from(!refused), "{t}");
    }
    job.run(&["--no-verify"]).await?.with(0);
    job.take(ONE, DataType::Artists).await?.assert_whole("artists", &expected[0])?;

    // And the right file passes.
    job.folder.write(DataType::Artists, "xml.gz", good)?;
    job.run(&["--force"]).await?.with(0);
    job.take(ONE, DataType::Artists).await?.assert_whole("artists", &expected[0])?;
    job.stage.clean_up().await
}

// ------------------------------------------------------------------------------------------------- malformed records

/// A file in which some records are broken: the parts that are good and those that are not, in order.
struct Broken {
    head: &'static str,
    tail: &'static str,
    parts: Vec<(String, Option<&'static str>)>,
}

impl Broken {
    fn text(&self) -> String {
        let parts: String = self.parts.iter().map(|(text, _)| text.as_str()).collect();
        format!("{}{parts}{}", self.head, self.tail)
    }

    /// The file without what is broken.
    fn repaired(&self) -> String {
        let parts: String = self.parts.iter().filter(|(_, bad)| bad.is_none()).map(|(text, _)| text.as_str()).collect();
        format!("{}{parts}{}", self.head, self.tail)
    }

    /// Offset, line and reason of each broken part.
    fn rejects(&self) -> Vec<(u64, u64, &'static str)> {
        let mut before = self.head.to_owned();
        let mut all = Vec::new();
        for (text, bad) in &self.parts {
            if let Some(reason) = bad {
                all.push((before.len() as u64, before.matches('\n').count() as u64 + 1, *reason));
            }
            before.push_str(text);
        }
        all
    }
}

fn broken_xml() -> Broken {
    let good = |id: u32| (format!("<artist><id>{id}</id><name>N {id}\nand more</name></artist>\n"), None);
    let bad = |text: &str, reason: &'static str| (format!("{text}\n"), Some(reason));
    let malformed = "malformed_xml";
    Broken {
        head: "<artists>\n",
        tail: "</artists>\n",
        parts: vec![
            bad("<artist><id>1</id><name>first</nome></artist>", malformed),
            good(2),
            good(3),
            bad("<artist><id>4</id><name>not closed</artist>", malformed),
            bad("<artist><id>5</id><profile>no\nend at all", malformed),
            good(6),
            bad("<artist><name>no id</name></artist>", "missing_id"),
            bad("<artist><id>7</id><name a=b>attribute</name></artist>", malformed),
            good(8),
            bad("<artist><id>9</id><name>last", malformed),
        ],
    }
}

fn broken_jsonl() -> Broken {
    let good = |id: u32| (format!("{{\"id\":\"{id}\",\"name\":\"N\"}}\n"), None);
    let bad = |text: &str, reason: &'static str| (format!("{text}\n"), Some(reason));
    Broken {
        head: "",
        tail: "",
        parts: vec![
            good(1),
            bad("{\"id\":\"2\",\"name\":", "malformed_json"),
            good(3),
            bad("garbage", "malformed_json"),
            bad("[\"an array\"]", "malformed_json"),
            bad("{\"name\":\"no id\"}", "missing_id"),
            bad("{\"type\":\"file_complete\",\"id\":\"4\"}", "reserved_type"),
            good(5),
            bad("{\"id\":\"6\"} {\"id\":\"7\"}", "malformed_json"),
        ],
    }
}

fn broken_csv() -> Broken {
    let good = |id: u32| (format!("{id},\"two\nlines\",1999\n"), None);
    let bad = |text: &str, reason: &'static str| (format!("{text}\n"), Some(reason));
    Broken {
        head: "id,title,year\n",
        tail: "",
        parts: vec![
            bad("1,too short", "malformed_csv"),
            good(2),
            bad("3,one,too,many", "malformed_csv"),
            bad(",no id,1999", "missing_id"),
            good(4),
            bad("5", "malformed_csv"),
        ],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_records_are_set_apart_and_everything_else_is_published() -> Result<(), Error> {
    let job = Job::new("broken", ONE).await?;
    let mut expected = job.folder.generate(100, 44)?;
    let broken = [
        (DataType::Artists, "xml", broken_xml()),
        (DataType::Labels, "jsonl", broken_jsonl()),
        (DataType::Masters, "csv", broken_csv()),
    ];
    for (t, ending, file) in &broken {
        fs::remove_file(job.folder.file(*t, "xml.gz"))?;
        let repaired = job.folder.path.join("repaired");
        fs::write(&repaired, file.repaired())?;
        expected[t.index()] = bodies(&repaired, *t)?;
        job.folder.write(*t, ending, file.text())?;
    }
    let mut ended = job.run(&[]).await?.with(1).saying(&["the workers were told"]);
    for (t, ending, file) in &broken {
        let rejects = file.rejects();
        let warning = format!("{t}: {} records were rejected; rejects-{MONTH}-{t}.jsonl says why", rejects.len());
        ended = ended.saying(&[&warning]);
        let lines = fs::read_to_string(job.directory().join(format!("rejects-{MONTH}-{t}.jsonl")))?;
        let found: Vec<Reject> = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let places: Vec<_> = found.iter().map(|r| (r.offset, r.line, r.reason.as_str())).collect();
        assert_eq!(places, rejects, "{t}: {found:#?}");
        for reject in &found {
            assert_eq!(reject.file, format!("discogs_{MONTH}_{t}.{ending}"));
            assert!(!reject.detail.is_empty() && !reject.excerpt.is_empty(), "{reject:?}");
        }
    }
    for t in DataType::ALL {
        let taken = job.take(ONE, t).await?;
        taken.assert_whole(t.name(), &expected[t.index()])?;
        // A record without an id was read; what can't be read is none.
        let usable = broken.iter().filter(|(of, ..)| *of == t).flat_map(|(.., file)| file.rejects());
        let read = usable.filter(|(.., reason)| !reason.starts_with("malformed")).count();
        assert_eq!(taken.controls()?[0]["total_processed"], expected[t.index()].len() + read, "{t}");
    }
    assert!(!job.directory().join(format!("rejects-{MONTH}-releases.jsonl")).exists());

    // Whoever runs it again must not take it for clean: neither the whole version nor a part of one.
    let count: usize = broken.iter().map(|(.., file)| file.rejects().len()).sum();
    let of_labels = broken_jsonl().rejects().len();
    let said = format!("warning: {count} records were rejected then; rejects-{MONTH}-*.jsonl says why");
    job.run(&[]).await?.with(1).saying(&["Dump 20260101 was published before", &said]);
    let (labels, state) = (text(job.folder.file(DataType::Labels, "jsonl")), text(job.folder.path.join("part")));
    let part = ["run", &labels, "--state", &state, "--expect-queues", ONE];
    job.run_with(&part).await?.with(1).saying(&[&format!("labels: {of_labels} records were rejected")]);
    job.take(ONE, DataType::Labels).await?;
    let said = format!("warning: {of_labels} records were rejected then");
    job.run_with(&part).await?.with(1).saying(&["These files of dump", &said]);
    for t in DataType::ALL {
        assert!(job.take(ONE, t).await?.0.is_empty(), "{t}");
    }
    job.stage.clean_up().await
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_broken_records_are_the_wrong_file() -> Result<(), Error> {
    let job = Job::new("toomany", ONE).await?;
    let expected = job.folder.generate(100, 45)?;
    fs::remove_file(job.folder.file(DataType::Artists, "xml.gz"))?;
    let file = broken_xml();
    job.folder.write(DataType::Artists, "xml", file.text())?;
    let many = file.rejects().len();
    let most = (many - 1).to_string();
    let ended = job.run(&["--max-rejects", &most]).await?.with(3).saying(&["--max-rejects"]);
    let error = format!("error: discogs_{MONTH}_artists.xml: {many} records were rejected, more than");
    assert!(ended.out.contains(&error), "{}", ended.out);
    for t in DataType::ALL {
        let taken = job.take(ONE, t).await?;
        assert_eq!(taken.ending()?.len(), usize::from(t != DataType::Artists), "{t}");
        if t != DataType::Artists {
            taken.assert_data(t.name(), &expected[t.index()]);
        }
    }
    let ended: Ended = job.run(&["--max-rejects", &many.to_string()]).await?.with(1);
    assert!(ended.out.contains(&format!("artists: {many} records were rejected")), "{}", ended.out);
    let lines = fs::read_to_string(job.directory().join(format!("rejects-{MONTH}-artists.jsonl")))?;
    assert_eq!(lines.lines().count(), many, "each is noted once, though two runs saw it:\n{lines}");
    assert_eq!(job.take(ONE, DataType::Artists).await?.ending()?, ["file_complete", "extraction_complete"]);

    // A file of another type, and one that is no dump at all.
    let folder = job.folder.path.join("other");
    fs::create_dir(&folder)?;
    let artists = folder.join("discogs_20260201_artists.xml");
    fs::write(&artists, "<labels>\n<label><id>1</id><name>N</name></label>\n</labels>\n")?;
    fs::write(folder.join("discogs_20260201_labels.xml"), "<html><body>429 Too Many Requests</body></html>")?;
    fs::write(folder.join("discogs_20260201_masters.xml"), "")?;
    fs::write(folder.join("discogs_20260201_releases.xml.gz"), [0x1f, 0x8b])?;
    let (folder, state) = (text(&folder), text(job.directory()));
    let args = ["run", &folder, "--state", &state, "--expect-queues", ONE];
    let ended = job.run_with(&args).await?.with(3).without(&["panicked"]);
    for (t, error) in [
        ("artists.xml", "expected <artists>, found \"<labels>\""),
        ("labels.xml", "expected <labels>, found \"<html>\""),
        ("masters.xml", "the file is cut off: it ends before </masters>"),
        ("releases.xml.gz", "the file is "),
    ] {
        let error = format!("error: discogs_20260201_{t}: {error}");
        assert!(ended.out.contains(&error), "{error}: {}", ended.out);
    }
    for t in DataType::ALL {
        assert!(job.take(ONE, t).await?.controls()?.iter().all(|c| c["type"] == "extraction_complete"), "{t}");
    }
    job.stage.clean_up().await
}
