//! A serializer around another one that refuses NaN and the infinities, which `serde_json` writes as `null`, and tells where
//! an error is.

use std::{cell::RefCell, fmt::Display};

use serde::ser::{
    Error, Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant, Serializer,
};

/// The way to an error, its last step first. Nothing is noted where there is none.
#[derive(Default)]
pub(super) struct Path(RefCell<Vec<String>>);

impl Path {
    fn add(&self, step: String) {
        self.0.borrow_mut().push(step);
    }

    fn field(&self, name: &str) {
        self.add(format!(".{name}"));
    }

    /// As errors of readers show it.
    pub(super) fn shown(self) -> String {
        let steps: String = self.0.into_inner().into_iter().rev().collect();
        match steps.strip_prefix('.').unwrap_or(&steps) {
            "" => ".".into(),
            path => path.into(),
        }
    }
}

/// Refuses numbers that are not finite; everything else is left to the serializer, or the value, inside.
pub(super) struct Finite<'p, T> {
    pub(super) inner: T,
    pub(super) path: &'p Path,
}

fn refused<E: Error>(number: f64) -> E {
    let name = if number.is_nan() { "NaN" } else { "an infinity" };
    E::custom(format_args!("{name} is no number there"))
}

impl<T: Serialize + ?Sized> Serialize for Finite<'_, &T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.inner.serialize(Finite { inner: serializer, path: self.path })
    }
}

/// An array or an object under way.
pub(super) struct Open<'p, S> {
    inner: S,
    path: &'p Path,
    /// Of an enum, around it.
    variant: Option<&'static str>,
    index: usize,
    key: String,
}

impl<'p, S> Open<'p, S> {
    fn wrap<'v, T: ?Sized>(&self, value: &'v T) -> Finite<'p, &'v T> {
        Finite { inner: value, path: self.path }
    }

    /// Notes the step to an element or a field, if that has failed.
    fn note<E>(&self, done: Result<(), E>, step: impl FnOnce() -> String) -> Result<(), E> {
        if done.is_err() {
            self.path.add(step());
            self.variant.iter().for_each(|variant| self.path.field(variant));
        }
        done
    }
}

macro_rules! pass {
    ($($method:ident($($name:ident: $type:ty),*);)+) => {$(
        fn $method(self, $($name: $type),*) -> Result<S::Ok, S::Error> {
            self.inner.$method($($name),*)
        }
    )+};
}

macro_rules! open {
    ($($method:ident($($name:ident: $type:ty),*) -> $compound:ident in $variant:expr;)+) => {$(
        fn $method(self, $($name: $type),*) -> Result<Self::$compound, S::Error> {
            let inner = self.inner.$method($($name),*)?;
            Ok(Open { inner, path: self.path, variant: $variant, index: 0, key: String::new() })
        }
    )+};
}

impl<'p, S: Serializer> Serializer for Finite<'p, S> {
    type Ok = S::Ok;
    type Error = S::Error;
    type SerializeSeq = Open<'p, S::SerializeSeq>;
    type SerializeTuple = Open<'p, S::SerializeTuple>;
    type SerializeTupleStruct = Open<'p, S::SerializeTupleStruct>;
    type SerializeTupleVariant = Open<'p, S::SerializeTupleVariant>;
    type SerializeMap = Open<'p, S::SerializeMap>;
    type SerializeStruct = Open<'p, S::SerializeStruct>;
    type SerializeStructVariant = Open<'p, S::SerializeStructVariant>;

    fn serialize_f32(self, number: f32) -> Result<S::Ok, S::Error> {
        if number.is_finite() { self.inner.serialize_f32(number) } else { Err(refused(number.into())) }
    }

    fn serialize_f64(self, number: f64) -> Result<S::Ok, S::Error> {
        if number.is_finite() { self.inner.serialize_f64(number) } else { Err(refused(number)) }
    }

    pass! {
        serialize_bool(v: bool);
        serialize_i8(v: i8);
        serialize_i16(v: i16);
        serialize_i32(v: i32);
        serialize_i64(v: i64);
        serialize_i128(v: i128);
        serialize_u8(v: u8);
        serialize_u16(v: u16);
        serialize_u32(v: u32);
        serialize_u64(v: u64);
        serialize_u128(v: u128);
        serialize_char(v: char);
        serialize_str(v: &str);
        serialize_bytes(v: &[u8]);
        serialize_none();
        serialize_unit();
        serialize_unit_struct(name: &'static str);
        serialize_unit_variant(name: &'static str, index: u32, variant: &'static str);
    }

    open! {
        serialize_seq(length: Option<usize>) -> SerializeSeq in None;
        serialize_tuple(length: usize) -> SerializeTuple in None;
        serialize_tuple_struct(name: &'static str, length: usize) -> SerializeTupleStruct in None;
        serialize_tuple_variant(name: &'static str, index: u32, variant: &'static str, length: usize)
            -> SerializeTupleVariant in Some(variant);
        serialize_map(length: Option<usize>) -> SerializeMap in None;
        serialize_struct(name: &'static str, length: usize) -> SerializeStruct in None;
        serialize_struct_variant(name: &'static str, index: u32, variant: &'static str, length: usize)
            -> SerializeStructVariant in Some(variant);
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        self.inner.serialize_some(&Finite { inner: value, path: self.path })
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        self.inner.serialize_newtype_struct(name, &Finite { inner: value, path: self.path })
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        let value = Finite { inner: value, path: self.path };
        let done = self.inner.serialize_newtype_variant(name, index, variant, &value);
        done.inspect_err(|_| self.path.field(variant))
    }

    fn collect_str<T: Display + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        self.inner.collect_str(value)
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

macro_rules! elements {
    ($($compound:ident: $method:ident;)+) => {$(
        impl<S: $compound> $compound for Open<'_, S> {
            type Ok = S::Ok;
            type Error = S::Error;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), S::Error> {
                let value = self.wrap(value);
                let done = self.inner.$method(&value);
                let index = self.index;
                self.index += 1;
                self.note(done, || format!("[{index}]"))
            }

            fn end(self) -> Result<S::Ok, S::Error> {
                self.inner.end()
            }
        }
    )+};
}

elements! {
    SerializeSeq: serialize_element;
    SerializeTuple: serialize_element;
    SerializeTupleStruct: serialize_field;
    SerializeTupleVariant: serialize_field;
}

macro_rules! fields {
    ($($compound:ident)+) => {$(
        impl<S: $compound> $compound for Open<'_, S> {
            type Ok = S::Ok;
            type Error = S::Error;

            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                name: &'static str,
                value: &T,
            ) -> Result<(), S::Error> {
                let value = self.wrap(value);
                let done = self.inner.serialize_field(name, &value);
                self.note(done, || format!(".{name}"))
            }

            fn skip_field(&mut self, name: &'static str) -> Result<(), S::Error> {
                self.inner.skip_field(name)
            }

            fn end(self) -> Result<S::Ok, S::Error> {
                self.inner.end()
            }
        }
    )+};
}

