//! Stories of what would be lost, and is not.

use std::{fs, os::unix::fs::MetadataExt};

use contract::{
    ErrorCode,
    worktree::{ChangeList, Placing, RemoveOrder},
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use tree::{GuestError, forget};

use crate::{
    export::run,
    support::{Lab, contents, listed, write},
};

const GIT: &str = "export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b;";

fn read(lab: &Lab, path: &str) -> String {
    fs::read_to_string(lab.workspace().join(path)).unwrap()
}

#[test]
fn what_programs_write_while_a_tree_comes_is_not_lost_without_force() {
    for placing in [Placing::Swap, Placing::InPlace] {
        let lab = Lab::new();
        write(&lab.source(), ".gitignore", "built\n");
        for name in ["code", "other", "third"] {
            write(&lab.source(), name, "one\n");
        }
        lab.prepare(&lab.order());
        write(&lab.source(), "code", "two\n");
        let mut order = lab.order();
        order.placing = placing;
        let edits: [&dyn Fn(); 4] = [
            // Into the file that is there, by another in its place, by one that is new, and by one that goes.
            &|| write(&lab.workspace(), "other", "edited\n"),
            &|| {
                write(&lab.workspace(), "aside", "replaced\n");
                fs::rename(lab.workspace().join("aside"), lab.workspace().join("other")).unwrap();
            },
            &|| write(&lab.workspace(), "dir/new", "new\n"),
            &|| fs::remove_file(lab.workspace().join("third")).unwrap(),
        ];
        for (number, edit) in edits.iter().enumerate() {
            let before = contents(&lab.workspace());
            order.operation = contract::OperationId::new();
            let error = lab.prepare_while(&order, edit).unwrap_err();
            assert!(matches!(error, GuestError::Raced { .. }), "{placing:?} {number}: {error:?}");
            assert_eq!(error.to_api().code, ErrorCode::Aborted);
            assert_ne!(contents(&lab.workspace()), before);
            assert_eq!(read(&lab, "code"), "one\n");
            lab.assert_no_residue();
            // What is in the way of the next is put right again.
            write(&lab.workspace(), "other", "one\n");
            write(&lab.workspace(), "third", "one\n");
            fs::remove_dir_all(lab.workspace().join("dir")).unwrap_or_default();
        }
        // What git ignores goes along, whenever it came.
        order.operation = contract::OperationId::new();
        lab.prepare_while(&order, &|| write(&lab.workspace(), "built", "x")).unwrap();
        assert_eq!((read(&lab, "code"), read(&lab, "built")), ("two\n".to_owned(), "x".to_owned()));
        write(&lab.source(), "code", "three\n");
        (order.operation, order.force) = (contract::OperationId::new(), true);
        let forced = lab.prepare_while(&order, &|| write(&lab.workspace(), "code", "lost\n"));
        forced.unwrap();
        assert_eq!(read(&lab, "code"), "three\n");
        lab.assert_no_residue();
    }
}

#[test]
fn what_was_exported_may_go_and_what_was_written_after_it_may_not() {
    let lab = Lab::new();
    write(&lab.source(), "code", "one\n");
    lab.prepare(&lab.order());
    write(&lab.workspace(), "code", "two\n");
    lab.export(&lab.export_order());
    write(&lab.source(), "new", "new\n");
    lab.prepare_while(&lab.order(), &|| write(&lab.workspace(), "code", "three\n")).unwrap_err();
    assert_eq!(read(&lab, "code"), "three\n");
    lab.export(&lab.export_order());
    lab.prepare_while(&lab.order(), &|| {}).unwrap();
    assert_eq!(listed(&lab.workspace()), listed(&lab.source()));
}

#[test]
fn a_directory_that_was_empty_or_not_there_is_not_replaced_once_something_is_in_it() {
    for there in [true, false] {
        let lab = Lab::new();
        write(&lab.source(), "code", "one\n");
        if there {
            fs::create_dir(lab.workspace()).unwrap();
        }
        let error = lab.prepare_while(&lab.order(), &|| write(&lab.workspace(), "precious", "mine\n")).unwrap_err();
        assert!(matches!(error, GuestError::Raced { .. }), "{error:?}");
        assert_eq!(read(&lab, "precious"), "mine\n");
        assert!(matches!(lab.refused(&lab.order()), GuestError::Occupied(_)));
        fs::remove_file(lab.workspace().join("precious")).unwrap();
        lab.prepare(&lab.order());
    }
}

#[test]
fn two_files_of_the_new_tree_are_never_the_same_one() {
    let lab = Lab::new();
    write(&lab.source(), "code", "one\n");
    lab.prepare(&lab.order());
    run(&lab.source(), "cp -p code a; cp -p code z");
    assert_eq!(lab.prepare(&lab.order()).moved_files, 0);
    let inode = |name: &str| fs::metadata(lab.workspace().join(name)).unwrap().ino();
    assert!(inode("a") != inode("code") && inode("code") != inode("z") && inode("a") != inode("z"));
}

#[test]
fn commits_that_an_export_did_not_take_along_are_not_lost() {
    let lab = Lab::new();
    write(&lab.source(), "code", "one\n");
    run(&lab.source(), &format!("{GIT} git init -q -b main . && git add . && git commit -qm one"));
    let (mut commits, mut advance) = (lab.export_order(), lab.export_order());
    commits.commits = true;
    (advance.commits, advance.advance) = (true, true);
    let elsewhere = [
        ("echo stashed > code; git stash -q", "stash"),
        (
            "git checkout -q --detach; echo alone > alone; git add .; git commit -qm alone; git checkout -q main",
            "no branch",
        ),
        ("git checkout -qb side; echo side > side; git add .; git commit -qm side; git checkout -q main", "side"),
    ];
    for (script, what) in elsewhere {
        let mut forced = lab.order();
        forced.force = true;
        write(&lab.source(), "new", what);
        lab.prepare(&forced);
        run(&lab.workspace(), &format!("{GIT} {script}; echo two >> code; git commit -qam two"));
        write(&lab.source(), "new", "again");
        for export in [&commits, &advance] {
            let (list, _files) = lab.export(export);
            let lost = list.lost();
            assert!(lost.len() == 1 && lost[0].contains(what) && list.warnings == lost, "{lost:?}");
            let error = lab.refused(&lab.order());
            assert!(matches!(&error, GuestError::Unexported { what: why, .. } if why.contains(what)), "{error:?}");
        }
    }
    let mut forced = lab.order();
    forced.force = true;
    lab.prepare(&forced);
    // One that leads to HEAD went along.
    run(&lab.workspace(), &format!("{GIT} git checkout -qb other; echo 2 >> code; git commit -qam two"));
    run(&lab.workspace(), "git checkout -q main; git reset -q --hard other");
    lab.export(&commits);
    lab.prepare(&lab.order());
}

#[test]
fn what_an_export_has_no_place_for_is_a_loss_only_where_somebody_may_want_it() {
    let lab = Lab::new();
    write(&lab.source(), "code", "one\n");
    lab.prepare(&lab.order());
    run(&lab.workspace(), "mkfifo pipe; echo two > code");
    let (list, _files) = lab.export(&lab.export_order());
    assert_eq!((list.warnings.len(), list.lost().len()), (1, 0), "{:?}", list.warnings);
    run(&lab.workspace(), "git init -q within");
    let (list, _files) = lab.export(&lab.export_order());
    assert!(list.lost().len() == 1 && list.lost()[0].contains("within/.git"), "{:?}", list.losses);
    assert_eq!(list.warnings.len(), 2, "what would be lost is said first: {:?}", list.warnings);
    // A guest of an older version tells one list only: all of it counts.
    let older = ChangeList { losses: None, ..list };
    assert_eq!(older.lost(), older.warnings);
}

#[test]
fn commits_of_repositories_within_the_workspace_are_not_lost() {
    let lab = Lab::new();
    let library = tempfile::tempdir().unwrap();
    let make = "git init -q -b main . && echo 1 > file && git add . && git commit -qm one";
    run(library.path(), &format!("{GIT} {make}"));
    let from = library.path().display();
    let add = format!("git -c protocol.file.allow=always submodule --quiet add {from} libs/part");
    run(&lab.source(), &format!("{GIT} {make} && {add} && git commit -qm part"));
    run(&lab.source(), &format!("{GIT} git init -q plain && cd plain && {make}"));
    lab.prepare(&lab.order());
    assert!(lab.prepare(&lab.order()).unchanged);
    let committed = "echo 2 >> file && git commit -qam two";
    for (place, script) in [
        ("libs/part", committed.to_owned()),
        ("libs/part", "echo 3 > file && git stash -q".to_owned()),
        ("plain", committed.to_owned()),
        ("libs", format!("git clone -q {from} clone")),
        (".", format!("mkdir deep && cd deep && git clone -q {from} clone")),
    ] {
        write(&lab.source(), "new", &script);
        let mut forced = lab.order();
        forced.force = true;
        lab.prepare(&forced);
        assert!(lab.prepare(&lab.order()).unchanged, "{script}");
        run(&lab.workspace().join(place), &format!("{GIT} {script}"));
        write(&lab.source(), "new", "again");
        let mut order = lab.export_order();
        order.commits = true;
        for advance in [false, true] {
            order.advance = advance;
            lab.export(&order);
            let error = lab.refused(&lab.order());
            assert!(matches!(error, GuestError::Unexported { .. }), "{script}: {error:?}");
            let remove = RemoveOrder {
                operation: contract::OperationId::new(),
                epoch: 1,
                path: lab.order().path,
                keep_files: false,
                force: false,
            };
            let error = forget(&remove, &lab.state).unwrap_err();
            assert!(matches!(error, GuestError::Unexported { .. }), "{script}: {error:?}");
        }
    }
}

/// Does something in a mount namespace of its own, whose mounts go with it.
fn in_namespace(story: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let story = || {
            unshare(CloneFlags::CLONE_NEWNS).expect("mount namespaces need root");
            let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
            story();
        };
        scope.spawn(story).join().unwrap();
    });
}

