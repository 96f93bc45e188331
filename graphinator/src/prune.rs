//! What a record no longer has. A changed record takes its old edges back, in the transaction that writes it; what these
//! edges may have left behind is noted in that transaction too ([`Removed`]) and swept up afterwards ([`crate::sweep`]).
//!
//! An edge goes when nobody claims it any more. Most edges have one record that can claim them. MEMBER_OF and SUBLABEL_OF
//! have two, one at each end, and carry a mark for each (`_members`, `_groups`, `_parent`, `_sublabels`). Edges without
//! marks and records without `_v` were written by somebody who did not mark: what they claim is not known, so their
//! edges stay. So do edges with a property that is not ours, such as another service's `source`.

use common::DataType;
use common::sink::Record;
use neo4rs::{BoltType, Query, Row, query};

use crate::record::{Deferred, Payload, Work, payload};
use crate::statements::{label, list, map, pair};

/// What pruning took away: who may be alone now, and which claims must be counted again. Names or ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Artists that lost an edge.
    pub artists: Vec<String>,
    /// Labels that lost an edge.
    pub labels: Vec<String>,
    /// Masters that lost an edge.
    pub masters: Vec<String>,
    /// Releases that vanished.
    pub releases: Vec<String>,
    /// Genres that lost an edge.
    pub genres: Vec<String>,
    /// Styles that lost an edge.
    pub styles: Vec<String>,
    /// Persons that lost a credit.
    pub persons: Vec<String>,
    /// Style and genre: a record that said PART_OF does not any more.
    pub part_of: Vec<(String, String)>,
    /// Person and artist: a credit that said SAME_AS does not any more.
    pub same_as: Vec<(String, String)>,
}

impl Removed {
    /// Nothing was taken away.
    pub fn is_empty(&self) -> bool {
        *self == Removed::default()
    }

    /// Reads the row that [`statement`] returns: a list for each record.
    ///
    /// # Errors
    /// If it is another row.
    pub fn add(&mut self, row: &Row) -> Result<(), neo4rs::DeError> {
        let lists: Lists = row.to()?;
        for (list, more) in [
            (&mut self.artists, lists.artists),
            (&mut self.labels, lists.labels),
            (&mut self.masters, lists.masters),
            (&mut self.genres, lists.genres),
            (&mut self.styles, lists.styles),
            (&mut self.persons, lists.persons),
        ] {
            list.extend(more.into_iter().flatten());
            list.sort_unstable();
            list.dedup();
        }
        for (list, more) in [(&mut self.part_of, lists.part_of), (&mut self.same_as, lists.same_as)] {
            list.extend(more.into_iter().flatten());
            list.sort_unstable();
            list.dedup();
        }
        Ok(())
    }
}

/// What a prune returns; each type has some of it.
#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct Lists {
    artists: Vec<Vec<String>>,
    labels: Vec<Vec<String>>,
    masters: Vec<Vec<String>>,
    genres: Vec<Vec<String>>,
    styles: Vec<Vec<String>>,
    persons: Vec<Vec<String>>,
    part_of: Vec<Vec<(String, String)>>,
    same_as: Vec<Vec<(String, String)>>,
}

/// Nobody else put something on an edge of ours.
macro_rules! ours {
    ($edge:literal) => {
        concat!("size([k IN keys(", $edge, ") WHERE NOT k STARTS WITH '_']) = 0")
    };
}

const ARTISTS: &str = concat!(
    "
UNWIND $rows AS r
MATCH (n:Artist {id: r.id}) USING INDEX SEEK n:Artist(id)
CALL (n, r) {
  MATCH (o:Artist)-[e:MEMBER_OF]->(n) WHERE e._members AND NOT o.id IN r.members
  SET e._members = NULL
  WITH o, e WHERE e._groups IS NULL AND (o.sha256 IS NULL OR o._v IS NOT NULL) AND ",
    ours!("e"),
    "
  DELETE e RETURN collect(o.id) AS members
}
CALL (n, r) {
  MATCH (n)-[e:MEMBER_OF]->(o:Artist) WHERE e._groups AND NOT o.id IN r.groups
  SET e._groups = NULL
  WITH o, e WHERE e._members IS NULL AND (o.sha256 IS NULL OR o._v IS NOT NULL) AND ",
    ours!("e"),
    "
  DELETE e RETURN collect(o.id) AS groups
}
CALL (n, r) {
  MATCH (o:Artist)-[e:ALIAS_OF]->(n) WHERE NOT o.id IN r.aliases AND ",
    ours!("e"),
    "
  DELETE e RETURN collect(o.id) AS aliases
}
RETURN collect(members + groups + aliases) AS artists"
);

const LABELS: &str = concat!(
    "
UNWIND $rows AS r
MATCH (n:Label {id: r.id}) USING INDEX SEEK n:Label(id)
CALL (n, r) {
  MATCH (n)-[e:SUBLABEL_OF]->(o:Label) WHERE e._parent AND NOT o.id IN r.parent
  SET e._parent = NULL
  WITH o, e WHERE e._sublabels IS NULL AND (o.sha256 IS NULL OR o._v IS NOT NULL) AND ",
    ours!("e"),
    "
  DELETE e RETURN collect(o.id) AS parents
}
CALL (n, r) {
  MATCH (o:Label)-[e:SUBLABEL_OF]->(n) WHERE e._sublabels AND NOT o.id IN r.sublabels
  SET e._sublabels = NULL
  WITH o, e WHERE e._parent IS NULL AND (o.sha256 IS NULL OR o._v IS NOT NULL) AND ",
    ours!("e"),
    "
  DELETE e RETURN collect(o.id) AS sublabels
}
RETURN collect(parents + sublabels) AS labels"
);

