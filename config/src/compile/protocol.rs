//! Protocol names of ports.
//!
//! Source: `reference/networking.md` §1.6.

/// What a port speaks, as far as a gateway tells protocols apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http,
    /// HTTP2, GRPC and GRPC-WEB.
    Http2,
    /// HTTPS and TLS.
    Tls,
    /// TCP, MONGO, REDIS and MYSQL.
    Tcp,
    Udp,
    /// Nothing said, or nothing known.
    Auto,
}

impl Protocol {
    /// By name, in any case.
    pub(super) fn parse(name: &str) -> Self {
        match name.to_ascii_uppercase().as_str() {
            "HTTP" | "HTTP_PROXY" => Self::Http,
            "HTTP2" | "GRPC" | "GRPC-WEB" => Self::Http2,
            "HTTPS" | "TLS" => Self::Tls,
            "TCP" | "MONGO" | "REDIS" | "MYSQL" => Self::Tcp,
            "UDP" => Self::Udp,
            _ => Self::Auto,
        }
    }

    /// Of a port of a Kubernetes Service.
    pub(super) fn of_service_port(protocol: &str, app_protocol: &str, name: &str, port: u16) -> Self {
        if protocol.eq_ignore_ascii_case("udp") {
            return Self::Udp;
        }
        match app_protocol {
            "" => {}
            "kubernetes.io/h2c" => return Self::Http2,
            "kubernetes.io/ws" => return Self::Http,
            "kubernetes.io/wss" => return Self::Tls,
            name => return Self::parse(name),
        }
        let word = match name.get(..8) {
            Some(start) if start.eq_ignore_ascii_case("grpc-web") => start,
            _ => name.split('-').next().unwrap_or(name),
        };
        match (Self::parse(word), port) {
            // Servers speak first there, so that nothing could be detected.
            (Self::Auto, 25 | 53 | 3306 | 27017) => Self::Tcp,
            (protocol, _) => protocol,
        }
    }

    pub(super) fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_ports() {
        for (protocol, app_protocol, name, port, expected) in [
            ("TCP", "", "http-web", 80, Protocol::Http),
            ("TCP", "", "HTTP", 80, Protocol::Http),
            ("TCP", "", "http2-x", 80, Protocol::Http2),
            ("TCP", "", "grpc-web-x", 80, Protocol::Http2),
            ("TCP", "", "grpc-webx", 80, Protocol::Http2),
            ("TCP", "", "https", 443, Protocol::Tls),
            ("TCP", "", "web", 80, Protocol::Auto),
            ("TCP", "", "", 3306, Protocol::Tcp),
            ("TCP", "kubernetes.io/h2c", "http", 80, Protocol::Http2),
            ("TCP", "kubernetes.io/wss", "http", 80, Protocol::Tls),
            ("TCP", "grpc", "http", 80, Protocol::Http2),
            ("TCP", "unheard-of", "http", 80, Protocol::Auto),
            ("UDP", "http", "http", 80, Protocol::Udp),
        ] {
            assert_eq!(
                Protocol::of_service_port(protocol, app_protocol, name, port),
                expected,
                "{app_protocol} {name}"
            );
        }
    }
}
