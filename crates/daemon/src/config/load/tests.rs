//! What loading refuses and in which words, and how files are merged.

use super::*;
use crate::config::{LogFormat, LogLevel, Span};

/// Loads one file's text and returns the message, with the file's directory cut off.
fn refusal(text: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, text).unwrap();
    let error = Config::load(Some(&file), None).expect_err("must be refused");
    error.to_string().replace(&format!("{}/", dir.path().display()), "")
}

fn load(text: &str) -> Config {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, text).unwrap();
    Config::load(Some(&file), None).unwrap()
}

#[test]
fn a_misspelt_key_is_named_with_file_line_and_suggestion() {
    assert_eq!(
        refusal("[network.cni]\nbin_dirs = []\nconf_dri = \"/x\"\n"),
        "config.toml:3: network.cni.conf_dri: there is no such key; did you mean `conf_dir`?"
    );
}

#[test]
fn a_misspelt_section_is_named_too() {
    assert_eq!(
        refusal("\n[netwrok]\nnetns_dir = \"/x\"\n"),
        "config.toml:2: netwrok: there is no such key; did you mean `network`?"
    );
}

#[test]
fn a_key_of_another_section_is_sent_there() {
    assert_eq!(
        refusal("[network]\nbin_dirs = [\"/x\"]\n"),
        "config.toml:2: network.bin_dirs: there is no such key here; did you mean `network.cni.bin_dirs`?"
    );
}

#[test]
fn a_key_that_nobody_knows_gets_the_list() {
    let message = refusal("[log]\nsandbox_image = \"pause\"\n");
    assert_eq!(message, "config.toml:2: log.sandbox_image: there is no such key; known here are level, format");
}

#[test]
fn a_misspelt_word_gets_the_words() {
    assert_eq!(
        refusal("[log]\nlevel = \"inof\"\n"),
        "config.toml:2: log.level: \"inof\" is none of error, warn, info, debug, trace; did you mean \"info\"?"
    );
}

#[test]
fn a_wrong_type_is_named_with_its_key() {
    let message = refusal("[limits]\nrequest_deadline = 5\n");
    assert!(message.starts_with("config.toml:2: limits.request_deadline: invalid type: integer `5`"), "{message}");
    assert!(message.contains("a span of time such as"), "{message}");
    let message = refusal("[limits]\n\nrequest_deadline = \"5 minutes\"\n");
    assert!(message.starts_with("config.toml:3: limits.request_deadline: \"5 minutes\" is no span"), "{message}");
}

#[test]
fn broken_toml_is_named_with_its_line() {
    let message = refusal("[log]\nlevel = \n");
    assert!(message.starts_with("config.toml:2: "), "{message}");
}

#[test]
fn values_that_cannot_work_are_refused_all_at_once() {
    let message = refusal(
        "version = 2\nroot = \"here\"\n[cgroup]\nparent = \"/a//b\"\n[network.builtin]\nsubnet_v4 = \"10.0.0.1/8\"\n",
    );
    let lines: Vec<&str> = message.lines().collect();
    assert_eq!(lines.len(), 4, "{message}");
    assert!(lines[0].starts_with("config.toml:1: version: this file is of version 2"), "{message}");
    assert!(lines[1].starts_with("config.toml:2: root: \"here\" is not an absolute path"), "{message}");
    assert!(lines[2].starts_with("config.toml:4: cgroup.parent: \"/a//b\" is no cgroup path"), "{message}");
    assert!(lines[3].starts_with("config.toml:6: network.builtin.subnet_v4: \"10.0.0.1/8\" has bits set"), "{message}");
}

#[test]
fn subnets_are_checked_by_family_and_size() {
    assert_eq!(check_subnet("10.92.0.0/16", true), Ok(()));
    assert_eq!(check_subnet("fd00:1::/64", false), Ok(()));
    assert_eq!(check_subnet("", true), Ok(()));
    for (subnet, is_v4) in [
        ("10.0.0.0", true),
        ("10.0.0.0/33", true),
        ("10.0.0.0/31", true),
        ("10.0.0.0/0", true),
        ("fd00::/64", true),
        ("10.0.0.0/8", false),
        ("fd00::1/64", false),
        ("fd00::/127", false),
        ("ten/8", true),
    ] {
        assert!(check_subnet(subnet, is_v4).is_err(), "{subnet}");
    }
}

#[test]
fn a_cgroup_parent_cannot_climb() {
    for parent in ["knarr", "/knarr/../x", "/", "/a//b", "/a/./b"] {
        assert!(refusal(&format!("[cgroup]\nparent = \"{parent}\"\n")).contains("cgroup.parent"), "{parent}");
    }
    assert_eq!(load("[cgroup]\nparent = \"/a/b\"\n").cgroup.parent, "/a/b");
    assert_eq!(load("[cgroup]\nparent = \"\"\n").cgroup.parent, "", "empty stands for the default");
    assert_eq!(load("[cgroup]\nparent = \"a-b.slice\"\n").cgroup.parent, "a-b.slice");
}

