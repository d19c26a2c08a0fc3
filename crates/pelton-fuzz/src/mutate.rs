//! Small changes of inputs, for the short run in the tests. (The long run has a fuzzer that sees what its changes reach.)

use rand::rngs::StdRng;
use rand::{Rng, RngExt};

/// A change of `input`, sometimes towards `other`.
pub fn mutate(input: &[u8], other: &[u8], rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..rng.random_range(1..=4) {
        let at = rng.random_range(0..=bytes.len());
        let byte = rng.next_u32() as u8;
        match rng.random_range(0..7) {
            0 if at < bytes.len() => bytes[at] = byte,
            1 if at < bytes.len() => bytes[at] ^= 1 << (byte % 8),
            2 if at < bytes.len() => bytes[at] = bytes[at].wrapping_add(1).wrapping_sub(byte % 3),
            3 => bytes.insert(at, byte),
            4 => {
                let n = rng.random_range(0..=(bytes.len() - at).min(8));
                bytes.drain(at..at + n);
            }
            5 if !other.is_empty() => {
                let from = rng.random_range(0..other.len());
                let n = rng.random_range(1..=(other.len() - from).min(64));
                bytes.splice(at..at, other[from..from + n].iter().copied());
            }
            _ => {
                let number = [0u64, 1, u64::MAX, 1 << 31, 1 << 63][rng.random_range(0..5)].to_le_bytes();
                let n = [1, 2, 4, 8][rng.random_range(0..4)].min(bytes.len() - at);
                bytes[at..at + n].copy_from_slice(&number[..n]);
            }
        }
    }
    bytes.truncate(8192);
    bytes
}
