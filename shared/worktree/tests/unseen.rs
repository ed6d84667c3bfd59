//! Stories of what git does not show, which no commit takes up; and of what is far more than it looks like.

mod common;

use std::{fs, path::Path};

use common::{Story, away::Away, git, write};
use contract::worktree::History;
use worktree::{Checkout, Export, Remote, WorktreeError, import_commits};

fn names(away: &Away) -> String {
    away.story.git(&["ls-tree", "-r", "--name-only", "refs/warren/web/1"])
}

#[test]
fn a_sparse_checkout_loses_nothing_outside_of_its_cone() {
    let story = Story::new();
    story.write("a/b", "1\n");
    story.write("c/d", "2\n");
    story.commit("one");
    story.git(&["sparse-checkout", "set", "--cone", "a"]);
    let mut away = Away::new(story);
    write(&away.guest, "a/new", "new there\n");
    let imported = away.import().unwrap().unwrap();
    assert!(imported.uncommitted && imported.commits == 0, "{imported:?}");
    assert_eq!(names(&away), "a/b\na/new\nc/d");
    // Nor what came to be out there, in the VM.
    away.references.remove(&away.git, true).unwrap();
    let guest = away.guest.clone();
    write(&guest, "c/more", "more\n");
    git(&guest, &["add", "--sparse", "c/more"]);
    git(&guest, &["commit", "-qm", "there"]);
    git(&guest, &["sparse-checkout", "reapply"]);
    assert!(!guest.join("c").exists());
    away.import().unwrap().unwrap();
    assert_eq!(names(&away), "a/b\na/new\nc/d\nc/more");
    assert_eq!(away.story.git(&["show", "refs/warren/web/1:c/d"]), "2");
}

#[test]
fn ignored_files_that_go_along_are_in_no_commit() {
    let mut story = Story::new();
    story.options.include_ignored = vec![".env".into(), "*.txt".into()];
    story.write(".gitignore", ".env\n");
    story.write("file", "one\n");
    story.commit("one");
    story.write(".env", "TOKEN=1\n");
    story.write("untracked.txt", "one\n");
    let mut away = Away::new(story);
    assert!(!away.story.git(&["ls-tree", "-r", "--name-only", &away.base.dirty]).contains(".env"));
    write(&away.guest, "file", "two\n");
    write(&away.guest, ".env", "TOKEN=2\n");
    away.import().unwrap().unwrap();
    assert_eq!(names(&away), ".gitignore\nfile\nuntracked.txt");
    assert_eq!(away.story.git(&["log", "--all", "--format=%s", "refs/warren/web/1", "--", ".env"]).lines().count(), 2);
    // It is a change nevertheless, of which the user may have all.
    away.apply().unwrap();
    assert_eq!(fs::read_to_string(away.story.repo.join(".env")).unwrap(), "TOKEN=2\n");
}

/// Makes a commit whose tree holds a file `names` times in each of so many levels of directories.
fn bomb(dir: &Path, blob: &str, names: usize, levels: usize) -> String {
    let mut inner = format!("100644 blob {blob}");
    for _ in 0..levels {
        let list: String = (0..names).map(|name| format!("{inner}\t{name:03}\n")).collect();
        fs::write(dir.join(".git/list"), list).unwrap();
        let tree =
            std::process::Command::new("sh").current_dir(dir).args(["-c", "git mktree < .git/list"]).output().unwrap();
        inner = format!("040000 tree {}", String::from_utf8(tree.stdout).unwrap().trim());
    }
    git(dir, &["commit-tree", "-m", "bomb", inner.rsplit(' ').next().unwrap()])
}

#[test]
fn a_tree_without_an_end_is_refused_and_leaves_nothing() {
    let story = Story::new();
    story.write("file", "one\n");
    story.commit("one");
    let mut away = Away::new(story);
    let blob = git(&away.guest, &["hash-object", "-w", "file"]);
    // Ten objects, ten thousand million files.
    let commit = bomb(&away.guest, &blob, 10, 10);
    git(&away.guest, &["update-ref", "HEAD", &commit]);
    let error = away.import().unwrap_err();
    assert!(matches!(&error, WorktreeError::Hostile(why) if why.contains("more than")), "{error}");
    assert!(!away.story.git(&["for-each-ref"]).contains("refs/warren/web/1"));

    // A pack that says it has a hundred million objects has no memory taken for them.
    let (changes, quarantine, taken) = away.taken();
    let header = [&b"PACK\0\0\0\x02"[..], &100_000_000u32.to_be_bytes(), &[0; 100]].concat();
    let packs = quarantine.join("git/objects/pack");
    fs::create_dir_all(&packs).unwrap();
    fs::write(packs.join("pack-1234567890123456789012345678901234567890.pack"), header).unwrap();
    let export = Export { changes: &changes, quarantine: &quarantine };
    let repo = away.captured.repo.clone().unwrap();
    let error = import_commits(&repo, &away.references, &away.base, &export, &taken).unwrap_err();
    assert!(matches!(&error, WorktreeError::Hostile(why) if why.contains("memory")), "{error}");
}

#[test]
fn a_commit_of_more_bytes_than_are_taken_is_not_written_out() {
    let story = Story::new();
    fs::File::create(story.repo.join("zeros")).unwrap().set_len(16 << 20).unwrap();
    let blob = story.git(&["hash-object", "-w", "zeros"]);
    // A thousand times sixteen megabytes.
    let commit = bomb(&story.repo, &blob, 10, 3);
    story.git(&["update-ref", "HEAD", &commit]);
    let remote = Remote {
        cache: story.options.cache.clone(),
        url: format!("file://{}", story.repo.display()),
        allow_file: true,
        hosts: None,
        credentials: None,
        stop: worktree::Stop::default(),
    };
    let error = remote.capture(&Checkout { reference: None, history: History::Depth(1) }).unwrap_err();
    assert!(matches!(&error, WorktreeError::TooMuch(why) if why.contains("more than 8589934592 bytes")), "{error}");
}
