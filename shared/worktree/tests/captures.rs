//! Stories of captures: what git shows in a worktree it shows in its copy, and what cannot be copied is refused in words.

mod common;

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use common::{Story, files, git, init, status, write};
use contract::{ApiError, ErrorCode, worktree::History};
use worktree::{Options, capture};

/// A repository in which everything that git knows of is the case.
fn busy() -> Story {
    let story = Story::new();
    for name in
        ["kept", "staged", "edited", "both", "gone", "removed", "mode", "becomes-link", "becomes-dir", "dir/deep"]
    {
        story.write(name, &format!("{name}\n"));
    }
    symlink("kept", story.repo.join("link")).unwrap();
    story.write(".gitignore", "*.log\nbuild/\n");
    story.write(" a name\nwith \"quotes\" and näme", "odd\n");
    story.write(&"x".repeat(255), "long\n");
    story.commit("one");
    story.git(&["tag", "-a", "v1", "-m", "first"]);
    story.git(&["tag", "light"]);
    story.write("kept-too", "second\n");
    story.commit("two");
    story.write("staged", "staged now\n");
    story.write("both", "staged\n");
    story.git(&["add", "staged", "both"]);
    story.git(&["rm", "-q", "removed"]);
    story.write("both", "and edited\n");
    story.write("edited", "edited more\n");
    fs::remove_file(story.repo.join("gone")).unwrap();
    fs::set_permissions(story.repo.join("mode"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::remove_file(story.repo.join("becomes-link")).unwrap();
    symlink("dir", story.repo.join("becomes-link")).unwrap();
    fs::remove_file(story.repo.join("becomes-dir")).unwrap();
    story.write("becomes-dir/file", "x");
    fs::remove_file(story.repo.join("link")).unwrap();
    symlink("edited", story.repo.join("link")).unwrap();
    story.write("new/untracked", "u\n");
    story.write("later", "later\n");
    story.git(&["add", "-N", "later"]);
    story.write("x.log", "ignored\n");
    story.write("build/out", "ignored\n");
    story
}

#[test]
fn git_shows_the_same_in_the_copy() {
    let story = busy();
    story.git(&["update-ref", "refs/remotes/origin/main", "HEAD~1"]);
    story.git(&["remote", "add", "origin", "https://user:secret@host/x.git"]);
    story.git(&["branch", "-q", "--set-upstream-to=origin/main"]);
    let captured = story.capture();
    assert_eq!(captured.warnings, Vec::<String>::new());
    assert_eq!(captured.about.branch.as_deref(), Some("main"));
    assert_eq!(captured.about.upstream.as_deref(), Some("origin/main"));
    let guest = story.place(&captured, "guest");
    assert_eq!(status(&guest), status(&story.repo));
    assert!(status(&guest).contains("# branch.ab +1 -0"));
    let mut here = files(&story.repo);
    here.retain(|path, _| path != Path::new("x.log") && !path.starts_with("build"));
    assert_eq!(files(&guest), here);
    assert_eq!(git(&guest, &["describe", "HEAD~1"]), "v1");
    assert_eq!(git(&guest, &["log", "--format=%H"]), story.git(&["log", "--format=%H"]));
    git(&guest, &["fsck", "--strict"]);
    let config = fs::read_to_string(guest.join(".git/config")).unwrap();
    assert!(config.contains("https://host/x.git") && !config.contains("secret"), "{config}");
    assert!(!guest.join(".git/hooks").exists() && !guest.join(".git/logs").exists());
    // A commit there takes what was staged and no more.
    git(&guest, &["commit", "-qm", "there"]);
    assert_eq!(git(&guest, &["show", "HEAD:both"]), "staged");
    // A repeat is the same to the byte, and asks no file's content.
    let again = story.capture();
    assert!(
        again
            .tree
            .entries()
            .iter()
            .zip(captured.tree.entries())
            .all(|(a, b)| (&a.path, &a.node, a.mtime) == (&b.path, &b.node, b.mtime))
    );
}

#[test]
fn less_history_ignored_files_and_heads_own_files_go_along_as_asked() {
    let mut story = busy();
    for text in ["three", "four"] {
        story.git(&["commit", "-q", "--allow-empty", "-m", text]);
    }
    story.options.history = History::Depth(2);
    let shallow = story.place(&story.capture(), "shallow");
    assert_eq!(git(&shallow, &["log", "--format=%s"]), "four\nthree");
    assert_eq!(status(&shallow), status(&story.repo));
    git(&shallow, &["fsck"]);
    story.options.history = History::None;
    story.options.include_ignored = vec!["*.log".into()];
    let bare = story.place(&story.capture(), "bare");
    assert!(!bare.join(".git").exists() && bare.join("x.log").exists() && !bare.join("build").exists());
    story.options =
        Options { dirty: false, history: History::Full, include_ignored: Vec::new(), ..story.options.clone() };
    let captured = story.capture();
    let clean = story.place(&captured, "clean");
    assert_eq!(git(&clean, &["status", "--porcelain=v2"]), "");
    assert_eq!(git(&clean, &["rev-parse", "HEAD"]), story.git(&["rev-parse", "HEAD"]));
    assert_eq!(fs::read_to_string(clean.join("edited")).unwrap(), "edited\n");
    assert!(clean.join("gone").exists() && !clean.join("new").exists());
    // A plain part of the repository is the repository; what it ignores is a directory of its own.
    let part = capture(&story.repo.join("dir"), &story.options).unwrap();
    assert!(part.tree.get(b"dir/deep").is_some());
    let plain = capture(&story.repo.join("build"), &story.options).unwrap();
    assert!(plain.repo.is_none() && plain.tree.entries().len() == 1);
}

#[test]
fn repositories_of_every_shape_are_taken() {
    let story = Story::new();
    story.write("first", "1\n");
    story.git(&["add", "first"]);
    let unborn = story.place(&story.capture(), "unborn");
    assert_eq!(status(&unborn), status(&story.repo));
    story.commit("one");
    story.write("a/b", "2\n");
    story.write("c/d", "3\n");
    story.commit("two");
    // A worktree beside it, detached.
    let linked = story.dir.path().join("linked");
    story.git(&["worktree", "add", "-q", "--detach", linked.to_str().unwrap(), "HEAD~1"]);
    write(&linked, "only-here", "x");
    let captured = capture(&linked, &story.options).unwrap();
    assert_eq!(captured.about.branch, None);
    assert_eq!(status(&story.place(&captured, "linked-guest")), status(&linked));
    // A sparse checkout with a sparse, split index.
    story.git(&["sparse-checkout", "set", "--cone", "--sparse-index", "a"]);
    story.git(&["update-index", "--untracked-cache"]);
    assert!(!story.repo.join("c").exists());
    let sparse = story.place(&story.capture(), "sparse");
    assert_eq!(status(&sparse), status(&story.repo));
    git(&sparse, &["sparse-checkout", "disable"]);
    assert!(sparse.join("c/d").exists());
    story.git(&["sparse-checkout", "disable"]);
    story.git(&["update-index", "--split-index"]);
    story.write("a/b", "changed\n");
    assert_eq!(status(&story.place(&story.capture(), "split")), status(&story.repo));
    // A shallow clone.
    let shallow = story.dir.path().join("shallow");
    story.git(&["clone", "-q", "--depth=1", &format!("file://{}", story.repo.display()), shallow.to_str().unwrap()]);
    let guest = story.place(&capture(&shallow, &story.options).unwrap(), "shallow-guest");
    assert_eq!(status(&guest), status(&shallow));
    git(&guest, &["fsck"]);
    // No repository at all, with one within.
    let plain = story.dir.path().join("plain");
    write(&plain, "file", "x");
    fs::create_dir(plain.join("inner")).unwrap();
    init(&plain.join("inner"));
    let captured = capture(&plain, &story.options).unwrap();
    assert!(captured.repo.is_none() && captured.about.history.is_none());
    assert_eq!(captured.warnings.len(), 1, "{:?}", captured.warnings);
    assert_eq!(files(&story.place(&captured, "plain-guest")), files(&plain));
}

#[test]
fn submodules_come_with_their_own_git_directories() {
    let story = Story::new();
    for name in ["inner", "outer"] {
        let dir = story.dir.path().join(name);
        fs::create_dir(&dir).unwrap();
        init(&dir);
        write(&dir, "file", name);
        git(&dir, &["add", "-A"]);
        git(&dir, &["commit", "-qm", name]);
    }
    let add = |dir: &Path, from: &str, at: &str| {
        let url = story.dir.path().join(from).display().to_string();
        git(dir, &["-c", "protocol.file.allow=always", "submodule", "--quiet", "add", &url, at]);
    };
    add(&story.dir.path().join("outer"), "inner", "deep");
    git(&story.dir.path().join("outer"), &["commit", "-qm", "deep"]);
    story.write("top", "top\n");
    add(&story.repo, "outer", "sub/mod");
    git(&story.repo, &["-c", "protocol.file.allow=always", "submodule", "--quiet", "update", "--init", "--recursive"]);
    story.commit("modules");
    story.write("sub/mod/file", "changed\n");
    story.write("sub/mod/deep/new", "new\n");
    let captured = story.capture();
    let guest = story.place(&captured, "guest");
    assert_eq!(status(&guest), status(&story.repo));
    assert_eq!(status(&guest.join("sub/mod")), status(&story.repo.join("sub/mod")));
    assert_eq!(status(&guest.join("sub/mod/deep")), status(&story.repo.join("sub/mod/deep")));
    assert_eq!(files(&guest), files(&story.repo));
    git(&guest.join("sub/mod"), &["commit", "-qam", "in the guest"]);
}

#[test]
fn what_cannot_be_copied_is_refused_in_words() {
    let story = Story::new();
    story.write("file", "one\n");
    story.commit("one");
    story.git(&["checkout", "-qb", "other"]);
    story.write("file", "two\n");
    story.commit("two");
    story.git(&["checkout", "-q", "main"]);
    story.write("file", "three\n");
    story.commit("three");
    let refused = |story: &Story| ApiError::from(capture(&story.repo, &story.options).unwrap_err());
    let merging =
        std::process::Command::new("git").current_dir(&story.repo).args(["merge", "-q", "other"]).output().unwrap();
    assert!(!merging.status.success());
    let error = refused(&story);
    assert_eq!(error.code, ErrorCode::FailedPrecondition);
    assert!(
        error.message.contains("a merge is in progress") && error.hint.unwrap().contains("--abort"),
        "{}",
        error.message
    );
    // The same conflict without a merge, as a stash leaves it.
    fs::remove_file(story.repo.join(".git/MERGE_HEAD")).unwrap();
    let error = refused(&story);
    assert!(error.message.contains("unmerged paths: file"), "{}", error.message);
    // HEAD's files have no conflicts.
    let clean = Options { dirty: false, ..story.options.clone() };
    assert!(capture(&story.repo, &clean).unwrap().tree.get(b"file").is_some());
    let bare = story.dir.path().join("bare");
    git(story.dir.path(), &["init", "-q", "--bare", "bare"]);
    assert!(capture(&bare, &story.options).unwrap_err().to_string().contains("bare repository"));
    git(story.dir.path(), &["init", "-q", "--object-format=sha256", "sha256"]);
    let error = capture(&story.dir.path().join("sha256"), &story.options).unwrap_err();
    assert!(error.to_string().contains("sha256 object names"), "{error}");
    assert!(
        capture(&story.dir.path().join("none"), &story.options).unwrap_err().to_string().contains("cannot be read")
    );
}

#[test]
fn packs_grow_with_history_and_forget_what_was_rewritten() {
    let story = Story::new();
    story.write("file", "one\n");
    story.commit("one");
    let packs = |captured: &worktree::Captured| {
        let packs = captured.tree.entries().iter().map(|it| it.path.to_string()).filter(|path| path.ends_with(".pack"));
        packs.collect::<Vec<_>>()
    };
    let first = packs(&story.capture());
    story.write("file", "two\n");
    story.commit("two");
    let second = story.capture();
    assert_eq!(packs(&second).len(), 2);
    assert!(packs(&second).contains(&first[0]));
    git(&story.place(&second, "grown"), &["fsck"]);
    story.write("secret", "s3cret\n");
    story.commit("secret");
    assert_eq!(packs(&story.capture()).len(), 3);
    let secret = story.git(&["rev-parse", "HEAD:secret"]);
    story.git(&["reset", "-q", "--hard", "HEAD~1"]);
    let rewritten = story.capture();
    assert_eq!(packs(&rewritten).len(), 1);
    let guest = story.place(&rewritten, "rewritten");
    let kept =
        std::process::Command::new("git").current_dir(&guest).args(["cat-file", "-e", &secret]).output().unwrap();
    assert!(!kept.status.success(), "what was rewritten does not go along");
}
