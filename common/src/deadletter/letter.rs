//! What a dead letter says about itself: in our headers, or, if the broker dead-lettered it, in the broker's.

use std::time::Duration;

use chrono::{DateTime, Utc};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

use crate::encoding;
use crate::message::{Message, decode};
use crate::{DataType, dead_letter};

/// The headers that we add to a dead letter.
const OURS: [&str; 8] = [
    "dead-letter-reason",
    "dead-letter-code",
    "dead-letter-detail",
    "dead-letter-id",
    "dead-letter-queue",
    "dead-letter-worker",
    "dead-letter-received",
    "dead-letter-time",
];
/// The headers that the broker adds: to a dead letter, and to what a quorum queue delivers again.
const BROKERS: [&str; 9] = [
    "x-death",
    "x-first-death-reason",
    "x-first-death-queue",
    "x-first-death-exchange",
    "x-last-death-reason",
    "x-last-death-queue",
    "x-last-death-exchange",
    "x-delivery-count",
    "x-acquired-count",
];

/// A dead letter without its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// Which of the worker's four queues it lies in.
    pub data_type: DataType,
    /// Why it was dead-lettered; `unknown` if nothing says so.
    pub reason: String,
    /// The database's code, or the reason again.
    pub code: String,
    /// The record's id: from the header, or else from the body.
    pub id: Option<String>,
    /// The queue that it came from; empty if nothing says so.
    pub queue: String,
    /// When it was dead-lettered.
    pub at: Option<DateTime<Utc>>,
}

impl Letter {
    /// Reads a message from a type's dead-letter queue. `max_body` bounds the bytes of an unpacked body.
    pub fn read(data_type: DataType, properties: &BasicProperties, body: &[u8], max_body: usize) -> Letter {
        let none = FieldTable::default();
        let headers = properties.headers().as_ref().unwrap_or(&none);
        let text = |name: &str| headers.inner().get(name).and_then(text);
        let death = headers.inner().get("x-death").and_then(latest);
        let in_death = |name: &str| death.and_then(|d| d.inner().get(name));
        let ours = text("dead-letter-time").and_then(|t| DateTime::parse_from_rfc3339(&t).ok()).map(|t| t.to_utc());
        let brokers = in_death("time").and_then(time);
        let id = text("dead-letter-id").or_else(|| id(properties, body, max_body));
        // A message may have been dead-lettered by us and by the broker, one after the other: the later one counts. The
        // broker's time has whole seconds only.
        let reason = text("dead-letter-reason").filter(|_| brokers.is_none_or(|b| ours.is_some_and(|o| o >= b)));
        if let Some(reason) = reason {
            let code = text("dead-letter-code").unwrap_or_else(|| reason.clone());
            return Letter {
                data_type,
                reason,
                code,
                id,
                queue: text("dead-letter-queue").unwrap_or_default(),
                at: ours,
            };
        }
        let reason = in_death("reason").and_then(self::text).or_else(|| text("x-first-death-reason"));
        let reason = reason.unwrap_or_else(|| "unknown".to_owned());
        let queue = in_death("queue").and_then(self::text).or_else(|| text("x-first-death-queue")).unwrap_or_default();
        Letter { data_type, code: reason.clone(), reason, id, queue, at: brokers.or(ours) }
    }

    /// How long ago it was dead-lettered, if it says so; zero if its clock is ahead of ours.
    pub fn age(&self, now: DateTime<Utc>) -> Option<Duration> {
        self.at.map(|at| (now - at).to_std().unwrap_or_default())
    }
}

/// Other queues that the broker would bring it to.
const ROUTES: [&str; 2] = ["CC", "BCC"];

/// The properties of a message that is to be replayed: as they were before it was dead-lettered, but that it goes to its own queue only.
pub fn restored(properties: &BasicProperties) -> BasicProperties {
    let added = [&OURS[..], &BROKERS, &ROUTES].concat();
    let mut headers = FieldTable::default();
    for (name, value) in properties.headers().as_ref().map(FieldTable::inner).into_iter().flatten() {
        if !added.contains(&name.as_str()) {
            headers.insert(name.clone(), value.clone());
        }
    }
    dead_letter::carried_over(properties, headers)
}

/// A header's text.
pub fn text(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        AMQPValue::ShortString(text) => Some(text.as_str().to_owned()),
        _ => None,
    }
}

/// A header's time.
pub fn time(value: &AMQPValue) -> Option<DateTime<Utc>> {
    match value {
        AMQPValue::Timestamp(seconds) => DateTime::from_timestamp(i64::try_from(*seconds).ok()?, 0),
        _ => None,
    }
}

/// The newest entry of `x-death`, which the broker keeps in front.
fn latest(deaths: &AMQPValue) -> Option<&FieldTable> {
    match deaths {
        AMQPValue::FieldArray(deaths) => deaths.as_slice().first().and_then(|death| match death {
            AMQPValue::FieldTable(death) => Some(death),
            _ => None,
        }),
        _ => None,
    }
}

