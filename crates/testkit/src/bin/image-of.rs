//! `image-of <name> <static program> <archive>`: an image that holds one program and runs it.

use knarr_testkit::archive::oci_archive;
use knarr_testkit::image::{Image, Layer, tar_with};
use serde_json::json;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, name, program, archive] = arguments.as_slice() else {
        return Err("image-of <name> <static program> <archive>".into());
    };
    let entry = std::path::Path::new(program).file_name().and_then(|n| n.to_str()).ok_or("a program has a name")?;
    let layer = Layer::gzip(tar_with(&[(entry, 0o755, &std::fs::read(program)?)]));
    let config = json!({
        "architecture": match std::env::consts::ARCH { "x86_64" => "amd64", "aarch64" => "arm64", other => other },
        "config": { "Entrypoint": [format!("/{entry}")] },
    });
    let image = Image::with_config(vec![layer], config);
    std::fs::write(archive, oci_archive(&[(name, &image)]))?;
    Ok(())
}
