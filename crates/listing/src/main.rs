//! Compares the public items of crates with their lists, or writes these: `listing [--check] FOLDER FILE.json…`.
//!
//! A crate of its own because the rest of `xtask` builds in seconds on purpose.

use std::{collections::BTreeSet, fmt::Write as _, path::Path, process::ExitCode};

use anyhow::{Context, Result, bail};
use public_api::Builder;

fn main() -> Result<ExitCode> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (checks, args) = match args.as_slice() {
        [first, rest @ ..] if first == "--check" => (true, rest),
        all => (false, all),
    };
    let [folder, files @ ..] = args else { bail!("there is no folder for the lists") };
    let mut differ = false;
    for json in files {
        let name = Path::new(json).file_stem().context("has no name")?.to_string_lossy().replace('_', "-");
        let list = Path::new(folder).join(name).with_extension("txt");
        let items = items(json)?;
        if checks {
            let known = std::fs::read_to_string(&list).with_context(|| format!("no {}", list.display()))?;
            let changes = changes(&known, &items);
            if !changes.is_empty() {
                differ = true;
                eprintln!("{}:\n{changes}", list.display());
            }
        } else {
            std::fs::write(&list, items).with_context(|| format!("cannot write {}", list.display()))?;
        }
    }
    if differ {
        eprintln!(
            "the public items are not those of the lists: `cargo xtask api` writes them anew, for review"
        );
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// The public items that rustdoc found, one a line, without what derives and compilers add to each.
fn items(json: &str) -> Result<String> {
    let found = Builder::from_rustdoc_json(json)
        .omit_blanket_impls(true)
        .omit_auto_trait_impls(true)
        .omit_auto_derived_impls(true)
        .build()
        .with_context(|| format!("cannot read {json}: another version of rustdoc?"))?;
    Ok(found.items().fold(String::new(), |mut text, item| {
        let _ = writeln!(text, "{item}");
        text
    }))
}

/// What is in one list and not in the other.
fn changes(known: &str, items: &str) -> String {
    let (before, after): (BTreeSet<_>, BTreeSet<_>) = (known.lines().collect(), items.lines().collect());
    let gone = before.difference(&after).map(|item| format!("- {item}\n"));
    gone.chain(after.difference(&before).map(|item| format!("+ {item}\n"))).collect()
}

#[cfg(test)]
mod tests {
    use super::changes;

    #[test]
    fn what_goes_and_what_comes_is_shown() {
        assert_eq!(changes("fn a()\nfn b()\n", "fn a()\nfn b()\n"), "");
        assert_eq!(changes("fn a()\nfn b()\n", "fn b(u8)\nfn a()\n"), "- fn b()\n+ fn b(u8)\n");
    }
}
