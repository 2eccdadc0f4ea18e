//! `parallax run URL`: what each flag does, and what is refused.

use std::{fs, path::Path, process::Output, sync::atomic::Ordering::Relaxed};

use parallax_middleware::TokenKeys;
use serde_json::Value;

use super::{KEY, command, output, said, server::Server};

/// A run of a third of a second, with its report in `folder`.
pub(crate) fn quickly<'a>(url: &'a str, folder: &'a Path, flags: &[&'a str]) -> Vec<&'a str> {
    let out = folder.to_str().expect("text");
    let mut arguments = vec!["run", url, "--warmup", "0s"];
    if !flags.contains(&"--out") {
        arguments.extend(["--out", out]);
    }
    let lasts = ["--duration", "--stages", "--replay"];
    if !flags.iter().any(|flag| lasts.contains(flag)) {
        arguments.extend(["--duration", "300ms"]);
    }
    arguments.extend(flags);
    arguments
}

pub(crate) fn report(folder: &Path) -> Value {
    let text = fs::read(folder.join("report.json")).expect("a report was written");
    serde_json::from_slice(&text).expect("it is JSON")
}

/// The plan of a run with these flags.
fn plan(server: &Server, flags: &[&str]) -> Value {
    let folder = tempfile::tempdir().expect("a folder");
    let url = server.at("/echo");
    let output = output(&mut command(&quickly(&url, folder.path(), flags)));
    // Whether the machine was fast enough does not matter here.
    assert!([Some(0), Some(97)].contains(&output.status.code()), "{flags:?}: {}", said(&output));
    let run = report(folder.path())["runs"][0].take();
    assert_eq!(run["conservation"]["unexplained"], 0, "{run}");
    run["plan"].clone()
}

#[test]
fn without_flags_it_is_a_first_look_with_ten_users() {
    let (server, folder) = (Server::start(), tempfile::tempdir().expect("a folder"));
    let out = folder.path().to_str().expect("text");
    let output = output(&mut command(&["run", &server.url, "--quick", "--out", out]));
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let report = report(folder.path());
    assert_eq!(report["title"], server.url);
    let plan = &report["runs"][0]["plan"];
    assert_eq!((&plan["model"], &plan["users"]), (&"closed".into(), &10.into()));
    assert_eq!((&plan["warmup_s"], &plan["duration_s"]), (&0.5.into(), &2.0.into()));
    assert_eq!(plan["transport"], server.url);
    assert_eq!(plan["mix"][0][0], "GET /");
}

#[test]
fn a_run_writes_what_render_makes_of_its_report_to_the_byte() {
    let (server, folder) = (Server::start(), tempfile::tempdir().expect("a folder"));
    let url = server.at("/echo");
    let run = output(&mut command(&quickly(
        &url,
        folder.path(),
        &["--users", "2", "--threshold", "p50 < 10s"],
    )));
    let code = run.status.code();
    let saved = folder.path().join("report.json");
    let saved = saved.to_str().expect("text");
    let files: [(&str, &[&str]); 8] = [
        ("report.json", &["json"]),
        ("report.html", &["html"]),
        ("report.md", &["markdown"]),
        ("junit.xml", &["junit"]),
        ("routes.csv", &["csv"]),
        ("timeline.csv", &["csv", "--table", "timeline"]),
        ("percentiles.csv", &["csv", "--table", "percentiles"]),
        ("resources.csv", &["csv", "--table", "resources"]),
    ];
    for (file, flags) in files {
        let rendered = output(&mut command(&[&["render", saved, "--format"], flags].concat()));
        assert_eq!(rendered.status.code(), code, "{file}: {}", said(&rendered));
        let written = fs::read(folder.path().join(file)).expect(file);
        assert!(!written.is_empty() && written == rendered.stdout, "{file}");
    }
    let printed = String::from_utf8(run.stdout).expect("text");
    let text = output(&mut command(&["render", saved]));
    assert!(printed.starts_with(&String::from_utf8(text.stdout).expect("text")), "{printed}");
    let wide = output(&mut command(&["render", saved, "--width", "120"]));
    assert!(
        String::from_utf8(wide.stdout).expect("text").contains("   samples      mean       min ")
    );
    assert_eq!(
        fs::read_dir(folder.path()).expect("the folder").count(),
        files.len(),
        "nothing else is there"
    );
}

