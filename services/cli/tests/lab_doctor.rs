//! What nobody owns is found and removed, what is somebody's stays, and a host that lost a VM's directory is found out.

mod common;

use std::{path::Path, process::Command, time::Duration};

use common::{busybox_layout, lab_or_skip};
use serde_json::Value;
use testkit::{
    lab::{Lab, LabOptions, taps, vmms},
    wait_until,
};

fn sh(command: &str) {
    let status = Command::new("sh").args(["-ec", command]).status().unwrap();
    assert!(status.success(), "{command}");
}

async fn doctor(lab: &Lab, arguments: &[&str]) -> (Option<i32>, Value) {
    let output = lab.warren(&[&["doctor", "--json"], arguments].concat()).await;
    let reply = serde_json::from_slice(&output.stdout);
    (output.status.code(), reply.unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr))))
}

fn leaks(reply: &Value) -> Vec<(String, String, bool)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = reply["hosts"].as_array().unwrap().iter().flat_map(|host| host["leaks"].as_array().unwrap().clone());
    all.map(|leak| (text(&leak["kind"]), text(&leak["what"]), leak["fixed"] == true)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn leaks_are_found_and_removed_and_nothing_else_is() {
    let Some(mut lab) = lab_or_skip(LabOptions::default()).await else { return };
    let layout = busybox_layout(&lab.scratch());
    lab.must(&["image", "pull", &layout, "--layout", "--name", "bb"]).await;
    lab.must(&["vm", "create", "web", "--image", "bb", "--memory", "128M", "--disk", "128M"]).await;
    let host = lab.hosts()[0].clone();
    let (code, healthy) = doctor(&lab, &[]).await;
    assert_eq!((code, leaks(&healthy)), (Some(0), vec![]), "{healthy}");
    let checks = healthy["hosts"][1]["checks"].as_array().unwrap();
    for name in ["vmm", "kvm", "kernel", "cgroups", "disk", "handles", "kernels", "network", "taps", "ports", "clock"] {
        assert!(checks.iter().any(|check| check["name"] == name), "{name}: {healthy}");
    }

    // Taps of Warren's that neither a VM nor the pool has, one of somebody else's, and a control group of nobody's.
    for tap in ["wtdeadbeef", "wtp0badcafe", "other0"] {
        sh(&format!("ip -n warren-{host} tuntap add {tap} mode tap"));
    }
    let group = format!("/sys/fs/cgroup/unified/warren/{host}/0190b6f0-0000-7000-8000-00000000dead");
    let grouped = Path::new(&group).parent().unwrap().exists();
    if grouped {
        std::fs::create_dir(&group).unwrap();
    }
    let (code, found) = doctor(&lab, &["--leaks"]).await;
    assert_eq!(code, Some(1), "{found}");
    for tap in ["wtdeadbeef", "wtp0badcafe"] {
        assert!(leaks(&found).contains(&("tap".into(), tap.into(), false)), "{found}");
    }
    let (code, fixed) = doctor(&lab, &["--fix"]).await;
    assert_eq!(code, Some(0), "{fixed}");
    assert!(
        leaks(&fixed).iter().all(|(_, _, fixed)| *fixed) && leaks(&fixed).len() == 2 + usize::from(grouped),
        "{fixed}"
    );
    assert!(!taps(&host).contains(&"wtdeadbeef".to_owned()) && !Path::new(&group).exists());
    let links = Command::new("ip").args(["-n", &format!("warren-{host}"), "-o", "link"]).output().unwrap();
    assert!(String::from_utf8_lossy(&links.stdout).contains("other0"), "what is not Warren's stays");
    lab.must(&["exec", "web", "--", "true"]).await;

    // The VM's directory is lost while the agent is away: the VMM nobody owns ends, the row is told of.
    let vm: Value = serde_json::from_str(&lab.must(&["vm", "show", "web", "-o", "json"]).await).unwrap();
    let id = vm["id"].as_str().unwrap().to_owned();
    lab.kill(&host);
    std::fs::remove_dir_all(lab.state_dir(&host).join("vms").join(&id)).unwrap();
    lab.start_process(&host, &[]);
    lab.wait_ready().await;
    wait_until("the end of the VMM", Duration::from_secs(30), async || {
        vmms(&lab.state_dir(&host)).is_empty().then_some(())
    })
    .await;
    wait_until("the row without its VM", Duration::from_secs(30), async || {
        let (_, lost) = doctor(&lab, &["--leaks"]).await;
        leaks(&lost).contains(&("row".into(), id.clone(), false)).then_some(())
    })
    .await;
    lab.must(&["vm", "rm", "web"]).await;

    // The database is brought back from a backup that knows nothing of a VM: it is stopped, and its disk is kept.
    lab.must(&["vm", "create", "new", "--image", "bb", "--memory", "128M", "--disk", "128M"]).await;
    let sql = lab.sql().await;
    let id: uuid::Uuid = sql.query_one("select id from vm.vm", &[]).await.unwrap().get(0);
    sql.execute("select vm.release($1, 1000000, null)", &[&id]).await.unwrap();
    lab.kill(&host);
    lab.start_process(&host, &[]);
    lab.wait_ready().await;
    wait_until("the end of its VMM", Duration::from_secs(30), async || {
        vmms(&lab.state_dir(&host)).is_empty().then_some(())
    })
    .await;
    let dir = lab.state_dir(&host).join("vms").join(id.to_string());
    assert!(dir.join("root.qcow2").exists() || dir.join("root.img").exists(), "its disk is kept");
    let (_, lost) = doctor(&lab, &["--leaks"]).await;
    assert_eq!(leaks(&lost), [("vm".into(), id.to_string(), false)], "{lost}");
    let (code, fixed) = doctor(&lab, &["--fix"]).await;
    assert_eq!((code, leaks(&fixed)), (Some(0), vec![("vm".into(), id.to_string(), true)]), "{fixed}");
    assert!(!dir.exists());
    let (code, clean) = doctor(&lab, &["--leaks"]).await;
    assert_eq!((code, leaks(&clean)), (Some(0), vec![]), "{clean}");
    assert_eq!(lab.residue().await, Vec::<String>::new());
}
