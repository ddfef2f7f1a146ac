#![allow(clippy::unwrap_used, reason = "a test that can't read its own input should stop")]

use crate::diagnostic::Severity;
use crate::parse::parse_text;

/// `E path` and `W path` of what one resource is told.
fn check(api_version: &str, kind: &str, spec: &str) -> Vec<String> {
    let text = format!("apiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: a, namespace: ns}}\nspec: {spec}\n");
    let mut findings: Vec<String> = parse_text("t.yaml", &text)
        .iter()
        .flat_map(|parsed| &parsed.diagnostics)
        .map(|diagnostic| {
            let level = if diagnostic.severity == Severity::Error { 'E' } else { 'W' };
            format!("{level} {}", diagnostic.path.trim_start_matches("spec."))
        })
        .collect();
    findings.dedup();
    findings
}

fn table(api_version: &str, kind: &str, frame: &str, rows: &[(&str, &[&str])]) {
    for (row, expected) in rows {
        let spec = frame.replace("<>", row);
        assert_eq!(check(api_version, kind, &spec), *expected, "{kind}: {spec}");
    }
}

const NETWORKING: &str = "networking.istio.io/v1";

#[test]
fn rules_of_gateways() {
    let host = "hosts: ['*.example.com']";
    let https = "port: {number: 443, name: https, protocol: HTTPS}, hosts: ['*']";
    let rows: &[(String, &[&str])] = &[
        (String::new(), &["E servers"]),
        (format!("{{{host}}}"), &["E servers[0].port"]),
        ("{port: {number: 80, name: http, protocol: HTTP}}".into(), &["E servers[0].hosts"]),
        (format!("{{{host}, port: {{number: 0, name: http, protocol: HTTP}}}}"), &["E servers[0].port.number"]),
        (format!("{{{host}, port: {{number: 65536, name: http, protocol: http2}}}}"), &["E servers[0].port.number"]),
        (format!("{{{host}, port: {{number: 80, protocol: GRPC}}}}"), &["E servers[0].port.name"]),
        (format!("{{{host}, port: {{number: 80, name: a, protocol: UDP}}}}"), &["E servers[0].port.protocol"]),
        (
            format!("{{{host}, port: {{number: 80, name: a, protocol: HTTP, targetPort: 8080}}}}"),
            &["E servers[0].port.targetPort"],
        ),
        (
            format!("{{{host}, bind: 127.0.0.1:80, port: {{number: 80, name: a, protocol: TCP}}}}"),
            &["E servers[0].bind"],
        ),
        (format!("{{{host}, bind: '::1', port: {{number: 80, name: a, protocol: TCP}}}}"), &[]),
        (format!("{{{host}, bind: 'unix:///run/s', port: {{number: 0, name: a, protocol: HTTP}}}}"), &[]),
        (
            format!("{{{host}, bind: 'unix://@s', port: {{number: 80, name: a, protocol: HTTP}}}}"),
            &["E servers[0].port.number"],
        ),
        (format!("{{{host}, bind: 'unix://s', port: {{name: a, protocol: HTTP}}}}"), &["E servers[0].bind"]),
        (format!("{{{https}}}"), &["E servers[0].tls"]),
        (format!("{{{https}, tls: {{}}}}"), &[]),
        (format!("{{{https}, tls: {{mode: SIMPLE, credentialName: a}}}}"), &[]),
        (format!("{{{https}, tls: {{mode: MUTUAL, credentialNames: [a, b]}}}}"), &[]),
        (format!("{{{https}, tls: {{credentialName: a}}}}"), &["W servers[0].tls"]),
        (
            format!("{{{https}, tls: {{mode: MUTUAL, serverCertificate: a, privateKey: b}}}}"),
            &["E servers[0].tls.caCertificates"],
        ),
        (
            format!("{{{https}, tls: {{mode: SIMPLE, credentialName: a, serverCertificate: b, privateKey: c}}}}"),
            &["E servers[0].tls"],
        ),
        (format!("{{{https}, tls: {{mode: ISTIO_MUTUAL, credentialName: a}}}}"), &["E servers[0].tls"]),
        (format!("{{{https}, tls: {{mode: ISTIO_MUTUAL, caCertCredentialName: a}}}}"), &["E servers[0].tls"]),
        (format!("{{{https}, tls: {{caCertCredentialName: a}}}}"), &["W servers[0].tls"]),
        (
            format!("{{{https}, tls: {{mode: SIMPLE, credentialName: a, minProtocolVersion: TLSV1_1}}}}"),
            &["W servers[0].tls.minProtocolVersion"],
        ),
        (
            format!("{{{https}, tls: {{mode: SIMPLE, credentialName: a, maxProtocolVersion: TLSV1_1}}}}"),
            &["W servers[0].tls.maxProtocolVersion"],
        ),
        (
            format!(
                "{{{https}, tls: {{mode: SIMPLE, credentialName: a, minProtocolVersion: TLSV1_3, \
                 maxProtocolVersion: TLSV1_2}}}}"
            ),
            &["W servers[0].tls.maxProtocolVersion"],
        ),
        (
            format!(
                "{{{https}, tls: {{mode: SIMPLE, credentialName: a, cipherSuites: [nonsense, AES128-SHA], \
                 ecdhCurves: [X25519, X25519, P-224]}}}}"
            ),
            &[
                "W servers[0].tls.cipherSuites[0]",
                "W servers[0].tls.cipherSuites[1]",
                "W servers[0].tls.cipherSuites",
                "W servers[0].tls.ecdhCurves[1]",
                "W servers[0].tls.ecdhCurves[2]",
            ],
        ),
        (format!("{{{https}, tls: {{mode: ISTIO_MUTUAL, cipherSuites: [x]}}}}"), &["W servers[0].tls.cipherSuites"]),
        (
            format!("{{{https}, tls: {{mode: SIMPLE, credentialName: a, subjectAltNames: [b]}}}}"),
            &["E servers[0].tls.subjectAltNames"],
        ),
        (format!("{{{https}, tls: {{mode: MUTUAL, credentialName: a, subjectAltNames: [b]}}}}"), &[]),
        (
            format!("{{{https}, tls: {{mode: SIMPLE, credentialNames: [a, '', c]}}}}"),
            &["E servers[0].tls.credentialNames", "E servers[0].tls.credentialNames[1]"],
        ),
        (
            format!(
                "{{{https}, tls: {{mode: MUTUAL, credentialName: a, verifyCertificateSpki: [x], \
                 verifyCertificateHash: ['00']}}}}"
            ),
            &["E servers[0].tls.verifyCertificateSpki[0]", "E servers[0].tls.verifyCertificateHash[0]"],
        ),
        (
            format!("{{{https}, tls: {{mode: MUTUAL, tlsCertificates: [{{serverCertificate: a}}]}}}}"),
            &["E servers[0].tls.tlsCertificates[0]", "E servers[0].tls.caCertificates"],
        ),
        (
            format!("{{{https}, tls: {{mode: SIMPLE, serverCertificate: a, privateKey: b, caCrl: c}}}}"),
            &["E servers[0].tls.caCrl"],
        ),
        (format!("{{{https}, tls: {{mode: PASSTHROUGH, httpsRedirect: true}}}}"), &["W servers[0].tls.httpsRedirect"]),
        ("{hosts: ['*'], port: {number: 80, name: a, protocol: HTTP}, tls: {httpsRedirect: true}}".into(), &[]),
        (
            "{hosts: ['*'], port: {number: 80, name: a, protocol: HTTP}, \
             tls: {httpsRedirect: true, minProtocolVersion: TLSV1_3}}"
                .into(),
            &["W servers[0].tls.minProtocolVersion"],
        ),
        (
            format!(
                "{{{https}, tls: {{caCrl: a, subjectAltNames: [a], verifyCertificateSpki: [a], \
                 verifyCertificateHash: [a], minProtocolVersion: TLSV1_2, maxProtocolVersion: TLSV1_3, \
                 cipherSuites: [ALL], ecdhCurves: [X25519], insecureSkipVerify: true}}}}"
            ),
            &[
                "W servers[0].tls.caCrl",
                "W servers[0].tls.subjectAltNames",
                "W servers[0].tls.verifyCertificateSpki",
                "W servers[0].tls.verifyCertificateHash",
                "W servers[0].tls.minProtocolVersion",
                "W servers[0].tls.maxProtocolVersion",
                "W servers[0].tls.cipherSuites",
                "W servers[0].tls.ecdhCurves",
                "W servers[0].tls.insecureSkipVerify",
            ],
        ),
        (
            "{hosts: ['*'], port: {number: 80, name: a, protocol: HTTP}, tls: {mode: SIMPLE, credentialName: a}}"
                .into(),
            &["E servers[0].tls"],
        ),
        ("{hosts: ['*'], port: {number: 80, name: a, protocol: TCP}, tls: {}}".into(), &["E servers[0].tls"]),
    ];
    for (row, expected) in rows {
        table(NETWORKING, "Gateway", "{servers: [<>]}", &[(row, expected)]);
    }
}

