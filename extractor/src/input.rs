//! Where records come from: a file or the standard input, packed or not, in one of three formats.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::DataType;
use flate2::bufread::GzDecoder;

use crate::jsonl::JsonlReader;
use crate::node::Object;
use crate::table::CsvReader;
use crate::xml::XmlReader;

/// A place in the unpacked stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Place {
    /// Bytes before it.
    pub offset: u64,
    /// Line that it is in, from 1.
    pub line: u64,
}

/// What a reader found.
#[derive(Debug)]
pub enum Next<T> {
    /// A record, made into something, and where it begins.
    Record(T, Place),
    /// A record that can't be read; what follows can.
    Bad(Bad),
    /// Nothing more: the file was read to its end, and is whole.
    End,
}

/// A record that is not published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bad {
    /// Stable name of the fault.
    pub reason: &'static str,
    /// What exactly is wrong.
    pub detail: String,
    /// The beginning of its text.
    pub excerpt: String,
    /// Where it begins.
    pub begin: Place,
    /// Where what follows begins.
    pub end: Place,
}

impl Bad {
    /// Bytes of a record that are shown.
    pub const EXCERPT: usize = 500;

    /// The first bytes of a record, as text.
    pub fn excerpt(bytes: &[u8]) -> String {
        String::from_utf8_lossy(&bytes[..bytes.len().min(Bad::EXCERPT)]).into_owned()
    }
}

/// Why a file can't be read further.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The device's or the decompressor's error.
    #[error("the file is damaged or cut off: {0}")]
    Io(#[from] io::Error),
    /// The file ends within.
    #[error("the file is cut off: it ends before {missing}")]
    Truncated {
        /// What is missing.
        missing: String,
    },
    /// It has no bytes, as after an export that failed.
    #[error("the file is empty")]
    Empty,
    /// It holds something else.
    #[error("expected <{expected}>, found {found:?}")]
    WrongRoot {
        /// The type's name.
        expected: &'static str,
        /// The file's beginning.
        found: String,
    },
    /// It has no header, or none with an id.
    #[error("expected a header row with a column `id`, and no name twice: {0}")]
    Header(String),
}

/// How records are written in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A dump as Discogs publishes it.
    Xml,
    /// A JSON object on each line.
    Jsonl,
    /// A header row and a row for each record.
    Csv,
}

impl Format {
    /// What a file's name says: its ending, before that of its packing.
    pub fn of_name(name: &str) -> Option<Format> {
        let plain = [".gz", ".zst"].iter().find_map(|packing| name.strip_suffix(packing)).unwrap_or(name);
        match plain.rsplit_once('.')?.1 {
            "xml" => Some(Format::Xml),
            "jsonl" | "ndjson" => Some(Format::Jsonl),
            "csv" => Some(Format::Csv),
            _ => None,
        }
    }
}

/// A file of records, or the standard input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// The file; `-` for the standard input.
    pub path: PathBuf,
    /// What its records are.
    pub data_type: DataType,
    /// The dump's date, such as `20260401`.
    pub version: String,
}

impl Input {
    /// Whether it is the standard input.
    pub fn is_stdin(&self) -> bool {
        self.path == Path::new("-")
    }

    /// The file's name, as `file_complete` and the summary tell it.
    pub fn name(&self) -> String {
        if self.is_stdin() {
            return "stdin".to_owned();
        }
        self.path.file_name().unwrap_or(self.path.as_os_str()).to_string_lossy().into_owned()
    }
}

/// Largest record in bytes, both of its file's format and of its JSON. The largest real release has 0.3 MB.
pub const MAX_RECORD: usize = 2 << 20;
/// Power of two of the largest window that a zstd file may ask for: 8 MiB, which is zstd's own up to level 19.
const ZSTD_WINDOW: u32 = 23;
const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

type Source = Box<dyn Read + Send>;

