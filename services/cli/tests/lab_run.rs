//! `warren run`: a VM for one command. First how every way out leads past the VM's end, then a coding task as a CI job or an agent has it: a
//! project's tests fail in a VM, the code is mended there, and the patch comes home.

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use bus::{Bus, BusConfig, ByteStream, CallOptions};
use common::{busybox_layout, debian_layout, lab_or_skip, refused};
use contract::{
    ErrorCode, SessionId, Verb,
    operation::{self, Operation, OperationRef, OperationState, WaitRequest},
    worktree::{Prepare, PrepareRequest},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use testkit::{
    image::Layer,
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

fn git(dir: &Path, args: &[&str]) -> String {
    let output = Command::new("git")
        .current_dir(dir)
        .args(["-c", "user.name=Ann", "-c", "user.email=ann@example.org"])
        .args(args)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .output()
        .unwrap();
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout).trim().to_owned()
}

/// A Python project whose tests fail, as a git repository with something not committed yet.
fn project(lab: &Lab) -> PathBuf {
    let dir = lab.scratch().join("project");
    let write = |name: &str, content: &str| {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    };
    write("money/__init__.py", "");
    write("money/split.py", SPLIT);
    write("tests/__init__.py", "");
    write("tests/test_split.py", TESTS);
    write(".gitignore", "__pycache__/\n");
    git(&dir, &["init", "-q", "-b", "main"]);
    git(&dir, &["add", "."]);
    git(&dir, &["commit", "-qm", "Split amounts"]);
    // What is only here so far goes along: a test, and the script that an agent would think of by itself.
    write("tests/test_names.py", NAMES);
    write("mend.sh", MEND);
    dir
}

const SPLIT: &str = "\
def split(cents, ways):
    \"\"\"So many cents in so many parts that differ by one cent at the most.\"\"\"
    return [cents // ways] * ways
";

const TESTS: &str = "\
import unittest
from money.split import split

class Split(unittest.TestCase):
    def test_nothing_is_lost(self):
        for cents in range(50):
            for ways in range(1, 8):
                parts = split(cents, ways)
                self.assertEqual(sum(parts), cents)
                self.assertLessEqual(max(parts) - min(parts), 1)

    def test_even(self):
        self.assertEqual(split(90, 3), [30, 30, 30])
";

const NAMES: &str = "\
import unittest
import money.split

class Names(unittest.TestCase):
    def test_it_is_documented(self):
        self.assertIn('cents', money.split.split.__doc__)
";

const MEND: &str = "\
set -e
git status --porcelain | sort
if python3 -m unittest -q 2>before.log; then echo 'the tests should have failed'; exit 3; fi
rm before.log
sed -i 's/return .*/return [cents \\/\\/ ways + (n < cents % ways) for n in range(ways)]/' money/split.py
echo 'Parts differ by one cent at the most.' > NOTES
python3 -m unittest -q
git status --porcelain | sort
";

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

    // A workspace goes in, and its patch comes out whatever the exit code; nothing of the VM has to know git.
    let (there, patch) = (lab.scratch().join("there"), lab.scratch().join("work.patch"));
    fs::create_dir(&there).unwrap();
    fs::write(there.join("old"), "old\n").unwrap();
    git(&there, &["init", "-q"]);
    git(&there, &["add", "."]);
    git(&there, &["commit", "-qm", "Old"]);
    let (there, patch) = (there.display().to_string(), patch.display().to_string());
    // What is nobody's work, a pipe, keeps no VM.
    let script = "echo new >> old; echo more > new; mkfifo pipe; exit 3";
    let ran = run(&lab, &["--workspace", &there, "--export", "patch", "-f", &patch, "--", "sh", "-c", script]).await;
    assert_eq!(ran.status.code(), Some(3), "{}", text(&ran.stderr));
    git(Path::new(&there), &["apply", &patch]);
    assert_eq!(fs::read_to_string(Path::new(&there).join("old")).unwrap(), "old\nnew\n");
    assert_eq!(git(Path::new(&there), &["status", "--porcelain"]), "M old\n?? new");
    left_on_another_branch(&lab, &there).await;
    refused(
        &lab,
        &["run", "bb", "--workspace", &there, "--export", "patch", "-f", &patch, "--", "true"],
        "already_exists",
        4,
    )
    .await;
    assert!(vms(&lab).await.is_empty());

    // What is wrong is found out before there is a VM, or ends it.
    for (args, code, exit) in [
        (vec!["run", "nothing-like-it", "--", "true"], "not_found", 3),
        (vec!["run", "bb", "-e", "nonsense", "--", "true"], "invalid_argument", 2),
        (vec!["run", "bb", "--workspace", "/no/such/directory", "--", "true"], "invalid_argument", 2),
        (vec!["run", "bb", "--workspace", "/", "--history", "some", "--", "true"], "invalid_argument", 2),
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

/// What no export takes along keeps the VM, and is named: here as git would leave it, which the image has not.
async fn left_on_another_branch(lab: &Lab, there: &str) {
    let script = "printf '%040d\\n' 7 > .git/refs/heads/side; echo newer >> new";
    let patch = lab.scratch().join("side.patch").display().to_string();
    let more = ["--name", "side", "--workspace", there, "--export", "patch", "-f", &patch, "--", "sh", "-c", script];
    let ran = run(lab, &more).await;
    let said = text(&ran.stderr);
    assert_eq!(ran.status.code(), Some(0), "{said}");
    assert!(said.contains("the VM side is kept") && said.contains("commits on side"), "{said}");
    assert!(fs::read_to_string(&patch).unwrap().contains("+newer"), "what an export does take along is here");
    assert_eq!(vms(lab).await, ["side"]);
    lab.must(&["vm", "rm", "side"]).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_projects_tests_are_mended_in_a_vm_and_the_patch_comes_home() {
    let Some(tools) = std::env::var_os("WARREN_TEST_TOOLS_TAR") else {
        println!("skipped: WARREN_TEST_TOOLS_TAR is not set (deploy/check sets it)");
        return;
    };
    let Some(lab) = lab_or_skip(LabOptions::default()).await else { return };
    let tools = Layer::from_tar(Path::new(&tools)).expect("the tools are a tar archive");
    let Some(layout) = debian_layout(&lab.scratch(), Some(tools)) else { return };
    lab.must(&["image", "pull", &layout.display().to_string(), "--layout", "--name", "debian"]).await;
    let project = project(&lab);
    let here = project.display().to_string();
    let head = git(&project, &["rev-parse", "HEAD"]);
    let job = |more: &[&str], script: &str| {
        let mut args = vec!["run", "debian", "--memory", "384M", "--disk", "1G", "--workspace", &here];
        args.extend(more);
        args.extend(["--", "sh", "-c", script]);
        args.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let warren = async |args: Vec<String>| {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        lab.warren(&args).await
    };

    // The suite fails at first, is mended, and the patch is brought home; git's status is there what it is here.
    let mended = warren(job(&["--export", "apply", "--history", "1"], "sh mend.sh")).await;
    assert_eq!(mended.status.code(), Some(0), "{}\n{}", text(&mended.stderr), lab.tails());
    let status =
        "?? mend.sh\n?? tests/test_names.py\n M money/split.py\n?? NOTES\n?? mend.sh\n?? tests/test_names.py\n";
    assert_eq!(text(&mended.stdout), status);
    assert_eq!(git(&project, &["rev-parse", "HEAD"]), head);
    assert_eq!(git(&project, &["status", "--porcelain"]), status.lines().skip(2).collect::<Vec<_>>().join("\n").trim());
    let green = Command::new("python3")
        .current_dir(&project)
        .args(["-B", "-m", "unittest", "-q"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(green.status.success(), "{}", text(&green.stderr));
    assert!(vms(&lab).await.is_empty());

    conflicting(&lab, &project, warren(job(&["--name", "stays", "--export", "apply"], AGAIN)), &here).await;
    held_prepare_and_stop(&lab, "stays").await;
    lab.must(&["vm", "rm", "stays"]).await;
    assert_eq!(lab.residue().await, Vec::<String>::new());
}

/// Commits one change, leaves another, and says when.
const AGAIN: &str = "\
set -e
git config user.name Agent; git config user.email agent@example.org
echo 'def double(cents): return 2 * cents' >> money/split.py
git commit -qam 'Doubling'
echo 'Written in the VM.' > NOTES
while ! [ -e /run/go ]; do sleep 0.1; done
exit 6";

/// What was changed here meanwhile is not overwritten: the VM stays with its changes, which come out by another road.
async fn conflicting(lab: &Lab, project: &Path, job: impl Future<Output = Output>, here: &str) {
    let meanwhile = async {
        wait_until("the change in the VM", BOUND, async || {
            let seen = lab.warren(&["exec", "stays", "--", "grep", "-q", "Written", "/workspace/NOTES"]).await;
            seen.status.success().then_some(())
        })
        .await;
        fs::write(project.join("NOTES"), "Written here.\n").unwrap();
        lab.must(&["exec", "stays", "--", "touch", "/run/go"]).await;
    };
    let (ran, ()) = tokio::join!(job, meanwhile);
    let said = text(&ran.stderr);
    assert_eq!(ran.status.code(), Some(6), "the command's own code counts: {said}");
    assert!(said.contains("NOTES") && said.contains("the VM stays is kept"), "{said}");
    assert_eq!(fs::read_to_string(project.join("NOTES")).unwrap(), "Written here.\n");
    let split = project.join("money/split.py");
    assert!(!fs::read_to_string(&split).unwrap().contains("double"), "all or nothing");
    let shown: serde_json::Value =
        serde_json::from_str(&lab.must(&["vm", "show", "stays", "-o", "json"]).await).unwrap();
    assert!(shown["idle_limit"].is_null(), "{shown}");
    lab.must(&["workspace", "export", "stays", "--format", "commits", "--into", here]).await;
    assert_eq!(git(project, &["show", "refs/warren/stays/1:NOTES"]), "Written in the VM.");
    assert!(git(project, &["log", "--format=%s", "refs/warren/stays/1"]).contains("Doubling"));
}

/// A stop does not wait for a prepare whose client says nothing, and ends it.
async fn held_prepare_and_stop(lab: &Lab, vm: &str) {
    let bus = Bus::connect(&BusConfig::new(lab.nats.url(), "test")).await.unwrap();
    let session = SessionId::new();
    let stream = ByteStream::open_within(&bus, session, BOUND).await.unwrap();
    let request = json!({ "vm": vm, "path": "/srv/held", "source": { "upload": { "session": session } } });
    let request: PrepareRequest = serde_json::from_value(request).unwrap();
    let prepare = bus.call::<Prepare>(&request).await.unwrap();
    let look = async || bus.call::<operation::Get>(&OperationRef { id: prepare.id }).await.unwrap();
    wait_until("the transfer", BOUND, async || {
        let now = look().await;
        assert!(!now.state.is_final(), "{now:?}");
        (now.steps.iter().any(|step| step.name == "begin")).then_some(())
    })
    .await;
    lab.must(&["vm", "stop", vm]).await;
    let ended: Operation = wait_until("the prepare's end", BOUND, async || {
        let request = WaitRequest { id: prepare.id, timeout_ms: 5000, changed_from: None };
        let options = CallOptions { timeout: Some(operation::Wait::TIMEOUT), ..CallOptions::default() };
        let now = bus.call_with::<operation::Wait>(&request, options).await.ok()?;
        now.state.is_final().then_some(now)
    })
    .await;
    let error = ended.error.unwrap();
    assert_eq!((ended.state, error.code), (OperationState::Failed, ErrorCode::FailedPrecondition), "{error:?}");
    drop(stream);
}
