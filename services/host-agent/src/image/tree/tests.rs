use tokio_util::sync::CancellationToken;

use super::*;
use crate::image::ext4::{Contents, Kind, Meta};

struct Fixture {
    _dir: tempfile::TempDir,
    tree: Tree,
    writer: Writer,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let writer = Writer::create(&dir.path().join("image"), [7; 16], 0, CancellationToken::new()).unwrap();
        let mut tree = Tree::new(dir.path()).unwrap();
        tree.next_layer();
        Self { tree, writer, _dir: dir }
    }

    fn walk(&mut self, path: &str, how: Walk) -> Found {
        let parts: Vec<&[u8]> = path.split('/').filter(|part| !part.is_empty()).map(str::as_bytes).collect();
        self.tree.walk(&mut self.writer, &parts, how).unwrap()
    }

    fn add(&mut self, path: &str, kind: Kind<'_>) -> bool {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let Found::Directory(parent) = self.walk(parent, Walk::Make) else { return false };
        let meta = Meta { mode: 0o644, uid: 0, gid: 0, mtime: (0, 0) };
        let bits = if matches!(kind, Kind::Symlink(_)) { file_type::SYMLINK } else { file_type::REG };
        let inode = self.writer.add(&meta, &[], kind).unwrap();
        self.tree.put(parent, name.as_bytes(), Target::Other { inode, kind: bits }).unwrap();
        true
    }

    fn file(&mut self, path: &str) -> bool {
        self.add(path, Kind::File(Contents::default()))
    }

    fn there(&mut self, path: &str) -> bool {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        match self.walk(parent, Walk::Look) {
            Found::Directory(parent) => self.tree.get(parent, name.as_bytes()).unwrap().is_some(),
            _ => false,
        }
    }

    fn directory(&mut self, path: &str) -> u32 {
        let Found::Directory(directory) = self.walk(path, Walk::Look) else { panic!("{path}") };
        directory
    }
}

#[test]
fn whiteouts_hide_lower_layers_only_wherever_they_stand() {
    let mut fixture = Fixture::new();
    for path in ["etc/a", "etc/b", "opt/x", "opt/sub/lower", "var/y/deep", "var/z"] {
        assert!(fixture.file(path));
    }
    fixture.tree.next_layer();
    let (etc, opt) = (fixture.directory("etc"), fixture.directory("opt"));
    fixture.tree.hide(etc, b"a").unwrap();
    fixture.tree.hide(etc, b"nothing").unwrap();
    // Before the marker and after it: both are of this layer.
    fixture.file("opt/before");
    fixture.file("opt/sub/new");
    fixture.tree.clean(opt).unwrap();
    fixture.file("opt/after");
    // A name that the layer made is not hidden by its own whiteout, what is below it of lower layers is.
    fixture.file("var/y/new");
    fixture.tree.hide(ROOT, b"var").unwrap();
    for (path, there) in [
        ("etc/a", false),
        ("etc/b", true),
        ("opt/x", false),
        ("opt/before", true),
        ("opt/after", true),
        ("opt/sub/new", true),
        ("opt/sub/lower", false),
        ("var/y/new", true),
        ("var/y/deep", false),
        ("var/z", false),
        ("lost+found", true),
    ] {
        assert_eq!(fixture.there(path), there, "{path}");
    }
}

#[test]
fn a_symlinked_parent_is_followed_inside_and_never_outside() {
    let mut fixture = Fixture::new();
    fixture.file("usr/bin/sh");
    fixture.add("bin", Kind::Symlink(b"usr/bin"));
    fixture.add("out", Kind::Symlink(b"../../../usr"));
    fixture.add("absolute", Kind::Symlink(b"/usr/../../usr/bin"));
    fixture.add("loop", Kind::Symlink(b"loop"));
    fixture.add("ahead", Kind::Symlink(b"/not/yet"));
    fixture.add("long", Kind::Symlink("./".repeat(100).as_bytes()));
    fixture.tree.next_layer();
    for path in ["bin/ls", "out/inside", "absolute/cat", "ahead/made", "long/top"] {
        assert!(fixture.file(path), "{path}");
    }
    for path in ["usr/bin/ls", "usr/inside", "usr/bin/cat", "not/yet/made", "top"] {
        assert!(fixture.there(path), "{path}");
    }
    assert!(!fixture.file("loop/x"));
    assert!(!fixture.file("usr/bin/sh/x"));
    // Forty links to a long way through dots end too.
    for n in 0..50 {
        fixture.add(&format!("chain{n}"), Kind::Symlink(format!("{}chain{}", "usr/../".repeat(400), n + 1).as_bytes()));
    }
    assert!(!fixture.file("chain0/x"));
}

#[test]
fn many_names_are_found_again_and_cost_little() {
    let mut fixture = Fixture::new();
    for n in 0..60_000 {
        let parent = fixture.walk(&format!("d{}", n % 50), Walk::Make);
        let Found::Directory(parent) = parent else { panic!() };
        let target = Target::Other { inode: 12 + n, kind: file_type::FIFO };
        fixture.tree.put(parent, format!("name-{n}").as_bytes(), target).unwrap();
    }
    fixture.tree.next_layer();
    let gone = fixture.directory("d7");
    fixture.tree.clean(gone).unwrap();
    for n in (0..60_000).step_by(997) {
        assert_eq!(fixture.there(&format!("d{}/name-{n}", n % 50)), n % 50 != 7, "{n}");
    }
    for n in 0..60_000 {
        let Found::Directory(parent) = fixture.walk("again", Walk::Make) else { panic!() };
        fixture
            .tree
            .put(parent, format!("name-{n}").as_bytes(), Target::Other { inode: 12, kind: file_type::FIFO })
            .unwrap();
    }
    assert!(fixture.there("again/name-59999") && fixture.there("d1/name-1"));
}
