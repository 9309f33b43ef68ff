//! What a node says of itself by gossip, as keys and values. Everything read here was written by another process: each
//! value has a bound and a form, what has not is as if it were not said, and unknown keys are ignored.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use serde::{Serialize, de::DeserializeOwned};

use super::{
    membership,
    view::{BucketView, LinkView, Load, NodeState, NodeView, StoreView},
};
use crate::id::{Member, NodeId};

/// The longest value of any key. (Above 65 KB chitchat would never send it, nor any key after it.)
pub(super) const VALUE_MAX_BYTES: usize = membership::VALUE_MAX_BYTES;

/// The longest key.
pub(super) const KEY_MAX_BYTES: usize = 64;

const TEXT_MAX_BYTES: usize = 256;
const SETTINGS_MAX_BYTES: usize = 16 << 10;
const LOAD_MAX_BYTES: usize = 1 << 10;
const LINKS_MAX_BYTES: usize = 16 << 10;
const LINKS_MAX: usize = 512;
const GROUPS_PREFIX: &str = "groups.";

/// What this node says of itself; the links are added by the gossip task.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct OwnState {
    /// Where it is in its life.
    pub state: NodeState,
    /// Where its HTTP listens, as `http://host:port`.
    pub http: String,
    /// Its availability zone.
    pub zone: String,
    /// The version of the program.
    pub version: String,
    /// The cluster map that it knows.
    pub map_version: u64,
    /// The identity of its store.
    pub store_id: String,
    /// The settings that all nodes must share, as JSON.
    pub settings: String,
    /// Its view of the store.
    pub store: StoreView,
    /// How busy it is.
    pub load: Load,
    /// Its group membership ([`membership::gather`]).
    pub groups: BTreeMap<u8, BucketView>,
}

/// What the others must know at once.
pub(super) fn prompt(own: &OwnState) -> BTreeMap<String, String> {
    let texts = [
        ("state", json(&own.state)),
        ("http", own.http.clone()),
        ("zone", own.zone.clone()),
        ("version", own.version.clone()),
        ("map", own.map_version.to_string()),
        ("store_id", own.store_id.clone()),
        ("settings", own.settings.clone()),
        ("store", json(&own.store)),
    ];
    texts.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// What changes all the time, and is gathered. `published` are the keys that were set before: buckets that are empty now
/// are said to be.
pub(super) fn gathered<'a>(
    own: &OwnState,
    links: &BTreeMap<NodeId, LinkView>,
    groups_max_bytes: usize,
    published: impl Iterator<Item = &'a String>,
) -> BTreeMap<String, String> {
    let mut values = BTreeMap::from([("load".to_owned(), json(&own.load)), ("links".to_owned(), links_value(links))]);
    for key in published.filter(|key| key.starts_with(GROUPS_PREFIX)) {
        values.insert(key.clone(), String::new());
    }
    for (bucket, value) in membership::encode(&own.groups, groups_max_bytes) {
        values.insert(format!("{GROUPS_PREFIX}{bucket}"), value);
    }
    values
}

/// Whether some of the groups' buckets say only how many groups there are: they do not fit into the budget.
pub(super) fn has_cut_groups(values: &BTreeMap<String, String>) -> bool {
    let mut buckets = values.iter().filter(|(key, _)| key.starts_with(GROUPS_PREFIX));
    buckets.any(|(_, value)| membership::decode(value).is_some_and(|bucket| !bucket.complete))
}

/// The node as its keys and values show it.
pub(super) fn read<'a>(
    member: Member,
    addr: SocketAddr,
    alive: bool,
    claims: impl Iterator<Item = (&'a str, &'a str)>,
) -> NodeView {
    let mut view = NodeView {
        member,
        addr,
        alive,
        state: NodeState::default(),
        http: String::new(),
        zone: String::new(),
        version: String::new(),
        map_version: 0,
        store_id: String::new(),
        settings: String::new(),
        load: Load::default(),
        store: StoreView::default(),
        links: BTreeMap::new(),
        groups: BTreeMap::new(),
    };
    for (key, value) in claims {
        match key {
            "state" => view.state = parse(value, TEXT_MAX_BYTES).unwrap_or_default(),
            "http" if value.starts_with("http://") || value.starts_with("https://") => view.http = text(value),
            "zone" => view.zone = text(value),
            "version" => view.version = text(value),
            "map" => view.map_version = value.parse().unwrap_or(0),
            "store_id" => view.store_id = text(value),
            "settings" => view.settings = bounded(value, SETTINGS_MAX_BYTES),
            "store" => view.store = parse(value, TEXT_MAX_BYTES).unwrap_or_default(),
            "load" => view.load = parse(value, LOAD_MAX_BYTES).unwrap_or_default(),
            "links" => view.links = read_links(value),
            _ => {
                let bucket = key.strip_prefix(GROUPS_PREFIX).and_then(|number| number.parse().ok());
                if let Some(bucket) = bucket.filter(|number: &u8| *number < membership::BUCKETS)
                    && let Some(groups) = membership::decode(value)
                {
                    view.groups.insert(bucket, groups);
                }
            }
        }
    }
    view
}

