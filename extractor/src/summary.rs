//! What a run did, for people and for the webhook.

use std::fmt::Write;
use std::time::Duration;

use common::DataType;
use indicatif::{HumanCount, HumanDuration};
use serde_json::{Value, json};

use crate::file::FileError;
use crate::message::Counts;
use crate::plan::Plan;
use crate::run::FileOutcome;
use crate::state::{Mark, VersionState};

/// What a run did with one version.
#[derive(Clone, Debug)]
pub struct Summary {
    version: String,
    started_at: String,
    rows: Vec<Row>,
    before: Option<(String, Counts)>,
    took: Duration,
    /// Whether `extraction_complete` was published.
    pub announced: bool,
    /// What did not work, and keeps the version from being complete.
    pub failures: Vec<String>,
    /// What an operator should look at.
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug)]
struct Row {
    data_type: DataType,
    mark: Mark,
    complete: bool,
    rate: Option<f64>,
}

impl Summary {
    /// Sums up. `before` are the counts of the version before this one.
    pub fn new(
        plan: &Plan,
        state: &VersionState,
        before: Option<(String, Counts)>,
        outcomes: &[FileOutcome],
        took: Duration,
    ) -> Self {
        let mut summary = Summary {
            version: plan.version.clone(),
            started_at: state.started_at.clone(),
            rows: Vec::new(),
            before,
            took,
            announced: false,
            failures: Vec::new(),
            warnings: Vec::new(),
        };
        for data_type in DataType::ALL {
            let input = plan.inputs.iter().find(|input| input.data_type == data_type);
            let worked = outcomes.iter().find(|(progress, _)| progress.data_type == data_type);
            let file = state.file(data_type);
            match (input, worked) {
                (_, Some((progress, Err(e)))) => {
                    // A file that was not looked into has no place, even if another one of its name was begun.
                    let place = match (e, file.map_or(0, |file| file.mark.processed)) {
                        (FileError::Checksum(_), _) | (_, 0) => String::new(),
                        (e, processed) if e.begins_anew() => {
                            format!(" (behind record {processed}; the next run begins anew with it)")
                        }
                        (_, processed) => format!(" (behind record {processed}; the next run goes on there)"),
                    };
                    summary.failures.push(format!("{}: {e}{place}", progress.name));
                }
                (Some(input), None) if file.is_none_or(|file| !file.complete) => {
                    summary.failures.push(format!("{}: internal error: its task died", input.name()));
                }
                _ => {}
            }
            let Some(file) = file else { continue };
            let rate = worked.map(|(progress, _)| progress.rate());
            summary.rows.push(Row { data_type, mark: file.mark, complete: file.complete, rate });
        }
        let given = |t: DataType| plan.inputs.iter().any(|input| input.data_type == t);
        let missing = DataType::ALL.into_iter().filter(|t| state.file(*t).is_none() && !given(*t));
        let missing: Vec<_> = missing.map(DataType::name).collect();
        if !missing.is_empty() {
            let what = "extraction_complete is only published when all four types are: the workers would take \
                        records of a missing type for vanished ones";
            summary.warnings.push(format!("no file of {}; {what}", missing.join(", ")));
        }
        for row in &summary.rows {
            if row.mark.rejected > 0 {
                let text = format!("{}: {} rejected", row.data_type, counted(row.mark.rejected));
                summary.warnings.push(format!("{text}; rejects-{}-{}.jsonl says why", plan.version, row.data_type));
            }
            match summary.previous(row.data_type) {
                Some((version, count)) if row.complete && row.mark.records() < count => {
                    summary.warnings.push(format!(
                        "{} shrank: {} records, {} in {version}; is the dump complete?",
                        row.data_type,
                        HumanCount(row.mark.records()),
                        HumanCount(count)
                    ));
                }
                _ => {}
            }
        }
        summary
    }

    fn previous(&self, data_type: DataType) -> Option<(&str, u64)> {
        let (version, counts) = self.before.as_ref()?;
        counts.iter().find(|(t, _)| *t == data_type).map(|(_, count)| (version.as_str(), *count))
    }

    /// Records that were rejected.
    pub fn rejected(&self) -> u64 {
        self.rows.iter().map(|row| row.mark.rejected).sum()
    }

