//! The programs that have a test of some name, found in the sources, so that no other is built.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{
    folder, names,
    programs::{Program, TOLD},
};
use crate::shell;

/// Options of test programs that are followed by a value.
const WITH_VALUE: [&str; 7] =
    ["--skip", "--test-threads", "--format", "--color", "--logfile", "--shuffle-seed", "-Z"];

/// The program whose names are in another package.
const CONFORMANCE: &str = "conformance";

/// Which programs to build and run.
pub(super) enum Selection {
    Everything,
    /// Programs with a test that a filter names.
    Some(Vec<Target>),
}

/// A target of cargo with tests.
#[derive(Debug)]
pub(super) struct Target {
    package: String,
    kind: String,
    name: String,
    tests: Vec<String>,
}

impl Selection {
    /// The programs that have what `args` filter for. Everything if nothing has, since a macro may make names.
    pub(super) fn of(args: &[&str]) -> Result<Self> {
        let filters = filters(args);
        if filters.is_empty() {
            return Ok(Self::Everything);
        }
        let mut targets = workspace()?;
        targets
            .retain(|target| target.tests.iter().any(|test| filters.iter().any(|part| test.contains(part))));
        Ok(if targets.is_empty() { Self::Everything } else { Self::Some(targets) })
    }

    /// Arguments that make cargo build these programs and tell where they are.
    pub(super) fn targets(&self) -> Vec<String> {
        let mut wanted = BTreeSet::new();
        if let Self::Some(targets) = self {
            for Target { kind, name, .. } in targets {
                // Of a library cargo can be told no name but with another selection of packages.
                wanted.insert(if kind == "lib" { "--lib".to_owned() } else { format!("--{kind}={name}") });
            }
        }
        wanted.into_iter().chain(TOLD.map(ToOwned::to_owned)).collect()
    }

    /// Whether a program that was built has any of the tests.
    pub(super) fn has(&self, program: &Program) -> bool {
        match self {
            Self::Everything => true,
            Self::Some(targets) => {
                let is =
                    |target: &Target| (&target.package, &target.name) == (&program.package, &program.target);
                targets.iter().any(is)
            }
        }
    }

    pub(super) fn is_everything(&self) -> bool {
        matches!(self, Self::Everything)
    }

    /// Whether examples in the documentation may be meant. They are named by file and line.
    pub(super) fn has_documentation(&self) -> bool {
        self.is_everything()
    }

    /// Whether programs are meant that run the examples, which cargo builds along with everything only.
    pub(super) fn needs_examples(&self) -> bool {
        matches!(self, Self::Some(targets) if targets.iter().any(|target| target.name == "examples"))
    }
}

/// The names in the arguments of a test program.
fn filters<'a>(args: &[&'a str]) -> Vec<&'a str> {
    let mut filters = Vec::new();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        if WITH_VALUE.contains(arg) {
            rest.next();
        } else if !arg.starts_with('-') {
            filters.push(*arg);
        }
    }
    filters
}

/// Every target of the workspace that has tests, with their names.
fn workspace() -> Result<Vec<Target>> {
    let mut metadata = shell::cargo(["metadata", "--no-deps", "--format-version", "1"]);
    let printed = metadata.output().context("cannot start cargo")?.stdout;
    let metadata: Value =
        serde_json::from_slice(&printed).context("cannot read what cargo says of itself")?;
    let mut targets = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let folder = folder(package["manifest_path"].as_str().unwrap_or_default());
        let package = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for target in package_targets(&metadata, &folder) {
            let text = |field: &Value| field.as_str().unwrap_or_default().to_owned();
            let (name, root) = (text(&target["name"]), PathBuf::from(text(&target["src_path"])));
            let mut tests = tests(&root);
            if name == CONFORMANCE {
                tests.extend(tests_below(&shell::root().join("crates/coord-conformance/src")));
            }
            targets.push(Target { package: package.clone(), kind: text(&target["kind"][0]), name, tests });
        }
    }
    Ok(targets)
}

fn package_targets<'a>(metadata: &'a Value, folder: &'a Path) -> impl Iterator<Item = &'a Value> {
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let own = packages.filter(|package| {
        package["manifest_path"].as_str().is_some_and(|manifest| Path::new(manifest).parent() == Some(folder))
    });
    own.flat_map(|package| package["targets"].as_array().into_iter().flatten())
        .filter(|target| target["test"] == true)
}

/// The tests of the target whose first file is `root`.
fn tests(root: &Path) -> Vec<String> {
    let Some(folder) = root.parent() else { return Vec::new() };
    let stem = root.file_stem().unwrap_or_default();
    if ["lib", "main"].iter().any(|whole| stem == *whole) {
        return tests_below(folder);
    }
    // A file, with its modules in a folder of its name.
    let mut tests = names::of(&fs::read_to_string(root).unwrap_or_default(), "");
    tests.extend(tests_below(&folder.join(stem)));
    tests
}

/// The tests of all files below a folder of modules.
fn tests_below(folder: &Path) -> Vec<String> {
    let mut tests = Vec::new();
    let mut folders = vec![(folder.to_owned(), String::new())];
    while let Some((folder, module)) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let inner = match stem.as_str() {
                "lib" | "main" | "mod" => module.clone(),
                _ if module.is_empty() => stem,
                _ => format!("{module}::{stem}"),
            };
            if path.is_dir() {
                folders.push((path, inner));
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                tests.extend(names::of(&fs::read_to_string(&path).unwrap_or_default(), &inner));
            }
        }
    }
    tests
}

#[cfg(test)]
mod tests_of_selection {
    use super::*;

    #[test]
    fn options_and_their_values_are_no_filters() {
        let args = ["etcd::lock", "--skip", "slow", "--nocapture", "--test-threads", "1", "fair"];
        assert_eq!(filters(&args), ["etcd::lock", "fair"]);
    }

    #[test]
    fn filter_selects_only_programs_that_have_it() {
        let selected = |filter: &str| match Selection::of(&[filter]).expect("cargo answers") {
            Selection::Everything => vec!["everything".to_owned()],
            Selection::Some(targets) => targets.into_iter().map(|target| target.name).collect(),
        };
        assert_eq!(selected("etcd::lock"), ["conformance"]);
        assert_eq!(selected("filter_selects_only_programs_that_have_it"), ["xtask"]);
        assert_eq!(selected("no_seed_breaks_a_promise"), ["simulation"]);
        assert_eq!(selected("there is no such test"), ["everything"]);
    }
}
