//! Which files a run takes: from folders and file names, or as the command line says.

use std::path::{Path, PathBuf};

use common::DataType;

use crate::input::Input;

/// The files of one version, in the order of [`DataType::ALL`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The dump's date, such as `20260401`.
    pub version: String,
    /// At most one for each type.
    pub inputs: Vec<Input>,
}

/// What the command line says about the inputs.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Folders, files, or `-` for the standard input.
    pub paths: Vec<PathBuf>,
    /// The version to take, or that files without a date in their names have.
    pub version: Option<String>,
    /// What the records of files without a type in their names are.
    pub data_type: Option<DataType>,
}

impl Wanted {
    /// One file, to be looked into: its date is of no meaning.
    pub fn file(path: &Path, data_type: Option<DataType>) -> Self {
        Wanted { paths: vec![path.to_owned()], version: Some("00000000".to_owned()), data_type }
    }
}

/// Packings that a file's name may tell, longest first.
const ENDINGS: [&str; 12] = [
    ".xml.gz",
    ".xml.zst",
    ".jsonl.gz",
    ".jsonl.zst",
    ".csv.gz",
    ".csv.zst",
    ".ndjson.gz",
    ".ndjson.zst",
    ".ndjson",
    ".jsonl",
    ".xml",
    ".csv",
];

/// Finds the files. Of a folder, the newest version is taken unless one is asked for; of one file that is there packed and
/// unpacked, the first in the order of their names. Any other two files of a type are an error: records that the wrong one lacks
/// would be taken for vanished.
///
/// # Errors
/// What is missing or ambiguous, for a person.
pub fn plan(wanted: &Wanted) -> Result<Vec<Plan>, String> {
    if wanted.paths.is_empty() {
        return Err("no input: give a folder with dumps, files, or - for the standard input".to_owned());
    }
    let mut inputs = Vec::new();
    for path in &wanted.paths {
        if path.is_dir() {
            inputs.extend(of_folder(path, wanted)?);
        } else {
            inputs.push(of_file(path, wanted)?);
        }
    }
    let mut plans: Vec<Plan> = Vec::new();
    for input in inputs {
        let plan = match plans.iter_mut().find(|plan| plan.version == input.version) {
            Some(plan) => plan,
            None => {
                plans.push(Plan { version: input.version.clone(), inputs: Vec::new() });
                let last = plans.len() - 1;
                &mut plans[last]
            }
        };
        if let Some(other) = plan.inputs.iter().find(|other| other.data_type == input.data_type) {
            return Err(format!(
                "{} and {} are both {} of {}: give one of them",
                other.path.display(),
                input.path.display(),
                input.data_type,
                input.version
            ));
        }
        plan.inputs.push(input);
    }
    plans.sort_by(|a, b| a.version.cmp(&b.version));
    for plan in &mut plans {
        plan.inputs.sort_by_key(|input| input.data_type);
    }
    Ok(plans)
}

fn of_folder(folder: &Path, wanted: &Wanted) -> Result<Vec<Input>, String> {
    let entries = std::fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    let mut found: Vec<Input> = Vec::new();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (Some(data_type), Some(version)) = (data_type_in(&name), version_in(&name)) else { continue };
        let readable = ENDINGS.iter().any(|ending| name.ends_with(ending));
        let known = found.iter().any(|input| unpacked(&input.name()) == unpacked(&name));
        if readable && !known && wanted.data_type.is_none_or(|t| t == data_type) {
            found.push(Input { path, data_type, version });
        }
    }
    let newest = found.iter().map(|input| input.version.clone()).max();
    let version = wanted
        .version
        .clone()
        .or(newest)
        .ok_or_else(|| format!("{} has no file like discogs_20260401_artists.xml.gz", folder.display()))?;
    found.retain(|input| input.version == version);
    if found.is_empty() {
        return Err(format!("{} has no file of {version}", folder.display()));
    }
    Ok(found)
}

/// A file's name without its packing.
fn unpacked(name: &str) -> &str {
    name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(name)
}

