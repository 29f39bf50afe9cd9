//! Endpoints, parsed strictly: the client library takes a bad port for port 80 and ignores paths.

use std::net::Ipv6Addr;

use coord_api::{
    Error, Result,
    backend::{Shown, is_host},
};

/// Parsed endpoints of one scheme, each once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoints {
    pub(crate) all: Vec<Member>,
    pub(crate) scheme: Scheme,
}

/// Address at which one member listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// Host in lower case; without brackets if it is an IPv6 address.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Member {
    /// Returns the endpoint as `host:port`.
    pub(crate) fn authority(&self) -> String {
        let Self { host, port } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

/// Scheme of all endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    Http,
    Https,
}

/// Parses endpoints; an endpoint without a scheme is `https` when `tls` is configured.
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
    let mut all = Vec::with_capacity(parsed.len());
    for (_, member) in parsed {
        if all.contains(&member) {
            return Err(refuse(format!("{} is listed twice", Shown(&member.authority()))));
        }
        all.push(member);
    }
    Ok(Endpoints { all, scheme })
}

fn refuse(reason: impl Into<String>) -> Error {
    Error::invalid("endpoints", reason)
}

fn parse_one(endpoint: &str, default: Scheme) -> Result<(Scheme, Member)> {
    let (scheme, authority) = match endpoint.split_once("://") {
        Some(("http", rest)) => (Scheme::Http, rest),
        Some(("https", rest)) => (Scheme::Https, rest),
        Some((other, _)) => {
            return Err(refuse(format!("the scheme {} is neither http nor https", Shown(other))));
        }
        None => (default, endpoint),
    };
    if authority.contains('@') {
        // The endpoint is not echoed: the part before the `@` may be a password.
        return Err(refuse("an endpoint contains `@`: set `username` and `password` instead"));
    }
    let shown = Shown(authority);
    if authority.contains(['/', '?', '#']) {
        return Err(refuse(format!("{shown} has a path or a query, only `host:port` is used")));
    }
    let Some((host, port)) = authority.rsplit_once(':') else {
        return Err(refuse(format!("{shown} has no port, for example `host:2379`")));
    };
    // `+1` is a number to Rust.
    let is_number = port.bytes().all(|digit| digit.is_ascii_digit());
    let port = match port.parse::<u16>() {
        Ok(port @ 1..) if is_number => port,
        _ => return Err(refuse(format!("{shown} has a port that is not within 1 and 65535"))),
    };
    let host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        // In its shortest form, so that the same address twice is seen.
        Some(ip) => ip.parse::<Ipv6Addr>().ok().map(|ip| ip.to_string()),
        None => (is_host(host) && !host.contains(':')).then(|| host.to_ascii_lowercase()),
    };
    let host = host.ok_or_else(|| {
        refuse(format!("{shown} has no valid host; IPv6 addresses are written in brackets"))
    })?;
    Ok((scheme, Member { host, port }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(endpoints: &[&str], tls: bool) -> Result<Endpoints> {
        parse(&endpoints.iter().map(ToString::to_string).collect::<Vec<_>>(), tls)
    }

    #[test]
    fn good_ones_become_members() {
        let good = ["127.0.0.1:2379", "http://Etcd-2:2379", "[0::1]:1", "h:65535"];
        let plain = parsed(&good, false).expect("are good");
        let all: Vec<_> = plain.all.iter().map(Member::authority).collect();
        assert_eq!(all, ["127.0.0.1:2379", "etcd-2:2379", "[::1]:1", "h:65535"]);
        assert_eq!(plain.all[2].host, "::1");
        assert_eq!(plain.scheme, Scheme::Http);
        assert_eq!(parsed(&["h:1"], true).expect("is good").scheme, Scheme::Https);
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
            (&["0:1"], false, "no valid host"),
            (&["127.1:1"], false, "no valid host"),
            (&["256.1.1.1:1"], false, "no valid host"),
            (&["a..b:1"], false, "no valid host"),
            (&["-:1"], false, "no valid host"),
            (&["::1:1"], false, "in brackets"),
            (&["[h]:1"], false, "in brackets"),
            (&["a b:1"], false, "no valid host"),
            (&["http://h:1", "https://h:2"], false, "mixed"),
            (&["h:1", "https://h:2"], false, "mixed"),
            (&["http://h:1"], true, "`tls` is configured"),
            (&["root:s3cret@h:1"], false, "contains `@`"),
            (&["h:+1"], false, "port that is not within"),
            (&["h:1 "], false, "port that is not within"),
            (&[" h:1"], false, "no valid host"),
            (&["h\n:1"], false, "no valid host"),
            (&["HTTP://h:1"], false, "neither http nor https"),
            (&["unix://h:1"], false, "neither http nor https"),
            (&["h:1,i:2"], false, "no valid host"),
            (&["h:1", ""], false, "has no port"),
            (&["h:1", "i:1", "http://H:1"], false, "`h:1` is listed twice"),
            (&["[::1]:1", "[0:0::1]:1"], false, "`[::1]:1` is listed twice"),
        ];
        for (endpoints, tls, reason) in table {
            let error = parsed(endpoints, *tls).expect_err(reason).to_string();
            assert!(error.starts_with("invalid endpoints: ") && error.contains(reason), "{error}");
            assert!(!error.contains("s3cret"));
        }
    }
}
