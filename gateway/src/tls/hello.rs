//! The ClientHello, read before anything is decided: which chain it is for, and what the client can do.
//!
//! The TLS library reads it once more where TLS ends here. What it would refuse may still be fit to be passed through.

use std::ops::Range;
use std::sync::Arc;

use rustls::{CipherSuite, NamedGroup, ProtocolVersion};

/// Bytes of a ClientHello that are waited for; Envoy's limit.
const MAX_HELLO: usize = 16 * 1024;
/// Bytes of the records of one ClientHello.
pub const MAX_BYTES: usize = 2 * MAX_HELLO;
/// Bytes of a record in plaintext (RFC 8446 §5.1).
const MAX_RECORD: usize = 16 * 1024;
/// Content type of handshake messages.
const HANDSHAKE: u8 = 22;
/// Handshake type of a ClientHello.
const CLIENT_HELLO: u8 = 1;

/// What a client says first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientHello {
    /// SNI in lower case.
    pub server_name: Option<Arc<str>>,
    /// Protocols offered by ALPN; empty: none.
    pub alpn: Vec<Vec<u8>>,
    /// Offered cipher suites, most preferred first.
    pub suites: Vec<CipherSuite>,
    /// Supported groups, most preferred first.
    pub groups: Vec<NamedGroup>,
    legacy_version: u16,
    /// The extension `supported_versions`, from TLS 1.3 on.
    versions: Option<Vec<u16>>,
    /// Bytes of the records that it came in.
    pub length: usize,
}

/// Why bytes are no ClientHello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoHello {
    /// Not TLS at all.
    NotTls,
    /// TLS, but broken, or longer than anybody's.
    Broken,
}

impl ClientHello {
    /// The ClientHello at the start of `bytes`; `None` if more bytes are needed.
    ///
    /// # Errors
    /// No bytes that follow could make it one.
    pub fn read(bytes: &[u8]) -> Result<Option<Self>, NoHello> {
        Arriving::default().read(bytes)
    }

    /// Whether the client supports `version`, which is 1.2 or 1.3.
    pub fn supports(&self, version: ProtocolVersion) -> bool {
        match &self.versions {
            Some(versions) => versions.contains(&u16::from(version)),
            None => version == ProtocolVersion::TLSv1_2 && self.legacy_version >= u16::from(version),
        }
    }

    fn parse(message: &[u8]) -> Option<Self> {
        let mut rest = Reader(message);
        let mut hello = Self { legacy_version: rest.u16()?, ..Self::default() };
        rest.take(32)?;
        rest.prefixed8()?;
        hello.suites = rest.prefixed16()?.u16s()?.into_iter().map(CipherSuite::from).collect();
        rest.prefixed8()?;
        if rest.0.is_empty() {
            return Some(hello);
        }
        let mut extensions = rest.prefixed16()?;
        if !rest.0.is_empty() {
            return None;
        }
        let mut kinds = Vec::new();
        while !extensions.0.is_empty() {
            let kind = extensions.u16()?;
            kinds.push(kind);
            let mut body = extensions.prefixed16()?;
            match kind {
                0 => hello.server_name = Some(server_name(&mut body)?),
                10 => hello.groups = body.prefixed16()?.u16s()?.into_iter().map(NamedGroup::from).collect(),
                16 => {
                    let mut list = body.prefixed16()?;
                    while !list.0.is_empty() {
                        hello.alpn.push(list.prefixed8()?.0.to_vec());
                    }
                }
                43 => hello.versions = Some(body.prefixed8()?.u16s()?),
                _ => {}
            }
        }
        // Each at most once (RFC 8446 §4.2): whoever reads it after us may take the other one.
        kinds.sort_unstable();
        kinds.array_windows().all(|[one, next]| one != next).then_some(hello)
    }
}

/// A ClientHello of which more and more arrives. Each record is looked at once, however small they are.
#[derive(Debug, Default)]
pub struct Arriving {
    /// What whole records have brought so far.
    message: Vec<u8>,
    /// Bytes of those records.
    at: usize,
}

