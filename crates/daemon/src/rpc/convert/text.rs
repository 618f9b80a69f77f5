//! What any text of a request may look like before it becomes a path, an argument or a line of a file.
//!
//! The rules are about characters and lengths; what a text means is decided by the caller.

use super::{MAP_BYTES_MAX, NAME_BYTES_MAX, PATH_BYTES_MAX};
use knarr_model::Error;
use std::collections::{BTreeMap, HashMap};

/// Refuses NUL: everything that reaches a system call ends there.
pub(super) fn no_nul(field: &str, text: &str) -> Result<(), Error> {
    if text.contains('\0') { Err(Error::invalid(field, "holds a NUL byte")) } else { Ok(()) }
}

/// Refuses control characters: what becomes a line of a file must stay one line.
pub(super) fn one_line(field: &str, text: &str) -> Result<(), Error> {
    match text.chars().find(|c| c.is_control()) {
        Some(control) => Err(Error::invalid(field, format!("holds the control character {control:?}"))),
        None => Ok(()),
    }
}

/// Refuses more than `limit` of something.
pub(super) fn at_most(field: &str, count: usize, limit: usize, what: &str) -> Result<(), Error> {
    if count > limit {
        Err(Error::invalid(field, format!("{count} {what}, at most {limit} are allowed")))
    } else {
        Ok(())
    }
}

/// A name from metadata. It becomes part of CNI_ARGS ("K8S_POD_NAME=…;…"), so it can hold no `;` or `=`, and it is
/// often used to make file names, so it can hold no `/`.
pub(super) fn name(field: &str, text: &str) -> Result<(), Error> {
    if text.is_empty() {
        return Err(Error::invalid(field, "is required"));
    }
    at_most(field, text.len(), NAME_BYTES_MAX, "bytes")?;
    one_line(field, text)?;
    match text.chars().find(|c| c.is_whitespace() || matches!(c, '/' | ';' | '=')) {
        Some(bad) => Err(Error::invalid(field, format!("holds {bad:?}"))),
        None => Ok(()),
    }
}

/// The rules for every path: a length the kernel takes, no NUL, no line break.
pub(super) fn path(field: &str, text: &str) -> Result<(), Error> {
    at_most(field, text.len(), PATH_BYTES_MAX, "bytes")?;
    match text.chars().find(|c| matches!(c, '\0' | '\n' | '\r')) {
        Some(bad) => Err(Error::invalid(field, format!("holds {bad:?}"))),
        None => Ok(()),
    }
}

/// A path that begins with a slash.
pub(super) fn absolute_path(field: &str, text: &str) -> Result<(), Error> {
    path(field, text)?;
    if text.starts_with('/') { Ok(()) } else { Err(Error::invalid(field, format!("{text:?} is not an absolute path"))) }
}

/// Refuses `..` anywhere in a path.
pub(super) fn no_dot_dot(field: &str, text: &str) -> Result<(), Error> {
    if text.split('/').any(|part| part == "..") {
        return Err(Error::invalid(field, format!("{text:?} has \"..\" in it")));
    }
    Ok(())
}

/// Labels or annotations, unchanged, as long as they are not absurdly many.
pub(super) fn map(field: &str, map: HashMap<String, String>) -> Result<BTreeMap<String, String>, Error> {
    let bytes: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    at_most(field, bytes, MAP_BYTES_MAX, "bytes")?;
    Ok(map.into_iter().collect())
}
