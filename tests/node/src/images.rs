//! The images of the tests: the tool, alone or with more files around it.

use knarr_testkit::image::{Image, Layer, tar_with};
use serde_json::{Value, json};

/// The name of [`tool_image`] on every node.
pub const TOOL_IMAGE: &str = "localhost/tool:latest";

/// The program, as build.rs compiled it.
pub const TOOL_BYTES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tool"));

/// Users that tests run as: a plain one, one in more groups.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
                      app:x:1000:1000:app:/home/app:/bin/sh\n\
                      many:x:1001:1001:many:/:/bin/sh\n";
const GROUP: &str = "root:x:0:\napp:x:1000:\nmany:x:1001:\nextra:x:2001:many\nmore:x:2002:many,app\n";

/// One layer with the tool, /etc/passwd and /etc/group; the tool is the entry point.
pub fn tool_image() -> Image {
    image_with(json!({}), &[])
}

/// The same with more of an image configuration and more files (path, mode, content) in a second layer.
pub fn image_with(config: Value, files: &[(&str, u32, &[u8])]) -> Image {
    let base = [
        ("bin/tool", 0o755, TOOL_BYTES),
        ("etc/passwd", 0o644, PASSWD.as_bytes()),
        ("etc/group", 0o644, GROUP.as_bytes()),
    ];
    let mut layers = vec![Layer::gzip(tar_with(&base))];
    if !files.is_empty() {
        layers.push(Layer::gzip(tar_with(files)));
    }
    let mut whole = json!({
        "Entrypoint": [crate::TOOL],
        "Env": ["PATH=/bin", "FROM_IMAGE=yes"],
    });
    if let (Some(whole), Some(config)) = (whole.as_object_mut(), config.as_object()) {
        whole.extend(config.clone());
    }
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    Image::with_config(layers, json!({ "architecture": architecture, "config": whole }))
}