#[test]
fn the_flags_of_users_are_in_the_plan() {
    let server = Server::start();
    let flags = ["--users", "3", "--think-time", "exp:1ms", "--pacing", "2ms", "--timeout", "3s"];
    let plan = plan(&server, &[&flags[..], &["--seed", "7", "--tag", "branch=main"]].concat());
    assert_eq!((&plan["model"], &plan["users"]), (&"closed".into(), &3.into()));
    assert_eq!((&plan["think_time_s"], &plan["pacing_s"]), (&0.001.into(), &0.002.into()));
    assert_eq!(plan["random_think_time"], true);
    assert_eq!((&plan["warmup_s"], &plan["duration_s"]), (&0.0.into(), &0.3.into()));
    assert_eq!((&plan["timeout_s"], &plan["seed"]), (&3.0.into(), &7.into()));
    assert_eq!(plan["tags"]["branch"], "main");
}

#[test]
fn the_flags_of_arrivals_are_in_the_plan() {
    let server = Server::start();
    let flags = ["--rate", "200", "--arrivals", "poisson", "--max-in-flight", "50"];
    let plan = plan(&server, &[&flags[..], &["--pacer", "coarse", "--runtime", "split"]].concat());
    assert_eq!((&plan["model"], &plan["rate"]), (&"open".into(), &200.0.into()));
    assert_eq!((&plan["arrivals"], &plan["max_in_flight"]), (&"poisson".into(), &50.into()));
    assert_eq!((&plan["pacer"], &plan["topology"]), (&"coarse".into(), &"split".into()));
}

#[test]
fn levels_change_with_stages_and_with_a_spike() {
    let server = Server::start();
    let rates = plan(&server, &["--stages", "100ms:50,200ms:100"]);
    assert_eq!((&rates["model"], &rates["duration_s"]), (&"open".into(), &0.3.into()));
    assert_eq!(rates["stages"], serde_json::json!([[0.1, 50.0], [0.2, 100.0]]));
    let users = plan(&server, &["--stages", "100ms:2users,200ms:4users", "--think-time", "1ms"]);
    assert_eq!((&users["model"], &users["users"]), (&"closed".into(), &4.into()));
    assert_eq!(users["think_time_s"], 0.001);
    let spike = plan(&server, &["--rate", "50", "--spike", "300"]);
    assert_eq!(spike["rate"], 300.0);
}

#[test]
fn a_file_of_start_times_is_replayed() {
    let (server, folder) = (Server::start(), tempfile::tempdir().expect("a folder"));
    let file = folder.path().join("starts");
    fs::write(&file, "# of Monday\n1700000000.25\n\n1700000000.0 # the first\n1700000000.5\n")
        .expect("there is room");
    let plan = plan(&server, &["--replay", file.to_str().expect("text")]);
    assert_eq!(plan["arrivals"], "replay");
    assert!((plan["duration_s"].as_f64().expect("a number") - 0.5).abs() < 1e-6, "{plan}");
    // Three, and the one that looks whether a layer answers.
    assert_eq!(server.state.requests.load(Relaxed), 4);
}

#[test]
fn a_number_of_requests_is_sent_and_no_more() {
    let (server, folder) = (Server::start(), tempfile::tempdir().expect("a folder"));
    let flags = ["--requests", "25", "--users", "2", "--duration", "1m"];
    let output = output(&mut command(&quickly(&server.url, folder.path(), &flags)));
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let run = &report(folder.path())["runs"][0];
    assert_eq!((&run["plan"]["requests"], &run["conservation"]["ok"]), (&25.into(), &25.into()));
}

