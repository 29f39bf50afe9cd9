//! The commands of README and `docs/cli.md` run as they are written.

use std::path::Path;

use crate::tools::{Shop, output, stderr, stdout};

/// The blocks of a document that are marked as shell, up to the next heading of the same level if one is given.
fn blocks(document: &str, heading: Option<&str>) -> Vec<String> {
    let mut part = document;
    if let Some(heading) = heading {
        let (_, rest) = document.split_once(heading).unwrap_or_else(|| panic!("no heading {heading:?}"));
        part = rest.split("\n## ").next().expect("a split has a first part");
    }
    let marked = part.split("```sh\n").skip(1);
    marked.map(|block| block.split("```").next().expect("a split has a first part").to_owned()).collect()
}

/// Runs all blocks in one folder, one after the other, as a reader would.
async fn run(blocks: &[String]) {
    assert!(!blocks.is_empty());
    let shop = Shop::open().await;
    let folder = tempfile::tempdir().expect("can be made");
    let program = Path::new(env!("CARGO_BIN_EXE_coord")).parent().expect("is in a folder");
    let path = format!("{}:{}", program.display(), std::env::var("PATH").expect("is set"));
    for block in blocks {
        let mut shell = tokio::process::Command::new("sh");
        shell.args(["-euxc", block]).current_dir(folder.path()).kill_on_drop(true);
        let output = output(shell.env("PATH", &path).env("COORD_URL", shop.url()).env("USER", "ann")).await;
        let (stdout, stderr) = (stdout(&output), stderr(&output));
        assert_eq!(output.status.code(), Some(0), "{block}\nstdout: {stdout}\nstderr: {stderr}");
    }
}

#[tokio::test]
async fn the_reference_runs_as_written() {
    run(&blocks(include_str!("../../../../docs/cli.md"), None)).await;
}

#[tokio::test]
async fn the_readme_runs_as_written() {
    run(&blocks(include_str!("../../../../README.md"), Some("\n## The command\n"))).await;
}

#[test]
fn the_exit_codes_of_help_are_those_of_the_reference() {
    let reference = include_str!("../../../../docs/cli.md");
    for code in ["0", "1", "2", "3", "4", "5", "69", "75", "76", "126, 127", "128+N"] {
        assert!(reference.contains(&format!("\n| {code} | ")), "{code}");
    }
}
