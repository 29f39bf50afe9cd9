//! The floors of this crate, held by a test that reads the imports: a room imports only rooms below its own.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The rooms by floor, from the ground.
const FLOORS: &[&[&str]] = &[
    &["store"],
    &["keyspace"],
    &["request"],
    &["session", "watch"],
    &["queue", "commit", "registry"],
    &["lock", "election", "config", "ids"],
    &["client", "fuzz", "layers"],
];

/// Imports that go up or sideways all the same: a file, and the room. The list only shrinks.
const EXCEPTIONS: &[(&str, &str)] = &[];

fn floor(room: &str) -> usize {
    let found = FLOORS.iter().position(|rooms| rooms.contains(&room));
    found.unwrap_or_else(|| panic!("the room `{room}` is on no floor"))
}

/// Returns the rooms that a text imports from this crate, also within braces.
fn imported(code: &str) -> Vec<String> {
    let word = |text: &str| -> String {
        text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
    };
    let mut rooms = Vec::new();
    for rest in code.split("crate::").skip(1) {
        let Some(list) = rest.strip_prefix('{') else {
            rooms.push(word(rest));
            continue;
        };
        let (mut depth, mut is_first) = (1, true);
        for (at, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => is_first = true,
                _ if depth == 1 && is_first && c.is_ascii_alphabetic() => {
                    rooms.push(word(&list[at..]));
                    is_first = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    rooms
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("is a folder") {
        let path = entry.expect("is readable").path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn imports_in_braces_are_found() {
    let code = "use crate::store::Store;\nuse crate::{\n    keyspace::Keys,\n    request::{Look, backoff::{a, b}},\n    store,\n};";
    assert_eq!(imported(code), ["store", "keyspace", "request", "store"]);
}

#[test]
fn room_imports_only_what_is_below() {
    let source = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"));
    let (mut all, mut upward, mut used) = (Vec::new(), Vec::new(), Vec::new());
    files(source, &mut all);
    for path in all {
        let name = path.strip_prefix(source).expect("is below").display().to_string();
        let room = name.split(['/', '.']).next().expect("a split has a first part").to_owned();
        if ["lib", "layers"].contains(&&*room) {
            continue;
        }
        let code = fs::read_to_string(&path).expect("is text");
        for other in imported(&code) {
            if other == room || floor(&other) < floor(&room) {
                continue;
            }
            match EXCEPTIONS.iter().find(|(file, to)| *file == name && *to == other) {
                Some(exception) => used.push(*exception),
                None => upward.push(format!("{name} imports {other}")),
            }
        }
    }
    assert_eq!(upward, [""; 0]);
    let unused: Vec<_> = EXCEPTIONS.iter().filter(|exception| !used.contains(exception)).collect();
    assert!(unused.is_empty(), "no longer needed: {unused:?}");
}
