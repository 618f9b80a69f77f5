//! The pod's network: the built-in one, and CNI with the reference plugins.

use knarr_cri_api::v1;
use knarr_node_tests::node::{Config, Node, Pod};
use knarr_node_tests::requests::{container, host_network_pod, pod};
use knarr_node_tests::{Outcome, eventually, patience, tests};
use std::io::Read;
use std::net::{IpAddr, TcpStream};
use std::time::Duration;

tests![
    pods_reach_each_other_and_the_host_reaches_them,
    a_pod_on_the_hosts_network_has_no_address_of_its_own,
    a_host_port_leads_to_the_pod_and_ends_with_it,
    addresses_return_when_pods_end,
    the_node_is_ready,
    cni_gives_pods_an_address_and_takes_it_back with cni,
    cni_opens_host_ports with cni,
    a_node_that_waits_for_cni_is_not_ready with cni_without_configuration,
    a_plugin_that_fails_leaves_nothing with failing_cni,
];

/// Debian's plugins, on addresses that no other test uses.
pub fn cni() -> Config {
    let conflist = r#"{
        "cniVersion": "1.0.0", "name": "node",
        "plugins": [
            { "type": "bridge", "bridge": "cni-node0", "isGateway": true, "ipMasq": true,
              "ipam": { "type": "host-local", "dataDir": "DATA", "ranges": [[{ "subnet": "10.93.0.0/24" }]],
                        "routes": [{ "dst": "0.0.0.0/0" }] } },
            { "type": "portmap", "capabilities": { "portMappings": true } }
        ]
    }"#;
    Config {
        toml: "[network]\nmode = \"cni\"\n[network.cni]\nbin_dirs = [\"/opt/cni/bin\", \"/usr/lib/cni\"]\n".into(),
        cni: vec![("10-node.conflist", conflist.replace("DATA", &cni_data()))],
        ..Config::default()
    }
}

/// Where host-local keeps its addresses: below the test's own directory, which is the last word of its command line.
fn cni_data() -> String {
    format!("{}/cni-data", std::env::args().next_back().unwrap_or_default())
}

fn cni_without_configuration() -> Config {
    Config { cni: Vec::new(), ..cni() }
}

fn failing_cni() -> Config {
    let conflist = r#"{ "cniVersion": "1.0.0", "name": "node", "plugins": [
        { "type": "bridge", "bridge": "cni-node0", "ipam": { "type": "host-local", "dataDir": "DATA", "ranges": [[{ "subnet": "10.93.0.0/24",
            "rangeStart": "10.93.0.9", "rangeEnd": "10.93.0.9" }]] } }
    ] }"#;
    Config { cni: vec![("10-node.conflist", conflist.replace("DATA", &cni_data()))], ..cni() }
}

