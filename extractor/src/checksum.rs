//! The checksum file of a dump: a line with the SHA-256 and the name of each file, with one blank between.

use std::fs::File;
use std::io::Read;

use sha2::{Digest, Sha256};

use crate::input::Input;
use crate::message::hex;

/// Verifies a file against `discogs_VERSION_CHECKSUM.txt` beside it. Without that file, or without a line for this one,
/// there is nothing to verify. `stopped` is asked now and then whether to give up, which is no error.
///
/// # Errors
/// What is wrong, for a person.
pub fn verify(input: &Input, stopped: impl Fn() -> bool) -> Result<(), String> {
    if input.is_stdin() {
        return Ok(());
    }
    let sums = input.path.with_file_name(format!("discogs_{}_CHECKSUM.txt", input.version));
    let Ok(text) = std::fs::read_to_string(&sums) else { return Ok(()) };
    let name = input.name();
    let of_line = |line: &str| {
        let (sum, file) = line.split_once(char::is_whitespace)?;
        (file.trim_start_matches([' ', '*']).trim_end() == name).then(|| sum.to_ascii_lowercase())
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