#[test]
fn rules_of_gateway_hosts() {
    let frame = "{servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['<>']}]}";
    for good in ["*", "a.b", "*.a.b", "ns/a.b", "./a.b", "*/a.b", "*/*", "10.0.0.1", "::1"] {
        table(NETWORKING, "Gateway", frame, &[(good, &[])]);
    }
    for bad in ["", "a", "*a.b", "a.*.b", "/a.b", "ns/", "n.s/a.b", "a_b.c", "ns/a/b.c"] {
        table(NETWORKING, "Gateway", frame, &[(bad, &["E servers[0].hosts[0]"])]);
    }
}

#[test]
fn rules_of_virtual_services() {
    let http = "http: [{directResponse: {status: 200}}]";
    let rows: &[(String, &[&str])] = &[
        ("hosts: [a.b]".into(), &["E spec"]),
        (http.into(), &[]),
        (format!("{http}, gateways: [g]"), &["E gateways"]),
        (format!("{http}, hosts: ['*']"), &["E hosts[0]"]),
        (format!("{http}, hosts: ['*'], gateways: [g]"), &[]),
        (format!("{http}, hosts: ['*'], gateways: [g, mesh]"), &["E hosts[0]"]),
        (format!("{http}, hosts: [a b]"), &["E hosts[0]"]),
        (format!("{http}, hosts: ['*.a.b', c.a.b]"), &["E hosts[1]"]),
        (
            format!("{http}, hosts: [a.b], gateways: [ns/g, ./g, ns/g_1, g.ns]"),
            &["E gateways[1]", "E gateways[2]", "W gateways[3]"],
        ),
        (format!("{http}, hosts: [a.b], exportTo: ['.', '.']"), &["E exportTo[1]"]),
        (format!("{http}, hosts: [a.b], exportTo: ['~']"), &["E exportTo[0]"]),
        (format!("{http}, hosts: [a.b], exportTo: ['*', ns]"), &["E exportTo[0]"]),
        ("hosts: [a.b], tls: [{route: [{destination: {host: x}}]}]".into(), &["E tls[0].match"]),
        (
            "hosts: [a.b], tls: [{match: [{sniHosts: [c.d, 10.0.0.1]}], route: [{destination: {host: x}}]}]".into(),
            &["E tls[0].match[0].sniHosts[0]", "W tls[0].match[0].sniHosts[1]"],
        ),
        ("hosts: ['*.b'], tls: [{match: [{sniHosts: [a.b]}]}]".into(), &["E tls[0].route"]),
        (
            "hosts: ['*.b'], tls: [{match: [{}, {sniHosts: [a.b], port: 65536, destinationSubnets: [x]}], \
             route: [{destination: {host: x}}]}]"
                .into(),
            &["E tls[0].match[0].sniHosts", "E tls[0].match[1].destinationSubnets[0]", "E tls[0].match[1].port"],
        ),
        (
            "hosts: [a.b], tcp: [{match: [{destinationSubnets: [x], gateways: ['./g']}], route: []}]".into(),
            &["E tcp[0].match[0].destinationSubnets[0]", "E tcp[0].match[0].gateways[0]", "E tcp[0].route"],
        ),
        (
            "hosts: [a.b], tcp: [{route: [{destination: {host: x}, weight: -1}, {weight: 2}]}]".into(),
            &["E tcp[0].route[1].destination", "E tcp[0].route[0].weight"],
        ),
        ("hosts: [a.b], tcp: [{route: [{destination: {host: x}, weight: -1}]}]".into(), &["E tcp[0].route[0].weight"]),
        (
            "hosts: [a.b], tcp: [{route: [{destination: {host: x}}, {destination: {host: y}}]}]".into(),
            &["E tcp[0].route"],
        ),
        (
            "hosts: [a.b], tcp: [{match: [{destinationSubnets: [10.0.0.0/8, x]}], route: [{destination: {host: x}}]}]"
                .into(),
            &["E tcp[0].match[0].destinationSubnets[1]"],
        ),
    ];
    for (row, expected) in rows {
        table(NETWORKING, "VirtualService", "{<>}", &[(row, expected)]);
    }
}

