//! `show`: all of a message.

use std::io::Write;

use chrono::Utc;
use lapin::BasicProperties;
use lapin::types::FieldTable;

use super::args::ShowArgs;
use super::list::age;
use super::text::{body, header, printable};
use super::{Error, Queues};
use crate::encoding;

/// Prints the first `limit` matching messages.
///
/// # Errors
/// [`Error`].
pub async fn run(queues: &Queues, args: &ShowArgs, out: &mut impl Write) -> Result<(), Error> {
    let now = Utc::now();
    let mut shown = 0;
    for data_type in args.filter.types() {
        let Some(mut walk) = queues.walk(data_type).await? else { continue };
        while shown < args.limit
            && let Some(message) = walk.next().await?
        {
            let letter = queues.read(data_type, &message);
            if args.filter.matches(&letter, now) {
                shown += 1;
                let (reason, id) = (printable(&letter.reason), printable(letter.id.as_deref().unwrap_or("-")));
                writeln!(out, "=== {data_type}, {reason}, id {id}, age {}", age(&letter, now))?;
                properties(&message.properties, out)?;
                content(&message.properties, &message.data, queues.max_body, out)?;
            }
        }
        walk.close().await?;
    }
    if shown == 0 {
        writeln!(out, "no dead letter matches")?;
    }
    Ok(())
}

/// Properties that are set, then headers.
fn properties(p: &BasicProperties, out: &mut impl Write) -> Result<(), Error> {
    let short = |text: &Option<lapin::types::ShortString>| text.as_ref().map(|text| text.as_str().to_owned());
    let all = [
        ("content_type", short(p.content_type())),
        ("content_encoding", short(p.content_encoding())),
        ("delivery_mode", p.delivery_mode().map(|v| v.to_string())),
        ("priority", p.priority().map(|v| v.to_string())),
        ("correlation_id", short(p.correlation_id())),
        ("reply_to", short(p.reply_to())),
        ("expiration", short(p.expiration())),
        ("message_id", short(p.message_id())),
        ("timestamp", p.timestamp().map(|v| v.to_string())),
        ("type", short(p.kind())),
        ("user_id", short(p.user_id())),
        ("app_id", short(p.app_id())),
        ("cluster_id", short(p.cluster_id())),
    ];
    for (name, value) in all {
        if let Some(value) = value {
            writeln!(out, "{name}: {}", printable(&value))?;
        }
    }
    for (name, value) in p.headers().as_ref().map(FieldTable::inner).into_iter().flatten() {
        writeln!(out, "header {}: {}", printable(name.as_str()), header(value))?;
    }
    Ok(())
}

fn content(p: &BasicProperties, received: &[u8], max_body: usize, out: &mut impl Write) -> Result<(), Error> {
    let encoding = p.content_encoding().as_ref().map(|e| e.as_str());
    match encoding::unpack(received, encoding, max_body) {
        Ok(None) => {
            writeln!(out, "body, {} bytes:", received.len())?;
            body(out, received, max_body)?;
        }
        Ok(Some(unpacked)) => {
            writeln!(out, "body, {} bytes, unpacked {}:", received.len(), unpacked.len())?;
            body(out, &unpacked, max_body)?;
        }
        Err(reject) => {
            writeln!(out, "body, {} bytes, as received ({}):", received.len(), printable(&reject.to_string()))?;
            body(out, received, max_body)?;
        }
    }
    Ok(())
}
