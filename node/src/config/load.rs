//! Defaults, then the file, then the environment; every unknown key and wrong type is found, not only the first.
//!
//! The known keys are those of the serialised defaults, so that nothing here needs to be kept in step by hand. Each value
//! is tried on its own: what is wrong with one does not hide what is wrong with the next.

use std::{collections::BTreeMap, ffi::OsString, fmt, io, path::Path};

use figment::{
    Figment,
    error::Kind,
    providers::Serialized,
    value::{Dict, Value},
};

use super::{Config, NamespaceConfig, Purpose, check};

/// Why there is no configuration: everything that is wrong with it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigError {
    /// At least one.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// The file, the environment variable, or nothing where it is a default.
    pub source: String,
    /// The key's path, such as `limits.idle_s`; empty where it is about the whole source.
    pub key: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in [&self.source, &self.key] {
            if !part.is_empty() {
                write!(f, "{part}: ")?;
            }
        }
        f.write_str(&self.message)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.as_slice() {
            [one] => write!(f, "the configuration has a problem: {one}"),
            many => {
                write!(f, "the configuration has {} problems:", many.len())?;
                many.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

impl std::error::Error for ConfigError {}

/// Loads from a file and these environment variables, and checks the result.
pub(super) fn load(
    path: Option<&Path>,
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Config, ConfigError> {
    load_text(path.map(|path| (path.display().to_string(), std::fs::read_to_string(path))), environment)
}

/// The same of a file's name and its text, or why it has none.
pub(super) fn load_text(
    file: Option<(String, io::Result<String>)>,
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Config, ConfigError> {
    let mut gathered = Gathered { schema: schema(&Config::default()), ..Gathered::default() };
    if let Some((source, text)) = file {
        gathered.file(&source, text);
    }
    let mut variables: Vec<_> = environment.collect();
    variables.sort();
    for (name, value) in &variables {
        gathered.variable(name, value);
    }
    let Gathered { good, origins, mut problems, .. } = gathered;
    let layered = Figment::from(Serialized::defaults(Config::default())).merge(Serialized::defaults(&good));
    let config: Config = match layered.extract() {
        Ok(config) => config,
        Err(error) => {
            problems.push(Problem { source: String::new(), key: error.path.join("."), message: error.to_string() });
            return Err(ConfigError { problems });
        }
    };
    for problem in check::problems(&config, Purpose::Serve) {
        // What is reported already is a default by now: its relations to others mean nothing.
        if !problems.iter().any(|earlier| earlier.key == problem.key) {
            let source = origins.get(&problem.key).cloned().unwrap_or_default();
            problems.push(Problem { source, ..problem });
        }
    }
    if problems.is_empty() { Ok(config) } else { Err(ConfigError { problems }) }
}

fn schema<T: serde::Serialize>(of: &T) -> Dict {
    Value::serialize(of).ok().and_then(Value::into_dict).expect("a struct of plain values serialises to a table")
}

#[derive(Default)]
struct Gathered {
    schema: Dict,
    good: Dict,
    origins: BTreeMap<String, String>,
    problems: Vec<Problem>,
}

impl Gathered {
    fn file(&mut self, source: &str, text: io::Result<String>) {
        let whole = |message| Problem { source: source.to_owned(), key: String::new(), message };
        let text = match text {
            Ok(text) => text,
            Err(error) => {
                let message = format!("cannot be read ({error}); config/node.toml is an example to copy");
                self.problems.push(whole(message));
                return;
            }
        };
        match toml::from_str::<Dict>(&text) {
            Ok(found) => self.table(source, &mut Vec::new(), found),
            // Not the line itself, which may hold a password.
            Err(error) => {
                let (line, column) = error.span().map_or((1, 1), |span| place(&text, span.start));
                self.problems.push(whole(format!("is not TOML: line {line}, column {column}: {}", error.message())));
            }
        }
    }

    fn variable(&mut self, name: &OsString, value: &OsString) {
        let Some(name) = name.to_str() else { return };
        let Some(rest) = name.strip_prefix("ROOST_") else { return };
        if !rest.contains("__") {
            // Not an override. Others may be there by chance (Kubernetes makes `ROOST_PORT` of a service named "roost"),
            // so only what surely was meant as one is refused.
            if let Some(meant) = self.single_underscore(rest) {
                let message = format!("overrides are written with two underscores between section and key: {meant}");
                self.problems.push(Problem { source: name.to_owned(), key: String::new(), message });
            }
            return;
        }
        let path: Vec<String> = rest.to_ascii_lowercase().split("__").map(str::to_owned).collect();
        if path.len() > PARTS_MAX {
            let message = format!("a key has at most {PARTS_MAX} parts, this has {}", path.len());
            self.problems.push(Problem { source: name.to_owned(), key: path[..PARTS_MAX].join("."), message });
            return;
        }
        let Some(text) = value.to_str() else {
            self.problems.push(Problem {
                source: name.to_owned(),
                key: path.join("."),
                message: "is not UTF-8".to_owned(),
            });
            return;
        };
        let value = match lookup(&self.schema, &path) {
            Some(like) => read_like(&like, text),
            None => Value::from(text),
        };
        let (first, tail) = path.split_first().expect("split gives at least one part");
        let found = Dict::from([(first.clone(), nest(tail, value))]);
        self.table(name, &mut Vec::new(), found);
    }

    fn single_underscore(&self, rest: &str) -> Option<String> {
        let rest = rest.to_ascii_lowercase();
        self.schema.iter().find_map(|(section, keys)| {
            let key = rest.strip_prefix(section.as_str())?.strip_prefix('_')?;
            let known = keys.as_dict()?.contains_key(key);
            known.then(|| format!("ROOST_{}__{}", section.to_ascii_uppercase(), key.to_ascii_uppercase()))
        })
    }

    fn table(&mut self, source: &str, at: &mut Vec<String>, found: Dict) {
        for (key, value) in found {
            at.push(key);
            match (lookup(&self.schema, at), value) {
                (None, _) => {
                    let message = unknown(&self.schema, at);
                    self.problem(source, at, message);
                }
                (Some(Value::Dict(..)), Value::Dict(_, inner)) => self.table(source, at, inner),
                (Some(Value::Dict(..)), other) => {
                    let message = format!("found {}, expected a table of settings", describe(at, &other));
                    self.problem(source, at, message);
                }
                (Some(_), value) => self.leaf(source, at, value),
            }
            at.pop();
        }
    }

    fn leaf(&mut self, source: &str, at: &[String], value: Value) {
        let found = describe(at, &value);
        let nested = nest(at, value);
        match Figment::from(Serialized::defaults(&nested)).extract::<Config>() {
            Ok(_) => {
                self.origins.insert(at.join("."), source.to_owned());
                merge(&mut self.good, nested);
            }
            Err(error) => self.problem(source, at, wrong_type(&found, &error.kind)),
        }
    }

    fn problem(&mut self, source: &str, at: &[String], message: String) {
        self.problems.push(Problem { source: source.to_owned(), key: at.join("."), message });
    }
}

/// The parts of a key in the environment: more than any has, few enough to be told.
const PARTS_MAX: usize = 8;

/// A table of copies by the names of datacenters.
const REPLICATION: &str = "replication";
/// Tables of texts by the ids of keys.
const KEYS: [&str; 2] = ["secrets", "public_keys"];

/// What stands at a path of the defaults. Every namespace has the keys of the default one, and datacenters and keys
/// have any name.
fn lookup(schema: &Dict, path: &[String]) -> Option<Value> {
    let (first, rest) = path.split_first()?;
    let child = match rest {
        [_, keys @ ..] if first == "namespaces" => {
            let namespace = schema_of_namespace();
            return if keys.is_empty() { Some(Value::from(namespace)) } else { lookup(&namespace, keys) };
        }
        [_] if first == REPLICATION => return Some(Value::from(0_u8)),
        [_] if KEYS.contains(&first.as_str()) => return Some(Value::from("")),
        _ => schema.get(first)?,
    };
    if rest.is_empty() { Some(child.clone()) } else { lookup(child.as_dict()?, rest) }
}

fn schema_of_namespace() -> Dict {
    schema(&NamespaceConfig::default())
}

fn nest(path: &[String], value: Value) -> Value {
    path.iter().rev().fold(value, |inner, key| Value::from(Dict::from([(key.clone(), inner)])))
}

fn merge(into: &mut Dict, from: Value) {
    let Value::Dict(_, from) = from else { return };
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Dict(_, inner)), value @ Value::Dict(..)) => merge(inner, value),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

/// Line and column, from 1, of a byte of a text.
fn place(text: &str, at: usize) -> (usize, usize) {
    let before = &text[..text.floor_char_boundary(at)];
    let line = before.rsplit('\n').next().unwrap_or(before);
    (before.matches('\n').count() + 1, line.chars().count() + 1)
}

/// Reads an environment variable's text as the type that the default has; what does not fit stays text, for the error.
fn read_like(like: &Value, text: &str) -> Value {
    let text = text.trim();
    match like {
        Value::Num(..) => text.replace('_', "").parse::<u64>().map_or_else(|_| Value::from(text), Value::from),
        Value::Bool(..) => text.parse::<bool>().map_or_else(|_| Value::from(text), Value::from),
        Value::Array(..) if text.starts_with('[') => toml::from_str::<Dict>(&format!("list = {text}"))
            .ok()
            .and_then(|mut table| table.remove("list"))
            .unwrap_or_else(|| Value::from(text)),
        Value::Dict(..) if text.starts_with('{') => toml::from_str::<Dict>(&format!("table = {text}"))
            .ok()
            .and_then(|mut table| table.remove("table"))
            .unwrap_or_else(|| Value::from(text)),
        Value::Array(..) => Value::from(
            text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(Value::from).collect::<Vec<_>>(),
        ),
        _ => Value::from(text),
    }
}

/// What to say of a key that is not known: the nearest beside it, or the same one in another section.
fn unknown(schema: &Dict, at: &[String]) -> String {
    let (key, parents) = at.split_last().expect("a key has a path");
    let siblings = if parents.is_empty() {
        schema.clone()
    } else {
        lookup(schema, parents).and_then(Value::into_dict).unwrap_or_default()
    };
    let nearest = siblings
        .keys()
        .map(|known| (strsim::normalized_damerau_levenshtein(known, key), known))
        .max_by(|one, other| one.0.total_cmp(&other.0));
    let elsewhere = schema.iter().find(|(_, inner)| inner.as_dict().is_some_and(|keys| keys.contains_key(key)));
    let path = |last: &str| parents.iter().map(String::as_str).chain([last]).collect::<Vec<_>>().join(".");
    match (nearest, elsewhere) {
        (_, Some((section, _))) => format!("there is no such key here; there is {section}.{key}"),
        (Some((_, known)), _) => format!("there is no such key; the nearest is {}", path(known)),
        (None, None) => "there is no such key".to_owned(),
    }
}

fn wrong_type(found: &str, kind: &Kind) -> String {
    match kind {
        Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected) | Kind::InvalidLength(_, expected) => {
            format!("found {found}, expected {}", plain(expected))
        }
        Kind::UnknownVariant(_, known) => format!("found {found}, expected one of {}", known.join(", ")),
        Kind::ISizeOutOfRange(_) | Kind::USizeOutOfRange(_) => format!("found {found}, which is out of range"),
        Kind::Message(message) if message.contains("socket address") => {
            format!("found {found}, expected an address and port such as 127.0.0.1:8000 or [::]:8000")
        }
        other => format!("found {found}: {other}"),
    }
}

/// serde's words for a type, for people.
fn plain(expected: &str) -> String {
    let max = match expected {
        "u8" => u64::from(u8::MAX),
        "u16" => u64::from(u16::MAX),
        "u32" => u64::from(u32::MAX),
        "u64" | "usize" => return "a whole number, 0 or more".to_owned(),
        "a boolean" => return "true or false".to_owned(),
        "a sequence" => return "a list of strings, such as [\"a\", \"b\"]".to_owned(),
        "path string" => return "a string (a file's path)".to_owned(),
        other => return other.to_owned(),
    };
    format!("a whole number from 0 to {max}")
}

/// A value as people read it; never one that is a secret.
fn describe(at: &[String], value: &Value) -> String {
    let secret = at.first().is_some_and(|section| section == "auth")
        || at.iter().any(|key| key == "secrets")
        || at.last().is_some_and(|key| key == "password");
    match value {
        Value::String(..) | Value::Char(..) if secret => "a string".to_owned(),
        Value::Num(..) if secret => "a number".to_owned(),
        Value::String(_, text) => format!("the string {text:?}"),
        Value::Char(_, text) => format!("the string {:?}", text.to_string()),
        Value::Bool(_, value) => format!("{value}"),
        Value::Num(_, number) => match (number.to_u128(), number.to_i128(), number.to_f64()) {
            (Some(number), _, _) => format!("the number {number}"),
            (_, Some(number), _) => format!("the number {number}"),
            (_, _, Some(number)) => format!("the number {number:?}"),
            _ => "a number".to_owned(),
        },
        Value::Empty(..) => "nothing".to_owned(),
        Value::Dict(..) => "a table".to_owned(),
        Value::Array(..) => "a list".to_owned(),
    }
}

#[cfg(test)]
mod tests;
