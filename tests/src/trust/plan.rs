//! What is published: seeded messages of all four types, several versions of each record, culprits among them; and what
//! must have become of every one of them in the end.
//!
//! It is two runs of the extractor, one after the other, over what an earlier run has left. Both began before the first
//! message, so that it does not matter how late a message is written. The first ends in the midst of everything: what
//! follows from that goes on while the second one is loaded, which brings everything but what neither brings.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Duration, SecondsFormat, Utc};
use common::DataType;
use xtask::sample::{extraction_complete, file_complete};

use crate::oracle::Messages;

/// Versions of the two runs.
pub const RUNS: [&str; 2] = ["20260201", "20260301"];
/// Control messages at the end of a run.
pub const CONTROLS: usize = 8;
/// Of each type, records of the earlier run that neither of the two brings.
const GONE: usize = 6;

/// One message, in the order of publication.
#[derive(Clone, Debug)]
pub struct Planned {
    /// Where it goes.
    pub data_type: DataType,
    /// Its record; `None` for what is no record.
    pub id: Option<String>,
    /// What is sent.
    pub body: Vec<u8>,
    /// Why a worker must refuse it; empty if it is good.
    pub reason: &'static str,
    /// The workers that must refuse it.
    pub refused_by: &'static [&'static str],
}

/// All messages.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The messages, in the order of publication. Versions of a record differ in hash and content.
    pub messages: Vec<Planned>,
    /// Records that are good, by type: what others may refer to, or write to.
    pub ids: BTreeMap<DataType, Vec<String>>,
    /// How many messages the first of the two runs brings.
    middle: usize,
    /// What is there before: records that are gone, and some that come again as they are.
    pub earlier: BTreeMap<DataType, Vec<Vec<u8>>>,
    /// Those of them that are gone.
    pub gone: BTreeMap<DataType, Vec<Vec<u8>>>,
    /// How many of them only the second run brings: the first one's end may remove them for a while.
    pub late: BTreeMap<DataType, usize>,
}

/// What must be found of a plan in one worker's database and dead-letter queues.
#[derive(Clone, Debug, Default)]
pub struct Due {
    /// The messages that count for the database, in order.
    pub written: Messages,
    /// Bodies that must be dead letters, by type, with the reason.
    pub dead: BTreeMap<(DataType, Vec<u8>), &'static str>,
    /// Bodies that may be: a newer version may have superseded them before they were tried.
    pub maybe_dead: BTreeMap<(DataType, Vec<u8>), &'static str>,
    /// Types of which nothing may be removed at the end of each run, since it had dead letters for certain.
    pub vetoed: [BTreeSet<DataType>; 2],
}

const BOTH: &[&str] = &["tableinator", "graphinator"];
const TABLES: &[&str] = &["tableinator"];
const GRAPH: &[&str] = &["graphinator"];
const GENRES: [&str; 6] = ["Rock", "Jazz", "Pop", "Electronic", "Blues", "Folk"];

impl Plan {
    /// So many messages or a few more from this seed: the same seed gives the same bytes. The runs have no end yet.
    pub fn new(seed: u64, messages: usize) -> Plan {
        let mut rng = fastrand::Rng::with_seed(seed);
        let records = (messages / 3).max(60);
        let ids: BTreeMap<DataType, Vec<String>> = DataType::ALL
            .into_iter()
            .map(|t| {
                let share = if t == DataType::Releases { records * 2 / 5 } else { records / 5 };
                (t, (1..=share).map(|n| format!("{}{n:05}", &t.name()[..1])).collect())
            })
            .collect();
        // Every record once, and versions of some until there are enough.
        let mut order: Vec<(DataType, usize)> =
            ids.iter().flat_map(|(t, ids)| (0..ids.len()).map(|at| (*t, at))).collect();
        while order.len() < messages {
            let t = *rng.choice(&DataType::ALL).unwrap_or(&DataType::Releases);
            order.push((t, rng.usize(..ids[&t].len())));
        }
        rng.shuffle(&mut order);
        let mut plan = Plan {
            messages: Vec::new(),
            ids,
            middle: 0,
            earlier: BTreeMap::new(),
            gone: BTreeMap::new(),
            late: BTreeMap::new(),
        };
        let mut versions: BTreeMap<(DataType, usize), Vec<Vec<u8>>> = BTreeMap::new();
        for (t, at) in order {
            let made = versions.entry((t, at)).or_default();
            let body = match made.as_slice() {
                // The same message once more, or one that goes back to the first version.
                [.., last] if rng.u8(..10) == 0 => last.clone(),
                [first, _, ..] if rng.u8(..10) == 0 => first.clone(),
                _ => plan.record(&mut rng, t, at, &plan.ids[&t][at], made.len() + 1),
            };
            made.push(body.clone());
            plan.messages.push(Planned {
                data_type: t,
                id: Some(plan.ids[&t][at].clone()),
                body,
                reason: "",
                refused_by: &[],
            });
        }
        plan.poison(&mut rng, (messages / 150).max(6));
        plan.middle = plan.messages.len() * rng.usize(40..60) / 100;
        plan.repeat(&mut rng);
        plan.before(&mut rng);
        plan
    }

