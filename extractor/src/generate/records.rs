//! The four kinds of records, with their fields in the order of the dumps.

use super::maker::{Maker, Stream};
use super::words::*;
use super::world::{Neighbours, VARIOUS, skewed};
use super::xml::{Element, Text};
use common::DataType;

/// What a master and its releases have in common.
struct Work {
    title: String,
    artists: Vec<u64>,
    genres: Vec<&'static str>,
    styles: Vec<String>,
    year: u32,
}

/// Whether this is one of the few records with an anomaly that is found once in so many: one of the first thousand,
/// so that samples have it too, and then one in every `period`.
pub(super) fn rare(index: usize, first: usize, period: usize) -> bool {
    index % period == first
}

impl Maker<'_> {
    pub(super) fn record(&mut self, kind: DataType, index: usize, neighbours: &Neighbours) -> Element {
        match kind {
            DataType::Artists => self.artist(index, neighbours),
            DataType::Labels => self.label(index, neighbours),
            DataType::Masters => self.master(index),
            DataType::Releases => self.release(index),
        }
    }

    fn artist(&mut self, index: usize, neighbours: &Neighbours) -> Element {
        // More than half are known by name only; what the others have, they tend to have together.
        let known = if self.chance(0.45) { 1.0 / 0.45 } else { 0.0 };
        // Real, too: an artist whose name is a single no-break space.
        let name =
            if rare(index, 156, 5_000_000) { "\u{a0}".into() } else { self.world.name(DataType::Artists, self.id) };
        Element::of(
            "artist",
            [
                self.images(0.25),
                Some(Element::text("id", self.id.to_string())),
                Some(Element::text("name", name)),
                self.maybe(0.14 * known, |m| Element::text("realname", m.fill(&PERSON))),
                self.text("profile", 0.21 * known, 220.0).or(self.empty("profile")),
                Some(self.data_quality()),
                self.urls(0.145 * known, 2.0),
                self.list(0.26 * known, 2.2, |m| Element::text("name", m.fill(&VARIATION)))
                    .map(|names| Element::parent("namevariations", names)),
                self.relatives("aliases", DataType::Artists, index, neighbours),
                self.relatives("members", DataType::Artists, index, neighbours),
                self.relatives("groups", DataType::Artists, index, neighbours),
            ],
        )
    }

    fn label(&mut self, index: usize, neighbours: &Neighbours) -> Element {
        // Label 212, the only one of its kind, has no name at all.
        let name = (!rare(index, 211, 2_000_000)).then(|| self.world.name(DataType::Labels, self.id));
        let known = if self.chance(0.4) { 1.0 / 0.4 } else { 0.0 };
        let mut sublabels = self.relatives("sublabels", DataType::Labels, index, neighbours);
        if let Some(list) = &mut sublabels
            && self.chance(0.08)
        {
            list.children.insert(self.rng.usize(..=list.children.len()), Element::empty("label"));
        }
        let parent = self.relatives("parentLabel", DataType::Labels, index, neighbours);
        Element::of(
            "label",
            [
                self.images(0.25),
                Some(Element::text("id", self.id.to_string())),
                name.map(|name| Element::text("name", name)),
                self.maybe(0.13 * known, |m| Element::text("contactinfo", m.fill(&ADDRESS))),
                self.text("profile", 0.24 * known, 150.0),
                Some(self.data_quality()),
                parent.map(|mut list| Element { name: "parentLabel", ..list.children.swap_remove(0) }),
                self.urls(0.15 * known, 1.8),
                sublabels,
            ],
        )
    }

    fn master(&mut self, index: usize) -> Element {
        let mut work = self.world.maker(Stream::Work, self.id).work();
        let main = self.world.id(DataType::Releases, self.world.main_release(index));
        let year = if self.chance(0.03) { 0 } else { work.year };
        let artists = self.main_artists(&work);
        Element::of(
            "master",
            [
                Some(Element::text("main_release", main.to_string())),
                self.images(1.0),
                Some(artists),
                Some(words("genres", "genre", work.genres)),
                (!work.styles.is_empty()).then(|| words("styles", "style", std::mem::take(&mut work.styles))),
                self.text("notes", 0.04, 75.0),
                Some(Element::text("year", year.to_string())),
                Some(Element::text("title", work.title)),
                Some(self.data_quality()),
                self.videos(0.57, 190.0),
            ],
        )
        .with("id", self.id.to_string())
    }

    fn release(&mut self, index: usize) -> Element {
        let main = self.world.main_of(index).filter(|_| self.chance(0.9)).map(|m| self.world.id(DataType::Masters, m));
        let other = self.maybe(0.54, |m| m.world.reference(DataType::Masters, &mut m.rng));
        let master = main.or(other);
        let mut work = match master {
            Some(id) => self.world.maker(Stream::Work, id).work(),
            None => self.work(),
        };
        let master_id = match master {
            Some(id) => Some(id.to_string()),
            None => self.maybe(0.25, |_| String::from("0")),
        };
        let (year, various) = (work.year.to_string(), work.artists.contains(&VARIOUS));
        let artists = self.main_artists(&work);
        let record = Element::of(
            "release",
            [
                self.images(1.0),
                Some(artists),
                Some(Element::text("title", work.title)),
                Some(self.labels()),
                self.list(if self.old { 0.0 } else { 0.03 }, 0.1, Self::series)
                    .map(|series| Element::parent("series", series)),
                self.list(0.59, 5.0, Self::credited).map(|credits| Element::parent("extraartists", credits)),
                Some(self.formats(index)),
                Some(words("genres", "genre", work.genres)),
                (!work.styles.is_empty()).then(|| words("styles", "style", std::mem::take(&mut work.styles))),
                self.maybe(0.97, |m| Element::text("country", m.common(&COUNTRIES))),
                self.maybe(0.88, |m| Element::text("released", m.fill(&DATE).replace('Y', &year))),
                self.text("notes", 0.64, 120.0),
                Some(self.data_quality()),
                master_id.map(|id| {
                    Element::text("master_id", id)
                        .with("is_main_release", if main.is_some() { "true" } else { "false" })
                }),
                Some(self.tracklist(index, various)),
                self.list(0.53, 2.0, Self::identifier)
                    .map(|list| Element::parent("identifiers", list))
                    .or(self.empty("identifiers")),
                self.videos(0.53, 60.0),
                self.list(0.45, 2.6, Self::company)
                    .map(|list| Element::parent("companies", list))
                    .or(self.empty("companies")),
            ],
        );
        let record = record.with("id", self.id.to_string());
        if self.old { record.with("status", "Accepted") } else { record }
    }

    fn work(&mut self) -> Work {
        let artists = self.list(1.0, 0.3, |m| m.world.reference(DataType::Artists, &mut m.rng)).unwrap_or_default();
        let mut genres = self.list(1.0, 0.4, Self::genre).unwrap_or_default();
        let mut styles = self.list(0.88, 0.8, |m| m.style(genres[0])).unwrap_or_default();
        genres.sort_unstable();
        genres.dedup();
        styles.sort_unstable();
        styles.dedup();
        let artists = if self.chance(0.075) { vec![VARIOUS] } else { artists };
        Work { title: self.fill(&TITLE), artists, genres, styles, year: 2026 - skewed(&mut self.rng, 80, 2) as u32 }
    }

    fn main_artists(&mut self, work: &Work) -> Element {
        let last = work.artists.len() - 1;
        let credit = |(i, id): (usize, &u64)| {
            let join = self.maybe(if i < last { 1.0 } else { 0.02 }, |m| m.common(&JOINS));
            // Real, too: a main artist 0, of which there is none.
            let id = if self.chance(0.0005) { 0 } else { *id };
            self.credit(Some(id), join, None)
        };
        Element::parent("artists", work.artists.iter().enumerate().map(credit).collect())
    }

    /// Rock has 31 % of the genres, Electronic 26.
    pub(super) fn genre(&mut self) -> &'static str {
        match self.rng.u8(..100) {
            0..31 => GENRES[0],
            31..57 => GENRES[1],
            _ => GENRES[2 + skewed(&mut self.rng, GENRES.len() - 2, 2)],
        }
    }

    /// Every genre has its own favourites among the styles.
    pub(super) fn style(&mut self, genre: &str) -> String {
        let all = STYLES.len() * STYLE_KINDS.len();
        let i = (skewed(&mut self.rng, all, 3) + genre.len() * 7) % all;
        format!("{}{}", STYLE_KINDS[i / STYLES.len()], STYLES[i % STYLES.len()])
    }

    fn data_quality(&mut self) -> Element {
        Element::text("data_quality", self.common(&QUALITY))
    }
}

/// `<name><child>word</child>..</name>`
fn words<T: Into<Text>>(name: &'static str, child: &'static str, words: Vec<T>) -> Element {
    Element::parent(name, words.into_iter().map(|word| Element::text(child, word)).collect())
}
