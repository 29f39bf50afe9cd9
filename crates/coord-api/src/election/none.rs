//! A provider that has no elections yet.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Candidate, Elections, Term};
use crate::{Error, Result, Watch};

/// Elections of a backend without any.
#[derive(Debug)]
pub(crate) struct NoElections;

fn none<T>() -> Result<T> {
    Err(Error::Backend { operation: "elections", source: "this backend has none yet".into() })
}

#[async_trait]
impl Elections for NoElections {
    async fn campaign(&self, _election: &str, _ttl: Duration, _value: Bytes) -> Result<Term> {
        none()
    }
    async fn candidates(&self, _election: &str) -> Result<Vec<Candidate>> {
        none()
    }
    async fn elections(&self) -> Result<BTreeMap<String, Vec<Candidate>>> {
        none()
    }
    async fn watch_leader(&self, _election: &str) -> Result<Watch<Option<Candidate>>> {
        none()
    }
}
