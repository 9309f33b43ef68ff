//! What a JWT says: the claims that Centrifugo's backends make, as far as they mean something here, and `roost`, our own.
//!
//! Claims that are not known mean nothing and do no harm, as everywhere with JWTs. In `roost` they are a mistake.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZero,
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;

use super::JwtError;
use crate::{
    gateway::http::{
        extract::{check_depth, check_user},
        sessions::{ATTRIBUTES_MAX_BYTES, GRANTS_MAX, PATTERN_MAX_BYTES, TTL_MAX_S, joinable},
    },
    id::GroupName,
    logic::entry::Grant,
};

/// A JWT that is good says this.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claims {
    /// `sub`; empty: of nobody in particular.
    pub user: String,
    /// When what is made of it ends, in milliseconds since 1970; nothing where it does not say.
    pub expires_ms: Option<u64>,
    /// `info`: a JSON object as text.
    pub attributes: Bytes,
    /// The groups to be in from the start.
    pub groups: BTreeSet<GroupName>,
    /// What may be done; none: what the namespaces allow to everyone.
    pub grants: Vec<Grant>,
    /// No more clients at once, where that is fewer than are configured.
    pub clients_max: Option<NonZero<u16>>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) groups_max: usize,
}

/// The claims as they stand in a token whose signature is right.
#[derive(Deserialize)]
pub(super) struct Taken {
    sub: Option<Box<RawValue>>,
    exp: Option<f64>,
    nbf: Option<f64>,
    expire_at: Option<f64>,
    info: Option<Box<RawValue>>,
    b64info: Option<String>,
    channels: Option<Vec<String>>,
    subs: Option<BTreeMap<String, IgnoredAny>>,
    channel: Option<IgnoredAny>,
    roost: Option<Roost>,
}

/// Our own claim.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Roost {
    #[serde(default)]
    grants: Vec<Allowed>,
    #[serde(default)]
    groups: Vec<String>,
    /// The session may have no more clients at once than this.
    clients_max: Option<NonZero<u16>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Allowed {
    pattern: String,
    #[serde(default)]
    join: bool,
    #[serde(default)]
    publish: bool,
}

impl Taken {
    /// Whether they are right at this time, and what they mean.
    pub(super) fn check(self, now_ms: u64, leeway_ms: u64, bounds: Bounds) -> Result<Claims, JwtError> {
        if self.channel.is_some() {
            let why = "a token for one channel opens no connection: leave it out";
            return Err(JwtError::claim("channel", why));
        }
        let exp_ms = ms("exp", self.exp)?.map(|exp_ms| exp_ms + leeway_ms);
        if exp_ms.is_some_and(|exp_ms| exp_ms <= now_ms) {
            return Err(JwtError::Expired);
        }
        if ms("nbf", self.nbf)?.is_some_and(|nbf_ms| nbf_ms > now_ms + leeway_ms) {
            return Err(JwtError::NotYet);
        }
        // It has the last word about what is made of the token, and may say: never.
        let expires_ms = match ms("expire_at", self.expire_at)? {
            None => exp_ms,
            Some(0) => None,
            Some(at_ms) if at_ms + leeway_ms <= now_ms => return Err(JwtError::Expired),
            Some(at_ms) => Some(at_ms + leeway_ms),
        };
        let Roost { grants, groups, clients_max } = self.roost.unwrap_or_default();
        let channels = self.channels.unwrap_or_default();
        let named =
            [("channels", channels), ("subs", self.subs.unwrap_or_default().into_keys().collect()), ("roost", groups)];
        Ok(Claims {
            user: user(self.sub.as_deref())?,
            expires_ms: expires_ms.map(|expires_ms| expires_ms.min(now_ms + TTL_MAX_S * 1_000)),
            attributes: attributes(self.info.as_deref(), self.b64info.as_deref())?,
            groups: joined(named, bounds)?,
            grants: granted(grants)?,
            clients_max,
        })
    }
}

