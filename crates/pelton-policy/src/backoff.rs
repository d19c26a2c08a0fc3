//! How long to wait before the next try.

use std::time::Duration;

/// Exponential backoff with full jitter: uniform between half and all of `base * 2^(failures-1)`, at most `max`. Without jitter, everybody who
/// failed together tries again together. (Brooker, "Exponential Backoff And Jitter", 2015; half is kept so that a wait is a wait.)
///
/// `failures` is at least 1; `random` is uniform in 0..1.
pub fn delay(failures: u32, base: Duration, max: Duration, random: f64) -> Duration {
    let doubled =
        base.saturating_mul(1u32.checked_shl(failures.saturating_sub(1).min(20)).unwrap_or(u32::MAX));
    doubled.min(max).mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_up_to_the_maximum() {
        let ms = Duration::from_millis;
        for (failures, random, expected) in [
            (1, 1.0, 100),
            (1, 0.0, 50),
            (2, 1.0, 200),
            (3, 0.5, 300),
            (10, 1.0, 5_000),
            (u32::MAX, 0.0, 2_500),
        ] {
            assert_eq!(delay(failures, ms(100), ms(5_000), random), ms(expected), "{failures} {random}");
        }
    }
}
