//! `extractor inspect`: what is in a file, without a broker.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use common::DataType;
use indicatif::{HumanBytes, HumanCount};

use crate::cli::{data_type, say};
use crate::input::{Input, Next, Records};
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
}

/// Prints what is in each file.
///
/// # Errors
/// What went wrong, for a person.
pub fn run(args: &InspectArgs) -> Result<(), String> {
    for path in &args.paths {
        let wanted = Wanted::file(path, args.data_type);
        if path.is_dir() {
            return Err(format!("{} is a folder: give files", path.display()));
        }
        for input in plan(&wanted)?.into_iter().flat_map(|plan| plan.inputs) {
            let (report, ended) = inspect(&input);
            say(&report.to_text(&input));
            if let Err(e) = ended {
                return Err(format!("{}: {e}", input.name()));
            }
        }
    }
    Ok(())
}

/// Examples that are kept of each oddity.
const EXAMPLES: usize = 3;
/// Most bytes of an indexed text: PostgreSQL refuses index rows of more than 2,704.
const INDEXED: usize = 2_704;

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
    oddities: BTreeMap<&'static str, (u64, Vec<String>)>,
    last_id: Option<u64>,
}

/// Reads a whole file. Says how far it came, and why not further.
pub fn inspect(input: &Input) -> (Report, Result<(), String>) {
    let mut report = Report::default();
    let mut records = match Records::open(input, None, Default::default()) {
        Ok(records) => records,
        Err(e) => return (report, Err(e.to_string())),
    };
    let encoder = Encoder::new(input.data_type, None);
    loop {
        let begin = records.place();
        let next = records.next(|record| report.look(input.data_type, &encoder, record));
        match next {
            Ok(Next::Record(id, _)) => report.size(records.place().offset - begin.offset, id),
            Ok(Next::Bad(bad)) => report.odd(bad.reason, || format!("line {}", bad.begin.line)),
            Ok(Next::End) => return (report, Ok(())),
            Err(e) => return (report, Err(e.to_string())),
        }
    }
}

impl Report {
    /// How often an oddity was found.
    pub fn count(&self, oddity: &str) -> u64 {
        self.oddities.get(oddity).map_or(0, |(count, _)| *count)
    }

    fn look(&mut self, data_type: DataType, encoder: &Encoder, record: Object<'_>) -> String {
        if record.get("@status").is_some() {
            self.odd("layout before 2026: attribute status", || id_of(&record));
        }
        if record.get("images").is_some() {
            self.odd("layout before 2025: images", || id_of(&record));
        }
        let Canonical { id, record, .. } = match encoder.canonical(record) {
            Ok(canonical) => canonical,
            Err(Outcome::Unusable { reason, excerpt, .. }) => {
                self.odd(reason, || excerpt.chars().take(40).collect());
                return String::new();
            }
            Err(_) => return String::new(),
        };
        self.records += 1;
        for (key, _) in record.entries() {
            match self.fields.get_mut(key.as_ref()) {
                Some(count) => *count += 1,
                None => drop(self.fields.insert(key.to_string(), 1)),
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
        id
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
        let (count, examples) = self.oddities.entry(what).or_default();
        *count += 1;
        if examples.len() < EXAMPLES {
            examples.push(example());
        }
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
        let mut out = format!("{}: {} {}\n", input.name(), HumanCount(self.records), input.data_type);
        if let Some(mean) = self.bytes.checked_div(self.records) {
            out.push_str(&format!(
                "  {} unpacked; a record has {} bytes on average, p50 about {}, p90 {}, p99 {}; the largest is {} with {}\n",
                HumanBytes(self.bytes),
                mean,
                self.sizes.quantile(0.5),
                self.sizes.quantile(0.9),
                self.sizes.quantile(0.99),
                self.largest.1,
                self.largest.0,
            ));
            out.push_str("  fields, with the share of the records that have them:\n");
            for (field, count) in &self.fields {
                out.push_str(&format!("    {field:<24}{:>6.1} %\n", *count as f64 * 100.0 / self.records as f64));
            }
        }
        if !self.oddities.is_empty() {
            out.push_str("  oddities, with examples:\n");
        }
        for (what, (count, examples)) in &self.oddities {
            out.push_str(&format!("    {what:<42}{:>9}   {}\n", HumanCount(*count).to_string(), examples.join(", ")));
        }
        out
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
        let (report, ended) = inspect(&input);
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
            let total: u64 = report.oddities.values().map(|(count, _)| count).sum();
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
            "x.xml: 3 labels",
            "the largest is 2 with 50",
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
        let (report, ended) = inspect(&input);
        assert_eq!(report.records, 1);
        assert!(ended.is_err_and(|e| e.contains("cut off")));
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
            let (report, ended) = inspect(&input);
            assert_eq!(ended, Ok(()));
            assert_eq!(report.records as usize, file.messages.split_inclusive(|b| *b == b'\n').count());
            if (file.data_type, file.month) == (DataType::Labels, "20260401") {
                assert!(report.count("empty item in a list") > 0 && report.count("missing_id") == 0);
            }
        }
    }
}
