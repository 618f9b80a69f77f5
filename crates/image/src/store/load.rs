//! What the store finds when it is opened.
//!
//! Nothing is trusted that a crash or a disk could have spoilt: what was being written goes to the trash, a layer
//! without a whole record too, and an image counts only if its record is whole and all its layers are there. What is
//! set aside is reported, and never stops the others from being read.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};

use super::record::{self, ImageRecord, LayerRecord};
use super::{Inner, LAYER_RECORD, LAYERS_DIR, Problem, RECORDS_DIR, record_name};
use crate::layer;

impl Inner {
    /// Reads everything. Only at the start, before anybody else has the store.
    pub(super) fn load(&self) -> io::Result<Vec<Problem>> {
        let mut problems = Vec::new();
        for name in names(self.staging.as_fd())? {
            self.discard(self.staging.as_fd(), &name);
        }
        for name in names(self.layers.as_fd())? {
            match self.load_layer(&name) {
                Ok(record) => self.write_state().insert_layer(record),
                Err(e) => {
                    let why = format!("{e}; the layer is deleted, images that need it are dropped");
                    problems.push(Problem { what: format!("{LAYERS_DIR}/{name}"), why });
                    self.discard(self.layers.as_fd(), &name);
                }
            }
        }
        let mut records = Vec::new();
        let mut unreadable = false;
        for name in names(self.records.as_fd())? {
            match self.load_record(&name) {
                Ok(Some(record)) => records.push((name, record)),
                Ok(None) => unlinkat(&self.records, &name, AtFlags::empty())?,
                Err(e) => {
                    unreadable = true;
                    let why = format!("{e}; the image is dropped and the record kept as {name}.broken");
                    problems.push(Problem { what: format!("{RECORDS_DIR}/{name}"), why });
                    renameat(&self.records, &name, &self.records, format!("{name}.broken"))?;
                }
            }
        }
        // The latest first, so that it has the tags that an older one claims too.
        records.sort_by_key(|(_, record)| std::cmp::Reverse(record.updated_at));
        for (name, record) in records {
            if let Err(e) = self.load_image(record) {
                let why = format!("{e}; the image is dropped");
                problems.push(Problem { what: format!("{RECORDS_DIR}/{name}"), why });
                unreadable = true;
                unlinkat(&self.records, &name, AtFlags::empty())?;
            }
        }
        if unreadable {
            self.write_state().spare_unnamed();
        }
        Ok(problems)
    }

    fn load_layer(&self, name: &str) -> io::Result<LayerRecord> {
        let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = openat(&self.layers, name, flags, Mode::empty())?;
        let record: LayerRecord = record::read(directory.as_fd(), LAYER_RECORD)?;
        openat(&directory, layer::TREE_DIR, flags, Mode::empty())?;
        if record.key.as_str() == name { Ok(record) } else { Err(invalid("its record is another layer's")) }
    }

    /// `None` for what a crash or an earlier start has left.
    fn load_record(&self, name: &str) -> io::Result<Option<ImageRecord>> {
        let Some(digits) = name.strip_suffix(".json") else { return Ok(None) };
        let record: ImageRecord = record::read(self.records.as_fd(), name)?;
        let same = record.id.hex() == digits && record.id.algorithm() == "sha256";
        let why = || io::Error::new(io::ErrorKind::InvalidData, "it is another image's record");
        if same { Ok(Some(record)) } else { Err(why()) }
    }

    fn load_image(&self, mut record: ImageRecord) -> io::Result<()> {
        let before = record.names.len();
        record.names.retain(|name| self.read_state().owner_of(name).is_none());
        let image = self.image_of(&record)?;
        if record.names.len() < before {
            record::write(self.records.as_fd(), &record_name(&record.id), &record)?;
        }
        let mut state = self.write_state();
        match record.removed {
            true => state.insert_removed(record.id, image),
            false => state.insert_image(record.id, image),
        }
        Ok(())
    }
}

/// The names in one of the store's own directories; they are the store's own too, so those that are not UTF-8 are
/// nobody's.
fn names(directory: BorrowedFd<'_>) -> io::Result<Vec<String>> {
    let fresh = openat(directory, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::new(fresh)? {
        match entry?.file_name().to_str() {
            Ok("." | "..") | Err(_) => {}
            Ok(name) => names.push(name.to_owned()),
        }
    }
    Ok(names)
}
