//! The whole job by NATS alone, done by a client that shares no code with Warren (nats-py).

mod common;

use std::path::Path;

use common::{busybox_layout, lab_or_skip};
use testkit::lab::LabOptions;

#[tokio::test(flavor = "multi_thread")]
async fn a_script_that_only_speaks_nats_can_do_it_all() {
    let Some(python) = std::env::var_os("WARREN_TEST_NATS_PY") else {
        println!("skipped: WARREN_TEST_NATS_PY names no python with nats-py (deploy/check sets it)");
        return;
    };
    let env = vec![("WARREN_GIT_ALLOW_FILE".to_owned(), "true".to_owned())];
    let Some(lab) = lab_or_skip(LabOptions { env, ..LabOptions::default() }).await else { return };
    let layout = busybox_layout(&lab.scratch());
    lab.must(&["image", "pull", &layout, "--layout", "--name", "bb"]).await;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/independent_client.py");
    let repository = repository(&lab.scratch());
    let mut command = tokio::process::Command::new(python);
    command.env("PYTHONDONTWRITEBYTECODE", "1").arg(script).arg(lab.nats.url()).arg(repository);
    let run = command.kill_on_drop(true).output();
    let output = run.await.expect("python starts");
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&text), lab.tails());
    assert_eq!(lab.residue().await, Vec::<String>::new());
}

/// A git repository of two commits in `dir`; its URL.
fn repository(dir: &Path) -> String {
    let dir = dir.join("repository");
    std::fs::create_dir(&dir).unwrap();
    let git = |args: &[&str]| {
        let mut command = std::process::Command::new("git");
        command.current_dir(&dir).args(["-c", "user.name=Ann", "-c", "user.email=ann@example.org"]).args(args);
        let output = command.env("GIT_CONFIG_GLOBAL", "/dev/null").output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    git(&["init", "-q", "-b", "main"]);
    for text in ["hallo\n", "hello\n"] {
        std::fs::write(dir.join("hello.txt"), text).unwrap();
        git(&["add", "."]);
        git(&["commit", "-q", "-m", "A greeting"]);
    }
    format!("file://{}", dir.display())
}
