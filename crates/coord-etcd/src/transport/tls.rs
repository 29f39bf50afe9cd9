//! TLS: the files as they are when a connection is made, and what its failures mean.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use coord_api::{BoxError, Error, backend::innermost};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use super::{endpoint::Scheme, files};
use crate::options::TlsFiles;

/// Source of the settings for TLS, asked for each new connection.
#[derive(Clone, Debug)]
pub(crate) struct TlsSource {
    /// Without files, the system's authorities are trusted.
    files: Arc<TlsFiles>,
    /// The warning about the key's permissions is given once.
    warned: Arc<AtomicBool>,
}

impl TlsSource {
    pub(crate) fn new(files: Option<TlsFiles>) -> Self {
        Self { files: Arc::new(files.unwrap_or_default()), warned: Arc::default() }
    }

    /// Reads the settings as the files are now.
    ///
    /// # Errors
    /// Which file is missing, or is not what it should be; begins with [`FILES`].
    pub(crate) async fn load(&self) -> Result<ClientTlsConfig, BoxError> {
        let TlsFiles { ca_file, cert_file, key_file, server_name } = &*self.files;
        let mut tls = match ca_file {
            Some(path) => {
                ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(path, "CERTIFICATE").await?))
            }
            None => ClientTlsConfig::new().with_native_roots(),
        };
        if let (Some(cert), Some(key)) = (cert_file, key_file) {
            let (certificate, private) = (read(cert, "CERTIFICATE").await?, self.read_key(key).await?);
            tls = tls.identity(Identity::from_pem(certificate, private));
        }
        if let Some(name) = server_name {
            tls = tls.domain_name(name);
        }
        // A mismatch is reported now, with names. The connection would report it without.
        match Endpoint::from_static("https://etcd.invalid").tls_config(tls.clone()) {
            Ok(_) => Ok(tls),
            Err(error) => Err(format!("{FILES}{}: {}", self.names(), innermost(&error)).into()),
        }
    }

    async fn read_key(&self, path: &Path) -> Result<Vec<u8>, BoxError> {
        let (bytes, open) = read_pem(path, "PRIVATE KEY").await?;
        if open && !self.warned.swap(true, Relaxed) {
            tracing::warn!(file = %path.display(), "every user of this machine may read the private key: make the file 0600 or 0640");
        }
        Ok(bytes)
    }

    fn names(&self) -> String {
        let files = [&self.files.ca_file, &self.files.cert_file, &self.files.key_file];
        let names: Vec<_> = files.into_iter().flatten().map(|path| path.display().to_string()).collect();
        if names.is_empty() { "the system's authorities".to_owned() } else { names.join(", ") }
    }
}

/// Beginning of the errors of [`TlsSource::load`].
const FILES: &str = "the files for TLS can not be used: ";

async fn read(path: &Path, kind: &str) -> Result<Vec<u8>, BoxError> {
    Ok(read_pem(path, kind).await?.0)
}

/// Reads a file, and whether others may read it. The content is never a part of an error.
async fn read_pem(path: &Path, kind: &str) -> Result<(Vec<u8>, bool), BoxError> {
    let content = files::read(path).await.map_err(|error| format!("{FILES}{error}"))?;
    let marker = format!("{kind}-----");
    let has_one = content.bytes.windows(marker.len()).any(|window| window == marker.as_bytes());
    if !has_one {
        return Err(format!("{FILES}{} has no PEM `{kind}`", path.display()).into());
    }
    Ok((content.bytes, content.others_may_read))
}

const NO_TLS: &str = "the server does not speak TLS: use http endpoints, or enable TLS in the server";

