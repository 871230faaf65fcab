//! The client verbs against canned answers: what is asked, what is printed, and the exit codes that scripts rely on.

use std::collections::{HashMap, VecDeque};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

/// A request as the API saw it.
#[derive(Clone, Debug)]
struct Seen {
    line: String,
    headers: HashMap<String, String>,
    body: Value,
}

/// An answer: status, content type, body.
type Canned = (u16, &'static str, String);

/// An API of canned answers, given in order per `METHOD /path?query`; the last one is repeated.
struct Api {
    address: String,
    answers: Arc<Mutex<HashMap<String, VecDeque<Canned>>>>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Api {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("bound"));
        let answers: Arc<Mutex<HashMap<String, VecDeque<Canned>>>> = Arc::default();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (a, s) = (Arc::clone(&answers), Arc::clone(&seen));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (a, s) = (Arc::clone(&a), Arc::clone(&s));
                std::thread::spawn(move || serve(stream, &a, &s));
            }
        });
        Self { address, answers, seen }
    }

    fn on(&self, line: &str, status: u16, body: &Value) -> &Self {
        self.canned(line, (status, "application/json", body.to_string()))
    }

    fn canned(&self, line: &str, canned: Canned) -> &Self {
        let mut answers = self.answers.lock().expect("not poisoned");
        answers.entry(line.to_owned()).or_default().push_back(canned);
        self
    }

    fn seen(&self, line: &str) -> Vec<Seen> {
        let seen = self.seen.lock().expect("not poisoned");
        seen.iter().filter(|s| s.line == line).cloned().collect()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_caas"));
        command
            .args(args)
            .env_clear()
            .env("HOME", "/nonexistent")
            .env("CAAS_ADDR", &self.address)
            .env("CAAS_TOKEN", "caas_test")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Run {
        Run::of(&self.command(args).output().expect("it starts"))
    }
}

/// What a run came to.
#[derive(Debug)]
struct Run {
    code: i32,
    out: String,
    err: String,
}

impl Run {
    fn of(output: &Output) -> Self {
        Self {
            code: output.status.code().expect("an exit code"),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

fn serve(mut stream: TcpStream, answers: &Mutex<HashMap<String, VecDeque<Canned>>>, seen: &Mutex<Vec<Seen>>) {
    let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
    loop {
        let mut first = String::new();
        if reader.read_line(&mut first).unwrap_or(0) == 0 {
            return;
        }
        let line = first.rsplit_once(" HTTP/").map_or("", |(line, _)| line).to_owned();
        let mut headers = HashMap::new();
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).expect("a header");
            match header.trim().split_once(':') {
                Some((name, value)) => headers.insert(name.to_lowercase(), value.trim().to_owned()),
                None => break,
            };
        }
        let length = headers
            .get("content-length")
            .map_or(0, |l| l.parse().expect("a length"));
        let mut body = vec![0; length];
        reader.read_exact(&mut body).expect("a body");
        seen.lock().expect("not poisoned").push(Seen {
            line: line.clone(),
            headers,
            body: serde_json::from_slice(&body).unwrap_or_default(),
        });
        let (status, kind, text) = {
            let mut answers = answers.lock().expect("not poisoned");
            match answers.get_mut(&line) {
                Some(queue) if queue.len() > 1 => queue.pop_front().expect("more than one"),
                Some(queue) => queue.front().expect("at least one").clone(),
                None => problem(404, "NOT_FOUND", &format!("nothing at {line}")),
            }
        };
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n",
            text.len()
        );
        if stream.write_all((head + &text).as_bytes()).is_err() {
            return;
        }
    }
}

fn problem(status: u16, code: &str, detail: &str) -> Canned {
    let body = json!({
        "type": "urn:caas:problem:x", "title": "x", "status": status, "code": code, "detail": detail,
        "request_id": "r-1", "retryable": false, "reasons": ["memory: 2 hosts have too little left"],
    });
    (status, "application/problem+json", body.to_string())
}

fn operation(state: &str, steps: &Value) -> Value {
    json!({
        "id": "op-1234", "kind": "deploy", "app": "hello", "host": null, "release": 1, "state": state, "message": "",
        "failure": null, "steps": steps, "reasons": [], "created_at": "2026-01-01T00:00:00.000Z",
        "updated_at": "2026-01-01T00:00:00.000Z", "generation": 1,
    })
}

