//! CNI from the runtime's side: which networks there are, and ADD, DEL, CHECK, GC and STATUS over lists of plugins.
//!
//! The configuration folder is looked at anew with every attachment and every few seconds in between, by names, sizes
//! and times: a folder that was removed and made again is as good as one that was only changed, where a watch would have
//! died with the first one.
//!
//! DEL calls every plugin whatever the others said, with the configuration and the result that ADD had; after an ADD that
//! failed, those that ADD had called. Records and pins are kept one level up.

mod arguments;
mod cache;
pub(super) mod config;
mod plugin;
mod result;

use self::cache::{Cache, Entry};
use self::config::{Loaded, NetworkList, Plugin, Signature, Version};
use self::plugin::{Call, Cause, Subject, Verb};
use super::{CniConfig, PodIdentity, blocking};
use knarr_model::{Error, PodId};
use serde_json::{Map, Value, json};
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio_util::sync::CancellationToken;

/// The CNI networks of this node.
#[derive(Debug)]
pub(super) struct Cni {
    config: CniConfig,
    cache: Arc<Cache>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    signature: Option<Signature>,
    loaded: Arc<Loaded>,
    /// What STATUS or reading the folder complained about.
    complaint: Option<String>,
}

/// What the configuration folder says.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Choice {
    /// There is no configuration file.
    Nothing,
    /// There are some, and none is valid: why.
    Unusable(String),
    /// The networks that a pod is attached to, in order.
    Networks(Vec<Arc<NetworkList>>),
}

/// One network of an attached pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attached {
    pub network: String,
    pub interface: String,
}

/// What ADD came to.
#[derive(Debug)]
pub(super) struct Outcome {
    pub ips: Vec<IpAddr>,
    pub detail: Value,
}

/// What is left after DEL.
#[derive(Debug, Default)]
pub(super) struct Undone {
    pub errors: Vec<Error>,
    /// Every error is that of a plugin whose executable is not there.
    pub only_missing: bool,
}

/// How the interfaces of the networks are called, in order.
pub(super) fn interface(index: usize) -> String {
    format!("eth{index}")
}

