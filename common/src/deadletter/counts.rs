//! How many of what.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Value, json};

use super::letter::Letter;
use super::text::printable;
use crate::DataType;

/// Most different reasons that are told apart: they come from headers, and whoever can publish can make them up.
const MAX_REASONS: usize = 1000;

/// Messages by type and reason. Displayed as lines, without one at the end.
#[derive(Debug, Default)]
pub struct Counts(BTreeMap<(DataType, String), u64>);

impl Counts {
    /// Counts a message.
    pub fn add(&mut self, letter: &Letter) {
        let key = (letter.data_type, letter.reason.clone());
        let key =
            if self.0.len() < MAX_REASONS || self.0.contains_key(&key) { key } else { (key.0, "others".to_owned()) };
        *self.0.entry(key).or_default() += 1;
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// A list of objects.
    pub fn to_json(&self) -> Value {
        let object = |((t, reason), count): (&(DataType, String), &u64)| json!({"type": t.name(), "reason": reason, "count": count});
        self.0.iter().map(object).collect()
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, ((data_type, reason), count)) in self.0.iter().enumerate() {
            let end_of_last = if at == 0 { "" } else { "\n" };
            write!(f, "{end_of_last}{count:>9}  {:<8}  {}", data_type.name(), printable(reason))?;
        }
        Ok(())
    }
}