/// The id in the body, for a message that the broker dead-lettered.
fn id(properties: &BasicProperties, body: &[u8], max_body: usize) -> Option<String> {
    let encoding = properties.content_encoding().as_ref().map(|e| e.as_str());
    let unpacked = encoding::unpack(body, encoding, max_body).ok()?;
    match decode(unpacked.as_deref().unwrap_or(body)) {
        Ok(Message::Data(data)) => Some(data.id),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn long(text: &str) -> AMQPValue {
        AMQPValue::LongString(text.into())
    }

    fn properties(headers: &[(&str, AMQPValue)]) -> BasicProperties {
        let mut table = FieldTable::default();
        for (name, value) in headers {
            table.insert((*name).into(), value.clone());
        }
        BasicProperties::default().with_headers(table)
    }

    fn death(seconds: u64) -> (&'static str, AMQPValue) {
        let mut entry = FieldTable::default();
        entry.insert("reason".into(), long("delivery_limit"));
        entry.insert("queue".into(), long("main"));
        entry.insert("time".into(), AMQPValue::Timestamp(seconds));
        ("x-death", AMQPValue::FieldArray(vec![AMQPValue::FieldTable(entry)].into()))
    }

    fn ours(time: &str) -> Vec<(&'static str, AMQPValue)> {
        OURS.iter().map(|name| (*name, long(if *name == "dead-letter-time" { time } else { name }))).collect()
    }

    fn read(headers: &[(&str, AMQPValue)], body: &[u8]) -> Letter {
        Letter::read(DataType::Labels, &properties(headers), body, 1000)
    }

    #[test]
    fn our_headers_say_all() {
        let letter = read(&ours("1970-01-01T00:01:40.500Z"), b"nonsense");
        assert_eq!((letter.reason.as_str(), letter.code.as_str()), ("dead-letter-reason", "dead-letter-code"));
        assert_eq!((letter.id.as_deref(), letter.queue.as_str()), (Some("dead-letter-id"), "dead-letter-queue"));
        assert_eq!(letter.age(DateTime::from_timestamp(110, 0).expect("time")), Some(Duration::from_millis(9500)));
        assert_eq!(letter.age(DateTime::from_timestamp(0, 0).expect("time")), Some(Duration::ZERO));
    }

    #[test]
    fn the_broker_s_headers_stand_in_for_ours() {
        let letter = read(&[death(100)], br#"{"id":"1","id":"2"}"#);
        assert_eq!((letter.reason.as_str(), letter.code.as_str()), ("delivery_limit", "delivery_limit"));
        assert_eq!((letter.id.as_deref(), letter.queue.as_str()), (Some("2"), "main"));
        assert_eq!(letter.at.map(|at| at.timestamp()), Some(100));
        let first = [("x-first-death-reason", long("rejected"))];
        assert_eq!(read(&first, b"").reason, "rejected");
        assert_eq!((read(&[], b"").reason.as_str(), read(&[], b"").at), ("unknown", None));
    }

    #[test]
    fn of_two_deaths_the_later_one_counts() {
        for (brokers, reason) in [(99, "dead-letter-reason"), (100, "dead-letter-reason"), (101, "delivery_limit")] {
            let headers = [ours("1970-01-01T00:01:40.500Z"), vec![death(brokers)]].concat();
            assert_eq!(read(&headers, b"").reason, reason, "{brokers}");
        }
    }

    #[test]
    fn odd_headers_are_no_reason_to_fail() {
        for odd in
            [AMQPValue::Void, AMQPValue::FieldArray(vec![AMQPValue::Void].into()), AMQPValue::Timestamp(u64::MAX)]
        {
            let headers = [("x-death", odd.clone()), ("dead-letter-reason", odd.clone()), ("dead-letter-time", odd)];
            assert_eq!(read(&headers, b"").reason, "unknown");
        }
    }

    #[test]
    fn what_death_added_is_taken_away_and_the_rest_kept() {
        let mut headers = [ours("1970-01-01T00:01:40Z"), vec![death(1)]].concat();
        headers.extend(BROKERS.map(|name| (name, long("x"))));
        headers.extend(ROUTES.map(|name| (name, long("elsewhere"))));
        let dead = properties(&headers).with_content_type("application/json".into()).with_user_id("other".into());
        let alive = restored(&dead);
        assert_eq!((alive.headers(), alive.user_id()), (&None, &None));
        assert_eq!(alive.content_type().as_ref().map(|t| t.as_str()), Some("application/json"));
        headers.extend([("dead-letter-office", long("theirs")), ("n", AMQPValue::LongInt(1))]);
        let alive = restored(&properties(&headers));
        let kept: Vec<_> = alive.headers().iter().flat_map(|h| h.inner().keys()).map(|k| k.as_str()).collect();
        assert_eq!(kept, ["dead-letter-office", "n"]);
    }
}
