//! Stories of prepares.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt, symlink},
    },
};

use contract::{ErrorCode, worktree::Placing};
use tree::{GuestError, SendError, walk};

use crate::support::{Lab, contents, listed, write};

fn chmod(path: &std::path::Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A tree with everything in it that names, modes and links can be.
fn odd_tree(lab: &Lab) {
    let source = lab.source();
    write(&source, "plain", "hello\n");
    write(&source, "deep/er/file with spaces", "x");
    write(&source, "empty", "");
    fs::write(source.join(OsStr::from_bytes(b"not\xff utf-8\nnew line")), "y").unwrap();
    fs::write(source.join("n".repeat(255)), "long").unwrap();
    write(&source, "run.sh", "#!/bin/sh\n");
    chmod(&source.join("run.sh"), 0o755);
    chmod(&source.join("plain"), 0o666);
    write(&source, "closed/inside", "z");
    chmod(&source.join("closed"), 0o500);
    symlink("plain", source.join("link")).unwrap();
    symlink("/no/where", source.join("dangling")).unwrap();
    symlink("../../..", source.join("deep/up")).unwrap();
    fs::create_dir(source.join("hollow")).unwrap();
}

#[test]
fn everything_that_linux_names_arrives_as_it_was_and_again_costs_nearly_nothing() {
    let lab = Lab::new();
    odd_tree(&lab);
    let summary = lab.prepare(&lab.order());
    assert_eq!(listed(&lab.workspace()), listed(&lab.source()));
    assert_eq!((summary.moved_files, summary.unchanged), (6, false));
    lab.assert_no_residue();
    let tree = walk(&lab.source(), |_, _| true).unwrap().tree;
    let (sent, received) = lab.prepare_tree(&lab.order(), &tree, u64::MAX);
    assert!(received.unwrap().unchanged);
    assert!(sent.unwrap().wire_bytes < 64);
}

#[test]
fn only_what_changed_is_sent_and_the_rest_is_the_same_file() {
    let lab = Lab::new();
    for number in 0..200 {
        write(&lab.source(), &format!("d{}/f{number}", number % 7), &"text ".repeat(number));
    }
    lab.prepare(&lab.order());
    let before = fs::metadata(lab.workspace().join("d1/f1")).unwrap().ino();
    write(&lab.source(), "d0/f0", "changed");
    write(&lab.source(), "d9/new", "new");
    fs::remove_file(lab.source().join("d2/f2")).unwrap();
    fs::rename(lab.source().join("d3/f3"), lab.source().join("d3/renamed")).unwrap();
    chmod(&lab.source().join("d4/f4"), 0o755);
    let summary = lab.prepare(&lab.order());
    assert_eq!(summary.moved_files, 2);
    assert_eq!(summary.moved_bytes, 10);
    assert_eq!(listed(&lab.workspace()), listed(&lab.source()));
    assert_eq!(fs::metadata(lab.workspace().join("d1/f1")).unwrap().ino(), before);
    assert_eq!(fs::metadata(lab.workspace().join("d1/f1")).unwrap().nlink(), 1);
    lab.assert_no_residue();
    assert!(lab.prepare(&lab.order()).unchanged);
}

#[test]
fn a_stream_that_breaks_anywhere_leaves_the_old_tree_and_nothing_else() {
    let lab = Lab::new();
    write(&lab.source(), "kept", "old");
    write(&lab.source(), "sub/kept", "old too");
    let tree = walk(&lab.source(), |_, _| true).unwrap().tree;
    let again = Lab::new();
    for lab in [&lab, &again] {
        lab.prepare_tree(&lab.order(), &tree, u64::MAX).1.unwrap();
    }
    let old = listed(&lab.workspace());
    for number in 0..50 {
        let noise: String = (0..997).map(|at| char::from(b'a' + ((at * number * 7 + at * at) % 26) as u8)).collect();
        write(&lab.source(), &format!("sub/f{number}"), &noise);
    }
    let tree = walk(&lab.source(), |_, _| true).unwrap().tree;
    let whole = again.prepare_tree(&again.order(), &tree, u64::MAX).0.unwrap().wire_bytes;
    for cut in (0..60).chain((60..whole).step_by(211)).chain(whole - 12..whole) {
        let (sent, received) = lab.prepare_tree(&lab.order(), &tree, cut);
        assert!(sent.is_err(), "{cut}");
        let error = received.unwrap_err();
        assert_eq!(error.to_api().code, ErrorCode::Unavailable, "{cut}: {error:?}");
        assert_eq!(listed(&lab.workspace()), old, "{cut}");
        lab.assert_no_residue();
        // A workspace that never was leaves nothing at all.
        let fresh = Lab::new();
        let mut order = fresh.order();
        order.path = format!("{}/a/b/ws", fresh.workspace().parent().unwrap().display());
        fresh.prepare_tree(&order, &tree, cut).1.unwrap_err();
        assert_eq!(fs::read_dir(fresh.workspace().parent().unwrap()).unwrap().count(), 0, "{cut}");
        assert_eq!(fs::read_dir(&fresh.state.0).map_or(0, Iterator::count), 0, "{cut}");
    }
    lab.prepare(&lab.order());
    assert_eq!(listed(&lab.workspace()), listed(&lab.source()));
}

#[test]
fn changes_that_were_never_exported_are_not_lost_without_force() {
    let lab = Lab::new();
    write(&lab.source(), "code", "one\n");
    write(&lab.source(), "other", "one\n");
    lab.prepare(&lab.order());
    write(&lab.workspace(), "code", "two\n");
    write(&lab.workspace(), "new", "new\n");
    let error = lab.refused(&lab.order());
    assert!(matches!(&error, GuestError::Unexported { what, .. } if what == "code, new"), "{error:?}");
    assert_eq!(error.to_api().code, ErrorCode::FailedPrecondition);
    assert!(fs::read_to_string(lab.workspace().join("code")).unwrap() == "two\n");
    lab.assert_no_residue();
    // An export that nobody accepted does not count, one that was does, and not for what changed after it.
    let quarantine = tempfile::tempdir().unwrap();
    lab.export_to(&lab.export_order(), quarantine.path(), false).1.unwrap_err();
    lab.refused(&lab.order());
    lab.export(&lab.export_order());
    write(&lab.workspace(), "other", "three\n");
    lab.refused(&lab.order());
    lab.export(&lab.export_order());
    assert_eq!(lab.prepare(&lab.order()).moved_files, 2);
    assert_eq!(listed(&lab.workspace()), listed(&lab.source()));
    fs::remove_file(lab.workspace().join("other")).unwrap();
    lab.refused(&lab.order());
    let mut order = lab.order();
    order.force = true;
    lab.prepare(&order);
    assert_eq!(listed(&lab.workspace()), listed(&lab.source()));
}

#[test]
fn a_directory_nobody_prepared_and_a_file_are_not_replaced() {
    let lab = Lab::new();
    write(&lab.source(), "code", "one\n");
    write(&lab.workspace(), "precious", "mine\n");
    assert!(matches!(lab.refused(&lab.order()), GuestError::Occupied(_)));
    assert!(lab.workspace().join("precious").exists());
    let mut order = lab.order();
    order.force = true;
    lab.prepare(&order);
    assert_eq!(contents(&lab.workspace()), contents(&lab.source()));
    let lab = Lab::new();
    fs::write(lab.workspace(), "a file").unwrap();
    assert!(matches!(lab.refused(&lab.order()), GuestError::Path { .. }));
    let lab = Lab::new();
    fs::create_dir(lab.workspace()).unwrap();
    lab.prepare(&lab.order());
}

#[test]
fn what_git_ignores_is_kept_unless_a_clean_tree_is_wanted() {
    let lab = Lab::new();
    write(&lab.source(), ".gitignore", "/target/\n*.cache\n");
    write(&lab.source(), "src/main.rs", "fn main() {}\n");
    write(&lab.source(), "gone/later", "x");
    lab.prepare(&lab.order());
    write(&lab.workspace(), "target/debug/binary", "built");
    write(&lab.workspace(), "src/x.cache", "cached");
    write(&lab.workspace(), "gone/y.cache", "cached too");
    assert!(lab.prepare(&lab.order()).unchanged);
    let binary = fs::metadata(lab.workspace().join("target/debug/binary")).unwrap().ino();
    for round in 0..3 {
        write(&lab.source(), "src/main.rs", &format!("fn main() {{ {round} }}\n"));
        if round == 1 {
            fs::remove_dir_all(lab.source().join("gone")).unwrap();
        }
        let summary = lab.prepare(&lab.order());
        assert_eq!((summary.moved_files, summary.warnings.len()), (1, 0));
        assert_eq!(fs::metadata(lab.workspace().join("target/debug/binary")).unwrap().ino(), binary);
        assert!(lab.workspace().join("src/x.cache").exists() && lab.workspace().join("gone/y.cache").exists());
        assert!(!lab.workspace().join("gone/later").exists() || round == 0);
        assert!(lab.prepare(&lab.order()).unchanged, "{round}");
    }
    // What became part of the tree counts more than what was ignored.
    write(&lab.source(), "src/x.cache", "tracked now");
    assert_eq!(lab.prepare(&lab.order()).warnings.len(), 1);
    assert_eq!(fs::read_to_string(lab.workspace().join("src/x.cache")).unwrap(), "tracked now");
    let mut order = lab.order();
    order.clean = true;
    lab.prepare(&order);
    assert_eq!(listed(&lab.workspace()), listed(&lab.source()));
    lab.assert_no_residue();
}

#[test]
fn files_can_be_replaced_in_the_tree_that_is_there() {
    let lab = Lab::new();
    write(&lab.source(), ".gitignore", "ignored\n");
    write(&lab.source(), "same", "same\n");
    write(&lab.source(), "changes", "one\n");
    write(&lab.source(), "dir/file", "x\n");
    write(&lab.source(), "becomes", "a file\n");
    write(&lab.source(), "was/dir", "y\n");
    lab.prepare(&lab.order());
    write(&lab.workspace(), "dir/ignored", "built");
    let (root, same) = (fs::metadata(lab.workspace()).unwrap().ino(), lab.workspace().join("same"));
    let kept = fs::metadata(&same).unwrap().ino();
    write(&lab.source(), "changes", "two\n");
    fs::remove_file(lab.source().join("becomes")).unwrap();
    write(&lab.source(), "becomes/dir", "z\n");
    fs::remove_dir_all(lab.source().join("was")).unwrap();
    write(&lab.source(), "was", "a file now\n");
    fs::remove_dir_all(lab.source().join("dir")).unwrap();
    let mut order = lab.order();
    order.placing = Placing::InPlace;
    lab.prepare(&order);
    assert_eq!(fs::metadata(lab.workspace()).unwrap().ino(), root);
    assert_eq!(fs::metadata(&same).unwrap().ino(), kept);
    assert_eq!(fs::read_to_string(lab.workspace().join("dir/ignored")).unwrap(), "built");
    fs::remove_dir_all(lab.workspace().join("dir")).unwrap();
    assert_eq!(contents(&lab.workspace()), contents(&lab.source()));
    lab.assert_no_residue();
    let (list, _) = lab.export(&lab.export_order());
    assert!(list.changes.is_empty(), "{list:?}");
}

#[test]
fn a_file_that_changes_while_it_is_sent_ends_the_prepare() {
    let lab = Lab::new();
    write(&lab.source(), "code", "one\n");
    let tree = walk(&lab.source(), |_, _| true).unwrap().tree;
    write(&lab.source(), "code", "two\n");
    let (sent, received) = lab.prepare_tree(&lab.order(), &tree, u64::MAX);
    assert!(matches!(sent, Err(SendError::Changed { .. })), "{sent:?}");
    assert!(matches!(&received, Err(GuestError::Client(why)) if why.contains("code changed")), "{received:?}");
    assert!(!lab.workspace().exists());
    write(&lab.source(), "code", "longer than it was\n");
    assert!(matches!(lab.prepare_tree(&lab.order(), &tree, u64::MAX).0, Err(SendError::Changed { .. })));
    fs::remove_file(lab.source().join("code")).unwrap();
    assert!(matches!(lab.prepare_tree(&lab.order(), &tree, u64::MAX).0, Err(SendError::Changed { .. })));
}

#[test]
fn a_guest_that_dies_in_the_middle_of_placing_finishes_it_or_takes_it_back() {
    let lab = Lab::new();
    write(&lab.source(), ".gitignore", "built\n");
    write(&lab.source(), "code", "one\n");
    lab.prepare(&lab.order());
    write(&lab.workspace(), "built", "x");
    let state = fs::read_dir(&lab.state.0).unwrap().next().unwrap().unwrap().path();
    let head = fs::read(state.join("head.json")).unwrap();
    let rows: Vec<_> = fs::read_dir(&state)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name() != "head.json")
        .collect();
    let old_rows = (rows[0].path(), fs::read(rows[0].path()).unwrap());
    // What is left when it dies before the swap: the journal, a directory.
    let beside = lab.workspace().with_file_name(".ws.warren-x");
    fs::create_dir(&beside).unwrap();
    fs::write(beside.join("half"), "half").unwrap();
    let path = lab.workspace();
    let journal = |step: serde_json::Value| {
        let text = serde_json::json!({"path": path, "staging": ".ws.warren-x", "made": [], "step": step});
        fs::write(state.join("journal.json"), text.to_string()).unwrap();
    };
    journal(serde_json::json!("staging"));
    assert!(lab.state.recover().is_empty());
    lab.assert_no_residue();
    assert_eq!(fs::read_to_string(lab.workspace().join("code")).unwrap(), "one\n");
    // And after the swap: the new tree is there, the old one has the staging's name, the base is still the old one.
    write(&lab.source(), "code", "two\n");
    fs::rename(lab.workspace(), &beside).unwrap();
    let order = lab.order();
    fs::rename(&state, state.with_extension("aside")).unwrap();
    lab.prepare(&order);
    let next: serde_json::Value = serde_json::from_slice(&fs::read(state.join("head.json")).unwrap()).unwrap();
    fs::write(state.join("head.json"), head).unwrap();
    fs::write(old_rows.0, old_rows.1).unwrap();
    fs::remove_dir_all(state.with_extension("aside")).unwrap();
    let inode = fs::metadata(lab.workspace()).unwrap().ino();
    journal(serde_json::json!({"placing": {"next": next, "swap": inode, "clean": false}}));
    assert!(lab.state.recover().is_empty());
    lab.assert_no_residue();
    assert_eq!(fs::read_to_string(lab.workspace().join("code")).unwrap(), "two\n");
    assert_eq!(fs::read_to_string(lab.workspace().join("built")).unwrap(), "x");
    assert!(lab.prepare(&lab.order()).unchanged);
}
