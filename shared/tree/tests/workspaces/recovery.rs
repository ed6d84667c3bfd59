//! Stories of guests that die in the middle, or wake up with less than they wrote.

use std::{fs, os::unix::fs::MetadataExt, path::PathBuf};

use contract::worktree::{Placing, RemoveOrder};
use serde_json::{Value, json};
use tree::{GuestError, forget};

use crate::support::{Lab, listed, write};

/// A workspace whose first tree is in its place, with the base of a second one written as it is before that takes its place.
struct Cut {
    lab: Lab,
    next: Value,
    beside: PathBuf,
}

impl Cut {
    /// `second` changes the source. The second tree's files lie beside the workspace.
    fn new(first: &[(&str, &str)], second: &[(&str, &str)]) -> Self {
        let (lab, other) = (Lab::new(), Lab::new());
        for (path, text) in first {
            write(&lab.source(), path, text);
        }
        lab.prepare(&lab.order());
        for (path, text) in second {
            write(&lab.source(), path, text);
        }
        // What a guest knows just after it placed the second, somewhere else.
        let tree = tree::walk(&lab.source(), |_, _| true).unwrap().tree;
        other.prepare_tree(&other.order(), &tree, u64::MAX).1.unwrap();
        let mut next: Value = serde_json::from_slice(&fs::read(other.memory().join("head.json")).unwrap()).unwrap();
        next["path"] = json!(lab.workspace());
        let rows = next["rows"].as_str().unwrap();
        fs::copy(other.memory().join(rows), lab.memory().join(rows)).unwrap();
        let beside = lab.workspace().with_file_name(".ws.warren-x");
        fs::rename(other.workspace(), &beside).unwrap();
        Self { lab, next, beside }
    }

    fn journal(&self, step: &Value) {
        let text = json!({"path": self.lab.workspace(), "staging": ".ws.warren-x", "made": [], "step": step});
        fs::write(self.lab.memory().join("journal.json"), text.to_string()).unwrap();
    }

    fn swap(&self) {
        let aside = self.beside.with_extension("aside");
        fs::rename(self.lab.workspace(), &aside).unwrap();
        fs::rename(&self.beside, self.lab.workspace()).unwrap();
        fs::rename(aside, &self.beside).unwrap();
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.lab.workspace().join(path)).unwrap()
    }
}

#[test]
fn files_that_were_placed_before_the_guest_died_are_not_removed_as_ignored() {
    // `built` is ignored, and part of the second tree; it is in its place already, `code` is not.
    let files = [(".gitignore", "built\n"), ("code", "one\n")];
    let cut = Cut::new(&files, &[("built/out", "tracked\n"), ("code", "two\n")]);
    fs::remove_dir_all(&cut.beside).unwrap();
    write(&cut.beside, "3", "two\n");
    let time = fs::metadata(cut.lab.source().join("code")).unwrap().modified().unwrap();
    fs::File::options().write(true).open(cut.beside.join("3")).unwrap().set_modified(time).unwrap();
    write(&cut.lab.workspace(), "built/out", "tracked\n");
    cut.journal(&json!({"placing": {"next": cut.next, "swap": null, "clean": true, "removed": true}}));
    assert!(cut.lab.state.recover().is_empty());
    assert_eq!((cut.read("built/out"), cut.read("code")), ("tracked\n".to_owned(), "two\n".to_owned()));
    cut.lab.assert_no_residue();
    let (list, _) = cut.lab.export(&cut.lab.export_order());
    assert!(list.changes.is_empty(), "{list:?}");
}

#[test]
fn a_clean_prepare_in_place_removes_what_git_ignores_before_it_places_the_first_file() {
    let lab = Lab::new();
    write(&lab.source(), ".gitignore", "built\n");
    write(&lab.source(), "code", "one\n");
    lab.prepare(&lab.order());
    write(&lab.workspace(), "built/old", "x");
    write(&lab.source(), "built/out", "tracked\n");
    write(&lab.source(), "code", "two\n");
    let mut order = lab.order();
    (order.placing, order.clean) = (Placing::InPlace, true);
    lab.prepare(&order);
    assert!(!lab.workspace().join("built/old").exists());
    assert_eq!(fs::read_to_string(lab.workspace().join("built/out")).unwrap(), "tracked\n");
    lab.assert_no_residue();
}

#[test]
fn a_swap_that_lasted_longer_than_its_journal_is_taken_back() {
    let cut = Cut::new(&[("code", "one\n")], &[("code", "two\n")]);
    let inode = fs::metadata(&cut.beside).unwrap().ino();
    cut.swap();
    // A power cut: the disk has the swap, and the journal of before.
    cut.journal(&json!({"staged": {"inode": inode}}));
    assert!(cut.lab.state.recover().is_empty());
    assert_eq!(cut.read("code"), "one\n");
    let lab = &cut.lab;
    lab.prepare(&lab.order());
    assert_eq!(listed(&lab.workspace()), listed(&lab.source()));
    lab.assert_no_residue();
}

#[test]
fn a_swap_that_was_cut_off_is_taken_back_where_the_old_tree_has_changes() {
    for force in [false, true] {
        let cut = Cut::new(&[("code", "one\n")], &[("code", "two\n")]);
        write(&cut.lab.workspace(), "new", "written at the last moment\n");
        let inode = fs::metadata(&cut.beside).unwrap().ino();
        cut.swap();
        cut.journal(&json!({"placing": {"next": cut.next, "swap": inode, "clean": false, "force": force}}));
        assert!(cut.lab.state.recover().is_empty());
        assert_eq!(cut.read("code"), if force { "two\n" } else { "one\n" });
        assert_eq!(cut.lab.workspace().join("new").exists(), !force);
        assert!(!cut.beside.exists());
    }
}

#[test]
fn a_prepare_that_was_cut_off_and_whose_list_is_damaged_can_be_forced_or_removed() {
    let damaged = || {
        let cut = Cut::new(&[("code", "one\n")], &[("code", "two\n")]);
        let inode = fs::metadata(&cut.beside).unwrap().ino();
        cut.swap();
        cut.journal(&json!({"placing": {"next": cut.next, "swap": inode, "clean": false}}));
        fs::write(cut.lab.memory().join(cut.next["rows"].as_str().unwrap()), "damaged").unwrap();
        assert_eq!(cut.lab.state.recover().len(), 1);
        cut
    };
    let cut = damaged();
    let lab = &cut.lab;
    let error = lab.refused(&lab.order());
    assert!(matches!(error, GuestError::Damaged(_)) && error.to_api().hint.is_some(), "{error:?}");
    let mut order = lab.order();
    order.force = true;
    lab.prepare(&order);
    assert_eq!(listed(&lab.workspace()), listed(&lab.source()));
    lab.assert_no_residue();
    let cut = damaged();
    let mut order = RemoveOrder {
        operation: contract::OperationId::new(),
        epoch: 1,
        path: cut.lab.order().path,
        keep_files: false,
        force: false,
    };
    forget(&order, &cut.lab.state).unwrap_err();
    order.force = true;
    forget(&order, &cut.lab.state).unwrap();
    assert!(!cut.lab.workspace().exists() && !cut.beside.exists());
}