#[test]
fn requests_are_what_the_flags_say() {
    let server = Server::start();
    let asked = |flags: &[&str]| {
        plan(&server, flags);
        server.state.last.lock().expect("nobody panics").take().expect("it was asked")
    };
    let (method, headers, body) = asked(&["--header", "X-A: 1", "--header", "x-a:2"]);
    assert_eq!((method.as_str(), body.len()), ("GET", 0));
    assert_eq!(headers.get_all("x-a").iter().collect::<Vec<_>>(), ["1", "2"]);
    assert!(!headers.contains_key("x-parallax-bypass"), "there is no key");
    let (method, _, body) = asked(&["--body", "one pot"]);
    assert_eq!((method.as_str(), &body[..]), ("POST", &b"one pot"[..]));
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), "two pots").expect("there is room");
    let file = file.path().to_str().expect("text");
    let (method, _, body) = asked(&["--method", "PUT", "--body-file", file]);
    assert_eq!((method.as_str(), &body[..]), ("PUT", &b"two pots"[..]));
}

#[cfg(unix)]
#[test]
fn a_unix_socket_is_loaded_by_its_path() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::on_a_socket(folder.path());
    let url = server.at(":/echo?q=tea");
    let output = output(&mut command(&quickly(&url, folder.path(), &["--users", "1"])));
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let run = &report(folder.path())["runs"][0];
    assert_eq!((&run["plan"]["mix"][0][0], &run["connections"]), (&"GET /echo".into(), &1.into()));
}

#[test]
fn the_exit_code_says_the_verdict() {
    let server = Server::start();
    for (path, duration, threshold, code) in [
        ("/", "2500ms", "errors < 50%", 0),
        ("/", "300ms", "p99{route=\"GET /mistyped\"} < 1s", 97),
        // Thirty requests do not show such a percentile.
        ("/slow/10", "300ms", "p99.99 < 10s", 98),
        // By far more than the machine may add.
        ("/slow/20", "2500ms", "p50 < 1ms", 99),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let url = server.at(path);
        let flags = ["--users", "1", "--threshold", threshold, "--duration", duration];
        let output = output(&mut command(&quickly(&url, folder.path(), &flags)));
        let printed = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(code), "{threshold}: {printed}{}", said(&output));
        assert_eq!(report(folder.path())["runs"][0]["interrupted"], false);
    }
}