#[test]
fn rules_of_http_routes() {
    table(
        NETWORKING,
        "VirtualService",
        "{hosts: [a.b], gateways: [g], http: [{<>}]}",
        &[
            ("", &["E http[0]"]),
            ("redirect: {uri: /}, directResponse: {status: 200}", &["E http[0].directResponse"]),
            ("redirect: {uri: /}, route: [{destination: {host: x}}]", &["E http[0].redirect"]),
            ("redirect: {uri: /}, rewrite: {uri: /}", &["E http[0].rewrite"]),
            ("directResponse: {status: 200}, fault: {abort: {httpStatus: 500}}", &["E http[0].fault"]),
            ("redirect: {}", &["E http[0].redirect"]),
            ("redirect: {uri: \"/a\\r\\nx: 1\"}", &["E http[0].redirect.uri"]),
            ("redirect: {authority: \"a\\r\\nset-cookie: x\"}", &["E http[0].redirect.authority"]),
            ("route: [{destination: {host: a.b}}], rewrite: {uri: \"/a HTTP/1.1\\r\\n\"}", &["E http[0].rewrite.uri"]),
            ("redirect: {uri: /, prefixRewrite: /}", &["E http[0].redirect.prefixRewrite"]),
            ("match: [{uri: {exact: /}}], redirect: {prefixRewrite: /a}", &["E http[0].redirect.prefixRewrite"]),
            ("redirect: {scheme: ftp}", &["E http[0].redirect.scheme"]),
            ("redirect: {port: 0}", &["E http[0].redirect.port"]),
            ("redirect: {uri: /, redirectCode: 304}", &["E http[0].redirect.redirectCode"]),
            ("redirect: {uri: /, redirectCode: 308}", &[]),
            ("directResponse: {status: 199}", &["E http[0].directResponse.status"]),
            ("directResponse: {status: 600}", &["E http[0].directResponse.status"]),
            ("delegate: {}", &["E http[0].delegate.name"]),
        ],
    );
    table(
        NETWORKING,
        "VirtualService",
        "{hosts: [a.b], gateways: [g], http: [{route: [{destination: {host: x}}], <>}]}",
        &[
            ("timeout: 0s", &["E http[0].timeout"]),
            ("timeout: 1.0005s", &["E http[0].timeout"]),
            ("timeout: 1ms", &[]),
            ("rewrite: {}", &["E http[0].rewrite"]),
            ("rewrite: {uri: /, uriRegexRewrite: {match: a, rewrite: b}}", &["E http[0].rewrite.uriRegexRewrite"]),
            ("rewrite: {uriRegexRewrite: {match: '(', rewrite: b}}", &["E http[0].rewrite.uriRegexRewrite.match"]),
            ("rewrite: {uriRegexRewrite: {match: a}}", &["E http[0].rewrite.uriRegexRewrite.rewrite"]),
            ("retries: {}", &[]),
            ("retries: {attempts: -1}", &["E http[0].retries.attempts"]),
            ("retries: {retryOn: 5xx}", &["E http[0].retries.attempts"]),
            ("retries: {attempts: 1, retryOn: '5xx,503,reset-before-request'}", &[]),
            ("retries: {attempts: 1, retryOn: '5xx,999'}", &["E http[0].retries.retryOn"]),
            ("retries: {attempts: 1, retryOn: '5xx,'}", &["E http[0].retries.retryOn"]),
            ("retries: {attempts: 1, perTryTimeout: 0s}", &["E http[0].retries.perTryTimeout"]),
            ("fault: {}", &["E http[0].fault"]),
            (
                "fault: {delay: {fixedDelay: 1s, percentage: {value: 100.1}}}",
                &["E http[0].fault.delay.percentage.value"],
            ),
            ("fault: {delay: {exponentialDelay: 1s}}", &["E http[0].fault.delay.exponentialDelay"]),
            ("fault: {abort: {httpStatus: 199}}", &["E http[0].fault.abort.httpStatus"]),
            ("fault: {abort: {grpcStatus: BUSY}}", &["E http[0].fault.abort.grpcStatus"]),
            ("fault: {abort: {grpcStatus: UNAVAILABLE}}", &[]),
            ("fault: {abort: {}}", &["W http[0].fault.abort"]),
            ("mirror: {host: m}, mirrors: [{destination: {host: m}}]", &["E http[0].mirrors"]),
            ("mirrors: [{percentage: {value: 1}}]", &["E http[0].mirrors[0]"]),
            ("mirror: {host: m}, mirrorPercentage: {value: 101}", &["E http[0].mirrorPercentage.value"]),
            ("corsPolicy: {allowOrigins: [{}]}", &["E http[0].corsPolicy.allowOrigins[0]"]),
            ("corsPolicy: {allowMethods: [get]}", &["E http[0].corsPolicy.allowMethods[0]"]),
            ("corsPolicy: {allowHeaders: ['*', 'a b']}", &["E http[0].corsPolicy.allowHeaders[1]"]),
            ("corsPolicy: {maxAge: 1500ms}", &["E http[0].corsPolicy.maxAge"]),
            ("corsPolicy: {maxAge: 0s}", &[]),
            ("headers: {request: {set: {host: a, ':authority': b}}}", &[]),
            ("headers: {request: {set: {':path': a}}}", &["E http[0].headers.request.set.:path"]),
            ("headers: {request: {remove: [Host]}}", &["E http[0].headers.request.remove[0]"]),
            ("headers: {response: {add: {host: a}}}", &["E http[0].headers.response.add.host"]),
            ("headers: {response: {add: {x: \"a\\nb\"}}}", &["E http[0].headers.response.add.x"]),
            ("headers: {request: {add: {'': a}}}", &["E http[0].headers.request.add."]),
            ("rewrite: {authority: c}, headers: {request: {set: {host: a}}}", &["E http[0].headers.request.set"]),
        ],
    );
    table(
        NETWORKING,
        "VirtualService",
        "{hosts: [a.b], gateways: [g], http: [{match: [{<>}], route: [{destination: {host: x}}]}]}",
        &[
            ("uri: {prefix: ''}", &[]),
            ("method: {prefix: ''}", &["E http[0].match[0].method.prefix"]),
            ("uri: {regex: ''}", &["E http[0].match[0].uri.regex"]),
            ("uri: {regex: '(?=a)'}", &["E http[0].match[0].uri.regex"]),
            ("headers: {':method': {exact: GET}, '@request.auth.claims.sub': {exact: a}}", &[]),
            ("headers: {'a b': {exact: a}}", &["E http[0].match[0].headers[\"a b\"]"]),
            ("headers: {x: {regex: '*'}}", &["E http[0].match[0].headers.x.regex"]),
            ("withoutHeaders: {x: {regex: '*'}}", &[]),
            ("port: 65536", &["E http[0].match[0].port"]),
            ("sourceNamespace: a.b", &["E http[0].match[0].sourceNamespace"]),
            ("sourceLabels: {'-': a}", &["E http[0].match[0].sourceLabels.-"]),
        ],
    );
    table(
        NETWORKING,
        "VirtualService",
        "{hosts: [a.b], gateways: [g], http: [{route: [<>]}]}",
        &[
            ("{}", &["E http[0].route[0].destination"]),
            ("{destination: {}}", &["E http[0].route[0].destination.host"]),
            ("{destination: {host: '*'}}", &["E http[0].route[0].destination.host"]),
            ("{destination: {host: x, subset: v.1}}", &["E http[0].route[0].destination.subset"]),
            ("{destination: {host: x, port: {}}}", &["E http[0].route[0].destination.port.number"]),
            ("{destination: {host: x}, weight: -1}", &["E http[0].route[0].weight"]),
            ("{destination: {host: x}}, {destination: {host: y}}", &["E http[0].route"]),
            ("{destination: {host: x}, weight: 1}, {destination: {host: y}}", &[]),
        ],
    );
}

