//! Stories of the real process: it ends in order, its callers are answered, and another replica takes over.

mod common;

use std::process::{Child, Command, Stdio};

use common::{BOUND, Lab, exec};
use contract::{ErrorCode, SessionId, operation, vm::VmState, workspace::Open, worktree::Prepare};
use nix::{sys::signal, unistd::Pid};
use serde_json::json;
use testkit::wait_until;

/// The real service as a child; ended with the test.
struct Replica(Child, #[expect(dead_code, reason = "its cache, which goes with it")] tempfile::TempDir);

impl Replica {
    async fn ready(lab: &Lab) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_workspace-service"));
        command.env("WARREN_NATS_URL", lab.nats.url()).env("WARREN_DATABASE_URL", lab.postgres.url());
        let cache = tempfile::tempdir().unwrap();
        command.env("WARREN_GIT_CACHE", cache.path());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let replica = Self(child, cache);
        wait_until("the service", BOUND, async || {
            let request = json!({ "vm": "nope", "session": SessionId::new(), "kind": { "ssh": {} } });
            (lab.call::<Open>(request).await.unwrap_err().code == ErrorCode::NotFound).then_some(())
        })
        .await;
        // A service's verbs are there one after the other, these last.
        wait_until("its last verbs", BOUND, async || lab.call::<operation::List>(json!({})).await.ok()).await;
        replica
    }

    fn signal(&self, signal: signal::Signal) {
        signal::kill(Pid::from_raw(self.0.id().cast_signed()), signal).unwrap();
    }

    async fn ended(&mut self) -> std::process::ExitStatus {
        wait_until("the end", BOUND, async || self.0.try_wait().unwrap()).await
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }
}

#[tokio::test]
async fn a_replica_that_ends_ends_its_commands_and_answers_their_callers() {
    let lab = Lab::engines().await;
    let mut replica = Replica::ready(&lab).await;
    let bus = lab.bus.clone();
    let running = tokio::spawn(async move { exec(&bus, &["sleep"], json!({})).await });
    wait_until("the command", BOUND, async || (!lab.agent.opened().is_empty()).then_some(())).await;
    replica.signal(signal::Signal::SIGTERM);
    let error = running.await.unwrap().unwrap_err();
    assert_eq!((error.code, error.retryable), (ErrorCode::Unavailable, false));
    assert_eq!(error.details.unwrap()["stdout"], "so far\n");
    assert!(replica.ended().await.success());
    wait_until("the reset", BOUND, async || {
        (lab.agent.resets() == ["workspace-service is shutting down"]).then_some(())
    })
    .await;
}

/// Whether a process has a word among its arguments.
fn runs(word: &str) -> bool {
    let lines =
        std::fs::read_dir("/proc").unwrap().flatten().filter_map(|it| std::fs::read(it.path().join("cmdline")).ok());
    lines.into_iter().any(|line| String::from_utf8_lossy(&line).contains(word))
}

#[tokio::test]
async fn a_replica_that_ends_or_is_killed_leaves_no_git() {
    let lab = Lab::engines().await;
    lab.put("db", VmState::Running, "h1");
    for (vm, signal) in [("web", signal::Signal::SIGTERM), ("db", signal::Signal::SIGKILL)] {
        let mut replica = Replica::ready(&lab).await;
        // It takes connections and says nothing.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let word = listener.local_addr().unwrap().to_string();
        let request = json!({ "vm": vm, "source": { "git": { "url": format!("http://{word}/x") } } });
        lab.call::<Prepare>(request).await.unwrap();
        let (connection, _) = tokio::time::timeout(BOUND, listener.accept()).await.unwrap().unwrap();
        assert!(runs(&word));
        replica.signal(signal);
        replica.ended().await;
        drop(connection);
        wait_until("git's end", BOUND, async || (!runs(&word)).then_some(())).await;
    }
}

#[tokio::test]
async fn a_replica_that_is_killed_is_missed_by_nobody_who_asks_afterwards() {
    let lab = Lab::engines().await;
    let mut doomed = Replica::ready(&lab).await;
    let _other = Replica::ready(&lab).await;
    doomed.signal(signal::Signal::SIGKILL);
    doomed.ended().await;
    wait_until("an answer", BOUND, async || lab.exec(&["cat"], json!({ "timeout_ms": 5000 })).await.ok()).await;
}

#[test]
fn a_process_without_configuration_says_what_it_lacks() {
    let output = Command::new(env!("CARGO_BIN_EXE_workspace-service"))
        .env_remove("WARREN_NATS_URL")
        .env_remove("WARREN_DATABASE_URL")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("WARREN_NATS_URL is not set"), "{said}");
    assert!(said.contains("WARREN_DATABASE_URL is not set"), "{said}");
}
