//! What a file may say, and what is said of one that says something else.

use std::env::VarError;

use http::{HeaderMap, HeaderValue};
use proptest::{collection, prelude::*, sample};
use serde_json::json;

use super::*;
use crate::scenario::{Action, stream};

fn environment(name: &str) -> Result<String, VarError> {
    match name {
        "API_KEY" => Ok("s3cr3t".to_owned()),
        "BROKEN" => Ok("a\nb".to_owned()),
        _ => Err(VarError::NotPresent),
    }
}

fn read(text: &str) -> Result<Scenario, ScriptError> {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| {
        fs::write(folder.path().join(name), text).expect("the folder is writable");
    };
    write("users.csv", "email,password\nann@example.com,tea\n");
    write("bad.csv", "email\na,b\n");
    compile(text, &folder.path().join("shop.toml"), &environment).map_err(|error| {
        // What the folder is called is another matter.
        let text = error.to_string().replace(&format!("{}/", folder.path().display()), "");
        ScriptError::of_file(Path::new(""), text)
    })
}

/// What is wrong, without the name of a file that there is not.
fn wrong(text: &str) -> String {
    let error = read(text).expect_err(text).to_string();
    error.strip_prefix(": ").expect("it has no file").to_owned()
}

/// Scenarios, and what is said of each after `=>`.
const MISTAKES: &str = include_str!("mistakes.txt");

#[test]
fn each_mistake_is_told_with_its_place_what_it_is_and_a_remedy() {
    let cases = MISTAKES.split("\n\n").filter(|case| !case.starts_with("## "));
    for case in cases {
        let is_told = |line: &&str| line.starts_with("=> ");
        let text: Vec<&str> = case.lines().filter(|line| !is_told(line)).collect();
        let told: Vec<&str> = case.lines().filter(is_told).map(|line| &line[3..]).collect();
        assert_eq!(wrong(&text.join("\n")), told.join("\n"), "{case}");
    }
}

#[test]
fn no_error_shows_the_value_of_an_environment_variable() {
    for text in [
        "[[request]]\npath = '{{env.API_KEY}}'",
        "[[request]]\npath = '/{{env.API_KEY}}/{{key}}{{none}}'\n[variables]\nkey = '{{env.API_KEY}}'",
        "[[request]]\npath = 'a'\nheaders = { a = \"{{env.API_KEY}}\\n\" }\njson = '{{env.API_KEY}}'",
    ] {
        let error = wrong(text);
        assert!(!error.contains("s3cr3t"), "{error}");
    }
    let scenario = read("[[request]]\npath = '/'\nheaders.key = '{{env.API_KEY}}'").expect("right");
    assert!(!format!("{scenario:?}").contains("s3cr3t"));
}

#[test]
fn a_request_by_itself_is_named_by_its_method_and_path() {
    let text = "
        [[request]]
        path = '/items/{{ users.email }}?n={{random.int(1,2)}}'
        method = 'DELETE'
        [[request]]
        name = 'all'
        weight = 3
        path = '/items'
        [data.users]
        file = 'users.csv'
    ";
    let mix = read(text).expect("it is right").weights();
    assert_eq!(mix, [("DELETE /items/{users.email}".to_owned(), 1), ("all".to_owned(), 3)]);
}

/// What is sent by a mix that needs no session: method, path, and the rest.
fn sent(text: &str, seed: u64, n: usize) -> Vec<(String, HeaderMap, String)> {
    let scenario = read(text).expect("it is right");
    let mut random = stream(seed, "", 0);
    let mut sent = Vec::new();
    for _ in 0..n {
        let (_, Action::Request(build)) = scenario.draw(&mut random) else {
            panic!("it needs a session")
        };
        let request = build(&mut random);
        let line = format!("{} {}", request.method(), request.uri());
        let body = String::from_utf8(request.body().to_vec()).expect("it is text");
        sent.push((line, request.headers().clone(), body));
    }
    sent
}

#[test]
fn a_request_is_what_its_table_says() {
    let text = r#"
        [variables]
        base = "/a b"
        n = 2
        on = true
        [data.users]
        file = "users.csv"
        [[request]]
        method = "PUT"
        path = "/x{{base}}?q={{users.email}}&n={{n}}"
        headers = { X-Key = "{{env.API_KEY}}", accept = "*/*" }
        json = { n = "{{n}}", text = "n{{n}}", on = "{{on}}", who = ["{{users.email}}", 1.5], "{" = {} }
    "#;
    let (line, headers, body) = sent(text, 1, 1).remove(0);
    assert_eq!(line, "PUT /x%2Fa%20b?q=ann%40example.com&n=2");
    assert_eq!((&headers["x-key"], headers["x-key"].is_sensitive()), (&value("s3cr3t"), true));
    assert_eq!(headers["accept"], value("*/*"));
    assert_eq!(headers["content-type"], value("application/json"));
    let body: serde_json::Value = serde_json::from_str(&body).expect("it is JSON");
    let who = json!(["ann@example.com", 1.5]);
    assert_eq!(body, json!({ "n": 2, "text": "n2", "on": true, "who": who, "{": {} }));
}

