//! What stores write: a byte that names the form, then JSON. Types of their own, apart from those of the cores, so that a
//! core can change without making what is stored unreadable; fields that a row lacks have defaults, unknown ones are
//! skipped.

use std::{collections::BTreeMap, num::NonZero};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::StoreError;
use crate::{
    id::{Generation, GroupName, Member, NodeId, SessionId},
    logic::{
        entry::{Grant, SessionRecord},
        map::{ClusterMap, SlotAssignment},
    },
};

/// The form that is written. Others are refused: an older program does not guess at what a newer one wrote.
const FORM: u8 = 1;

#[derive(Serialize, Deserialize)]
struct SessionRow {
    id: Uuid,
    user: String,
    #[serde(deserialize_with = "crate::id::number")]
    created_ms: u64,
    expires_ms: u64,
    idle_ttl_ms: u64,
    #[serde(deserialize_with = "crate::id::number")]
    last_used_ms: u64,
    #[serde(default)]
    attributes: Option<Box<RawValue>>,
    #[serde(default)]
    groups: Vec<GroupName>,
    /// Of these, what a client had joined: earlier versions wrote that. It is gone with the client.
    #[serde(default, skip_serializing)]
    joined: BTreeMap<GroupName, bool>,
    #[serde(default)]
    grants: Vec<GrantRow>,
    #[serde(default, deserialize_with = "crate::id::number")]
    revision: u64,
    #[serde(default)]
    token: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    clients_max: Option<NonZero<u16>>,
}

#[derive(Serialize, Deserialize)]
struct GrantRow {
    pattern: String,
    #[serde(default)]
    join: bool,
    #[serde(default)]
    publish: bool,
}

/// Members are listed once and slots name them by their place in that list: there are thousands of mentions.
#[derive(Serialize, Deserialize)]
struct MapRow {
    #[serde(deserialize_with = "crate::id::number")]
    version: u64,
    #[serde(deserialize_with = "crate::id::numbers")]
    members: BTreeMap<NodeId, Generation>,
    holders: Vec<Member>,
    slots: Vec<SlotRow>,
}

#[derive(Serialize, Deserialize)]
struct SlotRow {
    #[serde(deserialize_with = "crate::id::number")]
    term: u64,
    #[serde(deserialize_with = "crate::id::number")]
    lineage: u64,
    #[serde(deserialize_with = "crate::id::number")]
    changed_at: u64,
    primary: usize,
    in_sync: Vec<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    learner: Option<usize>,
}

/// A session's record as stored.
pub fn encode_session(record: &SessionRecord) -> Result<Vec<u8>, StoreError> {
    let attributes = match record.attributes.is_empty() {
        true => None,
        false => Some(serde_json::from_slice(&record.attributes).map_err(|error| {
            StoreError::Corrupt(format!("the attributes of session {} are not JSON: {error}", record.id))
        })?),
    };
    let grants =
        record.grants.iter().cloned().map(|Grant { pattern, join, publish }| GrantRow { pattern, join, publish });
    encode(&SessionRow {
        id: record.id.0,
        user: record.user.clone(),
        created_ms: record.created_ms,
        expires_ms: record.expires_ms,
        idle_ttl_ms: record.idle_ttl_ms,
        last_used_ms: record.last_used_ms,
        attributes,
        groups: record.groups.iter().cloned().collect(),
        joined: BTreeMap::new(),
        grants: grants.collect(),
        revision: record.revision,
        token: record.token,
        clients_max: record.clients_max,
    })
}

/// Reads what [`encode_session`] wrote.
pub fn decode_session(row: &[u8]) -> Result<SessionRecord, StoreError> {
    let row: SessionRow = decode("a session", row)?;
    let grants = row.grants.into_iter().map(|GrantRow { pattern, join, publish }| Grant { pattern, join, publish });
    let groups = row.groups.into_iter().filter(|group| !row.joined.contains_key(group)).collect();
    Ok(SessionRecord {
        id: SessionId(row.id),
        user: row.user,
        created_ms: row.created_ms,
        expires_ms: row.expires_ms,
        idle_ttl_ms: row.idle_ttl_ms,
        last_used_ms: row.last_used_ms,
        attributes: row.attributes.map(|json| json.get().to_owned().into()).unwrap_or_default(),
        groups,
        grants: grants.collect(),
        revision: row.revision,
        token: row.token,
        clients_max: row.clients_max,
    })
}

