//! Certificates of a test's own, good ones and all kinds of bad ones, in files that can be replaced.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use coord_etcd::TlsFiles;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A folder with an authority, a server's certificate and a client's, each as PEM. It is removed when this is dropped.
#[derive(Debug)]
pub struct Certs {
    folder: PathBuf,
    authority: Authority,
    other: Authority,
}

/// What is special about a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cert {
    /// Nothing.
    Good,
    /// It expired yesterday.
    Expired,
    /// It expires so long after it was made.
    ExpiresIn(Duration),
    /// It is for another host.
    WrongName,
    /// It was signed by an authority that nobody trusts.
    Untrusted,
}

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("has a source of chance");
        Self(CertifiedIssuer::self_signed(params, key).expect("is good"))
    }
}

impl Certs {
    /// A new authority, with a good certificate for a server on loopback and for the client `client`.
    ///
    /// # Panics
    /// When the folder can not be written.
    #[must_use]
    pub fn new() -> Self {
        let folder = std::env::temp_dir().join(format!(
            "coord-tests-certs-{}-{:016x}",
            std::process::id(),
            fastrand::u64(..)
        ));
        fs::create_dir(&folder).expect("temporary files can be written");
        let certs = Self { folder, authority: Authority::new("ca"), other: Authority::new("other ca") };
        certs.write("ca.pem", &certs.authority.0.pem());
        certs.write("other-ca.pem", &certs.other.0.pem());
        certs.server(Cert::Good);
        certs.client("client", Cert::Good);
        certs
    }

    /// Where the files are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The path of one file.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// What lets etcd sign tokens with the server's key, each good for `ttl` seconds at most: a value of `--auth-token`.
    #[must_use]
    pub fn signed_tokens(&self, ttl: u32) -> String {
        let (public, private) = (self.path("server.pem"), self.path("server.key"));
        let (public, private) = (public.display(), private.display());
        format!("jwt,pub-key={public},priv-key={private},sign-method=ES256,ttl={ttl}s")
    }

    /// Replaces the server's certificate; etcd reads it for each new connection.
    pub fn server(&self, kind: Cert) {
        let names = match kind {
            Cert::WrongName => vec!["elsewhere.example".to_owned()],
            _ => vec!["127.0.0.1".to_owned(), "localhost".to_owned()],
        };
        self.issue("server", "etcd", names, kind);
    }

    /// Replaces the client's certificate, which is for the user `user`.
    pub fn client(&self, user: &str, kind: Cert) {
        self.issue("client", user, Vec::new(), kind);
    }

    /// How a client finds the files: with the authority, and without a certificate of its own.
    pub fn trusted(&self) -> TlsFiles {
        let mut files = TlsFiles::default();
        files.ca_file = Some(self.path("ca.pem"));
        files
    }

    /// As [`trusted`](Self::trusted), with the client's certificate.
    pub fn mutual(&self) -> TlsFiles {
        let mut files = self.trusted();
        files.cert_file = Some(self.path("client.pem"));
        files.key_file = Some(self.path("client.key"));
        files
    }

    fn issue(&self, name: &str, common_name: &str, alternatives: Vec<String>, kind: Cert) {
        let now = SystemTime::now();
        let (from, to) = match kind {
            Cert::Expired => (now - 10 * DAY, now - DAY),
            Cert::ExpiresIn(life) => (now - DAY, now + life),
            Cert::Good | Cert::WrongName | Cert::Untrusted => (now - DAY, now + 365 * DAY),
        };
        let mut params = CertificateParams::new(alternatives).expect("the names are good");
        params.distinguished_name.push(DnType::CommonName, common_name);
        (params.not_before, params.not_after) = (from.into(), to.into());
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().expect("has a source of chance");
        let authority = if kind == Cert::Untrusted { &self.other } else { &self.authority };
        let certificate = params.signed_by(&key, &authority.0).expect("is good");
        self.write(&format!("{name}.key"), &key.serialize_pem());
        self.write(&format!("{name}.pem"), &certificate.pem());
    }

    /// As certificate managers do it: whoever reads sees the old file or the new one.
    fn write(&self, name: &str, content: &str) {
        let beside = self.path(&format!("{name}.new"));
        let written = write_private(&beside, content).and_then(|()| fs::rename(&beside, self.path(name)));
        written.expect("temporary files can be written");
    }
}

impl Default for Certs {
    fn default() -> Self {
        Self::new()
    }
}

fn write_private(path: &Path, content: &str) -> io::Result<()> {
    fs::write(path, content)?;
    #[cfg(unix)]
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(())
}

impl Drop for Certs {
    fn drop(&mut self) {
        // A failure leaves a folder among the temporary files, which no test result should depend on.
        let _ = fs::remove_dir_all(&self.folder);
    }
}
