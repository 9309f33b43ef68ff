//! What a namespace tells of who is in its groups: `true`, `false` or `"counts"`.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, Visitor},
};

/// What is told of who is in a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PresenceMode {
    /// Nothing, nor is it known. `false`
    Off,
    /// Each that comes, goes, or changes. `true`
    Each,
    /// How many there are, once in a second at most; who, when asked. `"counts"`
    Counts,
}

impl PresenceMode {
    /// Whether it is known who is there.
    pub fn is_known(self) -> bool {
        self != Self::Off
    }
}

impl Serialize for PresenceMode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => serializer.serialize_bool(false),
            Self::Each => serializer.serialize_bool(true),
            Self::Counts => serializer.serialize_str("counts"),
        }
    }
}

impl<'de> Deserialize<'de> for PresenceMode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Mode;
        impl Visitor<'_> for Mode {
            type Value = PresenceMode;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false or \"counts\"")
            }
            fn visit_bool<E: de::Error>(self, known: bool) -> Result<PresenceMode, E> {
                Ok(if known { PresenceMode::Each } else { PresenceMode::Off })
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<PresenceMode, E> {
                match text {
                    "counts" => Ok(PresenceMode::Counts),
                    other => Err(E::invalid_value(de::Unexpected::Str(other), &self)),
                }
            }
        }
        deserializer.deserialize_any(Mode)
    }
}