impl Cni {
    pub fn new(config: &CniConfig) -> Self {
        let cache = Arc::new(Cache::new(&config.cache_dir));
        Self { config: config.clone(), cache, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks whether the configuration folder has changed and reads it if so; tells whether it did. Blocks.
    pub fn reload(&self) -> bool {
        let folder = &self.config.conf_dir;
        let signature = config::signature(folder);
        if let Ok(signature) = &signature
            && self.lock().signature.as_ref() == Some(signature)
        {
            return false;
        }
        let read =
            signature.and_then(|signature| Ok((signature, config::load(folder, self.config.max_networks.max(1))?)));
        let mut state = self.lock();
        match read {
            Ok((signature, loaded)) => {
                for invalid in loaded.invalid.iter().filter(|why| !state.loaded.invalid.contains(why)) {
                    tracing::warn!(%invalid, "CNI configuration skipped");
                }
                let names: Vec<_> = loaded.lists.iter().map(|list| list.name.as_str()).collect();
                tracing::info!(networks = ?names, folder = %folder.display(), "CNI configuration read");
                *state = State { signature: Some(signature), loaded: Arc::new(loaded), complaint: None };
                true
            }
            Err(error) => {
                let complaint = format!("reading {}: {error}", folder.display());
                if state.complaint.as_ref() != Some(&complaint) {
                    tracing::warn!(%complaint, "CNI configuration cannot be read");
                }
                // What was read before still holds: a failing disk must not send pods to another network.
                state.complaint = Some(complaint);
                false
            }
        }
    }

    /// What the folder said when it was last read.
    pub fn choice(&self) -> Choice {
        let state = self.lock();
        if !state.loaded.lists.is_empty() {
            return Choice::Networks(state.loaded.lists.clone());
        }
        if state.loaded.any_file {
            return Choice::Unusable(format!("no valid configuration: {}", state.loaded.invalid.join("; ")));
        }
        match (&state.complaint, &state.signature) {
            (Some(complaint), None) => Choice::Unusable(complaint.clone()),
            _ => Choice::Nothing,
        }
    }

    /// What STATUS or reading the folder complained about, and files that were skipped.
    pub fn complaint(&self) -> (Option<String>, Vec<String>) {
        let state = self.lock();
        (state.complaint.clone(), state.loaded.invalid.clone())
    }

    /// Asks every plugin of the networks that know STATUS whether it could attach a pod now.
    pub async fn poll_status(&self) {
        let loaded = self.lock().loaded.clone();
        let mut complaint = None;
        for list in loaded.lists.iter().filter(|list| list.version >= Version::COLLECTS) {
            for plugin in &list.plugins {
                let input = input(list, plugin, None, &Map::new(), &[]);
                let asked = self.call(Verb::Status, plugin, None, input, &CancellationToken::new()).await;
                if let Err(failure) = asked {
                    complaint.get_or_insert_with(|| format!("network {:?}: {failure}", list.name));
                }
            }
        }
        let mut state = self.lock();
        // The configuration may have been read anew in between: then this answer is about another one.
        if Arc::ptr_eq(&state.loaded, &loaded) {
            state.complaint = complaint;
        }
    }

    async fn call(
        &self,
        verb: Verb,
        plugin: &Plugin,
        subject: Option<Subject<'_>>,
        input: Map<String, Value>,
        cancel: &CancellationToken,
    ) -> Result<Vec<u8>, plugin::Failure> {
        plugin::run(Call {
            verb,
            plugin: &plugin.kind,
            bin_dirs: &self.config.bin_dirs,
            subject,
            input: Value::Object(input).to_string().into_bytes(),
            timeout: self.config.plugin_timeout,
            cancel,
        })
        .await
    }

    /// Whether plugins can be called for the pod at all: nothing in it would be read as another argument.
    pub fn accepts(pod: &PodIdentity) -> Result<(), Error> {
        arguments::pairs(pod).and(arguments::capabilities(pod)).map(|_| ())
    }

    /// Attaches a pod to the networks, one after the other. What fails is not undone here: [`Cni::del`] does that.
    pub async fn add(
        &self,
        pod: &PodIdentity,
        networks: &[Arc<NetworkList>],
        netns: &Path,
        cancel: &CancellationToken,
    ) -> Result<Outcome, Error> {
        let netns = netns.to_str().ok_or_else(|| Error::internal("the path of the network namespace is no UTF-8"))?;
        let (args, capabilities) = (arguments::pairs(pod)?, arguments::capabilities(pod)?);
        let mut ips = Vec::new();
        let mut results = Map::new();
        for (index, list) in networks.iter().enumerate() {
            let mut entry = Entry {
                list: (**list).clone(),
                interface: interface(index),
                netns: netns.to_owned(),
                args: args.clone(),
                capabilities: capabilities.clone(),
                result: None,
                called: None,
            };
            self.remember(&pod.id, &entry).await?;
            let added = self.add_list(&pod.id, &mut entry, cancel).await;
            // Also of what failed: how far it came decides what is undone.
            self.remember(&pod.id, &entry).await?;
            let result = added?;
            if index == 0 {
                ips = result::addresses(&result, &entry.interface)
                    .map_err(|why| Error::internal(format!("CNI network {:?}: {why}", list.name)))?;
                if ips.is_empty() {
                    return Err(Error::internal(format!("CNI network {:?} gave the pod no address", list.name)));
                }
            }
            results.insert(list.name.clone(), result);
        }
        Ok(Outcome { ips, detail: Value::Object(results) })
    }

    async fn remember(&self, pod: &PodId, entry: &Entry) -> Result<(), Error> {
        let (cache, pod, entry) = (self.cache.clone(), pod.clone(), entry.clone());
        blocking(move || cache.write(&pod, &entry)).await?
    }

    /// ADD down the list. The entry says afterwards how far it came.
    async fn add_list(&self, pod: &PodId, entry: &mut Entry, cancel: &CancellationToken) -> Result<Value, Error> {
        let list = &entry.list;
        let args = arguments::joined(&entry.args);
        let subject =
            Subject { container_id: pod.as_str(), netns: &entry.netns, interface: &entry.interface, args: &args };
        for (index, plugin) in list.plugins.iter().enumerate() {
            let input = input(list, plugin, entry.result.as_ref(), &entry.capabilities, &[]);
            let added = self.call(Verb::Add, plugin, Some(subject), input, cancel).await;
            match added.and_then(|output| plugin::parse_object(Verb::Add, &plugin.kind, &output)) {
                Ok(result) => entry.result = Some(result),
                Err(failure) => {
                    entry.called = Some(index + 1);
                    return Err(failure.into_error().context(format_args!("CNI network {:?}", list.name)));
                }
            }
        }
        let result = entry.result.clone();
        result.ok_or_else(|| Error::internal(format!("CNI network {:?} has no plugins", list.name)))
    }

    /// DEL up the list, each plugin whatever the others say.
    async fn del_plugins(
        &self,
        list: &NetworkList,
        plugins: &[Plugin],
        subject: Subject<'_>,
        previous: Option<&Value>,
        capabilities: &Map<String, Value>,
    ) -> Vec<plugin::Failure> {
        let previous = previous.filter(|_| list.version >= Version::CHECKS);
        let mut failures = Vec::new();
        for plugin in plugins.iter().rev() {
            let input = input(list, plugin, previous, capabilities, &[]);
            // A clean-up is never cut short by the request that it belongs to.
            failures.extend(self.call(Verb::Del, plugin, Some(subject), input, &CancellationToken::new()).await.err());
        }
        failures
    }

    /// Detaches a pod from the networks, last one first. `netns` is empty when the namespace is gone. With
    /// `give_up_on_missing` a plugin whose executable is not there is passed over.
    pub async fn del(&self, pod: &PodIdentity, attached: &[Attached], netns: &str, give_up_on_missing: bool) -> Undone {
        let mut undone = Undone { errors: Vec::new(), only_missing: true };
        for Attached { network, interface } in self.attached_of(&pod.id, attached).await.iter().rev() {
            let Some(entry) = self.entry_for_del(pod, network, interface).await else {
                tracing::warn!(pod = %pod.id, network, "neither a cached nor a present configuration: nothing to undo with");
                continue;
            };
            let args = arguments::joined(&entry.args);
            let subject = Subject { container_id: pod.id.as_str(), netns, interface, args: &args };
            let called = entry.called.unwrap_or(usize::MAX).min(entry.list.plugins.len());
            let plugins = &entry.list.plugins[..called];
            let failures =
                self.del_plugins(&entry.list, plugins, subject, entry.result.as_ref(), &entry.capabilities).await;
            let mut clean = true;
            for failure in failures {
                let missing = matches!(failure.cause, Cause::Missing(_));
                if missing && give_up_on_missing {
                    tracing::warn!(pod = %pod.id, network, %failure, "passed over: what it made may be left behind");
                    continue;
                }
                clean = false;
                undone.only_missing &= missing;
                undone.errors.push(failure.into_error().context(format_args!("CNI network {network:?}")));
            }
            if clean {
                let (cache, id) = (self.cache.clone(), pod.id.clone());
                let (network, interface) = (network.clone(), interface.clone());
                let removed = blocking(move || cache.remove(&network, &id, &interface)).await;
                if let Err(error) = removed.and_then(|removed| removed) {
                    undone.only_missing = false;
                    undone.errors.push(error);
                }
            }
        }
        undone
    }

    /// The networks that the record names, and those that only the cache knows of.
    async fn attached_of(&self, pod: &PodId, recorded: &[Attached]) -> Vec<Attached> {
        let (cache, pod) = (self.cache.clone(), pod.clone());
        let cached = blocking(move || cache.of_pod(&pod)).await.unwrap_or_default();
        let mut all = recorded.to_vec();
        for (network, interface) in cached {
            let one = Attached { network, interface };
            if !all.contains(&one) {
                all.push(one);
            }
        }
        all
    }

    /// What ADD was called with; without a readable cache file, the present configuration of that name and no result.
    async fn entry_for_del(&self, pod: &PodIdentity, network: &str, interface: &str) -> Option<Entry> {
        let (cache, id) = (self.cache.clone(), pod.id.clone());
        let (name, device) = (network.to_owned(), interface.to_owned());
        if let Ok(Some(entry)) = blocking(move || cache.read(&name, &id, &device)).await {
            return Some(entry);
        }
        let present = self.lock().loaded.lists.iter().find(|list| list.name == network).cloned()?;
        Some(Entry {
            list: (*present).clone(),
            interface: interface.to_owned(),
            netns: String::new(),
            // A pod whose names could break out of the arguments was never attached.
            args: arguments::pairs(pod).unwrap_or_default(),
            capabilities: arguments::capabilities(pod).unwrap_or_default(),
            result: None,
            called: None,
        })
    }

    /// Asks every plugin whether the attachment is as ADD left it.
    pub async fn check(&self, pod: &PodIdentity, attached: &[Attached], netns: &str) -> Result<(), Error> {
        for Attached { network, interface } in attached {
            let Some(entry) = self.entry_for_del(pod, network, interface).await else {
                return Err(Error::not_found("CNI cache entry of network", network));
            };
            if entry.list.disable_check || entry.list.version < Version::CHECKS {
                continue;
            }
            let args = arguments::joined(&entry.args);
            let subject = Subject { container_id: pod.id.as_str(), netns, interface, args: &args };
            for plugin in &entry.list.plugins {
                let input = input(&entry.list, plugin, entry.result.as_ref(), &entry.capabilities, &[]);
                self.call(Verb::Check, plugin, Some(subject), input, &CancellationToken::new())
                    .await
                    .map_err(|failure| failure.into_error().context(format_args!("CNI network {network:?}")))?;
            }
        }
        Ok(())
    }

    /// Tells the plugins that know GC which attachments are valid, so that they drop all others of their network.
    pub async fn collect_garbage(&self, valid: &[(PodId, Vec<Attached>)]) -> Vec<Error> {
        let loaded = self.lock().loaded.clone();
        let mut errors = Vec::new();
        for list in loaded.lists.iter().filter(|list| list.version >= Version::COLLECTS && !list.disable_gc) {
            let attachments: Vec<Value> = valid
                .iter()
                .flat_map(|(pod, attached)| attached.iter().map(move |one| (pod, one)))
                .filter(|(_, one)| one.network == list.name)
                .map(|(pod, one)| json!({ "containerID": pod.as_str(), "ifname": one.interface }))
                .collect();
            for plugin in &list.plugins {
                let valid = [("cni.dev/valid-attachments", Value::Array(attachments.clone()))];
                let input = input(list, plugin, None, &Map::new(), &valid);
                if let Err(failure) = self.call(Verb::Gc, plugin, None, input, &CancellationToken::new()).await {
                    errors.push(failure.into_error().context(format_args!("CNI network {:?}", list.name)));
                }
            }
        }
        errors
    }

    /// What keeps the present configuration from working, found without touching a pod: executables that are not there
    /// or that do not know the configuration's version.
    pub async fn diagnose(&self) -> Vec<String> {
        let loaded = self.lock().loaded.clone();
        let mut findings = loaded.invalid.clone();
        for list in &loaded.lists {
            for plugin in &list.plugins {
                let input = Map::from_iter([("cniVersion".to_owned(), Value::from(list.version.to_string()))]);
                let answer = self.call(Verb::Version, plugin, None, input, &CancellationToken::new()).await;
                match answer.and_then(|output| plugin::parse_object(Verb::Version, &plugin.kind, &output)) {
                    Err(failure) => findings.push(format!("network {:?}: {failure}", list.name)),
                    Ok(answer) => {
                        let versions = answer["supportedVersions"].as_array().cloned().unwrap_or_default();
                        let wanted = Value::from(list.version.to_string());
                        if !versions.contains(&wanted) {
                            let kind = &plugin.kind;
                            findings.push(format!("network {:?}: plugin {kind:?} does not know {wanted}", list.name));
                        }
                    }
                }
            }
        }
        findings
    }

    /// Networks that a pod attached now would get.
    pub fn attachments_for(networks: &[Arc<NetworkList>]) -> Vec<Attached> {
        let named = networks.iter().enumerate();
        named.map(|(index, list)| Attached { network: list.name.clone(), interface: interface(index) }).collect()
    }
}

/// A plugin's configuration for one call.
fn input(
    list: &NetworkList,
    plugin: &Plugin,
    previous: Option<&Value>,
    capabilities: &Map<String, Value>,
    more: &[(&str, Value)],
) -> Map<String, Value> {
    let mut input = plugin.config.clone();
    input.insert("name".to_owned(), list.name.clone().into());
    input.insert("cniVersion".to_owned(), list.version.to_string().into());
    input.remove("prevResult");
    if let Some(previous) = previous {
        input.insert("prevResult".to_owned(), previous.clone());
    }
    let declared: Map<String, Value> = capabilities
        .iter()
        .filter(|(name, _)| plugin.capabilities.contains(*name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if !declared.is_empty() {
        input.insert("runtimeConfig".to_owned(), Value::Object(declared));
    }
    for (key, value) in more {
        input.insert((*key).to_owned(), value.clone());
    }
    input
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_gets_only_the_capabilities_that_it_declares() {
        let text = br#"{"cniVersion":"1.0.0","name":"n","plugins":[
            {"type":"bridge","prevResult":{"forged":true}},{"type":"portmap","capabilities":{"portMappings":true}}]}"#;
        let list = NetworkList::parse(text).unwrap();
        let capabilities = Map::from_iter([("portMappings".to_owned(), json!([1])), ("dns".to_owned(), json!({}))]);
        let first = input(&list, &list.plugins[0], None, &capabilities, &[]);
        assert_eq!(first.get("runtimeConfig"), None);
        assert_eq!(first.get("prevResult"), None);
        let previous = json!({"ips": []});
        let second = input(&list, &list.plugins[1], Some(&previous), &capabilities, &[]);
        assert_eq!(second["runtimeConfig"], json!({"portMappings": [1]}));
        assert_eq!(
            (&second["prevResult"], &second["name"], &second["cniVersion"]),
            (&previous, &json!("n"), &json!("1.0.0"))
        );
    }
}
