//! The options that say which etcd, and as whom.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use coord_etcd::{Client, EtcdConfig, Layout, PlaintextPassword, TlsFiles};

use crate::exit::Failure;

/// Which etcd, and as whom. Every one can be given by an environment variable; the password only so, or by a file.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Connection")]
pub(crate) struct ConnectArgs {
    /// Where etcd is: etcd://HOST:PORT[,HOST:PORT…][/NAMESPACE]
    #[arg(long, global = true, env = "COORD_URL", default_value = "etcd://127.0.0.1:2379")]
    url: String,
    /// The part of etcd to work in [default: that of the URL, or coord]
    #[arg(long, global = true, env = "COORD_NAMESPACE")]
    namespace: Option<String>,
    /// Where in etcd the areas live
    #[arg(long, global = true, env = "COORD_LAYOUT", value_enum, default_value_t)]
    layout: LayoutArg,
    /// The user, where etcd asks for one; the password is taken from --password-file or `COORD_PASSWORD`
    #[arg(long, global = true, env = "COORD_USERNAME", value_name = "NAME")]
    username: Option<String>,
    /// A file with the user's password; line breaks at its end do not count
    #[arg(long, global = true, env = "COORD_PASSWORD_FILE", value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Send the password without TLS as well, where everyone on the way can read it: for tests
    #[arg(long, global = true, env = "COORD_ALLOW_PLAINTEXT_PASSWORD")]
    allow_plaintext_password: bool,
    /// Use TLS with the certificate authorities of this system; not needed beside the options below
    #[arg(long, global = true)]
    tls: bool,
    /// The certificate authority that signed etcd's certificate (PEM)
    #[arg(long, global = true, env = "COORD_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// The client's certificate, where etcd asks for one (PEM)
    #[arg(long, global = true, env = "COORD_CERT_FILE", value_name = "FILE", requires = "key_file")]
    cert_file: Option<PathBuf>,
    /// The client's private key (PEM)
    #[arg(long, global = true, env = "COORD_KEY_FILE", value_name = "FILE", requires = "cert_file")]
    key_file: Option<PathBuf>,
    /// The name in etcd's certificate, where it is not the host of the URL
    #[arg(long, global = true, env = "COORD_SERVER_NAME", value_name = "NAME")]
    server_name: Option<String>,
    /// How others see this client when they ask who holds a lock [default: the name of CMD]
    #[arg(long, global = true, env = "COORD_LABEL")]
    label: Option<String>,
    /// How long connecting, and one request, may take
    #[arg(long, global = true, env = "COORD_TIMEOUT", default_value = "5s", value_parser = duration)]
    timeout: Duration,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum LayoutArg {
    /// Below the namespace
    #[default]
    Namespace,
    /// As the Go original: /locks, /services, /config and /im-infra/allocators
    GoOriginal,
}

/// A duration as people write it: 10s, 1m30s, 500ms.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; write for example 10s, 1m30s or 500ms"))
}

impl ConnectArgs {
    /// What they mean; nothing is sent.
    pub(crate) fn config(&self, label: Option<String>) -> Result<EtcdConfig, Failure> {
        let mut config = EtcdConfig::from_url(&self.url)?;
        if let Some(namespace) = &self.namespace {
            config.namespace.clone_from(namespace);
        }
        config.layout = match self.layout {
            LayoutArg::Namespace => Layout::Namespace,
            LayoutArg::GoOriginal => Layout::GoOriginal,
        };
        self.say_who(&mut config)?;
        let named = [&self.ca_file, &self.cert_file, &self.key_file];
        if self.tls || self.server_name.is_some() || named.into_iter().any(Option::is_some) {
            let mut files = TlsFiles::default();
            files.ca_file.clone_from(&self.ca_file);
            files.cert_file.clone_from(&self.cert_file);
            files.key_file.clone_from(&self.key_file);
            files.server_name.clone_from(&self.server_name);
            config.tls = Some(files);
        }
        config.label = self.label.clone().or(label);
        config.connect_timeout = self.timeout;
        config.request_timeout = self.timeout;
        config.close_timeout = self.timeout;
        Ok(config)
    }

    fn say_who(&self, config: &mut EtcdConfig) -> Result<(), Failure> {
        config.username.clone_from(&self.username);
        config.password_file.clone_from(&self.password_file);
        if self.allow_plaintext_password {
            config.plaintext_password = PlaintextPassword::Allowed;
        }
        // Without a user, COORD_PASSWORD is that of another call.
        if self.username.is_some() && self.password_file.is_none() {
            let password = std::env::var("COORD_PASSWORD")
                .map_err(|_| Failure::usage("--username needs --password-file FILE or COORD_PASSWORD"))?;
            config.password = Some(password.into());
        }
        Ok(())
    }

    /// Where it connects to, for people.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }
}

/// Connects as the options say.
pub(crate) async fn connect(config: EtcdConfig) -> Result<Client, Failure> {
    let (endpoints, user) = (config.endpoints.join(", "), config.username.is_some());
    Client::connect(config).await.map_err(|error| {
        let mut failure = Failure::from(error);
        let hint = match failure.kind {
            "unavailable" | "timeout" => Some(format!("is etcd at {endpoints}? See --url and COORD_URL")),
            "tls" => Some("see --ca-file, --server-name, --cert-file and --key-file".into()),
            "unauthenticated" if !user => {
                Some("etcd asks for a user: --username and --password-file or COORD_PASSWORD".into())
            }
            "unauthenticated" => Some("see --username and --password-file or COORD_PASSWORD".into()),
            "permission_denied" => Some("`coord doctor` tells what the user needs".into()),
            _ => None,
        };
        if let Some(hint) = hint {
            failure.message = format!("{}\n  {hint}", failure.message);
        }
        failure
    })
}
