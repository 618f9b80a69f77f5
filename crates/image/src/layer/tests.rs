//! Whole archives into real directories: what GNU tar makes of them, what an attacker puts in them, what an export
//! must give back. As root, because owners, devices and overlayfs' attributes are half of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use proptest::prelude::*;
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

use super::*;

/// A tar archive, put together header by header so that it can be as wrong as needed.
#[derive(Default, Clone)]
struct Tar(Vec<u8>);

impl Tar {
    fn raw(mut self, header: &Header, data: &[u8]) -> Self {
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn entry(self, kind: EntryType, name: &str, link: &str, mode: u32, data: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(data.len() as u64);
        header.set_cksum();
        self.raw(&header, data)
    }

    fn file(self, name: &str, data: &str) -> Self {
        self.entry(EntryType::Regular, name, "", 0o644, data.as_bytes())
    }

    fn dir(self, name: &str) -> Self {
        self.entry(EntryType::Directory, name, "", 0o755, b"")
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, name, target, 0o777, b"")
    }

    fn hard_link(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Link, name, target, 0o644, b"")
    }

    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let body = key.len() + value.len() + 3;
            let length = (body + 1..).find(|length| length.to_string().len() + body == *length).unwrap();
            data.extend_from_slice(format!("{length} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.entry(EntryType::XHeader, "pax", "", 0o644, &data)
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

/// A layer's directory in a directory that holds a file nobody may touch.
struct Stage {
    dir: tempfile::TempDir,
}

impl Stage {
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: owners, devices and trusted attributes need root");
            return None;
        }
        let stage = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::create_dir(stage.layer()).unwrap();
        std::fs::write(stage.dir.path().join("outside"), "untouched").unwrap();
        Some(stage)
    }

    fn layer(&self) -> PathBuf {
        self.dir.path().join("layer")
    }

    fn root(&self) -> PathBuf {
        self.layer().join(TREE_DIR)
    }

    fn apply(&self, archive: &[u8]) -> Result<Applied, LayerError> {
        let applied = apply(archive, &self.layer(), &Limits::default());
        let outside: Vec<_> = std::fs::read_dir(self.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(outside.len(), 2, "something was made outside: {outside:?}");
        let path = self.dir.path().join("outside");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "untouched");
        let metadata = std::fs::metadata(&path).unwrap();
        assert!(metadata.mode() & 0o7777 == 0o644 && metadata.nlink() == 1 && metadata.uid() == 0);
        applied
    }

    /// Applies, and checks that the very archive comes back.
    fn apply_and_reassemble(&self, archive: &[u8]) -> Applied {
        let applied = self.apply(archive).unwrap();
        assert_eq!(applied.diff_id, Digest::sha256_of(archive));
        assert_eq!(applied.archive_bytes, archive.len() as u64);
        let mut again = Vec::new();
        reassemble(&self.layer(), &mut again).unwrap();
        assert!(again == archive, "the archive does not come back as it was");
        applied
    }
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = [0; 1024];
    let length = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    Some(value[..length].to_vec())
}

fn is_whiteout(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|m| m.file_type().is_char_device() && m.rdev() == 0)
}

/// Every path with all that tells two trees apart. Directories in `vague` are only said to be there. The time of a
/// directory does not count: GNU tar sets it too early when an archive comes back to a directory.
fn snapshot(root: &Path, vague: &[Vec<u8>]) -> BTreeMap<String, String> {
    fn visit(
        root: &Path,
        path: &Path,
        vague: &[Vec<u8>],
        names: &mut BTreeMap<u64, String>,
        all: &mut BTreeMap<String, String>,
    ) {
        let metadata = path.symlink_metadata().unwrap();
        let relative = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        let kind = metadata.file_type();
        let mut line = format!("{:?}", kind);
        if !(relative.is_empty() || vague.contains(&relative.clone().into_bytes())) {
            let (mode, uid, gid) = (metadata.mode() & 0o7777, metadata.uid(), metadata.gid());
            write!(line, " {mode:o} {uid}:{gid}").unwrap();
            if !kind.is_dir() {
                write!(line, " {}.{}", metadata.mtime(), metadata.mtime_nsec()).unwrap();
            }
        }
        if kind.is_symlink() {
            write!(line, " -> {:?}", std::fs::read_link(path).unwrap()).unwrap();
        }
        if kind.is_char_device() || kind.is_block_device() {
            write!(line, " dev {}", metadata.rdev()).unwrap();
        }
        if kind.is_file() {
            write!(line, " {} {:x?}", metadata.len(), &Sha256::digest(std::fs::read(path).unwrap())[..4]).unwrap();
        }
        if !kind.is_dir() {
            let first = names.entry(metadata.ino()).or_insert_with(|| relative.clone());
            write!(line, " same as {first}").unwrap();
        }
        all.insert(relative, line);
        if kind.is_dir() {
            let mut entries: Vec<_> = std::fs::read_dir(path).unwrap().map(|e| e.unwrap().path()).collect();
            entries.sort();
            for entry in entries {
                visit(root, &entry, vague, names, all);
            }
        }
    }
    let mut all = BTreeMap::new();
    visit(root, root, vague, &mut BTreeMap::new(), &mut all);
    all
}

