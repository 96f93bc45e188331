//! Arbitrary bytes never make anything panic that reads what comes from outside, and what is read has the form that it must
//! have: bounded, seeded mutations of good inputs. Needs no services.
//!
//! `FUZZ_SECONDS=600 cargo test -p integration-tests --test fuzz` goes on for as long; `FUZZ_SEED=N` begins with case N of
//! each test, which is what a failure names.

#![allow(clippy::expect_used, reason = "a panic is what a failed case is here")]

use std::io::{Cursor, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use common::message::{Message, decode, items, nul_escapes};
use common::sink::Record;
use common::{DataType, encoding, year};
use extractor::generate;
use extractor::input::{Format, Next, Place, Records};
use extractor::message::{Encoder, Outcome};
use fastrand::Rng;
use graphinator::record;
use integration_tests::stage::by_type;
use serde_json::value::RawValue;
use tableinator::rows::{self, Year};
use xtask::sample;

/// Cases of a test unless `FUZZ_SECONDS` says how long it may take.
const CASES: u64 = 4000;
/// Bytes that an unpacked body may have here.
const LIMIT: usize = 50_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// Runs a check on mutations of the good inputs. A case is determined by its number alone.
fn fuzz(good: &[Vec<u8>], tokens: &[&[u8]], check: impl Fn(&[u8], &mut Rng)) {
    let first = number("FUZZ_SEED").unwrap_or(1);
    let until = number("FUZZ_SECONDS").map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut case = first;
    while until.map_or(case < first + CASES, |until| Instant::now() < until) {
        let mut random = Rng::with_seed(case);
        let input = mutated(good, tokens, &mut random);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(&input, &mut random))) {
            let reason = panic.downcast_ref::<String>().cloned();
            let reason = reason.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default();
            let shown = String::from_utf8_lossy(&input[..input.len().min(2000)]).into_owned();
            panic!("FUZZ_SEED={case} fails: {reason}\n{} bytes: {shown:?}", input.len());
        }
        case += 1;
    }
    println!("{} cases, the first with FUZZ_SEED={first}", case - first);
}

