//! A worktree's day in a VM: it goes in as it is, is worked on there, and what changed comes back, without git in the VM.

mod common;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use common::{busybox_layout, lab_or_skip, refused};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use testkit::lab::{Lab, LabOptions};

const BOUND: Duration = Duration::from_secs(60);

fn git(dir: &Path, args: &[&str]) -> String {
    let output = Command::new("git")
        .current_dir(dir)
        .args(["-c", "safe.directory=*", "--no-optional-locks"])
        .args(args)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .output()
        .unwrap();
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

fn status(dir: &Path) -> String {
    git(dir, &["status", "--porcelain=v2", "--branch", "--untracked-files=all"])
}

/// All files below a directory but git's and what it ignores.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![dir.to_owned()];
    while let Some(at) = waiting.pop() {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.file_name().unwrap() == ".git" || path.extension().is_some_and(|ending| ending == "o") {
                continue;
            }
            if path.is_symlink() {
                let target = fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes();
                found.insert(path.strip_prefix(dir).unwrap().to_owned(), target);
            } else if path.is_dir() {
                waiting.push(path);
            } else {
                found.insert(path.strip_prefix(dir).unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

async fn guest(lab: &Lab, command: &str) -> String {
    lab.must(&["exec", "web", "--", "sh", "-ec", command]).await.trim().to_owned()
}

/// The workspace as it lies in the VM, copied to a fresh directory here.
async fn copied(lab: &Lab, name: &str) -> PathBuf {
    let to = lab.scratch().join(name);
    lab.must(&["cp", "web:/workspace/.", &to.display().to_string()]).await;
    to
}

/// Runs a command in the repository, as its user would.
fn here(lab: &Lab, repo: &Path, args: &[&str]) -> std::process::Output {
    lab.outside(&lab.binary("warren")).args(args).current_dir(repo).output().unwrap()
}

fn repository(lab: &Lab) -> PathBuf {
    let repo = lab.scratch().join("repo");
    fs::create_dir_all(repo.join("src")).unwrap();
    git(&repo, &["init", "-q", "-b", "main"]);
    git(&repo, &["config", "user.name", "A User"]);
    git(&repo, &["config", "user.email", "user@example.org"]);
    fs::write(repo.join("src/a text\nwith a näme"), "one\n2\n3\n4\n5\n6\n").unwrap();
    fs::write(repo.join("run"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(repo.join("run"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(repo.join("large"), vec![7; 3_000_000]).unwrap();
    fs::write(repo.join(".gitignore"), "*.o\n").unwrap();
    symlink("run", repo.join("link")).unwrap();
    git(&repo, &["add", "-A"]);
    git(&repo, &["commit", "-qm", "one"]);
    fs::write(repo.join("staged"), "staged\n").unwrap();
    git(&repo, &["add", "staged"]);
    fs::write(repo.join("untracked"), "untracked\n").unwrap();
    fs::write(repo.join("mine.o"), "ignored\n").unwrap();
    fs::remove_file(repo.join("link")).unwrap();
    repo
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worktree_goes_in_is_worked_on_and_comes_back() {
    let Some(lab) = lab_or_skip(LabOptions::default()).await else { return };
    let layout = busybox_layout(&lab.scratch());
    lab.must(&["image", "pull", &layout, "--layout", "--name", "bb"]).await;
    lab.must(&["vm", "create", "web", "--image", "bb", "--memory", "192M", "--disk", "256M"]).await;
    let repo = repository(&lab);
    in_and_out(&lab, &repo).await;
    unexported(&lab, &repo).await;
    commits(&lab, &repo).await;
    others(&lab, &repo).await;
    synced(&lab, &repo).await;
    lab.must(&["workspace", "rm", "web", "--path", "/workspace"]).await;
    assert_eq!(git(&repo, &["for-each-ref", "refs/warren"]), "");
    assert_eq!(guest(&lab, "ls /workspace 2>/dev/null || echo gone").await, "gone");
    lab.must(&["vm", "rm", "web"]).await;
    assert_eq!(lab.residue().await, Vec::<String>::new());
}

async fn in_and_out(lab: &Lab, repo: &Path) {
    let path = repo.display().to_string();
    lab.must(&["workspace", "prepare", "web", &path, "--owner", "1000:100"]).await;
    let copy = copied(lab, "first").await;
    assert_eq!(status(&copy), status(repo));
    assert_eq!(files(&copy), files(repo));
    assert_eq!(guest(lab, "stat -c '%u:%g' /workspace/run").await, "1000:100");
    let again: Value = serde_json::from_str(
        &lab.must(&["workspace", "prepare", "web", &path, "--owner", "1000:100", "-o", "json"]).await,
    )
    .unwrap();
    let summary = &again["result"]["summary"];
    assert_eq!((&summary["unchanged"], &summary["moved_files"]), (&true.into(), &0.into()), "{again}");

    guest(lab, "cd /workspace; sed -i s/one/ONE/ src/*; rm untracked; echo new > 'src/new one'; chmod -x run; echo x > theirs.o").await;
    let names = lab.must(&["workspace", "diff", "web", "--name-only"]).await;
    assert_eq!(names, "M run\nM src/a text\\nwith a näme\nA src/new one\nD untracked\n");
    assert!(lab.must(&["workspace", "diff", "web"]).await.contains("+ONE"));
    assert!(lab.must(&["workspace", "diff", "web", "--stat"]).await.contains("4 files changed"));
    let patch = lab.scratch().join("x.patch").display().to_string();
    lab.must(&["workspace", "export", "web", "--file", &patch]).await;
    git(repo, &["apply", "--check", &patch]);
    refused(lab, &["workspace", "export", "web", "--file", &patch], "already_exists", 4).await;
    let archive = lab.scratch().join("x.tar");
    lab.must(&["workspace", "export", "web", "--format", "tar", "--file", &archive.display().to_string()]).await;
    let listed = Command::new("tar").arg("tf").arg(&archive).output().unwrap();
    assert!(String::from_utf8_lossy(&listed.stdout).contains("src/new one"));

    // Another line was changed here, and both are kept; the same line, and nothing is.
    let text = repo.join("src/a text\nwith a näme");
    fs::write(&text, "mine\n2\n3\n4\n5\n6\n").unwrap();
    let before = files(repo);
    let error = refused(lab, &["workspace", "export", "web", "--apply"], "aborted", 7).await;
    assert!(error["error"]["message"].as_str().unwrap().contains("it was changed here too"), "{error}");
    assert_eq!(files(repo), before);
    fs::write(&text, "one\n2\n3\n4\n5\nsix\n").unwrap();
    lab.must(&["workspace", "export", "web", "--apply"]).await;
    assert_eq!(fs::read_to_string(&text).unwrap(), "ONE\n2\n3\n4\n5\nsix\n");
    assert!(!repo.join("untracked").exists() && repo.join("src/new one").exists());
    assert_eq!(fs::metadata(repo.join("run")).unwrap().permissions().mode() & 0o100, 0);
}

/// What was never exported is never lost unasked; what git ignores there stays.
async fn unexported(lab: &Lab, repo: &Path) {
    let path = repo.display().to_string();
    lab.must(&["workspace", "prepare", "web", &path, "--owner", "1000:100"]).await;
    assert_eq!(guest(lab, "cat /workspace/theirs.o").await, "x");
    guest(lab, "echo precious > /workspace/only-there").await;
    let error = refused(lab, &["workspace", "prepare", "web", &path], "failed_precondition", 5).await;
    assert!(error["error"]["message"].as_str().unwrap().contains("never exported"), "{error}");
    lab.must(&["workspace", "prepare", "web", &path, "--force", "--clean"]).await;
    assert_eq!(guest(lab, "cd /workspace; ls -d only-there theirs.o 2>/dev/null | wc -l").await, "0");
    let copy = copied(lab, "second").await;
    assert_eq!((status(&copy), files(&copy)), (status(repo), files(repo)));
}

/// Commits made in the VM; its image has no git, so a copy of the workspace makes them and goes back in.
async fn commits(lab: &Lab, repo: &Path) {
    let copy = copied(lab, "third").await;
    git(&copy, &["commit", "-qm", "there"]);
    let objects = format!("{}/.", copy.join(".git").display());
    lab.must(&["cp", &objects, "web:/workspace/.git"]).await;
    guest(lab, "echo more > /workspace/more").await;
    let output = here(lab, repo, &["workspace", "export", "web", "--format", "commits", "-o", "json"]);
    let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    assert_eq!(
        (&said["reference"], &said["commits"], &said["uncommitted"]),
        (&"refs/warren/web/1".into(), &1.into(), &true.into())
    );
    let log = git(repo, &["log", "--format=%s", "refs/warren/web/1"]);
    assert_eq!(log, "Uncommitted changes in the VM\nthere\none");
    assert_eq!(git(repo, &["show", "refs/warren/web/1:more"]), "more");
}

/// Other sources, and what is told of all.
async fn others(lab: &Lab, repo: &Path) {
    let archive = Command::new("tar").args(["cf", "-", "-C"]).arg(repo.join("src")).arg(".").output().unwrap().stdout;
    let mut child = lab
        .outside(&lab.binary("warren"))
        .args(["workspace", "prepare", "web", "-", "--path", "/srv/tar"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), &archive).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(guest(lab, "cat '/srv/tar/new one'").await, "new");
    refused(lab, &["workspace", "prepare", "web", "host:/root"], "permission_denied", 8).await;
    refused(lab, &["workspace", "prepare", "web", "/no/such"], "failed_precondition", 5).await;
    refused(lab, &["workspace", "prepare", "web", "--history", "all"], "invalid_argument", 2).await;
    refused(lab, &["workspace", "prepare", "none", &repo.display().to_string()], "not_found", 3).await;
    refused(lab, &["workspace", "show", "web"], "invalid_argument", 2).await;
    let listed: Value = serde_json::from_str(&lab.must(&["workspace", "ls", "-o", "json"]).await).unwrap();
    assert_eq!(listed["workspaces"].as_array().unwrap().len(), 2, "{listed}");
    let head = git(repo, &["rev-parse", "HEAD"]);
    assert!(lab.must(&["workspace", "show", "web", "--path", "/workspace"]).await.contains(&head));
    let log = lab.must(&["workspace", "log", "web"]).await;
    assert!(log.contains("prepare") && log.contains("export") && log.contains(&head[..12]), "{log}");
    // Where nobody knows what was sent, the archive of files remains.
    guest(lab, "echo changed > '/srv/tar/new one'").await;
    lab.must(&[
        "workspace",
        "export",
        "web",
        "--path",
        "/srv/tar",
        "--file",
        &lab.scratch().join("y.patch").display().to_string(),
    ])
    .await;
    assert!(fs::read_to_string(lab.scratch().join("y.patch")).unwrap().contains("+changed"));
    lab.must(&["workspace", "rm", "web", "--path", "/srv/tar", "--keep-files"]).await;
    assert_eq!(guest(lab, "cat '/srv/tar/new one'").await, "changed");
}

async fn synced(lab: &Lab, repo: &Path) {
    let path = repo.display().to_string();
    let args = ["workspace", "sync", "web", &path, "--watch", "--force"];
    let mut sync = lab.outside(&lab.binary("warren")).args(args).stdout(Stdio::null()).spawn().unwrap();
    let until = async |wanted: &str| {
        let began = Instant::now();
        while guest(lab, "cat /workspace/synced 2>/dev/null || true").await != wanted {
            assert!(began.elapsed() < BOUND, "{wanted} does not arrive");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    fs::write(repo.join("synced"), "first").unwrap();
    until("first").await;
    fs::write(repo.join("synced"), "second").unwrap();
    until("second").await;
    kill(Pid::from_raw(sync.id().cast_signed()), Signal::SIGINT).unwrap();
    assert_eq!(sync.wait().unwrap().code(), Some(130));
    guest(lab, "echo third > /workspace/synced; rm /workspace/staged").await;
    lab.must(&["workspace", "sync", "web", "--from-vm"]).await;
    assert_eq!(fs::read_to_string(repo.join("synced")).unwrap(), "third\n");
    assert!(!repo.join("staged").exists());
    // What was taken is its base now: nothing is left to export.
    assert_eq!(lab.must(&["workspace", "diff", "web", "--name-only"]).await, "");
    watched_from_the_vm(lab, repo).await;
}

/// The VM is looked at again and again, and an operation is made only where something changed.
async fn watched_from_the_vm(lab: &Lab, repo: &Path) {
    let exports = async || {
        let log: Value = serde_json::from_str(&lab.must(&["workspace", "log", "web", "-o", "json"]).await).unwrap();
        let all = log["operations"].as_array().unwrap().iter().filter(|one| one["kind"] == "workspace.export");
        all.map(|one| one["state"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let before = exports().await.len();
    let mut sync = lab.outside(&lab.binary("warren"));
    sync.args(["workspace", "sync", "web", "--from-vm", "--watch", "--interval", "1s"]).stdout(Stdio::null());
    let mut sync = sync.stderr(Stdio::null()).spawn().unwrap();
    for wanted in ["fourth\n", "fifth\n"] {
        guest(lab, &format!("printf '{}' > /new; mv /new /workspace/synced", wanted.replace('\n', "\\n"))).await;
        testkit::wait_until("the change", BOUND, async || {
            (fs::read_to_string(repo.join("synced")).unwrap() == wanted).then_some(())
        })
        .await;
        // It has changes no more once the VM has noted that they were taken.
        testkit::wait_until("the export's end", BOUND, async || {
            exports().await.iter().all(|state| state != "running" && state != "queued").then_some(())
        })
        .await;
    }
    kill(Pid::from_raw(sync.id().cast_signed()), Signal::SIGINT).unwrap();
    assert_eq!(sync.wait().unwrap().code(), Some(130));
    assert_eq!(exports().await.len() - before, 2);
}
