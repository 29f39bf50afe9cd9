//! The command line as a whole.

use std::path::{Path, PathBuf};

use clap::{ArgAction, ColorChoice, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::{
    config::ConfigArgs,
    connect::ConnectArgs,
    doctor::DoctorArgs,
    elect::ElectArgs,
    exit::{self, Exit, Failure},
    id::IdArgs,
    lock::LockArgs,
    out::{Form, Notes, Out},
    service::ServiceArgs,
    top::TopArgs,
    traces::Traces,
};

/// Locks, elections, services, configuration and instance ids in etcd.
#[derive(Parser, Debug)]
#[command(name = "coord", version, after_long_help = exit::HELP, after_help = "`coord --help` also lists the exit codes.")]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
    /// Print JSON: results on stdout, notes and errors on stderr
    #[arg(long, global = true, help_heading = "Output")]
    json: bool,
    /// Colours
    #[arg(long, global = true, help_heading = "Output", value_name = "WHEN", default_value = "auto")]
    color: ColorChoice,
    /// Also tell on stderr what was acquired and given back, with token and TTL, and each step of coord; -vv: also of its
    /// connections. `RUST_LOG` chooses other traces, with and without -v
    #[arg(long, short, global = true, help_heading = "Output", action = ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    pub(crate) area: Area,
}

/// What works on a store that was connected to.
#[derive(Subcommand, Debug)]
pub(crate) enum StoreArea {
    /// Run a command while holding a lock; see who holds which
    Lock(LockArgs),
    /// Run a command while leading an election; see and watch who leads
    Elect(ElectArgs),
    /// Register an instance; see and watch what is registered
    Service(ServiceArgs),
    /// Read, change and watch configuration; its history; import and export
    Config(ConfigArgs),
    /// Run a command with an instance id of its own; see who has which
    Id(IdArgs),
    /// Watch locks and elections with holders and queues, and services with instances, on one page
    Top(TopArgs),
}

#[derive(Subcommand, Debug)]
pub(crate) enum Area {
    #[command(flatten)]
    Store(StoreArea),
    /// Check connection, server, permissions and speed, and say what to do
    Doctor(DoctorArgs),
    /// Print a script that completes `coord` in a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Print the manual page, or write one for each subcommand
    Man {
        /// The folder for the pages [default: the page of `coord` on stdout]
        dir: Option<PathBuf>,
    },
}

impl Cli {
    /// How to print. Colours are set for the whole process.
    pub(crate) fn out(&self) -> Out {
        match self.color {
            ColorChoice::Auto => anstream::ColorChoice::Auto,
            ColorChoice::Always => anstream::ColorChoice::AlwaysAnsi,
            ColorChoice::Never => anstream::ColorChoice::Never,
        }
        .write_global();
        Out {
            form: if self.json { Form::Json } else { Form::Text },
            notes: if self.verbose > 0 { Notes::All } else { Notes::Few },
        }
    }

    /// Returns which traces of the library are printed, unless `RUST_LOG` chooses them.
    pub(crate) fn traces(&self) -> Traces {
        match self.verbose {
            0 => Traces::None,
            1 => Traces::Coord,
            _ => Traces::Everything,
        }
    }
}

/// Prints the completions of a shell.
pub(crate) fn completions(shell: Shell) -> Exit {
    clap_complete::generate(shell, &mut Cli::command(), "coord", &mut std::io::stdout());
    Exit::OK
}

/// Prints or writes the manual.
pub(crate) fn man(dir: Option<&Path>) -> Result<Exit, Failure> {
    match dir {
        None => clap_mangen::Man::new(Cli::command()).render(&mut std::io::stdout())?,
        Some(dir) => {
            std::fs::create_dir_all(dir)?;
            clap_mangen::generate_to(Cli::command(), dir)?;
        }
    }
    Ok(Exit::OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_lock_or_an_election_is_held_or_looked_at() {
        let parsed = |line: &str| Cli::try_parse_from(line.split(' '));
        for good in [
            "coord lock job -- true",
            "coord lock list",
            "coord lock list job",
            "coord lock --try job -- true",
            "coord elect job -- true",
            "coord elect job --value v --wait 1s -- true",
            "coord elect run list -- true",
            "coord elect list job",
            "coord elect watch job",
        ] {
            assert!(parsed(good).is_ok(), "{good}: {:?}", parsed(good).err());
        }
        for bad in [
            "coord lock",
            "coord lock job",
            "coord lock -- true",
            "coord lock job --try --wait 1s -- true",
            "coord lock job --ttl x -- true",
            "coord elect",
            "coord elect job",
            "coord elect watch",
            "coord elect job --try --wait 1s -- true",
        ] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn no_option_takes_a_password() {
        let command = Cli::command();
        let names: Vec<_> = command.get_arguments().filter_map(clap::Arg::get_long).collect();
        assert!(names.contains(&"password-file") && !names.contains(&"password"), "{names:?}");
    }
}
