//! Connections into a pod: each is whole, none disturbs another, and what cannot be reached says so.

use knarr_node_tests::node::{Node, Pod};
use knarr_node_tests::requests::{container, host_network_pod, pod};
use knarr_node_tests::streams::{TRANSPORTS, in_time, open, there_and_back};
use knarr_node_tests::{Outcome, tests};
use knarr_streaming::client::Transport;
use std::time::Duration;

tests![
    a_connection_is_carried_both_ways_and_ends,
    many_connections_share_one_client,
    a_port_that_nobody_listens_on_is_refused_and_the_others_go_on,
    a_program_on_ipv6_alone_is_reached,
    a_pod_on_the_hosts_network_is_reached,
    a_pod_is_reached_on_its_own_loopback_only,
    a_pod_that_is_gone_is_not_reached,
];

async fn reflecting(node: &mut Node, config: knarr_cri_api::v1::PodSandboxConfig, words: &[&str]) -> Outcome<Pod> {
    let pod = node.run_pod(config).await?;
    let id = node.run(&pod, container("main", words)).await?;
    node.wait_for_log(&id, "reflecting").await?;
    Ok(pod)
}

fn pattern(bytes: usize, seed: usize) -> Vec<u8> {
    (0..bytes).map(|n| ((n * 7 + seed) % 251) as u8).collect()
}

async fn a_connection_is_carried_both_ways_and_ends(node: &mut Node) -> Outcome {
    let pod = reflecting(node, pod("both"), &["reflect", "8080"]).await?;
    for transport in TRANSPORTS {
        let client = node.forward(&pod.id, transport).await?;
        for bytes in [0, 1, 5 << 20] {
            let sent = pattern(bytes, 1);
            let (back, error) = there_and_back(open(&client, 8080).await?, sent.clone()).await?;
            assert!(back == sent, "{transport:?}: {} of {bytes} bytes", back.len());
            assert_eq!(error, None, "{transport:?}");
        }
    }
    Ok(())
}

async fn many_connections_share_one_client(node: &mut Node) -> Outcome {
    const CONNECTIONS: usize = 40;
    let pod = reflecting(node, pod("crowd"), &["reflect", "8080"]).await?;
    for transport in TRANSPORTS {
        let client = node.forward(&pod.id, transport).await?;
        let mut connections = tokio::task::JoinSet::new();
        for number in 0..CONNECTIONS {
            let connection = open(&client, 8080).await?;
            connections.spawn(async move {
                let sent = pattern(100_000 + number, number);
                let got = there_and_back(connection, sent.clone()).await.map_err(|e| e.to_string());
                (number, got.map(|(back, error)| (back == sent, error)))
            });
        }
        while let Some(outcome) = connections.join_next().await {
            let (number, got) = outcome?;
            assert_eq!(got?, (true, None), "{transport:?} {number}");
        }
    }
    Ok(())
}

async fn a_port_that_nobody_listens_on_is_refused_and_the_others_go_on(node: &mut Node) -> Outcome {
    let pod = reflecting(node, pod("refused"), &["reflect", "8080"]).await?;
    for transport in TRANSPORTS {
        let client = node.forward(&pod.id, transport).await?;
        let (back, error) = there_and_back(open(&client, 81).await?, b"hello".to_vec()).await?;
        let error = error.ok_or("no error")?;
        assert!(error.contains("dial 127.0.0.1:81 in pod") && error.contains("connection refused"), "{error}");
        assert!(back.is_empty());
        let (back, error) = there_and_back(open(&client, 8080).await?, b"still here".to_vec()).await?;
        assert_eq!((back.as_slice(), error), (b"still here".as_slice(), None));
    }
    Ok(())
}

async fn a_program_on_ipv6_alone_is_reached(node: &mut Node) -> Outcome {
    let pod = reflecting(node, pod("six"), &["reflect6", "8086"]).await?;
    for transport in TRANSPORTS {
        let client = node.forward(&pod.id, transport).await?;
        let (back, error) = there_and_back(open(&client, 8086).await?, b"by six".to_vec()).await?;
        assert_eq!((back.as_slice(), error), (b"by six".as_slice(), None));
    }
    Ok(())
}

async fn a_pod_on_the_hosts_network_is_reached(node: &mut Node) -> Outcome {
    let pod = reflecting(node, host_network_pod("host"), &["reflect", "8090"]).await?;
    for transport in TRANSPORTS {
        let client = node.forward(&pod.id, transport).await?;
        let (back, error) = there_and_back(open(&client, 8090).await?, b"hosted".to_vec()).await?;
        assert_eq!((back.as_slice(), error), (b"hosted".as_slice(), None));
    }
    Ok(())
}

async fn a_pod_is_reached_on_its_own_loopback_only(node: &mut Node) -> Outcome {
    reflecting(node, pod("neighbour"), &["reflect", "8080"]).await?;
    let lonely = node.run_pod(pod("lonely")).await?;
    // Here is a listener on the host, too.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
    let client = node.forward(&lonely.id, Transport::Spdy).await?;
    let (back, error) = there_and_back(open(&client, 8080).await?, b"anybody?".to_vec()).await?;
    assert!(back.is_empty() && error.ok_or("no error")?.contains("connection refused"));
    drop(listener);
    Ok(())
}

async fn a_pod_that_is_gone_is_not_reached(node: &mut Node) -> Outcome {
    let pod = reflecting(node, pod("gone"), &["reflect", "8080"]).await?;
    let client = node.forward(&pod.id, Transport::Spdy).await?;
    let held = open(&client, 8080).await?;
    node.stop_pod(&pod.id).await?;
    // What was open ends with the pod.
    let (_, _) = there_and_back(held, b"anybody?".to_vec()).await?;
    let (back, error) = there_and_back(open(&client, 8080).await?, b"hello".to_vec()).await?;
    assert!(back.is_empty() && error.is_some(), "{error:?}");
    node.remove_pod(&pod.id).await?;
    drop(client);
    in_time("a moment", tokio::time::sleep(Duration::from_millis(50))).await
}
