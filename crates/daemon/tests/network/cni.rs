//! CNI: Debian's plugins, and plugins that hang, crash, lie and forget.

use crate::laboratory::{
    Laboratory, ask_tcp, eventually, inside, ip, laboratory, median, new_netns, port, remove, serve, sh,
};
use knarr_daemon::network::{BuiltinConfig, Mechanism, Network, NetworkConfig, PodIdentity};
use knarr_model::ErrorKind;
use knarr_model::spec::Protocol;
use serde_json::{Value, json};
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

impl Laboratory {
    /// Writes a configuration file.
    fn configure(&self, file: &str, content: &Value) {
        let folder = self.root.join("net.d");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(file), content.to_string()).unwrap();
    }

    /// Writes a plugin: a shell script that first notes its command and its input in `calls`.
    fn plugin(&self, name: &str, body: &str) {
        let folder = self.root.join("bin");
        fs::create_dir_all(&folder).unwrap();
        let calls = self.root.join("calls");
        let script = format!(
            "#!/bin/sh\nINPUT=$(cat)\necho \"{name} $CNI_COMMAND netns=$CNI_NETNS args=$CNI_ARGS $INPUT\" >> {}\n{body}\n",
            calls.display()
        );
        // Written under another name: a script that another thread is just starting would be busy.
        let path = folder.join(name);
        fs::write(path.with_extension("new"), script).unwrap();
        fs::set_permissions(path.with_extension("new"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(path.with_extension("new"), path).unwrap();
    }

    /// What plugins noted: one line per call.
    fn calls(&self) -> Vec<String> {
        fs::read_to_string(self.root.join("calls")).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// "plugin COMMAND" of every call.
    fn call_names(&self) -> Vec<String> {
        let first_two = |line: &String| line.split(' ').take(2).collect::<Vec<_>>().join(" ");
        self.calls().iter().map(first_two).collect()
    }

    /// Attaches a pod that must fail.
    async fn refused(&self, network: &Network) -> knarr_model::Error {
        network.attach(&self.identity(&[]), new_netns()).await.unwrap_err()
    }
}

const RESULT: &str = r#"{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/x"}],"ips":[{"interface":0,"address":"10.1.2.3/24"}]}"#;

/// A plugin that works and does nothing.
fn good() -> String {
    format!("case $CNI_COMMAND in ADD) echo '{RESULT}';; esac")
}

fn list(plugins: &[&str]) -> Value {
    versioned_list("1.0.0", plugins)
}

fn versioned_list(version: &str, plugins: &[&str]) -> Value {
    let plugins: Vec<Value> = plugins.iter().map(|kind| json!({ "type": kind })).collect();
    json!({ "cniVersion": version, "name": "lab", "plugins": plugins })
}

/// What kubeadm clusters without anything special have.
fn debian_list(lab: &Laboratory) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "debian",
        "plugins": [
            {
                "type": "bridge", "bridge": "cni9", "isGateway": true, "ipMasq": true, "hairpinMode": true,
                "ipam": {
                    "type": "host-local", "dataDir": lab.root.join("host-local"),
                    "ranges": [[{ "subnet": "10.99.0.0/24" }], [{ "subnet": "fd99::/64" }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    })
}

#[test]
fn debians_plugins_connect_pods_and_leave_nothing() {
    laboratory(|lab| async move {
        lab.configure("10-debian.conflist", &debian_list(&lab));
        let network = lab.open().await;
        let status = network.status();
        assert!(status.ready && status.message.contains("debian"), "{}", status.message);
        let findings = network.diagnose().await;
        assert!(findings.is_empty(), "{findings:?}");
        let first = lab.pod(&network, &[]).await;
        remove(&network, first).await;
        let traces = |lab: &Laboratory| {
            let mut leases = sh(&format!("ls {}/debian", lab.root.join("host-local").display()));
            leases.retain(|c| c != '\n');
            (
                sh("ip -o link | cut -d: -f2 | cut -d@ -f1 | sort"),
                sh("nft -s list ruleset | grep -c dport || true"),
                leases,
            )
        };
        let before = traces(&lab);
        let (mut attaching, mut detaching) = (Vec::new(), Vec::new());
        for _ in 0..10 {
            let (identity, netns) = (lab.identity(&[port(Protocol::Tcp, 8080, 80)]), new_netns());
            let start = Instant::now();
            let attachment = network.attach(&identity, netns.try_clone().unwrap()).await.unwrap();
            attaching.push(start.elapsed());
            assert_eq!(attachment.mechanism, Mechanism::Cni { network: "debian".to_owned() });
            assert_eq!(attachment.ips.len(), 2);
            assert_eq!(attachment.detail["debian"]["cniVersion"], "1.0.0");
            let server = serve(Some(netns.as_fd()), "pod", "0.0.0.0:80");
            assert!(ask_tcp(attachment.ips[0], 80).unwrap().starts_with("pod"));
            assert!(ask_tcp(ip("10.99.0.1"), 8080).unwrap().starts_with("pod"), "the portmap plugin's host port");
            drop(server);
            let start = Instant::now();
            network.detach(&identity).await.unwrap();
            detaching.push(start.elapsed());
        }
        eprintln!(
            "CNI bridge + host-local + portmap: attach {} µs, detach {} µs",
            median(attaching),
            median(detaching)
        );
        assert_eq!(traces(&lab), before);
        assert_eq!(fs::read_dir(lab.root.join("cache/results")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(lab.root.join("state/attachments")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(lab.root.join("netns")).unwrap().count(), 0);
    });
}

#[test]
fn check_notices_what_is_broken() {
    laboratory(|lab| async move {
        lab.configure("10-debian.conflist", &debian_list(&lab));
        let network = lab.open().await;
        let pod = lab.pod(&network, &[]).await;
        network.check(&pod.identity.id).await.unwrap();
        inside(pod.netns.as_fd(), || sh("ip addr flush dev eth0"));
        let error = network.check(&pod.identity.id).await.unwrap_err();
        assert!(error.message.contains("\"bridge\" CHECK"), "{error}");
        remove(&network, pod).await;
    });
}

#[test]
fn the_configuration_is_followed_even_when_its_folder_is_removed_and_made_again() {
    laboratory(|lab| async move {
        let network = lab.open().await;
        assert!(network.status().message.contains("built-in"));
        lab.plugin("good", &good());
        lab.configure("10-lab.conflist", &list(&["good"]));
        let by_cni = lab.pod(&network, &[]).await;
        assert_eq!(by_cni.attachment.mechanism, Mechanism::Cni { network: "lab".to_owned() });
        fs::remove_dir_all(lab.root.join("net.d")).unwrap();
        let built_in = lab.pod(&network, &[]).await;
        assert_eq!(built_in.attachment.mechanism, Mechanism::Builtin);
        lab.configure("10-lab.conflist", &list(&["good"]));
        eventually("the folder is looked at without an attachment", || network.status().message.contains("lab")).await;
        // Each is detached by what it was attached with.
        remove(&network, built_in).await;
        assert_eq!(lab.call_names(), ["good ADD"]);
        remove(&network, by_cni).await;
        assert_eq!(lab.call_names(), ["good ADD", "good DEL"]);
    });
}

#[test]
fn a_node_without_a_network_is_not_ready() {
    laboratory(|lab| async move {
        let builtin = BuiltinConfig { enabled: false, ..BuiltinConfig::default() };
        let network = Network::open(NetworkConfig { builtin, ..lab.config() }).await.unwrap();
        let status = network.status();
        assert!(!status.ready);
        assert_eq!(status.reason, "NetworkPluginNotReady");
        assert!(
            status.message.starts_with("Network plugin returns error: no CNI configuration in"),
            "{}",
            status.message
        );
        assert_eq!(lab.refused(&network).await.kind, ErrorKind::FailedPrecondition);
    });
}

#[test]
fn a_broken_configuration_does_not_send_pods_to_the_builtin_network() {
    laboratory(|lab| async move {
        lab.configure("10-lab.conflist", &json!({ "name": "lab", "plugins": [{ "type": "../../bin/sh" }] }));
        let network = lab.open().await;
        let status = network.status();
        assert!(!status.ready && status.message.contains("10-lab.conflist"), "{}", status.message);
        assert_eq!(lab.refused(&network).await.kind, ErrorKind::FailedPrecondition);
        // A later valid one is used, and the first one still named.
        lab.plugin("good", &good());
        lab.configure("20-lab.conflist", &list(&["good"]));
        let pod = lab.pod(&network, &[]).await;
        assert!(network.status().ready && network.status().message.contains("10-lab.conflist"));
        remove(&network, pod).await;
    });
}

#[test]
fn plugins_get_what_the_specification_says() {
    laboratory(|lab| async move {
        lab.plugin("first", &good());
        lab.plugin("second", "case $CNI_COMMAND in ADD) echo \"$INPUT\" | sed 's/.*\"prevResult\"://; s/,\"runtimeConfig.*//; s/,\"type.*//';; esac");
        let mut config = list(&["first", "second"]);
        config["plugins"][1]["capabilities"] = json!({
            "portMappings": true, "bandwidth": true, "dns": true, "io.kubernetes.cri.pod-annotations": true, "cgroupPath": true,
        });
        lab.configure("10-lab.conflist", &config);
        let network = lab.open().await;
        let mut on_one = port(Protocol::Udp, 53, 5353);
        on_one.host_ip = Some(ip("192.0.2.1"));
        let mut identity = lab.identity(&[on_one]);
        identity.annotations.insert("kubernetes.io/ingress-bandwidth".to_owned(), "1M".to_owned());
        identity.dns =
            Some(knarr_model::spec::DnsConfig { servers: vec!["192.0.2.53".to_owned()], ..Default::default() });
        let netns = new_netns();
        network.attach(&identity, netns.try_clone().unwrap()).await.unwrap();
        let calls = lab.calls();
        let expected = format!(
            "args=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            identity.name, identity.id, identity.uid
        );
        assert!(calls[0].contains(&expected), "{}", calls[0]);
        assert!(calls[0].contains(&format!("netns={}", network.path(&identity.id).display())), "{}", calls[0]);
        assert!(!calls[0].contains("runtimeConfig") && !calls[0].contains("prevResult"));
        let input: Value = serde_json::from_str(&calls[1][calls[1].find('{').unwrap()..]).unwrap();
        let result: Value = serde_json::from_str(RESULT).unwrap();
        assert_eq!((&input["prevResult"], &input["name"]), (&result, &json!("lab")));
        assert_eq!(
            input["runtimeConfig"],
            json!({
                "portMappings": [{ "hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "192.0.2.1" }],
                "bandwidth": { "ingressRate": 1_000_000, "ingressBurst": u32::MAX },
                "dns": { "servers": ["192.0.2.53"], "searches": [], "options": [] },
                "io.kubernetes.cri.pod-annotations": { "kubernetes.io/ingress-bandwidth": "1M" },
                "cgroupPath": identity.cgroup_path,
            })
        );
        let cached = fs::read_to_string(lab.root.join(format!("cache/results/lab-{}-eth0", identity.id))).unwrap();
        let cached: Value = serde_json::from_str(&cached).unwrap();
        assert_eq!((&cached["kind"], &cached["result"]), (&json!("cniCacheV1"), &result));
        network.detach(&identity).await.unwrap();
        assert_eq!(lab.call_names()[2..], ["second DEL", "first DEL"]);
        assert!(lab.calls()[3].contains("prevResult"), "DEL gets the result of ADD");
    });
}

#[test]
fn hostile_names_do_not_become_arguments() {
    laboratory(|lab| async move {
        lab.plugin("good", &good());
        lab.configure("10-lab.conflist", &list(&["good"]));
        let network = lab.open().await;
        for name in ["web;IP=10.0.0.1", "web=1", "web\nCNI_COMMAND=DEL", "web\0"] {
            let identity = PodIdentity { name: name.to_owned(), ..lab.identity(&[]) };
            let error = network.attach(&identity, new_netns()).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidArgument, "{error}");
            assert!(!network.path(&identity.id).exists());
        }
        assert!(lab.calls().is_empty());
    });
}

#[test]
fn a_plugin_that_hangs_is_killed_with_its_children_and_undone() {
    laboratory(|lab| async move {
        lab.plugin("good", &good());
        let pid = lab.root.join("pid");
        lab.plugin("hang", &format!("case $CNI_COMMAND in ADD) sleep 1000 & echo $! > {}; wait;; esac", pid.display()));
        lab.configure("10-lab.conflist", &list(&["good", "hang"]));
        let mut config = lab.config();
        config.cni.plugin_timeout = Duration::from_millis(500);
        let network = Network::open(config).await.unwrap();
        let start = Instant::now();
        let error = lab.refused(&network).await;
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        assert_eq!(error.kind, ErrorKind::DeadlineExceeded);
        assert!(error.message.contains("\"hang\" ADD"), "{error}");
        assert_eq!(lab.call_names(), ["good ADD", "hang ADD", "hang DEL", "good DEL"]);
        let child = fs::read_to_string(&pid).unwrap();
        assert!(!is_running(child.trim()), "the plugin's child lives on");
        assert_eq!(fs::read_dir(lab.root.join("cache/results")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(lab.root.join("netns")).unwrap().count(), 0);
    });
}

/// Whether a process is there and no zombie: its parent died, so that somebody else reaps it.
fn is_running(pid: &str) -> bool {
    let status = fs::read_to_string(Path::new("/proc").join(pid).join("stat")).unwrap_or_default();
    status.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with('Z'))
}

#[test]
fn stopping_a_pod_ends_an_attachment_that_hangs() {
    laboratory(|lab| async move {
        lab.plugin("hang", "case $CNI_COMMAND in ADD) sleep 1000;; esac");
        lab.configure("10-lab.conflist", &list(&["hang"]));
        let network = lab.open().await;
        let identity = lab.identity(&[]);
        let attaching = tokio::spawn({
            let (network, identity) = (network.clone(), identity.clone());
            async move { network.attach(&identity, new_netns()).await }
        });
        eventually("the plugin runs", || lab.call_names() == ["hang ADD"]).await;
        let start = Instant::now();
        network.detach(&identity).await.unwrap();
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        assert_eq!(attaching.await.unwrap().unwrap_err().kind, ErrorKind::Cancelled);
        assert_eq!(fs::read_dir(lab.root.join("netns")).unwrap().count(), 0);
    });
}

#[test]
fn an_attachment_that_nobody_waits_for_any_more_is_still_undone() {
    laboratory(|lab| async move {
        lab.plugin("slow", &format!("sleep 0.3; {}", good()));
        lab.configure("10-lab.conflist", &list(&["slow"]));
        let network = lab.open().await;
        let identity = lab.identity(&[]);
        let dropped = tokio::time::timeout(Duration::from_millis(100), network.attach(&identity, new_netns())).await;
        assert!(dropped.is_err());
        network.detach(&identity).await.unwrap();
        assert_eq!(lab.call_names().iter().filter(|call| *call == "slow DEL").count(), 1);
        assert_eq!(fs::read_dir(lab.root.join("state/attachments")).unwrap().count(), 0);
    });
}

#[test]
fn what_plugins_say_is_passed_on_or_refused() {
    laboratory(|lab| async move {
        let network = lab.open().await;
        let refusal =
            r#"echo '{"cniVersion":"1.0.0","code":11,"msg":"no addresses","details":"pool\u001b[2J is full"}'; exit 1"#;
        let empty = r#"{"cniVersion":"1.0.0","ips":[]}"#;
        for (name, body, kind, words) in [
            ("refuses", refusal.to_owned(), ErrorKind::Unavailable, "no addresses (code 11): pool[2J is full"),
            ("crashes", "echo boom >&2; kill -SEGV $$".to_owned(), ErrorKind::Internal, "signal: 11"),
            ("complains", "echo boom >&2; exit 3".to_owned(), ErrorKind::Internal, "boom"),
            ("babbles", "echo this is no JSON".to_owned(), ErrorKind::Internal, "this is no JSON"),
            ("floods", "head -c 3000000 /dev/zero".to_owned(), ErrorKind::Internal, "1048576 bytes"),
            ("silent", "true".to_owned(), ErrorKind::Internal, "no JSON"),
            ("empty", format!("echo '{empty}'"), ErrorKind::Internal, "no address"),
            ("wrong", r#"echo '{"ips":[{"address":"x"}]}'"#.to_owned(), ErrorKind::Internal, "\"x\""),
        ] {
            lab.plugin(name, &format!("case $CNI_COMMAND in ADD) {body};; esac"));
            lab.configure("10-lab.conflist", &list(&[name]));
            let error = lab.refused(&network).await;
            assert_eq!(error.kind, kind, "{name}: {error}");
            assert!(error.message.contains(words), "{name}: {error}");
            assert!(!error.message.contains('\u{1b}'), "a terminal would obey {error:?}");
        }
        lab.configure("10-lab.conflist", &list(&["absent"]));
        let error = lab.refused(&network).await;
        assert!(error.message.contains("no such executable in"), "{error}");
        let findings = network.diagnose().await;
        assert!(findings.len() == 1 && findings[0].contains("absent"), "{findings:?}");
        assert_eq!(fs::read_dir(lab.root.join("netns")).unwrap().count(), 0);
        // DEL of the plugin that is not there fails too; its record waits for a sweep.
        assert_eq!(fs::read_dir(lab.root.join("state/attachments")).unwrap().count(), 1);
    });
}

#[test]
fn a_child_that_keeps_the_output_open_does_not_keep_the_pod_waiting() {
    laboratory(|lab| async move {
        lab.plugin("forks", &format!("{}; sleep 5 &", good()));
        lab.configure("10-lab.conflist", &list(&["forks"]));
        let network = lab.open().await;
        let start = Instant::now();
        let pod = lab.pod(&network, &[]).await;
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
        remove(&network, pod).await;
    });
}

#[test]
fn a_failing_del_stops_no_other_and_is_tried_again() {
    laboratory(|lab| async move {
        lab.plugin("good", &good());
        let flag = lab.root.join("works");
        let body = format!("case $CNI_COMMAND in ADD) echo '{RESULT}';; DEL) test -e {};; esac", flag.display());
        lab.plugin("fails", &body);
        lab.configure("10-lab.conflist", &list(&["good", "fails"]));
        let network = lab.open().await;
        let pod = lab.pod(&network, &[]).await;
        let error = network.detach(&pod.identity).await.unwrap_err();
        assert!(error.message.contains("\"fails\" DEL"), "{error}");
        assert_eq!(lab.call_names()[2..], ["fails DEL", "good DEL"]);
        assert!(!network.path(&pod.identity.id).exists(), "the namespace is let go all the same");
        // The configuration is gone, the daemon is another one, the namespace too: the cache is enough.
        drop((network, pod.netns));
        fs::remove_dir_all(lab.root.join("net.d")).unwrap();
        fs::write(&flag, "").unwrap();
        let network = lab.open().await;
        network.detach(&PodIdentity::nameless(pod.identity.id.clone())).await.unwrap();
        assert_eq!(lab.call_names()[4..], ["fails DEL", "good DEL"]);
        let last = lab.calls().pop().unwrap();
        assert!(last.contains("netns= args=IgnoreUnknown=1;K8S_POD_NAMESPACE=default"), "{last}");
        assert!(last.contains("prevResult"), "{last}");
        network.detach(&pod.identity).await.unwrap();
        assert_eq!(lab.calls().len(), 6);
    });
}

#[test]
fn without_cache_the_present_configuration_undoes() {
    laboratory(|lab| async move {
        lab.plugin("good", &good());
        lab.configure("10-lab.conflist", &list(&["good"]));
        let network = lab.open().await;
        for torn_record in [false, true] {
            let pod = lab.pod(&network, &[]).await;
            let cached = lab.root.join(format!("cache/results/lab-{}-eth0", pod.identity.id));
            if torn_record {
                fs::write(&cached, "").unwrap();
                fs::write(lab.root.join("state/attachments").join(pod.identity.id.as_str()), "").unwrap();
            } else {
                fs::remove_file(&cached).unwrap();
            }
            network.detach(&pod.identity).await.unwrap();
            let last = lab.calls().pop().unwrap();
            assert!(last.starts_with("good DEL") && !last.contains("prevResult"), "{last}");
            assert!(!cached.exists());
        }
    });
}

#[test]
fn a_plugin_that_was_uninstalled_does_not_keep_its_pods_for_ever() {
    laboratory(|lab| async move {
        lab.plugin("good", &good());
        lab.plugin("leaves", &good());
        lab.configure("10-lab.conflist", &list(&["good", "leaves"]));
        let network = lab.open().await;
        let pod = lab.pod(&network, &[]).await;
        fs::remove_file(lab.root.join("bin/leaves")).unwrap();
        let mut failures = 0;
        while let Err(error) = network.detach(&pod.identity).await {
            assert!(error.message.contains("\"leaves\" DEL: no such executable"), "{error}");
            failures += 1;
            assert!(failures < 10);
        }
        assert!(failures > 2, "a plugin that is being upgraded is not there for a moment");
        assert_eq!(fs::read_dir(lab.root.join("cache/results")).unwrap().count(), 0);
    });
}

#[test]
fn status_and_garbage_collection_are_asked_of_plugins_that_know_them() {
    laboratory(|lab| async move {
        let broken = lab.root.join("broken");
        let body = format!(
            "case $CNI_COMMAND in ADD) echo '{RESULT}';;
             STATUS) if test -e {}; then echo '{{\"code\":50,\"msg\":\"agent is down\"}}'; exit 1; fi;; esac",
            broken.display()
        );
        lab.plugin("agent", &body);
        lab.configure("10-lab.conflist", &versioned_list("1.1.0", &["agent"]));
        fs::write(&broken, "").unwrap();
        let network = lab.open().await;
        eventually("STATUS is asked", || !network.status().ready).await;
        assert!(network.status().message.contains("agent is down"), "{}", network.status().message);
        fs::remove_file(&broken).unwrap();
        eventually("STATUS is asked again", || network.status().ready).await;

        let (alive, dead) = (lab.pod(&network, &[]).await, lab.pod(&network, &[]).await);
        drop(network);
        fs::remove_file(lab.root.join("calls")).unwrap();
        let network: Arc<Network> = lab.open().await;
        let errors = network.sweep(std::slice::from_ref(&alive.identity.id)).await;
        assert!(errors.is_empty(), "{errors:?}");
        let calls: Vec<String> = lab.calls().into_iter().filter(|call| !call.contains(" STATUS ")).collect();
        assert!(calls[0].starts_with("agent DEL") && calls[0].contains(dead.identity.id.as_str()), "{calls:?}");
        let input: Value = serde_json::from_str(&calls[1][calls[1].find('{').unwrap()..]).unwrap();
        let valid = json!([{ "containerID": alive.identity.id.as_str(), "ifname": "eth0" }]);
        assert!(calls[1].starts_with("agent GC netns= args= "), "{}", calls[1]);
        assert_eq!(input["cni.dev/valid-attachments"], valid);
    });
}

#[test]
fn several_networks_are_joined_in_order() {
    laboratory(|lab| async move {
        lab.plugin("good", &good());
        lab.plugin("fails", "case $CNI_COMMAND in ADD) exit 1;; esac");
        lab.configure("10-a.conflist", &json!({ "cniVersion": "1.0.0", "name": "a", "plugins": [{ "type": "good" }] }));
        lab.configure("20-b.conflist", &json!({ "cniVersion": "1.0.0", "name": "b", "plugins": [{ "type": "good" }] }));
        lab.configure(
            "30-c.conflist",
            &json!({ "cniVersion": "1.0.0", "name": "c", "plugins": [{ "type": "fails" }] }),
        );
        let mut config = lab.config();
        config.cni.max_networks = 2;
        let network = Network::open(config.clone()).await.unwrap();
        let pod = lab.pod(&network, &[]).await;
        assert_eq!(pod.attachment.ips, [ip("10.1.2.3")]);
        assert_eq!(pod.attachment.detail.as_object().unwrap().len(), 2);
        remove(&network, pod).await;
        assert_eq!(lab.call_names(), ["good ADD", "good ADD", "good DEL", "good DEL"]);
        drop(network);
        config.cni.max_networks = 3;
        let network = Network::open(config).await.unwrap();
        lab.refused(&network).await;
        let expected = ["good ADD", "good ADD", "fails ADD", "fails DEL", "good DEL", "good DEL"];
        assert_eq!(lab.call_names()[4..], expected);
        assert_eq!(fs::read_dir(lab.root.join("cache/results")).unwrap().count(), 0);
    });
}

#[test]
fn only_plugins_that_were_called_are_undone() {
    laboratory(|lab| async move {
        lab.plugin("good", &good());
        lab.plugin("fails", "case $CNI_COMMAND in ADD) exit 1;; esac");
        lab.plugin("never", "true");
        lab.configure("10-lab.conflist", &list(&["good", "fails", "never"]));
        let network = lab.open().await;
        lab.refused(&network).await;
        assert_eq!(lab.call_names(), ["good ADD", "fails ADD", "fails DEL", "good DEL"]);
        assert!(lab.calls()[2].contains("\"prevResult\""), "the result so far: {}", lab.calls()[2]);
    });
}