/// What GNU tar makes of the archive; `None` when it complains.
fn gnu_tar(archive: &[u8], into: &Path) -> Option<()> {
    std::fs::create_dir(into).unwrap();
    let args = [
        "--extract",
        "--preserve-permissions",
        "--same-owner",
        "--numeric-owner",
        "--xattrs",
        "--xattrs-include=*",
        "-C",
    ];
    let mut tar = Command::new("tar").args(args).arg(into).stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    // It may end before it has read everything.
    let _ = tar.stdin.take().unwrap().write_all(archive);
    tar.wait().unwrap().success().then_some(())
}

/// One entry of a random archive. Few names, so that they meet.
#[derive(Debug, Clone)]
struct RandomEntry {
    kind: u8,
    name: String,
    target: String,
    mode: u32,
    uid: u32,
    mtime: u32,
    data: Vec<u8>,
    spelling: u8,
}

fn random_entry() -> impl Strategy<Value = RandomEntry> {
    let component = prop::sample::select(&["a", "b", "c", "d"][..]);
    let path = || prop::collection::vec(component.clone(), 1..4).prop_map(|parts| parts.join("/"));
    let mode = prop::sample::select(&[0o644, 0o755, 0o4755, 0o2755, 0o1777, 0o600, 0][..]);
    let data =
        prop_oneof![3 => prop::collection::vec(any::<u8>(), 0..3), 1 => prop::collection::vec(any::<u8>(), 500..1600)];
    (prop::sample::select(&b"00000555212346"[..]), path(), path(), mode, 0..3u32, 0..2_000_000_000u32, data, 0..4u8)
        .prop_map(|(kind, name, target, mode, uid, mtime, data, spelling)| {
            // GNU tar lets a directory's set-group-id bit pass to those below, against their own headers.
            let mode = if kind == b'5' { mode & !0o2000 } else { mode };
            let data = if kind == b'0' { data } else { Vec::new() };
            RandomEntry { kind, name, target, mode, uid: uid * 1000, mtime, data, spelling }
        })
}

fn random_archive(entries: &[RandomEntry]) -> Vec<u8> {
    let mut tar = Tar::default();
    for entry in entries {
        let name = match (entry.spelling, entry.kind) {
            (1, _) => format!("./{}", entry.name),
            (2, b'5') => format!("{}/", entry.name),
            (3, _) => entry.name.replacen('/', "//./", 1),
            _ => entry.name.clone(),
        };
        let mut header = Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        if matches!(entry.kind, b'1' | b'2') {
            header.as_old_mut().linkname[..entry.target.len()].copy_from_slice(entry.target.as_bytes());
        }
        header.set_entry_type(EntryType::new(entry.kind));
        header.set_mode(entry.mode);
        header.set_uid(entry.uid.into());
        header.set_gid((entry.uid / 2).into());
        header.set_mtime(entry.mtime.into());
        header.set_size(entry.data.len() as u64);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        header.set_cksum();
        tar = tar.raw(&header, &entry.data);
    }
    tar.end()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Where GNU tar is content, the trees are the same; and the archive always comes back.
    #[test]
    fn the_tree_is_the_one_that_gnu_tar_makes(entries in prop::collection::vec(random_entry(), 1..14)) {
        let Some(stage) = Stage::new() else { return Ok(()) };
        let archive = random_archive(&entries);
        let Ok(applied) = stage.apply(&archive) else { return Ok(()) };
        let mut again = Vec::new();
        reassemble(&stage.layer(), &mut again).unwrap();
        prop_assert!(again == archive, "the archive does not come back as it was");

        let reference = tempfile::tempdir().unwrap();
        let theirs = reference.path().join("gnu");
        if gnu_tar(&archive, &theirs).is_some() && applied.pending.links.is_empty() {
            let vague = &applied.pending.implied;
            prop_assert_eq!(snapshot(&stage.root(), vague), snapshot(&theirs, vague));
        }
    }

    /// Random bytes in a valid archive: an error or a tree inside the root, never a panic.
    #[test]
    fn a_damaged_archive_stays_inside(entries in prop::collection::vec(random_entry(), 1..6), damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let Some(stage) = Stage::new() else { return Ok(()) };
        let mut archive = random_archive(&entries);
        for (at, byte) in damage {
            let at = at.index(archive.len());
            archive[at] = byte;
        }
        // A right checksum for every block that could be a header, so that the damage is looked at.
        for block in archive.chunks_exact_mut(512) {
            if block[257..262] == *b"ustar" {
                let mut header = Header::new_old();
                header.as_mut_bytes().copy_from_slice(block);
                header.set_cksum();
                block.copy_from_slice(header.as_bytes());
            }
        }
        let _ = stage.apply(&archive);
    }
}

