//! What a batch becomes in Cypher.
//!
//! One statement per type writes a batch: it merges the records' nodes, keeps them as a list, and then walks the
//! *targets* of each edge type, sorted and each once, creating the edges to the records that a target names by their
//! position in that list. So every target is looked up and locked once per batch, those that another batch of this worker is
//! about to lock last, in the same order everywhere, and
//! parameters carry only what is used. What is looked up by its key says so (USING INDEX SEEK): a plan that was made for an empty
//! graph would go through all nodes of the label, or through all of an index for each row, until it is made anew.
//!
//! What has many lists for parameters has them in one map, `$batch`: to Neo4j's cache of plans a statement with a longer list (of more than one,
//! ten, a hundred … items) is another statement. Ten lists would have so many combinations that small batches were planned anew each time,
//! which takes longer than running them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use common::DataType;
use common::sink::Record;
use common::turn::Claim;
use neo4rs::{BoltList, BoltMap, BoltNull, BoltType, Query, query};

use crate::contention::Entry;
use crate::record::{Artist, Credit, Deferred, Edition, Label, Payload, Work, payload};
use crate::roles;

/// Where Discogs' API has an artist (contract §5.2).
const ARTIST_URL: &str = "https://api.discogs.com/artists/";

/// Statements that every batch runs, and whose plans no count of nodes can change, keep them: a graph that grows would have them planned anew
/// every ten seconds.
const KEEP_PLAN: &str = "CYPHER replan=skip ";

/// Notes that these records were seen, if the `claim` is still there; a row says so. A replica that was frozen must not say that it
/// sees now, in the next run perhaps, what it got in an earlier one. (Without a claim it is a rehearsal.)
pub fn note_seen(data_type: DataType, records: &[&Record<Deferred>], claim: Option<&Claim>) -> Query {
    let mine = claim.map_or("", |_| "MATCH (o:IngestOwner {queue: $queue}) WHERE o.owner = $owner ");
    let text = format!(
        "{KEEP_PLAN}{mine}CREATE (:IngestSeen {{type: $type, at: timestamp(), ids: $ids}}) RETURN true AS mine"
    );
    query(&text)
        .param("type", data_type.name())
        .param("queue", claim.map(|c| c.queue.as_str()))
        .param("owner", claim.map(|c| c.owner.as_str()))
        .param("ids", list(records.iter().map(|r| r.id.as_str())))
}

/// How records are compared with what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Without a lock.
    Free,
    /// Each node is locked first, and so is each id that has none: whoever is about to commit it is waited for.
    Locked,
}

/// Compares hashes on the server. Returns the positions of records that are there with the same hash (`unchanged`), of
/// those there with another one (`changed`), whose edges must be pruned, and of nodes that have no hash but edges that only
/// such a record has (`bare`). An empty hash is never equal (contract, D.3). A free look also tells whether the [gate](crate::gate) is
/// `closed`. Without any of them there is no row.
///
/// Nothing in it writes, unless it is to lock: Neo4j locks every id that a *writing* statement looks up by a unique index until the
/// transaction ends, and exclusively those that it does not find. Two writers would wait for each other for half of a first load.
pub fn check(data_type: DataType, records: &[&Record<Deferred>], look: Look) -> Query {
    let label = label(data_type);
    // Who locks need not know of the gate, and would lock that, too.
    let (gate, lock) = match look {
        Look::Free => ("OPTIONAL MATCH (g:IngestGate {type: $type}) WITH g IS NOT NULL AS closed", ""),
        Look::Locked => ("WITH false AS closed", "SET n._v = n._v"),
    };
    query(&format!(
        "{KEEP_PLAN}{gate} UNWIND range(0, size($ids) - 1) AS i \
         MATCH (n:{label} {{id: $ids[i]}}) USING INDEX SEEK n:{label}(id) {lock} \
         WITH closed, i, n, CASE WHEN n.sha256 IS NULL THEN 0 WHEN n.sha256 = $hashes[i] AND $hashes[i] <> '' THEN 1 ELSE 2 END AS is \
         RETURN closed, collect(CASE WHEN is = 1 THEN i END) AS unchanged, collect(CASE WHEN is = 2 THEN i END) AS changed, \
         collect(CASE WHEN is = 0 AND (EXISTS {{ (n)-[:BY|IS|ON|DERIVED_FROM]->() }} OR EXISTS {{ (n)<-[:CREDITED_ON]-() }}) THEN i END) AS bare"
    ))
    .param("type", data_type.name())
    .param("ids", list(records.iter().map(|r| r.id.as_str())))
    .param("hashes", list(records.iter().map(|r| r.hash.as_str())))
}

