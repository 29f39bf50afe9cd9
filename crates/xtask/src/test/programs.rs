//! The test programs that cargo has built.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use super::folder;

/// The programs that take longest, which begin first.
const LONGEST: [&str; 8] =
    ["conformance", "faults", "security", "failover", "soak", "simulation", "cli", "late"];

/// Test program.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) package: String,
    pub(super) target: String,
    file: PathBuf,
    /// The folder of its package, in which cargo runs it.
    folder: PathBuf,
}

impl Program {
    /// The run of all its tests, or of those that `args` say.
    pub(super) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.file);
        command.current_dir(&self.folder).env("CARGO_MANIFEST_DIR", &self.folder).args(args);
        command
    }

    /// The program as people know it.
    pub(super) fn shown(&self) -> String {
        if self.package.replace('-', "_") == self.target {
            format!("{} (units)", self.package)
        } else {
            format!("{} {}", self.package, self.target)
        }
    }
}

/// Reads the test programs from what `cargo test --no-run` prints as JSON.
pub(super) fn read(printed: &str) -> Vec<Program> {
    let artifacts = printed.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    artifacts.filter_map(|artifact| program(&artifact)).collect()
}

fn program(artifact: &Value) -> Option<Program> {
    if artifact["reason"] != "compiler-artifact" || artifact["profile"]["test"] != true {
        return None;
    }
    let folder = folder(artifact["manifest_path"].as_str()?);
    let file = PathBuf::from(artifact["executable"].as_str()?);
    let package = Path::new(&folder).file_name()?.to_str()?.to_owned();
    Some(Program { package, target: artifact["target"]["name"].as_str()?.to_owned(), file, folder })
}

/// Orders programs such that no long one begins when all others have ended.
pub(super) fn longest_first(mut programs: Vec<Program>) -> Vec<Program> {
    programs.sort_by_key(|program| {
        let place = LONGEST.iter().position(|name| *name == program.target).unwrap_or(LONGEST.len());
        (place, program.shown())
    });
    programs
}

/// Arguments for a build that tells its programs.
pub(super) const TOLD: [&str; 2] = ["--no-run", "--message-format=json-render-diagnostics"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_test_programs_are_read() {
        let line = |test: bool, target: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"/x/tests/Cargo.toml","target":{{"name":"{target}"}},"profile":{{"test":{test}}},"executable":"/x/{target}-1"}}"#
            )
        };
        let library = r#"{"reason":"compiler-artifact","profile":{"test":false},"executable":null}"#;
        let printed = [&line(true, "late"), library, "noise", &line(false, "soak"), &line(true, "faults")];
        let programs = longest_first(read(&printed.map(ToOwned::to_owned).join("\n")));
        assert_eq!(programs.iter().map(Program::shown).collect::<Vec<_>>(), ["tests faults", "tests late"]);
        assert_eq!(programs[0].command(&["x"]).get_current_dir(), Some(Path::new("/x/tests")));
    }
}
