//! What comes out of layers, compared file by file with what `umoci unpack` makes of the same image: the filesystem is
//! mounted read-only and both trees are walked.

mod layers;
mod trees;

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use contract::{
    ImageId, OperationId,
    agent::{Fence, PublishRequest, StageRequest, StageStatus},
    image::ImageSource,
};
use host_agent::image::{ImageOptions, ImageStore};
use tar::EntryType;
use testkit::image::{Layer, Layout};

use layers::{Tar, With};
use trees::{Mounted, assert_same, describe, run};

/// Why there is nothing to compare with here, if so.
fn missing() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("mounting and unpacking with owners need root");
    }
    let umoci = Command::new("umoci").arg("--version").output();
    if umoci.is_err() {
        return Some("umoci is not installed (deploy/check installs it)");
    }
    let free = Command::new("losetup").arg("-f").output();
    (!free.is_ok_and(|output| output.status.success())).then_some("there are no loop devices")
}

/// Gives the layout's only manifest a tag, as umoci wants it.
fn tag(layout: &Path) {
    let path = layout.join("index.json");
    let mut index: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let mut ours = index["manifests"][1].take();
    ours["annotations"] = serde_json::json!({ "org.opencontainers.image.ref.name": "x" });
    index["manifests"] = serde_json::json!([ours]);
    fs::write(path, index.to_string()).unwrap();
}

/// Both trees of an image, Warren's first.
async fn both(dir: &Path, layers: Vec<Layer>) -> [BTreeMap<PathBuf, String>; 2] {
    let layout = dir.join("layout");
    Layout::new(layers).write(&layout).unwrap();
    tag(&layout);
    let bundle = dir.join("bundle");
    run("umoci", &["unpack", "--image", &format!("{}:x", layout.display()), bundle.to_str().unwrap()]);
    let mounted = staged(dir, &layout).await;
    [describe(&mounted.0), describe(&bundle.join("rootfs"))]
}

/// An image staged and published as users do, found whole by the checker, and mounted.
async fn staged(dir: &Path, layout: &Path) -> Mounted {
    let options = ImageOptions { high_water: 100, ..ImageOptions::default() };
    let images: Arc<ImageStore> = ImageStore::open(&dir.join("state"), options).unwrap();
    let fence = Fence { operation: OperationId::new(), epoch: 1 };
    let source = ImageSource::Layout { path: layout.display().to_string(), reference: None };
    let status = images.stage(&StageRequest { fence, source: source.into(), wait_ms: 300_000 }).await.unwrap();
    assert!(matches!(status, StageStatus::Done { .. }), "{status:?}");
    let image = ImageId::new();
    images.publish(&PublishRequest { fence, image }).await.unwrap();
    let rootfs = images.rootfs(image).unwrap();
    run("/sbin/e2fsck", &["-fn", rootfs.to_str().unwrap()]);
    Mounted::new(&rootfs, dir.join("mounted"))
}

const CAPABILITY: &[u8] = b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
/// u::rw-, u:1000:rwx, g::r--, g:50:r-x, m::rwx, o::r--.
const ACL: &[u8] = b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x07\0\xe8\x03\0\0\x04\0\x04\0\xff\xff\xff\xff\x08\0\x05\0\x32\0\0\0\x10\0\x07\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff";

fn lower() -> Tar {
    let big: Vec<u8> = (0..700_000u32).flat_map(u32::to_le_bytes).collect();
    let long = format!("deep/{0}/{0}/{0}/{1}", "d".repeat(200), "n".repeat(255));
    let with = |xattrs| With { xattrs, ..With::default() };
    Tar::new()
        .dir(".", 0o755)
        .dir("usr/", 0o755)
        .dir("usr/bin", 0o2755)
        .add(b"usr/bin/su", EntryType::Regular, 0o4755, b"setuid", &With { owner: (0, 42), ..With::default() })
        .add(b"usr/bin/ping", EntryType::Regular, 0o755, b"ping", &with(&[("security.capability", CAPABILITY)]))
        .add(
            b"usr/bin/large-owner",
            EntryType::Regular,
            0o640,
            b"o",
            &With { owner: (1_999_999, 70_000), ..With::default() },
        )
        .link("bin", EntryType::Symlink, "usr/bin")
        .link("long-link", EntryType::Symlink, &"x/".repeat(100))
        .dir("tmp", 0o1777)
        .dir("etc", 0o755)
        .file("etc/gone", 0o644, b"hidden by the next layer")
        .file("etc/kept", 0o644, b"kept")
        .dir("etc/dir-to-file", 0o755)
        .file("etc/dir-to-file/inside", 0o644, b"")
        .file("etc/file-to-dir", 0o644, b"")
        .dir("opt", 0o755)
        .file("opt/old", 0o644, b"old")
        .dir("opt/sub", 0o700)
        .file("opt/sub/old", 0o644, b"old")
        .file("shared", 0o600, b"one file, many names")
        .link("shared-too", EntryType::Link, "shared")
        .file("big", 0o600, &big)
        .file("zeros", 0o600, &vec![0; 3 << 20])
        .file("empty", 0o400, b"")
        .dir("deep", 0o755)
        .dir(&format!("deep/{}", "d".repeat(200)), 0o755)
        .dir(&format!("deep/{0}/{0}", "d".repeat(200)), 0o755)
        .dir(&format!("deep/{0}/{0}/{0}", "d".repeat(200)), 0o755)
        .file(&long, 0o644, b"long")
        .add(b"caf\xe9 \xff\xfe", EntryType::Regular, 0o644, b"bytes", &With::default())
        .add(
            b"attributes",
            EntryType::Regular,
            0o644,
            b"a",
            &with(&[("user.one", b"1"), ("user.two", &[b'2'; 1500]), ("trusted.three", b"\0\xff")]),
        )
        .add(b"acl", EntryType::Regular, 0o674, b"a", &with(&[("system.posix_acl_access", ACL)]))
        .add(b"acl-dir", EntryType::Directory, 0o775, b"", &with(&[("system.posix_acl_default", ACL)]))
        .add(b"old-time", EntryType::Regular, 0o644, b"", &With { mtime: "-1.5", ..With::default() })
        .add(b"late", EntryType::Regular, 0o644, b"", &With { mtime: "4800000000.000000001", ..With::default() })
        .dir("dev", 0o755)
        .add(b"dev/null", EntryType::Char, 0o666, b"", &With { device: (1, 3), ..With::default() })
        .add(
            b"dev/disk",
            EntryType::Block,
            0o660,
            b"",
            &With { device: (259, 70_000), owner: (0, 6), ..With::default() },
        )
        .add(b"dev/pipe", EntryType::Fifo, 0o600, b"", &With::default())
}