/// The records of one input.
pub enum Records {
    /// Of an XML dump.
    Xml(XmlReader<Source>),
    /// Of JSON lines.
    Jsonl(JsonlReader<Source>),
    /// Of a table.
    Csv(Box<CsvReader<Source>>),
}

impl Records {
    /// Opens an input. Its format, unless given, is told from its name, and from its first byte only if the name says
    /// nothing; its packing always from its first bytes. `read` counts the bytes that were read of the file as it is.
    ///
    /// # Errors
    /// [`io::Error`] if it can't be opened.
    pub fn open(input: &Input, format: Option<Format>, read: Arc<AtomicU64>) -> io::Result<Records> {
        let raw: Source = if input.is_stdin() { Box::new(io::stdin()) } else { Box::new(File::open(&input.path)?) };
        let format = format.or_else(|| Format::of_name(&input.name()));
        Records::from_reader(Box::new(Counted { inner: raw, read }), input.data_type, format)
    }

    /// Reads from a stream.
    ///
    /// # Errors
    /// [`io::Error`] if its beginning can't be read.
    pub fn from_reader(source: Source, data_type: DataType, format: Option<Format>) -> io::Result<Records> {
        let mut plain = unpacked(source)?;
        let format = match format {
            Some(format) => format,
            None => {
                // A damaged beginning, or none, is the reader's to report.
                let (head, first) = first_of_text(&mut plain);
                plain = Box::new(io::Cursor::new(head).chain(plain));
                match first {
                    Some(b'<') | None => Format::Xml,
                    Some(b'{') => Format::Jsonl,
                    Some(_) => Format::Csv,
                }
            }
        };
        Ok(match format {
            Format::Xml => Records::Xml(XmlReader::new(plain, data_type, MAX_RECORD)),
            Format::Jsonl => Records::Jsonl(JsonlReader::new(plain, MAX_RECORD)),
            Format::Csv => Records::Csv(Box::new(CsvReader::new(plain, MAX_RECORD))),
        })
    }

    /// Goes on where an earlier run ended.
    ///
    /// # Errors
    /// [`ReadError`] if the input ends before.
    pub fn resume(&mut self, at: Place) -> Result<(), ReadError> {
        match self {
            Records::Xml(reader) => reader.resume(at),
            Records::Jsonl(reader) => reader.resume(at),
            Records::Csv(reader) => reader.resume(at),
        }
    }

    /// Place of the first byte that is not read yet.
    pub fn place(&self) -> Place {
        match self {
            Records::Xml(reader) => reader.place(),
            Records::Jsonl(reader) => reader.place(),
            Records::Csv(reader) => reader.place(),
        }
    }

    /// The next record, made into something by `make` while it lies in the reader's buffer.
    ///
    /// # Errors
    /// [`ReadError`] if nothing more can be read; everything before was returned.
    pub fn next<T>(&mut self, make: impl FnMut(Object<'_>) -> T) -> Result<Next<T>, ReadError> {
        match self {
            Records::Xml(reader) => reader.next(make),
            Records::Jsonl(reader) => reader.next(make),
            Records::Csv(reader) => reader.next(make),
        }
    }
}

/// The stream without its packing, which its first bytes tell: gzip, zstd or none. A pipe may give them one by one.
fn unpacked(mut source: Source) -> io::Result<Source> {
    let mut head = Vec::new();
    source.by_ref().take(ZSTD.len() as u64).read_to_end(&mut head)?;
    let is = |magic: &[u8]| head.starts_with(magic) || (!head.is_empty() && magic.starts_with(&head));
    let (gzip, zstd) = (is(GZIP), is(ZSTD));
    let whole = BufReader::with_capacity(64 * 1024, io::Cursor::new(head).chain(source));
    Ok(if gzip {
        Box::new(BufReader::with_capacity(64 * 1024, Gzip::new(whole)))
    } else if zstd {
        let mut decoder = zstd::Decoder::with_buffer(whole)?;
        decoder.window_log_max(ZSTD_WINDOW)?;
        Box::new(BufReader::with_capacity(64 * 1024, decoder))
    } else {
        Box::new(whole)
    })
}

/// A gzip file: one member or several, and zeros behind the last one, which tapes and block devices leave there. Like
/// `gzip`, it takes these for padding; anything else behind a member is an error.
struct Gzip<R> {
    /// `None` behind the last one.
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> Gzip<R> {
    fn new(source: R) -> Self {
        Gzip { member: Some(GzDecoder::new(source)) }
    }
}

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let n = member.read(buffer)?;
            if n > 0 || buffer.is_empty() {
                return Ok(n);
            }
            let padded = skip_zeros(member.get_mut())?;
            let ended = member.get_mut().fill_buf()?.is_empty();
            if padded && !ended {
                return Err(io::Error::other("there is something behind the zeros that end it"));
            }
            self.member = self.member.take().filter(|_| !ended).map(|member| GzDecoder::new(member.into_inner()));
        }
        Ok(0)
    }
}

