//! What the records share: how many there are, their ids and fates, whom they refer to and who is related to whom.

use super::Spec;
use super::maker::Stream;
use common::DataType;
use fastrand::Rng;
use std::ops::Range;

/// The artist "Various": the greatest hub, without a record of its own.
pub(super) const VARIOUS: u64 = 194;

/// Relations are made among so many neighbours: enough for the largest groups.
const BLOCK: usize = 1024;

/// Square roots of primes are independent of each other, so that the steps of no month follow those of another.
const STEPS: [f64; 12] = [2.0, 3.0, 7.0, 13.0, 5.0, 11.0, 17.0, 19.0, 23.0, 29.0, 31.0, 37.0];

/// What all records have in common; small, whatever the size.
pub(super) struct World {
    spec: Spec,
    /// Records of month 1, per kind.
    counts: [usize; 4],
}

impl World {
    pub(super) fn new(spec: &Spec) -> Self {
        // August 2026: 10.2 M artists, 2.4 M labels, 2.6 M masters, 19.5 M releases.
        let share = |percent: usize| (spec.records * percent / 100).max(1);
        let (artists, labels, masters) = (share(29), share(7), share(8));
        let releases = spec.records.saturating_sub(artists + labels + masters).max(1);
        Self { spec: spec.clone(), counts: [artists, labels, masters, releases] }
    }

    /// Records of a kind that there are or once were.
    pub(super) fn size(&self, kind: DataType) -> usize {
        self.size_in(kind, self.spec.month.max(1) as usize - 1)
    }

    /// The same for a month counted from 0.
    fn size_in(&self, kind: DataType, month: usize) -> usize {
        self.counts[kind.index()] + self.births(kind) * month
    }

    /// New records of each month: 1 %, while the real dumps grow by 0.5 to 1.
    fn births(&self, kind: DataType) -> usize {
        self.counts[kind.index()].div_ceil(100)
    }

    /// The month of a record's birth, counted from 0.
    fn generation(&self, kind: DataType, index: usize) -> usize {
        let first = self.counts[kind.index()];
        if index < first { 0 } else { 1 + (index - first) / self.births(kind) }
    }

    /// The months in which a record changed; none if it has vanished.
    pub(super) fn changes(&self, kind: DataType, index: usize) -> Option<Vec<u32>> {
        let mut months = Vec::new();
        for month in self.generation(kind, index) as u32 + 2..=self.spec.month {
            // Multiples of a root hit every fraction evenly, in small samples too.
            let step = STEPS[month as usize % STEPS.len()].sqrt();
            let start = self.mix(Stream::Fate(kind), month.into()) as f64 / u64::MAX as f64;
            let fate = (start + index as f64 * step).fract();
            if fate < self.spec.removed {
                return None;
            }
            if fate < self.spec.removed + self.spec.changed {
                months.push(month);
            }
        }
        Some(months)
    }

    /// Ascending with gaps, up to about what Discogs has reached.
    pub(super) fn id(&self, kind: DataType, index: usize) -> u64 {
        let reached = [17_000_000, 4_600_000, 4_000_000, 35_000_000][kind.index()];
        let stride = (reached / self.counts[kind.index()] as u64).max(2);
        let (first, offset) = (stride * index as u64 + 1, self.mix(Stream::Id(kind), index as u64) % stride);
        let taken = kind == DataType::Artists && first + offset == VARIOUS;
        first + if taken { (offset + 1) % stride } else { offset }
    }

    /// The id that a reference has. One in twelve points to nothing (yet).
    ///
    /// The others follow Zipf's law with exponent 1, flattened at its head: `p(rank) ~ 1 / (rank + head)`. The heads
    /// fit the sample of 2020, in which the credits of artists ranked 5, 10, 50 and 200 are 0.40, 0.25, 0.13 and
    /// 0.05 % of all, and the first, tenth and hundredth label have 1.7, 0.9 and 0.2 %. Masters have 4.6 releases on
    /// average, the greatest about 1,000.
    pub(super) fn reference(&self, kind: DataType, rng: &mut Rng) -> u64 {
        let head = match kind {
            DataType::Artists => 40.0,
            DataType::Labels => 3.0,
            DataType::Masters | DataType::Releases => 300.0,
        };
        let n = self.counts[kind.index()];
        let index = if rng.u8(..12) == 0 { n + rng.usize(..4 + n / 8) } else { zipf(rng, n, head) };
        self.id(kind, index)
    }

    /// The number of a master's main release. Main releases are spread evenly over all releases.
    pub(super) fn main_release(&self, master: usize) -> usize {
        let [.., masters, releases] = self.counts;
        master * releases / masters
    }

    /// The master whose main release this is.
    pub(super) fn main_of(&self, release: usize) -> Option<usize> {
        let [.., masters, releases] = self.counts;
        let master = (release * masters).div_ceil(releases);
        (self.main_release(master) == release).then_some(master)
    }

