//! Logs in CRI's format, as kubelet reads and rotates them.

use knarr_node_tests::node::{LogLine, Node, read_log};
use knarr_node_tests::requests::{container, pod};
use knarr_node_tests::{Outcome, tests};
use std::path::Path;

tests![
    both_streams_are_written_line_by_line,
    long_lines_come_in_parts_and_lose_nothing,
    a_last_line_without_an_end_is_kept,
    a_container_cannot_forge_a_line,
    a_silent_container_has_a_log,
    a_log_that_was_moved_is_opened_anew_without_a_hole,
    an_ended_containers_log_is_not_opened_anew,
    a_terminal_writes_to_stdout_alone,
];

fn texts<'a>(lines: &'a [LogLine], stream: &str) -> Vec<&'a str> {
    lines.iter().filter(|l| l.stream == stream).map(|l| l.text.as_str()).collect()
}

async fn both_streams_are_written_line_by_line(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("streams")).await?;
    let words = ["print", "one", ",", "err", "two", ",", "print", "", ",", "print", "three"];
    let status = node.run_to_end(&pod, container("main", &words)).await?;
    assert!(Path::new(&status.log_path).is_absolute());
    let lines = read_log(&status.log_path)?;
    assert_eq!(texts(&lines, "stdout"), ["one", "", "three"]);
    assert_eq!(texts(&lines, "stderr"), ["two"]);
    assert!(lines.iter().all(|l| l.tag == "F"));
    for line in &lines {
        let time = line.time.as_bytes();
        assert!(time.len() >= 20 && time[4] == b'-' && time[10] == b'T', "{}", line.time);
    }
    assert!(lines.windows(2).all(|w| w[0].time <= w[1].time), "{lines:?}");
    Ok(())
}

async fn long_lines_come_in_parts_and_lose_nothing(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("long")).await?;
    const BYTES: usize = 100_000;
    let words = ["bytes", &BYTES.to_string(), ",", "print", "", ",", "print", "after"];
    let status = node.run_to_end(&pod, container("main", &words)).await?;
    let lines = read_log(&status.log_path)?;
    let (last, parts) = lines.split_last().ok_or("an empty log")?;
    assert_eq!(last.text, "after");
    assert!(parts.len() > 1 && parts[..parts.len() - 1].iter().all(|l| l.tag == "P"), "{}", parts.len());
    assert_eq!(parts.last().map(|l| l.tag.as_str()), Some("F"));
    assert_eq!(parts.iter().map(|l| l.text.len()).sum::<usize>(), BYTES);
    Ok(())
}

async fn a_last_line_without_an_end_is_kept(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("partial")).await?;
    let status = node.run_to_end(&pod, container("main", &["partial", "no newline"])).await?;
    let lines = read_log(&status.log_path)?;
    assert_eq!(texts(&lines, "stdout"), ["no newline"]);
    Ok(())
}

async fn a_container_cannot_forge_a_line(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("forge")).await?;
    let forged = "2026-01-01T00:00:00Z stderr F stolen";
    let with_return = format!("x\r{forged}");
    let status = node.run_to_end(&pod, container("main", &["print", forged, ",", "print", &with_return])).await?;
    let lines = read_log(&status.log_path)?;
    assert_eq!(lines.len(), 2);
    assert!(lines.iter().all(|l| l.stream == "stdout" && l.text.contains(forged)), "{lines:?}");
    Ok(())
}

async fn a_silent_container_has_a_log(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("silent")).await?;
    let id = node.run(&pod, container("main", &["pause"])).await?;
    assert_eq!(node.log(&id).await?, []);
    Ok(())
}

async fn a_log_that_was_moved_is_opened_anew_without_a_hole(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("rotate")).await?;
    let id = node.run(&pod, container("main", &["tick", "0.002"])).await?;
    node.wait_for_log(&id, "tick 20").await?;
    let path = node.status(&id).await?.log_path;
    let mut moved = Vec::new();
    for round in 0..5 {
        let old = format!("{path}.{round}");
        std::fs::rename(&path, &old)?;
        let request = knarr_cri_api::v1::ReopenContainerLogRequest { container_id: id.clone() };
        node.runtime.reopen_container_log(request).await?;
        assert!(Path::new(&path).exists(), "the file is there before the answer");
        moved.push(old);
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    node.stop_container(&id, 0).await?;
    let mut lines = Vec::new();
    for path in moved.iter().chain([&path]) {
        lines.extend(read_log(path)?);
    }
    for (number, line) in lines.iter().enumerate() {
        assert_eq!(line.text, format!("tick {}", number + 1));
    }
    Ok(())
}

async fn an_ended_containers_log_is_not_opened_anew(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("ended")).await?;
    let status = node.run_to_end(&pod, container("main", &["print", "x"])).await?;
    std::fs::rename(&status.log_path, format!("{}.old", status.log_path))?;
    let request = knarr_cri_api::v1::ReopenContainerLogRequest { container_id: status.id.clone() };
    node.runtime.reopen_container_log(request).await.expect_err("it does not run");
    assert!(!Path::new(&status.log_path).exists(), "an error leaves no new file");
    Ok(())
}

async fn a_terminal_writes_to_stdout_alone(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("tty")).await?;
    let mut config = container("main", &["tty", ",", "err", "also here"]);
    config.tty = true;
    let status = node.run_to_end(&pod, config).await?;
    let lines = read_log(&status.log_path)?;
    assert_eq!(texts(&lines, "stderr"), Vec::<&str>::new());
    let stdout = texts(&lines, "stdout");
    assert!(stdout[0].starts_with("1 1 1") && stdout[1].starts_with("also here"), "{stdout:?}");
    Ok(())
}
