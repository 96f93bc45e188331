//! A batch in PostgreSQL's binary COPY format (documentation, "COPY", file formats), encoded into one buffer.

use bytes::{BufMut, Bytes, BytesMut};
use common::message::nul_escapes;
use common::sink::Record;

/// What this sink takes out of a record: the year that goes into its JSON (contract §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Year {
    /// Artists and labels have none.
    Absent,
    /// Masters and releases always have the key, if need be with null.
    Known(Option<i32>),
}

/// Signature, flags and length of the header extension.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// Field count that marks the end.
const TRAILER: i16 = -1;
/// Columns of the staging table.
const FIELDS: i16 = 3;
/// First byte of a binary jsonb value: its version.
const JSONB_VERSION: u8 = 1;

/// The rows `(data_id, hash, data)` of some records.
pub fn encode<'a>(records: impl Iterator<Item = &'a Record<Year>> + Clone) -> Bytes {
    let size: usize = records.clone().map(|r| r.id.len() + r.hash.len() + r.body.len() + 64).sum();
    let mut out = BytesMut::with_capacity(HEADER.len() + size + 2);
    out.put_slice(HEADER);
    for record in records {
        out.put_i16(FIELDS);
        text(&mut out, &record.id);
        text(&mut out, &record.hash);
        json(&mut out, record);
    }
    out.put_i16(TRAILER);
    out.freeze()
}

fn length(out: &mut BytesMut, length: usize) {
    // The server refuses fields beyond 1 GiB long before this saturates.
    out.put_i32(i32::try_from(length).unwrap_or(i32::MAX));
}

/// PostgreSQL's text holds no NUL: it is replaced (contract, appendix D).
pub fn storable(text: &str) -> std::borrow::Cow<'_, str> {
    if text.contains('\0') { text.replace('\0', "\u{fffd}").into() } else { text.into() }
}

fn text(out: &mut BytesMut, value: &str) {
    let value = storable(value);
    length(out, value.len());
    out.put_slice(value.as_bytes());
}

/// The message as jsonb. The bytes are those that came; jsonb keeps the last of several equal keys, which settles the
/// two `id`s and lets `year` simply be appended. `\u0000` becomes `\ufffd`, of the same length.
fn json(out: &mut BytesMut, record: &Record<Year>) {
    let body = &record.body;
    let year = match record.payload {
        Year::Absent => String::new(),
        Year::Known(Some(year)) => format!(",\"year\":{year}}}"),
        Year::Known(None) => ",\"year\":null}".to_owned(),
    };
    // With a year the closing brace of the body gives way to the appended text.
    let kept = match (year.is_empty(), body.iter().rposition(|b| *b == b'}')) {
        (false, Some(brace)) => &body[..brace],
        _ => &body[..],
    };
    length(out, 1 + kept.len() + year.len());
    out.put_u8(JSONB_VERSION);
    let start = out.len();
    out.put_slice(kept);
    for at in nul_escapes(kept) {
        out[start + at..start + at + 6].copy_from_slice(b"\\ufffd");
    }
    out.put_slice(year.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(body: &str, year: Year) -> String {
        let record =
            Record { id: "1".to_owned(), hash: "h\0".to_owned(), body: body.as_bytes().to_vec(), payload: year };
        let bytes = encode(std::iter::once(&record));
        assert!(bytes.starts_with(HEADER));
        assert!(bytes.ends_with(&[0xff, 0xff]));
        // header, field count, "1" with its length, hash of 4 bytes with its length, length of the json, version
        let json = &bytes[HEADER.len() + 2 + 5 + 8 + 4..bytes.len() - 2];
        let length = i32::from_be_bytes(bytes[HEADER.len() + 15..HEADER.len() + 19].try_into().expect("four bytes"));
        assert_eq!((json[0], json.len()), (1, length as usize));
        String::from_utf8(json[1..].to_vec()).expect("UTF-8")
    }

    #[test]
    fn bodies_travel_as_they_are() {
        assert_eq!(encoded(r#"{"id":"1","id":"1"}"#, Year::Absent), r#"{"id":"1","id":"1"}"#);
    }

    #[test]
    fn the_year_is_appended() {
        assert_eq!(encoded(r#"{"id":"1"}"#, Year::Known(Some(1999))), r#"{"id":"1","year":1999}"#);
        assert_eq!(encoded("{\"id\":\"1\"} \n", Year::Known(None)), r#"{"id":"1","year":null}"#);
    }

    #[test]
    fn nul_escapes_are_replaced_and_nothing_else() {
        assert_eq!(encoded(r#"{"a":"x\u0000y\\u0000","id":"1"}"#, Year::Absent), r#"{"a":"x\ufffdy\\u0000","id":"1"}"#);
    }
}
