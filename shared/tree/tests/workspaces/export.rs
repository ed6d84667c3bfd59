//! Stories of exports.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::Command,
};

use contract::worktree::{ChangeList, Node, RemoveOrder};
use tree::{GuestError, forget};

use crate::support::{Lab, contents, lines, listed, write};

pub fn run(dir: &Path, script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Does to a directory what a list says.
pub fn apply(list: &ChangeList, quarantine: &Path, to: &Path) {
    let is_dir = |path: &Path| fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    for change in list.changes.iter().rev() {
        let path = to.join(change.path.as_path());
        let stays = matches!(change.after, Some(Node::Directory { .. })) && is_dir(&path);
        if change.before.is_some() && !stays {
            if is_dir(&path) { fs::remove_dir(&path).unwrap() } else { fs::remove_file(&path).unwrap() }
        }
    }
    for change in &list.changes {
        let path = to.join(change.path.as_path());
        match &change.after {
            Some(Node::Directory { .. }) if !path.exists() => fs::create_dir(&path).unwrap(),
            Some(Node::File { mode, .. }) => {
                fs::copy(quarantine.join("tree").join(change.path.as_path()), &path).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
            }
            Some(Node::Symlink { target }) => symlink(target.as_path(), &path).unwrap(),
            _ => {}
        }
    }
    for change in list.changes.iter().rev() {
        if let Some(Node::Directory { mode }) = change.after {
            fs::set_permissions(to.join(change.path.as_path()), fs::Permissions::from_mode(mode)).unwrap();
        }
    }
}

#[test]
fn changes_come_out_and_applied_they_make_the_same_tree() {
    let lab = Lab::new();
    write(&lab.source(), ".gitignore", "*.o\nbuild/\n");
    write(&lab.source(), "edited", "one\n");
    write(&lab.source(), "deleted", "x");
    write(&lab.source(), "dir/deleted", "x");
    write(&lab.source(), "mode", "x");
    write(&lab.source(), "touched", "x");
    write(&lab.source(), "becomes", "x");
    symlink("edited", lab.source().join("link")).unwrap();
    lab.prepare(&lab.order());
    let ws = lab.workspace();
    write(&ws, "edited", "two\n");
    fs::write(ws.join("binary"), [0_u8, 255, 0, 1]).unwrap();
    fs::remove_file(ws.join("deleted")).unwrap();
    fs::remove_dir_all(ws.join("dir")).unwrap();
    fs::set_permissions(ws.join("mode"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(ws.join("touched"), "x").unwrap();
    fs::remove_file(ws.join("becomes")).unwrap();
    write(&ws, "becomes/dir", "y");
    fs::remove_file(ws.join("link")).unwrap();
    symlink("/etc/passwd", ws.join("link")).unwrap();
    write(&ws, "x.o", "ignored");
    write(&ws, "build/out", "ignored");
    write(&ws, &format!("{}/{}", "d".repeat(200), "ü".repeat(120)), "long");
    let (list, quarantine) = lab.export(&lab.export_order());
    let long = "d".repeat(200);
    let expected = vec![
        "~becomes".to_owned(),
        "+becomes/dir".to_owned(),
        "+binary".to_owned(),
        format!("+{long}"),
        format!("+{long}/{}", "ü".repeat(120)),
        "-deleted".to_owned(),
        "-dir".to_owned(),
        "-dir/deleted".to_owned(),
        "~edited".to_owned(),
        "~link".to_owned(),
        "~mode".to_owned(),
    ];
    assert_eq!(lines(&list), expected);
    apply(&list, quarantine.path(), &lab.source());
    fs::remove_file(ws.join("x.o")).unwrap();
    fs::remove_dir_all(ws.join("build")).unwrap();
    assert_eq!(contents(&lab.source()), contents(&ws));
    // A directory that became a link to elsewhere is one link, and nothing of elsewhere is taken.
    fs::remove_dir_all(ws.join("becomes")).unwrap();
    symlink("/etc", ws.join("becomes")).unwrap();
    let (list, _) = lab.export(&lab.export_order());
    assert!(!lines(&list).iter().any(|line| line.contains("becomes/")), "{:?}", lines(&list));
}

#[test]
fn an_export_that_advances_is_the_base_of_the_next() {
    let lab = Lab::new();
    write(&lab.source(), "a", "1");
    write(&lab.source(), "b", "1");
    lab.prepare(&lab.order());
    let mut order = lab.export_order();
    order.advance = true;
    for round in 0..4 {
        write(&lab.workspace(), "a", &round.to_string().repeat(3));
        write(&lab.workspace(), &format!("dir/new{round}"), "x");
        let quarantine = tempfile::tempdir().unwrap();
        lab.export_to(&order, quarantine.path(), false).1.unwrap_err();
        order.operation = contract::OperationId::new();
        let (list, quarantine) = lab.export(&order);
        let mut wanted = vec!["~a".to_owned(), format!("+dir/new{round}")];
        if round == 0 {
            wanted.insert(1, "+dir".to_owned());
        }
        assert_eq!(lines(&list), wanted);
        apply(&list, quarantine.path(), &lab.source());
        assert!(lab.export(&order).0.changes.is_empty());
    }
    assert_eq!(lab.export(&order).0.generation, Some(order.operation));
    assert_eq!(contents(&lab.source()), contents(&lab.workspace()));
    lab.prepare(&lab.order());
    assert_eq!(listed(&lab.workspace()), listed(&lab.source()));
}

#[test]
fn commits_made_in_the_vm_come_out_as_objects() {
    let lab = Lab::new();
    let git = "export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b;";
    write(&lab.source(), "code", "one\n");
    run(&lab.source(), &format!("{git} git init -q -b main . && git add . && git commit -qm one"));
    lab.prepare(&lab.order());
    assert_eq!(run(&lab.workspace(), "git -c safe.directory='*' status --porcelain"), "");
    write(&lab.workspace(), "code", "two\n");
    run(&lab.workspace(), &format!("{git} git commit -qam two"));
    let head = run(&lab.workspace(), "git rev-parse HEAD").trim().to_owned();
    let error = lab.refused(&lab.order());
    assert!(matches!(&error, GuestError::Unexported { what, .. } if what.contains("commits on main")), "{error:?}");
    // Without commits an export does not permit to lose them.
    lab.export(&lab.export_order());
    lab.refused(&lab.order());
    let mut order = lab.export_order();
    order.commits = true;
    let (list, quarantine) = lab.export(&order);
    assert_eq!((list.head.as_ref(), list.branch.as_deref()), (Some(&head), Some("main")));
    assert_eq!(lines(&list), ["~code"]);
    run(
        &lab.source(),
        &format!(
            "cp -r {}/git/objects .git/ && git cat-file -e {head} && git fsck --strict",
            quarantine.path().display()
        ),
    );
    order.advance = true;
    lab.export(&order);
    let (list, quarantine) = lab.export(&order);
    assert!(list.changes.is_empty() && !quarantine.path().join("git").exists());
    lab.prepare(&lab.order());
    // A stash and a branch that is not checked out would be lost too.
    write(&lab.workspace(), "code", "three\n");
    run(&lab.workspace(), &format!("{git} git stash -q"));
    assert!(matches!(lab.refused(&lab.order()), GuestError::Unexported { what, .. } if what.contains("stash")));
}

#[test]
fn limits_and_names_that_are_no_workspace_are_told() {
    let lab = Lab::new();
    let none = lab.export_to(&lab.export_order(), tempfile::tempdir().unwrap().path(), true).1;
    assert!(matches!(none, Err(GuestError::NoWorkspace(_))));
    write(&lab.source(), "a", "1");
    lab.prepare(&lab.order());
    for number in 0..5 {
        write(&lab.workspace(), &format!("new{number}"), "12345");
    }
    let refused = |order: &contract::worktree::ExportOrder| {
        lab.export_to(order, tempfile::tempdir().unwrap().path(), true).1.unwrap_err()
    };
    let mut order = lab.export_order();
    order.max_entries = 4;
    assert!(matches!(refused(&order), GuestError::TooMuch(_)));
    (order.max_entries, order.max_bytes) = (5, 24);
    assert!(matches!(refused(&order), GuestError::TooMuch(_)));
    order.max_bytes = 25;
    lab.export(&order);
}

#[test]
fn a_workspace_is_forgotten_with_its_files_or_without() {
    let lab = Lab::new();
    write(&lab.source(), "a", "1");
    let mut order = RemoveOrder {
        operation: contract::OperationId::new(),
        epoch: 1,
        path: lab.order().path,
        keep_files: false,
        force: false,
    };
    assert!(matches!(forget(&order, &lab.state), Err(GuestError::NoWorkspace(_))));
    lab.prepare(&lab.order());
    write(&lab.workspace(), "a", "2");
    assert!(matches!(forget(&order, &lab.state), Err(GuestError::Unexported { .. })));
    order.keep_files = true;
    forget(&order, &lab.state).unwrap();
    assert!(lab.workspace().join("a").exists());
    assert!(matches!(forget(&order, &lab.state), Err(GuestError::NoWorkspace(_))));
    let mut import = lab.order();
    import.force = true;
    lab.prepare(&import);
    order.keep_files = false;
    forget(&order, &lab.state).unwrap();
    assert!(!lab.workspace().exists());
    assert_eq!(fs::read_dir(&lab.state.0).unwrap().count(), 0);
}
