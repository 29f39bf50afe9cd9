//! `coord config diff`: what is different between two versions, compared as text, so that no number is read and rounded.

use std::sync::Arc;

use coord_api::{ConfigCenter, Version};
use coord_config::{Difference, HistoryExt};

use crate::{
    exit::{Exit, Failure},
    out::{Out, shown},
};

pub(super) async fn diff(
    center: &Arc<dyn ConfigCenter>,
    key: &str,
    from: u64,
    to: Option<u64>,
    out: Out,
) -> Result<Exit, Failure> {
    let to = match to {
        Some(to) => Version::new(to),
        None => match center.history(key).await?.first() {
            Some(latest) => latest.version,
            None => return Err(Failure::absent(format!("no version of `{key}` is recorded"))),
        },
    };
    let found = center.diff(key, Version::new(from), to).await?;
    out.result(&found, |to| found.iter().try_for_each(|difference| writeln!(to, "{}", line(difference))))?;
    Ok(Exit::OK)
}

/// Writes a difference such that a terminal acts on nothing in it.
fn line(difference: &Difference) -> String {
    let text = difference.to_string();
    shown(&text)
}