#[test]
fn a_real_tree_goes_in_and_comes_back_in_every_format() {
    let Some(source) = Stage::new() else { return };
    let tree = source.dir.path().join("layer");
    std::fs::create_dir_all(tree.join("deep/".to_owned() + &"long-name/".repeat(20))).unwrap();
    std::fs::write(tree.join("deep/file"), vec![7; 100_000]).unwrap();
    std::fs::hard_link(tree.join("deep/file"), tree.join("linked")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", tree.join("absolute")).unwrap();
    std::os::unix::fs::symlink("../../up", tree.join("up")).unwrap();
    let sparse = std::fs::File::create(tree.join("sparse")).unwrap();
    sparse.set_len(10_000_000).unwrap();
    std::os::unix::fs::FileExt::write_at(&sparse, b"in the middle", 5_000_000).unwrap();
    rustix::fs::setxattr(tree.join("deep/file"), "user.note", b"a\nb", rustix::fs::XattrFlags::empty()).unwrap();
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    rustix::fs::setxattr(tree.join("linked"), "security.capability", capability, rustix::fs::XattrFlags::empty())
        .unwrap();

    for format in
        [&["--format=gnu"][..], &["--format=gnu", "-S"], &["--format=pax", "-S", "--xattrs"], &["--format=pax"]]
    {
        let tar = Command::new("tar").args(format).args(["-cf", "-", "-C"]).arg(&tree).arg(".").output().unwrap();
        assert!(tar.status.success());
        let stage = Stage::new().unwrap();
        let applied = stage.apply_and_reassemble(&tar.stdout);
        assert!(applied.pending.is_empty());
        assert_eq!(snapshot(&stage.root(), &[]).len(), snapshot(&tree, &[]).len());
        let theirs = stage.dir.path().join("layer/gnu");
        gnu_tar(&tar.stdout, &theirs).unwrap();
        assert_eq!(snapshot(&stage.root(), &[]), snapshot(&theirs, &[]), "{format:?}");
        if format.contains(&"--xattrs") {
            assert_eq!(xattr(&stage.root().join("deep/file"), "user.note").unwrap(), b"a\nb");
            assert_eq!(xattr(&stage.root().join("linked"), "security.capability").unwrap(), capability);
        }
    }
}

#[test]
fn every_compression_gives_the_same_layer() {
    let archive = Tar::default().dir("a/").file("a/b", &"content ".repeat(10_000)).end();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&archive).unwrap();
    for compressed in [archive.clone(), gzip.finish().unwrap(), zstd::encode_all(&archive[..], 3).unwrap()] {
        let Some(stage) = Stage::new() else { return };
        let applied = stage.apply(&compressed).unwrap();
        assert_eq!(applied.digest, Digest::sha256_of(&compressed));
        assert_eq!(applied.compressed_bytes, compressed.len() as u64);
        assert_eq!(applied.diff_id, Digest::sha256_of(&archive));
    }
}

