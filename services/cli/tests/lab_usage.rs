//! What VMs use is measured from outside: it moves when the guest works, and stands still when it does not.

mod common;

use std::{collections::BTreeMap, time::Duration};

use common::{busybox_layout, lab_or_skip, refused};
use serde_json::Value;
use testkit::{
    lab::{Lab, LabOptions},
    wait_until,
};

const BOUND: Duration = Duration::from_secs(60);

async fn guest(lab: &Lab, vm: &str, command: &str) -> String {
    lab.must(&["exec", vm, "--", "sh", "-c", command]).await.trim().to_owned()
}

async fn show(lab: &Lab, vm: &str) -> Value {
    serde_json::from_str(&lab.must(&["vm", "show", vm, "-o", "json"]).await).unwrap()
}

/// One measurement, VM by VM.
async fn measured(lab: &Lab) -> Vec<Value> {
    let lines = lab.must(&["vm", "top", "--once", "-o", "json"]).await;
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn sample(lab: &Lab, vm: &str) -> Value {
    let all = measured(lab).await;
    all.into_iter().find(|line| line["name"] == vm).unwrap_or_else(|| panic!("no sample of {vm}"))["sample"].clone()
}

/// A postmortem: what was said of it, and its files by their names.
async fn postmortem(lab: &Lab, asked: &[&str], name: &str) -> (Value, BTreeMap<String, String>) {
    let path = lab.scratch().join(format!("{name}.tar.gz"));
    let file = path.display().to_string();
    let said = lab.must(&[&["vm", "postmortem", "--file", &file, "-o", "json"], asked].concat()).await;
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(std::fs::File::open(&path).unwrap()));
    let entries = tar.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().components().skip(1).collect::<std::path::PathBuf>();
        (path.display().to_string(), std::io::read_to_string(&mut entry).unwrap())
    });
    let files = entries.collect();
    (serde_json::from_str(&said).unwrap(), files)
}

