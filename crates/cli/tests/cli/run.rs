//! `run`, `create`, `start`, `logs`: pods of a manifest from beginning to end.

use std::io::Read;
use std::process::Stdio;
use std::time::{Duration, Instant};

use knarr_cri_api::v1::Image;
use rustix::process::{Pid, Signal, kill_process};

use crate::fake::id;
use crate::{Fixture, Outcome};

fn fixture() -> Fixture {
    let fixture = Fixture::new();
    let image = Image { id: id("sha256:1a"), repo_tags: vec!["app:1".into()], size: 1, ..Image::default() };
    fixture.tables.lock().unwrap().images.push(image);
    fixture
}

/// A pod `web` whose containers are (name, command) pairs.
fn manifest(policy: &str, init: &[(&str, &str)], main: &[(&str, &str)]) -> String {
    let list = |containers: &[(&str, &str)]| -> String {
        let one =
            |(name, command): &(&str, &str)| format!("  - {{name: {name}, image: \"app:1\", command: [{command}]}}\n");
        containers.iter().map(one).collect()
    };
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n  restartPolicy: {policy}\n  \
         terminationGracePeriodSeconds: 7\n{}  containers:\n{}",
        if init.is_empty() { String::new() } else { format!("  initContainers:\n{}", list(init)) },
        list(main)
    )
}

impl Fixture {
    fn run(&self, args: &[&str], manifest: &str) -> Outcome {
        let file = self.file("pod.yaml", manifest);
        self.knarr(&[args, &[file.as_str()]].concat())
    }

    /// Nothing is left in the runtime and on disk.
    fn assert_clean(&self) {
        let tables = self.tables.lock().unwrap();
        assert!(tables.pods.is_empty() && tables.containers.is_empty());
        let pods = self.dir.path().join("cli/pods");
        assert!(!pods.exists() || std::fs::read_dir(&pods).unwrap().next().is_none(), "{}", pods.display());
    }

    /// The calls that start, stop and remove, without ids.
    fn story(&self) -> Vec<String> {
        let mut words: Vec<String> = Vec::new();
        for call in self.calls() {
            let known = call.split(' ').take_while(|word| word.len() < 60).collect::<Vec<_>>().join(" ");
            words.push(known);
        }
        words
    }
}

#[test]
fn a_pod_runs_to_its_end_and_leaves_its_code_and_its_log() {
    let fixture = fixture();
    let outcome = fixture.run(&["run"], &manifest("Never", &[], &[("main", "say, hello there")]));
    assert_eq!((outcome.stdout.as_str(), outcome.code), ("hello there\n", 0), "{outcome:?}");
    assert_eq!(fixture.knarr(&["logs", "web"]).stdout, "hello there\n");
    assert_eq!(fixture.knarr(&["logs", "-t", "main"]).stdout, "2024-01-01T00:00:00Z hello there\n");
    let outcome = fixture.run(&["run", "--rm"], &manifest("Never", &[], &[("main", "end, '7'")]));
    assert_eq!(outcome.code, 7, "{outcome:?}");
    fixture.assert_clean();
}

#[test]
fn containers_are_started_in_order_and_told_apart() {
    let fixture = fixture();
    let text = manifest("Never", &[("first", "say, one"), ("second", "say, two")], &[("a", "say, x"), ("b", "say, y")]);
    let outcome = fixture.run(&["run"], &text);
    assert_eq!(outcome.stdout, "[first] one\n[second] two\n[a] x\n[b] y\n");
    let starts: Vec<String> = fixture.story().into_iter().filter(|call| call.starts_with("start")).collect();
    assert_eq!(starts, ["start_container first", "start_container second", "start_container a", "start_container b"]);
}

#[test]
fn an_init_container_that_fails_fails_the_pod() {
    let fixture = fixture();
    let outcome = fixture.run(&["run", "--rm"], &manifest("Never", &[("first", "end, '4'")], &[("main", "say, x")]));
    assert_eq!(outcome.code, 4, "{outcome:?}");
    assert!(outcome.stderr.contains("init container first failed with exit code 4"), "{outcome:?}");
    assert!(!fixture.story().contains(&"start_container main".to_owned()));
    let outcome = fixture.run(&["run", "-d"], &manifest("Never", &[("first", "end, '4'")], &[("main", "stay")]));
    assert_eq!(outcome.code, 125, "{outcome:?}");
    fixture.assert_clean();
}

