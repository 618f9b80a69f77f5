//! The built-in network: who reaches whom, and under which address.

use crate::laboratory::{
    ask_tcp, ask_tcp_within, ask_udp, eventually, inode, inside, ip, laboratory, median, new_netns, port, remove,
    serve, sh,
};
use knarr_daemon::network::{BuiltinConfig, Mechanism, Network, NetworkConfig};
use knarr_model::ErrorKind;
use knarr_model::spec::Protocol;
use std::io::Read;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

#[test]
fn pods_reach_each_other_and_the_host_in_both_families() {
    laboratory(|lab| async move {
        let network = lab.open().await;
        let (a, b) = (lab.pod(&network, &[]).await, lab.pod(&network, &[]).await);
        assert_eq!(a.attachment.mechanism, Mechanism::Builtin);
        assert_eq!((a.ip(), a.ip6()), (ip("10.85.0.2"), ip("fd85:6b6e:6172:7200::2")));
        let _b = serve(Some(b.netns.as_fd()), "b", "[::]:80");
        let _host = serve(None, "host", "[::]:80");
        for (from, to) in [(a.ip(), b.ip()), (a.ip6(), b.ip6())] {
            assert_eq!(inside(a.netns.as_fd(), || ask_tcp(to, 80)).unwrap(), format!("b {from}"));
            assert!(ask_tcp(to, 80).unwrap().starts_with("b "), "the host to a pod");
        }
        for (from, gateway) in [(a.ip(), "10.85.0.1"), (a.ip6(), "fd85:6b6e:6172:7200::1")] {
            assert_eq!(inside(a.netns.as_fd(), || ask_tcp(ip(gateway), 80)).unwrap(), format!("host {from}"));
        }
        let _local = serve(Some(a.netns.as_fd()), "a", "127.0.0.1:81");
        assert_eq!(inside(a.netns.as_fd(), || ask_tcp(ip("127.0.0.1"), 81)).unwrap(), "a 127.0.0.1");
    });
}

