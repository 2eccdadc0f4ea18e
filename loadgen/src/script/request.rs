//! A request with places for values.

use std::fmt;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Uri, header, uri::PathAndQuery};

use super::{
    error::Source,
    json::Json,
    scope::Scope,
    secrets::Secrets,
    table,
    template::{Encoding, Known, Template, push_encoded},
};

#[derive(Clone, Debug)]
pub(super) struct Blueprint {
    method: Method,
    path: Made<Uri>,
    headers: Vec<(HeaderName, Made<HeaderValue>)>,
    body: Body,
    /// Nothing can go wrong with it.
    pub(super) certain: bool,
}

/// What is made when the file is read, if it is always the same, or else for each request.
#[derive(Clone, Debug)]
enum Made<T> {
    Once(T),
    EachTime(Template),
}

#[derive(Clone, Debug)]
enum Body {
    Once(Bytes),
    Text(Template),
    Json(Json),
    Form(Vec<(String, Template)>),
}

const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

impl Blueprint {
    pub(super) fn new(
        source: &mut Source<'_>,
        scope: &mut Scope<'_, '_>,
        step: &table::Step,
        who: &dyn fmt::Display,
    ) -> Self {
        let mut certain = true;
        let method = method(source, step, who);
        let path = path(source, scope, step, who, &mut certain);
        let (body, content_type) = body(source, scope, step, who);
        let mut headers = headers(source, scope, step, who, &mut certain);
        if let Some(content_type) = content_type
            && !headers.iter().any(|(name, _)| name == header::CONTENT_TYPE)
        {
            let value = HeaderValue::from_static(content_type);
            headers.push((header::CONTENT_TYPE, Made::Once(value)));
        }
        Self { method, path, headers, body, certain }
    }

    /// The request, or else why there is none, with nothing secret in it.
    pub(super) fn build(
        &self,
        known: &mut Known<'_>,
        secrets: &Secrets,
    ) -> Result<Request<Bytes>, String> {
        let mut request = Request::new(Bytes::new());
        request.method_mut().clone_from(&self.method);
        *request.uri_mut() = match &self.path {
            Made::Once(uri) => uri.clone(),
            Made::EachTime(template) => uri(&template.render(Encoding::Path, known), secrets)?,
        };
        request.headers_mut().reserve(self.headers.len());
        for (name, value) in &self.headers {
            let value = match value {
                Made::Once(value) => value.clone(),
                Made::EachTime(template) => {
                    let text = template.render(Encoding::Plain, known);
                    header_value(template, &text).ok_or_else(|| {
                        let text = secrets.hide(&text);
                        format!("the header {name} cannot be {text:?}: it has a control character")
                    })?
                }
            };
            request.headers_mut().insert(name.clone(), value);
        }
        *request.body_mut() = match &self.body {
            Body::Once(body) => body.clone(),
            Body::Text(template) => template.render(Encoding::Plain, known).into(),
            Body::Json(json) => json.render(known).to_string().into(),
            Body::Form(fields) => {
                form(fields, |template| template.render(Encoding::Form, known)).into()
            }
        };
        Ok(request)
    }
}

/// The path and query of a path, or of a whole URL, as a `location` may be one.
fn uri(text: &str, secrets: &Secrets) -> Result<Uri, String> {
    let parsed: Result<Uri, _> = text.parse();
    // Hidden first: as `{:?}` escapes a secret, it is another text.
    let text = secrets.hide(text);
    match parsed.map(Uri::into_parts) {
        Ok(parts) => match parts.path_and_query {
            Some(path) if path.as_str().starts_with('/') => Ok(path.into()),
            _ => Err(format!("its path {text:?} does not begin with \"/\"")),
        },
        Err(error) => Err(format!("its path {text:?} is none: {error}")),
    }
}

fn header_value(template: &Template, text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(template.secret);
    Some(value)
}

fn method(source: &mut Source<'_>, step: &table::Step, who: &dyn fmt::Display) -> Method {
    let Some(method) = &step.method else { return Method::GET };
    if METHODS.contains(&method.get_ref().as_str())
        && let Ok(method) = method.get_ref().parse()
    {
        return method;
    }
    let known = METHODS.join(", ");
    let what = format!("{who} has the method {:?}; known are: {known}", method.get_ref());
    source.wrong(method.span(), what);
    Method::GET
}

fn path(
    source: &mut Source<'_>,
    scope: &mut Scope<'_, '_>,
    step: &table::Step,
    who: &dyn fmt::Display,
    certain: &mut bool,
) -> Made<Uri> {
    let (at, text) = (step.path.span(), step.path.get_ref());
    let template = scope.template(source, at.clone(), text, who);
    let constant = template.constant(Encoding::Path);
    *certain &= constant.is_some() || template.is_certain(Encoding::Path);
    let sample = constant.clone().unwrap_or_else(|| template.sample(Encoding::Path));
    let wrong = if template.parts.is_empty() && !text.is_empty() {
        // That it cannot be read is told already.
        None
    } else if !sample.starts_with('/') {
        Some("a path begins with \"/\"".to_owned())
    } else if sample.contains('#') {
        Some("a fragment is not sent: write \"#\" as %23".to_owned())
    } else {
        let parsed = PathAndQuery::try_from(sample.as_str()).err();
        parsed.map(|error| format!("{error}: write a space as %20, and \"%\" as %25"))
    };
    if let Some(wrong) = wrong {
        // The value may be secret: the path is told as it is written.
        source.wrong(at, format!("{who} has the path {text:?}; {wrong}"));
    } else if let Some(Ok(uri)) = constant.as_deref().map(|path| uri(path, &Secrets::default())) {
        return Made::Once(uri);
    }
    Made::EachTime(template)
}