#[test]
fn a_container_that_cannot_be_started_leaves_nothing_behind() {
    let fixture = fixture();
    for args in [&["run"][..], &["run", "-d"], &["run", "--rm"]] {
        let outcome = fixture.run(args, &manifest("Always", &[], &[("good", "stay"), ("main", "break")]));
        assert_eq!(outcome.code, 125, "{outcome:?}");
        assert!(
            outcome
                .stderr
                .contains("cannot start container main of pod web: exec: \"break\": no such file or directory"),
            "{outcome:?}"
        );
        fixture.assert_clean();
    }
}

#[test]
fn a_sandbox_that_cannot_be_made_leaves_nothing_behind() {
    let fixture = fixture();
    let status = tonic::Status::internal("no network");
    fixture.tables.lock().unwrap().failing.insert("run_pod_sandbox", status);
    let outcome = fixture.run(&["run"], &manifest("Never", &[], &[("main", "say, x")]));
    assert_eq!(outcome.code, 125);
    assert!(outcome.stderr.contains("cannot start pod web: no network (internal error)"), "{outcome:?}");
    fixture.assert_clean();
}

#[test]
fn a_missing_image_is_pulled_and_a_forbidden_pull_is_said() {
    let fixture = fixture();
    let text = manifest("Never", &[], &[("main", "say, x")]).replace("app:1", "other:1");
    let outcome = fixture.run(&["run", "--rm", "-q"], &text);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "{outcome:?}");
    assert!(fixture.story().contains(&"knarr pull other:1".to_owned()));
    let text = text.replace("\"other:1\"", "\"third:1\", imagePullPolicy: Never");
    let outcome = fixture.run(&["run"], &text);
    assert_eq!(outcome.code, 125);
    assert!(outcome.stderr.contains("image third:1 is not here, and imagePullPolicy Never forbids"), "{outcome:?}");
}

#[test]
fn a_detached_pod_stays_and_is_replaced_only_on_purpose() {
    let fixture = fixture();
    let text = manifest("Always", &[], &[("main", "stay")]);
    let outcome = fixture.run(&["run", "-d"], &text);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(outcome.stderr.contains("nobody restarts its containers"), "{outcome:?}");
    assert_eq!(fixture.tables.lock().unwrap().pods.keys().next().unwrap(), outcome.stdout.trim());
    let again = fixture.run(&["run", "-d"], &text);
    assert_eq!(again.code, 125);
    assert!(again.stderr.contains("pod default/web is running already"), "{again:?}");
    let replaced = fixture.run(&["run", "-d", "--replace"], &text);
    assert_eq!(replaced.code, 0, "{replaced:?}");
    assert!(fixture.story().contains(&"stop_container main 7".to_owned()), "with the pod's own grace period");
    assert_eq!(fixture.tables.lock().unwrap().pods.len(), 1);
    assert_eq!(fixture.knarr(&["rm", "-f", "web"]).code, 0);
    fixture.assert_clean();
}

#[test]
fn what_an_earlier_run_left_makes_room_by_itself() {
    let fixture = fixture();
    let text = manifest("Never", &[], &[("main", "say, x")]);
    assert_eq!(fixture.run(&["run"], &text).code, 0);
    assert_eq!(fixture.run(&["run"], &text).code, 0);
    assert_eq!(fixture.tables.lock().unwrap().pods.len(), 1);
}

#[test]
fn a_created_pod_is_started_in_its_order() {
    let fixture = fixture();
    let text = manifest("Never", &[("first", "say, one")], &[("main", "say, two")]);
    let outcome = fixture.run(&["create"], &text);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(!fixture.story().iter().any(|call| call.starts_with("start")));
    assert_eq!(fixture.knarr(&["start", "web"]).code, 0);
    assert_eq!(fixture.knarr(&["logs", "web"]).stdout, "[web/first] one\n[web/main] two\n");
    let again = fixture.knarr(&["start", "web"]);
    assert!(again.stderr.contains("pod web has no container that waits to be started"), "{again:?}");
}

