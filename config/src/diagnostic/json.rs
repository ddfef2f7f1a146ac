//! Diagnostics for machines: one JSON object each, or a SARIF log.

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::{Code, Diagnostic, Severity};

impl Serialize for Diagnostic {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let location = self.location();
        let mut object = serializer.serialize_struct("Diagnostic", 11)?;
        object.serialize_field("severity", &self.severity)?;
        object.serialize_field("code", &self.code)?;
        object.serialize_field("file", &location.file.to_string_lossy())?;
        object.serialize_field("line", &location.line)?;
        object.serialize_field("column", &location.column)?;
        object.serialize_field("kind", &self.resource.as_ref().map(|resource| resource.kind))?;
        object.serialize_field("namespace", &self.resource.as_ref().map(|resource| &*resource.namespace))?;
        object.serialize_field("name", &self.resource.as_ref().map(|resource| &*resource.name))?;
        object.serialize_field("path", &self.path)?;
        object.serialize_field("message", &self.message)?;
        object.serialize_field("help", &self.help)?;
        object.end()
    }
}

/// All diagnostics as one SARIF 2.1.0 log, which code hosts and editors show at the line.
///
/// Source: <https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html>
pub fn sarif<'d>(diagnostics: impl IntoIterator<Item = &'d Diagnostic>) -> Value {
    let rules: Vec<Value> =
        Code::ALL.iter().map(|code| json!({"id": code.id(), "shortDescription": {"text": code.title()}})).collect();
    let results: Vec<Value> = diagnostics.into_iter().map(result).collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {"name": "fairlead", "version": env!("CARGO_PKG_VERSION"), "rules": rules}},
            "columnKind": "unicodeCodePoints",
            "results": results,
        }],
    })
}

fn result(diagnostic: &Diagnostic) -> Value {
    let location = diagnostic.location();
    let level = match diagnostic.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Note => "note",
    };
    let mut text = diagnostic.message.clone();
    if let Some(help) = &diagnostic.help {
        text.push_str("; help: ");
        text.push_str(help);
    }
    let mut place = json!({
        "physicalLocation": {
            "artifactLocation": {"uri": uri(&location.file.to_string_lossy())},
            "region": {"startLine": location.line, "startColumn": location.column},
        },
    });
    if let Some(resource) = &diagnostic.resource {
        let mut name = resource.to_string();
        if !diagnostic.path.is_empty() {
            name.push(' ');
            name.push_str(&diagnostic.path);
        }
        place["logicalLocations"] = json!([{"fullyQualifiedName": name}]);
    }
    json!({"ruleId": diagnostic.code.id(), "level": level, "message": {"text": text}, "locations": [place]})
}

/// A path as a relative or `file` URI.
fn uri(path: &str) -> String {
    let mut uri = String::with_capacity(path.len() + 7);
    if path.starts_with('/') {
        uri.push_str("file://");
    }
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            uri.push(char::from(byte));
        } else {
            uri.push_str(&format!("%{byte:02X}"));
        }
    }
    uri
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::parse::parse_text;

    fn diagnostic() -> Diagnostic {
        let text = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec:\n  ports: 80\n";
        parse_text("my routes/a.yaml", text).remove(0).diagnostics.remove(0)
    }

    #[test]
    fn a_diagnostic_is_one_flat_object() {
        assert_eq!(
            serde_json::to_value(diagnostic()).ok(),
            Some(json!({
                "severity": "error", "code": "GW0005", "file": "my routes/a.yaml", "line": 5, "column": 10,
                "kind": "Service", "namespace": "shop", "name": "web", "path": "spec.ports",
                "message": "expected a list, found a number", "help": null,
            }))
        );
    }

    #[test]
    fn sarif_names_the_rule_the_place_and_the_field() {
        let diagnostics = [
            diagnostic(),
            Diagnostic::new(Severity::Warning, Code::EmptyFile, Arc::<Path>::from(Path::new("/etc/a.yaml")), "empty")
                .help("wait"),
        ];
        let log = sarif(&diagnostics);
        assert_eq!(log["version"], "2.1.0");
        let run = &log["runs"][0];
        assert_eq!(run["tool"]["driver"]["rules"].as_array().map(Vec::len), Some(Code::ALL.len()));
        assert_eq!(
            run["results"],
            json!([
                {
                    "ruleId": "GW0005", "level": "error", "message": {"text": "expected a list, found a number"},
                    "locations": [{
                        "physicalLocation": {
                            "artifactLocation": {"uri": "my%20routes/a.yaml"},
                            "region": {"startLine": 5, "startColumn": 10},
                        },
                        "logicalLocations": [{"fullyQualifiedName": "Service shop/web spec.ports"}],
                    }],
                },
                {
                    "ruleId": "GW0011", "level": "warning", "message": {"text": "empty; help: wait"},
                    "locations": [{
                        "physicalLocation": {
                            "artifactLocation": {"uri": "file:///etc/a.yaml"},
                            "region": {"startLine": 1, "startColumn": 1},
                        },
                    }],
                },
            ])
        );
    }
}
