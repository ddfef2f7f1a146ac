//! Istio resources for a test, in few words.

use std::fmt::Write;
use std::net::SocketAddr;

use super::gateway::{Builder, Gateway};

/// Documents that together make one configuration directory.
///
/// It begins with a Gateway named `gateway` that has one HTTP server for all hosts on port 80; [`Mesh::servers`]
/// replaces its servers.
pub struct Mesh {
    servers: String,
    ports: Vec<u16>,
    documents: String,
    names: usize,
}

impl Mesh {
    pub fn new() -> Self {
        let servers = "- port: {number: 80, name: http, protocol: HTTP}\n  hosts: ['*']\n".to_owned();
        Self { servers, ports: vec![80], documents: String::new(), names: 0 }
    }

    /// Replaces the servers by this YAML list, which uses these port numbers.
    pub fn servers(mut self, yaml: &str, ports: &[u16]) -> Self {
        self.servers = yaml.to_owned();
        self.ports = ports.to_vec();
        self
    }

    /// A ServiceEntry `host` with port 80 of this protocol and these endpoints.
    pub fn service(self, host: &str, protocol: &str, endpoints: &[SocketAddr]) -> Self {
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(|endpoint| format!("{{address: {}, ports: {{main: {}}}}}", endpoint.ip(), endpoint.port()))
            .collect();
        self.resource(
            "ServiceEntry",
            &format!(
                "hosts: [{host:?}]\nlocation: MESH_EXTERNAL\nresolution: STATIC\n\
                 ports: [{{number: 80, name: main, protocol: {protocol}}}]\nendpoints: [{}]\n",
                endpoints.join(", ")
            ),
        )
    }

    /// An HTTP/1.1 service with these endpoints.
    pub fn http(self, host: &str, endpoints: &[SocketAddr]) -> Self {
        self.service(host, "HTTP", endpoints)
    }

    /// An HTTP/2 service with these endpoints.
    pub fn http2(self, host: &str, endpoints: &[SocketAddr]) -> Self {
        self.service(host, "HTTP2", endpoints)
    }

    /// A VirtualService for `host` with this YAML list as its `http`.
    pub fn routes(self, host: &str, http: &str) -> Self {
        let http =
            if http.trim_start().starts_with('[') { format!("http: {http}\n") } else { format!("http:\n{http}\n") };
        self.resource("VirtualService", &format!("hosts: [{host:?}]\ngateways: [gateway]\n{http}"))
    }

    /// A VirtualService that sends everything for `host` to `service`.
    pub fn route(self, host: &str, service: &str) -> Self {
        self.routes(host, &format!("[{{route: [{{destination: {{host: {service:?}}}}}]}}]"))
    }

    /// A resource of networking.istio.io with this spec, named after its place.
    pub fn resource(mut self, kind: &str, spec: &str) -> Self {
        self.names += 1;
        // The name keeps the order of equals that Istio takes from names.
        let name = format!("{}-{:04}", kind.to_lowercase(), self.names);
        let _ = write!(
            self.documents,
            "---\napiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec:\n{}",
            indented(spec)
        );
        self
    }

    /// Any document.
    pub fn document(mut self, yaml: &str) -> Self {
        let _ = write!(self.documents, "---\n{}\n", yaml.trim_end());
        self
    }

    /// MeshConfig, as the control plane's ConfigMap carries it.
    pub fn mesh_config(self, yaml: &str) -> Self {
        self.document(&format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n{}",
            indented(&indented(yaml))
        ))
    }

    /// Everything as YAML.
    pub fn yaml(&self) -> String {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: gateway}}\n\
             spec:\n  selector: {{istio: ingressgateway}}\n  servers:\n{}{}",
            indented(&self.servers),
            self.documents
        )
    }

    /// A gateway to be started with this configuration in `config.yaml`.
    pub fn builder(&self) -> Builder {
        Gateway::builder().ports(&self.ports).file("config.yaml", self.yaml())
    }

    /// Starts a gateway, or panics with what it had to say.
    pub async fn start(&self) -> Gateway {
        self.builder().start().await.unwrap_or_else(|failure| {
            // Long lines are certificates and keys.
            let yaml = self.yaml();
            let lines: Vec<_> = yaml.lines().map(|line| if line.len() > 300 { "…" } else { line }).collect();
            panic!("{failure}\n--- configuration\n{}", lines.join("\n"))
        })
    }
}

fn indented(text: &str) -> String {
    text.lines().fold(String::new(), |mut indented, line| {
        let _ = writeln!(indented, "  {line}");
        indented
    })
}
