//! Evaluates Envoy's format strings against what is known of a request, for header operations and the access log.
//!
//! Source: `reference/telemetry-and-operations.md` §4.4-4.5, `reference/networking.md` §3.15.

mod time;
mod tls;

use std::io::Write;
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime};

use config::snapshot::format::{Command, Format, Piece};

use crate::http::headers::Headers;
use crate::request::{Facts, Protocol};

/// When a format is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// While headers are written: absent values print nothing, and so do durations that have not ended.
    Headers,
    /// After the last byte, for the access log: absent values print `-`.
    End,
}

/// What [`value`] has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing: the value doesn't exist.
    Absent,
    /// Bytes, perhaps none. Not always UTF-8.
    Text,
    /// Decimal digits, with a `-` before them if negative.
    Number,
}

/// Appends the value of `format` to `out`. Header values go out as they came in, byte by byte.
pub fn write(format: &Format, facts: &Facts, moment: Moment, out: &mut Vec<u8>) {
    for piece in &format.pieces {
        match piece {
            Piece::Literal(text) => out.extend_from_slice(text.as_bytes()),
            Piece::Command { command, max_length } => {
                let kind = value(command, *max_length, facts, moment, out);
                if kind == Kind::Absent && moment == Moment::End {
                    out.push(b'-');
                }
            }
        }
    }
}

/// Appends the value of one command, cut to `max_length` bytes.
pub fn value(command: &Command, max_length: Option<usize>, facts: &Facts, moment: Moment, out: &mut Vec<u8>) -> Kind {
    let start = out.len();
    let kind = untruncated(command, facts, moment, out);
    if let Some(max_length) = max_length {
        out.truncate(start.saturating_add(max_length));
    }
    kind
}

fn untruncated(command: &Command, facts: &Facts, moment: Moment, out: &mut Vec<u8>) -> Kind {
    let request = facts.request.as_ref();
    match command {
        Command::DownstreamRemoteAddress => address(facts.client, out),
        Command::DownstreamRemoteAddressWithoutPort => ip(facts.client, out),
        Command::DownstreamDirectRemoteAddress => address(facts.connection.direct_remote, out),
        Command::DownstreamDirectRemoteAddressWithoutPort => ip(facts.connection.direct_remote, out),
        Command::DownstreamLocalAddress => address(facts.connection.local, out),
        Command::DownstreamLocalAddressWithoutPort => ip(facts.connection.local, out),
        Command::DownstreamLocalPort => number(facts.connection.local.map(|local| local.port()), out),
        Command::Protocol => text(facts.protocol.map(Protocol::as_str), out),
        Command::RequestHeader { name, alternative } => {
            let found = request_header(facts, name)
                .or_else(|| alternative.as_ref().and_then(|alternative| request_header(facts, alternative)));
            text(found, out)
        }
        Command::ResponseHeader { name, alternative } => {
            if [Some(name), alternative.as_ref()].into_iter().flatten().any(|name| name == ":status") {
                return number((facts.status != 0).then_some(facts.status), out);
            }
            text(line(&facts.response_headers, name, alternative.as_deref()), out)
        }
        Command::ResponseTrailer { name, alternative } => {
            text(line(&facts.response_trailers, name, alternative.as_deref()), out)
        }
        Command::QueryParam(name) => {
            let query = facts.original_path.as_ref().or(request.map(|request| &request.path));
            query_parameter(query.and_then(|path| path.query()), name, out)
        }
        Command::Path { query } => {
            let path = facts.original_path.as_ref().or(request.map(|request| &request.path));
            text(path.map(|path| if *query { path.as_str() } else { path.path() }), out)
        }
        Command::StartTime(format) => time(facts.started_at, format.as_deref(), out),
        Command::EmitTime(format) => time(SystemTime::now(), format.as_deref(), out),
        Command::RouteName => text(facts.route.as_ref().map(|route| &*route.name).filter(|name| !name.is_empty()), out),
        Command::VirtualHostName => text(facts.virtual_host.as_ref().map(|host| host.name.as_str()), out),
        Command::UpstreamCluster => {
            display(facts.cluster.as_ref().map(|cluster| format!("{};", cluster.config.name)).as_ref(), out)
        }
        Command::UpstreamClusterRaw => display(facts.cluster.as_ref().map(|cluster| &cluster.config.name), out),
        Command::UpstreamHost => display(facts.upstream_host.as_ref(), out),
        Command::UpstreamLocalAddress => address(facts.upstream_local, out),
        Command::UpstreamRequestAttemptCount => number(Some(facts.attempts), out),
        Command::UpstreamTransportFailureReason => text(facts.transport_failure.as_deref(), out),
        // Raw TCP has no request that could have one.
        Command::StreamId if facts.protocol.is_none() => {
            unique_id(out);
            Kind::Text
        }
        Command::StreamId => text(request.and_then(|request| request.headers.get("x-request-id")), out),
        Command::UniqueId => {
            unique_id(out);
            Kind::Text
        }
        Command::ConnectionId => number(Some(facts.connection.id), out),
        Command::Hostname => text(HOSTNAME.as_deref(), out),
        Command::ResponseCode => number(Some(facts.status), out),
        Command::ConnectionTerminationDetails => {
            text(Some(&*facts.termination_details).filter(|details| !details.is_empty()), out)
        }
        Command::DownstreamTransportFailureReason => text(facts.downstream_transport_failure.as_deref(), out),
        Command::ResponseCodeDetails => text(Some(&*facts.details).filter(|details| !details.is_empty()), out),
        Command::ResponseFlags => display(Some(&facts.flags), out),
        Command::Duration => match moment {
            Moment::Headers => Kind::Absent,
            Moment::End => milliseconds(Some(facts.started.elapsed()), out),
        },
        Command::RequestDuration => milliseconds(since(facts.started, facts.request_complete), out),
        Command::ResponseDuration => milliseconds(since(facts.started, facts.response_started), out),
        Command::ResponseTxDuration => match moment {
            Moment::Headers => Kind::Absent,
            Moment::End => milliseconds(facts.response_started.map(|start| start.elapsed()), out),
        },
        Command::BytesReceived => number(Some(facts.bytes_received), out),
        Command::BytesSent => number(Some(facts.bytes_sent), out),
        Command::RequestedServerName => text(facts.connection.server_name.as_deref(), out),
        Command::GrpcStatus => match grpc_status(facts) {
            Some(status) => match GRPC_STATUS_NAMES.get(usize::from(status)) {
                Some(name) => text(Some(*name), out),
                None => number(Some(status), out),
            },
            None => Kind::Absent,
        },
        Command::GrpcStatusNumber => number(grpc_status(facts), out),
        Command::Tls(end, fact) => tls::write(*end, fact, facts, out),
        Command::Environment(name) => match std::env::var_os(name) {
            Some(value) => text(Some(value.as_encoded_bytes()), out),
            // Envoy prints the dash itself, in headers too.
            None => text(Some("-"), out),
        },
        Command::UpstreamWireBytesSent
        | Command::UpstreamWireBytesReceived
        | Command::DownstreamWireBytesSent
        | Command::DownstreamWireBytesReceived
        | Command::Empty(_) => Kind::Absent,
    }
}

