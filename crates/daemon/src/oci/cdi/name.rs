//! Names of devices: `vendor/class=device`, and where a container asks for them.

use std::collections::BTreeMap;

/// A container's annotations with this beginning hold names, separated by commas.
pub const ANNOTATION_PREFIX: &str = "cdi.k8s.io/";

/// Whether a name is fully qualified; the error says what is missing or wrong.
pub fn check(name: &str) -> Result<(), String> {
    let (kind, device) = name.split_once('=').ok_or("is not like vendor.com/class=device")?;
    check_kind(kind)?;
    check_device(device)
}

/// `vendor/class`
pub(super) fn check_kind(kind: &str) -> Result<(), String> {
    let (vendor, class) = kind.split_once('/').ok_or_else(|| format!("{kind:?} is not like vendor.com/class"))?;
    for (what, word) in [("vendor", vendor), ("class", class)] {
        let good = word.starts_with(|c: char| c.is_ascii_alphabetic()) && is_word(word, &['_', '-', '.']);
        if !good {
            let rule = "letters, digits, _, - and ., with a letter first and no sign last";
            return Err(format!("the {what} {word:?} is not made of {rule}"));
        }
    }
    Ok(())
}

/// The part behind `=`.
pub(super) fn check_device(device: &str) -> Result<(), String> {
    if is_word(device, &['_', '-', '.', ':']) {
        return Ok(());
    }
    Err(format!("the device {device:?} is not made of letters, digits, _, -, . and :, with no sign first or last"))
}

fn is_word(word: &str, signs: &[char]) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric();
    word.starts_with(plain) && word.ends_with(plain) && word.chars().all(|c| plain(c) || signs.contains(&c))
}

/// The names in annotations, each with the key that holds it.
pub fn in_annotations(annotations: &BTreeMap<String, String>) -> impl Iterator<Item = (&str, &str)> {
    let ours = annotations.iter().filter(|(key, _)| key.starts_with(ANNOTATION_PREFIX));
    ours.flat_map(|(key, names)| names.split(',').map(move |name| (key.as_str(), name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_full_names_are_names() {
        for good in ["vendor.com/class=device", "v/c=0", "nvidia.com/gpu=GPU-1:2.3_4", "a-b.c/d_e=f", "V/C.x=9:9"] {
            check(good).expect(good);
        }
        for bad in [
            "",
            "device",
            "class=device",
            "/class=device",
            "vendor/=device",
            "vendor/class=",
            "vendor/class",
            "1vendor/class=d",
            "vendor/1class=d",
            "vendor./class=d",
            "vendor/class-=d",
            "vendor/class=-d",
            "vendor/class=d:",
            "vendor/class=a b",
            "ven dor/class=d",
            "vendor/class/more=d",
            "vendor/class=d=e",
            "vendör/class=d",
            "vendor/class=d,e",
        ] {
            check(bad).expect_err(bad);
        }
    }

    #[test]
    fn annotations_of_the_right_key_hold_lists() {
        let annotations = BTreeMap::from([
            ("cdi.k8s.io/plugin_b".to_owned(), "v/c=2".to_owned()),
            ("cdi.k8s.io/plugin_a".to_owned(), "v/c=0,v/c=1".to_owned()),
            ("other/cdi.k8s.io/x".to_owned(), "v/c=3".to_owned()),
        ]);
        let found: Vec<_> = in_annotations(&annotations).collect();
        assert_eq!(
            found,
            [("cdi.k8s.io/plugin_a", "v/c=0"), ("cdi.k8s.io/plugin_a", "v/c=1"), ("cdi.k8s.io/plugin_b", "v/c=2")]
        );
        assert_eq!(in_annotations(&BTreeMap::from([("cdi.k8s.io/x".into(), String::new())])).count(), 1);
    }
}
