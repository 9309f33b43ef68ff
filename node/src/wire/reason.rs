//! Why something was refused, or a connection ended: one table of what every surface tells of it.
//!
//! HTTP renders a row as status, `type`, `msg` and `Retry-After`; an `error` frame as `code`, `message` and
//! `retry_after_ms`; a `bye` as `code`, `reason` and `after_ms`, followed by the close code.

/// What is told of a [`Reason`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row {
    /// For programs; the same on every surface.
    pub code: &'static str,
    /// The HTTP status; nothing where this is never said over HTTP.
    pub status: Option<u16>,
    /// The WebSocket close code; nothing where no connection ends by it.
    pub close: Option<u16>,
    /// After how many milliseconds a retry makes sense, unless the occasion knows better; nothing where it makes none.
    pub retry_ms: Option<u64>,
    /// For people: what is wrong and how to mend it, unless the occasion can say it more exactly.
    pub words: &'static str,
}

macro_rules! given {
    (-) => {
        None
    };
    ($value:literal) => {
        Some($value)
    };
}

macro_rules! reasons {
    ($($name:ident $code:literal $status:tt $close:tt $retry_ms:tt $words:literal;)*) => {
        /// Why something was refused, or a connection ended.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Reason {
            $(#[doc = $words] $name,)*
        }

        impl Reason {
            /// Every one, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// What is told of it.
            pub const fn row(self) -> Row {
                match self {
                    $(Self::$name => Row {
                        code: $code,
                        status: given!($status),
                        close: given!($close),
                        retry_ms: given!($retry_ms),
                        words: $words,
                    },)*
                }
            }
        }
    };
}

// Close codes: 4000 to 4099 ask the client to come back with the same session; after 4100 to 4199 coming back as it was
// would do the same again. 4500 to 4599 and 4600 to 4699 are the same with a meaning of the application's own, which a
// backend gives where it disconnects a client (`Farewell`). Those below 4000 are the WebSocket standard's own.
reasons! {
    // name                code                      HTTP close retry  words
    Busy                   "busy"                    503  -     100    "too much is waiting here: not done, try again";
    Unavailable            "unavailable"             503  4006  1_000  "no node can serve this part of the cluster now: not done, try again";
    StoreUnavailable       "store_unavailable"       503  -     1_000  "the session store did not take or give the session: not done, try again";
    NotEnoughCopies        "not_enough_copies"       503  -     1_000  "too few nodes would hold the message: not done, try again";
    UnknownOutcome         "unknown_outcome"         504  -     0      "no answer in time: it may or may not have been done. Repeat it; a publish with the same key is never made twice";
    NoSession              "no_session"              404  -     -      "there is no such session";
    SessionEnded           "session_ended"           410  4101  -      "the session is over";
    TooManyGroups          "too_many_groups"         409  -     -      "the client is in as many groups as one may be (limits.groups_per_session): leave some first";
    TooManyClients         "too_many_clients"        409  4104  -      "the session has as many clients as one may have (session.clients_max): close one first";
    NoClient               "no_client"               404  -     -      "the session has no such client that is connected";
    NoGroup                "no_group"                404  -     -      "there is no such group: nobody is in it and no message is kept";
    NoPresence             "no_presence"             -    -     -      "this namespace keeps no presence: nobody knows who is there";
    Forbidden              "forbidden"               403  -     -      "this session may not do this";
    ForbiddenOrigin        "forbidden_origin"        403  -     -      "pages of this origin may not use the session cookie: add the origin to session.allowed_origins, or send a token in `hello`";
    Unauthorized           "unauthorized"            401  4102  -      "a session is needed: a token in `hello`, as `Authorization: Bearer …`, or the session cookie (or set session.anonymous, then clients without one get one)";
    TokenExpired           "token_expired"           401  4107  -      "the token has expired: come with a new one, or refresh it before it does";
    Invalid                "invalid"                 422  -     -      "something in the request is not valid";
    TooLarge               "too_large"               413  -     -      "the request is too large";
    Internal               "internal"                500  -     -      "a fault of this server: its log says more";

    Draining               "draining"                503  4001  1_000  "this node is going away: connect to another one";
    ConnectsPerSecond      "connects_per_s"          503  -     1_000  "too many clients connect to this node at once (limits.connects_per_s): try again, or another node";
    Connections            "connections"             503  -     5_000  "this node has as many connections as it takes (limits.connections): try another one";
    OpenFiles              "open_files"              503  -     5_000  "this node's process may have no more connections open (`ulimit -n`): try another one";
    Replays                "replays"                 503  -     1_000  "too many clients wait for what they missed (limits.replay_queue): try again, or another node";
    ConnectionsPerAddress  "connections_per_address" 503  -     5_000  "too many connections from this address (limits.connections_per_address): close some first";
    UpgradeRequired        "upgrade_required"        426  -     -      "this is a WebSocket endpoint, for instance for `new WebSocket(…)` in a browser";

    HelloTimeout           "hello_timeout"           -    4002  -      "no `hello` came in time";
    HelloFirst             "hello_first"             -    -     -      "the first frame is `hello`: {\"type\":\"hello\"}";
    HelloAgain             "hello_again"             -    -     -      "this connection has said hello already: open another one for another session";
    Idle                   "idle"                    -    4003  -      "nothing was heard for too long: answer pings, or send a heartbeat now and then";
    SlowConsumer           "slow_consumer"           -    4004  -      "too much was waiting for this connection: read faster, or join fewer groups";
    RateLimited            "rate_limited"            429  4005  5_000  "far more operations than limits.operations_per_s allows: wait for answers, and slow down";
    Displaced              "displaced"               -    4100  -      "this client has attached from another connection";
    CrowdedOut             "crowded_out"             -    4105  -      "another client of the session has taken the place of this one: it has as many as it may have (session.clients_max)";
    Reconnect              "reconnect"               -    4007  -      "the application asks this client to connect again";
    Disconnected           "disconnected"            -    4106  -      "the application has disconnected this client";
    BadFrame               "bad_frame"               -    4103  -      "the frame breaks the WebSocket protocol";
    BadJson                "bad_json"                -    -     -      "a frame is one JSON object, for instance {\"type\":\"heartbeat\"}";
    FrameTooLarge          "frame_too_large"         -    1009  -      "the frame is larger than limits.frame_bytes allows";
    BinaryFrame            "binary_frame"            -    1003  -      "this is a binary frame: the protocol is JSON in text frames";
    NotUtf8                "not_utf8"                -    1007  -      "the text is not UTF-8";

    NotFound               "not_found"               404  -     -      "there is nothing here: /docs lists what there is";
    MethodNotAllowed       "method_not_allowed"      405  -     -      "this path does not take the method: the Allow header lists what it takes";
    Timeout                "timeout"                 408  -     -      "the body did not arrive in time";
    Incomplete             "incomplete"              400  -     -      "the body broke off";
    NoHost                 "no_host"                 400  -     -      "an HTTP/1.1 request says which host it is for: send one `Host` header";
    ContentType            "content_type"            415  -     -      "the body must be JSON: send `Content-Type: application/json`";
    NotTried               "not_tried"               424  -     -      "an earlier publish to this group was not accepted: not done, repeat the batch with the same keys";
    NotReady               "not_ready"               503  -     1_000  "this node is not ready";
    NoNode                 "no_node"                 404  -     -      "there is no such node: /v1/cluster/nodes lists those there are";
    NodeDead               "node_dead"               409  -     -      "the node is not heard, so it cannot be told to drain: its slots are taken over without that";
    NodeDraining           "node_draining"           409  -     -      "another node drains, and slots would move twice: wait until it has gone, or use force";
    NodeAlive              "node_alive"              409  -     -      "the node is alive: drain it and stop it first";
    Refused                "refused"                 503  -     1_000  "the node did not do it";
}

