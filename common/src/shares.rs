//! Who may write: a number of slots, shared between the types by their weights.
//!
//! When several types wait for a slot, it goes to the one that has had least for its weight, counted in records (weighted fair queueing).
//! A type that waited for nothing meanwhile gets no credit for that. Whoever has waited for [`OVERDUE`] comes first all the same: the broker wants
//! its messages back after a while.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::data_type::DataType;
use crate::metrics as names;

/// Longest wait because of a small weight.
const OVERDUE: Duration = Duration::from_secs(20);

/// The slots.
#[derive(Debug)]
pub struct Shares {
    weights: Weights,
    /// After so long a wait, weights don't count.
    overdue: Duration,
    state: Mutex<State>,
}

/// A share of the slots for each type, in the order of [`DataType::ALL`]; only their ratios count.
pub type Weights = [u32; 4];

/// The right to write one batch.
#[derive(Debug)]
pub struct Slot(Arc<Shares>);

#[derive(Debug)]
struct State {
    free: usize,
    types: [Type; 4],
    /// What the type that was served last has had.
    now: f64,
}

#[derive(Debug)]
struct Waiting {
    sender: oneshot::Sender<Slot>,
    records: usize,
    since: Instant,
}

#[derive(Debug, Default)]
struct Type {
    /// Records by weight that it was given slots for.
    had: f64,
    waiting: VecDeque<Waiting>,
}

impl Shares {
    /// That many slots.
    pub fn new(slots: usize, weights: Weights) -> Arc<Self> {
        Self::with(slots, weights, OVERDUE)
    }

    fn with(slots: usize, weights: Weights, overdue: Duration) -> Arc<Self> {
        let state = State { free: slots, types: Default::default(), now: 0.0 };
        Arc::new(Shares { weights, overdue, state: Mutex::new(state) })
    }

    /// Waits for a slot for a batch of that many records.
    pub async fn acquire(self: &Arc<Self>, data_type: DataType, records: usize) -> Slot {
        let (sender, slot) = oneshot::channel();
        let _waits = Waits::new(data_type);
        {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let now = state.now;
            let one = &mut state.types[data_type.index()];
            if one.waiting.is_empty() {
                one.had = one.had.max(now);
            }
            one.waiting.push_back(Waiting { sender, records, since: Instant::now() });
        }
        self.grant();
        match slot.await {
            Ok(slot) => slot,
            // Only a sender that is gone ends here, and they stay until they have sent.
            Err(_) => std::future::pending().await,
        }
    }

    /// Gives out what is free.
    fn grant(self: &Arc<Self>) {
        while let Some(waiting) = self.next() {
            // Whoever does not wait any more drops it, which frees it again.
            let _ = waiting.send(Slot(Arc::clone(self)));
        }
    }

    fn next(&self) -> Option<oneshot::Sender<Slot>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.free == 0 {
            return None;
        }
        let waiting = || (0..state.types.len()).filter_map(|i| Some((i, state.types[i].waiting.front()?.since)));
        let overdue = waiting().filter(|(_, since)| since.elapsed() >= self.overdue).min_by_key(|(_, since)| *since);
        let had = |i: usize| state.types[i].had;
        let (at, _) = overdue.or_else(|| waiting().min_by(|(a, _), (b, _)| had(*a).total_cmp(&had(*b))))?;
        let one = &mut state.types[at];
        let now = one.had;
        let Waiting { sender, records, .. } = one.waiting.pop_front()?;
        one.had += records as f64 / f64::from(self.weights[at].max(1));
        state.now = now;
        state.free -= 1;
        metrics::gauge!(names::SLOTS_IN_USE).increment(1.0);
        Some(sender)
    }
}

/// Shows a batch that waits for a slot, until it is dropped.
struct Waits(DataType, Instant);

impl Waits {
    fn new(data_type: DataType) -> Self {
        metrics::gauge!(names::SLOTS_WAITING, "data_type" => data_type.name()).increment(1.0);
        Waits(data_type, Instant::now())
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        let data_type = self.0.name();
        metrics::gauge!(names::SLOTS_WAITING, "data_type" => data_type).decrement(1.0);
        metrics::gauge!(names::BLOCKED, "data_type" => data_type, "stage" => "slot")
            .increment(self.1.elapsed().as_secs_f64());
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).free += 1;
        metrics::gauge!(names::SLOTS_IN_USE).decrement(1.0);
        self.0.grant();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use tokio::task::JoinSet;

