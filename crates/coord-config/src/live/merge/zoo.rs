//! Whatever is below a complete value: it is read as it is from its own text alone.

use std::{collections::BTreeMap, fmt::Debug, time::Duration};

use fastrand::Rng;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Text, read};

/// A type with its random values.
trait Animal: Serialize + DeserializeOwned + PartialEq + Debug {
    fn born(rng: &mut Rng) -> Self;
}

macro_rules! animals {
    ($($type:ty: |$rng:ident| $born:expr;)+) => {$(
        impl Animal for $type {
            fn born($rng: &mut Rng) -> Self {
                $born
            }
        }
    )+};
}

macro_rules! animal {
    ($(#[$attribute:meta])* struct $name:ident { $($(#[$of:meta])* $field:ident: $type:ty,)+ }) => {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        $(#[$attribute])*
        struct $name { $($(#[$of])* $field: $type,)+ }

        impl Animal for $name {
            fn born(rng: &mut Rng) -> Self {
                Self { $($field: Animal::born(rng),)+ }
            }
        }
    };
}

animals! {
    bool: |rng| rng.bool();
    u8: |rng| rng.u8(..4);
    u64: |rng| if rng.bool() { rng.u64(..) } else { u64::MAX };
    u128: |rng| rng.u128(..);
    i128: |rng| rng.i128(..);
    f64: |rng| loop {
        let number = f64::from_bits(rng.u64(..));
        if number.is_finite() { break number }
    };
    f32: |rng| loop {
        let number = f32::from_bits(rng.u32(..));
        if number.is_finite() { break number }
    };
    char: |rng| rng.char(..);
    String: |rng| (0..rng.usize(..4)).map(|_| rng.char(..)).collect();
    (): |_rng| ();
    Duration: |rng| Duration::new(rng.u64(..9), rng.u32(..999));
    serde_json::Value: |rng| match rng.u8(..5) {
        0 => serde_json::Value::Null,
        1 => rng.bool().into(),
        2 => serde_json::json!({"a": rng.u8(..), "name": {"x": rng.bool()}}),
        3 => serde_json::json!([rng.u8(..), {}]),
        _ => String::born(rng).into(),
    };
}

impl<T: Animal> Animal for Option<T> {
    fn born(rng: &mut Rng) -> Self {
        rng.bool().then(|| T::born(rng))
    }
}

impl<T: Animal> Animal for Vec<T> {
    fn born(rng: &mut Rng) -> Self {
        (0..rng.usize(..3)).map(|_| T::born(rng)).collect()
    }
}

impl<T: Animal> Animal for Box<T> {
    fn born(rng: &mut Rng) -> Self {
        Self::new(T::born(rng))
    }
}

impl<T: Animal> Animal for BTreeMap<String, T> {
    fn born(rng: &mut Rng) -> Self {
        let names = ["a", "b", "name", "kind"];
        let mut map = Self::new();
        for name in names {
            if rng.bool() {
                map.insert(name.to_owned(), T::born(rng));
            }
        }
        map
    }
}

impl<A: Animal, B: Animal> Animal for (A, B) {
    fn born(rng: &mut Rng) -> Self {
        (A::born(rng), B::born(rng))
    }
}

animal! { struct Numbers { a: u64, b: u128, c: i128, d: f64, e: f32, } }
animal! { struct Small { a: u8, b: Option<u8>, name: String, } }
animal! { #[serde(deny_unknown_fields)] struct Strict { a: u8, kind: Option<Small>, } }
animal! { #[serde(default)] struct Lenient { a: u8, b: Vec<Small>, } }
impl Default for Lenient {
    fn default() -> Self {
        Self { a: 77, b: vec![] }
    }
}
animal! {
    struct Renamed {
        #[serde(alias = "a")] new: Option<Small>,
        #[serde(alias = "b", alias = "name")] other: Box<Small>,
    }
}
animal! { struct Flat { a: u8, #[serde(flatten)] rest: BTreeMap<String, Small>, } }
animal! { #[serde(transparent)] struct Thin { inner: Small, } }
animal! { struct Odd { name: char, kind: (), b: (u8, Small), a: Duration, } }
animal! { #[serde(rename_all = "kebab-case")] struct Kebab { first_name: String, #[serde(alias = "kind")] last_name: u8, } }

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Newtype(Small);
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Pair(Small, u8);

macro_rules! enums {
    ($($(#[$attribute:meta])* $name:ident;)+) => {$(
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        $(#[$attribute])*
        enum $name {
            Unit,
            Strict(Strict),
            Small(Small),
            Fields { a: u8, b: Option<Small> },
        }

        impl Animal for $name {
            fn born(rng: &mut Rng) -> Self {
                match rng.u8(..4) {
                    0 => Self::Unit,
                    1 => Self::Strict(Strict::born(rng)),
                    2 => Self::Small(Small::born(rng)),
                    _ => Self::Fields { a: u8::born(rng), b: Animal::born(rng) },
                }
            }
        }
    )+};
}

enums! {
    External;
    #[serde(tag = "kind")] Internal;
    #[serde(tag = "kind", content = "a")] Adjacent;
    #[serde(tag = "a", content = "kind", deny_unknown_fields)] AdjacentStrict;
    #[serde(untagged)] Untagged;
}

impl Animal for Newtype {
    fn born(rng: &mut Rng) -> Self {
        Self(Small::born(rng))
    }
}

impl Animal for Pair {
    fn born(rng: &mut Rng) -> Self {
        Self(Small::born(rng), u8::born(rng))
    }
}

animal! {
    struct Zoo {
        external: External,
        internal: Internal,
        adjacent: Option<Adjacent>,
        strict: AdjacentStrict,
        untagged: Untagged,
        renamed: Renamed,
        flat: Flat,
        lenient: Lenient,
        newtype: Newtype,
        numbers: Numbers,
        maps: BTreeMap<String, Renamed>,
        any: serde_json::Value,
    }
}

/// JSON of all sorts.
fn anything(rng: &mut Rng) -> String {
    fn of<T: Animal>(rng: &mut Rng) -> String {
        serde_json::to_string(&T::born(rng)).expect("is JSON")
    }
    let sorts = [
        of::<Small>,
        of::<Strict>,
        of::<Lenient>,
        of::<Renamed>,
        of::<Flat>,
        of::<Odd>,
        of::<Kebab>,
        of::<External>,
        of::<Internal>,
        of::<Adjacent>,
        of::<AdjacentStrict>,
        of::<Untagged>,
        of::<BTreeMap<String, Adjacent>>,
        of::<Vec<Small>>,
        of::<serde_json::Value>,
        of::<u128>,
        of::<Zoo>,
    ];
    sorts[rng.usize(..sorts.len())](rng)
}

fn holds<T: Animal>() {
    for seed in 0..300 {
        let rng = &mut Rng::with_seed(seed);
        let mut texts = vec![serde_json::to_string(&T::born(rng)).expect("is JSON")];
        for _ in 0..rng.usize(1..4) {
            let same = rng.bool().then(|| serde_json::to_string(&T::born(rng)).expect("is JSON"));
            texts.push(same.unwrap_or_else(|| anything(rng)));
        }
        // Names of one field, here and there.
        for text in &mut texts[1..] {
            if rng.bool() {
                *text = text.replace("\"new\":", "\"a\":").replace("\"other\":", "\"name\":");
            }
        }
        let alone = serde_json::from_str::<T>(&texts[0]);
        let layers: Vec<_> = texts.iter().enumerate().map(|(layer, json)| Text { layer, json }).collect();
        let merged = read::<T>(&layers);
        match (alone, merged) {
            (Ok(alone), Ok(merged)) => assert_eq!(merged, alone, "seed {seed}: {texts:?}"),
            // A few values of untagged enums are not read by anyone.
            (Err(_), Err(_)) => {}
            (alone, merged) => panic!("seed {seed}: {alone:?} alone, {merged:?} of {texts:?}"),
        }
    }
}

#[test]
fn complete_values_are_read_as_they_are_alone() {
    holds::<Numbers>();
    holds::<Small>();
    holds::<Strict>();
    holds::<Lenient>();
    holds::<Renamed>();
    holds::<Flat>();
    holds::<Thin>();
    holds::<Odd>();
    holds::<Kebab>();
    holds::<Newtype>();
    holds::<Pair>();
    holds::<External>();
    holds::<Internal>();
    holds::<Adjacent>();
    holds::<AdjacentStrict>();
    holds::<Untagged>();
    holds::<Zoo>();
    holds::<Option<Zoo>>();
    holds::<BTreeMap<String, Small>>();
    holds::<(Small, Renamed)>();
    holds::<Vec<Box<Small>>>();
    holds::<serde_json::Value>();
}
