//! Files that hold secrets.

use std::{io, path::Path};

/// Content of a file, and whether the file is kept as a secret should be.
pub(crate) struct Content {
    pub(crate) bytes: Vec<u8>,
    pub(crate) others_may_read: bool,
}

/// Reads a file, away from the thread that must not wait.
pub(crate) async fn read(path: &Path) -> Result<Content, String> {
    let owned = path.to_owned();
    let read = tokio::task::spawn_blocking(move || {
        let bytes = std::fs::read(&owned)?;
        Ok(Content { bytes, others_may_read: others_may_read(&std::fs::metadata(&owned)?) })
    });
    read.await
        .unwrap_or_else(|panic| Err(io::Error::other(panic)))
        .map_err(|error| format!("{} can not be read: {error}", path.display()))
}

#[cfg(unix)]
fn others_may_read(metadata: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::PermissionsExt;
    metadata.permissions().mode() & 0o004 != 0
}

#[cfg(not(unix))]
fn others_may_read(_metadata: &std::fs::Metadata) -> bool {
    false
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn open_permissions_are_seen_through_links() {
        let path = std::env::temp_dir().join(format!("coord-etcd-file-{:016x}", fastrand::u64(..)));
        let link = path.with_extension("link");
        std::fs::write(&path, "x").expect("is written");
        std::os::unix::fs::symlink(&path, &link).expect("is made");
        for (mode, open) in [(0o600, false), (0o640, false), (0o644, true)] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("is ours");
            assert_eq!(read(&link).await.expect("is read").others_may_read, open, "{mode:o}");
        }
        std::fs::remove_file(link).and_then(|()| std::fs::remove_file(path)).expect("are removed");
    }
}
