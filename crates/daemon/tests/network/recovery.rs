//! What a new daemon makes of what an earlier one left.

use crate::laboratory::{ask_tcp, eventually, ip, laboratory, new_netns, port, remove, serve, sh};
use knarr_daemon::network::{BuiltinConfig, Network, NetworkConfig, PodIdentity};
use knarr_model::spec::Protocol;
use std::os::fd::AsFd;

#[test]
fn a_new_daemon_keeps_the_living_and_sweeps_the_dead() {
    laboratory(|lab| async move {
        let network = lab.open().await;
        let alive = lab.pod(&network, &[port(Protocol::Tcp, 8080, 80)]).await;
        let before = lab.traces();
        let dead = lab.pod(&network, &[port(Protocol::Tcp, 8081, 80)]).await;
        let (dead_id, dead_ip) = (dead.identity.id.clone(), dead.ip());
        drop((network, dead));

        let network = lab.open().await;
        assert_eq!(network.attachment(&alive.identity.id).await.unwrap().ips, alive.attachment.ips);
        let errors = network.sweep(std::slice::from_ref(&alive.identity.id)).await;
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(network.attachment(&dead_id).await, None);
        assert!(network.open_netns(&dead_id).is_err());
        eventually("the dead pod's link goes", || network.departing() == 0).await;
        lab.settled(&before).await;

        let _alive = serve(Some(alive.netns.as_fd()), "alive", "0.0.0.0:80");
        assert!(ask_tcp(ip("127.0.0.1"), 8080).unwrap().starts_with("alive"));
        let late = lab.identity(&[port(Protocol::Tcp, 8080, 80)]);
        let error = network.attach(&late, new_netns()).await.unwrap_err();
        assert!(error.message.contains(alive.identity.id.as_str()));
        let next = lab.pod(&network, &[port(Protocol::Tcp, 8081, 80)]).await;
        assert_ne!(next.ip(), dead_ip, "an address rests before it is given again");
    });
}

#[test]
fn torn_records_are_cleaned_up_by_name() {
    laboratory(|lab| async move {
        let network = lab.open().await;
        let first = lab.pod(&network, &[]).await;
        remove(&network, first).await;
        eventually("the link goes", || network.departing() == 0).await;
        let before = lab.traces();
        let pod = lab.pod(&network, &[port(Protocol::Tcp, 8080, 80)]).await;
        let id = pod.identity.id.clone();
        drop((network, pod));
        // The record and the address are one file: what a power cut leaves of it is its names.
        std::fs::write(lab.root.join("state/attachments").join(id.as_str()), "").unwrap();
        let network = lab.open().await;
        let errors = network.sweep(&[]).await;
        assert!(errors.is_empty(), "{errors:?}");
        // The link went with the namespace; the pin held it until now.
        lab.settled(&before).await;
    });
}

#[test]
fn links_and_host_ports_of_unknown_pods_are_swept() {
    laboratory(|lab| async move {
        let network = lab.open().await;
        let alive = lab.pod(&network, &[port(Protocol::Tcp, 8080, 80)]).await;
        let before = lab.traces();
        sh("ip link add kn0123456789ab type veth peer name stray
            ip link set kn0123456789ab master knarr0
            ip link add kn00000000beef type veth peer name foreign
            nft add element inet knarr-knarr0 ports4 '{ tcp . 9999 : 10.85.9.9 . 80 }'");
        let errors = network.sweep(std::slice::from_ref(&alive.identity.id)).await;
        assert!(errors.is_empty(), "{errors:?}");
        sh("ip link show foreign && ip link del foreign");
        lab.settled(&before).await;
    });
}

#[test]
fn detaching_is_idempotent_and_needs_only_the_id() {
    laboratory(|lab| async move {
        let network = lab.open().await;
        network.detach(&lab.identity(&[])).await.unwrap();
        let pod = lab.pod(&network, &[port(Protocol::Udp, 53, 53)]).await;
        let nameless = PodIdentity::nameless(pod.identity.id.clone());
        network.detach(&nameless).await.unwrap();
        network.detach(&nameless).await.unwrap();
        network.detach(&pod.identity).await.unwrap();
        drop(pod);
        eventually("the link goes", || network.departing() == 0).await;
    });
}

#[test]
fn a_pod_that_is_attached_again_is_undone_first() {
    laboratory(|lab| async move {
        let network = lab.open().await;
        let pod = lab.pod(&network, &[port(Protocol::Tcp, 8080, 80)]).await;
        let again = network.attach(&pod.identity, new_netns()).await;
        assert!(again.is_err(), "the first namespace is still there, and so is its link");
        drop(pod.netns);
        network.attach(&pod.identity, new_netns()).await.unwrap();
        assert_eq!(sh("ls /sys/class/net 2>/dev/null; ip -o link show type veth | wc -l").lines().last(), Some("1"));
    });
}

#[test]
fn two_daemons_on_one_state_directory_do_not_share_an_address() {
    laboratory(|lab| async move {
        let (a, b) = (lab.open().await, lab.open().await);
        let mut ips = Vec::new();
        for network in [&a, &b, &a, &b] {
            ips.push(lab.pod(network, &[]).await.ip());
        }
        ips.sort();
        ips.dedup();
        assert_eq!(ips.len(), 4);
    });
}

#[test]
fn another_instances_bridge_is_left_alone() {
    laboratory(|lab| async move {
        let network = lab.open().await;
        let pod = lab.pod(&network, &[port(Protocol::Tcp, 8080, 80)]).await;
        let before = lab.traces();
        let other = NetworkConfig { state_dir: lab.root.join("other"), ..lab.config() };
        let intruder = Network::open(other.clone()).await.unwrap();
        assert!(intruder.sweep(&[]).await.is_empty());
        let error = intruder.attach(&lab.identity(&[]), new_netns()).await.unwrap_err();
        assert!(error.message.contains("belongs to another instance"), "{error}");
        intruder.close().await.unwrap();
        lab.settled(&before).await;

        let subnets = BuiltinConfig {
            bridge: "knarr1".to_owned(),
            subnet_v4: "10.86.0.0/16".to_owned(),
            subnet_v6: None,
            ..BuiltinConfig::default()
        };
        let neighbour = Network::open(NetworkConfig { builtin: subnets, ..other }).await.unwrap();
        let theirs = lab.pod(&neighbour, &[port(Protocol::Tcp, 8081, 80)]).await;
        let _ours = serve(Some(pod.netns.as_fd()), "ours", "0.0.0.0:80");
        let _theirs = serve(Some(theirs.netns.as_fd()), "theirs", "0.0.0.0:80");
        assert!(ask_tcp(ip("127.0.0.1"), 8080).unwrap().starts_with("ours"));
        assert!(ask_tcp(ip("127.0.0.1"), 8081).unwrap().starts_with("theirs"));
    });
}
