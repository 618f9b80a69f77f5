//! What every Rust file must look like: a head, a bearable length, no unsafe code outside its room, no names that say
//! nothing.

use super::{TextFile, Tree};
use std::collections::BTreeMap;

/// Lines from which a file is on the list of long ones.
const LONG: usize = 700;

/// Lines that no file may have that was written by hand.
const TOO_LONG: usize = 1000;

/// The list: "path lines", one file each. A number may only fall.
const LONG_FILES: &str = "xtask/long-files.txt";

/// Names of modules and ends of types that tell the reader nothing about what is inside.
const EMPTY_NAMES: [&str; 8] = ["utils", "util", "common", "helpers", "helper", "manager", "misc", "stuff"];

pub(super) fn look(tree: &Tree, findings: &mut Vec<String>) -> Result<(), String> {
    let sources = || tree.files.iter().filter(|f| f.path.ends_with(".rs") && !f.path.contains("/generated/"));
    for file in sources() {
        head(file, findings);
        unsafety(file, findings);
        names(file, findings);
        switched_off_tests(file, findings);
    }
    lengths(tree, sources(), findings)
}

fn head(file: &TextFile, findings: &mut Vec<String>) {
    if !file.text.starts_with("//! ") {
        findings.push(format!("{}: opens without `//!` saying what it is responsible for", file.path));
    }
}

/// The lint forbids it everywhere else; this keeps anybody from lifting the lint.
fn unsafety(file: &TextFile, findings: &mut Vec<String>) {
    if file.path.starts_with("crates/sys/") {
        return;
    }
    // In two parts, so that this file does not find itself.
    let lifted = concat!("allow(", "unsafe_code");
    for (number, line) in file.text.lines().enumerate() {
        let code = line.trim_start();
        let opens = ["unsafe {", "unsafe fn ", "unsafe impl ", "unsafe extern "].iter().any(|u| code.contains(u));
        if !code.starts_with("//") && !code.contains('"') && (opens || code.contains(lifted)) {
            findings.push(format!("{}:{}: unsafe code outside crates/sys", file.path, number + 1));
        }
    }
}

fn names(file: &TextFile, findings: &mut Vec<String>) {
    let parts = file.path.trim_end_matches(".rs").split('/');
    for part in parts.filter(|p| EMPTY_NAMES.contains(p)) {
        findings.push(format!("{}: {part:?} says nothing about what is inside", file.path));
    }
    for (number, line) in file.text.lines().enumerate() {
        let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty());
        let Some(kind) = words.find(|w| !matches!(*w, "pub" | "crate" | "super" | "in")) else { continue };
        let Some(name) = words.next() else { continue };
        let empty = match kind {
            "mod" => EMPTY_NAMES.contains(&name),
            "struct" | "enum" | "trait" => ["Manager", "Helper", "Util", "Utils"].iter().any(|e| name.ends_with(e)),
            _ => false,
        };
        if empty && !line.trim_start().starts_with("//") {
            findings.push(format!("{}:{}: the name {name} says nothing", file.path, number + 1));
        }
    }
}

fn switched_off_tests(file: &TextFile, findings: &mut Vec<String>) {
    for (number, line) in file.text.lines().enumerate() {
        if line.trim_start().starts_with(concat!("#[", "ignore")) {
            findings.push(format!("{}:{}: a test that is switched off", file.path, number + 1));
        }
    }
}

fn lengths<'a>(
    tree: &Tree,
    sources: impl Iterator<Item = &'a TextFile>,
    findings: &mut Vec<String>,
) -> Result<(), String> {
    let mut listed = BTreeMap::new();
    for line in tree.get(LONG_FILES)?.text.lines().filter(|l| !l.starts_with('#') && !l.trim().is_empty()) {
        let (path, lines) =
            line.split_once(' ').ok_or_else(|| format!("{LONG_FILES}: {line:?} is not \"path lines\""))?;
        let lines: usize = lines.trim().parse().map_err(|e| format!("{LONG_FILES}: {line:?}: {e}"))?;
        listed.insert(path, lines);
    }
    for file in sources {
        let lines = file.text.lines().count();
        match listed.remove(file.path.as_str()) {
            _ if lines > TOO_LONG => findings.push(format!("{}: {lines} lines; find the seam", file.path)),
            Some(limit) if lines > limit => {
                findings.push(format!("{}: has grown from {limit} to {lines} lines; find the seam", file.path));
            }
            Some(limit) if lines < limit => {
                findings.push(format!("{}: has shrunk to {lines} lines; write that into {LONG_FILES}", file.path));
            }
            None if lines > LONG => {
                findings.push(format!("{}: {lines} lines; find the seam, or list it in {LONG_FILES}", file.path));
            }
            Some(_) | None => {}
        }
    }
    findings.extend(listed.keys().map(|path| format!("{LONG_FILES}: {path} is not there")));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(look: fn(&TextFile, &mut Vec<String>), path: &str, text: &str) -> usize {
        let mut findings = Vec::new();
        look(&TextFile { path: path.into(), text: text.into() }, &mut findings);
        findings.len()
    }

    #[test]
    fn a_file_without_a_head_is_found() {
        assert_eq!(findings(head, "a.rs", "use x;\n"), 1);
        assert_eq!(findings(head, "a.rs", "//! Says something.\n"), 0);
    }

    #[test]
    fn unsafe_code_is_found_outside_its_room_only() {
        let text = concat!("fn f() { uns", "afe { g() } }\n");
        assert_eq!(findings(unsafety, "crates/image/src/a.rs", text), 1);
        assert_eq!(findings(unsafety, "crates/sys/src/a.rs", text), 0);
        assert_eq!(findings(unsafety, "crates/image/src/a.rs", "// unsafe { in words }\n"), 0);
    }

    #[test]
    fn empty_names_are_found() {
        assert_eq!(findings(names, "crates/a/src/utils.rs", ""), 1);
        assert_eq!(findings(names, "a.rs", "pub(crate) mod helpers;\n"), 1);
        assert_eq!(findings(names, "a.rs", "pub struct PodManager {\n"), 1);
        assert_eq!(findings(names, "a.rs", "pub struct Pod { manager: u8 }\n// mod utils\n"), 0);
    }
}
