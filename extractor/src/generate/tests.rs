use super::*;
use std::collections::{BTreeMap, HashMap, HashSet};

const SPEC: Spec = Spec { seed: 1, records: 2000, month: 1, changed: 0.2, removed: 0.1 };

fn file(spec: &Spec, kind: DataType) -> String {
    let mut bytes = Vec::new();
    let written = write(spec, kind, &mut bytes).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    assert_eq!(written, Written { records: records(&text, kind).len() as u64, bytes: text.len() as u64 });
    text
}

/// The records of a file with their ids, in the file's order.
fn records(text: &str, kind: DataType) -> Vec<(u64, &str)> {
    let body = text.strip_prefix(&format!("<{}>", kind.name())).unwrap();
    let body = body.strip_suffix(&format!("\n</{}>\n", kind.name())).unwrap();
    let mark = format!("\n<{}", kind.name().trim_end_matches('s'));
    let own = if matches!(kind, DataType::Artists | DataType::Labels) { "<id>" } else { " id=\"" };
    let mut starts: Vec<_> = body.match_indices(&mark).map(|(at, _)| at).collect();
    starts.push(body.len());
    let records = starts.windows(2).map(|w| &body[w[0] + 1..w[1]]);
    records.map(|record| (between(record, own), record)).collect()
}

fn records_by_id(text: &str, kind: DataType) -> BTreeMap<u64, &str> {
    records(text, kind).into_iter().collect()
}

/// The number after the first occurrence of a mark.
fn between(text: &str, mark: &str) -> u64 {
    let rest = text.split_once(mark).unwrap().1;
    rest[..rest.find(|c: char| !c.is_ascii_digit()).unwrap()].parse().unwrap()
}

/// The numbers after all occurrences of a mark.
fn numbers(text: &str, mark: &str) -> Vec<u64> {
    text.match_indices(mark).map(|(at, _)| between(&text[at..], mark)).collect()
}

/// Whether every start tag has its end tag, and no character is where XML has none.
fn well_formed(text: &str) -> bool {
    let mut open = Vec::new();
    for part in text.split('<').skip(1) {
        let (tag, text) = part.split_once('>').unwrap();
        let (name, attributes) = tag.split_once(' ').unwrap_or((tag.trim_end_matches('/'), ""));
        if let Some(end) = tag.strip_prefix('/') {
            if open.pop() != Some(end) {
                return false;
            }
        } else if !tag.ends_with('/') {
            open.push(name);
        }
        let references = tag.split('&').skip(1).chain(text.split('&').skip(1));
        let control = |c: char| c < ' ' && c != '\n' && c != '\t';
        if text.contains('>')
            || attributes.matches('"').count() % 2 != 0
            || attributes.contains(['\n', '\t'])
            || part.contains(control)
            || references.into_iter().any(|r| r.split_once(';').is_none_or(|(name, _)| name.len() > 4))
        {
            return false;
        }
    }
    open.is_empty()
}

#[test]
fn a_seed_gives_the_same_bytes() {
    for kind in DataType::ALL {
        let third = Spec { month: 3, ..SPEC };
        assert_eq!(file(&third, kind), file(&third, kind));
        assert_ne!(file(&SPEC, kind), file(&Spec { seed: 2, ..SPEC }, kind));
    }
}

#[test]
fn the_types_have_their_shares() {
    let sizes =
        |records| DataType::ALL.map(|kind| write(&Spec { records, ..SPEC }, kind, &mut io::sink()).unwrap().records);
    assert_eq!(sizes(2000), [580, 140, 160, 1120]);
    assert_eq!(sizes(0), [1; 4]);
}

#[test]
fn records_are_about_as_large_as_the_real_ones() {
    let spec = Spec { records: 20_000, ..SPEC };
    for (kind, sizes) in DataType::ALL.into_iter().zip([170..290, 170..240, 900..1400, 3000..3700]) {
        let written = write(&spec, kind, &mut io::sink()).unwrap();
        assert!(sizes.contains(&(written.bytes / written.records)), "{kind:?} {written:?}");
    }
}