#[test]
fn whiteouts_become_the_marks_of_overlayfs() {
    let Some(stage) = Stage::new() else { return };
    let archive = Tar::default()
        .dir("d/")
        .file("d/.wh.gone", "")
        .file("d/sub/.wh..wh..opq", "a payload that means nothing")
        .file(".wh.top", "")
        .file(".wh..wh.aufs", "storage driver's own")
        .dir(".wh..wh.plnk/")
        .file(".wh..wh.plnk/1.2", "storage driver's own")
        // What this layer has stays, before and after; a directory hides what is below it.
        .file("d/kept", "kept")
        .file("d/.wh.kept", "")
        .dir("d/reborn/")
        .file("d/.wh.reborn", "")
        .file("d/.wh.later", "")
        .dir("d/later/")
        .file(".wh.implied", "")
        .file("implied/file", "")
        .entry(EntryType::Char, "char-0-0", "", 0o600, b"")
        .end();
    stage.apply_and_reassemble(&archive);
    let root = stage.root();
    let opaque = |path: &str| xattr(&root.join(path), tree::OPAQUE_XATTR).as_deref() == Some(b"y");
    for path in ["d/gone", "top", "char-0-0"] {
        assert!(is_whiteout(&root.join(path)), "{path}");
    }
    for path in ["d/sub", "d/reborn", "d/later", "implied"] {
        assert!(opaque(path) && root.join(path).is_dir(), "{path}");
    }
    assert!(!opaque("d") && !opaque("."));
    assert_eq!(std::fs::read(root.join("d/kept")).unwrap(), b"kept");
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 4, "d, top, implied, char-0-0");
}

#[test]
fn an_opaque_root_is_an_opaque_root() {
    let Some(stage) = Stage::new() else { return };
    stage.apply_and_reassemble(&Tar::default().file(".wh..wh..opq", "").file("a", "").end());
    assert_eq!(xattr(&stage.root(), tree::OPAQUE_XATTR).unwrap(), b"y");
}

#[test]
fn what_is_replaced_is_gone_from_the_tree_and_still_comes_back() {
    let Some(stage) = Stage::new() else { return };
    let archive = Tar::default()
        .file("f", "first")
        .hard_link("link", "f")
        .file("f", "second")
        .dir("d/")
        .file("d/x", "in a directory")
        .dir("d/e/")
        .file("d/e/y", "deeper")
        .file("d", "a file now")
        .dir("d/")
        .file("d/x", "again")
        .symlink("d/x", "elsewhere")
        .symlink("s", "d")
        .dir("s/")
        .file("s/z", "not through the link")
        .file("f", "third")
        .file("empty", "")
        .file("empty", "full")
        .end();
    stage.apply_and_reassemble(&archive);
    let root = stage.root();
    assert_eq!(std::fs::read(root.join("f")).unwrap(), b"third");
    assert_eq!(std::fs::read(root.join("link")).unwrap(), b"first");
    assert_eq!(std::fs::read_link(root.join("d/x")).unwrap(), Path::new("elsewhere"));
    assert!(!root.join("d/e").exists() && !root.join("d/z").exists());
    assert_eq!(std::fs::read(root.join("s/z")).unwrap(), b"not through the link");
    assert_eq!(std::fs::read(root.join("empty")).unwrap(), b"full");
}

#[test]
fn names_that_lead_out_end_at_the_root() {
    for (archive, path) in [
        (Tar::default().file("../../../outside", "x"), "outside"),
        (Tar::default().file("/outside", "x"), "outside"),
        (Tar::default().file("a/../../outside", "x"), "outside"),
        (Tar::default().symlink("up", "../..").file("up/outside", "x"), "outside"),
        (Tar::default().symlink("up", "/../../").file("up/outside", "x"), "outside"),
        (Tar::default().symlink("a", "..").symlink("a/b", "..").file("b/../a/b/outside", "x"), "outside"),
        (Tar::default().dir("d").symlink("d/l", "../../../..").file("d/l/outside", "x"), "outside"),
        // A link of the archive leads to a place that the archive then makes.
        (Tar::default().symlink("l", "/proc/self/root").file("l/outside", "x"), "proc/self/root/outside"),
    ] {
        let Some(stage) = Stage::new() else { return };
        stage.apply_and_reassemble(&archive.end());
        assert_eq!(std::fs::read(stage.root().join(path)).unwrap(), b"x", "{path}");
    }
}