    const WEIGHTS: Weights = [4, 1, 1, 1];

    /// Types in the order in which they got the one slot, each asking for as many times at once.
    async fn served(shares: &Arc<Shares>, asked: &[(DataType, usize, usize)]) -> Vec<DataType> {
        let busy = shares.acquire(DataType::Masters, 0).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        for (data_type, times, records) in asked.iter().copied() {
            for _ in 0..times {
                let (shares, order) = (Arc::clone(shares), Arc::clone(&order));
                tasks.spawn(async move {
                    let _slot = shares.acquire(data_type, records).await;
                    order.lock().unwrap().push(data_type);
                });
            }
        }
        while shares.state.lock().unwrap().types.iter().map(|t| t.waiting.len()).sum::<usize>() < tasks.len() {
            tokio::task::yield_now().await;
        }
        drop(busy);
        tasks.join_all().await;
        order.lock().unwrap().clone()
    }

    fn count(order: &[DataType], data_type: DataType) -> usize {
        order.iter().filter(|t| **t == data_type).count()
    }

    #[tokio::test]
    async fn slots_are_given_by_weight() {
        let shares = Shares::new(1, WEIGHTS);
        let order = served(&shares, &[(DataType::Releases, 40, 100), (DataType::Artists, 40, 100)]).await;
        assert_eq!(count(&order[..25], DataType::Artists), 20, "{order:?}");
        // Records count, not batches.
        let shares = Shares::new(1, WEIGHTS);
        let order = served(&shares, &[(DataType::Releases, 80, 50), (DataType::Artists, 40, 100)]).await;
        assert_eq!(count(&order[..30], DataType::Artists), 20, "{order:?}");
    }

    #[tokio::test]
    async fn who_asked_for_nothing_gets_no_credit() {
        let shares = Shares::new(1, [1; 4]);
        served(&shares, &[(DataType::Releases, 100, 100)]).await;
        let order = served(&shares, &[(DataType::Labels, 20, 100), (DataType::Releases, 20, 100)]).await;
        let labels = count(&order[..20], DataType::Labels);
        assert!((9..=11).contains(&labels), "{order:?}");
    }

    /// Whether labels, which have had their share for long, get the slot before artists have had it a hundred times more.
    async fn light_type_is_served(overdue: Duration) -> bool {
        let shares = Shares::with(1, [1000, 1, 1, 1], overdue);
        drop(shares.acquire(DataType::Labels, 1000).await);
        let mut busy = shares.acquire(DataType::Artists, 1).await;
        let mut label = Box::pin(shares.acquire(DataType::Labels, 1));
        for _ in 0..100 {
            let mut next = Box::pin(shares.acquire(DataType::Artists, 1));
            assert!(futures_util::poll!(&mut next).is_pending());
            if futures_util::poll!(&mut label).is_ready() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
            drop(busy);
            busy = tokio::select! {
                slot = &mut next => slot,
                _ = &mut label => return true,
            };
        }
        false
    }

    #[tokio::test]
    async fn nobody_waits_for_ever() {
        assert!(!light_type_is_served(Duration::from_secs(3600)).await);
        assert!(light_type_is_served(Duration::from_millis(20)).await);
    }

    #[tokio::test]
    async fn who_gives_up_takes_no_slot_along() {
        let shares = Shares::new(2, [1; 4]);
        let held = [shares.acquire(DataType::Artists, 1).await, shares.acquire(DataType::Labels, 1).await];
        for data_type in DataType::ALL {
            let gave_up = tokio::time::timeout(std::time::Duration::from_millis(5), shares.acquire(data_type, 1)).await;
            assert!(gave_up.is_err(), "both are taken");
        }
        drop(held);
        assert_eq!(shares.state.lock().unwrap().free, 2);
        // A slot that was sent and never taken.
        let mut asked = Box::pin(shares.acquire(DataType::Artists, 1));
        let held = [shares.acquire(DataType::Masters, 1).await, shares.acquire(DataType::Masters, 1).await];
        assert!(futures_util::poll!(&mut asked).is_pending());
        drop(held);
        drop(asked);
        assert_eq!(shares.state.lock().unwrap().free, 2);
    }
}
