//! Tests of the whole of knarr. One file for each promise; each lists its tests at its head.
//!
//! `cargo xtask test node [part of a name]…` runs them.

mod attach;
mod cli;
mod devices;
mod execs;
mod failures;
mod fields;
mod image_volumes;
mod images;
mod logs;
mod namespaces;
mod network;
mod pods;
mod port_forward;
mod refusals;
mod resources;
mod restart;
mod security;
mod streaming;
mod streaming_hostile;
mod streaming_load;
mod systemd;
mod user_files;
mod users;
mod volumes;

fn main() -> std::process::ExitCode {
    knarr_node_tests::runner::main(&[
        ("attach", attach::TESTS),
        ("cli", cli::TESTS),
        ("devices", devices::TESTS),
        ("execs", execs::TESTS),
        ("failures", failures::TESTS),
        ("fields", fields::TESTS),
        ("image_volumes", image_volumes::TESTS),
        ("images", images::TESTS),
        ("logs", logs::TESTS),
        ("namespaces", namespaces::TESTS),
        ("network", network::TESTS),
        ("pods", pods::TESTS),
        ("port_forward", port_forward::TESTS),
        ("refusals", refusals::TESTS),
        ("resources", resources::TESTS),
        ("restart", restart::TESTS),
        ("security", security::TESTS),
        ("streaming", streaming::TESTS),
        ("streaming_hostile", streaming_hostile::TESTS),
        ("streaming_load", streaming_load::TESTS),
        ("systemd", systemd::TESTS),
        ("user_files", user_files::TESTS),
        ("users", users::TESTS),
        ("volumes", volumes::TESTS),
    ])
}
