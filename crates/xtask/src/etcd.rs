//! Finding an etcd for the tests (an address, an image, a program, or all of them) and what else they start.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{
    debian::{self, Unpacked},
    image, shell,
};

/// Servers that the tests get to know through their environment.
#[derive(Default)]
pub(crate) struct Servers {
    /// A running etcd, for every test that does not stop its server.
    address: Option<OsString>,
    /// An image, for servers of a test's own; goes before the program.
    image: Option<String>,
    etcd: Option<PathBuf>,
    etcdctl: Option<PathBuf>,
    /// For tests that make a server's disk slow.
    strace: Option<PathBuf>,
    /// For tests that move a client's clock.
    faketime: Option<PathBuf>,
}

/// The first release without the known faults in leases that the fault tests would meet.
const GOOD: [u32; 3] = [3, 5, 30];

/// The user's choice first, then Docker, then a program on PATH, then Debian's package. A program is found in any case,
/// since clusters are made of processes.
pub(crate) fn find() -> Result<Servers> {
    let mut servers = Servers { address: shell::var("COORD_TEST_ETCD"), ..Servers::default() };
    let chosen_program = shell::var("COORD_TEST_ETCD_BIN").is_some();
    if !chosen_program || shell::var("COORD_TEST_ETCD_IMAGE").is_some() {
        servers.image = image::find()?;
    }
    let mut reasons = Vec::new();
    let mut found = installed();
    if !chosen_program && !found.etcd.as_deref().is_some_and(is_good) {
        let image = servers.image.as_deref();
        let better: [&dyn Fn() -> Result<Unpacked>; 3] = [
            &|| debian::unpacked().context("nothing is unpacked"),
            &|| image::programs(image.context("there is no image")?),
            &debian::unpack,
        ];
        for get in better {
            match get() {
                Ok(programs) if is_good(&programs.etcd) || found.etcd.is_none() => {
                    found.etcd = Some(programs.etcd);
                    found.etcdctl = found.etcdctl.or(Some(programs.etcdctl));
                }
                Ok(_) => {}
                Err(error) => reasons.push(format!("{error:#}")),
            }
            if found.etcd.as_deref().is_some_and(is_good) {
                break;
            }
        }
    }
    let Servers { etcd, etcdctl, .. } = found;
    let strace = match shell::var("COORD_TEST_STRACE").map(PathBuf::from).or_else(|| shell::on_path("strace"))
    {
        Some(found) => Some(found),
        None => debian::strace().inspect_err(|error| eprintln!("no strace: {error:#}")).ok(),
    };
    let faketime = match shell::var("COORD_TEST_FAKETIME").map(PathBuf::from) {
        Some(found) => Some(found),
        None => debian::faketime().inspect_err(|error| eprintln!("no libfaketime: {error:#}")).ok(),
    };
    let servers = Servers { etcd, etcdctl, strace, faketime, ..servers };
    if servers.address.is_none() && servers.image.is_none() && servers.etcd.is_none() {
        let reasons = reasons.join("; ");
        bail!(
            "no etcd for the tests: set COORD_TEST_ETCD to an address, start Docker, or install etcd ({reasons})"
        );
    }
    Ok(servers)
}

fn is_good(etcd: &Path) -> bool {
    let Ok(version) = debian::version(etcd) else { return false };
    let numbers: Vec<u32> = version.split(['.', '-', '+']).map_while(|part| part.parse().ok()).collect();
    numbers.as_slice() >= GOOD.as_slice()
}

/// An etcd program that is here already, without looking for Docker or downloading.
pub(crate) fn program() -> Option<PathBuf> {
    installed().etcd
}

/// An etcdctl program that is here already.
pub(crate) fn control_program() -> Option<PathBuf> {
    installed().etcdctl
}

fn installed() -> Servers {
    let named = |variable, program| match shell::var(variable).map(PathBuf::from) {
        // Cargo runs tests in their package's folder, where a relative path means something else.
        Some(path) if path.components().count() > 1 => Some(std::path::absolute(&path).unwrap_or(path)),
        Some(bare) => Some(bare),
        None => shell::on_path(program),
    };
    let (etcd, etcdctl) = (named("COORD_TEST_ETCD_BIN", "etcd"), named("COORD_TEST_ETCDCTL", "etcdctl"));
    let unpacked = debian::unpacked();
    Servers {
        etcd: etcd.or_else(|| Some(unpacked.as_ref()?.etcd.clone())),
        etcdctl: etcdctl.or_else(|| Some(unpacked.as_ref()?.etcdctl.clone())),
        ..Servers::default()
    }
}

impl Servers {
    /// Hands everything found to the tests.
    pub(crate) fn export(&self, command: &mut Command) {
        if let Some(address) = &self.address {
            command.env("COORD_TEST_ETCD", address);
        }
        if let Some(image) = &self.image {
            command.env("COORD_TEST_ETCD_IMAGE", image);
        }
        if let Some(program) = &self.etcd {
            command.env("COORD_TEST_ETCD_BIN", program);
        }
        if let Some(program) = &self.etcdctl {
            command.env("COORD_TEST_ETCDCTL", program);
        }
        if let Some(program) = &self.strace {
            command.env("COORD_TEST_STRACE", program);
        }
        if let Some(library) = &self.faketime {
            command.env("COORD_TEST_FAKETIME", library);
        }
    }
}

impl fmt::Display for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(address) = &self.address {
            write!(f, "the one at {}; ", address.to_string_lossy())?;
        }
        if let Some(image) = &self.image {
            write!(f, "containers of {image}; ")?;
        }
        match &self.etcd {
            Some(program) => write!(f, "processes of {}", program.display()),
            None => f.write_str("no program, so tests with clusters will fail"),
        }
    }
}
