//! Names on the pages for contributors: files that a grep finds, and functions of each step of a call, exist.

use std::{
    fs,
    path::{Path, PathBuf},
};

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn page(name: &str) -> String {
    fs::read_to_string(root().join("docs").join(name)).expect("is a page")
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("is a folder") {
        let path = entry.expect("can be read").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            found.push(path);
        }
    }
}

/// The pieces between backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

#[test]
fn ten_greps_find_their_files() {
    let crates = root().join("crates");
    let mut all = Vec::new();
    for entry in fs::read_dir(&crates).expect("is a folder") {
        sources(&entry.expect("can be read").path().join("src"), &mut all);
    }
    let page = page("debugging.md");
    let rows: Vec<_> = page.lines().filter(|line| line.contains("| `git grep")).collect();
    assert_eq!(rows.len(), 10, "{rows:#?}");
    for row in rows {
        let cells = quoted(row);
        let word = cells[0].strip_prefix("git grep -il '^//!.*").and_then(|rest| rest.split_once('\''));
        let (word, rest) = word.unwrap_or_else(|| panic!("{row}"));
        assert_eq!(rest, " crates/*/src", "{row}");
        let has_word = |path: &&PathBuf| {
            let text = fs::read_to_string(path).expect("is text");
            text.lines().any(|line| line.starts_with("//!") && line.to_lowercase().contains(word))
        };
        let name = |path: &PathBuf| path.strip_prefix(&crates).expect("is below").display().to_string();
        let mut found: Vec<_> = all.iter().filter(has_word).map(name).collect();
        let mut told: Vec<_> = cells[1..].iter().map(|file| (*file).to_owned()).collect();
        found.sort();
        told.sort();
        assert_eq!(found, told, "{row}");
        assert!(found.len() < 5, "{row}");
    }
}

#[test]
fn steps_of_the_three_calls_name_what_exists() {
    let page = page("architecture.md");
    let (_, calls) = page.split_once("\n## Three calls").expect("is there");
    let calls = calls.split("\n## ").next().expect("has a beginning");
    let mut steps: Vec<String> = Vec::new();
    for line in calls.lines() {
        let after_number = line.trim_start_matches(|c: char| c.is_ascii_digit());
        if after_number.len() < line.len() && after_number.starts_with(". ") {
            steps.push(line.to_owned());
        } else if line.starts_with("   ") {
            steps.last_mut().expect("goes on after a step").push_str(line);
        }
    }
    assert!((20..=36).contains(&steps.len()), "{} steps", steps.len());
    for step in &steps {
        let mut text = None;
        for piece in quoted(step) {
            if let Some(file) = piece.strip_suffix(".rs") {
                let file = root().join("crates").join(format!("{file}.rs"));
                text =
                    Some(fs::read_to_string(&file).unwrap_or_else(|_| panic!("{}: {step}", file.display())));
                continue;
            }
            let text = text.as_ref().unwrap_or_else(|| panic!("begins with a file: {step}"));
            let name = piece.split("::").last().expect("has a last part").trim_end_matches("()");
            let kinds = ["fn ", "struct ", "enum ", "trait ", "const "];
            let is_there = kinds.iter().any(|kind| {
                let start = format!("{kind}{name}");
                text.match_indices(&start).any(|(at, _)| {
                    let next = text[at + start.len()..].chars().next();
                    next.is_none_or(|next| !next.is_alphanumeric() && next != '_')
                })
            });
            assert!(is_there, "`{piece}`: {step}");
        }
        assert!(text.is_some(), "names a file: {step}");
    }
}
