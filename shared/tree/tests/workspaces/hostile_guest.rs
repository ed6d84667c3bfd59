//! Archives no honest guest sends.

use std::{fs, io, io::Read, path::Path};

use contract::{
    FileName,
    worktree::{Change, ChangeList, Node},
};
use tar::{Builder, EntryType, Header};
use tree::{Limits, ReadError, blob_id, read_export};

use crate::support::LIMITS;

fn added(path: &[u8], content: &[u8]) -> Change {
    let size = content.len() as u64;
    let after = Some(Node::File { mode: 0o644, size, digest: blob_id(content, size).unwrap() });
    Change { path: FileName(path.to_vec()), before: None, after }
}

fn list(changes: Vec<Change>) -> ChangeList {
    ChangeList { changes, ..ChangeList::default() }
}

/// An entry whose name is put into the header byte for byte.
fn entry(archive: &mut Builder<Vec<u8>>, kind: EntryType, name: &[u8], size: u64, content: &[u8]) {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o777);
    if kind == EntryType::Symlink {
        header.set_link_name("/etc").unwrap();
    }
    header.set_cksum();
    archive.append(&header, content).unwrap();
}

fn archive(list: &ChangeList, entries: &[(EntryType, &[u8], &[u8])]) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    let text = serde_json::to_vec(list).unwrap();
    entry(&mut archive, EntryType::Regular, b"changes.json", text.len() as u64, &text);
    for (kind, name, content) in entries {
        entry(&mut archive, *kind, name, content.len() as u64, content);
    }
    archive.into_inner().unwrap()
}

fn read(bytes: impl Read, limits: Limits) -> Result<ChangeList, ReadError> {
    let outside = tempfile::tempdir().unwrap();
    let quarantine = outside.path().join("quarantine");
    fs::create_dir(&quarantine).unwrap();
    let outcome = read_export(bytes, &quarantine, limits);
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1, "something is beside the quarantine");
    assert_plain(&quarantine);
    outcome
}

/// Nothing but directories and regular files of our own, and none with a name git gives a meaning.
fn assert_plain(dir: &Path) {
    for found in fs::read_dir(dir).unwrap() {
        let (path, kind) = (found.as_ref().unwrap().path(), found.unwrap().file_type().unwrap());
        assert!(kind.is_dir() || kind.is_file(), "{}", path.display());
        assert!(!path.ends_with(".git") && !path.ends_with("hooks") && !path.ends_with("config"));
        if kind.is_dir() {
            assert_plain(&path);
        }
    }
}

#[test]
fn paths_that_lead_elsewhere_or_are_gits_are_refused_with_their_list() {
    let bad: [&[u8]; 12] = [
        b"../x",
        b"/etc/x",
        b"a/../../x",
        b".git/hooks/pre-commit",
        b".git/config",
        b"sub/.git/config",
        b".GIT/config",
        b".git",
        b"a//b",
        b"./a",
        b"",
        b"nul\0byte",
    ];
    for path in bad {
        let text = format!("tree/{}", String::from_utf8_lossy(path));
        let bytes = archive(&list(vec![added(path, b"x")]), &[(EntryType::Regular, text.as_bytes(), b"x")]);
        let outcome = read(&bytes[..], LIMITS);
        assert!(matches!(outcome, Err(ReadError::Hostile(_))), "{path:?}: {outcome:?}");
    }
    let long = added(&[b'x'; 256], b"x");
    assert!(matches!(read(&archive(&list(vec![long]), &[])[..], LIMITS), Err(ReadError::Hostile(_))));
}

