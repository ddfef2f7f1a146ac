//! Makes a throw-away CA and certificates to try TLS with.
//!
//! ```text
//! cargo run -p certs --example dev-ca -- DIR [NAME...]
//! ```
//!
//! Below DIR, which is made if need be, stand mounted Secrets (`--certs DIR`), each with `tls.crt`, `tls.key`, `ca.crt`:
//!
//! - `server`: ECDSA, for the names (host names, IP addresses, URIs); by default for `*.example.com`, `example.com`,
//!   `localhost` and `127.0.0.1`. Fit for `credentialName: server`, also with `mode: MUTUAL`.
//! - `server-rsa`: the same with RSA, for `credentialNames: [server, server-rsa]`.
//! - `client`: for clients of a MUTUAL server, and for MUTUAL towards upstreams;
//!   `curl --cacert DIR/ca.crt --cert DIR/client/tls.crt --key DIR/client/tls.key https://…`.
//!
//! Besides: `identity` with `cert-chain.pem`, `key.pem`, `root-cert.pem` (`--identity DIR/identity`, for ISTIO_MUTUAL)
//! and `ca.crt`, the CA alone. Everything ends after 90 days. The CA's own key is not kept: each run makes a new CA.

use std::error::Error;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, RsaKeySize, SanType, date_time_ymd,
};

const NAMES: [&str; 4] = ["*.example.com", "example.com", "localhost", "127.0.0.1"];
const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";
const IDENTITY: &str = "spiffe://cluster.local/ns/istio-system/sa/fairlead";
const LIFETIME: Duration = Duration::from_secs(90 * 24 * 60 * 60);

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let directory = PathBuf::from(arguments.next().ok_or("usage: dev-ca DIR [NAME...]")?);
    let mut names: Vec<String> = arguments
        .map(|name| name.into_string().map_err(|name| format!("name {name:?} is not UTF-8")))
        .collect::<Result<_, _>>()?;
    if names.is_empty() {
        names = NAMES.map(str::to_owned).to_vec();
    }

    let ca = Ca::new()?;
    fs::create_dir_all(&directory)?;
    fs::write(directory.join("ca.crt"), &ca.certificate)?;
    let server = [ExtendedKeyUsagePurpose::ServerAuth];
    let client = [ExtendedKeyUsagePurpose::ClientAuth];
    let both = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let secret = ["tls.crt", "tls.key", "ca.crt"];
    let workload = ["cert-chain.pem", "key.pem", "root-cert.pem"];

    let name = names.first().map_or("server", String::as_str);
    ca.issue(&ecdsa()?, name, &names, &server)?.write(&directory.join("server"), secret)?;
    ca.issue(&rsa()?, name, &names, &server)?.write(&directory.join("server-rsa"), secret)?;
    ca.issue(&ecdsa()?, "client", &[CLIENT.into()], &client)?.write(&directory.join("client"), secret)?;
    ca.issue(&ecdsa()?, "", &[IDENTITY.into()], &both)?.write(&directory.join("identity"), workload)?;

    println!("{}: server, server-rsa (for {}), client, identity, ca.crt", directory.display(), names.join(", "));
    Ok(())
}

struct Ca {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// PEM texts.
struct Issued {
    certificate: String,
    key: String,
    ca: String,
}

impl Ca {
    fn new() -> Result<Self, Box<dyn Error>> {
        let key = ecdsa()?;
        let mut parameters = lasting(CertificateParams::default())?;
        parameters.distinguished_name.push(DnType::CommonName, "Throw-away CA");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = parameters.self_signed(&key)?.pem();
        Ok(Self { certificate, issuer: Issuer::new(parameters, key) })
    }

    fn issue(
        &self,
        key: &KeyPair,
        common_name: &str,
        names: &[String],
        purposes: &[ExtendedKeyUsagePurpose],
    ) -> Result<Issued, Box<dyn Error>> {
        let (uris, names): (Vec<String>, Vec<String>) = names.iter().cloned().partition(|name| name.contains("://"));
        let mut parameters = lasting(CertificateParams::new(names)?)?;
        for uri in uris {
            parameters.subject_alt_names.push(SanType::URI(uri.try_into()?));
        }
        parameters.distinguished_name.remove(DnType::CommonName);
        if !common_name.is_empty() {
            parameters.distinguished_name.push(DnType::CommonName, common_name);
        }
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = purposes.to_vec();
        parameters.use_authority_key_identifier_extension = true;
        let certificate = parameters.signed_by(key, &self.issuer)?.pem();
        Ok(Issued { certificate, key: key.serialize_pem(), ca: self.certificate.clone() })
    }
}

impl Issued {
    fn write(&self, directory: &Path, [certificate, key, ca]: [&str; 3]) -> Result<(), Box<dyn Error>> {
        fs::create_dir_all(directory)?;
        fs::write(directory.join(certificate), &self.certificate)?;
        fs::write(directory.join(ca), &self.ca)?;
        // A file that is there would keep its mode.
        let path = directory.join(key);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        Ok(file.write_all(self.key.as_bytes())?)
    }
}

/// Valid since yesterday, so that clocks may differ.
fn lasting(mut parameters: CertificateParams) -> Result<CertificateParams, Box<dyn Error>> {
    let now = date_time_ymd(1970, 1, 1) + SystemTime::now().duration_since(UNIX_EPOCH)?;
    parameters.not_before = now - Duration::from_secs(24 * 60 * 60);
    parameters.not_after = now + LIFETIME;
    Ok(parameters)
}

fn ecdsa() -> Result<KeyPair, rcgen::Error> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
}

fn rsa() -> Result<KeyPair, rcgen::Error> {
    KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)
}