/// Takes the right to write what a queue delivers; returns the largest prefetch since the last claim that was resigned.
pub fn claim(claim: &Claim) -> Query {
    query(
        "MERGE (o:IngestOwner {queue: $queue}) SET o.owner = $owner, o.since = datetime(),
           o.prefetch = CASE WHEN o.prefetch > $prefetch THEN o.prefetch ELSE $prefetch END
         RETURN o.prefetch AS prefetch",
    )
    .param("queue", claim.queue.as_str())
    .param("owner", claim.owner.as_str())
    .param("prefetch", i64::from(claim.prefetch))
}

/// Gives that right back, with nothing left behind.
pub fn resign(claim: &Claim) -> Query {
    query("MATCH (o:IngestOwner {queue: $queue, owner: $owner}) SET o.prefetch = 0")
        .param("queue", claim.queue.as_str())
        .param("owner", claim.owner.as_str())
}

/// Returns a row if that right is still there.
pub fn is_owner(claim: &Claim) -> Query {
    query("MATCH (o:IngestOwner {queue: $queue}) WHERE o.owner = $owner RETURN 1 AS mine")
        .param("queue", claim.queue.as_str())
        .param("owner", claim.owner.as_str())
}

/// Node label of a type.
pub const fn label(data_type: DataType) -> &'static str {
    match data_type {
        DataType::Artists => "Artist",
        DataType::Labels => "Label",
        DataType::Masters => "Master",
        DataType::Releases => "Release",
    }
}

/// Artists and labels refer to their like, in both directions: the ids of a batch's records and of their targets are merged in one
/// pass, each once: first those that nobody else is about to lock, then the rest, sorted, so that batches that bring the same new ids do not
/// meet crosswise. Everything after that names nodes by their position in `everyone`. Whether a node had a record is looked at once it is locked; if it is without `_v` then,
/// somebody has deleted it meanwhile, and Neo4j has ignored the SET.
const ARTISTS: &str = "
UNWIND $batch.ids AS id
MERGE (n:Artist {id: id})
WITH collect(n) AS everyone
CALL (everyone) {
  UNWIND $batch.rows AS r WITH r, everyone[r.at] AS n
  SET n._v = 1
  WITH r, n, n.sha256 IS NOT NULL OR n._v IS NULL AS had
  SET n.name = r.name, n.resource_url = $batch.url + n.id, n.releases_url = $batch.url + n.id + '/releases', n.sha256 = r.sha256
  RETURN collect(n) AS nodes, collect(had) AS had
}
CALL (everyone, nodes) {
  UNWIND $batch.members AS t WITH nodes, everyone[t[0]] AS o, t UNWIND t[1] AS i WITH o, nodes[i] AS n
  MERGE (o)-[e:MEMBER_OF]->(n) SET e._members = true
}
CALL (everyone, nodes) {
  UNWIND $batch.groups AS t WITH nodes, everyone[t[0]] AS o, t UNWIND t[1] AS i WITH o, nodes[i] AS n
  MERGE (n)-[e:MEMBER_OF]->(o) SET e._groups = true
}
CALL (everyone, nodes) {
  UNWIND $batch.aliases AS t WITH nodes, everyone[t[0]] AS o, t UNWIND t[1] AS i WITH o, nodes[i] AS n
  MERGE (o)-[:ALIAS_OF]->(n)
}";