    pub(super) fn is_band(&self, id: u64) -> bool {
        self.mix(Stream::Band, id) % 10 < 4
    }

    /// The relations among the neighbours of a record: those next to it that were born in the same month.
    pub(super) fn neighbours(&self, kind: DataType, index: usize) -> Neighbours {
        let month = self.generation(kind, index);
        let start = if month == 0 { 0 } else { self.size_in(kind, month - 1) };
        let from = start + (index - start) / BLOCK * BLOCK;
        let to = (from + BLOCK).min(self.size_in(kind, month));
        let mut block = Neighbours { range: from..to, relations: Vec::new() };
        let mut rng = Rng::with_seed(self.mix(Stream::Relations(kind), from as u64));
        match kind {
            DataType::Artists => self.relate_artists(&mut block, &mut rng),
            DataType::Labels => block.relate_labels(&mut rng),
            DataType::Masters | DataType::Releases => {}
        }
        block
    }

    /// Groups with their members, and the aliases of a person, each of which names all others. 8 % of artists have
    /// members, 12 % groups, 11.5 % aliases.
    fn relate_artists(&self, block: &mut Neighbours, rng: &mut Rng) {
        for artist in block.range.clone() {
            if self.is_band(self.id(DataType::Artists, artist)) && rng.f64() < 0.19 {
                for _ in 0..2 + few(rng, 0.9, 60) {
                    let member = block.range.start + skewed(rng, block.range.len(), 2);
                    block.relate(("members", artist), ("groups", member), rng);
                }
            }
            if rng.f64() < 0.03 {
                let names: Vec<_> = (0..2 + few(rng, 1.4, 40)).map(|_| rng.usize(block.range.clone())).collect();
                for (i, &one) in names.iter().enumerate() {
                    for &other in &names[..i] {
                        block.relate(("aliases", one), ("aliases", other), rng);
                    }
                }
            }
        }
    }

    /// A number that depends on the seed and on these two only.
    pub(super) fn mix(&self, stream: Stream, number: u64) -> u64 {
        let stream = (stream.number() + 1).wrapping_mul(0xd6e8_feb8_6659_fd93);
        let mut x = self.spec.seed ^ stream ^ number.wrapping_mul(0xa076_1d64_78bd_642f);
        for _ in 0..2 {
            x = (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        }
        x ^ (x >> 32)
    }
}

/// Records next to each other, and how they are related.
pub(super) struct Neighbours {
    range: Range<usize>,
    /// Whose, in which field, and with whom.
    relations: Vec<(usize, &'static str, usize)>,
}

impl Neighbours {
    pub(super) fn include(&self, index: usize) -> bool {
        self.range.contains(&index)
    }

    /// Those that a record has in a field.
    pub(super) fn of(&self, index: usize, field: &'static str) -> impl Iterator<Item = usize> {
        self.relations.iter().filter(move |(i, f, _)| *i == index && *f == field).map(|(.., with)| *with)
    }

    /// 8 % of labels have a parent, which is rather one of the first of the neighbours.
    fn relate_labels(&mut self, rng: &mut Rng) {
        for label in self.range.clone().skip(1) {
            if rng.f64() < 0.08 {
                let parent = self.range.start + zipf(rng, label - self.range.start, 1.0);
                self.relate(("parentLabel", label), ("sublabels", parent), rng);
            }
        }
    }

    /// Notes a relation for both records; now and then only one of them knows.
    fn relate(&mut self, one: (&'static str, usize), other: (&'static str, usize), rng: &mut Rng) {
        let silent = rng.u8(..20);
        for (who, (field, index), (_, with)) in [(0, one, other), (1, other, one)] {
            if silent != who && index != with && !self.of(index, field).any(|known| known == with) {
                self.relations.push((index, field, with));
            }
        }
    }
}

/// A count, mostly small, with a heavy tail; the mean is about right.
pub(super) fn few(rng: &mut Rng, mean: f64, most: usize) -> usize {
    let u = 1.0 - rng.f64();
    ((mean * (1.0 / u.sqrt() - 1.0) + 0.5) as usize).min(most)
}

/// A number below `n`, the small ones the more often the higher the power.
pub(super) fn skewed(rng: &mut Rng, n: usize, power: i32) -> usize {
    let u = rng.f64();
    (((1..power).fold(u, |p, _| p * u) * n as f64) as usize).min(n.saturating_sub(1))
}

/// A number below `n`, each with a probability in proportion to `1 / (number + head)`.
fn zipf(rng: &mut Rng, n: usize, head: f64) -> usize {
    let rank = ((n as f64 / head + 1.0).powf(rng.f64()) - 1.0) * head;
    (rank as usize).min(n.saturating_sub(1))
}