    /// For people.
    pub fn to_text(&self) -> String {
        let mut out = format!("Dump {} in {}\n", self.version, HumanDuration(self.took));
        let before = match &self.before {
            Some((version, _)) => format!("against {version}"),
            None => "(no complete dump before it in this state)".to_owned(),
        };
        let _ = writeln!(
            out,
            "  {:<9}{:>13}{:>13}{:>10}{:>10}{:>11}   {before}",
            "", "records", "published", "skipped", "rejected", "records/s"
        );
        for row in &self.rows {
            let m = row.mark;
            let rate = row.rate.map_or("-".to_owned(), |rate| HumanCount(rate.round() as u64).to_string());
            let difference = match self.previous(row.data_type) {
                Some((_, count)) if m.records() >= count => format!("+{}", HumanCount(m.records() - count)),
                Some((_, count)) => format!("-{}", HumanCount(count - m.records())),
                None => String::new(),
            };
            let unfinished = if row.complete { "" } else { "  not finished" };
            let _ = writeln!(
                out,
                "  {:<9}{:>13}{:>13}{:>10}{:>10}{rate:>11}   {difference}{unfinished}",
                row.data_type.name(),
                HumanCount(m.records()).to_string(),
                HumanCount(m.published).to_string(),
                HumanCount(m.skipped).to_string(),
                HumanCount(m.rejected).to_string(),
            );
        }
        for warning in &self.warnings {
            let _ = writeln!(out, "  warning: {warning}");
        }
        for failure in &self.failures {
            let _ = writeln!(out, "  error: {failure}");
        }
        if !self.failures.is_empty() {
            let _ = writeln!(out, "  Repair what is wrong and run it again: what is finished is not published twice.");
        }
        if self.announced {
            let _ = writeln!(out, "  All four types are published; the workers were told (extraction_complete).");
        }
        out
    }

    /// For the webhook.
    pub fn to_json(&self) -> Value {
        let types: serde_json::Map<String, Value> = self
            .rows
            .iter()
            .map(|row| {
                let m = row.mark;
                let value = json!({
                    "records": m.records(),
                    "published": m.published,
                    "skipped": m.skipped,
                    "rejected": m.rejected,
                    "previous": self.previous(row.data_type).map(|(_, count)| count),
                });
                (row.data_type.name().to_owned(), value)
            })
            .collect();
        json!({
            "version": self.version,
            "started_at": self.started_at,
            "finished_at": crate::message::timestamp(chrono::Utc::now()),
            "duration_seconds": self.took.as_secs_f64(),
            "previous_version": self.before.as_ref().map(|(version, _)| version),
            "types": types,
            "warnings": self.warnings,
        })
    }
}

