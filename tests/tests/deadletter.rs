//! `WORKER deadletter`: dead letters are listed, shown, replayed and deleted, and what is not meant stays in its place.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

use common::DataType;
use integration_tests::stage::{binary, settled};
use integration_tests::{Error, Stage};
use lapin::options::{
    BasicGetOptions, BasicNackOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Confirmation};
use serde_json::{Value, json};
use xtask::feed;

const TABLEINATOR: &str = "tableinator";
const GRAPHINATOR: &str = "graphinator";

/// Exit status, standard output, standard error.
type Output = (i32, String, String);

/// Runs the subcommand with nothing but the broker's settings.
fn deadletter(stage: &Stage, worker: &str, arguments: &str) -> Result<Output, Error> {
    let mut env: BTreeMap<_, _> = stage.env(&[]);
    env.retain(|name, _| name.starts_with("RABBITMQ") || name == "DISCOGS_EXCHANGE_PREFIX");
    run(&env, worker, arguments)
}

fn run(env: &BTreeMap<String, String>, worker: &str, arguments: &str) -> Result<Output, Error> {
    let mut command = Command::new(binary(worker));
    command.arg("deadletter").args(arguments.split_whitespace()).env_clear().envs(env).stdin(Stdio::null());
    let out = command.output()?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Ok((out.status.code().unwrap_or(-1), text(&out.stdout), text(&out.stderr)))
}

/// Like [`deadletter`], must succeed.
fn good(stage: &Stage, worker: &str, arguments: &str) -> Result<String, Error> {
    let (code, out, err) = deadletter(stage, worker, arguments)?;
    assert_eq!((code, err.as_str()), (0, ""), "{arguments}: {out}");
    Ok(out)
}

fn listed(stage: &Stage, worker: &str, filter: &str) -> Result<Value, Error> {
    Ok(serde_json::from_str(&good(stage, worker, &format!("list --format json {filter}"))?)?)
}

fn ids(list: &Value) -> Vec<String> {
    let messages = list["messages"].as_array().into_iter().flatten();
    messages.map(|m| m["id"].as_str().unwrap_or("-").to_owned()).collect()
}