fn of_file(path: &Path, wanted: &Wanted) -> Result<Input, String> {
    let stdin = path == Path::new("-");
    if !stdin && !path.is_file() {
        return Err(format!("{} does not exist or is no file", path.display()));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let data_type = wanted.data_type.or_else(|| data_type_in(&name)).ok_or_else(|| {
        format!("{}: what is in it? Give --type artists, labels, masters or releases", path.display())
    })?;
    let version = wanted
        .version
        .clone()
        .or_else(|| version_in(&name))
        .ok_or_else(|| format!("{}: which dump is it of? Give its date, e.g. --dump 20260401", path.display()))?;
    Ok(Input { path: path.to_owned(), data_type, version })
}

/// The one type that a name names.
fn data_type_in(name: &str) -> Option<DataType> {
    let mut named = DataType::ALL.into_iter().filter(|t| name.contains(t.name()));
    named.next().filter(|_| named.next().is_none())
}

/// The first eight digits in a row.
fn version_in(name: &str) -> Option<String> {
    name.split(|c: char| !c.is_ascii_digit()).find(|digits| digits.len() == 8).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Folder;

    /// The plan, with file names for paths.
    fn planned(paths: Vec<PathBuf>, version: Option<&str>, data_type: Option<DataType>) -> Result<Vec<String>, String> {
        let plans = plan(&Wanted { paths, version: version.map(str::to_owned), data_type })?;
        let described = plans.into_iter().flat_map(|plan| {
            let describe = move |input: Input| {
                assert_eq!(input.version, plan.version);
                format!("{} {} {}", input.version, input.data_type, input.name())
            };
            plan.inputs.into_iter().map(describe)
        });
        Ok(described.collect())
    }

    fn folder(names: &[&str]) -> Folder {
        let folder = Folder::new();
        names.iter().for_each(|name| drop(folder.file(name, "")));
        folder
    }

    #[test]
    fn of_a_folder_the_newest_or_the_wanted_version_is_taken() {
        let folder = folder(&[
            "discogs_20260401_releases.xml.gz",
            "discogs_20260401_artists.xml",
            "discogs_20260401_artists.xml.gz",
            "discogs_20260401_CHECKSUM.txt",
            "discogs_20260401_masters.xml.gz.part",
            "discogs_20260301_labels.jsonl.zst",
            "discogs_20260301_masters.csv",
            "discogs_20260501_CHECKSUM.txt",
            "artists.xml",
            "discogs_20260501_others.xml",
            "discogs_202605011_artists.xml",
        ]);
        let planned = |version, data_type| planned(vec![folder.path().to_owned()], version, data_type);
        let newest =
            ["20260401 artists discogs_20260401_artists.xml", "20260401 releases discogs_20260401_releases.xml.gz"];
        assert_eq!(planned(None, None).unwrap(), newest);
        assert_eq!(planned(None, Some(DataType::Releases)).unwrap(), newest[1..]);
        let before =
            ["20260301 labels discogs_20260301_labels.jsonl.zst", "20260301 masters discogs_20260301_masters.csv"];
        assert_eq!(planned(Some("20260301"), None).unwrap(), before);
        assert!(planned(Some("20260501"), None).unwrap_err().ends_with("has no file of 20260501"));
    }

    #[test]
    fn two_files_of_a_type_in_a_folder_are_ambiguous() {
        let dump = "discogs_20260401_labels.xml.gz";
        for other in ["discogs_20260401_labels.csv", "discogs_20260401_labels.sample.xml.gz", "labels_20260401 (1).xml"]
        {
            let folder = folder(&[dump, other, "discogs_20260301_labels.xml.gz"]);
            let error = planned(vec![folder.path().to_owned()], None, None).unwrap_err();
            assert!(
                error.contains(other) && error.contains("are both labels of 20260401: give one of them"),
                "{error}"
            );
            assert_eq!(
                planned(vec![folder.path().join(dump)], None, None).unwrap(),
                [format!("20260401 labels {dump}")]
            );
        }
    }

    #[test]
    fn an_empty_folder_has_nothing() {
        let folder = folder(&["x.xml"]);
        let error = planned(vec![folder.path().to_owned()], None, None).unwrap_err();
        assert!(error.ends_with("has no file like discogs_20260401_artists.xml.gz"), "{error}");
        assert!(planned(vec![], None, None).unwrap_err().starts_with("no input"));
    }

    #[test]
    fn files_of_several_versions_are_several_plans() {
        let folder = folder(&["discogs_20260401_releases.xml.gz", "20260501-artists.jsonl", "x_20260401_labels"]);
        let paths = ["20260501-artists.jsonl", "discogs_20260401_releases.xml.gz", "x_20260401_labels"];
        assert_eq!(
            planned(paths.map(|name| folder.path().join(name)).to_vec(), None, None).unwrap(),
            [
                "20260401 labels x_20260401_labels",
                "20260401 releases discogs_20260401_releases.xml.gz",
                "20260501 artists 20260501-artists.jsonl"
            ]
        );
    }

    #[test]
    fn what_a_name_does_not_say_must_be_given() {
        let folder = folder(&[
            "artists.xml",
            "artists_of_releases_20260401.xml",
            "data",
            "20260401_2.xml",
            "artists_20260401.gz",
        ]);
        let one = |name: &str, version, data_type| planned(vec![folder.path().join(name)], version, data_type);
        for (name, version, data_type, expected) in [
            ("artists.xml", None, None, Err("which dump is it of?")),
            ("artists.xml", Some("20260101"), None, Ok("20260101 artists artists.xml")),
            ("artists_of_releases_20260401.xml", None, None, Err("what is in it?")),
            (
                "artists_of_releases_20260401.xml",
                None,
                Some(DataType::Labels),
                Ok("20260401 labels artists_of_releases_20260401.xml"),
            ),
            ("20260401_2.xml", None, None, Err("what is in it?")),
            ("data", Some("20260101"), Some(DataType::Masters), Ok("20260101 masters data")),
            ("artists_20260401.gz", Some("20260101"), None, Ok("20260101 artists artists_20260401.gz")),
            ("none_artists_20260401.xml", None, None, Err("does not exist")),
        ] {
            match (one(name, version, data_type), expected) {
                (Ok(planned), Ok(expected)) => assert_eq!(planned, [expected]),
                (Err(error), Err(expected)) => assert!(error.contains(expected), "{error}"),
                other => panic!("{name}: {other:?}"),
            }
        }
    }

    #[test]
    fn the_standard_input_needs_a_type_and_a_version() {
        let stdin = |version, data_type| planned(vec!["-".into()], version, data_type);
        assert_eq!(stdin(Some("20260401"), Some(DataType::Labels)).unwrap(), ["20260401 labels stdin"]);
        assert!(stdin(Some("20260401"), None).unwrap_err().contains("--type"));
        assert!(stdin(None, Some(DataType::Labels)).unwrap_err().contains("--dump"));
    }

    #[test]
    fn two_files_of_one_type_are_ambiguous() {
        let folder = folder(&["discogs_20260401_artists.xml", "discogs_20260401_artists.xml.gz"]);
        for other in [folder.path().to_owned(), folder.path().join("discogs_20260401_artists.xml.gz")] {
            let error =
                planned(vec![folder.path().join("discogs_20260401_artists.xml"), other], None, None).unwrap_err();
            assert!(error.contains("are both artists of 20260401: give one of them"), "{error}");
        }
    }
}
