//! YAML text as a tree whose every node knows its place.
//!
//! JSON is read by the same parser, being a subset. Input is not trusted: depth is bounded, and so is what aliases add.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

use saphyr_parser::{Event, Parser, ScalarStyle, Span as EventSpan};

/// Istio's deepest messages have about 15 levels, the Envoy configuration inside of an EnvoyFilter rarely 40.
const MAX_DEPTH: usize = 128;
/// Nodes that aliases and merge keys may add to one document, so that a small file can't become a huge tree.
const MAX_ALIASED_NODES: usize = 100_000;

/// A node of a document.
#[derive(Debug, Clone)]
pub(crate) struct Node<'a> {
    /// Unique in its tree, aliases included.
    pub(crate) id: u32,
    pub(crate) span: Span,
    pub(crate) value: Value<'a>,
}

/// Where something stands in the text of its document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Span {
    /// Byte offsets.
    pub(crate) start: u32,
    pub(crate) end: u32,
    /// Line within the document, from 0.
    pub(crate) line: u32,
    /// In characters, from 0.
    pub(crate) column: u32,
}

impl Span {
    pub(crate) fn range(self) -> Range<usize> {
        self.start as usize..self.end.max(self.start) as usize
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Value<'a> {
    /// `plain` text is subject to YAML's rules for null, booleans and numbers, quoted text is not.
    Scalar {
        text: Cow<'a, str>,
        plain: bool,
    },
    Sequence(Vec<Node<'a>>),
    Mapping(Vec<Entry<'a>>),
}

#[derive(Debug, Clone)]
pub(crate) struct Entry<'a> {
    pub(crate) key: Cow<'a, str>,
    pub(crate) key_span: Span,
    pub(crate) value: Node<'a>,
}

/// Why a text is not a tree, or not a good one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TreeError {
    pub(crate) span: Span,
    pub(crate) kind: TreeErrorKind,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TreeErrorKind {
    #[error("not YAML: {0}")]
    Syntax(String),
    #[error("nested deeper than {MAX_DEPTH} levels")]
    Depth,
    #[error("aliases expand to more than {MAX_ALIASED_NODES} nodes")]
    Aliases,
    #[error("the key of a mapping must be a plain value")]
    ComplexKey,
    #[error("`<<` takes a mapping or a list of mappings")]
    Merge,
    #[error("text after the end of the document; begin another one with a line `---`")]
    Second,
    #[error("an alias to something that is not complete")]
    Recursive,
    #[error("key `{0}` stands twice in this mapping")]
    DuplicateKey(String),
}

/// A tree, and the keys that stand twice (the first of them is in the tree).
#[derive(Debug)]
pub(crate) struct Tree<'a> {
    /// `None` for an empty document.
    pub(crate) root: Option<Node<'a>>,
    pub(crate) duplicates: Vec<TreeError>,
}

impl<'a> Tree<'a> {
    /// Reads `text`, which must be one document.
    pub(crate) fn read(text: &'a str) -> Result<Self, TreeError> {
        let mut builder = Builder::new(text);
        let mut documents = 0;
        for event in Parser::new_from_str(text) {
            let (event, span) = event.map_err(|error| {
                let span = builder.span(EventSpan::empty(*error.marker()));
                TreeError { span, kind: TreeErrorKind::Syntax(error.info().to_owned()) }
            })?;
            if matches!(event, Event::DocumentStart(_)) {
                documents += 1;
                if documents > 1 {
                    return Err(TreeError { span: builder.span(span), kind: TreeErrorKind::Second });
                }
            }
            builder.event(event, span)?;
        }
        Ok(Self { root: builder.root, duplicates: builder.duplicates })
    }

    /// See [`Node::find`].
    pub(crate) fn find(&self, path: &str) -> Option<Found<'_, 'a>> {
        self.root.as_ref().map(|root| root.find(path))
    }

    pub(crate) fn into_owned(self) -> Tree<'static> {
        Tree { root: self.root.map(Node::into_owned), duplicates: self.duplicates }
    }
}

/// What [`Node::find`] found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found<'t, 'a> {
    pub(crate) node: &'t Node<'a>,
    key_span: Option<Span>,
    /// Whether this is the node asked for, not an ancestor.
    pub(crate) exact: bool,
}

