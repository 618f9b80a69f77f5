//! What a container's first process runs, as whom, and with what around it.

use super::build::bug;
use super::capability::{self, CapabilitySets};
use super::{Inputs, label};
use knarr_model::Error;
use oci_spec::runtime::{
    Capabilities, Capability, LinuxCapabilities, LinuxCapabilitiesBuilder, Process, User, UserBuilder,
};
use std::collections::HashMap;
use std::str::FromStr as _;

/// What is searched for programs when the image does not say: Docker's list.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What a terminal is when nobody says: every terminfo database has it.
const DEFAULT_TERM: &str = "xterm";
/// Permission bits that new files do not get.
const UMASK: u32 = 0o022;

pub(super) fn process(inputs: &Inputs<'_>, capabilities: CapabilitySets) -> Result<Process, Error> {
    let container = inputs.container;
    let mut process = Process::default();
    process
        .set_terminal(Some(container.tty))
        .set_console_size(None)
        .set_user(user(inputs)?)
        .set_args(Some(arguments(inputs)?))
        .set_env(Some(environment(inputs).into_entries()))
        .set_cwd(working_dir(inputs).into())
        .set_capabilities(Some(capability_sets(capabilities)?))
        .set_rlimits(None)
        .set_no_new_privileges(Some(container.security.no_new_privs))
        .set_apparmor_profile(label::apparmor(inputs)?)
        // Always said: a container must not inherit the score that keeps its shim alive.
        .set_oom_score_adj(Some(container.resources.oom_score_adj.unwrap_or(0)))
        .set_selinux_label(label::process(inputs))
        .set_io_priority(None)
        .set_scheduler(None)
        .set_exec_cpu_affinity(None);
    Ok(process)
}

/// Kubernetes' table: a command of the request replaces the image's entry point and its arguments, arguments of the
/// request alone replace the image's arguments.
fn arguments(inputs: &Inputs<'_>) -> Result<Vec<String>, Error> {
    let (container, image) = (inputs.container, inputs.image);
    let (first, rest) = match (container.command.is_empty(), container.args.is_empty()) {
        (false, _) => (&container.command, &container.args),
        (true, false) => (&image.entrypoint, &container.args),
        (true, true) => (&image.entrypoint, &image.cmd),
    };
    let arguments = [first.as_slice(), rest.as_slice()].concat();
    if arguments.is_empty() {
        return Err(Error::invalid("config.command", "no command specified, and the image has none"));
    }
    if arguments.iter().any(|argument| argument.contains('\0')) {
        return Err(Error::invalid("image", "an argument holds a NUL byte"));
    }
    Ok(arguments)
}

/// NAME=value entries in the order in which the names first came up; the last value of a name counts.
#[derive(Debug, Default)]
struct Environment {
    entries: Vec<(String, String)>,
    /// Where each name stands: requests may have tens of thousands.
    places: HashMap<String, usize>,
}

impl Environment {
    fn set(&mut self, name: &str, value: &str) {
        if let Some(place) = self.places.get(name) {
            value.clone_into(&mut self.entries[*place].1);
        } else {
            self.places.insert(name.to_owned(), self.entries.len());
            self.entries.push((name.to_owned(), value.to_owned()));
        }
    }

    fn set_default(&mut self, name: &str, value: &str) {
        if !self.places.contains_key(name) {
            self.set(name, value);
        }
    }

    fn into_entries(self) -> Vec<String> {
        self.entries.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
    }
}

/// The image's variables, then what the runtime knows, then the request's.
fn environment(inputs: &Inputs<'_>) -> Environment {
    let mut environment = Environment::default();
    // What is no NAME=value in an image is passed over: the kernel would take it, no program would find it.
    let of_image =
        inputs.image.env.iter().filter(|entry| !entry.contains('\0')).filter_map(|entry| entry.split_once('='));
    for (name, value) in of_image.filter(|(name, _)| !name.is_empty()) {
        environment.set(name, value);
    }
    environment.set_default("PATH", DEFAULT_PATH);
    environment.set("HOSTNAME", inputs.hostname());
    if inputs.container.tty {
        environment.set_default("TERM", DEFAULT_TERM);
    }
    for (name, value) in &inputs.container.envs {
        environment.set(name, value);
    }
    environment.set_default("HOME", &inputs.user.home);
    environment
}

/// Entries for one more process: a terminal without a type gets one.
pub(super) fn exec_environment(of_container: &[String], tty: bool) -> Vec<String> {
    let mut entries = of_container.to_vec();
    if tty && !entries.iter().any(|entry| entry.starts_with("TERM=")) {
        entries.push(format!("TERM={DEFAULT_TERM}"));
    }
    entries
}

/// The request's, the image's, or the root. Images have been seen with a relative one: it counts from the root.
fn working_dir(inputs: &Inputs<'_>) -> String {
    let asked = &inputs.container.working_dir;
    let of_image = &inputs.image.working_dir;
    match (asked.is_empty(), of_image.is_empty() || of_image.contains('\0')) {
        (false, _) => asked.clone(),
        (true, true) => "/".to_owned(),
        (true, false) if of_image.starts_with('/') => of_image.clone(),
        (true, false) => format!("/{of_image}"),
    }
}

fn user(inputs: &Inputs<'_>) -> Result<User, Error> {
    UserBuilder::default()
        .uid(inputs.user.uid)
        .gid(inputs.user.gid)
        .umask(UMASK)
        .additional_gids(inputs.user.groups.clone())
        .build()
        .map_err(bug)
}

/// Nothing is inheritable but what is ambient, which the kernel ties to it.
fn capability_sets(sets: CapabilitySets) -> Result<LinuxCapabilities, Error> {
    let (bounding, ambient) = (of_mask(sets.bounding)?, of_mask(sets.ambient)?);
    LinuxCapabilitiesBuilder::default()
        .bounding(bounding.clone())
        .effective(bounding.clone())
        .permitted(bounding)
        .inheritable(ambient.clone())
        .ambient(ambient)
        .build()
        .map_err(bug)
}

fn of_mask(mask: u64) -> Result<Capabilities, Error> {
    let parse =
        |name| Capability::from_str(name).map_err(|error| Error::internal(format!("capability {name}: {error}")));
    capability::names(mask).map(parse).collect()
}

/// The mask of a set of the specification.
pub(super) fn mask_of(set: Option<&Capabilities>) -> u64 {
    set.into_iter().flatten().fold(0, |mask, one| mask | capability::mask([one.to_string().as_str()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_capability_has_the_same_name_in_the_specification() {
        for number in 0..41 {
            let set = of_mask(1 << number).unwrap();
            assert_eq!(mask_of(Some(&set)), 1 << number, "{number}");
        }
    }

    #[test]
    fn the_last_value_of_a_variable_counts_in_the_place_of_the_first() {
        let mut environment = Environment::default();
        for (name, value) in [("A", "1"), ("B", "2"), ("A", "3=4")] {
            environment.set(name, value);
        }
        environment.set_default("B", "no");
        assert_eq!(environment.into_entries(), ["A=3=4", "B=2"]);
    }
}