#[test]
fn files_are_well_formed_and_ids_ascend() {
    for kind in DataType::ALL {
        for month in 1..=3 {
            let text = file(&Spec { month, ..SPEC }, kind);
            assert!(well_formed(&text));
            let mut last = 0;
            for (id, record) in records(&text, kind) {
                assert!(well_formed(record));
                assert!(id > last && (kind, id) != (DataType::Artists, world::VARIOUS));
                last = id;
            }
        }
    }
    let broken = ["<a><b></a></b>", "<a>", "<a>\u{7}</a>", "<a b=\"></a>", "<a>x & y</a>", "<a>\r</a>", "</a>"];
    assert!(!broken.into_iter().any(well_formed));
}

#[test]
fn months_differ_as_much_as_asked() {
    for kind in DataType::ALL {
        let months = [1, 2, 3].map(|month| file(&Spec { month, ..SPEC }, kind));
        let [first, second, third] = months.each_ref().map(|text| records_by_id(text, kind));
        let births = first.len().div_ceil(100);
        for (old, new) in [(&first, &second), (&second, &third)] {
            let (total, last) = (old.len() as f64, *old.keys().last().unwrap());
            let removed = old.keys().filter(|id| !new.contains_key(id)).count() as f64;
            let changed = old.iter().filter(|(id, xml)| new.get(id).is_some_and(|n| n != *xml)).count() as f64;
            let added: Vec<_> = new.keys().filter(|id| !old.contains_key(id)).collect();
            let allowed = 2.0 + total * 0.01;
            assert!((removed - total * 0.1).abs() < allowed, "{kind:?}: {removed} of {total} removed");
            assert!((changed - total * 0.2).abs() < allowed, "{kind:?}: {changed} of {total} changed");
            assert_eq!(added.len(), births);
            assert!(added.into_iter().all(|id| *id > last));
        }
        assert!(first.keys().all(|id| second.contains_key(id) || !third.contains_key(id)));
        // What changed in month 2 only keeps the change.
        let kept = |id: &u64| second.get(id) != first.get(id) && second.get(id) == third.get(id);
        assert!(first.keys().filter(|id| second.contains_key(id)).any(kept));
    }
}

#[test]
fn without_changes_a_month_only_grows() {
    for kind in DataType::ALL {
        let [first, second] = [1, 2].map(|month| file(&Spec { month, changed: 0.0, removed: 0.0, ..SPEC }, kind));
        let end = format!("</{}>\n", kind.name());
        assert!(second.starts_with(first.strip_suffix(&end).unwrap()) && second.len() > first.len());
    }
}

/// Of all relations to an existing record, the fraction that this one tells of, too.
fn agreement(text: &str, kind: DataType, field: &str, opposite: &str) -> f64 {
    let records = records_by_id(text, kind);
    let list = |record: &str, field: &str| {
        let start = record.find(&format!("<{field}")).unwrap_or(record.len());
        let end = record.find(&format!("</{field}>")).unwrap_or(record.len());
        numbers(&record[start..end], " id=\"")
    };
    let (mut all, mut mutual) = (0.0, 0.0);
    for (id, record) in &records {
        for other in list(record, field).iter().filter_map(|other| records.get(other)) {
            all += 1.0;
            mutual += if list(other, opposite).contains(id) { 1.0 } else { 0.0 };
        }
    }
    assert!(all > 20.0, "{field}: {all}");
    mutual / all
}

#[test]
fn relations_are_told_by_both_sides_mostly() {
    let spec = Spec { records: 20_000, ..SPEC };
    let (artists, labels) = (file(&spec, DataType::Artists), file(&spec, DataType::Labels));
    for (text, kind, field, opposite) in [
        (&artists, DataType::Artists, "aliases", "aliases"),
        (&artists, DataType::Artists, "members", "groups"),
        (&artists, DataType::Artists, "groups", "members"),
        (&labels, DataType::Labels, "parentLabel", "sublabels"),
        (&labels, DataType::Labels, "sublabels", "parentLabel"),
    ] {
        let share = agreement(text, kind, field, opposite);
        assert!(share > 0.7 && share < 1.0, "{field}: {share}");
    }
}

