//! Logs: whatever stands in them, each document that is made of them is one ServiceEntry, for the host that it names.
#![no_main]

use config::parse::{Outcome, parse_text};
use config::resource::Spec;
use gateway::egress::learn::Learner;
use gateway::egress::suggestion::Host;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut learner = Learner::default();
    learner.read(input).expect("a slice can be read");
    for learned in learner.learned(1) {
        let comments: String = learned.notes.iter().map(|note| format!("# {note}\n")).collect();
        assert_eq!(comments.lines().count(), learned.notes.len(), "{comments}");
        let host = learned.entry.host();
        check(host, &(comments + &learned.entry.document()));
        let line = learned.entry.one_line();
        assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{line}");
        check(host, &line);
    }
});

fn check(host: &Host, document: &str) {
    let parsed = parse_text("fuzz.yaml", document);
    assert!(parsed.iter().all(|parsed| !parsed.has_findings()), "{document}");
    let candidates: Vec<_> = parsed.iter().flat_map(|parsed| &parsed.candidates).collect();
    assert_eq!(candidates.len(), 1, "{document}");
    let Outcome::Valid(resource) = &candidates[0].outcome else { panic!("{document}") };
    let Spec::ServiceEntry(entry) = &resource.spec else { panic!("{document}") };
    match host {
        Host::Name(name) => assert_eq!(entry.hosts, [name.as_str()], "{document}"),
        Host::Address(address) => assert_eq!(entry.addresses, [address.to_string()], "{document}"),
    }
}
