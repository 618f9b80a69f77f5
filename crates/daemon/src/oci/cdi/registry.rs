//! The directories of specification files: which device is described where, and who wins.
//!
//! A later directory takes precedence over an earlier one. Of two files of one directory that describe the same device
//! neither counts, unless a later directory has it too. A file that is wrong costs only its own devices; why it is
//! wrong is said to whoever asks for a device that is not there.

use super::file::{Edits, SpecFile};
use knarr_model::{Error, ErrorKind};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Bytes of one file. A host with eight GPUs, each cut into seven parts, has some hundred kilobytes.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Files of one directory that are read, in the order of their names. Drivers that write one file for each claim have
/// as many as the node has pods.
const FILES_MAX: usize = 1024;
/// Files that are wrong and are named when a device is not found; the rest is in the log.
const PROBLEMS_TOLD: usize = 3;

/// What there is at one moment.
#[derive(Debug, Default)]
pub(super) struct Registry {
    files: Vec<SpecFile>,
    devices: BTreeMap<String, Place>,
    /// Files and directories that could not be read, with the reason.
    pub(super) problems: Vec<String>,
}

/// Where a device is described.
#[derive(Debug)]
struct Place {
    /// the directory's place in the configuration
    precedence: usize,
    /// places in `files` and in its devices
    described: (usize, usize),
    /// all files of that directory that describe it
    paths: Vec<PathBuf>,
}

impl Registry {
    /// Reads the directories as they are now; one that is not there is empty.
    pub(super) fn read(directories: &[PathBuf]) -> Self {
        let mut registry = Self::default();
        for (precedence, directory) in directories.iter().enumerate() {
            match specification_files(directory) {
                Ok(paths) => paths.into_iter().for_each(|path| registry.add(path, precedence)),
                Err(error) => registry.problems.push(format!("{}: {error}", directory.display())),
            }
        }
        registry
    }

    fn add(&mut self, path: PathBuf, precedence: usize) {
        let file = match read_file(&path).and_then(|text| SpecFile::parse(&text)) {
            Ok(file) => file,
            Err(why) => return self.problems.push(format!("{}: {why}", path.display())),
        };
        let number = self.files.len();
        for (at, device) in file.devices.iter().enumerate() {
            let place = Place { precedence, described: (number, at), paths: vec![path.clone()] };
            match self.devices.get_mut(&format!("{}={}", file.kind, device.name)) {
                Some(known) if known.precedence == precedence => known.paths.push(path.clone()),
                Some(known) => *known = place,
                None => drop(self.devices.insert(format!("{}={}", file.kind, device.name), place)),
            }
        }
        self.files.push(file);
    }

    /// What all these devices change: for each the edits of its file, once, and then its own.
    pub(super) fn edits(&self, names: &[String]) -> Result<Edits, Error> {
        let mut edits = Edits::default();
        let (mut absent, mut conflicts) = (Vec::new(), Vec::new());
        let mut seen = BTreeSet::new();
        for name in names {
            let Some(place) = self.devices.get(name) else {
                absent.push(name.as_str());
                continue;
            };
            if place.paths.len() > 1 {
                let paths: Vec<_> = place.paths.iter().map(|path| path.display().to_string()).collect();
                conflicts.push(format!("{name} is described by more than one file: {}", paths.join(", ")));
                continue;
            }
            let (file, device) = place.described;
            if seen.insert(file) {
                edits.append(&self.files[file].container_edits);
            }
            edits.append(&self.files[file].devices[device].container_edits);
        }
        if absent.is_empty() && conflicts.is_empty() {
            return Ok(edits);
        }
        if !absent.is_empty() {
            conflicts.insert(0, format!("this node has no CDI device {}", absent.join(", ")));
        }
        let told = self.problems.iter().take(PROBLEMS_TOLD);
        conflicts.extend(told.map(|problem| format!("a specification is wrong: {problem}")));
        Err(Error::new(ErrorKind::FailedPrecondition, conflicts.join("; ")))
    }
}

/// Files with an ending that says what they are, in the order of their names.
fn specification_files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result?,
    };
    let paths = entries.flatten().map(|entry| entry.path());
    let mut paths: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|ending| ending == "json" || ending == "yaml")).collect();
    paths.sort();
    if paths.len() > FILES_MAX {
        return Err(io::Error::other(format!("has {} files, more than {FILES_MAX}", paths.len())));
    }
    Ok(paths)
}

