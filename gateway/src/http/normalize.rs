//! Path normalisation before routing.
//!
//! Source: `reference/networking.md` §4.2, measured on Envoy.

use bytes::Bytes;
use config::snapshot::listener::{EscapedSlashes, PathNormalization};

/// What normalisation makes of a path with query.
#[derive(Debug, PartialEq, Eq)]
pub enum Normalized {
    /// It stays as it is.
    Unchanged,
    /// The request goes on with this one.
    Changed(Bytes),
    /// The client is sent to this one.
    Redirect(Bytes),
    /// It can't be normalised, or contains what the configuration refuses.
    Refused,
}

/// Normalises `target`, a path that begins with `/`, with its query.
pub fn normalize(target: &[u8], mode: PathNormalization, slashes: EscapedSlashes) -> Normalized {
    let without_fragment = target.split(|&byte| byte == b'#').next().unwrap_or_default();
    let end = without_fragment.iter().position(|&byte| byte == b'?').unwrap_or(without_fragment.len());
    let (path, query) = without_fragment.split_at(end);
    if is_plain(path) && without_fragment.len() == target.len() {
        return Normalized::Unchanged;
    }
    let decode = mode == PathNormalization::DecodeAndMergeSlashes;
    let escaped = slashes != EscapedSlashes::Keep && has_escaped_slash(path);
    if escaped && slashes == EscapedSlashes::Reject {
        return Normalized::Refused;
    }
    let mut path = if decode || escaped { decode_slashes(path) } else { path.to_vec() };
    if matches!(
        mode,
        PathNormalization::Base | PathNormalization::MergeSlashes | PathNormalization::DecodeAndMergeSlashes
    ) {
        match canonical(&path) {
            Some(canonical) => path = canonical,
            None => return Normalized::Refused,
        }
    }
    if matches!(
        mode,
        PathNormalization::MergeSlashes | PathNormalization::DecodeAndMergeSlashes | PathNormalization::MergeOnly
    ) {
        path = merge_slashes(&path);
    }
    path.extend_from_slice(query);
    if escaped && slashes == EscapedSlashes::UnescapeAndRedirect {
        return Normalized::Redirect(path.into());
    }
    if path == target { Normalized::Unchanged } else { Normalized::Changed(path.into()) }
}

/// Whether no mode changes anything in the path.
fn is_plain(path: &[u8]) -> bool {
    let mut previous = 0;
    path.iter().all(|&byte| {
        let plain = match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~' => true,
            b'/' | b'.' => previous != b'/',
            _ => encoded(byte).is_none() && !matches!(byte, b'%' | b'\\'),
        };
        previous = byte;
        plain
    })
}

/// The bytes that Envoy percent-encodes in a path.
fn encoded(byte: u8) -> Option<&'static [u8; 3]> {
    Some(match byte {
        b'"' => b"%22",
        b'<' => b"%3C",
        b'>' => b"%3E",
        b'^' => b"%5E",
        b'`' => b"%60",
        b'{' => b"%7B",
        b'|' => b"%7C",
        b'}' => b"%7D",
        _ => return None,
    })
}

/// The byte that `%XY` at the front of `text` stands for.
fn escape(text: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = text else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()
}

fn has_escaped_slash(path: &[u8]) -> bool {
    (0..path.len()).any(|at| matches!(escape(&path[at..]), Some(b'/' | b'\\')))
}

fn decode_slashes(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut at = 0;
    while at < path.len() {
        match escape(&path[at..]) {
            Some(byte @ (b'/' | b'\\')) => {
                out.push(byte);
                at += 3;
            }
            _ => {
                out.push(path[at]);
                at += 1;
            }
        }
    }
    out
}

/// Decodes unreserved escapes, encodes what must be, turns backslashes and removes dot segments; `None` for `%00`.
fn canonical(path: &[u8]) -> Option<Vec<u8>> {
    let mut text = Vec::with_capacity(path.len());
    let mut at = 0;
    while at < path.len() {
        match escape(&path[at..]) {
            Some(0) => return None,
            Some(byte) if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => {
                text.push(byte);
                at += 3;
                continue;
            }
            _ => {}
        }
        match path[at] {
            b'\\' => text.push(b'/'),
            byte => match encoded(byte) {
                Some(escaped) => text.extend_from_slice(escaped),
                None => text.push(byte),
            },
        }
        at += 1;
    }
    let mut out = Vec::with_capacity(text.len());
    let mut segments = text.split(|&byte| byte == b'/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let name = segment.split(|&byte| byte == b';').next().unwrap_or_default();
        match name {
            b"." => {}
            b".." => {
                let parent = out.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
                out.truncate(parent);
            }
            _ => {
                out.push(b'/');
                out.extend_from_slice(segment);
                continue;
            }
        }
        if segments.peek().is_none() {
            out.push(b'/');
        }
    }
    Some(out)
}