    /// The second run brings everything: what only the first one has comes once more, as it was.
    fn repeat(&mut self, rng: &mut fastrand::Rng) {
        let mut last: BTreeMap<(DataType, &str), usize> = BTreeMap::new();
        for (at, message) in self.messages.iter().enumerate() {
            last.extend(message.id.as_deref().map(|id| ((message.data_type, id), at)));
        }
        let only_first = last.into_values().filter(|at| *at < self.middle);
        for message in only_first.map(|at| self.messages[at].clone()).collect::<Vec<_>>() {
            self.messages.insert(rng.usize(self.middle..=self.messages.len()), message);
        }
    }

    /// What an earlier run has left: records that are gone, and the first version of every fourth record.
    fn before(&mut self, rng: &mut fastrand::Rng) {
        for t in DataType::ALL {
            let id = |at| format!("{}gone{at}", &t.name()[..1]);
            let gone: Vec<_> = (0..GONE).map(|at| self.record(rng, t, at, &id(at), 1)).collect();
            let mut first: BTreeMap<&str, usize> = BTreeMap::new();
            for (at, message) in self.messages.iter().enumerate().filter(|(_, m)| m.data_type == t) {
                if let Some(id) = &message.id {
                    first.entry(id).or_insert(at);
                }
            }
            let again: Vec<usize> = self.ids[&t].iter().step_by(4).map(|id| first[id.as_str()]).collect();
            self.late.insert(t, again.iter().filter(|at| **at >= self.middle).count());
            let again = again.into_iter().map(|at| self.messages[at].body.clone());
            self.earlier.insert(t, gone.iter().cloned().chain(again).collect());
            self.gone.insert(t, gone);
        }
    }

    /// Ends both runs, which began at this time, each with its own control messages.
    pub fn complete(&mut self, began: DateTime<Utc>) {
        let counts = DataType::ALL.map(|t| (t, self.ids[&t].len()));
        let second = self.messages.split_off(self.middle);
        self.end(RUNS[0], began, counts);
        self.messages.extend(second);
        self.end(RUNS[1], began + Duration::milliseconds(1), counts);
    }

    fn end(&mut self, version: &str, began: DateTime<Utc>, counts: [(DataType, usize); 4]) {
        let began = began.to_rfc3339_opts(SecondsFormat::Micros, true);
        for (t, count) in counts {
            for body in [file_complete(t, version, count), extraction_complete(version, &began, counts)] {
                self.messages.push(Planned { data_type: t, id: None, body, reason: "", refused_by: &[] });
            }
        }
    }

