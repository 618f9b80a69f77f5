//! Devices of the host in containers: by path, by the Container Device Interface, and for privileged containers.

use knarr_cri_api::v1::{CdiDevice, ContainerConfig, Device};
use knarr_node_tests::node::{Config, Node};
use knarr_node_tests::requests::{container, int, pod, security, security_of_pod};
use knarr_node_tests::{Outcome, refused, tests};
use std::fs;
use tonic::Code;

tests![
    a_device_that_was_asked_for_is_there,
    a_directory_of_devices_is_there_with_all_of_them,
    a_device_is_used_as_its_permissions_say,
    a_device_belongs_to_the_containers_user_if_so_configured with of_users,
    a_privileged_container_has_every_device_unless_configured_otherwise,
    a_privileged_container_may_be_kept_from_devices with without_host_devices,
    a_cdi_device_changes_its_container with cdi,
    a_cdi_device_can_be_asked_for_by_an_annotation with cdi,
    a_later_directory_of_cdi_counts_and_files_are_read_afresh with cdi,
    a_cdi_device_that_is_not_there_is_said with cdi,
    what_cdi_asks_for_and_knarr_cannot_do_is_named with cdi,
    execs_do_not_need_the_cdi_file_any_more with cdi,
];

fn of_users() -> Config {
    Config { toml: "[devices]\ndevice_ownership_from_security_context = true\n".into(), ..Config::default() }
}

fn without_host_devices() -> Config {
    Config { toml: "[devices]\nprivileged_without_host_devices = true\n".into(), ..Config::default() }
}

fn cdi() -> Config {
    let toml = "[devices]\ncdi_spec_dirs = [\"{directory}/cdi/low\", \"{directory}/cdi/high\"]\n";
    Config { toml: toml.into(), ..Config::default() }
}

fn device(host_path: &str, container_path: &str, permissions: &str) -> Device {
    Device { container_path: container_path.into(), host_path: host_path.into(), permissions: permissions.into() }
}

fn write_cdi(node: &Node, name: &str, content: &str) -> Outcome {
    let path = node.directory.join("cdi").join(name);
    fs::create_dir_all(path.parent().ok_or("a directory")?)?;
    Ok(fs::write(path, content)?)
}

fn ask(config: &mut ContainerConfig, names: &[&str]) {
    config.cdi_devices = names.iter().map(|name| CdiDevice { name: (*name).into() }).collect();
}

async fn a_device_that_was_asked_for_is_there(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("device")).await?;
    let mut config =
        container("main", &["stat", "/dev/mine", ",", "try", "read", "/dev/mine", ",", "try", "write", "/dev/mine"]);
    config.devices = vec![device("/dev/zero", "/dev/mine", "rw")];
    let output = node.output_of(&pod, config).await?;
    assert!(output.starts_with("char ") && output.ends_with("1:5\nok\nok\n"), "{output}");
    let mut config = container("absent", &["pause"]);
    config.devices = vec![device("/dev/no-such-device", "/dev/x", "rwm")];
    let message = refused(node.create(&pod, config).await, Code::InvalidArgument);
    assert!(message.contains("/dev/no-such-device"), "{message}");
    Ok(())
}

async fn a_directory_of_devices_is_there_with_all_of_them(node: &mut Node) -> Outcome {
    let directory = node.directory.join("many");
    fs::create_dir_all(directory.join("below"))?;
    for (name, minor) in [("zero", 5), ("below/null", 3)] {
        let mode = rustix::fs::Mode::from_raw_mode(0o640);
        let number = rustix::fs::makedev(1, minor);
        let kind = rustix::fs::FileType::CharacterDevice;
        rustix::fs::mknodat(rustix::fs::CWD, directory.join(name), kind, mode, number)?;
    }
    fs::write(directory.join("file"), "no device")?;
    let pod = node.run_pod(pod("directory")).await?;
    let (zero, null) = ("/dev/many/zero", "/dev/many/below/null");
    let words = ["stat", zero, ",", "stat", null, ",", "try", "read", "/dev/many/file"];
    let mut config = container("main", &words);
    config.devices = vec![device(directory.to_str().ok_or("a plain path")?, "/dev/many", "rwm")];
    let output = node.output_of(&pod, config).await?;
    assert_eq!(output, "char 0640 0:0 1:5\nchar 0640 0:0 1:3\nENOENT\n");
    Ok(())
}

