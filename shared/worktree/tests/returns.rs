//! Stories of the way back: what changed in a VM becomes a patch, commits, or the same in the worktree; and nothing else.

mod common;

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use common::{Story, away::Away, files, git, init, status, write};
use contract::{
    FileName,
    worktree::{Change, ChangeList, History, Node},
};
use worktree::{Export, Look, Snapshot, WorktreeError, apply, import_commits, patch};

fn edited() -> Away {
    let story = Story::new();
    for name in ["kept", "edited", "gone", "mode", "dir/deep", "dir/other", "file"] {
        story.write(name, &format!("{name}\n1\n2\n3\n4\n5\n6\n"));
    }
    story.write("binary", "\0\u{1}binary");
    symlink("kept", story.repo.join("link")).unwrap();
    story.commit("one");
    // The user is in the middle of something.
    story.write("kept", "the user's\n");
    story.write("untracked", "the user's\n");
    let away = Away::new(story);
    let guest = &away.guest;
    write(guest, "edited", "edited there\n1\n2\n3\n4\n5\n6\n");
    write(guest, "binary", "\0\u{2}other");
    write(guest, "new/ name\nwith \"näme\"", "new\n");
    fs::remove_file(guest.join("gone")).unwrap();
    fs::set_permissions(guest.join("mode"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::remove_file(guest.join("link")).unwrap();
    symlink("/etc/passwd", guest.join("link")).unwrap();
    fs::remove_dir_all(guest.join("dir")).unwrap();
    write(guest, "dir", "a file now");
    fs::set_permissions(guest.join("dir"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::remove_file(guest.join("file")).unwrap();
    write(guest, "file/in/it", "a directory now");
    away
}

#[test]
fn changes_are_applied_and_once_more_is_nothing() {
    let mut away = edited();
    let applied = away.apply().unwrap();
    assert_eq!((applied.merged, applied.present), (0, 0), "{applied:?}");
    assert_eq!(files(&away.story.repo), files(&away.guest));
    let again = away.apply().unwrap();
    assert_eq!((again.written, again.removed), (0, 0), "{again:?}");
    assert!(again.present > 5);
}

#[test]
fn a_patch_is_what_git_applies_and_tells_only_what_changed_there() {
    let mut away = edited();
    let (_, _, taken) = away.taken();
    let shown = |look| {
        let mut text = Vec::new();
        patch(&away.git, &away.base.commit, &taken.commit, look, &mut text).unwrap();
        String::from_utf8_lossy(&text).into_owned()
    };
    assert!(shown(Look::Stat).contains("binary"));
    let names = shown(Look::Names);
    assert!(names.contains("M\tedited") && names.contains("D\tgone") && !names.contains("kept"), "{names}");
    let file = away.story.dir.path().join("x.patch");
    fs::write(&file, shown(Look::Patch)).unwrap();
    away.story.git(&["apply", "--whitespace=nowarn", file.to_str().unwrap()]);
    assert_eq!(files(&away.story.repo), files(&away.guest));
}

#[test]
fn what_was_changed_here_too_is_merged_or_refused_before_anything_is_written() {
    let mut away = edited();
    // Another part of the same text is merged, the same part is not.
    away.story.write("edited", "edited\n1\n2\n3\n4\n5\nsix here\n");
    let applied = away.apply().unwrap();
    assert_eq!(applied.merged, 1);
    let text = fs::read_to_string(away.story.repo.join("edited")).unwrap();
    assert_eq!(text, "edited there\n1\n2\n3\n4\n5\nsix here\n");

    let mut away = edited();
    away.story.write("edited", "edited here\n1\n2\n3\n4\n5\n6\n");
    away.story.write("binary", "\0\u{3}mine");
    away.story.write("dir/mine", "not in the VM");
    away.story.write("new/ name\nwith \"näme\"", "another\n");
    let before = files(&away.story.repo);
    let WorktreeError::Conflicts(conflicts) = away.apply().unwrap_err() else { panic!("no conflicts") };
    let told: Vec<_> = conflicts.iter().map(|it| (it.path.to_str().unwrap(), it.why)).collect();
    assert!(told.contains(&("edited", "it was changed here too")), "{told:?}");
    assert!(told.contains(&("binary", "it was changed here too")), "{told:?}");
    assert!(told.contains(&("dir/mine", "its directory is replaced, and it was not in the VM")), "{told:?}");
    assert!(told.contains(&("new/ name\nwith \"näme\"", "another one is here")), "{told:?}");
    assert_eq!(conflicts.len(), 4);
    assert_eq!(files(&away.story.repo), before, "nothing was written");
}

#[test]
fn commits_come_back_as_a_reference_with_the_rest_on_top() {
    let mut away = edited();
    let guest = away.guest.clone();
    git(&guest, &["add", "edited", "gone"]);
    git(&guest, &["commit", "-qm", "first there"]);
    git(&guest, &["add", "binary"]);
    git(&guest, &["commit", "-qm", "second there"]);
    git(&guest, &["repack", "-qad"]);
    let (changes, quarantine, taken) = away.taken();
    let repo = away.captured.repo.clone().unwrap();
    let export = Export { changes: &changes, quarantine: &quarantine };
    let imported = import_commits(&repo, &away.references, &away.base, &export, &taken).unwrap().unwrap();
    assert_eq!((imported.reference.as_str(), imported.commits, imported.uncommitted), ("refs/warren/web/1", 2, true));
    let log = away.story.git(&["log", "--format=%s", "refs/warren/web/1"]);
    assert_eq!(log, "Uncommitted changes in the VM\nsecond there\nfirst there\none");
    assert_eq!(away.story.git(&["rev-parse", "refs/warren/web/1~1"]), git(&guest, &["rev-parse", "HEAD"]));
    // On top lies what git shows there as changed, the user's own included.
    assert_eq!(away.story.git(&["show", "refs/warren/web/1:kept"]), "the user's");
    let shown = git(&guest, &["diff", "--name-only", "--no-renames", "HEAD"]).lines().count();
    let untracked = git(&guest, &["ls-files", "-o", "--exclude-standard"]).lines().count();
    let top =
        away.story.git(&["diff-tree", "-r", "--no-renames", "--name-only", "--no-commit-id", "refs/warren/web/1"]);
    assert_eq!(top.lines().count(), shown + untracked, "{top}");
    away.story.git(&["fsck", "--strict"]);

    // Damaged objects are not taken, and leave no reference.
    let (changes, quarantine) = away.export();
    let pack = fs::read_dir(quarantine.join("git/objects/pack")).unwrap().map(|it| it.unwrap().path());
    let pack = pack
        .filter(|path| path.extension().is_some_and(|ending| ending == "pack"))
        .max_by_key(|path| path.metadata().unwrap().len());
    let pack = pack.unwrap();
    fs::set_permissions(&pack, fs::Permissions::from_mode(0o600)).unwrap();
    let mut bytes = fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    fs::write(&pack, bytes).unwrap();
    away.story.git(&["update-ref", "-d", "refs/warren/web/1"]);
    let export = Export { changes: &changes, quarantine: &quarantine };
    let error = import_commits(&repo, &away.references, &away.base, &export, &taken).unwrap_err();
    assert!(matches!(error, WorktreeError::Hostile(_)), "{error}");
    assert!(!away.story.git(&["for-each-ref"]).contains("refs/warren/web/1"));
    // Nor is a commit that is not all there.
    let lying = ChangeList { head: Some("1234567890123456789012345678901234567890".into()), ..changes };
    let export = Export { changes: &lying, quarantine: &quarantine };
    assert!(matches!(
        import_commits(&repo, &away.references, &away.base, &export, &taken),
        Err(WorktreeError::Hostile(_))
    ));
    away.references.remove(&away.git, true).unwrap();
    assert!(!away.story.git(&["for-each-ref"]).contains("warren"));
}

#[test]
fn a_commit_of_what_was_staged_here_comes_back_although_the_vm_sends_none_of_it() {
    let story = Story::new();
    story.write("file", "one\n");
    story.commit("one");
    story.write("deep/staged", "staged\n");
    story.git(&["add", "-A"]);
    let mut away = Away::new(story);
    git(&away.guest, &["commit", "-qm", "there"]);
    let (changes, quarantine, taken) = away.taken();
    for entry in away.captured.tree.entries() {
        // What was sent does not come back.
        if let Some(object) = entry.path.as_path().to_str().and_then(|path| path.strip_prefix(".git/objects/"))
            && matches!(entry.node, Node::File { .. })
        {
            fs::remove_file(quarantine.join("git/objects").join(object)).unwrap();
        }
    }
    let repo = away.captured.repo.clone().unwrap();
    let export = Export { changes: &changes, quarantine: &quarantine };
    let imported = import_commits(&repo, &away.references, &away.base, &export, &taken).unwrap().unwrap();
    assert_eq!((imported.commits, imported.uncommitted), (1, false));
    assert_eq!(away.story.git(&["show", "refs/warren/web/1:deep/staged"]), "staged");
}

#[test]
fn a_clean_worktree_is_its_own_snapshot_and_plain_directories_have_a_private_one() {
    let story = Story::new();
    story.write("file", "one\n");
    story.commit("one");
    let head = story.git(&["rev-parse", "HEAD"]);
    let away = Away::new(story);
    assert_eq!((away.base.commit.as_str(), away.base.dirty.as_str()), (head.as_str(), head.as_str()));

    let story = Story::new();
    fs::remove_dir_all(story.repo.join(".git")).unwrap();
    story.write("dir/file", "one\n");
    let mut away = Away::new(story);
    assert_eq!(away.base.head, None);
    write(&away.guest, "dir/file", "two\n");
    write(&away.guest, "more", "more\n");
    away.apply().unwrap();
    assert_eq!(files(&away.story.repo), files(&away.guest));
    // The next one writes what is new only, and is another commit.
    let captured = away.story.capture();
    let next = Snapshot { git: &away.git, references: &away.references }.take(&captured).unwrap();
    assert_ne!(next.commit, away.base.commit);
}

#[test]
fn filtered_files_are_sent_as_they_lie_and_are_no_changes() {
    let story = Story::new();
    story.git(&["config", "filter.case.clean", "tr a-z A-Z"]);
    story.git(&["config", "filter.case.smudge", "tr A-Z a-z"]);
    story.write(".gitattributes", "*.case filter=case\n");
    story.write("lfs.case", "pointer\n");
    story.write("plain", "x\n");
    // Not as new as the index, whose word git then takes.
    let before = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_600_000_000);
    fs::File::options().write(true).open(story.repo.join("lfs.case")).unwrap().set_modified(before).unwrap();
    story.commit("one");
    let mut away = Away::new(story);
    assert_eq!(away.story.git(&["show", "HEAD:lfs.case"]), "POINTER");
    assert_eq!(fs::read_to_string(away.guest.join("lfs.case")).unwrap(), "pointer\n");
    assert_eq!(status(&away.guest), status(&away.story.repo));
    assert_ne!(away.base.commit, away.base.dirty);
    write(&away.guest, "plain", "y\n");
    git(&away.guest, &["commit", "-qam", "there"]);
    let (changes, quarantine, taken) = away.taken();
    let repo = away.captured.repo.clone().unwrap();
    let export = Export { changes: &changes, quarantine: &quarantine };
    let imported = import_commits(&repo, &away.references, &away.base, &export, &taken).unwrap().unwrap();
    assert!(!imported.uncommitted, "what filters make of a file is no change");
}

#[test]
fn a_hostile_list_is_refused_and_links_lead_nowhere() {
    let story = Story::new();
    story.write("file", "one\n");
    story.write("dir/inner", "x\n");
    story.commit("one");
    let outside = story.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let mut away = Away::new(story);
    let (_, quarantine) = away.export();
    write(&quarantine, "tree/x", "evil");
    let digest = tree::blob_id(&b"evil"[..], 4).unwrap();
    let node = Node::File { mode: 0o777, size: 4, digest };
    let change =
        |path: &str, before: Option<Node>| Change { path: FileName(path.into()), before, after: Some(node.clone()) };
    for path in [".git/config", ".GIT/hooks/x", "a/.git", "../x", "a//b", "/etc/x", ""] {
        let list = ChangeList { changes: vec![change(path, None)], ..ChangeList::default() };
        let export = Export { changes: &list, quarantine: &quarantine };
        let refused = export.take(&away.git, &away.references, &away.base).unwrap_err();
        assert!(matches!(refused, WorktreeError::Hostile(_)), "{path}: {refused}");
    }
    // It lies about what was sent.
    let list = ChangeList { changes: vec![change("file", Some(node.clone()))], ..ChangeList::default() };
    let export = Export { changes: &list, quarantine: &quarantine };
    assert!(matches!(export.take(&away.git, &away.references, &away.base), Err(WorktreeError::Hostile(_))));
    // A directory that is a link here leads the write nowhere.
    write(&away.guest, "dir/new", "new\n");
    fs::remove_dir_all(away.story.repo.join("dir")).unwrap();
    symlink(&outside, away.story.repo.join("dir")).unwrap();
    let error = away.apply().unwrap_err();
    assert!(error.to_string().contains("what is above it here is no directory"), "{error}");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    // Nor one the VM makes, in the same go.
    fs::remove_file(away.story.repo.join("dir")).unwrap();
    fs::create_dir(away.story.repo.join("dir")).unwrap();
    away.story.write("dir/inner", "x\n");
    let list = ChangeList {
        changes: vec![
            Change {
                path: FileName(b"a".to_vec()),
                before: None,
                after: Some(Node::Symlink { target: FileName(outside.as_os_str().as_encoded_bytes().to_vec()) }),
            },
            change("a/x", None),
        ],
        ..ChangeList::default()
    };
    write(&quarantine, "tree/a/x", "evil");
    let export = Export { changes: &list, quarantine: &quarantine };
    if let Ok(taken) = export.take(&away.git, &away.references, &away.base) {
        apply(&away.story.repo, &away.git, &export, &taken).unwrap_err();
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn a_remote_is_cloned_once_and_captured_at_a_commit() {
    let story = Story::new();
    story.write("file", "one\n");
    symlink("file", story.repo.join("link")).unwrap();
    story.write("run", "#!/bin/sh\n");
    fs::set_permissions(story.repo.join("run"), fs::Permissions::from_mode(0o755)).unwrap();
    story.commit("one");
    story.git(&["tag", "v1"]);
    story.write("file", "two\n");
    story.commit("two");
    let url = format!("file://{}", story.repo.display());
    let remote = |url: &str, allow_file| worktree::Remote {
        cache: story.options.cache.clone(),
        url: url.into(),
        allow_file,
        hosts: None,
        credentials: None,
        stop: worktree::Stop::default(),
    };
    let checkout = |name: Option<&str>, history| worktree::Checkout { reference: name.map(str::to_owned), history };
    let captured = remote(&url, true).capture(&checkout(None, History::Full)).unwrap();
    assert_eq!(
        (captured.about.branch.as_deref(), captured.about.upstream.as_deref()),
        (Some("main"), Some("origin/main"))
    );
    let guest = story.place(&captured, "full");
    assert_eq!(status(&guest).lines().last(), Some("# branch.ab +0 -0"));
    assert_eq!(files(&guest), files(&story.repo));
    git(&guest, &["fsck"]);
    story.write("file", "three\n");
    story.commit("three");
    let moved = remote(&url, true).capture(&checkout(Some("main"), History::Full)).unwrap();
    assert_eq!(moved.about.head.as_deref(), Some(&story.git(&["rev-parse", "HEAD"])[..]));
    let tag = remote(&url, true).capture(&checkout(Some("v1"), History::Depth(1))).unwrap();
    let guest = story.place(&tag, "tag");
    assert_eq!(
        (git(&guest, &["log", "--format=%s"]), git(&guest, &["status", "--porcelain"])),
        ("one".into(), String::new())
    );
    let commit = story.git(&["rev-parse", "HEAD~1"]);
    let by_id = remote(&url, true).capture(&checkout(Some(&commit), History::None)).unwrap();
    assert!(by_id.tree.get(b".git").is_none() && by_id.about.head == Some(commit));
    for (bad, why) in [
        (url.as_str(), "not allowed"),
        ("ext::sh -c true", "blanks"),
        ("ext::true", "no scheme"),
        ("ext://x", "none of https"),
        ("https://user:pw@host/x", "credentials"),
        ("ssh://-oProxyCommand=x/y", "names no host"),
    ] {
        let error = remote(bad, false).capture(&checkout(None, History::Full)).unwrap_err().to_string();
        assert!(error.contains(why) && !error.contains("pw"), "{error}");
    }
    let error = remote(&url, true).capture(&checkout(Some("no-such"), History::Full)).unwrap_err();
    assert!(error.to_string().contains("no branch or tag"), "{error}");
}

#[test]
fn submodules_files_come_back_as_files() {
    let story = Story::new();
    let inner = story.dir.path().join("inner");
    fs::create_dir(&inner).unwrap();
    init(&inner);
    write(&inner, "file", "inner\n");
    git(&inner, &["add", "-A"]);
    git(&inner, &["commit", "-qm", "inner"]);
    story.write("top", "top\n");
    story.git(&["-c", "protocol.file.allow=always", "submodule", "--quiet", "add", inner.to_str().unwrap(), "sub"]);
    story.commit("sub");
    let mut away = Away::new(story);
    write(&away.guest, "sub/file", "changed there\n");
    write(&away.guest, "sub/new", "new there\n");
    write(&away.guest, "top", "changed there\n");
    let (changes, quarantine, taken) = away.taken();
    let export = Export { changes: &changes, quarantine: &quarantine };
    let repo = away.captured.repo.clone().unwrap();
    let imported = import_commits(&repo, &away.references, &away.base, &export, &taken).unwrap().unwrap();
    assert_eq!((imported.left_out, imported.uncommitted), (2, true));
    assert_eq!(away.story.git(&["diff-tree", "-r", "--name-only", "--no-commit-id", &imported.reference]), "top");
    apply(&away.story.repo, &away.git, &export, &taken).unwrap();
    assert_eq!(files(&away.story.repo), files(&away.guest));
    assert!(away.story.repo.join(Path::new("sub/.git")).exists());
}
