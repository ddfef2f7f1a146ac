//! `exportTo`: which namespaces see a resource.
//!
//! Source: `reference/networking.md` §1.5.

/// How a resource is visible to a namespace, nearest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Visibility {
    /// It belongs to the namespace and is exported to nobody else.
    Private,
    /// It is exported to the namespace by name.
    Named,
    /// It is exported to everybody.
    Public,
}

/// How a resource of namespace `owner` is visible to `viewer`; `None` if it isn't. An empty list means `default`, and
/// an empty default means everybody.
pub(super) fn visibility(export_to: &[String], default: &[String], owner: &str, viewer: &str) -> Option<Visibility> {
    let export_to = if export_to.is_empty() { default } else { export_to };
    if export_to.is_empty() || export_to.iter().any(|namespace| namespace == "*") {
        return Some(Visibility::Public);
    }
    let sees = |namespace: &String| if namespace == "." { owner == viewer } else { namespace == viewer };
    match export_to.iter().any(sees) {
        true if owner == viewer => Some(Visibility::Private),
        true => Some(Visibility::Named),
        false => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports() {
        for (export_to, default, owner, expected) in [
            (&[][..], &[][..], "a", Some(Visibility::Public)),
            (&["*"], &["."], "a", Some(Visibility::Public)),
            (&["."], &[], "a", None),
            (&["."], &[], "edge", Some(Visibility::Private)),
            (&["edge"], &[], "edge", Some(Visibility::Private)),
            (&["edge"], &[], "a", Some(Visibility::Named)),
            (&["b", "edge"], &[], "a", Some(Visibility::Named)),
            (&["b"], &[], "a", None),
            (&["~"], &[], "edge", None),
            (&[], &["."], "a", None),
        ] {
            let list = |items: &[&str]| items.iter().map(|&item| item.to_owned()).collect::<Vec<_>>();
            assert_eq!(visibility(&list(export_to), &list(default), owner, "edge"), expected, "{export_to:?} {owner}");
        }
    }
}