fn step(name: &str, state: &str, detail: &str) -> Value {
    json!({"name": name, "state": state, "detail": detail, "at": "2026-01-01T00:00:00.000Z"})
}

fn hello() -> Value {
    json!({
        "app": {
            "id": "hello", "tenant": "default", "status": "running", "instances": 2, "release": 1,
            "previous_release": 0, "last_release": 1, "restart_before": null,
            "config": {"domains": ["hello.example"]}, "operation": "op-1234", "placements": 1,
            "created_at": "2026-01-01T00:00:00.000Z", "updated_at": "2026-01-01T00:00:00.000Z", "generation": 3,
        },
        "release": {
            "app": "hello", "number": 1, "version": "1", "digest": "sha256:abc",
            "spec": {"image": "r:5000/hello:1", "env": {"SECRET": "s3cret", "MODE": "a"}},
            "created_at": "2026-01-01T00:00:00.000Z",
        },
        "instances": [], "operation": null, "url": "http://hello.localhost:8080/",
    })
}

const DEPLOY: &str = "POST /api/v1/apps/hello/deploy";
const OPERATION: &str = "GET /api/v1/operations/op-1234";
const APP: &str = "GET /api/v1/apps/hello";

#[test]
fn a_deploy_shows_its_steps_and_the_urls() {
    let api = Api::start();
    let begun = json!([step("pull", "running", "")]);
    let done = json!([
        step("pull", "done", "2 of 2 instances"),
        step("route", "done", "2 of 2 instances")
    ]);
    api.on(DEPLOY, 202, &json!({ "operation": operation("running", &begun) }))
        .on(OPERATION, 200, &operation("running", &begun))
        .on(OPERATION, 200, &operation("succeeded", &done))
        .on(APP, 200, &hello());
    let run = api.run(&["deploy", "hello:1", "--instances", "2", "--memory", "512M"]);
    assert_eq!(run.code, 0, "{run:?}");
    assert!(
        run.out.contains("http://hello.localhost:8080/\nhttp://hello.example/"),
        "{run:?}"
    );
    assert_eq!(
        run.err,
        "  … pull\n  ✓ pull    2 of 2 instances\n  ✓ route   2 of 2 instances\n"
    );
    let asked = &api.seen(DEPLOY)[0];
    assert_eq!(
        asked.body,
        json!({"version": "1", "instances": 2, "spec": {"memory_mb": 512}})
    );
    assert_eq!(asked.headers["authorization"], "Bearer caas_test");
    assert!(asked.headers["idempotency-key"].len() > 20);
}

#[test]
fn variables_are_laid_over_those_of_the_last_release() {
    let api = Api::start();
    api.on(DEPLOY, 202, &json!({ "operation": operation("succeeded", &json!([])) }))
        .on(APP, 200, &hello());
    let run = api.run(&[
        "deploy",
        "hello:2",
        "--env",
        "MODE=b",
        "--env",
        "NEW=1",
        "--unset-env",
        "SECRET",
    ]);
    assert_eq!(run.code, 0, "{run:?}");
    assert_eq!(
        api.seen(DEPLOY)[0].body["spec"],
        json!({"env": {"MODE": "b", "NEW": "1"}})
    );
}

#[test]
fn a_failed_deploy_exits_2_and_says_why() {
    let api = Api::start();
    let mut failed = operation("failed", &json!([step("start", "failed", "")]));
    failed["message"] = json!("instance abcd exited; rolled back to release 1");
    failed["failure"] = json!({
        "code": "exited", "message": "it exited with 3", "exit_code": 3, "log_tail": ["cannot open config"],
        "probes": ["connection refused"],
    });
    api.on(DEPLOY, 202, &json!({ "operation": failed }));
    let run = api.run(&["deploy", "hello:1"]);
    assert_eq!(run.code, 2, "{run:?}");
    for words in [
        "deploy failed: instance abcd exited",
        "exit code: 3",
        "connection refused",
        "cannot open config",
    ] {
        assert!(run.err.contains(words), "{words}: {run:?}");
    }
    assert_eq!(run.out, "");
}