/// `[sends, hears, rtt in µs]` by peer. Where that is too much, only the links with something wrong.
fn links_value(links: &BTreeMap<NodeId, LinkView>) -> String {
    let brief = |wanted: &dyn Fn(&LinkView) -> bool| {
        let chosen = links.iter().filter(|(_, link)| wanted(link)).take(LINKS_MAX);
        // Rounded, so that small changes are none.
        let brief = |link: &LinkView| (u8::from(link.sends), u8::from(link.hears), link.rtt_us.next_multiple_of(100));
        json(&chosen.map(|(node, link)| (node.as_str(), brief(link))).collect::<BTreeMap<_, _>>())
    };
    let all = brief(&|_| true);
    if all.len() <= LINKS_MAX_BYTES {
        return all;
    }
    let wrong = brief(&|link| !link.sends || !link.hears);
    if wrong.len() <= LINKS_MAX_BYTES { wrong } else { "{}".to_owned() }
}

fn read_links(value: &str) -> BTreeMap<NodeId, LinkView> {
    let links: BTreeMap<String, (u8, u8, u64)> = parse(value, LINKS_MAX_BYTES).unwrap_or_default();
    let links = links.into_iter().take(LINKS_MAX).filter_map(|(node, (sends, hears, rtt_us))| {
        Some((NodeId::parse(&node).ok()?, LinkView { sends: sends != 0, hears: hears != 0, rtt_us }))
    });
    links.collect()
}

/// Bounded and without control characters, else nothing.
fn text(value: &str) -> String {
    bounded(value, TEXT_MAX_BYTES)
}

fn bounded(value: &str, max_bytes: usize) -> String {
    let good = value.len() <= max_bytes && !value.chars().any(char::is_control);
    if good { value.to_owned() } else { String::new() }
}

fn parse<T: DeserializeOwned>(value: &str, max_bytes: usize) -> Option<T> {
    (value.len() <= max_bytes).then(|| serde_json::from_str(value).ok()).flatten()
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain values always have a JSON form")
}

/// Values that chitchat could not carry are cut out before they get there; says which.
pub(super) fn drop_oversize(values: &mut BTreeMap<String, String>) -> BTreeSet<String> {
    let oversize = |(key, value): (&String, &String)| (value.len() > VALUE_MAX_BYTES).then(|| key.clone());
    let dropped: BTreeSet<String> = values.iter().filter_map(oversize).collect();
    values.retain(|key, _| !dropped.contains(key));
    dropped
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::GroupName;

    fn check_read(values: &BTreeMap<String, String>) -> NodeView {
        let member = Member { node: NodeId::parse("n1").unwrap(), generation: 1 };
        let addr = SocketAddr::from(([127, 0, 0, 1], 7_000));
        read(member, addr, true, values.iter().map(|(key, value)| (key.as_str(), value.as_str())))
    }

    #[test]
    fn what_is_said_is_read() {
        let group = GroupName::parse("room:1").unwrap();
        let own = OwnState {
            state: NodeState::Draining,
            http: "http://127.0.0.1:8000".to_owned(),
            zone: "west".to_owned(),
            version: "1.2.3".to_owned(),
            map_version: 77,
            store_id: "id".to_owned(),
            settings: "digest".to_owned(),
            store: StoreView::Slow,
            load: Load { connections: 5, ..Load::default() },
            groups: membership::gather([(&group, 2)], 1_024),
        };
        let link = LinkView { sends: true, hears: false, rtt_us: 1_234 };
        let links = BTreeMap::from([(NodeId::parse("n2").unwrap(), link)]);
        let mut values = prompt(&own);
        values.extend(gathered(&own, &links, 1_000, std::iter::empty()));
        values.insert("of a later version".to_owned(), "anything".to_owned());
        let view = check_read(&values);
        let got = OwnState {
            state: view.state,
            http: view.http,
            zone: view.zone,
            version: view.version,
            map_version: view.map_version,
            store_id: view.store_id,
            settings: view.settings,
            store: view.store,
            load: view.load,
            groups: view.groups,
        };
        assert_eq!(got, own);
        assert_eq!(view.links.values().next(), Some(&LinkView { rtt_us: 1_300, ..link }));
        let empty = OwnState::default();
        let values = gathered(&empty, &links, 1_000, values.keys());
        assert_eq!(check_read(&values).groups, BTreeMap::new(), "buckets that are empty now");
    }

    #[test]
    fn many_links_and_long_values_keep_their_bounds() {
        let link = |number: usize| LinkView { sends: number != 7, hears: true, rtt_us: 1 };
        let links =
            (0..500).map(|number| (NodeId::parse(&format!("{}{number}", "n".repeat(50))).unwrap(), link(number)));
        let links: BTreeMap<NodeId, LinkView> = links.collect();
        let read = read_links(&links_value(&links));
        assert_eq!(read.len(), 1);
        assert!(read.values().all(|link| !link.sends));
        let mut values = BTreeMap::from([("zone".to_owned(), "z".repeat(70_000)), ("map".to_owned(), "3".to_owned())]);
        assert_eq!(check_read(&values).zone, "");
        assert_eq!(drop_oversize(&mut values).into_iter().collect::<Vec<_>>(), ["zone"]);
        assert_eq!(values.len(), 1);
    }

    proptest! {
        #[test]
        fn garbage_is_as_if_nothing_were_said(value in ".{0,60}") {
            let keys = ["state", "http", "zone", "version", "map", "store_id", "settings", "store", "load", "links", "groups.3", "groups.99"];
            let view = check_read(&keys.iter().map(|key| ((*key).to_owned(), value.clone())).collect());
            prop_assert!(view.http.is_empty() || view.http.starts_with("http"));
            prop_assert!(!view.groups.contains_key(&99));
        }
    }
}
