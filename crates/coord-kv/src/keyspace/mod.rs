//! The keys that coord uses: under which roots they are, how they are built and taken apart.

mod keys;
mod layout;

pub(crate) use keys::Keys;
pub use layout::CheckedRoots;
pub use layout::{Layout, Roots};
