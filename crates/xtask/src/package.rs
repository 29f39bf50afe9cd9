//! `cargo xtask package`: every crate that can be published is packed, and builds with the Rust that it says.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::shell;

/// Files that every package has to carry along, since others read it without this repository.
const CARRIED: [&str; 3] = ["LICENSE-APACHE", "LICENSE-MIT", "README.md"];

const LIMIT: Duration = Duration::from_secs(120);

/// Packs all crates; `builds` also builds each from its package alone, which takes minutes.
pub(crate) fn run(builds: bool) -> Result<()> {
    let mut command = shell::cargo(["metadata", "--format-version", "1", "--all-features"]);
    let metadata: Value = serde_json::from_str(&shell::output(&mut command, LIMIT)?)?;
    needs_no_newer_rust(&metadata)?;
    let (published, others) = members(&metadata);
    for name in published {
        let mut listing = shell::cargo(["package", "--list", "--allow-dirty", "--package", name]);
        let listing = shell::output(&mut listing, LIMIT)?;
        if let Some(missing) = CARRIED.iter().find(|file| listing.lines().all(|line| line != **file)) {
            bail!("the package of {name} has no {missing}; its folder needs one");
        }
    }
    let mut package = shell::cargo(["package", "--workspace", "--allow-dirty"]);
    package.args(others.iter().flat_map(|name| ["--exclude", name]));
    package.env("PROTOC", crate::protoc::for_builds()?);
    if !builds {
        package.arg("--no-verify");
    }
    if !package.status().context("cannot start cargo")?.success() {
        bail!("a crate can not be packed; see the messages above");
    }
    Ok(())
}

/// Returns the crates of the workspace that are published, and the others. The others are its tools, and the facade, whose
/// name belongs to another crate on the public registry.
fn members<'a>(metadata: &'a Value) -> (Vec<&'a str>, Vec<&'a str>) {
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    // Packages of a registry have it as their source.
    let own = packages.iter().filter(|package| package["source"].is_null());
    let known = own.filter_map(|package| Some((package["name"].as_str()?, package["publish"].is_null())));
    let (published, others): (Vec<_>, Vec<_>) = known.partition(|(_, is_published)| *is_published);
    let names = |members: Vec<(&'a str, bool)>| members.into_iter().map(|(name, _)| name).collect();
    (names(published), names(others))
}

/// Checks that no dependency asks for a newer Rust than the workspace says it needs. For its own code clippy checks that.
fn needs_no_newer_rust(metadata: &Value) -> Result<()> {
    let ours = env!("CARGO_PKG_RUST_VERSION");
    let newer = newer(metadata, ours);
    if !newer.is_empty() {
        bail!("Cargo.toml says that Rust {ours} is enough, which is not so for {}", newer.join(", "));
    }
    Ok(())
}

/// The packages that need a newer Rust than this.
fn newer(metadata: &Value, ours: &str) -> Vec<String> {
    let numbers =
        |version: &str| -> Vec<u32> { version.split('.').filter_map(|number| number.parse().ok()).collect() };
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let newer = packages.iter().filter_map(|package| {
        let needed = package["rust_version"].as_str()?;
        let name = package["name"].as_str()?;
        // 1.88 and 1.88.0 are the same, and 1.88 is not below 1.88.0.
        let (needed_numbers, mut our_numbers) = (numbers(needed), numbers(ours));
        our_numbers.resize(needed_numbers.len().max(our_numbers.len()), 0);
        (needed_numbers > our_numbers).then(|| format!("{name}, which needs {needed}"))
    });
    newer.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{members, newer};

    #[test]
    fn who_needs_a_newer_rust_is_named() {
        let packages =
            [("a", json!("1.88")), ("b", json!("1.88.1")), ("c", json!(null)), ("d", json!("1.9"))];
        let packages = packages.map(|(name, version)| json!({ "name": name, "rust_version": version }));
        let metadata = json!({ "packages": packages });
        assert_eq!(newer(&metadata, "1.88"), ["b, which needs 1.88.1"]);
        assert_eq!(newer(&metadata, "1.89"), Vec::<String>::new());
    }

    #[test]
    fn what_says_that_it_is_not_published_is_left_out() {
        let package = |name: &str, source: Option<&str>, publish: Option<Vec<String>>| json!({ "name": name, "source": source, "publish": publish });
        let packages = [
            package("a", None, None),
            package("b", None, Some(vec![])),
            package("c", Some("registry"), None),
        ];
        let metadata = json!({ "packages": packages });
        assert_eq!(members(&metadata), (vec!["a"], vec!["b"]));
    }
}
