use std::{collections::BTreeMap, path::Path, process::Command};

use super::*;

/// A tool's output; it must succeed.
fn run(tool: &str, arguments: &[&str]) -> String {
    let output = Command::new(tool).args(arguments).output().unwrap_or_else(|error| panic!("{tool}: {error}"));
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{tool} {arguments:?}: {text}");
    text
}

fn check(image: &Path) {
    run("/sbin/e2fsck", &["-fn", image.to_str().unwrap()]);
}

fn debugfs(image: &Path, command: &str) -> String {
    run("/sbin/debugfs", &["-R", command, image.to_str().unwrap()])
}

/// A filesystem whose root holds files of its own, put together without a tree.
struct Flat {
    writer: Writer,
    names: Vec<String>,
    entries: Vec<Name>,
    links: Vec<u16>,
}

impl Flat {
    fn new(path: &Path) -> Self {
        let writer =
            Writer::create(path, *uuid::Uuid::new_v4().as_bytes(), 1_700_000_000, CancellationToken::new()).unwrap();
        let entries = vec![Name { inode: LOST_AND_FOUND, kind: file_type::DIR, place: 0 }];
        let mut links = vec![0; 12];
        (links[ROOT as usize], links[LOST_AND_FOUND as usize]) = (3, 2);
        Self { writer, names: vec!["lost+found".to_owned()], entries, links }
    }

    fn add(&mut self, name: String, xattrs: &[(Vec<u8>, Vec<u8>)], kind: u8, what: Kind<'_>) {
        let meta = Meta { mode: 0o4755, uid: 70_000, gid: 2, mtime: (5_000_000_000, 123_456_789) };
        let inode = self.writer.add(&meta, xattrs, what).unwrap();
        self.entries.push(Name { inode, kind, place: self.names.len() as u32 });
        self.names.push(name);
        self.links.resize(inode as usize + 1, 1);
    }

    fn file(&mut self, name: String, write: impl FnOnce(&mut Writer, &mut Contents)) {
        let mut contents = Contents::default();
        write(&mut self.writer, &mut contents);
        self.add(name, &[], file_type::REG, Kind::File(contents));
    }

    fn finish(mut self) -> u64 {
        let names = self.names;
        let mut read = |place: u32, into: &mut [u8; 255]| {
            let name = names[place as usize].as_bytes();
            into[..name.len()].copy_from_slice(name);
            Ok(name.len())
        };
        self.writer.directory(ROOT, ROOT, &self.entries, 0, &mut read).unwrap();
        self.writer.directory(LOST_AND_FOUND, ROOT, &[], LOST_AND_FOUND_SPARE, &mut read).unwrap();
        self.writer.finish(&mut self.links).unwrap()
    }
}

#[test]
fn an_empty_filesystem_is_whole_and_grows_to_200_gib() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let length = Flat::new(&image).finish();
    assert_eq!(std::fs::metadata(&image).unwrap().len(), length);
    check(&image);
    run("/bin/dd", &["if=/dev/zero", &format!("of={}", image.display()), "bs=1", "count=0", "seek=200G"]);
    run("/sbin/resize2fs", &[image.to_str().unwrap()]);
    check(&image);
    assert!(run("/sbin/dumpe2fs", &["-h", image.to_str().unwrap()]).contains("Block count:              52428800"));
}