/// What masters and releases have in common. A record with one genre says PART_OF for each of its styles.
const WORK: &str = "
CALL (n, r) {
  MATCH (n)-[:IS]->(o:Style)
  WHERE n._only_genre IS NOT NULL AND (coalesce(r.only_genre, '') <> n._only_genre OR NOT o.name IN r.styles)
  RETURN collect([o.name, n._only_genre]) AS pairs
}
CALL (n, r) { MATCH (n)-[e:BY]->(o:Artist) WHERE NOT o.id IN r.artists DELETE e RETURN collect(o.id) AS by }
CALL (n, r) { MATCH (n)-[e:IS]->(o:Genre) WHERE NOT o.name IN r.genres DELETE e RETURN collect(o.name) AS genre }
CALL (n, r) { MATCH (n)-[e:IS]->(o:Style) WHERE NOT o.name IN r.styles DELETE e RETURN collect(o.name) AS style }";

const RELEASE: &str = "
CALL (n, r) { MATCH (n)-[e:ON]->(o:Label) WHERE NOT o.id IN r.labels DELETE e RETURN collect(o.id) AS on }
CALL (n, r) { MATCH (n)-[e:DERIVED_FROM]->(o:Master) WHERE NOT o.id IN r.masters DELETE e RETURN collect(o.id) AS derived }
CALL (n, r) {
  MATCH (p:Person)-[e:CREDITED_ON]->(n)
  WITH p, e, NOT [p.name, e.role] IN r.credits AS gone,
       size([k IN keys(e) WHERE NOT k STARTS WITH '_' AND NOT k IN ['role', 'category']]) = 0 AS ours,
       [a IN coalesce([] + e._artists, []) WHERE NOT [p.name, a] IN r.links | [p.name, a]] AS unlinked
  FOREACH (_ IN CASE WHEN gone AND ours THEN [1] ELSE [] END | DELETE e)
  FOREACH (_ IN CASE WHEN gone AND NOT ours THEN [1] ELSE [] END | REMOVE e._artists)
  RETURN collect(CASE WHEN gone AND ours THEN p.name END) AS credited, collect(unlinked) AS unlinked
}
CALL (unlinked) { UNWIND unlinked AS some UNWIND some AS one RETURN collect(one) AS links }";

/// Takes back the edges that changed records no longer have (contract §5.5; what it prunes not, we do).
pub fn statement(data_type: DataType, records: &[&Record<Deferred>]) -> Query {
    with_rows(data_type, records.iter().map(|r| row(&r.id, payload(r))))
}

/// Takes back all edges of records that vanished.
pub fn everything(data_type: DataType, ids: &[String]) -> Query {
    let nothing = Payload::nothing(data_type);
    with_rows(data_type, ids.iter().map(|id| row(id, &nothing)))
}

fn with_rows(data_type: DataType, rows: impl Iterator<Item = BoltType>) -> Query {
    let work = |more, returned| {
        let label = label(data_type);
        format!(
            "UNWIND $rows AS r MATCH (n:{label} {{id: r.id}}) USING INDEX SEEK n:{label}(id){WORK}{more}
             RETURN collect(pairs) AS part_of, collect(by) AS artists, collect(genre) AS genres, collect(style) AS styles{returned}"
        )
    };
    let text = match data_type {
        DataType::Artists => ARTISTS.to_owned(),
        DataType::Labels => LABELS.to_owned(),
        DataType::Masters => work("", ""),
        DataType::Releases => work(
            RELEASE,
            ", collect(on) AS labels, collect(derived) AS masters, collect(credited) AS persons, collect(links) AS same_as",
        ),
    };
    query(&text).param("rows", list(rows))
}

/// A list of texts.
pub(crate) fn strings<'a>(items: impl IntoIterator<Item = &'a String>) -> BoltType {
    list(items.into_iter().map(String::as_str))
}

fn row(id: &str, payload: &Payload) -> BoltType {
    let mut row: Vec<(&'static str, BoltType)> = vec![("id", id.into())];
    match payload {
        Payload::Artist(artist) => {
            row.push(("members", strings(&artist.members)));
            row.push(("groups", strings(&artist.groups)));
            row.push(("aliases", strings(&artist.aliases)));
        }
        Payload::Label(label) => {
            row.push(("parent", strings(&label.parent)));
            row.push(("sublabels", strings(&label.sublabels)));
        }
        Payload::Master(work) => row.extend(work_row(work)),
        Payload::Release(work, edition) => {
            row.extend(work_row(work));
            row.push(("labels", strings(&edition.labels)));
            row.push(("masters", strings(&edition.master)));
            row.push(("credits", list(edition.credits.iter().map(|c| pair(&c.name, &c.role)))));
            let links = edition.credits.iter().filter_map(|c| Some(pair(&c.name, c.artist.as_ref()?)));
            row.push(("links", list(links)));
        }
    }
    map(row)
}

fn work_row(work: &Work) -> [(&'static str, BoltType); 4] {
    [
        ("artists", strings(&work.artists)),
        ("genres", strings(&work.genres)),
        ("styles", strings(&work.styles)),
        ("only_genre", work.only_genre.as_deref().unwrap_or_default().into()),
    ]
}
