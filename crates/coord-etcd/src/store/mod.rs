//! etcd as a store: each request of coord's made by the client library, and what it answers in coord's words.

mod convert;
mod keep_alive;
mod watch;
mod watch_ids;

use std::{
    any::Any,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use coord_api::Result as ApiResult;
use coord_grpc::Made;
use coord_kv::store::{
    Attempts, Call, Description, Distance, Failure, GetAnswer, GetOptions, Granted, Header, Lateness,
    LeaseDetail, LeaseId, LeaseStatus, Limits, Observation, Op, OpResult, RenewalStream, Route, Store, Txn,
    TxnAnswer, WatchRequest, WatchStream,
};
use etcd_client::{KvClient, LeaseClient, LeaseGrantOptions, LeaseTimeToLiveOptions, WatchClient};
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};

use crate::{
    connect::Connection,
    error::{WHAT_TO_DO, classify},
    telemetry,
    transport::{
        auth::Auth, channel::noted, cluster::Cluster, endpoint::Member, local_connection::LocalConnection,
    },
};
use convert::{Origin, header};
use keep_alive::KeepAlives;

/// The largest answer that is accepted: a page of config values, each of the largest size. A revision is delivered to
/// watches whole, however many keys it changed.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// The limits of etcd as it is configured by default.
const LIMITS: Limits = Limits { operations: 128, bytes: 1_572_864 };

/// Returns what makes requests about keys over a client.
pub(crate) fn requests_of(client: &etcd_client::Client) -> KvClient {
    client.kv_client().max_decoding_message_size(MAX_ANSWER_BYTES)
}

/// The members of etcd, as one store.
pub(crate) struct EtcdStore {
    description: Description,
    kv: KvClient,
    local: Option<LocalConnection>,
    lease: LeaseClient,
    watch: WatchClient,
    auth: Option<Arc<Auth>>,
    keep_alives: KeepAlives,
    made: Made,
    cluster: Cluster,
    /// Time that one member has for one request, where there are others.
    try_limit: Option<Duration>,
}

/// Written by hand, since some handles of the client library print secrets.
impl fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdStore").field("description", &self.description).finish_non_exhaustive()
    }
}

/// Attempts at one request.
#[derive(Debug)]
struct EtcdAttempts {
    tries: coord_grpc::Attempts,
    /// Whether the request was tried over the connection of the caller's own runtime.
    was_local: AtomicBool,
    /// Whether the request was not sent over the connection of the caller's own runtime.
    was_unsent: AtomicBool,
}

impl Attempts for EtcdAttempts {
    fn member(&self) -> Option<String> {
        self.tries.instance()
    }

    fn count(&self) -> usize {
        self.tries.count()
    }

