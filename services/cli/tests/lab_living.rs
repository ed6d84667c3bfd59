//! A VM lives on: through a pause, and through its host-agent's death under an open ssh session.

mod common;

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use common::{busybox_layout, lab_or_skip, refused};
use serde_json::Value;
use testkit::{
    lab::{Lab, LabOptions},
    wait_until,
};

const BOUND: Duration = Duration::from_secs(60);

async fn show(lab: &Lab) -> Value {
    show_vm(lab, "web").await
}

async fn show_vm(lab: &Lab, vm: &str) -> Value {
    serde_json::from_str(&lab.must(&["vm", "show", vm, "-o", "json"]).await).unwrap()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_vm_stands_still_keeps_its_memory_and_knows_the_time_when_it_goes_on() {
    let Some(mut lab) = lab_or_skip(LabOptions::default()).await else { return };
    let layout = busybox_layout(&lab.scratch());
    lab.must(&["image", "pull", &layout, "--layout", "--name", "bb"]).await;
    lab.must(&["vm", "create", "web", "--image", "bb", "--memory", "128M", "--disk", "256M"]).await;
    lab.must(&["exec", "web", "--", "sh", "-c", "mount -t tmpfs m /tmp; echo kept > /tmp/memory"]).await;
    refused(&lab, &["vm", "resume", "missing"], "not_found", 3).await;
    lab.must(&["vm", "resume", "web"]).await;
    a_session_outlives_a_pause(&lab).await;
    commands_without_end_harm_themselves(&lab).await;

    lab.must(&["vm", "pause", "web"]).await;
    lab.must(&["vm", "pause", "web"]).await;
    let paused = show(&lab).await;
    assert_eq!(paused["state"], "paused");
    refused(&lab, &["exec", "web", "--", "true"], "failed_precondition", 5).await;
    refused(&lab, &["vm", "start", "web"], "failed_precondition", 5).await;

    // An agent that dies meanwhile finds it as it was, and the row agrees.
    let host = lab.hosts()[0].clone();
    lab.kill(&host);
    lab.start_process(&host, &[]);
    lab.wait_ready().await;
    assert_eq!(show(&lab).await["state"], "paused");

    lab.must(&["vm", "resume", "web"]).await;
    let resumed = show(&lab).await;
    assert_eq!((&resumed["state"], &resumed["ready_at"]), (&Value::from("running"), &paused["ready_at"]));
    assert_eq!(lab.must(&["exec", "web", "--", "cat", "/tmp/memory"]).await, "kept\n");
    wait_until("the guest's clock", BOUND, async || {
        let guest: u64 = lab.must(&["exec", "web", "--", "date", "+%s"]).await.trim().parse().unwrap();
        (now().abs_diff(guest) <= 2).then_some(())
    })
    .await;

    // Paused it can be stopped in peace, and deleted at once.
    lab.must(&["vm", "pause", "web"]).await;
    lab.must(&["vm", "stop", "web"]).await;
    assert_eq!(show(&lab).await["state"], "stopped");
    refused(&lab, &["vm", "pause", "web"], "failed_precondition", 5).await;
    lab.must(&["vm", "start", "web"]).await;
    lab.must(&["vm", "pause", "web"]).await;
    lab.must(&["vm", "rm", "web"]).await;
    assert_eq!(lab.residue().await, Vec::<String>::new());
}

async fn a_session_outlives_a_pause(lab: &Lab) {
    let mut session = lab
        .outside(&lab.binary("warren"))
        .args(["exec", "-i", "web", "--", "sh", "-c", "echo up; read line; echo got $line"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(session.stdout.take().unwrap()).lines();
    assert_eq!(output.next().unwrap().unwrap(), "up");
    lab.must(&["vm", "pause", "web"]).await;
    lab.must(&["vm", "resume", "web"]).await;
    session.stdin.take().unwrap().write_all(b"it\n").unwrap();
    assert_eq!(output.next().unwrap().unwrap(), "got it");
    assert!(session.wait().unwrap().success());
}

/// One that forks and one that hoards: others run beside them, a kill takes all of their processes, and guest-agent, which would
/// have lost its jobs by dying, lives.
async fn commands_without_end_harm_themselves(lab: &Lab) {
    lab.must(&["exec", "-d", "--name", "witness", "web", "--", "sleep", "1000"]).await;
    let limits = "cat /proc/self/cgroup; cd /sys/fs/cgroup/$(cut -d: -f3 /proc/self/cgroup); cat pids.max memory.max ../memory.max";
    let limits = lab.must(&["exec", "web", "--", "sh", "-c", limits]).await;
    assert!(limits.starts_with("0::/warren.commands/") && !limits.contains("max"), "{limits}");
    let processes = async || -> usize {
        let count = lab.must(&["exec", "web", "--", "sh", "-c", "ls -d /proc/[0-9]* | wc -l"]).await;
        count.trim().parse().unwrap()
    };
    let before = processes().await;
    lab.must(&["exec", "-d", "--name", "bomb", "web", "--", "sh", "-c", "b() { b | b & }; b; sleep 1000"]).await;
    wait_until("a guest full of processes", BOUND, async || (processes().await > before + 100).then_some(())).await;
    lab.must(&["exec", "kill", "web", "bomb", "--signal", "KILL"]).await;
    wait_until("the end of all of them", BOUND, async || (processes().await <= before + 2).then_some(())).await;

    let hog = lab.warren(&["exec", "web", "--", "tail", "/dev/zero"]).await;
    assert_eq!(hog.status.code(), Some(137), "{}", String::from_utf8_lossy(&hog.stderr));
    let jobs: Value = serde_json::from_str(&lab.must(&["-o", "json", "exec", "ls", "web"]).await).unwrap();
    let witness = jobs["jobs"].as_array().unwrap().iter().find(|job| job["name"] == "witness").unwrap();
    assert_eq!(witness["state"], "running", "{jobs}");
    lab.must(&["exec", "kill", "web", "witness"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_agent_is_replaced_under_an_open_ssh_session_and_no_tick_is_lost() {
    let Some(mut lab) = lab_or_skip(LabOptions::default()).await else { return };
    let dir = lab.scratch();
    let layout = busybox_layout(&dir);
    let key = dir.join("key");
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status().unwrap();
    assert!(made.success());
    lab.must(&["image", "pull", &layout, "--layout", "--name", "bb"]).await;
    let public = dir.join("key.pub").display().to_string();
    lab.must(&["vm", "create", "web", "--image", "bb", "--memory", "128M", "--disk", "256M", "--ssh-key", &public])
        .await;
    let vm = show(&lab).await;
    let host = lab.hosts()[0].clone();

    // To the VM's own address, from inside the lab's network: what a colleague's VM would do.
    let mut session = Command::new("nsenter")
        .arg(format!("--net=/run/netns/warren-{host}"))
        .args(["ssh", "-i"])
        .arg(&key)
        .args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes"])
        .args(["-p", &vm["ssh_port"].to_string()])
        .arg(format!("root@{}", vm["address"].as_str().unwrap()))
        .arg("i=0; while [ $i -lt 400 ]; do i=$((i+1)); echo $i; sleep 0.05; done")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let output = BufReader::new(session.stdout.take().unwrap());
    let (sender, mut ticks) = tokio::sync::mpsc::unbounded_channel();
    let reader = std::thread::spawn(move || output.lines().try_for_each(|line| sender.send(line.unwrap())));
    let first = tokio::time::timeout(BOUND, ticks.recv()).await.expect("the session begins").unwrap();
    assert_eq!(first, "1");
    for _ in 0..2 {
        lab.kill(&host);
        lab.start_process(&host, &[]);
        lab.wait_ready().await;
    }
    let mut seen = 1;
    while let Some(tick) = tokio::time::timeout(BOUND, ticks.recv()).await.expect("ticks go on") {
        seen += 1;
        assert_eq!(tick, seen.to_string());
    }
    assert_eq!(seen, 400, "every tick arrived, in order");
    assert!(session.wait().unwrap().success());
    reader.join().unwrap().unwrap();
    lab.must(&["vm", "rm", "web"]).await;
    assert_eq!(lab.residue().await, Vec::<String>::new());
}

/// A host that is restarted loses its processes, its namespaces and its control groups; its disk stays.
fn restart_machine(lab: &Lab, host: &str) {
    let state = lab.state_dir(host);
    for pid in testkit::lab::vmms(&state) {
        let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    let removed = Command::new("ip").args(["netns", "del", &format!("warren-{host}")]).status().unwrap();
    assert!(removed.success());
    for vm in testkit::lab::entries(&state.join("vms")) {
        // The next boot of a machine has another id.
        let file = state.join("vms").join(vm).join("handles.json");
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        let mut handles: Value = serde_json::from_str(&text).unwrap();
        if handles["vmm"].is_object() {
            handles["vmm"]["boot_id"] = "another-boot".into();
        }
        std::fs::write(&file, handles.to_string()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_of_their_host_vms_are_what_their_policies_say() {
    let Some(mut lab) = lab_or_skip(LabOptions::default()).await else { return };
    let layout = busybox_layout(&lab.scratch());
    lab.must(&["image", "pull", &layout, "--layout", "--name", "bb"]).await;
    for (name, restart) in [("stays", "no"), ("back", "on-failure"), ("off", "always")] {
        let size = ["--memory", "128M", "--disk", "128M", "--restart", restart];
        lab.must(&[&["vm", "create", name, "--image", "bb"], &size[..]].concat()).await;
    }
    lab.must(&["vm", "stop", "off", "--force"]).await;
    lab.must(&["exec", "back", "--", "sh", "-c", "echo kept > /root/file; sync"]).await;
    let before = show_vm(&lab, "back").await;
    let host = lab.hosts()[0].clone();
    lab.kill(&host);
    restart_machine(&lab, &host);
    lab.start_process(&host, &[]);
    lab.wait_ready().await;

    let down = show_vm(&lab, "stays").await;
    assert_eq!((&down["state"], &down["reason"]), (&"failed".into(), &"the host was restarted".into()), "{down}");
    wait_until("the VM's return", BOUND, async || {
        let vm = show_vm(&lab, "back").await;
        (vm["state"] == "running" && vm["ready_at"] != before["ready_at"]).then_some(())
    })
    .await;
    let back = show_vm(&lab, "back").await;
    for field in ["id", "address", "mac", "ssh_host_key"] {
        assert_eq!(back[field], before[field], "{field}");
    }
    assert_eq!(lab.must(&["exec", "back", "--", "cat", "/root/file"]).await, "kept\n");
    assert_eq!(show_vm(&lab, "off").await["state"], "stopped", "what somebody stopped stays stopped");
    lab.must(&["vm", "start", "stays"]).await;
    assert_eq!(lab.must(&["exec", "stays", "--", "hostname"]).await, "stays\n");
    lab.must(&["vm", "rm", "stays", "back", "off"]).await;
    let (code, leaks) = (lab.warren(&["doctor", "--leaks"]).await.status.code(), lab.residue().await);
    assert_eq!((code, leaks), (Some(0), Vec::<String>::new()));
}
