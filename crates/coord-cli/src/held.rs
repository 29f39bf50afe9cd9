//! A command that runs while a lock is held, or while an election is led: what is the same in both.

use std::{ffi::OsString, time::Duration};

use coord_api::{Error, FencingToken, Lost, Result};
use serde_json::{Value, json};

use crate::{
    child::{Child, Ended, Signals, Subject},
    exit::{Exit, Failure},
    out::Out,
};

/// A kind of thing that a command relies on, in words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    /// Name of its field in JSON, and of it in notes.
    pub(crate) noun: &'static str,
    /// Verb of the note that it was acquired.
    pub(crate) holding: &'static str,
    /// Names of the variables in the command's environment: for its name and for the token.
    pub(crate) variables: [&'static str; 2],
}

/// Lock or election that a command relies on.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    pub(crate) kind: Kind,
    pub(crate) name: &'a str,
    pub(crate) ttl: Duration,
    pub(crate) out: Out,
}

impl Held<'_> {
    /// Runs a command until it ends or the thing is lost, and then gives the thing back.
    pub(crate) async fn run<G: Future<Output = Result<()>>>(
        &self,
        (command, grace): (&[OsString], Duration),
        (token, ttl, lost): (FencingToken, Duration, Lost),
        signals: &mut Signals,
        give_back: impl FnOnce() -> G,
    ) -> Result<Exit, Failure> {
        let Self { kind: Kind { noun, holding, variables }, name, out, .. } = self;
        let token = token.get();
        self.out.detail(
            &self.event(json!({ "event": "acquired", "token": token, "ttl_seconds": ttl.as_secs() })),
            &format!("{holding} {noun} `{name}` with token {token} and a TTL of {} s", ttl.as_secs()),
        );
        let variables = [(variables[0], (*name).to_owned()), (variables[1], token.to_string())];
        let mut child = match Child::start(command, &variables, grace) {
            Ok(child) => child,
            Err(failure) => {
                self.given_back(give_back().await);
                return Err(failure);
            }
        };
        let subject = Subject::new(*out, json!({ *noun: name }), format!("{noun} `{name}`"));
        match child.wait_while(lost, &subject, signals).await {
            Ended::Lost => Ok(Exit::LOST),
            ended @ Ended::Exited(_) => Ok(self.given_back(give_back().await).unwrap_or(ended.exit())),
        }
    }

    fn event(&self, mut event: Value) -> Value {
        event[self.kind.noun] = self.name.into();
        event
    }

    /// Tells that it was given back. Returns an exit code if it turns out that the command did not have it all the time.
    fn given_back(&self, outcome: Result<()>) -> Option<Exit> {
        let Self { kind: Kind { noun, .. }, name, out, .. } = self;
        match outcome {
            Ok(()) => {
                out.detail(
                    &self.event(json!({ "event": "released" })),
                    &format!("gave {noun} `{name}` back"),
                );
                None
            }
            Err(Error::Lost { reason }) => {
                let json = self.event(json!({ "event": "lost", "reason": reason.to_string() }));
                let text = format!("{noun} `{name}` was lost, {reason}; CMD had ended by itself");
                out.note(&json, &text);
                Some(Exit::LOST)
            }
            // It is freed when its lease is over; what CMD did, it did while it was held.
            Err(error) => {
                let json = self.event(json!({ "event": "release_failed", "error": error.to_string() }));
                let seconds = self.ttl.as_secs() + u64::from(self.ttl.subsec_nanos() > 0);
                out.note(&json, &format!("{noun} `{name}` will be free within {seconds} s: {error}"));
                None
            }
        }
    }
}