/// Whether there were any.
fn skip_zeros(source: &mut impl BufRead) -> io::Result<bool> {
    let mut any = false;
    loop {
        let zeros = source.fill_buf()?.iter().take_while(|byte| **byte == 0).count();
        if zeros == 0 {
            return Ok(any);
        }
        source.consume(zeros);
        any = true;
    }
}

/// What was read until the first byte that is neither white space nor part of a byte order mark, and that byte.
fn first_of_text(source: &mut impl Read) -> (Vec<u8>, Option<u8>) {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while head.len() < MAX_RECORD && source.read_exact(&mut byte).is_ok() {
        head.push(byte[0]);
        if !byte[0].is_ascii_whitespace() && !b"\xef\xbb\xbf".contains(&byte[0]) {
            return (head, Some(byte[0]));
        }
    }
    (head, None)
}

/// Counts what is read.
struct Counted {
    inner: Source,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.read.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Folder, Trickle, json};
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    /// What comes of a file with this name and these bytes.
    fn whole(name: &str, bytes: &[u8], format: Option<Format>) -> (Vec<String>, Result<(), String>) {
        let folder = Folder::new();
        let read = Arc::default();
        let input = folder.input(name, DataType::Labels, bytes);
        let mut records = match Records::open(&input, format, Arc::clone(&read)) {
            Ok(records) => records,
            Err(e) => return (Vec::new(), Err(e.to_string())),
        };
        let mut all = Vec::new();
        loop {
            match records.next(json) {
                Ok(Next::Record(json, _)) => all.push(json),
                Ok(Next::Bad(bad)) => all.push(bad.reason.to_owned()),
                Ok(Next::End) => {
                    assert_eq!(read.load(Ordering::Relaxed), bytes.len() as u64);
                    return (all, Ok(()));
                }
                Err(e) => return (all, Err(e.to_string())),
            }
        }
    }

    #[test]
    fn packing_and_format_are_told_from_the_first_bytes() {
        let xml = "<labels>\n<label><id>1</id></label>\n</labels>\n";
        for plain in [xml, "{\"id\":\"1\"}\n", "id\n1\n", "\n \u{feff} <labels>\n<label><id>1</id></label></labels>"] {
            for bytes in [plain.into(), gzip(plain.as_bytes()), zstd::encode_all(plain.as_bytes(), 1).unwrap()] {
                assert_eq!(whole("x.txt", &bytes, None), (vec![r#"{"id":"1"}"#.to_owned()], Ok(())), "{plain}");
            }
        }
        // The parts of a file may be packed one by one.
        let parts = [gzip(&xml.as_bytes()[..20]), gzip(&xml.as_bytes()[20..])].concat();
        assert_eq!(whole("x", &parts, None), (vec![r#"{"id":"1"}"#.to_owned()], Ok(())));
        assert_eq!(whole("x", b"\n{\"id\":\"1\"}", Some(Format::Jsonl)).0, [r#"{"id":"1"}"#]);
        assert!(whole("x", b"{\"id\":\"1\"}", Some(Format::Xml)).1.is_err());
    }

    #[test]
    fn a_packed_file_that_is_damaged_gives_what_is_before_and_an_error() {
        let random: String = (0..20_000).map(|i: u64| format!("{:x}", i.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
        let xml = format!("<labels>\n<label><id>1</id></label>\n<label><id>2</id><a>{random}</a></label>\n</labels>\n");
        let packed = gzip(xml.as_bytes());
        let mut wrong = packed.clone();
        let at = wrong.len() - 6; // the checksum
        wrong[at] ^= 1;
        let zst = zstd::encode_all(xml.as_bytes(), 1).unwrap();
        for (bytes, records) in [
            (&packed[..packed.len() / 2], 1),
            (&packed[..packed.len() - 1], 2),
            (&wrong, 2),
            (&zst[..zst.len() / 2], 1),
            (&packed[..12], 0),
        ] {
            let (all, end) = whole("x", bytes, None);
            assert_eq!(all.len(), records);
            assert!(end.is_err_and(|e| e.contains("damaged or cut off") || e.contains("cut off")));
        }
        for bytes in [b"".as_slice(), &packed[..1], b"\x1f\x8b"] {
            assert!(whole("x", bytes, None).1.is_err());
        }
    }

    #[test]
    fn a_name_decides_the_format_whatever_the_first_line_is() {
        let record = r#"{"id":"1"}"#.to_owned();
        let cut_off = "the file is cut off: it ends before </labels>";
        let no_header = "expected a header row with a column `id`, and no name twice: ";
        for (name, text, records, error) in [
            ("x.jsonl", "", vec![], Some("the file is empty")),
            ("x.jsonl", "\n", vec![], None),
            ("x.jsonl", "garbage\n{\"id\":\"1\"}\n", vec!["malformed_json".to_owned(), record.clone()], None),
            ("x.ndjson", "<id>\n{\"id\":\"1\"}\n", vec!["malformed_json".to_owned(), record.clone()], None),
            (
                "x.csv",
                "",
                vec![],
                Some("expected a header row with a column `id`, and no name twice: the file is empty"),
            ),
            ("x.csv", "{\n1\n", vec![], Some(no_header)),
            ("x.csv", "<a>,id\n,1\n", vec![record.clone()], None),
            ("x.xml", "", vec![], Some(cut_off)),
            ("x.xml", "id\n1\n", vec![], Some("")),
            // Nothing but the content is left.
            ("x.xml.old", "id\n1\n", vec![record.clone()], None),
            ("xml", "{\"id\":\"1\"}\n", vec![record.clone()], None),
            ("x", "", vec![], Some(cut_off)),
        ] {
            for (packing, bytes) in [
                ("", text.as_bytes().to_vec()),
                (".gz", gzip(text.as_bytes())),
                (".zst", zstd::encode_all(text.as_bytes(), 1).unwrap()),
            ] {
                let name = format!("{name}{packing}");
                let (all, end) = whole(&name, &bytes, None);
                assert_eq!(all, records, "{name}: {text}");
                match (error, end) {
                    (None, end) => assert_eq!(end, Ok(()), "{name}: {text}"),
                    (Some(error), end) => assert!(end.clone().is_err_and(|e| e.contains(error)), "{name}: {end:?}"),
                }
            }
        }
        // `--format` counts more.
        assert_eq!(whole("x.csv", b"{\"id\":\"1\"}", Some(Format::Jsonl)), (vec![record], Ok(())));
    }

    #[test]
    fn zeros_behind_a_gzip_file_are_padding_and_anything_else_is_not() {
        let xml = "<labels>\n<label><id>1</id></label>\n</labels>\n".as_bytes();
        let record = r#"{"id":"1"}"#.to_owned();
        let packed = gzip(xml);
        let parts = [gzip(&xml[..20]), gzip(&xml[20..])].concat();
        for file in [&packed, &parts] {
            for zeros in [1, 17, 512, 200_000] {
                let padded = [&file[..], &vec![0; zeros]].concat();
                assert_eq!(whole("x.xml.gz", &padded, None), (vec![record.clone()], Ok(())), "{zeros}");
                for garbage in [b"x".as_slice(), &packed, b"\x1f"] {
                    let (all, end) = whole("x.xml.gz", &[&padded, garbage].concat(), None);
                    assert_eq!(all, std::slice::from_ref(&record), "{zeros}");
                    assert!(end.is_err_and(|e| e.contains("behind the zeros")), "{zeros}");
                }
            }
            for garbage in [b"garbage".as_slice(), b"\x1f", b"\n"] {
                let (all, end) = whole("x.xml.gz", &[file, garbage].concat(), None);
                assert_eq!(all, std::slice::from_ref(&record));
                assert!(end.is_err(), "{garbage:?}");
            }
        }
        // Zeros within are none.
        assert!(whole("x.xml.gz", &[&gzip(&xml[..20])[..], &[0; 10], &gzip(&xml[20..])].concat(), None).1.is_err());
    }

    #[test]
    fn a_zstd_window_that_memory_is_too_small_for_is_refused() {
        let xml = format!("<labels>\n{}</labels>\n", "<label><id>1</id></label>\n".repeat(1000));
        for (window, records) in [(23, 1000), (24, 0)] {
            let mut out = zstd::Encoder::new(Vec::new(), 1).unwrap();
            out.window_log(window).unwrap();
            out.write_all(xml.as_bytes()).unwrap();
            let (all, end) = whole("x", &out.finish().unwrap(), None);
            assert_eq!((all.len(), end.is_ok()), (records, records > 0), "{window}");
        }
    }

    #[test]
    fn a_pipe_may_give_its_first_bytes_one_by_one() {
        for plain in ["\n<labels>\n<label><id>1</id></label>\n</labels>", "{\"id\":\"1\"}", "id\n1\n"] {
            let packed =
                [plain.as_bytes().to_vec(), gzip(plain.as_bytes()), zstd::encode_all(plain.as_bytes(), 1).unwrap()];
            for bytes in packed {
                let bytes: &'static [u8] = bytes.leak();
                let source = Box::new(Trickle { bytes, step: 1, fails: false });
                let mut records = Records::from_reader(source, DataType::Labels, None).unwrap();
                assert!(matches!(records.next(json), Ok(Next::Record(json, _)) if json == r#"{"id":"1"}"#), "{plain}");
            }
        }
    }

    #[test]
    fn reading_goes_on_at_a_place_in_each_format() {
        let csv = "id,a\n1,x\n2,y\n3,z\n";
        let jsonl = "{\"id\":\"1\"}\n{\"id\":\"2\"}\n{\"id\":\"3\"}\n";
        let xml =
            "<labels>\n<label><id>1</id></label>\n<label><id>2</id></label>\n<label><id>3</id></label>\n</labels>\n";
        for text in [csv, jsonl, xml] {
            let open = || {
                let source = Trickle { bytes: text.as_bytes(), step: 9, fails: false };
                Records::from_reader(Box::new(source), DataType::Labels, None).unwrap()
            };
            let mut records = open();
            assert!(matches!(records.next(|_| ()), Ok(Next::Record(..))));
            let mut resumed = open();
            resumed.resume(records.place()).unwrap();
            assert_eq!(resumed.place(), records.place());
            for _ in 0..2 {
                let next = |records: &mut Records| match records.next(json) {
                    Ok(Next::Record(json, begin)) => (json, begin),
                    other => panic!("{other:?}"),
                };
                assert_eq!(next(&mut resumed), next(&mut records));
            }
            assert!(matches!((resumed.next(|_| ()), records.next(|_| ())), (Ok(Next::End), Ok(Next::End))));
        }
    }
}
