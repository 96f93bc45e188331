//! A seeded generator of Discogs messages: what the workers see of a monthly dump, in any size, without Discogs' data.
//!
//! A record is a pure function of seed, type and number, so that two months agree byte by byte where nothing changed.
//! The proportions follow the real dumps, oddities included: `null` items, ids missing or "0", dangling references,
//! hubs, two layouts (the older one writes empty elements as `null` and has images), junk dates, scripts, odd characters.

use fastrand::Rng;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::LazyLock;

/// How much to generate, from which seed.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The same seed gives the same bytes.
    pub seed: u64,
    /// Records over all four types, in Discogs' proportions, each type at least one.
    pub records: usize,
}

/// The bodies of one month's data messages, per type, in ascending id order, exactly as on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Messages of the exchange for artists.
    pub artists: Vec<Vec<u8>>,
    /// Messages of the exchange for labels.
    pub labels: Vec<Vec<u8>>,
    /// Messages of the exchange for masters.
    pub masters: Vec<Vec<u8>>,
    /// Messages of the exchange for releases.
    pub releases: Vec<Vec<u8>>,
}

/// The first month.
pub fn generate(spec: &Spec) -> Sample {
    World::new(spec).month(None)
}

/// The month after `generate(spec)`: the fraction `changed` of the records differs in a field or two that show in graph
/// or tables, the fraction `removed` is gone, about 1 % are new; all others are byte-equal.
pub fn next_month(spec: &Spec, changed: f64, removed: f64) -> Sample {
    World::new(spec).month(Some((changed, removed)))
}

