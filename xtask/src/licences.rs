//! What the programs are made of: nothing but crates.io, nothing but the licences of `deny.toml`, no crate twice without
//! need. Offline, from what Cargo knows; with cargo-deny, where it is installed, for all platforms too.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::Error;
use crate::services::{cargo, root};

/// What Cargo calls crates.io.
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// The lists of `deny.toml`.
#[derive(Debug)]
pub struct Policy {
    licences: Vec<String>,
    registries: Vec<String>,
    banned: Vec<String>,
    several: Vec<String>,
}

impl Policy {
    /// Reads the lists out of the file's text.
    ///
    /// # Errors
    /// If one is missing.
    pub fn parse(text: &str) -> Result<Policy, Error> {
        let list = |section: &str, key: &str| {
            strings(text, section, key).ok_or_else(|| format!("deny.toml has no list `{key}` in [{section}]"))
        };
        Ok(Policy {
            licences: list("licenses", "allow")?,
            registries: list("sources", "allow-registry")?,
            banned: list("bans", "deny")?,
            several: list("bans", "skip")?,
        })
    }

    /// What is wrong with the packages that `cargo metadata` lists and the sources that `Cargo.lock` names.
    pub fn problems(&self, metadata: &Value, lock: &str) -> Vec<String> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let members: BTreeSet<String> =
            metadata["workspace_members"].as_array().into_iter().flatten().map(text).collect();
        let vendor = format!("{}/vendor/", text(&metadata["workspace_root"]));
        let mut problems = BTreeSet::new();
        let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let packages: Vec<&Value> = metadata["packages"].as_array().into_iter().flatten().collect();
        if packages.len() <= members.len() {
            problems.insert("cargo metadata lists no dependencies".to_owned());
        }
        for package in packages {
            let (name, version) = (text(&package["name"]), text(&package["version"]));
            versions.entry(name.clone()).or_default().insert(version.clone());
            if self.banned.contains(&name) {
                problems.insert(format!("{name} {version} is banned"));
            }
            if members.contains(&text(&package["id"])) {
                continue;
            }
            // What is patched is kept here (vendor/README.md).
            let vendored = package["source"].is_null() && text(&package["manifest_path"]).starts_with(&vendor);
            if !vendored && !self.known(&text(&package["source"])) {
                problems.insert(format!("{name} {version} comes from {}", package["source"]));
            }
            match package["license"].as_str() {
                Some(expression) if self.allows(expression) => {}
                Some(expression) => drop(problems.insert(format!("{name} {version} has the licence {expression}"))),
                None => drop(problems.insert(format!("{name} {version} names no licence"))),
            }
        }
        for (name, versions) in versions.iter().filter(|(_, versions)| versions.len() > 1) {
            if !self.several.contains(name) {
                problems.insert(format!("{name} is there more than once: {versions:?}"));
            }
        }
        for name in &self.several {
            // By the lock file, since another platform may be what needs the second one.
            if lock.lines().filter(|line| line.strip_prefix("name = ") == Some(&format!("\"{name}\""))).count() < 2 {
                problems.insert(format!("{name} is not there twice any more: take it off the list"));
            }
        }
        // Of other platforms' packages only this much is known without asking anybody.
        let sources = lock.lines().filter_map(|line| line.strip_prefix("source = "));
        for source in sources.map(|source| source.trim_matches('"')).filter(|source| !self.known(source)) {
            problems.insert(format!("Cargo.lock has a package from {source}"));
        }
        problems.into_iter().collect()
    }

    fn known(&self, source: &str) -> bool {
        source == CRATES_IO && self.registries.iter().any(|registry| source.strip_prefix("registry+") == Some(registry))
    }

    /// Whether an SPDX expression can be satisfied with the allowed licences. (`A/B` is an old way to write `A OR B`.)
    pub fn allows(&self, expression: &str) -> bool {
        let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
        let words: Vec<&str> = spaced.split_whitespace().collect();
        let mut rest = &words[..];
        self.any(&mut rest) == Some(true) && rest.is_empty()
    }

    fn any(&self, rest: &mut &[&str]) -> Option<bool> {
        let mut good = self.all(rest)?;
        while rest.first() == Some(&"OR") {
            *rest = &rest[1..];
            good |= self.all(rest)?;
        }
        Some(good)
    }

    fn all(&self, rest: &mut &[&str]) -> Option<bool> {
        let mut good = self.single(rest)?;
        while rest.first() == Some(&"AND") {
            *rest = &rest[1..];
            good &= self.single(rest)?;
        }
        Some(good)
    }

    fn single(&self, rest: &mut &[&str]) -> Option<bool> {
        let (first, behind) = rest.split_first()?;
        *rest = behind;
        if *first == "(" {
            let good = self.any(rest)?;
            let (close, behind) = rest.split_first()?;
            *rest = behind;
            return (*close == ")").then_some(good);
        }
        let mut licence = (*first).to_owned();
        if let ["WITH", exception, behind @ ..] = *rest {
            licence = format!("{licence} WITH {exception}");
            *rest = behind;
        }
        Some(self.licences.contains(&licence))
    }
}

/// The strings of a list in a section of a TOML text that is written like ours.
fn strings(text: &str, section: &str, key: &str) -> Option<Vec<String>> {
    let without_comments: Vec<&str> = text.lines().map(|line| line.split('#').next().unwrap_or_default()).collect();
    let header = format!("[{section}]");
    let lines = without_comments.iter().skip_while(|line| line.trim() != header).skip(1);
    let own: Vec<&str> = lines.take_while(|line| !line.starts_with('[')).copied().collect();
    let begin = own.iter().position(|line| line.split('=').next().unwrap_or_default().trim() == key)?;
    let list = own[begin..].join("\n");
    let (_, list) = list.split_once('[')?;
    let (list, _) = list.split_once(']')?;
    Some(list.split('"').skip(1).step_by(2).map(str::to_owned).collect())
}

