//! A headless Chromium, driven by ChromeDriver (the W3C's WebDriver protocol), for what only a browser can tell.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;
use ureq::Agent;

use crate::Error;
use crate::dumps::{Folder, text};

/// A browser with one window. Dropping it closes it.
pub struct Browser {
    driver: Child,
    session: String,
    _profile: Folder,
}

impl Browser {
    /// Starts one; `None`, and a word about it, where Debian's packages `chromium` and `chromium-driver` are not installed.
    pub async fn start(test: &str) -> Result<Option<Browser>, Error> {
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let driver = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(driver) = driver else {
            println!("{test}: SKIPPED, there is no chromedriver");
            return Ok(None);
        };
        let profile = Folder::new("browser")?;
        let mut browser = Browser { driver, session: format!("http://127.0.0.1:{port}/session"), _profile: profile };
        // As root it needs --no-sandbox; the others keep it from asking anybody outside.
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--window-size=1200,1000",
            &format!("--user-data-dir={}", text(&browser._profile.path)),
        ];
        let wanted = json!({"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": {"args": arguments}}}});
        let mut last = None;
        for _ in 0..100 {
            match browser.ask("", &wanted) {
                Ok(session) => {
                    let id = session["sessionId"].as_str().ok_or("a session without id")?;
                    browser.session = format!("{}/{id}", browser.session);
                    return Ok(Some(browser));
                }
                Err(e) => last = Some(e), // the driver does not listen yet
            }
            sleep(Duration::from_millis(100)).await;
        }
        Err(last.unwrap_or_else(|| "no browser".into()))
    }

    /// Posts a command and returns its value.
    fn ask(&self, command: &str, body: &Value) -> Result<Value, Error> {
        let config = Agent::config_builder().timeout_global(Some(Duration::from_secs(60))).http_status_as_error(false);
        let agent: Agent = config.build().into();
        let mut answer = agent.post(format!("{}{command}", self.session)).send(body.to_string())?;
        let mut answered: Value = serde_json::from_str(&answer.body_mut().read_to_string()?)?;
        match answered["value"]["error"].as_str() {
            Some(error) => Err(format!("{command}: {error}: {}", answered["value"]["message"]).into()),
            None => Ok(answered["value"].take()),
        }
    }

    /// Opens a page and waits until it is loaded.
    pub fn open(&self, url: &str) -> Result<(), Error> {
        self.ask("/url", &json!({"url": url})).map(|_| ())
    }

    /// What a JavaScript expression is in the page.
    pub fn eval(&self, expression: &str) -> Result<Value, Error> {
        self.ask("/execute/sync", &json!({"script": format!("return {expression}"), "args": []}))
    }

    /// The text of the first element that a CSS selector finds, as it is shown.
    pub fn text(&self, selector: &str) -> Result<String, Error> {
        let found = self.eval(&format!("document.querySelector({})?.innerText", json!(selector)))?;
        Ok(found.as_str().unwrap_or_default().to_owned())
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // A session that is deleted takes its browser with it; of a driver that is killed it stays.
        let _ = ureq::delete(&self.session).call();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
