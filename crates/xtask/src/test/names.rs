//! The names of the tests in a source file, as the harness would call them. Only as far as a filter needs them.

/// The tests in `text`, whose module is `module`.
pub(super) fn of(text: &str, module: &str) -> Vec<String> {
    let mut names = Vec::new();
    let (mut inner, mut is_test, mut area) = (String::new(), false, None);
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(" {")) {
            name.clone_into(&mut inner);
        } else if line == "}" {
            inner.clear();
        }
        let line = line.trim_start();
        // The conformance suite names an area, then its tests, which run once for each backend.
        if let Some(rest) = line.strip_prefix("tests! { \"") {
            area = rest.split('"').next().map(ToOwned::to_owned);
        }
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        }
        let Some((before, after)) = line.split_once("fn ") else { continue };
        let Some((name, parameters)) = after.split_once('(') else { continue };
        if let Some(area) = &area
            && before == "async "
            && parameters.contains(": &dyn World")
        {
            names.extend(["memory", "etcd"].map(|backend| format!("{backend}::{area}::{name}")));
        } else if std::mem::take(&mut is_test) {
            let path = [module, &inner, name];
            names.push(path.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("::"));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_named_by_their_modules() {
        let text = "#[test]\nfn one() {}\nfn helper() {}\nmod tests {\n    #[tokio::test(start_paused = true)]\n    \
                    async fn two() {}\n}\n#[test]\n#[ignore]\nfn three() {\n}\n";
        assert_eq!(of(text, "a::b"), ["a::b::one", "a::b::tests::two", "a::b::three"]);
        assert_eq!(of("#[test]\nfn one() {}", ""), ["one"]);
    }

    #[test]
    fn tests_of_the_suite_are_named_once_for_each_backend() {
        let text =
            "tests! { \"lock\";\n    /// Contract 5.\n    async fn fair(world: &dyn World) {\n    }\n}\n";
        assert_eq!(of(text, "lock::queue"), ["memory::lock::fair", "etcd::lock::fair"]);
    }
}