/// A device that no container has by default and that opens without further rights, with its numbers.
fn spare() -> Outcome<(&'static str, u32, u32)> {
    let candidates = ["/dev/fuse", "/dev/loop-control", "/dev/userfaultfd", "/dev/net/tun"];
    let path = candidates.into_iter().find(|path| fs::metadata(path).is_ok()).ok_or("no device to try with")?;
    let number = rustix::fs::stat(path)?.st_rdev;
    Ok((path, rustix::fs::major(number), rustix::fs::minor(number)))
}

/// What is not given, no node that the container makes itself opens.
async fn a_device_is_used_as_its_permissions_say(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("permissions")).await?;
    let (path, major, minor) = spare()?;
    let (major, minor) = (major.to_string(), minor.to_string());
    let open = ["try", "read", "/dev/x", ",", "try", "write", "/dev/x"];
    let own = [",", "try", "mknod", "/own", &major, &minor, ",", "try", "write", "/own"];
    for (permissions, expected) in [("r", "ok\nEPERM\nok\nEPERM\n"), ("w", "EPERM\nok\nok\nok\n")] {
        let mut config = container(permissions, &[&open[..], &own[..]].concat());
        config.devices = vec![device(path, "/dev/x", permissions)];
        assert_eq!(node.output_of(&pod, config).await?, expected, "{permissions}");
    }
    let config = container("none", &own[1..]);
    assert_eq!(node.output_of(&pod, config).await?, "ok\nEPERM\n");
    Ok(())
}

async fn a_device_belongs_to_the_containers_user_if_so_configured(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("owner")).await?;
    for (name, user, group, expected) in [
        ("both", 1000, Some(2001), "1000:2001 1:5\n"),
        ("user", 1000, None, "1000:0 1:5\n"),
        ("root", 0, Some(5), "0:5 1:5\n"),
    ] {
        let mut config = container(name, &["stat", "/dev/mine"]);
        config.devices = vec![device("/dev/zero", "/dev/mine", "rw")];
        security(&mut config).run_as_user = int(user);
        security(&mut config).run_as_group = group.and_then(int);
        let output = node.output_of(&pod, config).await?;
        assert!(output.ends_with(expected), "{name}: {output}");
    }
    Ok(())
}

async fn a_privileged_container_has_every_device_unless_configured_otherwise(node: &mut Node) -> Outcome {
    let mut config = pod("privileged");
    security_of_pod(&mut config).privileged = true;
    let pod = node.run_pod(config).await?;
    let mut config = container("main", &["ls", "/dev", ",", "try", "mknod", "/x", "1", "11", ",", "try", "read", "/x"]);
    security(&mut config).privileged = true;
    let output = node.output_of(&pod, config).await?;
    assert!(output.lines().any(|name| name == "kmsg"), "{output}");
    assert!(output.ends_with("ok\nok\n"), "{output}");
    Ok(())
}

async fn a_privileged_container_may_be_kept_from_devices(node: &mut Node) -> Outcome {
    let mut config = pod("privileged");
    security_of_pod(&mut config).privileged = true;
    let pod = node.run_pod(config).await?;
    let mut config = container("main", &["ls", "/dev", ",", "try", "mknod", "/x", "1", "11", ",", "try", "read", "/x"]);
    security(&mut config).privileged = true;
    let output = node.output_of(&pod, config).await?;
    assert!(!output.lines().any(|name| name == "kmsg"), "{output}");
    assert!(output.ends_with("ok\nEPERM\n"), "{output}");
    Ok(())
}

const VENDOR: &str = r#"
cdiVersion: 0.7.0
kind: vendor.com/gpu
containerEdits:
  env: [VENDOR=everywhere]