#[test]
fn metadata_never_goes_through_a_link() {
    // The classic: a link to a file outside, a hard link to the link, then new metadata for that name.
    let outside = "../../outside";
    for archive in [
        Tar::default().symlink("l", outside).hard_link("h", "l").entry(EntryType::Regular, "h", "", 0o4777, b"x"),
        Tar::default().symlink("l", outside).hard_link("h", "l").entry(EntryType::Directory, "h", "", 0o4777, b""),
        Tar::default().symlink("l", outside).entry(EntryType::Regular, "l", "", 0o777, b"overwritten"),
        Tar::default().symlink("l", outside).entry(EntryType::Fifo, "l", "", 0o777, b""),
        Tar::default().symlink("d", "../..").entry(EntryType::Directory, "d", "", 0o777, b""),
        Tar::default().symlink("d", "../..").file("d/.wh.outside", ""),
        Tar::default().symlink("d", "../..").file("d/.wh..wh..opq", ""),
    ] {
        let Some(stage) = Stage::new() else { return };
        let before = std::fs::metadata(stage.dir.path()).unwrap().mode();
        stage.apply_and_reassemble(&archive.end());
        assert_eq!(std::fs::metadata(stage.dir.path()).unwrap().mode(), before);
        assert_eq!(xattr(stage.dir.path(), tree::OPAQUE_XATTR), None);
    }
}

#[test]
fn hostile_archives_are_errors() {
    let huge_id = {
        let mut header = Header::new_gnu();
        header.set_path("f").unwrap();
        header.set_size(0);
        header.set_mode(0o644);
        header.set_uid(u64::from(u32::MAX));
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        Tar::default().raw(&header, b"")
    };
    let loops = Tar::default().symlink("a", "b").symlink("b", "a").file("a/f", "x");
    for (archive, word) in [
        (Tar::default().file("d/.wh...", ""), "whiteout"),
        (Tar::default().file("d/.wh..", ""), "whiteout"),
        (Tar::default().file("d/.wh.", ""), "whiteout"),
        (Tar::default().pax(&[("path", b"a\0b")]).file("f", ""), "NUL"),
        (Tar::default().pax(&[("path", &[b'a'; 300])]).file("f", ""), "255"),
        (Tar::default().pax(&[("path", &b"/ab".repeat(3000))]).file("f", ""), "4095"),
        (Tar::default().pax(&[("linkpath", b"a\0b")]).symlink("l", "x"), "target"),
        (Tar::default().symlink("l", ""), "target"),
        (Tar::default().dir("d").hard_link("h", "d"), "directory"),
        (Tar::default().hard_link("h", "/"), "root"),
        (Tar::default().hard_link("h", ".."), "root"),
        (Tar::default().file(".wh.x", "").hard_link("h", "x"), "deletes"),
        (Tar::default().file("f", "").file("f/below", ""), "Not a directory"),
        (Tar::default().file(".", ""), "root"),
        (Tar::default().entry(EntryType::new(b'N'), "old", "", 0, b""), "type"),
        (Tar::default().pax(&[("uid", b"4294967295")]).file("f", ""), "out of range"),
        (huge_id, "out of range"),
        (loops, "symbolic links"),
    ] {
        let Some(stage) = Stage::new() else { return };
        let error = stage.apply(&archive.end()).unwrap_err().to_string();
        assert!(error.contains(word), "{error:?} does not speak of {word:?}");
    }
}

#[test]
fn limits_end_a_layer_that_grows_without_bounds() {
    let Some(stage) = Stage::new() else { return };
    let limits = Limits { entries_max: 10, content_bytes_max: 1000, archive_bytes_max: 1 << 20 };
    let attempt = |name: &str, archive: &[u8]| {
        let layer = stage.dir.path().join(name);
        std::fs::create_dir(&layer).unwrap();
        apply(archive, &layer, &limits).unwrap_err().to_string()
    };
    let many = (0..11).fold(Tar::default(), |tar, n| tar.file(&n.to_string(), ""));
    assert!(attempt("many", &many.end()).contains("10 entries"));
    assert!(attempt("content", &Tar::default().file("f", &"x".repeat(1001)).end()).contains("1000 bytes of content"));
    // A bomb: ten megabytes of nothing after the end, in a few kilobytes.
    let mut bomb = Tar::default().end();
    bomb.resize(10 << 20, 0);
    assert!(attempt("bomb", &zstd::encode_all(&bomb[..], 3).unwrap()).contains("larger than 1048576"));
    let holes = Tar::default().pax(&[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.realsize", b"1152921504606846976"),
    ]);
    let mut map = b"0\n".to_vec();
    map.resize(512, 0);
    let holes = holes.entry(EntryType::Regular, "holes", "", 0o644, &map);
    assert!(attempt("holes", &holes.end()).contains("1000 bytes of content"));
}

