//! What is taken out of a request before it is acted on: the API key, path and query parameters, the JSON body. Whatever
//! is wrong is named by its exact place, and nothing is believed about sizes, depths or encodings.

use std::{fmt, marker::PhantomData, ops::RangeInclusive, str::FromStr, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{FromRequest, FromRequestParts, Path, Request, State, path::ErrorKind, rejection::PathRejection},
    http::{HeaderMap, StatusCode, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use bytes::BytesMut;
use futures_util::StreamExt;
use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeOwned, MapAccess, Visitor, value::MapAccessDeserializer},
};
use serde_path_to_error::Segment;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};
use uuid::Uuid;

use super::{
    api::Api,
    error::{ApiError, Loc, Problem, Problems, loc},
};
use crate::{
    id::{ClientId, GROUP_NAME_MAX_BYTES, GroupName, NodeId, SessionId, is_hidden},
    metrics::Limit,
    wire::{
        plain::{LIMIT_DEFAULT, LIMIT_MAX},
        reason::Reason,
    },
};

/// Arrays and objects within each other in a body; what receives a message may be weaker than what takes it in.
const JSON_DEPTH_MAX: usize = 128;

// --- The API key ---------------------------------------------------------------------------------------------------

/// Lets a request through that carries one of the API keys.
pub async fn require_key(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    match check_key(&api.config.auth.api_keys, request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

fn check_key(keys: &[String], headers: &HeaderMap) -> Result<(), ApiError> {
    let unauthorized = |msg: &str| Err(ApiError::at(Reason::Unauthorized, loc!["header", "authorization"], msg));
    let by_name = headers.get("x-api-key").map(|value| value.as_bytes());
    let bearer = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes()).and_then(|value| {
        let (scheme, key) = value.split_at_checked("bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
    });
    let Some(given) = by_name.or(bearer) else {
        return unauthorized("this call needs an API key: send `Authorization: Bearer KEY` or `X-API-Key: KEY`");
    };
    if keys.is_empty() {
        return unauthorized("no API key is configured on this node: set auth.api_keys");
    }
    // The digests make all keys of one length; every key is compared, so that the time tells nothing.
    let given = Sha256::digest(given);
    let known = keys
        .iter()
        .filter(|key| !key.is_empty())
        .map(|key| Sha256::digest(key.as_bytes()).as_slice().ct_eq(given.as_slice()))
        .fold(Choice::from(0), |any, this| any | this);
    if bool::from(known) { Ok(()) } else { unauthorized("this API key is not known: it must be one of auth.api_keys") }
}

// --- Path parameters -----------------------------------------------------------------------------------------------

/// A value out of the path.
#[derive(Clone, Debug)]
pub struct InPath<T>(pub T);

/// What can stand in a path.
pub trait FromPath: Sized {
    /// The parameter's name in the route.
    const NAME: &'static str;
    /// Parses it, or says what is wrong with it.
    fn from_path(text: &str) -> Result<Self, String>;
}

/// A user's name, as in a session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UserName(pub String);

impl FromPath for GroupName {
    const NAME: &'static str = "group";
    fn from_path(text: &str) -> Result<Self, String> {
        group_name(text)
    }
}

impl FromPath for SessionId {
    const NAME: &'static str = "id";
    fn from_path(text: &str) -> Result<Self, String> {
        session_id(text)
    }
}

impl FromPath for UserName {
    const NAME: &'static str = "user";
    fn from_path(text: &str) -> Result<Self, String> {
        check_user(text).map(|()| Self(text.to_owned()))
    }
}

impl FromPath for ClientId {
    const NAME: &'static str = "client";
    fn from_path(text: &str) -> Result<Self, String> {
        Self::parse(text)
    }
}

impl FromPath for NodeId {
    const NAME: &'static str = "node";
    fn from_path(text: &str) -> Result<Self, String> {
        Self::parse(text)
    }
}

impl<T: FromPath, S: Send + Sync> FromRequestParts<S> for InPath<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(values) = Path::<Vec<(String, String)>>::from_request_parts(parts, state).await.map_err(path_error)?;
        let Some((_, text)) = values.iter().find(|(name, _)| name == T::NAME) else {
            tracing::error!(name = T::NAME, "a route lacks this parameter");
            return Err(ApiError::internal());
        };
        T::from_path(text)
            .map(Self)
            .map_err(|msg| ApiError::invalid(vec![Problem::new(loc!["path", T::NAME], "value_error", msg)]))
    }
}