/// Returns advice about a connection that failed for a reason of TLS; `None` for any other reason. `words`
/// are the messages of the error and its causes: the library has no types for most of it.
pub(crate) fn hint(words: &str) -> Option<String> {
    if let Some((_, files)) = words.split_once(FILES) {
        return Some(format!("{FILES}{files}"));
    }
    let known: &[(&[&str], &str)] = &[
        (
            &["certificate expired"],
            "the server's certificate has expired: renew it, or set the clock of this machine right",
        ),
        (
            &["certificate not valid yet", "NotValidYet"],
            "the server's certificate is not valid yet: set the clock of this machine right, or of the one that made it",
        ),
        (
            &["not valid for name", "NotValidForName"],
            "the server's certificate is for another name: use endpoints with a name that it has, \
             or set `server_name` in `tls`",
        ),
        (
            &["UnknownIssuer", "BadSignature"],
            "the server's certificate is of an authority that is not trusted: set `ca_file` in `tls` to the one \
             that signed it",
        ),
        (&["invalid peer certificate"], "the server's certificate is not accepted: replace it"),
        (
            &["received fatal alert", "closed after the TLS handshake"],
            "the server did not accept this client: if it asks for client certificates, set `cert_file` and `key_file` \
             in `tls` to a valid one of an authority that the server trusts",
        ),
        (&["corrupt message", "InvalidContentType"], NO_TLS),
        (&["TLS handshake: "], "the TLS handshake failed"),
    ];
    let is_told = |signs: &[&str]| signs.iter().any(|sign| words.contains(sign));
    known.iter().find(|(signs, _)| is_told(signs)).map(|(_, hint)| (*hint).to_owned())
}

/// Returns the error of a first connection. A silent server, or a handshake broken off, is a sign of TLS only
/// then. A server that has spoken before is just on its way down or up.
pub(crate) fn at_the_start(scheme: Scheme, error: Error) -> Error {
    let (sign, hint) = match scheme {
        Scheme::Http => (
            "closed before anything came",
            "the server closed the connection and said nothing: if it speaks TLS, use https endpoints",
        ),
        Scheme::Https => ("tls handshake eof", NO_TLS),
    };
    match error {
        Error::Unavailable { what, source: Some(source) } if source.to_string().contains(sign) => {
            Error::Tls { what, hint: hint.into(), source }
        }
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_failure_has_its_hint() {
        let table = [
            ("TLS handshake: invalid peer certificate: certificate expired: verification", "has expired"),
            ("invalid peer certificate: certificate not valid yet: verification", "not valid yet"),
            ("invalid peer certificate: certificate not valid for name \"127.0.0.1\"", "another name"),
            ("invalid peer certificate: UnknownIssuer", "set `ca_file`"),
            ("invalid peer certificate: BadEncoding", "is not accepted"),
            ("TLS handshake: received fatal alert: CertificateRequired", "set `cert_file` and `key_file`"),
            ("the connection was closed after the TLS handshake", "set `cert_file` and `key_file`"),
            ("received corrupt message of type InvalidContentType", "does not speak TLS"),
            ("TLS handshake: something new", "handshake failed"),
            ("the files for TLS can not be used: /x has no PEM `CERTIFICATE`", "/x has no PEM"),
        ];
        for (words, part) in table {
            let hint = hint(words).expect(words);
            assert!(hint.contains(part), "{words}: {hint}");
        }
        let broken = "the connection ended while TLS was being set up: tls handshake eof";
        for words in
            ["tcp connect error", "connection refused", "h2 protocol error", "no answer within 5s", broken]
        {
            assert_eq!(hint(words), None);
        }
        let error = || Error::Unavailable { what: "etcd".into(), source: Some(broken.into()) };
        assert!(matches!(at_the_start(Scheme::Https, error()), Error::Tls { hint, .. } if hint == NO_TLS));
        assert!(matches!(at_the_start(Scheme::Http, error()), Error::Unavailable { .. }));
    }

    #[tokio::test]
    async fn files_that_can_not_be_used_are_named_and_not_shown() {
        let path = std::env::temp_dir().join(format!("coord-etcd-tls-{:016x}.pem", fastrand::u64(..)));
        let load = async |ca: bool| {
            let mut files = TlsFiles::default();
            let place = if ca { &mut files.ca_file } else { &mut files.key_file };
            *place = Some(path.clone());
            files.cert_file = files.key_file.clone();
            let error = TlsSource::new(Some(files)).load().await.expect_err("can not be used");
            let text = error.to_string();
            assert!(text.starts_with(FILES) && text.contains(&*path.to_string_lossy()), "{text}");
            assert!(!format!("{text} {error:?}").contains("s3cret"), "{text}");
        };
        load(true).await;
        for content in [
            "s3cret",
            "-----BEGIN CERTIFICATE-----\ns3cret\n-----END CERTIFICATE-----\n",
            "-----BEGIN CERTIFICATE-----\ns3cret\n-----END CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\ns3cret\n-----END PRIVATE KEY-----\n",
        ] {
            std::fs::write(&path, content).expect("is written");
            load(false).await;
        }
        std::fs::remove_file(path).expect("is removed");
    }
}