pub fn call(address: &str, port: u16) -> std::io::Result<String> {
    let address: IpAddr = address.parse().map_err(std::io::Error::other)?;
    let mut stream = TcpStream::connect_timeout(&(address, port).into(), patience(Duration::from_secs(3)))?;
    stream.set_read_timeout(Some(patience(Duration::from_secs(3))))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

async fn serving(node: &mut Node, config: v1::PodSandboxConfig, port: u16) -> Outcome<(Pod, String)> {
    let pod = node.run_pod(config).await?;
    let id = node.run(&pod, container("server", &["listen", &port.to_string()])).await?;
    node.wait_for_log(&id, "listening").await?;
    Ok((pod, id))
}

async fn pods_reach_each_other_and_the_host_reaches_them(node: &mut Node) -> Outcome {
    let (server, _) = serving(node, pod("server"), 8080).await?;
    let address = node.address(&server).await?;
    assert_eq!(call(&address, 8080)?, "hello from server\n");
    let client = node.run_pod(pod("client")).await?;
    let words = ["connect", &address, "8080"];
    assert_eq!(node.output_of(&client, container("main", &words)).await?, "hello from server\n");
    let network = node.pod_status(&server.id).await?.network.ok_or("no network")?;
    for more in network.additional_ips {
        assert_ne!(more.ip, address, "the primary address is not told twice");
        let words = ["connect", &more.ip, "8080"];
        let name = format!("to-{}", more.ip.replace([':', '.'], "-"));
        assert_eq!(node.output_of(&client, container(&name, &words)).await?, "hello from server\n");
    }
    // Loopback is the pod's own.
    let words = ["connect", "127.0.0.1", "8080"];
    assert_eq!(node.output_of(&server, container("self", &words)).await?, "hello from server\n");
    assert!(node.output_of(&client, container("other", &words)).await.is_err());
    Ok(())
}

async fn a_pod_on_the_hosts_network_has_no_address_of_its_own(node: &mut Node) -> Outcome {
    let (pod, _) = serving(node, host_network_pod("host"), 8081).await?;
    let status = node.pod_status(&pod.id).await?;
    assert_eq!(status.network.map(|n| n.ip).unwrap_or_default(), "");
    assert!(call("127.0.0.1", 8081)?.starts_with("hello from "));
    Ok(())
}

fn with_host_port(name: &str, container_port: i32, host_port: i32) -> v1::PodSandboxConfig {
    let mut config = pod(name);
    config.port_mappings =
        vec![v1::PortMapping { protocol: v1::Protocol::Tcp.into(), container_port, host_port, host_ip: String::new() }];
    config
}

async fn a_host_port_leads_to_the_pod_and_ends_with_it(node: &mut Node) -> Outcome {
    let (published, _) = serving(node, with_host_port("published", 8080, 12000), 8080).await?;
    assert_eq!(call("127.0.0.1", 12000)?, "hello from published\n");
    let address = node.address(&published).await?;
    assert_eq!(call(&address, 8080)?, "hello from published\n");
    // The pod reaches itself through the host's address, and another pod of the same port is not disturbed.
    let (other, _) = serving(node, pod("other"), 12000).await?;
    let other_address = node.address(&other).await?;
    assert_eq!(call(&other_address, 12000)?, "hello from other\n");
    node.remove_pod(&published.id).await?;
    assert!(call("127.0.0.1", 12000).is_err(), "the port is closed with the pod");
    let (_, _) = serving(node, with_host_port("next", 8080, 12000), 8080).await?;
    assert_eq!(call("127.0.0.1", 12000)?, "hello from next\n");
    Ok(())
}

async fn addresses_return_when_pods_end(node: &mut Node) -> Outcome {
    for round in 0..30 {
        let pod = node.run_pod(pod(&format!("p{round}"))).await?;
        assert!(!node.address(&pod).await?.is_empty());
        node.stop_pod(&pod.id).await?;
        assert_eq!(node.pod_status(&pod.id).await?.network.map(|n| n.ip).unwrap_or_default(), "");
        node.remove_pod(&pod.id).await?;
    }
    Ok(())
}

async fn network_ready(node: &mut Node) -> Outcome<v1::RuntimeCondition> {
    let status = node.runtime.status(v1::StatusRequest { verbose: false }).await?.into_inner();
    let conditions = status.status.ok_or("no status")?.conditions;
    Ok(conditions.into_iter().find(|c| c.r#type == "NetworkReady").ok_or("no NetworkReady")?)
}

async fn the_node_is_ready(node: &mut Node) -> Outcome {
    let status = node.runtime.status(v1::StatusRequest { verbose: true }).await?.into_inner();
    let conditions = status.status.ok_or("no status")?.conditions;
    for kind in ["RuntimeReady", "NetworkReady"] {
        assert!(conditions.iter().any(|c| c.r#type == kind && c.status), "{conditions:?}");
    }
    let version = node.runtime.version(v1::VersionRequest { version: "v1".into() }).await?.into_inner();
    assert_eq!((version.version.as_str(), version.runtime_name.as_str()), ("0.1.0", "knarr"));
    assert_eq!(version.runtime_api_version, "v1");
    assert!(version.runtime_version.split('.').count() >= 2);
    Ok(())
}

async fn cni_gives_pods_an_address_and_takes_it_back(node: &mut Node) -> Outcome {
    let (server, _) = serving(node, pod("server"), 8080).await?;
    let address = node.address(&server).await?;
    assert!(address.starts_with("10.93.0."), "{address}");
    assert_eq!(call(&address, 8080)?, "hello from server\n");
    let client = node.run_pod(pod("client")).await?;
    let words = ["connect", &address, "8080"];
    assert_eq!(node.output_of(&client, container("main", &words)).await?, "hello from server\n");
    node.remove_pod(&server.id).await?;
    let data = std::path::PathBuf::from(cni_data()).join("node");
    assert!(data.is_dir() && !data.join(&address).exists(), "the address was given back");
    node.remove_pod(&client.id).await?;
    Ok(())
}

async fn cni_opens_host_ports(node: &mut Node) -> Outcome {
    let (published, _) = serving(node, with_host_port("published", 8080, 12000), 8080).await?;
    let host = "10.93.0.1";
    assert_eq!(call(host, 12000)?, "hello from published\n");
    node.remove_pod(&published.id).await?;
    assert!(call(host, 12000).is_err());
    Ok(())
}

async fn a_node_that_waits_for_cni_is_not_ready(node: &mut Node) -> Outcome {
    let condition = network_ready(node).await?;
    assert!(!condition.status, "{condition:?}");
    node.run_pod(pod("early")).await.expect_err("there is no network to give it");
    node.run_pod(host_network_pod("host")).await?;
    for (name, content) in cni().cni {
        std::fs::write(node.directory.join("cni").join(name), content)?;
    }
    eventually("the new configuration is seen", Duration::from_secs(10), async || {
        Ok(network_ready(node).await?.status.then_some(()))
    })
    .await?;
    let pod = node.run_pod(pod("late")).await?;
    assert!(node.address(&pod).await?.starts_with("10.93.0."));
    Ok(())
}

/// The leak oracle does the looking.
async fn a_plugin_that_fails_leaves_nothing(node: &mut Node) -> Outcome {
    let lucky = node.run_pod(pod("lucky")).await?;
    for _ in 0..3 {
        let status = node.run_pod(pod("unlucky")).await.expect_err("the one address is taken");
        assert!(status.message().contains("bridge") || status.message().contains("host-local"), "{}", status.message());
    }
    assert_eq!(node.pods().await?.len(), 1);
    node.remove_pod(&lucky.id).await?;
    node.run_pod(pod("unlucky")).await?;
    Ok(())
}
