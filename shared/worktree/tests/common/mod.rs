//! Repositories for stories, and a guest that is a directory.
#![allow(dead_code, reason = "each test binary uses some of it")]

pub mod away;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, UNIX_EPOCH},
};

use contract::worktree::{Change, ChangeList, History, Node};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use tempfile::TempDir;
use tree::Tree;
use worktree::{Captured, Options, capture};

/// Runs git as a user would.
pub fn git(dir: &Path, args: &[&str]) -> String {
    let output = Command::new("git")
        .current_dir(dir)
        .args(args)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_AUTHOR_DATE", "1700000000 +0000")
        .env("GIT_COMMITTER_DATE", "1700000000 +0000")
        .output()
        .unwrap();
    let said = [&output.stdout[..], &output.stderr].concat();
    assert!(output.status.success(), "git {args:?} in {}: {}", dir.display(), String::from_utf8_lossy(&said));
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// Has a directory in memory where that can be, as thousands of small files take a slow disk minutes; for this thread and those it starts only,
/// so that nothing stays mounted.
fn in_memory(dir: &Path) -> nix::Result<()> {
    let none: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), none)
}

impl Drop for Story {
    fn drop(&mut self) {
        if let Err(why) = umount2(self.dir.path(), MntFlags::MNT_DETACH) {
            println!("it is on disk: {why}");
        }
    }
}

/// A story's directories.
pub struct Story {
    pub dir: TempDir,
    pub repo: PathBuf,
    pub options: Options,
}

impl Story {
    /// With an empty repository.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        if let Err(why) = in_memory(dir.path()) {
            println!("on disk: {why}");
        }
        let repo = dir.path().join("repo");
        fs::create_dir(&repo).unwrap();
        init(&repo);
        let cache = dir.path().join("cache");
        let options = Options { history: History::Full, include_ignored: Vec::new(), dirty: true, cache };
        Self { dir, repo, options }
    }

    pub fn capture(&self) -> Captured {
        capture(&self.repo, &self.options).unwrap()
    }

    /// The tree as files of a new directory.
    pub fn place(&self, captured: &Captured, name: &str) -> PathBuf {
        let guest = self.dir.path().join(name);
        fs::create_dir(&guest).unwrap();
        place(&captured.tree, &guest);
        guest
    }

    pub fn write(&self, name: &str, text: &str) {
        write(&self.repo, name, text);
    }

    pub fn git(&self, args: &[&str]) -> String {
        git(&self.repo, args)
    }

    pub fn commit(&self, message: &str) {
        self.git(&["add", "-A"]);
        self.git(&["commit", "-qm", message]);
    }
}

pub fn init(dir: &Path) {
    git(dir, &["init", "-q", "-b", "main"]);
    git(dir, &["config", "user.name", "A User"]);
    git(dir, &["config", "user.email", "user@example.org"]);
}

pub fn write(dir: &Path, name: &str, text: &str) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// Puts a tree into a directory as a guest would.
pub fn place(tree: &Tree, dir: &Path) {
    for entry in tree.entries() {
        let path = dir.join(entry.path.as_path());
        match &entry.node {
            Node::Directory { .. } => fs::create_dir(&path).unwrap(),
            Node::Symlink { target } => symlink(target.as_path(), &path).unwrap(),
            Node::File { mode, size, digest } => {
                let from = File::open(entry.from.as_ref().unwrap()).unwrap();
                assert_eq!(tree::blob_id(from, *size).unwrap(), *digest, "{}", entry.path);
                fs::copy(entry.from.as_ref().unwrap(), &path).unwrap();
                let file = File::options().write(true).open(&path).or_else(|_| {
                    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
                    File::options().write(true).open(&path)
                });
                let since = Duration::new(entry.mtime.secs.cast_unsigned(), entry.mtime.nanos);
                file.unwrap().set_modified(UNIX_EPOCH + since).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
            }
        }
    }
    for entry in tree.entries().iter().rev() {
        if let Node::Directory { mode } = entry.node {
            fs::set_permissions(dir.join(entry.path.as_path()), fs::Permissions::from_mode(mode)).unwrap();
        }
    }
}

/// What git says of a worktree, with branch and submodules.
pub fn status(dir: &Path) -> String {
    git(dir, &["--no-optional-locks", "status", "--porcelain=v2", "--branch", "--untracked-files=all"])
}

/// All files below a directory but `.git`: what they are and hold.
pub fn files(dir: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![dir.to_owned()];
    while let Some(at) = waiting.pop() {
        for entry in fs::read_dir(&at).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            if path.file_name().unwrap() == ".git" {
                continue;
            }
            if metadata.is_dir() {
                waiting.push(path);
            } else {
                let kind = if metadata.is_symlink() { 0 } else { metadata.mode() & 0o100 };
                let content = if metadata.is_symlink() {
                    fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
                } else {
                    fs::read(&path).unwrap()
                };
                found.insert(path.strip_prefix(dir).unwrap().to_owned(), (kind, content));
            }
        }
    }
    found
}

/// What a guest-agent would export: the differences between a tree and a directory, with the files in `quarantine`.
pub fn export(before: &Tree, guest: &Path, quarantine: &Path) -> ChangeList {
    let is_git = |path: &[u8]| path.split(|byte| *byte == b'/').any(|name| name == b".git");
    let now = tree::walk(guest, |path, _| !is_git(&path.0)).unwrap().tree;
    let mut changes = Vec::new();
    for entry in now.entries() {
        let known = before.get(&entry.path.0).map(|it| it.node.clone());
        if known.as_ref() == Some(&entry.node) {
            continue;
        }
        if let Node::File { .. } = entry.node {
            let target = quarantine.join("tree").join(entry.path.as_path());
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            fs::copy(entry.from.as_ref().unwrap(), target).unwrap();
        }
        changes.push(Change { path: entry.path.clone(), before: known, after: Some(entry.node.clone()) });
    }
    for entry in before.entries().iter().filter(|it| !is_git(&it.path.0) && now.get(&it.path.0).is_none()) {
        changes.push(Change { path: entry.path.clone(), before: Some(entry.node.clone()), after: None });
    }
    changes.sort_by(|a, b| a.path.cmp(&b.path));
    let head = Command::new("git").args(["rev-parse", "-q", "--verify", "HEAD"]).current_dir(guest).output().unwrap();
    let head = head.status.success().then(|| String::from_utf8_lossy(&head.stdout).trim().to_owned());
    ChangeList { changes, head, ..ChangeList::default() }
}
