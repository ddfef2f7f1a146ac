//! `fairlead validate`: what it finds, how it says so, and with which exit code.

use serde_json::Value;

use super::{GATEWAY, directory};
use crate::harness::process::{fairlead, run};
use crate::harness::table::Table;

const GOOD: &str = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: good
  namespace: shop
spec:
  hosts: [good.example.com]
  gateways: [web]
  http:
  - directResponse: {status: 200}
";

/// Two errors: a duration that is none, a field that doesn't exist.
const BAD: &str = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: bad
  namespace: shop
spec:
  hosts: [bad.example.com]
  gateways: [web]
  http:
  - timeout: soon
    directRespons:
      status: 200
";

/// A warning: the gateway doesn't exist.
const DOUBTFUL: &str = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: doubtful
  namespace: shop
spec:
  hosts: [doubtful.example.com]
  gateways: [nowhere]
  http:
  - directResponse: {status: 200}
";

const UNREADABLE: &str = "kind: [VirtualService\n";

/// Names and contents.
type Files<'a> = &'a [(&'a str, &'a str)];

struct Said {
    code: Option<i32>,
    out: String,
    errors: String,
}

/// Runs `fairlead validate config` with these files and further arguments.
async fn validate(files: Files<'_>, arguments: &[&str]) -> Said {
    let place = directory(files);
    let mut command = fairlead(&["validate"]);
    command.args(arguments).current_dir(place.path());
    let output = run(command).await;
    Said {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        errors: String::from_utf8(output.stderr).unwrap(),
    }
}