fn count(sample: &Value, path: &str) -> u64 {
    sample.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path}: {sample}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_move_when_a_guest_works_and_begin_anew_with_its_next_start() {
    let Some(mut lab) = lab_or_skip(LabOptions::default()).await else { return };
    let layout = busybox_layout(&lab.scratch());
    lab.must(&["image", "pull", &layout, "--layout", "--name", "bb"]).await;
    let small = ["--image", "bb", "--memory", "128M", "--disk", "256M", "--label", "ci=1"];
    lab.must(&[&["vm", "create", "web", "--env", "TOKEN=s3cret"][..], &small].concat()).await;
    lab.must(&[&["vm", "create", "other"][..], &small].concat()).await;
    lab.must(&[&["vm", "create", "lazy", "--idle", "10s", "--restart", "always"][..], &small[..6]].concat()).await;
    let address = show(&lab, "other").await["address"].as_str().unwrap().to_owned();

    let before = sample(&lab, "web").await;
    assert!(
        count(&before, "/counters/memory_bytes") > 10 << 20 && count(&before, "/counters/cpu_usec") > 0,
        "{before}"
    );
    guest(&lab, "web", "dd if=/dev/urandom of=/root/file bs=1M count=8 2>/dev/null; sync").await;
    guest(&lab, "web", &format!("ping -c 3 -s 1000 -i 0.2 {address} >/dev/null")).await;
    let after = wait_until("the counters", BOUND, async || {
        let now = sample(&lab, "web").await;
        (count(&now, "/at_ms") > count(&before, "/at_ms") + 500).then_some(now)
    })
    .await;
    let grew = |path: &str| count(&after, path) - count(&before, path);
    assert!(grew("/counters/cpu_usec") > 50_000, "{before} {after}");
    assert!(grew("/counters/disk/written_bytes") >= 8 << 20, "{before} {after}");
    assert!(
        grew("/counters/disk/write_operations") > 0 && grew("/disk_allocated_bytes") >= 8 << 20,
        "{before} {after}"
    );
    let (sent, received) = (grew("/counters/network/sent_bytes"), grew("/counters/network/received_bytes"));
    assert!(sent >= 3_000 && received >= 3_000 && grew("/counters/network/sent_packets") >= 3, "{before} {after}");
    // What one sends the other receives.
    let peer = sample(&lab, "other").await;
    assert!(count(&peer, "/counters/network/received_bytes") >= 3_000, "{peer}");

    for what in ["running", "ready"] {
        assert_eq!(lab.must(&["vm", "wait", "web", "--for", what]).await, format!("web is {what}\n"));
    }

    // A table for people, sorted; one that is off shows its disk only.
    lab.must(&["vm", "stop", "other", "--force"]).await;
    let busy = lab.command(&["exec", "web", "--", "sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"]);
    let (table, _) = tokio::join!(lab.must(&["vm", "top", "-n", "2", "--delay", "1s", "--label", "ci=1"]), busy);
    let tables: Vec<Vec<Vec<&str>>> = table
        .split("\n\n")
        .filter(|part| part.starts_with("NAME"))
        .map(|part| part.lines().map(|line| line.split_whitespace().collect()).collect())
        .collect();
    assert_eq!(tables.len(), 2, "{table}");
    let rows = &tables[0];
    assert_eq!((rows[1][0], rows[1][1], rows[2][0], rows[2][1]), ("web", "running", "other", "stopped"), "{table}");
    let cpu: f64 = rows[1][3].trim_end_matches('%').parse().unwrap();
    assert!(cpu > 1.0 && rows[2][3] == "-" && rows[2][9] != "-", "{table}");

    // Another start is another count, also after the agent was replaced.
    lab.must(&["vm", "restart", "web", "--force"]).await;
    let host = lab.hosts()[0].clone();
    lab.kill(&host);
    lab.start_process(&host, &[]);
    lab.wait_ready().await;
    let anew = sample(&lab, "web").await;
    assert!(count(&anew, "/counters/spawned_at_ms") > count(&after, "/counters/spawned_at_ms"), "{anew}");
    for path in ["/counters/cpu_usec", "/counters/network/sent_bytes", "/counters/disk/written_bytes"] {
        assert!(count(&anew, path) < count(&after, path), "{path}: {after} {anew}");
    }
    lab.must(&["vm", "pause", "web"]).await;
    // A sample may be half a second old.
    wait_until("a sample of the pause", BOUND, async || (sample(&lab, "web").await["state"] == "paused").then_some(()))
        .await;

    // One that nobody uses is stopped, and stays so although it is to be started whenever it ends.
    let lazy = wait_until("the end of an idle VM", BOUND, async || {
        let lazy = show(&lab, "lazy").await;
        (lazy["state"] == "stopped").then_some(lazy)
    })
    .await;
    assert_eq!((&lazy["reason"], &lazy["restart_at"]), (&"stopped after 10 s idle".into(), &Value::Null), "{lazy}");
    wait_until("the event", BOUND, async || {
        let events = lab.must(&["events", "--area", "vm"]).await;
        events.lines().any(|line| line.contains(".idle") && line.contains("\"name\":\"lazy\"")).then_some(())
    })
    .await;

    // All that is known of it goes into one archive, but for what is secret.
    let (_, whole) = postmortem(&lab, &["web"], "whole").await;
    for file in [
        "vm.json",
        "operations.json",
        "events.json",
        "doctor.json",
        "host/console.log",
        "host/vmm.log",
        "host/handles.json",
        "host/usage.json",
        "host/vmm-command.txt",
        "host/vmm-status.txt",
        "host/host.txt",
        "host/files.txt",
    ] {
        assert!(whole.contains_key(file), "{file}: {:?}", whole.keys());
    }
    assert!(whole["operations.json"].contains("vm.restart") && whole["operations.json"].contains("trace_id"));
    assert!(whole["events.json"].contains(".paused") && whole["host/vmm-command.txt"].contains("qemu-system"));
    assert!(whole["host/handles.json"].contains("TOKEN") && !whole.values().any(|text| text.contains("s3cret")));
    let listed = whole.values().any(|text| text.contains("PRIVATE KEY"));
    assert!(!listed, "the ssh host key stays where it is");
    refused(&lab, &["vm", "postmortem", "nope"], "not_found", 3).await;
    let there = lab.scratch().join("whole.tar.gz").display().to_string();
    refused(&lab, &["vm", "postmortem", "web", "--file", &there], "already_exists", 4).await;

    // Of one whose create failed, what its operation kept.
    let failed = refused(
        &lab,
        &[&["vm", "create", "bad", "--kernel-args", "initcall_blacklist=populate_rootfs"][..], &small].concat(),
        "failed_precondition",
        5,
    )
    .await;
    let operation = failed["error"]["details"]["operation_id"].as_str().unwrap().to_owned();
    for asked in [&["bad"][..], &["--operation", &operation]] {
        let (about, left) = postmortem(&lab, asked, &format!("left-{}", asked.len())).await;
        assert!(
            left["operations.json"].contains("Kernel panic") && left["missing.txt"].contains("vm.json"),
            "{left:?}"
        );
        assert!(
            left["operations.json"].contains(&operation) && about["missing"].as_array().unwrap().len() > 1,
            "{about}"
        );
    }

    // A host that is away is said to be, and its VMs are listed all the same.
    lab.kill(&host);
    let lines = measured(&lab).await;
    assert!(lines.iter().any(|line| line["name"] == "web" && line["sample"].is_null()), "{lines:?}");
    assert!(
        lines.iter().any(|line| line["host"] == host.as_str() && line["error"]["code"] == "unavailable"),
        "{lines:?}"
    );
    let (_, away) = postmortem(&lab, &["web"], "away").await;
    assert!(away["missing.txt"].contains("not connected") && away["vm.json"].contains("paused"), "{away:?}");
    lab.start_process(&host, &[]);
    lab.wait_ready().await;
    refused(&lab, &["vm", "top", "--sort", "size", "--once"], "invalid_argument", 2).await;
    refused(&lab, &["vm", "top", "nope", "--once"], "not_found", 3).await;
    lab.must(&["vm", "rm", "web", "other", "lazy", "--force"]).await;
    assert_eq!(lab.residue().await, Vec::<String>::new());
}
