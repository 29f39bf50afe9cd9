//! `coord top`: a page of who holds what and who is registered, which is read anew again and again.

mod page;

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal},
    time::Duration,
};

use clap::Args;
use coord_api::{Error, Provider, Result};
use ratatui::crossterm::event::{self, Event};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use self::page::{Next, Page, Seen};
use crate::{
    child::Signals,
    connect::duration,
    elect::election_json,
    exit::{Exit, Failure, with_causes},
    lock::queue_json,
    out::{Form, Out},
};

#[derive(Args, Debug)]
pub(crate) struct TopArgs {
    /// How often to look
    #[arg(long, default_value = "2s", value_parser = duration, value_name = "TIME")]
    interval: Duration,
    /// With --json: print what there is once, and end
    #[arg(long, requires = "json")]
    once: bool,
}

impl TopArgs {
    /// `place` says which store it is.
    pub(crate) async fn call(self, provider: &dyn Provider, place: &str, out: Out) -> Result<Exit, Failure> {
        if self.interval < Duration::from_millis(100) {
            return Err(Failure::usage("--interval is below 100ms, which loads etcd for nothing"));
        }
        match out.form {
            Form::Json => self.lines(provider, out).await,
            Form::Text if io::stdout().is_terminal() => self.page(provider, place).await,
            Form::Text => {
                Err(Failure::usage("`coord top` needs a terminal; --json prints lines for programs"))
            }
        }
    }

    async fn lines(self, provider: &dyn Provider, out: Out) -> Result<Exit, Failure> {
        let mut signals = Signals::listen()?;
        let mut wait = Duration::ZERO;
        loop {
            let seen = tokio::select! {
                biased;
                heard = signals.next() => return Ok(Exit::of_signal(heard.signal.as_raw())),
                seen = look_after(wait, provider) => seen,
            };
            match seen {
                Ok(seen) => out.line(&seen_json(&seen), "")?,
                Err(error) if self.once => return Err(error.into()),
                Err(error) => out.failure(&error.into()),
            }
            if self.once {
                return Ok(Exit::OK);
            }
            wait = self.interval;
        }
    }

    async fn page(self, provider: &dyn Provider, place: &str) -> Result<Exit, Failure> {
        let mut signals = Signals::listen()?;
        let mut page = Page::new(place);
        let mut terminal = Restored(ratatui::try_init()?);
        let mut keys = keys();
        // Not begun anew with each key, or who scrolls would see nothing new.
        let mut looking = Box::pin(look_after(Duration::ZERO, provider));
        loop {
            terminal.0.draw(|frame| page.draw(frame))?;
            let next = tokio::select! {
                biased;
                heard = signals.next() => return Ok(Exit::of_signal(heard.signal.as_raw())),
                event = keys.recv() => match event {
                    Some(event) => page.react(&event),
                    None => Next::Quit,
                },
                seen = &mut looking => {
                    page.update(seen.map_err(|error| with_causes(&error)));
                    looking = Box::pin(look_after(self.interval, provider));
                    Next::GoOn
                }
            };
            match next {
                Next::GoOn => {}
                Next::LookNow => looking = Box::pin(look_after(Duration::ZERO, provider)),
                Next::Quit => return Ok(Exit::OK),
            }
        }
    }
}

/// Gives the terminal back as it was, however this ends.
struct Restored(ratatui::DefaultTerminal);

impl Drop for Restored {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// What is typed. The terminal can only be read by a thread that blocks; it ends soon after nobody listens.
fn keys() -> mpsc::Receiver<Event> {
    let (sender, keys) = mpsc::channel(16);
    std::thread::spawn(move || {
        while !sender.is_closed() {
            let event = match event::poll(Duration::from_millis(100)) {
                Ok(true) => event::read(),
                Ok(false) => continue,
                Err(error) => Err(error),
            };
            let Ok(event) = event else { return };
            if sender.blocking_send(event).is_err() {
                return;
            }
        }
    });
    keys
}

/// Three reads, each as of one moment. A user that may not see elections sees none.
async fn look_after(wait: Duration, provider: &dyn Provider) -> Result<Seen> {
    tokio::time::sleep(wait).await;
    let elections = match provider.elections().elections().await {
        Err(Error::PermissionDenied { .. }) => BTreeMap::new(),
        elections => elections?,
    };
    let (locks, services) = (provider.lock().queues().await?, provider.registry().services().await?);
    Ok(Seen { locks, elections, services })
}

fn seen_json(seen: &Seen) -> Value {
    let locks: Vec<Value> = seen.locks.iter().map(|(name, queue)| queue_json(name, queue)).collect();
    let services = seen.services.iter();
    let services: Vec<Value> =
        services.map(|(name, instances)| json!({ "service": name, "instances": instances })).collect();
    let elections: Vec<Value> = seen.elections.iter().map(|(name, all)| election_json(name, all)).collect();
    json!({ "locks": locks, "elections": elections, "services": services })
}
