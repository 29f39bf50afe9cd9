//! Invariants of the parsers of this crate, for any input; for the fuzz targets and for tests.
//!
//! Each function panics if its invariant does not hold.

pub use coord_kv::fuzz::{id_value, keys};

use crate::transport::endpoint;

/// Checks that a list of endpoints, divided by commas, becomes URLs that are themselves good endpoints, or a
/// refusal in one line.
pub fn endpoints(text: &str) {
    let list: Vec<_> = text.split(',').map(str::to_owned).collect();
    for tls in [false, true] {
        match endpoint::parse(&list, tls) {
            Ok(endpoints) => {
                assert_eq!(endpoints.all.len(), list.len());
                let scheme = if endpoints.scheme == endpoint::Scheme::Https { "https" } else { "http" };
                let urls = endpoints.all.iter().map(|member| format!("{scheme}://{}", member.authority()));
                let again = endpoint::parse(&urls.collect::<Vec<_>>(), tls);
                assert_eq!(again.expect("are good"), endpoints);
            }
            Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
        }
    }
}
