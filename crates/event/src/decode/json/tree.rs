//! A JSON value of strangers, read once: its parts lie one after the other, and its texts are the record's own bytes where
//! nothing in them is escaped. No name stands twice in one object.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Number;
use serde_json::error::Category;

use crate::decode::Reason;

/// Members of an object whose names are compared one by one; those of a larger one are looked up, or many names would take the
/// square of their number.
const MAX_COMPARED: usize = 32;

/// Bytes of a record for each of its parts, about: room is made for that many at once.
const BYTES_PER_PART: usize = 16;

/// A value and everything below it.
#[derive(Debug)]
pub(in crate::decode) struct Tree<'a>(Vec<Part<'a>>);

/// A value of a tree: the first of these parts, and behind it those below it. The name of a member is a part of its own, before
/// its value.
#[derive(Clone, Copy, Debug)]
pub(in crate::decode) struct Value<'t>(&'t [Part<'t>]);

#[derive(Clone, Debug)]
struct Part<'a> {
    what: What<'a>,
    /// How many parts it is with those below it.
    parts: u32,
}

#[derive(Clone, Debug)]
enum What<'a> {
    Null,
    Bool(bool),
    Number(Number),
    Text(Cow<'a, str>),
    List,
    Object,
}

impl<'a> Tree<'a> {
    /// Reads one object.
    pub(in crate::decode) fn of_object(text: &'a str) -> Result<Tree<'a>, Reason> {
        Tree::read(text, None)
    }

    /// Reads one object that has no member of this name; what has one is left to whoever knows what it means.
    pub(in crate::decode) fn of_object_without(text: &'a str, name: &str) -> Option<Tree<'a>> {
        Tree::read(text, Some(name)).ok()
    }

    /// An object of texts.
    pub(in crate::decode) fn of_texts(texts: &'a BTreeMap<String, String>) -> Tree<'a> {
        let mut tree = Tree(vec![Part::of(What::Object)]);
        for text in texts.iter().flat_map(|(name, text)| [name, text]) {
            tree.push(What::Text(text.into()));
        }
        tree.close(0);
        tree
    }

    fn read(text: &'a str, refused: Option<&str>) -> Result<Tree<'a>, Reason> {
        let mut tree = Tree(Vec::with_capacity(text.len() / BYTES_PER_PART));
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let read = Reader { tree: &mut tree, refused }.deserialize(&mut deserializer);
        read.and_then(|()| deserializer.end()).map_err(|error| reason(&error))?;
        match tree.0.first() {
            Some(Part { what: What::Object, .. }) => Ok(tree),
            _ => Err(Reason::NotAnEvent),
        }
    }

    /// The whole of it.
    pub(in crate::decode) fn value(&self) -> Value<'_> {
        Value(&self.0)
    }

    fn push(&mut self, what: What<'a>) -> usize {
        self.0.push(Part::of(what));
        self.0.len() - 1
    }

    fn text(&self, place: usize) -> Option<&str> {
        Value(self.0.get(place..)?).string()
    }

    /// Everything since the part at this place is below it.
    fn close(&mut self, place: usize) {
        let parts = self.0.len() - place;
        if let Some(part) = self.0.get_mut(place) {
            // A document has far fewer than 2^32 bytes, and a part at least one.
            part.parts = u32::try_from(parts).unwrap_or(u32::MAX);
        }
    }
}

impl<'a> Part<'a> {
    fn of(what: What<'a>) -> Part<'a> {
        Part { what, parts: 1 }
    }
}

/// The one error of our own visitors is a name that stands twice; everything else is the text's.
pub(super) fn reason(error: &serde_json::Error) -> Reason {
    if error.classify() == Category::Data { Reason::DuplicateKey } else { Reason::NotJson }
}

impl<'t> Value<'t> {
    fn what(self) -> Option<&'t What<'t>> {
        Some(&self.0.first()?.what)
    }

    /// The items of a list.
    pub(in crate::decode) fn items(self) -> impl Iterator<Item = Value<'t>> {
        let mut rest = match self.what() {
            Some(What::List) => self.0.get(1..).unwrap_or_default(),
            _ => &[],
        };
        std::iter::from_fn(move || {
            let (item, after) = rest.split_at_checked(usize::try_from(rest.first()?.parts).ok()?)?;
            rest = after;
            Some(Value(item))
        })
    }

    /// It, if it is an object.
    pub(in crate::decode) fn object(self) -> Option<Value<'t>> {
        Some(self).filter(|value| matches!(value.what(), Some(What::Object)))
    }

    /// A member of an object.
    pub(in crate::decode) fn get(self, name: &str) -> Option<Value<'t>> {
        let mut members = members(self.object()?.0.get(1..)?);
        members.find(|(of, _)| *of == name).map(|(_, value)| value)
    }

    /// The value at a path of names below an object.
    pub(in crate::decode) fn at(self, path: &[&str]) -> Option<Value<'t>> {
        path.iter().try_fold(self, |value, name| value.get(name))
    }

