//! Random trees and edits: there, changed there, and back again.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{PermissionsExt, symlink},
    },
    path::Path,
};

use contract::worktree::Placing;
use proptest::prelude::*;

use crate::{
    export::apply,
    support::{Lab, contents, listed},
};

#[derive(Clone, Debug)]
enum Thing {
    File(Vec<u8>, bool),
    Link(String),
    Directory,
}

type Things = BTreeMap<Vec<Vec<u8>>, Thing>;

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => "[ab]{1,2}".prop_map(String::into_bytes),
        1 => "[a-c \\n\\t'\"\\\\é€-]{1,5}".prop_map(String::into_bytes),
        1 => proptest::collection::vec(prop_oneof![1_u8..46, 48_u8..=255], 1..5),
        1 => Just(vec![b'n'; 255]),
    ]
    .prop_filter("names of directories themselves", |name| name != b"." && name != b"..")
}

fn thing() -> impl Strategy<Value = Thing> {
    let content = proptest::collection::vec(any::<u8>(), 0..200);
    prop_oneof![
        6 => (content, any::<bool>()).prop_map(|(bytes, run)| Thing::File(bytes, run)),
        1 => "[a-z/.]{1,8}".prop_map(Thing::Link),
        2 => Just(Thing::Directory),
    ]
}

fn things() -> impl Strategy<Value = Things> {
    proptest::collection::btree_map(proptest::collection::vec(name(), 1..4), thing(), 0..24)
}

/// Makes a directory hold just these; where one is in another that is no directory, it is left out.
fn make(dir: &Path, things: &Things, keep: &Things) {
    for path in keep.keys().rev().filter(|path| !things.contains_key(*path)) {
        let path = at(dir, path);
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(&path).unwrap(),
            Ok(_) => fs::remove_file(&path).unwrap(),
            Err(_) => {}
        }
    }
    for (path, thing) in things {
        let path = at(dir, path);
        if path
            .ancestors()
            .skip(1)
            .take_while(|above| *above != dir)
            .any(|above| fs::symlink_metadata(above).is_ok_and(|metadata| !metadata.is_dir()))
        {
            continue;
        }
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(&path).unwrap(),
            Ok(_) => fs::remove_file(&path).unwrap(),
            Err(_) => {}
        }
        match thing {
            Thing::File(bytes, run) => {
                fs::write(&path, bytes).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(if *run { 0o755 } else { 0o640 })).unwrap();
            }
            Thing::Link(target) => symlink(target, &path).unwrap(),
            Thing::Directory => fs::create_dir(&path).unwrap(),
        }
    }
}

fn at(dir: &Path, path: &[Vec<u8>]) -> std::path::PathBuf {
    path.iter().fold(dir.to_owned(), |dir, name| dir.join(std::ffi::OsStr::from_bytes(name)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn any_tree_goes_there_and_any_edits_come_back(first in things(), edits in things(), then in things(), in_place: bool) {
        let lab = Lab::new();
        make(&lab.source(), &first, &Things::new());
        lab.prepare(&lab.order());
        prop_assert_eq!(listed(&lab.workspace()), listed(&lab.source()));
        make(&lab.workspace(), &edits, &first);
        let (list, quarantine) = lab.export(&lab.export_order());
        apply(&list, quarantine.path(), &lab.source());
        prop_assert_eq!(contents(&lab.source()), contents(&lab.workspace()));
        make(&lab.source(), &then, &edits);
        let mut order = lab.order();
        if in_place {
            order.placing = Placing::InPlace;
        }
        lab.prepare(&order);
        prop_assert_eq!(contents(&lab.workspace()), contents(&lab.source()));
        prop_assert!(lab.export(&lab.export_order()).0.changes.is_empty());
        prop_assert!(lab.prepare(&lab.order()).unchanged);
        lab.assert_no_residue();
    }
}
