//! What the stories about whole labs share.
#![allow(dead_code, reason = "each test binary uses some of it")]

use std::path::{Path, PathBuf};

use serde_json::Value;
use testkit::{
    image::Layer,
    lab::{Lab, LabOptions, missing_for_vms},
};

/// A lab, or nothing (said so) where no VM can be booted.
pub async fn lab_or_skip(options: LabOptions) -> Option<Lab> {
    if let Some(why) = missing_for_vms() {
        println!("skipped: {why}");
        return None;
    }
    Some(Lab::start(options).await)
}

/// An OCI layout of a busybox-only image in `dir`; its path.
pub fn busybox_layout(dir: &Path) -> String {
    let path = dir.join("busybox-layout");
    testkit::image::busybox_image().write(&path).expect("the layout is written");
    path.display().to_string()
}

/// An OCI layout in `dir` of a busybox image that is no other edition's; its path.
pub fn busybox_edition(dir: &Path, edition: &str) -> String {
    let path = dir.join(format!("busybox-{edition}"));
    let environment = serde_json::json!({ "Env": ["PATH=/bin", format!("EDITION={edition}")] });
    testkit::image::busybox_image().config(environment).write(&path).expect("the layout is written");
    path.display().to_string()
}

/// An OCI layout in `dir` of the Debian tree with systemd that deploy/check makes, with one more layer; or nothing (said so).
pub fn debian_layout(dir: &Path, more: Option<Layer>) -> Option<PathBuf> {
    let Some(tar) = std::env::var_os("WARREN_TEST_DEBIAN_TAR") else {
        println!("skipped: WARREN_TEST_DEBIAN_TAR is not set (deploy/check sets it)");
        return None;
    };
    let path = dir.join("debian-layout");
    let layer = Layer::from_tar(Path::new(&tar)).expect("the tree is a tar archive");
    let layers = std::iter::once(layer).chain(more).collect();
    testkit::image::Layout::new(layers).write(&path).expect("the layout is written");
    Some(path)
}

/// Runs a command that must be refused with that error code and exit code.
pub async fn refused(lab: &Lab, args: &[&str], code: &str, exit: i32) -> Value {
    let mut json = vec!["-o", "json"];
    json.extend(args);
    let output = lab.warren(&json).await;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let body: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{args:?}: no JSON error: {text}"));
    assert_eq!(body["error"]["code"], code, "{args:?}: {text}");
    assert_eq!(output.status.code(), Some(exit), "{args:?}: {text}");
    body
}