impl Arriving {
    /// The ClientHello at the start of `bytes`, which are those of the last call and more; `None` if still more are needed.
    ///
    /// # Errors
    /// No bytes that follow could make it one.
    pub fn read(&mut self, bytes: &[u8]) -> Result<Option<ClientHello>, NoHello> {
        loop {
            let rest = bytes.get(self.at..).unwrap_or_default();
            let Some(record) = record(rest)? else { return Ok(None) };
            self.message.extend_from_slice(&rest[5..][record.clone()]);
            self.at += 5 + record.end;
            let &[kind, high, middle, low, ref content @ ..] = &self.message[..] else {
                if self.message.first().is_some_and(|&kind| kind != CLIENT_HELLO) {
                    return Err(NoHello::Broken);
                }
                continue;
            };
            let length = u32::from_be_bytes([0, high, middle, low]) as usize;
            // Nothing may follow before the server has answered.
            if kind != CLIENT_HELLO || length > MAX_HELLO || content.len() > length || self.at > MAX_BYTES {
                return Err(NoHello::Broken);
            }
            if content.len() == length {
                let mut hello = ClientHello::parse(content).ok_or(NoHello::Broken)?;
                hello.length = self.at;
                return Ok(Some(hello));
            }
        }
    }
}

/// The one host name of a `server_name` extension (RFC 6066 §3).
fn server_name(body: &mut Reader<'_>) -> Option<Arc<str>> {
    let mut list = body.prefixed16()?;
    if list.u8()? != 0 {
        return None;
    }
    let name = list.prefixed16()?;
    if !list.0.is_empty() || name.0.is_empty() || name.0.len() > 255 || name.0.contains(&0) {
        return None;
    }
    Some(String::from_utf8_lossy(name.0).to_ascii_lowercase().into())
}

/// Where the content of the record at the start of `bytes` is, behind its head; `None`: not all of it is there.
fn record(bytes: &[u8]) -> Result<Option<Range<usize>>, NoHello> {
    match bytes {
        [kind, ..] if *kind != HANDSHAKE => return Err(NoHello::NotTls),
        [_, major, ..] if *major != 3 => return Err(NoHello::NotTls),
        _ => {}
    }
    let [_, _, _, high, low, content @ ..] = bytes else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    if length == 0 || length > MAX_RECORD {
        return Err(NoHello::Broken);
    }
    Ok((content.len() >= length).then_some(0..length))
}