impl Reason {
    /// For programs.
    pub const fn code(self) -> &'static str {
        self.row().code
    }

    /// Whether a client that is closed by this is to come back with the same session.
    pub fn comes_back(self) -> bool {
        self.row().close.is_some_and(|code| (4_000..4_100).contains(&code))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_code_stands_once_and_every_number_means_something() {
        let mut codes = BTreeSet::new();
        let mut closes = BTreeSet::new();
        for reason in Reason::ALL {
            let Row { code, status, close, retry_ms, words } = reason.row();
            assert!(codes.insert(code), "{code} stands twice");
            assert!(
                !code.is_empty() && code.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_')),
                "{code}"
            );
            assert!(!words.is_empty() && !words.ends_with('.'), "{code}");
            assert!(status.is_none_or(|status| (400..600).contains(&status)), "{code}");
            if let Some(close) = close {
                assert!(closes.insert(close), "{code}: {close} stands twice");
                assert!(matches!(close, 1_003 | 1_007 | 1_009 | 4_000..=4_199), "{code}: {close}");
            }
            let temporary = matches!(status, Some(503 | 504)) || reason.comes_back();
            assert!(retry_ms.is_none() || temporary, "{code}: a retry makes sense only where it can end otherwise");
            assert!(
                !matches!(status, Some(503 | 504)) || retry_ms.is_some(),
                "{code}: 503 and 504 say when to come back"
            );
        }
    }

    /// What clients and backends rely on.
    #[test]
    fn what_is_promised_stays() {
        #[track_caller]
        fn check(reason: Reason, code: &str, close: u16, comes_back: bool) {
            assert_eq!((reason.code(), reason.row().close, reason.comes_back()), (code, Some(close), comes_back));
        }
        check(Reason::Draining, "draining", 4_001, true);
        check(Reason::HelloTimeout, "hello_timeout", 4_002, true);
        check(Reason::Idle, "idle", 4_003, true);
        check(Reason::SlowConsumer, "slow_consumer", 4_004, true);
        check(Reason::RateLimited, "rate_limited", 4_005, true);
        check(Reason::Unavailable, "unavailable", 4_006, true);
        check(Reason::Reconnect, "reconnect", 4_007, true);
        check(Reason::Displaced, "displaced", 4_100, false);
        check(Reason::SessionEnded, "session_ended", 4_101, false);
        check(Reason::Unauthorized, "unauthorized", 4_102, false);
        check(Reason::BadFrame, "bad_frame", 4_103, false);
        check(Reason::TooManyClients, "too_many_clients", 4_104, false);
        check(Reason::CrowdedOut, "crowded_out", 4_105, false);
        check(Reason::Disconnected, "disconnected", 4_106, false);
        check(Reason::TokenExpired, "token_expired", 4_107, false);
    }

    /// The README names codes in back-quotes where it speaks of errors; each is one of the table.
    #[test]
    fn the_readme_names_what_there_is() {
        let readme = include_str!("../../../README.md");
        for code in ["slow_consumer", "unknown_outcome"] {
            assert!(readme.contains(&format!("`{code}`")), "{code}");
            assert!(Reason::ALL.iter().any(|reason| reason.code() == code), "{code}");
        }
    }
}
