//! Whether the conformance tests and `docs/semantics.md` have one contract: each promise that a test cites is listed, and each
//! listed promise is cited.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result, bail};

use crate::shell;

const DOCUMENT: &str = "docs/semantics.md";
const SUITE: &str = "crates/coord-conformance/src";

/// Fails if a number stands in one of the two alone, or a test cites none.
pub(crate) fn check() -> Result<()> {
    let document = fs::read_to_string(shell::root().join(DOCUMENT)).context(DOCUMENT)?;
    let mut sources = String::new();
    read_all(&shell::root().join(SUITE), &mut sources).context(SUITE)?;
    let faults = faults(&document, &sources);
    if !faults.is_empty() {
        bail!("the contract: {}", faults.join("; "));
    }
    Ok(())
}

fn read_all(folder: &Path, into: &mut String) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            read_all(&path, into)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

fn faults(document: &str, sources: &str) -> Vec<String> {
    let (listed, cited) = (listed(document), cited(sources));
    let mut faults = Vec::new();
    for number in cited.difference(&listed) {
        faults.push(format!("tests cite promise {number}, which is not in {DOCUMENT}"));
    }
    for number in listed.difference(&cited) {
        faults.push(format!("no test cites promise {number} of {DOCUMENT}"));
    }
    for name in without_number(sources) {
        faults.push(format!("the test `{name}` cites no promise"));
    }
    faults
}

/// Returns the numbers of the list below the heading of the contract.
fn listed(document: &str) -> BTreeSet<u32> {
    let section = document.split("\n## ").find(|section| section.starts_with("The contract\n"));
    let lines = section.unwrap_or_default().lines();
    lines.filter_map(|line| line.split_once(". **")?.0.parse().ok()).collect()
}

/// Returns the numbers that doc comments cite, as in `Contract 8` and `Contract 8, 12`.
fn cited(sources: &str) -> BTreeSet<u32> {
    let docs = sources.lines().filter_map(|line| line.trim().strip_prefix("/// Contract "));
    let numbers = docs.flat_map(|rest| rest.split(':').next().unwrap_or_default().split([',', ' ']));
    numbers.filter_map(|number| number.parse().ok()).collect()
}

/// Returns the tests of the suite whose documentation does not begin with a number.
fn without_number(sources: &str) -> Vec<&str> {
    let mut is_documented = false;
    let mut names = Vec::new();
    for line in sources.lines() {
        if let Some(doc) = line.trim().strip_prefix("/// ") {
            is_documented |= doc.starts_with("Contract ");
            continue;
        }
        // Within the macro that makes tests.
        if let Some(test) = line.strip_prefix("    async fn ")
            && line.contains("(world: &dyn World)")
            && !is_documented
        {
            names.extend(test.split('(').next());
        }
        is_documented = false;
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "# Semantics\n\n## The contract\n\n1. **Leases.** x\n   y\n2. **Loss.** z\n\n## Leases\n\n3. **No.** x\n";

    #[test]
    fn numbers_that_stand_on_one_side_alone_are_told() {
        let both = "    /// Contract 1, 2: both.\n    async fn a(world: &dyn World) {";
        assert!(faults(DOCUMENT, both).is_empty());
        let odd = "    /// Contract 7: is not there.\n    async fn a(world: &dyn World) {";
        let told = faults(DOCUMENT, odd).join("\n");
        assert!(
            told.contains("cite promise 7") && told.contains("cites promise 1") && told.contains("promise 2"),
            "{told}"
        );
    }

    #[test]
    fn test_without_a_promise_is_told() {
        let sources = "    /// Contract 1: x\n    /// more\n    async fn a(world: &dyn World) {}\n    async fn b(world: &dyn World) {}\n    /// Contract 2: x\nasync fn help(world: &dyn World) {}";
        assert_eq!(faults(DOCUMENT, sources), ["the test `b` cites no promise"]);
    }

    #[test]
    fn contract_and_tests_of_this_repository_agree() {
        check().expect("agree");
    }
}
