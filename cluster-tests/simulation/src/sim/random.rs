//! All chance of a run comes from one number: splitmix64 (Steele, Lea, Flood 2014), so that a seed means the same run on
//! every machine and with every version of every library.

/// A stream of numbers.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    /// The stream of a seed.
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// One of the streams of a seed, which have nothing in common.
    pub(super) fn stream(seed: u64, number: u64) -> Self {
        Self(Self(Self(seed).number() ^ number).number())
    }

    /// The next one.
    pub(super) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below the bound, which is at least 1.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound.max(1)
    }

    /// From `low` to `high`, both included.
    pub(super) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// A place in something of this length.
    pub(super) fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }

    /// True `permille` times in a thousand.
    pub(super) fn permille(&mut self, permille: u64) -> bool {
        self.below(1_000) < permille
    }

    /// Mostly short, now and then long: how waiting times are in reality. At least 1.
    pub(super) fn waiting(&mut self, mean: u64) -> u64 {
        match self.below(10) {
            0 => 1 + self.below(mean * 4 + 1),
            1..=3 => 1 + self.below(mean * 2 + 1),
            _ => 1 + self.below(mean + 1),
        }
    }
}
