//! Tells the program which commit it is made of, as `BUILD_COMMIT`: from a variable of that name where there is no git
//! (in an image's build), else from git. Only a release asks: to know, this script has to run again after each commit and
//! change, and everything above this crate is compiled again then.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=BUILD_COMMIT");
    let release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let given = std::env::var("BUILD_COMMIT").ok().filter(|commit| !commit.is_empty());
    let commit = match given {
        Some(commit) => commit,
        None if release => from_git().unwrap_or_else(|| "commit unknown".to_owned()),
        None => "development".to_owned(),
    };
    println!("cargo::rustc-env=BUILD_COMMIT={commit}");
}

/// The commit, with `-dirty` if files were changed since. `None` outside of a checkout.
fn from_git() -> Option<String> {
    let commit = git(&["describe", "--always", "--exclude=*", "--abbrev=12", "--dirty"])?;
    // The reflog grows by every commit and every checkout.
    let reflog = git(&["rev-parse", "--git-path", "logs/HEAD"])?;
    for path in ["../Cargo.lock", "../common", "../extractor", "../graphinator", "../tableinator", &reflog] {
        println!("cargo::rerun-if-changed={path}");
    }
    Some(commit)
}

fn git(arguments: &[&str]) -> Option<String> {
    let out = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    out.status.success().then(|| text.trim().to_owned())
}
