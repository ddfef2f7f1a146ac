//! What a text that can't be read probably holds: a guess, and used only to close doors.

use std::sync::Arc;

use super::Suspect;
use crate::resource::Kind;

/// The security resources whose `kind:` stands in `text`, with the first name and namespace after it (or before, when
/// nothing follows).
pub(super) fn suspects(text: &str) -> Vec<Suspect> {
    let mut suspects = Vec::new();
    let words: Vec<(&str, &str)> = words(text).collect();
    for (index, (key, value)) in words.iter().enumerate() {
        if *key != "kind" {
            continue;
        }
        let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.is_security() && kind.as_str() == *value) else {
            continue;
        };
        let end =
            words[index + 1..].iter().position(|(key, _)| *key == "kind").map_or(words.len(), |end| index + 1 + end);
        let find = |wanted: &str| {
            let mut nearby = words[index..end].iter().chain(&words[..index]);
            nearby.find(|(key, _)| *key == wanted).map(|(_, value)| Arc::from(*value))
        };
        suspects.push(Suspect { kind, namespace: find("namespace"), name: find("name") });
    }
    suspects
}

/// `key: value` pairs of one word each, in YAML or JSON.
fn words(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.split(['\n', ',', '{', '}']).filter_map(|piece| {
        let (key, value) = piece.split_once(':')?;
        let key = key.trim_matches(|c: char| c.is_whitespace() || "\"'-".contains(c));
        let value =
            value.split(" #").next().unwrap_or(value).trim_matches(|c: char| c.is_whitespace() || "\"'".contains(c));
        (!key.is_empty() && !value.is_empty()).then_some((key, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn security_resources_are_seen_through_broken_yaml() {
        let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy # deny\nmetadata:\n  name: deny-all\n  namespace: shop\nspec: {rules: [\n";
        let expected =
            Suspect { kind: Kind::AuthorizationPolicy, namespace: Some("shop".into()), name: Some("deny-all".into()) };
        assert_eq!(suspects(text), [expected]);
    }

    #[test]
    fn json_is_seen_through_as_well() {
        let text = r#"{"kind": "RequestAuthentication", "metadata": {"name": "jwt"}, "spec": "#;
        let expected = Suspect { kind: Kind::RequestAuthentication, namespace: None, name: Some("jwt".into()) };
        assert_eq!(suspects(text), [expected]);
    }

    #[test]
    fn other_kinds_are_no_suspects() {
        assert_eq!(suspects("kind: VirtualService\nmetadata: {name: AuthorizationPolicy}\n"), []);
    }
}