/// Seconds since 1970, which may have a fraction, as milliseconds.
fn ms(claim: &'static str, seconds: Option<f64>) -> Result<Option<u64>, JwtError> {
    /// The year 9999, in seconds: what is later is in other units.
    const LATEST_S: f64 = 253_402_300_800.0;
    match seconds {
        None => Ok(None),
        // Within these bounds it is a whole number that a `u64` holds.
        Some(seconds) if (0.0..LATEST_S).contains(&seconds) => Ok(Some((seconds * 1_000.0) as u64)),
        Some(seconds) => Err(JwtError::claim(claim, format!("this is in seconds since 1970, not {seconds}"))),
    }
}

fn user(sub: Option<&RawValue>) -> Result<String, JwtError> {
    let Some(sub) = sub.map(RawValue::get).filter(|sub| *sub != "null") else { return Ok(String::new()) };
    let why = |_| format!("a user's name is a text (in quotation marks), not {sub}");
    let user: String = serde_json::from_str(sub).map_err(why).map_err(|why| JwtError::claim("sub", why))?;
    if !user.is_empty() {
        check_user(&user).map_err(|why| JwtError::claim("sub", why))?;
    }
    Ok(user)
}

fn attributes(info: Option<&RawValue>, b64info: Option<&str>) -> Result<Bytes, JwtError> {
    let (claim, text) = match (info, b64info.filter(|text| !text.is_empty())) {
        // As in Centrifugo it is the one that counts.
        (_, Some(text)) => {
            let bytes = BASE64.decode(text).map_err(|error| JwtError::claim("b64info", error))?;
            let text = String::from_utf8(bytes).map_err(|error| JwtError::claim("b64info", error))?;
            serde_json::from_str::<IgnoredAny>(&text).map_err(|error| JwtError::claim("b64info", error))?;
            ("b64info", text)
        }
        (Some(info), None) if info.get() != "null" => ("info", info.get().to_owned()),
        _ => ("info", "{}".to_owned()),
    };
    let text = text.trim();
    if !text.starts_with('{') {
        return Err(JwtError::claim(claim, "this becomes the session's attributes, which are a JSON object"));
    }
    if text.len() > ATTRIBUTES_MAX_BYTES {
        let why = format!("attributes have at most {ATTRIBUTES_MAX_BYTES} bytes, these have {}", text.len());
        return Err(JwtError::claim(claim, why));
    }
    check_depth(text).map_err(|problem| JwtError::claim(claim, problem.msg))?;
    Ok(Bytes::copy_from_slice(text.as_bytes()))
}

fn joined<const N: usize>(
    named: [(&'static str, Vec<String>); N],
    Bounds { groups_max }: Bounds,
) -> Result<BTreeSet<GroupName>, JwtError> {
    let mut groups = BTreeSet::new();
    for (claim, names) in named {
        for name in names {
            groups.insert(joinable(&name).map_err(|why| JwtError::claim(claim, why))?);
            if groups.len() > groups_max {
                let why = format!("a session has at most {groups_max} groups (limits.groups_per_session)");
                return Err(JwtError::claim(claim, why));
            }
        }
    }
    Ok(groups)
}

fn granted(given: Vec<Allowed>) -> Result<Vec<Grant>, JwtError> {
    if given.len() > GRANTS_MAX {
        return Err(JwtError::claim("roost", format!("a session has at most {GRANTS_MAX} grants")));
    }
    let grant = |Allowed { pattern, join, publish }| {
        if pattern.is_empty() || pattern.len() > PATTERN_MAX_BYTES || pattern.chars().any(char::is_control) {
            let why = format!("a grant's pattern has 1 to {PATTERN_MAX_BYTES} bytes and no control characters");
            return Err(JwtError::claim("roost", why));
        }
        Ok(Grant { pattern, join, publish })
    };
    given.into_iter().map(grant).collect()
}
