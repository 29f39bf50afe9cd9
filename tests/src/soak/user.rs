//! The user that all clients are.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use async_trait::async_trait;
use coord_api::BoxError;
use coord_etcd::{Credentials, CredentialsProvider};

/// The name of the only user beside `root`.
pub(super) const USER: &str = "soak";

/// Knows the password, which is replaced now and then.
#[derive(Debug)]
pub(super) struct User {
    password: Mutex<String>,
    asked: AtomicUsize,
}

impl User {
    pub(super) fn new(password: &str) -> Arc<Self> {
        Arc::new(Self { password: Mutex::new(password.to_owned()), asked: AtomicUsize::new(0) })
    }

    /// What clients that ask get from now on.
    pub(super) fn set(&self, password: String) {
        *self.password.lock().expect("nothing panics while this is locked") = password;
    }

    /// How often a client authenticated, or tried to.
    pub(super) fn asked(&self) -> usize {
        self.asked.load(Relaxed)
    }
}

/// What one client has of the user.
pub(super) struct Known(pub(super) Arc<User>);

#[async_trait]
impl CredentialsProvider for Known {
    async fn credentials(&self) -> Result<Credentials, BoxError> {
        self.0.asked.fetch_add(1, Relaxed);
        let password = self.0.password.lock().expect("nothing panics while this is locked").clone();
        Ok(Credentials::new(USER, password))
    }
}
