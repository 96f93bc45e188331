//! `docs/configuration.md`, generated from the tables that the workers read and `--help` prints.

use std::fmt::Write;

use common::config::{BROKER, COMMON, DefaultValue, Variable, WITHOUT_EFFECT};

use crate::Error;
use crate::services::root;

/// The document's place.
const PATH: &str = "docs/configuration.md";

const HEAD: &str = "# Configuration

Generated from the code by `cargo xtask docs`; a test fails when it is out of date.

Both workers are configured by environment variables alone; the extractor reads them too, beside its command line. A variable that is set but empty counts as unset. Where a
variable is marked *, `NAME_FILE` may name a file with the value, whose ends are trimmed; the file wins over `NAME`. What is marked ~ can be
changed in a running worker: [settings.md](settings.md#live-tuning).
All problems are reported together, with what to do about them, and the worker exits with status 2. Secrets are never
printed. `graphinator check` and `tableinator check` validate the configuration, connect to everything and exit with 1
if something is wrong.
";

const TAIL: &str = "
## TLS

`RABBITMQ_TLS_ENABLED`, `POSTGRES_TLS_ENABLED` and `NEO4J_TLS_ENABLED` (or a `bolt+s://` or `neo4j+s://` URI in
`NEO4J_HOST`) encrypt the three connections. The server's certificate and name are verified against the system's CAs and
the CA in the `*_TLS_CA_FILE`; for Neo4j that file replaces the system's CAs. Only Neo4j's verification can be switched
off, with `NEO4J_TLS_VERIFY=false`, as in the predecessors.
";

/// The whole document.
pub fn text() -> String {
    let mut out = String::from(HEAD);
    for (title, table) in [
        ("The broker (workers and extractor)", BROKER),
        ("Both workers", COMMON),
        ("tableinator", tableinator::config::VARIABLES),
        ("graphinator", graphinator::config::VARIABLES),
        ("extractor", extractor::config::VARIABLES),
    ] {
        let _ = write!(out, "\n## {title}\n\n| Variable | Default | Meaning |\n|---|---|---|\n");
        for v in table {
            out.push_str(&row(v));
        }
    }
    let _ = write!(
        out,
        "\n## Accepted without effect\n\nThe predecessors read these; here consumers stay subscribed and nothing waits for \
         a delay. A worker says so once if one is set.\n\n{}\n",
        WITHOUT_EFFECT.map(|name| format!("`{name}`")).join(", ")
    );
    out.push_str(TAIL);
    out
}

fn row(v: &Variable) -> String {
    let default = match v.default {
        DefaultValue::Required => "required".to_owned(),
        DefaultValue::Value(value) => format!("`{value}`"),
        DefaultValue::Derived(text) => text.to_owned(),
    };
    format!("| `{}`{} | {default} | {} |\n", v.name, v.mark(), v.help)
}

/// Writes the document.
///
/// # Errors
/// If it can't be written.
pub fn write() -> Result<(), Error> {
    Ok(std::fs::write(root().join(PATH), text())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_up_to_date() {
        let there = std::fs::read_to_string(root().join(PATH)).unwrap_or_default();
        assert_eq!(there, text(), "run `cargo xtask docs`");
    }
}
