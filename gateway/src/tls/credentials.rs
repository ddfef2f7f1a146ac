//! Certificates, keys and CAs at run time.

use config::snapshot::tls::ServerTls;

/// What the configuration's names of certificates and CAs stand for at the moment.
#[derive(Debug, Default)]
pub struct Credentials {}

/// What a filter chain shows to clients and checks them with.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerMaterial {}

impl Credentials {
    /// What `tls` asks for, or why it is not there.
    ///
    /// # Errors
    /// What is missing or can't be used.
    pub fn server(&self, tls: &ServerTls) -> Result<ServerMaterial, String> {
        Err(format!("no credential for {:?}", tls.mode))
    }
}
