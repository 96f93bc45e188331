//! One trace per batch, sent to a receiver that speaks OpenTelemetry's protocol, and what happens when there is none.

use std::net::TcpListener;
use std::time::Duration;

use common::DataType;
use integration_tests::otlp::{Receiver, Trace, number, text};
use integration_tests::stage::{PATIENT, controlled, services, settled, stop_clean};
use integration_tests::{Error, Stage};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::Value;
use tokio::time::{Instant, timeout};
use xtask::{feed, sample};

/// What nobody may ever see.
const KEY: &str = "key-of-the-receiver";
const MANY: usize = 150;

/// Properties of a message whose producer was in this trace, at span `n`.
fn from(trace: char, n: usize) -> BasicProperties {
    let parent = format!("00-{}-{n:016x}-01", trace.to_string().repeat(32));
    with_headers(&[("traceparent", &parent), ("tracestate", "vendor=x")])
}

fn with_headers(headers: &[(&str, &str)]) -> BasicProperties {
    let mut table = FieldTable::default();
    for (name, value) in headers {
        table.insert((*name).into(), AMQPValue::LongString((*value).into()));
    }
    feed::properties().with_headers(table)
}

async fn publish(
    stage: &Stage,
    data_type: DataType,
    messages: impl IntoIterator<Item = (Vec<u8>, BasicProperties)>,
) -> Result<(), Error> {
    feed::publish_each(&stage.channel, &format!("{}-{data_type}", stage.prefix), messages).await?;
    Ok(())
}

/// Asserts what holds for each batch that is written at once.
fn check(trace: &Trace, queue: &str, records: usize, trigger: &str) {
    let attributes = &trace.root.attributes;
    assert_eq!(trace.root.name, "batch");
    for (key, value) in
        [("messaging.system", "rabbitmq"), ("messaging.destination.name", queue), ("batch.trigger", trigger)]
    {
        assert_eq!(text(attributes, key), value, "{key}");
    }
    assert_eq!(number(attributes, "batch.records"), records as i64);
    assert!(number(attributes, "batch.bytes") > 0);
    for name in ["wait", "decode", "ack"] {
        assert_eq!(trace.named(name).len(), 1, "{name}");
    }
    let [wait, ack] = ["wait", "ack"].map(|name| trace.named(name)[0]);
    let writes = trace.named("write");
    assert!(!writes.is_empty(), "nothing was written");
    for write in writes {
        assert!(wait.end_time_unix_nano <= write.start_time_unix_nano, "written before it was closed");
        assert!(write.end_time_unix_nano <= ack.start_time_unix_nano, "acknowledged before it was written");
    }
}

