//! Group membership as it is gossiped: which groups have subscribers on a node and how many, by hash, in 64 buckets of
//! slots. Pure. A value is text of at most a few KB; all of a node's together keep to a budget, past which the fullest
//! buckets say only how many groups they have.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use xxhash_rust::xxh3::xxh3_64;

use super::view::BucketView;
use crate::id::{GroupName, SlotId};

/// Buckets of a node.
pub const BUCKETS: u8 = 64;

/// The longest value that is looked at: more than any budget makes sense for, less than gossip can carry.
pub const VALUE_MAX_BYTES: usize = 48 << 10;

const LISTED: u8 = 1;
const COUNTED: u8 = 2;

/// The bucket that a slot is in.
pub fn bucket_of(slot: SlotId, slots: u16) -> u8 {
    let bucket = u32::from(slot) * u32::from(BUCKETS) / u32::from(slots.max(1));
    bucket.min(u32::from(BUCKETS) - 1) as u8
}

/// What stands for a group's name in a bucket.
pub fn group_hash(name: &GroupName) -> u32 {
    xxh3_64(name.as_str().as_bytes()) as u32
}

/// Makes the buckets from the groups of a node and their numbers of subscribers. Groups without are left out.
pub fn gather<'a>(groups: impl IntoIterator<Item = (&'a GroupName, u32)>, slots: u16) -> BTreeMap<u8, BucketView> {
    let mut buckets: BTreeMap<u8, BucketView> = BTreeMap::new();
    for (name, subscribers) in groups {
        if subscribers > 0 {
            let bucket = buckets.entry(bucket_of(name.slot(slots), slots)).or_default();
            bucket.groups.push((group_hash(name), subscribers));
            bucket.total = bucket.total.saturating_add(1);
        }
    }
    for bucket in buckets.values_mut() {
        bucket.complete = true;
        bucket.groups.sort_unstable();
        // Two names of one hash are told apart by nobody: their subscribers are one number.
        bucket.groups.dedup_by(|later, earlier| {
            let same = later.0 == earlier.0;
            if same {
                earlier.1 = earlier.1.saturating_add(later.1);
            }
            same
        });
    }
    buckets
}

/// The values to gossip, by bucket; together they have at most `budget_bytes`, as far as listing less can bring it.
pub fn encode(buckets: &BTreeMap<u8, BucketView>, budget_bytes: usize) -> BTreeMap<u8, String> {
    let mut values: BTreeMap<u8, String> = BTreeMap::new();
    for (number, bucket) in buckets {
        let listed = if bucket.complete { encode_listed(bucket) } else { encode_counted(bucket) };
        values.insert(*number, if listed.len() > VALUE_MAX_BYTES { encode_counted(bucket) } else { listed });
    }
    let mut total_bytes: usize = values.values().map(String::len).sum();
    while total_bytes > budget_bytes {
        let Some((number, fullest)) = values.iter().max_by_key(|(_, value)| value.len()) else { break };
        let (number, before) = (*number, fullest.len());
        let counted = encode_counted(&buckets[&number]);
        if counted.len() >= before {
            break;
        }
        total_bytes -= before - counted.len();
        values.insert(number, counted);
    }
    values
}

/// Reads a value; nothing where it is none.
pub fn decode(value: &str) -> Option<BucketView> {
    if value.len() > VALUE_MAX_BYTES {
        return None;
    }
    let bytes = STANDARD_NO_PAD.decode(value).ok()?;
    let (kind, mut rest) = bytes.split_first()?;
    let total = read_number(&mut rest)?;
    let mut bucket = BucketView { groups: Vec::new(), total, complete: *kind == LISTED };
    match *kind {
        COUNTED if rest.is_empty() => Some(bucket),
        LISTED => {
            let mut next: u64 = 0;
            while !rest.is_empty() {
                let hash = u32::try_from(next + u64::from(read_number(&mut rest)?)).ok()?;
                bucket.groups.push((hash, read_number(&mut rest)?));
                next = u64::from(hash) + 1;
            }
            (bucket.groups.len() <= total as usize).then_some(bucket)
        }
        _ => None,
    }
}

