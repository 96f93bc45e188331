//! `purge`: deletes, after asking.

use std::io::{BufRead, IsTerminal, Write};

use chrono::Utc;

use super::args::PurgeArgs;
use super::counts::Counts;
use super::walk::Walk;
use super::{Error, Queues};

/// Counts matching messages, asks, and deletes exactly those: they are held at the broker meanwhile, here only their tags.
/// Returns whether it was allowed to.
///
/// # Errors
/// [`Error::NoTerminal`] if there is nobody to ask, before anything is done, or others.
pub async fn run(queues: &Queues, args: &PurgeArgs, out: &mut impl Write) -> Result<bool, Error> {
    if !args.yes && !std::io::stdin().is_terminal() {
        return Err(Error::NoTerminal);
    }
    let now = Utc::now();
    let (mut counts, mut held) = (Counts::default(), Vec::<(Walk, Vec<u64>)>::new());
    for data_type in args.filter.types() {
        let Some(mut walk) = queues.walk(data_type).await? else { continue };
        let mut tags = Vec::new();
        while let Some(message) = walk.next().await? {
            let letter = queues.read(data_type, &message);
            if args.filter.matches(&letter, now) {
                counts.add(&letter);
                tags.push(message.delivery_tag);
            }
        }
        held.push((walk, tags));
    }
    if counts.total() > 0 {
        writeln!(out, "{counts}")?;
    }
    let allowed = args.yes || counts.total() == 0 || ask(counts.total(), out).await?;
    let mut deleted = 0;
    for (walk, tags) in held {
        for tag in tags.into_iter().filter(|_| allowed) {
            walk.take(tag).await?;
            deleted += 1;
        }
        walk.close().await?;
    }
    writeln!(out, "{deleted:>9}  deleted")?;
    Ok(allowed)
}

async fn ask(count: u64, out: &mut impl Write) -> Result<bool, Error> {
    write!(out, "Delete these {count} messages for good? [y/N] ")?;
    out.flush()?;
    // On a thread of its own: the connection's heartbeats go on while somebody thinks.
    let answer = tokio::task::spawn_blocking(|| yes(&mut std::io::stdin().lock())).await;
    Ok(answer.map_err(std::io::Error::other)??)
}

fn yes(input: &mut impl BufRead) -> std::io::Result<bool> {
    let mut line = String::new();
    input.read_line(&mut line)?;
    Ok(matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_yes_is_yes() {
        for (line, expected) in
            [("y\n", true), ("YES\n", true), ("\n", false), ("", false), ("n\n", false), ("yo\n", false)]
        {
            assert_eq!(yes(&mut line.as_bytes()).expect("from memory"), expected, "{line:?}");
        }
    }
}
