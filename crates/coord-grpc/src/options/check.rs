//! Validation of the options, before anything is sent.

use std::time::Duration;

use coord_api::{Error, Result};
use http::{HeaderName, uri::PathAndQuery};
use tonic::transport::Endpoint;

use super::{ConnectOptions, KeepAlive, Probe, tls::error_with_sources};
use crate::pick::{OutlierDetection, Policy, slow_start::SlowStart};

/// Longest name of a service that a health service can be asked for.
const MAX_SERVICE_BYTES: usize = 255;

impl ConnectOptions {
    /// Returns an error that names the first option with an invalid value.
    pub(crate) fn check(&self) -> Result<()> {
        let positive = |field, time: Duration| match time {
            Duration::ZERO => Err(Error::invalid(field, "is 0")),
            _ => Ok(()),
        };
        positive("connect_timeout", self.connect_timeout)?;
        self.try_timeout.map_or(Ok(()), |time| positive("try_timeout", time))?;
        self.wait_timeout.map_or(Ok(()), |time| positive("wait_timeout", time))?;
        positive("longest_pause", self.longest_pause)?;
        if let Some(Probe { path, after, limit }) = &self.probe {
            positive("probe after", *after)?;
            positive("probe limit", *limit)?;
            if !path.starts_with('/') || PathAndQuery::try_from(path.as_str()).is_err() {
                return Err(Error::invalid("probe path", "is no path of a method"));
            }
        }
        if let Some(KeepAlive { interval, timeout }) = self.keep_alive {
            positive("keep_alive interval", interval)?;
            positive("keep_alive timeout", timeout)?;
        }
        self.outlier_detection.as_ref().map_or(Ok(()), OutlierDetection::check)?;
        if let Some(service) = &self.health_check
            && (service.len() > MAX_SERVICE_BYTES || service.chars().any(char::is_control))
        {
            let reason = format!("is longer than {MAX_SERVICE_BYTES} bytes, or has control characters");
            return Err(Error::invalid("health_check", reason));
        }
        if let Some(SlowStart { window, aggression, min_weight_percent }) = &self.slow_start {
            positive("slow_start", *window)?;
            if *aggression == 0 {
                return Err(Error::invalid("slow_start_aggression", "is 0, it needs 1 or more thousandths"));
            }
            if !(1..=100).contains(min_weight_percent) {
                let reason = format!("{min_weight_percent} is not within 1 and 100 percent");
                return Err(Error::invalid("slow_start_min_weight_percent", reason));
            }
        }
        if self.zone.as_deref() == Some("") {
            return Err(Error::invalid("zone", "is empty"));
        }
        match self.subset {
            Some(0) => return Err(Error::invalid("subset", "is 0, it needs 1 or more instances")),
            Some(_) if self.policy == Policy::ConsistentHash => {
                let reason = "each client would have other instances for the same key: leave out one of \
                              subset and ConsistentHash";
                return Err(Error::invalid("subset", reason));
            }
            _ => {}
        }
        if let Some(name) = &self.hash_header {
            if HeaderName::from_lowercase(name.as_bytes()).is_err() {
                return Err(Error::invalid("hash_header", "is no header name in lower case"));
            }
            if self.policy != Policy::ConsistentHash {
                return Err(Error::invalid("hash_header", "needs the policy ConsistentHash"));
            }
        }
        // Certificates are parsed here, so that a bad one is an error at once.
        let probe = self.apply(Endpoint::from_static("http://localhost"));
        probe.map(drop).map_err(|error| Error::invalid("tls", error_with_sources(error.as_ref())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_options_are_refused_by_name() {
        let (good, zero, second) = (ConnectOptions::new, Duration::ZERO, Duration::from_secs(1));
        let hash = || good().policy(Policy::ConsistentHash);
        let table = [
            (good().connect_timeout(zero), "invalid connect_timeout: is 0"),
            (good().try_timeout(zero), "invalid try_timeout: is 0"),
            (good().keep_alive(zero, second), "invalid keep_alive interval: is 0"),
            (good().keep_alive(second, zero), "invalid keep_alive timeout: is 0"),
            (good().cool_off(zero, second), "invalid base_ejection_time: is 0"),
            (good().cool_off(second * 2, second), "invalid max_ejection_time: 1s is below"),
            (good().eject_after(0), "invalid consecutive_failures: is 0"),
            (good().keep_in_use(101), "invalid max_ejection_percent: -1 is not"),
            (good().wait_timeout(zero), "invalid wait_timeout: is 0"),
            (good().longest_pause(zero), "invalid longest_pause: is 0"),
            (good().probe("/a/b", zero, second), "invalid probe after: is 0"),
            (good().probe("/a/b", second, zero), "invalid probe limit: is 0"),
            (good().probe("a/b", second, second), "invalid probe path: is no path"),
            (good().health_check("x".repeat(256)), "invalid health_check: is longer than 255 bytes"),
            (good().health_check("a\n"), "invalid health_check: "),
            (good().slow_start(zero), "invalid slow_start: is 0"),
            (good().slow_start_aggression(0), "invalid slow_start_aggression: is 0"),
            (good().slow_start_min_weight_percent(0), "invalid slow_start_min_weight_percent: 0 is not"),
            (good().slow_start_min_weight_percent(101), "invalid slow_start_min_weight_percent: 101 is"),
            (good().zone(""), "invalid zone: is empty"),
            (good().subset(0), "invalid subset: is 0"),
            (hash().subset(5), "invalid subset: each client"),
            (hash().hash_header("X-User"), "invalid hash_header: is no header name"),
            (good().hash_header("x-user"), "invalid hash_header: needs the policy"),
        ];
        for (options, expected) in table {
            let error = options.check().expect_err(expected).to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        good().without_ejection().without_keep_alive().subset(5).check().expect("is good");
        hash().hash_header("x-user").only("version", "2").zone("a").check().expect("is good");
    }
}
