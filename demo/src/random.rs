//! Random numbers that stay the same for ever: `SplitMix64`, counted from a seed, a purpose and an index.
//!
//! A crate for random numbers may change its algorithms between versions, and a picture that changes changes every digest after it.

/// What numbers are drawn for. Each purpose has a sequence of its own, so that drawing more for one leaves the others as they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The scene of one picture.
    Scene = 1,
    /// The order in which scenes use the common sprites.
    SceneSprites = 2,
    /// Which URLs of a block misbehave.
    Faults = 3,
    /// Where in a block the photograph stands.
    Photographs = 4,
    /// The order in which prompts use the sprites.
    PromptSprites = 5,
    /// Which scenes show a common sprite.
    Commonness = 6,
    /// The order in which scenes use the sprites that are not common.
    RareSprites = 7,
}

/// `SplitMix64` (Steele, Lea and Flood, 2014).
#[derive(Debug, Clone)]
pub(crate) struct Random {
    state: u64,
}

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

impl Random {
    /// The sequence for item `index` of `purpose`.
    pub(crate) fn new(seed: u64, purpose: Purpose, index: usize) -> Self {
        let purpose = mix(seed ^ mix(purpose as u64));
        Self { state: mix(purpose ^ mix((index as u64).wrapping_add(GOLDEN))) }
    }

    /// Uniform over all 64-bit numbers.
    pub(crate) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN);
        mix(self.state)
    }

    /// Uniform in [0, 1), a multiple of 2^-53.
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit the mantissa")]
    pub(crate) fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Uniform in [low, high).
    pub(crate) fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// Uniform over 0..`count` (0 when `count` is 0). Its bias is below `count` in 2^64.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the high half of the product is below `count`, which is a usize"
    )]
    pub(crate) fn below(&mut self, count: usize) -> usize {
        ((u128::from(self.next()) * count as u128) >> 64) as usize
    }

    /// The numbers 0..`count` in random order.
    pub(crate) fn permutation(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        for last in (1..count).rev() {
            order.swap(last, self.below(last + 1));
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_published_sequence() {
        // The first outputs of SplitMix64 from state 1234567, as listed at https://rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64
        let mut random = Random { state: 1_234_567 };
        assert_eq!([random.next(), random.next()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }

    #[test]
    fn neighbours_and_purposes_differ() {
        let first = |purpose, index| Random::new(7, purpose, index).next();
        assert_ne!(first(Purpose::Scene, 0), first(Purpose::Scene, 1));
        assert_ne!(first(Purpose::Scene, 0), first(Purpose::Faults, 0));
        assert_eq!(first(Purpose::Scene, 5), first(Purpose::Scene, 5));
    }

    #[test]
    fn permutation_holds_every_number_once() {
        let mut order = Random::new(7, Purpose::SceneSprites, 0).permutation(320);
        assert_ne!(order, (0..320).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..320).collect::<Vec<_>>());
    }
}