/// How often the most frequent number occurs, and which it is, and how often the median one.
fn hub(numbers: Vec<u64>) -> (u64, usize, usize) {
    let mut counts = HashMap::new();
    numbers.into_iter().for_each(|number| *counts.entry(number).or_insert(0) += 1);
    let mut sorted: Vec<_> = counts.into_iter().map(|(number, count)| (count, number)).collect();
    sorted.sort_unstable();
    let (count, number) = sorted[sorted.len() - 1];
    (number, count, sorted[sorted.len() / 2].0)
}

#[test]
fn the_graph_has_hubs_and_loose_ends() {
    let spec = Spec { records: 20_000, ..SPEC };
    let releases = file(&spec, DataType::Releases);
    let credits = numbers(&releases, "<artist><id>");
    let (number, most, median) = hub(credits.iter().copied().filter(|id| *id != 0).collect());
    assert!(number == world::VARIOUS && most > 60 * median, "{number} {most} {median}");
    let (_, most, median) = hub(credits.into_iter().filter(|id| *id != 0 && *id != world::VARIOUS).collect());
    assert!(most > 30 * median, "artists: {most} {median}");
    let companies = numbers(&releases, "<company><id>");
    let (_, most, median) = hub(companies.clone());
    assert!(most > 100 * median, "labels: {most} {median}");
    let labels: HashSet<_> = records_by_id(&file(&spec, DataType::Labels), DataType::Labels).into_keys().collect();
    let dangling = companies.iter().filter(|id| !labels.contains(id)).count() as f64 / companies.len() as f64;
    assert!((dangling - 1.0 / 12.0).abs() < 0.01, "{dangling}");
}

#[test]
fn a_master_and_its_main_release_agree_mostly() {
    let (masters, releases) = (file(&SPEC, DataType::Masters), file(&SPEC, DataType::Releases));
    let (masters, releases) = (records(&masters, DataType::Masters), records_by_id(&releases, DataType::Releases));
    let agrees = |(id, master): &&(u64, &str)| {
        releases[&between(master, "<main_release>")].contains(&format!("<master_id is_main_release=\"true\">{id}<"))
    };
    let share = masters.iter().filter(agrees).count() as f64 / masters.len() as f64;
    assert!(share > 0.8 && share < 1.0, "{share}");
}

#[test]
fn documented_anomalies_are_there() {
    let spec = Spec { records: 20_000, ..SPEC };
    let [artists, labels, _, releases] = DataType::ALL.map(|kind| file(&spec, kind));
    assert!(artists.contains("<name>\u{a0}</name>"));
    assert!(records(&labels, DataType::Labels).iter().any(|(_, label)| !label.contains("<name>")));
    for mark in ["<members><id>", " id=\"0\">"] {
        assert!(artists.contains(mark), "{mark}");
    }
    for mark in ["<label/>", "<url/>", "&#13;\n", "\u{2028}", "&amp;amp;"] {
        assert!(labels.contains(mark) || artists.contains(mark), "{mark}");
    }
    for mark in ["<artist><name>", "<artist><id>0</id>", "<company><name>", "&quot;", "&#9;", "<anv></anv>", "status="]
    {
        assert!(releases.contains(mark), "{mark}");
    }
    assert!(numbers_of_digits(&releases).any(|digits| (52..=64).contains(&digits)));
    let releases = records(&releases, DataType::Releases);
    assert!(releases.iter().any(|(_, xml)| xml.split("<title>").any(|t| t.find('<').is_some_and(|len| len > 2704))));
    assert!(releases.iter().any(|(_, xml)| xml.matches("<track>").count() > 500 && xml.len() > 200_000));
    let twice = |(_, xml): &(u64, &str)| {
        let rows: Vec<_> = xml.split("<label ").skip(1).collect();
        rows.len() > rows.iter().map(|row| row.split_once('>').unwrap().0).collect::<HashSet<_>>().len()
    };
    assert!(releases.iter().any(twice));
}

/// The digits of each format's quantity.
fn numbers_of_digits(text: &str) -> impl Iterator<Item = usize> {
    text.split(" qty=\"").skip(1).filter_map(|rest| rest.find('"'))
}
