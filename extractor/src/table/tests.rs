use super::*;
use crate::testing::{Trickle, json, long};
use fastrand::Rng;

const MAX: usize = 1 << 20;

type All = (Vec<(String, Place)>, Result<(), String>);

fn read<R: Read>(reader: &mut CsvReader<R>) -> All {
    let mut all = Vec::new();
    loop {
        match reader.next(json) {
            Ok(Next::Record(json, _)) => all.push((json, reader.place())),
            Ok(Next::Bad(bad)) => {
                assert_eq!(bad.end, reader.place());
                all.push((format!("{}: {} in line {}", bad.reason, bad.detail, bad.begin.line), bad.end));
            }
            Ok(Next::End) => return (all, Ok(())),
            Err(e) => return (all, Err(e.to_string())),
        }
    }
}

/// What comes of a file, however it comes and wherever reading goes on.
fn whole(text: impl AsRef<[u8]>) -> Vec<String> {
    let bytes = text.as_ref();
    let reader = |step| CsvReader::new(Trickle { bytes, step, fails: false }, MAX);
    let (all, end) = read(&mut reader(usize::MAX));
    assert_eq!(end, Ok(()));
    for step in [1, 7] {
        assert_eq!(read(&mut reader(step)).0, all);
    }
    for (i, (_, after)) in all.iter().enumerate() {
        let mut resumed = reader(10);
        resumed.resume(*after).unwrap();
        assert_eq!(read(&mut resumed), (all[i + 1..].to_vec(), Ok(())));
    }
    all.into_iter().map(|(text, _)| text).collect()
}

