//! What a VM can have beside its size, seen from within: environment, script, disks, ports, network; and several at once.

mod common;

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    time::Duration,
};

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

fn free_port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string()
}

/// What the port says to a question, if anything.
fn ask(port: &str) -> Option<String> {
    let mut stream = TcpStream::connect(format!("127.0.0.1:{port}")).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    stream.write_all(b"hello\n").ok()?;
    stream.shutdown(std::net::Shutdown::Write).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    (!answer.is_empty()).then_some(answer)
}

const TOML: &str = r#"
image = "bb"
memory = "128M"
disk = "128M"
kernel_args = "warren.test=1"
network = "lab"

[env]
COLOUR = "green"

[[disks]]
name = "work"
size = "32M"
mount = "/work"
keep = true

[[disks]]
name = "raw"
size = "16M"
"#;

const SCRIPT: &str = "#!/bin/sh\necho \"first boot of $(hostname), $COLOUR\" >> /root/script\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_has_all_its_file_asks_for_and_a_kept_disk_outlives_it() {
    let Some(lab) = lab_or_skip(LabOptions::default()).await else { return };
    let layout = busybox_layout(&lab.scratch());
    lab.must(&["image", "pull", &layout, "--layout", "--name", "bb"]).await;
    let (file, script) = (lab.scratch().join("vm.toml"), lab.scratch().join("first.sh"));
    std::fs::write(&file, TOML).unwrap();
    std::fs::write(&script, SCRIPT).unwrap();
    let (file, script) = (file.display().to_string(), script.display().to_string());
    let tcp = free_port();
    let publish = format!("{tcp}:7");
    let create = ["vm", "create", "web", "-f", &file, "--user-data", &script, "-p", &publish];
    lab.must(&create).await;

    assert!(guest(&lab, "web", "cat /proc/cmdline").await.ends_with("warren.test=1"));
    assert_eq!(guest(&lab, "web", "echo $COLOUR").await, "green");
    wait_until("the first-boot script", BOUND, async || {
        (guest(&lab, "web", "cat /root/script || true").await == "first boot of web, green").then_some(())
    })
    .await;
    assert!(guest(&lab, "web", "grep /work /proc/mounts").await.contains("ext4"));
    let serials = "for file in /sys/block/vd*/serial; do cat $file; echo; done | sort | xargs";
    assert_eq!(guest(&lab, "web", serials).await, "raw warren-config warren-root work");
    guest(&lab, "web", "echo precious > /work/file; sync").await;

    // Its VMM is nobody on the host, with few rights.
    let pid = testkit::lab::vmms(&lab.state_dir(&lab.hosts()[0]))[0];
    let proc = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    let status = proc("status");
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
    let user: u32 = field("Uid:").split_whitespace().next().unwrap().parse().unwrap();
    assert!(user >= 0x7700_0000, "{status}");
    assert_eq!((field("NoNewPrivs:"), field("Seccomp:"), field("CapEff:")), ("1", "2", "0000000000000000"));
    let limits = proc("limits");
    let limit = |name: &str| limits.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    assert!(!limit("Max file size").contains("unlimited") && limit("Max open files").contains("1024"), "{limits}");
    if std::path::Path::new("/sys/fs/cgroup/unified/cgroup.controllers").exists() {
        assert!(proc("cgroup").contains("/warren/"), "{}", proc("cgroup"));
    } else {
        println!("skipped: no cgroup v2 at /sys/fs/cgroup/unified");
    }

    // The port leads in, also after the agent was replaced under the VM.
    guest(&lab, "web", "setsid nc -ll -p 7 -e cat >/dev/null 2>&1 &").await;
    let answered = || wait_until("the published port", BOUND, async || ask(&tcp).filter(|said| said == "hello\n"));
    answered().await;
    let mut lab = lab;
    let host = lab.hosts()[0].clone();
    lab.kill(&host);
    lab.start_process(&host, &[]);
    lab.wait_ready().await;
    let answered = || wait_until("the published port", BOUND, async || ask(&tcp).filter(|said| said == "hello\n"));
    answered().await;

    // Another VM cannot have the port or the disk; live, one port gives way to another.
    let other = ["vm", "create", "other", "--image", "bb", "--memory", "128M", "--disk", "128M"];
    refused(&lab, &[&other[..], &["-p", &publish]].concat(), "already_exists", 4).await;
    refused(&lab, &[&other[..], &["--data-disk", "name=work,size=16M,keep"]].concat(), "failed_precondition", 5).await;
    refused(&lab, &["disk", "rm", "work"], "failed_precondition", 5).await;
    let moved = free_port();
    lab.must(&["vm", "set", "web", "-p", &format!("{moved}:7")]).await;
    assert_eq!(ask(&tcp), None);
    wait_until("the port at its new place", BOUND, async || ask(&moved)).await;

    // The script ran once; the disk is there at each boot and in the next VM.
    lab.must(&["vm", "restart", "web"]).await;
    assert_eq!(guest(&lab, "web", "cat /root/script /work/file").await, "first boot of web, green\nprecious");
    lab.must(&["vm", "rm", "web"]).await;
    let kept: Value = serde_json::from_str(&lab.must(&["disk", "ls", "-o", "json"]).await).unwrap();
    assert_eq!((&kept["disks"][0]["name"], &kept["disks"][0]["vm"]), (&Value::from("work"), &Value::Null));
    lab.must(&[&other[..], &["--data-disk", "name=work,size=16M,mount=/mnt/w,keep"]].concat()).await;
    assert_eq!(guest(&lab, "other", "cat /mnt/w/file").await, "precious");
    lab.must(&["vm", "rm", "other"]).await;
    lab.must(&["disk", "rm", "work"]).await;
    assert!(testkit::lab::entries(&lab.state_dir(&host).join("disks")).is_empty());
    assert_eq!(lab.residue().await, Vec::<String>::new());
    let held: String = lab.sql().await.query_one("select disk_held::text from vm.host", &[]).await.unwrap().get(0);
    assert_eq!(held, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_vms_are_one_request_and_an_isolated_one_reaches_nobody() {
    let Some(lab) = lab_or_skip(LabOptions::default()).await else { return };
    let layout = busybox_layout(&lab.scratch());
    lab.must(&["image", "pull", &layout, "--layout", "--name", "bb"]).await;
    let small = ["--image", "bb", "--memory", "128M", "--disk", "128M", "--label", "ci=1"];
    let made = lab.must(&[&["vm", "create", "web-{1..3}"][..], &small].concat()).await;
    assert_eq!(made.lines().collect::<Vec<_>>(), ["web-1 runs", "web-2 runs", "web-3 runs"]);
    // One of several fails by itself, and its error is the command's.
    let again = lab.warren(&[&["vm", "create", "web-{3..4}"][..], &small].concat()).await;
    assert_eq!(again.status.code(), Some(4), "{}", String::from_utf8_lossy(&again.stderr));
    assert!(String::from_utf8_lossy(&again.stdout).contains("web-4 runs"));
    lab.must(&[&["vm", "create", "alone", "--network", "isolated"][..], &small].concat()).await;

    let address = |vm: &'static str| {
        let lab = &lab;
        async move {
            let vm: Value = serde_json::from_str(&lab.must(&["vm", "show", vm, "-o", "json"]).await).unwrap();
            vm["address"].as_str().unwrap().to_owned()
        }
    };
    let (one, two) = (address("web-1").await, address("web-2").await);
    let alone = address("alone").await;
    let ping = |to: &str| format!("ping -c 2 -W 2 {to} >/dev/null 2>&1 && echo reached || echo not");
    assert_eq!(guest(&lab, "web-1", &ping(&two)).await, "reached");
    assert_eq!(guest(&lab, "web-1", &ping(&alone)).await, "not");
    assert_eq!(guest(&lab, "alone", &ping(&one)).await, "not");
    let gateway = format!("{}.1", one.rsplit_once('.').unwrap().0);
    assert_eq!(guest(&lab, "web-1", &ping(&gateway)).await, "reached");
    assert_eq!(guest(&lab, "alone", &ping(&gateway)).await, "not");

    // What comes to the console is seen there, by whoever is attached.
    let mut console = lab.spawn(&["vm", "console", "web-3"]);
    let mut heard = console.stdout.take().unwrap();
    let mut seen = Vec::new();
    wait_until("the console", BOUND, async || {
        guest(&lab, "web-3", "echo over the wire > /dev/console").await;
        let mut buffer = [0; 4096];
        let read = tokio::time::timeout(Duration::from_secs(2), tokio::io::AsyncReadExt::read(&mut heard, &mut buffer));
        let count = read.await.ok()?.unwrap();
        seen.extend_from_slice(&buffer[..count]);
        String::from_utf8_lossy(&seen).contains("over the wire").then_some(())
    })
    .await;
    drop(console);

    // Waiting for what somebody else does.
    let wait = tokio::join!(
        lab.must(&["vm", "wait", "web-1", "--for", "stopped"]),
        lab.must(&["vm", "wait", "web-2", "--for", "deleted"]),
        lab.must(&["vm", "stop", "web-1", "--force"]),
        lab.must(&["vm", "rm", "web-2"]),
    );
    assert!(wait.0.contains("stopped") && wait.1.contains("deleted"), "{wait:?}");
    refused(&lab, &["vm", "wait", "web-1", "--timeout", "1s"], "deadline_exceeded", 10).await;
    refused(&lab, &["vm", "rm", "--label", "nobody"], "not_found", 3).await;
    let gone = lab.must(&["vm", "rm", "--label", "ci=1"]).await;
    assert_eq!(gone.lines().count(), 4, "{gone}");
    let events = wait_until("the events", BOUND, async || {
        let events = lab.must(&["events", "--area", "vm"]).await;
        (events.lines().filter(|line| line.contains(".deleted")).count() == 5).then_some(events)
    })
    .await;
    assert!(events.contains(".reserved") && events.contains("\"name\":\"web-1\""), "{events}");
    refused(&lab, &["events", "--area", "*"], "invalid_argument", 2).await;
    assert_eq!(lab.residue().await, Vec::<String>::new());
}
