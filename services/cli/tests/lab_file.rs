//! A lab from a file: three VMs that come up in order, stay as they are when asked again, and go without a trace.

mod common;

use common::{busybox_layout, lab_or_skip, refused};
use serde_json::Value;
use testkit::lab::LabOptions;

const FILE: &str = r#"
lab = "shop"

[defaults]
image = "bb"
memory = "128M"
disk = "128M"

[vms.db]
labels = { role = "db" }

[vms.web]
count = 2
after = ["db"]
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_lab_comes_up_from_its_file_is_unchanged_when_asked_again_and_goes() {
    let Some(lab) = lab_or_skip(LabOptions::default()).await else { return };
    let layout = busybox_layout(&lab.scratch());
    lab.must(&["image", "pull", &layout, "--layout", "--name", "bb"]).await;
    let path = lab.scratch().join("lab.toml");
    let file = path.display().to_string();
    std::fs::write(&path, FILE.replace("count", "cuont")).unwrap();
    let error = refused(&lab, &["lab", "up", "-f", &file], "invalid_argument", 2).await;
    let text = error["error"]["message"].as_str().unwrap();
    assert!(text.contains("line 13: there is no key `vms.web.cuont`"), "{text}");
    std::fs::write(&path, FILE).unwrap();

    let dry = lab.must(&["lab", "up", "-f", &file, "--dry-run"]).await;
    assert_eq!(dry, "db would be created\nweb-1 would be created\nweb-2 would be created\n");
    let up = lab.must(&["lab", "up", "-f", &file]).await;
    let lines: Vec<_> = up.lines().collect();
    assert_eq!(lines[..3], ["db created", "web-1 created", "web-2 created"], "{up}");
    assert!(lines[3].starts_with("lab shop is up after "), "{up}");
    assert_eq!(lab.must(&["lab", "up", "-f", &file]).await, "lab shop is unchanged\n");

    // db was ready before the others were begun; the others came up side by side.
    let shown: Value = serde_json::from_str(&lab.must(&["lab", "show", "shop", "-o", "json"]).await).unwrap();
    let vms: Vec<_> = shown["vms"].as_array().unwrap().iter().map(|it| (&it["level"], &it["vm"]["name"])).collect();
    assert_eq!(vms, [(&1.into(), &"db".into()), (&2.into(), &"web-1".into()), (&2.into(), &"web-2".into())]);
    assert_eq!(lab.must(&["exec", "web-2", "--", "hostname"]).await, "web-2\n");
    assert_eq!(lab.must(&["vm", "ls", "--lab", "shop"]).await.lines().count(), 4);
    let listed: Value = serde_json::from_str(&lab.must(&["lab", "ls", "-o", "json"]).await).unwrap();
    assert_eq!((&listed["labs"][0]["vms"], &listed["labs"][0]["running"]), (&3.into(), &3.into()));

    std::fs::write(&path, FILE.replace("128M\"\ndisk", "256M\"\ndisk")).unwrap();
    let error = refused(&lab, &["lab", "up", "-f", &file], "failed_precondition", 5).await;
    assert_eq!(error["error"]["details"]["differences"].as_array().unwrap().len(), 3, "{error}");

    let down = lab.must(&["lab", "down", "-f", &file]).await;
    assert_eq!(down, "web-1 is gone\nweb-2 is gone\ndb is gone\nlab shop is gone\n");
    assert_eq!(lab.must(&["lab", "down", "shop"]).await, "lab shop has no VMs\n");
    refused(&lab, &["lab", "show", "shop"], "not_found", 3).await;
    assert_eq!(lab.residue().await, Vec::<String>::new());
}
