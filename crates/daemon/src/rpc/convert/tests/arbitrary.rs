//! Requests that nobody would send: none makes the conversion panic.

use super::shown::view;
use super::*;
use proptest::prelude::*;
use prost::Message as _;

/// Texts that have broken parsers before.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        "[a-z0-9./=:_-]{0,12}",
        ".{0,8}",
        proptest::sample::select(vec![
            "/",
            "..",
            "/..",
            "a/../b",
            "\0",
            "\n",
            "-1",
            "0-",
            "-",
            "é",
            "localhost/",
            "net.",
            "/dev/null",
            "0,1",
            "😀",
        ])
        .prop_map(str::to_owned),
    ]
}

fn number() -> impl Strategy<Value = i64> {
    prop_oneof![Just(0), Just(-1), Just(i64::MIN), Just(i64::MAX), -10_i64..70_000, any::<i64>()]
}

/// A message with some of its bytes changed still decodes surprisingly often.
fn mutated(bytes: Vec<u8>, edits: &[(usize, u8)]) -> Vec<u8> {
    edits.iter().fold(bytes, |mut bytes, (at, value)| {
        let at = at % bytes.len();
        bytes[at] = *value;
        bytes
    })
}

proptest! {
    #[test]
    fn no_message_makes_the_conversion_panic(edits in prop::collection::vec((any::<usize>(), any::<u8>()), 0..6)) {
        let edited = mutated(pod_config().encode_to_vec(), &edits);
        if let Ok(config) = v1::PodSandboxConfig::decode(edited.as_slice()) {
            let _ = pod_spec(config, "");
        }
        let edited = mutated(container_config().encode_to_vec(), &edits);
        if let Ok(config) = v1::ContainerConfig::decode(edited.as_slice()) {
            let _ = container_spec(config, &pod());
        }
    }

    #[test]
    fn no_text_makes_the_conversion_panic_or_gets_a_nul_through(
        texts in prop::collection::vec(text(), 12), numbers in prop::collection::vec(number(), 6),
    ) {
        let mut config = pod_config();
        config.metadata.as_mut().unwrap().name = texts[0].clone();
        config.hostname = texts[1].clone();
        linux_pod(&mut config).cgroup_parent = texts[2].clone();
        linux_pod(&mut config).sysctls = HashMap::from([(texts[3].clone(), texts[4].clone())]);
        config.dns_config.as_mut().unwrap().searches = vec![texts[5].clone()];
        config.port_mappings[0].host_ip = texts[6].clone();
        config.port_mappings[0].host_port = numbers[0] as i32;
        pod_modes(&mut config).pid = (numbers[1] % 6) as i32;
        if let Ok(pod) = pod_spec(config, &texts[7]) {
            for checked in [&pod.name, &pod.hostname, &pod.cgroup_parent, &pod.handler] {
                prop_assert!(!checked.contains(['\0', '\n']));
            }
            prop_assert!(!pod.hostname.is_empty() && pod.hostname.len() <= HOSTNAME_BYTES_MAX);
            for name in pod.sysctls.keys() {
                prop_assert!(!name.contains("..") && !name.contains(['\0', '\n', '+', '=']));
            }
        }
        let mut config = container_config();
        config.log_path = texts[0].clone();
        config.command = vec![texts[1].clone()];
        config.mounts[0].container_path = texts[2].clone();
        config.mounts[0].host_path = texts[3].clone();
        config.devices[0].permissions = texts[4].clone();
        config.cdi_devices[0].name = texts[5].clone();
        wanted(&mut config).cpuset_cpus = texts[6].clone();
        wanted(&mut config).unified = HashMap::from([(texts[7].clone(), texts[8].clone())]);
        wanted(&mut config).oom_score_adj = numbers[0];
        wanted(&mut config).memory_limit_in_bytes = numbers[1];
        wanted(&mut config).memory_swap_limit_in_bytes = numbers[2];
        wanted(&mut config).cpu_shares = numbers[3];
        security(&mut config).run_as_user = Some(v1::Int64Value { value: numbers[4] });
        security(&mut config).seccomp = localhost(&texts[9]);
        if let Ok(spec) = container_spec(config, &pod()) {
            prop_assert!(!spec.log_path.split('/').any(|part| part == ".."));
            prop_assert!(!spec.log_path.starts_with('/'));
            prop_assert!(!spec.command[0].contains('\0'));
            let view = view();
            let container = ContainerView { resources: spec.resources.clone(), spec: Arc::new(spec), ..view.containers[0].clone() };
            let _ = container_status(&view, &container, "");
        }
    }

    #[test]
    fn what_a_status_says_of_resources_is_understood_as_the_same(
        period in 1_000_i64..=1_000_000, quota in 1_000_i64..10_000_000, shares in 2_i64..=262_144,
        memory in 1_i64..1 << 50, oom in -1000_i64..=1000,
    ) {
        let wanted = v1::LinuxContainerResources {
            cpu_period: period, cpu_quota: quota, cpu_shares: shares, memory_limit_in_bytes: memory,
            memory_swap_limit_in_bytes: memory, oom_score_adj: oom, ..Default::default()
        };
        let parsed = resources("linux", wanted.clone()).unwrap();
        prop_assert_eq!(linux_container_resources(&parsed), wanted);
    }
}
