use std::io::Write;

use super::*;
use crate::generate;
use crate::input::{Next, Records};
use crate::jsonl;
use crate::testing::{long, real_files};
use crate::xml::XmlReader;

fn message(outcome: Outcome) -> String {
    match outcome {
        Outcome::Message(body) => String::from_utf8(body).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// The message of a record that is given as JSON.
fn of_json(data_type: DataType, json: &str) -> Outcome {
    let Node::Object(record) = jsonl::parse(json).unwrap() else { panic!("{json}") };
    Encoder::new(data_type, None).encode(record)
}

/// The messages of a file, none of it bad.
fn of_file(data_type: DataType, file: &[u8]) -> Vec<Outcome> {
    let mut encoder = Encoder::new(data_type, None);
    let mut reader = XmlReader::new(file, data_type, file.len());
    let mut all = Vec::new();
    loop {
        match reader.next(|record| encoder.encode(record)).unwrap() {
            Next::Record(outcome, _) => all.push(outcome),
            Next::Bad(bad) => panic!("{bad:?}"),
            Next::End => return all,
        }
    }
}

fn of_record(data_type: DataType, xml: impl AsRef<[u8]>) -> Outcome {
    let name = data_type.name();
    let file = [format!("<{name}>\n").as_bytes(), xml.as_ref(), format!("\n</{name}>").as_bytes()].concat();
    of_file(data_type, &file).remove(0)
}

/// What of a message follows its hash.
fn fields(data_type: DataType, xml: impl AsRef<[u8]>) -> String {
    let message = message(of_record(data_type, xml));
    let (head, hashed) = message.split_once(r#","sha256":""#).unwrap();
    assert!(head.starts_with(r#"{"type":"data","id":""#), "{message}");
    hashed[66..].to_owned()
}

#[test]
fn messages_are_byte_by_byte_those_of_the_contract() {
    for (data_type, xml, message) in [
        (
            DataType::Artists,
            "<artist><id>3</id><name>X</name><members><name>NoId</name></members><aliases><name id=\"0\"/></aliases></artist>",
            r#"{"type":"data","id":"3","sha256":"8eb5215802ee68e1b97c2b088cba3f405ad7a65b7083b903094d47678051efe3","aliases":[{"id":"0"}],"id":"3","members":[{"id":"NoId"}],"name":"X"}"#,
        ),
        (
            DataType::Masters,
            r#"<master id="7"><year>0</year><title>NoYear</title></master>"#,
            r#"{"type":"data","id":"7","sha256":"d476fcf776a5aaabccba34ab7e5be3617c85a140b945828cda9db92bf0e562d3","id":"7","title":"NoYear","year":"0"}"#,
        ),
        (
            DataType::Releases,
            r#"<release id="9"/>"#,
            r#"{"type":"data","id":"9","sha256":"9328b2187029e0b621913fa961c932d33c7b6c14f16cffe5abb7e91fb64f5a85","id":"9"}"#,
        ),
        (
            DataType::Labels,
            "<label><profile/><name>a\"b\\c/&#9;&#1;\u{7f}\u{2028}é😀</name><id>1</id></label>",
            "{\"type\":\"data\",\"id\":\"1\",\"sha256\":\"9333ab2d9e54d0384c1be2b0a04eb159dad6002cff362d8d021430c9aa46928a\",\"id\":\"1\",\
             \"name\":\"a\\\"b\\\\c/\\t\\u0001\u{7f}\u{2028}é😀\",\"profile\":null}",
        ),
    ] {
        assert_eq!(self::message(of_record(data_type, xml)), message);
        // A message is a record, too; with its hash or without.
        assert_eq!(self::message(of_json(data_type, message)), message);
        let hash = message.find(r#""sha256""#).unwrap()..message.find(r#""sha256""#).unwrap() + 76;
        assert_eq!(self::message(of_json(data_type, &message.replace(&message[hash], "\"sha256\":\"\","))), message);
    }
}

#[test]
fn a_record_without_a_usable_id_is_no_message() {
    for (data_type, xml, expected) in [
        (DataType::Artists, "<artist><name>x</name></artist>", Err("the record has no id")),
        (DataType::Artists, "<artist><id/></artist>", Err("the record's id is empty")),
        (DataType::Artists, "<artist><id> </id></artist>", Err("the record's id is empty")),
        (DataType::Artists, "<artist><id>1</id><id>2</id></artist>", Err("the record has 2 ids")),
        (DataType::Artists, "<artist><id x=\"1\">2</id></artist>", Err("the record's id is no text")),
        (DataType::Artists, "<artist id=\"5\"><id>2</id></artist>", Ok("5")),
        (DataType::Artists, "<artist><id>x</id></artist>", Ok("x")),
        (DataType::Releases, "<release id=\"\"/>", Err("the record's id is empty")),
        (DataType::Releases, "<release/>", Err("the record has no id")),
        (DataType::Releases, "<release><id>3</id></release>", Ok("3")),
        (DataType::Releases, "<release id=\"3\"><id/></release>", Ok("3")),
    ] {
        match (of_record(data_type, xml), expected) {
            (Outcome::Message(body), Ok(id)) => {
                let body = String::from_utf8(body).unwrap();
                assert_eq!(body.matches(&format!("\"id\":\"{id}\"")).count(), 2, "{body}");
                assert!(!body.contains("@id"), "{body}");
            }
            (Outcome::Unusable { reason: "missing_id", detail, excerpt }, Err(expected)) => {
                assert_eq!(detail, expected, "{xml}");
                assert!(excerpt.starts_with('{') && excerpt.ends_with('}'), "{excerpt}");
            }
            other => panic!("{xml}: {other:?}"),
        }
    }
    for (id, usable) in [("5", true), ("-5", false), ("5.0", false), ("true", false), ("{}", false), ("[\"5\"]", false)]
    {
        let outcome = of_json(DataType::Artists, &format!(r#"{{"id":{id}}}"#));
        assert_eq!(
            matches!(&outcome, Outcome::Message(body) if body.ends_with(br#","id":"5"}"#)),
            usable,
            "{outcome:?}"
        );
    }
}

#[test]
fn a_record_keeps_the_hash_that_it_brings() {
    let hash = "0f".repeat(32);
    let body = |hash: &str| message(of_json(DataType::Labels, &format!(r#"{{"id":"1","sha256":"{hash}"}}"#)));
    assert_eq!(body(&hash), format!(r#"{{"type":"data","id":"1","sha256":"{hash}","id":"1"}}"#));
    let computed = message(of_json(DataType::Labels, r#"{"id":"1"}"#));
    for no_hash in ["", "it", &hash.to_uppercase(), &hash[1..]] {
        assert_eq!(body(no_hash), computed, "{no_hash}");
    }
}

#[test]
fn a_record_is_no_control_message() {
    let data = r#"{"type":"data","id":"1"}"#;
    assert_eq!(of_json(DataType::Labels, data), of_json(DataType::Labels, r#"{"id":"1"}"#));
    let other = message(of_json(DataType::Labels, r#"{"type":"x","id":"1"}"#));
    assert!(other.starts_with(r#"{"type":"data","#) && other.ends_with(r#","type":"x"}"#), "{other}");
    for kind in ["file_complete", "extraction_complete"] {
        for outcome in [
            of_json(DataType::Artists, &format!(r#"{{"type":"{kind}","id":"1"}}"#)),
            of_record(DataType::Labels, format!("<label><id>1</id><type>{kind}</type></label>")),
            of_record(DataType::Releases, format!(r#"<release id="1" type="{kind}"/>"#)),
            of_record(DataType::Masters, format!(r#"<master id="1" type="{kind}"/>"#)),
        ] {
            assert!(matches!(outcome, Outcome::Unusable { reason: "reserved_type", .. }), "{outcome:?}");
        }
    }
}

#[test]
fn rules_come_before_the_normalised_form() {
    let rules = Rules::parse(
        r#"{"releases": {"drop_values": [{"field": "genres.genre", "matches": "^x$"}], "skip": [{"field": "@id", "contains": "2"}]}}"#,
    );
    let mut encoder = Encoder::new(DataType::Releases, Some(Arc::new(rules.unwrap())));
    let mut encode = |json: &str| {
        let Node::Object(record) = jsonl::parse(json).unwrap() else { panic!() };
        encoder.encode(record)
    };
    assert!(message(encode(r#"{"@id":"1","genres":{"genre":["x"]}}"#)).ends_with(r#","id":"1"}"#));
    assert_eq!(encode(r#"{"@id":"2"}"#), Outcome::Skipped);
    // A hash that came with the record holds for what nothing was taken from.
    let hash = "ab".repeat(32);
    let with_hash = |genre: &str| format!(r#"{{"id":"1","sha256":"{hash}","genres":{{"genre":["{genre}"]}}}}"#);
    assert!(message(encode(&with_hash("y"))).contains(&hash));
    assert!(!message(encode(&with_hash("x"))).contains(&hash));
}

#[test]
fn control_messages_have_exactly_the_fields_of_the_contract() {
    let now = DateTime::from_timestamp(1_767_323_045, 123_456_789).unwrap();
    assert_eq!(
        String::from_utf8(file_complete(DataType::Artists, 3, "discogs_20260101_artists.xml.gz", now)).unwrap(),
        r#"{"type":"file_complete","data_type":"artists","timestamp":"2026-01-02T03:04:05.123456789Z","total_processed":3,"file":"discogs_20260101_artists.xml.gz"}"#
    );
    let counts = vec![(DataType::Artists, 3), (DataType::Labels, 2), (DataType::Releases, 9)];
    let now = DateTime::from_timestamp(1_767_323_045, 0).unwrap();
    assert_eq!(
        String::from_utf8(extraction_complete("20260101", "2026-01-01T00:00:00Z", &counts, now)).unwrap(),
        r#"{"type":"extraction_complete","version":"20260101","timestamp":"2026-01-02T03:04:05.000000000Z","started_at":"2026-01-01T00:00:00Z","record_counts":{"artists":3,"labels":2,"releases":9}}"#
    );
}

/// The oddities of whole dumps that `STATS.md` documents.
#[test]
fn documented_anomalies_become_these_messages() {
    let title = long(3000);
    let digits = "1234567890".repeat(7)[..64].to_owned();
    for (data_type, xml, expected) in [
        (
            DataType::Releases,
            "<release id=\"1\"><notes>a\u{7}b\0c</notes><title x=\"\0\"/></release>".to_owned(),
            r#""id":"1","notes":"a\u0007b\u0000c","title":{"@x":"\u0000"}}"#.to_owned(),
        ),
        (DataType::Labels, "<label><id>212</id></label>".to_owned(), r#""id":"212"}"#.to_owned()),
        (DataType::Labels, "<label><id>212</id><name/></label>".to_owned(), r#""id":"212","name":null}"#.to_owned()),
        (DataType::Artists, "<artist><id>1</id><name>\u{a0}</name></artist>".to_owned(), r#""id":"1","name":null}"#.to_owned()),
        (
            DataType::Releases,
            "<release id=\"1\"><artists><artist><name>A</name></artist><artist/><artist><id>0</id></artist></artists>\
             <extraartists><artist><name>B</name><role>Mixed By</role></artist></extraartists>\
             <companies><company><id>118760</id><name>C</name></company><company><name>D</name></company></companies></release>"
                .to_owned(),
            r#""artists":[{"name":"A"},null,{"id":"0"}],"companies":{"company":[{"id":"118760","name":"C"},{"name":"D"}]},"extraartists":[{"name":"B","role":"Mixed By"}],"id":"1"}"#
                .to_owned(),
        ),
        (
            DataType::Releases,
            format!("<release id=\"6662697\"><formats><format name=\"CD\" qty=\"{digits}\" text=\"\"/></formats></release>"),
            format!(r#""formats":[{{"name":"CD","qty":"{digits}","text":""}}],"id":"6662697"}}"#),
        ),
        (
            DataType::Releases,
            format!("<release id=\"1075344\"><tracklist><track><position/><title>{title}</title></track></tracklist></release>"),
            format!(r#""id":"1075344","tracklist":{{"track":{{"position":null,"title":"{title}"}}}}}}"#),
        ),
        (
            DataType::Releases,
            "<release id=\"6155\"><labels><label name=\"L\" catno=\"1\" id=\"2\"/><label name=\"L\" catno=\"1\" id=\"2\"/></labels></release>"
                .to_owned(),
            r#""id":"6155","labels":[{"catno":"1","id":"2","name":"L"},{"catno":"1","id":"2","name":"L"}]}"#.to_owned(),
        ),
        (
            DataType::Masters,
            "<master id=\"1\"><genres/><styles><style/></styles><videos/><title/></master>".to_owned(),
            r#""id":"1","title":null,"videos":null}"#.to_owned(),
        ),
        (
            DataType::Labels,
            "<label><id>193974</id><sublabels><label/><label id=\"5\">S</label><label>T</label></sublabels><parentLabel/></label>".to_owned(),
            r#""id":"193974","parentLabel":null,"sublabels":[null,{"id":"5","name":"S"},{"id":"T"}]}"#.to_owned(),
        ),
    ] {
        assert_eq!(fields(data_type, &xml), expected, "{xml}");
    }
}

#[test]
fn real_dumps_become_the_golden_messages() {
    for file in real_files("real_dumps_become_the_golden_messages") {
        let name = format!("{} of {}", file.data_type, file.month);
        let golden: Vec<&[u8]> = file.messages.strip_suffix(b"\n").unwrap().split(|b| *b == b'\n').collect();
        let all = of_file(file.data_type, &file.xml);
        assert_eq!(all.len(), golden.len(), "{name}");
        for (outcome, golden) in all.into_iter().zip(golden) {
            let golden = std::str::from_utf8(golden).unwrap();
            assert_eq!(message(outcome), golden, "{name}");
            // The messages are a dump as well; the hash is that of what they hold.
            let (head, tail) = golden.split_at(golden.find(r#""sha256""#).unwrap());
            assert_eq!(message(of_json(file.data_type, &[head, &tail[76..]].concat())), golden, "{name}");
        }
    }
}

#[test]
fn a_record_whose_json_is_too_large_is_no_message() {
    let controls = "\u{1}".repeat(MAX_RECORD);
    for (data_type, length, good) in [
        (DataType::Labels, (MAX_RECORD - r#"{"a":"","id":"1"}"#.len()) / 6, true),
        (DataType::Labels, MAX_RECORD / 6, false),
        (DataType::Labels, MAX_RECORD - 100, false),
    ] {
        let xml = format!("<label><id>1</id><a>{}</a></label>", &controls[..length]);
        match of_record(data_type, xml) {
            Outcome::Message(body) => assert!(good && body.len() > MAX_RECORD - 100, "{length}"),
            Outcome::Unusable { reason: "record_too_large", detail, excerpt } => {
                assert_eq!(detail, "it has more than 2097152 bytes as JSON");
                assert!(!good && excerpt.starts_with(r#"{"a":"\u0001\u0001"#) && excerpt.len() == Bad::EXCERPT);
            }
            other => panic!("{other:?}"),
        }
    }
    // The encoder is as good as new.
    let mut encoder = Encoder::new(DataType::Labels, None);
    let mut record = Object::default();
    record.insert("id", Node::Text(controls.into()));
    assert!(matches!(encoder.encode(record), Outcome::Unusable { reason: "record_too_large", .. }));
    assert!(encoder.json.capacity() <= 2 * MAX_RECORD, "{}", encoder.json.capacity());
    let mut record = Object::default();
    record.insert("id", Node::Text("1".into()));
    assert!(message(encoder.encode(record)).ends_with(r#","id":"1"}"#));
}

#[test]
fn every_generated_record_becomes_a_message() {
    let mut total = 0;
    for month in [1, 2] {
        let spec = generate::Spec { seed: 5, records: 3000, month, changed: 0.2, removed: 0.1 };
        for data_type in DataType::ALL {
            let mut file = Vec::new();
            let written = generate::write(&spec, data_type, &mut file).unwrap();
            let all = of_file(data_type, &file);
            assert_eq!(all.len() as u64, written.records);
            assert!(all.iter().all(|outcome| matches!(outcome, Outcome::Message(_))));
            total += all.len();
            // Packed in several parts, as some tools do.
            let mut packed = Vec::new();
            for part in file.chunks(file.len() / 3 + 1) {
                let mut gzip = flate2::write::GzEncoder::new(&mut packed, flate2::Compression::fast());
                gzip.write_all(part).unwrap();
            }
            let mut records = Records::from_reader(Box::new(std::io::Cursor::new(packed)), data_type, None).unwrap();
            let mut encoder = Encoder::new(data_type, None);
            for outcome in all {
                assert!(matches!(records.next(|r| encoder.encode(r)), Ok(Next::Record(same, _)) if same == outcome));
            }
            assert!(matches!(records.next(|_| ()), Ok(Next::End)));
        }
    }
    assert!(total > 5500);
}