#[test]
fn rules_of_destination_rules() {
    table(
        NETWORKING,
        "DestinationRule",
        "{host: a.b, trafficPolicy: {<>}}",
        &[
            ("", &["E trafficPolicy"]),
            (
                "loadBalancer: {simple: RANDOM, consistentHash: {useSourceIp: true}}",
                &["E trafficPolicy.loadBalancer.consistentHash"],
            ),
            (
                "loadBalancer: {consistentHash: {useSourceIp: true, maglev: {tableSize: 65536}}}",
                &["E trafficPolicy.loadBalancer.consistentHash.maglev.tableSize"],
            ),
            ("loadBalancer: {consistentHash: {httpCookie: {name: c, ttl: 0s}, maglev: {tableSize: 65537}}}", &[]),
            ("connectionPool: {}", &["E trafficPolicy.connectionPool"]),
            ("connectionPool: {tcp: {maxConnections: -1}}", &["E trafficPolicy.connectionPool.tcp.maxConnections"]),
            ("connectionPool: {tcp: {idleTimeout: 0s}}", &[]),
            (
                "connectionPool: {http: {h2UpgradePolicy: UPGRADE, useClientProtocol: true}}",
                &["E trafficPolicy.connectionPool.http.useClientProtocol"],
            ),
            ("outlierDetection: {}", &[]),
            ("outlierDetection: {maxEjectionPercent: 101}", &["E trafficPolicy.outlierDetection.maxEjectionPercent"]),
            ("tls: {mode: MUTUAL, clientCertificate: a}", &["E trafficPolicy.tls.privateKey"]),
            ("tls: {mode: SIMPLE, credentialName: a, caCertificates: b}", &["E trafficPolicy.tls.caCertificates"]),
            ("tls: {mode: SIMPLE, credentialName: 'configmap://ns/a'}", &[]),
            ("tls: {mode: SIMPLE, credentialName: 'configmap://other/a'}", &["E trafficPolicy.tls.credentialName"]),
            ("tls: {mode: SIMPLE, credentialName: 'configmap://a'}", &["E trafficPolicy.tls.credentialName"]),
            (
                "tls: {mode: SIMPLE, insecureSkipVerify: true, subjectAltNames: [a]}",
                &["E trafficPolicy.tls.insecureSkipVerify"],
            ),
            ("portLevelSettings: [{port: {number: 80}}]", &["E trafficPolicy.portLevelSettings[0]"]),
            ("tunnel: {targetHost: a, targetPort: 1}, proxyProtocol: {}", &["E trafficPolicy.proxyProtocol"]),
        ],
    );
    let subsets = "{host: a.b, subsets: [<>]}";
    table(
        NETWORKING,
        "DestinationRule",
        subsets,
        &[
            ("{name: v1}, {name: v1}", &["E subsets[1].name"]),
            ("{}", &["E subsets[0].name"]),
            ("null", &["E subsets[0]"]),
            ("{name: v.1}", &["E subsets[0].name"]),
            ("{name: v1, labels: {a: 'b c'}}", &["E subsets[0].labels.a"]),
            ("{name: v1, trafficPolicy: {}}", &["E subsets[0].trafficPolicy"]),
        ],
    );
    table(
        NETWORKING,
        "DestinationRule",
        "{<>}",
        &[
            ("", &["E host"]),
            ("host: 'a b'", &["E host"]),
            ("host: '*.a.b'", &[]),
            ("host: a.b, workloadSelector: {matchLabels: {a: '*'}}", &["E workloadSelector.matchLabels.a"]),
            ("host: a.b, workloadSelector: {matchLabels: {a: b}}, exportTo: ['*']", &["E exportTo"]),
            ("host: a.b, workloadSelector: {matchLabels: {a: b}}, exportTo: ['.']", &[]),
            ("host: a.b, exportTo: ['~']", &["E exportTo[0]"]),
        ],
    );
}

