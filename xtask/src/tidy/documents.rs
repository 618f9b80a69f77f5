//! What people read: that the map stays a map, that every dependency says why it is here, that nothing speaks of the
//! machine it was written on.

use super::Tree;

/// A map that is longer is read by nobody.
const ARCHITECTURE_LINES_MAX: usize = 200;

pub(super) fn look(tree: &Tree, findings: &mut Vec<String>) -> Result<(), String> {
    architecture(tree, findings)?;
    dependencies(tree, findings)?;
    links(tree, findings);
    own_places(tree, findings);
    Ok(())
}

fn architecture(tree: &Tree, findings: &mut Vec<String>) -> Result<(), String> {
    let file = tree.get("ARCHITECTURE.md")?;
    let lines = file.text.lines().count();
    if lines > ARCHITECTURE_LINES_MAX {
        findings.push(format!("{}: {lines} lines, {ARCHITECTURE_LINES_MAX} are allowed", file.path));
    }
    for directory in ["crates", "tests"] {
        let prefix = format!("{directory}/");
        let rooms = tree.files.iter().filter_map(|f| f.path.strip_prefix(&prefix)?.strip_suffix("/Cargo.toml"));
        for room in rooms
            .filter(|room| !file.text.contains(&format!("`{room}`")) && !file.text.contains(&format!("{prefix}{room}")))
        {
            findings.push(format!("ARCHITECTURE.md does not name {prefix}{room}"));
        }
    }
    Ok(())
}

/// docs/dependencies.md has one line "- `name`: why" for each dependency, and none for what is not here.
fn dependencies(tree: &Tree, findings: &mut Vec<String>) -> Result<(), String> {
    let manifest = tree.toml("Cargo.toml")?;
    let all = manifest.get("workspace").and_then(|w| w.get("dependencies")).and_then(|d| d.as_table());
    let all = all.ok_or("Cargo.toml has no workspace.dependencies")?;
    let document = tree.get("docs/dependencies.md")?;
    let explained: Vec<&str> =
        document.text.lines().filter_map(|line| line.strip_prefix("- `")?.split_once("`: ").map(|(n, _)| n)).collect();
    for name in all.keys().filter(|n| !n.starts_with("knarr-") && !explained.contains(&n.as_str())) {
        findings.push(format!("{}: no line says why {name} is here", document.path));
    }
    for name in explained.iter().filter(|n| !all.contains_key(**n)) {
        findings.push(format!("{}: {name} is not a dependency any more", document.path));
    }
    Ok(())
}

/// Links between documents lead somewhere.
fn links(tree: &Tree, findings: &mut Vec<String>) {
    for file in tree.files.iter().filter(|f| f.path.ends_with(".md")) {
        let directory = file.path.rsplit_once('/').map_or("", |(directory, _)| directory);
        for (_, after) in file.text.match_indices("](").map(|(at, m)| (at, &file.text[at + m.len()..])) {
            let Some((target, _)) = after.split_once(')') else { continue };
            let target = target.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            if !tree.root.join(directory).join(target).exists() {
                findings.push(format!("{}: the link to {target} leads nowhere", file.path));
            }
        }
    }
}

/// No file names the place where this tree lies, or anybody's home.
fn own_places(tree: &Tree, findings: &mut Vec<String>) {
    let here = tree.root.display().to_string();
    for file in tree.files.iter().filter(|f| !f.path.contains("/generated/")) {
        for (number, line) in file.text.lines().enumerate() {
            if here.len() > 2 && line.contains(&here) {
                findings.push(format!("{}:{}: names the place of this very tree", file.path, number + 1));
            }
        }
    }
}
