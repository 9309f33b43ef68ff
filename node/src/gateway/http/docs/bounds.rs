//! What the document says of the lengths, ranges and forms of requests: what extractors and handlers hold them to, so that
//! whoever makes requests by the document makes none that is refused with 422. Some are settings of this node.
//!
//! JSON Schema counts characters and Roost counts bytes of UTF-8, so the lengths are exact for ASCII only.

use serde_json::{Value, json};

use crate::{
    config::Config,
    gateway::http::{clients, extract::USER_MAX_BYTES, messages, sessions},
    id::{CLIENT_ID_MAX_BYTES, GROUP_NAME_MAX_BYTES, NUMBER_MAX},
    wire::{
        events::{GROUPS_MAX, ID_MAX_BYTES},
        peer::CODE_MAX,
        plain::LIMIT_MAX,
    },
};

/// [Hidden](crate::id::is_hidden) characters, as the inside of a class of a regular expression.
const HIDDEN: &str = "\\u0000-\\u001f\\u007f-\\u009f\\u00ad\\u061c\\u180e\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u206f\\ufeff\\ufff9-\\ufffb";
const UUID: &str = "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}";

/// Adds them to the parameters and to the bodies' schemas.
pub(super) fn add(document: &mut Value, config: &Config) {
    for (path, item) in document["paths"].as_object_mut().into_iter().flatten() {
        for (_, operation) in item.as_object_mut().into_iter().flatten() {
            for parameter in operation.get_mut("parameters").and_then(Value::as_array_mut).into_iter().flatten() {
                if let Some(bounds) = parameter["name"].as_str().and_then(|name| of_parameter(path, name)) {
                    merge(&mut parameter["schema"], bounds);
                }
            }
        }
    }
    for (schema, field, bounds) in of_fields(config) {
        merge(&mut document["components"]["schemas"][schema]["properties"][field], bounds);
    }
    document["components"]["schemas"]["NewMessage"]["not"] = not_ephemeral();
}

/// What an ephemeral message may not have.
fn not_ephemeral() -> Value {
    let with = |field: &str, kind: &str| json!({"required": [field], "properties": {field: {"type": kind}}});
    json!({"required": ["ephemeral"], "properties": {"ephemeral": {"const": true}},
        "anyOf": [with("key", "string"), with("min_copies", "integer")]})
}

/// Those of a parameter in the path or after the `?`.
fn of_parameter(path: &str, name: &str) -> Option<Value> {
    Some(match name {
        "group" if path == "/v1/events" => {
            json!({"minItems": 1, "maxItems": GROUPS_MAX, "uniqueItems": true, "items": group(true)})
        }
        "group" => group(!path.starts_with("/v1/sessions/")),
        "last_event_id" | "Last-Event-ID" => json!({"maxLength": ID_MAX_BYTES}),
        "after" if path == "/v1/groups" => group(true),
        "id" | "after" => json!({"pattern": format!("^{UUID}$"), "minLength": 36, "maxLength": 36}),
        "user" => user(),
        "client" => client(),
        "node" => json!({"pattern": "^[A-Za-z0-9._-]+$", "minLength": 1, "maxLength": 64}),
        "limit" => json!({"minimum": 1, "maximum": LIMIT_MAX}),
        "since_offset" => json!({"minimum": 0, "maximum": NUMBER_MAX}),
        "since_epoch" => json!({"pattern": "^[0-9a-fA-F]{16}$", "minLength": 16, "maxLength": 16}),
        _ => return None,
    })
}

fn of_fields(config: &Config) -> Vec<(&'static str, &'static str, Value)> {
    let ttl = || json!({"minimum": 1, "maximum": sessions::TTL_MAX_S});
    let key = || json!({"pattern": "^[^\\u0000-\\u001f\\u007f-\\u009f]+$", "minLength": 1, "maxLength": messages::KEY_MAX_BYTES});
    let joined = || json!({"maxItems": config.limits.groups_per_session, "items": group(false)});
    let after = || json!({"minimum": 0, "maximum": clients::AFTER_MAX_MS});
    let words = || json!({"pattern": "^[^\\u0000-\\u001f\\u007f-\\u009f]+$", "minLength": 1, "maxLength": clients::WORDS_MAX_BYTES});
    let code = || json!({"minimum": 0, "maximum": CODE_MAX});
    let grants = || json!({"maxItems": sessions::GRANTS_MAX});
    let pattern = json!({"pattern": "^[^\\u0000-\\u001f\\u007f-\\u009f]+$", "minLength": 1, "maxLength": sessions::PATTERN_MAX_BYTES});
    let groups =
        json!({"minItems": 1, "maxItems": messages::BROADCAST_GROUPS_MAX, "uniqueItems": true, "items": group(true)});
    vec![
        ("NewSession", "user", user()),
        ("NewSession", "ttl_s", ttl()),
        ("NewSession", "idle_ttl_s", ttl()),
        ("NewSession", "groups", joined()),
        ("NewSession", "grants", grants()),
        ("NewSession", "clients_max", json!({"minimum": 1, "maximum": u16::MAX})),
        ("SessionPatch", "ttl_s", ttl()),
        ("SessionPatch", "grants", grants()),
        ("SessionPatch", "join", joined()),
        ("SessionPatch", "leave", joined()),
        ("GrantBody", "pattern", pattern),
        ("GroupToJoin", "group", group(false)),
        ("NewMessage", "key", key()),
        ("NewMessage", "min_copies", json!({"minimum": 1, "maximum": config.cluster.copies})),
        ("NewBroadcast", "groups", groups),
        ("NewBroadcast", "key", key()),
        ("NewBatch", "publishes", json!({"minItems": 1, "maxItems": messages::BATCH_MAX})),
        ("BatchItem", "group", group(true)),
        ("BatchItem", "key", key()),
        ("Disconnect", "client", client()),
        ("Disconnect", "after_ms", after()),
        ("Disconnect", "reason", words()),
        ("Disconnect", "code", code()),
        ("DisconnectUser", "after_ms", after()),
        ("DisconnectUser", "reason", words()),
        ("DisconnectUser", "code", code()),
    ]
}

/// A group's name; with the private ones of sessions and users where these may be named.
fn group(private: bool) -> Value {
    // Not "." or "..", and of those that begin with "@" these two only.
    let plain = format!("[^.@\\uff20\\ufe6b{HIDDEN}][^{HIDDEN}]*|\\.[^.{HIDDEN}][^{HIDDEN}]*|\\.\\.[^{HIDDEN}]+");
    let pattern =
        if private { format!("^({plain}|@session:{UUID}|@user:[^{HIDDEN}]+)$") } else { format!("^({plain})$") };
    json!({"pattern": pattern, "minLength": 1, "maxLength": GROUP_NAME_MAX_BYTES})
}

/// A client's own id; not one that is a path's own "." or "..".
fn client() -> Value {
    json!({"pattern": "^[!-~]+$", "minLength": 1, "maxLength": CLIENT_ID_MAX_BYTES})
}

fn user() -> Value {
    json!({"pattern": format!("^[^{HIDDEN}]+$"), "minLength": 1, "maxLength": USER_MAX_BYTES})
}

/// Adds members to a schema, and to that of its items.
fn merge(schema: &mut Value, bounds: Value) {
    let Value::Object(bounds) = bounds else { return };
    for (name, bound) in bounds {
        if bound.is_object() { merge(&mut schema[name], bound) } else { schema[name] = bound }
    }
}