/// Reads from the front of a slice.
struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    fn take(&mut self, count: usize) -> Option<&'b [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn prefixed8(&mut self) -> Option<Self> {
        let length = self.u8()?;
        self.take(length.into()).map(Self)
    }

    fn prefixed16(&mut self) -> Option<Self> {
        let length = self.u16()?;
        self.take(length.into()).map(Self)
    }

    /// All that is left, as numbers.
    fn u16s(self) -> Option<Vec<u16>> {
        let (pairs, rest) = self.0.as_chunks::<2>();
        rest.is_empty().then(|| pairs.iter().map(|pair| u16::from_be_bytes(*pair)).collect())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::sync::Arc;

    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;
    use crate::tls::parameters::provider;

    /// The first flight of a rustls client.
    fn flight(name: &'static str, alpn: &[&str]) -> Vec<u8> {
        let provider = Arc::new(provider(&config::snapshot::tls::TlsParameters::default()));
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let name = ServerName::try_from(name).unwrap();
        let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        connection.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The same message in records of at most `size` bytes.
    fn fragmented(flight: &[u8], size: usize) -> Vec<u8> {
        let pieces = flight[5..].chunks(size);
        pieces.flat_map(|piece| [&[22, 3, 1, 0, u8::try_from(piece.len()).unwrap()], piece].concat()).collect()
    }

    #[test]
    fn a_hello_tells_name_protocols_versions_and_groups() {
        let bytes = flight("Shop.Example.com", &["h2", "http/1.1"]);
        let hello = ClientHello::read(&bytes).unwrap().unwrap();
        assert_eq!(hello.server_name.as_deref(), Some("shop.example.com"));
        assert_eq!(hello.alpn, [b"h2".to_vec(), b"http/1.1".to_vec()]);
        assert!(hello.supports(ProtocolVersion::TLSv1_3) && hello.supports(ProtocolVersion::TLSv1_2));
        assert_eq!(hello.groups[0], NamedGroup::X25519MLKEM768);
        assert!(hello.suites.contains(&CipherSuite::TLS13_AES_128_GCM_SHA256));
        assert_eq!(hello.length, bytes.len());
    }

    #[test]
    fn addresses_are_no_names() {
        let hello = ClientHello::read(&flight("127.0.0.1", &[])).unwrap().unwrap();
        assert_eq!((hello.server_name, hello.alpn), (None, Vec::new()));
    }

    #[test]
    fn no_part_of_a_hello_is_one() {
        let bytes = flight("a.example.com", &[]);
        for end in 0..bytes.len() {
            assert_eq!(ClientHello::read(&bytes[..end]), Ok(None), "{end} bytes");
        }
    }

    #[test]
    fn a_hello_may_come_in_many_records() {
        let bytes = flight("a.example.com", &["h2"]);
        let whole = ClientHello::read(&bytes).unwrap().unwrap();
        let mut fragments = fragmented(&bytes, 100);
        let length = fragments.len();
        fragments.extend_from_slice(b"what follows");
        let hello = ClientHello::read(&fragments).unwrap().unwrap();
        assert_eq!(hello, ClientHello { length, ..whole });
    }

    #[test]
    fn a_hello_may_come_byte_by_byte() {
        let bytes = fragmented(&flight("a.example.com", &["h2"]), 1);
        let mut arriving = Arriving::default();
        for end in 0..bytes.len() {
            assert_eq!(arriving.read(&bytes[..end]), Ok(None), "{end} bytes");
        }
        assert_eq!(arriving.read(&bytes), ClientHello::read(&bytes));
    }

    #[test]
    fn an_extension_comes_once() {
        let hello = |extensions: &[u8]| {
            let size = |bytes: &[u8]| u8::try_from(bytes.len()).unwrap();
            let head = [&[3, 3][..], &[0; 32], &[0, 0, 2, 0xc0, 0x2f, 1, 0, 0, size(extensions)]].concat();
            let body = [&head, extensions].concat();
            let record = [22, 3, 1, 0, size(&body) + 4, 1, 0, 0, size(&body)];
            ClientHello::read(&[&record[..], &body].concat()).map(|hello| hello.unwrap().server_name)
        };
        let name = |letter| [0, 0, 0, 6, 0, 4, 0, 0, 1, letter];
        assert_eq!(hello(&name(b'a')).unwrap().as_deref(), Some("a"));
        assert_eq!(hello(&[name(b'a'), name(b'b')].concat()), Err(NoHello::Broken));
        assert_eq!(hello(&[name(b'a'), name(b'a')].concat()), Err(NoHello::Broken));
        // Also of those that mean nothing to us.
        let unknown = [0xfe, 1, 0, 0];
        assert!(hello(&[&unknown[..], &name(b'a')].concat()).is_ok());
        assert_eq!(hello(&[&unknown[..], &name(b'a'), &unknown].concat()), Err(NoHello::Broken));
    }

    #[test]
    fn other_bytes_are_no_hello() {
        assert_eq!(ClientHello::read(b"GET / HTTP/1.1"), Err(NoHello::NotTls));
        assert_eq!(ClientHello::read(&[22, 2]), Err(NoHello::NotTls));
        // An empty record, a record of 64 KiB, a ServerHello, a hello of 16 MiB, one without content.
        for bytes in [
            &[22, 3, 1, 0, 0][..],
            &[22, 3, 1, 255, 255],
            &[22, 3, 1, 0, 1, 2],
            &[22, 3, 1, 0, 4, 1, 255, 255, 255],
            &[22, 3, 1, 0, 4, 1, 0, 0, 0],
        ] {
            assert_eq!(ClientHello::read(bytes), Err(NoHello::Broken), "{bytes:?}");
        }
    }

    #[test]
    fn damage_is_found_and_nothing_panics() {
        let bytes = flight("a.example.com", &["h2"]);
        for at in 0..bytes.len() {
            for value in [0, 1, 127, 255] {
                let mut damaged = bytes.clone();
                damaged[at] = value;
                let _ = ClientHello::read(&damaged);
            }
        }
    }

    #[test]
    fn versions_before_tls_1_3_are_in_the_head() {
        let hello = |version: u16| {
            let body = [&version.to_be_bytes()[..], &[0; 32], &[0, 0, 2, 0xc0, 0x2f, 1, 0]].concat();
            let head = [22, 3, 1, 0, u8::try_from(body.len() + 4).unwrap(), 1, 0, 0, u8::try_from(body.len()).unwrap()];
            ClientHello::read(&[&head[..], &body].concat()).unwrap().unwrap()
        };
        assert!(hello(0x0303).supports(ProtocolVersion::TLSv1_2));
        assert!(!hello(0x0303).supports(ProtocolVersion::TLSv1_3));
        assert!(!hello(0x0302).supports(ProtocolVersion::TLSv1_2));
    }
}
