//! The commands of the documents run as they are written.

use std::path::Path;

use crate::tools::{Shop, output, stderr, stdout};

/// Why a block is not run: it says so in a comment right before it, which readers of the page do not see.
const NOT_RUN: &str = "<!-- not run: ";

/// What blocks may be. Anything else could be commands that no test sees.
const KINDS: [&str; 6] = ["sh", "json", "rust", "rust,no_run", "text", "toml"];

/// The blocks of a document that are marked as shell, but for those that say why they are not run.
fn blocks(document: &str) -> Vec<String> {
    let (mut run, mut before, mut lines) = (Vec::new(), "", document.lines());
    while let Some(line) = lines.next() {
        if let Some(kind) = line.trim_start().strip_prefix("```") {
            assert!(KINDS.contains(&kind), "a block of kind {kind:?}; there are {KINDS:?}");
            let block: Vec<_> = lines.by_ref().take_while(|line| line.trim() != "```").collect();
            let why = before.strip_prefix(NOT_RUN).and_then(|rest| rest.strip_suffix("-->"));
            if kind == "sh" && why.is_none_or(|why| why.trim().is_empty()) {
                run.push(block.join("\n"));
            }
        }
        if !line.trim().is_empty() {
            before = line.trim();
        }
    }
    run
}

/// Runs all blocks in one folder, one after the other, as a reader would.
async fn run(blocks: &[String]) {
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
async fn every_command_of_the_documents_runs_as_written() {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let (mut documents, mut ran) = (0, 0);
    let crates =
        root.join("crates").read_dir().expect("is a folder").map(|entry| entry.expect("can be read").path());
    for folder in [root.to_owned(), root.join("docs")].into_iter().chain(crates) {
        for entry in folder.read_dir().expect("is a folder") {
            let path = entry.expect("can be read").path();
            if path.extension().is_some_and(|extension| extension == "md") {
                let document = std::fs::read_to_string(&path).expect("is text");
                let blocks = blocks(&document);
                run(&blocks).await;
                (documents, ran) = (documents + 1, ran + blocks.len());
            }
        }
    }
    assert!(documents >= 20 && ran >= 10, "{ran} blocks of {documents} documents");
}

#[test]
fn a_block_is_run_unless_it_says_why_not() {
    let document = "a\n```sh\none\n```\n\n<!-- not run: it takes days -->\n\n```sh\ntwo\n```\nb\n\
        <!-- not run:  -->\n```sh\nthree\n```\n```text\nfour\n```\n```sh\nfive\n```\n";
    assert_eq!(blocks(document), ["one", "three", "five"]);
}

#[test]
fn commands_are_not_hidden_in_another_kind_of_block() {
    for kind in ["", "bash", "shell", "console", "sh,ignore", "SH"] {
        let document = format!("```{kind}\none\n```\n");
        assert!(std::panic::catch_unwind(|| blocks(&document)).is_err(), "{kind}");
    }
}

#[test]
fn the_exit_codes_of_help_are_those_of_the_reference() {
    let reference = include_str!("../../../../docs/cli.md");
    for code in ["0", "1", "2", "3", "4", "5", "69", "75", "76", "126, 127", "128+N"] {
        assert!(reference.contains(&format!("\n| {code} | ")), "{code}");
    }
}