fn path_error(rejection: PathRejection) -> ApiError {
    let name = match rejection {
        PathRejection::FailedToDeserializePathParams(error) => match error.into_kind() {
            ErrorKind::InvalidUtf8InPathParam { key } => Some(key),
            _ => None,
        },
        _ => None,
    };
    match name {
        Some(name) => ApiError::invalid(vec![Problem::new(
            loc!["path", name.as_str()],
            "encoding_error",
            "this is not UTF-8: percent-encode the UTF-8 bytes of the name",
        )]),
        None => ApiError::internal(),
    }
}

/// A group's name as the server may use it: the private ones of sessions and users too, no other that begins with `@`.
pub fn group_name(text: &str) -> Result<GroupName, String> {
    let group = GroupName::parse(text)?;
    if group.is_private() {
        if let Some(session) = text.strip_prefix("@session:") {
            session_id(session).map_err(|error| format!("after '@session:': {error}"))?;
        } else if let Some(user) = text.strip_prefix("@user:") {
            check_user(user)?;
        } else {
            let msg = "names that begin with '@' are Roost's own: only @session:… and @user:… may be published to";
            return Err(msg.to_owned());
        }
    }
    Ok(group)
}

/// A session's id.
pub fn session_id(text: &str) -> Result<SessionId, String> {
    if text.starts_with("v2.") {
        return Err("this is a session token, which only its client should hold: the id is needed here".to_owned());
    }
    // `Uuid` reads other forms as well; one session has one name here.
    match Uuid::try_parse(text) {
        Ok(uuid) if text.len() == 36 => Ok(SessionId(uuid)),
        _ => Err("a session id is a UUID, such as 0b5f6f0e-5a3c-4a57-9d6e-7f3c2a1b0c9d".to_owned()),
    }
}

/// The longest name of a user, in bytes: that of its private group must be one of a group.
pub const USER_MAX_BYTES: usize = GROUP_NAME_MAX_BYTES - "@user:".len();

/// Whether a user's name can be one: its private group's name must be.
pub fn check_user(user: &str) -> Result<(), String> {
    if user.is_empty() {
        return Err("a user's name is not empty".to_owned());
    }
    if user.len() > USER_MAX_BYTES {
        return Err(format!("a user's name has at most {USER_MAX_BYTES} bytes, this has {}", user.len()));
    }
    match user.chars().find(|c| is_hidden(*c)) {
        Some(bad) => {
            Err(format!("a user's name has no control characters and no others that are not seen, this has {bad:?}"))
        }
        None => Ok(()),
    }
}

// --- Query parameters ----------------------------------------------------------------------------------------------

/// The parameters after the `?`; each is read once, and [`Query::done`] tells all that was wrong.
#[derive(Debug)]
pub struct Query {
    pairs: Vec<(String, String)>,
    problems: Problems,
}

impl Query {
    /// Decodes, and notes parameters that are not known, given twice, or not UTF-8.
    pub fn read(raw: Option<&str>, known: &[&str]) -> Self {
        Self::read_with_list(raw, known, "")
    }

