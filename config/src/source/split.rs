//! A file is cut into documents, and documents that did not change are recognised.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use memchr::memmem;

use super::Document;

/// The documents of `text`, empty ones left out. Those whose bytes are among `previous` are the same `Arc`, on their
/// line of today. Cost: one pass over the text; nothing is parsed.
pub(super) fn split(file: &Arc<Path>, text: &str, previous: &[Arc<Document>]) -> Vec<Arc<Document>> {
    let pieces: Vec<(u32, &str)> = pieces(text).filter(|(_, piece)| !is_empty(piece)).collect();
    // One edit is the rule: what stands before it and behind it is the same, in the same order.
    let head = pieces.iter().zip(previous).take_while(|((_, piece), document)| *piece == document.text()).count();
    let tail = pieces[head..]
        .iter()
        .rev()
        .zip(previous[head..].iter().rev())
        .take_while(|((_, piece), document)| *piece == document.text())
        .count();
    let mut moved: HashMap<&str, Vec<&Arc<Document>>> = HashMap::new();
    for document in previous[head..previous.len() - tail].iter().rev() {
        moved.entry(document.text()).or_default().push(document);
    }
    let mut documents = Vec::with_capacity(pieces.len());
    for (index, (line, piece)) in pieces.iter().enumerate() {
        let known = if index < head {
            Some(&previous[index])
        } else if index >= pieces.len() - tail {
            Some(&previous[previous.len() - (pieces.len() - index)])
        } else {
            moved.get_mut(piece).and_then(Vec::pop)
        };
        documents.push(match known {
            Some(document) => {
                document.move_to(*line);
                Arc::clone(document)
            }
            None => Arc::new(Document::new(Arc::clone(file), *piece, *line)),
        });
    }
    documents
}

/// What stands between lines that begin with `---`, with the line it begins on. The separator's own line is part of
/// the document below it, because it may hold text of it (`--- {a: b}`).
///
/// No `---` at the beginning of a line is anything else in YAML: block text is indented, quoted text mustn't have it.
fn pieces(text: &str) -> impl Iterator<Item = (u32, &str)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut starts = memmem::find_iter(text.as_bytes(), b"\n---")
        .map(|newline| newline + 1)
        .filter(|start| matches!(text.as_bytes().get(start + 3), None | Some(b' ' | b'\t' | b'\n' | b'\r')))
        .collect::<Vec<_>>();
    starts.push(text.len());
    let mut begin = 0;
    let mut line = 1;
    starts.into_iter().map(move |end| {
        let piece = (line, &text[begin..end]);
        line += memchr::memchr_iter(b'\n', piece.1.as_bytes()).count() as u32;
        begin = end;
        piece
    })
}

/// Whether there are only comments, directives and separators.
fn is_empty(piece: &str) -> bool {
    piece.lines().all(|line| {
        let line = line.strip_prefix("---").unwrap_or(line).trim();
        line.is_empty() || line == "..." || line.starts_with(['#', '%'])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(text: &str) -> Vec<(u32, &str)> {
        pieces(text).filter(|(_, piece)| !is_empty(piece)).collect()
    }

    #[test]
    fn separators_begin_a_line() {
        assert_eq!(
            cut("a: 1\n---\nb: |\n  ---\n--- # c\nc: ---\n"),
            [(1, "a: 1\n"), (2, "---\nb: |\n  ---\n"), (5, "--- # c\nc: ---\n")]
        );
        assert_eq!(cut("a: 1\n----\nb\n"), [(1, "a: 1\n----\nb\n")]);
    }

    #[test]
    fn text_beside_the_separator_belongs_to_the_document() {
        assert_eq!(cut("--- {a: 1}\n---\t{b: 2}\n"), [(1, "--- {a: 1}\n"), (2, "---\t{b: 2}\n")]);
    }

    #[test]
    fn empty_documents_are_left_out_and_lines_go_on() {
        assert_eq!(cut("# licence\n---\n\n---\n%YAML 1.2\n---\r\na: 1\r\n---"), [(6, "---\r\na: 1\r\n")]);
        assert_eq!(cut(""), []);
    }

    #[test]
    fn a_byte_order_mark_is_skipped() {
        assert_eq!(cut("\u{feff}a: 1"), [(1, "a: 1")]);
    }

    #[test]
    fn unchanged_documents_are_the_same_wherever_they_go() {
        let file: Arc<Path> = Arc::from(Path::new("f.yaml"));
        let first = split(&file, "a: 1\n---\nb: 1\n---\nc: 1\n---\nd: 1\n", &[]);
        let second = split(&file, "# new\n\na: 1\n---\nc: 1\n---\nb: 2\n---\nb: 1\n---\nd: 1\n", &first);
        let known: Vec<Option<usize>> =
            second.iter().map(|new| first.iter().position(|old| Arc::ptr_eq(old, new))).collect();
        // The first document has a comment more, `c` and `b` changed places, one is new.
        assert_eq!(known, [None, Some(2), None, Some(1), Some(3)]);
        let lines: Vec<u32> = second.iter().map(|document| document.first_line()).collect();
        assert_eq!(lines, [1, 4, 6, 8, 10]);
    }

    #[test]
    fn equal_documents_are_each_used_once() {
        let file: Arc<Path> = Arc::from(Path::new("f.yaml"));
        let first = split(&file, "---\na: 1\n---\nb: 1\n", &[]);
        let second = split(&file, "---\nb: 1\n---\nb: 1\n", &first);
        assert!(!Arc::ptr_eq(&second[0], &second[1]));
    }
}
