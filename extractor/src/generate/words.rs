//! Word lists, and templates in which `%` and a letter stand for a word (see `Maker::fill`).

use std::sync::LazyLock;

pub(super) type Words = LazyLock<Vec<&'static str>>;

macro_rules! words {
    ($($name:ident = $list:literal;)*) => {
        $(pub(super) static $name: Words = Words::new(|| $list.split('|').collect());)*
    };
}

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
