//! ExecSync, which is how probes and lifecycle hooks run: bounded in output, time and what it leaves behind.

use knarr_node_tests::node::Node;
use knarr_node_tests::requests::{container, pod};
use knarr_node_tests::{Outcome, TOOL, eventually, patience, refused, tests};
use std::time::{Duration, Instant};
use tonic::Code;

tests![
    output_and_exit_code_come_back,
    a_program_that_is_not_there_is_an_error,
    output_is_cut_off_and_the_program_goes_on,
    a_timeout_kills_the_whole_tree,
    what_goes_on_in_the_background_holds_nobody_up,
    an_exec_sees_what_the_container_sees,
    an_exec_in_what_does_not_run_is_refused,
    many_execs_at_once_all_end,
    a_thousand_probes_leave_nothing,
];

async fn output_and_exit_code_come_back(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("exec")).await?;
    let id = node.run(&pod, container("main", &["pause"])).await?;
    let response = node.exec(&id, &["print", "out", ",", "err", "wrong", ",", "exit", "7"]).await?;
    assert_eq!(response.stdout, b"out\n");
    assert_eq!(response.stderr, b"wrong\n");
    assert_eq!(response.exit_code, 7);
    let response = node.exec_for(&id, &["exit", "0"], 0).await?;
    assert_eq!((response.exit_code, response.stdout.len()), (0, 0));
    Ok(())
}

async fn a_program_that_is_not_there_is_an_error(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("absent")).await?;
    let id = node.run(&pod, container("main", &["pause"])).await?;
    let request = knarr_cri_api::v1::ExecSyncRequest {
        container_id: id.clone(),
        cmd: vec!["/no/such/program".into()],
        timeout: 5,
    };
    let status = node.runtime.exec_sync(request).await.expect_err("there is no such program");
    assert!(status.message().contains("/no/such/program"), "{}", status.message());
    Ok(())
}

async fn output_is_cut_off_and_the_program_goes_on(node: &mut Node) -> Outcome {
    // What kubelet's client takes in one message; an answer that is larger is an error there, not a longer answer.
    const LIMIT: usize = 16 << 20;
    let pod = node.run_pod(pod("much")).await?;
    let id = node.run(&pod, container("main", &["pause"])).await?;
    let bytes = (LIMIT + (4 << 20)).to_string();
    let cmd = [TOOL, "bytes", &bytes, ",", "bytes", &bytes, "stderr", ",", "write", "/done", "yes", ",", "exit", "3"];
    let request = knarr_cri_api::v1::ExecSyncRequest {
        container_id: id.clone(),
        cmd: cmd.map(str::to_owned).to_vec(),
        timeout: 30,
    };
    let mut kubelet = node.runtime.clone().max_decoding_message_size(LIMIT);
    let response = kubelet.exec_sync(request).await?.into_inner();
    let (out, err) = (response.stdout.len(), response.stderr.len());
    assert!(out + err < LIMIT && out >= LIMIT / 4 && err >= LIMIT / 4, "{out} and {err} bytes");
    assert_eq!(response.exit_code, 3);
    assert_eq!(node.exec_output(&id, &["cat", "/done"]).await?, "yes");
    Ok(())
}

async fn a_timeout_kills_the_whole_tree(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("late")).await?;
    let id = node.run(&pod, container("main", &["reap", ",", "pause"])).await?;
    let before = node.exec_output(&id, &["procs"]).await?.lines().count();
    let started = Instant::now();
    refused(
        node.exec_for(&id, &["ignore-term", ",", "fork", "3", "1000", ",", "sleep", "1000"], 1).await,
        Code::DeadlineExceeded,
    );
    assert!(started.elapsed() < patience(Duration::from_secs(4)), "{:?}", started.elapsed());
    eventually("only the container's own processes are left", Duration::from_secs(5), async || {
        let now = node.exec_output(&id, &["procs"]).await?.lines().count();
        Ok((now == before).then_some(()))
    })
    .await
}

async fn what_goes_on_in_the_background_holds_nobody_up(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("background")).await?;
    let id = node.run(&pod, container("main", &["reap", ",", "pause"])).await?;
    let started = Instant::now();
    // The child holds the ends of both pipes.
    let response = node.exec(&id, &["fork", "1", "1000", ",", "print", "done"]).await?;
    assert_eq!(response.stdout, b"done\n");
    assert!(started.elapsed() < patience(Duration::from_secs(3)), "{:?}", started.elapsed());
    Ok(())
}

async fn an_exec_sees_what_the_container_sees(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("same")).await?;
    let mut config = container("main", &["namespaces", ",", "env", ",", "pwd", ",", "id", ",", "pause"]);
    config.envs = vec![knarr_cri_api::v1::KeyValue { key: "GIVEN".into(), value: b"a value".to_vec() }];
    config.working_dir = "/etc".into();
    knarr_node_tests::requests::security(&mut config).run_as_user = knarr_node_tests::requests::int(1001);
    let id = node.run(&pod, config).await?;
    node.wait_for_log(&id, "uid=").await?;
    let of_init: String = node.log(&id).await?.iter().map(|l| format!("{}\n", l.text)).collect();
    let of_exec = node.exec_output(&id, &["namespaces", ",", "env", ",", "pwd", ",", "id"]).await?;
    assert_eq!(of_init, of_exec);
    for expected in ["GIVEN=a value", "FROM_IMAGE=yes", "HOSTNAME=same", "\n/etc\n", "uid=1001 gid=1001"] {
        assert!(of_exec.contains(expected), "{expected:?} is not in {of_exec}");
    }
    Ok(())
}

async fn an_exec_in_what_does_not_run_is_refused(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("over")).await?;
    let created = node.create(&pod, container("created", &["pause"])).await?;
    assert!(node.exec(&created, &["print", "x"]).await.is_err());
    let over = node.run_to_end(&pod, container("over", &["exit", "0"])).await?.id;
    assert!(node.exec(&over, &["print", "x"]).await.is_err());
    refused(node.exec(&"0".repeat(64), &["print", "x"]).await, Code::NotFound);
    Ok(())
}

async fn many_execs_at_once_all_end(node: &mut Node) -> Outcome {
    const EXECS: usize = 70;
    let pod = node.run_pod(pod("crowd")).await?;
    let id = node.run(&pod, container("main", &["reap", ",", "pause"])).await?;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..EXECS {
        let mut runtime = node.runtime.clone();
        let cmd = [knarr_node_tests::TOOL, "sleep", "0.2", ",", "print", &number.to_string()].map(str::to_owned);
        let request = knarr_cri_api::v1::ExecSyncRequest { container_id: id.clone(), cmd: cmd.to_vec(), timeout: 60 };
        tasks.spawn(async move { (number, runtime.exec_sync(request).await) });
    }
    while let Some(outcome) = tasks.join_next().await {
        let (number, response) = outcome?;
        assert_eq!(response?.into_inner().stdout, format!("{number}\n").into_bytes());
    }
    Ok(())
}

/// The leak oracle does the looking: descriptors, cgroups and processes must be as before.
async fn a_thousand_probes_leave_nothing(node: &mut Node) -> Outcome {
    const PROBES: usize = 1000;
    let pod = node.run_pod(pod("probes")).await?;
    let id = node.run(&pod, container("main", &["pause"])).await?;
    for number in 0..PROBES {
        let words: &[&str] = if number % 10 == 9 { &["exit", "1"] } else { &["exit", "0"] };
        let response = node.exec(&id, words).await?;
        assert_eq!(response.exit_code, i32::from(number % 10 == 9));
    }
    Ok(())
}