/// §10.9: tunnel, proxyProtocol, portLevelSettings, outlierDetection, connectionPool, retryBudget.
#[test]
fn rules_of_traffic_policies() {
    table(
        NETWORKING,
        "DestinationRule",
        "{host: a.b, trafficPolicy: {<>}}",
        &[
            ("tunnel: {protocol: GET, targetHost: a, targetPort: 1}", &["E trafficPolicy.tunnel.protocol"]),
            ("tunnel: {targetHost: a_b, targetPort: 1}", &["E trafficPolicy.tunnel.targetHost"]),
            ("tunnel: {targetHost: '::1', targetPort: 0}", &["E trafficPolicy.tunnel.targetPort"]),
            ("tunnel: {protocol: POST, targetHost: '::1', targetPort: 1}", &[]),
            ("proxyProtocol: {version: V3}", &["E trafficPolicy.proxyProtocol.version"]),
            ("proxyProtocol: {version: V2}", &[]),
            ("portLevelSettings: [null]", &["E trafficPolicy.portLevelSettings[0]"]),
            ("portLevelSettings: [{tls: {}}]", &["E trafficPolicy.portLevelSettings[0].port"]),
            (
                "portLevelSettings: [{port: {number: 0}, tls: {}}]",
                &["E trafficPolicy.portLevelSettings[0].port.number"],
            ),
            ("outlierDetection: {interval: 0s}", &["E trafficPolicy.outlierDetection.interval"]),
            ("outlierDetection: {baseEjectionTime: 1us}", &["E trafficPolicy.outlierDetection.baseEjectionTime"]),
            ("outlierDetection: {minHealthPercent: -1}", &["E trafficPolicy.outlierDetection.minHealthPercent"]),
            (
                "outlierDetection: {consecutiveLocalOriginFailures: 1}",
                &["E trafficPolicy.outlierDetection.consecutiveLocalOriginFailures"],
            ),
            ("outlierDetection: {consecutiveLocalOriginFailures: 1, splitExternalLocalOriginErrors: true}", &[]),
            ("outlierDetection: {consecutiveErrors: 1}", &["W trafficPolicy.outlierDetection.consecutiveErrors"]),
            (
                "outlierDetection: {outlierDetectionHttpErrorCodes: [99, 100, 599, 600]}",
                &[
                    "E trafficPolicy.outlierDetection.outlierDetectionHttpErrorCodes[0]",
                    "E trafficPolicy.outlierDetection.outlierDetectionHttpErrorCodes[3]",
                ],
            ),
            ("connectionPool: {tcp: {connectTimeout: 0s}}", &["E trafficPolicy.connectionPool.tcp.connectTimeout"]),
            ("connectionPool: {http: {maxRetries: -1}}", &["E trafficPolicy.connectionPool.http.maxRetries"]),
            (
                "connectionPool: {http: {http2KeepAlive: {interval: 1s}}}",
                &["E trafficPolicy.connectionPool.http.http2KeepAlive.timeout"],
            ),
            (
                "connectionPool: {http: {http2KeepAlive: {timeout: 1s}}}",
                &["E trafficPolicy.connectionPool.http.http2KeepAlive.interval"],
            ),
            ("retryBudget: {percent: 101}", &["E trafficPolicy.retryBudget.percent"]),
            ("retryBudget: {percent: {value: -1}}", &["E trafficPolicy.retryBudget.percent"]),
            ("retryBudget: {budgetInterval: 0s}", &[]),
            ("retryBudget: {budgetInterval: 1us}", &["E trafficPolicy.retryBudget.budgetInterval"]),
            (
                "tls: {mode: SIMPLE, credentialName: a, insecureSkipVerify: true}",
                &["E trafficPolicy.tls.insecureSkipVerify"],
            ),
            ("tls: {mode: MUTUAL, privateKey: a}", &["E trafficPolicy.tls.clientCertificate"]),
        ],
    );
}

