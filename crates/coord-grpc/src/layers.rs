//! Layers of this crate: each module imports from lower layers only. This test reads the `use` lines.

use std::{collections::BTreeSet, fs, path::Path};

/// Modules by layer, the lowest first. Modules of one layer do not know each other.
const LAYERS: [&[&str]; 7] = [
    &["attempts", "deadline", "outcome"],
    &["pick"],
    &["options"],
    &["discovery", "transport"],
    &["pool"],
    &["call", "health", "probe", "state"],
    &["connection"],
];

/// Returns the layer of a module of the crate's root.
fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|modules| modules.contains(&module))
}

/// Returns the first segments of all paths that begin with `crate::`, outside of comments.
fn imports(source: &str) -> BTreeSet<String> {
    let lines = source.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code = lines.collect::<Vec<_>>().join("\n");
    let mut found = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        if let Some(group) = rest.strip_prefix('{') {
            found.extend(group_heads(group));
        } else {
            found.insert(head(rest));
        }
    }
    found
}

/// Returns the first segment of each path in a group, whose brace is already open.
fn group_heads(group: &str) -> Vec<String> {
    let (mut depth, mut heads, mut starts) = (0_u32, Vec::new(), true);
    for (at, letter) in group.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => starts = true,
            letter if starts && !letter.is_whitespace() => {
                heads.push(head(&group[at..]));
                starts = false;
            }
            _ => {}
        }
    }
    heads
}

fn head(path: &str) -> String {
    path.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
}

/// Checks every file of a folder, and returns the violations.
fn check(folder: &Path, module: Option<&str>, violations: &mut Vec<String>) {
    for entry in fs::read_dir(folder).expect("the sources are here") {
        let path = entry.expect("is readable").path();
        let name = path.file_stem().expect("has a name").to_string_lossy().into_owned();
        let module = module.unwrap_or(&name);
        if path.is_dir() {
            check(&path, Some(module), violations);
            continue;
        }
        if matches!(module, "lib" | "layers") {
            continue;
        }
        let own = layer(module).unwrap_or_else(|| panic!("{module} has no layer"));
        for import in imports(&fs::read_to_string(&path).expect("is text")) {
            if import != module && layer(&import).is_none_or(|layer| layer >= own) {
                violations.push(format!("{} imports crate::{import}", path.display()));
            }
        }
    }
}

#[test]
fn modules_import_lower_layers_only() {
    let mut violations = Vec::new();
    check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), None, &mut violations);
    assert!(violations.is_empty(), "{violations:#?}");
}

#[test]
fn imports_are_found_in_groups_and_paths() {
    let source = "use crate::{\n    attempts::Attempts,\n    pick::{HashKey, ring::Ring},\n};\nuse crate::pool::Pool;\n\
                  // crate::comment\nfn f() { crate::call::call() }";
    assert_eq!(imports(source).into_iter().collect::<Vec<_>>(), ["attempts", "call", "pick", "pool"]);
}
