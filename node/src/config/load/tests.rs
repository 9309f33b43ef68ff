//! What loading accepts, and what it says about the rest.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use super::*;
use crate::config::{Allow, PresenceMode, StoreKind};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/node.toml");

fn loaded(text: &str, environment: &[(&str, &str)]) -> Result<Config, Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node.toml");
    std::fs::write(&path, text).unwrap();
    let environment = environment.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    load(Some(&path), environment).map_err(|error| {
        let folder = format!("{}/", folder.path().display());
        error.problems.iter().map(|problem| problem.to_string().replace(&folder, "")).collect()
    })
}

/// Loads, and compares the problems with these, in any order.
fn check(text: &str, environment: &[(&str, &str)], expected: &[&str]) {
    let found: BTreeSet<String> = loaded(text, environment).err().unwrap_or_default().into_iter().collect();
    let expected: BTreeSet<String> = expected.iter().map(|line| (*line).to_owned()).collect();
    assert_eq!(found, expected, "of {text:?} with {environment:?}");
}

fn keys(table: &Dict, at: &str, into: &mut BTreeSet<String>) {
    for (key, value) in table {
        let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
        match value.as_dict() {
            Some(inner) => keys(inner, &path, into),
            None => {
                into.insert(path);
            }
        }
    }
}

#[test]
fn the_example_has_every_key_with_its_default() {
    let (mut known, mut shown) = (BTreeSet::new(), BTreeSet::new());
    keys(&schema(&Config::default()), "", &mut known);
    keys(&toml::from_str::<Dict>(&std::fs::read_to_string(EXAMPLE).unwrap()).unwrap(), "", &mut shown);
    assert_eq!(known, shown);
    assert!(known.len() > 55, "{known:?}");
    assert_eq!(load(Some(Path::new(EXAMPLE)), std::iter::empty()).unwrap(), Config::default());
}

#[test]
fn every_key_of_the_example_is_explained() {
    let text = std::fs::read_to_string(EXAMPLE).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    // Some neighbours share one comment.
    let shared = ["cert", "key", "max_queue", "operations_burst", "password", "tls_key"];
    for pair in lines.windows(2) {
        let Some((key, _)) = pair[1].split_once(" = ").filter(|(key, _)| !key.starts_with('#')) else { continue };
        assert!(pair[0].starts_with('#') || shared.contains(&key), "{key} has no comment above it");
    }
}

#[test]
fn nothing_means_the_defaults() {
    assert_eq!(load(None, std::iter::empty()).unwrap(), Config::default());
    assert_eq!(loaded("", &[]).unwrap(), Config::default());
    assert_eq!(Config::default().check(Purpose::Serve), Ok(()));
}

#[test]
fn the_environment_wins_over_the_file_over_the_defaults() {
    let text = "[node]\nid = 'a'\nzone = 'west'\n[limits]\nidle_s = 90\n[namespaces.chat]\npublish = 'nobody'\n";
    let environment = [
        ("ROOST_NODE__ID", "123"),
        ("ROOST_LIMITS__FRAME_BYTES", "1_000_000"),
        ("ROOST_CLUSTER__SEEDS", "a:1, b.example.com:2"),
        ("ROOST_AUTH__API_KEYS", "[\"0123456789abcdef,x\"]"),
        ("ROOST_NAMESPACES__CHAT__PRESENCE", "false"),
        ("ROOST_SESSION__ANONYMOUS", "true"),
        ("ROOST_STORE__KIND", "embedded"),
        ("ROOST_TLS__CA", "/etc/ca.pem"),
        ("ROOST_PORT", "tcp://10.0.0.1:80"),
        ("ROOST_API_KEY", "for the commands"),
        ("PATH", "/bin"),
    ];
    let config = loaded(text, &environment).unwrap();
    assert_eq!(config.node.id, "123");
    assert_eq!(config.node.zone, "west");
    assert_eq!((config.limits.idle_s, config.limits.frame_bytes, config.limits.heartbeat_s), (90, 1_000_000, 30));
    assert_eq!(config.cluster.seeds, ["a:1", "b.example.com:2"]);
    assert_eq!(config.auth.api_keys, ["0123456789abcdef,x"]);
    assert!(config.session.anonymous);
    assert_eq!(config.store.kind, StoreKind::Embedded);
    assert_eq!(config.tls.ca, PathBuf::from("/etc/ca.pem"));
    let chat = config.namespace("chat");
    assert_eq!((chat.publish, chat.presence, chat.join), (Allow::Nobody, PresenceMode::Off, Allow::Any));
    assert_eq!(config.namespace("other"), NamespaceConfig::default());
}

