//! A tree becomes a typed value, by protobuf's JSON rules, with every problem found in one run.
//!
//! Leniency is protobuf's: names in camel case or snake case, enums by name or number, numbers as text. Beyond it, a
//! plain `yes` or `on` is a boolean or a text as the field asks. What is stricter: an unknown field is a problem.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde::de::value::{MapDeserializer, StrDeserializer};
use serde::de::{self, DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, VariantAccess, Visitor};

use super::duration;
use super::tree::{Entry, Node, Span, Value, camel_case};

/// More problems than this in one document help nobody.
const MAX_PROBLEMS: usize = 100;

/// Something in the tree that the type does not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) kind: ProblemKind,
    /// The field, `spec.http[0].timeout`.
    pub(crate) path: String,
    pub(crate) span: Span,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
    /// The field that an unknown one was probably meant to be.
    pub(crate) meant: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProblemKind {
    UnknownField,
    BadValue,
}

/// What to do with fields that the type doesn't have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnknownFields {
    Report,
    Ignore,
}

/// Decodes `node`, which stands at `path`. A field that doesn't fit is left out, and is one of the problems; without
/// a value the node as a whole doesn't fit.
pub(crate) fn decode<T: for<'de> Deserialize<'de>>(
    node: &Node<'_>,
    path: &str,
    unknown_fields: UnknownFields,
) -> (Option<T>, Vec<Problem>) {
    let session = Session { unknown_fields, problems: RefCell::default(), left_out: RefCell::default() };
    let path = Path::Root(path);
    // Each round leaves out one field more. serde can't give a value and an error at once.
    let value = loop {
        match T::deserialize(Decoder { node, path: &path, session: &session }) {
            Ok(value) => break Some(value),
            Err(error) => {
                let place = error.place.unwrap_or_else(|| Place::of(node, &path));
                let id = place.id;
                session.report(place, error.message, error.help);
                let is_new = session.left_out.borrow_mut().insert(id);
                if id == node.id || !is_new || session.problems.borrow().len() >= MAX_PROBLEMS {
                    break None;
                }
            }
        }
    };
    (value, session.problems.into_inner().into_values().collect())
}

struct Session {
    unknown_fields: UnknownFields,
    /// By node, so that each is reported once however many rounds there are; ids follow the order of the text.
    problems: RefCell<BTreeMap<u32, Problem>>,
    left_out: RefCell<HashSet<u32>>,
}

impl Session {
    /// Adds a value that doesn't fit.
    fn report(&self, place: Place, message: String, help: Option<String>) {
        let Place { id, path, span } = place;
        let problem = Problem { kind: ProblemKind::BadValue, path, span, message, help, meant: None };
        self.problems.borrow_mut().entry(id).or_insert(problem);
    }

    fn leaves_out(&self, node: &Node<'_>) -> bool {
        let left_out = self.left_out.borrow();
        !left_out.is_empty() && left_out.contains(&node.id)
    }
}

/// The way to a node, kept on the stack.
#[derive(Clone, Copy)]
enum Path<'p> {
    Root(&'p str),
    Key(&'p Path<'p>, &'p str),
    Index(&'p Path<'p>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root(path) => f.write_str(path),
            Self::Key(Path::Root(""), key) => f.write_str(key),
            Self::Key(parent, key) if key.contains(['.', '[', ' ']) => write!(f, "{parent}[\"{key}\"]"),
            Self::Key(parent, key) => write!(f, "{parent}.{key}"),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

#[derive(Debug)]
struct Place {
    id: u32,
    path: String,
    span: Span,
}

impl Place {
    fn of(node: &Node<'_>, path: &Path<'_>) -> Self {
        Self { id: node.id, path: path.to_string(), span: node.span }
    }
}

#[derive(Debug)]
struct Error {
    message: String,
    help: Option<String>,
    place: Option<Place>,
}

impl Error {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None, place: None }
    }

    fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The innermost place wins.
    fn at(mut self, node: &Node<'_>, path: &Path<'_>) -> Self {
        self.place.get_or_insert_with(|| Place::of(node, path));
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message.to_string())
    }
}

#[derive(Clone, Copy)]
struct Decoder<'s, 'a> {
    node: &'s Node<'a>,
    path: &'s Path<'s>,
    session: &'s Session,
}

impl Decoder<'_, '_> {
    fn error(&self, message: impl Into<String>) -> Error {
        Error::new(message).at(self.node, self.path)
    }