/// The message that ends a type's file.
pub fn file_complete(data_type: &str, version: &str, records: usize) -> Vec<u8> {
    let (kind, time) = (json!(data_type), json!(noon(version)));
    let file = json!(format!("discogs_{version}_{data_type}.xml.gz"));
    let head = format!(r#"{{"type":"file_complete","data_type":{kind},"timestamp":{time}"#);
    format!(r#"{head},"total_processed":{records},"file":{file}}}"#).into()
}

/// The message that ends a month, one copy for each exchange.
pub fn extraction_complete(version: &str, started_at: &str, counts: [(&str, usize); 4]) -> Vec<u8> {
    let (time, version, started_at) = (json!(noon(version)), json!(version), json!(started_at));
    let counts = counts.map(|(kind, n)| format!("{}:{n}", json!(kind))).join(",");
    let head = format!(r#"{{"type":"extraction_complete","version":{version},"timestamp":{time}"#);
    format!(r#"{head},"started_at":{started_at},"record_counts":{{{counts}}}}}"#).into()
}

/// A time on the day that the version names.
fn noon(version: &str) -> String {
    let part = |range, default| version.get(range).unwrap_or(default);
    format!("{}-{}-{}T12:34:56.123456789Z", part(0..4, "2026"), part(4..6, "01"), part(6..8, "01"))
}

/// The wire form of a record: the envelope, then the record with its own `id`.
fn message(record: Record) -> Vec<u8> {
    let id = record["id"].to_string();
    let body = Value::from(record).to_string();
    let hash: String = Sha256::digest(&body).iter().map(|byte| format!("{byte:02x}")).collect();
    format!(r#"{{"type":"data","id":{id},"sha256":"{hash}",{}"#, &body[1..]).into()
}

type Record = Map<String, Value>;
type Words = LazyLock<Vec<&'static str>>;

// What random numbers are about: a type's records, and what is derived from their ids.
const ARTIST: usize = 0;
const LABEL: usize = 1;
const MASTER: usize = 2;
const RELEASE: usize = 3;
const NAME: usize = 4;
const WORK: usize = 8;
const BAND: usize = 9;
const CHANGE: usize = 12;
/// The artist "Various": the greatest hub, without a record of its own.
const VARIOUS: u64 = 194;

macro_rules! words {
    ($($name:ident = $list:literal;)*) => { $(static $name: Words = Words::new(|| $list.split('|').collect());)* };
}

// Word lists, and templates in which `%` and a letter stand for a word (see `Maker::fill`).
words! {
    PERSON = "%f %s|%f %s|%f %s|%f %s|%f %s|%f %s|%f %s|%f %c. %s|%f %s-%s|%f %s (%n)|%u";
    BAND_NAME = "The %q %ts|The %ts|DJ %s|%s %t|%s%y|%q %t|%s & The %ts|%s (%n)|%t (%n)|%u";
    COMPANY = "Not On Label (%s Self-released)|%q %t Records|%s Records|%s Music|%t Recordings|%s %t|%s (%n)|%u";
    TITLE = "%t|%q %t|%q %t|The %t Of The %q %t|%q %t (%s Remix)|%t / %s|%t Vol. %n|%q %ts And %ts|My %t|%s|%s %t|%u";
    ROLE = "%r|%r|%r|%r|%r|%r [%d]|%r, %r|%r [%d], %r|%r, %r [%d], %r";
    CATNO = "%c%c-%n%n|%c%c%c %n|%n %n%n %n-2|none|%c%n%n%c";
    VALUE = "%c%c-%n%n|IFPI %c%n%n|%n %n%n %n-2|%n%n%n%n%n|CAT %n LP - A%n  %c|LC %n%n";
    ADDRESS = "%p\r\n%s %n\r\n%n%n %t\r\n\r\nTel: +49 %n %n%n%n\r\ninfo@%t.example\r\n";
    URL = "https://www.facebook.com/%s%n|https://soundcloud.com/%s|http://%s.example/%t|\
        https://en.wikipedia.org/wiki/%s_%s";
    VIDEO = "https://www.youtube.com/watch?v=%k";
    TRACKS = "A%n|%n, %n to %n|A1, A%n, B%n";
    VARIATION = "%c. %s|%f|%c.%c.|%s, %f|%f \"%t\" %s";
    DATE = "Y|Y|Y|Y|Y|Y|Y|Y|Y|Y|Y-03-14|Y-11-01|Y-06-30|Y-01-01|Y-09-21|Y-10-10|Y-05-00|Y-12-00|Y-00-00|%j";
    JUNK = "199?|Unknown|?|0000|19690|1985-6-1|Nov 1973|c. 1980|0400-01-01| 1987 |1999-13-45";
    GENRES = "Rock|Electronic|Pop|Folk, World, & Country|Jazz|Funk / Soul|Hip Hop|Classical|Latin|Reggae|\
        Stage & Screen|Blues|Non-Music|Children's|Brass & Military";
    STYLES = "Rock|House|Techno|Punk|Metal|Jazz|Folk|Soul|Ambient|Pop|Funk|Disco|Dub|Blues|Swing|Beat";
    STYLE_KINDS = "|Deep |Acid |Hard |Prog |Free |Indie |Dark |Latin |Post-|Electro-|Euro-|Neo-";
    ROLES = "Producer|Written-By|Mastered By|Guitar|Drums|Photography By|Vocals|Engineer|Executive-Producer|Design|\
        Bass|Lacquer Cut By|Mixed By|Recorded By|Artwork|Backing Vocals|Piano|Arranged By|Violin|Composed By|\
        Lyrics By|Cello|Liner Notes|Percussion|Conductor|Cover|Orchestra|Keyboards|Art Direction|Trumpet|Saxophone|\
        Words By|Layout|A&R|Presenter|Programmed By|Compiled By|Remastered By|Management|Featuring|DJ Mix|Remix|\
        Co-producer|Contrabass|Organized By|Coordinator|Booking|Scratches|Rap|Edited By|Harpsichord|Music By";
    DETAILS = "Assistant|Additional|Live|All Tracks By|Uncredited|Lead|Mixing|Mastering|Cover, Back|Gu.|Führung|";
    FIRST = "Anna|Bengt|Carla|David|Elena|Frank|Gisèle|Hans|Irene|John|Karin|Luís|Maria|Nils|Olga|Paul|Quentin|Rosa|\
        Søren|Tomás|Ute|Victor|Wanda|Xavier|Yvonne|Zoë|Michael|Peter|Robert|Susan|Ikuko|Kenji";
    HEADS = "Ba|Ber|Co|Dal|Del|En|Far|Ga|Gren|Hal|In|Ja|Ka|Kov|La|Len|Lin|Ma|Mer|Mo|Na|O|Par|Ra|Ri|Ro|Sa|Sö|Ta|Tur|Vi|\
        Za";
    SYLLABLES = "ba|ber|co|dal|del|en|far|ga|gren|hal|in|ja|ka|kov|la|len|lin|ma|mer|mo|na|ner|ra|ri|ro|sa|sen|son|ta|\
        ter|tur|va|vi|wa|yo|za|zer|dä|lé|mü|ño";
    SCRIPTS = "ко ра ми на ло ве ст|ア カ サ タ ナ マ ラ|가 나 다 라 마 바|κα λο με ρι στα|של ום מי רה|بح ري نو سم|山 川 田 中 音|\
        𝔸 𝔹 é\u{301} 🎵 ★";
    THINGS = "Night|River|Machine|Heart|Signal|Garden|Stone|Echo|Winter|Mirror|Motor|Ocean|Paper|Dream|Fire|Shadow|\
        Street|Velvet|Wire|Moon|Train|Summer|Love|Dust|Harbour|Crystal|Letter|Ghost|Colour|Silence|Rhythm|Empire|\
        Bridge|Orbit";
    QUALITIES = "Blue|Lost|Golden|Broken|Silent|Red|Distant|Electric|Last|Empty|Slow|Hidden|New|Black|Sweet|Wild|No|\
        Über";
    PROSE = "the|of|and|recorded|in|at|a|first|album|label|pressing|with|was|on|by|released|studio|original|band|from|\
        for|sleeve|issued|side|copies|is|limited|track|printed|founded|\"promo\"|& Co.|℗|©|—|1977|version|\
        tous droits";
    BREAK = "[a=%p]|[l=%t]|.\r\n\r\n|.\n|[url=http://%s.example]%t[/url]";
    COUNTRIES = "US|UK|Germany|Japan|Canada|Italy|Netherlands|France|Sweden|Europe|Spain|Russia|Australia|Poland|\
        Brazil|UK & Europe|Czechoslovakia|Jamaica|Yugoslavia";
    FORMATS = "Vinyl|Vinyl|Vinyl|CD|CD|File|Cassette|CDr|Box Set|DVD|Shellac|All Media";
    DESCRIPTIONS = "LP|Album|7\"|12\"|45 RPM|33 ⅓ RPM|Single|EP|Compilation|Stereo|Reissue|Promo|Remastered";
    JOINS = ",|&|/|And|Feat.|-|•|With|vs.|Presents|、| &";
    COMPANIES = "21=Published By|13=Phonographic Copyright (p)|14=Copyright (c)|23=Recorded At|9=Distributed By|\
        17=Pressed By|29=Mastered At|10=Manufactured By|30=Lacquer Cut At|27=Mixed At|37=Produced For|16=Made By";
    IDENTIFIERS = "Matrix / Runout|Barcode|Rights Society|Mould SID Code|Label Code|Other|Depósito Legal|ASIN";
    QUALITY = "Needs Vote|Correct|Complete and Correct|Needs Minor Changes";
    MARKS = " |  x|\ty|\r\n|\u{2028}z|\u{feff}|\u{a0}|\u{91}| 🎧💿| e\u{301}|\u{200b}&amp; \\ \"q\" /| ";
}

/// What the records share: ids, and relations that two records tell of, each from its side.
struct World {
    seed: u64,
    counts: [usize; 4],
    links: HashMap<(&'static str, usize), Vec<usize>>,
}

impl World {
    fn new(spec: &Spec) -> Self {
        let share = |percent: usize| (spec.records * percent / 100).max(1);
        let (artists, labels, masters) = (share(29), share(7), share(8));
        let releases = spec.records.saturating_sub(artists + labels + masters).max(1);
        let counts = [artists, labels, masters, releases];
        let mut world = Self { seed: spec.seed, counts, links: HashMap::new() };
        let mut rng = Rng::with_seed(spec.seed);
        for artist in 0..artists {
            let [members, aliases] = [1.2, 2.0].map(|more| match rng.u8(..14) {
                0 => 2 + few(&mut rng, more, 60),
                _ => 0,
            });
            for _ in 0..members {
                world.link(("members", artist), ("groups", rng.usize(..artists)), &mut rng);
            }
            for _ in 0..aliases {
                world.link(("aliases", artist), ("aliases", rng.usize(..artists)), &mut rng);
            }
        }
        for label in 1..labels {
            if rng.f64() < 0.09 {
                world.link(("parentLabel", label), ("sublabels", skewed(&mut rng, label, 3)), &mut rng);
            }
        }
        world
    }

    /// Notes a relation for both records; now and then only one of them knows.
    fn link(&mut self, one: (&'static str, usize), other: (&'static str, usize), rng: &mut Rng) {
        let silent = rng.u8(..10);
        for (who, (field, index), (_, with)) in [(0, one, other), (1, other, one)] {
            if silent != who && index != with {
                self.links.entry((field, index)).or_default().push(with);
            }
        }
    }

    fn month(&self, next: Option<(f64, f64)>) -> Sample {
        let [artists, labels, masters, releases] =
            [ARTIST, LABEL, MASTER, RELEASE].map(|kind| self.messages(kind, next));
        Sample { artists, labels, masters, releases }
    }

    /// The messages of a type, in month one or, with the fractions changed and removed, the one after.
    fn messages(&self, kind: usize, next: Option<(f64, f64)>) -> Vec<Vec<u8>> {
        let (old, (changed, removed)) = (self.counts[kind], next.unwrap_or_default());
        let new = next.map_or(0, |_| old.div_ceil(100));
        let make = |index| {
            // Steps of the golden section hit every fraction evenly, in small samples too.
            let step = (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(self.mix(kind, 0));
            let fate = if index < old { (step >> 11) as f64 / (1_u64 << 53) as f64 } else { 1.0 };
            let id = self.id(kind, index);
            let mut record = self.maker(kind, id).record(kind, index);
            if fate < removed + changed {
                self.maker(CHANGE + kind, id).change(kind, &mut record);
            }
            (fate >= removed).then(|| message(record))
        };
        (0..old + new).filter_map(make).collect()
    }

    /// Ascending with gaps, up to about what Discogs has reached.
    fn id(&self, kind: usize, index: usize) -> u64 {
        let stride = ([17_000_000, 4_600_000, 4_000_000, 35_000_000][kind] / self.counts[kind] as u64).max(2);
        let (first, offset) = (stride * index as u64 + 1, self.mix(kind, index as u64) % stride);
        if kind == ARTIST && first + offset == VARIOUS { first + (offset + 1) % stride } else { first + offset }
    }

    /// A random id: small ones are the more popular the higher the power, and some have no record (yet).
    fn some(&self, kind: usize, power: i32, rng: &mut Rng) -> u64 {
        let (n, dangling) = (self.counts[kind], rng.u8(..12) == 0);
        let index = if dangling { n + skewed(rng, 4 + n / 8, 2) } else { skewed(rng, n, power) };
        self.id(kind, index)
    }

    fn mix(&self, stream: usize, number: u64) -> u64 {
        let stream = (stream as u64 + 1).wrapping_mul(0xd6e8_feb8_6659_fd93);
        let mut x = self.seed ^ stream ^ number.wrapping_mul(0xa076_1d64_78bd_642f);
        for _ in 0..2 {
            x = (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        }
        x ^ (x >> 32)
    }

    fn maker(&self, stream: usize, id: u64) -> Maker<'_> {
        let mut rng = Rng::with_seed(self.mix(stream, id));
        Maker { world: self, id, old: rng.f64() < 0.3, rng }
    }

    /// The name that all references to an artist or label agree on.
    fn name(&self, kind: usize, id: u64) -> String {
        let templates = match kind {
            ARTIST if id == VARIOUS => return "Various".into(),
            ARTIST if self.is_band(id) => &BAND_NAME,
            ARTIST => &PERSON,
            _ => &COMPANY,
        };
        self.maker(NAME + kind, id).fill(templates)
    }

    fn is_band(&self, id: u64) -> bool {
        self.mix(BAND, id) % 10 < 4
    }
}

/// A count, mostly small, with a heavy tail; the mean is about right.
fn few(rng: &mut Rng, mean: f64, most: usize) -> usize {
    let u = 1.0 - rng.f64();
    ((mean * (1.0 / u.sqrt() - 1.0) + 0.5) as usize).min(most)
}

/// A number below `n`, the small ones the more often the higher the power.
fn skewed(rng: &mut Rng, n: usize, power: i32) -> usize {
    let u = rng.f64();
    (((1..power).fold(u, |p, _| p * u) * n as f64) as usize).min(n.saturating_sub(1))
}

/// A record of the fields that are present.
fn object<const N: usize>(fields: [(&str, Option<Value>); N]) -> Record {
    fields.into_iter().filter_map(|(key, value)| Some((key.into(), value?))).collect()
}

/// What a master and its releases have in common.
struct Work {
    title: String,
    artists: Vec<u64>,
    genres: Vec<&'static str>,
    styles: Vec<String>,
    year: u32,
}

/// Makes one record, or one name, from its own stream of random numbers.
struct Maker<'w> {
    world: &'w World,
    id: u64,
    /// Whether in the layout before 2025.
    old: bool,
    rng: Rng,
}

impl Maker<'_> {
    fn record(&mut self, kind: usize, index: usize) -> Record {
        let (mut record, illustrated) = match kind {
            ARTIST => (self.artist(index), 0.25),
            LABEL => (self.label(index), 0.25),
            MASTER => (self.master(), 1.0),
            _ => (self.release(), 1.0),
        };
        record.insert("id".into(), json!(self.id.to_string()));
        record.insert("data_quality".into(), json!(self.common(&QUALITY)));
        if self.old
            && let Some(images) = self.bag(illustrated, "image", 0.8, |m| {
                let (kind, height) = (["primary", "secondary"][m.rng.usize(..2)], m.rng.u16(200..601).to_string());
                json!({"@type": kind, "@uri": "", "@uri150": "", "@height": height, "@width": "600"})
            })
        {
            record.insert("images".into(), images);
        }
        record
    }

    fn artist(&mut self, index: usize) -> Record {
        object([
            ("aliases", self.relatives("aliases", ARTIST, index)),
            ("groups", self.relatives("groups", ARTIST, index)),
            ("members", self.relatives("members", ARTIST, index)),
            ("name", Some(json!(self.world.name(ARTIST, self.id)))),
            ("namevariations", self.bag(0.26, "name", 2.5, |m| json!(m.fill(&VARIATION)))),
            ("profile", self.text(0.21, 300.0)),
            ("realname", self.maybe(0.14, |m| m.fill(&PERSON))),
            ("urls", self.bag(0.15, "url", 2.0, |m| json!(m.fill(&URL))).or_else(|| self.maybe(0.04, |_| Value::Null))),
        ])
    }

    fn label(&mut self, index: usize) -> Record {
        let mut sublabels = self.relatives("sublabels", LABEL, index);
        if let Some(Value::Array(items)) = &mut sublabels
            && self.chance(0.08)
        {
            items.insert(self.rng.usize(..=items.len()), Value::Null);
        }
        object([
            ("contactinfo", self.maybe(0.13, |m| m.fill(&ADDRESS))),
            ("name", Some(json!(self.world.name(LABEL, self.id)))),
            ("parentLabel", self.relatives("parentLabel", LABEL, index).map(|mut parents| parents[0].take())),
            ("profile", self.text(0.2, 150.0)),
            ("sublabels", sublabels),
            ("urls", self.bag(0.12, "url", 1.7, |m| json!(m.fill(&URL))).or_else(|| self.maybe(0.04, |_| Value::Null))),
        ])
    }

    fn master(&mut self) -> Record {
        let work = self.world.maker(WORK, self.id).work();
        let year = if self.chance(0.03) { 0 } else { work.year };
        let mut record = self.shared(work);
        record.extend(object([
            ("main_release", Some(json!(self.world.some(RELEASE, 1, &mut self.rng).to_string()))),
            ("notes", self.text(0.04, 100.0)),
            ("videos", self.videos(0.5)),
            ("year", Some(json!(year.to_string()))),
        ]));
        record
    }

    fn release(&mut self) -> Record {
        let master = self.chance(0.61).then(|| self.world.some(MASTER, 1, &mut self.rng));
        let work = match master {
            Some(id) => self.world.maker(WORK, id).work(),
            None => self.work(),
        };
        let (year, various) = (work.year.to_string(), work.artists.contains(&VARIOUS));
        let mut record = self.shared(work);
        record.extend(object([
            ("companies", self.bag(0.45, "company", 2.0, Self::company).or(self.empty())),
            ("country", self.maybe(0.97, |m| m.common(&COUNTRIES))),
            ("extraartists", self.list(0.59, 5.5, Self::credited).map(Value::from)),
            ("formats", self.list(1.0, 0.05, Self::format).map(Value::from)),
            ("identifiers", self.bag(0.53, "identifier", 2.0, Self::identifier).or(self.empty())),
            ("labels", self.list(1.0, 0.2, Self::label_item).map(Value::from)),
            ("master_id", master.map(|id| json!(id.to_string())).or_else(|| self.maybe(0.25, |_| "0"))),
            ("notes", self.text(0.64, 90.0)),
            ("released", self.maybe(0.88, |m| m.fill(&DATE).replace('Y', &year))),
            ("series", self.bag(0.02, "series", 0.1, |m| json!({"@catno": m.fill(&CATNO), "@name": m.fill(&TITLE)}))),
            ("status", self.old.then(|| json!("Accepted"))),
            ("tracklist", Some(self.tracklist(various))),
            ("videos", self.videos(0.42)),
        ]));
        record
    }

    fn tracklist(&mut self, various: bool) -> Value {
        let box_set = if self.chance(0.012) { self.rng.usize(40..220) } else { 0 };
        let n = 1 + self.rng.usize(..10) + few(&mut self.rng, 2.2, 60) + box_set;
        let (vinyl, credited, timed) = (self.chance(0.55), self.chance(0.3), self.chance(0.6));
        let tracks: Vec<_> = (0..n)
            .map(|i| {
                let side = char::from(b'A' + (i / 5 % 26) as u8);
                let position = if vinyl { format!("{side}{}", i % 5 + 1) } else { (i + 1).to_string() };
                let heading = self.chance(0.01);
                let length = timed.then(|| json!(format!("{}:{:02}", self.rng.u8(1..10), self.rng.u8(..60))));
                let parts = |m: &mut Self| json!({"position": format!("{}a", i + 1), "title": m.fill(&TITLE)});
                Value::from(object([
                    ("artists", self.bag(if various { 1.0 } else { 0.0 }, "artist", 0.1, Self::performer)),
                    ("duration", length.filter(|_| !heading).or(self.empty())),
                    ("extraartists", self.bag(if credited { 0.6 } else { 0.0 }, "artist", 0.9, Self::credited)),
                    ("position", (!heading).then(|| json!(position)).or(self.empty())),
                    ("sub_tracks", self.bag(0.004, "track", 4.0, parts)),
                    ("title", Some(json!(self.fill(&TITLE)))),
                ]))
            })
            .collect();
        raw("track", tracks)
    }

    fn videos(&mut self, p: f64) -> Option<Value> {
        self.bag(p, "video", 2.0, |m| {
            let (seconds, src, title) = (m.rng.u16(60..600).to_string(), m.fill(&VIDEO), m.fill(&TITLE));
            let description = m.text(0.8, 80.0).unwrap_or_default();
            json!({"@duration": seconds, "@embed": "true", "@src": src, "description": description, "title": title})
        })
    }

    fn company(&mut self) -> Value {
        let (code, role) = self.common(&COMPANIES).split_once('=').unwrap_or_default();
        let mut company = self.reference(LABEL, 3);
        company["entity_type"] = json!(code);
        company["entity_type_name"] = json!(role);
        company
    }

    fn identifier(&mut self) -> Value {
        let description = if self.old { "" } else { self.pick(&DETAILS) };
        json!({"@type": self.common(&IDENTIFIERS), "@value": self.fill(&VALUE), "@description": description})
    }

    fn format(&mut self) -> Value {
        let (quantity, text) = (1 + few(&mut self.rng, 0.2, 40), self.maybe(0.1, |m| m.fill(&TITLE)));
        let descriptions = self.bag(0.97, "description", 1.0, |m| json!(m.pick(&DESCRIPTIONS)));
        object([
            ("descriptions", descriptions),
            ("name", Some(json!(self.pick(&FORMATS)))),
            ("qty", Some(json!(quantity.to_string()))),
            ("text", text.or(Some(json!("")))),
        ])
        .into()
    }

    fn label_item(&mut self) -> Value {
        let mut item = self.reference(LABEL, 3);
        item["catno"] = json!(self.fill(&CATNO));
        if self.chance(0.003) {
            item["id"].take();
        }
        item
    }

    fn work(&mut self) -> Work {
        let artists = self.list(1.0, 0.35, |m| m.world.some(ARTIST, 2, &mut m.rng)).unwrap_or_default();
        let mut genres = self.list(1.0, 0.4, Self::genre).unwrap_or_default();
        let mut styles = self.list(0.88, 0.8, |m| m.style(genres[0])).unwrap_or_default();
        genres.sort_unstable();
        genres.dedup();
        styles.sort_unstable();
        styles.dedup();
        let artists = if self.chance(0.07) { vec![VARIOUS] } else { artists };
        Work { title: self.fill(&TITLE), artists, genres, styles, year: 2026 - skewed(&mut self.rng, 80, 2) as u32 }
    }

    fn shared(&mut self, work: Work) -> Record {
        let credit = |(i, id): (usize, &u64)| {
            let join = if i + 1 < work.artists.len() { 1.0 } else { 0.02 };
            let join = self.maybe(join, |m| m.common(&JOINS));
            self.credit(*id, join, None)
        };
        let artists: Vec<_> = work.artists.iter().enumerate().map(credit).collect();
        object([
            ("artists", Some(json!(artists))),
            ("genres", Some(json!(work.genres))),
            ("styles", (!work.styles.is_empty()).then(|| json!(work.styles))),
            ("title", Some(json!(work.title))),
        ])
    }

    fn genre(&mut self) -> &'static str {
        match self.rng.u8(..100) {
            0..31 => GENRES[0],
            31..57 => GENRES[1],
            _ => GENRES[2 + skewed(&mut self.rng, GENRES.len() - 2, 2)],
        }
    }

    /// Every genre has its own favourites among the styles.
    fn style(&mut self, genre: &str) -> String {
        let all = STYLES.len() * STYLE_KINDS.len();
        let i = (skewed(&mut self.rng, all, 3) + genre.len() * 7) % all;
        format!("{}{}", STYLE_KINDS[i / STYLES.len()], STYLES[i % STYLES.len()])
    }

    fn named(&self, kind: usize, id: u64) -> Value {
        json!({"id": id.to_string(), "name": self.world.name(kind, id)})
    }

    fn reference(&mut self, kind: usize, power: i32) -> Value {
        let id = self.world.some(kind, power, &mut self.rng);
        self.named(kind, id)
    }

    /// The records that this one names in a field, and sometimes one that does not know of it.
    fn relatives(&mut self, field: &'static str, kind: usize, index: usize) -> Option<Value> {
        let known = self.world.links.get(&(field, index)).into_iter().flatten();
        let mut items: Vec<_> = known.map(|&i| self.named(kind, self.world.id(kind, i))).collect();
        if self.chance(if items.is_empty() { 0.01 } else { 0.15 }) {
            items.push(self.reference(kind, 1));
        }
        (!items.is_empty()).then(|| items.into())
    }

    fn performer(&mut self) -> Value {
        let id = self.world.some(ARTIST, 2, &mut self.rng);
        self.credit(id, None, None)
    }

    fn credited(&mut self) -> Value {
        let candidates = [(); 3].map(|()| self.world.some(ARTIST, 2, &mut self.rng));
        let id = candidates.into_iter().find(|&id| !self.world.is_band(id)).unwrap_or(candidates[0]);
        let role = json!(self.fill(&ROLE));
        self.credit(id, None, Some(role))
    }

    /// An entry of an artist or credit list. Without a link to an artist: id "0" in the old layout, none in the new.
    fn credit(&mut self, id: u64, join: Option<Value>, role: Option<Value>) -> Value {
        let name = self.world.name(ARTIST, id);
        let linked = role.is_none() || self.chance(0.98);
        let unlinked = self.old.then(|| json!("0"));
        object([
            ("anv", self.maybe(0.1, |m| m.fill(&VARIATION)).or(self.empty())),
            ("id", if linked { Some(json!(id.to_string())) } else { unlinked }),
            ("join", join.or(self.empty())),
            ("name", Some(json!(name))),
            ("tracks", self.maybe(if role.is_some() { 0.1 } else { 0.0 }, |m| m.fill(&TRACKS)).or(self.empty())),
            ("role", role.or(self.empty())),
        ])
        .into()
    }

    /// Another value for one or two fields that show, or one field less.
    fn change(&mut self, kind: usize, record: &mut Record) {
        let fields: &[&str] = match kind {
            ARTIST => &["name", "profile", "members", "groups", "aliases", "aliases"],
            LABEL => &["name", "contactinfo", "parentLabel", "sublabels"],
            MASTER => &["title", "year", "artists", "genres", "styles"],
            _ => &["title", "notes", "released", "artists", "labels", "extraartists", "genres", "styles", "master_id"],
        };
        let before = record.clone();
        for _ in 0..=few(&mut self.rng, 0.3, 2) {
            let field = fields[self.rng.usize(..fields.len())];
            if self.chance(0.2) && !["name", "title", "artists", "labels", "genres"].contains(&field) {
                record.remove(field);
                continue;
            }
            let value = match field {
                "members" | "groups" | "aliases" => self.reference(ARTIST, 1),
                "sublabels" | "parentLabel" => self.reference(LABEL, 1),
                "artists" => self.performer(),
                "labels" => self.label_item(),
                "extraartists" => self.credited(),
                "genres" => json!(self.genre()),
                "styles" => json!(self.style("")),
                "master_id" => json!(self.world.some(MASTER, 1, &mut self.rng).to_string()),
                "year" | "released" => json!(self.rng.u16(1950..2027).to_string()),
                _ => json!(self.fill(&TITLE)),
            };
            if !field.ends_with('s') || field == "notes" {
                record.insert(field.into(), value);
            } else if let Value::Array(items) = record.entry(field).or_insert_with(|| json!([])) {
                items.pop();
                items.insert(0, value);
            }
        }
        if *record == before {
            record.insert("data_quality".into(), json!("Entirely Incorrect"));
        }
    }

    fn chance(&mut self, p: f64) -> bool {
        self.rng.f64() < p
    }

    fn maybe<T: Into<Value>>(&mut self, p: f64, make: impl FnOnce(&mut Self) -> T) -> Option<Value> {
        self.chance(p).then(|| make(self).into())
    }

    /// How the old layout writes what the new one leaves out.
    fn empty(&self) -> Option<Value> {
        self.old.then_some(Value::Null)
    }

    /// With the given chance, one item and a few more.
    fn list<T>(&mut self, p: f64, more: f64, mut item: impl FnMut(&mut Self) -> T) -> Option<Vec<T>> {
        let most = 4 + (more * 25.0) as usize;
        self.chance(p).then(|| (0..=few(&mut self.rng, more, most)).map(|_| item(self)).collect())
    }

    /// Such a list in the raw shape of the XML.
    fn bag(&mut self, p: f64, child: &str, more: f64, item: impl FnMut(&mut Self) -> Value) -> Option<Value> {
        self.list(p, more, item).map(|items| raw(child, items))
    }

    fn text(&mut self, p: f64, more: f64) -> Option<Value> {
        self.maybe(p, |m| {
            let len = 15 + few(&mut m.rng, more, 5000);
            let mut text = String::from("The");
            while text.len() < len {
                text.push(' ');
                match m.chance(0.94) {
                    true => text += m.pick(&PROSE),
                    false => text += &m.fill(&BREAK),
                }
            }
            text
        })
    }

    fn pick(&mut self, words: &Words) -> &'static str {
        words[self.rng.usize(..words.len())]
    }

    /// Rather one of the list's first words.
    fn common(&mut self, words: &Words) -> &'static str {
        words[skewed(&mut self.rng, words.len(), 2)]
    }

    /// One of the templates, with words put in; now and then with something that a careless reader trips over.
    fn fill(&mut self, templates: &Words) -> String {
        let mut parts = self.pick(templates).split('%');
        let mut out = String::from(parts.next().unwrap_or_default());
        for part in parts {
            let (letter, rest) = part.split_at(1);
            match letter {
                "c" => out.push(self.rng.uppercase()),
                "d" => out += self.pick(&DETAILS),
                "f" => out += self.pick(&FIRST),
                "j" => out += self.pick(&JUNK),
                "k" => out.extend((0..11).map(|_| self.rng.alphanumeric())),
                "n" => out += &(2 + few(&mut self.rng, 9.0, 9999)).to_string(),
                "p" => out += &self.fill(&PERSON),
                "q" => out += self.pick(&QUALITIES),
                "r" => out += self.common(&ROLES),
                "t" => out += self.pick(&THINGS),
                "y" => out += self.pick(&SYLLABLES),
                "u" if self.chance(0.3) => {
                    let script: Vec<_> = self.pick(&SCRIPTS).split(' ').collect();
                    out.extend((0..4).map(|_| script[self.rng.usize(..script.len())]));
                }
                _ => out.extend([self.pick(&HEADS), self.pick(&SYLLABLES), self.pick(&SYLLABLES)]),
            }
            out += rest;
        }
        if self.chance(0.006) {
            out += self.pick(&MARKS);
        }
        out
    }
}

/// The raw shape of the XML: one child stays alone, several make a list.
fn raw(child: &str, mut items: Vec<Value>) -> Value {
    let value = if items.len() == 1 { items.swap_remove(0) } else { Value::from(items) };
    json!({ child: value })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SPEC: Spec = Spec { seed: 1, records: 1000 };

    fn types(sample: Sample) -> [Vec<Vec<u8>>; 4] {
        [sample.artists, sample.labels, sample.masters, sample.releases]
    }

    /// The record in a message, and the hash that the message claims.
    fn opened(body: &[u8]) -> (Record, String) {
        let mut record: Record = serde_json::from_slice(body).unwrap();
        assert_eq!(record.remove("type").unwrap(), "data");
        let hash = record.remove("sha256").unwrap();
        (record, hash.as_str().unwrap().to_owned())
    }

    #[test]
    fn golden_hashes() {
        let no_year = json!({"title": "NoYear", "id": "7", "year": "0"});
        let odd = "a\"b\\c/\t\u{1}\u{7f}\u{2028}é😀";
        let odd = json!({"id": "1", "profile": null, "name": odd});
        let linked = json!({"name": "X", "id": "3", "members": [{"id": "NoId"}], "aliases": [{"id": "0"}]});
        for (record, hash) in [
            (json!({"id": "9"}), "9328b2187029e0b621913fa961c932d33c7b6c14f16cffe5abb7e91fb64f5a85"),
            (no_year, "d476fcf776a5aaabccba34ab7e5be3617c85a140b945828cda9db92bf0e562d3"),
            (linked, "8eb5215802ee68e1b97c2b088cba3f405ad7a65b7083b903094d47678051efe3"),
            (odd, "9333ab2d9e54d0384c1be2b0a04eb159dad6002cff362d8d021430c9aa46928a"),
        ] {
            assert_eq!(opened(&message(record.as_object().unwrap().clone())).1, hash);
        }
    }

    #[test]
    fn messages_are_as_on_the_wire() {
        for bodies in types(generate(&SPEC)) {
            let mut last = 0;
            for body in &bodies {
                let (record, hash) = opened(body);
                let id = record["id"].as_str().unwrap();
                let number: u64 = id.parse().unwrap();
                assert!(number > last && number != VARIOUS);
                last = number;
                let text = std::str::from_utf8(body).unwrap();
                let rest = text.strip_prefix(&format!(r#"{{"type":"data","id":"{id}","sha256":"{hash}","#)).unwrap();
                assert_eq!(format!("{{{rest}"), json!(record).to_string());
                assert!(rest.contains(&format!(r#""id":"{id}""#)));
                assert_eq!(message(record), *body);
            }
        }
    }

    #[test]
    fn a_seed_gives_the_same_bytes() {
        assert_eq!(generate(&SPEC), generate(&SPEC));
        assert_ne!(generate(&SPEC), generate(&Spec { seed: 2, ..SPEC }));
        assert_eq!(next_month(&SPEC, 0.1, 0.05), next_month(&SPEC, 0.1, 0.05));
        assert_eq!(types(generate(&SPEC)).map(|t| t.len()), [290, 70, 80, 560]);
        assert_eq!(types(generate(&Spec { seed: 1, records: 0 })).map(|t| t.len()), [1; 4]);
    }

    #[test]
    fn the_next_month_differs_as_much_as_asked() {
        let by_id = |bodies: &[Vec<u8>]| -> HashMap<_, _> {
            bodies.iter().map(|body| (opened(body).0["id"].clone(), body.clone())).collect()
        };
        for (old, new) in types(generate(&SPEC)).into_iter().zip(types(next_month(&SPEC, 0.2, 0.1))) {
            let (total, old, new) = (old.len() as f64, by_id(&old), by_id(&new));
            let removed = old.keys().filter(|id| !new.contains_key(id)).count();
            let added = new.keys().filter(|id| !old.contains_key(id)).count();
            let changed = old.iter().filter(|(id, body)| new.get(id).is_some_and(|n| n != *body)).count();
            assert!((removed as f64 - total * 0.1).abs() < 4.0, "{removed} of {total} removed");
            assert!((changed as f64 - total * 0.2).abs() < 4.0, "{changed} of {total} changed");
            assert_eq!(added, old.len().div_ceil(100));
        }
    }

    #[test]
    fn control_messages() {
        let text = String::from_utf8(file_complete("artists", "20260101", 3)).unwrap();
        assert!(text.starts_with(r#"{"type":"file_complete","data_type":"artists","timestamp":"2026-01-01T"#));
        assert!(text.ends_with(r#"Z","total_processed":3,"file":"discogs_20260101_artists.xml.gz"}"#));
        let counts = [("artists", 3), ("labels", 2), ("masters", 2), ("releases", 9)];
        let text = String::from_utf8(extraction_complete("20260101", "2026-01-01T00:00:00Z", counts)).unwrap();
        assert!(text.starts_with(r#"{"type":"extraction_complete","version":"20260101","timestamp":"2026-01-01T"#));
        assert!(text.ends_with(
            r#"Z","started_at":"2026-01-01T00:00:00Z","record_counts":{"artists":3,"labels":2,"masters":2,"releases":9}}"#
        ));
    }
}