#[test]
fn unknown_keys_name_the_nearest() {
    check(
        "[limits]\nidle_sec = 3\n[nod]\nid = 'a'\n[node]\nid = 'a'\ncopies = 2\n[namespaces.chat]\npresense = true\n",
        &[],
        &[
            "node.toml: limits.idle_sec: there is no such key; the nearest is limits.idle_s",
            "node.toml: nod: there is no such key; the nearest is node",
            "node.toml: node.copies: there is no such key here; there is cluster.copies",
            "node.toml: namespaces.chat.presense: there is no such key; the nearest is namespaces.chat.presence",
        ],
    );
    check(
        "",
        &[("ROOST_NODE__IDD", "x"), ("ROOST_NODE_ID", "x")],
        &[
            "ROOST_NODE__IDD: node.idd: there is no such key; the nearest is node.id",
            "ROOST_NODE_ID: overrides are written with two underscores between section and key: ROOST_NODE__ID",
        ],
    );
}

#[test]
fn wrong_types_say_what_was_found_and_expected() {
    check(
        "node = 3\n[cluster]\nslots = 70000\ncopies = -1\nseeds = 'a:1'\n[limits]\nidle_s = 'long'\nframe_bytes = 1.5\n[session]\nanonymous = 1\n",
        &[],
        &[
            "node.toml: node: found the number 3, expected a table of settings",
            "node.toml: cluster.slots: found the number 70000, expected a whole number from 0 to 65535",
            "node.toml: cluster.copies: found the number -1, expected a whole number from 0 to 255",
            "node.toml: cluster.seeds: found the string \"a:1\", expected a list of strings, such as [\"a\", \"b\"]",
            "node.toml: limits.idle_s: found the string \"long\", expected a whole number, 0 or more",
            "node.toml: limits.frame_bytes: found the number 1.5, expected a whole number, 0 or more",
            "node.toml: session.anonymous: found the number 1, expected true or false",
        ],
    );
    check(
        "[node]\nhttp_listen = 'localhost'\n[store]\nkind = 'mysql'\npath = { a = 1 }\n",
        &[("ROOST_LIMITS__IDLE_S", "-5"), ("ROOST_NODE__ID__X", "1")],
        &[
            "node.toml: node.http_listen: found the string \"localhost\", expected an address and port such as 127.0.0.1:8000 or [::]:8000",
            "node.toml: store.kind: found the string \"mysql\", expected one of embedded, cassandra",
            "node.toml: store.path: found a table, expected a string (a file's path)",
            "ROOST_LIMITS__IDLE_S: limits.idle_s: found the string \"-5\", expected a whole number, 0 or more",
            "ROOST_NODE__ID__X: node.id: found a table, expected a string",
        ],
    );
}

#[test]
fn secrets_are_not_repeated() {
    let found = loaded("[auth]\napi_keys = 'hunter2hunter2hunter2'\n", &[("ROOST_AUTH__KEYRING", "")]).unwrap_err();
    assert!(!found.is_empty() && found.iter().all(|line| !line.contains("hunter2")), "{found:?}");
    let found = loaded("[auth]\napi_keys = ['hunter2', 3]\n", &[]).unwrap_err();
    assert!(found.iter().all(|line| !line.contains("hunter2")), "{found:?}");
    let config = loaded("[auth]\napi_keys = ['hunter2hunter2hunter2']\n", &[]).unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
    let password = |value: &str| format!("[store.cassandra]\nusername = 'u'\npassword = {value}\n");
    assert!(!format!("{:?}", loaded(&password("'hunter2'"), &[]).unwrap()).contains("hunter2"));
    let found = loaded(&password("['hunter2']"), &[]).unwrap_err();
    assert!(found.iter().all(|line| !line.contains("hunter2")), "{found:?}");
}