#[test]
fn files_of_every_shape_are_found_as_they_came() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let mut flat = Flat::new(&image);
    let mut expected = BTreeMap::new();
    // Less than a block, a block, pieces that meet no block's edge, holes of each size, zeros that become a hole.
    for (n, pieces) in [
        vec![(5usize, 0u64)],
        vec![(4096, 0)],
        vec![(3000, 0), (3000, 0), (10_000, 0)],
        vec![(100, 5000), (1, 0)],
        vec![(0, 1 << 20), (5000, 0), (0, 3 << 20)],
        vec![(4096, 4096 * 15), (4096, 4096 * 16), (4096, 7)],
        vec![(300_000, 0)],
        vec![(0, 40)],
        vec![],
    ]
    .into_iter()
    .enumerate()
    {
        let mut bytes = Vec::new();
        flat.file(format!("f{n}"), |writer, contents| {
            for (data, hole) in pieces {
                let piece: Vec<u8> = (0..data).map(|n| (n % 251) as u8 + 1).collect();
                writer.data(contents, &piece).unwrap();
                writer.hole(contents, hole).unwrap();
                bytes.extend(piece);
                bytes.resize(bytes.len() + hole as usize, 0);
            }
        });
        expected.insert(format!("f{n}"), bytes);
    }
    // Extents of three levels: 340 a block, 4 in the inode.
    flat.file("many".to_owned(), |writer, contents| {
        for n in 0..4000u32 {
            writer.data(contents, &[1 + (n % 250) as u8; 4096]).unwrap();
            writer.hole(contents, 64 << 10).unwrap();
        }
    });
    flat.add("fast".to_owned(), &[], file_type::SYMLINK, Kind::Symlink(&[b'x'; 59]));
    flat.add("slow".to_owned(), &[], file_type::SYMLINK, Kind::Symlink(&[b'y'; 200]));
    flat.add("old".to_owned(), &[], file_type::CHR, Kind::Character(5, 1));
    flat.add("new".to_owned(), &[], file_type::BLK, Kind::Block(259, 70_000));
    flat.add("fifo".to_owned(), &[], file_type::FIFO, Kind::Fifo);
    let xattrs = vec![
        (b"user.small".to_vec(), b"v".to_vec()),
        (b"user.large".to_vec(), vec![b'l'; 3000]),
        (b"trusted.x".to_vec(), vec![]),
    ];
    flat.add("attributes".to_owned(), &xattrs, file_type::REG, Kind::File(Contents::default()));
    flat.finish();
    check(&image);
    let out = dir.path().join("out");
    for (name, bytes) in expected {
        debugfs(&image, &format!("dump /{name} {}", out.display()));
        assert!(std::fs::read(&out).unwrap() == bytes, "{name}");
    }
    debugfs(&image, &format!("dump /many {}", out.display()));
    let many = std::fs::read(&out).unwrap();
    assert!(many.chunks(68 << 10).enumerate().all(|(n, piece)| piece[..4096] == [1 + (n % 250) as u8; 4096]
        && piece[4096..] == [0; 64 << 10][..piece.len() - 4096]));
    for (command, words) in [
        ("stat /f0", "Mode:  04755"),
        ("stat /f0", "User: 70000   Group:     2"),
        ("stat /f0", "mtime: 0x2a05f200:1d6f3455"),
        ("stat /slow", "Size: 200"),
        ("stat /old", "Device major/minor number: 05:01"),
        ("stat /new", "Device major/minor number: 259:70000"),
        ("ea_list /attributes", "user.large (3000)"),
        ("ea_list /attributes", "user.small (1) = \"v\""),
        ("stat /f4", "(256-257)"),
    ] {
        let said = debugfs(&image, command);
        assert!(said.contains(words), "{command}: {said}");
    }
}

#[test]
fn a_directory_of_100_000_names_is_a_tree_that_the_checker_takes() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let mut flat = Flat::new(&image);
    for n in 0..100_000 {
        // Some of 255 bytes, so that there are more leaves than the root leads to.
        let name = if n % 5 == 0 { format!("{n:0>255}") } else { format!("name-{n}") };
        flat.add(name, &[], file_type::FIFO, Kind::Fifo);
    }
    flat.finish();
    check(&image);
    assert!(debugfs(&image, &format!("stat /{:0>255}", 99_995)).contains("FIFO"));
    assert!(debugfs(&image, "stat /name-77777").contains("FIFO"));
    assert!(debugfs(&image, "htree_dump /").contains("Indirect levels: 1"));
}

#[test]
fn what_no_name_leads_to_is_free_and_takes_no_room() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let mut flat = Flat::new(&image);
    for n in 0..40 {
        flat.file(format!("f{n}"), |writer, contents| writer.data(contents, &vec![n + 1; 1 << 20]).unwrap());
    }
    // All but two of them are hidden.
    for entry in flat.entries.drain(3..) {
        flat.links[entry.inode as usize] = 0;
    }
    flat.finish();
    check(&image);
    let used = std::fs::metadata(&image).unwrap().blocks() * 512;
    assert!(used < 5 << 20, "{used}");
}

#[test]
fn what_ext4_cannot_hold_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut flat = Flat::new(&dir.path().join("image"));
    let meta = Meta { mode: 0o644, uid: 0, gid: 0, mtime: (i64::MAX, 0) };
    let mut add = |name: &[u8], value: Vec<u8>| {
        flat.writer.add(&meta, &[(name.to_vec(), value)], Kind::File(Contents::default()))
    };
    assert!(matches!(add(b"user.x", vec![0; 5000]), Err(Error::Refused(_))));
    assert!(matches!(add(b"user.", vec![]), Err(Error::Refused(_))));
    assert!(matches!(add(b"system.posix_acl_access", vec![1, 2, 3]), Err(Error::Refused(_))));
    assert!(add(b"com.vendor.x", vec![0; 5000]).is_ok(), "what Linux does not know is left out");
    assert!(matches!(flat.writer.add(&meta, &[], Kind::Character(1 << 20, 0)), Err(Error::Refused(_))));
}