fn read_file(path: &Path) -> Result<String, String> {
    // Not to be caught by a FIFO that nobody writes to.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(nonblocking).open(path).map_err(|error| error.to_string())?;
    let is_file = file.metadata().map_err(|error| error.to_string())?.is_file();
    if !is_file {
        return Err("is no file".into());
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > FILE_BYTES_MAX { Err(format!("has more than {FILE_BYTES_MAX} bytes")) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, name: &str, kind: &str, devices: &[(&str, &str)]) {
        let mut text = format!("cdiVersion: 0.6.0\nkind: {kind}\ncontainerEdits: {{env: [FILE={name}]}}\ndevices:\n");
        for (device, env) in devices {
            text += &format!("- name: {device}\n  containerEdits: {{env: [{env}]}}\n");
        }
        fs::write(directory.join(name), text).unwrap();
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn two() -> (tempfile::TempDir, Vec<PathBuf>) {
        let directory = tempfile::tempdir().unwrap();
        let both: Vec<PathBuf> = ["low", "high"].iter().map(|name| directory.path().join(name)).collect();
        both.iter().for_each(|path| fs::create_dir(path).unwrap());
        (directory, both)
    }

    #[test]
    fn the_files_edits_come_once_and_before_its_devices() {
        let (_dir, both) = two();
        write(&both[0], "a.yaml", "v/a", &[("1", "D=1"), ("2", "D=2")]);
        write(&both[0], "b.json", "v/b", &[("x", "D=x")]);
        write(&both[0], "ignored.yml", "v/c", &[("x", "D=x")]);
        let registry = Registry::read(&both);
        assert_eq!(registry.problems, Vec::<String>::new());
        let edits = registry.edits(&names(&["v/a=2", "v/b=x", "v/a=1"])).unwrap();
        assert_eq!(edits.env, ["FILE=a.yaml", "D=2", "FILE=b.json", "D=x", "D=1"]);
        assert!(registry.edits(&names(&["v/c=x"])).is_err());
    }

    #[test]
    fn a_later_directory_wins_and_two_files_of_one_are_a_conflict() {
        let (_dir, both) = two();
        for (directory, file, env) in [(0, "a.yaml", "D=low"), (0, "b.yaml", "D=too"), (1, "a.yaml", "D=high")] {
            write(&both[directory], file, "v/c", &[("1", env)]);
        }
        write(&both[0], "c.yaml", "v/c", &[("2", "D=2")]);
        write(&both[0], "d.yaml", "v/c", &[("2", "D=2")]);
        let registry = Registry::read(&both);
        assert_eq!(registry.edits(&names(&["v/c=1"])).unwrap().env, ["FILE=a.yaml", "D=high"]);
        let error = registry.edits(&names(&["v/c=1", "v/c=2"])).unwrap_err();
        assert!(error.message.contains("c.yaml") && error.message.contains("d.yaml"), "{error}");
        let reversed = Registry::read(&[both[1].clone(), both[0].clone()]);
        assert!(reversed.edits(&names(&["v/c=1"])).is_err(), "now the conflict is in the directory that counts");
    }

    #[test]
    fn a_wrong_file_costs_only_its_own_devices_and_is_named_to_who_misses_them() {
        let (_dir, both) = two();
        write(&both[0], "good.yaml", "v/good", &[("1", "D=1")]);
        fs::write(both[0].join("bad.json"), "{\"kind\": 7}").unwrap();
        fs::write(both[1].join("binary.json"), [0xff, 0xfe]).unwrap();
        fs::create_dir(both[1].join("directory.yaml")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, both[1].join("fifo.yaml"), rustix::fs::Mode::RUSR).unwrap();
        let registry = Registry::read(&both);
        assert_eq!(registry.problems.len(), 4, "{:?}", registry.problems);
        registry.edits(&names(&["v/good=1"])).unwrap();
        let error = registry.edits(&names(&["v/bad=1", "v/good=1", "v/worse=2"])).unwrap_err();
        assert_eq!(error.kind, ErrorKind::FailedPrecondition);
        for told in ["v/bad=1, v/worse=2", "bad.json: "] {
            assert!(error.message.contains(told), "{told} is not in {error}");
        }
        assert!(!error.message.contains("v/good"), "{error}");
    }

    #[test]
    fn what_is_too_much_is_refused_and_what_is_absent_is_empty() {
        let (dir, both) = two();
        File::create(both[0].join("large.json")).unwrap().set_len(FILE_BYTES_MAX + 1).unwrap();
        (0..=FILES_MAX).for_each(|n| fs::write(both[1].join(format!("{n}.json")), "").unwrap());
        let registry = Registry::read(&both);
        assert_eq!(registry.problems.len(), 2, "{:?}", registry.problems);
        assert_eq!(Registry::read(&[dir.path().join("absent")]).problems.len(), 0);
    }
}
