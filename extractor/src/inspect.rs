//! `extractor inspect`: what is in a file, without a broker.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use common::DataType;
use indicatif::{HumanBytes, HumanCount};

use crate::cli::{data_type, say};
use crate::input::{Format, Input, Next, Records};
use crate::message::{Canonical, Encoder, Outcome};
use crate::node::{Node, Object};
use crate::plan::{Wanted, plan};

/// What to inspect.
#[derive(Clone, Debug, Args)]
pub struct InspectArgs {
    /// Files, or - for the standard input
    #[arg(required = true)]
    pub paths: Vec<PathBuf>,
    /// What is in files that don't say it in their names
    #[arg(long = "type", value_name = "TYPE", value_parser = data_type)]
    pub data_type: Option<DataType>,
    /// How the records are written, if neither a file's name nor its first byte tells it
    #[arg(long)]
    pub format: Option<Format>,
}

/// Prints what is in each file.
///
/// # Errors
/// Which files could not be read to their ends, and why, for a person.
pub fn run(args: &InspectArgs) -> Result<(), String> {
    let mut inputs = Vec::new();
    for path in &args.paths {
        if path.is_dir() {
            return Err(format!("{} is a folder: give its files", path.display()));
        }
        inputs.extend(plan(&Wanted::file(path, args.data_type))?.into_iter().flat_map(|plan| plan.inputs));
    }
    let mut errors = Vec::new();
    for input in &inputs {
        let (report, ended) = inspect(input, args.format);
        say(&report.to_text(input));
        if let Err(e) = ended {
            say("  That is only what comes before the place where the file could not be read further.\n");
            errors.push(format!("{}: {e}", input.name()));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors.join("\nextractor: ")) }
}

/// Examples that are kept of each oddity.
const EXAMPLES: usize = 3;
/// Fields that are counted by their names, so that memory does not grow with the file.
const FIELDS: usize = 200;
const OTHERS: &str = "(others)";
/// Most bytes of an indexed text: PostgreSQL refuses index rows of more than 2,704.
const INDEXED: usize = 2_704;

/// How often each thing was found, and where first.
type Found = BTreeMap<&'static str, (u64, Vec<String>)>;

/// What was found in a file.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Records that can be published.
    pub records: u64,
    /// Bytes of records, in the unpacked file.
    pub bytes: u64,
    sizes: Sizes,
    largest: (u64, String),
    fields: BTreeMap<String, u64>,
    rejects: Found,
    oddities: Found,
    last_id: Option<u64>,
}

/// Reads a whole file. Says what it has up to where it could be read, and why not further.
pub fn inspect(input: &Input, format: Option<Format>) -> (Report, Result<(), String>) {
    let mut report = Report::default();
    let mut records = match Records::open(input, format, Default::default()) {
        Ok(records) => records,
        Err(e) => return (report, Err(e.to_string())),
    };
    let mut encoder = Encoder::new(input.data_type, None);
    loop {
        let next = records.next(|record| report.look(input.data_type, &mut encoder, record));
        match next {
            Ok(Next::Record(Ok(id), begin)) => report.size(records.place().offset - begin.offset, id),
            Ok(Next::Record(Err(reason), begin)) => {
                note(&mut report.rejects, reason, || format!("line {}", begin.line))
            }
            Ok(Next::Bad(bad)) => note(&mut report.rejects, bad.reason, || format!("line {}", bad.begin.line)),
            Ok(Next::End) => return (report, Ok(())),
            Err(e) => return (report, Err(format!("{e} (reached line {})", records.place().line))),
        }
    }
}

impl Report {
    /// How often an oddity, or a reason not to publish a record, was found.
    pub fn count(&self, what: &str) -> u64 {
        self.rejects.get(what).or_else(|| self.oddities.get(what)).map_or(0, |(count, _)| *count)
    }

