//! `warren dev`: a lab on one machine comes up, stays up, and goes without a trace.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use testkit::{lab::missing_for_vms, wait_until};

const BOUND: Duration = Duration::from_secs(60);

struct Dev {
    dir: tempfile::TempDir,
    name: String,
}

impl Dev {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("wlab-dev-").tempdir().unwrap();
        Self { dir, name: format!("wlabdev{}", std::process::id()) }
    }

    fn state(&self) -> String {
        self.dir.path().join("state").display().to_string()
    }

    fn warren(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_warren"))
            .args(args)
            .env_remove("WARREN_NATS_URL")
            .env("WARREN_DEV_STATE_DIR", self.state())
            .env("WARREN_RUNTIME_DIR", self.dir.path())
            .env("WARREN_ACCEL", "tcg")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.warren(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.ok(&["-o", "json", "dev", "status"])).unwrap()
    }

    /// The process of that name, once it answers.
    async fn answers(&self, name: &str) -> i32 {
        wait_until(name, BOUND, async || {
            let status = self.status();
            let process = status["processes"].as_array()?.iter().find(|process| process["name"] == name)?.clone();
            (process["health"] == "answers").then(|| i32::try_from(process["pid"].as_i64().unwrap()).unwrap())
        })
        .await
    }

    /// Processes that run with anything of this lab in their command line or environment.
    fn processes(&self) -> Vec<String> {
        let needle = self.dir.path().display().to_string();
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let own = std::process::id().to_string();
        all.filter(|entry| entry.file_name().to_str().is_some_and(|pid| pid.parse::<u32>().is_ok() && pid != own))
            .filter_map(|entry| {
                let read = |file| {
                    String::from_utf8_lossy(&std::fs::read(entry.path().join(file)).unwrap_or_default()).into_owned()
                };
                (read("cmdline") + &read("environ")).contains(&needle).then(|| read("cmdline"))
            })
            .collect()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        drop(self.warren(&["dev", "down", "--purge", "--yes"]));
    }
}

#[tokio::test]
async fn a_lab_comes_up_heals_and_goes_without_a_trace() {
    if let Some(why) = missing_for_vms() {
        println!("skipped: {why}");
        return;
    }
    let dev = Dev::new();
    dev.ok(&["dev", "up", "--name", &dev.name]);
    assert_eq!(dev.ok(&["vm", "ls"]).lines().count(), 1, "only the header");
    assert!(dev.ok(&["host", "ls"]).contains(&dev.name));
    let service = dev.answers("vm-lifecycle").await;
    let host = dev.answers(&format!("host-{}", dev.name)).await;

    // Up again changes nothing; another shape is refused and said.
    dev.ok(&["dev", "up"]);
    assert_eq!((dev.answers("vm-lifecycle").await, dev.answers(&format!("host-{}", dev.name)).await), (service, host));
    let refused = dev.warren(&["dev", "up", "--hosts", "2"]);
    assert_eq!(refused.status.code(), Some(5), "{}", String::from_utf8_lossy(&refused.stderr));

    // What dies is started again.
    kill(Pid::from_raw(service), Signal::SIGKILL).unwrap();
    wait_until("another vm-lifecycle", BOUND, async || (dev.answers("vm-lifecycle").await != service).then_some(()))
        .await;
    dev.ok(&["vm", "ls"]);

    dev.ok(&["dev", "down"]);
    assert_eq!(dev.processes(), [""; 0]);
    assert!(!Path::new("/run/netns").join(format!("warren-{}", dev.name)).exists());
    dev.ok(&["dev", "down"]);
    assert!(!dev.warren(&["vm", "ls"]).status.success(), "the lab is not found any more");

    // Its name and database were kept; more hosts may join now.
    dev.ok(&["dev", "up", "--hosts", "2"]);
    let hosts = dev.ok(&["host", "ls"]);
    assert!(hosts.contains(&dev.name) && hosts.contains(&format!("{}-2", dev.name)), "{hosts}");
    dev.ok(&["dev", "down", "--purge", "--yes"]);
    assert_eq!(dev.processes(), [""; 0]);
    assert!(!Path::new(&dev.state()).exists());
}