/// §10.9: loadBalancer.
#[test]
fn rules_of_load_balancers() {
    table(
        NETWORKING,
        "DestinationRule",
        "{host: a.b, trafficPolicy: {loadBalancer: {<>}}}",
        &[
            (
                "consistentHash: {httpCookie: {ttl: 1s}}",
                &["E trafficPolicy.loadBalancer.consistentHash.httpCookie.name"],
            ),
            (
                "consistentHash: {httpCookie: {name: c, attributes: [{name: a}, {name: ''}, {name: a}]}}",
                &[
                    "E trafficPolicy.loadBalancer.consistentHash.httpCookie.attributes[1].name",
                    "E trafficPolicy.loadBalancer.consistentHash.httpCookie.attributes[2].name",
                ],
            ),
            (
                "consistentHash: {useSourceIp: true, httpHeaderName: a}",
                &["E trafficPolicy.loadBalancer.consistentHash"],
            ),
            (
                "consistentHash: {useSourceIp: true, minimumRingSize: 1}",
                &["W trafficPolicy.loadBalancer.consistentHash.minimumRingSize"],
            ),
            (
                "consistentHash: {useSourceIp: true, minimumRingSize: 1, ringHash: {}}",
                &["E trafficPolicy.loadBalancer.consistentHash.minimumRingSize"],
            ),
            (
                "consistentHash: {useSourceIp: true, maglev: {}}",
                &["E trafficPolicy.loadBalancer.consistentHash.maglev.tableSize"],
            ),
            (
                "consistentHash: {useSourceIp: true, maglev: {tableSize: 5000011}}",
                &["E trafficPolicy.loadBalancer.consistentHash.maglev.tableSize"],
            ),
            ("warmup: {}", &["E trafficPolicy.loadBalancer.warmup.duration"]),
            ("warmup: {duration: 0s}", &["E trafficPolicy.loadBalancer.warmup.duration"]),
            ("warmup: {duration: 1s, minimumPercent: 101}", &["E trafficPolicy.loadBalancer.warmup.minimumPercent"]),
            ("warmup: {duration: 1s, aggression: 0}", &["E trafficPolicy.loadBalancer.warmup.aggression"]),
            ("warmup: {duration: 1s}, warmupDurationSecs: 1s", &["E trafficPolicy.loadBalancer.warmupDurationSecs"]),
            ("warmupDurationSecs: 0s", &["E trafficPolicy.loadBalancer.warmupDurationSecs"]),
            ("localityLbSetting: {}, zoneAwareLbSetting: {}", &["E trafficPolicy.loadBalancer.zoneAwareLbSetting"]),
            (
                "zoneAwareLbSetting: {minClusterSize: 0}",
                &["E trafficPolicy.loadBalancer.zoneAwareLbSetting.minClusterSize"],
            ),
            (
                "zoneAwareLbSetting: {routingEnabled: 101}",
                &["E trafficPolicy.loadBalancer.zoneAwareLbSetting.routingEnabled"],
            ),
            (
                "zoneAwareLbSetting: {failover: [{from: a, to: a}], failoverPriority: [topology.kubernetes.io/zone]}",
                &[
                    "E trafficPolicy.loadBalancer.zoneAwareLbSetting.failover[0]",
                    "W trafficPolicy.loadBalancer.zoneAwareLbSetting",
                    "E trafficPolicy.loadBalancer.zoneAwareLbSetting.failoverPriority[0]",
                ],
            ),
        ],
    );
    table(
        NETWORKING,
        "DestinationRule",
        "{host: a.b, trafficPolicy: {outlierDetection: {}, loadBalancer: {localityLbSetting: {<>}}}}",
        &[
            (
                "distribute: [{from: a, to: {a: 100}}], failover: [{from: a, to: b}]",
                &["E trafficPolicy.loadBalancer.localityLbSetting.failover"],
            ),
            ("distribute: [{from: a/*, to: {a/b: 80, a/c/*: 20}}]", &[]),
            (
                "distribute: [{from: a, to: {a: 0, b: 100}}]",
                &["E trafficPolicy.loadBalancer.localityLbSetting.distribute[0].to"],
            ),
            (
                "distribute: [{from: a, to: {a: 50, b: 49}}]",
                &["E trafficPolicy.loadBalancer.localityLbSetting.distribute[0].to"],
            ),
            (
                "distribute: [{from: a, to: {a: 50, a/b: 50}}]",
                &["E trafficPolicy.loadBalancer.localityLbSetting.distribute[0].to"],
            ),
            (
                "distribute: [{from: a, to: {a/*: 50, a/b/c: 50}}]",
                &["E trafficPolicy.loadBalancer.localityLbSetting.distribute[0].to"],
            ),
            (
                "distribute: [{from: a/b, to: {a: 100}}, {from: a, to: {a: 100}}]",
                &["E trafficPolicy.loadBalancer.localityLbSetting.distribute[1].from"],
            ),
            (
                "distribute: [{from: a//c, to: {a: 100}}]",
                &["E trafficPolicy.loadBalancer.localityLbSetting.distribute[0]"],
            ),
            (
                "distribute: [{from: '*/b', to: {a: 100}}]",
                &["E trafficPolicy.loadBalancer.localityLbSetting.distribute[0]"],
            ),
            ("failover: [{from: a, to: a}]", &["E trafficPolicy.loadBalancer.localityLbSetting.failover[0]"]),
            ("failover: [{from: a/b, to: c}]", &["E trafficPolicy.loadBalancer.localityLbSetting.failover[0]"]),
            ("failover: [{from: a, to: '*'}]", &["E trafficPolicy.loadBalancer.localityLbSetting.failover[0]"]),
            ("failoverPriority: [topology.kubernetes.io/region, x]", &[]),
            ("failover: [{from: a, to: b}], failoverPriority: [x]", &[]),
            (
                "failover: [{from: a, to: b}], failoverPriority: [x, topology.kubernetes.io/region=c]",
                &["E trafficPolicy.loadBalancer.localityLbSetting.failoverPriority[1]"],
            ),
        ],
    );
    // Failover needs ejections, which a subset inherits and a port doesn't.
    let failover = "loadBalancer: {localityLbSetting: {failover: [{from: a, to: b}]}}";
    let frame = format!(
        "{{host: a.b, trafficPolicy: {{connectionPool: {{tcp: {{}}}}<>}}, \
                         subsets: [{{name: v1, trafficPolicy: {{{failover}}}}}]}}"
    );
    let port = format!(", outlierDetection: {{}}, portLevelSettings: [{{port: {{number: 1}}, {failover}}}]");
    table(
        NETWORKING,
        "DestinationRule",
        &frame,
        &[
            ("", &["W subsets[0].trafficPolicy.loadBalancer.localityLbSetting"]),
            (", outlierDetection: {}", &[]),
            (&port, &["W trafficPolicy.portLevelSettings[0].loadBalancer.localityLbSetting"]),
        ],
    );
}