#[test]
fn exit_codes_tell_what_happened() {
    let api = Api::start();
    api.canned(DEPLOY, problem(409, "NO_CAPACITY", "no host fits"));
    let run = api.run(&["deploy", "hello:1"]);
    assert_eq!(
        (run.code, run.err.as_str()),
        (2, "caas: no host fits\n  memory: 2 hosts have too little left\n")
    );

    let api = Api::start();
    api.on(DEPLOY, 202, &json!({ "operation": operation("running", &json!([])) }))
        .on(OPERATION, 200, &operation("blocked", &json!([])));
    let run = api.run(&["deploy", "hello:1", "--queue", "--timeout", "150ms"]);
    // Asked for at another path (?queue=true), so not found: an error like any other.
    assert_eq!(run.code, 1, "{run:?}");
    let run = api.run(&["deploy", "hello:1", "--timeout", "150ms"]);
    assert_eq!(run.code, 3, "{run:?}");
    assert!(run.err.contains("caas op watch op-1234"), "{run:?}");

    let api = Api::start();
    api.canned(
        "GET /api/v1/apps",
        problem(401, "UNAUTHENTICATED", "send a valid token"),
    );
    let run = api.run(&["apps"]);
    assert_eq!(run.code, 4, "{run:?}");
    assert!(
        run.err.contains("token from CAAS_TOKEN") && !run.err.contains("caas_test"),
        "{run:?}"
    );

    let run = api.run(&["apps", "--addr", "http://127.0.0.1:1"]);
    assert_eq!(run.code, 1, "{run:?}");
    assert!(run.err.contains("http://127.0.0.1:1 can't be reached"), "{run:?}");
}

#[test]
fn bad_usage_and_configuration_exit_64() {
    let api = Api::start();
    for args in [
        &["deplay"][..],
        &["deploy", "Hello:1"],
        &["deploy"],
        &["apps", "--addr", "localhost"],
        &["gateway"],
        &["gateway", "--registry", "memory:"],
        &["gateway", "--registry", "etcd://x"],
        &["gateway", "--config", "/nonexistent.toml"],
        &["gateway", "--registry", "zk://h", "--domain", "No"],
        &["scheduler", "--store", "postgres://h/db"],
        &["scheduler", "--store", "sqlite:///tmp/x", "--tls-dir", "/nonexistent"],
        &["registry-sync", "--store", "sqlite:///tmp/x"],
        &["migrate"],
    ] {
        let run = api.run(args);
        assert_eq!(run.code, 64, "{args:?}: {run:?}");
        assert!(
            !run.err.is_empty() && !run.err.contains("panicked"),
            "{args:?}: {run:?}"
        );
    }
    let run = api.run(&["deplay"]);
    assert!(run.err.contains("deploy"), "{run:?}");
    let mut command = api.command(&["gateway", "--registry", "zk://h"]);
    let run = Run::of(&command.env("CAAS_GATEWAY__LISEN", "x").output().expect("it starts"));
    assert_eq!(run.code, 64, "{run:?}");
    assert!(
        run.err.contains("gateway.lisen") && run.err.contains("`listen`"),
        "{run:?}"
    );
    assert_eq!(api.run(&["--help"]).code, 0);
    assert_eq!(api.run(&["--version"]).code, 0);
}

#[test]
fn json_is_the_apis_and_nothing_else() {
    let api = Api::start();
    api.on(DEPLOY, 202, &json!({ "operation": operation("succeeded", &json!([])) }))
        .on(APP, 200, &hello());
    let run = api.run(&["deploy", "hello:1", "-o", "json"]);
    let printed: Value = serde_json::from_str(&run.out).expect("JSON and nothing else");
    assert_eq!(printed["state"], "succeeded");
    let run = api.run(&["-o", "json", "info", "hello"]);
    assert_eq!(serde_json::from_str::<Value>(&run.out).expect("JSON"), hello());
    let run = api.run(&["deploy", "hello:1", "--no-wait"]);
    assert_eq!(
        (run.code, run.out.as_str()),
        (0, "accepted; follow it with `caas op watch op-1234`\n")
    );
}

#[test]
fn values_of_variables_are_not_shown() {
    let api = Api::start();
    api.on(APP, 200, &hello());
    let run = api.run(&["info", "hello"]);
    assert!(
        run.out.contains("MODE SECRET") && !run.out.contains("s3cret"),
        "{run:?}"
    );
}

#[test]
fn a_database_that_is_gone_for_a_moment_is_waited_for() {
    let api = Api::start();
    api.canned(
        "GET /api/v1/hosts",
        problem(503, "STORE_UNAVAILABLE", "the database does not answer"),
    )
    .on("GET /api/v1/hosts", 200, &json!([]));
    let run = api.run(&["host", "ls"]);
    assert_eq!(run.code, 0, "{run:?}");
    assert!(run.out.contains("caas host add"), "{run:?}");
}

