//! The architecture, held as a test: which part may use which, how long files are, what stands at the top of the tree.
#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    path::{Path, PathBuf},
};

/// What the code of a folder may not name: parts of this crate, and paths of others.
struct Wall {
    folder: &'static str,
    parts: &'static [&'static str],
    paths: &'static [&'static str],
    why: &'static str,
}

const WALLS: &[Wall] = &[
    Wall {
        folder: "wire",
        parts: &["cli", "cluster", "gateway", "node", "peer", "router", "slots", "store", "tasks"],
        paths: &["tokio"],
        why: "codecs turn bytes into types and back, and do nothing else",
    },
    Wall {
        folder: "store",
        parts: &["cli", "gateway", "node", "peer", "router", "slots", "wire"],
        paths: &[],
        why: "the store is behind the live path and knows nothing of it",
    },
    Wall {
        folder: "peer",
        parts: &["cli", "gateway", "node", "router", "slots", "store"],
        paths: &[],
        why: "the mesh hands frames to an inbox, it does not know what they are for",
    },
    Wall { folder: "cluster", parts: &["cli", "gateway", "node", "slots"], paths: &[], why: "no call goes back up" },
    Wall { folder: "gateway", parts: &["cli", "node"], paths: &[], why: "no call goes back up" },
    Wall {
        folder: "slots",
        parts: &["cli", "cluster", "gateway", "node", "router"],
        paths: &[],
        why: "what slots have for others goes into queues that they are given",
    },
    Wall {
        folder: "deliveries",
        parts: &["cli", "cluster", "gateway", "node", "peer", "router", "slots", "store"],
        paths: &[],
        why: "a queue knows neither end",
    },
    Wall {
        folder: "metrics",
        parts: &["cli", "cluster", "gateway", "node", "peer", "router", "slots", "store"],
        paths: &[],
        why: "they are handed to those who count, and know none of these",
    },
    Wall {
        folder: "config",
        parts: &["cli", "cluster", "gateway", "node", "peer", "router", "slots", "store"],
        paths: &[],
        why: "settings have no behaviour",
    },
];

/// The length in lines, without the tests at its end, past which a file is to be cut by what it does.
const LONGEST: usize = 700;
/// Files that may be longer, up to this, each with its reason in a comment.
const LONGER: &[(&str, usize)] = &[];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// All Rust sources under a folder, with their text.
fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                if !path.ends_with("target") && !path.ends_with("node_modules") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    found.sort();
    found
}

/// The tests of the module beside it, or what tries its decoders: compiled for tests and fuzzers alone.
fn is_tests(path: &Path) -> bool {
    path.file_stem().is_some_and(|stem| stem.to_string_lossy().ends_with("tests") || stem == "decoders")
        || path.parent().is_some_and(|folder| folder.iter().any(|part| part == "decoders"))
}

/// The file without what is compiled for tests only: the module that holds them, which ends the file, and single lines.
fn without_tests(text: &str) -> String {
    let mut kept = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim() != "#[cfg(test)]" {
            kept += line;
            kept.push('\n');
            continue;
        }
        let item = lines.find(|line| !line.trim_start().starts_with("#[")).unwrap_or("");
        if item.starts_with("mod ") && item.ends_with('{') {
            break;
        }
    }
    kept
}

/// The code without comments, strings, tests at the end, and white space.
fn bare(text: &str) -> String {
    let text = without_tests(text);
    let lines = text.lines().map(|line| line.split("//").next().unwrap());
    let mut bare = String::new();
    for (at, part) in lines.collect::<Vec<_>>().join("\n").split('"').enumerate() {
        // Every second part is inside quotes; an escaped quote shifts that, but hides no `use` at the top of a file.
        if at % 2 == 0 {
            // A space is kept between words, so that `use tokio` does not become one.
            for word in part.split_whitespace() {
                let _ = write!(bare, " {word}");
            }
        }
    }
    [" :: ", ":: ", " ::"]
        .iter()
        .fold(bare, |text, spaced| text.replace(spaced, "::"))
        .replace("{ ", "{")
        .replace(" ,", ",")
}

