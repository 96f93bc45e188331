//! Who may be acknowledged: every delivery carries a [`SettleToken`], and the [`Ledger`] of its channel turns decided
//! tokens into as few ack frames as the order of the tags allows.
//!
//! A ledger belongs to one channel. Tokens of a lost channel decide into its dead ledger, so nothing is ever
//! acknowledged across a reconnect: the numbers would mean other messages there.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is known of one delivery tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    /// Still in the pipeline.
    Open,
    /// Committed, or confirmed in the dead-letter exchange: may be acknowledged.
    Settled,
    /// Its token was dropped undecided: must come back, so it may never be acknowledged.
    Returned,
}

/// One `basic.ack` to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AckFrame {
    /// Delivery tag.
    pub tag: u64,
    /// Whether it stands for all earlier tags of the channel too.
    pub multiple: bool,
    /// How many deliveries it settles.
    pub count: usize,
}

#[derive(Debug, Default)]
struct Slots {
    /// Tag of the first slot: everything below is acknowledged (the low watermark).
    first: u64,
    slots: VecDeque<Slot>,
    returned: usize,
    settled: usize,
}

/// The delivery tags of one channel, from the oldest that is not acknowledged yet.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<Slots>);

impl Ledger {
    /// An empty ledger, for a channel on which nothing was delivered yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Takes note of a delivery. Tags must come in the channel's order, as the broker counts them.
    pub fn register(self: &Arc<Self>, tag: u64) -> SettleToken {
        let mut inner = self.lock();
        if inner.slots.is_empty() {
            inner.first = tag;
        }
        inner.slots.push_back(Slot::Open);
        debug_assert_eq!(inner.first + inner.slots.len() as u64 - 1, tag);
        SettleToken { tag, ledger: Some(Arc::clone(self)) }
    }

    /// The ack for everything settled up to the first delivery that is not; `None` if the oldest one is still open.
    pub fn ackable(&self) -> Option<AckFrame> {
        let mut inner = self.lock();
        let count = inner.slots.iter().take_while(|s| **s == Slot::Settled).count();
        if count == 0 {
            return None;
        }
        inner.slots.drain(..count);
        inner.settled -= count;
        inner.first += count as u64;
        Some(AckFrame { tag: inner.first - 1, multiple: count > 1, count })
    }

    /// Acks for what is settled above the watermark, one by one. Only for the end of a channel, when what is open
    /// below will not be settled any more.
    pub fn scattered(&self) -> Vec<AckFrame> {
        let mut inner = self.lock();
        let first = inner.first;
        let tags = (first..)
            .zip(inner.slots.iter_mut())
            .filter(|(_, slot)| **slot == Slot::Settled)
            .map(|(tag, slot)| {
                *slot = Slot::Returned; // nothing may settle it a second time
                AckFrame { tag, multiple: false, count: 1 }
            })
            .collect();
        inner.settled = 0;
        tags
    }

    /// Deliveries that are in the pipeline, neither settled nor returned.
    pub fn open(&self) -> usize {
        let inner = self.lock();
        inner.slots.len() - inner.settled - inner.returned
    }

    /// Deliveries that are not acknowledged yet, whatever was decided about them.
    pub fn unacked(&self) -> usize {
        self.lock().slots.len()
    }

    /// Deliveries whose token was dropped undecided. They come back when the channel ends, not before.
    pub fn returned(&self) -> usize {
        self.lock().returned
    }

    fn decide(&self, tag: u64, slot: Slot) {
        let mut inner = self.lock();
        let at = tag.checked_sub(inner.first).and_then(|at| usize::try_from(at).ok());
        let Some(at) = at.filter(|at| inner.slots.get(*at) == Some(&Slot::Open)) else {
            debug_assert!(false, "delivery tag {tag} decided twice");
            return;
        };
        inner.slots[at] = slot;
        match slot {
            Slot::Settled => inner.settled += 1,
            Slot::Returned => inner.returned += 1,
            Slot::Open => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to decide once about one delivery. Dropping it undecided fails closed: the message comes back.
#[derive(Debug)]
#[must_use = "a delivery whose token is dropped comes back"]
pub struct SettleToken {
    tag: u64,
    ledger: Option<Arc<Ledger>>,
}

impl SettleToken {
    /// The delivery's tag.
    pub fn tag(&self) -> u64 {
        self.tag
    }

    /// The record is durably where it belongs: committed, or confirmed by the dead-letter exchange.
    pub fn settle(mut self) {
        if let Some(ledger) = self.ledger.take() {
            ledger.decide(self.tag, Slot::Settled);
        }
    }
}

impl Drop for SettleToken {
    fn drop(&mut self) {
        if let Some(ledger) = self.ledger.take() {
            ledger.decide(self.tag, Slot::Returned);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(tags: u64) -> (Arc<Ledger>, Vec<Option<SettleToken>>) {
        let ledger = Ledger::new();
        let tokens = (1..=tags).map(|t| Some(ledger.register(t))).collect();
        (ledger, tokens)
    }

    fn settle(tokens: &mut [Option<SettleToken>], tag: usize) {
        tokens[tag - 1].take().expect("undecided").settle();
    }

    #[test]
    fn one_frame_acks_a_contiguous_run() {
        let (ledger, mut tokens) = ledger(4);
        for tag in 1..=3 {
            settle(&mut tokens, tag);
        }
        assert_eq!(ledger.ackable(), Some(AckFrame { tag: 3, multiple: true, count: 3 }));
        assert_eq!(ledger.ackable(), None);
        settle(&mut tokens, 4);
        assert_eq!(ledger.ackable(), Some(AckFrame { tag: 4, multiple: false, count: 1 }));
    }

    #[test]
    fn a_later_batch_waits_for_an_earlier_one() {
        let (ledger, mut tokens) = ledger(4);
        settle(&mut tokens, 3);
        settle(&mut tokens, 4);
        assert_eq!(ledger.ackable(), None);
        assert_eq!((ledger.open(), ledger.unacked()), (2, 4));
        settle(&mut tokens, 1);
        assert_eq!(ledger.ackable().map(|f| f.tag), Some(1));
        settle(&mut tokens, 2);
        assert_eq!(ledger.ackable(), Some(AckFrame { tag: 4, multiple: true, count: 3 }));
    }

    #[test]
    fn a_dropped_token_is_never_acked() {
        let (ledger, mut tokens) = ledger(3);
        settle(&mut tokens, 1);
        drop(tokens[1].take());
        settle(&mut tokens, 3);
        assert_eq!(ledger.ackable().map(|f| f.tag), Some(1));
        assert_eq!(ledger.ackable(), None);
        assert_eq!((ledger.open(), ledger.returned()), (0, 1));
        assert_eq!(ledger.scattered(), [AckFrame { tag: 3, multiple: false, count: 1 }]);
        assert!(ledger.scattered().is_empty());
    }

    #[test]
    fn tokens_of_a_lost_channel_do_not_touch_the_next() {
        let (old, mut old_tokens) = ledger(2);
        let (new, mut new_tokens) = ledger(2);
        settle(&mut old_tokens, 1);
        settle(&mut old_tokens, 2);
        assert_eq!(new.ackable(), None);
        settle(&mut new_tokens, 1);
        assert_eq!(new.ackable().map(|f| f.tag), Some(1));
        assert_eq!(old.ackable().map(|f| f.tag), Some(2));
    }
}
