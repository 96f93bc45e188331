//! What is published: seeded messages of all four types, several versions of each record, culprits among them; and what
//! must have become of every one of them in the end.

use std::collections::{BTreeMap, BTreeSet};

use common::DataType;

use crate::oracle::Messages;

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

/// All messages of a run. The last four end the files.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The messages, in the order of publication. Versions of a record differ in hash and content.
    pub messages: Vec<Planned>,
    /// Records that are good, by type: what others may refer to, or write to.
    pub ids: BTreeMap<DataType, Vec<String>>,
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
}

const BOTH: &[&str] = &["tableinator", "graphinator"];
const TABLES: &[&str] = &["tableinator"];
const GRAPH: &[&str] = &["graphinator"];
const GENRES: [&str; 6] = ["Rock", "Jazz", "Pop", "Electronic", "Blues", "Folk"];

impl Plan {
    /// So many messages or a few more from this seed: the same seed gives the same bytes.
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
        let mut plan = Plan { messages: Vec::new(), ids };
        let mut versions: BTreeMap<(DataType, usize), Vec<Vec<u8>>> = BTreeMap::new();
        for (t, at) in order {
            let made = versions.entry((t, at)).or_default();
            let body = match made.as_slice() {
                // The same message once more, or one that goes back to the first version.
                [.., last] if rng.u8(..10) == 0 => last.clone(),
                [first, _, ..] if rng.u8(..10) == 0 => first.clone(),
                _ => plan.record(&mut rng, t, at, made.len() + 1),
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
        for t in DataType::ALL {
            let body = xtask::sample::file_complete(t, "20260101", plan.ids[&t].len());
            plan.messages.push(Planned { data_type: t, id: None, body, reason: "", refused_by: &[] });
        }
        plan
    }

    /// One version of a record. What changes from version to version is what every worker takes back (contract §5);
    /// references go to records that exist, so that no stub is left of a version that is gone.
    fn record(&self, rng: &mut fastrand::Rng, t: DataType, at: usize, version: usize) -> Vec<u8> {
        let id = &self.ids[&t][at];
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
                    format!(
                        r#"{both},"released":"{year}","country":"C{version}","labels":[{{"id":"{label}","catno":"C {version}"}}],"master_id":"{}","formats":[{{"name":"LP"}}],"extraartists":[{{"id":"{}","name":"Person {}","role":"Bass"}}]"#,
                        any(rng, DataType::Masters),
                        near(DataType::Artists, 0),
                        at % 20,
                    )
                }
            }
        };
        format!(r#"{{"type":"data","id":"{id}","sha256":"{id}-{version}","id":"{id}",{members}}}"#).into_bytes()
    }

    /// Puts culprits between the messages: some that are no record, and some that are a version of a record of their own,
    /// the only one, the first, the last, or one in between.
    fn poison(&mut self, rng: &mut fastrand::Rng, count: usize) {
        let long = |rng: &mut fastrand::Rng, length| (0..length).map(|_| rng.alphanumeric()).collect::<String>();
        for n in 0..count {
            let t = *rng.choice(&DataType::ALL).unwrap_or(&DataType::Artists);
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
            let (t, refused_by, members) = match n % 4 {
                0 => (DataType::Artists, BOTH, format!(r#""name":"{}""#, long(rng, 40_000))),
                1 => (DataType::Releases, TABLES, format!(r#""title":"T","country":"{}""#, long(rng, 6_000))),
                2 => (DataType::Labels, TABLES, r#""name":"L","n":1e200000"#.to_owned()),
                _ => (DataType::Artists, GRAPH, format!(r#""name":"A","members":[{{"id":"{}"}}]"#, long(rng, 40_000))),
            };
            let text = if t == DataType::Releases { "title" } else { "name" };
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
        for message in self.messages.iter().rev() {
            if good(message) {
                decided.extend(message.id.as_deref().map(|id| (message.data_type, id)));
                continue;
            }
            let superseded = message.id.as_deref().is_some_and(|id| decided.contains(&(message.data_type, id)));
            let letters = if superseded { &mut due.maybe_dead } else { &mut due.dead };
            letters.insert((message.data_type, message.body.clone()), message.reason);
        }
        for message in self.messages.iter().filter(|m| good(m)) {
            let bodies = match message.data_type {
                DataType::Artists => &mut due.written.artists,
                DataType::Labels => &mut due.written.labels,
                DataType::Masters => &mut due.written.masters,
                DataType::Releases => &mut due.written.releases,
            };
            bodies.push(message.body.clone());
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
        // The control messages at the end say when they were made.
        let but_four = |mut all: Vec<Vec<u8>>| {
            all.truncate(all.len() - 4);
            all
        };
        assert_eq!(but_four(bodies(&plan)), but_four(bodies(&Plan::new(1, 3000))));
        assert_ne!(but_four(bodies(&plan)), but_four(bodies(&Plan::new(2, 3000))));
        for worker in BOTH {
            let due = plan.due(worker);
            assert!(due.dead.len() > 20 && !due.maybe_dead.is_empty(), "{worker}: {}", due.dead.len());
            let reasons: BTreeSet<_> = due.dead.values().copied().collect();
            let all = ["invalid_id", "invalid_json", "missing_id", "not_an_object", "write_refused"];
            assert_eq!(reasons, BTreeSet::from(all), "{worker}");
        }
        let versions = |id: &str| plan.messages.iter().filter(|m| m.id.as_deref() == Some(id)).count();
        assert!(plan.ids.values().flatten().all(|id| versions(id) > 0));
        assert!(plan.ids.values().flatten().filter(|id| versions(id) > 2).count() > 100);
    }
}
