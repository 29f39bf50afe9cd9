//! Endpoints, parsed strictly: the client library takes a bad port for port 80 and ignores paths.

use std::net::Ipv6Addr;

use coord_api::{Error, Result};

/// Parsed endpoints as URLs of one scheme.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoints {
    pub(crate) urls: Vec<String>,
    pub(crate) scheme: Scheme,
}

/// How to talk to all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    Http,
    Https,
}

/// Parses endpoints; those without a scheme are `https` when `tls` is configured.
pub(crate) fn parse(endpoints: &[String], tls: bool) -> Result<Endpoints> {
    if endpoints.is_empty() {
        return Err(refuse("the list is empty, it needs at least one `host:port`"));
    }
    let default = if tls { Scheme::Https } else { Scheme::Http };
    let parsed: Vec<_> =
        endpoints.iter().map(|endpoint| parse_one(endpoint, default)).collect::<Result<_>>()?;
    let scheme = parsed[0].0;
    if parsed.iter().any(|(other, _)| *other != scheme) {
        return Err(refuse("http and https are mixed, use one of them for all"));
    }
    if tls && scheme == Scheme::Http {
        return Err(refuse("`tls` is configured, but the endpoints say http: write https, or remove `tls`"));
    }
    let prefix = if scheme == Scheme::Https { "https" } else { "http" };
    let urls = parsed.into_iter().map(|(_, authority)| format!("{prefix}://{authority}")).collect();
    Ok(Endpoints { urls, scheme })
}

fn refuse(reason: impl Into<String>) -> Error {
    Error::invalid("endpoints", reason)
}

fn parse_one(endpoint: &str, default: Scheme) -> Result<(Scheme, &str)> {
    let (scheme, authority) = match endpoint.split_once("://") {
        Some(("http", rest)) => (Scheme::Http, rest),
        Some(("https", rest)) => (Scheme::Https, rest),
        Some((other, _)) => {
            return Err(refuse(format!("`{}://` is neither http nor https", other.escape_debug())));
        }
        None => (default, endpoint),
    };
    if authority.contains('@') {
        // Not echoed: what stands before the `@` may be a password.
        return Err(refuse("an endpoint contains `@`: set `username` and `password` instead"));
    }
    let shown = authority.escape_debug();
    if authority.contains(['/', '?', '#']) {
        return Err(refuse(format!("`{shown}` has a path or a query, only `host:port` is used")));
    }
    let Some((host, port)) = authority.rsplit_once(':') else {
        return Err(refuse(format!("`{shown}` has no port, for example `host:2379`")));
    };
    match port.parse::<u16>() {
        Ok(1..) => {}
        _ => {
            return Err(refuse(format!("`{shown}` has a port that is not within 1 and 65535")));
        }
    }
    let valid = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(ip) => ip.parse::<Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)),
    };
    if !valid {
        return Err(refuse(format!("`{shown}` has no valid host; IPv6 addresses are written in brackets")));
    }
    Ok((scheme, authority))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(endpoints: &[&str], tls: bool) -> Result<Endpoints> {
        parse(&endpoints.iter().map(ToString::to_string).collect::<Vec<_>>(), tls)
    }

    #[test]
    fn good_ones_become_urls() {
        let plain = parsed(&["127.0.0.1:2379", "http://etcd-2:2379", "[::1]:1"], false).expect("are good");
        assert_eq!(plain.urls, ["http://127.0.0.1:2379", "http://etcd-2:2379", "http://[::1]:1"]);
        assert_eq!(plain.scheme, Scheme::Http);
        assert_eq!(parsed(&["h:1"], true).expect("is good").urls, ["https://h:1"]);
        assert_eq!(parsed(&["https://h:1"], false).expect("is good").scheme, Scheme::Https);
    }

    #[test]
    fn bad_ones_are_refused_with_the_reason() {
        let table: &[(&[&str], bool, &str)] = &[
            (&[], false, "the list is empty"),
            (&[""], false, "has no port"),
            (&["h"], false, "has no port"),
            (&["h:"], false, "port that is not within"),
            (&["h:0"], false, "port that is not within"),
            (&["h:99999"], false, "port that is not within"),
            (&["http://h"], false, "has no port"),
            (&["ftp://h:1"], false, "neither http nor https"),
            (&["http://h:1/path"], false, "has a path"),
            (&["http://h:1/"], false, "has a path"),
            (&["h:1?x"], false, "has a path or a query"),
            (&[":1"], false, "no valid host"),
            (&["::1:1"], false, "in brackets"),
            (&["[h]:1"], false, "in brackets"),
            (&["a b:1"], false, "no valid host"),
            (&["http://h:1", "https://h:2"], false, "mixed"),
            (&["h:1", "https://h:2"], false, "mixed"),
            (&["http://h:1"], true, "`tls` is configured"),
            (&["root:s3cret@h:1"], false, "contains `@`"),
        ];
        for (endpoints, tls, reason) in table {
            let error = parsed(endpoints, *tls).expect_err(reason).to_string();
            assert!(error.starts_with("invalid endpoints: ") && error.contains(reason), "{error}");
            assert!(!error.contains("s3cret"));
        }
    }
}