const LABELS: &str = "
UNWIND $batch.ids AS id
MERGE (n:Label {id: id})
WITH collect(n) AS everyone
CALL (everyone) {
  UNWIND $batch.rows AS r WITH r, everyone[r.at] AS n
  SET n._v = 1
  WITH r, n, n.sha256 IS NOT NULL OR n._v IS NULL AS had
  SET n.name = r.name, n.sha256 = r.sha256
  RETURN collect(n) AS nodes, collect(had) AS had
}
CALL (everyone, nodes) {
  UNWIND $batch.parents AS t WITH nodes, everyone[t[0]] AS o, t UNWIND t[1] AS i WITH o, nodes[i] AS n
  MERGE (n)-[e:SUBLABEL_OF]->(o) SET e._parent = true
}
CALL (everyone, nodes) {
  UNWIND $batch.sublabels AS t WITH nodes, everyone[t[0]] AS o, t UNWIND t[1] AS i WITH o, nodes[i] AS n
  MERGE (o)-[e:SUBLABEL_OF]->(n) SET e._sublabels = true
}";

/// Edges of masters and releases to what there is little of, and what is there after the first batches. `$EDGE` is MERGE or CREATE. A
/// target is a pair of its key and the positions of the records, a genre of PART_OF one of its name and its styles.
const STYLE_EDGES: &str = "
CALL (nodes) {
  UNWIND $batch.genres AS t MERGE (o:Genre {name: t[0]})
  WITH nodes, o, t UNWIND t[1] AS i WITH o, nodes[i] AS n
  $EDGE (n)-[:IS]->(o)
}
CALL (nodes) {
  UNWIND $batch.styles AS t MERGE (o:Style {name: t[0]})
  WITH nodes, o, t UNWIND t[1] AS i WITH o, nodes[i] AS n
  $EDGE (n)-[:IS]->(o)
}
CALL () {
  UNWIND $batch.part_of AS t MATCH (g:Genre {name: t[0]}) USING INDEX SEEK g:Genre(name)
  UNWIND t[1] AS style MATCH (s:Style {name: style}) USING INDEX SEEK s:Style(name)
  MERGE (s)-[:PART_OF]->(g)
}";

/// Their other edges, once with `$PART` for what nobody else is about to lock, and once for the rest.
const ARTIST_EDGES: &str = "
CALL (nodes) {
  UNWIND $PART.artists AS t MERGE (o:Artist {id: t[0]})
  WITH nodes, o, t UNWIND t[1] AS i WITH o, nodes[i] AS n
  $EDGE (n)-[:BY]->(o)
}";

const MASTER_NODES: &str = "
UNWIND $batch.rows AS r
MERGE (n:Master {id: r.id})
SET n._v = 1
WITH r, n, n.sha256 IS NOT NULL OR n._v IS NULL AS had
SET n.title = r.title, n.year = r.year, n.sha256 = r.sha256, n._only_genre = r.only_genre
WITH collect(n) AS nodes, collect(had) AS had";

/// `catalog_number` may also come from another service: only a value that is still ours is taken away.
const RELEASE_NODES: &str = "
UNWIND $batch.rows AS r
MERGE (n:Release {id: r.id})
SET n._v = 1
WITH r, n, n.sha256 IS NOT NULL OR n._v IS NULL AS had
SET n.title = r.title, n.year = r.year, n.formats = r.formats, n.sha256 = r.sha256, n._only_genre = r.only_genre,
    n.catalog_number = CASE
      WHEN r.catalog_number IS NOT NULL THEN r.catalog_number
      WHEN n.catalog_number = n._catalog_number THEN NULL
      ELSE n.catalog_number END,
    n._catalog_number = r.catalog_number
WITH collect(n) AS nodes, collect(had) AS had";