#[test]
fn rules_of_service_entries() {
    let port = "ports: [{number: 80, name: http, protocol: HTTP}]";
    let address = "{address: 10.0.0.1}";
    let rows: &[(String, &[&str])] = &[
        (format!("{port}, resolution: DNS"), &["E hosts"]),
        (format!("hosts: ['*'], {port}"), &["E hosts[0]"]),
        (format!("hosts: ['*.a.b'], {port}, resolution: DNS"), &["E hosts[0]"]),
        (format!("hosts: ['*.a.b'], {port}, resolution: DNS, endpoints: [{{address: c.d}}]"), &[]),
        (format!("hosts: [a.b], {port}, endpoints: [{{address: 10.0.0.1}}]"), &["E endpoints"]),
        (
            format!("hosts: [a.b], {port}, resolution: STATIC, endpoints: [{{address: c.d}}]"),
            &["E endpoints[0].address"],
        ),
        (
            format!(
                "hosts: [a.b], {port}, resolution: STATIC, endpoints: [{{address: 10.0.0.1, ports: {{https: 1}}}}]"
            ),
            &["E endpoints[0].ports.https"],
        ),
        (format!("hosts: [a.b], {port}, resolution: STATIC, endpoints: [{{address: 'unix:///a'}}]"), &[]),
        (format!("hosts: [a.b], {port}, addresses: [10.0.0.0/8], resolution: DNS"), &["E addresses[0]"]),
        (
            "hosts: [a.b], ports: [{number: 80, name: a}, {number: 80, name: a}]".into(),
            &["E ports[1].name", "E ports[1].number"],
        ),
        ("hosts: [a.b], ports: [{number: 80, name: a, protocol: QUIC}]".into(), &["E ports[0].protocol"]),
        (
            "hosts: [a.b, c.d], ports: [{number: 80, name: a, protocol: TCP}], resolution: DNS".into(),
            &["E ports[0].protocol"],
        ),
        (format!("hosts: [a.b], {port}, resolution: DYNAMIC_DNS"), &["E hosts[0]"]),
        (format!("hosts: ['*.a.b', '*c.d'], {port}, resolution: DYNAMIC_DNS"), &[]),
        (format!("hosts: ['*.a.b'], {port}, resolution: DYNAMIC_DNS, addresses: [10.0.0.1]"), &["E addresses"]),
        (format!("hosts: ['*.a.b'], {port}, resolution: DYNAMIC_DNS, endpoints: [{address}]"), &["E endpoints"]),
        (
            "hosts: ['*.a.b'], resolution: DYNAMIC_DNS, ports: [{number: 1, name: a, protocol: TLS}, \
             {number: 2, name: b, protocol: grpc}, {number: 3, name: c, protocol: HTTP2}, \
             {number: 4, name: d, protocol: HTTPS}, {number: 5, name: e, protocol: TCP}, {number: 6, name: f}]"
                .into(),
            &["E ports[3].protocol", "E ports[4].protocol", "E ports[5].protocol"],
        ),
        (format!("hosts: ['*c.d'], {port}"), &["W hosts[0]"]),
        (format!("hosts: ['a b'], {port}"), &["E hosts[0]"]),
        (format!("hosts: [a.b], {port}, resolution: SOMEHOW"), &["E resolution"]),
        (format!("hosts: [a.b], {port}, workloadSelector: {{labels: {{a: b}}}}"), &["W workloadSelector"]),
        (format!("hosts: [a.b], {port}, resolution: STATIC, workloadSelector: {{}}"), &["W workloadSelector"]),
        (
            format!("hosts: [a.b], {port}, resolution: STATIC, workloadSelector: {{labels: {{a: 'b*'}}}}"),
            &["E workloadSelector.labels.a"],
        ),
        (
            format!(
                "hosts: [a.b], {port}, resolution: STATIC, workloadSelector: {{labels: {{a: b}}}}, endpoints: [{address}]"
            ),
            &["E endpoints"],
        ),
        (format!("hosts: [a.b], {port}, addresses: [nowhere]"), &["E addresses[0]"]),
        (format!("hosts: [a.b], {port}, addresses: [{}]", "1".repeat(65)), &["E addresses[0]"]),
        (
            format!("hosts: [a.b], {port}, resolution: DNS_ROUND_ROBIN, endpoints: [{address}, {{address: c.d}}]"),
            &["E endpoints"],
        ),
        (format!("hosts: [a.b], {port}, resolution: DNS, endpoints: [{{address: a_b}}]"), &["E endpoints[0].address"]),
        (
            "hosts: [a.b], ports: [{number: 0, name: a_b, targetPort: 65536}]".into(),
            &["E ports[0].number", "E ports[0].name", "E ports[0].targetPort"],
        ),
        (
            format!(
                "hosts: [{}], {port}, resolution: DNS",
                (0..257).map(|number| format!("a{number}.b")).collect::<Vec<_>>().join(", ")
            ),
            &["E hosts"],
        ),
        (format!("hosts: [a.b], {port}, exportTo: ['~']"), &[]),
    ];
    for (row, expected) in rows {
        table(NETWORKING, "ServiceEntry", "{<>}", &[(row, expected)]);
    }
    let waypoint = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a, labels: \
                    {istio.io/use-waypoint: w}}\nspec: {hosts: ['*.a.b'], location: MESH_INTERNAL, resolution: DYNAMIC_DNS, \
                    ports: [{number: 80, name: http, protocol: HTTP}]}\n";
    let findings = |text: &str| -> Vec<String> {
        let parsed = parse_text("t.yaml", text);
        parsed.iter().flat_map(|parsed| &parsed.diagnostics).map(|found| found.path.clone()).collect()
    };
    assert_eq!(findings(waypoint), ["spec.location"]);
    assert_eq!(findings(&waypoint.replace("MESH_INTERNAL", "MESH_EXTERNAL")), [""; 0]);
}

