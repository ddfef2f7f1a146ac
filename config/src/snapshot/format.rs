//! Envoy's format strings: `%COMMAND(arguments):length%` with literal text between, for headers and the access log.
//!
//! Parsed once in `compile`; evaluated by the gateway, which knows the request.

/// A parsed format string.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Format {
    /// The parts in order; neighbouring literals are joined.
    pub pieces: Vec<Piece>,
}

/// One part of a format string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text as it is.
    Literal(String),
    /// A value of the request.
    Command {
        /// Which value.
        command: Command,
        /// Cut to this many bytes.
        max_length: Option<usize>,
    },
}

/// The values that a format string can name. Names are Envoy's, in camel case.
///
/// Source: `reference/networking.md` §3.15, `reference/telemetry-and-operations.md` (access log).
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant is the Envoy command of the same name")]
pub enum Command {
    DownstreamRemoteAddress,
    DownstreamRemoteAddressWithoutPort,
    DownstreamDirectRemoteAddress,
    DownstreamDirectRemoteAddressWithoutPort,
    DownstreamLocalAddress,
    DownstreamLocalAddressWithoutPort,
    DownstreamLocalPort,
    Protocol,
    /// `REQ(name?alternative)`; lower-case names, pseudo headers with their colon.
    RequestHeader {
        name: String,
        alternative: Option<String>,
    },
    /// `RESP(name?alternative)`.
    ResponseHeader {
        name: String,
        alternative: Option<String>,
    },
    /// `TRAILER(name?alternative)`.
    ResponseTrailer {
        name: String,
        alternative: Option<String>,
    },
    QueryParam(String),
    /// `PATH(WQ|NQ)`: with or without the query.
    Path {
        query: bool,
    },
    /// `START_TIME(format)`: strftime, or `None` for `2026-11-22T00:57:53.253Z`.
    StartTime(Option<String>),
    EmitTime(Option<String>),
    RouteName,
    VirtualHostName,
    UpstreamCluster,
    UpstreamHost,
    UpstreamLocalAddress,
    UpstreamRequestAttemptCount,
    UpstreamTransportFailureReason,
    DownstreamTransportFailureReason,
    StreamId,
    UniqueId,
    ConnectionId,
    Hostname,
    ResponseCode,
    ResponseCodeDetails,
    ResponseFlags,
    ConnectionTerminationDetails,
    /// Milliseconds.
    Duration,
    RequestDuration,
    ResponseDuration,
    ResponseTxDuration,
    BytesReceived,
    BytesSent,
    UpstreamWireBytesSent,
    UpstreamWireBytesReceived,
    DownstreamWireBytesSent,
    DownstreamWireBytesReceived,
    RequestedServerName,
    GrpcStatus,
    GrpcStatusNumber,
    Environment(String),
    /// A command that Envoy accepts and that is empty here: TLS facts of plaintext connections, filter state, metadata,
    /// trace ids. Holds the text of the command.
    Empty(String),
}