/// The parts of this crate that the code names, one way or another: `crate::a::b`, `crate::{a, b::{c, d}}`.
fn parts_named(bare: &str) -> BTreeSet<String> {
    let mut parts = BTreeSet::new();
    for (at, prefix) in bare.match_indices("crate::").chain(bare.match_indices("super::super::")) {
        let rest = &bare[at + prefix.len()..];
        match rest.strip_prefix('{') {
            None => {
                parts.insert(word(rest));
            }
            Some(group) => {
                let mut depth = 1;
                let mut item = String::new();
                for c in group.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' => depth -= 1,
                        _ => {}
                    }
                    if depth == 0 || (depth == 1 && c == ',') {
                        parts.insert(word(item.trim()));
                        item.clear();
                    } else {
                        item.push(c);
                    }
                    if depth == 0 {
                        break;
                    }
                }
            }
        }
    }
    parts
}

fn word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// Whether the code names this path as whole words.
fn names_path(bare: &str, path: &str) -> bool {
    bare.match_indices(path).any(|(at, _)| {
        let before = bare[..at].chars().next_back().unwrap_or(' ');
        let after = bare[at + path.len()..].chars().next().unwrap_or(' ');
        let inside = |c: char| c.is_alphanumeric() || c == '_';
        // A field or method of that name is none of it.
        !inside(before) && before != '.' && !inside(after)
    })
}

/// `std::time` may hide in `use std::{fmt, time::Duration}`: each path is also looked for in that form.
fn names(bare: &str, path: &str) -> bool {
    if names_path(bare, path) {
        return true;
    }
    let Some((first, second)) = path.split_once("::") else { return false };
    bare.match_indices(&format!("{first}::{{")).any(|(at, opening)| {
        let group = &bare[at + opening.len()..];
        let group = &group[..group.find(';').unwrap_or(group.len())];
        names_path(group, second)
    })
}

