//! Volumes and their parts on a real file system; what needs root says so and is skipped without it.

use super::*;

fn files(dir: &tempfile::TempDir) -> PodFiles {
    let files = PodFiles::of(dir.path(), "0a1b-2c").unwrap();
    files.create().unwrap();
    files
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: mounting needs root");
    }
    root
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_uid_that_could_be_a_path_has_no_directory() {
    for uid in ["", "..", "a/b", "../x", "a.b", "x y"] {
        assert!(PodFiles::of(Path::new("/x"), uid).is_none(), "{uid:?}");
    }
}

#[test]
fn an_empty_dir_is_for_everybody_in_the_pod() {
    let dir = tempfile::tempdir().unwrap();
    let files = files(&dir);
    let volume = Volume::EmptyDir { memory: false, size_limit_bytes: None };
    let path = files.prepare_volume("data", &volume, &[], None).unwrap().unwrap();
    assert_eq!(mode(&path), 0o777);
    assert_eq!(mode(&dir.path().join("pods/0a1b-2c")), 0o700);
    files.remove().unwrap();
    assert!(!path.exists());
    files.remove().unwrap();
}

#[test]
fn files_have_the_names_and_modes_that_were_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let files = files(&dir);
    let data = Data::from([("a".to_owned(), b"1".to_vec()), ("b".to_owned(), b"2".to_vec())]);
    let all = volume_files(&data, &[], 0o640, false).unwrap();
    assert_eq!(all.len(), 2);
    let items = [("b".to_owned(), "deep/er/b.conf".to_owned(), Some(0o400))];
    let some = volume_files(&data, &items, 0o644, false).unwrap();
    let volume =
        Volume::Files { secret: false, name: "c".into(), items: items.to_vec(), default_mode: 0o644, optional: false };
    let path = files.prepare_volume("conf", &volume, &some, None).unwrap().unwrap();
    assert_eq!(fs::read(path.join("deep/er/b.conf")).unwrap(), b"2");
    assert_eq!(mode(&path.join("deep/er/b.conf")), 0o400);
    let missing = [("zz".to_owned(), "zz".to_owned(), None)];
    assert!(volume_files(&data, &missing, 0o644, false).is_err());
    assert!(volume_files(&data, &missing, 0o644, true).unwrap().is_empty());
}

#[test]
fn host_paths_are_made_or_checked_by_their_type() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("x/y");
    for kind in [HostPathKind::Directory, HostPathKind::File, HostPathKind::Socket, HostPathKind::CharDevice] {
        assert_eq!(prepare_host_path(&missing, kind).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
    prepare_host_path(&missing, HostPathKind::DirectoryOrCreate).unwrap();
    prepare_host_path(&missing, HostPathKind::Directory).unwrap();
    assert!(prepare_host_path(&missing, HostPathKind::File).is_err());
    let file = dir.path().join("f");
    prepare_host_path(&file, HostPathKind::FileOrCreate).unwrap();
    prepare_host_path(&file, HostPathKind::File).unwrap();
    prepare_host_path(Path::new("/dev/null"), HostPathKind::CharDevice).unwrap();
    assert!(prepare_host_path(Path::new("/dev/null"), HostPathKind::BlockDevice).is_err());
}

#[test]
fn memory_volumes_are_mounted_with_their_limit_and_unmounted() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let files = files(&dir);
    let volume = Volume::EmptyDir { memory: true, size_limit_bytes: Some(1 << 20) };
    let path = files.prepare_volume("mem", &volume, &[], Some(1234)).unwrap().unwrap();
    let stats = rustix::fs::statvfs(&path).unwrap();
    assert_eq!(stats.f_blocks * stats.f_frsize, 1 << 20);
    assert_eq!(mode(&path), 0o2777);
    fs::write(path.join("x"), "x").unwrap();
    assert_eq!(mounts_below(dir.path()).unwrap().len(), 1);
    files.remove().unwrap();
    assert!(mounts_below(dir.path()).unwrap().is_empty());
    assert!(!files.logs().exists());
}

#[test]
fn a_part_of_a_volume_is_pinned_and_stays_what_it_was() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let files = files(&dir);
    let volume = dir.path().join("volume");
    fs::create_dir_all(volume.join("a")).unwrap();
    fs::write(volume.join("a/file"), "inside").unwrap();
    let pin = files.pin_sub_path(&volume, "a", &sub_path_pin("web", 0, 0)).unwrap();
    fs::rename(volume.join("a"), volume.join("b")).unwrap();
    std::os::unix::fs::symlink("/etc", volume.join("a")).unwrap();
    assert_eq!(fs::read(pin.join("file")).unwrap(), b"inside");
    let file = files.pin_sub_path(&volume, "b/file", &sub_path_pin("web", 0, 1)).unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"inside");
    files.pin_sub_path(&volume, "b", &sub_path_pin("web", 1, 0)).unwrap();
    files.unpin_sub_paths("web", 0).unwrap();
    assert!(!pin.exists() && !file.exists());
    assert_eq!(mounts_below(dir.path()).unwrap().len(), 1);
    files.remove().unwrap();
    assert!(volume.join("b/file").exists(), "removal does not reach through the pin");
}

#[test]
fn a_part_cannot_lie_outside_its_volume() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let files = files(&dir);
    let volume = dir.path().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::create_dir(dir.path().join("outside")).unwrap();
    std::os::unix::fs::symlink("/etc", volume.join("absolute")).unwrap();
    std::os::unix::fs::symlink("../outside", volume.join("climbing")).unwrap();
    std::os::unix::fs::symlink("real", volume.join("inside")).unwrap();
    for bad in ["absolute", "absolute/new", "climbing", "climbing/new", "../outside", "/etc"] {
        assert!(files.pin_sub_path(&volume, bad, "pin").is_err(), "{bad}");
    }
    assert!(!dir.path().join("outside/new").exists() && !Path::new("/etc/new").exists());
    files.pin_sub_path(&volume, "real/deep", "one").unwrap();
    assert!(volume.join("real/deep").is_dir());
    files.pin_sub_path(&volume, "inside/deep", "two").unwrap();
    files.remove().unwrap();
}

#[test]
fn hosts_name_the_pod_and_its_aliases() {
    let aliases = vec![("10.1.1.1".to_owned(), vec!["a".to_owned(), "b".to_owned()]), ("10.1.1.2".to_owned(), vec![])];
    let text = hosts_content(&["10.0.0.2".to_owned()], "web", &aliases);
    assert!(text.contains("127.0.0.1\tlocalhost\n"));
    assert!(text.ends_with("10.0.0.2\tweb\n10.1.1.1\ta\tb\n"), "{text}");
}

#[test]
fn escapes_of_mountinfo_are_undone() {
    assert_eq!(unescape(br"/a\040b\134c"), Path::new("/a b\\c"));
    assert_eq!(unescape(br"/a\04"), Path::new("/a\\04"));
}