#[test]
fn only_attributes_of_the_image_are_set() {
    let Some(stage) = Stage::new() else { return };
    let archive = Tar::default()
        .pax(&[
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.trusted.overlay.metacopy", b""),
            ("SCHILY.xattr.security.selinux", b"system_u:object_r:shadow_t:s0"),
            ("SCHILY.xattr.user.fine", b"yes"),
        ])
        .dir("d")
        .end();
    stage.apply_and_reassemble(&archive);
    let path = stage.root().join("d");
    assert_eq!(xattr(&path, "user.fine").unwrap(), b"yes");
    assert_eq!(std::fs::metadata(&path).unwrap().mtime(), 1_000_000_000);
    for name in ["trusted.overlay.redirect", "trusted.overlay.metacopy", "security.selinux"] {
        assert_eq!(xattr(&path, name), None, "{name}");
    }
}

#[test]
fn a_broken_stream_says_which_side_broke() {
    let Some(stage) = Stage::new() else { return };
    struct Broken<'a>(&'a [u8]);
    impl Read for Broken<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() { Err(io::Error::other("the connection was lost")) } else { self.0.read(buffer) }
        }
    }
    let archive = Tar::default().file("f", &"x".repeat(5000)).end();
    let gz = {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
        gzip.write_all(&archive).unwrap();
        gzip.finish().unwrap()
    };
    for (number, bytes) in [&archive[..3000], &gz[..3000], &gz[..5]].into_iter().enumerate() {
        let layer = stage.dir.path().join(number.to_string());
        std::fs::create_dir(&layer).unwrap();
        let error = apply(Broken(bytes), &layer, &Limits::default()).unwrap_err();
        assert!(matches!(error, LayerError::Input(_)) && error.to_string().contains("connection was lost"), "{error}");
        let layer = stage.dir.path().join(format!("{number} cut"));
        std::fs::create_dir(&layer).unwrap();
        assert!(apply(bytes, &layer, &Limits::default()).is_err(), "a stream cut short is no layer");
    }
}

#[test]
fn implied_directories_take_after_the_layer_below() {
    let Some(base) = Stage::new() else { return };
    let archive = Tar::default()
        .entry(EntryType::Directory, "tmp", "", 0o1777, b"")
        .entry(EntryType::Directory, "secret", "", 0o700, b"")
        .entry(EntryType::Directory, "gone", "", 0o700, b"")
        .entry(EntryType::Directory, "gone/sub", "", 0o700, b"")
        .file("file", "")
        .end();
    base.apply(&archive).unwrap();
    let middle = Stage::new().unwrap();
    middle
        .apply(&Tar::default().file(".wh.gone", "").entry(EntryType::Directory, "secret", "", 0o750, b"").end())
        .unwrap();
    let top = Stage::new().unwrap();
    let applied = top
        .apply(&Tar::default().file("tmp/a", "").file("secret/b", "").file("gone/sub/c", "").file("new/d", "").end())
        .unwrap();
    assert_eq!(applied.pending.implied.len(), 5);
    complete(&top.layer(), &[middle.layer(), base.layer()], &applied.pending).unwrap();
    let mode = |path: &str| std::fs::metadata(top.root().join(path)).unwrap().mode() & 0o7777;
    assert_eq!(mode("tmp"), 0o1777);
    assert_eq!(mode("secret"), 0o750, "the higher of two layers counts");
    assert_eq!(mode("gone/sub"), 0o755, "a whiteout in between hides it");
    assert_eq!(mode("new"), 0o755);
}