/// A person is its name and its credits. A credit whose artist does not exist yet is written down; [`link`] makes the edge when the
/// artist comes.
const RELEASE_EDGES: &str = "
CALL (nodes) {
  UNWIND $PART.labels AS t MERGE (o:Label {id: t[0]})
  WITH nodes, o, t UNWIND t[1] AS i WITH o, nodes[i] AS n
  $EDGE (n)-[:ON]->(o)
}
CALL (nodes) {
  UNWIND $PART.masters AS t MERGE (o:Master {id: t[0]})
  WITH nodes, o, t UNWIND t[1] AS i WITH o, nodes[i] AS n
  $EDGE (n)-[:DERIVED_FROM]->(o)
}
CALL (nodes) {
  UNWIND $PART.persons AS p MERGE (o:Person {name: p[0]})
  WITH nodes, o, p UNWIND p[1] AS c WITH o, c, nodes[c[0]] AS n
  $EDGE (o)-[e:CREDITED_ON {role: c[1]}]->(n) SET e.category = c[2], e._artists = c[3]
}
CALL () {
  UNWIND $PART.same AS p
  MATCH (o:Person {name: p[0]}) USING INDEX SEEK o:Person(name)
  UNWIND p[1] AS id
  OPTIONAL MATCH (a:Artist {id: id}) USING INDEX SEEK a:Artist(id)
  OPTIONAL MATCH (w:IngestPendingLink {artist: id}) USING INDEX SEEK w:IngestPendingLink(artist) WHERE w.person = p[0]
  FOREACH (known IN CASE WHEN a IS NULL THEN [] ELSE [a] END | MERGE (o)-[:SAME_AS]->(known))
  FOREACH (_ IN CASE WHEN a IS NULL AND w IS NULL THEN [1] ELSE [] END |
    CREATE (:IngestPendingLink {artist: id, person: p[0]}))
}";

/// How the edges of masters and releases come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// Whoever made it.
    Merge,
    /// Without looking: these records were found to have none.
    Create,
}

const HAD: &str = "\nRETURN [i IN range(0, size(had) - 1) WHERE had[i]] AS had";

/// Writes nodes and edges of new and changed records. The statement's row has the positions of those that were there already (`had`), seen when
/// their nodes were locked. If one of them was taken for new, the transaction must not be committed. What is contended comes
/// last: see [`crate::contention`].
pub fn write(data_type: DataType, records: &[&Record<Deferred>], edge: Edge, locked: &Entry<'_>) -> Query {
    // Ids of artists or labels, of the records themselves and what they refer to.
    let mut everyone: Vec<(bool, &str)> = match data_type {
        DataType::Artists | DataType::Labels => {
            nodes(data_type, records).into_iter().map(|(label, id)| (locked.is_contended(label, id), id)).collect()
        }
        DataType::Masters | DataType::Releases => Vec::new(),
    };
    everyone.sort_unstable();
    everyone.dedup();
    let place = |id: &str| {
        let one = (locked.is_contended(label(data_type), id), id);
        position(everyone.partition_point(|other| *other < one))
    };
    let mut rows = Vec::with_capacity(records.len());
    let mut edges = Edges::default();
    for (at, record) in records.iter().enumerate() {
        let id = record.id.as_str();
        let key = match data_type {
            DataType::Artists | DataType::Labels => ("at", place(id)),
            DataType::Masters | DataType::Releases => ("id", id.into()),
        };
        let mut row = vec![key, ("sha256", record.hash.as_str().into())];
        match payload(record) {
            Payload::Artist(artist) => edges.artist(at, artist, &mut row),
            Payload::Label(label) => edges.label(at, label, &mut row),
            Payload::Master(work) => edges.work(at, work, &mut row),
            Payload::Release(work, edition) => {
                edges.work(at, work, &mut row);
                edges.edition(at, edition, &mut row);
            }
        }
        rows.push(map(row));
    }
    let works = |nodes, edges: &str| {
        let [early, late] = ["$batch.early", "$batch.late"].map(|part| edges.replace("$PART", part));
        format!("{nodes}{STYLE_EDGES}{early}{late}{HAD}")
    };
    let text = match data_type {
        DataType::Artists => format!("{ARTISTS}{HAD}"),
        DataType::Labels => format!("{LABELS}{HAD}"),
        DataType::Masters => works(MASTER_NODES, ARTIST_EDGES),
        DataType::Releases => works(RELEASE_NODES, &format!("{ARTIST_EDGES}{RELEASE_EDGES}")),
    };
    let text = KEEP_PLAN.to_owned() + &text.replace("$EDGE", if edge == Edge::Create { "CREATE" } else { "MERGE" });
    let mut params = vec![("rows", list(rows))];
    let ids = list(everyone.iter().map(|(_, id)| *id));
    let by_place = |name| (name, edges.targets(name, place));
    match data_type {
        DataType::Artists => {
            params.extend([("ids", ids), ("url", ARTIST_URL.into())]);
            params.extend(["members", "groups", "aliases"].map(by_place));
        }
        DataType::Labels => {
            params.push(("ids", ids));
            params.extend(["parents", "sublabels"].map(by_place));
        }
        DataType::Masters | DataType::Releases => edges.works(locked, &mut params),
    }
    query(&text).param("batch", map(params))
}

