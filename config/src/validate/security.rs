//! `reference/security.md` §1.10 and §3.2, as far as one resource shows it.

use super::Findings;
use super::primitive::is_ip_or_cidr;
use crate::resource::security::{
    Action, AuthorizationPolicy, Condition, JwtRule, Operation, PeerAuthentication, RequestAuthentication, Rule, Source,
};
use crate::resource::selector::{PolicyTargetReference, WorkloadSelector};

pub(super) fn request_authentication(spec: &RequestAuthentication, findings: &mut Findings) {
    let RequestAuthentication { selector, target_ref, target_refs, jwt_rules } = spec;
    attachment(selector.as_ref(), target_ref.as_ref(), target_refs, findings);
    for (index, rule) in jwt_rules.iter().enumerate() {
        jwt_rule(&format!("spec.jwtRules[{index}]"), rule, findings);
    }
}

fn jwt_rule(path: &str, rule: &JwtRule, findings: &mut Findings) {
    if rule.issuer.is_empty() && rule.jwks_uri.is_empty() {
        findings.error(format!("{path}.issuer"), "a rule needs `issuer` or `jwksUri`");
    }
    if !rule.jwks_uri.is_empty() && !rule.jwks_uri.starts_with("http://") && !rule.jwks_uri.starts_with("https://") {
        findings.error(format!("{path}.jwksUri"), "must be an `http` or `https` URL");
    }
    if !rule.jwks.is_empty() {
        let keys = serde_json::from_str::<serde_json::Value>(&rule.jwks).ok();
        if !keys.is_some_and(|keys| keys.get("keys").is_some_and(serde_json::Value::is_array)) {
            findings.error(format!("{path}.jwks"), "is no key set").help("a JSON object with a list `keys`");
        }
    }
    no_empty(&format!("{path}.audiences"), &rule.audiences, findings);
    no_empty(&format!("{path}.fromParams"), &rule.from_params, findings);
    no_empty(&format!("{path}.fromCookies"), &rule.from_cookies, findings);
    for (index, header) in rule.from_headers.iter().enumerate() {
        if header.name.is_empty() {
            findings.error(format!("{path}.fromHeaders[{index}].name"), "a header needs a name");
        }
    }
    for (index, output) in rule.output_claim_to_headers.iter().enumerate() {
        let path = format!("{path}.outputClaimToHeaders[{index}]");
        let is_name = |name: &str| {
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        };
        if !is_name(&output.header) {
            findings
                .error(format!("{path}.header"), format!("`{}` must be letters, digits, `-` and `_`", output.header));
        }
        if output.claim.is_empty() {
            findings.error(format!("{path}.claim"), "needs the name of a claim");
        }
    }
}

pub(super) fn authorization_policy(spec: &AuthorizationPolicy, findings: &mut Findings) {
    let AuthorizationPolicy { selector, target_ref, target_refs, rules, action, provider } = spec;
    attachment(selector.as_ref(), target_ref.as_ref(), target_refs, findings);
    match (action, provider) {
        (Action::Custom, None) => {
            findings.error("spec.provider", "action CUSTOM needs a provider");
        }
        (Action::Custom, Some(provider)) if provider.name.is_empty() => {
            findings.error("spec.provider.name", "a provider needs a name");
        }
        (Action::Allow | Action::Deny | Action::Audit, Some(_)) => {
            findings.error("spec.provider", "a provider is for action CUSTOM");
        }
        _ => {}
    }
    for (index, rule) in rules.iter().enumerate() {
        self::rule(&format!("spec.rules[{index}]"), rule, findings);
    }
}

fn rule(path: &str, rule: &Rule, findings: &mut Findings) {
    let Rule { from, to, when } = rule;
    if from.as_ref().is_some_and(Vec::is_empty) {
        findings
            .error(format!("{path}.from"), "an empty list matches nothing")
            .help("leave it out to match everything");
    }
    if to.as_ref().is_some_and(Vec::is_empty) {
        findings.error(format!("{path}.to"), "an empty list matches nothing").help("leave it out to match everything");
    }
    for (index, from) in from.iter().flatten().enumerate() {
        let path = format!("{path}.from[{index}].source");
        match &from.source {
            None => {
                findings.error(path, "`from` needs a source");
            }
            Some(source) if *source == Source::default() => {
                findings.error(path, "the source says nothing");
            }
            Some(source) => self::source(&path, source, findings),
        }
    }
    for (index, to) in to.iter().flatten().enumerate() {
        let path = format!("{path}.to[{index}].operation");
        match &to.operation {
            None => {
                findings.error(path, "`to` needs an operation");
            }
            Some(operation) if *operation == Operation::default() => {
                findings.error(path, "the operation says nothing");
            }
            Some(operation) => self::operation(&path, operation, findings),
        }
    }
    for (index, Condition { key, values, not_values }) in when.iter().enumerate() {
        let path = format!("{path}.when[{index}]");
        if key.is_empty() {
            findings.error(format!("{path}.key"), "a condition needs a key");
        }
        if values.is_empty() && not_values.is_empty() {
            findings.error(&path, "a condition needs `values` or `notValues`");
        }
        no_empty(&format!("{path}.values"), values, findings);
        no_empty(&format!("{path}.notValues"), not_values, findings);
        if matches!(key.as_str(), "source.ip" | "remote.ip") {
            addresses(&format!("{path}.values"), values, findings);
            addresses(&format!("{path}.notValues"), not_values, findings);
        }
    }
}

