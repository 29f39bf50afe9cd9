//! Under which roots of the store the four areas live.

use coord_api::{Error, Namespace, Result, backend::Shown};
use serde::Deserialize;

/// Under which roots of the store the four areas live.
///
/// In JSON: `"namespace"`, `"go_original"`, or the roots themselves:
///
/// ```
/// use coord_kv::Layout;
/// let layout: Layout = serde_json::from_str(r#"{
///     "roots": { "locks": "/leases/locks", "services": "/discovery", "config": "/settings", "ids": "/ids" }
/// }"#)?;
/// assert!(matches!(layout, Layout::Roots(_)));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Layout {
    /// `/<namespace>/locks`, `/<namespace>/services`, `/<namespace>/config`, `/<namespace>/ids`.
    #[default]
    Namespace,
    /// Layout of the Go original, so that Go and Rust processes are one fleet: `/locks`, `/services`,
    /// `/config`, `/im-infra/allocators`.
    GoOriginal,
    /// Any roots.
    Roots(Roots),
}

/// A root for each area: `/` and a name, none of them within another.
///
/// Keys that only coord reads, such as the marks of commits, are under `/<namespace>/internal` in every
/// layout.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Roots {
    /// The queues of locks.
    pub locks: String,
    /// The records of services.
    pub services: String,
    /// The config values.
    pub config: String,
    /// The taken instance ids.
    pub ids: String,
}

impl Roots {
    /// Makes the four roots.
    pub fn new(
        locks: impl Into<String>,
        services: impl Into<String>,
        config: impl Into<String>,
        ids: impl Into<String>,
    ) -> Self {
        Self { locks: locks.into(), services: services.into(), config: config.into(), ids: ids.into() }
    }
}

/// Checked roots, each ending in `/`.
#[derive(Clone, Debug)]
pub struct CheckedRoots {
    pub(crate) locks: String,
    pub(crate) services: String,
    pub(crate) config: String,
    pub(crate) ids: String,
    pub(crate) internal: String,
}

impl CheckedRoots {
    /// Checks the roots of a layout without any I/O.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the mistake.
    pub fn of(layout: &Layout, namespace: &str) -> Result<Self> {
        layout.check(namespace)
    }

    /// Returns roots without a namespace, for a store that one program has for itself: `locks/`, `services/`, `config/`, `ids/`
    /// and `internal/`.
    pub fn without_namespace() -> Self {
        let below = |area: &str| format!("{area}/");
        Self {
            locks: below("locks"),
            services: below("services"),
            config: below("config"),
            ids: below("ids"),
            internal: below("internal"),
        }
    }

    /// Returns a key that may be read with least privilege, to see whether the store answers.
    pub fn probe(&self) -> String {
        format!("{}probe", self.config)
    }
}

impl Layout {
    /// Checks the roots without any I/O.
    pub(crate) fn check(&self, namespace: &str) -> Result<CheckedRoots> {
        let namespace = Namespace::parse(namespace)?;
        let of_namespace = |area: &str| format!("/{namespace}/{area}");
        let roots = match self {
            Self::Namespace => Roots::new(
                of_namespace("locks"),
                of_namespace("services"),
                of_namespace("config"),
                of_namespace("ids"),
            ),
            Self::GoOriginal => Roots::new("/locks", "/services", "/config", "/im-infra/allocators"),
            Self::Roots(roots) => roots.clone(),
        };
        let internal = of_namespace("internal");
        let all = [&roots.locks, &roots.services, &roots.config, &roots.ids, &internal];
        for root in all {
            check_root(root)?;
        }
        for (n, one) in all.iter().enumerate() {
            for other in &all[n + 1..] {
                let (one, other) = (format!("{one}/"), format!("{other}/"));
                if one.starts_with(&other) || other.starts_with(&one) {
                    let reason = format!("has a root within another: {} and {}", Shown(&one), Shown(&other));
                    return Err(Error::invalid("layout", reason));
                }
            }
        }
        let below = |root: &str| format!("{root}/");
        Ok(CheckedRoots {
            locks: below(&roots.locks),
            services: below(&roots.services),
            config: below(&roots.config),
            ids: below(&roots.ids),
            internal: below(&internal),
        })
    }
}

fn check_root(root: &str) -> Result<()> {
    let refuse = |reason: String| Err(Error::invalid("layout", reason));
    let Some(name) = root.strip_prefix('/') else {
        return refuse(format!("has the root {}, which does not begin with `/`", Shown(root)));
    };
    match Namespace::parse(name) {
        Ok(_) => Ok(()),
        Err(Error::InvalidArgument { reason, .. }) => refuse(format!("has a root whose name {reason}")),
        Err(other) => Err(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(locks: &str, services: &str) -> String {
        let layout = Layout::Roots(Roots::new(locks, services, "/config", "/ids"));
        layout.check("shop").expect_err("is bad").to_string()
    }

    #[test]
    fn presets() {
        let roots = Layout::Namespace.check("shop").expect("is good");
        assert_eq!((roots.locks.as_str(), roots.ids.as_str()), ("/shop/locks/", "/shop/ids/"));
        let roots = Layout::GoOriginal.check("coord").expect("is good");
        let all = [roots.locks, roots.services, roots.config, roots.ids, roots.internal];
        assert_eq!(all, ["/locks/", "/services/", "/config/", "/im-infra/allocators/", "/coord/internal/"]);
    }

    #[test]
    fn bad_roots_are_refused() {
        let table = [
            (refused("locks", "/services"), "does not begin with `/`"),
            (refused("/", "/services"), "empty"),
            (refused("/locks/", "/services"), "begins or ends with"),
            (refused("/a//b", "/services"), "empty segment"),
            (refused("/same", "/same"), "has a root within another: `/same/` and `/same/`"),
            (refused("/a", "/a/b"), "has a root within another: `/a/` and `/a/b/`"),
            (refused("/shop/internal/x", "/services"), "has a root within another"),
        ];
        for (message, expected) in table {
            assert!(message.starts_with("invalid layout: ") && message.contains(expected), "{message}");
        }
        assert!(Layout::Roots(Roots::new("/a", "/ab", "/config", "/ids")).check("shop").is_ok());
    }

    #[test]
    fn names_in_json() {
        let read = |json: &str| serde_json::from_str::<Layout>(json);
        assert_eq!(read(r#""go_original""#).expect("is good"), Layout::GoOriginal);
        assert!(read(r#"{"roots":{"locks":"/l"}}"#).is_err(), "each area needs its root");
    }
}