fn value(text: &str) -> HeaderValue {
    text.parse().expect("a value of a header")
}

#[test]
fn values_in_a_form_are_encoded_and_in_a_body_they_are_not() {
    let form = "
        [[request]]
        path = '/'
        form = { 'a b' = 'c&{{users.email}}', d = '{{env.BROKEN}}' }
        [data.users]
        file = 'users.csv'
    ";
    let (_, headers, body) = sent(form, 1, 1).remove(0);
    assert_eq!(body, "a%20b=c%26ann%40example.com&d=a%0Ab");
    assert_eq!(headers["content-type"], value("application/x-www-form-urlencoded"));
    let text = r#"
        [[request]]
        path = '/'
        headers = { Content-Type = 'text/plain' }
        body = '{{"{{"}} {"a": {"b": {{n}}}}'
        [variables]
        n = 1
    "#;
    let (_, headers, body) = sent(text, 1, 1).remove(0);
    assert_eq!(body, r#"{{ {"a": {"b": 1}}"#);
    assert_eq!(headers["content-type"], value("text/plain"));
    let own =
        "[[request]]\npath = '/'\nheaders.Content-Type = 'application/problem+json'\njson = 1";
    let (_, headers, body) = sent(own, 1, 1).remove(0);
    let types: Vec<_> = headers.get_all("content-type").iter().collect();
    assert_eq!((types, body.as_str()), (vec![&value("application/problem+json")], "1"));
}

#[test]
fn the_same_seed_sends_the_same_requests_and_another_does_not() {
    let text = "
        [[request]]
        path = '/{{random.uuid}}'
        [[request]]
        path = '/{{random.choice(a,b)}}/{{random.int(1,9)}}'
        weight = 2
    ";
    assert_eq!(sent(text, 1, 50), sent(text, 1, 50));
    assert_ne!(sent(text, 1, 50), sent(text, 2, 50));
}

#[test]
fn what_needs_a_session_is_a_flow_and_what_does_not_is_a_request() {
    let is_flow = |line: &str, path: &str| {
        let text = format!(
            "
            [[request]]
            path = '{path}'
            {line}
            [[setup]]
            path = '/'
            extract.token = {{ cookie = 'token' }}
            [data]
            users = {{ file = 'users.csv' }}
            each = {{ file = 'users.csv', pick = 'once' }}
            [variables]
            base = '/a'
            "
        );
        let scenario = read(&text).expect("it is right");
        let (_, action) = scenario.draw(&mut stream(1, "", 0));
        matches!(action, Action::Flow(_))
    };
    for (line, path) in [
        ("", "/{{users.email}}"),
        ("", "{{base}}/b"),
        ("headers.a = 'n{{random.int(1,2)}}'", "/"),
        ("body = '{{users.email}}'", "/"),
    ] {
        assert!(!is_flow(line, path), "{line} {path}");
    }
    for (line, path) in [
        // What a row holds may be no value of a header, and no path.
        ("headers.a = '{{users.email}}'", "/"),
        ("", "{{users.email}}"),
        ("headers.a = '{{token}}'", "/"),
        ("body = '{{token}}'", "/"),
        // There may be no row left.
        ("body = '{{each.email}}'", "/"),
        ("check.status = 200", "/"),
    ] {
        assert!(is_flow(line, path), "{line} {path}");
    }
}

/// Texts that are nearly scenarios: some of these lines, in any order.
fn lines() -> impl Strategy<Value = String> {
    let all = MISTAKES.lines().chain(include_str!("../../examples/shop.toml").lines());
    let line = sample::select(all.collect::<Vec<_>>());
    collection::vec(line, 0..12).prop_map(|lines| lines.join("\n"))
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in prop_oneof![lines(), any::<String>()]) {
        let _ = compile(&text, Path::new("/nowhere/shop.toml"), &environment);
    }

    #[test]
    fn no_place_for_a_value_makes_the_reader_panic(text in "[{}a.\"(), é/?#%-]{0,20}") {
        let text = format!("[[request]]\npath = '/{text}'\nbody = '{text}'\nheaders.a = '{text}'");
        let _ = compile(&text, Path::new("/nowhere/shop.toml"), &environment);
    }

    #[test]
    fn a_request_that_needs_no_session_can_always_be_built(
        cell in "[^\"\0]{0,300}", text in "[a-z/?&=.-]{0,9}", seed: u64,
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("d.csv"), format!("cell\n\"{cell}\"\n")).expect("writable");
        let text = format!(
            "
            [[request]]
            path = '/{text}{{{{d.cell}}}}{{{{random.choice(a b,é)}}}}{{{{random.uuid}}}}'
            headers.a = '{text}{{{{random.int(-5,5)}}}}'
            body = '{{{{d.cell}}}}'
            [data.d]
            file = 'd.csv'
            "
        );
        let scenario = compile(&text, &folder.path().join("a.toml"), &environment);
        let mut random = stream(seed, "", 0);
        prop_assert_eq!(scenario.expect("it is right").one_of_each(&mut random).len(), 1);
    }
}

