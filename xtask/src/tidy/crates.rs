//! Who may depend on whom, and on what of others.

use super::Tree;
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};
use std::collections::{BTreeMap, BTreeSet};

/// Our own crates and what each may depend on of ours. A crate is a promise (ARCHITECTURE.md), and a new edge breaks
/// one: it needs a line here and a reason in the commit.
const EDGES: [(&str, &[&str]); 13] = [
    ("knarr-model", &[]),
    ("knarr-wire", &["knarr-model"]),
    ("knarr-sys", &[]),
    ("knarr-runtime", &["knarr-model", "knarr-sys"]),
    ("knarr-shim", &["knarr-model", "knarr-wire", "knarr-sys", "knarr-runtime"]),
    ("knarr-image", &["knarr-model", "knarr-sys"]),
    ("knarr-cri-api", &[]),
    ("knarr-streaming", &["knarr-wire", "knarr-sys"]),
    ("knarr-daemon", &["knarr-model", "knarr-wire", "knarr-sys", "knarr-image", "knarr-cri-api", "knarr-streaming"]),
    ("knarr-cli", &["knarr-cri-api", "knarr-daemon", "knarr-streaming"]),
    ("knarr-testkit", &["knarr-model", "knarr-cri-api"]),
    ("xtask", &[]),
    ("knarr-node-tests", &["knarr-cri-api", "knarr-streaming", "knarr-testkit"]),
];

/// Development only; may be a dev-dependency of everybody and a dependency of nobody else.
const TESTKIT: &str = "knarr-testkit";

/// What a crate must not have in its tree at any depth.
const NEVER_IN: [(&str, &[&str]); 3] = [
    ("knarr-shim", &["tokio", "hyper", "http", "tonic", "prost", "tracing", "rustls", "reqwest", "clap"]),
    ("knarr-model", &["libc", "rustix", "serde", "tokio"]),
    ("knarr-runtime", &["tokio", "serde", "tracing"]),
];

/// For which machines the dependency tree is resolved.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

pub(super) fn look(tree: &Tree, findings: &mut Vec<String>) -> Result<(), String> {
    let metadata = MetadataCommand::new()
        .current_dir(&tree.root)
        .other_options(["--filter-platform".to_owned(), PLATFORM.to_owned()])
        .exec()
        .map_err(|e| format!("cargo metadata: {e}"))?;
    own_edges(&metadata, findings);
    forbidden_depths(&metadata, findings)?;
    let deny = tree.toml("deny.toml")?;
    duplicates(&metadata, &deny, findings)?;
    licences(&metadata, &deny, findings)?;
    lints(tree, &metadata, findings)
}

fn own_edges(metadata: &Metadata, findings: &mut Vec<String>) {
    let own: BTreeSet<&str> = metadata.workspace_packages().iter().map(|p| p.name.as_str()).collect();
    for package in metadata.workspace_packages() {
        let Some((_, allowed)) = EDGES.iter().find(|(name, _)| *name == package.name.as_str()) else {
            findings
                .push(format!("{}: a new crate; say in xtask/src/tidy/crates.rs what it may depend on", package.name));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|d| own.contains(d.name.as_str())) {
            let for_tests = dependency.kind == DependencyKind::Development && dependency.name == TESTKIT;
            // A crate may name itself to switch on a feature for its own tests.
            let itself = dependency.kind == DependencyKind::Development && dependency.name == package.name.as_str();
            // The shim's tests speak to it as the daemon does: with the daemon's own client.
            let as_the_daemon = dependency.kind == DependencyKind::Development
                && (package.name.as_str(), dependency.name.as_str()) == ("knarr-shim", "knarr-daemon");
            if !allowed.contains(&dependency.name.as_str()) && !for_tests && !itself && !as_the_daemon {
                findings.push(format!("{} must not depend on {}", package.name, dependency.name));
            }
        }
    }
}