#[test]
fn a_cgroup_parent_suits_its_driver() {
    for (driver, parent, fits) in [
        ("systemd", "/a", false),
        ("systemd", "a.slice", true),
        ("cgroupfs", "/a.slice", false),
        ("cgroupfs", "/a", true),
        ("auto", "/a", true),
        ("auto", "/a.slice", true),
    ] {
        let text = format!("[cgroup]\ndriver = \"{driver}\"\nparent = \"{parent}\"\n");
        if fits {
            assert_eq!(load(&text).cgroup.parent, parent);
        } else {
            let message = refusal(&text);
            assert!(message.contains("cgroup.parent") && message.contains(driver), "{message}");
        }
    }
}

#[test]
fn a_root_too_deep_for_a_socket_is_refused_before_bind_fails() {
    let root = format!("/{}", "x".repeat(120));
    assert!(refusal(&format!("root = \"{root}\"\n")).contains("longer than the 107 bytes"));
}

#[test]
fn drop_ins_win_key_by_key_in_lexical_order() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, "[log]\nlevel = \"debug\"\nformat = \"json\"\n[network.cni]\nbin_dirs = [\"/a\", \"/b\"]\n")
        .unwrap();
    std::fs::create_dir(dir.path().join("config.d")).unwrap();
    std::fs::write(dir.path().join("config.d/20-b.toml"), "[log]\nlevel = \"warn\"\n").unwrap();
    std::fs::write(
        dir.path().join("config.d/10-a.toml"),
        "[log]\nlevel = \"trace\"\n[network.cni]\nbin_dirs = [\"/c\"]\n",
    )
    .unwrap();
    std::fs::write(dir.path().join("config.d/30-not-ours.bak"), "nonsense").unwrap();
    std::fs::write(dir.path().join("config.d/.40-hidden.toml"), "nonsense").unwrap();
    let config = Config::load(Some(&file), None).unwrap();
    assert_eq!(config.log.level, LogLevel::Warn);
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.network.cni.bin_dirs, [Path::new("/c")]);
    assert_eq!(Config::files(Some(&file), None).unwrap().len(), 3);
}

#[test]
fn a_value_that_a_drop_in_overrides_is_blamed_on_the_drop_in() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, "[image]\nmax_concurrent_layers = 3\n").unwrap();
    std::fs::create_dir(dir.path().join("config.d")).unwrap();
    std::fs::write(dir.path().join("config.d/1.toml"), "\n[image]\nmax_concurrent_layers = 0\n").unwrap();
    let ConfigError(problems) = Config::load(Some(&file), None).unwrap_err();
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].file.as_deref(), Some(dir.path().join("config.d/1.toml").as_path()));
    assert_eq!(problems[0].line, Some(3));
}

#[test]
fn a_named_file_must_exist_and_a_usual_one_need_not() {
    let dir = tempfile::tempdir().unwrap();
    let error = Config::load(Some(&dir.path().join("none.toml")), None).unwrap_err();
    assert!(error.to_string().contains("none.toml: cannot be read"), "{error}");
    let config = Config::load(None, Some(dir.path())).unwrap();
    assert_eq!(config.root, dir.path());
}

#[test]
fn the_root_of_the_command_line_wins_and_brings_its_own_file() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.toml"), "root = \"/elsewhere\"\n[limits]\nexec_drain = \"1s\"\n").unwrap();
    let config = Config::load(None, Some(dir.path())).unwrap();
    assert_eq!(config.root, dir.path());
    assert_eq!(config.limits.exec_drain, Span::seconds(1));
}

#[test]
fn the_streaming_server_is_refused_what_it_cannot_be() {
    assert!(refusal("[streaming]\naddress = \"localhost\"\n").starts_with("config.toml:2: streaming.address: "));
    for url in ["node1:10010", "https://", "https:///x", "https://node1/", "http://a b", "http://a?x"] {
        let message = refusal(&format!("[streaming]\nbase_url = \"{url}\"\n"));
        assert!(message.starts_with("config.toml:2: streaming.base_url: "), "{url}: {message}");
    }
    let message = refusal("[streaming]\ntls_cert = \"/cert.pem\"\n");
    assert_eq!(message, "config.toml:2: streaming.tls_cert: needs streaming.tls_key, and that is empty");
    assert!(refusal("[streaming]\ntls_key = \"/key.pem\"\n").contains("streaming.tls_key: needs streaming.tls_cert"));
    assert!(refusal("[streaming]\ntls_client_ca = \"/ca.pem\"\n").contains("tls_client_ca: asks clients"));
    assert!(refusal("[streaming]\ntls_cert = \"cert.pem\"\ntls_key = \"/k\"\n").contains("is not an absolute path"));
    assert!(refusal("[streaming]\nidle_timeout = \"0s\"\n").contains("must be longer than 0"));
    assert!(refusal("[streaming]\nmax_sessions = 70000\n").contains("must be at most 65536"));
    let config = load("[streaming]\nbase_url = \"https://[::1]:7/below\"\ntls_cert = \"/c\"\ntls_key = \"/k\"\n");
    assert_eq!(config.streaming.base_url, "https://[::1]:7/below");
}
