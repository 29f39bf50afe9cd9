//! Reads a type from several JSON texts that are laid over each other. No I/O.
//!
//! The type decides which parts are merged, not the JSON. Where it asks for a struct, objects are merged
//! field by field; for anything else the highest text that has the part counts whole. So a type reads from
//! its own complete text what it would read from that alone, whatever is below. Values are read from the text
//! itself: no digit is lost.
//!
//! An adjacently tagged enum asks for a struct as well. It reads its field names with a seed that knows the
//! tag. The code that serde derives for structs has a seed without state, so only those structs are merged.
//!
//! Serde tells the names of a struct's fields with their aliases, and not which names are one field. It shows
//! in the variant that a name is read as. So a value may have to be read anew with what was learned. This is
//! so if the struct refuses the second of two names that are read as one. It is also so if the value of one
//! does not fit while others are left that might complete it. Of several names of one field, that of the
//! higher text counts.

use std::{
    cell::RefCell,
    fmt,
    hash::{Hash, Hasher},
    mem::{Discriminant, discriminant, size_of_val},
};

use serde::{
    Deserializer,
    de::{
        DeserializeOwned, DeserializeSeed, Error as _, IntoDeserializer, MapAccess, Visitor,
        value::{StrDeserializer, UnitDeserializer},
    },
};
use serde_json::{Error, de::StrRead, value::RawValue};
use serde_path_to_error::Track;

use super::whole::WHOLE;

/// The JSON of one layer, or a part of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text<'t> {
    /// By which the caller knows it.
    pub(super) layer: usize,
    /// JSON value with nothing around it.
    pub(super) json: &'t str,
}

/// The place at which a value does not fit its type.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Misfit {
    /// The layer that the part was taken from; `None` if something is in no layer.
    pub(super) layer: Option<usize>,
    /// As readers of one text tell it; `.` for the whole.
    pub(super) path: String,
}

/// Reads a value from texts, of which the first is the highest. There must be one.
pub(super) fn read<T: DeserializeOwned>(texts: &[Text<'_>]) -> Result<T, Misfit> {
    let mut known = Vec::new();
    loop {
        let reading = Reading { known: &known, ..Reading::default() };
        if let Ok(value) = T::deserialize(Layered { reading: &reading, texts: texts.to_vec() }) {
            return Ok(value);
        }
        let Reading { learned, misfit, failed, .. } = reading;
        let learned = learned.into_inner().or_else(|| {
            let mut failed = failed.into_inner().into_iter();
            failed.find_map(|failed| failed.other_name(|asked| variant_of::<T>(texts, &known, asked)))
        });
        match learned {
            Some(alias) if !known.contains(&alias) => known.push(alias),
            _ => {
                let nowhere = Misfit { layer: None, path: ".".into() };
                return Err(misfit.into_inner().unwrap_or(nowhere));
            }
        }
    }
}

/// The variant that the struct at a path reads a name as, for a value that was read as far as there before.
fn variant_of<T: DeserializeOwned>(
    texts: &[Text<'_>],
    known: &[Alias],
    (path, name): (&[String], &str),
) -> Option<Variant> {
    let reading = Reading { known, asked: Some((path, name)), ..Reading::default() };
    // Ends as an error where the name was read.
    let _ = T::deserialize(Layered { reading: &reading, texts: texts.to_vec() });
    reading.answer.into_inner()
}

/// Two names of one field of the struct at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Alias {
    path: Vec<String>,
    /// As a higher layer calls it.
    above: String,
    below: String,
}

/// Attempt to read a value.
#[derive(Default)]
struct Reading<'r> {
    known: &'r [Alias],
    learned: RefCell<Option<Alias>>,
    misfit: RefCell<Option<Misfit>>,
    path: RefCell<Vec<String>>,
    /// The structs with a field whose value does not fit, the innermost first.
    failed: RefCell<Vec<Failed>>,
    /// A name of which only the variant is asked, in the struct at a path.
    asked: Option<(&'r [String], &'r str)>,
    answer: RefCell<Option<Variant>>,
}

/// A field whose value does not fit, and names below it that the struct was not shown yet.
struct Failed {
    path: Vec<String>,
    field: Shown,
    below: Vec<String>,
}

impl Failed {
    /// A name below that is one of the field's.
    fn other_name(self, variant_of: impl Fn((&[String], &str)) -> Option<Variant>) -> Option<Alias> {
        let Self { path, field, below } = self;
        let is_same = |name: &String| variant_of((&path, name)).as_ref() == Some(&field.variant);
        let below = below.into_iter().find(is_same)?;
        Some(Alias { path, above: field.name, below })
    }
}