    /// The value at a JSON pointer (RFC 6901).
    pub(in crate::decode) fn pointer(self, pointer: &str) -> Option<Value<'t>> {
        if pointer.is_empty() {
            return Some(self);
        }
        pointer.strip_prefix('/')?.split('/').try_fold(self, |value, token| {
            let name = token.replace("~1", "/").replace("~0", "~");
            match value.what()? {
                What::Object => value.get(&name),
                What::List => value.items().nth(index(&name)?),
                _ => None,
            }
        })
    }

    /// A string.
    pub(in crate::decode) fn string(self) -> Option<&'t str> {
        match self.what()? {
            What::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A truth value.
    pub(in crate::decode) fn truth(self) -> Option<bool> {
        match self.what()? {
            What::Bool(truth) => Some(*truth),
            _ => None,
        }
    }

    /// A number.
    pub(in crate::decode) fn number(self) -> Option<&'t Number> {
        match self.what()? {
            What::Number(number) => Some(number),
            _ => None,
        }
    }

    /// Whether it is `null`.
    pub(in crate::decode) fn is_null(self) -> bool {
        matches!(self.what(), Some(What::Null))
    }

    /// A value that is not a list or an object, as a text.
    pub(in crate::decode) fn scalar(self) -> String {
        match self.what() {
            Some(What::Text(text)) => text.clone().into_owned(),
            Some(What::Number(number)) => number.to_string(),
            Some(What::Bool(truth)) => truth.to_string(),
            Some(What::Null | What::List | What::Object) | None => String::new(),
        }
    }

    /// The text at a path below an object; empty if there is none. Numbers and truth values are texts too.
    pub(in crate::decode) fn text(self, path: &[&str]) -> String {
        self.at(path).map(Value::scalar).unwrap_or_default()
    }

    /// The texts of a list of them.
    pub(in crate::decode) fn texts(self) -> Vec<String> {
        self.items().map(Value::scalar).filter(|text| !text.is_empty()).collect()
    }
}

/// The members of an object, of which these are the parts.
fn members<'t>(mut parts: &'t [Part<'t>]) -> impl Iterator<Item = (&'t str, Value<'t>)> {
    std::iter::from_fn(move || {
        let (name, rest) = parts.split_first()?;
        let (value, rest) = rest.split_at_checked(usize::try_from(rest.first()?.parts).ok()?)?;
        parts = rest;
        Some((Value(std::slice::from_ref(name)).string()?, Value(value)))
    })
}

/// A place in a list as a pointer says it: without a sign and without leading zeros.
fn index(token: &str) -> Option<usize> {
    let canonical = token == "0" || !token.starts_with(['0', '+']);
    token.parse().ok().filter(|_| canonical)
}

/// Puts one value behind what was read. serde_json limits how deep it goes.
struct Reader<'r, 'a> {
    tree: &'r mut Tree<'a>,
    /// A name that the object at the top must not have.
    refused: Option<&'r str>,
}

impl<'r, 'a> Reader<'r, 'a> {
    fn put<E>(self, what: What<'a>) -> Result<(), E> {
        self.tree.push(what);
        Ok(())
    }
}

