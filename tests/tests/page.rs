//! The workers' page at `/`, in a real browser.

use std::time::Duration;

use common::DataType;
use integration_tests::browser::Browser;
use integration_tests::stage::within;
use integration_tests::{Error, Stage};

const PATIENCE: Duration = Duration::from_secs(60);

fn record(id: usize, name: &str) -> Vec<u8> {
    format!(r#"{{"type":"data","id":"{id}","sha256":"{id}-{name}","id":"{id}","name":"{name}"}}"#).into_bytes()
}

/// The number in an element, without the commas between thousands; `None` while there is none.
fn number(browser: &Browser, selector: &str) -> Result<Option<f64>, Error> {
    Ok(browser.text(selector)?.replace(',', "").parse().ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_what_the_worker_does() -> Result<(), Error> {
    let stage = Stage::new("page").await?;
    let secret = stage.env(&[])["RABBITMQ_PASSWORD"].clone();
    // A value that would be an element if it were taken as HTML.
    let worker =
        stage.start("tableinator", &[("ENVIRONMENT", "<b id=injected>"), ("POSTGRES_BATCH_SIZE", "123")]).await?;
    let port = worker.port().ok_or("no port")?;
    let Some(browser) = Browser::start("the_page_shows_what_the_worker_does").await? else { return Ok(()) };
    browser.open(&format!("http://127.0.0.1:{port}/"))?;
    let shows = async |what: &str, selector: &str, expected: &str| {
        let check = async || Ok(browser.text(selector)?.contains(expected));
        within(PATIENCE, &format!("{what}: {expected} in {selector}"), check).await
    };
    shows("the service", "#service", "tableinator").await?;
    shows("the state", "#state", "ready").await?;
    shows("the version", "#version", common::VERSION).await?;
    shows("the broker", "#broker", "connected").await?;
    shows("the database", "#database", "connected").await?;
    shows("the turn", "#artists", "consumed here").await?;
    shows("no errors", "#errors", "none").await?;

    let published = stage.publish(DataType::Artists, (0..1234).map(|id| record(id, "a"))).await?;
    assert_eq!(published, 1234);
    let committed = async || Ok(number(&browser, "#artists td:nth-child(5)")? == Some(1234.0));
    within(PATIENCE, "1,234 committed", committed).await?;
    shows("an empty queue", "#drain", "empty").await?;
    shows("the time of a batch", "#latency", "ms").await?;
    // As long as something is written, there is a rate; and the curve has points.
    let mut version = 0;
    while number(&browser, "#rate")?.is_none_or(|rate| rate <= 0.0) {
        version += 1;
        assert!(version < 600, "no rate: {}", browser.text("body")?);
        stage.publish(DataType::Artists, [record(1, &version.to_string())]).await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let points = "document.querySelector('#artists polyline').getAttribute('points').split(' ').length";
    within(PATIENCE, "a curve", async || Ok(browser.eval(points)?.as_u64() > Some(1))).await?;

    // A warning, with text that comes from outside in it.
    let evil = r#"{"type":"extraction_complete","version":"<img src=x onerror=injected=1>","started_at":"<script>injected=1</script>"}"#;
    stage.publish(DataType::Labels, [evil.as_bytes(), b"no JSON"]).await?;
    shows("a dead letter", "#dead", "1").await?;
    shows("a warning", "#errors", "invalid_json").await?;
    shows("text as text", "body", "<img src=x onerror=injected=1>").await?;
    shows("a value as text", "#settings", "<b id=injected>").await?;
    assert_eq!(browser.eval("typeof injected + document.querySelectorAll('img, #injected').length")?, "undefined0");

    shows("what is set", "#settings", "POSTGRES_BATCH_SIZE\t123\tset").await?;
    shows("what follows", "#settings", "RABBITMQ_PREFETCH\t369\tdefault").await?;
    shows("that there is a password", "#settings", "RABBITMQ_PASSWORD\t***\tset").await?;
    for path in ["/", "/status"] {
        assert!(!worker.get(path)?.1.contains(&secret), "{path} shows the password");
    }
    // It needs nobody else: everything that was loaded came from the worker.
    let loaded = browser.eval("performance.getEntriesByType('resource').map(entry => new URL(entry.name).host)")?;
    let loaded: Vec<&str> = loaded.as_array().into_iter().flatten().filter_map(|host| host.as_str()).collect();
    assert!(!loaded.is_empty() && loaded.iter().all(|host| *host == format!("127.0.0.1:{port}")), "{loaded:?}");

    assert_eq!(worker.stop().await?.code(), Some(0));
    shows("that it is gone", "#state", "does not answer").await?;
    stage.clean_up().await
}
