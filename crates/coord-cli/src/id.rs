//! `coord id`: a command that runs while it has an instance id of its own, and a look at who has which.

use std::{ffi::OsString, sync::Arc, time::Duration};

use clap::{Args, Subcommand};
use coord_api::{Error, IdHolder, IdOptions, InstanceIdAllocator, InstanceIds, LossReason, Provider, Result};
use serde_json::{Value, json};

use crate::{
    child::{self, Child, Ended, Signals, Subject},
    connect::duration,
    exit::{self, Exit, Failure},
    lock::{Patience, owner_line},
    out::{Out, rfc3339, shown, table},
};

#[derive(Args, Debug)]
pub(crate) struct IdArgs {
    #[command(subcommand)]
    command: IdCommand,
}

#[derive(Subcommand, Debug)]
enum IdCommand {
    /// Runs CMD while it holds an id that no other instance of the service has
    Acquire(Acquire),
    /// Shows who holds which id of a service
    List {
        /// The service
        service: String,
    },
}

#[derive(Args, Debug)]
#[command(after_long_help = exit::HELP)]
struct Acquire {
    /// Among whose instances the id is unique
    service: String,
    /// Ids are 1 to N-1
    #[arg(long, value_name = "N")]
    max: u32,
    /// Who asks: after a restart the same one gets the same id, if it is free or rests
    #[arg(long, value_name = "NAME")]
    identity: Option<String>,
    #[command(flatten)]
    patience: Patience,
    /// How long the id outlives a `coord` that is killed or cut off; it is renewed in the meantime
    #[arg(long, default_value = "30s", value_parser = duration)]
    ttl: Duration,
    /// How long CMD has between SIGTERM and SIGKILL when the id is lost
    #[arg(long, default_value = "5s", value_parser = duration)]
    grace: Duration,
    /// What to run: `COORD_INSTANCE_ID` is in its environment
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

impl IdArgs {
    /// What others shall see as the holder.
    pub(crate) fn label(&self) -> Option<String> {
        match &self.command {
            IdCommand::Acquire(acquire) => child::name(&acquire.command),
            IdCommand::List { .. } => None,
        }
    }

    /// How long an id lives, which is a setting of the connection.
    pub(crate) fn ttl(&self) -> Option<Duration> {
        match &self.command {
            IdCommand::Acquire(acquire) => Some(acquire.ttl),
            IdCommand::List { .. } => None,
        }
    }

    pub(crate) async fn call(self, provider: &dyn Provider, out: Out) -> Result<Exit, Failure> {
        let ids = provider.instance_ids();
        match self.command {
            IdCommand::Acquire(acquire) => acquire.call(&*ids, out).await,
            IdCommand::List { service } => list(&*ids, &service, out).await,
        }
    }
}

impl Acquire {
    async fn call(self, ids: &dyn InstanceIds, out: Out) -> Result<Exit, Failure> {
        let mut options = IdOptions::new(&self.service, self.max);
        options.identity.clone_from(&self.identity);
        let allocator = ids.allocator(options)?;
        let mut signals = Signals::listen()?;
        let acquired = tokio::select! {
            biased;
            heard = signals.next() => return Ok(Exit::of_signal(heard.signal.as_raw())),
            acquired = self.acquire(&allocator, out) => acquired?,
        };
        let Some(id) = acquired else {
            let json = json!({ "event": "not_acquired", "service": self.service, "max": self.max });
            out.note(&json, &format!("every id of `{}` is taken; CMD was not run", self.service));
            return Ok(Exit::NOT_ACQUIRED);
        };
        out.detail(
            &json!({ "event": "acquired", "service": self.service, "id": id }),
            &format!("holding id {id} of `{}`", self.service),
        );
        let lost = allocator.lost();
        // Lost and told at once, if it was lost since it was acquired.
        let lost = async { if let Some(lost) = lost { lost.await } else { LossReason::Expired } };
        let variables = [("COORD_INSTANCE_ID", id.to_string())];
        let fields = json!({ "service": self.service, "id": id });
        let subject = Subject::new(out, fields, format!("id {id} of `{}`", self.service));
        let ended = match Child::start(&self.command, &variables, self.grace) {
            Ok(mut child) => Ok(child.wait_while(lost, &subject, &mut signals).await),
            Err(failure) => Err(failure),
        };
        if let Ok(Ended::Lost) = ended {
            return Ok(Exit::LOST);
        }
        match allocator.release_id().await {
            Err(Error::Lost { reason }) => {
                let json = json!({
                    "event": "lost", "service": self.service, "id": id, "reason": reason.to_string(),
                });
                let text =
                    format!("id {id} of `{}` was lost, {reason}; CMD had ended by itself", self.service);
                out.note(&json, &text);
                return ended.map(|_| Exit::LOST);
            }
            Err(error) => out.note(
                &json!({ "event": "release_failed", "service": self.service, "error": error.to_string() }),
                &format!("id {id} of `{}` stays taken until its lease is over: {error}", self.service),
            ),
            Ok(()) => out.detail(
                &json!({ "event": "released", "service": self.service, "id": id }),
                &format!("gave id {id} of `{}` back", self.service),
            ),
        }
        ended.map(Ended::exit)
    }

    async fn acquire(
        &self,
        allocator: &Arc<dyn InstanceIdAllocator>,
        out: Out,
    ) -> Result<Option<std::num::NonZeroU32>, Failure> {
        match allocator.try_acquire_id().await {
            Err(Error::Exhausted { .. }) if self.patience.is_over_at_once() => return Ok(None),
            Err(Error::Exhausted { .. }) => {}
            answer => return Ok(Some(answer?)),
        }
        out.progress(&format!("waiting for an id of `{}`", self.service));
        let Some(wait) = self.patience.wait else {
            return Ok(Some(allocator.acquire_id().await?));
        };
        if let Ok(id) = tokio::time::timeout(wait, allocator.acquire_id()).await {
            return Ok(Some(id?));
        }
        // Time that is over is no answer: that every id is taken is for etcd to say.
        match allocator.try_acquire_id().await {
            Err(Error::Exhausted { .. }) => Ok(None),
            answer => Ok(Some(answer?)),
        }
    }
}

async fn list(ids: &dyn InstanceIds, service: &str, out: Out) -> Result<Exit, Failure> {
    let holders = ids.holders(service).await?;
    let json: Vec<Value> = holders.iter().map(holder_json).collect();
    out.result(&json, |to| {
        if holders.is_empty() {
            return writeln!(to, "no id of `{service}` is held");
        }
        let rows: Vec<[String; 4]> = holders.iter().map(row).collect();
        table(to, ["ID", "IDENTITY", "SINCE", "BY"], &rows)
    })?;
    Ok(Exit::OK)
}

fn since(holder: &IdHolder) -> Option<String> {
    holder.since.and_then(rfc3339)
}

fn holder_json(holder: &IdHolder) -> Value {
    json!({ "id": holder.id, "identity": holder.identity, "since": since(holder), "owner": holder.owner })
}

fn row(holder: &IdHolder) -> [String; 4] {
    let identity = holder.identity.as_deref().map_or_else(|| "-".into(), shown);
    let by = holder.owner.as_ref().map_or_else(|| "another program".into(), owner_line);
    [holder.id.to_string(), identity, since(holder).unwrap_or_else(|| "-".into()), by]
}