#[test]
fn a_pod_in_a_user_namespace_is_connected_too() {
    laboratory(|lab| async move {
        let network = lab.open().await;
        let mut holder = Command::new("unshare")
            .args(["--user", "--map-root-user", "--net", "sh", "-c", "echo ready; exec sleep 100"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        holder.stdout.take().unwrap().read_exact(&mut [0; 6]).unwrap();
        let netns = std::fs::File::open(format!("/proc/{}/ns/net", holder.id())).unwrap();
        let identity = lab.identity(&[]);
        let attachment = network.attach(&identity, netns.try_clone().unwrap().into()).await.unwrap();
        let _pod = serve(Some(netns.as_fd()), "pod", "[::]:80");
        for ip in attachment.ips {
            assert!(ask_tcp(ip, 80).unwrap().starts_with("pod"));
        }
        network.detach(&identity).await.unwrap();
        holder.kill().unwrap();
        holder.wait().unwrap();
    });
}

#[test]
fn pods_leave_with_the_hosts_address() {
    laboratory(|lab| async move {
        let outside = lab.outside();
        let network = lab.open().await;
        let pod = lab.pod(&network, &[]).await;
        let _world = serve(Some(outside.as_fd()), "world", "[::]:80");
        let ask = |to: &str| inside(pod.netns.as_fd(), || ask_tcp(ip(to), 80)).unwrap();
        assert_eq!(ask("198.51.100.2"), "world 198.51.100.1");
        assert_eq!(ask("2001:db8::2"), "world 2001:db8::1");
    });
}

#[test]
fn host_ports_lead_to_the_pod_from_everywhere() {
    host_ports_lead_to_the_pod("0");
}

#[test]
fn host_ports_lead_to_the_pod_with_a_filtering_bridge() {
    host_ports_lead_to_the_pod("1");
}

/// br_netfilter changes which hooks a packet between two pods passes; it is on in new namespaces where it is loaded.
fn host_ports_lead_to_the_pod(bridge_filters: &'static str) {
    laboratory(move |lab| async move {
        sh(&format!(
            "for key in iptables ip6tables; do
                 file=/proc/sys/net/bridge/bridge-nf-call-$key; test ! -e $file || echo {bridge_filters} > $file
             done"
        ));
        let outside = lab.outside();
        let network = lab.open().await;
        let wanted = [port(Protocol::Tcp, 8080, 80), port(Protocol::Udp, 8080, 80), port(Protocol::Sctp, 8080, 80)];
        let pod = lab.pod(&network, &wanted).await;
        let other = lab.pod(&network, &[]).await;
        let _pod = serve(Some(pod.netns.as_fd()), "pod", "[::]:80");
        let rules = sh("nft list ruleset");
        let sctp = format!("sctp . 8080 comment \"{}\" : {} . 80", pod.identity.id, pod.ip());
        assert!(rules.contains(&sctp), "no {sctp} in {rules}");

        // From the host itself; without masquerade the pod would answer to its own 127.0.0.1.
        assert_eq!(ask_tcp(ip("127.0.0.1"), 8080).unwrap(), "pod 10.85.0.1");
        assert_eq!(ask_tcp(ip("198.51.100.1"), 8080).unwrap(), "pod 198.51.100.1");
        assert_eq!(ask_tcp(ip("2001:db8::1"), 8080).unwrap(), "pod 2001:db8::1");
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(ask_udp(&udp, ip("127.0.0.1"), 8080).unwrap(), "pod 10.85.0.1");
        // There is no route_localnet in IPv6: refused at once, so that clients fall back to 127.0.0.1.
        assert!(ask_tcp(ip("::1"), 8080).unwrap_err().contains("refused"));

        // From outside, with the client's own address.
        let from_outside = |to: &str| inside(outside.as_fd(), || ask_tcp(ip(to), 8080));
        assert_eq!(from_outside("198.51.100.1").unwrap(), "pod 198.51.100.2");
        assert_eq!(from_outside("2001:db8::1").unwrap(), "pod 2001:db8::2");
        let udp = inside(outside.as_fd(), || UdpSocket::bind("0.0.0.0:0").unwrap());
        assert_eq!(ask_udp(&udp, ip("198.51.100.1"), 8080).unwrap(), "pod 198.51.100.2");

        // From another pod, and from the pod itself.
        for client in [&other, &pod] {
            for to in ["198.51.100.1", "10.85.0.1"] {
                let answer = inside(client.netns.as_fd(), || ask_tcp(ip(to), 8080)).unwrap();
                assert_eq!(answer, "pod 10.85.0.1", "{to}");
            }
        }
        let answer = inside(pod.netns.as_fd(), || ask_tcp(ip("2001:db8::1"), 8080)).unwrap();
        assert_eq!(answer, "pod fd85:6b6e:6172:7200::1");

        remove(&network, pod).await;
        assert!(ask_tcp(ip("127.0.0.1"), 8080).unwrap_err().contains("refused"));
    });
}

#[test]
fn only_packets_to_this_host_are_taken_for_a_host_port() {
    laboratory(|lab| async move {
        let outside = lab.outside();
        let network = lab.open().await;
        let taker = lab.pod(&network, &[port(Protocol::Tcp, 8080, 80)]).await;
        let other = lab.pod(&network, &[]).await;
        let _taker = serve(Some(taker.netns.as_fd()), "taker", "0.0.0.0:80");
        let _other = serve(Some(other.netns.as_fd()), "other", "0.0.0.0:8080");
        let _world = serve(Some(outside.as_fd()), "world", "0.0.0.0:8080");
        assert!(ask_tcp(other.ip(), 8080).unwrap().starts_with("other"));
        assert!(ask_tcp(ip("198.51.100.2"), 8080).unwrap().starts_with("world"));
        let from_pod = |to| inside(other.netns.as_fd(), || ask_tcp(to, 8080)).unwrap();
        assert!(from_pod(ip("198.51.100.2")).starts_with("world"));
        assert!(inside(taker.netns.as_fd(), || ask_tcp(other.ip(), 8080)).unwrap().starts_with("other"));
    });
}

#[test]
fn a_host_port_on_one_address_is_not_on_the_others() {
    laboratory(|lab| async move {
        let _outside = lab.outside();
        let network = lab.open().await;
        let mut on_one = port(Protocol::Tcp, 8080, 80);
        on_one.host_ip = Some(ip("198.51.100.1"));
        let mut on_local = port(Protocol::Tcp, 8080, 80);
        on_local.host_ip = Some(ip("127.0.0.1"));
        let (a, b) = (lab.pod(&network, &[on_one]).await, lab.pod(&network, &[on_local]).await);
        let _a = serve(Some(a.netns.as_fd()), "a", "0.0.0.0:80");
        let _b = serve(Some(b.netns.as_fd()), "b", "0.0.0.0:80");
        assert!(ask_tcp(ip("198.51.100.1"), 8080).unwrap().starts_with("a "));
        assert!(ask_tcp(ip("127.0.0.1"), 8080).unwrap().starts_with("b "));
        assert!(ask_tcp(ip("10.85.0.1"), 8080).is_err());
    });
}

#[test]
fn a_pod_cannot_reach_the_hosts_loopback() {
    laboratory(|lab| async move {
        let network = lab.open().await;
        let pod = lab.pod(&network, &[]).await;
        let localnet = || sh("cat /proc/sys/net/ipv4/conf/knarr0/route_localnet");
        assert_eq!(localnet().trim(), "0", "nobody needs it yet");
        let _other = lab.pod(&network, &[port(Protocol::Tcp, 8080, 80)]).await;
        assert_eq!(localnet().trim(), "1");
        let host = UdpSocket::bind("127.0.0.1:9999").unwrap();
        host.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        inside(pod.netns.as_fd(), || {
            sh("ip route del local 127.0.0.1 dev lo table local; ip route del local 127.0.0.0/8 dev lo table local
                sysctl -qw net.ipv4.conf.eth0.route_localnet=1
                ip route add 127.0.0.1 via 10.85.0.1 src 10.85.0.2");
        });
        let send = || {
            let sender = inside(pod.netns.as_fd(), || UdpSocket::bind("10.85.0.2:0").unwrap());
            sender.send_to(b"?", "127.0.0.1:9999").unwrap();
            host.recv_from(&mut [0; 10])
        };
        assert!(send().is_err(), "a service on the host's 127.0.0.1 hears a pod");
        // The way is open but for the rule, else this test would prove nothing.
        sh("nft flush chain inet knarr-knarr0 martians");
        assert!(send().is_ok());
    });
}

#[test]
fn udp_clients_follow_the_port_to_the_next_pod() {
    laboratory(|lab| async move {
        let _outside = lab.outside();
        let network = lab.open().await;
        let wanted = [port(Protocol::Udp, 5353, 53)];
        let client = UdpSocket::bind("0.0.0.0:0").unwrap();
        // Before there is a pod the flow is tracked as one to the host.
        let _ = client.send_to(b"?", (ip("198.51.100.1"), 5353));
        for name in ["first", "second"] {
            let pod = lab.pod(&network, &wanted).await;
            let server = serve(Some(pod.netns.as_fd()), name, "0.0.0.0:53");
            let answer = ask_udp(&client, ip("198.51.100.1"), 5353);
            assert!(answer.as_ref().is_ok_and(|answer| answer.starts_with(name)), "{name}: {answer:?}");
            drop(server);
            remove(&network, pod).await;
        }
    });
}

#[test]
fn a_taken_host_port_is_refused_and_nothing_is_left_of_the_attempt() {
    laboratory(|lab| async move {
        let network = lab.open().await;
        let holder = lab.pod(&network, &[port(Protocol::Tcp, 8080, 80)]).await;
        let before = lab.traces();
        let identity = lab.identity(&[port(Protocol::Tcp, 8080, 81)]);
        let error = network.attach(&identity, new_netns()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::FailedPrecondition);
        assert!(error.message.contains(holder.identity.id.as_str()) && error.message.contains("8080/tcp"), "{error}");
        lab.settled(&before).await;
        remove(&network, holder).await;
        network.attach(&identity, new_netns()).await.unwrap();
    });
}

#[test]
fn a_failed_attachment_is_undone_although_the_namespace_lives_on() {
    laboratory(|lab| async move {
        let network = lab.open().await;
        let keeper = lab.pod(&network, &[]).await;
        let before = lab.traces();
        let netns = new_netns();
        inside(netns.as_fd(), || sh("ip link add eth0 type veth peer name other"));
        let identity = lab.identity(&[port(Protocol::Tcp, 8080, 80)]);
        let error = network.attach(&identity, netns.try_clone().unwrap()).await.unwrap_err();
        assert!(error.message.contains("making link"), "{error}");
        lab.settled(&before).await;
        remove(&network, keeper).await;
    });
}

#[test]
fn an_exhausted_subnet_says_so_and_recovers() {
    laboratory(|lab| async move {
        let builtin = BuiltinConfig { subnet_v4: "10.85.0.0/29".to_owned(), subnet_v6: None, ..Default::default() };
        let network = Network::open(NetworkConfig { builtin, ..lab.config() }).await.unwrap();
        let mut pods = Vec::new();
        for _ in 0..5 {
            pods.push(lab.pod(&network, &[]).await);
        }
        let late = lab.identity(&[]);
        let error = network.attach(&late, new_netns()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::ResourceExhausted);
        assert!(error.message.contains("10.85.0.0/29"), "{error}");
        remove(&network, pods.remove(2)).await;
        eventually("the address returns", || network.departing() == 0).await;
        assert_eq!(network.attach(&late, new_netns()).await.unwrap().ips, [ip("10.85.0.4")]);
    });
}

#[test]
fn an_address_is_not_given_again_while_its_link_is_there() {
    laboratory(|lab| async move {
        let builtin = BuiltinConfig { subnet_v4: "10.85.0.0/30".to_owned(), subnet_v6: None, ..Default::default() };
        let network = Network::open(NetworkConfig { builtin, ..lab.config() }).await.unwrap();
        let pod = lab.pod(&network, &[]).await;
        network.detach(&pod.identity).await.unwrap();
        let next = lab.identity(&[]);
        let error = network.attach(&next, new_netns()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::ResourceExhausted, "the pod's namespace still answers for its address");
        // Its namespace is held by this test: after five seconds the link is deleted by name.
        let start = Instant::now();
        eventually("the held link is deleted", || network.departing() == 0).await;
        assert!(start.elapsed() > Duration::from_secs(4), "{:?}", start.elapsed());
        network.attach(&next, new_netns()).await.unwrap();
        drop(pod);
    });
}

#[test]
fn five_hundred_pods_leave_nothing() {
    laboratory(|lab| async move {
        let network = lab.open().await;
        let first = lab.pod(&network, &[]).await;
        remove(&network, first).await;
        eventually("the first link goes", || network.departing() == 0).await;
        let before = lab.traces();
        let (mut attaching, mut detaching) = (Vec::new(), Vec::new());
        for n in 0..500_u16 {
            let ports = if n % 5 == 0 { vec![port(Protocol::Tcp, 8080, 80)] } else { Vec::new() };
            let (identity, netns) = (lab.identity(&ports), new_netns());
            let start = Instant::now();
            network.attach(&identity, netns).await.unwrap();
            attaching.push(start.elapsed());
            let start = Instant::now();
            network.detach(&identity).await.unwrap();
            detaching.push(start.elapsed());
        }
        eprintln!("built in: attach {} µs, detach {} µs (medians of 500)", median(attaching), median(detaching));
        eventually("the last link goes", || network.departing() == 0).await;
        lab.settled(&before).await;
        network.close().await.unwrap();
        assert_eq!(sh("nft list ruleset"), "");
        assert_eq!(sh("ip -o link | wc -l").trim(), "1", "only lo");
    });
}

#[test]
fn a_hundred_pods_live_side_by_side() {
    laboratory(|lab| async move {
        let network = lab.open().await;
        let (mut attaching, mut detaching, mut pods) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..100 {
            let (identity, netns) = (lab.identity(&[]), new_netns());
            let start = Instant::now();
            network.attach(&identity, netns.try_clone().unwrap()).await.unwrap();
            attaching.push(start.elapsed());
            pods.push((identity, netns));
        }
        for (identity, netns) in pods {
            let start = Instant::now();
            network.detach(&identity).await.unwrap();
            detaching.push(start.elapsed());
            drop(netns);
        }
        eprintln!(
            "built in: attach {} µs, detach {} µs (medians of 100 together)",
            median(attaching),
            median(detaching)
        );
        eventually("all links go", || network.departing() == 0).await;
    });
}

#[test]
fn thirty_two_pods_attach_at_the_same_time() {
    laboratory(|lab| async move {
        let network = lab.open().await;
        let mut tasks = tokio::task::JoinSet::new();
        let start = Instant::now();
        for n in 0..32 {
            let (lab, network) = (lab.clone(), network.clone());
            tasks.spawn(async move { lab.pod(&network, &[port(Protocol::Tcp, 8000 + n, 80)]).await });
        }
        let pods = tasks.join_all().await;
        eprintln!("built in: 32 pods at once attached in {:?}", start.elapsed());
        let mut ips: Vec<_> = pods.iter().map(|pod| pod.ip()).collect();
        ips.sort();
        ips.dedup();
        assert_eq!(ips.len(), 32);
        for pod in &pods {
            let _server = serve(Some(pod.netns.as_fd()), &pod.identity.name, "0.0.0.0:80");
            let expected = format!("{} 10.85.0.1", pod.identity.name);
            assert_eq!(ask_tcp(ip("127.0.0.1"), pod.identity.ports[0].host_port).unwrap(), expected);
        }
        for pod in pods {
            remove(&network, pod).await;
        }
        eventually("all links go", || network.departing() == 0).await;
    });
}

#[test]
fn the_pin_is_public_and_survives_a_mount_over_its_folder() {
    laboratory(|lab| async move {
        let network = lab.open().await;
        let pod = lab.pod(&network, &[]).await;
        let path = network.path(&pod.identity.id);
        assert_eq!(inode(std::fs::File::open(&path).unwrap()), inode(&pod.netns));
        assert_eq!(inode(network.open_netns(&pod.identity.id).unwrap()), inode(&pod.netns));
        sh(&format!("nsenter --net={} ip addr show eth0", path.display()));
        let folder = lab.config().netns_dir;
        assert!(
            sh("cat /proc/thread-self/mountinfo")
                .lines()
                .any(|line| { line.contains(&format!(" {} ", folder.display())) && line.contains("shared:") })
        );
        // What `ip netns add` does to a folder that is no shared mount.
        rustix::mount::mount_bind(&folder, &folder).unwrap();
        let next = lab.pod(&network, &[]).await;
        remove(&network, next).await;
        remove(&network, pod).await;
        rustix::mount::unmount(&folder, rustix::mount::UnmountFlags::DETACH).unwrap();
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
    });
}

#[test]
fn flushed_rules_and_a_deleted_bridge_come_back() {
    laboratory(|lab| async move {
        let network = lab.open().await;
        let pod = lab.pod(&network, &[port(Protocol::Tcp, 8080, 80)]).await;
        let _pod = serve(Some(pod.netns.as_fd()), "pod", "0.0.0.0:80");
        let works = || ask_tcp_within(ip("127.0.0.1"), 8080, Duration::from_secs(1)).is_ok();
        assert!(works());
        sh("nft flush ruleset");
        assert!(!works());
        let next = lab.pod(&network, &[]).await;
        assert!(works(), "an attachment repairs flushed rules");
        sh("nft flush table inet knarr-knarr0");
        let findings = network.diagnose().await;
        assert!(works() && findings.is_empty(), "rules that were flushed without their table: {findings:?}");
        sh("ip link del knarr0");
        assert!(!works());
        remove(&network, next).await;
        let next = lab.pod(&network, &[]).await;
        assert!(works(), "the bridge gets its ports back");
        remove(&network, next).await;
    });
}

#[test]
fn another_tables_forward_drop_is_named() {
    laboratory(|lab| async move {
        let network = lab.open().await;
        sh("nft 'table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }'");
        let _pod = lab.pod(&network, &[]).await;
        let status = network.status();
        assert!(status.ready && status.message.contains("ip filter FORWARD"), "{}", status.message);
        sh("nft delete table ip filter");
        assert!(network.diagnose().await.is_empty());
    });
}

#[test]
fn other_subnets_are_used_from_now_on_and_after_a_restart() {
    laboratory(|lab| async move {
        let outside = lab.outside();
        let network = lab.open().await;
        let old = lab.pod(&network, &[]).await;
        network.pod_cidr("10.244.3.0/24,fd44:3::/64").await.unwrap();
        let new = lab.pod(&network, &[]).await;
        assert_eq!(new.attachment.ips, [ip("10.244.3.2"), ip("fd44:3::2")]);
        let _world = serve(Some(outside.as_fd()), "world", "0.0.0.0:80");
        let _old = serve(Some(old.netns.as_fd()), "old", "0.0.0.0:81");
        for pod in [&old, &new] {
            let answer = inside(pod.netns.as_fd(), || ask_tcp(ip("198.51.100.2"), 80)).unwrap();
            assert_eq!(answer, "world 198.51.100.1");
        }
        assert!(inside(new.netns.as_fd(), || ask_tcp(old.ip(), 81)).is_ok());
        assert!(network.pod_cidr("nonsense").await.is_err());
        drop(network);
        let again = lab.open().await;
        assert!(lab.pod(&again, &[]).await.ip().to_string().starts_with("10.244.3."));
    });
}

#[test]
fn nobody_else_can_look_into_the_state() {
    laboratory(|lab| async move {
        let network: Arc<Network> = lab.open().await;
        let _pod = lab.pod(&network, &[]).await;
        for folder in ["state", "cache"] {
            let mode = std::fs::metadata(lab.root.join(folder)).unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{folder} is {mode:o}");
        }
    });
}

#[test]
fn router_advertisements_are_not_believed() {
    laboratory(|lab| async move {
        let network = lab.open().await;
        let pod = lab.pod(&network, &[]).await;
        let read = |key: &str| sh(&format!("cat /proc/sys/net/ipv6/conf/{key}/accept_ra"));
        assert_eq!(read("knarr0").trim(), "0");
        assert_eq!(inside(pod.netns.as_fd(), || read("eth0")).trim(), "0");
        // Waiting for duplicate addresses would take a second or two.
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(inside(pod.netns.as_fd(), || sh("ip -6 addr show dev eth0 tentative")), "");
    });
}
