//! How an instance is chosen for a call.

use http::{HeaderMap, Request};

/// How a [`Connection`](crate::Connection) chooses among the instances that are ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Policy {
    /// Of two random instances the one with the smaller product of latency and calls in flight. Latency is a
    /// moving average that rises with the first slow answer ("peak EWMA"). Differences below a millisecond, and the first
    /// answer over a connection, are taken for chance. The default.
    #[default]
    PeakEwma,
    /// Of two random instances the one with fewer calls in flight.
    LeastPending,
    /// One after the other.
    RoundRobin,
    /// At random, in proportion to the metadata [`WEIGHT`](coord_api::WEIGHT); 1 where there is none.
    Weighted,
    /// All calls with one [`HashKey`] to one instance, the same from every client; if an instance comes or
    /// goes only its share of the keys moves. Calls without a key are spread as by [`PeakEwma`](Self::PeakEwma).
    ConsistentHash,
}

/// What [`Policy::ConsistentHash`] chooses by: an extension of the request.
///
/// ```
/// use coord_grpc::HashKey;
/// let mut request = tonic::Request::new(());
/// request.extensions_mut().insert(HashKey::new("user-7"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HashKey(pub(crate) u64);

impl HashKey {
    /// The key of a user, a room, a shard, … It is the same in every process and every version of coord.
    pub fn new(key: impl AsRef<[u8]>) -> Self {
        Self(hash(&[key.as_ref()]))
    }

    /// The extension of a request, else its header of the given name.
    pub(crate) fn of<B>(request: &Request<B>, header: Option<&str>) -> Option<Self> {
        let extension = request.extensions().get::<Self>().copied();
        extension.or_else(|| Self::in_headers(request.headers(), header?))
    }

    fn in_headers(headers: &HeaderMap, name: &str) -> Option<Self> {
        headers.get(name).map(|value| Self::new(value.as_bytes()))
    }
}

/// FNV-1a with a final mix. Clients of different versions have to agree, so it is written out here: the
/// standard library promises nothing of its hasher.
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
    fn a_key_is_the_same_for_ever() {
        assert_eq!(HashKey::new("user-7"), HashKey::new(b"user-7"));
        assert_eq!(
            HashKey::new("user-7").0,
            16_666_614_899_188_705_492,
            "changing this moves every key of every user"
        );
        assert_ne!(hash(&[b"a", b"bc"]), hash(&[b"ab", b"c"]));
    }

    #[test]
    fn an_extension_comes_before_a_header() {
        let mut request = Request::builder().header("x-user", "7").body(()).expect("is good");
        assert_eq!(HashKey::of(&request, None), None);
        assert_eq!(HashKey::of(&request, Some("x-user")), Some(HashKey::new("7")));
        assert_eq!(HashKey::of(&request, Some("x-room")), None);
        request.extensions_mut().insert(HashKey::new("8"));
        assert_eq!(HashKey::of(&request, Some("x-user")), Some(HashKey::new("8")));
    }
}
