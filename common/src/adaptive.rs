//! Batch size and writers that follow what the database bears (`*_BATCH_MODE=adaptive`): additive increase while batches are full and
//! quickly written, multiplicative decrease when they are slow or lose against others, as TCP does it (RFC 5681).

use std::time::Duration;

/// How long a transaction should take at most: longer ones hold locks that others wait for, and repeat more when they lose. (A thousand releases
/// take Neo4j almost a second on two cores, and larger batches save it nothing.)
const LONG: Duration = Duration::from_millis(2000);
/// Quiet batches in a row before another writer is tried.
const QUIET: u32 = 8;
/// Batches after a step back before the next one: those that were under way say nothing new.
const PAUSE: u32 = 4;

/// Between what size and writers move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Fewest records in a batch.
    pub floor: usize,
    /// Most records in a batch.
    pub ceiling: usize,
    /// Most batches of a type at the same time.
    pub writers: usize,
}

/// What one batch has shown.
#[derive(Clone, Copy, Debug)]
pub struct Observed {
    /// From its first attempt to its commit.
    pub took: Duration,
    /// Whether it held as many records as it may: more are waiting.
    pub full: bool,
    /// Whether an attempt failed: it lost against another transaction, was too large, or took too long.
    pub troubled: bool,
    /// Whether another batch waited for a writer.
    pub pressed: bool,
}

/// The state for one type.
#[derive(Clone, Debug)]
pub struct Adaptive {
    bounds: Bounds,
    size: usize,
    writers: usize,
    quiet: u32,
    pause: u32,
}

impl Adaptive {
    /// Begins with this size, as far as the bounds allow, and all writers, as the fixed mode does: one that is too many shows soon.
    pub fn new(bounds: Bounds, size: usize) -> Self {
        let (size, writers) = (size.clamp(bounds.floor, bounds.ceiling), bounds.writers);
        Adaptive { bounds, size, writers, quiet: 0, pause: 0 }
    }

    /// Goes on within other bounds.
    pub fn bound(&mut self, bounds: Bounds) {
        self.bounds = bounds;
        self.size = self.size.clamp(bounds.floor, bounds.ceiling);
        self.writers = self.writers.min(bounds.writers);
    }

    /// Records that the next batch may hold.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Batches that may be written at the same time.
    pub fn writers(&self) -> usize {
        self.writers
    }

    /// Takes note of a batch.
    pub fn observe(&mut self, batch: Observed) {
        let Bounds { floor, ceiling, writers } = self.bounds;
        self.pause = self.pause.saturating_sub(1);
        if batch.troubled || batch.took > LONG {
            self.quiet = 0;
            if self.pause > 0 {
                return;
            }
            self.pause = PAUSE;
            // What loses has too many beside it; what is slow is too large.
            if batch.troubled && self.writers > 1 {
                self.writers -= 1;
            } else {
                self.size = (self.size * 3 / 4).max(floor);
            }
            return;
        }
        self.quiet += 1;
        if batch.full && batch.took < LONG / 2 {
            self.size = (self.size + floor).min(ceiling);
        }
        if batch.pressed && self.quiet >= QUIET && self.writers < writers {
            self.writers += 1;
            self.quiet = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { floor: 100, ceiling: 2000, writers: 4 };

    /// A database that takes so long for each record, and in which transactions meet when there are more writers than it likes.
    fn settle(size: usize, per_record: Duration, likes: usize) -> (usize, usize) {
        let mut adaptive = Adaptive::new(BOUNDS, size);
        let (mut sizes, mut writers) = (0, 0);
        for round in 0..2000 {
            let took = per_record * adaptive.size() as u32;
            // One batch in three loses when there is one writer too many.
            let troubled = adaptive.writers() > likes && round % 3 == 0;
            adaptive.observe(Observed { took, full: true, troubled, pressed: true });
            assert!((BOUNDS.floor..=BOUNDS.ceiling).contains(&adaptive.size()));
            if round >= 1000 {
                (sizes, writers) = (sizes + adaptive.size(), writers + adaptive.writers());
            }
        }
        (sizes / 1000, (writers + 500) / 1000)
    }

    #[test]
    fn it_ends_at_the_same_from_any_start() {
        // A quick database takes the largest batches, and as many at a time as it likes.
        for start in [1, 500, 5000] {
            assert_eq!(settle(start, Duration::from_micros(70), 4), (2000, 4), "from {start}");
        }
        // A slow one gets batches of one second to two.
        for start in [1, 500, 5000] {
            let (size, _) = settle(start, Duration::from_millis(2), 4);
            assert!((400..=1000).contains(&size), "{size} from {start}");
        }
        let (_, writers) = settle(500, Duration::from_micros(500), 2);
        assert!((1..=2).contains(&writers), "{writers}");
    }

    #[test]
    fn nothing_moves_without_work() {
        let mut adaptive = Adaptive::new(BOUNDS, 500);
        for _ in 0..100 {
            let took = Duration::from_millis(1);
            adaptive.observe(Observed { took, full: false, troubled: false, pressed: false });
        }
        assert_eq!((adaptive.size(), adaptive.writers()), (500, 4));
    }

    #[test]
    fn one_disturbance_is_one_step_back() {
        let mut adaptive = Adaptive::new(Bounds { writers: 1, ..BOUNDS }, 2000);
        for _ in 0..2 {
            let took = Duration::from_secs(60);
            adaptive.observe(Observed { took, full: true, troubled: true, pressed: true });
        }
        assert_eq!(adaptive.size(), 1500);
    }

    #[test]
    fn other_bounds_hold_at_once() {
        let mut adaptive = Adaptive::new(BOUNDS, 2000);
        adaptive.bound(Bounds { floor: 50, ceiling: 300, writers: 2 });
        assert_eq!((adaptive.size(), adaptive.writers()), (300, 2));
        adaptive.bound(BOUNDS);
        assert_eq!((adaptive.size(), adaptive.writers()), (300, 2), "it grows when batches say so");
    }
}
