//! A real browser: Chromium without a window, driven over its `DevTools` protocol.
//!
//! The protocol is JSON over a WebSocket, and the tests need eight of its commands: no crate for all of it is
//! built for that.

use std::{fmt::Write, fs, path::Path, process::Command, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::{SinkExt, StreamExt};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite::Message};

use crate::support::server::{Launch, Server, find};

/// How long the browser may take to answer before the test gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// A browser with one page. Dropped, it ends.
pub(crate) struct Browser {
    socket: WebSocketStream<TcpStream>,
    session: Value,
    sent: u64,
    /// What it told without being asked.
    events: Vec<Value>,
    _server: Server,
}

impl Browser {
    /// Starts it, with a window of so many pixels.
    ///
    /// # Panics
    /// If Chromium is not installed, naming the package, or does not start, with its output.
    pub(crate) async fn start(width: u32, height: u32) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("parallax-chromium-")
            .tempdir()
            .expect("temporary folders");
        let mut command = Command::new(program());
        // It sees nothing but the page under test, and root and containers have no sandbox.
        command.args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
        ]);
        command.args([
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ]);
        command.args(["--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-port=0"]);
        command.arg(format!("--window-size={width},{height}"));
        command.arg(format!("--user-data-dir={}", folder.path().display())).arg("about:blank");
        let file = folder.path().join("DevToolsActivePort");
        let ready = || address(&file).is_some();
        let launch = Launch { command, folder, user: None, stop: Signal::TERM, ready: &ready };
        let server = Server::start(launch).unwrap_or_else(|error| panic!("{error}"));
        let (port, path) = address(&file).expect("it is ready");
        let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
        let (socket, _) = client_async(format!("ws://127.0.0.1:{port}{path}"), stream)
            .await
            .expect("it is a WebSocket");
        let mut browser =
            Self { socket, session: Value::Null, sent: 0, events: Vec::new(), _server: server };
        let target = browser.ask("Target.createTarget", json!({"url": "about:blank"})).await;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        browser.session = browser.ask("Target.attachToTarget", attach).await["sessionId"].clone();
        for domain in ["Page", "Runtime", "Log"] {
            browser.ask(&format!("{domain}.enable"), json!({})).await;
        }
        browser.resize(width, height).await;
        browser
    }

    /// One command, and its answer.
    pub(crate) async fn ask(&mut self, method: &str, params: Value) -> Value {
        self.sent += 1;
        let id = self.sent;
        let mut command = json!({"id": id, "method": method, "params": params});
        if !self.session.is_null() {
            command["sessionId"] = self.session.clone();
        }
        self.socket.send(Message::text(command.to_string())).await.expect("the browser is there");
        loop {
            let message = timeout(PATIENCE, self.socket.next()).await.unwrap_or_else(|_| {
                panic!("the browser did not answer {method} within {PATIENCE:?}")
            });
            let message = message.expect("the browser is there").expect("it keeps to the protocol");
            let Message::Text(text) = message else { continue };
            let mut answer: Value = serde_json::from_str(&text).expect("it is JSON");
            if answer["id"] == id {
                assert!(answer.get("error").is_none(), "{method}: {}", answer["error"]);
                return answer["result"].take();
            }
            self.events.push(answer);
        }
    }

    /// Goes to an address, and waits until the document is there.
    pub(crate) async fn open(&mut self, url: &str) {
        let answer = self.ask("Page.navigate", json!({"url": url})).await;
        assert!(answer.get("errorText").is_none(), "{url}: {}", answer["errorText"]);
        self.wait("document.readyState === 'complete'").await;
    }

    /// The value of an expression in the page.
    pub(crate) async fn value(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let mut answer = self.ask("Runtime.evaluate", params).await;
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        answer["result"]["value"].take()
    }

    /// Waits until an expression is true.
    pub(crate) async fn wait(&mut self, expression: &str) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            if self.value(&format!("!!({expression})")).await == true {
                return;
            }
            if tokio::time::Instant::now() > deadline {
                let page = self.value("document.body.innerText").await;
                let complaints = self.complaints();
                panic!(
                    "waited in vain for {expression}; {complaints}; the page:\n{}",
                    page.as_str().unwrap_or("")
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Clicks with the mouse in the middle of an element.
    pub(crate) async fn click(&mut self, selector: &str) {
        let place = self
            .value(&format!(
                "(() => {{ const e = document.querySelector({selector:?}); e.scrollIntoView({{block: \
                    'center'}}); \
                 const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; }})()"
            ))
            .await;
        for kind in ["mousePressed", "mouseReleased"] {
            let params = json!({"type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1});
            self.ask("Input.dispatchMouseEvent", params).await;
        }
        // Not over whatever is there next.
        self.ask("Input.dispatchMouseEvent", json!({"type": "mouseMoved", "x": 1, "y": 1})).await;
    }

    /// Presses a key: `p`, `Tab`, `Enter`.
    pub(crate) async fn press(&mut self, key: &str) {
        let (text, code) = match key {
            "Enter" => ("\r", 13),
            "Tab" => ("", 9),
            "Escape" => ("", 27),
            _ => (key, u32::from(key.to_ascii_uppercase().as_bytes()[0])),
        };
        for kind in ["keyDown", "keyUp"] {
            let mut params = json!({"type": kind, "key": key, "windowsVirtualKeyCode": code});
            if kind == "keyDown" && !text.is_empty() {
                params["text"] = text.into();
            }
            self.ask("Input.dispatchKeyEvent", params).await;
        }
    }

    /// Writes where the focus is.
    pub(crate) async fn write(&mut self, text: &str) {
        self.ask("Input.insertText", json!({"text": text})).await;
    }

    /// Gives the window another size.
    pub(crate) async fn resize(&mut self, width: u32, height: u32) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.ask("Emulation.setDeviceMetricsOverride", size).await;
    }

    /// Prefers `light` or `dark`.
    pub(crate) async fn prefer(&mut self, scheme: &str) {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.ask("Emulation.setEmulatedMedia", features).await;
    }

    /// A picture of the window.
    pub(crate) async fn picture(&mut self, file: &Path) {
        let answer = self.ask("Page.captureScreenshot", json!({"format": "png"})).await;
        let png =
            STANDARD.decode(answer["data"].as_str().expect("it is text")).expect("it is base64");
        fs::write(file, png).expect("the folder is there");
    }

    /// Errors, warnings and violations of the page's policy so far, one a line; empty if there were none.
    pub(crate) fn complaints(&self) -> String {
        let mut found = String::new();
        for event in &self.events {
            let params = &event["params"];
            let bad = match event["method"].as_str() {
                Some("Runtime.exceptionThrown") => true,
                Some("Runtime.consoleAPICalled") => {
                    matches!(params["type"].as_str(), Some("error" | "warning" | "assert"))
                }
                Some("Log.entryAdded") => {
                    params["entry"]["level"] != "verbose" && params["entry"]["level"] != "info"
                }
                _ => false,
            };
            if bad {
                writeln!(found, "{params}").expect("memory takes it");
            }
        }
        found
    }

    /// The texts of all elements of a kind.
    pub(crate) async fn texts(&mut self, selector: &str) -> Vec<String> {
        let all = format!("[...document.querySelectorAll({selector:?})].map(e => e.textContent)");
        serde_json::from_value(self.value(&all).await).expect("they are texts")
    }
}

/// Where it listens, once it does.
fn address(file: &Path) -> Option<(u16, String)> {
    let text = fs::read_to_string(file).ok()?;
    let (port, path) = text.split_once('\n')?;
    Some((port.parse().ok()?, path.trim().to_owned())).filter(|(_, path)| !path.is_empty())
}

fn program() -> std::path::PathBuf {
    let folders =
        ["/usr/bin", "/usr/local/bin", "/snap/bin", "/Applications/Chromium.app/Contents/MacOS"];
    ["chromium", "chromium-browser", "google-chrome", "Chromium"]
        .iter()
        .find_map(|name| find(&folders, name))
        .unwrap_or_else(|| {
            panic!(
                "no Chromium was found: install it (Debian: the package `chromium`; macOS: `brew install \
                 chromium`), or run scripts/test, which does it where it can"
            )
        })
}