    /// The same; one of them may be given several times.
    pub fn read_with_list(raw: Option<&str>, known: &[&str], list: &str) -> Self {
        let mut query = Self { pairs: Vec::new(), problems: Problems::default() };
        for part in raw.unwrap_or("").split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let name = decoded(name).unwrap_or_else(|_| name.to_owned());
            if !known.contains(&name.as_str()) {
                let msg = unknown(&name, known, "parameter");
                query.problems.add(Problem::new(loc!["query", name.as_str()], "unknown_field", msg));
            } else if name != list && query.pairs.iter().any(|(earlier, _)| *earlier == name) {
                let msg = "this parameter is given twice";
                query.problems.add(Problem::new(loc!["query", name.as_str()], "duplicate_field", msg));
            } else {
                match decoded(value) {
                    Ok(value) => query.pairs.push((name, value)),
                    Err(msg) => query.problems.add(Problem::new(loc!["query", name.as_str()], "encoding_error", msg)),
                }
            }
        }
        query
    }

    /// A text, parsed.
    pub fn parsed<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let value = self.pairs.iter().find(|(given, _)| given == name).map(|(_, value)| value)?;
        self.problems.take(|| loc!["query", name], parse(value))
    }

    /// All that were given of one that may be given several times, each parsed if it is among the first `max`.
    pub fn list<T>(&mut self, name: &str, max: usize, parse: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        let given = self.pairs.iter().filter(|(given, _)| given == name).map(|(_, value)| value);
        let parsed: Vec<_> = given.take(max).map(|value| parse(value)).collect();
        parsed.into_iter().filter_map(|value| self.problems.take(|| loc!["query", name], value)).collect()
    }

    /// How often a parameter was given.
    pub fn count(&self, name: &str) -> usize {
        self.pairs.iter().filter(|(given, _)| given == name).count()
    }

    /// A whole number within bounds.
    pub fn number(&mut self, name: &str, bounds: RangeInclusive<u64>) -> Option<u64> {
        let value = self.pairs.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str())?;
        match u64::from_str(value) {
            Ok(number) if bounds.contains(&number) => Some(number),
            Ok(_) => {
                self.problems
                    .value(loc!["query", name], format!("must be from {} to {}", bounds.start(), bounds.end()));
                None
            }
            Err(_) => {
                let msg = format!("must be a whole number from {} to {}", bounds.start(), bounds.end());
                self.problems.add(Problem::new(loc!["query", name], "type_error", msg));
                None
            }
        }
    }

    /// How many a page is to have: 1 to 1,000, or 100.
    pub fn limit(&mut self) -> u32 {
        // At most 1,000, so it fits.
        self.number("limit", 1..=u64::from(LIMIT_MAX)).unwrap_or(u64::from(LIMIT_DEFAULT)) as u32
    }

    /// Whether the parameter was given at all.
    pub fn has(&self, name: &str) -> bool {
        self.pairs.iter().any(|(given, _)| given == name)
    }

    /// Notes another problem.
    pub fn problem(&mut self, name: &str, kind: &'static str, msg: &str) {
        self.problems.add(Problem::new(loc!["query", name], kind, msg));
    }

    /// Refuses the request if anything was wrong.
    pub fn done(self) -> Result<(), ApiError> {
        self.problems.refuse()
    }
}

/// Undoes percent-encoding, with `+` for a space.
fn decoded(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        match first {
            b'+' => bytes.push(b' '),
            b'%' => {
                let digit = |at: usize| tail.get(at).and_then(|byte| char::from(*byte).to_digit(16));
                let (Some(high), Some(low)) = (digit(0), digit(1)) else {
                    return Err("a '%' is followed by two hex digits; write the sign itself as %25".to_owned());
                };
                // Two hex digits are a byte.
                bytes.push((high * 16 + low) as u8);
                rest = &tail[2..];
            }
            other => bytes.push(*other),
        }
    }
    String::from_utf8(bytes).map_err(|_| "this is not UTF-8: percent-encode the UTF-8 bytes of the text".to_owned())
}

