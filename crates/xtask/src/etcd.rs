//! Finding an etcd for the tests: an address, an image, a program, or all of them.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::{debian, image, shell};

/// What the tests get to know through their environment.
#[derive(Default)]
pub(crate) struct Servers {
    /// A running etcd, for every test that does not stop its server.
    address: Option<OsString>,
    /// An image, for servers of a test's own; goes before the program.
    image: Option<String>,
    etcd: Option<PathBuf>,
    etcdctl: Option<PathBuf>,
}

/// The user's choice first, then Docker, then a program on PATH, then Debian's package.
pub(crate) fn find() -> Result<Servers> {
    let mut servers = installed();
    servers.address = shell::var("COORD_TEST_ETCD");
    let chosen_program = shell::var("COORD_TEST_ETCD_BIN").is_some();
    if !chosen_program || shell::var("COORD_TEST_ETCD_IMAGE").is_some() {
        servers.image = image::find()?;
    }
    let mut reason = String::new();
    if servers.image.is_none()
        && servers.etcd.is_none()
        && let Err(error) = debian::unpack()
    {
        reason = format!(" ({error:#})");
    }
    // Building the image or the line above may have unpacked Debian's programs.
    let Servers { etcd, etcdctl, .. } = installed();
    let servers = Servers { etcd, etcdctl, ..servers };
    if servers.address.is_none() && servers.image.is_none() && servers.etcd.is_none() {
        bail!(
            "no etcd for the tests: set COORD_TEST_ETCD to an address, start Docker, or install etcd{reason}"
        );
    }
    Ok(servers)
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
    }
}

impl fmt::Display for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(address) = &self.address {
            write!(f, "the one at {}; ", address.to_string_lossy())?;
        }
        match (&self.image, &self.etcd) {
            (Some(image), _) => write!(f, "containers of {image}"),
            (None, Some(program)) => write!(f, "processes of {}", program.display()),
            (None, None) => f.write_str("none that a test could stop, so tests that do will fail"),
        }
    }
}