    /// One version of a record. What changes from version to version is what every worker takes back (contract §5);
    /// references go to records that exist, so that no stub is left of a version that is gone.
    fn record(&self, rng: &mut fastrand::Rng, t: DataType, at: usize, id: &str, version: usize) -> Vec<u8> {
        let any = |rng: &mut fastrand::Rng, t: DataType| self.ids[&t][rng.usize(..self.ids[&t].len())].clone();
        let near = |t: DataType, step: usize| self.ids[&t][(at + step) % self.ids[&t].len()].clone();
        let reference = |id: String| format!(r#"{{"id":"{id}","name":"N {id}"}}"#);
        let members = match t {
            DataType::Artists => format!(
                r#""name":"Artist {at} v{version}","members":[{}],"aliases":[{}]"#,
                reference(near(t, 1)),
                reference(near(t, 7))
            ),
            DataType::Labels => {
                format!(r#""name":"Label {at} v{version}","parentLabel":{}"#, reference(near(t, 3)))
            }
            DataType::Masters | DataType::Releases => {
                let genre = rng.usize(..GENRES.len());
                let (genre, other) = (GENRES[genre], GENRES[(genre + 1) % GENRES.len()]);
                let artists = [any(rng, DataType::Artists), any(rng, DataType::Artists)].map(reference).join(",");
                let year = 1950 + version;
                let both =
                    format!(r#""title":"Title {at} v{version}","genres":["{genre}","{other}"],"artists":[{artists}]"#);
                if t == DataType::Masters {
                    format!(r#"{both},"year":"{year}""#)
                } else {
                    let label = any(rng, DataType::Labels);
                    // Two artists of one name in one role, of whom every other version has only one.
                    let credit = |step| {
                        let (artist, person) = (near(DataType::Artists, step), at % 20);
                        format!(r#"{{"id":"{artist}","name":"Person {person}","role":"Bass"}}"#)
                    };
                    let credits = [credit(0), credit(version)][..1 + version % 2].join(",");
                    format!(
                        r#"{both},"released":"{year}","country":"C{version}","labels":[{{"id":"{label}","catno":"C {version}"}}],"master_id":"{}","formats":[{{"name":"LP"}}],"extraartists":[{credits}]"#,
                        any(rng, DataType::Masters),
                    )
                }
            }
        };
        format!(r#"{{"type":"data","id":"{id}","sha256":"{id}-{version}","id":"{id}",{members}}}"#).into_bytes()
    }

    /// Puts culprits between the messages, of all types but one, at whose end something is removed for certain: some that
    /// are no record, and some that are a version of a record of their own, the only one, the first, the last, or one in
    /// between.
    fn poison(&mut self, rng: &mut fastrand::Rng, count: usize) {
        let long = |rng: &mut fastrand::Rng, length| (0..length).map(|_| rng.alphanumeric()).collect::<String>();
        let clean = DataType::ALL[rng.usize(..4)];
        let types: Vec<DataType> = DataType::ALL.into_iter().filter(|t| *t != clean).collect();
        for n in 0..count {
            let t = types[rng.usize(..3)];
            let (reason, body) = [
                ("invalid_json", format!("no JSON {n}")),
                ("invalid_json", format!(r#"{{"type":"data","id":"x{n}","sha256":"h","name":"cut o"#)),
                ("not_an_object", format!(r#"["{n}"]"#)),
                ("missing_id", format!(r#"{{"type":"data","sha256":"h","name":"{n}"}}"#)),
                ("invalid_id", format!(r#"{{"id":1.5,"name":"{n}"}}"#)),
            ][n % 5]
                .clone();
            let planned = Planned { data_type: t, id: None, body: body.into_bytes(), reason, refused_by: BOTH };
            self.messages.insert(rng.usize(..=self.messages.len()), planned);
        }
        for n in 0..count {
            let id = format!("p{n:05}");
            let t = types[n % 3];
            let (refused_by, members) = match (t, n / 3 % 2) {
                (DataType::Artists | DataType::Labels, 0) => (BOTH, format!(r#""name":"{}""#, long(rng, 40_000))),
                (DataType::Artists, _) => {
                    (GRAPH, format!(r#""name":"A","members":[{{"id":"{}"}}]"#, long(rng, 40_000)))
                }
                (DataType::Labels, _) => (TABLES, r#""name":"L","n":1e200000"#.to_owned()),
                (DataType::Masters, 0) => (TABLES, format!(r#""title":"{}""#, long(rng, 6_000))),
                (DataType::Releases, 0) => (TABLES, format!(r#""title":"T","country":"{}""#, long(rng, 6_000))),
                (DataType::Masters | DataType::Releases, _) => {
                    (GRAPH, format!(r#""title":"T","artists":[{{"id":"{}"}}]"#, long(rng, 40_000)))
                }
            };
            let text = if matches!(t, DataType::Masters | DataType::Releases) { "title" } else { "name" };
            let versions: &[bool] =
                [&[true, false][..], &[false], &[false, true], &[true, false, true], &[true, false, false]][n / 4 % 5];
            // In order, each somewhere behind the one before.
            let mut places: Vec<usize> = versions.iter().map(|_| rng.usize(..=self.messages.len())).collect();
            places.sort_unstable();
            for (at, (place, good)) in places.into_iter().zip(versions).enumerate() {
                let members = if *good { format!(r#""{text}":"good {at}""#) } else { members.clone() };
                let body = format!(r#"{{"type":"data","id":"{id}","sha256":"{id}-{at}","id":"{id}",{members}}}"#);
                let (reason, refused_by) = if *good { ("", &[][..]) } else { ("write_refused", refused_by) };
                let planned =
                    Planned { data_type: t, id: Some(id.clone()), body: body.into_bytes(), reason, refused_by };
                self.messages.insert(place + at, planned);
            }
        }
    }

    /// What must become of the messages that a worker gets.
    pub fn due(&self, worker: &str) -> Due {
        let mut due = Due::default();
        let good = |m: &Planned| !m.refused_by.contains(&worker);
        let mut decided: BTreeSet<(DataType, &str)> = BTreeSet::new(); // records whose last good version was seen
        for (at, message) in self.messages.iter().enumerate().rev() {
            let t = message.data_type;
            if good(message) {
                decided.extend(message.id.as_deref().map(|id| (t, id)));
                continue;
            }
            let superseded = message.id.as_deref().is_some_and(|id| decided.contains(&(t, id)));
            let letters = if superseded { &mut due.maybe_dead } else { &mut due.dead };
            letters.insert((t, message.body.clone()), message.reason);
            if !superseded {
                due.vetoed[1].insert(t);
                due.vetoed[0].extend((at < self.middle).then_some(t));
            }
        }
        for message in self.messages.iter().filter(|m| good(m)) {
            due.written.of(message.data_type).push(message.body.clone());
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_has_everything_and_is_its_seed_s() {
        let plan = Plan::new(1, 3000);
        let bodies = |plan: &Plan| plan.messages.iter().map(|m| m.body.clone()).collect::<Vec<_>>();
        assert_eq!(bodies(&plan), bodies(&Plan::new(1, 3000)));
        assert_eq!(plan.earlier, Plan::new(1, 3000).earlier);
        assert_ne!(bodies(&plan), bodies(&Plan::new(2, 3000)));
        for worker in BOTH {
            let due = plan.due(worker);
            assert!(due.dead.len() > 20 && !due.maybe_dead.is_empty(), "{worker}: {}", due.dead.len());
            let reasons: BTreeSet<_> = due.dead.values().copied().collect();
            let all = ["invalid_id", "invalid_json", "missing_id", "not_an_object", "write_refused"];
            assert_eq!(reasons, BTreeSet::from(all), "{worker}");
            // At least one type is purged for certain, and another one is not.
            assert!((1..4).contains(&due.vetoed[1].len()) && due.vetoed[0].is_subset(&due.vetoed[1]), "{worker}");
        }
        for t in DataType::ALL {
            let brought: BTreeSet<_> = plan.messages.iter().map(|m| &m.body).collect();
            let (gone, again): (Vec<_>, Vec<_>) = plan.earlier[&t].iter().partition(|body| !brought.contains(body));
            assert_eq!(gone.len(), GONE, "{t}");
            let second: BTreeSet<_> = plan.messages[plan.middle..].iter().map(|m| (m.data_type, &m.id)).collect();
            assert!(plan.ids[&t].iter().all(|id| second.contains(&(t, &Some(id.clone())))), "{t}");
            assert!(plan.late[&t] > 0 && plan.late[&t] * 2 < again.len(), "{t}: {} of {}", plan.late[&t], again.len());
        }
        let versions = |id: &str| plan.messages.iter().filter(|m| m.id.as_deref() == Some(id)).count();
        assert!(plan.ids.values().flatten().all(|id| versions(id) > 0));
        assert!(plan.ids.values().flatten().filter(|id| versions(id) > 2).count() > 100);
    }
}