devices:
- name: "0"
  containerEdits:
    env: [GPU=zero, FROM_IMAGE=no]
    additionalGids: [4711]
    deviceNodes:
    - path: /dev/gpu0
      hostPath: DEVICE
      permissions: r
      fileMode: 0640
      uid: 7
    mounts:
    - hostPath: DIRECTORY/lib
      containerPath: /opt/vendor
      options: [ro, nosuid, nodev, rbind, rprivate]
- name: "1"
  containerEdits:
    env: [GPU=one]
"#;

/// The variable by which the tests tell devices apart.
fn gpu(environment: &str) -> &str {
    environment.lines().find(|line| line.starts_with("GPU=")).unwrap_or_default()
}

/// The file that the tests use, and what it mounts.
fn vendor(node: &Node) -> Outcome {
    let library = node.directory.join("lib");
    fs::create_dir_all(&library)?;
    fs::write(library.join("driver"), "the driver\n")?;
    let directory = node.directory.to_str().ok_or("a plain path")?;
    write_cdi(node, "low/vendor.yaml", &VENDOR.replace("DIRECTORY", directory).replace("DEVICE", spare()?.0))
}

async fn a_cdi_device_changes_its_container(node: &mut Node) -> Outcome {
    vendor(node)?;
    let pod = node.run_pod(pod("cdi")).await?;
    let words = ["env", ",", "stat", "/dev/gpu0", ",", "cat", "/opt/vendor/driver", ",", "id", ",", "pause"];
    let mut config = container("main", &words);
    security(&mut config).run_as_user = int(1000);
    security(&mut config).run_as_group = int(1000);
    ask(&mut config, &["vendor.com/gpu=0"]);
    let id = node.run(&pod, config).await?;
    let of_exec = node.exec_output(&id, &words[..words.len() - 2]).await?;
    let (_, major, minor) = spare()?;
    let of_device = format!("char 0640 7:1000 {major}:{minor}");
    for line in ["GPU=zero", "VENDOR=everywhere", "FROM_IMAGE=no", &of_device, "the driver"] {
        assert!(of_exec.lines().any(|seen| seen == line), "{line} is not in {of_exec}");
    }
    assert!(of_exec.ends_with("uid=1000 gid=1000 groups=1000,2002,4711\n"), "{of_exec}");
    node.wait_for_log(&id, "uid=").await?;
    let of_init: String = node.log(&id).await?.iter().map(|line| format!("{}\n", line.text)).collect();
    assert_eq!(of_init, of_exec);
    let access = ["try", "read", "/dev/gpu0", ",", "try", "create", "/opt/vendor/x"];
    assert_eq!(node.exec_output(&id, &access).await?, "ok\nEROFS\n");
    let mut config = container("root", &["try", "write", "/dev/gpu0"]);
    ask(&mut config, &["vendor.com/gpu=0"]);
    assert_eq!(node.output_of(&pod, config).await?, "EPERM\n", "the file gives the right to read");
    Ok(())
}

async fn a_cdi_device_can_be_asked_for_by_an_annotation(node: &mut Node) -> Outcome {
    vendor(node)?;
    let pod = node.run_pod(pod("annotation")).await?;
    let mut config = container("main", &["env"]);
    config.annotations.insert("cdi.k8s.io/vendor.com_plugin".into(), "vendor.com/gpu=0,vendor.com/gpu=1".into());
    ask(&mut config, &["vendor.com/gpu=1"]);
    assert_eq!(gpu(&node.output_of(&pod, config).await?), "GPU=zero", "that of the field comes first, and once");
    let mut config = container("bad", &["pause"]);
    config.annotations.insert("cdi.k8s.io/x".into(), "gpu0".into());
    let message = refused(node.create(&pod, config).await, Code::InvalidArgument);
    assert!(message.starts_with("config.annotations[cdi.k8s.io/x]: "), "{message}");
    Ok(())
}

