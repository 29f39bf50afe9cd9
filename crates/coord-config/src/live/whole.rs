//! Values that are one unit, whatever they are made of.

use std::ops::Deref;

use serde::{Deserialize, Deserializer, Serialize};

/// By which a merging reader knows a [`Whole`].
pub(super) const WHOLE: &str = "$coord_config::Whole";

/// A value of which layers of a [live value](crate::LiveBuilder::over) take no parts: the highest that has it counts
/// whole. Structs are merged field by field elsewhere, which is wrong for fields that only fit together.
///
/// For one field, [`whole`] does without the type. In JSON it is the value itself.
///
/// ```
/// use coord_api::{ConfigExt, Provider};
/// use coord_config::LiveExt;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Range { from: Option<u32>, to: Option<u32> }
///
/// #[derive(Serialize, Deserialize)]
/// struct Limits {
///     #[serde(deserialize_with = "coord_config::whole")]
///     ports: Range,
///     rooms: u32,
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
/// # let config = coord_memory::Store::new().client().config();
/// let default = Limits { ports: Range { from: Some(1), to: Some(9) }, rooms: 5 };
/// config.set("limits", &serde_json::json!({ "ports": { "from": 80 } })).await?;
/// let limits = config.live("limits").default_fields(default).start().await?.current();
/// assert_eq!((limits.ports.from, limits.ports.to, limits.rooms), (Some(80), None, 5));
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename = "$coord_config::Whole")]
pub struct Whole<T>(pub T);

impl<T> Deref for Whole<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// Reads a field as a [`Whole`], for `#[serde(deserialize_with = "coord_config::whole")]`.
///
/// # Errors
/// Errors of the field's type.
pub fn whole<'de, D: Deserializer<'de>, T: Deserialize<'de>>(json: D) -> Result<T, D::Error> {
    Whole::deserialize(json).map(|Whole(value)| value)
}
