//! What a run did, for people and for the webhook.

use std::fmt::Write;
use std::time::Duration;

use common::DataType;
use indicatif::{HumanCount, HumanDuration};
use serde_json::{Value, json};

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
                    let processed = file.map_or(0, |file| file.mark.processed);
                    summary.failures.push(format!("{}: {e} (behind record {processed})", progress.name));
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
                let text = format!("{}: {} records were rejected", row.data_type, HumanCount(row.mark.rejected));
                summary.warnings.push(format!("{text}; rejects-{}-{}.jsonl says why", plan.version, row.data_type));
            }
            match summary.previous(row.data_type) {
                Some((version, count)) if row.complete && row.mark.processed < count => {
                    summary.warnings.push(format!(
                        "{} shrank: {} records, {} in {version}; is the dump complete?",
                        row.data_type,
                        HumanCount(row.mark.processed),
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
        let before = self.before.as_ref().map_or(String::new(), |(version, _)| format!("against {version}"));
        let _ = writeln!(
            out,
            "  {:<9}{:>13}{:>13}{:>10}{:>10}{:>11}   {before}",
            "", "records", "published", "skipped", "rejected", "records/s"
        );
        for row in &self.rows {
            let m = row.mark;
            let rate = row.rate.map_or("-".to_owned(), |rate| HumanCount(rate.round() as u64).to_string());
            let difference = match self.previous(row.data_type) {
                Some((_, count)) if m.processed >= count => format!("+{}", HumanCount(m.processed - count)),
                Some((_, count)) => format!("-{}", HumanCount(count - m.processed)),
                None => String::new(),
            };
            let unfinished = if row.complete { "" } else { "  not finished" };
            let _ = writeln!(
                out,
                "  {:<9}{:>13}{:>13}{:>10}{:>10}{rate:>11}   {difference}{unfinished}",
                row.data_type.name(),
                HumanCount(m.processed).to_string(),
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
            let _ = writeln!(out, "  Nothing that is confirmed is sent again: repair what is wrong and run it again.");
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
                    "records": m.processed,
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
