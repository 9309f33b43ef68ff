//! Tries every decoder with mutations of its seeds, on any toolchain.
//!
//! An input is a function of its decoder, the seed and its number, so that a run is repeated by its numbers. Each decoder runs in a
//! process of its own: one that ends by an abort (a stack that overflows, memory that there is not) is told like one that
//! panics, with the input and the command that repeats it.
//!
//! `scripts/fuzz` sets the environment: `ROOST_FUZZ_TARGET` (a part of the decoder's name), `_COUNT` (inputs for each), `_SEED`,
//! `_SECONDS` (for each decoder, in batches of `_COUNT`), `_INPUT` (hex, or `@` and a file that has it: this one alone), `_CORPUS` (a folder to write the seeds to).

use std::{
    env,
    fs::File,
    os::unix::{fs::FileExt, process::ExitStatusExt},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    process::Command,
    sync::{Mutex, PoisonError},
};

use super::{ALL, Decoder};
use crate::clock;

mod mutate;

/// Inputs for each decoder where nobody asks for more: some seconds of all of them.
const COUNT: u64 = 2_000;
/// What mutations are made of, and tried first: lines of a decoder's name, bytes as hex, and why they are kept.
const KEPT: &str = include_str!("kept.txt");
/// Set for the process that tries one decoder: its name, the first number, and the file that says which input it is at.
const CHILD: &str = "ROOST_FUZZ_CHILD";

/// Where the last panic was, in a process that tries a batch.
static PLACE: Mutex<String> = Mutex::new(String::new());

fn variable(name: &str) -> Option<String> {
    env::var(format!("ROOST_FUZZ_{name}")).ok().filter(|value| !value.is_empty())
}

fn number(name: &str) -> Option<u64> {
    variable(name).map(|value| value.parse().unwrap_or_else(|_| panic!("ROOST_FUZZ_{name} is a number, not {value}")))
}

fn of_hex(text: &str) -> Vec<u8> {
    let digit =
        |at: usize| u8::from_str_radix(text.get(at..at + 2).unwrap_or("?"), 16).expect("an input is of hex digits");
    (0..text.len()).step_by(2).map(digit).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What there is to begin with: the kept inputs, then what the encoders make.
fn seeds(decoder: &Decoder) -> Vec<Vec<u8>> {
    let of_this = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next() == Some(decoder.name)).then(|| of_hex(words.next().unwrap_or_default()))
    };
    let kept = KEPT.lines().filter(|line| !line.starts_with('#')).filter_map(of_this);
    kept.chain((decoder.seeds)()).collect()
}

/// The input of this number. The first ones are the seeds as they are.
fn input(decoder: &Decoder, seeds: &[Vec<u8>], seed: u64, number: u64) -> Vec<u8> {
    match seeds.get(usize::try_from(number).unwrap_or(usize::MAX)) {
        Some(seed) => seed.clone(),
        None => mutate::mutated(seeds, decoder.name, seed, number),
    }
}

/// What is wrong with how a decoder takes an input.
fn fault(decoder: &Decoder, bytes: &[u8]) -> Option<String> {
    let mut result = Ok(());
    let memory = allocation_counter::measure(|| result = catch_unwind(AssertUnwindSafe(|| (decoder.decode)(bytes))));
    if let Err(panic) = result {
        let words = panic.downcast_ref::<String>().cloned();
        let words = words.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned())).unwrap_or_default();
        let place = PLACE.lock().unwrap_or_else(PoisonError::into_inner);
        return Some(format!("{}{}", words.lines().collect::<Vec<_>>().join(" "), place.as_str()));
    }
    let bound = decoder.memory_bytes + decoder.memory_times * bytes.len() as u64;
    let held = memory.bytes_max;
    (held > bound)
        .then(|| format!("{held} bytes were held at once for an input of {}, the bound is {bound}", bytes.len()))
}

/// What still fails with fewer bytes: parts are left out for as long as that makes it smaller.
fn smaller(mut bytes: Vec<u8>, mut tries: usize, fails: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut part = bytes.len() / 2;
    while part > 0 {
        let mut at = 0;
        while at < bytes.len() && tries > 0 {
            let mut shorter = bytes.clone();
            shorter.drain(at..(at + part).min(bytes.len()));
            tries -= 1;
            if fails(&shorter) {
                bytes = shorter;
            } else {
                at += part;
            }
        }
        part /= 2;
    }
    bytes
}

