//! A cluster with users, of whom the harness is `root`.

use std::time::Duration;

use anyhow::{Context, Result};
use etcd_client::{Client, ConnectOptions, Permission};
use serde_json::{Value, json};

use super::{Cluster, NODES};
use crate::server::http;

const ROOT: &str = "root";
const PASSWORD: &str = "rootpw";

/// How long the harness waits for an answer. A node that gives none is taken for dead.
const PATIENCE: Duration = Duration::from_secs(2);

impl Cluster {
    /// Enables authentication with the user `root`, who is the harness from now on.
    ///
    /// # Errors
    /// When the cluster does not answer.
    pub async fn enable_auth(&mut self) -> Result<()> {
        let mut users = self.admin().await?.auth_client();
        users.user_add(ROOT, PASSWORD, None).await?;
        users.user_grant_role(ROOT, ROOT).await?;
        users.auth_enable().await?;
        self.has_users = true;
        Ok(())
    }

    /// Adds a user with a role that may read and write what begins with `prefix`.
    ///
    /// # Errors
    /// When the cluster does not answer.
    pub async fn add_user(&self, user: &str, password: &str, prefix: &str) -> Result<()> {
        let mut users = self.admin().await?.auth_client();
        users.role_add(user).await?;
        users.role_grant_permission(user, Permission::read_write(prefix).with_prefix()).await?;
        users.user_add(user, password, None).await?;
        users.user_grant_role(user, user).await?;
        Ok(())
    }

    /// Changes a password, which ends all tokens of the user.
    ///
    /// # Errors
    /// When there is no leader after a minute.
    pub async fn change_password(&self, user: &str, password: &str) -> Result<()> {
        let request = json!({ "name": user, "password": password }).to_string();
        self.post_to_any("/v3/auth/user/changepw", &request).await.map(drop)
    }

    /// etcd's own client at the first node that lets it in, past all faults of the network. It is for a few requests:
    /// it does not outlive its token.
    ///
    /// # Errors
    /// When no node does.
    pub async fn admin(&self) -> Result<Client> {
        let options = ConnectOptions::new().with_connect_timeout(PATIENCE).with_timeout(PATIENCE);
        let options = if self.has_users { options.with_user(ROOT, PASSWORD) } else { options };
        let mut last = None;
        for n in 0..NODES {
            let asked = async {
                let client = Client::connect([self.direct(n)], Some(options.clone())).await?;
                // Without users nothing was sent yet.
                client.kv_client().get("there", None).await?;
                Ok::<_, etcd_client::Error>(client)
            };
            match asked.await {
                Ok(client) => return Ok(client),
                Err(error) => last = Some(error),
            }
        }
        Err(last.expect("there are nodes")).context("no node lets the harness in")
    }

    pub(super) async fn token(&self, n: usize) -> Result<String> {
        let request = json!({ "name": ROOT, "password": PASSWORD }).to_string();
        let answer = http::post(&self.direct(n), "/v3/auth/authenticate", &request).await?;
        let answer: Value = serde_json::from_str(&answer)?;
        let token = answer.pointer("/token").and_then(Value::as_str);
        Ok(token.context("etcd gave no token")?.to_owned())
    }
}
