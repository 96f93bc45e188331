//! Pauses between attempts: exponential, with full jitter, so that replicas don't come back in step.

use std::time::Duration;

/// The pauses of one series of attempts.
#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
    max: Duration,
}

impl Backoff {
    /// Pauses that start below `first` and end below `max`.
    pub fn new(first: Duration, max: Duration) -> Self {
        Backoff { next: first, max }
    }

    /// For servers that are away: 0.25 s to 15 s.
    pub fn outage() -> Self {
        Backoff::new(Duration::from_millis(250), Duration::from_secs(15))
    }

    /// For transactions that lost a race: 5 ms to 1 s.
    pub fn conflict() -> Self {
        Backoff::new(Duration::from_millis(5), Duration::from_secs(1))
    }

    /// The next pause: between half of the current bound and all of it; the bound doubles.
    pub fn pause(&mut self) -> Duration {
        let bound = self.next;
        self.next = (bound * 2).min(self.max);
        bound.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_its_bound() {
        let mut b = Backoff::new(Duration::from_secs(1), Duration::from_secs(3));
        for bound in [1.0, 2.0, 3.0, 3.0] {
            let pause = b.pause().as_secs_f64();
            assert!((bound / 2.0..=bound).contains(&pause), "{pause} for {bound}");
        }
    }
}
