//! Development tasks, one subcommand each; `cargo xtask help` lists them.
//! Nothing here is part of the product.

#![allow(clippy::print_stdout, reason = "a task's result is what it prints")]

mod binaries;
mod check;
mod codegen;
mod demo;
mod packages;
mod process;
mod tidy;
mod vm;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

const HELP: &str = "\
cargo xtask <task>

  demo           install what is missing, build, and run a container from an image made on the spot
  test           everything that must hold: tidy, format, lints, all tests; as root also the node tests
  test node [..] only the node tests; further words are parts of test names
  test --vm [..] all tests against a kernel in a virtual machine with systemd and cgroup v2, which is made at the first
                 time; further words are parts of names of node tests, --driver=systemd picks one of two drivers
  build          knarr and the static knarr-shim, optimised, into target/knarr-release
  tidy           the rules that are not the compiler's: edges between crates, file heads, lengths, documents
  codegen        the protobuf code of crates/cri-api, anew from its .proto files
";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["demo"] => demo::run(),
        ["test"] => check::run(),
        ["test", "node", filters @ ..] => check::node_tests(filters),
        ["test", "--vm", words @ ..] => vm::run(words),
        ["build"] => binaries::build(binaries::Flavour::Release).map(|made| println!("{}", made.dir.display())),
        ["tidy"] => tidy::run(),
        ["codegen"] => codegen::run(),
        ["help"] | ["--help"] | ["-h"] => {
            print!("{HELP}");
            Ok(())
        }
        other => Err(format!("no task {:?}\n\n{HELP}", other.join(" "))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}

/// The root of the source tree.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}
