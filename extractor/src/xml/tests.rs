use super::*;
use crate::node::MAX_DEPTH;
use crate::testing::{Trickle, json, long, real_files};

/// What a reader gives, with the place behind it.
#[derive(Clone, Debug, PartialEq)]
enum Seen {
    Record { json: String, begin: Place, after: Place },
    Bad { bad: Bad, after: Place },
}

impl Seen {
    fn after(&self) -> Place {
        match self {
            Seen::Record { after, .. } | Seen::Bad { after, .. } => *after,
        }
    }
}

type All = (Vec<Seen>, Result<(), String>);

/// Large enough for everything, unless a test is about this.
const MAX: usize = 4 << 20;

fn read_from<R: Read>(reader: &mut XmlReader<R>) -> All {
    let mut seen = Vec::new();
    loop {
        match reader.next(json) {
            Ok(Next::Record(json, begin)) => seen.push(Seen::Record { json, begin, after: reader.place() }),
            Ok(Next::Bad(bad)) => seen.push(Seen::Bad { bad, after: reader.place() }),
            Ok(Next::End) => return (seen, Ok(())),
            Err(e) => return (seen, Err(e.to_string())),
        }
    }
}

fn read(data_type: DataType, bytes: &[u8], step: usize, max: usize) -> All {
    read_from(&mut XmlReader::new(Trickle { bytes, step, fails: false }, data_type, max))
}

/// Reads a file and checks what holds for every file: how its bytes come makes no difference, places are right, and from
/// each place the rest comes. `resumed` is how many places are tried.
fn check_all(data_type: DataType, bytes: &[u8], max: usize, resumed: usize) -> All {
    let all = read(data_type, bytes, usize::MAX, max);
    for step in [1, 7] {
        assert_eq!(read(data_type, bytes, step, max), all, "with reads of {step} bytes");
    }
    let line = |offset: u64| 1 + bytes[..offset as usize].iter().filter(|b| **b == b'\n').count() as u64;
    let open = open(data_type);
    let mut before = 0;
    let every = (all.0.len() / resumed).max(1);
    for (i, seen) in all.0.iter().enumerate() {
        let (begin, after) = match seen {
            Seen::Record { begin, after, .. } => {
                assert!(bytes[begin.offset as usize..].starts_with(open.as_bytes()), "{seen:?}");
                assert!(bytes[..after.offset as usize].ends_with(b">"), "{seen:?}");
                (begin, after)
            }
            Seen::Bad { bad, after } => {
                assert_eq!(bad.end, *after);
                let (begin, end) = (bad.begin.offset as usize, bad.end.offset as usize);
                let excerpts = [Bad::excerpt(&bytes[begin..end]), Bad::excerpt(&bytes[begin..])];
                assert!(excerpts.contains(&bad.excerpt), "{seen:?}");
                (&bad.begin, after)
            }
        };
        assert!(before <= begin.offset && begin.offset < after.offset, "{seen:?}");
        before = after.offset;
        if i % every == 0 {
            assert_eq!((begin.line, after.line), (line(begin.offset), line(after.offset)), "{seen:?}");
            let mut reader = XmlReader::new(Trickle { bytes, step: 1000, fails: false }, data_type, max);
            reader.resume(*after).unwrap();
            let rest = read_from(&mut reader);
            assert_eq!(rest, (all.0[i + 1..].to_vec(), all.1.clone()), "resumed behind {seen:?}");
        }
    }
    all
}

fn check(data_type: DataType, text: impl AsRef<[u8]>) -> All {
    check_all(data_type, text.as_ref(), MAX, usize::MAX)
}

/// JSON of records, `Bad`'s reason and line of others.
fn short(seen: &[Seen]) -> Vec<String> {
    let short = |seen: &Seen| match seen {
        Seen::Record { json, .. } => json.clone(),
        Seen::Bad { bad, .. } => format!("{} in line {}", bad.reason, bad.begin.line),
    };
    seen.iter().map(short).collect()
}

