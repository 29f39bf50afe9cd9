//! Addresses that clients can connect to. Addresses that are taken here are those that the system's resolver
//! takes. It reads `0` and `127.1` as IPv4 addresses of old, and asks the name service for `256.1.1.1`.

use std::net::IpAddr;

use crate::{Error, Result};

/// Checks a host name, or an IP address without brackets.
pub(super) fn check_address(address: &str) -> Result<()> {
    let refuse = |reason: &str| Err(Error::invalid("address", reason));
    if address.is_empty() {
        return refuse("is empty, it needs a host name or an IP address");
    }
    if address.len() > 253 {
        return refuse("is longer than 253 bytes");
    }
    match address.parse::<IpAddr>() {
        Ok(ip) => match refusal(ip) {
            Some(reason) => refuse(reason),
            None => Ok(()),
        },
        Err(_) if address.starts_with('[') || address.contains(':') => {
            refuse("is not an IP address; write IPv6 without brackets, and the port in its own field")
        }
        Err(_) if !is_host_name(address) => refuse("is neither an IP address nor a host name"),
        Err(_) if ends_in_a_number(address) => {
            refuse("is no IP address, though it ends in a number as only those do: write all four parts")
        }
        Err(_) => Ok(()),
    }
}

/// Returns whether a text is an IP address without brackets, or a host name that the system's resolver takes as one.
pub fn is_host(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok() || is_host_name(text) && !ends_in_a_number(text)
}

/// Returns why nobody can connect to an IP address.
fn refusal(ip: IpAddr) -> Option<&'static str> {
    let ip = ip.to_canonical();
    match ip {
        _ if ip.is_unspecified() => {
            Some("is the unspecified address: servers listen there, clients can not connect to it")
        }
        _ if ip.is_multicast() => Some("is a multicast address, clients can not connect to it"),
        IpAddr::V4(v4) if v4.is_broadcast() || v4.octets()[0] == 0 => {
            Some("is not the address of one host, clients can not connect to it")
        }
        _ => None,
    }
}

/// Labels as host names have them, and underscores as container engines do. A dot at the end ends the search for others.
fn is_host_name(text: &str) -> bool {
    text.strip_suffix('.').unwrap_or(text).split('.').all(|label| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
            && !label.starts_with('-')
            && !label.ends_with('-')
    })
}

/// Returns whether it is read as an IPv4 address, in one of the old forms or not at all.
fn ends_in_a_number(host: &str) -> bool {
    let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    let hexadecimal = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    last.bytes().all(|byte| byte.is_ascii_digit())
        || hexadecimal.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_can_connect_to_is_taken() {
        let good = [
            "10.0.0.1",
            "127.0.0.1",
            "255.1.1.1",
            "::1",
            "2001:db8::1",
            "::ffff:10.0.0.1",
            "localhost",
            "db-1.local",
            "im_logic.svc",
            "1a",
            "a1",
            "10.example",
            "example.com.",
            "xn--bcher-kva.example",
            "0xg",
        ];
        for address in good {
            check_address(address).expect(address);
        }
    }

    #[test]
    fn hosts_are_addresses_and_names_that_a_resolver_takes() {
        for host in ["127.0.0.1", "0.0.0.0", "::1", "etcd-0.etcd", "localhost"] {
            assert!(is_host(host), "{host}");
        }
        for text in ["", "0", "127.1", "256.1.1.1", "a..b", "-", "[::1]", "a b", "h:1"] {
            assert!(!is_host(text), "{text}");
        }
    }

    #[test]
    fn what_nobody_can_connect_to_is_refused() {
        let bad = [
            "",
            "0",
            "0.0",
            "0.0.0.0",
            "0.0.0.0.",
            "0.1.2.3",
            "127.1",
            "127.0.0.1.",
            "1.2.3.4.5",
            "256.1.1.1",
            "1.2.3.04x.0x7f",
            "0x7f000001",
            "0X7F.1",
            "0x",
            "4294967295",
            "010.0.0.1",
            "224.0.0.1",
            "239.255.255.255",
            "255.255.255.255",
            "::",
            "::ffff:0.0.0.0",
            "::ffff:224.0.0.1",
            "ff02::1",
            "fe80::1%eth0",
            "[::1]",
            "host:80",
            "-",
            "--",
            "-a",
            "a-",
            "a.-b",
            ".",
            "..",
            ".a",
            "a..b",
            "a..",
            "a b",
            "a\n",
            "ä",
            "user@host",
            "host/path",
            "host?q",
            "*",
        ];
        for address in bad {
            let error = check_address(address).expect_err(address).to_string();
            assert!(error.starts_with("invalid address: is "), "{error}");
        }
        check_address(&"a".repeat(64)).expect_err("a label is longer than names have");
    }
}
