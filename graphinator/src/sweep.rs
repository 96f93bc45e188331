//! After pruning: what nobody claims any more goes, be it an edge that many records can claim (PART_OF, SAME_AS) or a node
//! that only was there for others.
//!
//! A sweep runs after the commit of what it follows, so that it and a batch that runs beside it can't both miss the other,
//! and what it looked at stays noted (`IngestRecheck`) until the maintenance, when nothing is written beside it, has looked
//! at it twice more. Nodes are deleted without their edges: if somebody has just connected one, the deletion fails, and the
//! note stays.

use neo4rs::{BoltType, Query, Row, query};

use crate::prune::{Removed, strings};
use crate::statements::{list, map, pair};

/// Writes down what was removed, in the transaction that removes it. (All in one parameter, see [`crate::statements`].)
pub fn note(removed: &Removed) -> Query {
    let halves = |pairs: &[(String, String)]| pairs.iter().cloned().unzip::<_, _, Vec<_>, Vec<_>>();
    let (part_of_styles, part_of_genres) = halves(&removed.part_of);
    let (same_as_persons, same_as_artists) = halves(&removed.same_as);
    let note = [
        ("artists", &removed.artists),
        ("labels", &removed.labels),
        ("masters", &removed.masters),
        ("releases", &removed.releases),
        ("genres", &removed.genres),
        ("styles", &removed.styles),
        ("persons", &removed.persons),
        ("part_of_styles", &part_of_styles),
        ("part_of_genres", &part_of_genres),
        ("same_as_persons", &same_as_persons),
        ("same_as_artists", &same_as_artists),
    ]
    .map(|(name, texts)| (name, strings(texts)));
    query("CREATE (n:IngestRecheck) SET n = $note, n.at = timestamp()").param("note", map(note.into()))
}

/// All notes that there are, the oldest first.
pub fn notes() -> Query {
    query("MATCH (n:IngestRecheck) WITH n ORDER BY n.at RETURN collect(elementId(n)) AS notes")
}

/// One of them.
pub fn note_of(note: &str) -> Query {
    query("MATCH (n:IngestRecheck) WHERE elementId(n) = $note RETURN n{.*} AS removed").param("note", note)
}

/// What a note says.
pub fn noted(row: &Row) -> Result<Removed, neo4rs::DeError> {
    #[derive(serde::Deserialize)]
    struct Note {
        artists: Vec<String>,
        labels: Vec<String>,
        masters: Vec<String>,
        releases: Vec<String>,
        genres: Vec<String>,
        styles: Vec<String>,
        persons: Vec<String>,
        part_of_styles: Vec<String>,
        part_of_genres: Vec<String>,
        same_as_persons: Vec<String>,
        same_as_artists: Vec<String>,
    }
    let n: Note = row.get("removed")?;
    Ok(Removed {
        artists: n.artists,
        labels: n.labels,
        masters: n.masters,
        releases: n.releases,
        genres: n.genres,
        styles: n.styles,
        persons: n.persons,
        part_of: n.part_of_styles.into_iter().zip(n.part_of_genres).collect(),
        same_as: n.same_as_persons.into_iter().zip(n.same_as_artists).collect(),
    })
}

/// Forgets a note.
pub fn forget(note: &str) -> Query {
    query("MATCH (n:IngestRecheck) WHERE elementId(n) = $note DELETE n").param("note", note)
}

/// Makes or removes the edges that many records can claim. `unknown` claims are those of records that did not mark theirs.
const PART_OF: &str = "
UNWIND $pairs AS pair
MATCH (s:Style {name: pair[0]}) USING INDEX SEEK s:Style(name) MATCH (g:Genre {name: pair[1]}) USING INDEX SEEK g:Genre(name)
OPTIONAL MATCH (s)-[e:PART_OF]->(g)
WITH s, g, e, EXISTS { (s)<-[:IS]-(r) WHERE r._only_genre = g.name } AS claimed
FOREACH (_ IN CASE WHEN claimed AND e IS NULL THEN [1] ELSE [] END | MERGE (s)-[:PART_OF]->(g))
WITH s, g, e WHERE NOT claimed AND e IS NOT NULL AND size([k IN keys(e) WHERE NOT k STARTS WITH '_']) = 0
WITH s, g, e WHERE NOT EXISTS { (s)<-[:IS]-(r)-[:IS]->(g) WHERE r._v IS NULL }
DELETE e";

