//! Inputs that are nearly right. Stacks a few small changes on a seed: of bits, numbers, words that formats know, pieces of other
//! seeds, and pieces left out, doubled, moved or repeated until they nest deeply.

/// No input is longer: as hex it fits into an argument.
const LONGEST: usize = 60 << 10;
/// Changes of one seed.
const CHANGES_MAX: u64 = 5;

/// Numbers at which something may change, and lengths that there are not.
const NUMBERS: [u64; 16] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0xffff_ffff,
    (1 << 53) - 1,
    1 << 53,
    1 << 63,
    u64::MAX,
];

/// Pieces that the formats give a meaning.
const WORDS: [&str; 48] = [
    "{",
    "}",
    "[",
    "]",
    "[[[[",
    "{\"a\":",
    "\"",
    "\\",
    "\\u0000",
    "\\ud800",
    "\u{202e}",
    "é",
    "\u{0}",
    ",",
    ":",
    "=",
    "\n",
    "\r\n",
    "#",
    "'''",
    "\"\"\"",
    "null",
    "true",
    "-1",
    "1e400",
    "3.0",
    "18446744073709551615",
    "9007199254740992",
    "9223372036854775808",
    "NaN",
    ".",
    "..",
    "@session:",
    "@user:",
    "%2f",
    "%zz",
    "+",
    "&",
    "?",
    "v2.",
    "\"type\":\"publish\"",
    "\"id\":",
    "\"group\":",
    "\"since\":",
    "[keys]\n",
    "inf",
    "__",
    "*",
];

/// A stream of numbers (splitmix64).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below the bound, or 0.
    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn of<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }

    /// A piece of the bytes, most often a short one.
    fn piece(&mut self, length: usize) -> std::ops::Range<usize> {
        let at = self.below(length);
        let most = if self.next().is_multiple_of(4) { length - at } else { (length - at).min(16) };
        at..at + self.below(most + 1)
    }
}

/// The input of this number.
pub(super) fn mutated(seeds: &[Vec<u8>], name: &str, seed: u64, number: u64) -> Vec<u8> {
    let named = name.bytes().fold(seed, |hash, byte| hash.wrapping_mul(31).wrapping_add(u64::from(byte)));
    let mut chance = Chance(named.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ number);
    chance.next();
    let mut bytes = chance.of(seeds).clone();
    for _ in 0..=chance.next() % CHANGES_MAX {
        change(&mut bytes, seeds, &mut chance);
        bytes.truncate(LONGEST);
    }
    bytes
}

fn change(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], chance: &mut Chance) {
    let at = chance.below(bytes.len() + 1);
    match chance.next() % 16 {
        0..=1 if at < bytes.len() => bytes[at] ^= 1 << chance.below(8),
        2 if at < bytes.len() => bytes[at] = chance.next() as u8,
        3 => insert(bytes, at, &[chance.next() as u8]),
        4..=5 => number(bytes, at, chance),
        6 => digits(bytes, at, chance),
        7 => insert(bytes, at, chance.of(&WORDS).as_bytes()),
        8 => {
            let piece = chance.piece(bytes.len());
            let word = chance.of(&WORDS).as_bytes();
            bytes.splice(piece, word.iter().copied());
        }
        9 => {
            let piece = chance.piece(bytes.len());
            bytes.drain(piece);
        }
        10 => {
            let piece = bytes[chance.piece(bytes.len())].to_vec();
            insert(bytes, at, &piece);
        }
        11 => {
            let other = chance.of(seeds);
            let piece = other[chance.piece(other.len())].to_vec();
            insert(bytes, at, &piece);
        }
        12 => {
            let other = chance.of(seeds);
            let (here, there) = (chance.piece(bytes.len()), chance.piece(other.len()));
            bytes.splice(here, other[there].iter().copied());
        }
        13 => {
            let other: &Vec<u8> = chance.of(seeds);
            bytes.extend_from_slice(other);
        }
        14 => bytes.truncate(at),
        _ => repeat(bytes, at, chance),
    }
}

fn insert(bytes: &mut Vec<u8>, at: usize, piece: &[u8]) {
    bytes.splice(at..at, piece.iter().copied());
}

/// Writes a number of some width over what stands there.
fn number(bytes: &mut [u8], at: usize, chance: &mut Chance) {
    let near = [0, 1, u64::MAX][chance.below(3)];
    let number = chance.of(&NUMBERS).wrapping_add(near);
    let width = *chance.of(&[1, 2, 4, 8]);
    let written = if chance.next().is_multiple_of(4) { number.to_be_bytes() } else { number.to_le_bytes() };
    for (byte, written) in bytes.iter_mut().skip(at).zip(&written[..width]) {
        *byte = *written;
    }
}

/// Another number in the place of the next decimal one.
fn digits(bytes: &mut Vec<u8>, at: usize, chance: &mut Chance) {
    let Some(first) = (at..bytes.len()).find(|at| bytes[*at].is_ascii_digit()) else { return };
    let length = bytes[first..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = chance.of(&NUMBERS).to_string();
    bytes.splice(first..first + length, number.into_bytes());
}

/// A short piece many times: what nests, nests deeply.
fn repeat(bytes: &mut Vec<u8>, at: usize, chance: &mut Chance) {
    let piece: Vec<u8> = match chance.next() % 3 {
        0 => bytes[chance.piece(bytes.len())].iter().copied().take(64).collect(),
        1 => chance.of(&WORDS).as_bytes().to_vec(),
        _ => b"[".to_vec(),
    };
    let times = 1 << chance.below(12);
    insert(bytes, at, &piece.repeat(times));
}