fn record(id: &str, name: &str) -> String {
    format!(r#"{{"type":"data","id":"{id}","sha256":"h{id}","id":"{id}","name":"{name}"}}"#)
}

fn headers(pairs: &[(&str, &str)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in pairs {
        table.insert((*name).into(), AMQPValue::LongString((*value).into()));
    }
    table
}

/// A dead letter as our workers write it, put into the queue by the test. `age` in seconds.
async fn put(stage: &Stage, worker: &str, t: DataType, id: &str, reason: &str, age: i64) -> Result<(), Error> {
    let time = (chrono::Utc::now() - chrono::TimeDelta::seconds(age)).to_rfc3339();
    let ours = [
        ("dead-letter-reason", reason),
        ("dead-letter-code", "X1"),
        ("dead-letter-id", id),
        ("dead-letter-time", time.as_str()),
        ("dead-letter-queue", "from here"),
        ("theirs", "kept"),
    ];
    let properties = feed::properties().with_headers(headers(&ours)).with_message_id(format!("m{id}").into());
    let queue = stage.topology(worker, t).dead_letter_queue;
    publish(stage, &queue, record(id, "x").as_bytes(), properties).await
}

async fn publish(stage: &Stage, queue: &str, body: &[u8], properties: BasicProperties) -> Result<(), Error> {
    stage.channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    match stage.channel.basic_publish("".into(), queue.into(), options, body, properties).await?.await? {
        Confirmation::Ack(None) => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

#[tokio::test]
async fn lists_filters_and_leaves_everything_in_its_place() -> Result<(), Error> {
    let stage = Stage::new("dl_list").await?;
    stage.declare(TABLEINATOR).await?;
    for number in 0..20 {
        let reason = if number % 2 == 0 { "write_refused" } else { "invalid_id" };
        put(&stage, TABLEINATOR, DataType::Artists, &number.to_string(), reason, number * 60 + 30).await?;
    }
    put(&stage, TABLEINATOR, DataType::Releases, "r\u{1b}[31m", "write_refused", 0).await?;
    let dead = stage.topology(TABLEINATOR, DataType::Labels).dead_letter_queue;
    publish(&stage, &dead, b"\xffnonsense", BasicProperties::default()).await?;

    let all = listed(&stage, TABLEINATOR, "")?;
    let counts = json!([
        {"type": "artists", "reason": "invalid_id", "count": 10},
        {"type": "artists", "reason": "write_refused", "count": 10},
        {"type": "labels", "reason": "unknown", "count": 1},
        {"type": "releases", "reason": "write_refused", "count": 1},
    ]);
    assert_eq!(all["counts"], counts);
    assert_eq!(
        (all["messages"][3]["code"].as_str(), all["messages"][3]["queue"].as_str()),
        (Some("X1"), Some("from here"))
    );
    assert!(all["messages"][3]["age_seconds"].as_u64().is_some_and(|age| (210..230).contains(&age)), "{all}");
    let limited = listed(&stage, TABLEINATOR, "--limit 3 --type artists --reason invalid_id")?;
    assert_eq!((ids(&limited), limited["more"].as_u64()), (["1", "3", "5"].map(str::to_owned).to_vec(), Some(7)));
    assert_eq!(ids(&listed(&stage, TABLEINATOR, "--older-than 18m")?), ["18", "19"]);
    assert_eq!(ids(&listed(&stage, TABLEINATOR, "--newer-than 2m --type artists")?), ["0", "1"]);
    assert_eq!(ids(&listed(&stage, TABLEINATOR, "--id 7")?), ["7"]);
    let table = good(&stage, TABLEINATOR, "list")?;
    assert!(table.contains("       10  artists   invalid_id") && table.contains("18m30s"), "{table}");
    assert!(!table.contains('\u{1b}') && table.contains("r\\u{1b}[31m"), "{table}");

    let shown = good(&stage, TABLEINATOR, "show --id 7")?;
    for part in ["header dead-letter-code: X1", "header theirs: kept", "message_id: m7", "\n  \"sha256\": \"h7\",\n"] {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
    assert_eq!(good(&stage, TABLEINATOR, "show --type artists --limit 2")?.matches("===").count(), 2);
    assert!(good(&stage, TABLEINATOR, "show --type labels")?.contains("\\xffnonsense"));
    assert!(good(&stage, TABLEINATOR, "replay --dry-run --limit 5")?.contains("5  would be replayed"));

    // After all this: the same messages in the same order, and none in the main queue.
    let letters = stage.dead_letters(TABLEINATOR, DataType::Artists).await?;
    let order: Vec<_> = letters.iter().map(|letter| letter.header("dead-letter-id")).collect();
    assert_eq!(order, (0..20).map(|n| n.to_string()).collect::<Vec<_>>());
    for t in DataType::ALL {
        assert_eq!(stage.ready_count(&stage.topology(TABLEINATOR, t).queue).await?, 0);
    }
    stage.clean_up().await
}

#[tokio::test]
async fn replays_into_its_own_queue_alone_and_without_our_headers() -> Result<(), Error> {
    let stage = Stage::new("dl_replay").await?;
    for worker in [TABLEINATOR, GRAPHINATOR] {
        stage.declare(worker).await?;
    }
    for number in 0..6 {
        let reason = if number % 2 == 0 { "write_refused" } else { "invalid_id" };
        put(&stage, GRAPHINATOR, DataType::Masters, &number.to_string(), reason, 0).await?;
    }
    let out = good(&stage, GRAPHINATOR, "replay --reason write_refused --limit 2")?;
    assert!(out.contains("2  masters   write_refused") && out.contains("2  replayed"), "{out}");

    let ours = stage.topology(GRAPHINATOR, DataType::Masters);
    let replayed = stage.drain(&ours.queue).await?;
    assert_eq!(replayed.len(), 2);
    for (message, id) in replayed.iter().zip(["0", "2"]) {
        let expected =
            feed::properties().with_headers(headers(&[("theirs", "kept")])).with_message_id(format!("m{id}").into());
        assert_eq!((message.data.as_slice(), &message.properties), (record(id, "x").as_bytes(), &expected));
    }
    assert_eq!(
        stage.ready_count(&stage.topology(TABLEINATOR, DataType::Masters).queue).await?,
        0,
        "the other worker's"
    );
    assert_eq!(ids(&listed(&stage, GRAPHINATOR, "")?), ["1", "3", "4", "5"]);

    // Without the queue nothing is replayed, nothing is lost, and the exit status says so.
    stage.channel.queue_delete(ours.queue.as_str().into(), QueueDeleteOptions::default()).await?;
    let (code, out, _) = deadletter(&stage, GRAPHINATOR, "replay")?;
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("4  not replayed") && out.contains("NO_ROUTE"), "{out}");
    assert_eq!(ids(&listed(&stage, GRAPHINATOR, "")?), ["1", "3", "4", "5"]);
    stage.clean_up().await
}

#[tokio::test]
async fn what_the_broker_dead_lettered_is_told_and_replayed() -> Result<(), Error> {
    let stage = Stage::new("dl_broker").await?;
    stage.declare(TABLEINATOR).await?;
    let t = stage.topology(TABLEINATOR, DataType::Labels);
    stage.publish(DataType::Labels, [record("5", "x")]).await?;
    while let Some(message) = stage.channel.basic_get(t.queue.as_str().into(), BasicGetOptions::default()).await? {
        message.delivery.acker.nack(BasicNackOptions { requeue: true, ..BasicNackOptions::default() }).await?;
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    for _ in 0..100 {
        if stage.ready_count(&t.dead_letter_queue).await? == 1 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let list = listed(&stage, TABLEINATOR, "--newer-than 1m")?;
    let message = &list["messages"][0];
    assert_eq!((message["reason"].as_str(), message["id"].as_str()), (Some("delivery_limit"), Some("5")), "{list}");
    assert_eq!(message["queue"].as_str(), Some(t.queue.as_str()));
    assert!(good(&stage, TABLEINATOR, "show")?.contains("\"reason\":\"delivery_limit\""));
    good(&stage, TABLEINATOR, "replay --reason delivery_limit")?;
    let replayed = stage.drain(&t.queue).await?;
    assert_eq!((replayed.len(), &replayed[0].properties), (1, &feed::properties()));
    stage.clean_up().await
}

#[tokio::test]
async fn a_real_worker_takes_the_replayed_or_refuses_it_again() -> Result<(), Error> {
    let stage = Stage::new("dl_worker").await?;
    let mut worker = stage.start(TABLEINATOR, &[]).await?;
    let postgres = stage.postgres().await?;
    postgres.batch_execute("ALTER TABLE artists ADD CONSTRAINT no_cats CHECK (data->>'name' <> 'Cat')").await?;
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(record("8", "Cat").as_bytes())?;
    stage.publish(DataType::Artists, [record("7", "Cat"), record("9", "Dog"), "nonsense".to_owned()]).await?;
    let exchange = stage.topology(TABLEINATOR, DataType::Artists).data_exchange;
    let properties = feed::properties().with_content_encoding("gzip".into());
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let packed = packed.finish()?;
    stage.channel.basic_publish(exchange.as_str().into(), "".into(), options, &packed, properties).await?.await?;
    settled(&mut worker, 4).await?;
    let refused = |list: &Value| {
        let mut found = ids(list);
        found.sort();
        found
    };
    assert_eq!(refused(&listed(&stage, TABLEINATOR, "--reason write_refused")?), ["7", "8"]);

    // Still bad: it comes back, once, and the command does not run after it.
    let out = good(&stage, TABLEINATOR, "replay")?;
    assert!(out.contains("3  replayed"), "{out}");
    settled(&mut worker, 7).await?;
    let again = listed(&stage, TABLEINATOR, "")?;
    assert_eq!(refused(&again), ["-", "7", "8"], "{again}");

    postgres.batch_execute("ALTER TABLE artists DROP CONSTRAINT no_cats").await?;
    good(&stage, TABLEINATOR, "replay --reason write_refused")?;
    settled(&mut worker, 9).await?;
    let names = "SELECT string_agg(data_id || (data->>'name'), ' ' ORDER BY data_id) FROM artists";
    assert_eq!(postgres.query_one(names, &[]).await?.get::<_, String>(0), "7Cat 8Cat 9Dog");
    let rest = listed(&stage, TABLEINATOR, "")?;
    assert_eq!(rest["counts"], json!([{"type": "artists", "reason": "invalid_json", "count": 1}]));
    assert_eq!(worker.stop().await?.code(), Some(0));
    stage.clean_up().await
}

#[tokio::test]
async fn purge_deletes_what_is_meant_and_asks_before() -> Result<(), Error> {
    let stage = Stage::new("dl_purge").await?;
    stage.declare(TABLEINATOR).await?;
    for (id, reason) in [("1", "a"), ("2", "b"), ("3", "a"), ("4", "b")] {
        put(&stage, TABLEINATOR, DataType::Artists, id, reason, 0).await?;
    }
    let (code, out, err) = deadletter(&stage, TABLEINATOR, "purge --reason a")?;
    assert_eq!((code, out.as_str()), (2, ""), "no terminal");
    assert!(err.contains("--yes"), "{err}");
    assert_eq!(ids(&listed(&stage, TABLEINATOR, "")?).len(), 4);
    let out = good(&stage, TABLEINATOR, "purge --reason a --yes")?;
    assert!(out.contains("2  artists   a") && out.contains("2  deleted"), "{out}");
    assert_eq!(ids(&listed(&stage, TABLEINATOR, "")?), ["2", "4"]);

    // On a terminal, which `script` makes.
    for (answer, code, left) in [("n\n", 1, 2), ("y\n", 0, 0)] {
        let command = format!("'{}' deadletter purge", binary(TABLEINATOR).display());
        let mut script = Command::new("script");
        script.args(["-qec", &command, "/dev/null"]).envs(stage.env(&[])).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = script.spawn()?;
        child.stdin.take().ok_or("no input")?.write_all(answer.as_bytes())?;
        let out = child.wait_with_output()?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(text.contains("Delete these 2 messages for good?"), "{text}");
        assert_eq!((out.status.code(), ids(&listed(&stage, TABLEINATOR, "")?).len()), (Some(code), left), "{text}");
    }
    stage.clean_up().await
}

#[tokio::test]
async fn what_is_wrong_is_said_without_secrets() -> Result<(), Error> {
    let stage = Stage::new("dl_wrong").await?;
    let mut env = stage.env(&[("RABBITMQ_PORT", "1"), ("RABBITMQ_PASSWORD", "hush-hush")]);
    for worker in [TABLEINATOR, GRAPHINATOR] {
        let (code, out, err) = run(&env, worker, "list")?;
        assert_eq!((code, out.as_str()), (2, ""), "{err}");
        assert!(err.contains("RabbitMQ at 127.0.0.1:1: ") && !err.contains("hush-hush"), "{err}");
        let (code, out, err) = deadletter(&stage, worker, "list")?;
        assert_eq!((code, out.as_str()), (0, "no dead letters\n"), "{err}");
        assert_eq!(err.matches("there is no queue").count(), 4, "{err}");
        for wrong in ["", "list --type cats", "list --older-than 5", "replay --limit x", "purge --limit 1", "lost"] {
            let (code, _, err) = deadletter(&stage, worker, wrong)?;
            assert_eq!(code, 2, "{wrong}: {err}");
        }
        let (code, out, _) = deadletter(&stage, worker, "--help")?;
        assert_eq!(code, 0);
        assert!(out.contains("RABBITMQ_PASSWORD") && out.contains("replay"), "{out}");
    }
    env.insert("RABBITMQ_PORT".to_owned(), "many".to_owned());
    let (code, _, err) = run(&env, TABLEINATOR, "list")?;
    assert!(code == 2 && err.contains("RABBITMQ_PORT"), "{err}");
    stage.clean_up().await
}