#[test]
fn json_goes_to_standard_output_and_progress_to_standard_error() {
    let (server, folder) = (Server::start(), tempfile::tempdir().expect("a folder"));
    let run = |flags: &[&str]| -> Output {
        output(&mut command(&quickly(&server.url, folder.path(), flags)))
    };
    let json = run(&["--json"]);
    let printed: Value = serde_json::from_slice(&json.stdout).expect("JSON and nothing else");
    assert_eq!(printed, report(folder.path()));
    assert!(said(&json).contains("closed measuring"), "{}", said(&json));
    assert_eq!(said(&run(&["--json", "--quiet"])), "");
    let text = run(&[]);
    let printed = String::from_utf8(text.stdout.clone()).expect("text");
    assert!(printed.contains("Run closed") && printed.contains("report.html"), "{printed}");
    // Nobody reads colours in a file.
    for bytes in [&text.stdout, &text.stderr, &json.stderr] {
        assert!(!bytes.contains(&0x1B), "{}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn a_server_that_is_not_there_is_one_error_before_the_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let url = format!("http://{}/", port.local_addr().expect("it is bound"));
    drop(port);
    for url in [&*url, "unix:/nowhere/app.sock", "http://nowhere.invalid/"] {
        let output = output(&mut command(&quickly(url, folder.path(), &[])));
        let said = said(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(output.stdout.is_empty() && said.lines().count() == 1, "{said}");
        assert!(
            said.contains("cannot connect to") && said.contains("check the server and the URL"),
            "{said}"
        );
        assert!(!folder.path().join("report.json").exists(), "there is nothing to report");
    }
}

#[test]
fn misuse_is_refused_with_the_value_and_the_remedy() {
    let folder = tempfile::tempdir().expect("a folder");
    let starts = folder.path().join("starts");
    fs::write(&starts, "0.5\nsoon\n").expect("there is room");
    let starts = starts.to_str().expect("text");
    // Nobody listens there: what is wrong is found before anybody looks.
    let http = "http://127.0.0.1:1/";
    for (url, flags, named) in [
        (http, &["--rate", "0"][..], "above 0"),
        (http, &["--rate", "fast"], "'fast'"),
        (http, &["--users", "-1"], "at least 1"),
        (http, &["--users", "5", "--rate", "5"], "cannot be used with"),
        (http, &["--users", "5", "--stages", "1s:5"], "cannot be used with"),
        (http, &["--rate", "5", "--think-time", "1s"], "cannot be used with"),
        (http, &["--rate", "5", "--pacing", "1s"], "cannot be used with"),
        (http, &["--users", "5", "--arrivals", "poisson"], "cannot be used with"),
        (http, &["--users", "5", "--max-in-flight", "9"], "cannot be used with"),
        (http, &["--stages", "1s:5", "--duration", "9s"], "cannot be used with"),
        (http, &["--replay", starts, "--arrivals", "poisson"], "cannot be used with"),
        (http, &["--arrivals", "poisson"], "--arrivals is for arrivals"),
        (http, &["--max-in-flight", "9"], "give --rate"),
        (http, &["--stages", "1s:5", "--think-time", "1s"], "stages of users"),
        (http, &["--stages", "1s:5,1s:5users"], "not of both"),
        (http, &["--stages", "1s"], "10s:100users"),
        (http, &["--spike", "50"], "--rate"),
        (http, &["--replay", starts], "starts:2: \"soon\""),
        (http, &["--replay", "/nowhere/starts"], "/nowhere/starts"),
        (http, &["--arrivals", "often"], "poisson"),
        (http, &["--duration", "5ms"], "at least 100ms"),
        (http, &["--timeout", "0s"], "above 0"),
        (http, &["--think-time", "log:1s"], "exp:100ms"),
        (http, &["--requests", "0"], "at least 1"),
        (http, &["--threshold", "p95 <> 200ms"], "p95 <> 200ms"),
        (http, &["--tag", "main"], "branch=main"),
        (http, &["--method", "get"], "in capitals"),
        (http, &["--header", "s3cr3t"], "no colon"),
        (http, &["--body", "a", "--body-file", "b"], "cannot be used with"),
        (http, &["--body-file", "/nowhere/body"], "/nowhere/body"),
        (http, &["--scenario", "/nowhere/mix.toml"], "/nowhere/mix.toml"),
        (http, &["--scenario", "mix.toml", "--header", "a: b"], "cannot be used with"),
        (http, &["--out", "/proc/nowhere"], "/proc/nowhere"),
        (http, &["--transport", "pipe"], "--transport pipe is for a service of this process"),
        (http, &["--transport", "carrier-pigeon"], "direct, pipe, tcp or unix"),
        (http, &["--insecure"], "--insecure is for https://"),
        (http, &["--ca", "ca.pem"], "--ca is for https://"),
        ("https://h/", &["--ca", "/nowhere/ca.pem"], "/nowhere/ca.pem"),
        (http, &["--key-file", "/nowhere/keys"], "/nowhere/keys"),
        ("localhost:3000", &[], "http://127.0.0.1:3000"),
        ("ftp://me:s3cr3t@h/", &[], "\"ftp://…\""),
        (http, &["--fast"], "--fast"),
    ] {
        let arguments = quickly(url, folder.path(), flags);
        let output = output(&mut command(&arguments));
        let said = said(&output);
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {said}");
        assert!(output.stdout.is_empty(), "a refusal is no result");
        assert!(said.contains(named), "{flags:?} says: {said}");
        assert!(!said.contains("s3cr3t"), "{flags:?} says: {said}");
    }
}

#[test]
fn secrets_are_sent_and_shown_nowhere() {
    let (server, folder) = (Server::start(), tempfile::tempdir().expect("a folder"));
    let url = server.at("/echo?key=hunter2").replace("http://", "http://me:hunter2@");
    let flags = ["--header", "Authorization: Bearer hunter2", "--body", "hunter2"];
    let mut command = command(&quickly(&url, folder.path(), &flags));
    let output = output(command.env("PARALLAX_BYPASS_KEY", KEY));
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let (_, headers, body) =
        server.state.last.lock().expect("nobody panics").take().expect("it was asked");
    assert_eq!(
        (&headers["authorization"], &body[..]),
        (&"Bearer hunter2".parse().expect("a value"), &b"hunter2"[..])
    );
    let text = headers["x-parallax-bypass"].to_str().expect("text");
    let token = TokenKeys::parse(KEY).expect("a key").authenticate(text.as_bytes());
    let token = token.expect("the key has signed it");
    let mut all = vec![output.stdout, output.stderr];
    for file in fs::read_dir(folder.path()).expect("it is there") {
        all.push(fs::read(file.expect("it is there").path()).expect("it is readable"));
    }
    assert_eq!(all.len(), 10, "eight renderings and two streams");
    let mut named = 0;
    for bytes in all {
        let shown = String::from_utf8_lossy(&bytes);
        for secret in ["hunter2", "s3cr3t", text] {
            assert!(!shown.contains(secret), "{secret} is in {shown}");
        }
        named += usize::from(shown.contains(token.run()));
    }
    assert!(named >= 3, "the report says which token's run it was");
}

#[test]
fn with_the_services_key_the_load_passes_its_limiter_and_is_seen_from_both_sides() {
    let (server, folder) =
        (Server::that_lets_tokens_by(KEY), tempfile::tempdir().expect("a folder"));
    let url = server.at("/items/7");
    let run = |key: Option<&str>| {
        let mut command = command(&quickly(&url, folder.path(), &["--users", "2"]));
        key.map(|key| command.env("PARALLAX_BYPASS_KEY", key));
        let code = output(&mut command).status.code();
        (code, report(folder.path())["runs"][0].take())
    };
    let (code, passed) = run(Some(KEY));
    let counts = &passed["conservation"];
    assert_eq!((code, &counts["ok"]), (Some(0), &counts["sent"]), "{counts}");
    assert_eq!(&passed["pairs"]["paired"], &counts["sent"]);
    assert_eq!(passed["client"]["routes"][0]["route"], "GET /items/{id}", "as the server calls it");
    assert_eq!(passed["plan"]["bypasses_limiter"], true);
    let (code, limited) = run(None);
    let counts = &limited["conservation"];
    assert_eq!((code, &counts["limited"]), (Some(97), &counts["sent"]), "{counts}");
    // Another key than the service's is as good as none.
    let (code, _) = run(Some("ci:0123456789abcdef0123456789abcdef"));
    assert_eq!(code, Some(97));
}

#[test]
fn a_token_is_good_for_as_long_as_the_run_may_take_and_for_its_method_alone() {
    let (server, folder) = (Server::start(), tempfile::tempdir().expect("a folder"));
    let keys = folder.path().join("keys");
    fs::write(&keys, KEY).expect("there is room");
    let flags = ["--key-file", keys.to_str().expect("text"), "--requests", "3", "--duration", "1h"];
    let before = std::time::SystemTime::now();
    let output = output(&mut command(&quickly(&server.at("/echo"), folder.path(), &flags)));
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let seen = server.state.last.lock().expect("nobody panics").take().expect("it was asked");
    let token = TokenKeys::parse(KEY).expect("a key");
    let token = token.authenticate(seen.1["x-parallax-bypass"].as_bytes()).expect("it is good");
    let lasts = token.expires().duration_since(before).expect("it is later").as_secs();
    assert!((3_600..3_600 + 300).contains(&lasts), "{lasts} s");
    let expected = parallax_middleware::BypassToken::until(token.expires(), token.run());
    assert_eq!(token, expected.method(http::Method::GET));
}

#[test]
fn a_scenario_file_says_what_is_asked_for_below_the_path_of_the_url() {
    let (server, folder) = (Server::start(), tempfile::tempdir().expect("a folder"));
    let file = folder.path().join("mix.toml");
    let steps = "[[flow.step]]\nname = 'look'\npath = '/echo'\n\
                 [[flow.step]]\nname = 'buy'\nmethod = 'POST'\npath = '/echo'\n";
    fs::write(&file, format!("[[flow]]\nname = 'visit'\n{steps}")).expect("there is room");
    let flags = ["--scenario", file.to_str().expect("text"), "--users", "1"];
    let output = output(
        command(&quickly(&server.at("/"), folder.path(), &flags)).env("PARALLAX_BYPASS_KEY", KEY),
    );
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let run = &report(folder.path())["runs"][0];
    assert_eq!(run["plan"]["mix"][0][0], "visit");
    let routes = run["client"]["routes"].as_array().expect("a list");
    assert!(routes.iter().any(|route| route["route"] == "buy"), "{routes:?}");
    let seen = server.state.last.lock().expect("nobody panics").take().expect("it was asked");
    assert!(seen.1.contains_key("x-parallax-bypass"), "every request has the token");
}

#[test]
fn a_file_of_thresholds_is_judged_route_by_route_beside_those_of_the_flags() {
    let (server, folder) = (Server::start(), tempfile::tempdir().expect("a folder"));
    let file = folder.path().join("slo.toml");
    let table = "\"*\" = ['errors < 50%']\n\"GET /echo\" = ['p50 < 9s', 'lag p50 < 9s']\n";
    fs::write(&file, table).expect("there is room");
    let file = file.to_str().expect("text");
    let flags = ["--thresholds", file, "--threshold", "p90 < 9s", "--users", "1"];
    let output = output(&mut command(&quickly(&server.at("/echo"), folder.path(), &flags)));
    let results = report(folder.path())["runs"][0]["thresholds"].clone();
    let results = results.as_array().expect("a list").iter().map(|result| &result["expression"]);
    assert_eq!(
        results.collect::<Vec<_>>(),
        [
            "p90 < 9s",
            "errors < 50%",
            "response_time p50{route=\"GET /echo\"} < 9s",
            "lag p50{route=\"GET /echo\"} < 9s",
        ],
        "{}",
        said(&output)
    );
    assert!([Some(0), Some(98)].contains(&output.status.code()), "{}", said(&output));
}

#[test]
fn a_file_of_thresholds_with_a_mistake_is_refused_with_its_place() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("slo.toml");
    fs::write(&file, "\n\"GET /\" = [\"p99 < 25m\"]\n").expect("there is room");
    let flags = ["--thresholds", file.to_str().expect("text")];
    let output = output(&mut command(&quickly("http://127.0.0.1:1", folder.path(), &flags)));
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("slo.toml:2:21: `m` does not fit"), "{}", said(&output));
}

#[test]
fn a_scenario_file_with_a_mistake_is_refused_with_its_place() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("mix.toml");
    fs::write(&file, "[[request]]\npath = '/items/{{id}}'\n").expect("there is room");
    let flags = ["--scenario", file.to_str().expect("text")];
    let output = output(&mut command(&quickly("http://127.0.0.1:1", folder.path(), &flags)));
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("mix.toml:2:"), "{}", said(&output));
}
