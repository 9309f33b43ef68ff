//! What two nodes must have in common before either says anything to the other: the cluster's name, the store, and the
//! settings that all nodes share. Each connection begins with it, so that nothing of another cluster is ever heard. Which keys
//! they have is told too; it is nothing to refuse a node for.

use super::greeting::Goodbye;
use crate::{config::differences, id::NodeId, wire::peer::SETTINGS_MAX_BYTES};

/// The longest cluster name.
pub(super) const CLUSTER_NAME_MAX_BYTES: usize = 200;
/// The longest identity of a store.
const STORE_ID_MAX_BYTES: usize = 64;
/// The longest fingerprint of a keyring.
const KEYRING_MAX_BYTES: usize = 64;
/// All of it, with the lengths.
pub(super) const BELONGS_MAX_BYTES: usize =
    CLUSTER_NAME_MAX_BYTES + STORE_ID_MAX_BYTES + SETTINGS_MAX_BYTES + KEYRING_MAX_BYTES + 8;
/// The other end is told this many characters of what differs: they go into one packet.
const WHY_MAX_CHARS: usize = 800;

/// Where a node belongs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Belongs {
    /// The cluster's name.
    pub cluster: String,
    /// The identity of the store.
    pub store_id: String,
    /// The settings that all nodes must share, as JSON.
    pub settings: String,
    /// The fingerprint of the keys that tokens are signed with. While keys are changed, nodes differ in it for some time.
    pub keyring: String,
}

impl Belongs {
    /// Why a node that says this is refused, in words for whoever runs it.
    pub(super) fn refuses(&self, me: &NodeId, other: &Self) -> Option<(Goodbye, String)> {
        if self.cluster != other.cluster {
            let why = format!(
                "node {me} belongs to cluster {:?}, not {:?}: see cluster.name and cluster.seeds",
                self.cluster, other.cluster
            );
            return Some((Goodbye::WrongCluster, why));
        }
        if self.store_id != other.store_id {
            let why = format!(
                "node {me} keeps its sessions in another store ({}) than this one ({}). Give both the same store, or this \
                 node another cluster.name; an embedded store serves the nodes of one process only",
                self.store_id, other.store_id
            );
            return Some((Goodbye::WrongStore, why));
        }
        if self.settings != other.settings {
            let differing = differences(&other.settings, &self.settings).join(", ");
            let differing: String = differing.chars().take(WHY_MAX_CHARS).collect();
            let why = format!(
                "settings that all nodes must share differ from those of node {me}: {differing}. Make them equal"
            );
            return Some((Goodbye::WrongSettings, why));
        }
        None
    }

    pub(super) fn encode(&self, bytes: &mut Vec<u8>) {
        for text in [&self.cluster, &self.store_id, &self.settings, &self.keyring] {
            bytes.extend_from_slice(&(text.len() as u16).to_le_bytes());
            bytes.extend_from_slice(text.as_bytes());
        }
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let mut text = |max_bytes: usize| {
            let (length, after) = rest.split_first_chunk()?;
            let length = usize::from(u16::from_le_bytes(*length));
            let (text, after) = after.split_at_checked(length).filter(|_| length <= max_bytes)?;
            rest = after;
            String::from_utf8(text.to_vec()).ok()
        };
        let belongs = Self {
            cluster: text(CLUSTER_NAME_MAX_BYTES)?,
            store_id: text(STORE_ID_MAX_BYTES)?,
            settings: text(SETTINGS_MAX_BYTES)?,
            keyring: text(KEYRING_MAX_BYTES)?,
        };
        rest.is_empty().then_some(belongs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_told() {
        let me = NodeId::parse("n1").unwrap();
        let belongs = |cluster: &str, store_id: &str, settings: &str| Belongs {
            cluster: cluster.to_owned(),
            store_id: store_id.to_owned(),
            settings: settings.to_owned(),
            keyring: store_id.repeat(3),
        };
        let mine = belongs("one", "a", r#"{"x":1}"#);
        for (other, expected) in [
            (belongs("one", "a", r#"{"x":1}"#), None),
            (belongs("two", "b", r#"{"x":2}"#), Some((Goodbye::WrongCluster, "cluster.name"))),
            (belongs("one", "b", r#"{"x":2}"#), Some((Goodbye::WrongStore, "another store (a) than this one (b)"))),
            (belongs("one", "a", r#"{"x":2}"#), Some((Goodbye::WrongSettings, "x is 2 here and 1 there"))),
        ] {
            let refused = mine.refuses(&me, &other);
            assert_eq!(refused.as_ref().map(|(goodbye, _)| *goodbye), expected.map(|(goodbye, _)| goodbye));
            if let (Some((_, why)), Some((_, words))) = (refused, expected) {
                assert!(why.contains(words), "{why}");
            }
            let mut bytes = Vec::new();
            other.encode(&mut bytes);
            assert_eq!(Belongs::decode(&bytes), Some(other));
            assert_eq!(Belongs::decode(&bytes[..bytes.len() - 1]), None);
            bytes.push(0);
            assert_eq!(Belongs::decode(&bytes), None);
        }
    }
}
