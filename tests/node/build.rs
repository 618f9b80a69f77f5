//! Compiles the program of the tests' images. It is linked statically, so that an image of it needs nothing else.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    let source = "program/tool.c";
    println!("cargo::rerun-if-changed={source}");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("tool");
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let arguments = ["-static", "-O1", "-Wall", "-Wextra", "-Werror", "-s", "-o"];
    let status = Command::new(&compiler).args(arguments).arg(&out).arg(source).status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{compiler} {source}: {status}"),
        Err(error) => panic!("cannot run {compiler}: {error}"),
    }
}