/// So many records, in words.
pub fn counted(records: u64) -> String {
    if records == 1 { "1 record was".to_owned() } else { format!("{} records were", HumanCount(records)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::{Input, ReadError};
    use crate::progress::FileProgress;
    use crate::state::FileState;
    use std::sync::Arc;

    const VERSION: &str = "20260401";

    fn input(data_type: DataType) -> Input {
        Input {
            path: format!("/x/discogs_{VERSION}_{data_type}.xml.gz").into(),
            data_type,
            version: VERSION.to_owned(),
        }
    }

    fn mark(processed: u64, rejected: u64) -> Mark {
        Mark { processed, published: processed - 2, skipped: 2, rejected, ..Mark::default() }
    }

    /// A run with all four types, of which `marks` were reached, and the counts before.
    fn summary(marks: &[(DataType, Mark, bool)], before: &[(DataType, u64)], outcomes: &[FileOutcome]) -> Summary {
        let plan = Plan { version: VERSION.to_owned(), inputs: marks.iter().map(|(t, ..)| input(*t)).collect() };
        let mut state = VersionState { started_at: "2026-04-02T00:00:00Z".to_owned(), ..VersionState::default() };
        for (data_type, mark, complete) in marks {
            let file = FileState { mark: *mark, complete: *complete, ..FileState::default() };
            state.files.insert(data_type.name().to_owned(), file);
        }
        let before = (!before.is_empty()).then(|| ("20260301".to_owned(), before.to_vec()));
        Summary::new(&plan, &state, before, outcomes, Duration::from_secs(60))
    }

    fn complete(rejected: u64) -> Vec<(DataType, Mark, bool)> {
        DataType::ALL.map(|t| (t, mark(12_345, rejected), true)).to_vec()
    }

    #[test]
    fn a_run_without_problems_has_no_warnings() {
        let mut summary = summary(&complete(0), &DataType::ALL.map(|t| (t, 12_345)), &[]);
        summary.announced = true;
        assert_eq!((&summary.warnings, &summary.failures, summary.rejected()), (&vec![], &vec![], 0));
        let text = summary.to_text();
        for part in [
            "Dump 20260401 in 60 seconds",
            "against 20260301",
            "artists",
            "12,345",
            "12,343",
            "+0",
            "(extraction_complete)",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("warning") && !text.contains("not finished"), "{text}");
    }

    #[test]
    fn a_type_that_shrank_is_warned_of() {
        let before = [(DataType::Artists, 12_346), (DataType::Labels, 12_345), (DataType::Masters, 1)];
        let all = summary(&complete(0), &before, &[]);
        assert_eq!(all.warnings, ["artists shrank: 12,345 records, 12,346 in 20260301; is the dump complete?"]);
        let text = all.to_text();
        assert!(text.contains("   -1\n") && text.contains("   +0\n") && text.contains("   +12,344\n"), "{text}");
        // One that is not finished yet has not shrunk.
        assert_eq!(summary(&[(DataType::Artists, mark(5, 0), false)], &before, &[]).warnings.len(), 1);
    }

    #[test]
    fn rejects_and_missing_types_are_warned_of() {
        let mut marks = complete(0);
        marks[1].1.rejected = 1234;
        marks.truncate(2);
        let summary = summary(&marks, &[], &[]);
        assert_eq!(summary.rejected(), 1234);
        assert!(summary.warnings[0].starts_with("no file of masters, releases; extraction_complete is only published"));
        assert_eq!(summary.warnings[1], "labels: 1,234 records were rejected; rejects-20260401-labels.jsonl says why");
        assert_eq!(summary.warnings.len(), 2);
    }

    #[test]
    fn the_columns_add_up_whatever_was_rejected() {
        // Two that could not be read, and one that was read and had no id: that one counts as processed.
        let mark = Mark { processed: 8, published: 4, skipped: 3, rejected: 3, ..Mark::default() };
        let text = summary(&[(DataType::Labels, mark, true)], &[(DataType::Labels, 11)], &[]).to_text();
        let row = text.lines().find(|line| line.contains("labels ")).unwrap();
        let numbers: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(numbers, ["labels", "10", "4", "3", "3", "-", "-1"], "{text}");
        assert!(text.contains("labels shrank: 10 records, 11 in 20260301"), "{text}");
    }

    #[test]
    fn a_failure_tells_the_place_only_if_there_is_one() {
        let failure = |error, processed| {
            let file = input(DataType::Labels);
            let outcomes = [(Arc::new(FileProgress::new(&file, 0)), Err(error))];
            let mark = Mark { processed, published: processed, ..Mark::default() };
            summary(&[(DataType::Labels, mark, false)], &[], &outcomes).failures.remove(0)
        };
        let empty = || FileError::Read(ReadError::Empty);
        let name = "discogs_20260401_labels.xml.gz";
        assert_eq!(failure(empty(), 0), format!("{name}: the file is empty"));
        assert_eq!(
            failure(empty(), 7),
            format!("{name}: the file is empty (behind record 7; the next run begins anew with it)")
        );
        for processed in [0, 7] {
            assert_eq!(failure(FileError::Checksum("is wrong".to_owned()), processed), format!("{name}: is wrong"));
        }
    }

    #[test]
    fn a_file_that_is_not_finished_is_a_failure() {
        let labels = Input { path: "labels.xml".into(), data_type: DataType::Labels, version: "20260401".to_owned() };
        let progress = Arc::new(FileProgress::new(&labels, 0));
        let outcomes = [(progress, Err(FileError::Interrupted))];
        let marks = [(DataType::Labels, mark(7, 0), false), (DataType::Masters, mark(8, 0), false)];
        let summary = summary(&marks, &[], &outcomes);
        assert_eq!(summary.failures[0], "labels.xml: interrupted (behind record 7; the next run goes on there)");
        assert!(summary.failures[1].starts_with("discogs_20260401_masters.xml.gz: "), "{:?}", summary.failures);
        let text = summary.to_text();
        assert!(text.contains("  error: labels.xml: interrupted") && text.contains("not finished"), "{text}");
        assert!(!text.contains("(extraction_complete)"), "{text}");
    }

    #[test]
    fn the_webhook_gets_the_numbers() {
        let summary = summary(&complete(3), &[(DataType::Artists, 5)], &[]);
        let mut json = summary.to_json();
        assert!(json["finished_at"].as_str().is_some_and(|t| t.ends_with('Z')));
        assert_eq!(json["types"].as_object().map(|types| types.len()), Some(4));
        assert_eq!(
            json["types"]["artists"].take(),
            json!({"records": 12_348, "published": 12_343, "skipped": 2, "rejected": 3, "previous": 5})
        );
        assert_eq!(json["types"]["labels"]["previous"], Value::Null);
        let rest = ["version", "started_at", "duration_seconds", "previous_version"].map(|key| json[key].take());
        assert_eq!(rest, [json!(VERSION), json!("2026-04-02T00:00:00Z"), json!(60.0), json!("20260301")]);
        assert_eq!(json["warnings"].as_array().map(Vec::len), Some(4));
    }
}
