//! `--ready-file`: tells whoever started the gateway that it serves, and where.

use std::fs;
use std::io;
use std::path::PathBuf;

use serde::Serialize;

use crate::admin::Addresses;
use crate::listener::ListenerReport;

/// The file and what doesn't change in it.
#[derive(Debug)]
pub struct ReadyFile {
    path: PathBuf,
    ports: Addresses,
}

#[derive(Serialize)]
struct Content<'a> {
    ready: bool,
    pid: u32,
    admin: Option<String>,
    status: Option<String>,
    metrics: Option<String>,
    listeners: Vec<Listener<'a>>,
}

#[derive(Serialize)]
struct Listener<'a> {
    port: u16,
    address: &'a str,
}

impl ReadyFile {
    /// The file at `path`, for a gateway with these ports.
    pub fn new(path: PathBuf, ports: Addresses) -> Self {
        Self { path, ports }
    }

    /// Writes it in one step; one entry for each address.
    ///
    /// # Errors
    /// Of the file system.
    pub(super) fn write(&self, listeners: &[ListenerReport]) -> io::Result<()> {
        let Addresses { admin, status, metrics } = self.ports;
        let listeners = listeners
            .iter()
            .flat_map(|listener| listener.addresses.iter().map(|address| Listener { port: listener.port, address }));
        let content = Content {
            ready: true,
            pid: std::process::id(),
            admin: admin.map(|address| address.to_string()),
            status: status.map(|address| address.to_string()),
            metrics: metrics.map(|address| address.to_string()),
            listeners: listeners.collect(),
        };
        let mut draft = self.path.clone().into_os_string();
        draft.push(format!(".{}", std::process::id()));
        fs::write(&draft, serde_json::to_vec(&content)?)?;
        fs::rename(&draft, &self.path)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn the_file_says_where_everything_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ready.json");
        let admin = Some("127.0.0.1:15000".parse().unwrap());
        let file = ReadyFile::new(path.clone(), Addresses { admin, status: None, metrics: None });
        let addresses = vec!["0.0.0.0:8080".to_owned(), "[::]:8080".to_owned()];
        file.write(&[ListenerReport { port: 80, addresses, failures: Vec::new() }]).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let expected = format!(
            "{{\"ready\":true,\"pid\":{},\"admin\":\"127.0.0.1:15000\",\"status\":null,\"metrics\":null,\"listeners\":\
             [{{\"port\":80,\"address\":\"0.0.0.0:8080\"}},{{\"port\":80,\"address\":\"[::]:8080\"}}]}}",
            std::process::id()
        );
        assert_eq!(text, expected);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no draft is left");
    }
}
