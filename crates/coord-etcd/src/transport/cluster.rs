//! Endpoints of two clusters: a client of both would believe what neither has, so it refuses to go on, and says which.

use std::{sync::Arc, time::Duration};

use coord_api::{BoxError, Error, Result, backend::innermost};
use etcd_client::{Channel, GetOptions};
use tonic::transport::Endpoint;

use super::{
    auth::Auth,
    endpoint::{Member, Scheme},
    version::Versions,
};

/// Time that one member has to say of which cluster it is.
const LIMIT: Duration = Duration::from_secs(3);

/// Time that a client that connects waits until all members have said their cluster. Later answers are heard
/// in the background.
pub(crate) const AT_THE_START: Duration = Duration::from_millis(500);

/// Describes two members of different clusters, from the members that said theirs. A member that is away says
/// nothing.
fn difference(members: &[(String, u64)]) -> Option<String> {
    let (first, cluster) = members.first()?;
    let (second, other) = members.iter().find(|(_, other)| other != cluster)?;
    Some(format!(
        "`{first}` is of etcd cluster {cluster:x} and `{second}` of cluster {other:x}: all endpoints have to be of one cluster"
    ))
}

/// The members, to be asked one by one.
pub(crate) struct Cluster {
    pub(crate) versions: Versions,
    pub(crate) auth: Option<Arc<Auth>>,
    /// A key that this client may read.
    pub(crate) probe: String,
}

impl Cluster {
    /// Asks every endpoint of which cluster it is.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if two are of different clusters.
    pub(crate) async fn check(&self) -> Result<()> {
        let all = self.versions.endpoints.all.iter().map(|member| async move {
            let asked = tokio::time::timeout(LIMIT, self.cluster_of(member)).await;
            match asked {
                Ok(Ok(cluster)) => Some((member.authority(), cluster)),
                Ok(Err(error)) => {
                    tracing::debug!(endpoint = member.authority(), %error, "it is not known of which cluster it is");
                    None
                }
                Err(_elapsed) => None,
            }
        });
        let known: Vec<_> = futures::future::join_all(all).await.into_iter().flatten().collect();
        difference(&known).map_or(Ok(()), |reason| Err(Error::invalid("endpoints", reason)))
    }

    /// Asks one member, which need not know what the others know.
    async fn cluster_of(&self, member: &Member) -> Result<u64, BoxError> {
        let scheme = if self.versions.endpoints.scheme == Scheme::Https { "https" } else { "http" };
        let mut endpoint =
            Endpoint::from_shared(format!("{scheme}://{}", member.authority()))?.connect_timeout(LIMIT);
        if let Some(tls) = &self.versions.tls {
            endpoint = endpoint.tls_config(tls.load().await?)?;
        }
        let channel = endpoint.connect().await.map_err(|error| innermost(&error).to_string())?;
        let channel = Channel::Tonic(channel);
        let channel = self.auth.iter().fold(channel, |channel, auth| auth.on(channel));
        let client = etcd_client::Client::from_channel(channel, None).await?;
        let options = GetOptions::new().with_serializable().with_keys_only();
        let answer = client.kv_client().get(&*self.probe, Some(options)).await?;
        Ok(answer.header().map(etcd_client::ResponseHeader::cluster_id).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_of_two_clusters_are_named() {
        let member = |name: &str, cluster| (name.to_owned(), cluster);
        assert_eq!(difference(&[]), None);
        assert_eq!(difference(&[member("a:1", 7), member("b:1", 7)]), None);
        let reason = difference(&[member("a:1", 7), member("b:1", 7), member("c:1", 0xab)]).expect("differ");
        assert!(reason.starts_with("`a:1` is of etcd cluster 7 and `c:1` of cluster ab:"), "{reason}");
    }
}