#[test]
fn a_container_is_restarted_by_its_pods_policy_and_keeps_its_previous_log() {
    let fixture = fixture();
    let text = manifest("OnFailure", &[], &[("main", "end, '1'"), ("other", "stay")]);
    let file = fixture.file("pod.yaml", &text);
    let child = fixture.command(&["run", &file]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until(|| fixture.story().contains(&"create_container main 1".to_owned()));
    interrupt(&child);
    let outcome = crate::outcome(child.wait_with_output().unwrap());
    assert!(outcome.stderr.contains("container main ended with exit code 1; it is started again now"), "{outcome:?}");
    assert_eq!(outcome.code, 130, "{outcome:?}");
    assert!(fixture.story().contains(&"stop_container other 7".to_owned()));
    fixture.assert_clean();
}

#[test]
fn an_interrupt_stops_and_removes_the_pod() {
    let fixture = fixture();
    let file = fixture.file("pod.yaml", &manifest("Always", &[], &[("main", "stay")]));
    let mut child = fixture.command(&["run", &file]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until(|| fixture.story().contains(&"start_container main".to_owned()));
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let mut told = String::new();
    child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    assert_eq!(told, "");
    let end = fixture.story();
    assert_eq!(
        end[end.len() - 4..],
        ["stop_container main 7", "stop_pod_sandbox", "stop_pod_sandbox", "remove_pod_sandbox"]
    );
    fixture.assert_clean();
}

#[test]
fn logs_follow_until_the_container_ends() {
    let fixture = fixture();
    let text = manifest("Never", &[], &[("main", "stay")]);
    assert_eq!(fixture.run(&["run", "-d"], &text).code, 0);
    let (container, log) = {
        let tables = fixture.tables.lock().unwrap();
        let (id, (_, status)) = tables.containers.iter().next().unwrap();
        (id.clone(), status.log_path.clone())
    };
    let line = |text: &str| format!("2024-01-01T00:00:00Z stdout F {text}\n");
    std::fs::write(&log, line("one") + &line("two")).unwrap();
    let child = fixture.command(&["logs", "-f", "--tail", "1", "web"]).stdout(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    std::fs::rename(&log, format!("{log}.1")).unwrap();
    std::fs::write(&log, line("three, in a new file")).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    fixture.knarr(&["stop", &container]);
    let outcome = crate::outcome(child.wait_with_output().unwrap());
    assert_eq!((outcome.stdout.as_str(), outcome.code), ("two\nthree, in a new file\n", 0));
}

#[test]
fn a_manifest_is_read_from_standard_input_and_refused_before_anything_is_done() {
    let fixture = fixture();
    let text = manifest("Never", &[], &[("main", "say, x")]);
    let outcome = fixture.knarr_with_input(&["run", "-"], text.as_bytes());
    assert_eq!((outcome.stdout.as_str(), outcome.code), ("x\n", 0), "{outcome:?}");
    let wrong = text.replace("restartPolicy", "restartpolicy");
    let outcome = fixture.knarr_with_input(&["run", "--validate", "strict", "-"], wrong.as_bytes());
    assert_eq!(outcome.code, 2);
    assert_eq!(outcome.stderr, "error: spec.restartpolicy: there is no such field; did you mean restartPolicy?\n");
    assert_eq!(fixture.story().iter().filter(|call| call.starts_with("run_pod")).count(), 1);
}

fn interrupt(child: &std::process::Child) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
}

/// Fails after ten seconds: everything here takes milliseconds.
fn wait_until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "waited too long");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_pod_without_the_hosts_users_gets_ids_of_its_own() {
    let fixture = fixture();
    let text = manifest("Never", &[], &[("main", "say, x")])
        .replace("spec:\n", "spec:\n  hostUsers: false\n  volumes: [{name: v, emptyDir: {}}]\n")
        .replace("image: \"app:1\"", "image: \"app:1\", volumeMounts: [{name: v, mountPath: /v}]");
    let outcome = fixture.run(&["run"], &text);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let tables = fixture.tables.lock().unwrap();
    let pod = tables.pod_configs.values().next().unwrap().linux.clone().unwrap().security_context.unwrap();
    let users = pod.namespace_options.unwrap().userns_options.unwrap();
    assert_eq!((users.uids.len(), users.uids[0].container_id, users.uids[0].length), (1, 0, 65_536));
    assert!(users.uids[0].host_id >= 1 << 30 && users.uids == users.gids, "{users:?}");
    let container = tables.container_configs.values().next().unwrap();
    // The volume and /etc/hosts.
    assert_eq!(container.mounts.len(), 2);
    for mount in &container.mounts {
        assert_eq!((&mount.uid_mappings, &mount.gid_mappings), (&users.uids, &users.gids));
    }
    let context = container.linux.clone().unwrap().security_context.unwrap();
    assert_eq!(context.namespace_options.unwrap().userns_options, Some(users));
}