/// The gRPC status sent to the client, from its trailers or a headers-only response; `None` if the request isn't gRPC
/// or no status was sent.
pub fn grpc_status(facts: &Facts) -> Option<u16> {
    if !facts.grpc {
        return None;
    }
    let sent = facts.response_trailers.get_str("grpc-status").or_else(|| facts.response_headers.get_str("grpc-status"));
    sent?.parse().ok()
}

/// By status number. Source: Envoy's `GRPC_STATUS`, which writes the names of gRPC in camel case.
const GRPC_STATUS_NAMES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

fn request_header<'a>(facts: &'a Facts, name: &str) -> Option<&'a [u8]> {
    let request = facts.request.as_ref()?;
    match name {
        ":method" => Some(&request.method),
        // CONNECT has none.
        ":path" => Some(&**request.path.as_bytes()).filter(|path| !path.is_empty()),
        // HTTP/1.1 without a host: unset, as every header that isn't there.
        ":authority" | "host" => Some(&*request.authority).filter(|authority| !authority.is_empty()),
        ":scheme" => Some(request.scheme.as_bytes()),
        _ => request.headers.get(name).map(|value| &**value),
    }
}

/// The first line called `name`, else the first called `alternative`; a line that is present but empty counts.
fn line<'a>(headers: &'a Headers, name: &str, alternative: Option<&str>) -> Option<&'a [u8]> {
    let found = headers.get(name).or_else(|| alternative.and_then(|alternative| headers.get(alternative)));
    found.map(|value| &**value)
}

fn text(value: Option<impl AsRef<[u8]>>, out: &mut Vec<u8>) -> Kind {
    let Some(value) = value else { return Kind::Absent };
    out.extend_from_slice(value.as_ref());
    Kind::Text
}

fn display(value: Option<&impl std::fmt::Display>, out: &mut Vec<u8>) -> Kind {
    let Some(value) = value else { return Kind::Absent };
    print(format_args!("{value}"), out);
    Kind::Text
}

fn address(address: Option<SocketAddr>, out: &mut Vec<u8>) -> Kind {
    display(address.as_ref(), out)
}

fn ip(address: Option<SocketAddr>, out: &mut Vec<u8>) -> Kind {
    display(address.map(|address| address.ip()).as_ref(), out)
}