/// §10.11.
#[test]
fn rules_of_workload_entries() {
    let long = |length: usize| "a".repeat(length);
    let ports = |number: u32| (1..=number).map(|port| format!("p{port}: {port}")).collect::<Vec<_>>().join(", ");
    let rows: &[(String, &[&str])] = &[
        (String::new(), &["E address"]),
        ("network: n".into(), &["W address"]),
        ("address: a.b".into(), &[]),
        ("address: '::1', locality: a/b/c, labels: {a: b}, serviceAccount: s, weight: 0".into(), &[]),
        ("address: a_b".into(), &["E address"]),
        ("address: 'unix:///run/s'".into(), &[]),
        ("address: 'unix://@s'".into(), &[]),
        ("address: 'unix://s'".into(), &["E address"]),
        ("address: 'unix:///run/s', ports: {a: 1}".into(), &["E ports"]),
        ("address: a.b, ports: {a_b: 1, c: 0}".into(), &["E ports.a_b", "E ports.c"]),
        ("address: a.b, labels: {a: 'b c'}".into(), &["E labels.a"]),
        (format!("address: 'unix:///{}'", long(250)), &["E address"]),
        (format!("address: a.b, network: {}, locality: {}", long(2048), long(2048)), &[]),
        (format!("address: a.b, network: {}, locality: {}", long(2049), long(2049)), &["E network", "E locality"]),
        (format!("address: a.b, serviceAccount: {}", long(254)), &["E serviceAccount"]),
        (format!("address: a.b, ports: {{{}}}", ports(128)), &[]),
        (format!("address: a.b, ports: {{{}}}", ports(129)), &["E ports"]),
    ];
    for (row, expected) in rows {
        table(NETWORKING, "WorkloadEntry", "{<>}", &[(row, expected)]);
    }
}

#[test]
fn rules_of_policies() {
    table(
        "security.istio.io/v1",
        "AuthorizationPolicy",
        "{<>}",
        &[
            ("", &[]),
            ("action: CUSTOM", &["E provider"]),
            ("action: DENY, provider: {name: a}", &["E provider"]),
            ("rules: [{from: []}]", &["E rules[0].from"]),
            ("rules: [{to: [{operation: {ports: [http]}}]}]", &["E rules[0].to[0].operation.ports[0]"]),
            ("rules: [{when: [{key: 'request.headers[x]'}]}]", &["E rules[0].when[0]"]),
            ("selector: {}, targetRefs: [{kind: Gateway, name: a}]", &["E spec"]),
        ],
    );
    table(
        "security.istio.io/v1",
        "RequestAuthentication",
        "{jwtRules: [{<>}]}",
        &[
            ("", &["E jwtRules[0].issuer"]),
            ("issuer: a", &[]),
            ("jwksUri: 'ftp://a'", &["E jwtRules[0].jwksUri"]),
            (
                "issuer: a, outputClaimToHeaders: [{header: 'x y', claim: c}]",
                &["E jwtRules[0].outputClaimToHeaders[0].header"],
            ),
        ],
    );
    let table = |row| check("security.istio.io/v1", "PeerAuthentication", row);
    assert_eq!(table("{portLevelMtls: {80: {mode: STRICT}}}"), ["E portLevelMtls"]);
}
