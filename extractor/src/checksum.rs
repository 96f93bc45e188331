//! The checksum file of a dump: a line with the SHA-256 and the name of each file, with one blank between.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::input::Input;
use crate::message::hex;

/// `discogs_VERSION_CHECKSUM.txt` beside the file; the standard input has nothing beside it.
pub fn list(input: &Input) -> Option<PathBuf> {
    (!input.is_stdin()).then(|| input.path.with_file_name(format!("discogs_{}_CHECKSUM.txt", input.version)))
}

/// Verifies a file against its [`list`]. Without that file, or without a line for this one,
/// there is nothing to verify. `stopped` is asked now and then whether to give up, which is no error.
///
/// # Errors
/// What is wrong, for a person.
pub fn verify(input: &Input, stopped: impl Fn() -> bool) -> Result<(), String> {
    let Some(sums) = list(input) else { return Ok(()) };
    let text = match std::fs::read_to_string(&sums) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(format!("{}: {e}; pass --no-verify to do without it", sums.display())),
    };
    let name = input.name();
    let of_line = |line: &str| {
        let (sum, file) = line.split_once(char::is_whitespace)?;
        let file = file.trim_start_matches([' ', '*']).trim_end();
        (file.strip_prefix("./").unwrap_or(file) == name).then(|| sum.to_ascii_lowercase())
    };
    let Some(expected) = text.lines().find_map(of_line) else { return Ok(()) };
    let failed = |e: std::io::Error| format!("{}: {e}", input.path.display());
    let mut file = File::open(&input.path).map_err(failed)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let n = file.read(&mut buffer).map_err(failed)?;
        if n == 0 {
            break;
        }
        if stopped() {
            return Ok(());
        }
        hash.update(&buffer[..n]);
    }
    let found = hex(&hash.finalize());
    if found == expected {
        return Ok(());
    }
    Err(format!(
        "its checksum is not the one in {}: the file is damaged or incomplete; fetch it again, or pass --no-verify \
         (expected {expected}, found {found})",
        sums.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Folder, real_files};
    use common::DataType;

    const SUM: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"; // of `hello`

    #[test]
    fn a_file_is_good_unless_its_line_says_otherwise() {
        let other = SUM.replace('2', "3");
        for (sums, good) in [
            (None, true),
            (Some(String::new()), true),
            (Some(format!("{SUM} d_labels.xml\n")), true),
            (Some(format!("{other} discogs.xml\n{SUM}  d_labels.xml")), true),
            (Some(format!("{SUM} *d_labels.xml\r\n")), true),
            (Some(format!("{}\td_labels.xml\n", SUM.to_uppercase())), true),
            (Some(format!("{other} xd_labels.xml\n{other} d_labels.xml.gz\n")), true),
            (Some(format!("{other} d_labels.xml\n")), false),
            (Some(format!("{other}  ./d_labels.xml\n")), false),
            (Some(format!("{other}  d_labels.xml\r\n")), false),
            (Some(" d_labels.xml\n".to_owned()), false),
        ] {
            let folder = Folder::new();
            let input = folder.input("d_labels.xml", DataType::Labels, "hello");
            if let Some(sums) = &sums {
                folder.file("discogs_20260401_CHECKSUM.txt", sums);
            }
            match verify(&input, || false) {
                Ok(()) => assert!(good, "{sums:?}"),
                Err(error) => {
                    assert!(!good && error.contains("--no-verify") && error.contains(SUM), "{sums:?}: {error}")
                }
            }
            // It was not looked at to its end.
            assert_eq!(verify(&input, || true), Ok(()));
        }
    }

    #[test]
    fn a_file_that_can_not_be_read_is_told() {
        let folder = Folder::new();
        let input = folder.input("x", DataType::Labels, "");
        folder.file("discogs_20260401_CHECKSUM.txt", format!("{SUM} x"));
        std::fs::remove_file(&input.path).unwrap();
        assert!(verify(&input, || false).unwrap_err().contains("No such file"));
        assert_eq!(verify(&Input { path: "-".into(), ..input }, || false), Ok(()));
    }

    #[test]
    fn real_files_have_their_checksums() {
        for file in real_files("real_files_have_their_checksums") {
            let input = Input { path: file.path, data_type: file.data_type, version: file.month.to_owned() };
            verify(&input, || false).unwrap();
            let folder = Folder::new();
            let sums =
                std::fs::read(input.path.with_file_name(format!("discogs_{}_CHECKSUM.txt", file.month))).unwrap();
            folder.file(&format!("discogs_{}_CHECKSUM.txt", file.month), sums);
            let mut bytes = std::fs::read(&input.path).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            let damaged = Input { path: folder.file(&input.name(), bytes), ..input };
            assert!(verify(&damaged, || false).is_err());
        }
    }
}
