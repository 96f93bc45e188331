//! The category of a credit, from its role text (contract §5.8).

use std::sync::LazyLock;

/// Role fragments by category.
const CATEGORIES: [(&str, &[&str]); 6] = [
    (
        "production",
        &["producer", "executive producer", "co-producer", "executive-producer", "produced by", "co-produced by"],
    ),
    (
        "engineering",
        &[
            "engineer",
            "recorded by",
            "mixed by",
            "mixed at",
            "remix",
            "remixed by",
            "recording engineer",
            "mixing engineer",
            "sound engineer",
            "audio engineer",
            "assistant engineer",
        ],
    ),
    ("mastering", &["mastered by", "mastered at", "lacquer cut by", "cut by", "mastering engineer", "remastered by"]),
    (
        "session",
        &[
            "bass",
            "guitar",
            "drums",
            "keyboards",
            "piano",
            "percussion",
            "saxophone",
            "trumpet",
            "violin",
            "viola",
            "cello",
            "flute",
            "organ",
            "synthesizer",
            "vocals",
            "backing vocals",
            "lead vocals",
            "strings",
            "horns",
            "harmonica",
            "banjo",
            "mandolin",
            "harp",
            "clarinet",
            "oboe",
            "trombone",
            "tuba",
            "accordion",
            "tabla",
            "sitar",
            "congas",
            "bongos",
            "session musician",
            "featuring",
        ],
    ),
    (
        "design",
        &[
            "artwork",
            "artwork by",
            "design",
            "designed by",
            "photography",
            "photography by",
            "liner notes",
            "cover",
            "layout",
            "illustration",
            "art direction",
        ],
    ),
    ("management", &["a&r", "management", "managed by", "booking", "booked by", "a & r"]),
];

/// Fragments with their category, the longest first and equally long ones in alphabetical order.
static FRAGMENTS: LazyLock<Vec<(&'static str, &'static str)>> = LazyLock::new(|| {
    let mut all: Vec<_> =
        CATEGORIES.iter().flat_map(|(category, fragments)| fragments.iter().map(|f| (*f, *category))).collect();
    all.sort_by(|(a, _), (b, _)| b.len().cmp(&a.len()).then(a.cmp(b)));
    all
});

/// The category of a role: of the longest fragment that occurs in it, anywhere and in any case; else `other`.
/// (A role that equals a fragment contains no longer one, so exact matches need no rule of their own.)
pub fn category(role: &str) -> &'static str {
    let role = role.to_lowercase();
    FRAGMENTS.iter().find(|(fragment, _)| role.contains(fragment)).map_or("other", |(_, category)| category)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contract_s_values() {
        for (role, expected) in [
            ("Recorded By, Mastered By", "mastering"),
            ("Guitar, Producer", "production"),
            ("Percussion, Co-producer", "production"),
            ("Lacquer Cut By, Mastering Engineer", "mastering"),
            ("Engineer [Mastering]", "engineering"),
            ("Organized By", "session"),
            ("Discovery By", "design"),
            ("Drum Programming", "other"),
            ("Mix", "other"),
            ("DJ Mix", "other"),
            ("Written-By", "other"),
            ("Coordinator", "other"),
            ("Music By [All Tracks By]", "other"),
            ("Bassoon", "session"),
            ("Harpsichord", "session"),
            ("Contrabass", "session"),
            (" PRODUCER ", "production"),
            ("A&R", "management"),
        ] {
            assert_eq!(category(role), expected, "{role}");
        }
    }

    #[test]
    fn there_are_74_fragments() {
        assert_eq!(FRAGMENTS.len(), 74);
    }
}