    fn expected(&self, expected: &str) -> Error {
        let found = match &self.node.value {
            _ if self.node.is_null() => "null",
            Value::Mapping(_) => "a mapping",
            Value::Sequence(_) => "a list",
            Value::Scalar { plain: false, .. } => "a text",
            Value::Scalar { text, .. } => match Plain::read(text) {
                Plain::Bool(_) => "a boolean",
                Plain::Unsigned(_) | Plain::Signed(_) | Plain::Float(_) => "a number",
                Plain::Null | Plain::Text => "a text",
            },
        };
        self.error(format!("expected {expected}, found {found}"))
    }

    fn integer<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let Value::Scalar { text, .. } = &self.node.value else { return Err(self.expected("an integer")) };
        match Plain::read(text) {
            Plain::Unsigned(number) => visitor.visit_u64(number),
            Plain::Signed(number) => visitor.visit_i64(number),
            // Exact below 2^53, and nothing above has business in a configuration.
            Plain::Float(number) if number.fract() == 0.0 && number.abs() < 9e15 => visitor.visit_i64(number as i64),
            _ => Err(self.expected("an integer")),
        }
        .map_err(|error| self.in_range(error))
    }

    /// serde says `invalid value: integer 70000, expected u16`; people know bounds, not types.
    fn in_range(&self, error: Error) -> Error {
        if !error.message.starts_with("invalid value: integer") {
            return error.at(self.node, self.path);
        }
        let text = self.node.text().unwrap_or_default();
        let bounds = [
            ("u8", "from 0 to 255"),
            ("u16", "from 0 to 65535"),
            ("u32", "from 0 to 4294967295"),
            ("i32", "from -2147483648 to 2147483647"),
            ("u64", "not negative"),
        ];
        let bounds =
            bounds.iter().find(|(name, _)| error.message.ends_with(name)).map_or("smaller", |(_, bounds)| bounds);
        self.error(format!("{text} is out of range: it must be {bounds}"))
    }
}

macro_rules! integers {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            self.integer(visitor)
        })*
    };
}

impl<'de> de::Deserializer<'de> for Decoder<'_, '_> {
    type Error = Error;

    integers! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Mapping(_) => self.deserialize_map(visitor),
            Value::Sequence(_) => self.deserialize_seq(visitor),
            Value::Scalar { text, plain: false } => visitor.visit_str(text),
            Value::Scalar { text, plain: true } => match Plain::read(text) {
                Plain::Null => visitor.visit_unit(),
                Plain::Bool(value) => visitor.visit_bool(value),
                Plain::Unsigned(number) => visitor.visit_u64(number),
                Plain::Signed(number) => visitor.visit_i64(number),
                Plain::Float(number) => visitor.visit_f64(number),
                Plain::Text => visitor.visit_str(text),
            },
        }
        .map_err(|error: Error| error.at(self.node, self.path))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Scalar { text, plain: true } => match &**text {
                "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "y" | "Y" => {
                    visitor.visit_bool(true)
                }
                "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" | "n" | "N" => {
                    visitor.visit_bool(false)
                }
                _ => Err(self.expected("`true` or `false`")),
            },
            Value::Scalar { text, plain: false } if matches!(&**text, "true" | "false") => {
                Err(self.expected("`true` or `false`").help("remove the quotes"))
            }
            _ => Err(self.expected("`true` or `false`")),
        }
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let Value::Scalar { text, .. } = &self.node.value else { return Err(self.expected("a number")) };
        match Plain::read(text) {
            Plain::Unsigned(number) => visitor.visit_f64(number as f64),
            Plain::Signed(number) => visitor.visit_f64(number as f64),
            Plain::Float(number) => visitor.visit_f64(number),
            _ => Err(self.expected("a number")),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Scalar { text, plain: false } => visitor.visit_str(text),
            Value::Scalar { text, plain: true } => match Plain::read(text) {
                Plain::Text => visitor.visit_str(text),
                Plain::Null => Err(self.expected("a text")),
                _ => Err(self.expected("a text").help("put it in quotes")),
            },
            _ => Err(self.expected("a text")),
        }
        .map_err(|error: Error| error.at(self.node, self.path))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.node.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.node.is_null() { visitor.visit_unit() } else { Err(self.expected("null")) }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Sequence(items) => visitor
                .visit_seq(Items { decoder: self, items: items.iter().enumerate() })
                .map_err(|error| error.at(self.node, self.path)),
            _ => Err(self.expected("a list")),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Mapping(entries) => visitor
                .visit_map(Entries { decoder: self, entries: entries.iter(), value: None })
                .map_err(|error| error.at(self.node, self.path)),
            _ => Err(self.expected("a mapping")),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        // How serde describes `std::time::Duration`; in a configuration it is a text.
        if name == "Duration" && fields == ["secs", "nanos"] {
            let duration = self.duration()?;
            let parts = [("secs", duration.as_secs()), ("nanos", u64::from(duration.subsec_nanos()))];
            return visitor.visit_map(MapDeserializer::<_, Error>::new(parts.into_iter()));
        }
        match &self.node.value {
            Value::Mapping(entries) => visitor
                .visit_map(Fields { decoder: self, entries: entries.iter(), fields, seen: Vec::new(), value: None })
                .map_err(|error| error.at(self.node, self.path)),
            _ => Err(self.expected("a mapping")),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let Value::Scalar { text, plain } = &self.node.value else { return Err(self.expected("one word")) };
        if let Some(name) = variants.iter().find(|name| **name == text) {
            return visitor.visit_enum(Variant(name)).map_err(|error| error.at(self.node, self.path));
        }
        // Variants are declared in the order of their numbers.
        let number = if *plain { text.parse::<usize>().ok() } else { None };
        if let Some(name) = number.and_then(|number| variants.get(number)) {
            return visitor.visit_enum(Variant(name)).map_err(|error| error.at(self.node, self.path));
        }
        let error = self.error(format!("unknown value `{text}`"));
        Err(match nearest(&text.to_ascii_uppercase(), variants) {
            Some(name) => error.help(format!("did you mean `{name}`?")),
            None => error.help(format!("use one of: {}", variants.join(", "))),
        })
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }
}