fn report(decoder: &Decoder, bytes: &[u8], what: &str) -> String {
    let hex = hex(bytes);
    format!(
        "decoder {}: {what}\n  the input, {} bytes: {hex}\n  again: scripts/fuzz {} --input {hex}",
        decoder.name,
        bytes.len(),
        decoder.name
    )
}

/// In a process of its own: tries a batch, and says where it is for the case that the process ends.
fn try_batch(named: &str, count: u64, seed: u64) {
    let mut parts = named.splitn(3, ':');
    let mut part = || parts.next().expect("a name, a number and a file");
    let (name, first, at) = (part(), part().parse::<u64>().unwrap(), File::create(part()).unwrap());
    // A fault panics many times while its input is made smaller: nothing is printed of that, and no stack is walked.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(|place| format!(" (at {}:{})", place.file(), place.line()));
        *PLACE.lock().unwrap_or_else(PoisonError::into_inner) = place.unwrap_or_default();
    }));
    let decoder = ALL.iter().find(|decoder| decoder.name == name).unwrap();
    let seeds = seeds(decoder);
    for number in first..first + count {
        at.write_all_at(&number.to_le_bytes(), 0).unwrap();
        let bytes = input(decoder, &seeds, seed, number);
        if let Some(what) = fault(decoder, &bytes) {
            let bytes = smaller(bytes, 2_000, |bytes| fault(decoder, bytes).is_some());
            let what = fault(decoder, &bytes).unwrap_or(what);
            eprintln!("FOUND {}", report(decoder, &bytes, &what));
            std::process::exit(1);
        }
    }
}

/// This program once more, for its own test.
fn another() -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "decoders::harness::no_bytes_do_harm", "--nocapture", "--test-threads=1"]);
    command.env("RUST_BACKTRACE", "0");
    command
}