impl Reading<'_> {
    /// Common name for all names that are known to be those of one field of the struct at this place.
    fn name<'n>(&'n self, mut field: &'n str) -> &'n str {
        let path = self.path.borrow();
        // Each name is at most once the lower one: what is known already is not shown again.
        while let Some(alias) = self.known.iter().find(|alias| alias.below == field && alias.path == *path) {
            field = &alias.above;
        }
        field
    }

    /// Remembers the first misfit, which is the innermost.
    fn missed(&self, layer: Option<usize>, within: &str) {
        let mut path = self.path.borrow().join(".");
        let within = within.trim_end_matches(['?', '.']);
        if !path.is_empty() && !within.is_empty() && !within.starts_with('[') {
            path.push('.');
        }
        path.push_str(within);
        let path = if path.is_empty() { ".".into() } else { path };
        self.misfit.borrow_mut().get_or_insert(Misfit { layer, path });
    }
}

/// A part of the value: the same part of each text that has it, the highest first.
struct Layered<'r, 't> {
    reading: &'r Reading<'r>,
    texts: Vec<Text<'t>>,
}

type Tracked<'a, 't> =
    serde_path_to_error::Deserializer<'a, 'a, &'a mut serde_json::Deserializer<StrRead<'t>>>;

impl<'t> Layered<'_, 't> {
    /// Reads the highest text alone.
    fn whole<R>(self, read: impl FnOnce(Tracked<'_, 't>) -> Result<R, Error>) -> Result<R, Error> {
        let Text { layer, json } = self.texts[0];
        let (mut json, mut track) = (serde_json::Deserializer::from_str(json), Track::new());
        let read = read(serde_path_to_error::Deserializer::new(&mut json, &mut track));
        read.inspect_err(|_| self.reading.missed(Some(layer), &track.path().to_string()))
    }
}

macro_rules! whole {
    ($($method:ident($($name:ident: $type:ty),*);)+) => {$(
        fn $method<V: Visitor<'t>>(self, $($name: $type,)* visitor: V) -> Result<V::Value, Error> {
            self.whole(|json| json.$method($($name,)* visitor))
        }
    )+};
}

impl<'t> Deserializer<'t> for Layered<'_, 't> {
    type Error = Error;

    whole! {
        deserialize_any();
        deserialize_bool();
        deserialize_i8();
        deserialize_i16();
        deserialize_i32();
        deserialize_i64();
        deserialize_i128();
        deserialize_u8();
        deserialize_u16();
        deserialize_u32();
        deserialize_u64();
        deserialize_u128();
        deserialize_f32();
        deserialize_f64();
        deserialize_char();
        deserialize_str();
        deserialize_string();
        deserialize_bytes();
        deserialize_byte_buf();
        deserialize_unit();
        deserialize_unit_struct(name: &'static str);
        deserialize_seq();
        deserialize_tuple(length: usize);
        deserialize_tuple_struct(name: &'static str, length: usize);
        deserialize_map();
        deserialize_enum(name: &'static str, variants: &'static [&'static str]);
        deserialize_identifier();
    }

    fn deserialize_option<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.texts[0].json == "null" { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'t>>(
        mut self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        if name.starts_with("$serde_json::private::") {
            return self.whole(|json| json.deserialize_newtype_struct(name, visitor));
        }
        if name == WHOLE {
            self.texts.truncate(1);
        }
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'t>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        // Anything else hides what is below.
        let objects = self.texts.iter().take_while(|text| text.json.starts_with('{'));
        let objects: Vec<_> = objects.map(Object::of).collect::<Result<_, _>>()?;
        if objects.len() < 2 {
            return self.whole(|json| json.deserialize_struct(name, fields, visitor));
        }
        let mut merged = Fields {
            reading: self.reading,
            objects,
            known: fields,
            next: (0, 0),
            shown: Vec::new(),
            confused: None,
            has_failed: false,
            value: Vec::new(),
        };
        visitor.visit_map(&mut merged).inspect_err(|_| {
            merged.learn();
            self.reading.missed(None, "");
        })
    }

    fn deserialize_ignored_any<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }
}

/// The fields of one object, in their order.
struct Object<'t> {
    layer: usize,
    fields: Vec<(String, &'t str)>,
}

impl<'t> Object<'t> {
    fn of(text: &Text<'t>) -> Result<Self, Error> {
        struct All;
        impl<'t> Visitor<'t> for All {
            type Value = Vec<(String, &'t str)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'t>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, &'t RawValue>()? {
                    fields.push((name, value.get()));
                }
                Ok(fields)
            }
        }
        let fields = serde_json::Deserializer::from_str(text.json).deserialize_map(All)?;
        Ok(Self { layer: text.layer, fields })
    }
}

/// The objects of one struct, merged: the fields of the highest as they are, then those that only lower ones have.
struct Fields<'r, 't> {
    reading: &'r Reading<'r>,
    objects: Vec<Object<'t>>,
    /// The names that the struct knows, with aliases.
    known: &'static [&'static str],
    /// The object, and the field of it, that is looked at next.
    next: (usize, usize),
    shown: Vec<Shown>,
    /// Two of them that were read as one field, if the latter was not asked for its value yet.
    confused: Option<(usize, usize)>,
    /// Whether the value of the last one did not fit.
    has_failed: bool,
    value: Vec<Text<'t>>,
}

/// A name that the struct was shown.
struct Shown {
    name: String,
    /// The highest object that has it.
    object: usize,
    variant: Variant,
}

impl<'t> Fields<'_, 't> {
    /// The next name with its values, the highest first.
    fn advance(&mut self) -> Option<(String, usize, Vec<Text<'t>>)> {
        while let Some(object) = self.objects.get(self.next.0) {
            let (height, number) = self.next;
            let Some((name, value)) = object.fields.get(number) else {
                self.next = (height + 1, 0);
                continue;
            };
            self.next.1 += 1;
            let is_known = self.known.contains(&name.as_str());
            let one = self.reading.name(name);
            // Names that the struct does not know mean nothing, unless they are in its own text.
            let is_hidden = !is_known || self.shown.iter().any(|shown| self.reading.name(&shown.name) == one);
            if height > 0 && is_hidden {
                continue;
            }
            let mut values = vec![Text { layer: object.layer, json: value }];
            if is_known {
                values.extend(self.objects[height + 1..].iter().filter_map(|below| {
                    let field = below.fields.iter().find(|(other, _)| self.reading.name(other) == one);
                    Some(Text { layer: below.layer, json: field?.1 })
                }));
            }
            return Some((name.clone(), height, values));
        }
        None
    }

