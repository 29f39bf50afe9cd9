//! `coord doctor`: whether coord can work with this etcd, and what to do where it can not.

mod areas;
mod clock;
mod finding;

use std::io::Write;

use clap::Args;
use coord_api::{Error, Provider};
use coord_etcd::{Client, Connect};
use serde_json::{Value, json};

pub(crate) use self::finding::{Finding, Level};
use crate::{
    connect::ConnectArgs,
    exit::{self, Exit, Failure},
    out::{BOLD, DIM, GREEN, Out, RED, YELLOW},
};

#[derive(Args, Debug)]
#[command(after_long_help = exit::HELP)]
pub(crate) struct DoctorArgs {
    /// How many commits to measure
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
    commits: u16,
}

impl DoctorArgs {
    pub(crate) async fn call(self, options: &ConnectArgs, out: Out) -> Result<Exit, Failure> {
        let findings = self.examine(options).await?;
        let problems = findings.iter().any(|finding| finding.level == Level::Problem);
        let json: Vec<Value> = findings.iter().map(Finding::json).collect();
        out.result(&json!({ "ok": !problems, "findings": json }), |to| {
            writeln!(to, "{BOLD}{}{BOLD:#}", options.url())?;
            findings.iter().try_for_each(|finding| write_finding(to, finding))
        })?;
        Ok(if problems { Exit::FAILED } else { Exit::OK })
    }

    async fn examine(&self, options: &ConnectArgs) -> Result<Vec<Finding>, Failure> {
        let config = options.config(Some("coord doctor".into()))?;
        let (endpoints, speaks_tls, limit) =
            (config.endpoints.clone(), config.tls.is_some(), config.request_timeout);
        let mut findings = Vec::new();
        let client = match Client::connect(config.clone()).await {
            Ok(client) => {
                findings.push(Finding::ok("connection", "etcd answers"));
                client
            }
            // The rest tells what exactly is not permitted.
            Err(Error::PermissionDenied { .. }) => {
                findings.push(Finding::ok("connection", "etcd answers and accepts the credentials"));
                Client::connect(config.connect(Connect::Lazily)).await?
            }
            Err(error) => {
                findings.push(finding::of_connection(&error, options.url()));
                return Ok(findings);
            }
        };
        findings.push(clock::examine(&endpoints, speaks_tls, limit).await);
        areas::examine(&client, self.commits, &mut findings).await;
        // What was tried is given back already.
        let _ = client.close().await;
        Ok(findings)
    }
}

fn write_finding(to: &mut dyn Write, finding: &Finding) -> std::io::Result<()> {
    let (mark, style) = match finding.level {
        Level::Ok => ("ok", GREEN),
        Level::Warning => ("warning", YELLOW),
        Level::Problem => ("PROBLEM", RED),
        Level::Skipped => ("skipped", DIM),
    };
    writeln!(to, "{style}{mark:>8}{style:#}  {:<12} {}", finding.check, finding.said)?;
    match &finding.advice {
        Some(advice) => writeln!(to, "{:>8}  {:<12} {DIM}-> {advice}{DIM:#}", "", ""),
        None => Ok(()),
    }
}
