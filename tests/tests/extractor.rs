//! The extractor as a process: the messages that it makes of dumps in every format, what it leaves alone, whom it tells,
//! and what both workers make of it. What goes wrong is in `extractor_faults`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use common::DataType;
use extractor::generate::{Spec, write};
use flate2::Compression;
use flate2::write::GzEncoder;
use integration_tests::dumps::{Bodies, Folder, MONTH, text};
use integration_tests::job::{Ended, Extraction, Taken};
use integration_tests::oracle::{self, Messages};
use integration_tests::stage::{binary, controlled, run_maintained, services, settled};
use integration_tests::states;
use integration_tests::{Error, Job, Stage};
use lapin::options::{BasicPublishOptions, ExchangeDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, ExchangeKind};
use serde_json::{Value, json};

const BOTH: &str = "graphinator,tableinator";
const ONE: &str = "tableinator";

// ------------------------------------------------------------------------------------------------- messages

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_becomes_exactly_the_contract_s_messages() -> Result<(), Error> {
    let job = Job::new("wire", BOTH).await?;
    let expected = job.folder.generate(300, 3)?;
    let before = Utc::now();
    job.run(&[]).await?.with(0);
    let after = Utc::now();

    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_content_encoding("UTF-8".into())
        .with_delivery_mode(2);
    let counts = DataType::ALL.map(|t| (t.name(), expected[t.index()].len()));
    let mut ends = Vec::new();
    for t in DataType::ALL {
        for worker in ["graphinator", "tableinator"] {
            let (taken, what) = (job.take(worker, t).await?, format!("{worker} {t}"));
            taken.assert_whole(&what, &expected[t.index()])?;
            for message in &taken.0 {
                assert_eq!(message.properties, properties, "{what}");
                assert_eq!((message.routing_key.as_str(), message.redelivered), ("", false), "{what}");
                assert_eq!(message.exchange.as_str(), format!("{}-{t}", job.stage.prefix));
            }
            let controls = taken.controls()?;
            let file = format!("discogs_{MONTH}_{t}.xml.gz");
            let mut of_file = controls[0].clone();
            assert!((before..=after).contains(&time(&mut of_file, "timestamp")?), "{what}");
            let complete = expected[t.index()].len();
            let fields =
                json!({"type": "file_complete", "data_type": t.name(), "total_processed": complete, "file": file});
            assert_eq!(of_file, fields, "{what}");

            let mut of_run = controls[1].clone();
            let (began, ended) = (time(&mut of_run, "started_at")?, time(&mut of_run, "timestamp")?);
            assert!(before <= began && began < ended && ended <= after, "{what}: {began} {ended}");
            let record_counts: BTreeMap<_, _> = counts.into_iter().collect();
            let fields = json!({"type": "extraction_complete", "version": MONTH, "record_counts": record_counts});
            assert_eq!(of_run, fields, "{what}");
            ends.extend(taken.0.last().map(|message| message.data.clone()));
        }
    }
    assert_eq!(ends.len(), 8);
    assert!(ends.iter().all(|end| *end == ends[0]), "extraction_complete must be the same everywhere");
    let order = String::from_utf8_lossy(&ends[0]).into_owned();
    assert!(order.starts_with(r#"{"type":"extraction_complete","version":"20260101","timestamp":""#), "{order}");
    job.stage.clean_up().await
}

/// Takes a point in time out of a control message; it must be RFC 3339 with a `Z`.
fn time(message: &mut Value, field: &str) -> Result<DateTime<Utc>, Error> {
    let value = message.as_object_mut().and_then(|fields| fields.remove(field)).ok_or(format!("no {field}"))?;
    let text = value.as_str().unwrap_or_default();
    assert!(text.ends_with('Z'), "{field} is {text}");
    Ok(DateTime::parse_from_rfc3339(text)?.to_utc())
}

#[tokio::test(flavor = "multi_thread")]
async fn real_dumps_become_the_golden_messages() -> Result<(), Error> {
    let Some(golden) = states::golden_dir("real_dumps_become_the_golden_messages") else { return Ok(()) };
    let data = golden.join("../data");
    for version in ["20200801", "20260401"] {
        if !data.join(format!("discogs_{version}_artists.xml.gz")).is_file() {
            // As loud as the harness lets it be.
            let _ = writeln!(std::io::stderr(), "\n*** SKIPPED: no dump of {version} in {} ***\n", data.display());
            continue;
        }
        let job = Job::new("golden", ONE).await?;
        let (data, state) = (text(&data), text(job.directory()));
        job.run_with(&["run", &data, "--dump", version, "--state", &state, "--expect-queues", ONE]).await?.with(0);
        let messages = states::load_messages(&golden.join("messages"), version)?;
        for (t, golden) in integration_tests::stage::by_type(&messages) {
            job.take(ONE, t).await?.assert_whole(&format!("{version} {t}"), golden)?;
        }
        job.stage.clean_up().await?;
    }
    Ok(())
}

/// Records in another format, packed in another way, or from the standard input make the same messages.
#[tokio::test(flavor = "multi_thread")]
async fn other_formats_carry_the_same_messages() -> Result<(), Error> {
    let mut job = Job::new("formats", ONE).await?;
    let xml = Folder::new("xml")?;
    let expected = xml.generate(400, 11)?;
    for format in ["jsonl", "csv"] {
        let converted: Vec<Vec<u8>> =
            DataType::ALL.into_iter().map(|t| convert(&xml.file(t, "xml.gz"), format)).collect::<Result<_, _>>()?;
        for packing in ["", ".gz", ".zst"] {
            job.folder = Folder::new("formats")?;
            let ending = format!("{format}{packing}");
            for t in DataType::ALL {
                job.folder.write(t, &ending, packed(&converted[t.index()], packing)?)?;
            }
            job.run(&[]).await?.with(0);
            for t in DataType::ALL {
                job.take(ONE, t).await?.assert_whole(&format!("{ending} {t}"), &expected[t.index()])?;
            }
        }
        job.folder = Folder::new("formats")?;
        for t in DataType::ALL {
            let file = job.folder.write(t, "anything", packed(&converted[t.index()], ".gz")?)?;
            let state = text(job.directory());
            let args = ["run", "-", "--type", t.name(), "--dump", MONTH, "--state", &state, "--expect-queues", ONE];
            let ended = Extraction::start(&job.env, &args, Stdio::from(File::open(file)?))?.ended().await?;
            ended.with(0).saying(&["stdin"]);
        }
        for t in DataType::ALL {
            let taken = job.take(ONE, t).await?;
            taken.assert_whole(&format!("{format} from the standard input, {t}"), &expected[t.index()])?;
            assert_eq!(taken.controls()?[0]["file"], "stdin");
        }
    }
    job.stage.clean_up().await
}

fn convert(path: &Path, format: &str) -> Result<Vec<u8>, Error> {
    let out = Command::new(binary("extractor")).arg("convert").arg(path).args(["--to", format]).env_clear().output()?;
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Ok(out.stdout)
}

fn packed(bytes: &[u8], packing: &str) -> Result<Vec<u8>, Error> {
    Ok(match packing {
        ".gz" => gzip(bytes)?,
        ".zst" => zstd::bulk::compress(bytes, 3)?,
        _ => bytes.to_owned(),
    })
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let mut out = GzEncoder::new(Vec::new(), Compression::default());
    out.write_all(bytes)?;
    Ok(out.finish()?)
}

/// The extractor with these arguments and no environment, to its end.
fn command(args: &[&str]) -> Command {
    services();
    let mut command = Command::new(binary("extractor"));
    command.args(args).env_clear();
    command
}

fn lines(bytes: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(bytes).lines().map(str::to_owned).collect()
}

#[test]
fn what_can_t_be_converted_is_said_in_one_line_each() -> Result<(), Error> {
    let folder = Folder::new("convert")?;
    let records = ["<label><id>1</id></label>", "<label><name>x</name></label>", "<label><id>2</name></label>"];
    let xml = format!("<labels>\n{}\n<label><id>3</id></label>\n</labels>\n", records.join("\n"));
    let file = text(folder.write(DataType::Labels, "xml", xml)?);
    let name = format!("discogs_{MONTH}_labels.xml");
    for (format, converted) in [("jsonl", vec![r#"{"id":"1"}"#, r#"{"id":"3"}"#]), ("csv", vec!["id", "1", "3"])] {
        let out = command(&["convert", &file, "--to", format]).output()?;
        assert_eq!(out.status.code(), Some(1));
        assert_eq!(lines(&out.stdout), converted);
        let said = lines(&out.stderr);
        let left_out = |line: u32| format!("{name}: the record that begins in line {line} is left out: ");
        assert_eq!(said[0], left_out(3) + "missing_id: the record has no id");
        assert!(said[1].starts_with(&(left_out(4) + "malformed_xml: ")), "{said:?}");
        let end = "2 records were left out, as told above; all others are written";
        assert_eq!(said[2..], [format!("extractor: {name}: {end}")]);
    }
    let out = command(&["convert", "-", "--type", "labels", "--to", "csv"]).stdin(Stdio::null()).output()?;
    let said = lines(&out.stderr);
    assert!(said.len() == 1 && said[0].starts_with("extractor: stdin: ") && said[0].contains("--to jsonl"), "{said:?}");
    fs::write(&file, "<labels>\n<label><id>1</id></label>\n<label>")?;
    let out = command(&["convert", &file, "--to", "jsonl"]).output()?;
    assert_eq!((out.status.code(), lines(&out.stdout)), (Some(1), vec![r#"{"id":"1"}"#.to_owned()]));
    assert_eq!(lines(&out.stderr), [format!("extractor: {name}: the file is cut off: it ends before </labels>")]);
    Ok(())
}

/// As in `extractor convert … | head`, and with the standard error closed as well.
#[test]
fn a_reader_that_has_enough_is_no_error() -> Result<(), Error> {
    let folder = Folder::new("pipe")?;
    folder.generate(3000, 12)?;
    let file = text(folder.file(DataType::Releases, "xml.gz"));
    for args in [vec!["convert", &file, "--to", "jsonl"], vec!["convert", &file, "--to", "csv"], vec!["inspect", &file]]
    {
        let mut child = command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut out = BufReader::new(child.stdout.take().ok_or("no output")?);
        if args[0] == "convert" {
            assert!(out.read_line(&mut String::new())? > 0);
        }
        drop(out);
        let ended = child.wait_with_output()?;
        assert_eq!((ended.status.code(), lines(&ended.stderr)), (Some(0), vec![]), "{args:?}");
    }
    let mut child = command(&["inspect", "/nowhere/labels"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    drop(child.stderr.take());
    assert_eq!(child.wait()?.code(), Some(1), "it must not panic");
    Ok(())
}

#[test]
fn what_is_before_a_damage_is_inspected_and_so_are_the_other_files() -> Result<(), Error> {
    let folder = Folder::new("inspect")?;
    folder.generate(3000, 12)?;
    let files = [DataType::Releases, DataType::Labels].map(|t| folder.file(t, "xml.gz"));
    let whole = fs::read(&files[0])?;
    fs::write(&files[0], &whole[..whole.len() / 2])?;
    let out = command(&["inspect", &text(&files[0]), &text(&files[1])]).output()?;
    assert_eq!(out.status.code(), Some(1));
    let report = String::from_utf8_lossy(&out.stdout).into_owned();
    for part in ["_releases.xml.gz: ", "only what comes before the place where", "_labels.xml.gz: "] {
        assert!(report.contains(part), "{part}: {report}");
    }
    let said = lines(&out.stderr);
    let begin = format!("extractor: discogs_{MONTH}_releases.xml.gz: the file is damaged or cut off: ");
    assert!(said.len() == 1 && said[0].starts_with(&begin) && said[0].contains("(reached line "), "{said:?}");
    assert_eq!(command(&["inspect", &text(&files[1])]).output()?.status.code(), Some(0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_skip_records_drop_values_and_clear_years() -> Result<(), Error> {
    let job = Job::new("rules", ONE).await?;
    let artist =
        |id: u32, profile: &str| format!("<artist><id>{id}</id><name>N</name><profile>{profile}</profile></artist>\n");
    let artists = [artist(1, "fine"), artist(2, "DO NOT USE."), artist(3, "please Do Not Use it"), artist(4, "do not")];
    job.folder.write(DataType::Artists, "xml", format!("<artists>\n{}</artists>\n", artists.concat()))?;
    let label = "<label><id>5</id><name>L</name><profile>Do not use</profile></label>\n";
    job.folder.write(DataType::Labels, "xml", format!("<labels>\n{label}</labels>\n"))?;
    let master = |id: u32, year: &str, genres: &str| {
        format!("<master id=\"{id}\"><year>{year}</year><genres>{genres}</genres><title>T</title></master>\n")
    };
    let masters = [
        master(6, "1859", "<genre>Rock</genre><genre>12</genre>"),
        master(7, "1860", "<genre>99</genre>"),
        master(8, "2028", "<genre>12\"</genre>"),
    ];
    job.folder.write(DataType::Masters, "xml", format!("<masters>\n{}</masters>\n", masters.concat()))?;
    let release =
        |id: u32, date: &str| format!("<release id=\"{id}\"><title>T</title><released>{date}</released></release>\n");
    let releases =
        [release(9, "1997-05-00"), release(10, "0197-05-00"), release(11, "2028"), release(12, "unknown")].concat();
    job.folder.write(DataType::Releases, "xml", format!("<releases>\n{releases}</releases>\n"))?;

    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../extractor/data-quality-rules.json");
    let ended = job.run(&["--rules", &text(root)]).await?.with(0);
    let totals = [4, 1, 3, 4];
    let mut got = BTreeMap::new();
    for t in DataType::ALL {
        let taken = job.take(ONE, t).await?;
        let controls = taken.controls()?;
        assert_eq!(controls[0]["total_processed"], totals[t.index()], "{t}");
        let counts = json!({"artists": 4, "labels": 1, "masters": 3, "releases": 4});
        assert_eq!(controls[1]["record_counts"], counts, "{t}");
        for body in taken.data() {
            let mut record: Value = serde_json::from_slice(body)?;
            for field in ["type", "sha256", "title", "name", "profile"] {
                record.as_object_mut().and_then(|r| r.remove(field));
            }
            got.insert(record["id"].as_str().unwrap_or_default().to_owned(), record);
        }
    }
    let expected = [
        json!({"id": "1"}),
        json!({"id": "4"}),
        json!({"id": "6", "year": null, "genres": ["Rock"]}),
        json!({"id": "7", "year": "1860"}),
        json!({"id": "8", "year": null, "genres": ["12\""]}),
        json!({"id": "9", "released": "1997-05-00"}),
        json!({"id": "10", "released": null}),
        json!({"id": "11", "released": null}),
        json!({"id": "12", "released": "unknown"}),
    ];
    let expected: BTreeMap<_, _> =
        expected.into_iter().map(|r| (r["id"].as_str().unwrap_or_default().to_owned(), r)).collect();
    assert_eq!(got, expected, "{}", ended.out);
    job.stage.clean_up().await
}

/// Runs the extractor to its end, with this exit status. Returns its peak of memory in KiB, too.
async fn peak(job: &Job, code: i32) -> Result<(Ended, u64), Error> {
    let running = job.start(&[])?;
    let status = format!("/proc/{}/status", running.pid());
    // The kernel keeps the peak; it is gone with the process.
    let watched = tokio::spawn(async move {
        let mut peak = 0;
        while let Ok(text) = fs::read_to_string(&status) {
            let Some(line) = text.lines().find_map(|line| line.strip_prefix("VmHWM:")) else { break };
            peak = line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(u64::MAX);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        peak
    });
    let ended = running.ended().await?.with(code);
    let peak = watched.await?;
    println!("peak: {} MiB\n{}", peak / 1024, ended.out);
    assert!(peak > 0, "the peak was never seen");
    Ok((ended, peak))
}

/// Records of 300 KB in a row, and as many tiny ones as fill every buffer that counts bytes instead of records.
#[tokio::test(flavor = "multi_thread")]
async fn memory_stays_under_64_mib() -> Result<(), Error> {
    let job = Job::new("memory", ONE).await?;
    let spec = Spec { seed: 15, records: 40_000, month: 1, changed: 0.0, removed: 0.0 };
    for t in DataType::ALL.into_iter().skip(1) {
        let mut xml = Vec::new();
        write(&spec, t, &mut xml)?;
        if t == DataType::Releases {
            // As many as would fill the memory if the window counted messages only.
            let notes = "Ärger &lt;".repeat(300_000 / 11);
            let large = |id| format!("<release id=\"{id}\"><title>T</title><notes>{notes}</notes></release>\n");
            let large: String = (900_000_000..900_000_200).map(large).collect();
            assert!(large.len() > 200 * 295_000);
            let end = xml.len() - "</releases>\n".len();
            xml.splice(end..end, large.into_bytes());
        }
        job.folder.write(t, "xml.gz", gzip(&xml)?)?;
    }
    let tiny: String = (1..=200_000).map(|id| format!("<artist><id>{id}</id><name>A</name></artist>\n")).collect();
    job.folder.write(DataType::Artists, "xml.gz", gzip(format!("<artists>\n{tiny}</artists>\n").as_bytes())?)?;
    drop(tiny);

    let (ended, peak) = peak(&job, 0).await?;
    ended.saying(&["200,000"]);
    assert!(peak < 64 * 1024, "{} MiB", peak / 1024);
    job.stage.clean_up().await
}

/// As large as the largest real record, in all four files at once; as large as any record may be; and so large only as
/// JSON, or too large for it. The broker takes them more slowly than they are read.
#[tokio::test(flavor = "multi_thread")]
async fn memory_is_bounded_whatever_the_records_size() -> Result<(), Error> {
    let most = extractor::input::MAX_RECORD - 1000;
    let (text, control) = (|bytes| "Ärger ".repeat(bytes / 7), |bytes| "\u{1}".repeat(bytes));
    for (what, notes, count, good) in [
        ("300 KB", [text(300_000), text(300_000)], 100, true),
        ("2 MiB", [text(most), text(most)], 40, true),
        ("2 MiB as JSON", [control(most / 6), control(most / 6)], 40, true),
        ("2 MiB, and every other one 12 MiB as JSON", [text(most), control(most)], 40, false),
        ("2 MiB, and every other one no UTF-8", [text(most), "X".repeat(most)], 40, false),
    ] {
        let mut job = Job::new("large", ONE).await?;
        let _proxy = job.through_proxy(10_000_000).await?;
        for t in DataType::ALL {
            let one = t.name().trim_end_matches('s');
            let record =
                |id: usize| format!("<{one} id=\"{id}\"><id>{id}</id><notes>{}</notes></{one}>\n", notes[id % 2]);
            let records: String = (1..=count).map(record).collect();
            let mut xml = format!("<{t}>\n{records}</{t}>\n").into_bytes();
            xml.iter_mut().filter(|byte| **byte == b'X').for_each(|byte| *byte = 0xff);
            job.folder.write(t, "xml.gz", gzip(&xml)?)?;
        }
        let (ended, peak) = peak(&job, i32::from(!good)).await?;
        let of_table = format!(" {} ", if good { count } else { count / 2 });
        let in_table = |t: &DataType| {
            let row = |line: &&str| line.trim_start().starts_with(t.name()) && line.contains(&of_table);
            ended.out.lines().filter(row).count() == 1
        };
        assert!(DataType::ALL.iter().all(in_table), "{}", ended.out);
        assert!(peak < 64 * 1024, "{} MiB with records of {what}", peak / 1024);
        job.stage.clean_up().await?;
    }
    Ok(())
}

// ------------------------------------------------------------------------------------------------- versions

#[tokio::test(flavor = "multi_thread")]
async fn a_finished_version_is_left_alone_unless_forced() -> Result<(), Error> {
    let job = Job::new("again", ONE).await?;
    let expected = job.folder.generate(200, 6)?;
    job.run(&[]).await?.with(0);
    let first = take_all(&job, &expected).await?;
    job.run(&[]).await?.with(0).saying(&[MONTH, "--force"]);
    for t in DataType::ALL {
        assert!(job.take(ONE, t).await?.0.is_empty(), "{t}: a finished version was published again");
    }
    job.run(&["--force"]).await?.with(0);
    let second = take_all(&job, &expected).await?;
    assert_eq!((&first["version"], &second["version"]), (&json!(MONTH), &json!(MONTH)));
    assert!(first["started_at"].as_str() < second["started_at"].as_str(), "{first} {second}");
    // And this is what is left alone now.
    job.run(&[]).await?.with(0).saying(&["--force"]);
    assert!(job.take(ONE, DataType::Artists).await?.0.is_empty());
    job.stage.clean_up().await
}

/// Takes a whole run out of the queues and returns its `extraction_complete`.
async fn take_all(job: &Job, expected: &Bodies) -> Result<Value, Error> {
    let mut end = Value::Null;
    for t in DataType::ALL {
        let taken = job.take(ONE, t).await?;
        taken.assert_whole(t.name(), &expected[t.index()])?;
        end = taken.controls()?.remove(1);
    }
    Ok(end)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_that_comes_later_completes_the_version() -> Result<(), Error> {
    let job = Job::new("later", ONE).await?;
    let expected = job.folder.generate(200, 7)?;
    let (there, away) = (job.folder.file(DataType::Masters, "xml.gz"), job.folder.path.join("away"));
    fs::rename(&there, &away)?;

    let part: Bodies = DataType::ALL.map(|t| if t == DataType::Masters { vec![] } else { expected[t.index()].clone() });
    job.run(&[]).await?.with(0).saying(&["no file of masters", "extraction_complete is only published when"]);
    for t in DataType::ALL {
        let taken = job.take(ONE, t).await?;
        taken.assert_data(t.name(), &part[t.index()]);
        assert_eq!(taken.ending()?.len(), usize::from(t != DataType::Masters), "{t}");
        assert!(taken.controls()?.iter().all(|control| control["type"] == "file_complete"), "{t}");
    }
    let started_at = job.state(MONTH)?.started_at;
    job.run(&[]).await?.with(0).saying(&["--force"]);

    fs::rename(&away, &there)?;
    job.run(&[]).await?.with(0).without(&["no file of"]);
    for t in DataType::ALL {
        let taken = job.take(ONE, t).await?;
        let late = t == DataType::Masters;
        taken.assert_data(t.name(), if late { &expected[t.index()] } else { &[] });
        let ending = taken.ending()?;
        assert_eq!(
            ending,
            if late { vec!["file_complete", "extraction_complete"] } else { vec!["extraction_complete"] }
        );
        let end = taken.controls()?.pop().unwrap_or_default();
        assert_eq!(end["started_at"], started_at, "the run began with its first file");
        for t in DataType::ALL {
            assert_eq!(end["record_counts"][t.name()], expected[t.index()].len());
        }
    }
    job.stage.clean_up().await
}

#[tokio::test(flavor = "multi_thread")]
async fn several_dumps_come_one_after_the_other_oldest_first() -> Result<(), Error> {
    let job = Job::new("several", ONE).await?;
    let spec = Spec { seed: 16, records: 100, month: 1, changed: 0.1, removed: 0.0 };
    let first = job.folder.generate_month(&spec, MONTH)?;
    let second = job.folder.generate_month(&Spec { month: 2, ..spec }, "20260201")?;
    let files = job.folder.packed(&["20260201", MONTH]);
    let mut args = vec!["run", "--expect-queues", ONE];
    args.extend(files.iter().map(String::as_str));
    job.run_with(&args).await?.with(0).saying(&["against 20260101"]);
    for t in DataType::ALL {
        let taken = job.take(ONE, t).await?;
        taken.assert_data(t.name(), &[&first[t.index()][..], &second[t.index()]].concat());
        assert_eq!(taken.controlled()?, ["file_complete", MONTH, "file_complete", "20260201"], "{t}");
        let behind_first = taken.0.iter().position(|message| !message.data.starts_with(br#"{"type":"data""#));
        assert_eq!(behind_first, Some(first[t.index()].len()), "{t}");
    }
    // Nothing was said about the state: it is beside the files.
    assert!(job.folder.path.join(".extractor/state.json").is_file());
    job.run_with(&args).await?.with(0).saying(&["Dump 20260101 was published before", "Dump 20260201 was"]);
    // The older one alone, over the newer one.
    let mut older = vec!["run", "--expect-queues", ONE, "--force"];
    let files = job.folder.packed(&[MONTH]);
    older.extend(files.iter().map(String::as_str));
    job.run_with(&older).await?.with(0).saying(&["warning: dump 20260201 was published before"]);
    job.stage.clean_up().await
}

// ------------------------------------------------------------------------------------------------- queues and start

#[tokio::test(flavor = "multi_thread")]
async fn queues_that_should_be_there_are_named_when_missing() -> Result<(), Error> {
    let mut job = Job::new("missing", ONE).await?;
    let expected = job.folder.generate(100, 8)?;
    job.workers = BOTH;
    let ended = job.run(&["--wait", "0"]).await?.with(2).saying(&["--expect-queues"]);
    for t in DataType::ALL {
        let queue = job.stage.topology("graphinator", t).queue;
        assert!(ended.err.contains(&queue), "{queue} in {}", ended.err);
        assert!(!ended.err.contains(&job.stage.topology(ONE, t).queue), "{}", ended.err);
        assert_eq!(job.stage.ready_count(&job.stage.topology(ONE, t).queue).await?, 0, "{t} was published");
    }
    job.workers = ONE;
    job.run(&["--wait", "0"]).await?.with(0);
    take_all(&job, &expected).await?;
    // One worker's queues are there and one's are not: as they come, the extractor goes on.
    job.workers = BOTH;
    let waiting = job.start(&["--force", "--wait", "60"])?;
    job.stage.declare("graphinator").await?;
    waiting.ended().await?.with(0);
    take_all(&job, &expected).await?;
    for t in DataType::ALL {
        job.take("graphinator", t).await?.assert_whole(t.name(), &expected[t.index()])?;
    }
    job.stage.clean_up().await
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_bindings_and_exchanges_are_restored_before_the_first_message() -> Result<(), Error> {
    let job = Job::new("unbound", ONE).await?;
    let expected = job.folder.generate(100, 9)?;
    let channel = &job.stage.channel;
    for t in DataType::ALL {
        let names = job.stage.topology(ONE, t);
        let (queue, exchange) = (names.queue.as_str(), names.data_exchange.as_str());
        if t == DataType::Artists {
            let table = FieldTable::default();
            let unbind = channel.queue_unbind(queue.into(), exchange.into(), queue.into(), table);
            unbind.await?;
        } else {
            channel.exchange_delete(exchange.into(), Default::default()).await?;
        }
    }
    job.run(&[]).await?.with(0);
    take_all(&job, &expected).await?;
    // The broker refuses to declare an exchange that is there with other properties.
    for t in DataType::ALL {
        let exchange = job.stage.topology(ONE, t).data_exchange;
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        channel
            .exchange_declare(exchange.as_str().into(), ExchangeKind::Fanout, durable, FieldTable::default())
            .await?;
    }
    job.stage.clean_up().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_not_bound_is_refused_if_the_management_can_be_asked() -> Result<(), Error> {
    let mut job = Job::new("bound", BOTH).await?;
    let expected = job.folder.generate(100, 9)?;
    let port = services().get("RABBITMQ_MANAGEMENT_PORT");
    let address = |login: &str| format!("http://{login}127.0.0.1:{port}");
    let ask = |job: &mut Job, url: String| job.env.insert("RABBITMQ_MANAGEMENT_URL".to_owned(), url);
    ask(&mut job, address(""));
    let channel = &job.stage.channel;
    let names = job.stage.topology("graphinator", DataType::Masters);
    let (queue, exchange) = (names.queue.as_str(), names.data_exchange.as_str());
    let unbind = channel.queue_unbind(queue.into(), exchange.into(), queue.into(), FieldTable::default());
    unbind.await?;
    let refusal = format!("queue {queue} is not bound to exchange {exchange}");
    let ended = job.run(&["--wait", "0"]).await?.with(2).saying(&[&refusal, "restart its worker", "--expect-queues"]);
    assert_eq!(ended.err.matches("is not bound").count(), 1, "{}", ended.err);
    for t in DataType::ALL {
        assert_eq!(job.stage.ready_count(&job.stage.topology(ONE, t).queue).await?, 0, "{t} was published");
    }
    // It was left as it was, and a queue that is away is named beside it.
    let away = job.stage.topology("graphinator", DataType::Labels).queue;
    channel.queue_delete(away.as_str().into(), Default::default()).await?;
    let missing = format!("queue {away} does not exist");
    job.run(&["--wait", "0"]).await?.with(2).saying(&[&refusal, &missing]);

    // As its worker comes back, the run goes on.
    let waiting = job.start(&["--wait", "60"])?;
    job.stage.declare("graphinator").await?;
    waiting.ended().await?.with(0);
    for worker in ["graphinator", ONE] {
        for t in DataType::ALL {
            job.take(worker, t).await?.assert_whole(t.name(), &expected[t.index()])?;
        }
    }
    // Who can't be asked says nothing.
    let dead = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let right = "RABBITMQ_MANAGEMENT_URL";
    for (url, remedy) in [
        (address("nobody:hidden-pw@"), "needs the tag `management`"),
        (format!("http://nobody:hidden-pw@127.0.0.1:{dead}"), "can't be asked for bindings"),
        (format!("{}/elsewhere", address("nobody:hidden-pw@")), "can't be asked for bindings"),
        ("http://nobody:hidden-pw/@127.0.0.1".to_owned(), "percent-encoded"),
    ] {
        ask(&mut job, url);
        let ended = job.run(&["--force", "--wait", "0"]).await?.with(2);
        ended.saying(&[remedy]).without(&["hidden-pw", "panicked"]);
    }
    let (user, password) = (services().get("RABBITMQ_USERNAME"), services().get("RABBITMQ_PASSWORD"));
    ask(&mut job, address(&format!("{user}:{password}@")) + "/");
    job.run(&["--force", "--wait", "0"]).await?.with(0).without(&[right]);
    job.stage.clean_up().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_it_from_starting_is_said_with_the_remedy() -> Result<(), Error> {
    let mut job = Job::new("refused", ONE).await?;
    job.folder.generate(50, 10)?;
    let folder = text(&job.folder.path);

    // A directory can't be made below a file, not even by root.
    let file = text(job.folder.file(DataType::Artists, "xml.gz"));
    let unwritable = format!("{file}/state");
    let run = async |args: &[&str]| -> Result<Ended, Error> {
        Ok(job.run_with(&[&["run"], args].concat()).await?.with(2).without(&["panicked"]))
    };
    run(&[&folder, "--state", &unwritable]).await?.saying(&["can't be created", "--state"]);
    let missing = format!("{folder}/discogs_20260101_nothing.xml");
    run(&[&missing, "--state", &folder]).await?.saying(&["discogs_20260101_nothing.xml does not exist"]);
    let empty = Folder::new("empty")?;
    run(&[&text(&empty.path)]).await?.saying(&["has no file like discogs_20260401_artists.xml.gz"]);
    run(&[&folder, "--dump", "20991201"]).await?.saying(&["no file of 20991201"]);
    run(&[&folder, "--type", "songs"]).await?.saying(&["artists, labels, masters or releases"]);
    let nameless = text(&empty.path) + "/20260101.xml";
    fs::write(&nameless, "<artists></artists>")?;
    run(&[&nameless]).await?.saying(&["--type artists, labels, masters or releases"]);
    run(&["-", "--type", "labels"]).await?.saying(&["--dump 20260401"]);
    run(&[&folder, "--rules", &missing]).await?.saying(&["rules file", "discogs_20260101_nothing.xml"]);

    let taken = TcpListener::bind("0.0.0.0:0")?;
    job.env.insert("HEALTH_PORT".to_owned(), taken.local_addr()?.port().to_string());
    job.run(&[]).await?.with(2).saying(&["HEALTH_PORT", &taken.local_addr()?.port().to_string()]);
    job.env.insert("HEALTH_PORT".to_owned(), "0".to_owned());
    job.env.insert("COMPLETION_WEBHOOK_URL".to_owned(), "secret-host:80".to_owned());
    job.run(&[]).await?.with(2).saying(&["COMPLETION_WEBHOOK_URL", "http://"]).without(&["secret-host"]);
    job.env.remove("COMPLETION_WEBHOOK_URL");

    // Nobody at the broker's address.
    let port = job.env.insert("RABBITMQ_PORT".to_owned(), "1".to_owned()).unwrap_or_default();
    job.run(&["--wait", "0"]).await?.with(2).saying(&["127.0.0.1:1"]);
    job.env.insert("RABBITMQ_PORT".to_owned(), port);

    let first = {
        let (state, queues) = (text(job.directory()), "nobody");
        let mut first =
            job.start_with(&["run", &folder, "--state", &state, "--expect-queues", queues, "--wait", "60"])?;
        first.until("started", |first| first.port().is_some()).await?;
        first
    };
    job.run(&[]).await?.with(2).saying(&["another extractor is using it"]);
    first.signal("TERM")?;
    first.ended().await?.with(2).saying(&["nobody-artists"]);
    for t in DataType::ALL {
        assert_eq!(job.stage.ready_count(&job.stage.topology(ONE, t).queue).await?, 0, "{t} was published");
    }
    job.run(&[]).await?.with(0);
    job.stage.clean_up().await
}

// ------------------------------------------------------------------------------------------------- watching

#[tokio::test(flavor = "multi_thread")]
async fn metrics_and_health_follow_the_run() -> Result<(), Error> {
    let mut job = Job::new("watched", ONE).await?;
    let expected = job.folder.generate(1500, 14)?;
    let proxy = job.through_proxy(300_000).await?;
    let mut running = job.start(&[])?;
    let releases = r#"data_type="releases""#;
    let labels = r#"data_type="labels""#;
    let outcome = r#"outcome="published""#;
    let count = expected[DataType::Releases.index()].len() as f64;
    running.until("in mid-run", |e| e.metric("records_extracted_total", &[releases, outcome]) > 0.0).await?;
    let published = running.metric("records_extracted_total", &[releases, outcome]);
    assert!(published < count, "{published} of {count}");
    running.until("done with the labels", |e| e.metric("file_complete", &[labels]) == 1.0).await?;
    let labels_published = running.metric("records_extracted_total", &[labels, outcome]);
    assert_eq!(labels_published, expected[DataType::Labels.index()].len() as f64);
    assert_eq!(running.metric("file_complete", &[releases]), 0.0);
    let size = fs::metadata(job.folder.file(DataType::Releases, "xml.gz"))?.len();
    assert_eq!(running.metric("dump_bytes", &[releases]), size as f64);
    let read = running.metric("dump_read_bytes_total", &[releases]);
    assert!(read > 0.0 && read <= size as f64, "{read} of {size}");
    assert!(running.metric("published_bytes_total", &[releases]) > 0.0);
    let (code, text) = running.get("/metrics")?;
    assert!(code == 200 && text.contains("# HELP records_extracted_total"), "{text}");

    let (code, body) = running.get("/health")?;
    let health: Value = serde_json::from_str(&body)?;
    assert_eq!((code, &health["status"], &health["service"]), (200, &json!("healthy"), &json!("extractor")));
    let file = &health["files"]["labels"];
    assert_eq!(file["file"], format!("discogs_{MONTH}_labels.xml.gz"));
    assert_eq!((&file["complete"], &file["published"]), (&json!(true), &json!(expected[1].len())));
    assert_eq!(health["files"]["releases"]["complete"], false);
    assert!(health["files"]["releases"]["published"].as_f64() < Some(count), "{health}");
    proxy.pace(u64::MAX);
    running.ended().await?.with(0);
    take_all(&job, &expected).await?;
    job.stage.clean_up().await
}

/// A web server that answers with these codes and then with 200, and keeps what it was sent.
struct Hook {
    url: String,
    requests: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Hook {
    fn start(codes: &'static [u16]) -> Result<Hook, Error> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("http://127.0.0.1:{}/hook?token=secret", listener.local_addr()?.port());
        let requests: Arc<Mutex<Vec<(String, Value)>>> = Arc::default();
        let kept = Arc::clone(&requests);
        std::thread::spawn(move || {
            let codes = codes.iter().copied().chain(std::iter::repeat(200));
            for (stream, code) in listener.incoming().zip(codes) {
                let Ok(request) = stream.and_then(|stream| answer(stream, code)) else { continue };
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(request);
            }
        });
        Ok(Hook { url, requests })
    }

    fn requests(&self) -> Vec<(String, Value)> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn answer(mut stream: std::net::TcpStream, code: u16) -> std::io::Result<(String, Value)> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut head, mut length) = (String::new(), 0);
    while reader.read_line(&mut head)? > 2 {
        let line = head.lines().last().unwrap_or_default().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    write!(stream, "HTTP/1.1 {code} Hm\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
    Ok((head, serde_json::from_slice(&body)?))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_webhook_gets_one_event_for_the_whole_run() -> Result<(), Error> {
    let mut job = Job::new("webhook", ONE).await?;
    let hook = Hook::start(&[500, 301])?;
    job.env.insert("COMPLETION_WEBHOOK_URL".to_owned(), hook.url.clone());
    let spec = Spec { seed: 13, records: 300, month: 1, changed: 0.0, removed: 0.0 };
    let first = job.folder.generate_month(&spec, MONTH)?;
    let ended = job.run(&[]).await?.with(0).without(&["warning", "token=secret"]);
    assert!(ended.out.contains("the workers were told"), "{}", ended.out);
    let requests = hook.requests();
    assert_eq!(requests.len(), 3, "two attempts that failed, and the one that did not");
    assert!(requests.iter().all(|(_, event)| *event == requests[0].1), "every attempt carries the same event");
    let (head, event) = &requests[2];
    assert!(head.starts_with("POST /hook?token=secret HTTP/1.1\r\n"), "{head}");
    assert!(head.to_ascii_lowercase().contains("content-type: application/json"), "{head}");
    let run = &event["run"];
    assert_eq!((&event["event"], &run["version"]), (&json!("extraction_complete"), &json!(MONTH)));
    assert_eq!((&run["previous_version"], &run["warnings"]), (&Value::Null, &json!([])));
    assert_eq!(run["started_at"], job.state(MONTH)?.started_at);
    for t in DataType::ALL {
        let count = first[t.index()].len();
        let counts = json!({"records": count, "published": count, "skipped": 0, "rejected": 0, "previous": null});
        assert_eq!(run["types"][t.name()], counts, "{t}");
    }
    // Nothing new, nobody to tell.
    job.run(&[]).await?.with(0);
    assert_eq!(hook.requests().len(), 3);

    // The next month, with fewer records of every type.
    let smaller = Spec { records: 100, ..spec };
    let second = job.folder.generate_month(&smaller, "20260201")?;
    let ended = job.run(&[]).await?.with(0).saying(&["releases shrank: ", "against 20260101"]);
    assert_eq!(hook.requests().len(), 4);
    let run = &hook.requests()[3].1["run"];
    assert_eq!((&run["version"], &run["previous_version"]), (&json!("20260201"), &json!(MONTH)));
    for t in DataType::ALL {
        let (count, before) = (second[t.index()].len(), first[t.index()].len());
        assert!(count < before);
        let counts = json!({"records": count, "published": count, "skipped": 0, "rejected": 0, "previous": before});
        assert_eq!(run["types"][t.name()], counts, "{t}");
        let warning = format!("{t} shrank: {count} records, {before} in 20260101");
        assert!(ended.out.contains(&warning), "{warning}: {}", ended.out);
        assert!(run["warnings"].to_string().contains(&warning), "{run}");
    }
    job.stage.clean_up().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_is_away_fails_nothing_and_stays_secret() -> Result<(), Error> {
    let mut job = Job::new("nohook", ONE).await?;
    let expected = job.folder.generate(50, 13)?;
    let dead = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    job.env.insert("COMPLETION_WEBHOOK_URL".to_owned(), format!("http://user:pw@127.0.0.1:{dead}/hook?token=secret"));
    let ended = job.run(&[]).await?.with(0);
    let ended = ended.saying(&["warning: COMPLETION_WEBHOOK_URL could not be called"]);
    ended.without(&["token=secret", "user:pw", &dead.to_string()]);
    take_all(&job, &expected).await?;
    // It is not announced again only because nobody answered.
    job.run(&[]).await?.with(0).saying(&["--force"]);
    job.stage.clean_up().await
}

/// A web server that takes requests and does not answer.
fn silent() -> Result<(String, TcpListener), Error> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    Ok((format!("http://127.0.0.1:{}/hook?token=secret", listener.local_addr()?.port()), listener))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_is_silent_holds_nobody_up_and_is_told_by_the_next_run() -> Result<(), Error> {
    let mut job = Job::new("owed", ONE).await?;
    let expected = job.folder.generate(50, 13)?;
    let (url, _listener) = silent()?;
    job.env.insert("COMPLETION_WEBHOOK_URL".to_owned(), url);
    let began = std::time::Instant::now();
    let ended = job.run(&[]).await?.with(0);
    assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed()); // 33 s and more before
    ended.saying(&["could not be called: no answer within 10 s; the next run tries again"]).without(&["token=secret"]);
    take_all(&job, &expected).await?;
    let owed = job.state(MONTH)?.owed.ok_or("nothing is owed")?;
    assert_eq!(owed["run"]["started_at"], job.state(MONTH)?.started_at);

    // Who is called by nobody is owed it still.
    let url = job.env.remove("COMPLETION_WEBHOOK_URL").unwrap_or_default();
    job.run(&[]).await?.with(0).saying(&["--force"]).without(&["warning"]);
    assert_eq!(job.state(MONTH)?.owed.as_ref(), Some(&owed));
    // Again nobody answers, until somebody does. The broker is not needed for that.
    job.env.insert("COMPLETION_WEBHOOK_URL".to_owned(), url);
    job.run(&[]).await?.with(0).saying(&["the next run tries again"]);
    let hook = Hook::start(&[500])?;
    job.env.insert("COMPLETION_WEBHOOK_URL".to_owned(), hook.url.clone());
    job.env.insert("RABBITMQ_PORT".to_owned(), "1".to_owned());
    job.run(&[]).await?.with(0).saying(&["--force", &format!("was told of dump {MONTH}")]).without(&["warning"]);
    assert_eq!(hook.requests().into_iter().map(|(_, event)| event).collect::<Vec<_>>(), [owed.clone(), owed]);
    assert_eq!(job.state(MONTH)?.owed, None);
    job.run(&[]).await?.with(0);
    assert_eq!(hook.requests().len(), 2, "it is told once");
    job.stage.clean_up().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_killed_while_it_calls_the_webhook_owes_it() -> Result<(), Error> {
    let mut job = Job::new("calling", ONE).await?;
    let expected = job.folder.generate(50, 13)?;
    let (url, listener) = silent()?;
    job.env.insert("COMPLETION_WEBHOOK_URL".to_owned(), url);
    let running = job.start(&[])?;
    let _call = tokio::task::spawn_blocking(move || listener.accept()).await??;
    running.signal("KILL")?;
    assert_eq!(running.ended().await?.status.code(), None, "it ended before it was killed");
    let end = take_all(&job, &expected).await?;
    let hook = Hook::start(&[])?;
    job.env.insert("COMPLETION_WEBHOOK_URL".to_owned(), hook.url.clone());
    job.run(&[]).await?.with(0).saying(&["--force"]);
    let requests = hook.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].1["run"]["started_at"], end["started_at"]);
    for t in DataType::ALL {
        assert!(job.take(ONE, t).await?.0.is_empty(), "{t}: it was published again");
    }
    job.stage.clean_up().await
}

// ------------------------------------------------------------------------------------------------- workers

#[tokio::test(flavor = "multi_thread")]
async fn packed_bodies_end_in_the_same_tables_and_graph() -> Result<(), Error> {
    for (encoding, seed) in [("gzip", 21), ("zstd", 22)] {
        let stage = Stage::with_graph("packed").await?;
        let limit = ("MAX_BODY_BYTES", "1048576");
        let mut tables = stage.start("tableinator", &[limit]).await?;
        let mut graph = stage.start("graphinator", &[limit]).await?;
        let mut job = Job::on(stage, "packed", BOTH)?;
        let bodies = job.folder.generate(600, seed)?;
        let count: usize = bodies.iter().map(Vec::len).sum();
        job.run(&["--compress", encoding]).await?.with(0);
        settled(&mut tables, count).await?;
        settled(&mut graph, count).await?;
        run_maintained(&job.stage, MONTH).await?;
        let [artists, labels, masters, releases] = bodies;
        let expected = oracle::maintained(&oracle::expected(&Messages { artists, labels, masters, releases }));
        states::compare_tables(&states::read_tables(&job.stage.postgres().await?).await?, &expected.tables)?;
        let (nodes, rels) = states::read_graph(&services().neo4j()?).await?;
        states::compare_graph(&nodes, &rels, &expected)?;

        // What can't be unpacked, or would fill the memory, goes aside as it is; what comes before and after is written.
        let neighbour = |id: &str| format!(r#"{{"type":"data","id":"{id}","sha256":"x","id":"{id}","name":"N"}}"#);
        let bomb = pack(encoding, &[b" ".repeat(2 << 20), neighbour("bomb").into_bytes()].concat())?;
        assert!(bomb.len() < 8192, "{}", bomb.len());
        let mut damaged = pack(encoding, neighbour("damaged").repeat(20).as_bytes())?;
        damaged.truncate(damaged.len() - 12);
        let messages = [pack(encoding, neighbour("before").as_bytes())?, bomb.clone(), damaged.clone()];
        for body in messages.iter().chain([&pack(encoding, neighbour("behind").as_bytes())?]) {
            publish(&job.stage, DataType::Labels, body, encoding).await?;
        }
        let end = xtask::sample::file_complete(DataType::Labels, MONTH, 4);
        publish(&job.stage, DataType::Labels, &pack(encoding, &end)?, encoding).await?;
        for (name, worker) in [("tableinator", &mut tables), ("graphinator", &mut graph)] {
            controlled(worker, DataType::Labels, 3.0).await?;
            let letters = job.stage.dead_letters(name, DataType::Labels).await?;
            let letters: Vec<_> = letters.iter().map(|l| (l.header("dead-letter-reason"), &l.body)).collect();
            let expected = [("body_too_large".to_owned(), &bomb), ("invalid_encoding".to_owned(), &damaged)];
            assert_eq!(letters, expected, "{name} {encoding}");
        }
        let rows = "SELECT string_agg(data_id, ' ' ORDER BY data_id) FROM labels WHERE data->>'name' = 'N'";
        let row = job.stage.postgres().await?.query_one(rows, &[]).await?;
        assert_eq!(row.get::<_, Option<&str>>(0), Some("before behind"), "{encoding}");
        for worker in [tables, graph] {
            assert_eq!(worker.stop().await?.code(), Some(0));
        }
        job.workers = "none";
        job.stage.clean_up().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn packed_bodies_say_how_they_are_packed() -> Result<(), Error> {
    let job = Job::new("packing", ONE).await?;
    let expected = job.folder.generate(100, 23)?;
    for encoding in ["gzip", "zstd"] {
        job.run(&["--compress", encoding, "--force"]).await?.with(0);
        for t in DataType::ALL {
            let mut taken = job.take(ONE, t).await?;
            for message in &mut taken.0 {
                let properties = BasicProperties::default()
                    .with_content_type("application/json".into())
                    .with_content_encoding(encoding.into())
                    .with_delivery_mode(2);
                assert_eq!(message.properties, properties, "{t}");
                message.data = unpack(encoding, &message.data)?;
            }
            Taken(taken.0).assert_whole(&format!("{encoding} {t}"), &expected[t.index()])?;
        }
    }
    job.stage.clean_up().await
}

fn pack(encoding: &str, body: &[u8]) -> Result<Vec<u8>, Error> {
    packed(body, if encoding == "gzip" { ".gz" } else { ".zst" })
}

fn unpack(encoding: &str, body: &[u8]) -> Result<Vec<u8>, Error> {
    if encoding == "zstd" {
        return Ok(zstd::decode_all(body)?);
    }
    let mut out = Vec::new();
    flate2::read::GzDecoder::new(body).read_to_end(&mut out)?;
    Ok(out)
}

async fn publish(stage: &Stage, t: DataType, body: &[u8], encoding: &str) -> Result<(), Error> {
    let properties = xtask::feed::properties().with_content_encoding(encoding.into());
    let exchange = stage.topology("", t).data_exchange;
    let options = BasicPublishOptions::default();
    stage.channel.basic_publish(exchange.as_str().into(), "".into(), options, body, properties).await?.await?;
    Ok(())
}