impl<'a> DeserializeSeed<'a> for Reader<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for Reader<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, truth: bool) -> Result<(), E> {
        self.put(What::Bool(truth))
    }

    fn visit_i64<E>(self, number: i64) -> Result<(), E> {
        self.put(What::Number(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<(), E> {
        self.put(What::Number(number.into()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<(), E> {
        self.put(Number::from_f64(number).map_or(What::Null, What::Number))
    }

    fn visit_borrowed_str<E>(self, text: &'a str) -> Result<(), E> {
        self.put(What::Text(text.into()))
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.put(What::Text(text.to_owned().into()))
    }

    fn visit_string<E>(self, text: String) -> Result<(), E> {
        self.put(What::Text(text.into()))
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.put(What::Null)
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut seq: A) -> Result<(), A::Error> {
        let place = self.tree.push(What::List);
        while seq.next_element_seed(Reader { tree: self.tree, refused: None })?.is_some() {}
        self.tree.close(place);
        Ok(())
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        let place = self.tree.push(What::Object);
        let (mut known, mut looked_up) = (0, BTreeSet::new());
        while map.next_key_seed(Reader { tree: self.tree, refused: None })?.is_some() {
            let at = self.tree.0.len() - 1;
            if self.refused.is_some() && self.tree.text(at) == self.refused {
                return Err(A::Error::custom("a name that must not stand here"));
            }
            map.next_value_seed(Reader { tree: self.tree, refused: None })?;
            self.tree.close(place);
            let Some(name) = self.tree.text(at) else { continue };
            let before = self.tree.0.get(place + 1..at).unwrap_or_default();
            let names = || members(before).map(|(name, _)| name);
            if known == MAX_COMPARED {
                looked_up.extend(names().map(str::to_owned));
            }
            let is_known = if known < MAX_COMPARED {
                names().any(|before| before == name)
            } else {
                !looked_up.insert(name.to_owned())
            };
            if is_known {
                return Err(A::Error::custom("a name stands twice"));
            }
            known += 1;
        }
        self.tree.close(place);
        Ok(())
    }
}

#[cfg(test)]
pub(in crate::decode::json) mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use serde_json::{Map, Value as Json};

    use super::*;

    /// As serde_json keeps what it read; the first of two members of one name makes it no object here.
    struct Strict;

    impl<'de> DeserializeSeed<'de> for Strict {
        type Value = Json;

        fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
            deserializer.deserialize_any(self)
        }
    }

    impl<'de> Visitor<'de> for Strict {
        type Value = Json;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("any JSON value")
        }

        fn visit_bool<E>(self, truth: bool) -> Result<Json, E> {
            Ok(truth.into())
        }

        fn visit_i64<E>(self, number: i64) -> Result<Json, E> {
            Ok(number.into())
        }

        fn visit_u64<E>(self, number: u64) -> Result<Json, E> {
            Ok(number.into())
        }

        fn visit_f64<E>(self, number: f64) -> Result<Json, E> {
            Ok(number.into())
        }

        fn visit_str<E>(self, text: &str) -> Result<Json, E> {
            Ok(text.into())
        }

        fn visit_unit<E>(self) -> Result<Json, E> {
            Ok(Json::Null)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
            let mut items = Vec::new();
            while let Some(item) = seq.next_element_seed(Strict)? {
                items.push(item);
            }
            Ok(items.into())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
            let mut object = Map::new();
            while let Some(name) = map.next_key::<String>()? {
                let value = map.next_value_seed(Strict)?;
                if object.insert(name, value).is_some() {
                    return Err(A::Error::custom("a name stands twice"));
                }
            }
            Ok(object.into())
        }
    }

    fn strict(text: &str) -> Result<Json, Reason> {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let value = Strict.deserialize(&mut deserializer).map_err(|error| reason(&error))?;
        deserializer.end().map_err(|error| reason(&error))?;
        if value.is_object() { Ok(value) } else { Err(Reason::NotAnEvent) }
    }

    fn json(value: Value<'_>) -> Json {
        match value.what().unwrap() {
            What::Null => Json::Null,
            What::Bool(truth) => (*truth).into(),
            What::Number(number) => Json::Number(number.clone()),
            What::Text(text) => text.as_ref().into(),
            What::List => value.items().map(json).collect(),
            What::Object => Json::Object(
                members(&value.0[1..]).map(|(name, value)| (name.to_owned(), json(value))).collect(),
            ),
        }
    }

    /// The oracle is serde_json's own tree, which looks members up in another way.
    #[track_caller]
    fn check(text: &str) {
        let tree = Tree::of_object(text);
        let found = tree.as_ref().map(|tree| json(tree.value())).map_err(|reason| *reason);
        let expected = strict(text);
        assert_eq!(found, expected, "{text}");
        let (Ok(tree), Ok(expected)) = (tree, expected) else { return };
        for pointer in
            ["", "/", "/a", "/a/b", "/a/0", "/a/00", "/a/+0", "/a/1/a", "/b~1c", "/~0", "/é/a", "a"]
        {
            let found = tree.value().pointer(pointer).map(json);
            assert_eq!(found.as_ref(), expected.pointer(pointer), "{pointer} in {text}");
        }
        let path = tree.value().at(&["a", "b"]).map(json);
        assert_eq!(path.as_ref(), expected.get("a").and_then(|a| a.get("b")), "{text}");
    }

    // Broken to see it fail: names compared only with the one before; a list whose length is that of its last item; names beyond
    // `MAX_COMPARED` not looked up.
    #[test]
    fn a_tree_is_what_serde_json_reads() {
        for text in [
            r#"{"a":[1,{"a":-2.5e3},[],{}],"b/c":null,"~":true,"é":{"a":"\u00e9\n"},"":"x"}"#,
            r#"{"a":{"b":{"c":[[[1]]]}},"b":1}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"{"a":{"x":1,"y":{"x":2},"x":3}}"#,
            r#"{"a":1,"a":}"#,
            r#"{"a":1e999}"#,
            r#"{"a":"\ud800"}"#,
            r#"{"a":18446744073709551616,"b":-9223372036854775809,"c":-1,"d":1.5}"#,
            "[]",
            "{} x",
            "1",
            "",
        ] {
            check(text);
        }
        check(&format!("{{\"a\":{}1{}}}", "[".repeat(126), "]".repeat(126)));
        check(&format!("{{\"a\":{}1{}}}", "[".repeat(127), "]".repeat(127)));
        for last in [100, 99, 31, 0] {
            let names: Vec<_> =
                (0..100).chain([last]).map(|name| format!("\"n{name}\":{{\"n1\":[]}}")).collect();
            check(&format!("{{{}}}", names.join(",")));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1_500) })]

        #[test]
        fn a_made_up_tree_is_what_serde_json_reads(text in text()) {
            check(&text);
        }
    }

    /// Objects in which names stand twice now and then, and pieces of objects.
    pub(in crate::decode::json) fn text() -> impl Strategy<Value = String> {
        let scalars =
            ["1", "-0.5", "null", "true", "\"x\"", "\"\\u0041\"", "\"a\"", "1e400", "\"\\ud800\"", "tru"];
        let value = proptest::sample::select(scalars.to_vec()).prop_map(str::to_owned);
        let value = value.prop_recursive(4, 40, 5, |inner| {
            let name = proptest::sample::select(vec!["a", "b", "c", "d", "e", "\\u0061", "b/c", "é"]);
            let members = vec((name, inner.clone()), 0..5).prop_map(|members| {
                let members: Vec<_> = members.iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
                format!("{{{}}}", members.join(","))
            });
            prop_oneof![3 => members, 1 => vec(inner, 0..5).prop_map(|items| format!(" [{}]", items.join(",")))]
        });
        let broken = (value.clone(), 0..20_usize).prop_map(|(text, cut)| {
            let cut = text.floor_char_boundary(text.len().saturating_sub(cut));
            text[..cut].to_owned()
        });
        prop_oneof![6 => value, 1 => broken]
    }
}
