//! The whole job by NATS alone, done by a client that shares no code with Warren (nats-py).

mod common;

use common::{busybox_layout, lab_or_skip};
use testkit::lab::LabOptions;

#[tokio::test(flavor = "multi_thread")]
async fn a_script_that_only_speaks_nats_can_do_it_all() {
    let Some(python) = std::env::var_os("WARREN_TEST_NATS_PY") else {
        println!("skipped: WARREN_TEST_NATS_PY names no python with nats-py (deploy/check sets it)");
        return;
    };
    let Some(lab) = lab_or_skip(LabOptions::default()).await else { return };
    let layout = busybox_layout(&lab.scratch());
    lab.must(&["image", "pull", &layout, "--layout", "--name", "bb"]).await;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/independent_client.py");
    let run = tokio::process::Command::new(python).arg(script).arg(lab.nats.url()).kill_on_drop(true).output();
    let output = run.await.expect("python starts");
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&text), lab.tails());
    assert_eq!(lab.residue().await, Vec::<String>::new());
}