/// A map as stored.
pub fn encode_map(map: &ClusterMap) -> Result<Vec<u8>, StoreError> {
    let mut numbers: BTreeMap<&Member, usize> = BTreeMap::new();
    for slot in &map.slots {
        for member in slot.copies().chain([&slot.primary]) {
            numbers.insert(member, 0);
        }
    }
    for (number, place) in numbers.values_mut().enumerate() {
        *place = number;
    }
    let slots = map.slots.iter().map(|slot| SlotRow {
        term: slot.term,
        lineage: slot.lineage,
        changed_at: slot.changed_at,
        primary: numbers[&slot.primary],
        in_sync: slot.in_sync.iter().map(|member| numbers[member]).collect(),
        learner: slot.learner.as_ref().map(|member| numbers[member]),
    });
    encode(&MapRow {
        version: map.version,
        members: map.members.clone(),
        slots: slots.collect(),
        holders: numbers.into_keys().cloned().collect(),
    })
}

/// Reads what [`encode_map`] wrote; a map whose slots make no sense is refused.
pub fn decode_map(row: &[u8]) -> Result<ClusterMap, StoreError> {
    let MapRow { version, members, holders, slots } = decode("the cluster map", row)?;
    let damaged =
        |slot: usize| StoreError::Corrupt(format!("slot {slot} of the cluster map names nobody who is there"));
    let holder = |slot: usize, number: usize| holders.get(number).cloned().ok_or_else(|| damaged(slot));
    let slot = |(number, row): (usize, SlotRow)| {
        let in_sync: Vec<Member> = row.in_sync.iter().map(|at| holder(number, *at)).collect::<Result<_, _>>()?;
        let primary = holder(number, row.primary)?;
        if !in_sync.contains(&primary) || !in_sync.is_sorted() {
            return Err(damaged(number));
        }
        let learner = row.learner.map(|at| holder(number, at)).transpose()?;
        let SlotRow { term, lineage, changed_at, .. } = row;
        Ok(SlotAssignment { term, lineage, changed_at, primary, in_sync, learner })
    };
    let slots: Vec<SlotAssignment> = slots.into_iter().enumerate().map(slot).collect::<Result<_, _>>()?;
    if slots.is_empty() || slots.len() > usize::from(u16::MAX) {
        return Err(StoreError::Corrupt(format!("the cluster map has {} slots", slots.len())));
    }
    Ok(ClusterMap { version, members, slots })
}

fn encode(row: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    let mut bytes = vec![FORM];
    serde_json::to_writer(&mut bytes, row).map_err(|error| StoreError::Corrupt(error.to_string()))?;
    Ok(bytes)
}

