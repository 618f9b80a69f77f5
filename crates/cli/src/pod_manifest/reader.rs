//! Reads a manifest's objects field by field, so that no field is passed over in silence.
//!
//! A field that is read, ignored with a reason or refused with a reason is known; when an object is dropped, every field
//! left over is reported with the name that was probably meant. Problems are collected, not returned: a person wants
//! all of them at once.

use std::cell::RefCell;
use std::collections::BTreeMap;

use knarr_daemon::config::suggest;
use serde_json::{Map, Value};

/// What to do about fields that Kubernetes does not have, by the names of `kubectl apply --validate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Validation {
    /// They are errors.
    #[default]
    Strict,
    /// They are warnings.
    Warn,
    /// They are nothing.
    Ignore,
}

/// What reading a manifest found out besides its content.
#[derive(Debug, Default)]
pub struct Notes {
    validation: Validation,
    problems: RefCell<Vec<String>>,
    warnings: RefCell<Vec<String>>,
}

impl Notes {
    /// No notes yet.
    pub fn new(validation: Validation) -> Self {
        Self { validation, ..Self::default() }
    }

    /// The pod cannot be run as it is written.
    pub fn problem(&self, path: &str, message: impl std::fmt::Display) {
        self.problems.borrow_mut().push(format!("{path}: {message}"));
    }

    /// The pod runs, but not in every respect as written.
    pub fn warn(&self, path: &str, message: impl std::fmt::Display) {
        self.warnings.borrow_mut().push(format!("{path}: {message}"));
    }

    fn unknown(&self, path: &str, message: String) {
        match self.validation {
            Validation::Strict => self.problem(path, message),
            Validation::Warn => self.warn(path, message),
            Validation::Ignore => {}
        }
    }

    /// Problems, then warnings.
    pub fn into_parts(self) -> (Vec<String>, Vec<String>) {
        (self.problems.into_inner(), self.warnings.into_inner())
    }
}

/// One object of the manifest while it is being read.
#[derive(Debug)]
pub struct Object<'a> {
    path: String,
    fields: &'a Map<String, Value>,
    known: Vec<&'static str>,
    notes: &'a Notes,
}

impl<'a> Object<'a> {
    /// Begins to read `value`, which stands at `path`; `None`, with a note, if it is no object.
    pub fn new(path: impl Into<String>, value: &'a Value, notes: &'a Notes) -> Option<Self> {
        let path = path.into();
        match value {
            Value::Object(fields) => Some(Self { path, fields, known: Vec::new(), notes }),
            other => {
                notes.problem(&path, format_args!("must be an object, not {}", kind(other)));
                None
            }
        }
    }

