//! User namespaces: which are understood, and what must agree with which.

use super::{Mode, container_config, container_spec, modes, pod, pod_config, pod_modes, pod_spec, security};
use crate::rpc::convert::pod::namespace_options;
use knarr_cri_api::v1;
use knarr_model::{ErrorKind, IdMap, UserNamespace};

fn mapping(container_id: u32, host_id: u32, length: u32) -> v1::IdMapping {
    v1::IdMapping { container_id, host_id, length }
}

fn users(mode: Mode, uids: Vec<v1::IdMapping>, gids: Vec<v1::IdMapping>) -> Option<v1::UserNamespace> {
    Some(v1::UserNamespace { mode: mode as i32, uids, gids })
}

/// As kubelet asks for one.
fn own_users() -> Option<v1::UserNamespace> {
    users(Mode::Pod, vec![mapping(0, 131_072, 65_536)], vec![mapping(0, 196_608, 65_536)])
}

#[test]
fn a_user_namespace_has_one_range_of_uids_and_one_of_gids() {
    let mut config = pod_config();
    pod_modes(&mut config).userns_options = own_users();
    let spec = pod_spec(config, "").unwrap();
    let map = |host| IdMap { host, container: 0, length: 65_536 };
    assert_eq!(spec.namespaces.user, Some(UserNamespace { uids: map(131_072), gids: map(196_608) }));
    assert_eq!(namespace_options(spec.namespaces).userns_options, own_users());

    let good = vec![mapping(0, 100_000, 65_536)];
    for (mode, uids, gids) in [
        (Mode::Pod, vec![], vec![]),
        (Mode::Pod, good.clone(), vec![]),
        (Mode::Pod, [good.clone(), good.clone()].concat(), good.clone()),
        (Mode::Pod, good.clone(), [good.clone(), good.clone()].concat()),
        (Mode::Pod, vec![mapping(1, 1000, 10)], good.clone()),
        (Mode::Pod, vec![mapping(0, 1000, 0)], good.clone()),
        (Mode::Pod, vec![mapping(0, u32::MAX, 2)], good.clone()),
        (Mode::Node, good.clone(), vec![]),
        (Mode::Node, vec![], good.clone()),
        (Mode::Container, vec![], vec![]),
        (Mode::Target, vec![], vec![]),
    ] {
        let mut config = pod_config();
        pod_modes(&mut config).userns_options = users(mode, uids, gids);
        let error = pod_spec(config, "").unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidArgument, "{error}");
        assert!(error.message.contains("userns_options"), "{error}");
    }
}

#[test]
fn a_pod_with_a_user_namespace_may_share_the_hosts_network_only() {
    for (field, network, pid, ipc, good) in [
        ("network", Mode::Node, Mode::Pod, Mode::Pod, true),
        ("pid", Mode::Pod, Mode::Node, Mode::Pod, false),
        ("ipc", Mode::Pod, Mode::Pod, Mode::Node, false),
    ] {
        let mut config = pod_config();
        config.linux.get_or_insert_default().sysctls.clear();
        *pod_modes(&mut config) = v1::NamespaceOption { userns_options: own_users(), ..modes(network, pid, ipc) };
        match pod_spec(config, "") {
            Ok(spec) => assert!(good && spec.namespaces.user.is_some(), "{field}"),
            Err(error) => {
                assert!(!good && error.message.contains(&format!("namespace_options.{field}")), "{error}");
                assert_eq!(error.kind, ErrorKind::InvalidArgument);
            }
        }
    }
}

#[test]
fn a_container_is_in_the_user_namespace_of_its_pod() {
    let mut config = pod_config();
    pod_modes(&mut config).userns_options = own_users();
    let (with, without) = (pod_spec(config, "").unwrap(), pod());
    let other = users(Mode::Pod, vec![mapping(0, 1 << 20, 65_536)], vec![mapping(0, 196_608, 65_536)]);
    for (pod, asked, good) in [
        (&with, None, true),
        (&with, own_users(), true),
        (&with, users(Mode::Node, vec![], vec![]), false),
        (&with, other, false),
        (&with, users(Mode::Container, vec![], vec![]), false),
        (&without, None, true),
        (&without, users(Mode::Node, vec![], vec![]), true),
        (&without, own_users(), false),
    ] {
        let mut config = container_config();
        let options = security(&mut config).namespace_options.get_or_insert_default();
        options.userns_options = asked.clone();
        let parsed = container_spec(config, pod);
        assert_eq!(parsed.is_ok(), good, "{asked:?}: {parsed:?}");
        if let Err(error) = parsed {
            assert_eq!(error.kind, ErrorKind::InvalidArgument, "{error}");
            assert!(error.message.contains("userns_options"), "{error}");
        }
    }
}

#[test]
fn a_volume_is_mapped_by_the_ids_of_its_pod() {
    let mut config = pod_config();
    pod_modes(&mut config).userns_options = own_users();
    let (with, without) = (pod_spec(config, "").unwrap(), pod());
    let ids = own_users().unwrap();
    for (pod, uids, gids, good) in [
        (&with, ids.uids.clone(), ids.gids.clone(), true),
        (&with, vec![], vec![], true),
        (&with, ids.gids.clone(), ids.gids.clone(), false),
        (&with, ids.uids.clone(), vec![], false),
        (&with, vec![], ids.gids.clone(), false),
        (&without, ids.uids.clone(), ids.gids.clone(), false),
    ] {
        let mut config = container_config();
        security(&mut config).namespace_options = None;
        (config.mounts[0].uid_mappings, config.mounts[0].gid_mappings) = (uids.clone(), gids.clone());
        match container_spec(config, pod) {
            Ok(spec) => {
                assert!(good);
                let maps = (spec.mounts[0].uid_mappings.len(), spec.mounts[0].gid_mappings.len());
                assert_eq!(maps, (uids.len(), gids.len()));
            }
            Err(error) => {
                assert!(!good && error.message.contains("config.mounts[0]."), "{error}");
                assert_eq!(error.kind, ErrorKind::InvalidArgument);
            }
        }
    }
}
