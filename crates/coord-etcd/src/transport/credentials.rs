//! Credentials of this client. They are asked for again before each authentication, so that a password can be
//! replaced while the service runs.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use async_trait::async_trait;
use coord_api::BoxError;
use secrecy::{ExposeSecret, SecretString};

use super::files;

/// A user of etcd and its password, which is never printed.
#[derive(Clone, Debug)]
pub struct Credentials {
    username: String,
    password: SecretString,
}

impl Credentials {
    /// Makes the credentials of a user with its password.
    pub fn new(username: impl Into<String>, password: impl Into<SecretString>) -> Self {
        Self { username: username.into(), password: password.into() }
    }

    /// Returns the user.
    pub fn username(&self) -> &str {
        &self.username
    }

    pub(crate) fn password(&self) -> &str {
        self.password.expose_secret()
    }
}

/// Provider of credentials: a secret store, an environment, a file of your own form. Closures that return
/// such a future are providers too.
///
/// # Contract
/// The provider is asked when the client connects, and again whenever etcd no longer accepts the client's
/// token or credentials. This happens after a token was idle past its life, or after a password was changed.
/// The provider is then asked with growing pauses (0.1 s to about 2 s) until etcd accepts its answer.
///
/// The provider is asked by one task at a time. An answer that takes longer than the request timeout counts
/// as a failure. The future runs on the thread that renews the leases, so it must not block: give blocking
/// work to a thread of its own. Errors are shown in errors and logs, so they must not contain the secret.
///
/// # Cancel safety
/// The future may be dropped at any await point.
///
/// ```
/// use coord_api::BoxError;
/// use coord_etcd::{Credentials, EtcdConfig};
///
/// let config = EtcdConfig::new(["https://etcd-1:2379"]).credentials(|| async {
///     let password = std::env::var("ETCD_PASSWORD")?; // or a request to a secret store
///     Ok::<_, BoxError>(Credentials::new("shop", password))
/// });
/// # let _ = config;
/// ```
#[async_trait]
pub trait CredentialsProvider: Send + Sync {
    /// Returns the credentials as they are now.
    ///
    /// # Errors
    /// Whatever keeps them from being known now; it is asked again later.
    async fn credentials(&self) -> Result<Credentials, BoxError>;
}

#[async_trait]
impl<F, A> CredentialsProvider for F
where
    F: Fn() -> A + Send + Sync,
    A: Future<Output = Result<Credentials, BoxError>> + Send,
{
    async fn credentials(&self) -> Result<Credentials, BoxError> {
        self().await
    }
}

/// Source of the credentials of one client, as its configuration says.
#[derive(Clone)]
pub(crate) enum Source {
    Fixed(Credentials),
    File(PasswordFile),
    Provider(Arc<dyn CredentialsProvider>),
}

/// Prints no provider: its own `Debug` may show a secret.
impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(credentials) => credentials.fmt(f),
            Self::File(file) => file.fmt(f),
            Self::Provider(_) => f.write_str("CredentialsProvider"),
        }
    }
}

impl Source {
    pub(crate) fn file(username: &str, path: &Path) -> Self {
        let warned = Arc::new(AtomicBool::new(false));
        Self::File(PasswordFile { username: username.to_owned(), path: path.to_owned(), warned })
    }

    pub(crate) async fn ask(&self) -> Result<Credentials, BoxError> {
        match self {
            Self::Fixed(credentials) => Ok(credentials.clone()),
            Self::File(file) => file.read().await,
            Self::Provider(provider) => provider.credentials().await,
        }
    }
}

/// A user whose password is the content of a file, without the line ends after it.
#[derive(Clone, Debug)]
pub(crate) struct PasswordFile {
    username: String,
    path: PathBuf,
    /// The warning about its permissions is given once.
    warned: Arc<AtomicBool>,
}

impl PasswordFile {
    async fn read(&self) -> Result<Credentials, BoxError> {
        let shown = self.path.display();
        let content = files::read(&self.path).await?;
        if content.others_may_read && !self.warned.swap(true, Relaxed) {
            tracing::warn!(file = %shown, "every user of this machine may read the password: make the file 0600 or 0640");
        }
        let text = String::from_utf8(content.bytes).map_err(|_| format!("{shown} is not UTF-8"))?;
        let password = text.trim_end_matches(['\r', '\n']);
        if password.is_empty() {
            return Err(format!("{shown} is empty").into());
        }
        Ok(Credentials::new(self.username.as_str(), password))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_file_is_read_anew_each_time() {
        let path = std::env::temp_dir().join(format!("coord-etcd-password-{:016x}", fastrand::u64(..)));
        let source = Source::file("shop", &path);
        let asked = async || source.ask().await.map_err(|error| error.to_string());

        let missing = asked().await.expect_err("does not exist");
        assert!(missing.contains(&*path.to_string_lossy()), "{missing}");
        for (content, password) in [("one", "one"), ("two\n", "two"), (" th ree \r\n", " th ree ")] {
            std::fs::write(&path, content).expect("is written");
            assert_eq!(asked().await.expect("is there").password(), password);
        }
        for (content, reason) in [(&b"\n"[..], "is empty"), (&[b's', 0xff], "is not UTF-8")] {
            std::fs::write(&path, content).expect("is written");
            let error = asked().await.expect_err(reason);
            assert!(error.contains(reason), "{error}");
        }
        std::fs::remove_file(&path).expect("is removed");
    }

    #[tokio::test]
    async fn closures_are_providers_and_nothing_prints_a_password() {
        let provider = || async { Ok(Credentials::new("shop", "s3cret")) };
        let sources = [
            Source::Fixed(Credentials::new("shop", "s3cret")),
            Source::Provider(Arc::new(provider)),
            Source::file("shop", Path::new("/run/secrets/etcd")),
        ];
        assert_eq!(sources[1].ask().await.expect("answers").password(), "s3cret");
        assert!(!format!("{sources:?}").contains("s3cret"), "{sources:?}");
    }
}
