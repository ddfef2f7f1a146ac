//! WebSocket: every text or binary message comes back as it was (RFC 6455; over HTTP/2 as RFC 8441 says).

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::header::{CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::{Body, never, plain};

/// Whether a client asks for a WebSocket: by `Upgrade`, or by extended CONNECT.
pub(super) fn is_handshake(request: &Request<Incoming>) -> bool {
    let extended = request.extensions().get::<hyper::ext::Protocol>();
    let upgrade = request.headers().get(UPGRADE).and_then(|value| value.to_str().ok());
    extended.is_some_and(|protocol| protocol.as_str() == "websocket")
        || upgrade.is_some_and(|value| value.eq_ignore_ascii_case("websocket"))
}

/// Accepts the handshake and echoes messages in a task of its own.
pub(super) fn upgrade(mut request: Request<Incoming>) -> Response<Body> {
    let mut response = Response::new(Empty::<Bytes>::new().map_err(never).boxed_unsync());
    if request.method() != Method::CONNECT {
        let Some(key) = request.headers().get(SEC_WEBSOCKET_KEY) else {
            return plain(StatusCode::BAD_REQUEST, "sec-websocket-key is missing\n".to_owned());
        };
        let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) else {
            return plain(StatusCode::BAD_REQUEST, "sec-websocket-key can't be used\n".to_owned());
        };
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        // A client that leaves in the middle ends the task; there is nothing to clean up.
        let Ok(upgraded) = upgraded.await else { return };
        let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
                break;
            }
        }
    });
    response
}