fn unknown<'a>(name: &str, known: impl IntoIterator<Item = &'a &'a str>, what: &str) -> String {
    let known: Vec<&str> = known.into_iter().copied().collect();
    let nearest = known
        .iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((_, nearest)) => format!("there is no {what} of this name here: did you mean `{nearest}`?"),
        None if known.is_empty() => format!("there is no {what} of this name here: none is known"),
        None => format!("there is no {what} of this name here: known are `{}`", known.join("`, `")),
    }
}

/// Bytes that are read on of a body that is too large, so that the client reads the answer.
const READ_AWAY_BYTES: usize = 16 << 20;

// --- The body ------------------------------------------------------------------------------------------------------

/// A JSON body.
#[derive(Debug)]
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<Api>> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, api: &Arc<Api>) -> Result<Self, ApiError> {
        check_content_type(request.headers())?;
        let limits = &api.config.limits;
        let read = read_body(request, limits.body_bytes);
        // A body that trickles in is not waited for longer than a hello is.
        let read = tokio::time::timeout(Duration::from_millis(limits.handshake_ms), read).await.unwrap_or_else(|_| {
            api.metrics.limit_hit(Limit::HandshakeMs);
            Err(ApiError::at(Reason::Timeout, loc!["body"], Reason::Timeout.row().words))
        });
        if matches!(&read, Err(error) if error.status == StatusCode::PAYLOAD_TOO_LARGE) {
            api.metrics.limit_hit(Limit::BodyBytes);
        }
        parse_json(&read?).map(Self)
    }
}

fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let unsupported = |name: &str, msg: &str| Err(ApiError::at(Reason::ContentType, loc!["header", name], msg));
    if headers.get(header::CONTENT_ENCODING).is_some_and(|value| value != "identity") {
        return unsupported("content-encoding", "send the body as it is, without Content-Encoding");
    }
    let given =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("").to_ascii_lowercase();
    let mut parts = given.split(';').map(str::trim);
    if parts.next() != Some("application/json") {
        return unsupported("content-type", "the body must be JSON: send `Content-Type: application/json`");
    }
    let other_charset = |part: &str| {
        part.strip_prefix("charset=").is_some_and(|charset| !matches!(charset.trim_matches('"'), "utf-8" | "utf8"))
    };
    if parts.any(other_charset) {
        return unsupported("content-type", "JSON is UTF-8: leave the charset away");
    }
    Ok(())
}

async fn read_body(request: Request<Body>, limit: usize) -> Result<bytes::Bytes, ApiError> {
    let too_large = || {
        let msg = format!("the body may have at most {limit} bytes (limits.body_bytes)");
        ApiError::at(Reason::TooLarge, loc!["body"], msg)
    };
    let announced =
        request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let announced_too_large = announced.is_some_and(|bytes| bytes > limit as u64);
    if announced_too_large && request.headers().contains_key(header::EXPECT) {
        return Err(too_large());
    }
    let (mut kept, mut seen) = (BytesMut::new(), 0);
    let mut pieces = request.into_body().into_data_stream();
    while let Some(piece) = pieces.next().await {
        let piece =
            piece.map_err(|_| ApiError::at(Reason::Incomplete, loc!["body"], Reason::Incomplete.row().words))?;
        seen += piece.len();
        // A client that is still sending when the connection closes would see that, and not the answer: what is too much
        // is read away, within reason.
        if seen > limit.saturating_add(READ_AWAY_BYTES) {
            break;
        }
        if seen <= limit && !announced_too_large {
            kept.extend_from_slice(&piece);
        }
    }
    if seen > limit || announced_too_large { Err(too_large()) } else { Ok(kept.freeze()) }
}

