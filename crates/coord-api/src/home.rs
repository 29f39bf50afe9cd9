//! The store that a client works in, told apart from others.

use serde::{Deserialize, Serialize};

/// Store and namespace. Data kept outside of the store, such as the snapshot file of a live value, is so not
/// taken for that of another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Home {
    /// The namespace.
    pub namespace: String,
    /// The addresses that the client was given.
    pub addresses: Vec<String>,
    /// The store's own identity; `None` until the store was heard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
}

impl Home {
    /// A namespace at some addresses, for backends.
    pub fn new(namespace: impl Into<String>, addresses: impl IntoIterator<Item = String>) -> Self {
        Self { namespace: namespace.into(), addresses: addresses.into_iter().collect(), store: None }
    }

    /// Adds the store's own identity.
    #[must_use]
    pub fn of_store(mut self, store: impl Into<String>) -> Self {
        self.store = Some(store.into());
        self
    }

    /// Returns whether both are one store and namespace: by the store's own identity where both have heard
    /// it, else by an address in common.
    ///
    /// ```
    /// use coord_api::Home;
    /// let home = |addresses: &[&str]| Home::new("shop", addresses.iter().map(ToString::to_string));
    /// assert!(home(&["a:2379", "b:2379"]).is_same(&home(&["b:2379", "c:2379"])));
    /// assert!(!home(&["a:2379"]).is_same(&home(&["staging:2379"])));
    /// assert!(home(&["a:2379"]).of_store("7f").is_same(&home(&["proxy:80"]).of_store("7f")));
    /// assert!(!home(&["a:2379"]).of_store("7f").is_same(&home(&["a:2379"]).of_store("80")));
    /// ```
    pub fn is_same(&self, other: &Self) -> bool {
        let is_store = match (&self.store, &other.store) {
            (Some(one), Some(other)) => one == other,
            _ => self.addresses.iter().any(|address| other.addresses.contains(address)),
        };
        is_store && self.namespace == other.namespace
    }
}
