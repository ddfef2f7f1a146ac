//! Keys stay where they are: no page, log, dump or error shows one. Expiry is told ahead of time.

use serde_json::Value;

use super::{edge, https};
use crate::harness::client::Http1;
use crate::harness::pki::{Authority, Identity, Key, Leaf, Validity, mutual_secret, secret, tls_secret};
use crate::harness::process::{fairlead, run};
use crate::harness::tls_client::Settings;
use crate::harness::upstream::Upstream;

/// The first line of a key's PEM that stands in `text`.
fn key_in(text: &str, identities: &[&Identity]) -> Option<String> {
    let encoded = |line: &str| {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.encode(line)
    };
    let lines = identities.iter().flat_map(|identity| identity.key_lines());
    // Also as a Secret has it, where a few characters of the middle are whatever comes before.
    lines.filter(|line| line.len() > 20).find(|line| {
        let inner = encoded(&line[3..]);
        text.contains(line.as_str()) || text.contains(&inner[4..inner.len() - 4])
    })
}

#[tokio::test]
async fn no_output_shows_a_key() {
    let authority = Authority::new("servers");
    let upstream = Upstream::ok().await;
    let good = authority.server("a.test");
    let rsa = authority.issue(&Leaf::server("rsa.test").key(Key::Rsa));
    let swapped = authority.server("swapped.test");
    let broken = authority.server("broken.test");
    let cut: String = broken.key.chars().take(broken.key.len() - 40).collect();
    let yaml = https("a.test", "{mode: SIMPLE, credentialName: good}")
        + &https("rsa.test", "{mode: MUTUAL, credentialName: rsa}")
        + &https("swapped.test", "{mode: SIMPLE, credentialName: swapped}")
        + &https("broken.test", "{mode: SIMPLE, credentialName: broken}")
        + &https("mismatch.test", "{mode: SIMPLE, credentialName: mismatch}");
    let mesh = edge(&yaml, &[443], upstream.address())
        .document(&tls_secret("good", &good))
        .document(&mutual_secret("rsa", &rsa, &authority.pem()))
        // The key where the certificate belongs, and as the name of an entry nobody knows.
        .document(&secret("swapped", &[("tls.crt", swapped.key.as_bytes()), ("tls.key", swapped.chain.as_bytes())]))
        .document(&secret("broken", &[("tls.crt", broken.chain.as_bytes()), ("tls.key", cut.as_bytes())]))
        .document(&secret("mismatch", &[("tls.crt", good.chain.as_bytes()), ("tls.key", swapped.key.as_bytes())]));
    let identities = [&good, &rsa, &swapped, &broken];
    let gateway = mesh.builder().argument("--log").argument("trace").access_log("json").start().await.unwrap();
    let address = gateway.address(443);
    assert_eq!(Settings::new(&[]).get(address, "a.test", "/").await.unwrap().status, 200);
    for host in ["rsa.test", "swapped.test", "broken.test", "mismatch.test", "nobody.test"] {
        let _ = Settings::new(&[]).get(address, host, "/").await;
    }
    // Edits that break things, and one document that isn't even a Secret any more.
    let before = gateway.generation().await;
    let text = secret("good", &[("tls.crt", good.chain.as_bytes()), ("tls.key", cut.as_bytes())]);
    gateway.write("more.yaml", &format!("{}---\n{}", secret("x", &[("a", good.key.as_bytes())]), text)).await;
    let wrong =
        format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: y}}\ndata: {{tls.key: 7, x: {:?}}}\n", good.key);
    crate::harness::gateway::write_into(&gateway.config(), "wrong.yaml", &wrong);
    gateway.reloaded_since(before).await;

    let mut texts = Vec::new();
    for page in ["/", "/config/status", "/config/routes", "/certs", "/config_dump", "/stats/prometheus", "/help"] {
        let answer = Http1::connect(gateway.admin()).await.get("localhost", page).await;
        if answer.status == 200 {
            texts.push((page.to_owned(), answer.text()));
        }
    }
    assert!(texts.iter().any(|(page, _)| page == "/certs"), "there is no /certs");
    let config = gateway.config();
    let config = config.to_str().unwrap();
    for arguments in [
        vec!["validate", config],
        vec!["validate", "--format", "json", config],
        vec!["validate", "--format", "sarif", config],
        vec!["routes", config],
        vec!["routes", "--format", "json", config],
        vec!["explain", config, "https://a.test/"],
    ] {
        let output = run(fairlead(&arguments)).await;
        let both = [output.stdout, output.stderr].concat();
        texts.push((format!("{arguments:?}"), String::from_utf8_lossy(&both).into_owned()));
    }
    texts.push(("stderr".to_owned(), gateway.stderr()));
    texts.push(("metrics".to_owned(), gateway.metrics_page().await));
    for (what, text) in &texts {
        assert!(!text.is_empty(), "{what} says nothing");
        assert_eq!(key_in(text, &identities), None, "{what}");
    }
}

#[tokio::test]
async fn the_first_end_is_told_ahead_of_time() {
    let authority = Authority::new("servers");
    let upstream = Upstream::ok().await;
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    let soon = today.saturating_add(jiff::Span::new().days(6));
    let ends = |leaf: Leaf| leaf.until(soon.year().into(), soon.month().unsigned_abs(), soon.day().unsigned_abs());
    let (soon_identity, late) = (authority.issue(&ends(Leaf::server("soon.test"))), authority.server("late.test"));
    let expired = authority.issue(&Leaf::server("expired.test").valid(Validity::Past));
    let yaml = https("soon.test", "{mode: SIMPLE, credentialName: soon}")
        + &https("late.test", "{mode: SIMPLE, credentialName: late}");
    let mesh = edge(&yaml, &[443], upstream.address()).document(&tls_secret("late", &late));
    let gateway = mesh.builder().file("soon.yaml", tls_secret("soon", &soon_identity)).start().await.unwrap();
    let days = async || {
        let page = gateway.metrics_page().await;
        let line = page
            .lines()
            .find(|line| line.starts_with("envoy_server_days_until_first_cert_expiring"))
            .map(str::to_owned);
        let value: f64 = line.expect("the metric").rsplit(' ').next().unwrap().parse().unwrap();
        value
    };
    // It ends at the begin of that day: between five and six days from now.
    assert_eq!(days().await, 5.0);
    gateway.says("soon").await;
    let answer = Http1::connect(gateway.admin()).await.get("localhost", "/certs").await;
    let page: Value = serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("{error}: {}", answer.text()));
    let certificates = page["certificates"].as_array().expect("certificates");
    let chain = |name: &str| {
        certificates
            .iter()
            .flat_map(|certificate| certificate["cert_chain"].as_array().into_iter().flatten())
            .find(|fact| fact["subject_alt_names"].to_string().contains(name))
            .unwrap_or_else(|| panic!("no {name} in {page:#}"))
            .clone()
    };
    let fact = chain("soon.test");
    assert_eq!(fact["subject_alt_names"], serde_json::json!([{"dns": "soon.test"}]));
    assert_eq!(fact["days_until_expiration"], "5");
    let serial: String = soon_identity.serial().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(fact["serial_number"], serial);
    assert!(fact["expiration_time"].as_str().unwrap().starts_with(&soon.to_string()), "{fact}");
    chain("late.test");
    // One that has ended counts as none left.
    gateway.write("soon.yaml", &tls_secret("soon", &expired)).await;
    assert_eq!(days().await, 0.0);
    // And a long one ends the worry.
    gateway.write("soon.yaml", &tls_secret("soon", &late)).await;
    assert!(days().await > 1_000.0);
}