impl Decoder<'_, '_> {
    fn duration(&self) -> Result<Duration, Error> {
        let expected = "a duration such as `1s`, `250ms` or `1h30m`";
        let Value::Scalar { text, .. } = &self.node.value else { return Err(self.expected(expected)) };
        duration::parse(text).map_err(|error| {
            self.error(format!("`{text}` is not a duration: {error}")).help("write it like `1s`, `250ms` or `1h30m`")
        })
    }
}

struct Items<'s, 'a> {
    decoder: Decoder<'s, 'a>,
    items: std::iter::Enumerate<std::slice::Iter<'s, Node<'a>>>,
}

impl<'de> SeqAccess<'de> for Items<'_, '_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        for (index, node) in self.items.by_ref() {
            if self.decoder.session.leaves_out(node) {
                continue;
            }
            let path = Path::Index(self.decoder.path, index);
            let decoder = Decoder { node, path: &path, session: self.decoder.session };
            return seed.deserialize(decoder).map(Some).map_err(|error| error.at(node, &path));
        }
        Ok(None)
    }

    /// Lets lists be as large as they need and no larger: most have one item.
    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}

struct Entries<'s, 'a> {
    decoder: Decoder<'s, 'a>,
    entries: std::slice::Iter<'s, Entry<'a>>,
    value: Option<&'s Entry<'a>>,
}

impl<'de> MapAccess<'de> for Entries<'_, '_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        for entry in self.entries.by_ref() {
            if self.decoder.session.leaves_out(&entry.value) {
                continue;
            }
            self.value = Some(entry);
            let path = Path::Key(self.decoder.path, &entry.key);
            return seed.deserialize(Key(&entry.key)).map(Some).map_err(|error| error.at(&entry.value, &path));
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        value_of(self.decoder, self.value.take(), seed)
    }
}

struct Fields<'s, 'a> {
    decoder: Decoder<'s, 'a>,
    entries: std::slice::Iter<'s, Entry<'a>>,
    fields: &'static [&'static str],
    seen: Vec<usize>,
    value: Option<&'s Entry<'a>>,
}

impl<'de> MapAccess<'de> for Fields<'_, '_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        for entry in self.entries.by_ref() {
            // In protobuf's JSON form null is the same as absent.
            if entry.value.is_null() || self.decoder.session.leaves_out(&entry.value) {
                continue;
            }
            let camel = camel_case(&entry.key);
            let Some(index) = self.fields.iter().position(|name| *name == entry.key || *name == camel) else {
                unknown(self.decoder, self.fields, entry);
                continue;
            };
            let name = self.fields[index];
            // A key that stands twice is an error of the tree; this is one field in both spellings.
            if self.seen.contains(&index) {
                let path = Path::Key(self.decoder.path, name);
                let place = Place { id: entry.value.id, path: path.to_string(), span: entry.key_span };
                let message = format!("field `{name}` is given in both spellings");
                self.decoder.session.report(place, message, None);
                continue;
            }
            self.seen.push(index);
            self.value = Some(entry);
            let key: StrDeserializer<'_, Error> = name.into_deserializer();
            let path = Path::Key(self.decoder.path, name);
            return seed.deserialize(key).map(Some).map_err(|error| error.at(&entry.value, &path));
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        value_of(self.decoder, self.value.take(), seed)
    }
}

