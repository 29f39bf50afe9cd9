//! What must hold of every parser, on random inputs: the same that the fuzz targets look at.
//!
//! `PROPTEST_CASES=N` looks at more of them.

#[path = "../../fuzz/properties.rs"]
mod properties;

use proptest::{collection::vec, prelude::*, sample::select};

/// Text of pieces that mean something to a parser, and of others.
fn text(pieces: &'static [&'static str]) -> impl Strategy<Value = String> {
    let piece =
        prop_oneof![4 => select(pieces).prop_map(str::to_owned), 1 => any::<char>().prop_map(String::from)];
    vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

fn name() -> impl Strategy<Value = String> {
    let long = "x".repeat(250).leak();
    let pieces: &[&str] = &["a", "b", "a", "/", "/", ".", "..", "%2F", "%", "-2", " ", "é", "\n", long];
    text(pieces.to_vec().leak())
}

fn url() -> impl Strategy<Value = String> {
    let start = select(vec!["memory://", "etcd://", "etcd:/", "http://", ""]);
    let rest =
        text(&["h1:2379", ",", "/", "shop", ":", "[::1]:1", "@", "?", "0", "99999", "http://", "#", ".."]);
    (start, rest).prop_map(|(start, rest)| format!("{start}{rest}"))
}

fn address() -> impl Strategy<Value = String> {
    text(&[
        "0", "1", "127", "256", ".", ".", ":", "[", "]", "::", "a", "-", "_", "0x", "f", "host", "224", "+",
        "80", "%",
    ])
}

/// JSON of fields that records have, now and then broken.
fn json() -> impl Strategy<Value = Vec<u8>> {
    let value = select(vec![
        "1",
        "0",
        "-1",
        "1.5",
        "null",
        "true",
        r#""1""#,
        r#""svc""#,
        r#""a""#,
        "[]",
        "{}",
        r#"{"k":"v"}"#,
        r#""30s""#,
        r#""1970-01-01T00:00:00Z""#,
        "18446744073709551615",
        "[{\"number\":1,\"version\":1,\"at_ms\":1}]",
        r#"{"percent":50}"#,
        "5000000000000000000000",
    ]);
    let field = select(vec![
        "id",
        "name",
        "address",
        "port",
        "metadata",
        "owner",
        "host",
        "pid",
        "client",
        "identity",
        "since",
        "rest",
        "attempt",
        "resting",
        "number",
        "version",
        "author",
        "at_ms",
        "comment",
        "deleted",
        "value",
        "audience",
        "percent",
        "labels",
        "keys",
        "prefixes",
        "backend",
        "endpoints",
        "namespace",
        "password",
        "tls",
        "layout",
        "connect_timeout",
        "records",
    ]);
    let object = vec((field, value), 0..14).prop_map(|fields| {
        let fields: Vec<_> = fields.into_iter().map(|(field, value)| format!("{field:?}:{value}")).collect();
        format!("{{{}}}", fields.join(",")).into_bytes()
    });
    prop_oneof![6 => object.clone(), 2 => (object, any::<prop::sample::Index>(), any::<u8>()).prop_map(|(mut json, at, byte)| {
        let at = at.index(json.len());
        json[at] = byte;
        json
    }), 1 => vec(any::<u8>(), 0..64)]
}

/// One whole record of each kind, so that each reader sees something good with something wrong in it.
fn record() -> impl Strategy<Value = Vec<u8>> {
    let whole = select(vec![
        r#"{"id":"1","name":"svc","address":"h","port":1,"metadata":{"weight":"2"},"owner":"x","zone":[1]}"#,
        r#"{"id":"1","name":"svc","address":"[::1]:80","port":"80","metadata":{"weight":1e99,"a":[1]},"serving":false}"#,
        r#"{"host":"h","pid":1,"client":"c","identity":"i","since":"1970-01-01T00:00:00Z","rest":"30s","attempt":7}"#,
        r#"[{"number":1,"version":3,"author":"a","at_ms":5,"comment":"c"}]"#,
        r#"{"value":{"a":1},"audience":{"percent":7,"labels":{"zone":"eu"}},"author":"a","at_ms":9}"#,
        r#"{"keys":{"a/b":{"type":"integer"}},"prefixes":{"a":{"type":"object"}}}"#,
        r#"{"backend":"etcd","endpoints":["h:1"],"namespace":"shop","request_timeout":"5s","layout":"go_original"}"#,
    ]);
    (whole, vec((any::<prop::sample::Index>(), any::<u8>()), 0..3)).prop_map(|(whole, changes)| {
        let mut bytes = whole.as_bytes().to_vec();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes
    })
}

/// Refusals that repeated the whole of what was long, or of what a terminal obeys.
#[test]
fn what_a_fuzzer_found() {
    properties::urls(&format!("etcd://{}", "\u{1b}".repeat(91)));
    properties::urls(&format!("etcd://h:1/{}", "é".repeat(127)));
    properties::stored("{\"labels\":{\"\u{7f}one\":x}}".as_bytes());
    properties::stored(format!("{{\"{}\":x}}", "\u{1b}".repeat(400)).as_bytes());
    properties::stored(format!("{{\"{}\":x}}", "é".repeat(400)).as_bytes());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn names(text in name()) {
        properties::names(&text);
    }

    #[test]
    fn addresses(text in address()) {
        properties::addresses(&text);
    }

    #[test]
    fn keys(one in name(), other in name()) {
        properties::keys(&one, &other);
        properties::keys(&one, &one);
    }

    #[test]
    fn urls(text in url()) {
        properties::urls(&text);
    }

    #[test]
    fn long_texts(char in any::<char>(), start in select(vec!["", "etcd://", "etcd://h:", "etcd://h:1/", "x://"])) {
        let text = format!("{start}{}", String::from(char).repeat(300));
        properties::urls(&text);
        properties::names(&text);
    }

    #[test]
    fn config_json(bytes in prop_oneof![json(), record()]) {
        properties::config_json(&bytes);
    }

    #[test]
    fn stored(bytes in prop_oneof![json(), record()]) {
        properties::stored(&bytes);
    }
}