#[test]
fn a_directory_that_is_bound_into_a_workspace_is_never_emptied() {
    in_namespace(|| {
        let lab = Lab::new();
        write(&lab.source(), ".gitignore", "/cache/\n");
        write(&lab.source(), "code/file", "one\n");
        lab.prepare(&lab.order());
        let elsewhere = tempfile::tempdir().unwrap();
        write(elsewhere.path(), "precious/file", "mine\n");
        let precious = || fs::read_to_string(elsewhere.path().join("precious/file")).unwrap();
        let remove = |force| RemoveOrder {
            operation: contract::OperationId::new(),
            epoch: 1,
            path: lab.order().path,
            keep_files: false,
            force,
        };
        write(&lab.source(), "new", "x");
        // In the tree, beside it, where git ignores it, and below what git ignores.
        for place in ["code", "more", "cache", "cache/deep"] {
            let point = lab.workspace().join(place);
            fs::create_dir_all(&point).unwrap();
            mount(Some(elsewhere.path()), &point, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
            for (placing, force, clean) in [
                (Placing::Swap, false, false),
                (Placing::Swap, true, true),
                (Placing::InPlace, true, false),
                (Placing::InPlace, true, true),
            ] {
                if place == "cache/deep" && placing == Placing::Swap {
                    // It goes along with what it is in.
                    continue;
                }
                let mut order = lab.order();
                (order.placing, order.force, order.clean) = (placing, force, clean);
                if place == "cache/deep" && !clean {
                    continue;
                }
                let error = lab.refused(&order);
                assert!(!matches!(error, GuestError::Raced { .. }), "{place}: {error:?}");
                assert_eq!(precious(), "mine\n", "{place} {placing:?} {force} {clean}");
            }
            for force in [false, true] {
                forget(&remove(force), &lab.state).unwrap_err();
                assert_eq!(precious(), "mine\n", "{place}");
            }
            umount2(&point, MntFlags::MNT_DETACH).unwrap();
            fs::remove_dir(&point).unwrap_or_default();
        }
        let mut order = lab.order();
        order.force = true;
        lab.prepare(&order);
        assert_eq!(precious(), "mine\n");
    });
}
