//! `list`: what is there, counted and listed.

use std::io::Write;

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};

use super::args::{Format, ListArgs};
use super::counts::Counts;
use super::letter::Letter;
use super::text::printable;
use super::{Error, Queues};

/// Longest text in a column, in characters.
const MAX_COLUMN: usize = 80;

/// Prints counts of all matching messages and the first `limit` of them; only those are kept in memory.
///
/// # Errors
/// [`Error`].
pub async fn run(queues: &Queues, args: &ListArgs, out: &mut impl Write) -> Result<(), Error> {
    let now = Utc::now();
    let (mut counts, mut letters) = (Counts::default(), Vec::new());
    for data_type in args.filter.types() {
        let Some(mut walk) = queues.walk(data_type).await? else { continue };
        while let Some(message) = walk.next().await? {
            let letter = queues.read(data_type, &message);
            if args.filter.matches(&letter, now) {
                counts.add(&letter);
                if letters.len() < args.limit {
                    letters.push(letter);
                }
            }
        }
        walk.close().await?;
    }
    let more = counts.total() - letters.len() as u64;
    match args.format {
        Format::Json => {
            let messages: Value = letters.iter().map(|letter| to_json(letter, now)).collect();
            writeln!(out, "{}", json!({"counts": counts.to_json(), "messages": messages, "more": more}))?;
        }
        Format::Table if counts.total() == 0 => writeln!(out, "no dead letters")?,
        Format::Table => {
            writeln!(out, "{counts}")?;
            table(&letters, now, out)?;
            if more > 0 {
                writeln!(out, "… and {more} more: see --limit")?;
            }
        }
    }
    Ok(())
}

fn to_json(letter: &Letter, now: DateTime<Utc>) -> Value {
    json!({
        "type": letter.data_type.name(),
        "reason": letter.reason,
        "code": letter.code,
        "id": letter.id,
        "age_seconds": letter.age(now).map(|age| age.as_secs()),
        "time": letter.at.map(|at| at.to_rfc3339_opts(SecondsFormat::Millis, true)),
        "queue": letter.queue,
    })
}

fn table(letters: &[Letter], now: DateTime<Utc>, out: &mut impl Write) -> Result<(), Error> {
    if letters.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    let head = ["TYPE", "REASON", "CODE", "ID", "AGE", "QUEUE"].map(str::to_owned);
    let rows = letters.iter().map(|letter| row(letter, now));
    let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: [usize; 6] = std::array::from_fn(width);
    for row in &rows {
        let line: String = row.iter().zip(widths).map(|(text, width)| format!("{text:width$}  ")).collect();
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

fn row(letter: &Letter, now: DateTime<Utc>) -> [String; 6] {
    let cell = |text: &str| match text.char_indices().nth(MAX_COLUMN) {
        Some((end, _)) => format!("{}…", printable(&text[..end])),
        None if text.is_empty() => "-".to_owned(),
        None => printable(text),
    };
    [
        letter.data_type.name().to_owned(),
        cell(&letter.reason),
        cell(&letter.code),
        cell(letter.id.as_deref().unwrap_or_default()),
        age(letter, now),
        cell(&letter.queue),
    ]
}

/// An age in its two largest units; `-` if the message does not tell it.
pub fn age(letter: &Letter, now: DateTime<Utc>) -> String {
    let Some(age) = letter.age(now) else { return "-".to_owned() };
    let (s, m, h, d) = (age.as_secs(), age.as_secs() / 60, age.as_secs() / 3600, age.as_secs() / 86_400);
    match (d, h, m) {
        (0, 0, 0) => format!("{s}s"),
        (0, 0, _) => format!("{m}m{}s", s % 60),
        (0, _, _) => format!("{h}h{}m", m % 60),
        _ => format!("{d}d{}h", h % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DataType;

    #[test]
    fn rows_are_short_and_have_no_gaps() {
        let now = Utc::now();
        let mut letter = Letter {
            data_type: DataType::Masters,
            reason: "write_refused".to_owned(),
            code: "x".repeat(100),
            id: None,
            queue: String::new(),
            at: None,
        };
        let code = format!("{}…", "x".repeat(80));
        assert_eq!(row(&letter, now), ["masters", "write_refused", &code, "-", "-", "-"]);
        for (seconds, text) in [(0, "0s"), (61, "1m1s"), (3600, "1h0m"), (90_000, "1d1h")] {
            letter.at = Some(now - chrono::TimeDelta::seconds(seconds));
            assert_eq!(age(&letter, now), text);
        }
    }
}
