//! docs/reliability.md names the tests that hold what it says: each must be where it is said to be.

use std::fs::read_to_string;

use crate::Error;

#[test]
fn every_test_that_is_cited_exists() -> Result<(), Error> {
    let root = xtask::services::root();
    let text = read_to_string(root.join("docs/reliability.md"))?;
    let lower = |text: &str| text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_./".contains(c));
    let (mut file, mut cited, mut missing) = (String::new(), 0, Vec::new());
    for code in text.split('`').skip(1).step_by(2) {
        let Some((place, test)) = code.split_once("::").filter(|(place, test)| lower(place) && lower(test)) else {
            continue;
        };
        // Without a place it is the last one; a bare name is one of the integration tests.
        match place {
            "" => {}
            source if source.ends_with(".rs") => file = source.to_owned(),
            name => file = format!("tests/tests/{name}.rs"),
        }
        cited += 1;
        let source = read_to_string(root.join(&file)).unwrap_or_default();
        // A function, or a line of the macro that makes it one.
        if ![format!("fn {test}("), format!("    {test}: [")].iter().any(|made| source.contains(made)) {
            missing.push(code);
        }
    }
    assert!(missing.is_empty() && cited > 150, "missing of {cited}: {missing:?}");
    Ok(())
}
