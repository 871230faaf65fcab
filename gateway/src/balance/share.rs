//! Shares: which version a request goes to when versions have weights. The nth request falls on a point of a Weyl sequence
//! (multiples of the golden ratio, modulo 1), which fills every interval as evenly as possible: after any number of requests
//! a version's count differs from its share by a few requests at most, and its requests come spread out, never in bursts.

/// 2^64 divided by the golden ratio.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The point of the nth request.
pub(crate) fn point(n: u64) -> u64 {
    n.wrapping_mul(STEP)
}

/// The upper ends of the shares on the line of all `u64`; the last one is the line's end.
pub(crate) fn ends(weights: &[u32]) -> Vec<u64> {
    let total: u128 = weights.iter().map(|w| u128::from(*w)).sum::<u128>().max(1);
    let mut sum = 0u128;
    weights
        .iter()
        .map(|weight| {
            sum += u128::from(*weight);
            u64::try_from((u128::from(u64::MAX) * sum) / total).unwrap_or(u64::MAX)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counts(weights: &[u32], from: u64, n: u64) -> Vec<u64> {
        let ends = ends(weights);
        let mut counts = vec![0; weights.len()];
        for i in 0..n {
            let point = point(from.wrapping_add(i));
            counts[ends
                .iter()
                .position(|end| point <= *end)
                .expect("the last end is the line's")] += 1;
        }
        counts
    }

    #[test]
    fn one_percent_is_one_percent() {
        let counts = counts(&[99, 1], 12_345, 100_000);
        assert!(counts[1].abs_diff(1_000) <= 5, "{counts:?}");
        // Spread out: no burst and no long pause within any thousand.
        for window in 0..100 {
            let few = self::counts(&[99, 1], window * 1_000, 1_000)[1];
            assert!((8..=12).contains(&few), "{few} in window {window}");
        }
    }

    proptest! {
        #[test]
        fn every_share_is_met(weights in proptest::collection::vec(1u32..=100, 1..8), from in any::<u64>()) {
            let n = 10_000;
            let total: u32 = weights.iter().sum();
            for (count, weight) in counts(&weights, from, n).iter().zip(&weights) {
                let want = n as f64 * f64::from(*weight) / f64::from(total);
                prop_assert!((*count as f64 - want).abs() <= 20.0, "{count} for {want}");
            }
        }
    }
}
