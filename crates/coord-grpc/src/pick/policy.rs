//! Policy: the rule by which the picker chooses an instance for a call.

use http::{HeaderMap, Request};

/// Rule by which a [`Connection`](crate::Connection) chooses among the instances that are ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Policy {
    /// Smaller product of latency and calls in flight, of two random instances. The default.
    ///
    /// Latency is a moving average that rises with the first slow answer ("peak EWMA"). Differences below a millisecond, and
    /// the first answer over a connection, are taken for chance.
    #[default]
    PeakEwma,
    /// Fewer calls in flight, of two random instances.
    LeastPending,
    /// Each in turn.
    RoundRobin,
    /// Random, in proportion to the metadata [`WEIGHT`](coord_api::WEIGHT), which is 1 if there is none.
    Weighted,
    /// All calls with one [`HashKey`] to one instance, also from other clients. If an instance comes or goes, only its share of
    /// the keys moves. Calls without a key are spread as by [`PeakEwma`](Self::PeakEwma).
    ConsistentHash,
}

/// Key by which [`Policy::ConsistentHash`] chooses: an extension of the request.
///
/// ```
/// use coord_grpc::HashKey;
/// let mut request = tonic::Request::new(());
/// request.extensions_mut().insert(HashKey::new("user-7"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HashKey(pub(crate) u64);

impl HashKey {
    /// Returns the key of a user, a room, a shard, … It is equal in every process and every version of coord.
    pub fn new(key: impl AsRef<[u8]>) -> Self {
        Self(hash(&[key.as_ref()]))
    }

    /// Returns the key from the request's extension, else from its header of the given name.
    pub(crate) fn of<B>(request: &Request<B>, header: Option<&str>) -> Option<Self> {
        let extension = request.extensions().get::<Self>().copied();
        extension.or_else(|| Self::in_headers(request.headers(), header?))
    }

    fn in_headers(headers: &HeaderMap, name: &str) -> Option<Self> {
        headers.get(name).map(|value| Self::new(value.as_bytes()))
    }
}

/// Hashes by FNV-1a with a final mix. Clients of different versions have to agree, and the standard library promises
/// nothing about its hasher.
pub(crate) fn hash(parts: &[&[u8]]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        // A length before each part, so that `a` + `bc` is not `ab` + `c`.
        for byte in (part.len() as u64).to_le_bytes().iter().chain(*part) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_of_a_key_never_changes() {
        assert_eq!(HashKey::new("user-7"), HashKey::new(b"user-7"));
        assert_eq!(
            HashKey::new("user-7").0,
            16_666_614_899_188_705_492,
            "changing this moves every key of every user"
        );
        assert_ne!(hash(&[b"a", b"bc"]), hash(&[b"ab", b"c"]));
    }

    #[test]
    fn extension_comes_before_a_header() {
        let mut request = Request::builder().header("x-user", "7").body(()).expect("is good");
        assert_eq!(HashKey::of(&request, None), None);
        assert_eq!(HashKey::of(&request, Some("x-user")), Some(HashKey::new("7")));
        assert_eq!(HashKey::of(&request, Some("x-room")), None);
        request.extensions_mut().insert(HashKey::new("8"));
        assert_eq!(HashKey::of(&request, Some("x-user")), Some(HashKey::new("8")));
    }
}