pub(super) fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let invalid = |problem| ApiError::invalid(vec![problem]);
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let msg = format!("JSON is UTF-8: byte {} is not", error.valid_up_to());
        invalid(Problem::new(loc!["body"], "encoding_error", msg))
    })?;
    if text.trim_ascii().is_empty() {
        return Err(invalid(Problem::new(loc!["body"], "missing", "the body is empty: send a JSON object")));
    }
    check_depth(text).map_err(invalid)?;
    let mut json = serde_json::Deserializer::from_str(text);
    let Object(value) = serde_path_to_error::deserialize(&mut json).map_err(|error| invalid(json_problem(&error)))?;
    json.end().map_err(|error| invalid(Problem::new(loc!["body"], "json_invalid", error.to_string())))?;
    Ok(value)
}

/// A raw value is passed over by serde_json without counting its depth.
pub(in crate::gateway) fn check_depth(text: &str) -> Result<(), Problem> {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => depth += 1,
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > JSON_DEPTH_MAX {
            let msg = format!("arrays and objects may stand within each other {JSON_DEPTH_MAX} deep at most");
            return Err(Problem::new(loc!["body"], "too_deep", msg));
        }
    }
    Ok(())
}

/// Places an error of serde's. The paths of missing and duplicate fields end at their object; the names are in the text.
fn json_problem(error: &serde_path_to_error::Error<serde_json::Error>) -> Problem {
    let mut place = loc!["body"];
    place.extend(error.path().iter().filter_map(|segment| match segment {
        Segment::Seq { index } => Some(Loc::from(*index)),
        Segment::Map { key } => Some(Loc::from(key.as_str())),
        Segment::Enum { variant } => Some(Loc::from(variant.as_str())),
        Segment::Unknown => None,
    }));
    let text = error.inner().to_string();
    if !error.inner().is_data() && !text.starts_with("number out of range") {
        return Problem::new(place, "json_invalid", format!("this is not JSON: {text}"));
    }
    let said = text.rsplit_once(" at line ").map_or(text.as_str(), |(said, _)| said);
    let quoted: Vec<&str> = said.split('`').skip(1).step_by(2).collect();
    if said.starts_with("missing field") {
        place.extend(quoted.first().map(|name| Loc::from(*name)));
        Problem::new(place, "missing", "this field is required")
    } else if said.starts_with("duplicate field") {
        place.extend(quoted.first().map(|name| Loc::from(*name)));
        Problem::new(place, "duplicate_field", "this field is given twice")
    } else if said.starts_with("unknown field") {
        // The name itself may hold back-quotes, so it is taken from the path, and the known ones from the end.
        let name = match place.last() {
            Some(Loc::Name(name)) => name.clone(),
            _ => String::new(),
        };
        let expected = said.rsplit_once("expected ").map_or("", |(_, expected)| expected);
        let known: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
        Problem::new(place, "unknown_field", unknown(&name, &known, "field"))
    } else if said.starts_with("invalid type") || said.starts_with("number out of range") {
        Problem::new(place, "type_error", said)
    } else {
        Problem::new(place, "value_error", said)
    }
}

/// Read from a JSON object and nothing else: serde's structs would take an array too, its fields by their order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Only<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Only<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_map(Only(PhantomData)).map(Self)
    }
}

/// A whole number; `3.0` is one in JSON, and what some languages write.
pub fn whole<'de, D: Deserializer<'de>, T: TryFrom<u64>>(deserializer: D) -> Result<Option<T>, D::Error> {
    let Some(number) = Option::<serde_json::Number>::deserialize(deserializer)? else { return Ok(None) };
    // Beyond 2^53 a float no longer tells one whole number from the next.
    let of_float =
        |float: f64| (float.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(&float)).then_some(float as u64);
    let read = number.as_u64().or_else(|| number.as_f64().filter(|_| number.is_f64()).and_then(of_float));
    match read.map(T::try_from) {
        Some(Ok(read)) => Ok(Some(read)),
        Some(Err(_)) => Err(de::Error::custom(format!("{number} is too large"))),
        None => Err(de::Error::custom(format!("invalid type: `{number}`, expected a whole number from 0"))),
    }
}

#[cfg(test)]
mod tests;
