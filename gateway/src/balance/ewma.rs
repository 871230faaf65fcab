//! How long an endpoint takes to answer, as peak EWMA sees it: a slower answer counts at once and in full, faster ones bring
//! the figure down over seconds, and so does time without any answer, so that an endpoint that was slow is tried again.

use std::sync::atomic::{AtomicU64, Ordering};

/// Time constant of the decay in milliseconds (Finagle's and Linkerd's default).
const DECAY_MS: f64 = 10_000.0;
/// What a failure counts as at least, in microseconds (Linkerd's failure penalty).
pub(crate) const PENALTY_US: u64 = 5_000_000;

/// Latency of one endpoint, written by all workers. Two that write at the same instant may lose one of the two, which does
/// not matter for an average.
#[derive(Debug, Default)]
pub(crate) struct Latency {
    /// Microseconds, as bits of an `f64`; 0: never measured.
    value: AtomicU64,
    /// When `value` was right, in milliseconds as [`crate::eject::Clock`] counts.
    at: AtomicU64,
}

fn decayed(value: f64, ms: u64) -> f64 {
    value * (-(ms as f64) / DECAY_MS).exp()
}

impl Latency {
    /// Notes that an answer's head took `us` microseconds.
    pub(crate) fn observe(&self, us: u64, now_ms: u64) {
        let before = f64::from_bits(self.value.load(Ordering::Relaxed));
        let weight = (-(now_ms.saturating_sub(self.at.load(Ordering::Relaxed)) as f64) / DECAY_MS).exp();
        let us = (us as f64).max(1.0);
        let after = if us > before {
            us
        } else {
            before * weight + us * (1.0 - weight)
        };
        self.value.store(after.to_bits(), Ordering::Relaxed);
        self.at.store(now_ms, Ordering::Relaxed);
    }

    /// The figure now, in microseconds; `None` before the first answer.
    pub(crate) fn now(&self, now_ms: u64) -> Option<f64> {
        let value = f64::from_bits(self.value.load(Ordering::Relaxed));
        let age = now_ms.saturating_sub(self.at.load(Ordering::Relaxed));
        (value > 0.0).then(|| decayed(value, age).max(1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_count_at_once_and_fade() {
        let latency = Latency::default();
        assert_eq!(latency.now(5), None);
        latency.observe(1_000, 1_000);
        latency.observe(200_000, 1_001);
        assert_eq!(latency.now(1_001), Some(200_000.0));
        latency.observe(1_000, 1_002);
        assert!(
            latency.now(1_002).expect("measured") > 190_000.0,
            "one fast answer proves little"
        );
        for ms in 0..100u64 {
            latency.observe(1_000, 1_002 + ms * 1_000);
        }
        let calm = latency.now(100_002).expect("measured");
        assert!((900.0..1_200.0).contains(&calm), "{calm}");
    }

    #[test]
    fn without_answers_it_fades_too() {
        let latency = Latency::default();
        latency.observe(PENALTY_US, 0);
        let later = latency.now(10_000).expect("measured");
        assert!((later - PENALTY_US as f64 / std::f64::consts::E).abs() < 1.0, "{later}");
        assert_eq!(latency.now(10_000_000), Some(1.0));
    }
}