impl Found<'_, '_> {
    /// The text to underline: a scalar itself, else the key of a mapping or list, since those span many lines.
    pub(crate) fn span(&self) -> Span {
        match (&self.node.value, self.key_span) {
            (Value::Scalar { .. }, _) if self.exact && self.node.span.start < self.node.span.end => self.node.span,
            (_, Some(key)) => key,
            (_, None) => self.node.head(),
        }
    }
}

impl<'a> Node<'a> {
    /// The value of `key` in a mapping.
    pub(crate) fn get(&self, key: &str) -> Option<&Node<'a>> {
        match &self.value {
            Value::Mapping(entries) => entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value),
            _ => None,
        }
    }

    /// The node at `path`, or its nearest ancestor; and whether it is the node itself. Keys match in either spelling.
    pub(crate) fn find(&self, path: &str) -> Found<'_, 'a> {
        let mut found = Found { node: self, key_span: None, exact: true };
        for step in steps(path) {
            let next = match (&found.node.value, &step) {
                (Value::Mapping(entries), Step::Key(key)) => entries
                    .iter()
                    .find(|entry| entry.key == *key || camel_case(&entry.key) == *key)
                    .map(|entry| Found { node: &entry.value, key_span: Some(entry.key_span), exact: true }),
                (Value::Sequence(items), Step::Index(index)) => {
                    items.get(*index).map(|node| Found { node, key_span: None, exact: true })
                }
                _ => None,
            };
            match next {
                Some(next) => found = next,
                None => return Found { exact: false, ..found },
            }
        }
        found
    }

    /// The text of a scalar that isn't null.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar { text, .. } if !self.is_null() => Some(text),
            _ => None,
        }
    }

    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true } if matches!(&**text, "" | "~" | "null" | "Null" | "NULL"))
    }

    /// A place for a whole mapping or list: where its first key or item begins.
    fn head(&self) -> Span {
        match &self.value {
            Value::Mapping(entries) => entries.first().map_or(self.span, |entry| entry.key_span),
            Value::Sequence(items) => items.first().map_or(self.span, Node::head),
            Value::Scalar { .. } => self.span,
        }
    }

    fn count(&self) -> usize {
        1 + match &self.value {
            Value::Scalar { .. } => 0,
            Value::Sequence(items) => items.iter().map(Node::count).sum(),
            Value::Mapping(entries) => entries.iter().map(|entry| entry.value.count()).sum(),
        }
    }

    fn into_owned(self) -> Node<'static> {
        let value = match self.value {
            Value::Scalar { text, plain } => Value::Scalar { text: Cow::Owned(text.into_owned()), plain },
            Value::Sequence(items) => Value::Sequence(items.into_iter().map(Node::into_owned).collect()),
            Value::Mapping(entries) => Value::Mapping(
                entries
                    .into_iter()
                    .map(|entry| Entry {
                        key: Cow::Owned(entry.key.into_owned()),
                        key_span: entry.key_span,
                        value: entry.value.into_owned(),
                    })
                    .collect(),
            ),
        };
        Node { id: self.id, span: self.span, value }
    }
}

enum Step<'p> {
    Key(&'p str),
    Index(usize),
}

/// `spec.http[0].headers["a.b"]` in its parts. What isn't of this form is taken as a key that nothing has.
fn steps(path: &str) -> impl Iterator<Item = Step<'_>> {
    let mut rest = path;
    std::iter::from_fn(move || {
        rest = rest.strip_prefix('.').unwrap_or(rest);
        if rest.is_empty() {
            return None;
        }
        if let Some(quoted) = rest.strip_prefix("[\"") {
            let end = quoted.find("\"]").unwrap_or(quoted.len());
            rest = quoted.get(end + 2..).unwrap_or("");
            return Some(Step::Key(&quoted[..end]));
        }
        if let Some(index) = rest.strip_prefix('[') {
            let end = index.find(']').unwrap_or(index.len());
            rest = index.get(end + 1..).unwrap_or("");
            return Some(index[..end].parse().map_or(Step::Key(&index[..end]), Step::Index));
        }
        let end = rest.find(['.', '[']).unwrap_or(rest.len());
        let (key, tail) = rest.split_at(end);
        rest = tail;
        Some(Step::Key(key))
    })
}