#[tokio::test]
async fn exit_codes() {
    let mut table = Table::new("design.md §6, exit codes of validate");
    let good = [("gateway.yaml", GATEWAY), ("good.yaml", GOOD)];
    let doubtful = [("gateway.yaml", GATEWAY), ("doubtful.yaml", DOUBTFUL)];
    let bad = [("gateway.yaml", GATEWAY), ("bad.yaml", BAD), ("good.yaml", GOOD)];
    let unreadable = [("gateway.yaml", GATEWAY), ("x.yaml", UNREADABLE)];
    let rows: [(&str, Files<'_>, &[&str], i32); 13] = [
        ("clean", &good, &["config"], 0),
        ("clean, strict", &good, &["config", "--strict"], 0),
        ("clean, one file", &good, &["config/gateway.yaml"], 0),
        ("clean, several places", &good, &["config/gateway.yaml", "config/good.yaml"], 0),
        ("empty directory", &[], &["config"], 0),
        ("warnings", &doubtful, &["config"], 0),
        ("warnings, strict", &doubtful, &["config", "--strict"], 1),
        ("errors", &bad, &["config"], 1),
        ("errors, as JSON", &bad, &["config", "--format", "json"], 1),
        ("no YAML", &unreadable, &["config"], 1),
        ("no such directory", &good, &["elsewhere"], 2),
        ("no directory named", &good, &[], 2),
        ("no such option", &good, &["config", "--lenient"], 2),
    ];
    for (name, files, arguments, code) in rows {
        table.row(name);
        let said = validate(files, arguments).await;
        table.check("exit code", &Some(code), &said.code);
        match code {
            2 => table.check("explanation", &true, &!said.errors.is_empty()),
            _ => table.check("standard error", "", said.errors.as_str()),
        };
    }
    table.finish();
}

#[tokio::test]
async fn text_shows_the_place_and_what_to_do() {
    let files = [("gateway.yaml", GATEWAY), ("bad.yaml", BAD), ("doubtful.yaml", DOUBTFUL)];
    let said = validate(&files, &["config"]).await;
    // The shape is Istio's, the excerpt rustc's; no escape sequences, since nobody looks at a terminal here.
    for fragment in [
        "Error [GW0005] (VirtualService shop/bad config/bad.yaml:10) spec.http[0].timeout:\n  ",
        "`soon`",
        " --> config/bad.yaml:10:14\n",
        "10 |   - timeout: soon\n",
        "   |              ^^^^\n",
        "Error [GW0004] (VirtualService shop/bad config/bad.yaml:11) spec.http[0].directRespons:\n  ",
        "11 |     directRespons:\n",
        "   |     ^^^^^^^^^^^^^\n",
        "  help: did you mean `directResponse`?\n",
        "Warning [IST0101] (VirtualService shop/doubtful config/doubtful.yaml:8) spec.gateways[0]:\n  ",
        "\n2 errors, 1 warning\n",
    ] {
        assert!(said.out.contains(fragment), "{fragment:?} isn't in\n{}", said.out);
    }
    assert!(!said.out.contains('\u{1b}'), "{}", said.out);

    let said = validate(&[("gateway.yaml", GATEWAY)], &["config"]).await;
    assert_eq!(said.out, "0 errors, 0 warnings\n");
}

#[tokio::test]
async fn everything_is_told_in_one_round() {
    let files =
        [("a.yaml", BAD), ("b/c/d.yml", UNREADABLE), ("e.json", "{\"apiVersion\": 7}"), ("notes.txt", "no: [yaml")];
    let said = validate(&files, &["config"]).await;
    assert_eq!(said.code, Some(1));
    for file in ["config/a.yaml:10", "config/a.yaml:11", "config/b/c/d.yml:", "config/e.json:"] {
        assert!(said.out.contains(file), "{file} isn't in\n{}", said.out);
    }
    assert!(!said.out.contains("notes.txt"), "{}", said.out);
}

#[tokio::test]
async fn json() {
    let files = [("gateway.yaml", GATEWAY), ("bad.yaml", BAD), ("doubtful.yaml", DOUBTFUL)];
    let said = validate(&files, &["config", "--format", "json"]).await;
    let findings: Value = serde_json::from_str(&said.out).expect("JSON");
    let findings = findings.as_array().expect("a list");
    let brief: Vec<_> = findings
        .iter()
        .map(|finding| {
            let place = format!("{}:{}:{}", finding["file"].as_str().unwrap(), finding["line"], finding["column"]);
            (finding["severity"].as_str().unwrap(), finding["code"].as_str().unwrap(), place)
        })
        .collect();
    assert_eq!(
        brief,
        [
            ("error", "GW0005", "config/bad.yaml:10:14".to_owned()),
            ("error", "GW0004", "config/bad.yaml:11:5".to_owned()),
            ("warning", "IST0101", "config/doubtful.yaml:8:14".to_owned()),
        ]
    );
    let first = &findings[0];
    assert_eq!(
        (&first["kind"], &first["namespace"], &first["name"]),
        (&"VirtualService".into(), &"shop".into(), &"bad".into())
    );
    assert_eq!(first["path"], "spec.http[0].timeout");
    assert!(first["message"].as_str().is_some_and(|message| message.contains("soon")), "{first}");

    let said = validate(&[("gateway.yaml", GATEWAY)], &["config", "--format", "json"]).await;
    assert_eq!(serde_json::from_str::<Value>(&said.out).expect("JSON"), Value::Array(Vec::new()));
}

#[tokio::test]
async fn sarif() {
    let files = [("gateway.yaml", GATEWAY), ("bad.yaml", BAD), ("doubtful.yaml", DOUBTFUL)];
    let said = validate(&files, &["config", "--format", "sarif"]).await;
    assert_eq!(said.code, Some(1));
    let log: Value = serde_json::from_str(&said.out).expect("JSON");
    // SARIF 2.1.0 §3.13 and §3.14: version and runs, a tool with a driver, results that name its rules.
    assert_eq!(log["version"], "2.1.0");
    let run = &log["runs"][0];
    assert_eq!(run["tool"]["driver"]["name"], "fairlead");
    let rules: Vec<_> = run["tool"]["driver"]["rules"].as_array().unwrap().iter().map(|rule| &rule["id"]).collect();
    let results = run["results"].as_array().unwrap();
    let levels: Vec<_> = results.iter().map(|result| result["level"].as_str().unwrap()).collect();
    assert_eq!(levels, ["error", "error", "warning"]);
    for result in results {
        assert!(rules.contains(&&result["ruleId"]), "{result}");
        assert!(result["message"]["text"].as_str().is_some_and(|text| !text.is_empty()), "{result}");
        let place = &result["locations"][0]["physicalLocation"];
        let uri = place["artifactLocation"]["uri"].as_str().unwrap();
        assert!(uri.starts_with("config/") && uri.ends_with(".yaml"), "{uri}");
        assert!(place["region"]["startLine"].as_u64().is_some_and(|line| line > 0), "{result}");
    }
}

#[tokio::test]
async fn who_we_are_decides_what_is_selected() {
    // A Gateway of another workload is none of ours: then a VirtualService for it is about nothing, but not wrong.
    let place = directory(&[("gateway.yaml", GATEWAY), ("good.yaml", GOOD)]);
    for (label, listeners) in [("istio=ingressgateway", 1), ("istio=egressgateway", 0)] {
        let mut command = fairlead(&["routes", "config", "--format", "json", "--label", label]);
        command.current_dir(place.path());
        let output = run(command).await;
        let routes: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(routes["listeners"].as_array().map(Vec::len), Some(listeners), "{label}: {routes}");
    }
}
