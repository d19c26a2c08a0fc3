//! Which instance is asked to take how much of a backlog.
//!
//! Instances pull, so nobody can be flooded; what is left to decide is where a backlog that is too small for all shall wait.
//! It is poured over the instances like water: those with the least work first, until all stand equally high.

/// Splits `backlog` rows over instances that have `loads` rows each. The sum of the shares is `backlog` (or 0 without instances).
pub fn pour(backlog: u64, loads: &[u64]) -> Vec<u64> {
    let mut shares = vec![0; loads.len()];
    let mut order: Vec<usize> = (0..loads.len()).collect();
    order.sort_by_key(|&i| loads[i]);
    let mut rest = backlog;
    for filled in 1..=order.len() {
        // The lowest `filled` instances stand at one level; raise them to the next one's.
        let level = loads[order[filled - 1]];
        let next = order.get(filled).map(|&i| loads[i]);
        let room = next.map_or(u64::MAX, |next| (next - level).saturating_mul(filled as u64));
        let poured = rest.min(room);
        let (each, left_over) = (poured / filled as u64, (poured % filled as u64) as usize);
        for (k, &i) in order[..filled].iter().enumerate() {
            shares[i] += each + u64::from(k < left_over);
        }
        rest -= poured;
        if rest == 0 {
            break;
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_loaded_get_the_most() {
        for (backlog, loads, expected) in [
            (0, vec![1, 2], vec![0, 0]),
            (10, vec![], vec![]),
            (10, vec![3], vec![10]),
            (10, vec![0, 0], vec![5, 5]),
            (3, vec![0, 0], vec![2, 1]),
            (4, vec![10, 2, 20], vec![0, 4, 0]),
            (10, vec![10, 2, 20], vec![1, 9, 0]),
            (100, vec![10, 2, 20], vec![34, 42, 24]),
        ] {
            assert_eq!(pour(backlog, &loads), expected, "{backlog} over {loads:?}");
        }
    }

    #[test]
    fn nothing_is_spilled() {
        for seed in 0..500u64 {
            let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut next = |n: u64| {
                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (x >> 33) % n
            };
            let loads: Vec<u64> = (0..1 + next(6)).map(|_| next(50)).collect();
            let backlog = next(200);
            let shares = pour(backlog, &loads);
            assert_eq!(shares.iter().sum::<u64>(), backlog);
            // Whoever got something stands no higher than anybody else, up to rounding.
            let levels: Vec<u64> = shares.iter().zip(&loads).map(|(s, l)| s + l).collect();
            let lowest = levels.iter().min().copied().unwrap_or(0);
            for (share, level) in shares.iter().zip(&levels) {
                assert!(*share == 0 || *level <= lowest + 1, "{backlog} over {loads:?}: {shares:?}");
            }
        }
    }
}