fn middle() -> Tar {
    Tar::new()
        .file("etc/.wh.gone", 0o644, b"")
        .file("etc/.wh.never-was", 0o644, b"")
        .dir("etc", 0o711)
        .dir("opt", 0o755)
        .file("opt/.wh..wh..opq", 0o644, b"")
        .file("opt/new", 0o644, b"new")
        .dir("opt/sub", 0o750)
        .file("opt/sub/new", 0o644, b"new")
        .file("etc/dir-to-file", 0o644, b"a file now")
        .dir("etc/file-to-dir", 0o755)
        .file("etc/file-to-dir/inside", 0o644, b"inside")
        .file("bin/through-the-link", 0o755, b"x")
        .link("linked-across", EntryType::Link, "shared")
        .link("usr/bin/sudo", EntryType::Link, "bin/su")
}

fn upper() -> Tar {
    Tar::new()
        .link("shared-three", EntryType::Link, "linked-across")
        .file(".wh.zeros", 0o644, b"")
        .file("zeros", 0o644, b"made anew where it was hidden")
        .add(
            b"usr/bin",
            EntryType::Directory,
            0o755,
            b"",
            &With { owner: (5, 6), mtime: "1700000000.5", ..With::default() },
        )
        .file(".wh.dev", 0o644, b"")
        .link("etc/kept", EntryType::Symlink, "/etc/elsewhere")
}

#[tokio::test(flavor = "multi_thread")]
async fn three_layers_come_out_as_umoci_unpacks_them() {
    if let Some(why) = missing() {
        println!("skipped: {why}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut layers = Vec::new();
    for (n, tar) in [lower(), middle(), upper()].into_iter().enumerate() {
        layers.push(Layer::from_tar(&tar.write(&dir.path().join(format!("{n}.tar")))).unwrap());
    }
    assert_same(both(dir.path(), layers).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_debian_tree_comes_out_as_umoci_unpacks_it() {
    let tar = std::env::var_os("WARREN_TEST_DEBIAN_TAR");
    let Some(tar) = tar.filter(|_| missing().is_none()) else {
        println!("skipped: {}", missing().unwrap_or("WARREN_TEST_DEBIAN_TAR is not set (deploy/check makes it)"));
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let layer = Layer::from_tar(Path::new(OsStr::new(&tar))).unwrap();
    assert_same(both(dir.path(), vec![layer]).await);
}

/// umoci cannot read all of these formats, so GNU tar is what they are compared with.
#[tokio::test(flavor = "multi_thread")]
async fn files_with_holes_come_out_as_gnu_tar_unpacks_them() {
    if let Some(why) = missing() {
        println!("skipped: {why}");
        return;
    }
    for format in [
        &["--format=gnu"][..],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (tree, theirs) = (dir.path().join("tree"), dir.path().join("theirs"));
        fs::create_dir(&tree).unwrap();
        fs::create_dir(&theirs).unwrap();
        let sparse = fs::File::create(tree.join("sparse")).unwrap();
        for n in 0..50u64 {
            std::os::unix::fs::FileExt::write_all_at(&sparse, &[n as u8; 5000], n * 100_000).unwrap();
        }
        // At the very end, so that what ends an archive is not taken for the file's.
        std::os::unix::fs::FileExt::write_all_at(&sparse, &[1], (20 << 20) - 1).unwrap();
        let tar = dir.path().join("tar");
        let [tree, out, archive] = [&tree, &theirs, &tar].map(|path| path.to_str().unwrap());
        run("tar", &[&["-C", tree, "--sparse"], format, &["-cf", archive, "."]].concat());
        run("tar", &["-C", out, "--numeric-owner", "-xpf", archive]);
        let layout = dir.path().join("layout");
        Layout::new(vec![Layer::from_tar(&tar).unwrap()]).write(&layout).unwrap();
        let mounted = staged(dir.path(), &layout).await;
        assert_same([describe(&mounted.0), describe(&theirs)]);
    }
}
