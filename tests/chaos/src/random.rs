//! Numbers from counters: the same for the same seed, whoever asks in whatever order.

/// A number for (seed, purpose, index).
pub(crate) fn number(seed: u64, purpose: &str, index: u64) -> u64 {
    let purpose = purpose
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    mix(mix(mix(seed) ^ purpose) ^ index)
}

/// SplitMix64.
pub(crate) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