    /// Remembers what a failure tells of names: two that confused the struct, or those that may belong to a value.
    fn learn(&mut self) {
        let path = self.reading.path.borrow().clone();
        if let Some((above, below)) = self.confused {
            let name = |shown: usize| self.shown[shown].name.clone();
            let (above, below) = (name(above), name(below));
            *self.reading.learned.borrow_mut() = Some(Alias { path, above, below });
        } else if self.has_failed {
            let mut below = Vec::new();
            while let Some((name, object, _)) = self.advance() {
                if self.shown.last().is_some_and(|field| object > field.object) && !below.contains(&name) {
                    below.push(name);
                }
            }
            let Some(field) = self.shown.pop() else { return };
            self.reading.failed.borrow_mut().push(Failed { path, field, below });
        }
    }
}

impl<'t> MapAccess<'t> for &mut Fields<'_, 't> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'t>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        if size_of_val(&seed) > 0 {
            self.objects.truncate(1);
        }
        if let Some((path, name)) = self.reading.asked
            && *self.reading.path.borrow() == path
        {
            let key: StrDeserializer<'_, Error> = name.into_deserializer();
            let field = seed.deserialize(key)?;
            *self.reading.answer.borrow_mut() = Some(Variant::of(discriminant(&field)));
            return Err(Error::custom("no more is asked"));
        }
        let Some((name, object, mut values)) = self.advance() else { return Ok(None) };
        if self.objects.len() == 1 {
            values.truncate(1);
        }
        let key: StrDeserializer<'_, Error> = name.as_str().into_deserializer();
        let field = seed.deserialize(key)?;
        let variant = Variant::of(discriminant(&field));
        let same = self.shown.iter().position(|shown| shown.variant == variant && shown.object < object);
        self.confused = same.map(|same| (same, self.shown.len()));
        self.shown.push(Shown { name, object, variant });
        self.value = values;
        Ok(Some(field))
    }

    fn next_value_seed<V: DeserializeSeed<'t>>(&mut self, seed: V) -> Result<V::Value, Error> {
        self.confused = None;
        let texts = std::mem::take(&mut self.value);
        let (Some(shown), false) = (self.shown.last(), texts.is_empty()) else {
            return seed.deserialize(UnitDeserializer::new());
        };
        self.reading.path.borrow_mut().push(shown.name.clone());
        let value = seed.deserialize(Layered { reading: self.reading, texts });
        self.has_failed = value.is_err();
        if self.has_failed {
            self.reading.missed(None, "");
        }
        self.reading.path.borrow_mut().pop();
        value
    }
}

/// The variant that a field's name was read as, whatever the enum is.
#[derive(PartialEq, Eq)]
struct Variant(Vec<u8>);

impl Variant {
    fn of<T>(variant: Discriminant<T>) -> Self {
        struct Bytes(Vec<u8>);
        impl Hasher for Bytes {
            fn finish(&self) -> u64 {
                0
            }
            fn write(&mut self, bytes: &[u8]) {
                self.0.extend_from_slice(bytes);
            }
        }
        let mut bytes = Bytes(Vec::new());
        variant.hash(&mut bytes);
        Self(bytes.0)
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod zoo;
