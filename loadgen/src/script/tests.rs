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
