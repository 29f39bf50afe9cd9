//! State of a store that was restored.

use coord_memory::Store;
use coord_torture::history::{Name, Value};

/// The config values of the workloads, with their versions.
pub(crate) fn values(store: &Store) -> Vec<(Name, Value, u64)> {
    let keys = store.keys().into_iter().filter_map(|key| Some(key.strip_prefix("config/")?.to_owned()));
    let values = keys.filter_map(|key| {
        let (value, version) = store.get_raw(&format!("config/{key}"))?;
        // A foreign value is none of theirs.
        Some((key.into(), serde_json::from_slice(&value).ok()?, version))
    });
    values.collect()
}
