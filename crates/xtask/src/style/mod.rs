//! `cargo xtask style`: rules of prose for the comments of all Rust files, with a list of exceptions that only shrinks.

mod comments;
mod rules;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use self::rules::{Rule, Violation};
use crate::shell;

/// Folders with Rust files.
const FOLDERS: [&str; 3] = ["crates", "fuzz", "tests"];

/// List of how many violations of each rule a file may have.
const EXCEPTIONS: &str = "crates/xtask/style-exceptions.txt";

const HEAD: &str = "\
# Violations of each rule of prose in a file: first words, long sentences, split sentences. The numbers may only shrink:
# `cargo xtask style --write` brings them down.
";

/// Numbers of violations, by rule.
type Counts = [usize; Rule::ALL.len()];

/// Checks all files, or writes the list of exceptions as it is now.
pub(crate) fn run(writes: bool) -> Result<()> {
    let found = violations(shell::root())?;
    let list = shell::root().join(EXCEPTIONS);
    let allowed = match fs::read_to_string(&list) {
        Ok(text) => Some(parse(&text)?),
        Err(_) if writes => None,
        Err(error) => return Err(error).context(EXCEPTIONS),
    };
    let counts: BTreeMap<_, _> = found.iter().map(|(file, found)| (file.clone(), counts(found))).collect();
    if writes {
        if let Some(rule) = allowed.as_ref().and_then(|allowed| grown(allowed, &counts)) {
            bail!("the list of exceptions may only shrink, and more than before {rule}");
        }
        return fs::write(&list, format(&counts)).context(EXCEPTIONS);
    }
    let messages = differences(&allowed.unwrap_or_default(), &found);
    if messages.is_empty() {
        return Ok(());
    }
    bail!("{}", messages.join("\n"))
}

/// Returns the violations of every file that has some, by its path from the root.
fn violations(root: &Path) -> Result<BTreeMap<String, Vec<Violation>>> {
    let mut files = Vec::new();
    for folder in FOLDERS {
        rust_files(&root.join(folder), &mut files)?;
    }
    let mut found = BTreeMap::new();
    for file in files {
        let source = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let violations: Vec<_> = comments::paragraphs(&source).iter().flat_map(rules::check).collect();
        if !violations.is_empty() {
            let name = file.strip_prefix(root).unwrap_or(&file).to_string_lossy().replace('\\', "/");
            found.insert(name, violations);
        }
    }
    Ok(found)
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("target") {
            rust_files(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn counts(violations: &[Violation]) -> Counts {
    Rule::ALL.map(|rule| violations.iter().filter(|violation| violation.rule == rule).count())
}

/// Returns the first rule with more violations in all files together than are allowed.
fn grown(allowed: &BTreeMap<String, Counts>, counts: &BTreeMap<String, Counts>) -> Option<Rule> {
    let sum =
        |of: &BTreeMap<String, Counts>, rule: usize| of.values().map(|counts| counts[rule]).sum::<usize>();
    (0..Rule::ALL.len()).find(|rule| sum(counts, *rule) > sum(allowed, *rule)).map(|rule| Rule::ALL[rule])
}

/// Describes every file with other counts than are allowed.
fn differences(allowed: &BTreeMap<String, Counts>, found: &BTreeMap<String, Vec<Violation>>) -> Vec<String> {
    let mut messages = Vec::new();
    for (file, violations) in found {
        let limits = allowed.get(file).copied().unwrap_or_default();
        for ((rule, limit), count) in Rule::ALL.into_iter().zip(limits).zip(counts(violations)) {
            if count > limit {
                let of_rule = violations.iter().filter(|violation| violation.rule == rule);
                messages.extend(of_rule.map(|Violation { line, sentence, .. }| {
                    format!("{file}:{line}: this sentence {rule}: {sentence}")
                }));
                if limit > 0 {
                    messages.push(format!("{file}: {count} sentences, where {limit} are excepted"));
                }
            }
        }
    }
    for (file, limits) in allowed {
        let now = found.get(file).map(|found| counts(found)).unwrap_or_default();
        if limits.iter().zip(now).any(|(limit, now)| now < *limit) {
            messages.push(format!(
                "{file} has become better: `cargo xtask style --write` takes its exceptions off"
            ));
        }
    }
    messages
}

fn format(counts: &BTreeMap<String, Counts>) -> String {
    let lines =
        counts.iter().map(|(file, [opener, length, split])| format!("{file} {opener} {length} {split}\n"));
    HEAD.to_owned() + &lines.collect::<String>()
}

fn parse(text: &str) -> Result<BTreeMap<String, Counts>> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let parsed = lines.map(|line| {
        let words: Vec<_> = line.split(' ').collect();
        let [file, numbers @ ..] = words.as_slice() else { bail!("`{line}` is no exception") };
        let numbers = numbers.iter().map(|number| number.parse()).collect::<Result<Vec<usize>, _>>();
        let counts = numbers.ok().and_then(|numbers| Counts::try_from(numbers).ok());
        Ok(((*file).to_owned(), counts.with_context(|| format!("`{line}` has not three numbers"))?))
    });
    parsed.collect::<Result<_>>().context(EXCEPTIONS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(file: &str, openers: usize) -> BTreeMap<String, Vec<Violation>> {
        let violation = Violation { rule: Rule::Opener, line: 7, sentence: "What.".into() };
        BTreeMap::from([(file.to_owned(), vec![violation; openers])])
    }

    fn allowed(file: &str, openers: usize) -> BTreeMap<String, Counts> {
        BTreeMap::from([(file.to_owned(), [openers, 0, 0])])
    }

    #[test]
    fn count_of_a_file_is_neither_above_nor_below_its_exception() {
        assert!(differences(&allowed("a.rs", 2), &found("a.rs", 2)).is_empty());
        let more = differences(&allowed("a.rs", 1), &found("a.rs", 2));
        assert!(more.len() == 3 && more[0].starts_with("a.rs:7: "), "{more:?}");
        for better in [found("a.rs", 1), BTreeMap::new()] {
            let messages = differences(&allowed("a.rs", 2), &better);
            assert!(messages.len() == 1 && messages[0].starts_with("a.rs has become better"), "{messages:?}");
        }
        assert_eq!(differences(&BTreeMap::new(), &found("new.rs", 1)).len(), 1);
    }

    #[test]
    fn list_of_exceptions_is_read_as_it_was_written_and_only_shrinks() {
        let before = allowed("a.rs", 2);
        assert_eq!(parse(&format(&before)).expect("was written so"), before);
        parse("a.rs 1 2").expect_err("there are three rules");
        assert_eq!(grown(&before, &allowed("a.rs", 3)), Some(Rule::Opener));
        assert_eq!(grown(&before, &allowed("moved.rs", 2)), None);
    }
}
