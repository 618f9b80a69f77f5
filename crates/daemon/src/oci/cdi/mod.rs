//! The Container Device Interface (CDI): files in which vendors say what a container needs to use a device of theirs,
//! and names by which containers ask for them.
//!
//! [`resolve`] reads the directories afresh whenever a container with such names is created: a driver that has just
//! written its file is heard at once, and most containers have no such names. What it found is kept with the container,
//! so that a file that goes away later changes nothing for it. [`Edits::apply`] is a function of values.

mod file;
mod inject;
mod name;
mod registry;

pub use file::Edits;
pub use name::{ANNOTATION_PREFIX, check as check_name, in_annotations};

use knarr_model::Error;
use oci_spec::runtime::Spec;
use registry::Registry;
use std::path::PathBuf;

/// What the devices of these names change in a container, completed by what the host says of them. Of the directories
/// a later one takes precedence. May block.
///
/// A name that no file describes, that two files describe, or whose node the host lacks, is FAILED_PRECONDITION.
pub fn resolve(directories: &[PathBuf], names: &[String]) -> Result<Edits, Error> {
    if names.is_empty() {
        return Ok(Edits::default());
    }
    let registry = Registry::read(directories);
    for problem in &registry.problems {
        tracing::warn!("CDI specification {problem}; its devices are not known");
    }
    let mut edits = registry.edits(names)?;
    inject::complete(&mut edits)?;
    Ok(edits)
}

impl Edits {
    /// Changes a container's specification.
    pub fn apply(&self, spec: &mut Spec) -> Result<(), Error> {
        if *self == Self::default() { Ok(()) } else { inject::apply(self, spec) }
    }
}