fn decode<T: DeserializeOwned>(what: &str, row: &[u8]) -> Result<T, StoreError> {
    match row.split_first() {
        Some((&FORM, json)) => {
            serde_json::from_slice(json).map_err(|error| StoreError::Corrupt(format!("{what}: {error}")))
        }
        Some((form, _)) => Err(StoreError::Corrupt(format!(
            "{what} was written by a newer version of roost (form {form}, this one knows {FORM}): use that version"
        ))),
        None => Err(StoreError::Corrupt(format!("{what} is empty"))),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn member(name: &str, generation: u64) -> Member {
        Member { node: NodeId::parse(name).unwrap(), generation }
    }

    #[test]
    fn a_session_comes_back_whole() {
        for attributes in ["", "{}", r#"{"a": [1, 2.50, "\u00e9"], "a": 1}"#] {
            let record = SessionRecord {
                id: SessionId(Uuid::from_u128(7)),
                user: "ann".to_owned(),
                created_ms: 1,
                expires_ms: u64::MAX,
                idle_ttl_ms: 3,
                last_used_ms: 4,
                attributes: Bytes::from_static(attributes.as_bytes()),
                groups: [GroupName::parse("chat:é").unwrap()].into(),
                grants: vec![Grant { pattern: "chat:*".to_owned(), join: true, publish: false }],
                revision: 5,
                token: 6,
                clients_max: None,
            };
            let row = encode_session(&record).unwrap();
            assert_eq!(decode_session(&row).unwrap(), record);
        }
    }

    #[test]
    fn unknown_and_missing_fields_are_no_harm() {
        let row =
            br#"{"id":"00000000-0000-0000-0000-000000000007","user":"","created_ms":1,"expires_ms":2,"idle_ttl_ms":3,
            "last_used_ms":4,"colour":"red"}"#;
        let record = decode_session(&[&[FORM][..], row].concat()).unwrap();
        assert_eq!((record.expires_ms, record.groups.len()), (2, 0));
    }

    #[test]
    fn what_a_client_had_joined_in_a_row_of_before_is_not_the_sessions() {
        let row =
            br#"{"id":"00000000-0000-0000-0000-000000000007","user":"","created_ms":1,"expires_ms":2,"idle_ttl_ms":3,
            "last_used_ms":4,"groups":["chat:1","office"],"joined":{"chat:1":true}}"#;
        let record = decode_session(&[&[FORM][..], row].concat()).unwrap();
        assert_eq!(record.groups, [GroupName::parse("office").unwrap()].into());
        let again = encode_session(&record).unwrap();
        assert!(!String::from_utf8_lossy(&again).contains("joined"), "it is not written any more");
    }

    /// No other node would read a record that has them.
    #[test]
    fn numbers_of_a_session_beyond_all_bounds_are_refused() {
        for (name, is_taken) in [("colour", true), ("created_ms", false), ("last_used_ms", false), ("revision", false)]
        {
            let row = r#"{"id":"00000000-0000-0000-0000-000000000007","user":"","created_ms":1,"expires_ms":2,
                "idle_ttl_ms":3,"last_used_ms":4,"revision":5,"colour":6}"#;
            let number = row.find(&format!("\"{name}\":")).unwrap() + name.len() + 3;
            let row = format!("{}{}{}", &row[..number], u64::MAX, &row[number + 1..]);
            assert_eq!(decode_session(&[&[FORM][..], row.as_bytes()].concat()).is_ok(), is_taken, "{row}");
        }
    }

    #[test]
    fn a_map_comes_back_whole() {
        let mut map = ClusterMap::first(&member("n1", 3), 4);
        map.slots[2].in_sync = vec![member("n1", 3), member("n2", 1)];
        map.slots[2].primary = member("n2", 1);
        map.slots[3].learner = Some(member("n2", 1));
        assert_eq!(decode_map(&encode_map(&map).unwrap()).unwrap(), map);
    }

    #[test]
    fn what_cannot_be_right_is_refused() {
        let map = |json: &str| decode_map(&[&[FORM][..], json.as_bytes()].concat());
        let slot = |slot: &str| {
            map(&format!(
                r#"{{"version":1,"members":{{}},"holders":[{{"node":"a","generation":1}}],"slots":[{slot}]}}"#
            ))
        };
        assert!(slot(r#"{"term":1,"lineage":1,"changed_at":1,"primary":0,"in_sync":[0]}"#).is_ok());
        assert!(slot(r#"{"term":1,"lineage":1,"changed_at":1,"primary":1,"in_sync":[0]}"#).is_err());
        assert!(slot(r#"{"term":1,"lineage":1,"changed_at":1,"primary":0,"in_sync":[]}"#).is_err());
        for beyond in ["term", "lineage", "changed_at"] {
            let row = r#"{"term":1,"lineage":1,"changed_at":1,"primary":0,"in_sync":[0]}"#;
            let row = row.replace(&format!("\"{beyond}\":1"), &format!("\"{beyond}\":{}", u64::MAX));
            assert!(slot(&row).is_err(), "{row}");
        }
        assert!(slot("").is_err());
        assert!(map("{").is_err());
        assert!(decode_map(&[]).is_err());
        assert!(decode_map(&[9]).unwrap_err().to_string().contains("newer version"));
    }
}
