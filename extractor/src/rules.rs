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

/// What the rules did to a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It is not to be published.
    Skipped,
    /// Something of it was taken away.
    Changed,
    /// It is as it was.
    Unchanged,
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

    /// Applies the rules of a type.
    pub fn apply(&self, data_type: DataType, record: &mut Object<'_>) -> Applied {
        let rules = &self.0[data_type.index()];
        let unwanted = |(field, part): &(String, String)| {
            record.get(field).and_then(Node::text).is_some_and(|text| text.to_lowercase().contains(part))
        };
        if rules.skip.iter().any(unwanted) {
            return Applied::Skipped;
        }
        let mut changed = false;
        for (path, regex) in &rules.drop_values {
            changed |= drop_values(record, path, regex);
        }
        for (field, min, max) in &rules.null_years {
            if let Some(value) = record.get_mut(field)
                && let Node::Text(text) | Node::Literal(text) = value
                && year(text).is_some_and(|year| year < *min || year > *max)
            {
                *value = Node::Null;
                changed = true;
            }
        }
        if changed { Applied::Changed } else { Applied::Unchanged }
    }
}

/// Whether there were any.
fn drop_values(object: &mut Object<'_>, path: &[String], regex: &Regex) -> bool {
    let Some((name, rest)) = path.split_first() else { return false };
    let matches = |node: &Node<'_>| node.text().is_some_and(|text| regex.is_match(text));
    match object.get_mut(name) {
        Some(Node::Object(inner)) if !rest.is_empty() => drop_values(inner, rest, regex),
        // A list is the container's content already where the input is in the shape of the messages.
        Some(Node::List(items)) => {
            let before = items.len();
            items.retain(|item| !matches(item));
            items.len() < before
        }
        Some(value) if rest.is_empty() && matches(value) => object.remove(name).is_some(),
        _ => false,
    }
}

/// The number, or a date's leading number.
fn year(text: &str) -> Option<i64> {
    let text = text.trim();
    text.parse().ok().or_else(|| text.split(['-', '/', '.', ' ', 'T']).next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jsonl;
    use crate::testing::{Folder, json};

    /// The rules that come with the extractor.
    fn shipped() -> Rules {
        Rules::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("data-quality-rules.json")).unwrap()
    }

    /// A record after the rules, unless it is skipped.
    fn applied(rules: &Rules, data_type: DataType, text: &str) -> Option<String> {
        let Node::Object(mut record) = jsonl::parse(text).unwrap() else { panic!("{text}") };
        (rules.apply(data_type, &mut record) != Applied::Skipped).then(|| json(record))
    }

    #[test]
    fn the_shipped_rules_skip_what_is_not_to_be_used() {
        let rules = shipped();
        for (profile, skipped) in
            [(r#""x DO not Use! y""#, true), (r#""do notuse""#, false), ("null", false), (r#"["do not use"]"#, false)]
        {
            let record = format!(r#"{{"profile":{profile}}}"#);
            for data_type in DataType::ALL {
                let skipped = skipped && matches!(data_type, DataType::Artists | DataType::Labels);
                let expected = (!skipped).then(|| record.clone());
                assert_eq!(applied(&rules, data_type, &record), expected, "{data_type} {profile}");
            }
        }
    }

    #[test]
    fn the_shipped_rules_drop_genres_that_are_numbers() {
        let rules = shipped();
        for (before, after) in [
            (r#"{"genres":{"genre":["Rock","12","1a",null,"3"]}}"#, r#"{"genres":{"genre":["Rock","1a",null]}}"#),
            (r#"{"genres":{"genre":"12"}}"#, r#"{"genres":{}}"#),
            (r#"{"genres":{"genre":"Rock"}}"#, r#"{"genres":{"genre":"Rock"}}"#),
            (r#"{"genres":["Rock","12"]}"#, r#"{"genres":["Rock"]}"#),
            (r#"{"genres":null,"styles":{"style":"12"}}"#, r#"{"genres":null,"styles":{"style":"12"}}"#),
        ] {
            for data_type in DataType::ALL {
                let dropped = matches!(data_type, DataType::Masters | DataType::Releases);
                assert_eq!(applied(&rules, data_type, before).unwrap(), if dropped { after } else { before });
            }
        }
    }

    #[test]
    fn the_shipped_rules_clear_years_that_can_not_be() {
        let rules = shipped();
        for (year, cleared) in [
            ("1859", true),
            ("1860", false),
            ("2027", false),
            ("2028", true),
            ("0", true),
            ("-5", true),
            ("-5-01", false),
            ("1859-12-31", true),
            ("2028/01", true),
            ("1.2.1999", true),
            ("1999-00-00", false),
            ("198T", true),
            ("3000 or so", true),
            ("19??", false),
            ("unknown", false),
            ("", false),
        ] {
            for (data_type, fields) in [
                (DataType::Masters, ["year", "released"]),
                (DataType::Releases, ["year", "released"]),
                (DataType::Artists, ["year", "released"]),
            ] {
                for field in fields {
                    let before = format!(r#"{{"{field}":"{year}"}}"#);
                    let applies = data_type == DataType::Releases || data_type == DataType::Masters && field == "year";
                    let after = if cleared && applies { format!(r#"{{"{field}":null}}"#) } else { before.clone() };
                    assert_eq!(applied(&rules, data_type, &before).unwrap(), after, "{data_type}");
                }
            }
        }
        assert_eq!(applied(&rules, DataType::Masters, r#"{"year":1500}"#).unwrap(), r#"{"year":null}"#);
    }

    #[test]
    fn a_rules_file_that_is_wrong_says_what_is() {
        for (text, expected) in [
            (r#"{"artist":{}}"#, r#""artist" is none of artists, labels, masters, releases"#),
            (r#"{"artists":{"skips":[]}}"#, "unknown field `skips`"),
            (r#"{"artists":{"skip":[{"field":"x","has":"y"}]}}"#, "unknown field `has`"),
            (r#"{"artists":{"skip":[{"field":"x"}]}}"#, "missing field `contains`"),
            (r#"{"artists":{"drop_values":[{"field":"x","matches":"("}]}}"#, r#""(": "#),
            (r#"{"artists":{"null_years":[{"field":"x","min":1,"max":2,"x":3}]}}"#, "unknown field `x`"),
            ("[]", "expected a map"),
        ] {
            let error = Rules::parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let folder = Folder::new();
        for (path, expected) in
            [(folder.file("rules", "x"), "expected value"), (folder.path().join("none"), "No such file")]
        {
            let error = Rules::read(&path).unwrap_err();
            assert!(
                error.starts_with(&format!("rules file {}: ", path.display())) && error.contains(expected),
                "{error}"
            );
        }
        assert!(Rules::parse("{}").is_ok());
    }
}
