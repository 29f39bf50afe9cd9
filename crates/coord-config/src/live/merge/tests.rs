use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{super::whole::Whole, *};

fn over<T: DeserializeOwned>(texts: &[&str]) -> Result<T, Misfit> {
    let texts: Vec<_> = texts.iter().enumerate().map(|(layer, json)| Text { layer, json }).collect();
    read(&texts)
}

fn misfit<T: DeserializeOwned>(texts: &[&str]) -> (Option<usize>, String) {
    let Misfit { layer, path } = over::<T>(texts).map(|_| ()).expect_err("does not fit");
    (layer, path)
}

#[derive(Debug, PartialEq, Deserialize)]
struct Point {
    x: u32,
    y: u32,
}

#[derive(Debug, PartialEq, Deserialize)]
struct Shape {
    at: Point,
    #[serde(default)]
    to: Option<Point>,
    names: BTreeMap<String, u32>,
    points: Vec<Point>,
}

#[test]
fn structs_within_structs_are_merged_and_nothing_else() {
    let texts = [
        r#"{"at":{"x":1},"names":{"a":1},"points":[]}"#,
        r#"{"at":{"y":5},"to":{"x":7,"y":7},"names":{"b":2}}"#,
        r#"{"at":{"x":9,"y":9},"to":{"x":8,"y":8},"names":{"c":3},"points":[{"x":1,"y":1}]}"#,
    ];
    let expected = Shape {
        at: Point { x: 1, y: 5 },
        to: Some(Point { x: 7, y: 7 }),
        names: BTreeMap::from([("a".into(), 1)]),
        points: vec![],
    };
    assert_eq!(over(&texts), Ok(expected));
    // Types that hide the object below are not looked through.
    let texts = [r#"{"to":{"x":1,"y":1}}"#, r#"{"to":null}"#, texts[2]];
    assert_eq!(over::<Shape>(&texts).expect("fits").to, Some(Point { x: 1, y: 1 }));
    assert_eq!(over::<Shape>(&texts[1..]).expect("fits").to, None);
    assert_eq!(misfit::<Shape>(&[r#"{"to":{"x":1}}"#, r#"{"to":null}"#, texts[2]]), (Some(0), "to".into()));
    assert_eq!(over(&["[1,2]", r#"{"x":9}"#]), Ok(Point { x: 1, y: 2 }));
}

#[test]
fn misfits_name_the_layer_and_the_path() {
    let good = r#"{"at":{"x":9,"y":9},"names":{},"points":[]}"#;
    let table = [
        (vec![r#"{"at":{"x":"s"}}"#, good], (Some(0), "at.x")),
        (vec![r#"{"at":{"x":1}}"#, r#"{"at":{"y":-1},"names":{},"points":[]}"#], (Some(1), "at.y")),
        (vec![r#"{"points":[{"x":1,"y":1},{"x":1,"y":[]}]}"#, good], (Some(0), "points[1].y")),
        (vec![r#"{"at":{"x":1}}"#, r#"{"names":{},"points":[]}"#], (Some(0), "at")),
        (vec![r#"{"at":5}"#, good], (Some(0), "at")),
        (vec!["{}", r#"{"at":{"x":9,"y":9}}"#], (None, ".")),
        (vec!["5", good], (Some(0), ".")),
        (vec![r#"{"at":{"x":1,"x":2}}"#, good], (None, "at")),
    ];
    for (texts, (layer, path)) in table {
        assert_eq!(misfit::<Shape>(&texts), (layer, path.to_owned()), "{texts:?}");
    }
}

#[test]
fn names_that_no_field_has_below_mean_nothing() {
    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Strict {
        a: u32,
    }
    assert_eq!(over(&[r#"{"a":1}"#, r#"{"b":2}"#, r#"{"a":3,"c":4}"#]), Ok(Strict { a: 1 }));
    assert_eq!(misfit::<Strict>(&[r#"{"a":1,"b":2}"#, "{}"]).0, None);
}

#[derive(Debug, PartialEq, Deserialize)]
struct Renamed {
    #[serde(alias = "old", alias = "older")]
    new: Point,
    #[serde(default, alias = "was")]
    is: Option<Box<Renamed>>,
}

#[test]
fn names_of_one_field_are_one_in_all_layers() {
    let new = |x, y| Renamed { new: Point { x, y }, is: None };
    let table = [
        (vec![r#"{"new":{"x":1}}"#, r#"{"old":{"x":0,"y":2}}"#], new(1, 2)),
        (vec![r#"{"old":{"x":1}}"#, r#"{"new":{"x":0,"y":2}}"#], new(1, 2)),
        (vec!["{}", r#"{"older":{"x":1,"y":1}}"#, r#"{"old":{"x":0,"y":2}}"#, r#"{"new":{}}"#], new(1, 1)),
        (vec![r#"{"new":{"x":1}}"#, r#"{"is":null}"#, r#"{"older":{"y":2,"x":9},"is":5}"#], new(1, 2)),
        (vec![r#"{"older":{}}"#, r#"{"old":{"x":1}}"#, r#"{"new":{"x":0,"y":2}}"#], new(1, 2)),
        (vec![r#"{"new":{"x":1,"y":1}}"#, r#"{"old":{"x":0,"y":2},"new":"bad"}"#], new(1, 1)),
    ];
    for (texts, expected) in table {
        assert_eq!(over(&texts), Ok(expected), "{texts:?}");
    }
    let nested =
        [r#"{"is":{"old":{"x":1}},"new":{"x":5,"y":5}}"#, r#"{"was":{"older":{"y":1},"new":{"x":9}}}"#];
    let inner = Some(Box::new(new(1, 1)));
    assert_eq!(over(&nested), Ok(Renamed { new: Point { x: 5, y: 5 }, is: inner }));
    // As a reader of that text alone says.
    assert_eq!(misfit::<Renamed>(&[r#"{"new":{"x":1,"y":1},"old":{}}"#, "{}"]).1, ".");
}

#[test]
fn enums_are_one_unit_however_they_are_tagged() {
    #[derive(Debug, PartialEq, Deserialize)]
    struct Fixed {
        ms: u32,
        #[serde(default)]
        jitter: bool,
    }
    #[derive(Debug, PartialEq, Deserialize)]
    enum External {
        Fixed(Fixed),
        Growing { factor: u32 },
        Off,
    }
    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(tag = "kind")]
    enum Internal {
        Fixed(Fixed),
        Growing { factor: u32 },
    }
    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(tag = "kind", content = "of")]
    enum Adjacent {
        Fixed(Fixed),
        Growing { factor: u32 },
        Off,
    }
    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(untagged)]
    enum Untagged {
        Growing { factor: u32 },
        Fixed(Fixed),
    }
    #[derive(Debug, PartialEq, Deserialize)]
    struct All {
        external: External,
        internal: Internal,
        adjacent: Adjacent,
        untagged: Untagged,
    }
    let fixed = Fixed { ms: 5, jitter: false };
    let below = r#"{
        "external":{"Growing":{"factor":2}},
        "internal":{"kind":"Fixed","ms":1,"jitter":true},
        "adjacent":{"kind":"Fixed","of":{"ms":1,"jitter":true}},
        "untagged":{"ms":1,"factor":2,"jitter":true}
    }"#;
    let above = r#"{
        "external":{"Fixed":{"ms":5}},
        "internal":{"kind":"Fixed","ms":5},
        "adjacent":{"kind":"Fixed","of":{"ms":5}},
        "untagged":{"ms":5}
    }"#;
    let all = over::<All>(&[above, below]).expect("fits");
    assert_eq!(all.external, External::Fixed(Fixed { ..fixed }));
    assert_eq!(all.internal, Internal::Fixed(Fixed { ms: 5, jitter: false }));
    assert_eq!(all.adjacent, Adjacent::Fixed(Fixed { ms: 5, jitter: false }));
    assert_eq!(all.untagged, Untagged::Fixed(fixed));
    let off = r#"{"adjacent":{"kind":"Off"},"external":"Off","internal":{"kind":"Growing","factor":3}}"#;
    let all = over::<All>(&[off, below]).expect("fits");
    assert_eq!((all.external, all.adjacent), (External::Off, Adjacent::Off));
    assert_eq!(all.internal, Internal::Growing { factor: 3 });
    let growing = r#"{"adjacent":{"of":{"factor":4},"kind":"Growing"},"external":{"Growing":{"factor":4}}}"#;
    let all = over::<All>(&[growing, below]).expect("fits");
    assert_eq!(
        (all.external, all.adjacent),
        (External::Growing { factor: 4 }, Adjacent::Growing { factor: 4 })
    );
    assert_eq!(all.untagged, Untagged::Growing { factor: 2 });
}

#[test]
fn a_whole_is_one_unit_and_json_itself_is() {
    #[derive(Debug, Deserialize)]
    struct Parts {
        whole: Whole<Option<Half>>,
        #[serde(deserialize_with = "super::super::whole::whole")]
        field: Half,
        merged: Half,
        any: serde_json::Value,
        raw: Box<RawValue>,
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Half {
        a: Option<u32>,
        b: Option<u32>,
    }
    let part = |half: &str| {
        format!(r#"{{"whole":{half},"field":{half},"merged":{half},"any":{half},"raw":{half}}}"#)
    };
    let found =
        over::<Parts>(&[&part(r#"{"a":1.0}"#).replace("1.0", "1"), &part(r#"{"b":2}"#)]).expect("fits");
    assert_eq!(*found.whole, Some(Half { a: Some(1), b: None }));
    assert_eq!(found.field, Half { a: Some(1), b: None });
    assert_eq!(found.merged, Half { a: Some(1), b: Some(2) });
    assert_eq!(found.any, serde_json::json!({"a": 1}));
    assert_eq!(found.raw.get(), r#"{"a":1}"#);
    let text = serde_json::to_string(&Whole(Half { a: Some(1), b: None })).expect("is JSON");
    assert_eq!(text, r#"{"a":1,"b":null}"#);
}

#[test]
fn numbers_keep_every_digit() {
    #[derive(Debug, PartialEq, Deserialize)]
    struct Numbers {
        a: u128,
        b: i128,
        c: f64,
        d: f32,
    }
    let below = r#"{"a":340282366920938463463374607431768211455,"c":0.1,"d":16777217}"#;
    let above = r#"{"b":-170141183460469231731687303715884105728,"c":5e-324}"#;
    let expected = Numbers { a: u128::MAX, b: i128::MIN, c: 5e-324, d: 16_777_216.0 };
    assert_eq!(over(&[above, below]), Ok(expected));
}