    /// A record's id, or why it is not published.
    fn look(&mut self, data_type: DataType, encoder: &mut Encoder, record: Object<'_>) -> Result<String, &'static str> {
        if record.get("@status").is_some() {
            self.odd("layout before 2026: attribute status", || id_of(&record));
        }
        if record.get("images").is_some() {
            self.odd("layout before 2025: images", || id_of(&record));
        }
        let why = |outcome| match outcome {
            Outcome::Unusable { reason, .. } => reason,
            Outcome::Message(_) | Outcome::Skipped => "", // there are no rules
        };
        let Canonical { id, mut record, .. } = encoder.canonical(record).map_err(why)?;
        encoder.json(&mut record).map_err(why)?;
        self.records += 1;
        for (key, _) in record.entries() {
            let known = self.fields.len() < FIELDS || self.fields.contains_key(key.as_ref());
            let key = if known { key.as_ref() } else { OTHERS };
            match self.fields.get_mut(key) {
                Some(count) => *count += 1,
                None => drop(self.fields.insert(key.to_owned(), 1)),
            }
        }
        let number = id.parse().ok();
        if number.is_none() {
            self.odd("id is no number", || id.clone());
        } else if self.last_id.is_some_and(|last| number.is_some_and(|number| number <= last)) {
            self.odd("id not above the one before", || id.clone());
        }
        self.last_id = number.or(self.last_id);
        let title = if matches!(data_type, DataType::Artists | DataType::Labels) { "name" } else { "title" };
        match record.get(title) {
            Some(Node::Text(text)) if text.len() > INDEXED => {
                self.odd("name or title longer than an index takes", || id.clone())
            }
            Some(Node::Text(_)) => {}
            _ => self.odd("no name or title", || id.clone()),
        }
        if record.get("master_id").and_then(Node::text) == Some("0") {
            self.odd("master_id is 0", || id.clone());
        }
        for (_, value) in record.entries() {
            self.value(value, &id);
        }
        Ok(id)
    }

    fn value(&mut self, value: &Node<'_>, id: &str) {
        match value {
            Node::Text(text) => {
                if text.contains('\0') {
                    self.odd("NUL character", || id.to_owned());
                } else if text.contains(|c: char| c < ' ' && !matches!(c, '\t' | '\n' | '\r')) {
                    self.odd("control character", || id.to_owned());
                }
                if text.contains(char::REPLACEMENT_CHARACTER) {
                    self.odd("U+FFFD (undecodable bytes?)", || id.to_owned());
                }
            }
            Node::List(items) => {
                for item in items {
                    match item {
                        Node::Null => self.odd("empty item in a list", || id.to_owned()),
                        Node::Object(item) => self.item(item, id),
                        _ => {}
                    }
                    self.value(item, id);
                }
            }
            Node::Object(object) => object.entries().iter().for_each(|(_, value)| self.value(value, id)),
            Node::Null | Node::Literal(_) => {}
        }
    }

    /// An item that names an artist or label.
    fn item(&mut self, item: &Object<'_>, id: &str) {
        let named = item.get("name").is_some() && (item.get("role").is_some() || item.get("catno").is_some());
        match item.get("id").and_then(Node::text) {
            None if named => self.odd("credit or label without id", || id.to_owned()),
            Some("0") => self.odd("reference to id 0", || id.to_owned()),
            Some(reference) if reference.parse::<u64>().is_err() => {
                self.odd("reference that is no number", || id.to_owned())
            }
            _ => {}
        }
    }

    fn odd(&mut self, what: &'static str, example: impl FnOnce() -> String) {
        note(&mut self.oddities, what, example);
    }

    fn size(&mut self, bytes: u64, id: String) {
        self.bytes += bytes;
        self.sizes.add(bytes);
        if bytes > self.largest.0 {
            self.largest = (bytes, id);
        }
    }

    /// For people.
    pub fn to_text(&self, input: &Input) -> String {
        let mut out = format!("{}: {} {} to publish\n", input.name(), HumanCount(self.records), input.data_type);
        if let Some(mean) = self.bytes.checked_div(self.records) {
            let bytes = |count: u64| HumanCount(count).to_string();
            out.push_str(&format!(
                "  Size: {} unpacked. A record has {} bytes on average; half of them have at most about {}, 90 % at most \
                 {}, 99 % at most {}.\n  The largest has the id {} and {} bytes.\n",
                HumanBytes(self.bytes),
                bytes(mean),
                bytes(self.sizes.quantile(0.5)),
                bytes(self.sizes.quantile(0.9)),
                bytes(self.sizes.quantile(0.99)),
                self.largest.1,
                bytes(self.largest.0),
            ));
            out.push_str("  Fields, as they are published, and the share of the records that have them:\n");
            for (field, count) in &self.fields {
                out.push_str(&format!("    {field:<24}{:>6.1} %\n", *count as f64 * 100.0 / self.records as f64));
            }
        }
        let refused = "Records that can't be published, by reason, with the lines where the first ones begin";
        let odd = "Oddities of records that are published all the same, with the ids of the first ones";
        for (title, found) in [(refused, &self.rejects), (odd, &self.oddities)] {
            if !found.is_empty() {
                out.push_str(&format!("  {title}:\n"));
            }
            for (what, (count, examples)) in found {
                let count = HumanCount(*count).to_string();
                out.push_str(&format!("    {what:<42}{count:>9}   {}\n", examples.join(", ")));
            }
        }
        if self.rejects.is_empty() && self.oddities.is_empty() {
            out.push_str("  Nothing odd was found.\n");
        }
        out
    }
}

fn note(found: &mut Found, what: &'static str, example: impl FnOnce() -> String) {
    let (count, examples) = found.entry(what).or_default();
    *count += 1;
    if examples.len() < EXAMPLES {
        examples.push(example());
    }
}

fn id_of(record: &Object<'_>) -> String {
    ["@id", "id"].into_iter().find_map(|key| record.get(key)?.text()).unwrap_or("?").to_owned()
}

/// Sizes, counted by their power of two and its eighths, so that memory does not grow with the file.
#[derive(Clone, Debug, Default)]
struct Sizes(BTreeMap<u64, u64>);

impl Sizes {
    fn add(&mut self, bytes: u64) {
        let step = (bytes.next_power_of_two() / 16).max(1);
        *self.0.entry(bytes.div_ceil(step) * step).or_default() += 1;
    }

