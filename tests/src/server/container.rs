//! etcd in a container, on a host port that survives restarts.

use anyhow::{Context, Result, bail};
use testcontainers::bollard::models::{HostConfig, PortBinding};
use testcontainers::bollard::query_parameters::{KillContainerOptionsBuilder, RemoveContainerOptionsBuilder};
use testcontainers::core::client::docker_client_instance;
use testcontainers::core::{ContainerPort, ExecCommand};
use testcontainers::runners::AsyncRunner;
use testcontainers::{ContainerAsync, GenericImage, ImageExt};
use tokio::process::Command;
use tokio::time::sleep;

use super::{Listen, TICK};

const CLIENT_PORT: u16 = 2379;

#[derive(Debug)]
pub(super) struct Container {
    image: String,
    listen: Listen,
    args: Vec<String>,
    /// None only between the removal of one container and the start of the next.
    running: Option<Box<ContainerAsync<GenericImage>>>,
}

impl Container {
    pub(super) async fn start(image: &str, listen: Listen, args: &[String]) -> Result<Self> {
        let mut container = Self { image: image.to_owned(), listen, args: args.to_vec(), running: None };
        container.start_empty().await?;
        Ok(container)
    }

    pub(super) async fn start_empty(&mut self) -> Result<()> {
        self.remove().await?;
        let (name, tag) = name_and_tag(&self.image);
        // Not by process and port alone: of two servers that were given the same port, the second has to learn that it is
        // taken, and must not remove the first.
        let unique = fastrand::u32(..);
        let container_name =
            format!("coord-tests-etcd-{}-{}-{unique:08x}", std::process::id(), self.listen.port);
        let listen = self.listen.clone();
        let metrics = self.listen.tls.iter().map(|tls| ContainerPort::Tcp(tls.metrics_port));
        let image = metrics.fold(GenericImage::new(name, tag), GenericImage::with_exposed_port);
        let request = image
            .with_exposed_port(ContainerPort::Tcp(CLIENT_PORT))
            .with_container_name(&container_name)
            .with_cmd(self.command())
            .with_host_config_modifier(move |host| publish(host, &listen));
        match request.start().await {
            Ok(running) => {
                self.running = Some(Box::new(running));
                Ok(())
            }
            Err(error) => {
                // Created but not started (the port is taken): testcontainers forgets about it.
                let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
                let _ =
                    docker_client_instance().await?.remove_container(&container_name, Some(options)).await;
                Err(error).with_context(|| format!("cannot start a container of `{}`", self.image))
            }
        }
    }

    pub(super) async fn start_again(&self) -> Result<()> {
        Ok(self.container()?.start().await?)
    }

    pub(super) async fn kill9(&self) -> Result<()> {
        let container = self.container()?;
        if !container.is_running().await? {
            return Ok(());
        }
        // Not `stop` with a timeout of 0, which begins with a SIGTERM that etcd has time to act on.
        let options = KillContainerOptionsBuilder::new().signal("SIGKILL").build();
        docker_client_instance().await?.kill_container(container.id(), Some(options)).await?;
        while container.is_running().await? {
            sleep(TICK).await;
        }
        Ok(())
    }

    pub(super) async fn remove(&mut self) -> Result<()> {
        if let Some(running) = self.running.take() {
            running.rm().await?;
        }
        Ok(())
    }

    /// The last line of the log when the container ended by itself.
    pub(super) async fn ended(&self) -> Result<Option<String>> {
        let container = self.container()?;
        if container.is_running().await? {
            return Ok(None);
        }
        let log = container.stderr_to_vec().await?;
        let log = String::from_utf8_lossy(&log);
        Ok(Some(log.lines().last().unwrap_or("it wrote no log").to_owned()))
    }

    /// `etcdctl` in the container, as a process of its own.
    pub(super) fn etcdctl_process(&self) -> Result<Command> {
        let mut command = Command::new("docker");
        command.args(["exec", "--interactive", "--env", "ETCDCTL_API=3", self.container()?.id(), "etcdctl"]);
        command.args(["--endpoints", &self.listen.url("127.0.0.1", CLIENT_PORT)]);
        Ok(command)
    }

    pub(super) async fn etcdctl(&self, args: &[&str]) -> Result<String> {
        let endpoint = self.listen.url("127.0.0.1", CLIENT_PORT);
        let words = ["etcdctl", "--endpoints", &endpoint]
            .iter()
            .chain(args)
            .map(|&word| word.to_owned())
            .collect::<Vec<_>>();
        let command = ExecCommand::new(words).with_env_vars([("ETCDCTL_API", "3")]);
        let mut result = self.container()?.exec(command).await?;
        // The end of its output is the end of the program; only then is there an exit code.
        let stdout = result.stdout_to_vec().await?;
        let stderr = result.stderr_to_vec().await?;
        let code = loop {
            match result.exit_code().await? {
                Some(code) => break code,
                None => sleep(TICK).await,
            }
        };
        if code != 0 {
            bail!("etcdctl {}: {}", args.join(" "), String::from_utf8_lossy(&stderr).trim());
        }
        Ok(String::from_utf8_lossy(&stdout).into_owned())
    }

    fn container(&self) -> Result<&ContainerAsync<GenericImage>> {
        self.running.as_deref().context("the container of this server is gone; start another server")
    }

    fn command(&self) -> Vec<String> {
        let fixed = ["etcd", "--log-level=error", "--data-dir=/var/lib/etcd/data"].map(str::to_owned);
        let listen = self.listen.args("0.0.0.0", CLIENT_PORT);
        fixed.into_iter().chain(listen).chain(self.args.iter().cloned()).collect()
    }
}

/// testcontainers itself publishes on all interfaces, and on another host port after every start.
/// Certificates are where the host has them, so that they can be replaced there.
fn publish(host: &mut HostConfig, listen: &Listen) {
    let on_host = |inside: u16, port: u16| {
        let binding =
            PortBinding { host_ip: Some("127.0.0.1".to_owned()), host_port: Some(port.to_string()) };
        (format!("{inside}/tcp"), Some(vec![binding]))
    };
    host.publish_all_ports = Some(false);
    let metrics = listen.tls.iter().map(|tls| on_host(tls.metrics_port, tls.metrics_port));
    host.port_bindings = Some(metrics.chain([on_host(CLIENT_PORT, listen.port)]).collect());
    if let Some(tls) = &listen.tls {
        let folder = tls.certs.display();
        host.binds = Some(vec![format!("{folder}:{folder}:ro")]);
    }
}

/// A colon before the last slash belongs to the registry's port.
fn name_and_tag(image: &str) -> (&str, &str) {
    match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (image, "latest"),
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let Some(running) = self.running.take() else {
            return;
        };
        // On a runtime of its own: the test's may be gone already, and blocking inside it is not allowed
        // on every kind. A failure leaves a container with this name behind; no test depends on that.
        let remove = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime of one thread needs little").block_on(async move {
                let _ = running.rm().await;
            });
        });
        let _ = remove.join();
    }
}
