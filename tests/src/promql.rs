//! As much of PromQL as it takes to find what a rule reads.

use std::collections::BTreeSet;

/// Words that are followed by a list of labels.
const LISTS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
/// Words that stand between two operands.
const OPERATORS: [&str; 5] = ["and", "or", "unless", "bool", "offset"];

/// The selectors of an expression: names of metrics with their matchers, without ranges and offsets.
pub fn selectors(expression: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut rest = expression;
    while let Some(first) = rest.chars().next() {
        let word = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':').unwrap_or(rest.len());
        let end = match first {
            '"' => quoted(rest),
            '[' => rest.find(']').map_or(rest.len(), |at| at + 1),
            _ => word.max(first.len_utf8()),
        };
        let (token, behind) = rest.split_at(end);
        rest = behind;
        if !first.is_ascii_alphabetic() && first != '_' {
            continue; // a number, a string, a range, a sign
        }
        let next = behind.trim_start();
        let grouped = ["by", "without"]
            .iter()
            .any(|word| next.strip_prefix(word).is_some_and(|list| list.trim_start().starts_with('(')));
        if LISTS.contains(&token) {
            if next.starts_with('(') {
                rest = next.split_once(')').map_or("", |(_, behind)| behind);
            }
        } else if next.starts_with('{') {
            let (matchers, behind) = next.split_at(braced(next));
            found.insert(format!("{token}{matchers}"));
            rest = behind;
        } else if !next.starts_with('(') && !grouped && !OPERATORS.contains(&token) {
            found.insert(token.to_owned());
        }
    }
    found
}

/// Length of the string that the text begins with.
fn quoted(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Length of the matchers that the text begins with.
fn braced(text: &str) -> usize {
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        match c {
            '}' => return at + 1,
            '"' => at += quoted(&text[at..]),
            _ => at += c.len_utf8(),
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::selectors;

    #[test]
    fn selectors_are_told_from_functions_labels_and_numbers() {
        for (expression, expected) in [
            (
                "ingest:queue_ready > 0 unless on (service, data_type) ingest:commit_rate > 0",
                &["ingest:commit_rate", "ingest:queue_ready"][..],
            ),
            (
                r#"sum by (service) (rate(retries_total{class!="conflict"}[10m])) / 4 * 3600"#,
                &[r#"retries_total{class!="conflict"}"#],
            ),
            (r#"absent(up{job="a"}) or max without(instance) (up == bool 0.5)"#, &["up", r#"up{job="a"}"#]),
            (
                r#"label_replace(x{queue=~".+[.]\"}(a|b)", q!=""}, "service", "$1", "queue", "(.+)-y")"#,
                &[r#"x{queue=~".+[.]\"}(a|b)", q!=""}"#],
            ),
            ("sum(a unless a offset 10m) by (b) > 1e9", &["a"]),
            ("a < max_over_time(min_over_time(a[5m])[30m:1m])", &["a"]),
            ("a * on (job) group_left (version) b and ignoring(c) d", &["a", "b", "d"]),
        ] {
            assert_eq!(selectors(expression).iter().collect::<Vec<_>>(), expected, "{expression}");
        }
    }
}