/// What comes of a whole file.
fn whole(data_type: DataType, text: impl AsRef<[u8]>) -> Vec<String> {
    let (seen, end) = check(data_type, text);
    assert_eq!(end, Ok(()), "{seen:?}");
    short(&seen)
}

/// A record's JSON.
fn record(inner: impl AsRef<[u8]>) -> String {
    let text = [b"<artists>\n<artist>", inner.as_ref(), b"</artist>\n</artists>\n"].concat();
    let mut all = whole(DataType::Artists, text);
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

#[test]
fn elements_become_values_as_the_contract_says() {
    for (xml, json) in [
        ("<id>1</id>", r#"{"id":"1"}"#),
        ("<b/><a></a><c> \n\t</c><d>\u{a0}</d>", r#"{"a":null,"b":null,"c":null,"d":null}"#),
        ("<a> x \n</a>", r#"{"a":" x \n"}"#),
        ("<a >x</a >", r#"{"a":"x"}"#),
        ("<a>x\r\ny\u{2028}\u{1f600}</a>", "{\"a\":\"x\\r\\ny\u{2028}\u{1f600}\"}"),
        (r#"<a x="1" y='"' z=""/>"#, r#"{"a":{"@x":"1","@y":"\"","@z":""}}"#),
        (r#"<a x="1">t</a>"#, r##"{"a":{"#text":"t","@x":"1"}}"##),
        (r#"<a x="1"> </a>"#, r#"{"a":{"@x":"1"}}"#),
        ("<a> t <b>u</b>v </a>", r##"{"a":{"#text":" t v ","b":"u"}}"##),
        ("<a>\n<b>u</b>\n</a>", r#"{"a":{"b":"u"}}"#),
        ("<a>1</a><a/><a>3</a>", r#"{"a":["1",null,"3"]}"#),
        ("<a/><a/>", r#"{"a":[null,null]}"#),
        ("<l><a/></l>", r#"{"l":{"a":null}}"#),
        (r#"<a>1</a><b/><a x="2"/>"#, r#"{"a":["1",{"@x":"2"}],"b":null}"#),
        ("<a>&amp;&lt;&gt;&quot;&apos;&#65;&#x42;&#13;</a>", r#"{"a":"&<>\"'AB\r"}"#),
        ("<a>&amp;amp;</a>", r#"{"a":"&amp;"}"#),
        ("<a>x &foo; &nbsp;y</a>", r#"{"a":"x &foo; &nbsp;y"}"#),
        (r#"<a b="&amp;&#9;&foo;&quot;&#0;"/>"#, "{\"a\":{\"@b\":\"&\\t&foo;\\\"\u{fffd}\"}}"),
        (
            "<a>&#0;&#xD800;&#x110000;&#;&#x;&#-1;&#99999999999;</a>",
            "{\"a\":\"\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}\"}",
        ),
        (
            "<a>x\0\u{7}\u{1f}\u{7f}</a><b c=\"\0\u{7}\"/>",
            "{\"a\":\"x\\u0000\\u0007\\u001f\u{7f}\",\"b\":{\"@c\":\"\\u0000\\u0007\"}}",
        ),
        ("<a><![CDATA[<x> & ]] &amp;]]>y</a>", r#"{"a":"<x> & ]] &amp;y"}"#),
        ("<a>x<!-- <b> & -- -->y<?php > ?>z</a>", r#"{"a":"xyz"}"#),
    ] {
        assert_eq!(record(xml), json, "{xml}");
    }
}

#[test]
fn undecodable_bytes_are_replaced() {
    assert_eq!(
        record(b"<a x=\"\xff\">\xe2\x82</a><b>caf\xe9 \xc3\xa9</b>"),
        "{\"a\":{\"#text\":\"\u{fffd}\",\"@x\":\"\u{fffd}\"},\"b\":\"caf\u{fffd} \u{e9}\"}"
    );
    // The culprit's place is not disturbed by the replacements, nor are its neighbours'.
    let text = b"<artists>\n<artist>\xff<id>1</id></artist>\n\xff\xff\n<artist>\xff<id>2</artist>\n<artist>\xff<id>3</id></artist>\xff\n</artists>";
    let text = text.as_slice();
    assert_eq!(
        whole(DataType::Artists, text),
        [
            "{\"#text\":\"\u{fffd}\",\"id\":\"1\"}",
            "unexpected_content in line 3",
            "malformed_xml in line 4",
            "{\"#text\":\"\u{fffd}\",\"id\":\"3\"}",
            "unexpected_content in line 5"
        ]
    );
}

#[test]
fn an_id_attribute_drops_the_id_element() {
    let text = r#"<releases><release id="1" status="x"><id>2</id><id>3</id><a/></release><release><id>4</id></release></releases>"#;
    assert_eq!(whole(DataType::Releases, text), [r#"{"@id":"1","@status":"x","a":null}"#, r#"{"id":"4"}"#]);
}

#[test]
fn a_record_may_be_empty() {
    let text = "<artists><artist/><artist></artist><artist>text</artist><artist id=\"1\"/></artists>";
    assert_eq!(whole(DataType::Artists, text), ["{}", "{}", "{}", r#"{"@id":"1"}"#]);
}

/// Every element on a line of its own, indented by depth.
fn pretty(records: &[String], root: &str, indent: &str, newline: &str) -> String {
    let mut out = format!("<{root}>{newline}");
    for record in records {
        let mut depth = 1;
        for line in record.replace("><", ">\n<").lines() {
            depth -= usize::from(line.starts_with("</"));
            out.push_str(&indent.repeat(depth));
            out.push_str(line);
            out.push_str(newline);
            depth += usize::from(
                line.starts_with('<') && !line.contains("</") && !line.ends_with("/>") && !line.contains("<!"),
            );
        }
    }
    out + &format!("</{root}>{newline}")
}

/// The same records, laid out in several ways.
fn layouts(records: &[String], root: &str) -> Vec<(&'static str, String)> {
    let join = |begin: &str, between: &str, end: &str| format!("{begin}{}{end}", records.join(between));
    let (open, close) = (format!("<{root}>"), format!("</{root}>"));
    let head = "\u{feff}<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<!DOCTYPE x SYSTEM \"x.dtd\">\n<!-- > -->\n";
    vec![
        ("a line each", join(&format!("{open}\n"), "\n", &format!("\n{close}\n"))),
        ("one line", join(&open, "", &close)),
        ("CR LF", join(&format!("{open}\r\n"), "\r\n", &format!("\r\n{close}\r\n"))),
        ("the first in the root's line", join(&open, "\n", &format!("\n{close}"))),
        ("blank lines", join(&format!("{open}\n\n\n"), "\n\n", &format!("\n{close}\n"))),
        ("a blank line first", join(&format!("{open}\n\n"), "\n", &format!("\n{close}\n"))),
        (
            "two in a line",
            format!("{open}\n{}\n{close}", records.chunks(2).map(|two| two.concat()).collect::<Vec<_>>().join("\n")),
        ),
        ("blanks between", join(&format!("{open}  "), "  ", &close)),
        (
            "head and comments",
            join(&format!("{head}{open}\n"), "\n<!-- x > -->\n<?pi?>", &format!("\n{close}\n<!-- end -->")),
        ),
        ("root with attributes", join(&format!("<{root} a=\"b\">\n"), "\n", &format!("\n{close}\n"))),
        ("indented", pretty(records, root, "  ", "\n")),
        ("indented with tabs", pretty(records, root, "\t", "\r\n")),
        ("a line for each tag", pretty(records, root, "", "\n")),
    ]
}

/// A record that has what could be taken for something else.
fn good(data_type: DataType, id: u32) -> String {
    let odd = r#"<!-- " --><x b="" c=" d=" e=">"></x><y>y<![CDATA[>]]> </y>"#;
    match data_type {
        DataType::Artists => format!("<artist><id>{id}</id>{odd}</artist>"),
        DataType::Labels => format!(
            "<label><id>{id}</id><sublabels><label id=\"7\">A</label><label/><label>B</label><label></label></sublabels>{odd}</label>"
        ),
        DataType::Masters => {
            format!("<master id=\"{id}\"><artists><artist><id>1</id></artist></artists>{odd}</master>")
        }
        DataType::Releases => format!(
            "<release id=\"{id}\"><artists><artist><id>1</id></artist></artists><labels><label id=\"1\"/></labels>\
             <released>1999</released>{odd}</release>"
        ),
    }
}

fn good_json(data_type: DataType, id: u32) -> String {
    let odd = r#""x":{"@b":"","@c":" d=","@e":">"},"y":"y> ""#;
    match data_type {
        DataType::Artists => format!(r#"{{"id":"{id}",{odd}}}"#),
        DataType::Labels => {
            format!(r##"{{"id":"{id}","sublabels":{{"label":[{{"#text":"A","@id":"7"}},null,"B",null]}},{odd}}}"##)
        }
        DataType::Masters => format!(r#"{{"@id":"{id}","artists":{{"artist":{{"id":"1"}}}},{odd}}}"#),
        DataType::Releases => format!(
            r#"{{"@id":"{id}","artists":{{"artist":{{"id":"1"}}}},"labels":{{"label":{{"@id":"1"}}}},"released":"1999",{odd}}}"#
        ),
    }
}

#[test]
fn layout_makes_no_difference() {
    for data_type in DataType::ALL {
        let records: Vec<_> = (1..=5).map(|id| good(data_type, id)).collect();
        let expected: Vec<_> = (1..=5).map(|id| good_json(data_type, id)).collect();
        for (layout, text) in layouts(&records, data_type.name()) {
            assert_eq!(whole(data_type, &text), expected, "{layout}: {text}");
        }
    }
}

#[test]
fn a_broken_record_takes_no_neighbour_along() {
    let too_deep = format!("<T><id>0</id>{}{}</T>", "<d>".repeat(MAX_DEPTH), "</d>".repeat(MAX_DEPTH));
    let broken = [
        "<T><id>0</id><name>x</nam></T>",
        "<T><id>0</id><name>x</T>",
        "<T><id>0</id></name></T>",
        "<T><id>0</id><name>x</name>",
        "<T><id>0</id><name>x",
        "<T><id>0</id><na",
        "<T><id>0</id><name a=\"",
        "<T><id>0</id><name>&am",
        "<T><id>0</id><a b=\"x></a></T>",
        "<T><id>0</id><a b='x></a></T>",
        "<T><id>0</id><!-- x</T>",
        "<T><id>0</id><![CDATA[x</T>",
        "<T><id>0</id><?pi x</T>",
        "<T><id>0</id><a b=\"1\" b=\"2\"/></T>",
        "<T><id>0</id><a b=1/></T>",
        "<T><id>0</id><a b/></T>",
        "<T><id>0</id><a b=\"R & S\"/></T>",
        "<T><id>0</id><name>R & S</name></T>",
        "<T><id>0</id><name>1 < 2</name></T>",
        "<T><id>0</id><!x></T>",
        too_deep.as_str(),
        "<T",
        "<T><id>0</id",
        "garbage",
        "<other><id>1</id></other>",
        "</other>",
        "</T>",
    ];
    for data_type in DataType::ALL {
        let goods: Vec<_> = (1..=4).map(|id| good(data_type, id)).collect();
        for broken in broken.map(|xml| xml.replace('T', &open(data_type)[1..])) {
            for at in 0..=goods.len() {
                let mut records = goods.clone();
                records.insert(at, broken.clone());
                for (layout, text) in layouts(&records, data_type.name()) {
                    if layout.starts_with("indented") || layout.starts_with("a line for") {
                        continue; // they know well-formed records only
                    }
                    let (seen, end) = check(data_type, &text);
                    let note = format!("{broken} at {at}, {layout}: {text}\n{seen:#?}");
                    assert_eq!(end, Ok(()), "{note}");
                    let records: Vec<_> =
                        seen.iter().filter(|seen| matches!(seen, Seen::Record { .. })).cloned().collect();
                    let expected: Vec<_> = (1..=4).map(|id| good_json(data_type, id)).collect();
                    assert_eq!(short(&records), expected, "{note}");
                    let bads: Vec<_> = seen
                        .iter()
                        .filter_map(|seen| if let Seen::Bad { bad, .. } = seen { Some(bad) } else { None })
                        .collect();
                    assert_eq!(bads.len(), 1, "{note}");
                    let before = if at > 0 { goods[at - 1].clone() } else { format!("<{data_type}") };
                    let from = text.find(&before).unwrap() + before.len();
                    assert_eq!(bads[0].begin.offset as usize, from + text[from..].find(&broken).unwrap(), "{note}");
                }
            }
        }
    }
}

/// A file with everything that a reader may have to do something about.
fn sample() -> Vec<u8> {
    let mut text = b"\xef\xbb\xbf<?xml version=\"1.0\"?>\n<artists>\n".to_vec();
    for id in 0..4 {
        text.extend(good(DataType::Artists, id * 10).bytes());
        text.extend(b"\n<artist><id>8</id><name>caf\xe9\xff</name></artist>\n\n<artist><id>9</id><name>x</artist>\n");
        text.extend(b"<artist><id>7</id>\xff\r\n<a>x</artist>\n<!-- > -->\n");
        text.extend(format!("<artist>\n<id>{id}</id>\r\n<profile>{}</profile></artist>\r\n", long(700)).bytes());
        text.extend(b"\xff\xffstray <b> & \n<!-- > -->\n");
    }
    text.extend(b"</artists>\n<!-- end -->\n");
    text
}

#[test]
fn a_file_with_many_oddities_is_read_the_same_however_it_comes() {
    let (seen, end) = check(DataType::Artists, sample());
    assert_eq!(end, Ok(()));
    let bads = |seen: &[Seen]| seen.iter().filter(|seen| matches!(seen, Seen::Bad { .. })).count();
    assert_eq!((seen.len(), bads(&seen)), (24, 12));
}

#[test]
fn a_record_may_be_larger_than_the_buffer() {
    for blanks in ["\n", ""] {
        let small = |id: usize| format!("<artist><id>{id}</id></artist>{blanks}");
        let large =
            |id: usize| format!("<artist><id>{id}</id><profile>{}</profile></artist>{blanks}", long(BUFFER * id));
        let text = [small(7), large(1), small(8), large(3), small(9), large(2), small(7)].concat();
        let text = format!("<artists>{blanks}{text}</artists>");
        let (seen, end) = check(DataType::Artists, &text);
        let sizes: Vec<_> = short(&seen).iter().map(String::len).collect();
        let large = |id: usize| BUFFER * id + r#"{"id":"1","profile":""}"#.len();
        assert_eq!((sizes, end), (vec![10, large(1), 10, large(3), 10, large(2), 10], Ok(())));
    }
}

#[test]
fn a_file_larger_than_the_buffer_has_no_seams() {
    let records: Vec<_> = (0..4000).map(|id| good(DataType::Labels, id)).collect();
    let expected: Vec<_> = (0..4000).map(|id| good_json(DataType::Labels, id)).collect();
    for (layout, text) in layouts(&records, "labels") {
        let (seen, end) = check_all(DataType::Labels, text.as_bytes(), MAX, 3);
        assert_eq!((short(&seen), end), (expected.clone(), Ok(())), "{layout}");
    }
}

#[test]
fn a_record_that_is_too_large_is_bad_and_the_rest_comes() {
    const LIMIT: usize = 1000;
    let of = |size: usize| format!("<artist><id>1</id><a>{}</a></artist>", long(size - 34));
    assert_eq!(of(LIMIT).len(), LIMIT);
    let unclosed = |size: usize| format!("<artist><id>1</id><a>{}</artist>", long(size));
    let bad_utf8 = of(LIMIT).replacen("long", "\u{1}", 2);
    let good = "<artist><id>2</id></artist>";
    for (culprit, expected) in [
        (of(LIMIT), None),
        (of(LIMIT + 1), Some("record_too_large")),
        (of(LIMIT + 3 * KEPT), Some("record_too_large")),
        (of(3 * BUFFER), Some("record_too_large")),
        (unclosed(500), Some("malformed_xml")),
        (unclosed(5000), Some("record_too_large")),
        (unclosed(3 * BUFFER), Some("record_too_large")),
        ("garbage ".repeat(BUFFER), Some("record_too_large")),
        (bad_utf8, None),
    ] {
        for blanks in ["\n", ""] {
            let text = format!("<artists>{blanks}{good}{blanks}{culprit}{blanks}{good}{blanks}</artists>");
            // Each replaced byte makes the text longer, but not the record.
            let bytes: Vec<u8> = text.bytes().map(|b| if b == 1 { 0xff } else { b }).collect();
            let (seen, end) = check_all(DataType::Artists, &bytes, LIMIT, usize::MAX);
            assert_eq!((seen.len(), end), (3, Ok(())), "{}: {seen:?}", culprit.len());
            match (&seen[1], expected) {
                (Seen::Record { .. }, None) => {}
                // What lies between records is not the culprit's, if it can't be told from the next one.
                (Seen::Bad { bad, .. }, Some(reason)) if bad.reason == reason || culprit.starts_with("garbage") => {}
                other => panic!("{}: {other:?}", culprit.len()),
            }
        }
    }
    // Whether one is too large does not depend on how the file comes.
    for size in LIMIT - 60..LIMIT + KEPT + 20 {
        let text = format!("<artists>{good}{}{good}</artists>", unclosed(size));
        assert_eq!(check_all(DataType::Artists, text.as_bytes(), LIMIT, 1).0.len(), 3);
    }
    // The last one, too.
    let text = format!("<artists>\n{good}\n{}\n</artists>", of(5000));
    let (seen, end) = check_all(DataType::Artists, text.as_bytes(), LIMIT, usize::MAX);
    assert_eq!(
        (short(&seen), end),
        (vec![r#"{"id":"2"}"#.to_owned(), "record_too_large in line 3".to_owned()], Ok(()))
    );
}

#[test]
fn of_a_file_that_is_cut_off_everything_before_comes_and_then_an_error() {
    let text =
        [good(DataType::Artists, 1), "<artist><id>2</id><a>\u{1}</a></artist>".to_owned(), good(DataType::Artists, 3)];
    let text = format!("<?xml?>\n<artists>\n{}\n</artists>", text.join("\n"));
    let bytes: Vec<u8> = text.bytes().map(|b| if b == 1 { 0xff } else { b }).collect();
    let (whole, _) = read(DataType::Artists, &bytes, usize::MAX, MAX);
    assert_eq!(whole.len(), 3);
    for cut in 0..bytes.len() {
        let complete = whole.iter().filter(|seen| seen.after().offset as usize <= cut).count();
        for (step, fails) in [(usize::MAX, false), (1, false), (usize::MAX, true), (7, true)] {
            let source = Trickle { bytes: &bytes[..cut], step, fails };
            let (seen, end) = read_from(&mut XmlReader::new(source, DataType::Artists, MAX));
            assert_eq!(seen, whole[..complete], "cut at {cut}, {step}");
            let expected = if fails { "the device is gone" } else { "before </artists>" };
            assert!(end.is_err_and(|e| e.contains("cut off") && e.contains(expected)), "cut at {cut}");
        }
    }
    // Bad ones come as well, as far as they are complete, and what is checked at the very end is not passed over.
    let bytes = sample();
    let (whole, _) = read(DataType::Artists, &bytes, usize::MAX, MAX);
    for cut in (0..bytes.len()).step_by(5) {
        let (seen, end) = read(DataType::Artists, &bytes[..cut], 100, MAX);
        assert!(whole.starts_with(&seen), "cut at {cut}");
        let over = bytes[..cut].windows(10).any(|end| end == b"</artists>");
        assert_eq!(end.is_ok(), over, "cut at {cut}");
    }
    let source = Trickle { bytes: &bytes, step: 100, fails: true };
    let (seen, end) = read_from(&mut XmlReader::new(source, DataType::Artists, MAX));
    assert_eq!((seen, end.is_err()), (whole, true));
}

#[test]
fn a_place_behind_the_end_is_no_place_to_go_on_from() {
    let text = b"<artists>\n<artist/>\n</artists>\n".as_slice();
    let mut reader = XmlReader::new(text, DataType::Artists, MAX);
    let error = reader.resume(Place { offset: 1000, line: 9 }).unwrap_err();
    assert!(error.to_string().contains("cut off"), "{error}");
}

#[test]
fn another_root_is_refused() {
    for text in [
        "<labels>\n<label/></labels>",
        "<artist></artist>",
        "<artistss></artistss>",
        "text>",
        "{\"id\":\"1\"}>",
        "</artists>",
    ] {
        for step in [1, usize::MAX] {
            let (seen, end) = read(DataType::Artists, text.as_bytes(), step, MAX);
            assert!(seen.is_empty() && end.is_err_and(|e| e.starts_with("expected <artists>, found")), "{text}");
        }
    }
}

#[test]
fn a_root_may_be_empty() {
    for text in ["<artists></artists>", "<artists/>", "<artists />\n", "\n<artists>\n <!-- x -->\n</artists >"] {
        assert_eq!(whole(DataType::Artists, text), [""; 0], "{text}");
    }
}

#[test]
fn records_behind_the_roots_end_are_not_lost() {
    let (one, two) = (r#"{"id":"1"}"#, r#"{"id":"2"}"#);
    for (text, expected) in [
        // What is no record is not looked at.
        ("<artists><artist><id>1</id></artist></artists>\n <x> \0\0 garbage </artists>", vec![one]),
        (
            "<artists>\n<artist><id>1</id></artist>\n</artists>\n<artist><id>2</id></artist>\n</artists>",
            vec![one, "unexpected_content in line 3", two],
        ),
        (
            "<artists>\n<artist><id>1</id></artist>\n</artists>\n<artists>\n<artist><id>2</id></artist>\n</artists>",
            vec![one, "unexpected_content in line 3", two],
        ),
        (
            "<artists>\n<artist><id>0</id></artists>\n<artist><id>2</id></artist>\n</artists>",
            vec!["malformed_xml in line 2", "unexpected_content in line 2", two],
        ),
    ] {
        assert_eq!(whole(DataType::Artists, text), expected, "{text}");
    }
    let far = format!("<artists>\n</artists>{}<artist><id>2</id></artist></artists>", long(2 * MAX));
    assert_eq!(whole(DataType::Artists, far), ["unexpected_content in line 2", two]);
}

#[test]
fn an_unclosed_comment_between_records_takes_none_along() {
    for (text, expected) in [
        (
            "<artists>\n<!-- x\n<artist><id>1</id></artist>\n</artists>",
            vec!["unexpected_content in line 2", r#"{"id":"1"}"#],
        ),
        ("<artists>\n<!-- <artist><id>1</id></artist>\n--></artists>", vec![]),
        (
            "<artists>\n<?x >\n<artist><id>1</id></artist>\n</artists>",
            vec!["unexpected_content in line 2", r#"{"id":"1"}"#],
        ),
    ] {
        assert_eq!(whole(DataType::Artists, text), expected, "{text}");
    }
}

#[test]
fn real_dumps_are_read_whole_however_they_come() {
    for file in real_files("real_dumps_are_read_whole_however_they_come") {
        let (seen, end) = check_all(file.data_type, &file.xml, MAX, 10);
        let expected = file.messages.iter().filter(|b| **b == b'\n').count();
        assert!(seen.iter().all(|seen| matches!(seen, Seen::Record { .. })), "{}", file.path.display());
        assert_eq!((seen.len(), end), (expected, Ok(())), "{}", file.path.display());
    }
}

#[test]
fn what_is_not_closed_does_not_end_in_a_neighbour() {
    // Each neighbour has what would close it, so that both together would be one record.
    for (culprit, closing) in [
        (r#"<x a="y></x>"#, r#"<x a=">"></x>"#),
        (r#"<x a='y></x>"#, r#"<x a='>'></x>"#),
        ("<!-- y", "<!-- z -->"),
        ("<![CDATA[y", "<![CDATA[z]]>"),
        ("<?y", "<?z?>"),
    ] {
        for between in ["\n", "", "\n\n"] {
            let culprit = format!("<label><id>1</id>{culprit}</label>");
            let text = format!("<labels>{between}{culprit}{between}<label><id>2</id>{closing}</label>\n</labels>");
            let all = whole(DataType::Labels, &text);
            assert!(
                all[0].starts_with("malformed_xml") && all[1].contains(r#""id":"2""#) && all.len() == 2,
                "{text}: {all:?}"
            );
        }
    }
}

#[test]
fn where_records_begin_lines_one_may_have_elements_of_its_own_name() {
    for data_type in DataType::ALL {
        let tag = &open(data_type)[1..];
        let record = |id| format!("<{tag}><id>{id}</id><x>\n <{tag}><id>5</id></{tag}></x></{tag}>\n");
        let json = |id| format!(r#"{{"id":"{id}","x":{{"{tag}":{{"id":"5"}}}}}}"#);
        let text = format!("<{data_type}>\n{}{}<{tag}></x></{tag}>\n{}</{data_type}>", record(1), record(2), record(3));
        assert_eq!(whole(data_type, text), [json(1), json(2), "malformed_xml in line 6".to_owned(), json(3)]);
    }
}

/// What the fast way gives at each place of a file where a record may begin: nothing, or what the parser gives. Returns
/// how many records it took.
fn compare_ways(data_type: DataType, file: &[u8]) -> usize {
    let begin = open(data_type).as_bytes();
    let rules = Rules::new(data_type, b"\n");
    let mut taken = 0;
    for at in memmem::find_iter(file, begin) {
        let input = &file[at..file.len().min(at + 8 * 1024)];
        if let Some((record, used)) = plain::parse(input, &rules) {
            let (expected, length) = parse(input, &rules).unwrap();
            assert_eq!((record, used), (expected, length), "{}", Bad::excerpt(input));
            taken += 1;
        }
    }
    taken
}

#[test]
fn the_fast_way_gives_what_the_parser_gives() {
    let oddities = compare_ways(DataType::Artists, &sample());
    assert!(oddities > 0);
    let odd = [
        r#"<a x="1" x="2"/>"#,
        r#"<a x="<"/>"#,
        r#"<a x="1"y="2"/>"#,
        "<a>&amp</a>",
        "<a>& ;</a>",
        "<a>&;</a>",
        "<a></b></a>",
        "<artist><id>2</id></artist>",
        "\n<artist><id>2</id></artist>",
        "<a",
        "<a/",
        "<>",
        "</>",
        "<a >x</a >",
        "<a.b/>",
        "\u{e9}<\u{e9}/>",
    ];
    for odd in odd {
        compare_ways(DataType::Artists, format!("\n<artist><id>1</id>{odd}</artist>\n</artists>").as_bytes());
    }
    let mut random = fastrand::Rng::with_seed(4);
    for file in real_files("the_fast_way_gives_what_the_parser_gives") {
        let records = file.messages.iter().filter(|b| **b == b'\n').count();
        let taken = compare_ways(file.data_type, &file.xml);
        assert!(taken * 10 > records * 9, "only {taken} of {records} in {}", file.path.display());
        // Damaged in every place that matters: markup is replaced, removed or doubled.
        for _ in 0..20 {
            let mut bytes = file.xml[..file.xml.len().min(60_000)].to_vec();
            for _ in 0..bytes.len() / 100 {
                let at = random.usize(..bytes.len());
                match random.u8(..3) {
                    0 => bytes[at] = *random.choice(b"<>/&;\"'= \n!?x\xff").unwrap(),
                    1 => drop(bytes.remove(at)),
                    _ => bytes.insert(at, bytes[at]),
                }
            }
            compare_ways(file.data_type, &bytes);
        }
    }
}