/// Runs a batch in another process; the report of what is wrong.
fn batch(decoder: &Decoder, first: u64, seed: u64, count: u64, folder: &Path) -> Option<String> {
    let at = folder.join(decoder.name);
    let output = another()
        .env(CHILD, format!("{}:{first}:{}", decoder.name, at.display()))
        .env("ROOST_FUZZ_COUNT", count.to_string())
        .env("ROOST_FUZZ_SEED", seed.to_string())
        .output()
        .unwrap();
    if output.status.success() {
        return None;
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if let Some((_, found)) = said.split_once("FOUND ") {
        return Some(found.lines().take(3).collect::<Vec<_>>().join("\n"));
    }
    let last = said.lines().rev().take(5).collect::<Vec<_>>().join(" / ");
    let number = std::fs::read(at).ok().and_then(|bytes| Some(u64::from_le_bytes(*bytes.first_chunk()?)));
    let number = number.unwrap_or_else(|| panic!("no input was tried: {said}"));
    let bytes = input(decoder, &seeds(decoder), seed, number);
    let bytes = smaller(bytes, 100, |bytes| ends(decoder, bytes, folder));
    Some(report(decoder, &bytes, &format!("the process ended ({}): {last}", output.status)))
}

/// Whether a process ends by this input, and not by saying so.
fn ends(decoder: &Decoder, bytes: &[u8], folder: &Path) -> bool {
    let input = folder.join("input");
    std::fs::write(&input, hex(bytes)).unwrap();
    let tried = another()
        .env("ROOST_FUZZ_TARGET", decoder.name)
        .env("ROOST_FUZZ_INPUT", format!("@{}", input.display()))
        .output()
        .unwrap();
    tried.status.signal().is_some()
}

/// One decoder, for as long as was asked.
fn try_decoder(decoder: &Decoder, folder: &Path) -> Result<u64, String> {
    let (count, seed) = (number("COUNT").unwrap_or(COUNT), number("SEED").unwrap_or(1));
    let begin_ms = clock::mono_ms();
    let until_ms = number("SECONDS").map(|seconds| begin_ms + 1_000 * seconds);
    let mut first = 0;
    loop {
        if let Some(report) = batch(decoder, first, seed, count, folder) {
            return Err(report);
        }
        first += count;
        let now_ms = clock::mono_ms();
        let seconds = (now_ms - begin_ms) / 1_000;
        eprintln!("{:<13} {first:>10} inputs, {seconds:>4} s", decoder.name);
        if until_ms.is_none_or(|until_ms| until_ms <= now_ms) {
            return Ok(first);
        }
    }
}

#[test]
fn no_bytes_do_harm() {
    if let Ok(named) = env::var(CHILD) {
        return try_batch(&named, number("COUNT").unwrap(), number("SEED").unwrap());
    }
    let target = variable("TARGET").unwrap_or_default();
    let chosen: Vec<&Decoder> = ALL.iter().filter(|decoder| decoder.name.contains(&target)).collect();
    assert!(!chosen.is_empty(), "there is no decoder {target:?}");
    if let Some(hex) = variable("INPUT") {
        let hex = hex.strip_prefix('@').map_or_else(|| hex.clone(), |path| std::fs::read_to_string(path).unwrap());
        let decoder = ALL.iter().find(|decoder| decoder.name == target).expect("an input is of one decoder");
        (decoder.decode)(&of_hex(hex.trim()));
        assert_eq!(fault(decoder, &of_hex(hex.trim())), None);
        return;
    }
    if let Some(folder) = variable("CORPUS") {
        return chosen.into_iter().for_each(|decoder| write_corpus(decoder, &Path::new(&folder).join(decoder.name)));
    }
    let folder = tempfile::tempdir().unwrap();
    let found: Vec<String> = chosen.iter().filter_map(|decoder| try_decoder(decoder, folder.path()).err()).collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

fn write_corpus(decoder: &Decoder, folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    for (number, seed) in seeds(decoder).iter().enumerate() {
        std::fs::write(folder.join(format!("seed-{number}")), seed).unwrap();
    }
}

/// A harness that finds nothing looks like one that works: these are found, by the way that each takes.
#[test]
fn what_does_harm_is_found() {
    fn overflows(bytes: &[u8]) {
        assert!(!bytes.windows(4).any(|four| four == [0xff; 4]), "planted");
    }
    fn hoards(bytes: &[u8]) {
        let announced = bytes.first_chunk().map_or(0, |length| u16::from_le_bytes(*length));
        std::hint::black_box(vec![1_u8; usize::from(announced) * 1_000]);
    }
    fn begin() -> Vec<Vec<u8>> {
        vec![vec![1, 0, 3, 4, 5, 6, 7, 8]]
    }
    for (decode, words) in [(overflows as fn(&[u8]), "planted"), (hoards, "were held at once")] {
        let planted = super::decoder("planted", decode, begin);
        let mut inputs = (0..5_000).map(|number| input(&planted, &begin(), 1, number));
        let found = inputs.find(|bytes| fault(&planted, bytes).is_some());
        let bytes = smaller(found.expect("a planted fault is found"), 2_000, |bytes| fault(&planted, bytes).is_some());
        assert!(fault(&planted, &bytes).unwrap().contains(words));
        assert!(bytes.len() <= 4, "{bytes:?} is not made small");
    }
    assert_eq!(of_hex(&hex(&[0, 0x5a, 0xff])), [0, 0x5a, 0xff]);
}

/// The seeds are good input, most of them: mutations of what is refused at the first byte find nothing.
#[test]
fn there_are_seeds_for_all_and_targets_for_fuzzers() {
    let targets = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
    for decoder in ALL {
        let bytes = seeds(decoder);
        assert!(!bytes.is_empty(), "{} has no seeds", decoder.name);
        assert_eq!(bytes, seeds(decoder), "the seeds of {} differ from run to run", decoder.name);
        let target = std::fs::read_to_string(targets.join(format!("{}.rs", decoder.name))).unwrap_or_default();
        assert!(target.contains(&format!("run(\"{}\"", decoder.name)), "node/fuzz has no target for {}", decoder.name);
    }
    assert_eq!(std::fs::read_dir(targets).unwrap().count(), ALL.len(), "node/fuzz has targets of no decoder");
    for line in KEPT.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let name = line.split_whitespace().next();
        assert!(ALL.iter().any(|decoder| Some(decoder.name) == name), "kept of no decoder: {line}");
    }
}