/// Walks what is linked into a crate, not what its build scripts and tests use.
fn forbidden_depths(metadata: &Metadata, findings: &mut Vec<String>) -> Result<(), String> {
    let resolve = metadata.resolve.as_ref().ok_or("cargo metadata resolved nothing")?;
    for (name, forbidden) in NEVER_IN {
        let Some(start) = metadata.packages.iter().find(|p| p.name.as_str() == name) else { continue };
        let mut seen = BTreeSet::from([&start.id]);
        let mut next = vec![&start.id];
        while let Some(id) = next.pop() {
            let Some(node) = resolve.nodes.iter().find(|n| &n.id == id) else { continue };
            for dependency in &node.deps {
                let linked = dependency.dep_kinds.iter().any(|k| k.kind == DependencyKind::Normal);
                if linked && seen.insert(&dependency.pkg) {
                    next.push(&dependency.pkg);
                }
            }
        }
        for package in metadata.packages.iter().filter(|p| seen.contains(&p.id)) {
            if forbidden.contains(&package.name.as_str()) {
                findings.push(format!("{name} has {} among what it depends on", package.name));
            }
        }
    }
    Ok(())
}

/// Two versions of one crate cost build time and size and are explained in deny.toml or are a mistake.
fn duplicates(metadata: &Metadata, deny: &toml::Table, findings: &mut Vec<String>) -> Result<(), String> {
    let mut versions: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for package in resolved(metadata)? {
        versions.entry(package.name.as_str()).or_default().insert(package.version.to_string());
    }
    let mut explained = BTreeMap::new();
    let skip = deny.get("bans").and_then(|b| b.get("skip")).and_then(|s| s.as_array());
    for entry in skip.into_iter().flatten() {
        let text = |key| entry.get(key).and_then(|v| v.as_str()).unwrap_or_default();
        let (name, version) = text("crate").split_once('@').ok_or("deny.toml: skip entries are \"name@version\"")?;
        if text("reason").is_empty() {
            findings.push(format!("deny.toml: {name} is skipped without a reason"));
        }
        explained.insert((name, version), false);
    }
    for (name, versions) in versions.iter().filter(|(_, v)| v.len() > 1) {
        let open: Vec<_> = versions
            .iter()
            .filter(|version| match explained.get_mut(&(*name, version.as_str())) {
                Some(used) => {
                    *used = true;
                    false
                }
                None => true,
            })
            .collect();
        // One version is always allowed: the newest or whichever is not explained.
        if open.len() > 1 {
            findings.push(format!("{name} is here in versions {open:?}; explain all but one in deny.toml's bans.skip"));
        }
    }
    for ((name, version), used) in explained {
        if !used {
            findings.push(format!("deny.toml explains {name} {version}, of which there is no second version"));
        }
    }
    Ok(())
}

fn licences(metadata: &Metadata, deny: &toml::Table, findings: &mut Vec<String>) -> Result<(), String> {
    let allowed = deny.get("licenses").and_then(|l| l.get("allow")).and_then(|a| a.as_array());
    let allowed: BTreeSet<&str> = allowed.into_iter().flatten().filter_map(|l| l.as_str()).collect();
    for package in resolved(metadata)? {
        let expression = package.license.as_deref().unwrap_or("none");
        // Good enough for what is there: every part of an AND must have an alternative that is allowed.
        let fits = expression.split(" AND ").all(|part| {
            let part = part.trim_matches(['(', ')']);
            part.split([' ', '/', '(', ')']).any(|word| allowed.contains(word))
        });
        if !fits {
            findings.push(format!("{}: licence {expression:?} is not among those of deny.toml", package.name));
        }
    }
    Ok(())
}

fn resolved(metadata: &Metadata) -> Result<Vec<&Package>, String> {
    let resolve = metadata.resolve.as_ref().ok_or("cargo metadata resolved nothing")?;
    let ids: BTreeSet<_> = resolve.nodes.iter().map(|n| &n.id).collect();
    Ok(metadata.packages.iter().filter(|p| ids.contains(&p.id)).collect())
}

/// Every crate takes the workspace's lints; only `sys` has its own, because unsafe code is allowed there.
fn lints(tree: &Tree, metadata: &Metadata, findings: &mut Vec<String>) -> Result<(), String> {
    for package in metadata.workspace_packages() {
        let manifest = package.manifest_path.strip_prefix(&tree.root).map_err(|e| e.to_string())?.as_str();
        let takes = tree.toml(manifest)?.get("lints").and_then(|l| l.get("workspace")).and_then(|w| w.as_bool());
        if takes != Some(true) && package.name.as_str() != "knarr-sys" {
            findings.push(format!("{manifest} does not take the workspace's lints"));
        }
    }
    Ok(())
}