/// One of the good inputs, or noise, changed in some places.
fn mutated(good: &[Vec<u8>], tokens: &[&[u8]], random: &mut Rng) -> Vec<u8> {
    let mut bytes = if random.u8(..20) == 0 {
        (0..random.usize(..200)).map(|_| random.u8(..)).collect()
    } else {
        good[random.usize(..good.len())].clone()
    };
    for _ in 0..random.usize(..8) {
        let at = random.usize(..=bytes.len());
        let most = 1 << random.u8(..10);
        let end = (at + random.usize(..=most)).min(bytes.len());
        match random.u8(..8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.u8(..8),
            1 if at < bytes.len() => bytes[at] = random.u8(..),
            2 => drop(bytes.splice(at..at, tokens[random.usize(..tokens.len())].iter().copied())),
            3 => drop(bytes.splice(at..end, tokens[random.usize(..tokens.len())].iter().copied())),
            4 => drop(bytes.drain(at..end)),
            5 => {
                let copy = bytes[at..end].to_vec();
                let to = random.usize(..=bytes.len());
                drop(bytes.splice(to..to, copy));
            }
            6 => {
                let other = &good[random.usize(..good.len())];
                let from = random.usize(..=other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            7 if random.u8(..4) == 0 => bytes.truncate(at),
            _ => {}
        }
    }
    bytes
}

const JSON: &[&[u8]] = &[
    b"\"",
    b"\\",
    b"\\u0000",
    b"\\\\u0000",
    b"\\ud800",
    b"\\udc00",
    b"\\ud83d\\ude00",
    b"\\u",
    b"\\u00",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"null",
    b"true",
    b"1e999",
    b"-0",
    b"0",
    b"18446744073709551616",
    b"1.5",
    b"\xff",
    b"\xed\xa0\x80",
    b"\0",
    b"\xef\xbb\xbf",
    b"\"id\":\"7\",",
    b"\"id\":7,",
    b"\"id\":null,",
    b"\"year\":\"1999\",",
    b"\"released\":1999,",
    b"\"sha256\":null,",
    b"\"members\":[null,{\"id\":1},\"x\",[]],",
    b"\"extraartists\":[{\"id\":\"1\",\"name\":\"N\",\"role\":\"R\"}],",
    b"\"type\":\"extraction_complete\",",
    b"\"type\":\"file_complete\",",
    b"\"record_counts\":{\"artists\":1},",
    b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    b"{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":",
];

fn messages() -> Vec<Vec<u8>> {
    let s = sample::generate(&sample::Spec { seed: 7, records: 60 });
    let messages = integration_tests::oracle::Messages {
        artists: s.artists,
        labels: s.labels,
        masters: s.masters,
        releases: s.releases,
    };
    let mut all: Vec<Vec<u8>> = by_type(&messages).into_iter().flat_map(|(_, bodies)| bodies.clone()).collect();
    let counts = DataType::ALL.map(|t| (t, 3));
    all.push(sample::extraction_complete("20260101", "2026-01-01T00:00:00Z", counts));
    all.push(sample::file_complete(DataType::Artists, "20260101", 3));
    all
}

/// What both workers do with a body before any database sees it.
#[test]
fn bodies() {
    fuzz(&messages(), JSON, |body, random| {
        let data_type = DataType::ALL[random.usize(..4)];
        let data = match decode(body) {
            Ok(Message::Data(data)) => data,
            Ok(Message::Control(_)) => return,
            Err(reject) => {
                assert!(!reject.reason.is_empty());
                assert!(reject.to_string().len() < 1000, "a reject repeats the message: {reject}");
                return;
            }
        };
        assert!(!data.id.is_empty());
        for name in ["members", "year", "released", "genres", "id"] {
            year::parse(data.object.get(name));
            items(data.object.get(name));
        }
        record::extract(data_type, &data);
        let known = match data_type {
            DataType::Artists | DataType::Labels => Year::Absent,
            DataType::Masters => Year::Known(year::parse(data.object.get("year"))),
            DataType::Releases => Year::Known(year::parse(data.object.get("released"))),
        };
        let record = Record { id: data.id, hash: data.hash, body: body.to_vec(), payload: known };
        assert_row(&record, &rows::encode(std::iter::once(&record)));
    });
}

/// The encoded row is one of three fields that PostgreSQL can take: texts without NUL, and JSON without its escape.
fn assert_row(record: &Record<Year>, encoded: &[u8]) {
    let mut at = 19; // the header
    let mut take = |count: usize| -> &[u8] {
        at += count;
        &encoded[at - count..at]
    };
    assert_eq!(take(2), 3_i16.to_be_bytes(), "fields");
    let mut field = || {
        let length = i32::from_be_bytes(take(4).try_into().expect("four bytes"));
        take(usize::try_from(length).expect("no null")).to_vec()
    };
    let (id, hash, json) = (field(), field(), field());
    assert_eq!(take(2), (-1_i16).to_be_bytes(), "trailer");
    assert_eq!(at, encoded.len());
    for (text, from) in [(id, &record.id), (hash, &record.hash)] {
        let text = String::from_utf8(text).expect("UTF-8");
        assert_eq!(text, from.replace('\0', "\u{fffd}"));
    }
    assert_eq!(json[0], 1, "version of jsonb");
    let json = std::str::from_utf8(&json[1..]).expect("UTF-8");
    serde_json::from_str::<serde::de::IgnoredAny>(json).unwrap_or_else(|e| panic!("no JSON: {e}: {json}"));
    assert_eq!(nul_escapes(json.as_bytes()).next(), None, "{json}");
    assert!(json.trim_end().ends_with('}'), "{json}");
}

#[test]
fn years() {
    let good: Vec<Vec<u8>> = ["\"1999-03-00\"", "1999", "\" 2001 \"", "1999.5", "\"١٩٩٩\"", "1e3", "null", "[1999]"]
        .map(|text| text.as_bytes().to_vec())
        .to_vec();
    fuzz(&good, JSON, |text, _| {
        let raw = std::str::from_utf8(text).ok().and_then(|text| serde_json::from_str::<Box<RawValue>>(text).ok());
        if let Some(year) = year::parse(raw.as_deref()) {
            assert!((1860..3000).contains(&year), "{year}");
        }
    });
}

#[test]
fn packed_bodies() {
    let mut good = Vec::new();
    for (at, body) in messages().into_iter().enumerate() {
        good.push(if at % 2 == 0 { gzip(&body) } else { zstd::bulk::compress(&body, 3).expect("to memory") });
    }
    good.push(gzip(&vec![b' '; LIMIT * 20]));
    good.push(zstd::bulk::compress(&vec![b' '; LIMIT * 20], 3).expect("to memory"));
    let tokens: &[&[u8]] =
        &[b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x50\x2a\x4d\x18"];
    fuzz(&good, tokens, |body, random| {
        let encoding = [None, Some("gzip"), Some("zstd"), Some("x-gzip"), Some("UTF-8")][random.usize(..5)];
        if let Ok(Some(unpacked)) = encoding::unpack(body, encoding, LIMIT) {
            assert!(unpacked.len() <= LIMIT);
        }
    });
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).expect("to memory");
    out.finish().expect("to memory")
}

/// Gives some bytes at a time.
struct Trickle(Cursor<Vec<u8>>, usize);

impl Read for Trickle {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let step = self.1.min(buffer.len());
        self.0.read(&mut buffer[..step])
    }
}

/// Everything that a reader gives: messages, faults with their places, and how it ended.
fn read(bytes: &[u8], data_type: DataType, format: Option<Format>, step: usize) -> Vec<String> {
    // Whether a table's place is before or behind the second character of a line's end depends on what was read.
    let shown = |at: Place| if format == Some(Format::Csv) { String::new() } else { format!("{at:?} ") };
    let mut seen = Vec::new();
    let source = Box::new(Trickle(Cursor::new(bytes.to_vec()), step));
    let mut records = match Records::from_reader(source, data_type, format) {
        Ok(records) => records,
        Err(e) => return vec![format!("can't be opened: {e}")],
    };
    let mut encoder = Encoder::new(data_type, None);
    let mut before = 0;
    loop {
        match records.next(|record| encoder.encode(record)) {
            Ok(Next::Record(outcome, at)) => {
                seen.push(match &outcome {
                    Outcome::Message(body) => {
                        let text = String::from_utf8_lossy(body);
                        assert!(matches!(decode(body), Ok(Message::Data(_))), "no worker could read {text}");
                        format!("{}{text}", shown(at))
                    }
                    other => format!("{}{other:?}", shown(at)),
                });
            }
            // (What is said about a line may name either of two faults.)
            Ok(Next::Bad(bad)) => seen.push(format!("{}{} to {}", shown(bad.begin), bad.reason, shown(bad.end))),
            Ok(Next::End) => return seen,
            Err(e) => {
                seen.push(e.to_string());
                return seen;
            }
        }
        let after = records.place().offset;
        assert!(after > before, "it goes on without reading on: {after}");
        before = after;
    }
}

/// Reads all at once and piece by piece, and checks that this makes no difference.
fn read_both(bytes: &[u8], format: Option<Format>, random: &mut Rng) {
    let data_type = DataType::ALL[random.usize(..4)];
    let all = read(bytes, data_type, format, usize::MAX);
    let step = random.usize(1..40);
    let by_steps = read(bytes, data_type, format, step);
    let differs = (0..all.len().max(by_steps.len())).find(|&at| all.get(at) != by_steps.get(at));
    assert_eq!(differs.map(|at| (all.get(at), by_steps.get(at))), None, "with {step} bytes at a time");
}

const XML: &[&[u8]] = &[
    b"<",
    b">",
    b"/>",
    b"</",
    b"<artist>",
    b"</artist>",
    b"<release id=\"1\">",
    b"</release>",
    b"<!--",
    b"-->",
    b"<![CDATA[",
    b"]]>",
    b"<?",
    b"?>",
    b"&amp;",
    b"&#0;",
    b"&#x110000;",
    b"&#xd800;",
    b"&",
    b"&lt",
    b"\"",
    b"'",
    b"<!DOCTYPE a [<!ENTITY b \"c\">]>",
    b"\xff",
    b"\0",
    b"\xef\xbb\xbf",
    b"<id>1</id>",
    b"<a><a><a><a><a><a><a><a>",
    b"=",
    b"\n",
];

fn dump(data_type: DataType) -> Vec<u8> {
    let spec = generate::Spec { seed: 3, records: 30, month: 1, changed: 0.0, removed: 0.0 };
    let mut xml = Vec::new();
    generate::write(&spec, data_type, &mut xml).expect("to memory");
    xml
}

#[test]
fn dumps_in_xml() {
    let good = DataType::ALL.map(dump).to_vec();
    fuzz(&good, XML, |bytes, random| read_both(bytes, Some(Format::Xml), random));
}

#[test]
fn json_lines() {
    let good: Vec<Vec<u8>> = messages().chunks(9).map(|bodies| bodies.join(&b"\n"[..])).collect();
    fuzz(&good, JSON, |bytes, random| read_both(bytes, Some(Format::Jsonl), random));
}

#[test]
fn tables() {
    let good: Vec<Vec<u8>> = [
        "id,name,members\n1,\"A \"\"quoted\"\" name\",\"[{\"\"id\"\":\"\"2\"\"}]\"\n2,\"two\nlines\",\n3,plain,[]\n",
        "id;name\r\n1;x\r\n2;y\r\n",
        "id\tname\n1\tx\n",
        "name,id\n\"\",1\nnull,2\ntrue,3\n1.5,4\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec();
    let tokens: &[&[u8]] =
        &[b"\"", b"\"\"", b",", b";", b"\t", b"\n", b"\r\n", b"[", b"{", b"null", b"\xff", b"\0", b"id,"];
    fuzz(&good, tokens, |bytes, random| read_both(bytes, Some(Format::Csv), random));
}

/// Whatever it is: packed or not, of any format.
#[test]
fn files_of_any_kind() {
    let mut good = DataType::ALL.map(dump).to_vec();
    good.push(messages().join(&b"\n"[..]));
    good.extend(good.clone().iter().map(|bytes| gzip(bytes)));
    let packed = zstd::bulk::compress(&good[0], 3).expect("to memory");
    good.push(packed);
    fuzz(&good, XML, |bytes, random| {
        let data_type = DataType::ALL[random.usize(..4)];
        read(bytes, data_type, None, usize::MAX);
    });
}
