//! gRPC: every message comes back as it was, unary or streaming, with `grpc-status` in the trailers.
//!
//! Any service and method is served, since echoing needs no schema. A method named `Describe` answers instead with one
//! message `{ string json = 1; }` that says what arrived. Controls: metadata `x-echo-status` sets the gRPC status (a
//! number), `x-echo-trailers-only` answers with that status before any message.

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use futures::{StreamExt, stream};
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Frame, Incoming};

use super::report::head_report;
use super::{Body, Connection, EchoOptions, never};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    kind == b"application/grpc" || kind.starts_with(b"application/grpc+")
}

pub(super) async fn answer(
    request: Request<Incoming>,
    options: &EchoOptions,
    connection: &Connection,
    number: u64,
) -> Response<Body> {
    let (head, body) = request.into_parts();
    let status = head.headers.get("x-echo-status").cloned().unwrap_or(HeaderValue::from_static("0"));
    let kind = head.headers.get(CONTENT_TYPE).cloned().unwrap_or(HeaderValue::from_static("application/grpc"));
    let trailers_only = head.headers.contains_key("x-echo-trailers-only");

    let mut trailers = HeaderMap::new();
    trailers.insert(GRPC_STATUS, status.clone());
    let body: Body = if trailers_only {
        Empty::new().map_err(never).boxed_unsync()
    } else if head.uri.path().ends_with("/Describe") {
        let description = head_report(&head, options, connection, number).to_string();
        let frames = [Ok(Frame::data(message(description.as_bytes()))), Ok(Frame::trailers(trailers))];
        // The request's messages are read first, or a client that still sends them would see a reset.
        let _ = body.collect().await;
        StreamBody::new(stream::iter(frames)).boxed_unsync()
    } else {
        // Echoing bytes echoes messages: their frames hold no state of a connection.
        let echoed = body.into_data_stream().map(|data| data.map(Frame::data).map_err(io::Error::other));
        StreamBody::new(echoed.chain(stream::iter([Ok(Frame::trailers(trailers))]))).boxed_unsync()
    };

    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    if trailers_only {
        response.headers_mut().insert(GRPC_STATUS, status);
    }
    response
}

/// A length-prefixed message with `text` as its field 1.
fn message(text: &[u8]) -> Bytes {
    let mut field = BytesMut::new();
    field.put_u8(0x0a); // field 1, length-delimited
    let mut length = text.len();
    while length > 0x7f {
        field.put_u8((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    field.put_u8(length as u8);
    field.put_slice(text);

    let mut framed = BytesMut::new();
    framed.put_u8(0); // not compressed
    framed.put_u32(field.len() as u32);
    framed.put_slice(&field);
    framed.freeze()
}