/// Reports a field that none of `fields` is.
fn unknown(parent: Decoder<'_, '_>, fields: &[&'static str], entry: &Entry<'_>) {
    if parent.session.unknown_fields == UnknownFields::Ignore {
        return;
    }
    let meant = nearest(&camel_case(&entry.key), fields);
    let help = match meant {
        Some(name) => Some(format!("did you mean `{name}`?")),
        None if fields.is_empty() => None,
        None => Some(format!("known fields: {}", fields.join(", "))),
    };
    let problem = Problem {
        kind: ProblemKind::UnknownField,
        path: Path::Key(parent.path, &entry.key).to_string(),
        span: entry.key_span,
        message: format!("unknown field `{}`", entry.key),
        help,
        meant: meant.map(|name| Path::Key(parent.path, name).to_string()),
    };
    parent.session.problems.borrow_mut().entry(entry.value.id).or_insert(problem);
}

fn value_of<'de, V: DeserializeSeed<'de>>(
    parent: Decoder<'_, '_>,
    entry: Option<&Entry<'_>>,
    seed: V,
) -> Result<V::Value, Error> {
    let Some(entry) = entry else { return Err(parent.error("a value was asked for before its key")) };
    let camel = camel_case(&entry.key);
    let path = Path::Key(parent.path, &camel);
    let decoder = Decoder { node: &entry.value, path: &path, session: parent.session };
    seed.deserialize(decoder).map_err(|error| error.at(&entry.value, &path))
}

/// The key of a map: text, or a number where the map wants numbers.
struct Key<'k>(&'k str);

macro_rules! integer_keys {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            match self.0.parse::<u64>() {
                Ok(number) => visitor.visit_u64(number),
                Err(_) => Err(Error::new(format!("key `{}` must be a number", self.0))),
            }
        })*
    };
}

impl<'de> de::Deserializer<'de> for Key<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_str(self.0)
    }

    integer_keys! { deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct seq tuple
        tuple_struct map struct enum identifier ignored_any
    }
}

struct Variant(&'static str);

impl<'de> EnumAccess<'de> for Variant {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Error> {
        let name: StrDeserializer<'_, Error> = self.0.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, Error> {
        Err(Error::new("enums of the model hold nothing"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Error> {
        Err(Error::new("enums of the model hold nothing"))
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], _: V) -> Result<V::Value, Error> {
        Err(Error::new("enums of the model hold nothing"))
    }
}

/// What a plain scalar means by YAML's core schema. Only finite numbers are numbers.
enum Plain {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text,
}

impl Plain {
    fn read(text: &str) -> Self {
        match text {
            "" | "~" | "null" | "Null" | "NULL" => return Self::Null,
            "true" | "True" | "TRUE" => return Self::Bool(true),
            "false" | "False" | "FALSE" => return Self::Bool(false),
            _ => {}
        }
        let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
        if !digits.starts_with(|first: char| first.is_ascii_digit() || first == '.') {
            return Self::Text;
        }
        if let Some(hex) = text.strip_prefix("0x") {
            return u64::from_str_radix(hex, 16).map_or(Self::Text, Self::Unsigned);
        }
        if let Some(octal) = text.strip_prefix("0o") {
            return u64::from_str_radix(octal, 8).map_or(Self::Text, Self::Unsigned);
        }
        // `0644` is 420 in YAML 1.1 and 644 in 1.2: no number at all is the answer that surprises nobody later.
        let leading_zero = digits.len() > 1 && digits.starts_with('0') && digits.as_bytes()[1].is_ascii_digit();
        if leading_zero {
            return Self::Text;
        }
        if let Ok(number) = text.parse() {
            return Self::Unsigned(number);
        }
        if let Ok(number) = text.parse() {
            return Self::Signed(number);
        }
        if !digits.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-')) {
            return Self::Text;
        }
        match text.parse::<f64>() {
            Ok(number) if number.is_finite() => Self::Float(number),
            _ => Self::Text,
        }
    }
}

/// The name that a reader most likely meant.
pub(crate) fn nearest<'n>(word: &str, names: &[&'n str]) -> Option<&'n str> {
    names
        .iter()
        .map(|name| (strsim::damerau_levenshtein(word, name), *name))
        .filter(|(distance, name)| *distance <= 1 + name.len().min(word.len()) / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests;
