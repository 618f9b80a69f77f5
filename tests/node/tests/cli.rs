//! The command line from end to end, as somebody without a cluster uses it.

use knarr_node_tests::images::tool_image;
use knarr_node_tests::node::Node;
use knarr_node_tests::{Outcome, tests};
use knarr_testkit::archive::oci_archive;

tests![
    a_manifest_is_run_looked_at_and_removed,
    a_manifest_in_the_foreground_gives_its_exit_code,
    an_archive_is_imported_and_exported,
    what_is_wrong_is_said_with_an_exit_code,
];

const MANIFEST: &str = "\
apiVersion: v1
kind: Pod
metadata:
  name: web
  labels: { app: web }
spec:
  restartPolicy: Never
  containers:
    - name: main
      image: localhost/tool:latest
      imagePullPolicy: Never
      args: [ARGS]
      env: [{ name: GREETING, value: ahoy }]
      resources: { limits: { memory: 64Mi } }
";

fn manifest(node: &Node, words: &[&str]) -> Outcome<String> {
    let words: Vec<String> = words.iter().map(|w| format!("{w:?}")).collect();
    let path = node.directory.join("pod.yaml");
    std::fs::write(&path, MANIFEST.replace("ARGS", &words.join(", ")))?;
    Ok(path.display().to_string())
}

async fn a_manifest_is_run_looked_at_and_removed(node: &mut Node) -> Outcome {
    let path = manifest(node, &["print", "hello from the log", ",", "env", ",", "on-term", "0", ",", "pause"])?;
    node.cli_output(&["run", "-d", &path])?;
    let pods = node.cli_output(&["pods"])?;
    assert!(pods.contains("web"), "{pods}");
    let list = node.cli_output(&["ps"])?;
    assert!(list.contains("main") && list.contains("web"), "{list}");
    let id = node.containers().await?.first().ok_or("no container")?.id.clone();
    node.wait_for_log(&id, "GREETING=ahoy").await?;
    let log = node.cli_output(&["logs", "web"])?;
    assert!(log.starts_with("hello from the log\n"), "{log}");
    let output = node.cli_output(&["exec", "web", "--", "/bin/tool", "print", "inside"])?;
    assert_eq!(output, "inside\n");
    let code = node.cli(&["exec", "web", "--", "/bin/tool", "exit", "5"])?.status.code();
    assert_eq!(code, Some(5));
    let inspected: serde_json::Value = serde_json::from_str(&node.cli_output(&["inspect", "web/main"])?)?;
    assert_eq!(inspected["status"]["id"], id.as_str(), "{inspected}");
    let inspected: serde_json::Value = serde_json::from_str(&node.cli_output(&["inspect", "web"])?)?;
    assert_eq!(inspected["status"]["metadata"]["name"], "web", "{inspected}");
    node.cli_output(&["stop", "web"])?;
    assert!(!node.cli_output(&["ps"])?.contains("web"));
    assert!(node.cli_output(&["ps", "-a"])?.contains("web"));
    node.cli_output(&["rm", "-f", "web"])?;
    assert!(!node.cli_output(&["pods"])?.contains("web"));
    Ok(())
}

async fn a_manifest_in_the_foreground_gives_its_exit_code(node: &mut Node) -> Outcome {
    let path = manifest(node, &["print", "out", ",", "err", "wrong", ",", "exit", "7"])?;
    let output = node.cli(&["run", &path])?;
    assert_eq!(output.status.code(), Some(7), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("out\n"));
    node.cli_output(&["rm", "-f", "web"])?;
    Ok(())
}

async fn an_archive_is_imported_and_exported(node: &mut Node) -> Outcome {
    let archive = node.directory.join("in.tar").display().to_string();
    std::fs::write(&archive, oci_archive(&[("localhost/again:1", &tool_image())]))?;
    node.cli_output(&["import", &archive])?;
    assert!(node.cli_output(&["images"])?.contains("localhost/again"));
    let out = node.directory.join("out.tar").display().to_string();
    node.cli_output(&["export", "-o", &out, "localhost/again:1"])?;
    node.cli_output(&["rmi", "localhost/again:1", "localhost/tool:latest"])?;
    assert!(!node.cli_output(&["images"])?.contains("localhost/again"));
    node.cli_output(&["import", &out])?;
    assert!(node.cli_output(&["images"])?.contains("localhost/again"));
    Ok(())
}

async fn what_is_wrong_is_said_with_an_exit_code(node: &mut Node) -> Outcome {
    for words in [
        &["logs", "nobody"][..],
        &["inspect", "nobody"],
        &["run", "/no/such/file.yaml"],
        &["exec", "nobody", "--", "x"],
    ] {
        let output = node.cli(words)?;
        assert!(!output.status.success(), "{words:?}");
        assert!(!output.stderr.is_empty(), "{words:?}");
    }
    Ok(())
}