fn headers(
    source: &mut Source<'_>,
    scope: &mut Scope<'_, '_>,
    step: &table::Step,
    who: &dyn fmt::Display,
    certain: &mut bool,
) -> Vec<(HeaderName, Made<HeaderValue>)> {
    let mut headers: Vec<(HeaderName, _)> = Vec::with_capacity(step.headers.len());
    for (key, value) in &step.headers {
        let template = scope.template(source, value.span(), value.get_ref(), who);
        let Some(name) = header_name(source, key, who) else { continue };
        if headers.iter().any(|(known, _)| *known == name) {
            let same = "names are the same in small letters and in capitals";
            source.wrong(key.span(), format!("{who} has the header {name} twice; {same}"));
        }
        let constant = template.constant(Encoding::Plain);
        let is_constant = constant.is_some();
        let made = match header_value(&template, &constant.unwrap_or_else(|| template.text_alone()))
        {
            Some(value) if is_constant => Made::Once(value),
            Some(_) => Made::EachTime(template.clone()),
            None => {
                let what = format!(
                    "{who} has a value of the header {name} with a control character; take it out"
                );
                source.wrong(value.span(), what);
                continue;
            }
        };
        *certain &= is_constant || template.is_certain(Encoding::Plain);
        headers.push((name, made));
    }
    headers
}

/// The name of a header, if it is one.
pub(super) fn header_name(
    source: &mut Source<'_>,
    key: &table::Text,
    who: &dyn fmt::Display,
) -> Option<HeaderName> {
    let name = HeaderName::try_from(key.get_ref()).ok();
    if name.is_none() {
        let what = format!(
            "{who} names a header {:?}; a header's name has letters, digits and \"-\"",
            key.get_ref()
        );
        source.wrong(key.span(), what);
    }
    name
}

fn body(
    source: &mut Source<'_>,
    scope: &mut Scope<'_, '_>,
    step: &table::Step,
    who: &dyn fmt::Display,
) -> (Body, Option<&'static str>) {
    let given = [
        step.body.as_ref().map(|body| ("body", body.span())),
        step.json.as_ref().map(|json| ("json", json.span())),
        step.form.as_ref().map(|form| ("form", form.span())),
    ];
    let mut given = given.into_iter().flatten();
    if let (Some((first, _)), Some((second, at))) = (given.next(), given.next()) {
        source
            .wrong(at, format!("{who} has both `{first}` and `{second}`; a request has one body"));
    }
    if let Some(json) = &step.json {
        let json = Json::new(source, scope, &json.span(), json.get_ref(), who);
        let body = match json {
            Json::Fixed(value) => Body::Once(value.to_string().into()),
            json => Body::Json(json),
        };
        return (body, Some("application/json"));
    }
    if let Some(fields) = &step.form {
        let fields: Vec<(String, Template)> = fields
            .get_ref()
            .iter()
            .map(|(key, value)| {
                let template = scope.template(source, value.span(), value.get_ref(), who);
                (key.get_ref().clone(), template)
            })
            .collect();
        return (Body::Form(fields), Some("application/x-www-form-urlencoded"));
    }
    let Some(text) = &step.body else { return (Body::Once(Bytes::new()), None) };
    let template = scope.template(source, text.span(), text.get_ref(), who);
    let body = match template.constant(Encoding::Plain) {
        Some(text) => Body::Once(text.into()),
        None => Body::Text(template),
    };
    (body, None)
}

fn form(fields: &[(String, Template)], mut value: impl FnMut(&Template) -> String) -> String {
    let mut text = String::new();
    for (n, (name, template)) in fields.iter().enumerate() {
        if n > 0 {
            text.push('&');
        }
        push_encoded(&mut text, name);
        text.push('=');
        text.push_str(&value(template));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{random::stream, script::template::Part};

    #[test]
    fn why_there_is_no_request_shows_no_secret_whatever_characters_it_has() {
        let value = "a\"b\\c\td\u{7}";
        let mut secrets = Secrets::default();
        secrets.add("KEY", value);
        let secret = Template { parts: vec![Part::Constant(value.into())], secret: true };
        let blueprint = Blueprint {
            method: Method::GET,
            path: Made::Once(Uri::from_static("/")),
            headers: vec![(header::COOKIE, Made::EachTime(secret))],
            body: Body::Once(Bytes::new()),
            certain: false,
        };
        let mut random = stream(1, "", 0);
        let mut known = Known { values: &[], rows: &[], random: &mut random };
        let header = blueprint.build(&mut known, &secrets).expect_err("it is no value of a header");
        for why in [header, uri(value, &secrets).expect_err("it is no path")] {
            assert!(why.contains("\"{{env.KEY}}\"") && !why.contains("b\\"), "{why}");
        }
    }
}
