//! What a request asks the echo server to do: query parameters, or headers of the same name behind `x-echo-`.

use std::str::FromStr;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};

/// All wishes of one request. A parameter of the query wins over the header of the same meaning.
///
/// | Name | Value | Effect |
/// |---|---|---|
/// | `status` | code | status of the answer |
/// | `delay` | `250ms`, `2s` | wait before the head of the answer |
/// | `fail` | N | the first N requests get `fail-status` (503), later ones succeed; counted by `key`, else by path |
/// | `chunks`, `interval` | N, duration | N pieces, that far apart |
/// | `size` | `100`, `64k`, `5m` | a body of that many bytes, for each chunk if there are several |
/// | `header`, `trailer` | `name:value`, repeatable | added to the answer |
/// | `informational` | 1xx code | interim response first (HTTP/1.1) |
/// | `close`, `reset` | `head`, `body` | end the connection (HTTP/2: the stream) before the head, or inside the body |
/// | `read-rate` | bytes a second, `k`, `m` | read the request's body no faster |
#[derive(Debug)]
pub(super) struct Controls {
    pub(super) status: StatusCode,
    pub(super) delay: Duration,
    pub(super) fail: Option<Fail>,
    pub(super) chunks: Option<u64>,
    pub(super) interval: Duration,
    pub(super) size: Option<u64>,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) trailers: HeaderMap,
    pub(super) informational: Option<StatusCode>,
    pub(super) cut: Option<(Moment, Cut)>,
    pub(super) read_rate: Option<u64>,
}

/// Refuse the first `times` requests of one `key`.
#[derive(Debug)]
pub(super) struct Fail {
    pub(super) times: u64,
    pub(super) status: StatusCode,
    pub(super) key: String,
}

/// When the answer is cut: before its head, or after the first piece of its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    Head,
    Body,
}

/// How the answer is cut: an orderly end of the connection, or a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    Close,
    Reset,
}

/// A wish that can't be read.
#[derive(Debug, thiserror::Error)]
#[error("{name}: can't use {value:?}, expected {expected}")]
pub(super) struct InvalidControl {
    name: &'static str,
    value: String,
    expected: &'static str,
}

impl Controls {
    pub(super) fn of<B>(request: &Request<B>) -> Result<Self, InvalidControl> {
        let wishes = Wishes { query: request.uri().query().unwrap_or_default(), headers: request.headers() };
        let cut = match (wishes.moment("close")?, wishes.moment("reset")?) {
            (_, Some(moment)) => Some((moment, Cut::Reset)),
            (Some(moment), None) => Some((moment, Cut::Close)),
            (None, None) => None,
        };
        let fail = match wishes.number("fail")? {
            Some(times) => Some(Fail {
                times,
                status: wishes.status("fail-status")?.unwrap_or(StatusCode::SERVICE_UNAVAILABLE),
                key: wishes.first("key").unwrap_or_else(|| request.uri().path().to_owned()),
            }),
            None => None,
        };
        Ok(Self {
            status: wishes.status("status")?.unwrap_or(StatusCode::OK),
            delay: wishes.duration("delay")?.unwrap_or_default(),
            fail,
            chunks: wishes.number("chunks")?,
            interval: wishes.duration("interval")?.unwrap_or_default(),
            size: wishes.size("size")?,
            headers: wishes.fields("header")?,
            trailers: wishes.fields("trailer")?.into_iter().collect(),
            informational: wishes.status("informational")?.filter(StatusCode::is_informational),
            cut,
            read_rate: wishes.size("read-rate")?,
        })
    }
}

struct Wishes<'a> {
    query: &'a str,
    headers: &'a HeaderMap,
}

impl Wishes<'_> {
    fn all(&self, name: &'static str) -> Vec<String> {
        let parameters: Vec<String> = self
            .query
            .split('&')
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .filter(|(key, _)| *key == name)
            .map(|(_, value)| decode(value))
            .collect();
        if !parameters.is_empty() {
            return parameters;
        }
        let lines = self.headers.get_all(format!("x-echo-{name}"));
        lines.iter().filter_map(|value| value.to_str().ok().map(str::to_owned)).collect()
    }

    fn first(&self, name: &'static str) -> Option<String> {
        self.all(name).into_iter().next()
    }

    fn parsed<T>(
        &self,
        name: &'static str,
        expected: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, InvalidControl> {
        let Some(value) = self.first(name) else { return Ok(None) };
        match parse(&value) {
            Some(parsed) => Ok(Some(parsed)),
            None => Err(InvalidControl { name, value, expected }),
        }
    }

    fn status(&self, name: &'static str) -> Result<Option<StatusCode>, InvalidControl> {
        self.parsed(name, "a status code", |value| StatusCode::from_str(value).ok())
    }

    fn number(&self, name: &'static str) -> Result<Option<u64>, InvalidControl> {
        self.parsed(name, "a number", |value| value.parse().ok())
    }

    fn size(&self, name: &'static str) -> Result<Option<u64>, InvalidControl> {
        self.parsed(name, "bytes, such as 100, 64k or 5m", |value| {
            let (digits, unit) = match value.as_bytes().last()? {
                b'k' => (&value[..value.len() - 1], 1 << 10),
                b'm' => (&value[..value.len() - 1], 1 << 20),
                _ => (value, 1),
            };
            digits.parse::<u64>().ok()?.checked_mul(unit)
        })
    }

    fn duration(&self, name: &'static str) -> Result<Option<Duration>, InvalidControl> {
        self.parsed(name, "a duration, such as 250ms or 2s", |value| match value.strip_suffix("ms") {
            Some(digits) => digits.parse().ok().map(Duration::from_millis),
            None => value.strip_suffix('s')?.parse().ok().map(Duration::from_secs),
        })
    }

    fn moment(&self, name: &'static str) -> Result<Option<Moment>, InvalidControl> {
        self.parsed(name, "head or body", |value| match value {
            "head" => Some(Moment::Head),
            "body" => Some(Moment::Body),
            _ => None,
        })
    }

    fn fields(&self, name: &'static str) -> Result<Vec<(HeaderName, HeaderValue)>, InvalidControl> {
        let field = |value: &str| {
            let (name, value) = value.split_once(':')?;
            Some((HeaderName::from_str(name).ok()?, HeaderValue::from_str(value.trim()).ok()?))
        };
        self.all(name)
            .into_iter()
            .map(|value| field(&value).ok_or(InvalidControl { name, value, expected: "name:value" }))
            .collect()
    }
}

/// Decodes `%XX` and `+` of a query value; what isn't valid stays as it is.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = tail.get(..2).and_then(|digits| str::from_utf8(digits).ok());
        match (first, escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            (b'+', _) => {
                bytes.push(b' ');
                rest = tail;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
