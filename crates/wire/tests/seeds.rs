//! The seeds of the fuzz targets (fuzz/seeds), each through what its target calls: what was once found to be interesting
//! is tried by everybody's `cargo test`.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 7] = [
    ("spdy_session", knarr_wire::spdy::fuzz::session),
    ("spdy_headers", knarr_wire::spdy::fuzz::headers),
    ("channel_message", knarr_wire::channel::fuzz),
    ("remotecommand", knarr_wire::remotecommand::fuzz),
    ("port_forward", knarr_wire::port_forward::fuzz),
    ("shim_packets", knarr_wire::shim::packet::fuzz),
    ("cri_log", knarr_wire::cri_log::fuzz),
];

fn fuzz_directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

/// The names in a directory below fuzz/, without their endings.
fn names(directory: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(fuzz_directory().join(directory)).unwrap();
    entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

#[test]
fn every_seed_passes() {
    for (target, fuzz) in TARGETS {
        let entries = fs::read_dir(fuzz_directory().join("seeds").join(target)).unwrap();
        let seeds: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        assert!(!seeds.is_empty(), "{target}");
        for seed in seeds {
            // A test's name is in its panic, a seed's is not.
            eprintln!("{}", seed.display());
            fuzz(&fs::read(seed).unwrap());
        }
    }
}

#[test]
fn every_target_has_seeds_and_is_tried_here() {
    let here: BTreeSet<String> = TARGETS.iter().map(|(target, _)| (*target).to_owned()).collect();
    assert_eq!(names("seeds"), here);
    assert_eq!(names("fuzz_targets"), here);
}
