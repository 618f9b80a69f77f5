//! Turns crates/cri-api/proto into crates/cri-api/src/generated. What it makes is checked in, so that building knarr
//! needs no protobuf compiler.

#[cfg(not(feature = "codegen"))]
pub fn run() -> Result<(), String> {
    Err("needs the compiler built in: cargo run -p xtask --features codegen -- codegen".into())
}

#[cfg(feature = "codegen")]
pub fn run() -> Result<(), String> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("xtask has no parent folder")?;
    let proto = root.join("crates/cri-api/proto");
    let out = root.join("crates/cri-api/src/generated");
    std::fs::create_dir_all(&out).map_err(|e| format!("{}: {e}", out.display()))?;
    let files = ["runtime.v1.proto", "knarr.v1.proto"].map(|name| proto.join(name));
    let descriptors = protox::compile(&files, [&proto]).map_err(|e| e.to_string())?;
    tonic_prost_build::configure()
        .out_dir(&out)
        // What a credential holds must never reach a log through `{:?}`; src/lib.rs has a Debug that hides it.
        .skip_debug([".runtime.v1.AuthConfig", ".knarr.v1.PullRequest"])
        .compile_fds(descriptors)
        .map_err(|e| e.to_string())
}
