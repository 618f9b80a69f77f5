//! `stop`, `start`, `rm`, `exec`: what is called, in which order, and what becomes of failures.

use tonic::{Code, Status};

use crate::fake::id;
use crate::lists::node;

#[test]
fn stopping_a_pod_stops_its_containers_first() {
    let node = node();
    let outcome = node.knarr(&["stop", "-t", "3", "aa11"]);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (0, "aa11000000000\n"), "{outcome:?}");
    let mut calls = node.calls();
    assert_eq!(calls.pop(), Some(format!("stop_pod_sandbox {}", id("aa11"))));
    calls.sort();
    assert_eq!(calls, ["stop_container app 3", "stop_container log 3"]);
}

#[test]
fn a_container_is_stopped_with_the_grace_that_its_pod_gave() {
    let node = node();
    node.knarr(&["stop", "default/web/log"]);
    assert_eq!(node.calls(), ["stop_container log 10"]);
    let graced = [("io.kubernetes.pod.terminationGracePeriod".to_owned(), "45".to_owned())];
    node.tables.lock().unwrap().containers.get_mut(&id("cc11")).unwrap().1.annotations.extend(graced);
    node.knarr(&["stop", "cc11"]);
    assert_eq!(node.calls()[1], "stop_container app 45");
}

#[test]
fn a_failure_says_what_was_tried_why_and_in_which_words() {
    let node = node();
    let refusal = Status::new(Code::FailedPrecondition, "the freezer is stuck");
    node.tables.lock().unwrap().failing.insert("stop_container", refusal);
    let outcome = node.knarr(&["stop", "log"]);
    assert_eq!(outcome.code, 1);
    assert_eq!(
        outcome.stderr,
        "error: cannot stop container log: the freezer is stuck (not possible in the present state)\n"
    );
}

#[test]
fn one_failure_does_not_keep_the_rest_from_being_done() {
    let node = node();
    let outcome = node.knarr(&["rm", "nope", "aa22"]);
    assert_eq!(outcome.code, 3);
    assert_eq!(outcome.stdout, "aa22000000000\n");
    assert!(!node.tables.lock().unwrap().pods.contains_key(&id("aa22")));
}

#[test]
fn what_runs_is_removed_only_by_force() {
    let node = node();
    let outcome = node.knarr(&["rm", "aa11"]);
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.starts_with("error: pod web is running\nhint: "), "{outcome:?}");
    assert_eq!(node.knarr(&["rm", "log"]).code, 1);
    assert!(node.calls().is_empty());
    assert_eq!(node.knarr(&["rm", "-f", "log"]).code, 0);
    assert_eq!(node.calls(), ["stop_container log 0".to_owned(), format!("remove_container {}", id("cc12"))]);
    assert_eq!(node.knarr(&["rm", "-fa"]).code, 0);
    assert!(node.tables.lock().unwrap().pods.is_empty());
}

#[test]
fn removing_all_leaves_what_runs() {
    let node = node();
    assert_eq!(node.knarr(&["rm", "-a"]).stdout, "aa22000000000\n");
    assert_eq!(node.tables.lock().unwrap().pods.len(), 1);
}

#[test]
fn a_synchronous_exec_passes_on_output_and_code() {
    let node = node();
    let outcome = node.knarr(&["exec", "--timeout", "9", "log", "--", "ls", "-l", "42"]);
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str(), outcome.code), ("out ls -l 42\n", "err\n", 42));
    assert_eq!(node.calls(), ["exec_sync log 9"]);
    assert_eq!(node.knarr(&["exec", "--sync", "log", "true"]).code, 0);
    assert_eq!(node.calls()[1], "exec_sync log 0");
}

#[test]
fn execs_own_failures_are_told_from_those_of_the_command() {
    let node = node();
    assert_eq!(node.knarr(&["exec", "nope", "true"]).code, 125);
    let outcome = node.knarr(&["exec", "default/web", "true"]);
    assert_eq!(outcome.code, 2);
    assert!(outcome.stderr.contains("several containers: web/"), "{outcome:?}");
    let outcome = node.knarr(&["exec", "-i", "--sync", "log", "sh"]);
    assert_eq!(outcome.code, 2);
    assert!(outcome.stderr.contains("cannot be used with"), "{outcome:?}");
}

#[test]
fn a_runtime_that_hangs_up_is_a_failure_of_the_call() {
    let node = node();
    node.tables.lock().unwrap().failing.insert("list_containers", Status::unavailable("starting up"));
    let outcome = node.knarr(&["ps"]);
    assert_eq!(outcome.code, 1);
    assert!(
        outcome.stderr.starts_with("error: cannot list containers: starting up (unavailable)\nhint: "),
        "{outcome:?}"
    );
}
