//! The OpenAPI document and the pages that show it.

use super::*;

/// The document and the table of routes say the same, and every example in it is taken.
#[tokio::test]
async fn the_document_is_true() {
    let document = docs::document(&Config::default());
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let mut documented: BTreeMap<(String, String), &Value> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| {
            item.as_object()
                .unwrap()
                .iter()
                .map(move |(method, operation)| ((path.clone(), method.to_uppercase()), operation))
        })
        .collect();
    for path in FOR_READERS {
        let operation = documented.remove(&(path.to_owned(), "GET".to_owned())).expect(path);
        assert!(operation["summary"].is_string() && operation["operationId"].is_string(), "{path}");
        assert!(operation["responses"]["200"]["content"]["text/event-stream"].is_object(), "{path}");
    }
    let routed: BTreeMap<(String, String), bool> =
        table().into_iter().map(|route| ((route.path.to_owned(), route.method.to_string()), route.key)).collect();
    assert_eq!(documented.keys().collect::<Vec<_>>(), routed.keys().collect::<Vec<_>>());

    let names: std::collections::BTreeSet<&str> =
        documented.values().map(|operation| operation["operationId"].as_str().unwrap()).collect();
    assert_eq!(names.len(), documented.len(), "every operation has a name of its own");

    let server = Server::answering(obliging);
    for ((path, method), operation) in documented {
        let keyed = routed[&(path.clone(), method.clone())];
        assert_eq!(operation["security"].is_array(), keyed, "{method} {path}");
        assert!(operation["summary"].is_string(), "{method} {path} says what it does");
        let responses = operation["responses"].as_object().unwrap();
        assert_eq!(responses.contains_key("401"), keyed, "{method} {path}");

        let mut called = path.clone();
        for parameter in
            operation["parameters"].as_array().into_iter().flatten().filter(|parameter| parameter["in"] == "path")
        {
            let example = parameter["example"].as_str().expect("path parameters have examples");
            called = called.replace(&format!("{{{}}}", parameter["name"].as_str().unwrap()), example);
        }
        let body = operation
            .get("requestBody")
            .map(|body| example(&document, &body["content"]["application/json"]["schema"]).to_string());
        let mut request = HttpRequest::builder().method(method.as_str()).uri(&called).header("X-API-Key", KEY);
        if body.is_some() {
            request = request.header("Content-Type", "application/json");
        }
        let (parts, answer) = server.send(request.body(Body::from(body.unwrap_or_default())).unwrap()).await;
        let status = parts.status.as_u16();
        assert!(parts.status.is_success(), "{method} {called}: {status} {}", String::from_utf8_lossy(&answer));
        assert!(responses.contains_key(&status.to_string()), "{method} {path} does not document {status}");
        let schema = &responses[&status.to_string()]["content"]["application/json"]["schema"];
        if !schema.is_null() {
            fits(&document, schema, &serde_json::from_slice(&answer).unwrap(), &format!("{method} {path}"));
        }
    }
    every_reference_resolves(&document, &document);
}

fn resolved<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(reference) => document.pointer(&reference[1..]).expect("the reference resolves"),
        None => schema,
    }
}

/// The schema's example, or one made of those of its fields.
fn example(document: &Value, schema: &Value) -> Value {
    let schema = resolved(document, schema);
    if let Some(example) = schema.get("example") {
        return example.clone();
    }
    let fields = schema["properties"].as_object().expect("an example or fields with examples");
    Value::Object(fields.iter().map(|(name, field)| (name.clone(), example(document, field))).collect())
}

/// Whether an answer has the required fields and no undocumented ones.
fn fits(document: &Value, schema: &Value, value: &Value, at: &str) {
    let schema = resolved(document, schema);
    assert!(schema.get("allOf").is_none(), "{at}: flat types are easier on those who read");
    if let Some(options) = schema["oneOf"].as_array() {
        if let Some(option) = options.iter().find(|option| option["type"] != "null").filter(|_| !value.is_null()) {
            fits(document, option, value, at);
        }
        return;
    }
    match value {
        Value::Object(object) => {
            let Some(fields) = schema["properties"].as_object() else { return };
            for required in schema["required"].as_array().into_iter().flatten() {
                assert!(object.contains_key(required.as_str().unwrap()), "{at}: {required} is missing in {value}");
            }
            for (name, value) in object {
                let field = fields.get(name).unwrap_or_else(|| panic!("{at}: {name} is not documented"));
                fits(document, field, value, &format!("{at}.{name}"));
            }
        }
        Value::Array(items) if schema.get("items").is_some() => {
            items.iter().for_each(|item| fits(document, &schema["items"], item, at));
        }
        _ => {}
    }
    if let Some(options) = schema["enum"].as_array() {
        assert!(options.contains(value), "{at}: {value} is not among {options:?}");
    }
}

/// A bound of a field that there is not would make one that has nothing else.
#[test]
fn bounds_are_of_fields_that_there_are() {
    let document = docs::document(&Config::default());
    let mut bounded = 0;
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        for (field, schema) in schema["properties"].as_object().into_iter().flatten() {
            if ["pattern", "minLength", "maximum", "maxItems"].iter().any(|bound| !schema[*bound].is_null()) {
                assert!(!schema["type"].is_null(), "{name} has no field {field}");
                bounded += 1;
            }
        }
    }
    assert!(bounded >= 18, "only {bounded} fields have bounds");
}

fn every_reference_resolves(document: &Value, value: &Value) {
    match value {
        Value::Object(object) => {
            if object.contains_key("$ref") {
                resolved(document, value);
            }
            object.values().for_each(|value| every_reference_resolves(document, value));
        }
        Value::Array(items) => items.iter().for_each(|value| every_reference_resolves(document, value)),
        _ => {}
    }
}