fn number(value: Option<impl std::fmt::Display>, out: &mut Vec<u8>) -> Kind {
    let Some(value) = value else { return Kind::Absent };
    print(format_args!("{value}"), out);
    Kind::Number
}

/// Whole milliseconds, rounded down.
fn milliseconds(duration: Option<Duration>, out: &mut Vec<u8>) -> Kind {
    number(duration.map(|duration| duration.as_millis()), out)
}

fn time(time: SystemTime, format: Option<&str>, out: &mut Vec<u8>) -> Kind {
    time::write(time, format, out);
    Kind::Text
}

fn since(start: Instant, end: Option<Instant>) -> Option<Duration> {
    end.map(|end| end.saturating_duration_since(start))
}

/// Writing to a `Vec` can't fail.
fn print(arguments: std::fmt::Arguments<'_>, out: &mut Vec<u8>) {
    let _ = out.write_fmt(arguments);
}

/// A random UUID (version 4).
fn unique_id(out: &mut Vec<u8>) {
    let mut bits: u128 = rand::random();
    bits = bits & !(0xf << 76) | 0x4 << 76;
    bits = bits & !(0x3 << 62) | 0x2 << 62;
    let (low, clock, version) = (bits & 0xffff_ffff_ffff, bits >> 48 & 0xffff, bits >> 64 & 0xffff);
    print(format_args!("{:08x}-{:04x}-{version:04x}-{clock:04x}-{low:012x}", bits >> 96, bits >> 80 & 0xffff), out);
}

