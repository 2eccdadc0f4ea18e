//! What a file may say, and what is said of one that says something else.

use std::env::VarError;

use super::*;

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

#[test]
fn each_mistake_is_told_with_its_place_what_it_is_and_a_remedy() {
    let flow = "[[flow]]\nname = 'order'\n[[flow.step]]\nname = 'read'\n";
    let of_step = |line: &str| format!("{flow}path = '/'\n{line}\n");
    for (text, expected) in [
        // Of TOML, and of the tables.
        ("[[request]\n".to_owned(), "?"),
        ("[[request]]\npath = '/'\npth = '/'\n".to_owned(), "?"),
        ("[[request]]\nname = 'x'\n".to_owned(), "?"),
        ("[[request]]\npath = 7\n".to_owned(), "?"),
        ("[[request]]\npath = '/'\nweight = -1\n".to_owned(), "?"),
        ("[data.users]\nfile = 'users.csv'\npick = 'any'\n".to_owned(), "?"),
        (of_step("extract.id = { xml = '/id' }"), "?"),
        (of_step("extract.id = { json = '/id', header = 'x' }"), "?"),
        // Of the whole.
        ("".to_owned(), "?"),
        ("[[request]]\npath = '/'\nweight = 0\n".to_owned(), "?"),
        (format!("{0}weight = 4294967295\n{0}name = 'b'\n", "[[request]]\npath = '/'\n"), "?"),
        (format!("{0}{0}", "[[request]]\npath = '/'\n"), "?"),
        ("[[flow]]\nname = 'order'\n".to_owned(), "?"),
        (of_step("[[flow.step]]\nname = 'read'\npath = '/'"), "?"),
        (of_step("weight = 2"), "?"),
        ("[[request]]\nname = ''\npath = '/'\n".to_owned(), "?"),
        ("[[request]]\nname = 'a {{b}}'\npath = '/'\n".to_owned(), "?"),
        ("[[request]]\npath = '/'\npause = '1s'\n".to_owned(), "?"),
        ("[[request]]\npath = '/'\nextract.id = { json = '/id' }\n".to_owned(), "?"),
        // Of names.
        (of_step("headers = { a = 'b', c = 'é {{order_id}}' }"), "?"),
        (of_step("body = '{{users.mail}}'\n[data.users]\nfile = 'users.csv'"), "?"),
        (
            of_step(
                "body = '{{user.email}}'\n[data.users]\nfile = 'users.csv'\n[variables]\na = 1",
            ),
            "?",
        ),
        (of_step("body = '{{env.NONE}}'"), "?"),
        (of_step("body = '{{random.integer(1,2)}}'"), "?"),
        (of_step("body = '{{random.float}}'"), "?"),
        (of_step("body = '{{random.int(2,1)}}'"), "?"),
        (of_step("body = '{{random.int(1)}}'"), "?"),
        (of_step("body = '{{random.choice()}}'"), "?"),
        (of_step("body = '{{random.uuid()}}'"), "?"),
        (of_step("body = 'a {{b'"), "?"),
        (of_step("body = 'a {{b c}}'"), "?"),
        (of_step("[variables]\na = '{{b}}'"), "?"),
        (of_step("[variables]\na = '{{random.uuid}}'"), "?"),
        (of_step("[variables]\na = [1]"), "?"),
        (of_step("[variables]\nenv = 'a'"), "?"),
        (of_step("[variables]\n'a b' = 'a'"), "?"),
        (of_step("extract.a = { json = '/id' }\n[variables]\na = 1"), "?"),
        (of_step("extract.'1a' = { json = '/id' }"), "?"),
        (of_step("[data.a]\nfile = 'users.csv'\n[variables]\na = 1"), "?"),
        // Of data.
        (of_step("[data.users]\nfile = 'missing.csv'"), "?"),
        (of_step("[data.users]\nfile = 'shop.toml'"), "?"),
        (of_step("body = '{{users.email}}'\n[data.users]\nfile = 'bad.csv'"), "?"),
        // Of requests.
        (of_step("method = 'get'"), "?"),
        ("[[request]]\npath = 'items'\n".to_owned(), "?"),
        ("[[request]]\npath = '/a b'\n".to_owned(), "?"),
        ("[[request]]\npath = '/a#b'\n".to_owned(), "?"),
        ("[[request]]\npath = '{{random.uuid}} /'\n".to_owned(), "?"),
        ("[[request]]\npath = '{{base}}'\n[variables]\nbase = 'shop'\n".to_owned(), "?"),
        ("[[request]]\npath = '{{env.API_KEY}}/a'\n".to_owned(), "?"),
        (of_step("headers = { 'a b' = 'c' }"), "?"),
        (of_step("headers = { a-b = 'c', A-B = 'd' }"), "?"),
        (of_step("headers = { a = \"b\\nc\" }"), "?"),
        (of_step("headers = { a = '{{env.BROKEN}}' }"), "?"),
        (of_step("body = 'a'\njson = 1"), "?"),
        (of_step("form = { a = 'b' }\nbody = 'a'"), "?"),
        (of_step("json = { a = [nan] }"), "?"),
        (of_step("json = { a = 2026-01-01 }"), "?"),
        (of_step("json = { 'a {{b}}' = 1 }"), "?"),
        (of_step("json = { a = { b = ['{{c}}'] } }"), "?"),
        (of_step("[flow.step.json]\na = 1\nb = '{{c}}'"), "?"),
        (of_step("pause = 'soon'"), "?"),
        (of_step("pause = { median = '1s' }"), "?"),
        (of_step("pause = '3y'"), "?"),
        // Of checks and what is extracted.
        (of_step("check.status = 20"), "?"),
        (of_step("check.status = ['6xx', 200]"), "?"),
        (of_step("check.status = []"), "?"),
        (of_step("check.json = { state = 'open' }"), "?"),
        (of_step("check.json = { '/state' = '{{state}}' }"), "?"),
        (of_step("check.header = { 'a b' = 'c' }"), "?"),
        (of_step("check.header = { a = '{{c}}' }"), "?"),
        (of_step("check.body_contains = '{{c}}'"), "?"),
        (of_step("check.max_bytes = -1"), "?"),
        (of_step("check.go_on = true"), "?"),
        (of_step("extract.id = { json = 'id' }"), "?"),
        (of_step("extract.id = { header = 'a b' }"), "?"),
    ] {
        let actual = wrong(&text);
        if actual != expected {
            eprintln!("@@{text}@@{actual}@@");
        }
    }
}
