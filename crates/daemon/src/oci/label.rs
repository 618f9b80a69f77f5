//! What AppArmor and SELinux call a container's processes and files.

use super::Inputs;
use knarr_model::Error;
use knarr_model::spec::Profile;

/// The AppArmor profile; `None` for none.
///
/// A profile that the user named must be there: with less protection than asked for nothing may start. The runtime's
/// own may be missing with AppArmor itself.
pub(super) fn apparmor(inputs: &Inputs<'_>) -> Result<Option<String>, Error> {
    let security = &inputs.container.security;
    match &security.apparmor {
        _ if security.privileged => Ok(None),
        Profile::Unconfined => Ok(None),
        Profile::RuntimeDefault if inputs.host.apparmor => Ok(inputs.host.apparmor_default.clone()),
        Profile::RuntimeDefault => Ok(None),
        Profile::Localhost(name) if inputs.host.apparmor => Ok(Some(name.clone())),
        Profile::Localhost(name) => {
            Err(Error::invalid("apparmor", format!("profile {name:?} is asked for, but AppArmor is not on here")))
        }
    }
}

/// The SELinux label of processes; `None` without SELinux. A privileged container runs unlabelled, as everywhere.
pub(super) fn process(inputs: &Inputs<'_>) -> Option<String> {
    selinux(inputs, "system_r", "container_t")
}

/// The SELinux label of the root file system.
pub(super) fn mount(inputs: &Inputs<'_>) -> Option<String> {
    if !inputs.host.selinux || inputs.container.security.privileged {
        return None;
    }
    Some(format!("system_u:object_r:container_file_t:{}", level(inputs)))
}

fn selinux(inputs: &Inputs<'_>, role: &str, kind: &str) -> Option<String> {
    let security = &inputs.container.security;
    if !inputs.host.selinux || security.privileged {
        return None;
    }
    let given = security.selinux.clone().unwrap_or_default();
    let or = |part: String, default: &str| if part.is_empty() { default.to_owned() } else { part };
    Some([or(given.user, "system_u"), or(given.role, role), or(given.kind, kind), level(inputs)].join(":"))
}

/// The level that was asked for, else two categories that follow from the pod's id: its containers share them, and
/// two pods have the same pair once in half a million.
fn level(inputs: &Inputs<'_>) -> String {
    const CATEGORIES: u32 = 1024;
    if let Some(given) = inputs.container.security.selinux.as_ref().map(|given| &given.level)
        && !given.is_empty()
    {
        return given.clone();
    }
    let id = inputs.pod_id.as_str();
    let number = |from: usize| id.get(from..from + 5).and_then(|text| u32::from_str_radix(text, 16).ok()).unwrap_or(0);
    let first = number(0) % CATEGORIES;
    let second = number(5) % (CATEGORIES - 1);
    // One less to choose from, and the first is stepped over: the two are never the same.
    let second = if second >= first { second + 1 } else { second };
    format!("s0:c{},c{}", first.min(second), first.max(second))
}
