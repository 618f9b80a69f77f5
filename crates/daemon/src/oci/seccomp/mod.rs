//! System call filters: which profile a container gets, what it says for this container, and the program that the
//! kernel runs.
//!
//! Three steps. [`choose`] finds the profile, reading a file if the request names one. [`Profile::resolve`] leaves
//! only what holds for a container's capabilities on this kernel and machine: a value of the OCI specification, which
//! others may still adjust. [`Compiler::compile`] makes the program. The first and the last can take milliseconds:
//! they are for a thread that may block. Nothing here loads a filter.

mod bpf;
mod compile;
mod default;
#[cfg(test)]
mod interpreter;
mod profile;

pub use compile::Compiler;
pub use profile::{KernelVersion, Profile, load, parse};

use knarr_model::Error;
use knarr_model::spec::{Profile as Asked, Security};
use std::sync::{Arc, LazyLock};

/// The profile that a container asked for; `None` for none. Reads a file for `Localhost`.
///
/// A privileged container has none, whatever it asked for: as with every other runtime.
pub fn choose(security: &Security) -> Result<Option<Arc<Profile>>, Error> {
    static DEFAULT: LazyLock<Arc<Profile>> = LazyLock::new(|| Arc::new(default::profile()));
    if security.privileged {
        return Ok(None);
    }
    match &security.seccomp {
        Asked::Unconfined => Ok(None),
        Asked::RuntimeDefault => Ok(Some(DEFAULT.clone())),
        Asked::Localhost(path) => load(path).map(|profile| Some(Arc::new(profile))),
    }
}

/// Why a profile could not be used.
fn bad_profile(why: impl std::fmt::Display) -> Error {
    Error::invalid("seccomp profile", why)
}
