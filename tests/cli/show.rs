//! `routes`, `version`, `completions`, `echo`, `--help`, and options by environment.

use std::process::Command;

use serde_json::Value;

use super::{GATEWAY, directory};
use crate::harness::client::{Http1, Http2};
use crate::harness::eventually;
use crate::harness::peer;
use crate::harness::process::{Process, fairlead, run, stdout};

const SHOP: &str = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: shop}
spec:
  hosts: [shop.example.com]
  gateways: [web]
  http:
  - name: cart
    match: [{uri: {exact: /cart}, method: {exact: POST}}]
    route: [{destination: {host: cart.internal}}]
  - name: old
    match: [{uri: {prefix: /old/}}]
    redirect: {uri: /new/, redirectCode: 308}
  - name: everything
    route:
    - {destination: {host: cart.internal}, weight: 90}
    - {destination: {host: blue.internal}, weight: 10}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: services, namespace: shop}
spec:
  hosts: [cart.internal, blue.internal]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: 192.0.2.7, ports: {http: 8080}}]
";

#[tokio::test]
async fn routes_as_table_and_json() {
    let place = directory(&[("gateway.yaml", GATEWAY), ("shop.yaml", SHOP)]);
    let routes = |format: &str| {
        let mut command = fairlead(&["routes", "config", "--format", format]);
        command.current_dir(place.path());
        command
    };
    let table = stdout(routes("table")).await;
    // Everything under the names that Istio gives it, routes in order.
    let mut rest = table.as_str();
    for part in [
        "80",
        "http.80",
        "shop/web",
        "shop.example.com:80",
        "shop/shop",
        "cart",
        "/cart",
        "POST",
        "outbound|80||cart.internal",
        "old",
        "/old/",
        "308",
        "everything",
        "outbound|80||cart.internal",
        "90",
        "outbound|80||blue.internal",
        "10",
        "outbound|80||blue.internal",
        "192.0.2.7:8080",
    ] {
        let at = rest.find(part).unwrap_or_else(|| panic!("no {part:?} from here on:\n{rest}\n--- of\n{table}"));
        rest = &rest[at + part.len()..];
    }

    let json: Value = serde_json::from_str(&stdout(routes("json")).await).expect("JSON");
    let listener = &json["listeners"][0];
    assert_eq!(listener["port"], 80);
    let host = &listener["hosts"][0];
    assert_eq!(host["domain"], "shop.example.com");
    let names: Vec<_> =
        host["routes"].as_array().unwrap().iter().map(|route| route["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["cart", "old", "everything"]);
    let weights: Vec<_> = host["routes"][2]["clusters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|cluster| (cluster["cluster"].as_str().unwrap(), cluster["weight"].as_u64().unwrap()))
        .collect();
    assert_eq!(weights, [("outbound|80||cart.internal", 90), ("outbound|80||blue.internal", 10)]);
    let clusters: Vec<_> =
        json["clusters"].as_array().unwrap().iter().map(|cluster| cluster["name"].as_str().unwrap()).collect();
    assert_eq!(clusters, ["outbound|80||blue.internal", "outbound|80||cart.internal"]);
}

#[tokio::test]
async fn routes_of_a_directory_with_errors() {
    let broken = SHOP.replace("redirectCode: 308", "redirectCode: soon");
    let place = directory(&[("gateway.yaml", GATEWAY), ("shop.yaml", &broken)]);
    let mut command = fairlead(&["routes", "config"]);
    command.current_dir(place.path());
    let output = run(command).await;
    // What is right is shown, what is wrong told.
    assert!(String::from_utf8_lossy(&output.stdout).contains("http.80"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("spec.http[1].redirect.redirectCode"));
}

#[tokio::test]
async fn version() {
    let expected = format!("fairlead {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(stdout(fairlead(&["version"])).await, expected);
    assert_eq!(stdout(fairlead(&["--version"])).await, expected);
}

#[tokio::test]
async fn help_names_every_command_and_variable() {
    let help = stdout(fairlead(&["--help"])).await;
    for command in ["run", "validate", "routes", "egress", "demo", "echo", "version", "completions"] {
        assert!(help.contains(&format!("\n  {command} ")), "{command} isn't in\n{help}");
    }
    let help = stdout(fairlead(&["run", "--help"])).await;
    // design.md §6.
    for option in [
        "config",
        "certs",
        "label",
        "namespace",
        "name",
        "service-account",
        "cluster-id",
        "domain",
        "trust-domain",
        "locality",
        "identity",
        "bind",
        "port-map",
        "admin",
        "status",
        "metrics",
        "workers",
        "accept-invalid",
        "access-log",
        "log",
        "log-format",
    ] {
        let variable = format!("FAIRLEAD_{}", option.to_uppercase().replace('-', "_"));
        assert!(help.contains(&format!("--{option}")) && help.contains(&variable), "--{option}, {variable} in\n{help}");
    }
}

#[tokio::test]
async fn completions() {
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(fairlead(&["completions", shell])).await;
        assert!(script.contains("accept-invalid"), "{shell}");
    }
    if peer::available("bash") {
        // It completes: the script is loaded and asked as the shell would.
        let script = stdout(fairlead(&["completions", "bash"])).await;
        let ask =
            "\nCOMP_WORDS=(fairlead val); COMP_CWORD=1; _fairlead fairlead val fairlead; echo \"${COMPREPLY[*]}\"";
        let mut bash = Command::new("bash");
        bash.args(["--norc", "-c", &format!("{script}{ask}")]);
        assert_eq!(stdout(bash).await.trim(), "validate");
    }
}

#[tokio::test]
async fn options_by_environment() {
    let place = directory(&[("gateway.yaml", GATEWAY), ("shop.yaml", SHOP)]);
    let ready = place.path().join("ready.json");
    let mut command = fairlead(&["run"]);
    command
        .env("FAIRLEAD_CONFIG", place.path().join("config"))
        .env("FAIRLEAD_READY_FILE", &ready)
        .env("FAIRLEAD_PORT_MAP", "80:0")
        .env("FAIRLEAD_BIND", "127.0.0.1")
        .env("FAIRLEAD_ADMIN", "off")
        .env("FAIRLEAD_STATUS", "127.0.0.1:0")
        .env("FAIRLEAD_METRICS", "off")
        .env("FAIRLEAD_WORKERS", "1")
        .env("FAIRLEAD_ACCESS_LOG", "json");
    let gateway = Process::start(command);
    let text = eventually("it is ready", || async { std::fs::read_to_string(&ready).ok() }).await;
    let said: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&said["ready"], &said["admin"], &said["metrics"]), (&true.into(), &Value::Null, &Value::Null));
    let address = said["listeners"][0]["address"].as_str().unwrap().parse().unwrap();
    let answer = Http1::connect(address).await.get("shop.example.com", "/old/x").await;
    assert_eq!((answer.status, answer.header("location")), (308, "http://shop.example.com/new/"));
    let line = gateway.prints("\"path\":\"/old/x\"").await;
    assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["response_code"], 308);
}

#[tokio::test]
async fn echo() {
    let mut echo = Process::start(fairlead(&["echo", "--bind", "127.0.0.1:0", "--name", "cart", "--version", "v7"]));
    let line = echo.prints("listens on http://").await;
    let address = line.rsplit("http://").next().unwrap().parse().unwrap();
    let mut client = Http1::connect(address).await;
    let answer =
        client.exchange("POST /a?b=c HTTP/1.1\r\nhost: a.test\r\nx-own: 7\r\ncontent-length: 2\r\n\r\nhi").await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"));
    let report: Value = serde_json::from_slice(&answer.body).expect("JSON");
    assert_eq!((&report["name"], &report["version"]), (&"cart".into(), &"v7".into()));
    assert_eq!((&report["method"], &report["path"]), (&"POST".into(), &"/a?b=c".into()));
    assert_eq!(report["body"]["text"], "hi");
    assert!(report["headers"].as_array().unwrap().contains(&serde_json::json!(["x-own", "7"])), "{report}");
    assert_eq!(client.get("a.test", "/?status=503").await.status, 503);
    assert_eq!(client.get("a.test", "/?size=100k").await.body.len(), 100 * 1024);
    let failing: Vec<u16> =
        [client.get("a.test", "/f?fail=1").await.status, client.get("a.test", "/f?fail=1").await.status].into();
    assert_eq!(failing, [503, 200]);
    let answer = Http2::connect(address).await.get("a.test", "/").await;
    assert_eq!(answer.status, 200);
    echo.signal("INT");
    assert_eq!(echo.exit().await.code(), Some(0));
}
