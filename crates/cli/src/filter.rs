//! The filters of lists, applied here so that they mean the same on every runtime.

use std::collections::HashMap;

use crate::failure::Failure;

/// `key=value`, or `key` for any value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelFilter {
    key: String,
    value: Option<String>,
}

impl std::str::FromStr for LabelFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').map_or((text, None), |(key, value)| (key, Some(value)));
        if key.is_empty() {
            return Err("write key=value or key".to_owned());
        }
        Ok(Self { key: key.to_owned(), value: value.map(str::to_owned) })
    }
}

/// Whether all filters hold.
pub fn labels_match(filters: &[LabelFilter], labels: &HashMap<String, String>) -> bool {
    filters.iter().all(|filter| match (labels.get(&filter.key), &filter.value) {
        (Some(_), None) => true,
        (Some(found), Some(wanted)) => found == wanted,
        (None, _) => false,
    })
}

/// Whether a name passes: a pattern with `*` must cover the whole name, one without may stand anywhere in it.
pub fn name_matches(pattern: Option<&str>, name: &str) -> bool {
    match pattern {
        None => true,
        Some(pattern) if pattern.contains('*') => glob_matches(pattern, name),
        Some(part) => name.contains(part),
    }
}

fn glob_matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        match rest.find(part) {
            Some(place) => rest = &rest[place + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// Keeps the newest `count` of a list and puts the newest first.
pub fn newest_first<T>(items: &mut Vec<T>, count: Option<usize>, created_at: impl Fn(&T) -> i64) {
    items.sort_by_key(|item| std::cmp::Reverse(created_at(item)));
    if let Some(count) = count {
        items.truncate(count);
    }
}

/// A word for a state, or the list of words.
pub fn state<T: Copy>(typed: &str, words: &[(&str, T)]) -> Result<T, Failure> {
    let found = words.iter().find(|(word, _)| word.eq_ignore_ascii_case(typed));
    found.map(|(_, state)| *state).ok_or_else(|| {
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        Failure::usage(format!("--state: {typed:?} is none of {}", known.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_in_part_or_by_pattern() {
        assert!(name_matches(None, "web"));
        assert!(name_matches(Some("eb"), "web-1"));
        assert!(!name_matches(Some("db"), "web-1"));
        assert!(name_matches(Some("web*"), "web-1"));
        assert!(!name_matches(Some("web*"), "my-web-1"));
        assert!(name_matches(Some("*b*1"), "web-1"));
        assert!(!name_matches(Some("*b*2"), "web-1"));
        assert!(name_matches(Some("*"), ""));
        assert!(!name_matches(Some("ab*ba"), "aba"));
    }

    #[test]
    fn labels_match_by_key_or_by_key_and_value() {
        let labels = HashMap::from([("app".to_owned(), "web".to_owned())]);
        let filter = |text: &str| text.parse::<LabelFilter>().unwrap();
        assert!(labels_match(&[filter("app=web"), filter("app")], &labels));
        assert!(!labels_match(&[filter("app=db")], &labels));
        assert!(!labels_match(&[filter("tier")], &labels));
        assert!(filter("a=b=c").value.as_deref() == Some("b=c"));
        assert!("=x".parse::<LabelFilter>().is_err());
    }

    #[test]
    fn the_newest_come_first_and_only_so_many() {
        let mut items = vec![1_i64, 3, 2];
        newest_first(&mut items, Some(2), |item| *item);
        assert_eq!(items, [3, 2]);
    }
}
