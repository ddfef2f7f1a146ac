//! `/config/status`, as tests ask it.

use serde_json::Value;

use super::gateway::Gateway;

/// What the gateway said about its configuration at one moment.
#[derive(Debug, Clone)]
pub struct Status(pub Value);

impl Status {
    pub async fn of(gateway: &Gateway) -> Self {
        Self(gateway.config_status().await)
    }

    /// State of each declaration of a resource, with the name of its file.
    pub fn states(&self, kind: &str, name: &str) -> Vec<(String, String)> {
        let mut states = Vec::new();
        for file in self.list("files") {
            let path = text(file, "path");
            let short = path.rsplit('/').next().unwrap_or_default();
            for resource in file["resources"].as_array().into_iter().flatten() {
                if resource["kind"] == kind && resource["name"] == name {
                    states.push((short.to_owned(), text(resource, "state")));
                }
            }
        }
        states
    }

    /// State of a resource that is declared once; empty if it isn't known.
    pub fn state(&self, kind: &str, name: &str) -> String {
        match &*self.states(kind, name) {
            [(_, state)] => state.clone(),
            [] => String::new(),
            states => panic!("{kind} {name} is declared more than once: {states:?}"),
        }
    }

    /// Diagnostics that are errors.
    pub fn errors(&self) -> Vec<Value> {
        self.list("diagnostics").iter().filter(|diagnostic| diagnostic["severity"] == "error").cloned().collect()
    }

    /// Security resources that can't be enforced.
    pub fn refusals(&self) -> &[Value] {
        self.list("refusals")
    }

    fn list(&self, name: &str) -> &[Value] {
        self.0[name].as_array().map(Vec::as_slice).unwrap_or_else(|| panic!("/config/status has no {name}: {}", self.0))
    }
}

/// A member that is a string.
pub fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_default().to_owned()
}