/// The nodes that [`write`] locks for these records, by label and key, but for genres and styles: they are few, and soon there.
pub fn nodes<'a>(data_type: DataType, records: &[&'a Record<Deferred>]) -> Vec<(&'static str, &'a str)> {
    let mut nodes: Vec<(&'static str, &str)> = Vec::new();
    for record in records {
        nodes.push((label(data_type), &record.id));
        match payload(record) {
            Payload::Artist(artist) => nodes.extend(artist.relatives().map(|id| ("Artist", id.as_str()))),
            Payload::Label(Label { parent, sublabels, .. }) => {
                nodes.extend(parent.iter().chain(sublabels).map(|id| ("Label", id.as_str())));
            }
            Payload::Master(work) => nodes.extend(work.artists.iter().map(|id| ("Artist", id.as_str()))),
            Payload::Release(work, edition) => {
                nodes.extend(work.artists.iter().map(|id| ("Artist", id.as_str())));
                nodes.extend(edition.labels.iter().map(|id| ("Label", id.as_str())));
                nodes.extend(edition.master.iter().map(|id| ("Master", id.as_str())));
                for credit in &edition.credits {
                    nodes.push(("Person", &credit.name));
                    nodes.extend(credit.artist.iter().map(|id| ("Artist", id.as_str())));
                }
            }
        }
    }
    nodes
}

/// Which of these artists a SAME_AS edge is waiting for. Only reads, and so locks nothing; the first line costs nothing when none waits.
pub fn awaited(artists: Vec<String>) -> Query {
    query(
        "MATCH (w:IngestPendingLink) WITH count(w) AS waiting WHERE waiting > 0 \
         UNWIND $artists AS id \
         MATCH (a:Artist {id: id}) USING INDEX SEEK a:Artist(id) \
         MATCH (w:IngestPendingLink {artist: id}) USING INDEX SEEK w:IngestPendingLink(artist) \
         RETURN collect(DISTINCT id) AS ids",
    )
    .param("artists", artists)
}

/// Makes the SAME_AS edges that were waiting for one of these artists.
pub fn link(artists: Vec<String>) -> Query {
    query(
        "UNWIND $artists AS id \
         MATCH (a:Artist {id: id}) USING INDEX SEEK a:Artist(id) WITH a \
         MATCH (w:IngestPendingLink {artist: a.id}) USING INDEX SEEK w:IngestPendingLink(artist) \
         MATCH (o:Person {name: w.person}) USING INDEX SEEK o:Person(name) \
         MERGE (o)-[:SAME_AS]->(a) DELETE w",
    )
    .param("artists", artists)
}

/// The ids of the artists that these masters or releases make exist, sorted.
pub fn made_artists(records: &[&Record<Deferred>]) -> Vec<String> {
    let artists = records.iter().flat_map(|record| match payload(record) {
        Payload::Master(work) | Payload::Release(work, _) => work.artists.as_slice(),
        Payload::Artist(_) | Payload::Label(_) => &[],
    });
    sorted(artists.map(String::as_str))
}

/// The ids of all artists that these records make exist or are waiting for, sorted.
pub fn artist_ids(data_type: DataType, records: &[&Record<Deferred>]) -> Vec<String> {
    sorted(nodes(data_type, records).into_iter().filter(|(label, _)| *label == "Artist").map(|(_, id)| id))
}

fn sorted<'a>(ids: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut ids: Vec<&str> = ids.collect();
    ids.sort_unstable();
    ids.dedup();
    ids.into_iter().map(str::to_owned).collect()
}

