//! Which version of etcd the members run, and what is known to be wrong with it.

use std::collections::BTreeMap;

use coord_etcd::{Client, ServerVersion};

use super::finding::{Finding, Level};

pub(super) async fn examine(client: &Client) -> Vec<Finding> {
    let members = client.server_versions().await.into_iter();
    findings(members.map(|member| (member.endpoint, member.version.map_err(|error| error.to_string()))))
}

/// One for each version, since members usually run the same.
fn findings(members: impl IntoIterator<Item = (String, Result<ServerVersion, String>)>) -> Vec<Finding> {
    let (mut versions, mut silent) = (BTreeMap::<_, Vec<_>>::new(), Vec::new());
    for (endpoint, version) in members {
        match version {
            Ok(version) => versions.entry(version).or_default().push(endpoint),
            Err(error) => silent.push((endpoint, error)),
        }
    }
    let known = versions.into_iter().map(|(version, endpoints)| of_version(version, &endpoints.join(", ")));
    let unknown = silent.into_iter().map(|(endpoint, error)| {
        let advice =
            "is this member down, or cut off from here? While it is, the others have to do without it";
        Finding::new(
            Level::Warning,
            "server",
            format!("{endpoint} does not tell its version: {error}"),
            advice,
        )
    });
    known.chain(unknown).collect()
}

fn of_version(version: ServerVersion, endpoints: &str) -> Finding {
    let faults = version.faults();
    if faults.is_empty() {
        return Finding::ok("server", format!("etcd {version} at {endpoints}"));
    }
    let said = format!("etcd {version} at {endpoints}: {}", faults.join("; "));
    Finding::new(Level::Warning, "server", said, "update etcd, one member after the other")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_faults_and_silent_members_are_told() {
        let version = |text| Ok(ServerVersion::parse(text).expect("is a version"));
        let members = [
            ("a:1".to_owned(), version("3.7.0")),
            ("b:1".to_owned(), version("3.4.23")),
            ("c:1".to_owned(), version("3.7.0")),
            ("d:1".to_owned(), Err("connection refused".to_owned())),
        ];
        let [old, good, silent] = findings(members).try_into().expect("three findings");
        assert_eq!((good.level, good.said.as_str()), (Level::Ok, "etcd 3.7.0 at a:1, c:1"));
        assert_eq!(old.level, Level::Warning);
        assert!(old.said.starts_with("etcd 3.4.23 at b:1: it revokes leases"), "{}", old.said);
        assert!(
            silent.level == Level::Warning && silent.said.contains("d:1 does not tell"),
            "{}",
            silent.said
        );
    }
}
