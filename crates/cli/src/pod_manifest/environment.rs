//! Works out a container's variables, with everything that they refer to.

use std::collections::BTreeMap;

use super::expand::expand;
use super::quantity::Quantity;
use super::schema::{Container, Data, DataRef, EnvValue, FieldRef, Manifest, Pod};

/// What is known of a pod only once it is being run.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// metadata.uid
    pub uid: String,
    /// The pod's addresses; the first is status.podIP. Empty where it has the host's network and none is known.
    pub pod_ips: Vec<String>,
    /// This machine's host name.
    pub node_name: String,
    /// This machine's memory.
    pub node_memory_bytes: i64,
    /// This machine's processors.
    pub node_cpus: i64,
}

/// The variables in the order in which they are first named, each with its last value.
///
/// # Errors
/// A reference that leads nowhere, in a sentence.
pub fn environment(
    manifest: &Manifest,
    pod: &Pod,
    container: &Container,
    facts: &Facts,
) -> Result<Vec<(String, String)>, String> {
    let mut variables = Variables::default();
    for from in &container.env_from {
        let Some(data) = data(manifest, pod, &from.source)? else { continue };
        for (key, value) in data {
            let name = format!("{}{key}", from.prefix);
            // Kubernetes skips keys that are no names, and values that are no text cannot be variables at all.
            if let (true, Ok(text)) = (is_variable_name(&name), std::str::from_utf8(value)) {
                variables.set(name, text.to_owned());
            }
        }
    }
    for (name, value) in &container.env {
        let value = match value {
            EnvValue::Text(text) => Some(expand(text, |name| variables.get(name))),
            EnvValue::Key(source, key) => key_text(manifest, pod, source, key, name)?,
            EnvValue::Field(field) => Some(field_text(pod, facts, field, name)?),
            EnvValue::Resource { container: other, limit, resource, divisor } => {
                let whose = if other.is_empty() {
                    Some(container)
                } else {
                    pod.all_containers().find(|one| one.name == *other)
                };
                let whose = whose.ok_or_else(|| format!("variable {name}: there is no container {other:?}"))?;
                Some(amount(whose, *limit, resource, facts).in_units_of(*divisor).to_string())
            }
        };
        if let Some(value) = value {
            variables.set(name.clone(), value);
        }
    }
    Ok(variables.in_order)
}

/// Variables by name, in order.
#[derive(Default)]
struct Variables {
    in_order: Vec<(String, String)>,
    places: BTreeMap<String, usize>,
}

impl Variables {
    fn set(&mut self, name: String, value: String) {
        match self.places.get(&name) {
            Some(place) => self.in_order[*place].1 = value,
            None => {
                self.places.insert(name.clone(), self.in_order.len());
                self.in_order.push((name, value));
            }
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.places.get(name).map(|place| self.in_order[*place].1.as_str())
    }
}

fn is_variable_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}

/// The content of a ConfigMap or Secret; `None` where it is missing and may be.
pub fn data<'a>(manifest: &'a Manifest, pod: &Pod, source: &DataRef) -> Result<Option<&'a Data>, String> {
    let all = if source.secret { &manifest.secrets } else { &manifest.config_maps };
    let found = all.get(&(pod.namespace.clone(), source.name.clone()));
    if found.is_none() && !source.optional {
        let kind = if source.secret { "Secret" } else { "ConfigMap" };
        return Err(format!(
            "{kind} {:?} is not in this file: knarr run knows only those that stand in the same file and namespace as \
             their pod",
            source.name
        ));
    }
    Ok(found)
}

fn key_text(
    manifest: &Manifest,
    pod: &Pod,
    source: &DataRef,
    key: &str,
    variable: &str,
) -> Result<Option<String>, String> {
    let value = data(manifest, pod, source)?.and_then(|data| data.get(key));
    match value {
        Some(bytes) => String::from_utf8(bytes.clone())
            .map(Some)
            .map_err(|_| format!("variable {variable}: key {key:?} of {:?} is no text", source.name)),
        None if source.optional => Ok(None),
        None => Err(format!("variable {variable}: {:?} has no key {key:?}", source.name)),
    }
}

fn field_text(pod: &Pod, facts: &Facts, field: &FieldRef, variable: &str) -> Result<String, String> {
    let no_address = || {
        format!("variable {variable}: the pod's address is not known (a pod on the host's network has none of its own)")
    };
    Ok(match field {
        FieldRef::Name => pod.name.clone(),
        FieldRef::Namespace => pod.namespace.clone(),
        FieldRef::Uid => facts.uid.clone(),
        FieldRef::Label(key) => pod.labels.get(key).cloned().unwrap_or_default(),
        FieldRef::Annotation(key) => pod.annotations.get(key).cloned().unwrap_or_default(),
        FieldRef::NodeName => facts.node_name.clone(),
        FieldRef::PodIp => facts.pod_ips.first().cloned().ok_or_else(no_address)?,
        FieldRef::PodIps if facts.pod_ips.is_empty() => return Err(no_address()),
        FieldRef::PodIps => facts.pod_ips.join(","),
    })
}

/// A container without a limit may use all of the machine, and without a request has been promised nothing.
fn amount(container: &Container, limit: bool, resource: &str, facts: &Facts) -> Quantity {
    let resources = &container.resources;
    let (written, machine) = match (resource, limit) {
        ("cpu", true) => (resources.cpu_limit, facts.node_cpus),
        ("cpu", false) => (resources.cpu_request, 0),
        (_, true) => (resources.memory_limit, facts.node_memory_bytes),
        (_, false) => (resources.memory_request, 0),
    };
    written.unwrap_or(Quantity::whole(machine))
}
