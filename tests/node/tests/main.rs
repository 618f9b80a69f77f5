//! Tests of the whole of knarr. One file for each promise; each lists its tests at its head.
//!
//! `cargo xtask test node [part of a name]…` runs them.

mod cli;
mod execs;
mod failures;
mod images;
mod logs;
mod namespaces;
mod network;
mod pods;
mod refusals;
mod resources;
mod restart;
mod security;
mod volumes;

fn main() -> std::process::ExitCode {
    knarr_node_tests::runner::main(&[
        ("cli", cli::TESTS),
        ("execs", execs::TESTS),
        ("failures", failures::TESTS),
        ("images", images::TESTS),
        ("logs", logs::TESTS),
        ("namespaces", namespaces::TESTS),
        ("network", network::TESTS),
        ("pods", pods::TESTS),
        ("refusals", refusals::TESTS),
        ("resources", resources::TESTS),
        ("restart", restart::TESTS),
        ("security", security::TESTS),
        ("volumes", volumes::TESTS),
    ])
}