/// Positions of records by the target that they have an edge to.
type Targets<'a> = BTreeMap<&'a str, Vec<usize>>;

type Row = Vec<(&'static str, BoltType)>;

/// The edges of a batch, by parameter name.
#[derive(Default)]
struct Edges<'a> {
    targets: BTreeMap<&'static str, Targets<'a>>,
    /// The styles of each genre.
    part_of: BTreeMap<&'a str, BTreeSet<&'a str>>,
    /// What each person is credited for, with the record's position.
    persons: BTreeMap<&'a str, Vec<(usize, &'a Credit)>>,
}

impl<'a> Edges<'a> {
    fn add(&mut self, name: &'static str, at: usize, keys: impl IntoIterator<Item = &'a String>) {
        let targets = self.targets.entry(name).or_default();
        for key in keys {
            let records = targets.entry(key).or_default();
            if records.last() != Some(&at) {
                records.push(at); // once, however often the record names it
            }
        }
    }

    fn artist(&mut self, at: usize, artist: &'a Artist, row: &mut Row) {
        row.push(("name", nullable(artist.name.clone())));
        self.add("members", at, &artist.members);
        self.add("groups", at, &artist.groups);
        self.add("aliases", at, &artist.aliases);
    }

    fn label(&mut self, at: usize, label: &'a Label, row: &mut Row) {
        row.push(("name", nullable(label.name.clone())));
        self.add("parents", at, &label.parent);
        self.add("sublabels", at, &label.sublabels);
    }

    fn work(&mut self, at: usize, work: &'a Work, row: &mut Row) {
        row.push(("title", nullable(work.title.clone())));
        row.push(("year", nullable(work.year.map(BoltType::from))));
        row.push(("only_genre", nullable(work.only_genre.as_deref().map(BoltType::from))));
        self.add("artists", at, &work.artists);
        self.add("genres", at, &work.genres);
        self.add("styles", at, &work.styles);
        if let Some(genre) = &work.only_genre {
            self.part_of.entry(genre).or_default().extend(work.styles.iter().map(String::as_str));
        }
    }

    fn edition(&mut self, at: usize, edition: &'a Edition, row: &mut Row) {
        row.push(("formats", list(edition.formats.iter().map(String::as_str))));
        row.push(("catalog_number", nullable(edition.catalog_number.as_deref().map(BoltType::from))));
        self.add("labels", at, &edition.labels);
        self.add("masters", at, &edition.master);
        for credit in &edition.credits {
            self.persons.entry(&credit.name).or_default().push((at, credit));
        }
    }

    /// The targets of these edges, each with what the statement knows it by and the positions of the records.
    fn targets(&self, name: &str, key: impl Fn(&str) -> BoltType) -> BoltType {
        let rows = self.targets.get(name).into_iter().flatten();
        list(rows.map(|(id, rows)| target_row(key(id), rows)))
    }