#[test]
fn lists_that_cannot_be_and_files_that_are_not_listed_are_refused() {
    let (a, deep) = (added(b"a", b"x"), added(b"a/b", b"x"));
    let link = Change { after: Some(Node::Symlink { target: FileName(b"/etc".to_vec()) }), ..a.clone() };
    let nothing = Change { after: None, ..a.clone() };
    let mode = Change { after: Some(Node::Directory { mode: 0o4755 }), ..a.clone() };
    for changes in [
        vec![a.clone(), a.clone()],
        vec![deep.clone(), a.clone()],
        vec![a.clone(), deep.clone()],
        vec![link.clone(), deep.clone()],
        vec![nothing],
        vec![mode],
        vec![a.clone()],
    ] {
        let outcome = read(&archive(&list(changes), &[])[..], LIMITS);
        assert!(matches!(outcome, Err(ReadError::Hostile(_))), "{outcome:?}");
    }
    let tree: &[u8] = b"tree/a";
    for entries in [
        vec![(EntryType::Regular, tree, &b"y"[..])],
        vec![(EntryType::Regular, tree, b"xx")],
        vec![(EntryType::Regular, tree, b"x"), (EntryType::Regular, tree, b"x")],
        vec![(EntryType::Symlink, tree, b"")],
        vec![(EntryType::Link, tree, b"")],
        vec![(EntryType::Directory, b"tree", b"")],
        vec![(EntryType::Fifo, tree, b"")],
        vec![(EntryType::XHeader, b"x", b"12 path=../x\n"), (EntryType::Regular, tree, b"x")],
        vec![(EntryType::GNULongName, b"L", b"tree/../../x\0"), (EntryType::Regular, tree, b"x")],
        vec![(EntryType::GNULongName, b"L", b"no end"), (EntryType::Regular, tree, b"x")],
        vec![(EntryType::Regular, tree, b"x"), (EntryType::Regular, b"git/hooks/pre-commit", b"x")],
        vec![(EntryType::Regular, tree, b"x"), (EntryType::Regular, b"git/objects/../config", b"x")],
        vec![(EntryType::Regular, tree, b"x"), (EntryType::Regular, b"git/objects/info/alternates", b"/")],
        vec![(EntryType::Regular, tree, b"x"), (EntryType::Regular, b"elsewhere", b"x")],
    ] {
        let outcome = read(&archive(&list(vec![a.clone()]), &entries)[..], LIMITS);
        assert!(matches!(outcome, Err(ReadError::Hostile(_))), "{entries:?}: {outcome:?}");
    }
    read(&archive(&list(vec![a]), &[(EntryType::Regular, tree, b"x")])[..], LIMITS).unwrap();
    assert!(matches!(
        read(&archive(&list(vec![]), &[])[512..], LIMITS),
        Err(ReadError::Hostile(_) | ReadError::Stream(_))
    ));
    let texts = ChangeList { head: Some("--upload-pack=x".into()), ..ChangeList::default() };
    assert!(matches!(read(&archive(&texts, &[])[..], LIMITS), Err(ReadError::Hostile(_))));
    let texts = ChangeList { branch: Some("a\x1b[2J".into()), ..ChangeList::default() };
    assert!(matches!(read(&archive(&texts, &[])[..], LIMITS), Err(ReadError::Hostile(_))));
}

#[test]
fn output_without_end_and_lying_sizes_stop_at_the_limits() {
    let limits = Limits { entries: 10, bytes: 1000 };
    let many = (0..11).map(|number| added(format!("f{number:02}").as_bytes(), b"")).collect();
    assert!(matches!(read(&archive(&list(many), &[])[..], limits), Err(ReadError::TooMuch(_))));
    let big = added(b"big", &[0; 1001]);
    assert!(matches!(read(&archive(&list(vec![big]), &[])[..], limits), Err(ReadError::TooMuch(_))));
    // A list that says that it is endless, a name that is, an object that is, and headers without end.
    let beginning = |kind, name: &[u8], size| {
        let mut bytes = archive(&list(vec![]), &[]);
        bytes.truncate(bytes.len() - 1024);
        let mut header = Builder::new(Vec::new());
        entry(&mut header, kind, name, size, b"");
        bytes.extend_from_slice(&header.into_inner().unwrap()[..512]);
        bytes
    };
    let object = format!("git/objects/ab/{}", "c".repeat(38));
    let endless = || io::repeat(b'x');
    for (kind, name, size) in [
        (EntryType::GNULongName, &b"L"[..], 1 << 60),
        (EntryType::GNULongLink, b"K", 1 << 60),
        (EntryType::XHeader, b"x", 1 << 60),
        (EntryType::Regular, object.as_bytes(), 1 << 60),
    ] {
        let bytes = beginning(kind, name, size);
        let outcome = read(bytes.chain(endless()), limits);
        assert!(matches!(outcome, Err(ReadError::TooMuch(_) | ReadError::Hostile(_))), "{outcome:?}");
    }
    let mut lists = Builder::new(Vec::new());
    entry(&mut lists, EntryType::Regular, b"changes.json", 1 << 60, b"");
    let bytes = lists.into_inner().unwrap();
    assert!(matches!(read(bytes[..512].chain(endless()), limits), Err(ReadError::TooMuch(_))));
    assert!(matches!(read(endless(), limits), Err(ReadError::Stream(_) | ReadError::Hostile(_))));
    // Cut off anywhere, it is no export.
    let whole = archive(&list(vec![added(b"a", b"x")]), &[(EntryType::Regular, b"tree/a", b"x")]);
    for end in (0..whole.len() - 1024).step_by(97) {
        assert!(read(&whole[..end], limits).is_err(), "{end}");
    }
}
