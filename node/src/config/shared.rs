//! What all nodes of a cluster must share, in a form that two nodes can compare and name the difference of.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Config;

/// The settings that all nodes must share.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SharedSettings {
    /// Sixteen hex digits; equal where the settings are.
    pub hash: String,
    /// The settings, as a JSON object with sorted keys and no spaces.
    pub json: String,
}

impl SharedSettings {
    pub(super) fn of(config: &Config) -> Self {
        let json = json!({
            "cluster": {
                "name": config.cluster.name,
                "slots": config.cluster.slots,
                "copies": config.cluster.copies,
            },
            "session": config.session,
            "timing": { "gossip_interval_ms": config.timing.gossip_interval_ms },
            "namespaces": config.namespaces,
        })
        .to_string();
        let hash = Sha256::digest(json.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Self { hash, json }
    }
}

/// Where two [`SharedSettings::json`] differ, a line for each setting: `cluster.copies is 2 here and 3 there`.
pub fn differences(here: &str, there: &str) -> Vec<String> {
    let (Ok(here), Ok(there)) = (serde_json::from_str(here), serde_json::from_str(there)) else {
        return vec!["the settings cannot be compared: they are not JSON".to_owned()];
    };
    let mut found = Vec::new();
    compare("", &here, &there, &mut found);
    found
}

fn compare(path: &str, here: &Value, there: &Value, found: &mut Vec<String>) {
    match (here, there) {
        (Value::Object(ours), Value::Object(theirs)) => {
            let keys: std::collections::BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
            for key in keys {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                compare(&path, ours.get(key).unwrap_or(&Value::Null), theirs.get(key).unwrap_or(&Value::Null), found);
            }
        }
        (Value::Null, _) => found.push(format!("{path} is not set here and is {there} there")),
        (_, Value::Null) => found.push(format!("{path} is {here} here and not set there")),
        _ if here == there => {}
        _ => found.push(format!("{path} is {here} here and {there} there")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_settings_have_one_hash_and_others_another() {
        let one = Config::default();
        let mut other = one.clone();
        other.node.id = "n2".to_owned();
        other.cluster.seeds.push("a:1".to_owned());
        other.limits.idle_s = 99;
        assert_eq!(one.shared_digest(), other.shared_digest());
        assert_eq!(one.shared_digest().hash.len(), 16);
        other.cluster.copies = 3;
        assert_ne!(one.shared_digest().hash, other.shared_digest().hash);
    }

    #[test]
    fn a_difference_is_named() {
        let one = Config::default();
        let mut other = one.clone();
        other.cluster.copies = 3;
        other.namespaces.entry("chat".to_owned()).or_default().presence = crate::config::PresenceMode::Off;
        let (one, other) = (one.shared_digest().json, other.shared_digest().json);
        let found = differences(&one, &other);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(found[0], "cluster.copies is 2 here and 3 there");
        assert!(found[1].starts_with("namespaces.chat is not set here and is {"), "{found:?}");
        assert_eq!(differences(&one, &one), Vec::<String>::new());
        assert_eq!(differences("{", &one).len(), 1);
    }
}