fn source(path: &str, source: &Source, findings: &mut Findings) {
    let Source {
        principals,
        not_principals,
        request_principals,
        not_request_principals,
        namespaces,
        not_namespaces,
        service_accounts,
        not_service_accounts,
        trust_domains,
        not_trust_domains,
        ip_blocks,
        not_ip_blocks,
        remote_ip_blocks,
        not_remote_ip_blocks,
    } = source;
    for (field, list) in [
        ("principals", principals),
        ("notPrincipals", not_principals),
        ("requestPrincipals", request_principals),
        ("notRequestPrincipals", not_request_principals),
        ("namespaces", namespaces),
        ("notNamespaces", not_namespaces),
        ("serviceAccounts", service_accounts),
        ("notServiceAccounts", not_service_accounts),
        ("trustDomains", trust_domains),
        ("notTrustDomains", not_trust_domains),
    ] {
        no_empty(&format!("{path}.{field}"), list, findings);
    }
    for (field, list) in [
        ("ipBlocks", ip_blocks),
        ("notIpBlocks", not_ip_blocks),
        ("remoteIpBlocks", remote_ip_blocks),
        ("notRemoteIpBlocks", not_remote_ip_blocks),
    ] {
        addresses(&format!("{path}.{field}"), list, findings);
    }
}

fn operation(path: &str, operation: &Operation, findings: &mut Findings) {
    let Operation { hosts, not_hosts, ports, not_ports, methods, not_methods, paths, not_paths } = operation;
    for (field, list) in [
        ("hosts", hosts),
        ("notHosts", not_hosts),
        ("methods", methods),
        ("notMethods", not_methods),
        ("paths", paths),
        ("notPaths", not_paths),
    ] {
        no_empty(&format!("{path}.{field}"), list, findings);
    }
    for (field, list) in [("ports", ports), ("notPorts", not_ports)] {
        for (index, port) in list.iter().enumerate() {
            if port.parse::<u16>().is_err() {
                findings.error(format!("{path}.{field}[{index}]"), format!("`{port}` is no port"));
            }
        }
    }
}

pub(super) fn peer_authentication(spec: &PeerAuthentication, findings: &mut Findings) {
    let PeerAuthentication { selector, mtls: _, port_level_mtls } = spec;
    attachment(selector.as_ref(), None, &[], findings);
    if !port_level_mtls.is_empty() && selector.as_ref().is_none_or(|selector| selector.match_labels.is_empty()) {
        findings.error("spec.portLevelMtls", "settings of ports need a selector");
    }
    for port in port_level_mtls.keys() {
        super::primitive::port(&format!("spec.portLevelMtls.{port}"), *port, findings);
    }
}

/// What a policy is attached to: a selector, or references.
fn attachment(
    selector: Option<&WorkloadSelector>,
    target_ref: Option<&PolicyTargetReference>,
    target_refs: &[PolicyTargetReference],
    findings: &mut Findings,
) {
    let used =
        usize::from(selector.is_some()) + usize::from(target_ref.is_some()) + usize::from(!target_refs.is_empty());
    if used > 1 {
        findings.error("spec", "`selector`, `targetRef` and `targetRefs` exclude each other");
    }
    for (key, value) in selector.iter().flat_map(|selector| &selector.match_labels) {
        if key.is_empty() || key.contains('*') || value.contains('*') {
            let path = super::keyed("spec.selector.matchLabels", key);
            findings.error(path, "a selector has no empty names and no `*`");
        }
    }
    for reference in target_ref.iter().copied().chain(target_refs) {
        if reference.name.is_empty() || reference.kind.is_empty() {
            findings.error("spec.targetRefs", "a reference needs `kind` and `name`");
        }
    }
}

fn no_empty(path: &str, list: &[String], findings: &mut Findings) {
    for index in (0..list.len()).filter(|index| list[*index].is_empty()) {
        findings.error(format!("{path}[{index}]"), "must not be empty");
    }
}

fn addresses(path: &str, list: &[String], findings: &mut Findings) {
    for (index, address) in list.iter().enumerate() {
        if !is_ip_or_cidr(address) {
            findings.error(format!("{path}[{index}]"), format!("`{address}` is no IP address or CIDR"));
        }
    }
}