const SAME_AS: &str = "
UNWIND $pairs AS pair
MATCH (p:Person {name: pair[0]}) USING INDEX SEEK p:Person(name) MATCH (a:Artist {id: pair[1]}) USING INDEX SEEK a:Artist(id)
OPTIONAL MATCH (p)-[e:SAME_AS]->(a)
WITH p, a, e, EXISTS { (p)-[c:CREDITED_ON]->() WHERE a.id IN [] + c._artists } AS claimed
FOREACH (_ IN CASE WHEN claimed AND e IS NULL THEN [1] ELSE [] END | MERGE (p)-[:SAME_AS]->(a))
WITH p, a, e WHERE NOT claimed AND e IS NOT NULL AND size([k IN keys(e) WHERE NOT k STARTS WITH '_']) = 0
WITH p, a, e WHERE NOT EXISTS { (p)-[:CREDITED_ON]->(r) WHERE r._v IS NULL }
DELETE e";

/// Credits that waited for their artist, and are gone.
const PENDING: &str = "
UNWIND $pairs AS pair
MATCH (w:IngestPendingLink {artist: pair[1]}) USING INDEX SEEK w:IngestPendingLink(artist)
WHERE w.person = pair[0] AND NOT EXISTS { (p:Person {name: pair[0]})-[c:CREDITED_ON]->() WHERE pair[1] IN [] + c._artists }
DELETE w";

/// Properties beside the key that are ours on a node that is no record: statistics.
const STATISTICS: &str = "['release_count', 'artist_count', 'label_count', 'genre_count', 'style_count', 'first_year']";

/// Condition: a node `n` that no record stands for and that nothing but ours is on.
pub fn is_bare(key: &str) -> String {
    format!(
        "n.sha256 IS NULL AND size([k IN keys(n) WHERE NOT k STARTS WITH '_' AND k <> '{key}' AND NOT k IN {STATISTICS}]) = 0"
    )
}

/// Locks `n`, changing nothing. A batch beside this may be about to make a record of it, which adds no edge perhaps; whether it is bare
/// must be looked at after that.
pub const LOCK: &str = "SET n._lock = true REMOVE n._lock";

/// An artist that only SAME_AS refers to was there for others, too: the credits wait again.
fn lonely_artists() -> String {
    let others = "(n)-[e]-() WHERE NOT e:SAME_AS OR size([k IN keys(e) WHERE NOT k STARTS WITH '_']) > 0";
    format!(
        "UNWIND $keys AS key MATCH (n:Artist {{id: key}}) USING INDEX SEEK n:Artist(id)
         WHERE NOT EXISTS {{ {others} }} {LOCK} WITH n WHERE {} AND NOT EXISTS {{ {others} }}
         OPTIONAL MATCH (p:Person)-[e:SAME_AS]->(n)
         WITH n, collect(p.name) AS persons, collect(e) AS edges
         FOREACH (name IN persons |
           CREATE (:IngestPendingLink {{artist: n.id, person: name}}))
         FOREACH (e IN edges | DELETE e)
         DELETE n",
        is_bare("id")
    )
}

fn lonely(label: &str, key: &str) -> String {
    format!(
        "UNWIND $keys AS key MATCH (n:{label} {{{key}: key}}) USING INDEX SEEK n:{label}({key}) \
         WHERE NOT (n)--() {LOCK} WITH n WHERE {} AND NOT (n)--() DELETE n",
        is_bare(key)
    )
}

/// What to run, in this order.
pub fn statements(removed: &Removed) -> Vec<Query> {
    let pairs = |pairs: &[(String, String)]| -> BoltType { list(pairs.iter().map(|(a, b)| pair(a, b))) };
    let mut statements = Vec::new();
    if !removed.part_of.is_empty() {
        statements.push(query(PART_OF).param("pairs", pairs(&removed.part_of)));
    }
    if !removed.same_as.is_empty() {
        statements.push(query(SAME_AS).param("pairs", pairs(&removed.same_as)));
        statements.push(query(PENDING).param("pairs", pairs(&removed.same_as)));
    }
    // An artist may have lost its last edge but SAME_AS, or that one.
    let mut artists = removed.artists.clone();
    artists.extend(removed.same_as.iter().map(|(_, artist)| artist.clone()));
    artists.sort_unstable();
    artists.dedup();
    if !artists.is_empty() {
        statements.push(query(&lonely_artists()).param("keys", strings(&artists)));
    }
    for (label, key, removed) in [
        ("Label", "id", &removed.labels),
        ("Master", "id", &removed.masters),
        ("Release", "id", &removed.releases),
        ("Genre", "name", &removed.genres),
        ("Style", "name", &removed.styles),
        ("Person", "name", &removed.persons),
    ] {
        if !removed.is_empty() {
            statements.push(query(&lonely(label, key)).param("keys", strings(removed)));
        }
    }
    statements
}