const SHOP: &str = include_str!("../../examples/shop.toml");
const GUIDE: &str = include_str!("../../../docs/guide/scenarios.md");
const SCHEMA: &str = include_str!("../../../docs/scenario.schema.json");

fn schema() -> jsonschema::Validator {
    let schema = serde_json::from_str(SCHEMA).expect("the schema is JSON");
    jsonschema::meta::validate(&schema).expect("the schema is a schema");
    jsonschema::validator_for(&schema).expect("its references resolve")
}

/// TOML as a schema sees it.
fn as_json(text: &str) -> serde_json::Value {
    let table: toml::Table = toml::from_str(text).expect("it is TOML");
    serde_json::to_value(table).expect("it has no keys but texts")
}

#[test]
fn the_examples_are_read_and_fit_the_schema() {
    let blocks = GUIDE.split("```toml\n").skip(1);
    let examples = blocks.map(|rest| rest.split("```").next().unwrap_or_default());
    let examples: Vec<&str> = examples.chain([SHOP]).collect();
    assert_eq!(examples.len(), 5);
    let schema = schema();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/shop.toml");
    for text in examples {
        compile(text, &path, &|_| Ok("t".to_owned())).unwrap_or_else(|error| panic!("{error}"));
        let errors: Vec<_> = schema.iter_errors(&as_json(text)).map(|e| e.to_string()).collect();
        assert!(errors.is_empty(), "{text}: {errors:?}");
    }
}

#[test]
fn what_the_reader_refuses_for_its_structure_the_schema_refuses_too() {
    let schema = schema();
    let request = "[[request]]\npath = '/'\n";
    let flow = "[[flow]]\nname = 'a'\n[[flow.step]]\npath = '/'\n";
    let within = |table: &str, line: &str| format!("{table}{line}\n");
    for text in [
        String::new(),
        "request = []".to_owned(),
        within("", "[[requests]]\npath = '/'"),
        within("", "[[request]]\nname = 'a'"),
        within("", "[[request]]\npath = 'items'"),
        within("", "[[flow]]\nname = 'a'"),
        within("", "[[flow]]\nname = 'a'\nstep = []"),
        within("", "[[flow]]\n[[flow.step]]\npath = '/'"),
        within(request, "pth = '/'"),
        within(request, "name = ''"),
        within(request, "name = 'a {{b}}'"),
        within(request, "weight = -1"),
        within(request, "weight = 1.5"),
        within(request, "weight = 4294967296"),
        within(request, "method = 'get'"),
        within(request, "headers = { a = 1 }"),
        within(request, "headers = { 'a b' = '1' }"),
        within(request, "body = 'a'\njson = 1"),
        within(request, "form = {}\njson = 1"),
        within(request, "pause = '1s'"),
        within(request, "extract.a = { json = '/a' }"),
        within(request, "check.status = 20"),
        within(request, "check.status = '6xx'"),
        within(request, "check.status = []"),
        within(request, "check.state = 'open'"),
        within(request, "check.json = { state = 'open' }"),
        within(request, "check.max_bytes = -1"),
        within(request, "check = { status = 200, go_on = 1 }"),
        within(request, "[variables]\na = [1]"),
        within(request, "[variables]\nenv = 1"),
        within(request, "[variables]\n'a b' = 1"),
        within(request, "[data.a]"),
        within(request, "[data.a]\nfile = 'users.txt'"),
        within(request, "[data.a]\nfile = 'users.csv'\npick = 'any'"),
        within(request, "[data.random]\nfile = 'users.csv'"),
        within(request, "[[setup]]\npath = '/'\nweight = 1"),
        within(flow, "weight = 1"),
        within(flow, "pause = 'soon'"),
        within(flow, "pause = 5"),
        within(flow, "pause = { median = '1s' }"),
        within(flow, "extract.a = {}"),
        within(flow, "extract.a = { xml = '/a' }"),
        within(flow, "extract.a = { json = '/a', header = 'a' }"),
        within(flow, "extract.a = { json = 'a' }"),
        within(flow, "extract.'1a' = { json = '/a' }"),
    ] {
        assert!(read(&text).is_err(), "read: {text}");
        assert!(!schema.is_valid(&as_json(&text)), "fits: {text}");
    }
    for text in [request, flow] {
        assert!(read(text).is_ok() && schema.is_valid(&as_json(text)), "{text}");
    }
}