fn linked(trace: &Trace) -> Vec<(String, u64)> {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let span = |bytes: &[u8]| bytes.iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
    trace.root.links.iter().map(|link| (hex(&link.trace_id), span(&link.span_id))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tableinator_traces_its_batches() -> Result<(), Error> {
    let stage = Stage::new("traced").await?;
    let receiver = Receiver::start()?;
    let headers = format!("authorization=Bearer%20{KEY}");
    let on = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint.as_str()),
        ("OTEL_EXPORTER_OTLP_HEADERS", headers.as_str()),
        ("OTEL_SERVICE_NAME", "tables"),
        ("POSTGRES_BATCH_SIZE", "150"),
    ];
    let mut worker = stage.start("tableinator", &[&PATIENT[..], &on].concat()).await?;

    // A batch of more producers than a span has links.
    let artists = sample::of_type(1, DataType::Artists, MANY)?;
    publish(&stage, DataType::Artists, artists.into_iter().zip((1..).map(|n| from('a', n)))).await?;
    settled(&mut worker, MANY).await?;

    // A batch that is tried again, refused, split, and of which two are dead-lettered.
    let mut labels = sample::of_type(1, DataType::Labels, 8)?;
    let culprit: Value = serde_json::from_slice(&labels[5])?;
    let postgres = stage.postgres().await?;
    postgres
        .batch_execute(&format!(
            "CREATE SEQUENCE tries; CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
               IF nextval('tries') = 1 THEN RAISE 'again' USING ERRCODE = '40001'; END IF;
               IF NEW.data_id = '{}' THEN RAISE 'never' USING ERRCODE = '22023'; END IF;
               RETURN NEW; END $$;
             CREATE TRIGGER refuse BEFORE INSERT ON labels FOR EACH ROW EXECUTE FUNCTION refuse()",
            culprit["id"].as_str().ok_or("no id")?
        ))
        .await?;
    labels.push(b"no record".to_vec());
    let producers = [from('b', 1), from('b', 2), from('b', 1), with_headers(&[("traceparent", "00-nonsense")])];
    let properties = producers.into_iter().chain(std::iter::repeat(feed::properties()));
    publish(&stage, DataType::Labels, labels.into_iter().zip(properties)).await?;
    stage.publish(DataType::Labels, [sample::file_complete(DataType::Labels, "20260101", 8)]).await?;
    controlled(&mut worker, DataType::Labels, 1.0).await?;

    let traces = receiver.traces(2).await?;
    let [artists, labels] = traces.as_slice() else { panic!("{} traces", traces.len()) };
    assert_ne!(artists.root.trace_id, labels.root.trace_id);
    check(artists, &stage.topology("tableinator", DataType::Artists).queue, MANY, "count");
    assert_eq!(artists.phases(), [["known", "copy", "commit"]]);
    assert_eq!(number(&artists.root.attributes, "batch.inserted"), MANY as i64);
    let expected: Vec<_> = (1..=128).map(|n| ("a".repeat(32), n)).collect();
    assert_eq!(linked(artists), expected);
    assert_eq!(artists.root.dropped_links_count, MANY as u32 - 128);
    assert_eq!(artists.root.links[0].trace_state, "vendor=x");

    check(labels, &stage.topology("tableinator", DataType::Labels).queue, 9, "drain");
    assert_eq!(linked(labels), [("b".repeat(32), 1), ("b".repeat(32), 2)]);
    // Eight, eight again, and then halves down to the one: 4, 4, 2, 2, 1, 1.
    assert_eq!(labels.events("retry"), 1);
    assert_eq!(labels.events("bisect"), 3);
    assert_eq!(labels.events("dead_letter"), 2);
    let writes = labels.named("write");
    assert_eq!(writes.len(), 8);
    let failed: Vec<_> =
        writes.iter().map(|write| text(&write.attributes, "error.type")).filter(|t| !t.is_empty()).collect();
    assert_eq!(failed, ["40001", "22023", "22023", "22023", "22023"]);
    for (key, count) in
        [("batch.inserted", 7), ("batch.updated", 0), ("batch.unchanged", 0), ("batch.dead_lettered", 2)]
    {
        assert_eq!(number(&labels.root.attributes, key), count, "{key}");
    }

    let requests = receiver.requests();
    let password = services().get("POSTGRES_PASSWORD");
    for request in &requests {
        assert!(request.head.contains(&format!("authorization: Bearer {KEY}")), "{}", request.head);
        let resource = request.export.resource_spans[0].resource.as_ref().ok_or("no resource")?;
        assert_eq!(text(&resource.attributes, "service.name"), "tables");
        let body = String::from_utf8_lossy(&request.body);
        assert!(!body.contains(KEY) && !body.contains(password), "a secret was sent");
    }
    let log = worker.log_text();
    let ids: Vec<String> =
        traces.iter().map(|t| t.root.trace_id.iter().map(|b| format!("{b:02x}")).collect()).collect();
    assert!(ids.iter().all(|id| log.contains(&format!(r#""trace_id":"{id}""#))), "the log names no trace");
    for shown in [log, worker.get("/status")?.1, worker.get("/metrics")?.1] {
        assert!(!shown.contains(KEY), "the key is shown: {shown}");
    }
    let (code, found) = stage.check("tableinator", &on)?;
    assert!(code == 0 && found.contains("ok   traces: http") && !found.contains(KEY), "{found}");
    let exported = receiver.spans().len() as f64;
    worker
        .until("counted", Duration::from_secs(10), |w| w.metric("trace_spans_exported_total", &[]) == exported)
        .await?;
    assert_eq!(worker.metric("trace_spans_dropped_total", &[]), 0.0);
    stop_clean(&stage, "tableinator", worker).await?;
    stage.clean_up().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_graphinator_traces_its_batches() -> Result<(), Error> {
    let stage = Stage::with_graph("traced_graph").await?;
    let receiver = Receiver::start()?;
    let on = [("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint.as_str()), ("NEO4J_BATCH_SIZE", "20")];
    let mut worker = stage.start("graphinator", &[&PATIENT[..], &on].concat()).await?;
    let releases = sample::of_type(1, DataType::Releases, 20)?;
    let messages = |span: usize| releases.iter().cloned().map(move |body| (body, from('c', span)));
    publish(&stage, DataType::Releases, messages(1)).await?;
    settled(&mut worker, 20).await?;
    publish(&stage, DataType::Releases, messages(2)).await?;
    settled(&mut worker, 40).await?;
    let status = worker.stop().await?;
    assert_eq!(status.code(), Some(0));

    // The end of the worker has sent what was left.
    let traces = receiver.traces(2).await?;
    let [new, unchanged] = traces.as_slice() else { panic!("{} traces", traces.len()) };
    for (trace, span) in [(new, 1), (unchanged, 2)] {
        check(trace, &stage.topology("graphinator", DataType::Releases).queue, 20, "count");
        assert_eq!(linked(trace), [("c".repeat(32), span)]);
    }
    assert_eq!(new.phases()[0][..3], ["check", "merge", "commit"]);
    assert_eq!(unchanged.phases(), [["check", "commit"]]);
    assert_eq!(number(&new.root.attributes, "batch.inserted"), 20);
    assert_eq!(number(&unchanged.root.attributes, "batch.unchanged"), 20);
    let requests = receiver.requests();
    let resource = requests[0].export.resource_spans[0].resource.as_ref().ok_or("no resource")?;
    assert_eq!(text(&resource.attributes, "service.name"), "graphinator");
    stage.clean_up().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_is_away_holds_nothing_up() -> Result<(), Error> {
    // One that nobody listens at, and one that takes connections and never answers.
    let refused = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let silent = TcpListener::bind("127.0.0.1:0")?;
    for (address, says_so_at_once) in [(refused, true), (silent.local_addr()?, false)] {
        let stage = Stage::new("untraced").await?;
        let endpoint = format!("http://{address}");
        let on = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("POSTGRES_BATCH_SIZE", "10")];
        let mut worker = stage.start("tableinator", &on).await?;
        stage.publish(DataType::Artists, sample::of_type(1, DataType::Artists, 500)?).await?;
        settled(&mut worker, 500).await?;
        if says_so_at_once {
            let lost =
                |w: &xtask::process::Worker| w.metric("trace_spans_dropped_total", &[r#"reason="export""#]) > 0.0;
            worker.until("losing spans", Duration::from_secs(30), lost).await?;
            stage.publish(DataType::Labels, sample::of_type(1, DataType::Labels, 100)?).await?;
            settled(&mut worker, 600).await?;
        }
        if says_so_at_once {
            let (code, found) = stage.check("tableinator", &on)?;
            assert!(code == 0 && found.contains("note traces: http"), "{found}");
        }
        let stopping = Instant::now();
        let log = worker.log.clone();
        assert_eq!(timeout(Duration::from_secs(30), worker.stop()).await??.code(), Some(0));
        assert!(stopping.elapsed() < Duration::from_secs(20), "the receiver held the end up");
        let said = std::fs::read_to_string(log)?.matches("Spans were lost").count();
        assert_eq!(said, 1, "warnings");
        stage.clean_up().await?;
    }
    Ok(())
}