    /// Adds the edges of masters or releases.
    fn works(&mut self, locked: &Entry<'_>, params: &mut Row) {
        params.extend(["genres", "styles"].map(|name| (name, self.targets(name, |name| name.into()))));
        let part_of = self.part_of.iter().map(|(genre, styles)| list([(*genre).into(), list(styles.iter().copied())]));
        params.push(("part_of", list(part_of)));
        let mut parts: [Row; 2] = Default::default();
        let mut add = |name, rows: [Vec<BoltType>; 2]| {
            parts.iter_mut().zip(rows).for_each(|(part, rows)| part.push((name, list(rows))));
        };
        for (name, label) in [("artists", "Artist"), ("labels", "Label"), ("masters", "Master")] {
            let mut rows = [Vec::new(), Vec::new()];
            for (id, records) in self.targets.get(name).into_iter().flatten() {
                rows[usize::from(locked.is_contended(label, id))].push(target_row((*id).into(), records));
            }
            add(name, rows);
        }
        let mut categories = Categories::new();
        let (mut persons, mut same) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
        for (name, credits) in &mut self.persons {
            let artists: BTreeSet<&str> = credits.iter().filter_map(|(_, credit)| credit.artist.as_deref()).collect();
            let is_late = locked.is_contended("Person", name);
            // That somebody is an artist can't be said before there is the person.
            let (late, early): (Vec<_>, Vec<_>) =
                artists.into_iter().partition(|artist| is_late || locked.is_contended("Artist", artist));
            for (part, artists) in [early, late].into_iter().enumerate().filter(|(_, artists)| !artists.is_empty()) {
                same[part].push(list([(*name).into(), list(artists)]));
            }
            persons[usize::from(is_late)].push(person_row(name, credits, &mut categories));
        }
        add("persons", persons);
        add("same", same);
        params.extend(["early", "late"].into_iter().zip(parts.map(map)));
    }
}

fn target_row(key: BoltType, records: &[usize]) -> BoltType {
    list([key, list(records.iter().copied().map(position))])
}

/// Categories of the roles of a batch. There are few, and finding one takes longer than all the rest of a credit.
type Categories<'a> = HashMap<&'a str, &'static str>;

fn person_row<'a>(name: &str, of_one: &mut [(usize, &'a Credit)], categories: &mut Categories<'a>) -> BoltType {
    of_one.sort_unstable_by_key(|(at, credit)| (*at, &credit.role, &credit.artist));
    // One edge for each role on a record, which remembers the artists that the person is there.
    let credits = of_one.chunk_by(|(a, one), (b, other)| a == b && one.role == other.role).map(|same| {
        let (at, Credit { role, .. }) = same[0];
        let mut artists: Vec<&str> = same.iter().filter_map(|(_, credit)| credit.artist.as_deref()).collect();
        artists.dedup();
        // A list would take a record of its own in the store.
        let artists = match artists[..] {
            [] => BoltType::Null(BoltNull),
            [one] => one.into(),
            _ => list(artists),
        };
        let category = *categories.entry(role).or_insert_with(|| roles::category(role));
        list([position(at), role.as_str().into(), category.into(), artists])
    });
    list([name.into(), list(credits)])
}

fn position(at: usize) -> BoltType {
    (at as i64).into()
}

fn nullable(value: Option<BoltType>) -> BoltType {
    value.unwrap_or(BoltType::Null(BoltNull))
}

/// A list parameter.
pub(crate) fn list<T: Into<BoltType>>(items: impl IntoIterator<Item = T>) -> BoltType {
    BoltType::List(items.into_iter().collect::<BoltList>())
}

/// A pair of texts.
pub(crate) fn pair(first: &str, second: &str) -> BoltType {
    list([first, second])
}

/// A map parameter.
pub(crate) fn map(entries: Vec<(&'static str, BoltType)>) -> BoltType {
    BoltType::Map(entries.into_iter().map(|(k, v)| (k.into(), v)).collect::<BoltMap>())
}
