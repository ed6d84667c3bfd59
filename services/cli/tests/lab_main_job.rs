//! The main job, end to end, through the CLI alone: pull an image, boot a VM, get into it, get rid of it.

mod common;

use common::{busybox_layout, debian_layout, lab_or_skip, refused};
use serde_json::Value;
use testkit::{
    image::{Layer, Packing},
    lab::LabOptions,
    registry::Registry,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_busybox_image_without_init_or_sshd_becomes_a_vm_one_can_work_in() {
    let Some(lab) = lab_or_skip(LabOptions::default()).await else { return };
    let layout = busybox_layout(&lab.scratch());
    lab.must(&["image", "pull", &layout, "--layout", "--name", "bb"]).await;
    let created = lab.must(&["vm", "create", "web", "--image", "bb", "--memory", "128M", "--disk", "256M"]).await;
    assert!(created.contains("web"), "{created}");

    // Into it, without its network: exec carries both streams and the exit code.
    let output = lab.warren(&["exec", "web", "--", "sh", "-c", "hostname; echo oops >&2; exit 7"]).await;
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "web\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "oops\n");
    let missing = lab.warren(&["exec", "web", "--", "no-such-program"]).await;
    assert_eq!(missing.status.code(), Some(127));
    // Its root filesystem has grown to the disk asked for.
    let blocks = lab.must(&["exec", "web", "--", "sh", "-c", "df -m / | tail -1 | awk '{print $2}'"]).await;
    assert!(blocks.trim().parse::<u32>().unwrap() > 200, "{blocks}");

    // Into it with ssh, whose host key is known already.
    let output = lab.warren(&["ssh", "web", "--", "cat /proc/sys/kernel/hostname; exit 3"]).await;
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(3), &b"web\n"[..]), "{output:?}");

    // What it holds survives a restart; its address and its host key do too.
    let before: Value = serde_json::from_str(&lab.must(&["vm", "show", "web", "-o", "json"]).await).unwrap();
    lab.must(&["exec", "web", "--", "sh", "-c", "echo kept > /root/file; sync"]).await;
    lab.must(&["vm", "restart", "web"]).await;
    let after: Value = serde_json::from_str(&lab.must(&["vm", "show", "web", "-o", "json"]).await).unwrap();
    for field in ["id", "address", "mac", "ssh_host_key", "host"] {
        assert_eq!(before[field], after[field], "{field}");
    }
    assert_eq!(after["state"], "running");
    assert_eq!(lab.must(&["exec", "web", "--", "cat", "/root/file"]).await, "kept\n");
    assert!(!lab.must(&["vm", "logs", "web"]).await.is_empty());

    // Stopped it refuses politely, and starts again.
    lab.must(&["vm", "stop", "web"]).await;
    refused(&lab, &["exec", "web", "--", "true"], "failed_precondition", 5).await;
    refused(&lab, &["image", "rm", "bb"], "failed_precondition", 5).await;
    lab.must(&["vm", "start", "web"]).await;
    lab.must(&["exec", "web", "--", "true"]).await;

    lab.must(&["vm", "rm", "web"]).await;
    refused(&lab, &["vm", "show", "web"], "not_found", 3).await;
    assert_eq!(lab.residue().await, Vec::<String>::new());
    lab.must(&["image", "rm", "bb"]).await;
    let images = lab.state_dir(&lab.hosts()[0]).join("images");
    assert_eq!(testkit::lab::entries(&images), Vec::<String>::new());
}

/// A layer with the program that shows whether control groups limit (an example of host-agent).
fn limits_layer() -> Layer {
    let program = testkit::lab::binaries().unwrap().join("examples/cgroup_limits");
    let program = std::fs::read(&program).expect("`cargo build --workspace --all-targets` makes the examples");
    Layer::new(Packing::Gzip).dir("usr/local/bin", 0o755).file("usr/local/bin/cgroup_limits", 0o755, &program)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_debian_image_from_a_registry_boots_its_own_systemd_and_is_pulled_by_create() {
    let Some(lab) = lab_or_skip(LabOptions::default()).await else { return };
    let Some(layout) = debian_layout(&lab.scratch(), Some(limits_layer())) else { return };
    let registry = Registry::start().await;
    let reference = registry.push_layout(&layout, "debian", "12").await;
    // No pull first: a registry reference is pulled by the create.
    lab.must(&["vm", "create", "deb", "--image", &reference, "--memory", "768M", "--disk", "1G"]).await;
    let init = lab.must(&["exec", "deb", "--", "readlink", "/proc/1/exe"]).await;
    assert!(init.ends_with("/systemd\n"), "{init}");
    let output = lab.must(&["ssh", "deb", "--", "hostname; ip -br -4 addr show scope global"]).await;
    let show: Value = serde_json::from_str(&lab.must(&["vm", "show", "deb", "-o", "json"]).await).unwrap();
    assert!(output.starts_with("deb\n") && output.contains(show["address"].as_str().unwrap()), "{output}");
    // Beside systemd's own control groups there are guest-agent's: the agent in one, each command in one.
    let groups =
        "cat /proc/self/cgroup /sys/fs/cgroup/warren.agent/cgroup.procs /sys/fs/cgroup/warren.commands/pids.max";
    let groups = lab.must(&["exec", "deb", "--", "sh", "-c", groups]).await;
    let lines: Vec<&str> = groups.lines().collect();
    assert!(lines[0].starts_with("0::/warren.commands/"), "{groups}");
    assert!(lines.len() == 3 && lines[1..].iter().all(|number| number.parse::<u32>().is_ok()), "{groups}");
    // Its kernel has a cgroup v2 with all controllers: there it can be seen that VMMs' limits hold.
    let limits = lab.must(&["exec", "deb", "--", "/usr/local/bin/cgroup_limits"]).await;
    for limit in ["cpu.max:\n150000 100000", "memory.max:\n503316480", "the limits hold"] {
        assert!(limits.contains(limit), "{limits}");
    }
    // An image's own init and resolver have the lab's names, too.
    let found = lab.must(&["exec", "deb", "--", "getent", "hosts", "ns.dns.warren", "deb"]).await;
    assert!(found.contains(show["address"].as_str().unwrap()) && found.contains("ns.dns.warren"), "{found}");
    // The guest's own power-off is a clean stop.
    lab.must(&["vm", "stop", "deb"]).await;
    let show: Value = serde_json::from_str(&lab.must(&["vm", "show", "deb", "-o", "json"]).await).unwrap();
    assert_eq!(show["state"], "stopped");
    lab.must(&["vm", "rm", "deb"]).await;
    assert_eq!(lab.residue().await, Vec::<String>::new());
}
