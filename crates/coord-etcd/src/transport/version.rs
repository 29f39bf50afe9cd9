//! The version of etcd that each member runs, and its known faults.

use std::{fmt, time::Duration};

use coord_api::{
    BoxError,
    backend::{Shown, innermost},
};
use http::{Request, header::HOST};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;
use tonic::transport::Endpoint;
use tower_service::Service;

use super::{
    endpoint::{Endpoints, Member},
    tls::TlsSource,
};

/// Time that one member has to answer.
const LIMIT: Duration = Duration::from_secs(5);
/// The largest answer that is read.
const MOST_BYTES: usize = 4096;

/// A version of etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerVersion {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
    /// The third number.
    pub patch: u32,
}

impl ServerVersion {
    /// Parses `3.5.33`, also with something after it such as `-rc.1`; `None` if it is no version.
    pub fn parse(text: &str) -> Option<Self> {
        let numbers = text.split_once(['-', '+']).map_or(text, |(numbers, _)| numbers);
        let mut numbers = numbers.split('.').map(|number| number.parse().ok());
        let version = Self { major: numbers.next()??, minor: numbers.next()??, patch: numbers.next()?? };
        numbers.next().is_none().then_some(version)
    }

    /// Returns the known faults of this version that concern users of coord, one line each. The recommended
    /// versions have none: 3.5.33, 3.6.14 and newer.
    pub fn faults(&self) -> Vec<&'static str> {
        KNOWN.iter().filter(|(mended, _)| self.is_before(mended)).map(|(_, fault)| *fault).collect()
    }

    /// Returns whether this version is older than the first good patch of its minor version. Minor versions
    /// older than the listed ones got no patch; newer ones had it from the beginning.
    fn is_before(&self, mended: &[(u32, u32)]) -> bool {
        let line = (self.major, self.minor);
        match mended.iter().find(|(minor, _)| line == (3, *minor)) {
            Some((_, patch)) => self.patch < *patch,
            None => mended.iter().all(|(minor, _)| line < (3, *minor)),
        }
    }
}

