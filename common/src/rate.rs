//! A limit for the records per second that a process takes, all queues together. Reading waits, never writing: what is in a
//! batch is written as soon as without a limit.
//!
//! Time is given out in shares of some records each, one after the other to whoever asks, so that each queue gets its part.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::data_type::DataType;
use crate::metrics as names;

/// Shares a second, as far as a share is at least one record.
const SHARES: u32 = 100;
/// Time that was not used and can be made up for: timers are late by a millisecond or two.
const ARREARS: Duration = Duration::from_millis(100);

/// What all queues of a process share.
#[derive(Debug)]
pub struct RateLimit {
    /// Until when the time is given out.
    given: Mutex<Instant>,
}

impl RateLimit {
    /// Nothing is given out yet.
    pub fn new() -> Arc<Self> {
        Arc::new(RateLimit { given: Mutex::new(Instant::now()) })
    }

    /// Gives out the next time, of this length. Returns its beginning.
    fn give(&self, share: Duration, now: Instant) -> Instant {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        // Each queue has one share at a time, and may use it up as it begins: further ahead is only what a lower limit gave out.
        let ahead = share * DataType::ALL.len() as u32;
        let arrears = now.checked_sub(ARREARS).unwrap_or(now);
        let from = (*given).clamp(arrears, now + ahead);
        *given = from + share;
        from
    }
}

/// How fast one queue may read.
#[derive(Debug)]
pub struct Pace {
    shared: Arc<RateLimit>,
    data_type: DataType,
    /// Records per second of all queues together; 0: no limit.
    limit: u32,
    /// What is left of its share, and when that begins.
    left: u32,
    from: Instant,
}

impl Pace {
    /// At most `limit` records per second of all queues together; 0: no limit.
    pub fn new(shared: Arc<RateLimit>, data_type: DataType, limit: u32) -> Self {
        Pace { shared, data_type, limit, left: 0, from: Instant::now() }
    }

    /// Another limit from now on.
    pub fn set(&mut self, limit: u32) {
        if limit != self.limit {
            (self.limit, self.left) = (limit, 0);
        }
    }

    /// When the next record may be read; `None`: now.
    pub fn wait(&mut self) -> Option<Instant> {
        if self.limit == 0 { None } else { self.wait_from(Instant::now()) }
    }

    fn wait_from(&mut self, now: Instant) -> Option<Instant> {
        if self.left == 0 {
            self.left = (self.limit / SHARES).max(1);
            self.from = self.shared.give(Duration::from_secs(1) * self.left / self.limit, now);
            let wait = self.from.saturating_duration_since(now).as_secs_f64();
            metrics::gauge!(names::BLOCKED, "data_type" => self.data_type.name(), "stage" => "rate").increment(wait);
        }
        (self.from > now).then_some(self.from)
    }

    /// One was read.
    pub fn took(&mut self) {
        self.left = self.left.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paces(limit: u32) -> Vec<Pace> {
        let shared = RateLimit::new();
        DataType::ALL.map(|t| Pace::new(Arc::clone(&shared), t, limit)).into()
    }

    /// What each queue reads from `start` to `end` when there is always more, with timers that are late.
    fn read(paces: &mut [Pace], start: Instant, end: Instant) -> Vec<u32> {
        let mut read = vec![0; paces.len()];
        let mut now = start;
        while now < end {
            for (pace, read) in paces.iter_mut().zip(&mut read) {
                while pace.wait_from(now).is_none() {
                    pace.took();
                    *read += 1;
                }
            }
            now += Duration::from_millis(3);
        }
        read
    }

    #[test]
    fn all_queues_together_keep_to_the_limit_and_each_gets_its_part() {
        for limit in [1, 7, 200, 20_000] {
            let mut paces = paces(limit);
            let start = Instant::now();
            let read = read(&mut paces, start, start + Duration::from_secs(40));
            let (expected, burst) = (limit * 40, limit / 7 + 4);
            let all: u32 = read.iter().sum();
            assert!(all <= expected + burst && all >= expected - burst, "{all} at {limit}");
            assert!(read.iter().all(|part| part.abs_diff(expected / 4) <= burst), "{read:?} at {limit}");
        }
    }

    #[test]
    fn one_queue_alone_gets_all_of_it() {
        let mut paces = paces(1000);
        let start = Instant::now();
        let read = read(&mut paces[3..], start, start + Duration::from_secs(10));
        assert!((9_900..=10_150).contains(&read[0]), "{read:?}");
    }

    #[test]
    fn time_without_work_is_not_saved_up() {
        let mut paces = paces(1000);
        let idle = Instant::now() + Duration::from_secs(3600);
        let read = read(&mut paces, idle, idle + Duration::from_secs(1));
        assert!(read.iter().sum::<u32>() <= 1150, "{read:?}");
    }

    #[test]
    fn what_a_lower_limit_gave_out_does_not_hold_a_higher_one() {
        let mut paces = paces(1);
        let start = Instant::now();
        read(&mut paces, start, start + Duration::from_millis(1));
        assert!(paces.iter_mut().all(|pace| pace.wait_from(start).is_some_and(|until| until > start)));
        paces.iter_mut().for_each(|pace| pace.set(1000));
        let read = read(&mut paces, start, start + Duration::from_secs(1));
        assert!(read.iter().sum::<u32>() >= 900, "{read:?}");
    }

    #[test]
    fn without_a_limit_nothing_waits() {
        let mut pace = Pace::new(RateLimit::new(), DataType::Labels, 0);
        for _ in 0..100_000 {
            assert_eq!(pace.wait(), None);
            pace.took();
        }
    }
}
