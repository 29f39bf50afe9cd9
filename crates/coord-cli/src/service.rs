//! `coord service`: registers what is not written with coord, and shows what is registered.

use std::{collections::BTreeMap, ffi::OsString, io::Write, process::ExitStatus, time::Duration};

use clap::{Args, Subcommand};
use coord_api::{
    Error, Provider, Registration, RegistrationStatus, Result, ServiceEvent, ServiceInfo, ServiceRegistry,
};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    child::{self, Child, Event, Signals, Subject},
    connect::duration,
    exit::{Exit, Failure},
    out::{Out, shown, table},
    watch,
};

#[derive(Args, Debug)]
pub(crate) struct ServiceArgs {
    #[command(subcommand)]
    command: ServiceCommand,
}

#[derive(Subcommand, Debug)]
enum ServiceCommand {
    /// Registers an instance until CMD ends, or without CMD until a signal
    Register(Register),
    /// Shows the instances of a service, or of all services
    List {
        /// Only this service
        name: Option<String>,
    },
    /// Shows the instances of a service, then every change, until a signal
    Watch {
        /// The service
        name: String,
    },
}

#[derive(Args, Debug)]
struct Register {
    /// The service
    name: String,
    /// The instance, unique within the service
    #[arg(long)]
    id: String,
    /// Where clients reach it; an IPv6 address in brackets
    #[arg(long, value_name = "HOST:PORT", value_parser = address)]
    address: (String, u16),
    /// What clients shall know, for example zone=eu-1 or weight=2; may be repeated
    #[arg(long = "meta", value_name = "KEY=VALUE", value_parser = pair)]
    metadata: Vec<(String, String)>,
    /// How long the record outlives a `coord` that is killed or cut off; it is renewed in the meantime
    #[arg(long, default_value = "10s", value_parser = duration)]
    ttl: Duration,
    /// How long clients have to see that the instance leaves, before CMD gets the signal that ends it
    #[arg(long, default_value = "3s", value_parser = duration)]
    drain: Duration,
    /// How long what CMD has started may go on when CMD has ended, until it gets SIGKILL
    #[arg(long, default_value = "5s", value_parser = duration)]
    grace: Duration,
    /// What to run: `COORD_SERVICE_NAME` and `COORD_SERVICE_ID` are in its environment
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

fn address(text: &str) -> Result<(String, u16), String> {
    let (host, port) = text.rsplit_once(':').ok_or("write HOST:PORT")?;
    // `+1` is a number to Rust.
    let number = port.parse().ok().filter(|_| port.bytes().all(|digit| digit.is_ascii_digit()));
    let port = number.ok_or_else(|| format!("`{port}` is no port (1 to 65535)"))?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Ok((host.to_owned(), port))
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

impl ServiceArgs {
    /// What others shall see as the owner.
    pub(crate) fn label(&self) -> Option<String> {
        match &self.command {
            ServiceCommand::Register(register) => child::name(&register.command),
            _ => None,
        }
    }

    pub(crate) async fn call(self, provider: &dyn Provider, out: Out) -> Result<Exit, Failure> {
        let registry = provider.registry();
        match self.command {
            ServiceCommand::Register(register) => register.call(&*registry, out).await,
            ServiceCommand::List { name } => list(&*registry, name, out).await,
            ServiceCommand::Watch { name } => watch::show(registry.watch(&name), event_line, out).await,
        }
    }
}

impl Register {
    async fn call(self, registry: &dyn ServiceRegistry, out: Out) -> Result<Exit, Failure> {
        let (host, port) = self.address.clone();
        let mut info = ServiceInfo::new(&self.name, &self.id, host, port);
        info.metadata = self.metadata.iter().cloned().collect();
        let mut signals = Signals::listen()?;
        let registration = tokio::select! {
            biased;
            // Others may see it before its answer is here, so that it is as if the signal came right after.
            heard = signals.next() => return Ok(self.ended_by(heard.signal)),
            registration = registry.register(info, self.ttl) => registration?,
        };
        self.detail("registered", out);
        if self.command.is_empty() {
            self.alone(registration, &mut signals, out).await
        } else {
            self.with(registration, &mut signals, out).await
        }
    }

    /// Without a command: until a signal, or until another one has taken the id.
    async fn alone(
        &self,
        mut registration: Registration,
        signals: &mut Signals,
        out: Out,
    ) -> Result<Exit, Failure> {
        let lost = registration.lost();
        tokio::pin!(lost);
        let signal = loop {
            tokio::select! {
                biased;
                heard = signals.next() => break heard.signal,
                reason = &mut lost => {
                    self.tell_ended(&reason.to_string(), out);
                    return Ok(Exit::LOST);
                }
                status = registration.status_changed() => self.tell_status(status, out),
            }
        };
        // Nobody serves here, so there is nothing to wait for.
        match registration.deregister().await {
            Ok(()) => self.detail("deregistered", out),
            Err(Error::Lost { reason }) => {
                self.tell_ended(&reason.to_string(), out);
                return Ok(Exit::LOST);
            }
            Err(error) => return Err(error.into()),
        }
        Ok(self.ended_by(signal))
    }

    /// Without a command, to end it is what the signal is for.
    fn ended_by(&self, signal: Signal) -> Exit {
        if self.command.is_empty() && [Signal::INT, Signal::TERM].contains(&signal) {
            Exit::OK
        } else {
            Exit::of_signal(signal.as_raw())
        }
    }

    /// With a command: until it ends. A signal that would end it waits until clients have seen that it leaves.
    async fn with(
        &self,
        registration: Registration,
        signals: &mut Signals,
        out: Out,
    ) -> Result<Exit, Failure> {
        let variables = [("COORD_SERVICE_NAME", self.name.clone()), ("COORD_SERVICE_ID", self.id.clone())];
        let mut child = match Child::start(&self.command, &variables, self.grace) {
            Ok(child) => child,
            Err(failure) => {
                registration.deregister().await?;
                return Err(failure);
            }
        };
        let fields = json!({ "service": self.name, "id": self.id });
        let subject = Subject::new(out, fields, format!("instance `{}` of `{}`", self.id, self.name));
        let lost = registration.lost();
        tokio::pin!(lost);
        let mut told = false;
        let ending = loop {
            let event = tokio::select! {
                biased;
                // The command serves all the same, and whoever calls it is served.
                reason = &mut lost, if !told => {
                    told = true;
                    self.tell_ended(&reason.to_string(), out);
                    continue;
                }
                event = child.event(signals) => event,
            };
            match event {
                Event::Ended(status) => {
                    self.leave(registration, out).await;
                    return Ok(finish(child, status, &subject, signals).await);
                }
                Event::Heard(heard) if [Signal::INT, Signal::TERM, Signal::QUIT].contains(&heard.signal) => {
                    break heard;
                }
                Event::Heard(heard) => child.forward(heard, &subject).await,
            }
        };
        self.leave(registration, out).await;
        self.drained(&mut child, &subject, signals).await;
        child.forward(ending, &subject).await;
        loop {
            match child.event(signals).await {
                Event::Ended(status) => return Ok(finish(child, status, &subject, signals).await),
                Event::Heard(heard) => child.forward(heard, &subject).await,
            }
        }
    }

    /// Waits until clients have seen that the instance leaves, or until a second signal says that it is urgent.
    async fn drained(&self, child: &mut Child, subject: &Subject, signals: &mut Signals) {
        let urgent = async {
            while let Event::Heard(heard) = child.event(signals).await {
                if heard.asks_to_end() {
                    break;
                }
                child.forward(heard, subject).await;
            }
        };
        // The end of the command is seen again.
        let _ = tokio::time::timeout(self.drain, urgent).await;
    }

    async fn leave(&self, registration: Registration, out: Out) {
        match registration.deregister().await {
            Ok(()) => self.detail("deregistered", out),
            Err(error) => out.note(
                &json!({ "event": "deregister_failed", "service": self.name, "id": self.id, "error": error.to_string() }),
                &format!("instance `{}` of `{}` could not be deregistered: {error}", self.id, self.name),
            ),
        }
    }

    fn detail(&self, event: &str, out: Out) {
        let json = json!({ "event": event, "service": self.name, "id": self.id });
        out.detail(&json, &format!("{event} instance `{}` of `{}`", self.id, self.name));
    }

    fn tell_status(&self, status: RegistrationStatus, out: Out) {
        let event = match status {
            RegistrationStatus::Registered => "registered",
            RegistrationStatus::Recovering { .. } => "recovering",
            _ => return,
        };
        let json = json!({ "event": event, "service": self.name, "id": self.id });
        out.note(&json, &format!("instance `{}` of `{}`: {event}", self.id, self.name));
    }

    fn tell_ended(&self, reason: &str, out: Out) {
        let json = json!({ "event": "ended", "service": self.name, "id": self.id, "reason": reason });
        out.note(
            &json,
            &format!("instance `{}` of `{}` is registered no longer: {reason}", self.id, self.name),
        );
    }
}

/// Waits for all that the command has started; whether the instance is registered makes no difference any more.
async fn finish(mut child: Child, status: ExitStatus, subject: &Subject, signals: &mut Signals) -> Exit {
    child.finish(status, std::future::pending(), subject, signals).await.exit()
}

async fn list(registry: &dyn ServiceRegistry, name: Option<String>, out: Out) -> Result<Exit, Failure> {
    let services = match name {
        Some(name) => {
            let instances = registry.discover(&name).await?;
            BTreeMap::from([(name, instances)])
        }
        None => registry.services().await?,
    };
    let json: Vec<Value> =
        services.iter().map(|(name, instances)| json!({ "service": name, "instances": instances })).collect();
    out.result(&json, |to| write_services(to, &services))?;
    Ok(Exit::OK)
}

fn write_services(to: &mut dyn Write, services: &BTreeMap<String, Vec<ServiceInfo>>) -> std::io::Result<()> {
    let rows: Vec<[String; 4]> = services
        .iter()
        .flat_map(|(name, instances)| {
            instances
                .iter()
                .map(move |info| [shown(name), shown(&info.id), shown(&info.authority()), metadata(info)])
        })
        .collect();
    if rows.is_empty() {
        return writeln!(to, "no instance is registered");
    }
    table(to, ["SERVICE", "ID", "ADDRESS", "METADATA"], &rows)
}

/// The metadata in one line.
pub(crate) fn metadata(info: &ServiceInfo) -> String {
    let pairs: Vec<String> =
        info.metadata.iter().map(|(key, value)| shown(&format!("{key}={value}"))).collect();
    pairs.join(" ")
}

fn event_line(event: &ServiceEvent) -> (Value, String) {
    let line = |word: &str, info: &ServiceInfo| {
        let text = format!("{word} {} {} {}", shown(&info.id), shown(&info.authority()), metadata(info));
        (json!({ "event": word, "instance": info }), text.trim_end().to_owned())
    };
    match event {
        ServiceEvent::Snapshot { version, instances } => {
            let text: Vec<String> = instances.iter().map(|info| line("is there", info).1).collect();
            let text = if text.is_empty() { "nobody is there".into() } else { text.join("\n") };
            (json!({ "event": "snapshot", "version": version, "instances": instances }), text)
        }
        ServiceEvent::Added(info) => line("added", info),
        ServiceEvent::Updated { new, .. } => line("updated", new),
        ServiceEvent::Removed(info) => line("removed", info),
        other => (json!({ "event": "unknown" }), format!("{other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_metadata_are_read() {
        assert_eq!(address("10.0.0.1:80").unwrap(), ("10.0.0.1".into(), 80));
        assert_eq!(address("[::1]:80").unwrap(), ("::1".into(), 80));
        for bad in ["", "host", "host:", "host:99999", "host:+80"] {
            assert!(address(bad).is_err(), "{bad}");
        }
        assert_eq!(pair("zone=a=b").unwrap(), ("zone".into(), "a=b".into()));
        assert!(pair("zone").is_err());
    }

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        register: Register,
    }

    #[test]
    fn a_signal_ends_what_has_no_command_and_is_told_of_what_has_one() {
        let of = |command: &[&str], signal: Signal| {
            let line = ["register", "web", "--id", "1", "--address", "10.0.0.1:80"];
            let line = <Line as clap::Parser>::parse_from(line.iter().chain(command));
            line.register.ended_by(signal)
        };
        assert_eq!(of(&[], Signal::TERM), Exit::OK);
        assert_eq!(of(&[], Signal::QUIT), Exit::of_signal(3));
        assert_eq!(of(&["--", "true"], Signal::TERM), Exit::of_signal(15));
    }
}