/// Faults by the patches of 3.x that mended them.
const KNOWN: &[(&[(u32, u32)], &str)] = &[
    (
        &[(4, 31), (5, 13)],
        "it revokes leases of living clients when the leader's disk stalls for some seconds (etcd issue 15247): locks \
         and ids are then lost, and registrations away for a moment",
    ),
    (
        &[(0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (5, 3)],
        "its data may become inconsistent when it is killed under load (etcd issue 13766)",
    ),
    (
        &[(4, 44), (5, 30), (6, 11)],
        "within a transaction users can read keys and attach leases that their roles do not cover (CVE-2026-44283)",
    ),
    (
        &[(5, 33), (6, 14)],
        "it lacks mended faults of leases and authentication: 3.5.33, 3.6.14 or newer are recommended",
    ),
];

impl fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// Answer of one endpoint about its version.
#[derive(Debug)]
#[non_exhaustive]
pub struct MemberVersion {
    /// The endpoint, as `host:port`.
    pub endpoint: String,
    /// Its version, or why it is not known.
    pub version: Result<ServerVersion, BoxError>,
}

/// Whom to ask, and how.
#[derive(Clone, Debug)]
pub(crate) struct Versions {
    pub(crate) endpoints: Endpoints,
    /// `None` for http.
    pub(crate) tls: Option<TlsSource>,
}

/// Answer of etcd to `GET /version`, as far as it matters here.
#[derive(Deserialize)]
struct Answer {
    etcdserver: String,
}

impl Versions {
    /// Asks every endpoint. It needs no user, and no permission.
    pub(crate) async fn ask(&self) -> Vec<MemberVersion> {
        let all = self.endpoints.all.iter().map(|member| async move {
            let asked = tokio::time::timeout(LIMIT, self.ask_one(member)).await;
            let version = asked.unwrap_or_else(|_| Err(format!("no answer within {LIMIT:?}").into()));
            MemberVersion { endpoint: member.authority(), version }
        });
        futures::future::join_all(all).await
    }

    async fn ask_one(&self, member: &Member) -> Result<ServerVersion, BoxError> {
        let body = match &self.tls {
            Some(tls) => ask_encrypted(member, tls).await?,
            None => ask_plainly(member).await?,
        };
        let answer: Answer = serde_json::from_slice(&body)?;
        ServerVersion::parse(&answer.etcdserver)
            .ok_or_else(|| format!("{} is no version", Shown(&answer.etcdserver)).into())
    }
}

/// Asks over HTTP/1.1, since etcd takes everything else on a port without TLS for gRPC.
async fn ask_plainly(member: &Member) -> Result<Vec<u8>, BoxError> {
    let stream = TcpStream::connect((member.host.as_str(), member.port)).await?;
    let (mut requests, connection) =
        hyper::client::conn::http1::handshake::<_, Empty<bytes::Bytes>>(TokioIo::new(stream)).await?;
    let request = Request::get("/version").header(HOST, member.authority()).body(Empty::new())?;
    let asked = async {
        let answer = requests.send_request(request).await?;
        read(answer.into_body()).await
    };
    // The connection is driven as long as it takes, and ends here.
    tokio::select! {
        answer = asked => answer,
        ended = connection => {
            ended?;
            Err("the connection was closed".into())
        }
    }
}

/// Asks over HTTP/2, over the same means as everything else: with TLS etcd tells requests apart by their
/// content.
async fn ask_encrypted(member: &Member, tls: &TlsSource) -> Result<Vec<u8>, BoxError> {
    let url = format!("https://{}", member.authority());
    let endpoint =
        Endpoint::from_shared(url.clone())?.connect_timeout(LIMIT).tls_config(tls.load().await?)?;
    let mut channel = endpoint.connect().await.map_err(|error| innermost(&error).to_string())?;
    let request = Request::get(format!("{url}/version")).body(tonic::body::Body::empty())?;
    std::future::poll_fn(|cx| channel.poll_ready(cx)).await?;
    read(channel.call(request).await?.into_body()).await
}

async fn read<B>(body: B) -> Result<Vec<u8>, BoxError>
where
    B: http_body::Body,
    B::Error: Into<BoxError>,
{
    Ok(Limited::new(body, MOST_BYTES).collect().await?.to_bytes().to_vec())
}

/// Warns of members whose version has known faults, when they can be reached; ends when `over` resolves.
pub(crate) async fn warn_of_faults(versions: Versions, over: impl Future<Output = ()>) {
    tokio::select! {
        () = over => {}
        () = warn_of_each(versions) => {}
    }
}

async fn warn_of_each(mut left: Versions) {
    for pause in [0, 10, 60, 600] {
        tokio::time::sleep(Duration::from_secs(pause)).await;
        let answers = left.ask().await;
        for answer in &answers {
            let Ok(version) = &answer.version else { continue };
            for fault in version.faults() {
                tracing::warn!(endpoint = answer.endpoint, %version, "etcd should be updated: {fault}");
            }
        }
        let unknown = answers.iter().filter(|answer| answer.version.is_err());
        let unknown: Vec<_> = unknown.map(|answer| answer.endpoint.as_str()).collect();
        left.endpoints.all.retain(|member| unknown.contains(&member.authority().as_str()));
        if left.endpoints.all.is_empty() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_parsed_strictly() {
        let version = |text| ServerVersion::parse(text).map(|version| version.to_string());
        assert_eq!(version("3.5.33").as_deref(), Some("3.5.33"));
        assert_eq!(version("3.7.0-rc.1+git").as_deref(), Some("3.7.0"));
        for bad in ["", "3", "3.5", "3.5.x", "3.5.1.2", "v3.5.1", "3..1", "-3.5.1"] {
            assert_eq!(version(bad), None, "{bad}");
        }
    }

    #[test]
    fn every_version_has_its_faults() {
        let (leases, data, roles, old) = ("15247", "13766", "CVE-2026-44283", "are recommended");
        let table: &[(&str, &[&str])] = &[
            ("3.3.27", &[leases, roles, old]),
            ("3.4.23", &[leases, roles, old]),
            ("3.4.31", &[roles, old]),
            ("3.4.44", &[old]),
            ("3.5.1", &[leases, data, roles, old]),
            ("3.5.12", &[leases, roles, old]),
            ("3.5.13", &[roles, old]),
            ("3.5.30", &[old]),
            ("3.5.33", &[]),
            ("3.6.0", &[roles, old]),
            ("3.6.11", &[old]),
            ("3.6.14", &[]),
            ("3.7.0", &[]),
            ("4.0.0", &[]),
        ];
        for (version, expected) in table {
            let faults = ServerVersion::parse(version).expect("is a version").faults();
            assert_eq!(faults.len(), expected.len(), "{version}: {faults:?}");
            for (fault, part) in faults.iter().zip(*expected) {
                assert!(fault.contains(part), "{version}: {fault}");
            }
        }
    }
}
