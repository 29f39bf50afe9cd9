//! Elections: the head of a queue leads. The entries are those of etcd's own election service, so candidates of both are
//! in one election.

mod entry;
mod observe;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use coord_api::{
    Candidate, ElectionName, Elections, FencingToken, Result, Term, Watch,
    backend::{
        Candidacy,
        waiting::{Queue, wait_for_turn},
    },
};
use tokio::time::Instant;

use crate::{
    keyspace::Keys,
    queue::{Entrant, Queues, Ticket},
    request::{Kept, timer},
    store::{KeyValue, Range, Revision},
    watch::Hub,
};
use entry::Entry;

/// The elections of one client.
#[derive(Debug)]
pub(crate) struct KvElections {
    pub(crate) queues: Kept<Queues>,
    pub(crate) hub: Arc<Hub>,
}

/// The queue of one candidate.
struct Candidates<'a> {
    queues: &'a Kept<Queues>,
    candidacy: &'a Candidacy,
    entrant: Entrant,
}

impl Queue for Candidates<'_> {
    type Place = Ticket;

    async fn enter(&self) -> Result<Ticket> {
        let Candidacy { election, ttl, .. } = self.candidacy;
        let queue = self.queues.keys.election(election);
        // Boxed, since entering takes far more memory than waiting, which can take long.
        Box::pin(Ticket::enter_as(self.queues, queue, *ttl, &self.entrant)).await
    }

    async fn pause(&self) {
        // Many lose their places at one moment. If the client is closed, the next request tells.
        let pause = timer::sleep(Duration::from_millis(fastrand::u64(20..150)));
        tokio::select! {
            () = self.queues.closed() => {}
            () = pause => {}
        }
    }
}

#[async_trait]
impl Elections for KvElections {
    async fn campaign(&self, election: &str, ttl: Duration, value: Bytes) -> Result<Term> {
        let candidacy = Candidacy::parse(election, ttl, value)?;
        let (queues, asked) = (&self.queues, Instant::now());
        let entrant = Entrant::Candidate(candidacy.value[..].into());
        let ticket = wait_for_turn(&Candidates { queues, candidacy: &candidacy, entrant }).await?;
        let token = token(ticket.created());
        tracing::debug!(election = %candidacy.election, %token, waited = ?asked.elapsed(), "leads");
        let (key, entry) = (ticket.key().to_owned(), Entry::of(queues, &candidacy.election, &ticket));
        Ok(Term::new(candidacy.election, key, token, ticket.into_place(), entry))
    }

    async fn candidates(&self, election: &str) -> Result<Vec<Candidate>> {
        let name = ElectionName::parse(election)?;
        self.queues.check_open()?;
        Ok(read(&self.queues, &name).await?.into_iter().map(|(_, candidate)| candidate).collect())
    }

    async fn elections(&self) -> Result<BTreeMap<String, Vec<Candidate>>> {
        let queues = &self.queues;
        queues.check_open()?;
        let all = Range::Prefix(queues.keys.elections().into());
        let (_, mut entries) = queues.read("list elections", &all).await?;
        entries.sort_by_key(|kv| kv.create_revision);
        let mut by_name = BTreeMap::<_, Vec<_>>::new();
        for candidate in entries.iter().filter_map(candidate) {
            if let Some(name) = queues.keys.election_of(&candidate.key) {
                by_name.entry(name.to_string()).or_default().push(candidate);
            }
        }
        Ok(by_name)
    }

    async fn watch_leader(&self, election: &str) -> Result<Watch<Option<Candidate>>> {
        let name = ElectionName::parse(election)?;
        let queue = self.queues.keys.election(&name);
        observe::watch(self.queues.with(&self.hub), queue.into()).await
    }
}

/// Reads the candidates of an election, with the revisions at which they were created, in that order.
async fn read(queues: &Queues, election: &ElectionName) -> Result<Vec<(Revision, Candidate)>> {
    let queue = Range::Prefix(queues.keys.election(election).into());
    let (_, mut entries) = queues.read("list candidates", &queue).await?;
    entries.sort_by_key(|kv| kv.create_revision);
    Ok(entries.iter().filter_map(|kv| Some((kv.create_revision, candidate(kv)?))).collect())
}

/// Reads one key of an election. A key that is not UTF-8 was not written by a program that uses the keys as an election.
fn candidate(kv: &KeyValue) -> Option<Candidate> {
    let key = kv.key_str().ok()?;
    Some(Candidate::new(Keys::owner_of(key), key, token(kv.create_revision), kv.value.clone()))
}

/// Returns the token of a term: a later candidate's entry is created at a larger revision.
fn token(created: Revision) -> FencingToken {
    FencingToken::new(u64::try_from(created).expect("revisions are not negative"))
}
