//! `warren run`: a VM for one command, and how every way out leads past the VM's end.

mod common;

use std::{process::Output, time::Duration};

use common::{busybox_layout, lab_or_skip, refused};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use testkit::{
    lab::{Lab, LabOptions},
    wait_until,
};
use tokio::io::{AsyncBufReadExt, BufReader};

const BOUND: Duration = Duration::from_secs(120);

/// What a small busybox VM takes.
const SMALL: [&str; 6] = ["--memory", "128M", "--disk", "128M", "--network", "isolated"];

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `warren run` of the busybox image with more arguments.
async fn run(lab: &Lab, more: &[&str]) -> Output {
    let mut args = vec!["run", "bb"];
    args.extend(SMALL);
    args.extend(more);
    lab.warren(&args).await
}

async fn vms(lab: &Lab) -> Vec<String> {
    let listed: serde_json::Value = serde_json::from_str(&lab.must(&["vm", "ls", "-o", "json"]).await).unwrap();
    listed["vms"].as_array().unwrap().iter().map(|vm| vm["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_out_of_a_run_leads_past_its_vms_end() {
    let Some(lab) = lab_or_skip(LabOptions::default()).await else { return };
    let layout = busybox_layout(&lab.scratch());
    lab.must(&["image", "pull", &layout, "--layout", "--name", "bb"]).await;

    // Streams, environment and the exit code are the command's.
    let script = "echo $A; echo bad >&2; exit 9";
    let ran = run(&lab, &["--name", "once", "-e", "A=an answer", "--", "sh", "-c", script]).await;
    assert_eq!(
        (ran.status.code(), text(&ran.stdout), text(&ran.stderr)),
        (Some(9), "an answer\n".into(), "bad\n".into())
    );
    assert!(vms(&lab).await.is_empty());

    // What is wrong is found out before there is a VM, or ends it.
    for (args, code, exit) in [
        (vec!["run", "nothing-like-it", "--", "true"], "not_found", 3),
        (vec!["run", "bb", "-e", "nonsense", "--", "true"], "invalid_argument", 2),
        (vec!["run", "bb", "--memory", "1", "--", "true"], "invalid_argument", 2),
    ] {
        refused(&lab, &args, code, exit).await;
    }

    // Ctrl-C before the command, in the command, and with a name that is taken meanwhile.
    interrupted_while_booting(&lab).await;
    let mut args = vec!["run", "bb", "--name", "busy", "--timeout", "100s"];
    args.extend(SMALL);
    args.extend(["--", "sh", "-c", "trap 'echo told; exit 5' INT; echo ready; while :; do sleep 0.1; done"]);
    let mut child = lab.spawn(&args);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("ready"));
    refused(&lab, &["run", "bb", "--name", "busy", "--", "true"], "already_exists", 4).await;
    assert_eq!(vms(&lab).await, ["busy"], "another one's VM is nobody's to delete");
    interrupt(&child);
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("told"));
    assert_eq!(child.wait().await.unwrap().code(), Some(5));

    // A client that is killed leaves a VM that goes when nobody uses it; one that is to be kept is kept.
    let kept = run(&lab, &["--name", "kept", "--keep", "--timeout", "1s", "--", "sleep", "60"]).await;
    assert_eq!(kept.status.code(), Some(124), "{}", text(&kept.stderr));
    assert_eq!(vms(&lab).await, ["kept"]);
    let shown: serde_json::Value =
        serde_json::from_str(&lab.must(&["vm", "show", "kept", "-o", "json"]).await).unwrap();
    assert!(shown["idle_limit"].is_null(), "{shown}");
    lab.must(&["vm", "rm", "kept"]).await;
    assert_eq!(lab.residue().await, Vec::<String>::new());
}

fn interrupt(child: &tokio::process::Child) {
    kill(Pid::from_raw(child.id().unwrap().cast_signed()), Signal::SIGINT).unwrap();
}

async fn interrupted_while_booting(lab: &Lab) {
    let mut args = vec!["run", "bb", "--name", "early"];
    args.extend(SMALL);
    args.extend(["--", "true"]);
    let mut child = lab.spawn(&args);
    let limit = wait_until("the VM", BOUND, async || {
        let shown = lab.warren(&["vm", "show", "early", "-o", "json"]).await;
        let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).ok()?;
        Some(shown["idle_limit"].clone())
    })
    .await;
    assert_eq!((&limit["action"], &limit["seconds"]), (&json!("delete"), &json!(900)), "{limit}");
    interrupt(&child);
    assert_eq!(child.wait().await.unwrap().code(), Some(130));
    assert!(vms(lab).await.is_empty());
}