/// Hashes as the distances between them, each with its number.
fn encode_listed(bucket: &BucketView) -> String {
    let mut bytes = vec![LISTED];
    write_number(&mut bytes, bucket.total);
    let mut next = 0;
    for (hash, subscribers) in &bucket.groups {
        write_number(&mut bytes, hash.wrapping_sub(next));
        write_number(&mut bytes, *subscribers);
        next = hash.wrapping_add(1);
    }
    STANDARD_NO_PAD.encode(bytes)
}

fn encode_counted(bucket: &BucketView) -> String {
    let mut bytes = vec![COUNTED];
    write_number(&mut bytes, bucket.total);
    STANDARD_NO_PAD.encode(bytes)
}

/// Seven bits a byte, the lowest first.
fn write_number(bytes: &mut Vec<u8>, mut number: u32) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn read_number(bytes: &mut &[u8]) -> Option<u32> {
    let mut number: u64 = 0;
    for shift in [0, 7, 14, 21, 28] {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return u32::try_from(number).ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bucket(groups: BTreeMap<u32, u32>) -> BucketView {
        let total = groups.len() as u32;
        BucketView { groups: groups.into_iter().collect(), total, complete: true }
    }

    #[test]
    fn groups_are_found_by_the_hash_of_their_name() {
        let names: Vec<GroupName> = (0..500).map(|n| GroupName::parse(&format!("room:{n}")).unwrap()).collect();
        let buckets = gather(names.iter().map(|name| (name, 3)), 1_024);
        assert_eq!(buckets.values().map(|bucket| bucket.total).sum::<u32>(), 500);
        for name in &names {
            let bucket = &buckets[&bucket_of(name.slot(1_024), 1_024)];
            assert!(bucket.groups.binary_search(&(group_hash(name), 3)).is_ok(), "{name}");
        }
        assert_eq!(gather([(&names[0], 0)], 1_024), BTreeMap::new());
        let twice = gather([(&names[0], 1), (&names[0], 2)], 1_024);
        assert_eq!(twice.values().next().unwrap().groups, [(group_hash(&names[0]), 3)]);
        for (slot, slots, bucket) in [(0, 1_024, 0), (1_023, 1_024, 63), (0, 1, 0), (9, 10, 57), (7, 0, 63)] {
            assert_eq!(bucket_of(slot, slots), bucket, "{slot} of {slots}");
        }
    }

    #[test]
    fn past_the_budget_the_fullest_say_only_how_many() {
        let full = bucket((0..5_000).map(|n| (n * 800_000, 1)).collect());
        let small = bucket((0..10).map(|n| (n * 1_000, 2)).collect());
        let buckets = BTreeMap::from([(1, small.clone()), (2, full.clone()), (3, BucketView::default())]);
        let values = encode(&buckets, 1_000);
        assert!(values.values().map(String::len).sum::<usize>() <= 1_000);
        assert_eq!(decode(&values[&1]), Some(small));
        assert_eq!(decode(&values[&2]), Some(BucketView { groups: Vec::new(), total: 5_000, complete: false }));
        assert!(encode(&buckets, 0).values().all(|value| value.len() < 10));
        let beyond = bucket((0..50_000).map(|n| (n * 80_000, 1)).collect());
        let values = encode(&BTreeMap::from([(1, beyond)]), usize::MAX);
        assert_eq!(decode(&values[&1]).map(|bucket| (bucket.total, bucket.complete)), Some((50_000, false)));
    }

    proptest! {
        #[test]
        fn buckets_come_back(groups in proptest::collection::btree_map(any::<u32>(), any::<u32>(), 0..200)) {
            let bucket = bucket(groups);
            let values = encode(&BTreeMap::from([(7, bucket.clone())]), usize::MAX);
            prop_assert_eq!(decode(&values[&7]), Some(bucket));
        }

        #[test]
        fn garbage_never_panics_and_what_is_taken_is_sorted(bytes in proptest::collection::vec(any::<u8>(), 0..100), text in ".{0,40}") {
            let _ = decode(&text);
            for kind in [LISTED, COUNTED] {
                let value = STANDARD_NO_PAD.encode([&[kind, 100], bytes.as_slice()].concat());
                if let Some(bucket) = decode(&value) {
                    prop_assert!(bucket.groups.is_sorted_by(|a, b| a.0 < b.0));
                }
            }
        }
    }
}