/// The first parameter called `name`, with its `%XX` decoded; `+` stays.
fn query_parameter(query: Option<&str>, name: &str, out: &mut Vec<u8>) -> Kind {
    let pairs = query.unwrap_or_default().split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let Some((_, encoded)) = pairs.into_iter().find(|(key, _)| *key == name) else { return Kind::Absent };
    let mut rest = encoded.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let decoded = match tail {
            [high, low, ..] if byte == b'%' => hex(*high).zip(hex(*low)),
            _ => None,
        };
        match decoded {
            Some((high, low)) => {
                out.push(high << 4 | low);
                rest = &tail[2..];
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    Kind::Text
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// The machine's name, read once.
static HOSTNAME: LazyLock<Option<String>> = LazyLock::new(|| {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim_end().to_owned())
});

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::rc::Rc;
    use std::time::UNIX_EPOCH;

    use bytes::Bytes;

    use super::*;
    use crate::request::{Begun, ConnectionFacts, PathAndQuery, Protocol, RequestHead};
    use crate::response::Flag;
    use crate::upstream::endpoint::Address;

    fn facts() -> Facts {
        let connection = ConnectionFacts {
            id: 7,
            begun: Begun::now(),
            local: Some("10.44.1.23:8080".parse().unwrap()),
            remote: Some("10.0.0.9:46520".parse().unwrap()),
            direct_remote: Some("10.0.0.9:46520".parse().unwrap()),
            port: 80,
            tls: None,
            server_name: None,
        };
        let mut facts = Facts::new(Rc::new(connection), Protocol::Http11);
        // 2026-11-22T00:45:21.280Z
        facts.started_at = UNIX_EPOCH + Duration::from_millis(1_795_308_321_280);
        facts
    }

    fn get(path: &str) -> Facts {
        let mut facts = facts();
        let mut headers = Headers::default();
        headers.push("user-agent", "curl/8.5");
        headers.push("x-request-id", "84961386-6d84-429d-98bd-c5aee93b5c88");
        headers.push("x-empty", "");
        facts.request = Some(RequestHead {
            method: Bytes::from_static(b"GET"),
            path: PathAndQuery::new(Bytes::copy_from_slice(path.as_bytes())),
            authority: Bytes::from_static(b"httpbin.example.com"),
            scheme: "http",
            headers,
        });
        facts
    }

    fn evaluate(command: Command, facts: &Facts, moment: Moment) -> (String, Kind) {
        let mut out = Vec::new();
        let kind = value(&command, None, facts, moment, &mut out);
        (String::from_utf8(out).unwrap(), kind)
    }

    fn header(name: &str, alternative: Option<&str>) -> Command {
        Command::RequestHeader { name: name.to_owned(), alternative: alternative.map(str::to_owned) }
    }

    #[test]
    fn commands_print_what_envoy_prints() {
        let mut facts = get("/status/418?x=1&y=%20z&y=2");
        facts.status = 418;
        facts.details = "via_upstream".into();
        facts.bytes_sent = 135;
        facts.upstream_host = Some(Address::Ip("10.44.1.27:8080".parse().unwrap()));
        facts.client = Some("3.3.3.3:0".parse().unwrap());
        facts.response_headers.push("x-envoy-upstream-service-time", "3");
        for (command, expected, kind) in [
            (header(":method", None), "GET", Kind::Text),
            (header("x-envoy-original-path", Some(":path")), "/status/418?x=1&y=%20z&y=2", Kind::Text),
            (header("host", None), "httpbin.example.com", Kind::Text),
            (header(":scheme", None), "http", Kind::Text),
            (header("x-empty", Some("user-agent")), "", Kind::Text),
            (header("x-missing", None), "", Kind::Absent),
            (Command::QueryParam("y".into()), " z", Kind::Text),
            (Command::QueryParam("z".into()), "", Kind::Absent),
            (Command::Path { query: false }, "/status/418", Kind::Text),
            (Command::StartTime(None), "2026-11-22T00:45:21.280Z", Kind::Text),
            (Command::Protocol, "HTTP/1.1", Kind::Text),
            (Command::ResponseCode, "418", Kind::Number),
            (Command::ResponseFlags, "-", Kind::Text),
            (Command::ResponseCodeDetails, "via_upstream", Kind::Text),
            (Command::BytesSent, "135", Kind::Number),
            (Command::UpstreamHost, "10.44.1.27:8080", Kind::Text),
            (Command::UpstreamCluster, "", Kind::Absent),
            (Command::UpstreamLocalAddress, "", Kind::Absent),
            (Command::DownstreamRemoteAddress, "3.3.3.3:0", Kind::Text),
            (Command::DownstreamDirectRemoteAddress, "10.0.0.9:46520", Kind::Text),
            (Command::DownstreamLocalAddressWithoutPort, "10.44.1.23", Kind::Text),
            (Command::DownstreamLocalPort, "8080", Kind::Number),
            (Command::StreamId, "84961386-6d84-429d-98bd-c5aee93b5c88", Kind::Text),
            (Command::ConnectionId, "7", Kind::Number),
            (Command::RouteName, "", Kind::Absent),
            (Command::Environment("FAIRLEAD_NOT_SET_ANYWHERE".into()), "-", Kind::Text),
            (
                Command::ResponseHeader { name: "x-envoy-upstream-service-time".into(), alternative: None },
                "3",
                Kind::Text,
            ),
        ] {
            assert_eq!(evaluate(command.clone(), &facts, Moment::End), (expected.to_owned(), kind), "{command:?}");
        }
    }

    #[test]
    fn absent_values_are_a_dash_in_the_log_and_nothing_in_headers() {
        let command = Command::RequestHeader { name: "x-missing".into(), alternative: None };
        let format = Format {
            pieces: vec![
                Piece::Literal("pre-".into()),
                Piece::Command { command, max_length: None },
                Piece::Literal("-post".into()),
            ],
        };
        for (moment, expected) in [(Moment::Headers, "pre--post"), (Moment::End, "pre---post")] {
            let mut out = Vec::new();
            write(&format, &get("/"), moment, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    #[test]
    fn lengths_cut_bytes() {
        for (max_length, expected) in [(Some(4), "curl"), (Some(0), ""), (Some(99), "curl/8.5")] {
            let mut out = Vec::new();
            value(&header("user-agent", None), max_length, &get("/"), Moment::End, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    #[test]
    fn an_unparsable_request_has_no_request_values() {
        let mut facts = facts();
        facts.flags.set(Flag::DPE);
        for (command, expected) in
            [(header(":method", None), ""), (Command::Protocol, "HTTP/1.1"), (Command::ResponseFlags, "DPE")]
        {
            assert_eq!(evaluate(command, &facts, Moment::End).0, expected);
        }
    }

    #[test]
    fn grpc_status_comes_from_trailers_of_grpc_requests_only() {
        let mut facts = get("/pkg.Svc/M");
        facts.response_trailers.push("grpc-status", "5");
        assert_eq!(evaluate(Command::GrpcStatus, &facts, Moment::End), (String::new(), Kind::Absent));
        facts.grpc = true;
        assert_eq!(evaluate(Command::GrpcStatus, &facts, Moment::End), ("NotFound".to_owned(), Kind::Text));
        assert_eq!(evaluate(Command::GrpcStatusNumber, &facts, Moment::End), ("5".to_owned(), Kind::Number));
        facts.response_trailers.set("grpc-status", "99");
        assert_eq!(evaluate(Command::GrpcStatus, &facts, Moment::End), ("99".to_owned(), Kind::Number));
    }

    #[test]
    fn unique_ids_are_random_uuids() {
        let id = evaluate(Command::UniqueId, &get("/"), Moment::Headers).0;
        assert_eq!(id.len(), 36);
        assert_eq!(&id[14..15], "4");
        assert!("89ab".contains(&id[19..20]), "{id}");
    }
}