fields! { SerializeStruct SerializeStructVariant }

/// A key of a map as it is in a path.
fn step<K: Serialize + ?Sized>(key: &K) -> String {
    let json = serde_json::to_string(key).unwrap_or_default();
    format!(".{}", serde_json::from_str::<String>(&json).unwrap_or(json))
}

impl<S: SerializeMap> SerializeMap for Open<'_, S> {
    type Ok = S::Ok;
    type Error = S::Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), S::Error> {
        self.key = step(key);
        self.inner.serialize_key(&self.wrap(key))
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), S::Error> {
        let value = self.wrap(value);
        let done = self.inner.serialize_value(&value);
        self.note(done, || self.key.clone())
    }

    fn serialize_entry<K: Serialize + ?Sized, V: Serialize + ?Sized>(
        &mut self,
        key: &K,
        value: &V,
    ) -> Result<(), S::Error> {
        self.inner.serialize_key(&self.wrap(key))?;
        let value = self.wrap(value);
        let done = self.inner.serialize_value(&value);
        self.note(done, || step(key))
    }

    fn end(self) -> Result<S::Ok, S::Error> {
        self.inner.end()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Serialize;

    use super::super::to_json;

    #[derive(Serialize)]
    enum Curve {
        Flat,
        Step(f32),
        Line { slope: f64, offset: Option<f64> },
        Points(f64, f32),
    }

    #[derive(Serialize)]
    struct Outer<T> {
        name: &'static str,
        inner: T,
    }

    fn refused<T: Serialize>(value: T) -> String {
        let error = to_json("limits", &Outer { name: "x", inner: value }).expect_err("is refused");
        let text = error.to_string();
        let rest = text.strip_prefix("invalid value: of `limits` at ").expect(&text);
        let (path, reason) = rest.split_once(" can not be written as JSON: ").expect(&text);
        format!("{path} {reason}")
    }

    #[test]
    fn numbers_that_json_does_not_have_are_refused_at_their_path() {
        let (nan, infinity) = (f64::NAN, f64::INFINITY);
        let nothing = "NaN is no number there";
        assert_eq!(refused(nan), format!("`inner` {nothing}"));
        assert_eq!(refused([0.0, -infinity]), "`inner[1]` an infinity is no number there");
        assert_eq!(refused(f32::NAN), format!("`inner` {nothing}"));
        assert_eq!(refused(Some(vec![Some(nan)])), format!("`inner[0]` {nothing}"));
        assert_eq!(refused((1, "a", nan)), format!("`inner[2]` {nothing}"));
        assert_eq!(refused(BTreeMap::from([("a.b", nan)])), format!("`inner.a.b` {nothing}"));
        assert_eq!(refused(Curve::Step(f32::INFINITY)), "`inner.Step` an infinity is no number there");
        assert_eq!(
            refused(Curve::Line { slope: nan, offset: None }),
            format!("`inner.Line.slope` {nothing}")
        );
        assert_eq!(refused(Curve::Points(0.0, f32::NAN)), format!("`inner.Points[1]` {nothing}"));
        assert!(refused(BTreeMap::from([((1, 2), 3)])).contains("key must be a string"));
    }

    #[test]
    fn everything_else_is_written_as_ever() {
        let raw = serde_json::json!({"n": [1, -1, 0.1, u64::MAX], "s": "\u{0}\u{1f600}", "o": {}});
        let table = (
            (
                Curve::Flat,
                Curve::Step(0.1),
                Curve::Line { slope: -0.0, offset: None },
                Curve::Points(1e300, 0.0),
            ),
            (
                u128::MAX,
                i128::MIN,
                (),
                None::<f64>,
                'x',
                [1_u8, 2],
                BTreeMap::from([(1.5_f64.to_bits(), true)]),
            ),
            Outer { name: "a", inner: &raw },
        );
        let written = to_json("a", &table).expect("is JSON");
        assert_eq!(written, serde_json::to_string(&table).expect("is JSON"));
    }
}
