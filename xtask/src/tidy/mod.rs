//! The rules of this house that no compiler knows. Each finding says where and why; nothing is changed.
//!
//! `crates` looks at who depends on whom, `sources` at Rust files, `documents` at what people read.

mod crates;
mod documents;
mod sources;

use std::path::{Path, PathBuf};

/// Looks at everything and lists what is wrong.
pub fn run() -> Result<(), String> {
    let tree = Tree::read(&crate::root())?;
    let mut findings = Vec::new();
    crates::look(&tree, &mut findings)?;
    sources::look(&tree, &mut findings)?;
    documents::look(&tree, &mut findings)?;
    if findings.is_empty() {
        return Ok(());
    }
    Err(format!("not tidy:\n  {}", findings.join("\n  ")))
}

/// Every text file of the source tree.
struct Tree {
    root: PathBuf,
    files: Vec<TextFile>,
}

struct TextFile {
    /// relative to the root, with slashes
    path: String,
    text: String,
}

/// Names of directories that are not looked into: what is built and what belongs to other programs.
const PASSED_BY: [&str; 3] = ["target", ".git", "node_modules"];

impl Tree {
    fn read(root: &Path) -> Result<Self, String> {
        let mut files = Vec::new();
        let mut directories = vec![root.to_path_buf()];
        while let Some(directory) = directories.pop() {
            let entries = std::fs::read_dir(&directory).map_err(|e| format!("{}: {e}", directory.display()))?;
            for entry in entries {
                let entry = entry.map_err(|e| format!("{}: {e}", directory.display()))?;
                let kind = entry.file_type().map_err(|e| e.to_string())?;
                if kind.is_dir() && !PASSED_BY.iter().any(|name| entry.file_name() == *name) {
                    directories.push(entry.path());
                }
                let Some(path) = entry.path().strip_prefix(root).ok().and_then(Path::to_str).map(str::to_owned) else {
                    return Err(format!("{}: a file's name must be plain text", entry.path().display()));
                };
                // What is not UTF-8 is no text: seeds of fuzz targets, archives.
                if kind.is_file()
                    && let Ok(text) = std::fs::read_to_string(entry.path())
                {
                    files.push(TextFile { path, text });
                }
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Self { root: root.to_path_buf(), files })
    }

    fn get(&self, path: &str) -> Result<&TextFile, String> {
        self.files.iter().find(|f| f.path == path).ok_or_else(|| format!("{path} is not there"))
    }

    fn toml(&self, path: &str) -> Result<toml::Table, String> {
        self.get(path)?.text.parse().map_err(|e| format!("{path}: {e}"))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_tree_is_tidy() {
        if let Err(findings) = super::run() {
            panic!("{findings}");
        }
    }
}
