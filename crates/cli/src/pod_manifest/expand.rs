//! Expands `$(NAME)` in commands, arguments, variables and sub-paths by Kubernetes' rules: `$$` is a dollar sign, a name
//! that is not known stays as it is written, and any other `$` is itself.

/// Replaces each reference that `lookup` knows.
pub fn expand<'a>(text: &str, lookup: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        expanded.push_str(&rest[..dollar]);
        let after = &rest[dollar + 1..];
        let reference = after.strip_prefix('(').and_then(|inner| inner.split_once(')'));
        rest = if let Some(escaped) = after.strip_prefix('$') {
            expanded.push('$');
            escaped
        } else if let Some((name, behind)) = reference {
            match lookup(name) {
                Some(value) => expanded.push_str(value),
                None => expanded.push_str(&format!("$({name})")),
            }
            behind
        } else {
            expanded.push('$');
            after
        };
    }
    expanded.push_str(rest);
    expanded
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn references_are_expanded_by_the_rules_of_kubernetes() {
        let lookup = |name: &str| match name {
            "A" => Some("1"),
            "B" => Some("$(A)"),
            "EMPTY" => Some(""),
            _ => None,
        };
        for (text, expected) in [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(UNKNOWN)-$(A)", "$(UNKNOWN)-1"),
            ("$(B)", "$(A)"),
            ("$(EMPTY)", ""),
            ("$A ${A}", "$A ${A}"),
            ("$(A", "$(A"),
            ("cost: 5$", "cost: 5$"),
            ("$", "$"),
            ("$()", "$()"),
            ("ä$(A)ö", "ä1ö"),
            ("", ""),
        ] {
            assert_eq!(expand(text, lookup), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_text_without_references_stays_as_it_is(text in "[^$]*") {
            prop_assert_eq!(expand(&text, |_| Some("x")), text);
        }

        #[test]
        fn escaping_every_dollar_keeps_any_text(text in "\\PC*") {
            prop_assert_eq!(expand(&text.replace('$', "$$"), |_| Some("x")), text);
        }

        #[test]
        fn names_that_nobody_knows_are_left_alone(text in "([$]?[(]?[a-z]?[)]?)*") {
            prop_assume!(!text.contains("$$"));
            prop_assert_eq!(expand(&text, |_| None), text);
        }
    }
}
