//! Message bodies of HTTP/1.1: by length, chunked, until close (RFC 9112 §6, §7).

use bytes::{Bytes, BytesMut};

/// Longest chunk size line and trailer section that is accepted, in bytes.
const MAX_LINE: usize = 16 * 1024;

/// How the end of a body is found, and how far it has been read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoder {
    /// This many bytes are left.
    Length(u64),
    /// Chunked coding.
    Chunked(Chunked),
    /// Everything until the peer closes.
    UntilClose,
    /// All of it has been read, or there is none.
    Done,
}

/// Place within a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunked {
    /// A size line comes next.
    Size,
    /// This many bytes of chunk data are left.
    Data(u64),
    /// The line end after chunk data comes next.
    DataEnd,
    /// Trailer lines, read so far in bytes.
    Trailers(usize),
}

/// The body breaks the rules of its framing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid chunked coding")]
pub struct InvalidBody;

/// What [`Decoder::decode`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Decoded {
    /// A piece of the body.
    Data(Bytes),
    /// The body is complete.
    End,
    /// More input is needed.
    NeedMore,
}

impl Decoder {
    /// A decoder for chunked coding.
    pub fn chunked() -> Self {
        Self::Chunked(Chunked::Size)
    }

    /// A decoder for `length` bytes.
    pub fn length(length: u64) -> Self {
        if length == 0 { Self::Done } else { Self::Length(length) }
    }

    /// Whether the whole body has been read.
    pub fn is_done(&self) -> bool {
        *self == Self::Done
    }

    /// Takes the next piece of the body from the front of `input`. Trailers are read and dropped.
    ///
    /// # Errors
    /// The framing is broken; the connection can't be used any more.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Decoded, InvalidBody> {
        loop {
            match self {
                Self::Done => return Ok(Decoded::End),
                Self::UntilClose => return Ok(take(input, u64::MAX).map_or(Decoded::NeedMore, Decoded::Data)),
                Self::Length(left) => {
                    let Some(data) = take(input, *left) else { return Ok(Decoded::NeedMore) };
                    *left -= data.len() as u64;
                    if *left == 0 {
                        *self = Self::Done;
                    }
                    return Ok(Decoded::Data(data));
                }
                Self::Chunked(state) => match *state {
                    Chunked::Size => {
                        let Some(line) = line(input)? else { return Ok(Decoded::NeedMore) };
                        *state = match chunk_size(&line)? {
                            0 => Chunked::Trailers(0),
                            size => Chunked::Data(size),
                        };
                    }
                    Chunked::Data(left) => {
                        let Some(data) = take(input, left) else { return Ok(Decoded::NeedMore) };
                        let left = left - data.len() as u64;
                        *state = if left == 0 { Chunked::DataEnd } else { Chunked::Data(left) };
                        return Ok(Decoded::Data(data));
                    }
                    Chunked::DataEnd => {
                        if input.len() < 2 {
                            if input.first().is_some_and(|&byte| byte != b'\r') {
                                return Err(InvalidBody);
                            }
                            return Ok(Decoded::NeedMore);
                        }
                        if &input[..2] != b"\r\n" {
                            return Err(InvalidBody);
                        }
                        let _line_end = input.split_to(2);
                        *state = Chunked::Size;
                    }
                    Chunked::Trailers(read) => {
                        let Some(line) = line(input)? else { return Ok(Decoded::NeedMore) };
                        if line.is_empty() {
                            *self = Self::Done;
                            return Ok(Decoded::End);
                        }
                        let read = read + line.len() + 2;
                        if read > MAX_LINE || !line.contains(&b':') {
                            return Err(InvalidBody);
                        }
                        *state = Chunked::Trailers(read);
                    }
                },
            }
        }
    }
}

/// At most `limit` bytes from the front of `input`; `None` if it is empty.
fn take(input: &mut BytesMut, limit: u64) -> Option<Bytes> {
    if input.is_empty() {
        return None;
    }
    let count = usize::try_from(limit).map_or(input.len(), |limit| limit.min(input.len()));
    Some(input.split_to(count).freeze())
}