    /// The size that this share of the records does not exceed.
    fn quantile(&self, share: f64) -> u64 {
        let total: u64 = self.0.values().sum();
        let mut left = (total as f64 * share).ceil() as u64;
        for (size, count) in &self.0 {
            left = left.saturating_sub(*count);
            if left == 0 {
                return *size;
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Folder, long, real_files};

    fn inspected(data_type: DataType, records: &str) -> (Report, String) {
        let folder = Folder::new();
        let input = folder.input("x.xml", data_type, format!("<{data_type}>\n{records}\n</{data_type}>\n"));
        let (report, ended) = inspect(&input, None);
        assert_eq!(ended, Ok(()));
        let text = report.to_text(&input);
        (report, text)
    }

    #[test]
    fn oddities_are_counted() {
        for (data_type, record, oddities) in [
            (DataType::Artists, "<artist><id>1</id><name>x</name></artist>".to_owned(), vec![]),
            (DataType::Artists, "<artist><id>1</id></artist>".to_owned(), vec!["no name or title"]),
            (DataType::Artists, "<artist><id>x</id><name>\u{a0}</name></artist>".to_owned(), vec!["no name or title", "id is no number"]),
            (DataType::Artists, "<artist><id>0</id><name>x</name></artist>".to_owned(), vec![]),
            (
                DataType::Artists,
                "<artist><id>1</id><name>x\0\u{7}</name></artist>\n<artist><id>1</id><name>&#0;\u{7}</name></artist>".to_owned(),
                vec!["NUL character", "U+FFFD (undecodable bytes?)", "control character", "id not above the one before"],
            ),
            (
                DataType::Artists,
                format!("<artist><id>1</id><name>{}</name></artist>", long(INDEXED + 1)),
                vec!["name or title longer than an index takes"],
            ),
            (DataType::Artists, format!("<artist><id>1</id><name>{}</name></artist>", long(INDEXED)), vec![]),
            (DataType::Artists, "<artist><name>x</name></artist>".to_owned(), vec!["missing_id"]),
            (DataType::Artists, "<artist><id>1</name></artist>".to_owned(), vec!["malformed_xml"]),
            (
                DataType::Artists,
                "<artist><id>1</id><name>x</name><images/><members><name id=\"0\"/><name>y</name><name/></members></artist>".to_owned(),
                vec!["layout before 2025: images", "reference to id 0", "reference that is no number", "empty item in a list"],
            ),
            (
                DataType::Labels,
                "<label><id>1</id><name>x</name><sublabels><label>y</label><label/></sublabels></label>".to_owned(),
                vec!["reference that is no number", "empty item in a list"],
            ),
            (
                DataType::Releases,
                "<release id=\"1\" status=\"x\"><title>x</title><master_id>0</master_id><labels><label name=\"y\" catno=\"z\"/></labels>\
                 <extraartists><artist><name>n</name><role>r</role></artist></extraartists></release>"
                    .to_owned(),
                vec!["layout before 2026: attribute status", "master_id is 0", "credit or label without id", "credit or label without id"],
            ),
        ] {
            let (report, text) = inspected(data_type, &record);
            for what in &oddities {
                let count = oddities.iter().filter(|other| other == &what).count() as u64;
                assert_eq!(report.count(what), count, "{what} in {record}");
                assert!(text.contains(what), "{text}");
            }
            let all = report.rejects.values().chain(report.oddities.values());
            let total: u64 = all.map(|(count, _)| count).sum();
            assert_eq!(total, oddities.len() as u64, "{record}: {:?}", report.oddities);
        }
    }

    #[test]
    fn counts_fields_and_sizes_are_told() {
        let records = format!(
            "<label><id>1</id><name>x</name></label>\n<label><id>2</id><name>x</name><profile>{}</profile></label>\n<label><id>3</id></label>",
            long(5000)
        );
        let (report, text) = inspected(DataType::Labels, &records);
        assert_eq!((report.records, report.largest.1.as_str()), (3, "2"));
        assert!((5000..5200).contains(&report.bytes), "{}", report.bytes);
        for part in [
            "x.xml: 3 labels to publish\n",
            "The largest has the id 2 and 5,0",
            "id                       100.0 %",
            "name                      66.7 %",
            "profile                   33.3 %",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        // Three examples at most.
        let (_, text) =
            inspected(DataType::Labels, &(1..=9).map(|id| format!("<label><id>{id}</id></label>")).collect::<String>());
        assert!(text.contains("9   1, 2, 3\n"), "{text}");
    }

    #[test]
    fn a_file_that_is_cut_off_says_how_far_it_came() {
        let folder = Folder::new();
        let input = folder.input("x.xml", DataType::Labels, "<labels>\n<label><id>1</id></label>\n<label><id>");
        let (report, ended) = inspect(&input, None);
        assert_eq!(report.records, 1);
        assert_eq!(ended, Err("the file is cut off: it ends before </labels> (reached line 3)".to_owned()));
    }

    #[test]
    fn what_is_not_published_is_told_apart_from_oddities() {
        let (_, text) = inspected(DataType::Labels, "<label><id>1</id><name>x</name></label>");
        assert!(text.ends_with("  Nothing odd was found.\n"), "{text}");
        let control = |count| format!("<label><id>3</id><name>{}</name></label>", "\u{1}".repeat(count));
        let records = [
            "<label><id>1</id></label>",
            "<label><name>x</name></label>",
            "<label><id>2</name></label>",
            &control(crate::input::MAX_RECORD / 3),
            &control(1),
        ];
        let (report, text) = inspected(DataType::Labels, &records.join("\n"));
        assert_eq!(
            (report.records, report.sizes.0.values().sum::<u64>()),
            (2, 2),
            "only what is published is measured"
        );
        let (refused, odd) = text.split_once("Oddities of records that are published all the same").unwrap();
        for (part, of_refused) in [
            ("missing_id                                        1   line 3\n", true),
            ("malformed_xml                                     1   line 4\n", true),
            ("record_too_large                                  1   line 5\n", true),
            ("no name or title                                  1   1\n", false),
            ("control character                                 1   3\n", false),
        ] {
            assert_eq!((refused.contains(part), odd.contains(part)), (of_refused, !of_refused), "{part}: {text}");
        }
    }

    #[test]
    fn many_different_fields_do_not_fill_the_memory() {
        let folder = Folder::new();
        let lines: String =
            (0..3 * FIELDS).map(|id| format!("{{\"id\":\"{id}\",\"name\":\"x\",\"f{id}\":\"\"}}\n")).collect();
        let (report, ended) = inspect(&folder.input("x.jsonl", DataType::Labels, lines), None);
        assert_eq!(ended, Ok(()));
        assert_eq!(report.fields.len(), FIELDS + 1);
        assert_eq!((report.fields["name"], report.fields["f0"]), (3 * FIELDS as u64, 1));
        assert_eq!(report.fields[OTHERS], 2 * FIELDS as u64 + 2);
    }

    #[test]
    fn a_quantile_is_a_size_that_so_many_do_not_exceed() {
        let mut sizes = Sizes::default();
        assert_eq!(sizes.quantile(0.5), 0);
        (1..=1000).for_each(|size| sizes.add(size));
        for (share, exact) in [(0.001, 1), (0.1, 100), (0.5, 500), (0.99, 990), (1.0, 1000)] {
            let size = sizes.quantile(share);
            assert!(size >= exact && size as f64 <= exact as f64 * 1.13, "{share}: {size}");
        }
    }

    #[test]
    fn real_files_have_the_oddities_that_they_are_known_for() {
        for file in real_files("real_files_have_the_oddities_that_they_are_known_for") {
            let input = Input { path: file.path, data_type: file.data_type, version: file.month.to_owned() };
            let (report, ended) = inspect(&input, None);
            assert_eq!(ended, Ok(()));
            assert_eq!(report.records as usize, file.messages.split_inclusive(|b| *b == b'\n').count());
            if (file.data_type, file.month) == (DataType::Labels, "20260401") {
                assert!(report.count("empty item in a list") > 0 && report.count("missing_id") == 0);
            }
        }
    }
}
