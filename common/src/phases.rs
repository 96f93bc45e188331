//! The phases of one attempt to write a batch, timed for the histogram and, if somebody wants it, for the batch's trace.

use std::time::Instant;

use crate::data_type::DataType;
use crate::metrics::WRITE;

/// One phase that came to its end.
#[derive(Clone, Copy, Debug)]
pub struct Phase {
    /// Metric label, and name of the span.
    pub name: &'static str,
    /// When it began.
    pub start: Instant,
    /// When it ended.
    pub end: Instant,
}

/// Times the phases of one attempt, one after the other.
#[derive(Debug)]
pub struct Phases {
    data_type: DataType,
    since: Instant,
    kept: Option<Vec<Phase>>,
}

impl Phases {
    /// The first phase begins now. They are remembered only if `keep`.
    pub fn new(data_type: DataType, keep: bool) -> Self {
        Phases { data_type, since: Instant::now(), kept: keep.then(Vec::new) }
    }

    /// The next phase begins now, and not where the last one ended.
    pub fn begin(&mut self) {
        self.since = Instant::now();
    }

    /// What began last was this phase. The next one begins now.
    pub fn end(&mut self, name: &'static str) {
        let (start, end) = (self.since, Instant::now());
        metrics::histogram!(WRITE, "data_type" => self.data_type.name(), "phase" => name)
            .record((end - start).as_secs_f64());
        if let Some(kept) = &mut self.kept {
            kept.push(Phase { name, start, end });
        }
        self.since = end;
    }

    /// The phases that ended, if they were to be remembered.
    pub fn into_kept(self) -> Vec<Phase> {
        self.kept.unwrap_or_default()
    }
}