#[test]
fn datacenters_have_any_name() {
    let expected = BTreeMap::from([("DC1".to_owned(), 3), ("eu-west".to_owned(), 2)]);
    let table = "{ DC1 = 3, eu-west = 2 }";
    let text = format!("[store]\nkind = 'cassandra'\n[store.cassandra]\nreplication = {table}\n");
    assert_eq!(loaded(&text, &[]).unwrap().store.cassandra.replication, expected);
    let config = loaded("", &[("ROOST_STORE__CASSANDRA__REPLICATION", table)]).unwrap();
    assert_eq!(config.store.cassandra.replication, expected);
    let key = "node.toml: store.cassandra.replication";
    check(
        &text.replace("= 3", "= 'three'"),
        &[],
        &[&format!("{key}.DC1: found the string \"three\", expected a whole number from 0 to 255")],
    );
    check(&text.replace("= 3", "= 0"), &[], &[&format!("{key}.DC1: must be from 1 to 15, it is 0")]);
    check(&text.replace(table, "3"), &[], &[&format!("{key}: found the number 3, expected a table of settings")]);
}

#[test]
fn what_the_store_needs_is_checked_where_it_is_used() {
    let wrong = "contact_points = []\nkeyspace = 'Roost'\npassword = 'p'\ntls_cert = 'c.pem'\n";
    check(&format!("[store.cassandra]\n{wrong}"), &[], &[]);
    let found = loaded(&format!("[store]\nkind = 'cassandra'\n[store.cassandra]\n{wrong}"), &[]).unwrap_err();
    for key in ["contact_points", "keyspace", "username", "tls_cert", "tls_ca"] {
        assert!(found.iter().any(|line| line.contains(&format!("store.cassandra.{key}: "))), "no {key} in {found:?}");
    }
}

#[test]
fn settings_must_fit_together() {
    check(
        "[limits]\nidle_s = 30\nframe_bytes = 10\n[session]\ncookie_same_site = 'none'\nallowed_origins = ['example.com/']\n[cluster]\ncopies = 0\nseeds = ['nohost']\n",
        &[("ROOST_LOG__FORMAT", "xml"), ("ROOST_AUTH__API_KEYS", "short"), ("ROOST_NODE__PEER_LISTEN", "0.0.0.0:7000")],
        &[
            "limits.heartbeat_s: must be below limits.idle_s (30), it is 30",
            "node.toml: limits.frame_bytes: must be at least limits.message_bytes (65536), it is 10",
            "node.toml: session.cookie_same_site: none needs session.cookie_secure = true: browsers drop such a cookie otherwise",
            "node.toml: session.allowed_origins: each must be \"*\" or like https://app.example.com, without a path or slash at its end; \"example.com/\" is not",
            "node.toml: cluster.copies: must be from 1 to 9, it is 0",
            "node.toml: cluster.seeds: each must be host:port, \"nohost\" is not",
            "ROOST_LOG__FORMAT: log.format: must be text or json, it is \"xml\"",
            "ROOST_AUTH__API_KEYS: auth.api_keys: key 1 has 5 characters, at least 16 are needed: `openssl rand -hex 24` makes one",
            "node.peer_advertise: is needed, as host:port: nobody can dial 0.0.0.0:7000, on which peer_listen listens",
        ],
    );
}