async fn a_later_directory_of_cdi_counts_and_files_are_read_afresh(node: &mut Node) -> Outcome {
    vendor(node)?;
    let pod = node.run_pod(pod("directories")).await?;
    let of = |name: &str| {
        let mut config = container(name, &["env"]);
        ask(&mut config, &["vendor.com/gpu=1"]);
        config
    };
    assert_eq!(gpu(&node.output_of(&pod, of("before")).await?), "GPU=one");
    let other = |value: &str| {
        let edits = format!(r#"{{"env":["GPU={value}"]}}"#);
        let device = format!(r#"{{"name":"1","containerEdits":{edits}}}"#);
        format!(r#"{{"cdiVersion":"0.5.0","kind":"vendor.com/gpu","devices":[{device}]}}"#)
    };
    write_cdi(node, "high/other.json", &other("high"))?;
    assert_eq!(gpu(&node.output_of(&pod, of("after")).await?), "GPU=high");
    write_cdi(node, "high/another.json", &other("also"))?;
    let message = refused(node.create(&pod, of("conflict")).await, Code::FailedPrecondition);
    assert!(message.contains("another.json") && message.contains("other.json"), "{message}");
    Ok(())
}

async fn a_cdi_device_that_is_not_there_is_said(node: &mut Node) -> Outcome {
    vendor(node)?;
    write_cdi(node, "low/wrong.yaml", "cdiVersion: 0.7.0\nkind: other.com/nic\ndevices:\n- name: a\n  edits: {}\n")?;
    let pod = node.run_pod(pod("absent")).await?;
    let mut config = container("main", &["pause"]);
    ask(&mut config, &["vendor.com/gpu=0", "vendor.com/gpu=9", "other.com/nic=a"]);
    let message = refused(node.create(&pod, config).await, Code::FailedPrecondition);
    for told in ["vendor.com/gpu=9, other.com/nic=a", "wrong.yaml: devices[0]"] {
        assert!(message.contains(told), "{told} is not in {message}");
    }
    let absent = "{cdiVersion: 0.7.0, kind: v.com/x, devices: [{name: a, containerEdits: {deviceNodes: [{path: /dev/absent}]}}]}";
    write_cdi(node, "low/absent.yaml", absent)?;
    let mut config = container("node", &["pause"]);
    ask(&mut config, &["v.com/x=a"]);
    let message = refused(node.create(&pod, config).await, Code::FailedPrecondition);
    assert!(message.contains("/dev/absent"), "{message}");
    for name in ["gpu", "vendor.com/gpu", "../x/y=z"] {
        let mut config = container("bad", &["pause"]);
        ask(&mut config, &[name]);
        let message = refused(node.create(&pod, config).await, Code::InvalidArgument);
        assert!(message.starts_with("config.CDI_devices[0].name: "), "{message}");
    }
    assert_eq!(node.containers().await?.len(), 0);
    Ok(())
}

async fn what_cdi_asks_for_and_knarr_cannot_do_is_named(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("unsupported")).await?;
    for (name, edits, told) in [
        ("net", "netDevices: [{hostInterfaceName: eth9, name: net1}]", "netDevices"),
        ("rdt", "intelRdt: {closID: gold}", "intelRdt"),
        (
            "hook",
            "hooks: [{hookName: createContainer, path: /usr/bin/prepare}]",
            "createContainer hook /usr/bin/prepare",
        ),
    ] {
        let file =
            format!("{{cdiVersion: 1.1.0, kind: v.com/{name}, devices: [{{name: a, containerEdits: {{{edits}}}}}]}}");
        write_cdi(node, &format!("low/{name}.yaml"), &file)?;
        let mut config = container(name, &["pause"]);
        ask(&mut config, &[&format!("v.com/{name}=a")]);
        let message = refused(node.create(&pod, config).await, Code::Unimplemented);
        assert!(message.contains(told), "{told} is not in {message}");
    }
    Ok(())
}

async fn execs_do_not_need_the_cdi_file_any_more(node: &mut Node) -> Outcome {
    vendor(node)?;
    let pod = node.run_pod(pod("gone")).await?;
    let mut config = container("main", &["pause"]);
    ask(&mut config, &["vendor.com/gpu=0"]);
    let id = node.run(&pod, config).await?;
    fs::remove_dir_all(node.directory.join("cdi"))?;
    node.kill().await?;
    node.start_again().await?;
    assert_eq!(gpu(&node.exec_output(&id, &["env"]).await?), "GPU=zero");
    Ok(())
}