#[test]
fn logs_are_streamed_with_their_instance() {
    let api = Api::start();
    let lines = [("abcd", false, "one"), ("efgh", true, "oops"), ("abcd", false, "two")];
    let stream: String = lines
        .iter()
        .map(|(instance, stderr, text)| {
            let line = json!({"instance": instance, "line": {"at": null, "stderr": stderr, "text": text}});
            format!("data: {line}\n\n: still here\n\n")
        })
        .collect();
    let path = "GET /api/v1/apps/hello/logs?tail=5&follow=false";
    api.on(APP, 200, &hello())
        .canned(path, (200, "text/event-stream", stream));
    let run = api.run(&["logs", "hello", "--tail", "5"]);
    assert_eq!(
        (run.code, run.out.as_str(), run.err.as_str()),
        (0, "abcd one\nabcd two\n", "efgh oops\n")
    );
    assert_eq!(api.run(&["logs", "nobody"]).code, 1);
}

#[test]
fn followed_events_go_on_after_the_last_one_seen() {
    let api = Api::start();
    let event = |seq: u64| {
        let event = json!({
            "seq": seq, "at": "2026-01-01T00:00:00.000Z", "kind": "app", "app": "hello", "actor": "admin",
            "message": format!("event {seq}"),
        });
        (200, "text/event-stream", format!("id: {seq}\ndata: {event}\n\n"))
    };
    let path = "GET /api/v1/events";
    api.canned(path, event(7))
        .canned(path, event(8))
        .canned(path, problem(401, "UNAUTHENTICATED", "no"));
    let run = api.run(&["events", "-f"]);
    assert_eq!(run.code, 4, "{run:?}");
    assert!(run.out.contains("event 7") && run.out.contains("event 8"), "{run:?}");
    let asked: Vec<Option<String>> = api
        .seen(path)
        .iter()
        .map(|s| s.headers.get("last-event-id").cloned())
        .collect();
    assert_eq!(asked, [None, Some("7".into()), Some("8".into())]);
}

#[test]
fn a_registrys_password_comes_by_standard_input() {
    let api = Api::start();
    let path = "PUT /api/v1/registries/127.0.0.1:5000";
    api.on(path, 200, &json!({"registry": "127.0.0.1:5000", "username": "me"}));
    let mut command = api.command(&[
        "registry",
        "login",
        "127.0.0.1:5000",
        "--username",
        "me",
        "--password-stdin",
    ]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    child
        .stdin
        .take()
        .expect("piped")
        .write_all(b"pa ss\n")
        .expect("written");
    let run = Run::of(&child.wait_with_output().expect("it ends"));
    assert_eq!(run.code, 0, "{run:?}");
    assert_eq!(api.seen(path)[0].body, json!({"username": "me", "password": "pa ss"}));
    assert!(!run.out.contains("pa ss") && !run.err.contains("pa ss"), "{run:?}");
    let run = api.run(&["registry", "login", "r", "--username", "me"]);
    assert_eq!(run.code, 64, "{run:?}");
}

#[test]
fn the_doctor_finds_what_is_wrong() {
    let api = Api::start();
    api.on("GET /healthz/live", 200, &json!({"status": "ok"}))
        .canned(
            "GET /healthz/ready",
            problem(503, "STORE_UNAVAILABLE", "the database does not answer"),
        )
        .on("GET /api/v1/hosts", 200, &json!([]));
    // Ports of nobody, so that what runs on this machine does not matter.
    let run = api.run(&[
        "doctor",
        "--gateway-admin",
        "http://127.0.0.1:1",
        "--registry-sync-admin",
        "http://127.0.0.1:1",
    ]);
    assert_eq!(run.code, 1, "{run:?}");
    for words in [
        "✓ API",
        "✗ store",
        "✓ token",
        "✗ hosts",
        "✗ gateway",
        "✗ registry-sync",
        "→ ",
    ] {
        assert!(run.out.contains(words), "{words}: {run:?}");
    }
}

#[test]
fn completions_are_written() {
    let api = Api::start();
    for shell in ["bash", "zsh", "fish"] {
        let run = api.run(&["completion", shell]);
        assert_eq!(run.code, 0);
        assert!(run.out.contains("deploy"), "{shell}");
    }
}