    /// Where a field of this object stands, for messages.
    pub fn at(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Records a problem of one field.
    pub fn problem(&self, key: &str, message: impl std::fmt::Display) {
        self.notes.problem(&self.at(key), message);
    }

    /// Records a warning about one field.
    pub fn warn(&self, key: &str, message: impl std::fmt::Display) {
        self.notes.warn(&self.at(key), message);
    }

    /// The field's value; `null` is as good as absent.
    pub fn value(&mut self, key: &'static str) -> Option<&'a Value> {
        self.known.push(key);
        self.fields.get(key).filter(|value| !value.is_null())
    }

    fn mismatch<T>(&self, key: &str, expected: &str, found: &Value) -> Option<T> {
        self.problem(key, format_args!("must be {expected}, not {}", kind(found)));
        None
    }

    /// A text.
    pub fn string(&mut self, key: &'static str) -> Option<String> {
        match self.value(key)? {
            Value::String(text) => Some(text.clone()),
            other => self.mismatch(key, "a string (put it in quotes)", other),
        }
    }

    /// A text, or a number as it was written: quantities and ports.
    pub fn scalar(&mut self, key: &'static str) -> Option<String> {
        match self.value(key)? {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            other => self.mismatch(key, "a string or a number", other),
        }
    }

    /// true or false.
    pub fn boolean(&mut self, key: &'static str) -> Option<bool> {
        match self.value(key)? {
            Value::Bool(value) => Some(*value),
            other => self.mismatch(key, "true or false", other),
        }
    }

    /// A whole number.
    pub fn integer(&mut self, key: &'static str) -> Option<i64> {
        let value = self.value(key)?;
        match value.as_i64() {
            Some(number) => Some(number),
            None => self.mismatch(key, "a whole number", value),
        }
    }

    /// A whole number within bounds.
    pub fn integer_within(&mut self, key: &'static str, bounds: std::ops::RangeInclusive<i64>) -> Option<i64> {
        let number = self.integer(key)?;
        if bounds.contains(&number) {
            return Some(number);
        }
        self.problem(key, format_args!("{number} is not within {}–{}", bounds.start(), bounds.end()));
        None
    }

    /// Permission bits: a decimal number as JSON must write it, or octal digits with a leading 0 as YAML may.
    pub fn file_mode(&mut self, key: &'static str) -> Option<u32> {
        let mode = match self.value(key)? {
            Value::String(text) if text.starts_with('0') => u32::from_str_radix(text.trim_start_matches("0o"), 8).ok(),
            value => value.as_u64().and_then(|mode| u32::try_from(mode).ok()),
        };
        let mode = mode.filter(|mode| *mode <= 0o777);
        if mode.is_none() {
            self.problem(key, "is no file mode: write it in octal with a leading 0, as 0440");
        }
        mode
    }

    /// One of several words.
    pub fn word<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)]) -> Option<T> {
        let typed = self.string(key)?;
        let found = words.iter().find(|(word, _)| *word == typed);
        if found.is_none() {
            let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            let guess = suggest::nearest(&typed, known.iter().copied());
            let guess = guess.map(|word| format!("; did you mean {word}?")).unwrap_or_default();
            self.problem(key, format_args!("{typed:?} is none of {}{guess}", known.join(", ")));
        }
        found.map(|(_, value)| *value)
    }

    /// A list of texts; empty where absent.
    pub fn strings(&mut self, key: &'static str) -> Vec<String> {
        let Some(items) = self.list(key) else { return Vec::new() };
        let mut texts = Vec::new();
        for (index, item) in items.iter().enumerate() {
            match item {
                Value::String(text) => texts.push(text.clone()),
                other => self.problem(
                    &format!("{key}[{index}]"),
                    format_args!("must be a string (put it in quotes), not {}", kind(other)),
                ),
            }
        }
        texts
    }

    /// A list of whole numbers; empty where absent.
    pub fn integers(&mut self, key: &'static str) -> Vec<i64> {
        let Some(items) = self.list(key) else { return Vec::new() };
        let mut numbers = Vec::new();
        for (index, item) in items.iter().enumerate() {
            match item.as_i64() {
                Some(number) => numbers.push(number),
                None => self.problem(&format!("{key}[{index}]"), "must be a whole number"),
            }
        }
        numbers
    }

    /// Names to texts; empty where absent.
    pub fn string_map(&mut self, key: &'static str) -> BTreeMap<String, String> {
        let Some(value) = self.value(key) else { return BTreeMap::new() };
        let Value::Object(fields) = value else {
            self.problem(key, format_args!("must be an object, not {}", kind(value)));
            return BTreeMap::new();
        };
        let mut map = BTreeMap::new();
        for (name, value) in fields {
            match value {
                Value::String(text) => {
                    map.insert(name.clone(), text.clone());
                }
                other => self.problem(
                    &format!("{key}[{name}]"),
                    format_args!("must be a string (put it in quotes), not {}", kind(other)),
                ),
            }
        }
        map
    }

    /// Names to texts or numbers; empty where absent.
    pub fn scalar_map(&mut self, key: &'static str) -> BTreeMap<String, String> {
        let Some(value) = self.value(key) else { return BTreeMap::new() };
        let Value::Object(fields) = value else {
            self.problem(key, format_args!("must be an object, not {}", kind(value)));
            return BTreeMap::new();
        };
        let mut map = BTreeMap::new();
        for (name, value) in fields {
            match value {
                Value::String(text) => map.insert(name.clone(), text.clone()),
                Value::Number(number) => map.insert(name.clone(), number.to_string()),
                other => {
                    self.problem(&format!("{key}[{name}]"), format_args!("must be a quantity, not {}", kind(other)));
                    None
                }
            };
        }
        map
    }

    /// An object below this one.
    pub fn object(&mut self, key: &'static str) -> Option<Object<'a>> {
        let value = self.value(key)?;
        Object::new(self.at(key), value, self.notes)
    }

    /// A list of objects; empty where absent.
    pub fn objects(&mut self, key: &'static str) -> Vec<Object<'a>> {
        let Some(items) = self.list(key) else { return Vec::new() };
        let objects = items.iter().enumerate();
        objects
            .filter_map(|(index, item)| Object::new(format!("{}[{index}]", self.at(key)), item, self.notes))
            .collect()
    }

    fn list(&mut self, key: &'static str) -> Option<&'a [Value]> {
        match self.value(key)? {
            Value::Array(items) => Some(items),
            other => self.mismatch(key, "a list", other),
        }
    }

    /// Whether the field says something; `false`, `""`, `[]` and `{}` say what absence says.
    fn says_something(&mut self, key: &'static str) -> bool {
        self.value(key).is_some_and(|value| match value {
            Value::Bool(value) => *value,
            Value::String(text) => !text.is_empty(),
            Value::Array(items) => !items.is_empty(),
            Value::Object(fields) => !fields.is_empty(),
            _ => true,
        })
    }

    /// Fields that mean nothing to a single machine, and whose absence nobody will notice.
    pub fn pass_over(&mut self, keys: &[&'static str]) {
        self.known.extend_from_slice(keys);
    }

    /// Fields that are not done, where the pod is still worth running; each one that is present is named.
    pub fn ignore(&mut self, keys: &[&'static str], reason: &str) {
        for key in keys {
            if self.says_something(key) {
                self.warn(key, format_args!("ignored: {reason}"));
            }
        }
    }

    /// Fields without which the pod would be another one than asked for.
    pub fn refuse(&mut self, keys: &[&'static str], reason: &str) {
        for key in keys {
            if self.says_something(key) {
                self.problem(key, format_args!("not supported: {reason}"));
            }
        }
    }
}

impl Drop for Object<'_> {
    fn drop(&mut self) {
        for key in self.fields.keys() {
            if self.known.contains(&key.as_str()) {
                continue;
            }
            let guess = suggest::nearest(key, self.known.iter().copied());
            let guess = guess.map(|name| format!("; did you mean {name}?")).unwrap_or_default();
            self.notes.unknown(&self.at(key), format!("there is no such field{guess}"));
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn notes_of(value: &Value, validation: Validation, read: impl Fn(&mut Object<'_>)) -> (Vec<String>, Vec<String>) {
        let notes = Notes::new(validation);
        if let Some(mut object) = Object::new("spec", value, &notes) {
            read(&mut object);
        }
        notes.into_parts()
    }

    #[test]
    fn a_field_that_nobody_read_is_named_with_what_was_meant() {
        let value = json!({ "hostnme": "x", "name": "y" });
        let read = |object: &mut Object<'_>| {
            object.string("hostname");
            object.string("name");
        };
        let (problems, _) = notes_of(&value, Validation::Strict, read);
        assert_eq!(problems, ["spec.hostnme: there is no such field; did you mean hostname?"]);
        let (problems, warnings) = notes_of(&value, Validation::Warn, read);
        assert!(problems.is_empty());
        assert_eq!(warnings.len(), 1);
        assert_eq!(notes_of(&value, Validation::Ignore, read), (Vec::new(), Vec::new()));
    }

    #[test]
    fn values_of_the_wrong_kind_are_named() {
        let value = json!({ "a": 1, "b": "x", "c": [1], "d": { "k": true } });
        let (problems, _) = notes_of(&value, Validation::Strict, |object| {
            assert_eq!(object.string("a"), None);
            assert_eq!(object.integer("b"), None);
            assert!(object.strings("c").is_empty());
            assert!(object.string_map("d").is_empty());
        });
        assert_eq!(
            problems,
            [
                "spec.a: must be a string (put it in quotes), not a number",
                "spec.b: must be a whole number, not a string",
                "spec.c[0]: must be a string (put it in quotes), not a number",
                "spec.d[k]: must be a string (put it in quotes), not true or false",
            ]
        );
    }

    #[test]
    fn null_and_empty_say_nothing() {
        let value = json!({ "a": null, "b": [], "c": {}, "d": false, "e": 0 });
        let (problems, warnings) = notes_of(&value, Validation::Strict, |object| {
            assert_eq!(object.string("a"), None);
            object.refuse(&["b", "c", "d"], "no");
            object.ignore(&["e"], "it is late");
        });
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(warnings, ["spec.e: ignored: it is late"]);
    }
}