#[test]
fn what_no_frame_between_nodes_can_carry_is_refused() {
    check(
        "[limits]\nmessage_bytes = 8388609\nframe_bytes = 9000000\nbody_bytes = 9000000\noutbox_bytes = 9000000\nreplay_bytes = 90000000\npublish_bytes_per_s = 9000000\ngroups_per_session = 10001\n[cluster]\nslots = 40000\n",
        &[],
        &[
            "node.toml: limits.message_bytes: must be from 1 to 8388608: a frame between nodes has at most 16 MiB, with what goes along with a message; it is 8388609",
            "node.toml: limits.groups_per_session: must be from 1 to 10000: a session goes between nodes in one frame; it is 10001",
            "node.toml: cluster.slots: must be from 1 to 33897 where cluster.copies is 2: nodes send each other the map of all slots in one frame; it is 40000",
        ],
    );
    let many: String = (0..400).map(|number| format!("[namespaces.n{number}]\npresence = true\n")).collect();
    let found = loaded(&many, &[]).unwrap_err();
    assert!(found.len() == 1 && found[0].contains("may have 49152 bytes as JSON, it has "), "{found:?}");
}

#[test]
fn forms_of_addresses_and_names() {
    let accepted = "[node]\nhttp_advertise = 'https://[::1]:8000'\npeer_advertise = '[::1]:7000'\n[session]\nallowed_origins = ['*', 'https://a.b:8443', 'http://localhost']\n[namespaces.a]\nmin_copies = 2\n";
    loaded(accepted, &[]).unwrap();
    for refused in [
        "[node]\nhttp_advertise = 'ftp://x'",
        "[node]\nhttp_advertise = 'http://x/path'",
        "[node]\npeer_advertise = 'host:0'",
        "[node]\npeer_advertise = 'host:+7'",
        "[node]\nid = 'a b'",
        "[cluster]\nname = ''",
        "[session]\nallowed_origins = ['https://']",
        "[session]\ncookie_name = 'a;b'",
        "[session]\ncookie_same_site = 'Lax'",
        "[session]\nttl_s = 9999999999999",
        "[namespaces.'a:b']\npresence = true",
        "[namespaces.a]\nmin_copies = 3",
        "[namespaces.a]\nidempotency_s = 9",
        "[namespaces.a]\nidempotency_publishes = 9999",
        "[namespaces.a]\nidempotency_publishes = 1000001",
        "[namespaces]\na = 3",
        "[log]\nlevel = 'roost=loud'",
        "[limits]\nconnections = 0",
        "[tls]\nca = ''",
    ] {
        let found = loaded(refused, &[]).unwrap_err();
        assert_eq!(found.len(), 1, "{refused:?} gave {found:?}");
    }
}

#[test]
fn short_api_keys_are_for_trying_out_only() {
    let mut config = Config::default();
    config.auth.api_keys.push("dev-key".to_owned());
    assert_eq!(config.check(Purpose::Dev), Ok(()));
    assert_eq!(config.check(Purpose::Serve).unwrap_err().problems.len(), 1);
}

#[test]
fn what_is_no_file_or_no_toml_is_said() {
    let error = load(Some(Path::new("/nowhere/node.toml")), std::iter::empty()).unwrap_err().to_string();
    assert!(error.contains("/nowhere/node.toml: cannot be read"), "{error}");
    let found = loaded("[node\nid = 3", &[]).unwrap_err();
    assert!(
        found.len() == 1 && found[0].starts_with("node.toml: is not TOML") && found[0].contains("line 1"),
        "{found:?}"
    );
    let found = loaded("[store.cassandra]\nusername = 'roost'\npassword = 'hunter2", &[]).unwrap_err();
    assert!(found.len() == 1 && found[0].contains("line 3, column") && !found[0].contains("hunter2"), "{found:?}");
}

/// Each part would be a level of recursion.
#[test]
fn a_key_of_very_many_parts_is_refused() {
    let found = loaded("", &[(&format!("ROOST_{}", ["LIMITS"; 20_000].join("__")), "1")]).unwrap_err();
    assert!(found.len() == 1 && found[0].ends_with("a key has at most 8 parts, this has 20000"), "{found:?}");
}