#[test]
fn a_cell_is_what_the_head_of_this_module_says() {
    for (cell, json) in [
        ("", r#"{"id":"1"}"#),
        ("x y", r#"{"a":"x y","id":"1"}"#),
        (" ", r#"{"a":" ","id":"1"}"#),
        ("\\N", r#"{"a":null,"id":"1"}"#),
        ("5", r#"{"a":"5","id":"1"}"#),
        ("true", r#"{"a":"true","id":"1"}"#),
        ("null", r#"{"a":"null","id":"1"}"#),
        ("\\5.0", r#"{"a":5.0,"id":"1"}"#),
        ("\\true", r#"{"a":true,"id":"1"}"#),
        ("\\null", r#"{"a":"\\null","id":"1"}"#),
        ("\"{\"\"b\"\":[1,null]}\"", r#"{"a":{"b":[1,null]},"id":"1"}"#),
        ("[]", r#"{"a":[],"id":"1"}"#),
        ("[x", r#"{"a":"[x","id":"1"}"#),
        ("\"\\\"\"[]\"\"\"", r#"{"a":"[]","id":"1"}"#),
        ("\"\\\"\"\"\"\"", r#"{"a":"","id":"1"}"#),
        ("\\x", r#"{"a":"\\x","id":"1"}"#),
        ("\\[]", r#"{"a":"\\[]","id":"1"}"#),
        ("\"x\r\n\"\"y, \"", r#"{"a":"x\r\n\"y, ","id":"1"}"#),
    ] {
        for end in ["\n", "\r\n"] {
            assert_eq!(whole(format!("id,a{end}1,{cell}{end}")), [json], "{cell}");
        }
    }
    assert_eq!(whole(b"id\n\xff\n"), ["{\"id\":\"\u{fffd}\"}"]);
}

/// A value with everything that could be taken for something else.
fn arbitrary(rng: &mut Rng, depth: u32) -> Node<'static> {
    const PARTS: [&str; 16] =
        ["", "\\", "\"", "\\N", "{", "}", "[", "]", ",", "\n", "\r", "5", "true", "null", " ", "é\0"];
    let text = |rng: &mut Rng| (0..rng.u32(0..5)).map(|_| PARTS[rng.usize(0..PARTS.len())]).collect::<String>();
    match rng.u32(0..if depth < 3 { 7 } else { 4 }) {
        0 => Node::Null,
        1 => Node::Literal(["1.50", "-0", "true", "1e400"][rng.usize(0..4)].into()),
        2 | 3 => Node::Text(text(rng).into()),
        4 => Node::List((0..rng.u32(0..3)).map(|_| arbitrary(rng, depth + 1)).collect()),
        _ => {
            let mut object = Object::default();
            (0..rng.u32(0..3)).for_each(|_| object.insert(text(rng), arbitrary(rng, depth + 1)));
            Node::Object(object)
        }
    }
}

#[test]
fn what_is_written_is_read_back_as_the_same() {
    let mut rng = Rng::with_seed(1);
    let mut file = csv::Writer::from_writer(Vec::new());
    file.write_record(["id", "b", "c"]).unwrap();
    let mut expected = Vec::new();
    for id in 0..3000 {
        let mut values = [Node::Text(id.to_string().into()), arbitrary(&mut rng, 0), arbitrary(&mut rng, 0)];
        file.write_record(values.each_mut().map(cell)).unwrap();
        let mut record = Object::default();
        ["id", "b", "c"].into_iter().zip(values).for_each(|(name, value)| record.insert(name, value));
        expected.push(json(record));
    }
    let bytes = file.into_inner().unwrap();
    let (all, end) = read(&mut CsvReader::new(bytes.as_slice(), MAX));
    assert_eq!(end, Ok(()));
    for ((read, _), expected) in all.iter().zip(&expected) {
        assert_eq!(read, expected);
    }
    assert_eq!(all.len(), expected.len());
}

#[test]
fn a_row_with_too_few_or_too_many_cells_is_bad() {
    let all = whole("a,id\r\nx,1\r\ny\r\n\r\n\"z\n\",3\r\nx,4,\r\n,5");
    let bad = |n, line| format!("malformed_csv: {n} cells, but the header has 2 in line {line}");
    assert_eq!(all, [r#"{"a":"x","id":"1"}"#, &bad(1, 3), r#"{"a":"z\n","id":"3"}"#, &bad(3, 7), r#"{"id":"5"}"#]);
}

#[test]
fn a_last_row_that_lacks_cells_and_the_end_of_its_line_was_cut_off() {
    for text in ["id,a\n1,x\n2", "id,a\n1,x\n\"2\"", "a,b,id\r\nx,y,1\r\nz,"] {
        let (all, end) = read(&mut CsvReader::new(text.as_bytes(), MAX));
        assert_eq!(all.len(), 1, "{text}");
        assert!(end.is_err_and(|e| e.contains("the end of the row that begins in line 3")), "{text}");
    }
    let (all, end) = read(&mut CsvReader::new(b"id,na".as_slice(), MAX));
    assert!(all.is_empty() && end.is_err_and(|e| e.contains("the end of the header row")));
    let large = format!("id,a,b\n1,x,y\n2,{}", long(2 * MAX));
    assert!(read(&mut CsvReader::new(large.as_bytes(), MAX)).1.is_err(), "too large, and cut off");
    for text in ["id,a\n1,x\n2,y", "id,a\n1,x\n2\n", "id,a\n1,x\n2,y,z"] {
        assert_eq!(whole(text).len(), 2, "{text}");
    }
}

#[test]
fn the_header_must_have_an_id() {
    for (text, found) in [
        ("".to_owned(), "the file is empty"),
        ("\u{feff}".to_owned(), "the file is empty"),
        ("a,b\n1,2\n".to_owned(), "found a, b"),
        ("\u{feff}ID\n1\n".to_owned(), "found ID"),
        ("id;a\n1;x\n".to_owned(), "found id;a (cells must have commas between them)"),
        ("id\ta\n1\tx\n".to_owned(), "found id\ta (cells must have commas between them)"),
        ("id,a, a \n1,x,y\n".to_owned(), "found \"a\" twice"),
        (format!("id{}\n", ",".repeat(MAX_COLUMNS)), "the first row has more than 10000 cells or 1048576 bytes"),
        (format!("id,{}\n", long(MAX)), "the first row has more than 10000 cells or 1048576 bytes"),
    ] {
        let (all, end) = read(&mut CsvReader::new(text.as_bytes(), MAX));
        assert!(all.is_empty());
        assert_eq!(end, Err(format!("expected a header row with a column `id`, and no name twice: {found}")));
    }
    for text in ["\u{feff}id,a\n1,x", "\u{feff}\"id\",\" a \"\n1,x", "\u{feff}\r\n\"id\",a\n1,x", " a , id\nx,1"] {
        assert_eq!(whole(text), [r#"{"a":"x","id":"1"}"#], "{text}");
    }
}

#[test]
fn a_row_that_is_too_large_is_bad_and_the_rest_comes() {
    let detail = format!("record_too_large: it has more than {MAX} bytes: is a quote not closed?");
    let (before, behind) = (r#"{"a":"x","id":"1"}"#.to_owned(), r#"{"a":"z","id":"4"}"#.to_owned());
    for (length, good) in [(MAX - 4, true), (MAX - 3, true), (MAX + 2, false), (3 * MAX, false)] {
        for end in ["\n", "\r\n"] {
            let all = whole(format!("id,a{end}1,x{end}2,{}{end}4,z{end}", long(length)));
            assert_eq!(all.len(), 3, "{length}");
            assert_eq!((&all[0], &all[2]), (&before, &behind), "{length}");
            assert_eq!(all[1] == format!("{detail} in line 3"), !good, "{length}: {}", &all[1][..100]);
        }
    }
    // The end of a line within a quote is not that of the row, and neither are a quote's two quotes the end of it.
    let cell = long(MAX).replace(' ', "\n") + "\"\",\n5,\"\"";
    let all = whole(format!("id,a\n1,x\n2,\"{cell}\"\n4,z\n"));
    assert_eq!(all, [before.clone(), format!("{detail} in line 3"), behind.clone()]);
    // Cells without number, at once and behind a row that has too many for its size.
    for cells in [11, 5000, MAX - 3] {
        let all = whole(format!("id,a\n1,x\n{}\n4,z\n", ",".repeat(cells)));
        let detail = format!("malformed_csv: {} cells, but the header has 2 in line 3", cells + 1);
        assert_eq!(all, [before.clone(), detail, behind.clone()]);
    }
    // Many rows are as many bytes together.
    assert_eq!(whole(format!("id,a\n{}", format!("2,{}\n", long(MAX / 10)).repeat(25))).len(), 25);
}

#[test]
fn what_is_kept_of_a_row_is_bounded() {
    for part in ["x,y\n", ",", "x", "\n"] {
        let text =
            format!("id,a\n1,x\n2,\"{}\"\n{}\n", part.repeat(8 * MAX / part.len()), part.trim_end().repeat(4 * MAX));
        let mut reader = CsvReader::new(text.as_bytes(), MAX);
        loop {
            match reader.next(json) {
                Ok(Next::End) => break,
                other => drop(other.unwrap()),
            }
            let Row { bytes, ends, excerpt, .. } = &reader.row;
            assert!(bytes.capacity() <= 2 * MAX && ends.capacity() < 1000 && excerpt.capacity() < 2000, "{part:?}");
        }
    }
}

#[test]
fn a_bad_row_shows_its_beginning_as_it_is() {
    let text = format!("id,a\r\n\"1\",\"x\"\"\",\r\n\r\n2\n3,{},\n", long(MAX));
    let mut reader = CsvReader::new(text.as_bytes(), MAX);
    let mut excerpts = Vec::new();
    while let Next::Bad(bad) = reader.next(json).unwrap() {
        excerpts.push(bad.excerpt);
    }
    assert_eq!(excerpts, ["\"1\",\"x\"\"\",".to_owned(), "2".to_owned(), format!("3,{}", long(Bad::EXCERPT - 2))]);
}

#[test]
fn a_place_behind_the_end_is_no_place_to_go_on_from() {
    let mut reader = CsvReader::new(b"id\n1\n".as_slice(), MAX);
    assert!(reader.resume(Place { offset: 6, line: 3 }).is_err());
}

#[test]
fn an_error_comes_after_what_was_before_it() {
    let source = Trickle { bytes: b"id\n1\n2\n", step: 4, fails: true };
    let (all, end) = read(&mut CsvReader::new(source, MAX));
    assert!(!all.is_empty() && end.is_err_and(|e| e.contains("the device is gone")));
}

#[test]
fn a_quote_that_is_not_closed_is_an_error_and_no_record() {
    for text in ["id,a\n1,x\n2,\"y\n3,z\n", "id,a\n1,x\n2,\"y", "a,id\n\"x\",1\n\"y,2\n", "id,a\n1,x\n\"2\",\"y,\n"] {
        let (all, end) = read(&mut CsvReader::new(text.as_bytes(), MAX));
        assert_eq!(all.len(), 1, "{text}");
        assert!(end.is_err_and(|e| e.contains("a quote in the row that begins in line 3")), "{text}");
    }
}
