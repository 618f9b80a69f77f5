//! `pull`, `import`, `export`, `rmi`: with knarr's own calls, and without them.

use crate::Fixture;
use crate::fake::id;
use crate::lists::node;

#[test]
fn a_pull_tells_its_progress_in_lines_where_there_is_no_terminal() {
    let fixture = Fixture::new();
    let outcome = fixture.knarr(&["pull", "--creds", "me:secret", "--platform", "linux/arm64", "app:1"]);
    assert_eq!((outcome.code, outcome.stdout), (0, format!("{}\n", id("sha256:beef"))));
    assert_eq!(outcome.stderr, "app:1: resolving\napp:1: pulling layers\napp:1: 1a7e00000000 done 10B\n");
    assert_eq!(fixture.calls(), ["knarr pull app:1 me linux/arm64"]);
    assert_eq!(fixture.knarr(&["pull", "-q", "app:1"]).stderr, "");
}

#[test]
fn another_runtime_is_asked_by_plain_cri() {
    let fixture = Fixture::with_extra(false);
    let auth = fixture.file("auth.json", "{\"auths\":{\"docker.io\":{\"username\":\"hub\",\"password\":\"x\"}}}");
    let outcome = fixture.knarr(&["pull", "--auth-file", &auth, "app:1"]);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "{outcome:?}");
    assert_eq!(fixture.calls(), ["pull_image app:1 hub"]);
    let outcome = fixture.knarr(&["pull", "--platform", "linux/arm64", "app:1"]);
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("choosing a platform is an extension of knarr's"), "{outcome:?}");
}

#[test]
fn archives_need_a_runtime_that_has_the_calls() {
    let fixture = Fixture::with_extra(false);
    let archive = fixture.file("a.tar", "x");
    for args in [vec!["import", &archive], vec!["export", "app:1"]] {
        let outcome = fixture.knarr(&args);
        assert_eq!(outcome.code, 1);
        assert!(
            outcome.stderr.starts_with(&format!("error: this endpoint cannot {} images\n", args[0])),
            "{outcome:?}"
        );
    }
}

#[test]
fn an_archive_is_sent_whole_from_a_file_or_a_pipe() {
    let fixture = Fixture::new();
    let big: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let path = fixture.dir.path().join("big.tar");
    std::fs::write(&path, &big).unwrap();
    let outcome = fixture.knarr(&["import", "--name", "a:1", path.to_str().unwrap()]);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (0, "a:1\n"), "{outcome:?}");
    assert!(fixture.tables.lock().unwrap().imported == big);
    let outcome = fixture.knarr_with_input(&["import", "--name", "b:1", "-"], b"small");
    assert_eq!((outcome.code, outcome.stdout.as_str()), (0, "b:1\n"), "{outcome:?}");
    assert_eq!(fixture.tables.lock().unwrap().imported, b"small");
    assert_eq!(fixture.knarr_with_input(&["import", "--name", "c:1", "-"], b"").stdout, "c:1\n");
    let outcome = fixture.knarr(&["import", "/nowhere.tar"]);
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("cannot open /nowhere.tar"), "{outcome:?}");
}

#[test]
fn an_export_is_whole_or_not_there() {
    let fixture = Fixture::new();
    let path = fixture.dir.path().join("out.tar");
    let file = path.to_str().unwrap();
    assert_eq!(fixture.knarr(&["export", "-o", file, "--format", "docker", "a:1", "b:1"]).code, 0);
    assert_eq!(std::fs::read(&path).unwrap(), b"docker of a:1+b:1");
    let outcome = fixture.knarr(&["export", "-o", file, "a:1"]);
    assert_eq!(outcome.code, 1, "what is there is not overwritten");
    assert_eq!(std::fs::read(&path).unwrap(), b"docker of a:1+b:1");
    std::fs::remove_file(&path).unwrap();
    let outcome = fixture.knarr(&["export", "-o", file, "broken"]);
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("a layer is damaged (data loss)"), "{outcome:?}");
    assert!(!path.exists());
    assert_eq!(fixture.knarr(&["export", "a:1"]).stdout, "oci of a:1");
}

#[test]
fn pruning_leaves_what_is_used_and_what_is_pinned() {
    let node = node();
    let unused = knarr_cri_api::v1::Image { id: id("sha256:3c"), ..Default::default() };
    node.tables.lock().unwrap().images.push(unused);
    assert_eq!(node.knarr(&["rmi", "--prune"]).stdout, format!("{}\n", id("sha256:3c")));
    assert_eq!(node.tables.lock().unwrap().images.len(), 2);
    assert_eq!(node.knarr(&["rmi", "registry:5000/team/app:1.2"]).stdout, "registry:5000/team/app:1.2\n");
    assert_eq!(node.knarr(&["rmi", "-a"]).code, 0);
    assert!(node.tables.lock().unwrap().images.is_empty());
}
