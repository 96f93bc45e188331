//! What records consist of: credits, tracks, formats, relatives, videos.

use super::maker::Maker;
use super::records::rare;
use super::words::*;
use super::world::{Neighbours, VARIOUS, few};
use super::xml::{Element, Text};
use common::DataType;

impl Maker<'_> {
    /// How the old layout writes what the new one leaves out.
    pub(super) fn empty(&self, name: &'static str) -> Option<Element> {
        self.old.then(|| Element::empty(name))
    }

    pub(super) fn text(&mut self, name: &'static str, p: f64, mean: f64) -> Option<Element> {
        self.maybe(p, |m| Element::text(name, m.prose(mean)))
    }

    /// Only the old layout has images.
    pub(super) fn images(&mut self, p: f64) -> Option<Element> {
        let images = self.list(if self.old { p } else { 0.0 }, 0.8, |m| {
            let image = Element::empty("image").with("type", ["primary", "secondary"][m.rng.usize(..2)]);
            let image = image.with("uri", "").with("uri150", "").with("width", "600");
            image.with("height", m.rng.u16(200..601).to_string())
        });
        images.map(|images| Element::parent("images", images))
    }

    /// Rarely a list without, or with an empty, address.
    pub(super) fn urls(&mut self, p: f64, more: f64) -> Option<Element> {
        let urls = self.list(p, more, |m| Element::text("url", m.fill(&URL)));
        let urls = urls.or_else(|| self.maybe(0.001, |_| vec![Element::empty("url")]));
        urls.map(|urls| Element::parent("urls", urls))
    }

    /// The known relatives in a field, and sometimes one that does not know of it.
    pub(super) fn relatives(
        &mut self,
        field: &'static str,
        kind: DataType,
        index: usize,
        neighbours: &Neighbours,
    ) -> Option<Element> {
        let mut ids: Vec<_> = neighbours.of(index, field).map(|i| self.world.id(kind, i)).collect();
        if self.chance(if ids.is_empty() { 0.01 } else { 0.1 }) {
            ids.push(self.world.reference(kind, &mut self.rng));
        }
        if ids.is_empty() {
            return None;
        }
        if kind == DataType::Artists && self.chance(0.001) {
            ids.push(0);
        }
        // Before 2025 the id of a member stood before its name, too, or instead of the name's attribute.
        let (before, instead) = match field {
            "members" if self.old => (self.chance(0.3), self.chance(0.3)),
            _ => (false, false),
        };
        let mut items = Vec::new();
        for id in ids {
            if before {
                items.push(Element::text("id", id.to_string()));
            }
            let item = self.relative(kind, id);
            items.push(if before && instead { Element { attributes: Vec::new(), ..item } } else { item });
        }
        Some(Element::parent(field, items))
    }

    /// `<name id="1">A</name>`, or `<label id="1">A</label>`.
    pub(super) fn relative(&self, kind: DataType, id: u64) -> Element {
        let tag = if kind == DataType::Labels { "label" } else { "name" };
        Element::text(tag, self.world.name(kind, id)).with("id", id.to_string())
    }

    /// A main artist, of a release or a track.
    pub(super) fn performer(&mut self) -> Element {
        let id = self.world.reference(DataType::Artists, &mut self.rng);
        self.credit(Some(id), None, None)
    }

    /// Somebody with a role, rather a person than a group. About 1 % have a name only.
    pub(super) fn credited(&mut self) -> Element {
        let candidates = [(); 2].map(|()| self.world.reference(DataType::Artists, &mut self.rng));
        let id = candidates.into_iter().find(|&id| !self.world.is_band(id)).unwrap_or(candidates[0]);
        let id = if self.chance(0.004) { VARIOUS } else { id };
        let linked = self.chance(0.99).then_some(id);
        let role = self.fill(&ROLE);
        self.credit(linked, None, Some(role))
    }

    /// An entry of an artist or credit list. Without a link to an artist: id 0 in the old layout, none in the new.
    pub(super) fn credit(&mut self, id: Option<u64>, join: Option<&'static str>, role: Option<String>) -> Element {
        let name = match id {
            Some(id) => self.world.name(DataType::Artists, id),
            None => self.fill(&PERSON).into(),
        };
        let number = id.or(self.old.then_some(0));
        let anv = self.maybe(0.1, |m| m.fill(&VARIATION).into());
        let tracks = self.maybe(if role.is_some() { 0.1 } else { 0.0 }, |m| m.fill(&TRACKS).into());
        let old = self.old;
        let optional = |name: &'static str, text: Option<Text>| {
            text.or(old.then_some(Text::Borrowed(""))).map(|text| Element::text(name, text))
        };
        Element::of(
            "artist",
            [
                number.map(|id| Element::text("id", id.to_string())),
                Some(Element::text("name", name)),
                optional("anv", anv),
                optional("join", join.map(Text::from)),
                optional("role", role.map(Text::from)),
                optional("tracks", tracks),
            ],
        )
    }

    /// The labels of a release; one in a thousand releases has the same row twice.
    pub(super) fn labels(&mut self) -> Element {
        let mut labels = self.list(1.0, 0.13, Self::label_item).unwrap_or_default();
        if self.chance(0.001) {
            labels.push(labels[0].clone());
        }
        Element::parent("labels", labels)
    }

    pub(super) fn label_item(&mut self) -> Element {
        let id = self.world.reference(DataType::Labels, &mut self.rng);
        let item = Element::empty("label").with("name", self.world.name(DataType::Labels, id));
        let item = item.with("catno", self.fill(&CATNO));
        if self.chance(0.003) { item } else { item.with("id", id.to_string()) }
    }

    pub(super) fn series(&mut self) -> Element {
        let id = self.world.reference(DataType::Labels, &mut self.rng);
        let series = Element::empty("series").with("name", self.fill(&TITLE)).with("catno", self.fill(&CATNO));
        series.with("id", id.to_string())
    }

    pub(super) fn formats(&mut self, index: usize) -> Element {
        let mut formats = self.list(1.0, 0.04, Self::format).unwrap_or_default();
        // Two of all releases claim a quantity of 52 and more digits.
        if rare(index, 612, 5_000_000) {
            let digits = (0..self.rng.usize(52..65)).map(|_| char::from(self.rng.u8(b'1'..=b'9'))).collect::<String>();
            formats[0].attributes[1].1 = digits.into();
        }
        Element::parent("formats", formats)
    }

    fn format(&mut self) -> Element {
        let quantity = 1 + few(&mut self.rng, 0.2, 40);
        let text = self.maybe(0.1, |m| m.fill(&TITLE)).unwrap_or_default();
        let descriptions = self
            .list(0.97, 1.0, |m| Element::text("description", m.pick(&DESCRIPTIONS)))
            .map(|descriptions| Element::parent("descriptions", descriptions));
        let format = Element::of("format", [descriptions]);
        format.with("name", self.pick(&FORMATS)).with("qty", quantity.to_string()).with("text", text)
    }

    pub(super) fn identifier(&mut self) -> Element {
        let kind = self.common(&IDENTIFIERS);
        let identifier = Element::empty("identifier").with("type", kind);
        // The old layout has the attribute always, empty if need be.
        let identifier = match self.chance(0.5) {
            true => identifier.with("description", self.pick(&DETAILS)),
            false if self.old => identifier.with("description", ""),
            false => identifier,
        };
        identifier.with("value", self.fill(&VALUE))
    }

    /// Nearly always with an id; all but 1 in 10,000 of the real ones.
    pub(super) fn company(&mut self) -> Element {
        let id = self.world.reference(DataType::Labels, &mut self.rng);
        let linked = self.chance(0.9999);
        let (code, role) = self.common(&COMPANIES).split_once('=').unwrap_or_default();
        let old = self.old && linked;
        Element::of(
            "company",
            [
                linked.then(|| Element::text("id", id.to_string())),
                Some(Element::text("name", self.world.name(DataType::Labels, id))),
                self.old.then(|| Element::text("catno", "")),
                Some(Element::text("entity_type", code)),
                Some(Element::text("entity_type_name", role)),
                old.then(|| Element::text("resource_url", format!("https://api.discogs.com/labels/{id}"))),
            ],
        )
    }

    pub(super) fn videos(&mut self, p: f64, mean: f64) -> Option<Element> {
        let videos = self.list(p, 2.7, |m| {
            let title = Element::text("title", m.fill(&TITLE));
            let description = m.text("description", 0.8, mean).or(m.empty("description"));
            let video = Element::of("video", [Some(title), description]).with("src", m.fill(&VIDEO));
            video.with("duration", m.rng.u16(60..600).to_string()).with("embed", "true")
        });
        videos.map(|videos| Element::parent("videos", videos))
    }

    /// The tracks of a release: 9 on average, more on samplers, up to 200 more in a box.
    pub(super) fn tracklist(&mut self, index: usize, various: bool) -> Element {
        let box_set = if self.chance(0.007) { self.rng.usize(30..200) } else { 0 };
        let mut n = 1 + self.rng.usize(..11) + few(&mut self.rng, 2.0, 60) + box_set;
        let (vinyl, credited, timed) = (self.chance(0.55), self.chance(0.37), self.chance(0.6));
        let mut credits = (if credited { 0.55 } else { 0.0 }, 1.1);
        if various {
            n += 6;
        }
        // The largest real release has 571 tracks, 2,492 credits and 315 kB.
        if rare(index, 870, 5_000_000) {
            n = 570;
            credits = (1.0, 3.2);
        }
        let own = various || self.chance(0.035);
        let mut tracks: Vec<_> = (0..n).map(|i| self.track(i, vinyl, timed, own, credits)).collect();
        // Longer than a row of an index in PostgreSQL may be (2,704 bytes).
        if rare(index, 421, 5_000_000) {
            let long = Text::from(self.fill(&TITLE).repeat(400));
            tracks[0]
                .children
                .iter_mut()
                .filter(|field| field.name == "title")
                .for_each(|t| t.text = Some(long.clone()));
        }
        Element::parent("tracklist", tracks)
    }

    fn track(&mut self, i: usize, vinyl: bool, timed: bool, own: bool, (p, more): (f64, f64)) -> Element {
        let side = char::from(b'A' + (i / 5 % 26) as u8);
        let position = if vinyl { format!("{side}{}", i % 5 + 1) } else { (i + 1).to_string() };
        let heading = self.chance(0.01);
        let duration = (timed && !heading).then(|| {
            let hours = if self.chance(0.001) { "1:0" } else { "" };
            format!("{hours}{}:{:02}", self.rng.u8(1..10), self.rng.u8(..60))
        });
        let part = |m: &mut Self| {
            let position = format!("{}a", i + 1);
            Element::of(
                "track",
                [Element::text("position", position), Element::text("title", m.fill(&TITLE))].map(Some),
            )
        };
        Element::of(
            "track",
            [
                (!heading).then(|| Element::text("position", position)).or(self.empty("position")),
                Some(Element::text("title", self.fill(&TITLE))),
                duration.map(|duration| Element::text("duration", duration)).or(self.empty("duration")),
                self.list(if own { 1.0 } else { 0.0 }, 0.1, Self::performer)
                    .map(|list| Element::parent("artists", list)),
                self.list(p, more, Self::credited).map(|list| Element::parent("extraartists", list)),
                self.list(0.004, 4.0, part).map(|list| Element::parent("sub_tracks", list)),
            ],
        )
    }
}
