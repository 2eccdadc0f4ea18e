//! Choices at random that are the same for the same seed, whatever runs first.

use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};

/// The source of randomness of a load test. Its output is the same on every platform and in every
/// version, so the same seed sends the same requests.
pub type LoadRng = Xoshiro256PlusPlus;

/// The generator of stream `n` (a user, or an arrival) of what `name` stands for. Streams are independent,
/// so that their order of execution changes nothing.
pub(crate) fn stream(seed: u64, name: &str, n: u64) -> LoadRng {
    // FNV-1a of the name, then a Weyl sequence by the golden ratio: both fixed for ever, unlike the
    // standard library's hashes. The generator's own seeding scrambles the sum.
    let name = name.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3)
    });
    LoadRng::seed_from_u64(seed ^ name ^ n.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}
