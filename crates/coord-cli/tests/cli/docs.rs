//! The commands of the documents run as they are written.

use std::path::Path;

use crate::tools::{Shop, output, stderr, stdout};

/// Why a block is not run: it says so in a comment right before it, which readers of the page do not see.
const NOT_RUN: &str = "<!-- not run: ";

/// The blocks of a document that are marked as shell, but for those that say why they are not run.
fn blocks(document: &str) -> Vec<String> {
    let parts: Vec<&str> = document.split("```sh\n").collect();
    let run = parts.windows(2).filter(|pair| {
        let before = pair[0].trim_end().lines().next_back().unwrap_or_default();
        !(before.starts_with(NOT_RUN) && before.ends_with(" -->"))
    });
    run.map(|pair| pair[1].split("```").next().expect("a split has a first part").to_owned()).collect()
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
    for folder in [root.to_owned(), root.join("docs")] {
        for entry in folder.read_dir().expect("is a folder") {
            let path = entry.expect("can be read").path();
            if path.extension().is_some_and(|extension| extension == "md") {
                let document = std::fs::read_to_string(&path).expect("is text");
                assert!(
                    !document.contains("```bash") && !document.contains("```console"),
                    "{path:?}: say sh"
                );
                let blocks = blocks(&document);
                run(&blocks).await;
                (documents, ran) = (documents + 1, ran + blocks.len());
            }
        }
    }
    assert!(documents >= 7 && ran >= 10, "{ran} blocks of {documents} documents");
}

#[test]
fn a_block_is_run_unless_it_says_why_not() {
    let document =
        "a\n```sh\none\n```\n\n<!-- not run: it takes days -->\n```sh\ntwo\n```\nb\n```sh\nthree\n```\n";
    assert_eq!(blocks(document), ["one\n", "three\n"]);
}

#[test]
fn the_exit_codes_of_help_are_those_of_the_reference() {
    let reference = include_str!("../../../../docs/cli.md");
    for code in ["0", "1", "2", "3", "4", "5", "69", "75", "76", "126, 127", "128+N"] {
        assert!(reference.contains(&format!("\n| {code} | ")), "{code}");
    }
}