/// The next line, which must end with CRLF, without its end.
fn line(input: &mut BytesMut) -> Result<Option<Bytes>, InvalidBody> {
    let Some(end) = input.iter().position(|&byte| byte == b'\n') else {
        return if input.len() > MAX_LINE { Err(InvalidBody) } else { Ok(None) };
    };
    if end == 0 || input[end - 1] != b'\r' {
        return Err(InvalidBody);
    }
    let mut line = input.split_to(end + 1).freeze();
    line.truncate(end - 1);
    // A lone CR could end the line for another reader.
    if line.contains(&b'\r') { Err(InvalidBody) } else { Ok(Some(line)) }
}

/// The size of a chunk from its line; extensions are dropped.
fn chunk_size(line: &[u8]) -> Result<u64, InvalidBody> {
    let digits = line.split(|&byte| byte == b';').next().unwrap_or_default();
    // Blanks before an extension are tolerated (RFC 9112 §7.1.1), none elsewhere.
    let digits = if digits.len() < line.len() { digits.trim_ascii_end() } else { digits };
    if digits.is_empty() || digits.len() > 16 {
        return Err(InvalidBody);
    }
    digits.iter().try_fold(0_u64, |size, &digit| {
        let value = char::from(digit).to_digit(16).ok_or(InvalidBody)?;
        size.checked_mul(16).and_then(|size| size.checked_add(u64::from(value))).ok_or(InvalidBody)
    })
}

/// Appends the size line of a chunk of `length` bytes.
pub fn write_chunk_size(length: usize, out: &mut Vec<u8>) {
    let mut digits = [0; 16];
    let mut rest = length;
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b"0123456789abcdef"[rest % 16];
        rest /= 16;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes `input` given in pieces of every size: the result must not depend on how it arrives.
    fn decode(input: &[u8]) -> Result<(Vec<u8>, bool), InvalidBody> {
        let mut whole = None;
        for piece in 1..=input.len() {
            let mut decoder = Decoder::chunked();
            let mut buffer = BytesMut::new();
            let mut body = Vec::new();
            let mut done = false;
            let outcome = input.chunks(piece).try_for_each(|bytes| {
                buffer.extend_from_slice(bytes);
                loop {
                    match decoder.decode(&mut buffer)? {
                        Decoded::Data(data) => body.extend_from_slice(&data),
                        Decoded::End => {
                            done = true;
                            return Ok(());
                        }
                        Decoded::NeedMore => return Ok(()),
                    }
                }
            });
            let result = outcome.map(|()| (body, done));
            match &whole {
                None => whole = Some(result),
                Some(first) => assert_eq!(*first, result, "in pieces of {piece}"),
            }
        }
        whole.unwrap_or(Err(InvalidBody))
    }

    #[test]
    fn chunks_are_joined_and_trailers_dropped() {
        assert_eq!(
            decode(b"2\r\nhi\r\nA;x=y\r\n0123456789\r\n0\r\nx-t: 1\r\n\r\n"),
            Ok((b"hi0123456789".to_vec(), true))
        );
    }

    #[test]
    fn an_unfinished_body_is_not_complete() {
        assert_eq!(decode(b"5\r\nhel"), Ok((b"hel".to_vec(), false)));
    }

    #[test]
    fn broken_framing_is_refused() {
        for input in [
            &b"zz\r\nhi\r\n0\r\n\r\n"[..],
            b"2\nhi\n0\n\n",
            b"2\r\nhiXX0\r\n\r\n",
            b"\r\n",
            b"-2\r\nhi\r\n",
            b"+2\r\nhi\r\n",
            b"0x2\r\nhi\r\n",
            b"2 \r\nhi\r\n",
            b"11111111111111111\r\n",
            b"0\r\nno colon\r\n\r\n",
            b"2\r;a\r\nhi\r\n",
        ] {
            assert_eq!(decode(input), Err(InvalidBody), "{:?}", String::from_utf8_lossy(input));
        }
    }

    #[test]
    fn sizes_are_written_in_hex() {
        let mut out = Vec::new();
        write_chunk_size(0, &mut out);
        write_chunk_size(255, &mut out);
        write_chunk_size(4096, &mut out);
        assert_eq!(out, b"0\r\nff\r\n1000\r\n");
    }
}
