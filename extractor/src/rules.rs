//! Optional data-quality rules (contract §2.3): records to skip, values to drop, years to clear. They work on the shape
//! of the XML, before it is normalised. `data-quality-rules.json` beside the sources has the contract's.

use std::collections::BTreeMap;
use std::path::Path;

use common::DataType;
use regex_lite::Regex;
use serde::Deserialize;

use crate::node::{Node, Object};

/// The rules of one file.
#[derive(Debug)]
pub struct Rules([OfType; 4]);

#[derive(Debug, Default)]
struct OfType {
    skip: Vec<(String, String)>,
    drop_values: Vec<(Vec<String>, Regex)>,
    null_years: Vec<(String, i64, i64)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    #[serde(default)]
    skip: Vec<Skip>,
    #[serde(default)]
    drop_values: Vec<DropValues>,
    #[serde(default)]
    null_years: Vec<NullYears>,
}

/// Records whose `field` has `contains` in it, in any case, are not published.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Skip {
    field: String,
    contains: String,
}

/// Values at `field` (names with dots between) that match a regular expression are removed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DropValues {
    field: String,
    matches: String,
}

/// A year or date in `field` before `min` or after `max` becomes null.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NullYears {
    field: String,
    min: i64,
    max: i64,
}

impl Rules {
    /// Reads a rules file.
    ///
    /// # Errors
    /// What is wrong with it, for a person.
    pub fn read(path: &Path) -> Result<Rules, String> {
        let named = |e: String| format!("rules file {}: {e}", path.display());
        let text = std::fs::read_to_string(path).map_err(|e| named(e.to_string()))?;
        Rules::parse(&text).map_err(named)
    }

    /// Parses the text of a rules file.
    ///
    /// # Errors
    /// What is wrong with it, for a person.
    pub fn parse(text: &str) -> Result<Rules, String> {
        let mut by_name: BTreeMap<String, Text> = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let mut rules = Rules(Default::default());
        for data_type in DataType::ALL {
            let Some(text) = by_name.remove(data_type.name()) else { continue };
            let of_type = &mut rules.0[data_type.index()];
            of_type.skip = text.skip.into_iter().map(|s| (s.field, s.contains.to_lowercase())).collect();
            for rule in text.drop_values {
                let regex = Regex::new(&rule.matches).map_err(|e| format!("{:?}: {e}", rule.matches))?;
                of_type.drop_values.push((rule.field.split('.').map(str::to_owned).collect(), regex));
            }
            of_type.null_years = text.null_years.into_iter().map(|n| (n.field, n.min, n.max)).collect();
        }
        match by_name.keys().next() {
            None => Ok(rules),
            Some(unknown) => Err(format!("{unknown:?} is none of artists, labels, masters, releases")),
        }
    }

    /// Applies the rules of a type. False if the record is not to be published.
    pub fn apply(&self, data_type: DataType, record: &mut Object<'_>) -> bool {
        let rules = &self.0[data_type.index()];
        let unwanted = |(field, part): &(String, String)| {
            record.get(field).and_then(Node::text).is_some_and(|text| text.to_lowercase().contains(part))
        };
        if rules.skip.iter().any(unwanted) {
            return false;
        }
        for (path, regex) in &rules.drop_values {
            drop_values(record, path, regex);
        }
        for (field, min, max) in &rules.null_years {
            if let Some(value) = record.get_mut(field)
                && value.text().and_then(year).is_some_and(|year| year < *min || year > *max)
            {
                *value = Node::Null;
            }
        }
        true
    }
}

fn drop_values(object: &mut Object<'_>, path: &[String], regex: &Regex) {
    let Some((name, rest)) = path.split_first() else { return };
    let matches = |node: &Node<'_>| node.text().is_some_and(|text| regex.is_match(text));
    match object.get_mut(name) {
        Some(Node::Object(inner)) if !rest.is_empty() => drop_values(inner, rest, regex),
        // A list is the container's content already where the input is in the shape of the messages.
        Some(Node::List(items)) => items.retain(|item| !matches(item)),
        Some(value) if rest.is_empty() && matches(value) => drop(object.remove(name)),
        _ => {}
    }
}

/// The number, or a date's leading number.
fn year(text: &str) -> Option<i64> {
    text.trim().split(['-', '/', '.', ' ', 'T']).next()?.parse().ok()
}