/// Joins the parts between slashes again with one slash each. Like Envoy, `///` becomes `//`.
fn merge_slashes(path: &[u8]) -> Vec<u8> {
    let mut out = vec![b'/'];
    for (index, part) in path.split(|&byte| byte == b'/').filter(|part| !part.is_empty()).enumerate() {
        if index > 0 {
            out.push(b'/');
        }
        out.extend_from_slice(part);
    }
    if path.ends_with(b"/") && path.len() > 1 {
        out.push(b'/');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(target: &str, mode: PathNormalization) -> String {
        match normalize(target.as_bytes(), mode, EscapedSlashes::Keep) {
            Normalized::Unchanged => target.to_owned(),
            Normalized::Changed(path) => String::from_utf8_lossy(&path).into_owned(),
            Normalized::Redirect(_) | Normalized::Refused => "refused".to_owned(),
        }
    }

    /// `reference/networking.md` §4.2.
    #[test]
    fn paths_change_as_in_envoy() {
        use PathNormalization::{Base, DecodeAndMergeSlashes, MergeSlashes, None};
        for (target, mode, expected) in [
            ("/a/../b", Base, "/b"),
            ("/a/../../b", Base, "/b"),
            ("/..", Base, "/"),
            ("/a/.", Base, "/a/"),
            ("/a/../b", None, "/a/../b"),
            ("/a//b", Base, "/a//b"),
            ("//a", MergeSlashes, "/a"),
            ("///", MergeSlashes, "//"),
            ("/", MergeSlashes, "/"),
            ("/a/b//", MergeSlashes, "/a/b/"),
            ("/a\\b", Base, "/a/b"),
            ("/a%2Fb", Base, "/a%2Fb"),
            ("/a%2Fb", DecodeAndMergeSlashes, "/a/b"),
            ("/a%5cb", DecodeAndMergeSlashes, "/a/b"),
            ("/a/..%2fb", Base, "/a/..%2fb"),
            ("/a/..%2fb", DecodeAndMergeSlashes, "/b"),
            ("/a/%2e%2e%2fb", Base, "/a/..%2fb"),
            ("/a%2f%2e%2e/b", Base, "/a%2f../b"),
            ("/a/%2e%2e%2fb", DecodeAndMergeSlashes, "/b"),
            ("/%2e%2e/a", Base, "/a"),
            ("/a/.%2e/b", Base, "/b"),
            ("/a/%2E/b", Base, "/a/b"),
            ("/a/..;/b", Base, "/b"),
            ("/a/..;x=1/b", Base, "/b"),
            ("/a;p=1/../b", Base, "/b"),
            ("/%41%7e%2D%5F", Base, "/A~-_"),
            ("/a|b{x}\"<a>^`", Base, "/a%7Cb%7Bx%7D%22%3Ca%3E%5E%60"),
            ("/%20", Base, "/%20"),
            ("/%zz", Base, "/%zz"),
            ("/%4", Base, "/%4"),
            ("/%", Base, "/%"),
            ("/.../b", Base, "/.../b"),
            ("/a;..;/b", Base, "/a;..;/b"),
            ("/./..//%2F", Base, "//%2F"),
            ("/./..//%2F", MergeSlashes, "/%2F"),
            ("/./..//%2F", DecodeAndMergeSlashes, "//"),
            ("/a/../b//c%2Fd", Base, "/b//c%2Fd"),
            ("/a/../b//c%2Fd", MergeSlashes, "/b/c%2Fd"),
            ("/a/../b//c%2Fd", DecodeAndMergeSlashes, "/b/c/d"),
            ("/a#f?x=1", None, "/a"),
            ("/a?x=/../%41#f", Base, "/a?x=/../%41"),
            ("/a%00", Base, "refused"),
        ] {
            assert_eq!(path(target, mode), expected, "{target} {mode:?}");
        }
    }

    #[test]
    fn escaped_slashes_can_be_refused_or_redirected() {
        let run = |target: &str, slashes| normalize(target.as_bytes(), PathNormalization::Base, slashes);
        assert_eq!(run("/a%2Fb?c", EscapedSlashes::Reject), Normalized::Refused);
        assert_eq!(run("/a%2Fb?c", EscapedSlashes::UnescapeAndRedirect), Normalized::Redirect("/a/b?c".into()));
        assert_eq!(run("/a%2Fb", EscapedSlashes::UnescapeAndForward), Normalized::Changed("/a/b".into()));
        assert_eq!(run("/ab", EscapedSlashes::Reject), Normalized::Unchanged);
    }
}