#[test]
fn hard_links_to_lower_layers_are_copied_up_with_both_names() {
    let Some(base) = Stage::new() else { return };
    base.apply(
        &Tar::default()
            .entry(EntryType::Directory, "bin", "", 0o711, b"")
            .entry(EntryType::Regular, "bin/tool", "", 0o4755, b"content")
            .symlink("l", "bin")
            .end(),
    )
    .unwrap();
    let top = Stage::new().unwrap();
    let archive = Tar::default()
        .hard_link("copy", "bin/tool")
        .hard_link("second", "copy")
        .hard_link("link", "l")
        .hard_link("taken", "bin/tool")
        .file("taken", "other")
        .end();
    let applied = top.apply_and_reassemble(&archive);
    assert_eq!(applied.pending.links.len(), 4);
    complete(&top.layer(), &[base.layer()], &applied.pending).unwrap();
    let metadata = |path: &str| std::fs::symlink_metadata(top.root().join(path)).unwrap();
    assert_eq!(std::fs::read(top.root().join("copy")).unwrap(), b"content");
    assert_eq!(metadata("copy").mode() & 0o7777, 0o4755);
    assert_eq!(metadata("copy").nlink(), 3, "copy, second and bin/tool");
    assert_eq!(metadata("bin").mode() & 0o7777, 0o711);
    assert!(metadata("link").is_symlink());
    assert_eq!(std::fs::read(top.root().join("taken")).unwrap(), b"other");
    let mut again = Vec::new();
    reassemble(&top.layer(), &mut again).unwrap();
    assert!(again == archive);

    let orphan = Stage::new().unwrap();
    let applied = orphan.apply(&Tar::default().hard_link("h", "nowhere").end()).unwrap();
    let error = complete(&orphan.layer(), &[base.layer()], &applied.pending).unwrap_err().to_string();
    assert!(error.contains("nowhere") && error.contains("no layer has"), "{error}");
}

#[test]
fn a_changed_layer_does_not_pass_for_the_archive() {
    let Some(stage) = Stage::new() else { return };
    stage.apply(&Tar::default().file("f", "content").end()).unwrap();
    std::fs::write(stage.root().join("f"), "short").unwrap();
    assert!(reassemble(&stage.layer(), &mut Vec::new()).is_err());
    std::fs::remove_file(stage.root().join("f")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", stage.root().join("f")).unwrap();
    assert!(reassemble(&stage.layer(), &mut Vec::new()).is_err());
}

#[test]
fn overlayfs_understands_what_is_written() {
    let Some(base) = Stage::new() else { return };
    let archive = Tar::default()
        .dir("kept")
        .file("kept/below", "")
        .dir("gone")
        .file("gone/x", "")
        .dir("hidden")
        .file("hidden/old", "")
        .dir("reborn")
        .file("reborn/old", "")
        .file("file", "old")
        .end();
    base.apply(&archive).unwrap();
    let top = Stage::new().unwrap();
    let archive = Tar::default()
        .dir("kept")
        .file("kept/above", "")
        .file(".wh.gone", "")
        .dir("hidden")
        .file("hidden/.wh..wh..opq", "")
        .file("hidden/new", "")
        .file(".wh.reborn", "")
        .dir("reborn")
        .file("reborn/new", "")
        .file(".wh.file", "")
        .file("file", "new")
        .end();
    top.apply(&archive).unwrap();

    let target = tempfile::tempdir().unwrap();
    let seen = std::thread::spawn(move || {
        knarr_sys::thread::enter_private_mount_namespace().unwrap();
        let lowers = format!("lowerdir={}:{}", top.root().display(), base.root().display());
        let lowers = std::ffi::CString::new(lowers).unwrap();
        let flags = rustix::mount::MountFlags::RDONLY;
        rustix::mount::mount("overlay", target.path(), "overlay", flags, Some(lowers.as_c_str())).unwrap();
        let seen: Vec<String> = snapshot(target.path(), &[]).into_keys().collect();
        let content = std::fs::read_to_string(target.path().join("file")).unwrap();
        rustix::mount::unmount(target.path(), rustix::mount::UnmountFlags::empty()).unwrap();
        (seen, content)
    });
    let (seen, content) = seen.join().unwrap();
    let expected = ["", "file", "hidden", "hidden/new", "kept", "kept/above", "kept/below", "reborn", "reborn/new"];
    assert_eq!(seen, expected);
    assert_eq!(content, "new");
}

#[test]
fn the_writing_thread_sees_nothing_but_the_layer() {
    let Some(stage) = Stage::new() else { return };
    let layer = open_layer(&stage.layer()).unwrap();
    let names = std::thread::spawn(move || {
        confine::enter(&layer).unwrap();
        std::fs::read_dir("/").unwrap().count() + usize::from(std::fs::metadata("/../../outside").is_ok())
    });
    assert_eq!(names.join().unwrap(), 0, "an empty directory is all there is");
    assert!(std::path::Path::new("/proc/self").exists(), "and only for that thread");
}
