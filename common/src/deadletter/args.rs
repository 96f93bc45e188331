//! The arguments of `deadletter`.

use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand, ValueEnum};

use super::letter::Letter;
use crate::DataType;

/// What to do with the dead letters.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Count what is in the dead-letter queues by type and reason, then list it, a line a message
    List(ListArgs),
    /// Print properties, headers and body of messages; packed bodies are unpacked up to MAX_BODY_BYTES
    Show(ShowArgs),
    /// Publish messages to this worker's own queue again and take them out of the dead-letter queue.
    /// At least once: after a crash in between a message may be in both, never in none
    Replay(ReplayArgs),
    /// Delete messages for good, after asking on the terminal
    Purge(PurgeArgs),
}

/// Which messages are meant; all conditions must hold.
#[derive(Debug, Default, Args)]
pub struct Filter {
    /// Only this type: artists, labels, masters or releases; may be repeated [default: all four]
    #[arg(long = "type", value_name = "TYPE", value_parser = data_type)]
    pub types: Vec<DataType>,
    /// Only this reason, e.g. write_refused or delivery_limit
    #[arg(long, value_name = "REASON")]
    pub reason: Option<String>,
    /// Only the record with this id
    #[arg(long, value_name = "ID")]
    pub id: Option<String>,
    /// Only messages that were dead-lettered longer ago than this, e.g. 90s, 15m, 1h, 2d
    #[arg(long, value_name = "AGE", value_parser = age)]
    pub older_than: Option<Duration>,
    /// Only messages that were dead-lettered within this time
    #[arg(long, value_name = "AGE", value_parser = age)]
    pub newer_than: Option<Duration>,
}

impl Filter {
    /// The types that are meant, in the project's order.
    pub fn types(&self) -> impl Iterator<Item = DataType> {
        DataType::ALL.into_iter().filter(|t| self.types.is_empty() || self.types.contains(t))
    }

    /// Whether a message of a wanted type is meant. One that does not tell its age is neither old nor new.
    pub fn matches(&self, letter: &Letter, now: DateTime<Utc>) -> bool {
        let age = letter.age(now);
        self.reason.as_ref().is_none_or(|reason| *reason == letter.reason)
            && self.id.as_ref().is_none_or(|id| letter.id.as_ref() == Some(id))
            && self.older_than.is_none_or(|limit| age.is_some_and(|age| age > limit))
            && self.newer_than.is_none_or(|limit| age.is_some_and(|age| age <= limit))
    }
}

/// How `list` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Aligned columns
    Table,
    /// One JSON object: `counts`, `messages`, `more`
    Json,
}

/// Arguments of `list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Which messages.
    #[command(flatten)]
    pub filter: Filter,
    /// How to print
    #[arg(long, value_enum, default_value = "table")]
    pub format: Format,
    /// Most messages to list; the counts cover all
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub limit: usize,
}

/// Arguments of `show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Which messages.
    #[command(flatten)]
    pub filter: Filter,
    /// Most messages to show
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub limit: usize,
}

/// Arguments of `replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// Which messages.
    #[command(flatten)]
    pub filter: Filter,
    /// Most messages to replay [default: all that are there at the start]
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Only say what would be replayed
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `purge`.
#[derive(Debug, Args)]
pub struct PurgeArgs {
    /// Which messages.
    #[command(flatten)]
    pub filter: Filter,
    /// Delete without asking
    #[arg(long)]
    pub yes: bool,
}

fn data_type(text: &str) -> Result<DataType, String> {
    let found = DataType::ALL.into_iter().find(|t| t.name() == text);
    found.ok_or_else(|| "give artists, labels, masters or releases".to_owned())
}

fn age(text: &str) -> Result<Duration, String> {
    let wrong = || "give a number and a unit (s, m, h or d), e.g. 90s or 2d".to_owned();
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_a_number_and_a_unit() {
        for (text, seconds) in [("90s", 90), ("15m", 900), ("1h", 3600), ("2d", 172_800), ("0s", 0)] {
            assert_eq!(age(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "1", "h", "-1h", "1.5h", "1w", "99999999999999999d", "1é"] {
            assert!(age(text).is_err(), "{text}");
        }
    }

    #[test]
    fn all_conditions_must_hold_and_an_unknown_age_is_neither_old_nor_new() {
        let now = Utc::now();
        let letter = |seconds: Option<i64>| Letter {
            data_type: DataType::Artists,
            reason: "write_refused".to_owned(),
            code: "54000".to_owned(),
            id: Some("7".to_owned()),
            queue: String::new(),
            at: seconds.map(|s| now - chrono::TimeDelta::seconds(s)),
        };
        let filter = |reason: Option<&str>, id: Option<&str>, older: Option<u64>, newer: Option<u64>| Filter {
            types: Vec::new(),
            reason: reason.map(str::to_owned),
            id: id.map(str::to_owned),
            older_than: older.map(Duration::from_secs),
            newer_than: newer.map(Duration::from_secs),
        };
        for (filter, expected) in [
            (filter(None, None, None, None), [true, true, true]),
            (filter(Some("write_refused"), Some("7"), None, None), [true, true, true]),
            (filter(Some("write_refused"), Some("8"), None, None), [false, false, false]),
            (filter(Some("invalid_json"), Some("7"), None, None), [false, false, false]),
            (filter(None, None, Some(60), None), [false, true, false]),
            (filter(None, None, None, Some(60)), [true, false, false]),
            (filter(None, None, Some(60), Some(120)), [false, true, false]),
        ] {
            let found = [Some(10), Some(100), None].map(|age| filter.matches(&letter(age), now));
            assert_eq!(found, expected, "{filter:?}");
        }
    }
}