/// The JSON name of a protobuf field name: `export_to` becomes `exportTo`. Other names stay.
pub(crate) fn camel_case(name: &str) -> Cow<'_, str> {
    if !name.contains('_') {
        return Cow::Borrowed(name);
    }
    let mut camel = String::with_capacity(name.len());
    let mut upper = false;
    for character in name.chars() {
        match character {
            '_' => upper = true,
            _ if upper => {
                camel.push(character.to_ascii_uppercase());
                upper = false;
            }
            _ => camel.push(character),
        }
    }
    Cow::Owned(camel)
}

struct Builder<'a> {
    text: &'a str,
    root: Option<Node<'a>>,
    duplicates: Vec<TreeError>,
    open: Vec<Open<'a>>,
    anchors: HashMap<usize, Node<'a>>,
    aliased: usize,
    next_id: u32,
    /// Byte offset of each character, where the text isn't ASCII.
    offsets: Option<Vec<u32>>,
    length: u32,
}

struct Open<'a> {
    id: u32,
    span: Span,
    anchor: usize,
    partial: Partial<'a>,
}

enum Partial<'a> {
    Sequence(Vec<Node<'a>>),
    Mapping { entries: Vec<Entry<'a>>, merges: Vec<Node<'a>>, key: Option<(Cow<'a, str>, Span, bool)> },
}

impl<'a> Builder<'a> {
    fn new(text: &'a str) -> Self {
        let offsets = (!text.is_ascii()).then(|| text.char_indices().map(|(offset, _)| offset as u32).collect());
        Self {
            text,
            root: None,
            duplicates: Vec::new(),
            open: Vec::new(),
            anchors: HashMap::new(),
            aliased: 0,
            next_id: 0,
            offsets,
            length: text.len() as u32,
        }
    }

    fn event(&mut self, event: Event<'a>, span: EventSpan) -> Result<(), TreeError> {
        let span = self.span(span);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let is_text = tag.is_some_and(|tag| tag.is_yaml_core_schema() && tag.suffix == "str");
                let plain = style == ScalarStyle::Plain && !is_text;
                let id = self.id();
                let text = self.borrowed(text, span);
                self.finish(Node { id, span, value: Value::Scalar { text, plain } }, anchor)
            }
            Event::SequenceStart(anchor, _) => self.open(span, anchor, Partial::Sequence(Vec::new())),
            Event::MappingStart(anchor, _) => {
                self.open(span, anchor, Partial::Mapping { entries: Vec::new(), merges: Vec::new(), key: None })
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(span),
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor).cloned() else {
                    return Err(TreeError { span, kind: TreeErrorKind::Recursive });
                };
                let node = self.copy(node, span)?;
                self.finish(node, 0)
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd => {
                Ok(())
            }
        }
    }

    /// The parser copies nearly all scalars with space to spare, also those that stand in the document as they are.
    fn borrowed(&self, text: Cow<'a, str>, span: Span) -> Cow<'a, str> {
        let original = self.text.get(span.range()).unwrap_or_default();
        let unquoted = original.get(1..original.len().max(2) - 1).unwrap_or_default();
        match text {
            text if *text == *original => Cow::Borrowed(original),
            text if *text == *unquoted => Cow::Borrowed(unquoted),
            Cow::Owned(mut text) => {
                text.shrink_to_fit();
                Cow::Owned(text)
            }
            text => text,
        }
    }

    fn open(&mut self, span: Span, anchor: usize, partial: Partial<'a>) -> Result<(), TreeError> {
        if self.open.len() >= MAX_DEPTH {
            return Err(TreeError { span, kind: TreeErrorKind::Depth });
        }
        if let Some(Open { partial: Partial::Mapping { key: None, .. }, .. }) = self.open.last() {
            return Err(TreeError { span, kind: TreeErrorKind::ComplexKey });
        }
        let id = self.id();
        self.open.push(Open { id, span, anchor, partial });
        Ok(())
    }

    fn close(&mut self, end: Span) -> Result<(), TreeError> {
        let Some(open) = self.open.pop() else { return Ok(()) };
        let value = match open.partial {
            Partial::Sequence(mut items) => {
                items.shrink_to_fit();
                Value::Sequence(items)
            }
            Partial::Mapping { entries, merges, .. } => {
                let mut entries = self.merge(entries, merges)?;
                entries.shrink_to_fit();
                Value::Mapping(entries)
            }
        };
        let span = Span { end: end.end.max(open.span.end), ..open.span };
        self.finish(Node { id: open.id, span, value }, open.anchor)
    }

    /// Puts a complete node where it belongs.
    fn finish(&mut self, node: Node<'a>, anchor: usize) -> Result<(), TreeError> {
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let Some(parent) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match &mut parent.partial {
            Partial::Sequence(items) => items.push(node),
            Partial::Mapping { entries, merges, key } => match key.take() {
                None => match node.value {
                    Value::Scalar { text, plain } => *key = Some((text, node.span, plain)),
                    _ => return Err(TreeError { span: node.span, kind: TreeErrorKind::ComplexKey }),
                },
                Some((key, key_span, plain)) => {
                    if plain && key == "<<" {
                        merges.push(node);
                    } else {
                        entries.push(Entry { key, key_span, value: node });
                    }
                }
            },
        }
        Ok(())
    }

    /// Drops the second of equal keys with an error, and adds the keys of `merges` that are absent.
    fn merge(&mut self, mut entries: Vec<Entry<'a>>, merges: Vec<Node<'a>>) -> Result<Vec<Entry<'a>>, TreeError> {
        // Few entries are the rule, where comparing is faster than hashing.
        if entries.len() <= 16 {
            let mut index = 1;
            while index < entries.len() {
                if entries[..index].iter().any(|earlier| earlier.key == entries[index].key) {
                    let entry = entries.remove(index);
                    self.duplicate(&entry);
                } else {
                    index += 1;
                }
            }
        } else {
            let mut seen = std::collections::HashSet::with_capacity(entries.len());
            let mut kept = Vec::with_capacity(entries.len());
            for entry in entries {
                if seen.insert(entry.key.clone()) {
                    kept.push(entry);
                } else {
                    self.duplicate(&entry);
                }
            }
            entries = kept;
        }
        for merge in merges {
            let span = merge.span;
            let sources = match merge.value {
                Value::Mapping(_) => vec![merge],
                Value::Sequence(items) => items,
                Value::Scalar { .. } => return Err(TreeError { span, kind: TreeErrorKind::Merge }),
            };
            for source in sources {
                let Value::Mapping(added) = source.value else {
                    return Err(TreeError { span, kind: TreeErrorKind::Merge });
                };
                for entry in added {
                    if !entries.iter().any(|existing| existing.key == entry.key) {
                        entries.push(entry);
                    }
                }
            }
        }
        Ok(entries)
    }

    fn duplicate(&mut self, entry: &Entry<'a>) {
        let kind = TreeErrorKind::DuplicateKey(entry.key.clone().into_owned());
        self.duplicates.push(TreeError { span: entry.key_span, kind });
    }

    /// A copy of an anchored node: with ids of its own, at the place of the alias.
    fn copy(&mut self, mut node: Node<'a>, span: Span) -> Result<Node<'a>, TreeError> {
        self.aliased = self.aliased.saturating_add(node.count());
        if self.aliased > MAX_ALIASED_NODES {
            return Err(TreeError { span, kind: TreeErrorKind::Aliases });
        }
        self.renumber(&mut node);
        if matches!(node.value, Value::Scalar { .. }) {
            node.span = span;
        }
        Ok(node)
    }

    fn renumber(&mut self, node: &mut Node<'a>) {
        node.id = self.id();
        match &mut node.value {
            Value::Scalar { .. } => {}
            Value::Sequence(items) => items.iter_mut().for_each(|item| self.renumber(item)),
            Value::Mapping(entries) => entries.iter_mut().for_each(|entry| self.renumber(&mut entry.value)),
        }
    }

    fn id(&mut self) -> u32 {
        self.next_id += 1;
        self.next_id
    }

    fn span(&self, span: EventSpan) -> Span {
        let offset = |characters: usize| match &self.offsets {
            None => (characters as u32).min(self.length),
            Some(offsets) => offsets.get(characters).copied().unwrap_or(self.length),
        };
        Span {
            start: offset(span.start.index()),
            end: offset(span.end.index()),
            line: (span.start.line() as u32).saturating_sub(1),
            column: span.start.col() as u32,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that can't read its own input should stop")]
mod tests {
    use super::*;

    fn place(text: &str, path: &str) -> (u32, u32, String, bool) {
        let tree = Tree::read(text).unwrap();
        let found = tree.find(path).unwrap();
        let span = found.span();
        (span.line, span.column, text[span.range()].to_owned(), found.exact)
    }

    const ROUTE: &str =
        "spec:\n  http:\n  - route:\n    - destination:\n        host: \"b\u{e4}r\"\n        port: {number: 80}\n";

    #[test]
    fn a_field_is_found_where_it_stands() {
        assert_eq!(place(ROUTE, "spec.http[0].route[0].destination.host"), (4, 14, "\"b\u{e4}r\"".into(), true));
        assert_eq!(place(ROUTE, "spec.http[0].route[0].destination.port.number"), (5, 23, "80".into(), true));
    }

    #[test]
    fn an_absent_field_leads_to_its_nearest_ancestor() {
        assert_eq!(place(ROUTE, "spec.http[0].route[0].destination.subset"), (3, 6, "destination".into(), false));
        assert_eq!(place(ROUTE, "spec.http[7].timeout"), (1, 2, "http".into(), false));
    }

    #[test]
    fn quoted_steps_and_snake_case_are_found() {
        let text = "metadata:\n  labels:\n    a.b/c: x\nspec:\n  export_to: ['.']\n";
        assert_eq!(place(text, "metadata.labels[\"a.b/c\"]"), (2, 11, "x".into(), true));
        assert_eq!(place(text, "spec.exportTo[0]"), (4, 14, "'.'".into(), true));
    }

    #[test]
    fn json_is_read_too() {
        assert_eq!(place("{\"spec\":\n {\"a\": [1, 2]}}", "spec.a[1]"), (1, 11, "2".into(), true));
    }

    #[test]
    fn duplicate_keys_are_reported_and_the_first_stays() {
        let tree = Tree::read("a: 1\nb: 2\na: 3\n").unwrap();
        assert_eq!(tree.root.unwrap().get("a").unwrap().text(), Some("1"));
        assert_eq!(tree.duplicates.len(), 1);
        assert_eq!(tree.duplicates[0].span.line, 2);
        assert_eq!(tree.duplicates[0].kind, TreeErrorKind::DuplicateKey("a".into()));
    }

    #[test]
    fn aliases_and_merge_keys_are_expanded() {
        let tree = Tree::read("a: &x {p: 1, q: 2}\nb: *x\nc:\n  <<: *x\n  q: 3\n").unwrap();
        let root = tree.root.unwrap();
        assert_eq!(root.get("b").unwrap().get("p").unwrap().text(), Some("1"));
        assert_eq!(root.get("c").unwrap().get("p").unwrap().text(), Some("1"));
        assert_eq!(root.get("c").unwrap().get("q").unwrap().text(), Some("3"));
    }

    #[test]
    fn a_bomb_of_aliases_is_refused() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..10 {
            let list = vec![format!("*a{}", level - 1); 10].join(", ");
            text.push_str(&format!("a{level}: &a{level} [{list}]\n"));
        }
        assert_eq!(Tree::read(&text).unwrap_err().kind, TreeErrorKind::Aliases);
    }

    #[test]
    fn depth_is_bounded() {
        let text = format!("a: {}{}", "[".repeat(200), "]".repeat(200));
        assert_eq!(Tree::read(&text).unwrap_err().kind, TreeErrorKind::Depth);
    }

    #[test]
    fn broken_yaml_says_where() {
        let error = Tree::read("a: b\nc: [1, 2\nd: e\n").unwrap_err();
        assert!(matches!(error.kind, TreeErrorKind::Syntax(_)));
        assert!(error.span.line >= 1, "{error:?}");
    }
}