#[test]
fn parts_keep_to_their_walls() {
    let src = root().join("node/src");
    let mut broken = Vec::new();
    for wall in WALLS {
        let inside = |path: &Path| {
            let path = path.strip_prefix(&src).unwrap();
            path.starts_with(wall.folder) || path == Path::new(&format!("{}.rs", wall.folder))
        };
        for (path, text) in sources(&src) {
            if !inside(&path) || is_tests(&path) {
                continue;
            }
            let bare = bare(&text);
            let parts = parts_named(&bare);
            let named = wall.parts.iter().filter(|part| parts.contains(**part));
            let named = named.chain(wall.paths.iter().filter(|path| names(&bare, path)));
            broken.extend(named.map(|name| {
                format!("{}: names {name}, but {}", path.strip_prefix(root()).unwrap().display(), wall.why)
            }));
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

/// A part stands above those that it uses: it can be read, and changed, without those above it.
#[test]
fn no_part_is_used_by_one_that_it_uses() {
    let src = root().join("node/src");
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, text) in sources(&src) {
        let inside = path.strip_prefix(&src).unwrap();
        let part = inside.iter().next().unwrap().to_string_lossy().trim_end_matches(".rs").to_owned();
        if part != "lib" && part != "main" && !is_tests(&path) {
            uses.entry(part).or_default().extend(parts_named(&bare(&text)));
        }
    }
    for (part, used) in &mut uses {
        used.remove(part);
    }
    assert!(uses["node"].contains("slots") && uses["slots"].contains("peer"), "the scan sees nothing");
    // From below: who uses none of those that are left is taken away.
    loop {
        let left = uses.clone();
        uses.retain(|_, used| used.iter().any(|used| left.contains_key(used)));
        if uses.len() == left.len() {
            break;
        }
    }
    assert!(uses.is_empty(), "these use each other in a circle, or one of a circle: {uses:#?}");
}

/// Everything that the cores may name, and nothing beside it: they are pure, events in, effects out, the same each time.
/// Their manifest keeps out what it does not name; this keeps out the clocks, threads and hash maps of `std`.
const PURE: &[&str] = &[
    "std::borrow",
    "std::cmp",
    "std::collections",
    "std::fmt",
    "std::iter",
    "std::marker",
    "std::mem",
    "std::num",
    "std::ops",
    "std::option",
    "std::ptr",
    "std::slice",
    "std::sync::Arc",
    "std::vec",
];
/// Of the folders above, what is not pure all the same: its order changes from run to run.
const IMPURE: &[&str] = &["HashMap", "HashSet"];

#[test]
fn the_cores_name_nothing_but_what_is_pure() {
    let mut broken = Vec::new();
    for (path, text) in sources(&root().join("node/logic/src")) {
        if is_tests(&path) || path.ends_with("simulation.rs") {
            continue;
        }
        let bare = bare(&text);
        let shown = path.strip_prefix(root()).unwrap().display();
        let named = std_named(&bare).into_iter().filter(|name| {
            !PURE.iter().any(|pure| name == pure || name.strip_prefix(pure).is_some_and(|rest| rest.starts_with("::")))
        });
        let impure = IMPURE.iter().filter(|name| names_path(&bare, name)).map(|name| (*name).to_owned());
        broken.extend(named.chain(impure).map(|name| format!("{shown}: names {name}, but the cores are pure")));
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

/// Every path of `std` that the code names: `std::a::b`, `use std::{a::b, c::{d, e}}`.
fn std_named(bare: &str) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    for (at, prefix) in bare.match_indices("std::") {
        expand("std", &bare[at + prefix.len()..], &mut named);
    }
    named
}

/// Adds what stands at the beginning of `rest`, under `path`; where it ends.
fn expand<'a>(path: &str, rest: &'a str, named: &mut BTreeSet<String>) -> &'a str {
    let mut rest = rest.trim_start();
    if let Some(group) = rest.strip_prefix('{') {
        rest = group;
        loop {
            rest = expand(path, rest, named).trim_start();
            match rest.strip_prefix(',') {
                Some(more) => rest = more,
                None => return rest.strip_prefix('}').unwrap_or(rest),
            }
        }
    }
    let name = word(rest);
    rest = &rest[name.len()..];
    if name.is_empty() {
        return rest;
    }
    let path = format!("{path}::{name}");
    match rest.strip_prefix("::") {
        Some(more) => expand(&path, more, named),
        None => {
            named.insert(path.trim_end_matches("::self").to_owned());
            rest
        }
    }
}

#[test]
fn files_are_short_and_say_what_they_are_for() {
    let mut broken = Vec::new();
    for (path, text) in [sources(&root().join("node")), sources(&root().join("cluster-tests"))].concat() {
        let shown = path.strip_prefix(root()).unwrap().display().to_string();
        let lines = without_tests(&text).lines().count();
        let longest = LONGER.iter().find(|(longer, _)| *longer == shown).map_or(LONGEST, |(_, longest)| *longest);
        if lines > longest {
            broken.push(format!("{shown}: {lines} lines, cut it by what it does (at most {longest})"));
        }
        if !text.starts_with("//! ") && !is_tests(&path) {
            broken.push(format!("{shown}: begins without a `//!` line that says what it is for"));
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

/// What begins a public item. Fields and variants are not among them: a name that says it all needs no words.
const ITEMS: &[&str] = &["async fn", "const", "const fn", "enum", "fn", "static", "struct", "trait", "type"];
/// Docs that say nothing.
const FILLER: &[&str] =
    &["For whom.", "How many.", "Its number.", "What.", "Which.", "Who.", "Whom.", "Whose.", "Why."];

#[test]
fn public_items_are_documented_and_docs_say_something() {
    let is_item = |line: &str| {
        let item = line.strip_prefix("pub ").unwrap_or("");
        ITEMS.iter().any(|begin| item.strip_prefix(begin).is_some_and(|rest| rest.starts_with(' ')))
    };
    let is_doc = |line: &&str| line.starts_with("///") || line.starts_with("#[doc");
    // Documentation and attributes, some with examples in JSON, stand between an item and what ends the one before it.
    let ends = |line: &&str| line.is_empty() || (line.ends_with([';', '{', '}']) && !line.starts_with(['#', '"', '{']));
    let mut broken = Vec::new();
    for (path, text) in [sources(&root().join("node")), sources(&root().join("cluster-tests"))].concat() {
        let shown = path.strip_prefix(root()).unwrap().display();
        let text = without_tests(&text);
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (at, line) in lines.iter().enumerate() {
            let above = || lines[..at].iter().rev().take_while(|line| is_doc(line) || !ends(line));
            if is_item(line) && !above().any(is_doc) && !is_tests(&path) {
                broken.push(format!("{shown}:{}: undocumented: {line}", at + 1));
            }
            if line.strip_prefix("/// ").is_some_and(|doc| FILLER.contains(&doc)) {
                broken.push(format!("{shown}:{}: says nothing: {line}", at + 1));
            }
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn the_top_of_the_tree_is_small() {
    let allowed =
        ["Cargo.lock", "Cargo.toml", "LICENSE", "README.md", "cluster-tests", "config", "node", "scripts", "target"];
    let found = std::fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let more: Vec<String> = found.filter(|name| !name.starts_with('.') && !allowed.contains(&name.as_str())).collect();
    assert!(more.is_empty(), "at the top of the tree: {more:?}");
}

#[test]
fn the_scan_sees_every_way_to_name_a_part() {
    let check = |code: &str, part: &str, expected: bool| {
        assert_eq!(parts_named(&bare(code)).contains(part), expected, "{part} in {code}");
    };
    check("use crate::store::Store;", "store", true);
    check("use crate::{id::NodeId, store::{Store, StoreError}, wire};", "store", true);
    check("use crate::{\n    id::{A, B},\n    wire,\n};", "wire", true);
    check("use crate::{id::store};", "store", false);
    check("let x = crate :: store :: y();", "store", true);
    check("// crate::store", "store", false);
    check("let x = \"crate::store\";", "store", false);
    check("#[cfg(test)]\nuse crate::store;", "store", false);
    check("use super::super::store::X;", "store", true);
    check("#[cfg(test)]\n#[path = \"x.rs\"]\nmod tests;\nuse crate::store;", "store", true);
    check("#[cfg(test)]\nmod tests {\n    use crate::store;\n}", "store", false);
    let check =
        |code: &str, path: &str, expected: bool| assert_eq!(names(&bare(code), path), expected, "{path} in {code}");
    check("use std::time::Duration;", "std::time", true);
    check("use std::{fmt, time::Duration};", "std::time", true);
    check("use std::{fmt, sync::Arc};\nlet time = 3;", "std::time", false);
    check("use tokio::sync;", "tokio", true);
    check("let tokio_like = 1; x.tokio;", "tokio", false);
    check("use std::collections::{BTreeMap, HashMap};", "HashMap", true);
    let check = |code: &str, expected: &[&str]| {
        assert_eq!(std_named(&bare(code)).iter().map(String::as_str).collect::<Vec<_>>(), expected, "{code}");
    };
    check(
        "use std::{\n    collections::{BTreeMap, VecDeque},\n    sync::Arc,\n};",
        &["std::collections::BTreeMap", "std::collections::VecDeque", "std::sync::Arc"],
    );
    check(
        "use std::{fmt::{self, Write}, time}; let x = std::mem::take(&mut y);",
        &["std::fmt", "std::fmt::Write", "std::mem::take", "std::time"],
    );
}