/// Checks this workspace, offline.
///
/// # Errors
/// With everything that is wrong.
pub fn check() -> Result<(), Error> {
    let policy = Policy::parse(&std::fs::read_to_string(root().join("deny.toml"))?)?;
    let lock = std::fs::read_to_string(root().join("Cargo.lock"))?;
    let host = host()?;
    // Only for this platform: packages of others need not have been downloaded.
    let arguments = ["metadata", "--locked", "--offline", "--format-version", "1", "--filter-platform", &host];
    let out = cargo(&arguments).output()?;
    if !out.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&out.stderr)).into());
    }
    let problems = policy.problems(&serde_json::from_slice(&out.stdout)?, &lock);
    if problems.is_empty() { Ok(()) } else { Err(format!("deny.toml: {}", problems.join("; ")).into()) }
}

/// The platform that is compiled for, as the compiler calls it.
fn host() -> Result<String, Error> {
    let out = std::process::Command::new("rustc").arg("-vV").current_dir(root()).output()?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| "rustc does not say its host".into())
}

/// Likewise, and by cargo-deny if there is one.
///
/// # Errors
/// With everything that is wrong.
pub fn check_thoroughly() -> Result<(), Error> {
    check()?;
    if !cargo(&["deny", "--version"]).output()?.status.success() {
        eprintln!(
            "WARNING: cargo-deny is not installed: licences were checked for this platform only (`cargo install cargo-deny`)"
        );
        return Ok(());
    }
    let status = cargo(&["deny", "--offline", "check", "licenses", "sources", "bans"]).status()?;
    status.success().then_some(()).ok_or_else(|| "cargo deny found something wrong".into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TOML: &str = "# allow = [\"GPL-3.0\"]\n[licenses]\nallow = [\n    \"MIT\", # a comment, \"Zlib\"\n    \"Apache-2.0\",\n    \"Apache-2.0 WITH LLVM-exception\",\n]\n\
        [sources]\nallow-registry = [\"https://github.com/rust-lang/crates.io-index\"]\n[bans]\ndeny = [\"openssl\"]\nskip = [\"twice\"]\n";

    fn policy() -> Policy {
        Policy::parse(TOML).expect("all lists")
    }

    #[test]
    fn this_workspace_is_made_of_what_is_allowed() {
        check().expect("deny.toml");
    }

    #[test]
    fn expressions_are_satisfied_or_not() {
        for (expression, allowed) in [
            ("MIT", true),
            ("GPL-3.0", false),
            ("Zlib", false),
            ("MIT OR GPL-3.0", true),
            ("GPL-3.0/MIT", true),
            ("MIT AND GPL-3.0", false),
            ("(MIT OR GPL-3.0) AND Apache-2.0", true),
            ("GPL-3.0 OR MIT AND GPL-3.0", false),
            ("GPL-3.0 OR (MIT AND Apache-2.0)", true),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("MIT WITH LLVM-exception", false),
            ("", false),
            ("MIT Apache-2.0", false),
            ("(MIT", false),
            ("MIT OR", false),
        ] {
            assert_eq!(policy().allows(expression), allowed, "{expression:?}");
        }
    }

    #[test]
    fn whatever_is_wrong_is_told() {
        let package = |name: &str, version: &str, source: Value, license: Value| json!({"id": format!("{name} {version}"), "name": name, "version": version, "source": source, "license": license});
        let mut vendored = package("ours", "1", Value::Null, json!("MIT"));
        vendored["manifest_path"] = json!("/root/vendor/ours/Cargo.toml");
        let metadata = json!({"workspace_root": "/root", "workspace_members": ["own 1"], "packages": [
            vendored,
            package("own", "1", Value::Null, Value::Null),
            package("good", "1", json!(CRATES_IO), json!("MIT")),
            package("twice", "1", json!(CRATES_IO), json!("MIT")),
            package("twice", "2", json!(CRATES_IO), json!("MIT")),
        ]});
        let lock = format!("name = \"twice\"\nsource = \"{CRATES_IO}\"\nname = \"twice\"\n");
        assert_eq!(policy().problems(&metadata, &lock), Vec::<String>::new());
        for (added, complaint) in [
            (package("x", "1", json!("git+https://example.org/x"), json!("MIT")), "comes from"),
            (package("x", "1", Value::Null, json!("MIT")), "comes from"),
            (package("x", "1", json!(CRATES_IO), json!("GPL-3.0")), "has the licence GPL-3.0"),
            (package("x", "1", json!(CRATES_IO), Value::Null), "names no licence"),
            (package("openssl", "1", json!(CRATES_IO), json!("MIT")), "is banned"),
            (package("good", "2", json!(CRATES_IO), json!("MIT")), "more than once"),
        ] {
            let mut metadata = metadata.clone();
            metadata["packages"].as_array_mut().expect("a list").push(added);
            let problems = policy().problems(&metadata, &lock);
            assert!(problems.len() == 1 && problems[0].contains(complaint), "{complaint}: {problems:?}");
        }
        let foreign = policy().problems(&metadata, &lock.replace(CRATES_IO, "git+https://example.org/x"));
        assert!(foreign.len() == 1 && foreign[0].contains("Cargo.lock has a package from git+"), "{foreign:?}");
        let gone = json!({"workspace_members": [], "packages": [package("good", "1", json!(CRATES_IO), json!("MIT"))]});
        assert!(policy().problems(&gone, "")[0].contains("take it off the list"));
        assert!(!policy().problems(&json!({}), "").is_empty());
    }
}