    fn takes_other_route(&self) -> bool {
        self.was_unsent.swap(false, Relaxed)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Returns what some attempts are.
fn own(attempts: &dyn Attempts) -> &EtcdAttempts {
    attempts.as_any().downcast_ref().expect("a store is given the attempts that it made")
}

fn tries(attempts: &dyn Attempts) -> &coord_grpc::Attempts {
    &own(attempts).tries
}

impl EtcdStore {
    /// Makes a store of a connection. Must run on the background runtime.
    pub(crate) fn new(
        connection: Connection,
        probe: String,
        request_timeout: Duration,
        try_limit: Option<Duration>,
    ) -> Self {
        let Connection { client, channel, local, auth, versions, made } = connection;
        let members = &versions.endpoints.all;
        let description = Description {
            name: "etcd",
            if_unreachable: WHAT_TO_DO,
            members: members.len(),
            addresses: members.iter().map(Member::authority).collect(),
            limits: LIMITS,
            lateness: Lateness::Possible,
            distance: Distance::Network,
        };
        let runtime = tokio::runtime::Handle::current();
        Self {
            description,
            kv: requests_of(&client),
            local,
            lease: client.lease_client(),
            watch: client.watch_client().max_decoding_message_size(MAX_ANSWER_BYTES),
            cluster: Cluster { versions, auth: auth.clone(), probe },
            auth,
            keep_alives: KeepAlives::new(channel, runtime, request_timeout),
            made,
            try_limit,
        }
    }

    fn failure(&self, call: Call<'_>, error: etcd_client::Error) -> Failure {
        classify(call.operation, self.try_limit.unwrap_or(call.limit), error)
    }

    /// Makes a request about keys; the first attempt over the connection of the caller's own runtime, if there is one.
    async fn about_keys<T, F>(
        &self,
        call: Call<'_>,
        request: impl FnOnce(KvClient) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let EtcdAttempts { tries, was_local, was_unsent } = own(call.attempts);
        let may_be_local = call.route == Route::Fastest && !was_local.swap(true, Relaxed);
        let local = self.local.as_ref().filter(|_| may_be_local).and_then(LocalConnection::kv);
        let is_local = local.is_some();
        let outcome = noted(tries, request(local.unwrap_or_else(|| self.kv.clone()))).await;
        // It was given hardly any time to be ready there.
        was_unsent.store(is_local && outcome.is_err() && tries.instance().is_none(), Relaxed);
        outcome.map_err(|error| self.failure(call, error))
    }

    /// Makes a request about leases.
    async fn about_leases<T>(
        &self,
        call: Call<'_>,
        request: impl Future<Output = Result<T, etcd_client::Error>>,
    ) -> Result<T, Failure> {
        noted(tries(call.attempts), request).await.map_err(|error| self.failure(call, error))
    }

    /// Makes a write that needs no transaction, which takes etcd longer.
    async fn write(&self, call: Call<'_>, op: &Op) -> Option<Result<(Header, OpResult), Failure>> {
        let result = match op {
            Op::Put { key, value, options } => {
                let options = convert::put_options(*options);
                let put = async |mut kv: KvClient| kv.put(&key[..], &value[..], options).await;
                let answer = self.about_keys(call, put).await;
                answer.map(|answer| (header(answer.header()), OpResult::Put))
            }
            Op::Delete { key } => {
                let delete = async |mut kv: KvClient| kv.delete(&key[..], None).await;
                let answer = self.about_keys(call, delete).await;
                answer.map(|answer| (header(answer.header()), OpResult::Delete(answer.deleted())))
            }
            Op::Get { .. } | Op::Txn(_) => return None,
        };
        Some(result)
    }
}

#[async_trait]
impl Store for EtcdStore {
    fn description(&self) -> &Description {
        &self.description
    }

    fn attempts(&self, avoid: Option<String>) -> Box<dyn Attempts> {
        Box::new(EtcdAttempts {
            tries: coord_grpc::Attempts::new().avoiding(avoid),
            was_local: AtomicBool::new(false),
            was_unsent: AtomicBool::new(false),
        })
    }

    async fn range(&self, call: Call<'_>, key: Vec<u8>, options: GetOptions) -> Result<GetAnswer, Failure> {
        let options = convert::get_options(options);
        let get = async |mut kv: KvClient| kv.get(key, Some(options)).await;
        self.about_keys(call, get).await.map(|answer| convert::get_answer(answer, Origin::Own))
    }

    async fn txn(&self, call: Call<'_>, txn: Txn) -> Result<TxnAnswer, Failure> {
        if let Txn { conditions, operations, otherwise } = &txn
            && let ([], [op], []) = (&conditions[..], &operations[..], &otherwise[..])
            && let Some(written) = self.write(call, op).await
        {
            let (header, result) = written?;
            return Ok(TxnAnswer { header, succeeded: true, results: vec![result] });
        }
        let txn = convert::txn(txn);
        let make = async |mut kv: KvClient| kv.txn(txn).await;
        self.about_keys(call, make).await.map(|answer| convert::txn_answer(&answer, Origin::Own))
    }

    async fn grant(&self, call: Call<'_>, lease: LeaseId, ttl: i64) -> Result<Granted, Failure> {
        let mut client = self.lease.clone();
        let options = LeaseGrantOptions::new().with_id(lease);
        let answer = self.about_leases(call, client.grant(ttl, Some(options))).await?;
        Ok(Granted { header: header(answer.header()), ttl: answer.ttl() })
    }

    async fn revoke(&self, call: Call<'_>, lease: LeaseId) -> Result<Header, Failure> {
        let mut client = self.lease.clone();
        let answer = self.about_leases(call, client.revoke(lease)).await?;
        Ok(header(answer.header()))
    }

    async fn lease(
        &self,
        call: Call<'_>,
        lease: LeaseId,
        detail: LeaseDetail,
    ) -> Result<LeaseStatus, Failure> {
        let mut client = self.lease.clone();
        let options =
            (detail == LeaseDetail::TimesAndKeys).then(|| LeaseTimeToLiveOptions::new().with_keys());
        let answer = self.about_leases(call, client.time_to_live(lease, options)).await?;
        Ok(LeaseStatus {
            header: header(answer.header()),
            granted: answer.granted_ttl(),
            left: answer.ttl(),
            keys: answer.keys().to_vec(),
        })
    }

    fn renewals(&self) -> Arc<dyn RenewalStream> {
        self.keep_alives.shared()
    }

    fn own_renewals(&self) -> Arc<dyn RenewalStream> {
        self.keep_alives.own()
    }

    fn leave_renewals(&self, stream: &Arc<dyn RenewalStream>) {
        self.keep_alives.leave(stream);
    }

    async fn watch(
        &self,
        attempts: &dyn Attempts,
        first: Vec<WatchRequest>,
    ) -> Result<Box<dyn WatchStream>, Failure> {
        let stream = watch::Stream::open(self.watch.clone(), tries(attempts), first).await?;
        Ok(Box::new(stream))
    }

    fn connections(&self) -> BoxStream<'static, ()> {
        let made = self.made.clone();
        stream::unfold(made, |mut made| async { made.next().await.then_some(((), made)) }).boxed()
    }

    fn credentials(&self) -> Option<u64> {
        self.auth.as_ref().map(|auth| auth.generation())
    }

    async fn check_members(&self) -> ApiResult<()> {
        self.cluster.check().await
    }

    fn observe(&self, observation: Observation) {
        telemetry::record(observation);
    }
}
