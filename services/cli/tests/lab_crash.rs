//! `kill -9` of each process at each recorded step of a create and a pull: the operation ends well, and what
//! ran before still runs.

mod common;

use std::time::Duration;

use common::{busybox_edition, busybox_layout, lab_or_skip};
use serde_json::Value;
use testkit::lab::{Lab, LabOptions};

/// Long enough for a lease to run out, an adoption and a boot on a crowded machine.
const BOUND: Duration = Duration::from_secs(90);

async fn json(lab: &Lab, args: &[&str]) -> Value {
    let mut all = vec!["-o", "json"];
    all.extend(args);
    serde_json::from_str(&lab.must(&all).await).expect("JSON")
}

/// Restarts `process` armed to die at `point`, asks for `args`, waits until it died, restarts it, and gives the operation's end.
async fn crash(lab: &mut Lab, process: &str, point: &str, args: &[&str]) -> Value {
    let mark = lab.scratch().join(format!("fired-{}", point.replace('/', "-")));
    lab.kill(process);
    lab.start_process(process, &[("WARREN_FAULT", point), ("WARREN_FAULT_MARK", &mark.to_string_lossy())]);
    lab.wait_ready().await;
    let mut no_wait = args.to_vec();
    no_wait.push("--no-wait");
    let operation = json(lab, &no_wait).await;
    lab.wait_exit(process, BOUND).await;
    assert!(mark.exists(), "{point} did not fire\n{}", lab.tails());
    if !lab.hosts().iter().any(|host| host == process) {
        expire_leases(lab).await;
    }
    lab.start_process(process, &[]);
    let id = operation["id"].as_str().expect("an operation").to_owned();
    let output = tokio::time::timeout(BOUND, lab.warren(&["-o", "json", "op", "wait", &id])).await;
    let output = output.unwrap_or_else(|_| panic!("{point}: the operation did not end\n{}", lab.tails()));
    drop(output);
    json(lab, &["op", "show", &id]).await
}

/// What time does in fifteen seconds: a dead worker's leases run out.
async fn expire_leases(lab: &Lab) {
    let expire = "update operations.operation set lease_until = now() where state = 'running'";
    lab.sql().await.execute(expire, &[]).await.expect("leases can be shortened");
}

/// Asserts that the VM runs and answers, and removes it.
async fn works_then_goes(lab: &Lab, point: &str, operation: &Value, name: &str) {
    assert_eq!(operation["state"], "succeeded", "{point}: {operation:#}\n{}", lab.tails());
    assert_eq!(lab.must(&["exec", name, "--", "hostname"]).await, format!("{name}\n"), "{point}");
    lab.must(&["vm", "rm", name, "--force"]).await;
}

fn create(name: &str) -> Vec<&str> {
    vec!["vm", "create", name, "--image", "bb", "--memory", "128M", "--disk", "128M"]
}

async fn lab_with_witness() -> Option<(Lab, String)> {
    let lab = lab_or_skip(LabOptions::default()).await?;
    let layout = busybox_layout(&lab.scratch());
    lab.must(&["image", "pull", &layout, "--layout", "--name", "bb"]).await;
    lab.must(&create("witness")).await;
    lab.must(&["exec", "witness", "--", "sh", "-c", "cat /proc/uptime > /uptime-at-first"]).await;
    let boot = lab.must(&["exec", "witness", "--", "cat", "/proc/sys/kernel/random/boot_id"]).await;
    Some((lab, boot))
}

/// The VM that ran all along has never been restarted.
async fn witness_never_blinked(lab: &Lab, boot: &str) {
    assert_eq!(lab.must(&["exec", "witness", "--", "cat", "/proc/sys/kernel/random/boot_id"]).await, boot);
    lab.must(&["vm", "rm", "witness", "--force"]).await;
    assert_eq!(lab.residue().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn vm_lifecycle_killed_at_each_step_of_a_create() {
    let Some((mut lab, boot)) = lab_with_witness().await else { return };
    for step in ["resolve", "reserve", "kernel", "provision", "boot", "ready", "finish"] {
        let point = format!("vm.create/{step}/after");
        let operation = crash(&mut lab, "vm-lifecycle", &point, &create("victim")).await;
        works_then_goes(&lab, &point, &operation, "victim").await;
    }
    witness_never_blinked(&lab, &boot).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn host_agent_killed_at_each_step_of_a_create() {
    let Some((mut lab, boot)) = lab_with_witness().await else { return };
    let host = lab.hosts()[0].clone();
    for point in [
        "agent/vm.provision/handles",
        "agent/vm.provision/disk",
        "agent/vm.provision/tap",
        "agent/vm.boot/before-spawn",
        "agent/vm.boot/spawned",
        "agent/vm.boot/recorded",
    ] {
        let operation = crash(&mut lab, &host, point, &create("victim")).await;
        works_then_goes(&lab, point, &operation, "victim").await;
    }
    witness_never_blinked(&lab, &boot).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn image_service_and_host_agent_killed_at_each_step_of_a_pull() {
    let Some((mut lab, boot)) = lab_with_witness().await else { return };
    let host = lab.hosts()[0].clone();
    let points = [
        ("image-service", "image.pull/place/after"),
        ("image-service", "image.pull/stage/after"),
        ("image-service", "image.pull/publish/renamed"),
        ("image-service", "image.pull/publish/after"),
        (&*host, "agent/image.stage/downloaded"),
        (&*host, "agent/image.stage/written"),
        (&*host, "agent/image.publish/before"),
        (&*host, "agent/image.publish/renamed"),
    ];
    for (n, (process, point)) in points.into_iter().enumerate() {
        // What is here already would not be staged once more.
        let name = format!("again-{n}");
        let layout = busybox_edition(&lab.scratch(), &name);
        let operation = crash(&mut lab, process, point, &["image", "pull", &layout, "--layout", "--name", &name]).await;
        assert_eq!(operation["state"], "succeeded", "{point}: {operation:#}\n{}", lab.tails());
        lab.must(&["image", "rm", &name]).await;
    }
    let left = testkit::lab::entries(&lab.state_dir(&host).join("images"));
    assert_eq!(left.len(), 1, "only the witness's image is left: {left:?}");
    witness_never_blinked(&lab, &boot).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_and_postgresql_restarted_in_the_middle_of_a_create() {
    let Some((mut lab, boot)) = lab_with_witness().await else { return };
    let accepted = json(&lab, &[&create("victim")[..], &["--no-wait"]].concat()).await;
    lab.nats.restart().await;
    lab.postgres.restart().await;
    lab.wait_ready().await;
    let id = accepted["id"].as_str().expect("an operation");
    tokio::time::timeout(BOUND, lab.warren(&["op", "wait", id])).await.expect("the operation ends");
    let operation = json(&lab, &["op", "show", id]).await;
    works_then_goes(&lab, "restarts", &operation, "victim").await;
    witness_never_blinked(&lab, &boot).await;
}
