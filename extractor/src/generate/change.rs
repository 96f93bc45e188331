//! What becomes of a record from one month to the next.

use super::maker::Maker;
use super::words::TITLE;
use super::world::few;
use super::xml::Element;
use common::DataType;

/// All fields in the order of the dumps.
fn order(kind: DataType) -> &'static str {
    match kind {
        DataType::Artists => "images id name realname profile data_quality urls namevariations aliases members groups",
        DataType::Labels => "images id name contactinfo profile data_quality parentLabel urls sublabels",
        DataType::Masters => "main_release images artists genres styles notes year title data_quality videos",
        DataType::Releases => {
            "images artists title labels series extraartists formats genres styles country released notes data_quality \
             master_id tracklist identifiers videos companies"
        }
    }
}

/// The fields that change.
fn changing(kind: DataType) -> &'static [&'static str] {
    match kind {
        DataType::Artists => &["name", "profile", "members", "groups", "aliases", "aliases"],
        DataType::Labels => &["name", "contactinfo", "parentLabel", "sublabels"],
        DataType::Masters => &["title", "year", "artists", "genres", "styles"],
        DataType::Releases => {
            &["title", "notes", "released", "artists", "labels", "extraartists", "genres", "styles", "master_id"]
        }
    }
}

impl Maker<'_> {
    /// Another value for one to three fields that show in graph or tables, or a field less.
    pub(super) fn change(&mut self, kind: DataType, record: &mut Element) {
        let before = record.clone();
        for _ in 0..=few(&mut self.rng, 0.3, 2) {
            let fields = changing(kind);
            let field = fields[self.rng.usize(..fields.len())];
            if self.chance(0.2) && !["name", "title", "artists", "labels", "genres"].contains(&field) {
                record.children.retain(|child| child.name != field);
            } else {
                self.change_field(kind, field, record);
            }
        }
        if *record == before {
            let quality = Element::text("data_quality", "Entirely Incorrect");
            let again = record.children.contains(&quality);
            put(kind, record, if again { Element::text("data_quality", "Needs Vote") } else { quality });
        }
    }

    fn change_field(&mut self, kind: DataType, field: &'static str, record: &mut Element) {
        let item = match field {
            "members" | "groups" | "aliases" => self.another(DataType::Artists),
            "sublabels" => self.another(DataType::Labels),
            "parentLabel" => Element { name: field, ..self.another(DataType::Labels) },
            "artists" => self.performer(),
            "labels" => self.label_item(),
            "extraartists" => self.credited(),
            "genres" => Element::text("genre", self.genre()),
            "styles" => Element::text("style", self.style("")),
            "master_id" => {
                let id = self.world.reference(DataType::Masters, &mut self.rng);
                Element::text(field, id.to_string()).with("is_main_release", "false")
            }
            "year" | "released" => Element::text(field, self.rng.u16(1950..2027).to_string()),
            _ => Element::text(field, self.fill(&TITLE)),
        };
        if item.name == field {
            put(kind, record, item);
        } else if let Some(list) = record.children.iter_mut().find(|child| child.name == field) {
            if list.children.contains(&item) {
                return;
            }
            match self.rng.usize(..=list.children.len()) {
                at if at < list.children.len() => list.children[at] = item,
                _ => list.children.push(item),
            }
        } else {
            put(kind, record, Element::parent(field, vec![item]));
        }
    }

    fn another(&mut self, kind: DataType) -> Element {
        let id = self.world.reference(kind, &mut self.rng);
        self.relative(kind, id)
    }
}

/// Replaces the field, or adds it where the dumps have it.
fn put(kind: DataType, record: &mut Element, field: Element) {
    let place = |name| order(kind).split(' ').position(|other| other == name);
    match record.children.iter_mut().find(|child| child.name == field.name) {
        Some(child) => *child = field,
        None => {
            let at = record.children.iter().take_while(|child| place(child.name) < place(field.name)).count();
            record.children.insert(at, field);
        }
    }
}
