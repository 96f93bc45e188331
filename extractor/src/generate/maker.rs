//! Random words, texts and choices, from a stream that belongs to one record or name.

use super::words::*;
use super::world::{VARIOUS, World, few, skewed};
use super::xml::Text;
use common::DataType;
use fastrand::Rng;

/// What random numbers are about. Each has its own stream, so that none depends on how many another took.
#[derive(Clone, Copy)]
pub(super) enum Stream {
    Record(DataType),
    Name(DataType),
    Id(DataType),
    Fate(DataType),
    Relations(DataType),
    /// What a master and its releases have in common.
    Work,
    Band,
    /// What a record changes in a month.
    Change(DataType, u32),
}

impl Stream {
    pub(super) fn number(self) -> u64 {
        match self {
            Self::Record(kind) => kind as u64,
            Self::Name(kind) => 4 + kind as u64,
            Self::Id(kind) => 8 + kind as u64,
            Self::Fate(kind) => 12 + kind as u64,
            Self::Relations(kind) => 16 + kind as u64,
            Self::Work => 20,
            Self::Band => 21,
            Self::Change(kind, month) => 32 + 4 * u64::from(month) + kind as u64,
        }
    }
}

/// Makes one record, or one name, from its own stream of random numbers.
pub(super) struct Maker<'w> {
    pub(super) world: &'w World,
    pub(super) id: u64,
    /// Whether in the layout before 2025.
    pub(super) old: bool,
    pub(super) rng: Rng,
}

impl World {
    pub(super) fn maker(&self, stream: Stream, id: u64) -> Maker<'_> {
        let mut rng = Rng::with_seed(self.mix(stream, id));
        Maker { world: self, id, old: rng.f64() < 0.3, rng }
    }

    /// The name that all references to an artist or label agree on.
    pub(super) fn name(&self, kind: DataType, id: u64) -> Text {
        let templates = match kind {
            DataType::Artists if id == VARIOUS => return "Various".into(),
            DataType::Artists if self.is_band(id) => &BAND_NAME,
            DataType::Artists => &PERSON,
            _ => &COMPANY,
        };
        self.maker(Stream::Name(kind), id).fill(templates).into()
    }
}

impl Maker<'_> {
    pub(super) fn chance(&mut self, p: f64) -> bool {
        self.rng.f64() < p
    }

    pub(super) fn maybe<T>(&mut self, p: f64, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.chance(p).then(|| make(self))
    }

    /// With the given chance, one item and a few more.
    pub(super) fn list<T>(&mut self, p: f64, more: f64, mut item: impl FnMut(&mut Self) -> T) -> Option<Vec<T>> {
        let most = 4 + (more * 25.0) as usize;
        self.chance(p).then(|| (0..=few(&mut self.rng, more, most)).map(|_| item(self)).collect())
    }

    pub(super) fn pick(&mut self, words: &Words) -> &'static str {
        words[self.rng.usize(..words.len())]
    }

    /// Rather one of the list's first words.
    pub(super) fn common(&mut self, words: &Words) -> &'static str {
        words[skewed(&mut self.rng, words.len(), 2)]
    }

    /// Prose with markup and line breaks, of so many characters on average.
    pub(super) fn prose(&mut self, mean: f64) -> String {
        let len = 15 + few(&mut self.rng, mean, 5000);
        let mut text = String::from("The");
        while text.len() < len {
            text.push(' ');
            match self.chance(0.94) {
                true => text += self.pick(&PROSE),
                false => self.fill_in(&BREAK, &mut text),
            }
        }
        text
    }

    /// One of the templates, with words put in; now and then with something that a careless reader trips over.
    pub(super) fn fill(&mut self, templates: &Words) -> String {
        let mut out = String::new();
        self.fill_in(templates, &mut out);
        out
    }

    fn fill_in(&mut self, templates: &Words, out: &mut String) {
        let mut parts = self.pick(templates).split('%');
        *out += parts.next().unwrap_or_default();
        for part in parts {
            let (letter, rest) = part.split_at(1);
            match letter {
                "c" => out.push(self.rng.uppercase()),
                "d" => *out += self.pick(&DETAILS),
                "f" => *out += self.pick(&FIRST),
                "j" => *out += self.pick(&JUNK),
                "k" => out.extend((0..11).map(|_| self.rng.alphanumeric())),
                "n" => *out += &(2 + few(&mut self.rng, 9.0, 9999)).to_string(),
                "p" => self.fill_in(&PERSON, out),
                "q" => *out += self.pick(&QUALITIES),
                "r" => *out += self.common(&ROLES),
                "t" => *out += self.pick(&THINGS),
                "y" => *out += self.pick(&SYLLABLES),
                "u" if self.chance(0.3) => {
                    let script: Vec<_> = self.pick(&SCRIPTS).split(' ').collect();
                    out.extend((0..4).map(|_| script[self.rng.usize(..script.len())]));
                }
                _ => out.extend([self.pick(&HEADS), self.pick(&SYLLABLES), self.pick(&SYLLABLES)]),
            }
            *out += rest;
        }
        if self.chance(0.006) {
            *out += self.pick(&MARKS);
        }
    }
}
