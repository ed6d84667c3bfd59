//! Hostile images through the real staging: each ends in an error that says what was wrong and leaves nothing, or, where it
//! is legal, in the tree its author meant, inside of the image.

mod layers;

use std::{fs, io::Write as _, path::Path, process::Command, sync::Arc};

use contract::{
    ApiError, ErrorCode, ImageId, OperationId,
    agent::{Fence, PublishRequest, StageRequest, StageStatus},
    image::ImageSource,
};
use host_agent::image::{ImageOptions, ImageStore, Limits};
use layers::{Tar, With};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::EntryType::{self, Link, Symlink};

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A layer that may say of itself what is not so.
struct Told {
    packed: Vec<u8>,
    diff_id: String,
    size: u64,
}

impl Told {
    fn plain(tar: Vec<u8>) -> Self {
        Self { diff_id: digest(&tar), size: tar.len() as u64, packed: tar }
    }

    fn packed(tar: &[u8], pack: impl FnOnce(&[u8]) -> Vec<u8>) -> Self {
        let packed = pack(tar);
        Self { diff_id: digest(tar), size: packed.len() as u64, packed }
    }
}

impl From<Tar> for Told {
    fn from(tar: Tar) -> Self {
        Self::plain(tar.bytes())
    }
}

/// An image layout in the making, blob by blob.
struct Layout<'a>(&'a Path);

impl Layout<'_> {
    fn put(&self, bytes: &[u8]) -> Value {
        let blobs = self.0.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join(&digest(bytes)[7..]), bytes).unwrap();
        json!({ "digest": digest(bytes), "size": bytes.len() })
    }

    fn index(&self, document: &Value) {
        fs::write(self.0.join("index.json"), document.to_string()).unwrap();
        fs::write(self.0.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    }

    fn image(&self, layers: Vec<Told>) {
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let ids: Vec<_> = layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let config =
            json!({ "architecture": architecture, "os": "linux", "rootfs": { "type": "layers", "diff_ids": ids } });
        let config = self.put(config.to_string().as_bytes());
        let mut described = Vec::new();
        for layer in layers {
            let mut descriptor = self.put(&layer.packed);
            descriptor["size"] = json!(layer.size);
            described.push(descriptor);
        }
        let manifest =
            self.put(json!({ "schemaVersion": 2, "config": config, "layers": described }).to_string().as_bytes());
        self.index(&json!({ "schemaVersion": 2, "manifests": [manifest] }));
    }
}

/// Stages what was written to `dir/layout`.
async fn stage(dir: &Path, limits: Limits) -> (Arc<ImageStore>, Fence, Result<(), ApiError>) {
    let images =
        ImageStore::open(&dir.join("state"), ImageOptions { limits, high_water: 100, ..ImageOptions::default() })
            .unwrap();
    let fence = Fence { operation: OperationId::new(), epoch: 1 };
    let source = ImageSource::Layout { path: dir.join("layout").display().to_string(), reference: None };
    let status = images.stage(&StageRequest { fence, source: source.into(), wait_ms: 120_000 }).await.unwrap();
    let outcome = match status {
        StageStatus::Done { .. } => Ok(()),
        StageStatus::Failed { error } => Err(error),
        StageStatus::Running { .. } => panic!("a hostile image keeps a host busy"),
    };
    (images, fence, outcome)
}

/// An image that must be refused with these words, and leave nothing.
async fn refused(story: &str, write: impl FnOnce(&Layout<'_>), limits: Limits, code: ErrorCode, words: &str) {
    let dir = tempfile::tempdir().unwrap();
    write(&Layout(&dir.path().join("layout")));
    let (_images, _, outcome) = stage(dir.path(), limits).await;
    let error = outcome.expect_err(story);
    assert_eq!(error.code, code, "{story}: {error}");
    assert!(error.message.contains(words), "{story}: {error}");
    assert_eq!(testkit::lab::entries(&dir.path().join("state/staging")), Vec::<String>::new(), "{story}");
}

/// An image that is legal: its root filesystem, found whole by the checker, asked with `debugfs`.
async fn taken(layers: Vec<Told>, limits: Limits, ask: &[(&str, &str)]) {
    let dir = tempfile::tempdir().unwrap();
    Layout(&dir.path().join("layout")).image(layers);
    let (images, fence, outcome) = stage(dir.path(), limits).await;
    outcome.unwrap();
    let image = ImageId::new();
    images.publish(&PublishRequest { fence, image }).await.unwrap();
    let rootfs = images.rootfs(image).unwrap();
    let run = |tool: &str, arguments: &[&str]| {
        let output = Command::new(tool).args(arguments).arg(&rootfs).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{tool} {arguments:?}: {text}");
        text
    };
    run("/sbin/e2fsck", &["-fn"]);
    for (command, words) in ask {
        let said = run("/sbin/debugfs", &["-R", command]);
        assert!(said.contains(words), "{command}: {said}");
    }
}

fn file(path: &[u8]) -> Tar {
    Tar::new().add(path, EntryType::Regular, 0o644, b"x", &With::default())
}

#[tokio::test]
async fn entries_that_lead_out_or_are_no_files_are_refused() {
    let escapes = vec![
        ("dots", vec![file(b"../../etc/passwd").into()], "leads out"),
        ("dots inside", vec![file(b"a/../../b").into()], "leads out"),
        ("a hard link out", vec![Tar::new().link("x", Link, "../../etc/shadow").into()], "leads out"),
        (
            "a hard link out, through a link of an earlier layer",
            vec![Tar::new().link("out", Symlink, "/etc").into(), Tar::new().link("x", Link, "out/shadow").into()],
            "hard link to nothing",
        ),
        (
            "a hard link to a directory",
            vec![Tar::new().dir("d", 0o755).link("x", Link, "d").into()],
            "link to a directory",
        ),
        ("through a file", vec![file(b"a").into(), file(b"a/b").into()], "no directory"),
        (
            "through a circle",
            vec![Tar::new().link("a", Symlink, "b").link("b", Symlink, "a").into(), file(b"a/x").into()],
            "no directory",
        ),
        ("a root that is a file", vec![file(b"./").into()], "makes the root"),
        ("a name with a zero", vec![file(b"a\0b").into()], "no filesystem takes"),
        ("a name of 256 bytes", vec![file(&[b'n'; 256]).into()], "no filesystem takes"),
        ("a path of 5000 bytes", vec![file(&b"a/".repeat(2500)).into()], "4096 bytes"),
        ("a whiteout of nothing", vec![file(b"etc/.wh.").into()], "hides nothing"),
        ("a whiteout of dots", vec![file(b"etc/.wh...").into()], "hides nothing"),
        ("no lost+found", vec![file(b"lost+found").into()], "lost+found"),
    ];
    for (story, layers, words) in escapes {
        refused(story, |layout| layout.image(layers), Limits::default(), ErrorCode::InvalidArgument, words).await;
    }
    let devices = Tar::new().add(b"dev/sda", EntryType::Block, 0o600, b"", &With { device: (8, 0), ..With::default() });
    let none = Limits { devices: false, ..Limits::default() };
    refused("a device", |layout| layout.image(vec![devices.into()]), none, ErrorCode::InvalidArgument, "is a device")
        .await;
}

#[tokio::test]
async fn links_lead_to_places_of_the_image_only() {
    let lower = Tar::new()
        .link("abs", Symlink, "/etc")
        .link("up", Symlink, "../../../../etc")
        .link("chain", Symlink, "abs/../up")
        .link("gone", Symlink, "/tmp/never/was");
    let upper = file(b"abs/one").add(b"up/two", EntryType::Regular, 0o644, b"2", &With::default());
    let upper =
        upper.file("chain/three", 0o644, b"3").file("gone/four", 0o644, b"4").file("/absolute/five", 0o644, b"5");
    let ask = [
        ("stat /etc/one", "Type: regular"),
        ("stat /etc/two", "Type: regular"),
        ("stat /etc/three", "Type: regular"),
        ("stat /tmp/never/was/four", "Type: regular"),
        ("stat /absolute/five", "Type: regular"),
        ("stat /abs", "Type: symlink"),
    ];
    taken(vec![lower.into(), upper.into()], Limits::default(), &ask).await;
    assert!(!Path::new("/etc/one").exists() && !Path::new("/tmp/never").exists() && !Path::new("/absolute").exists());
}

#[tokio::test]
async fn bombs_and_floods_go_no_further_than_the_limits() {
    let zeros = || Tar::new().file("zeros", 0o644, &vec![0; 8 << 20]).bytes();
    let tight = Limits { ratio: 20, ratio_from: 1 << 20, ..Limits::default() };
    let invalid = ErrorCode::InvalidArgument;
    let gzipped = Told::packed(&zeros(), gzip);
    refused("gzip", |layout| layout.image(vec![gzipped]), tight, invalid, "unpacks to too much").await;
    let zstd = Told::packed(&zeros(), |tar| zstd::encode_all(tar, 3).unwrap());
    refused("zstd", |layout| layout.image(vec![zstd]), tight, invalid, "unpacks to too much").await;
    let wide = Told::packed(&zeros(), |tar| {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(27).unwrap();
        encoder.write_all(tar).unwrap();
        encoder.finish().unwrap()
    });
    refused("a window of 128 MiB", |layout| layout.image(vec![wide]), Limits::default(), invalid, "cannot be unpacked")
        .await;
    let small = Limits { unpacked: 1 << 20, ..Limits::default() };
    let over: Vec<Told> = (0..4).map(|n| Tar::new().file(&format!("f{n}"), 0o644, &vec![7; 400_000]).into()).collect();
    refused("all layers together", |layout| layout.image(over), small, invalid, "unpacks to too much").await;
    // Holes of more than a host takes: old GNU's format, which needs no data at all.
    let mut header = tar::Header::new_gnu();
    header.set_path("hole").unwrap();
    header.set_entry_type(EntryType::GNUSparse);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    header.as_gnu_mut().unwrap().realsize.copy_from_slice(b"77777777777\0");
    header.set_cksum();
    let sparse = || Told::plain([header.as_bytes().as_slice(), &[0; 1024]].concat());
    let under = Limits { unpacked: 1 << 30, ..Limits::default() };
    refused("holes", |layout| layout.image(vec![sparse()]), under, invalid, "more than 1073741824 bytes").await;
    taken(vec![sparse()], Limits::default(), &[("stat /hole", "Size: 8589934591")]).await;

    let few = Limits { entries: 50, ..Limits::default() };
    let flood = (0..60).fold(Tar::new(), |tar, n| tar.file(&format!("f{n}"), 0o644, b""));
    refused("entries", |layout| layout.image(vec![flood.into()]), few, invalid, "more than 50 entries").await;
    let implied = file(&b"d/".repeat(100)[..199]);
    let implied = implied.file("after", 0o644, b"");
    refused(
        "directories nobody describes",
        |layout| layout.image(vec![implied.into()]),
        few,
        invalid,
        "more than 50 entries",
    )
    .await;
    let repeated = (0..60).fold(Tar::new(), |tar, _| tar.file("again", 0o644, b""));
    refused(
        "one name again and again",
        |layout| layout.image(vec![repeated.into()]),
        few,
        invalid,
        "more than 50 entries",
    )
    .await;
}

#[tokio::test]
async fn what_is_not_what_it_says_is_refused() {
    let tar = || Tar::new().file("a", 0o644, &[7; 100_000]).bytes();
    let story = |told: Told, code, words: &'static str| (vec![told], code, words);
    let mut wrong = Told::plain(tar());
    wrong.diff_id = digest(b"something else");
    let mut short = Told::plain(tar());
    short.size -= 1000;
    let mut long = Told::plain(tar());
    long.size += 1000;
    let mut cut = gzip(&tar());
    cut.truncate(cut.len() / 2);
    let cut = Told { diff_id: digest(&tar()), size: cut.len() as u64, packed: cut };
    let (bytes, invalid, mismatch) = (tar(), ErrorCode::InvalidArgument, ErrorCode::FailedPrecondition);
    for (n, (layers, code, words)) in [
        story(wrong, mismatch, "digest mismatch"),
        story(short, mismatch, "instead of"),
        story(long, mismatch, "instead of"),
        story(cut, invalid, "cannot be unpacked"),
        story(Told::plain(bytes[..70_000].to_vec()), invalid, "middle of a file"),
        story(Told::plain(b"no archive at all".repeat(100)), invalid, "no tar archive"),
        // Twice packed bytes are unpacked once, and what comes out is no archive.
        story(Told::plain(gzip(&gzip(&tar()))), invalid, "no tar archive"),
    ]
    .into_iter()
    .enumerate()
    {
        refused(&format!("lie {n}"), |layout| layout.image(layers), Limits::default(), code, words).await;
    }
}

#[tokio::test]
async fn documents_that_lead_nowhere_come_to_an_end() {
    let invalid = ErrorCode::InvalidArgument;
    let nested = |layout: &Layout<'_>| {
        layout.image(vec![Tar::new().file("a", 0o644, b"").into()]);
        let mut index: Value = serde_json::from_slice(&fs::read(layout.0.join("index.json")).unwrap()).unwrap();
        for _ in 0..6 {
            index = json!({ "schemaVersion": 2, "manifests": [layout.put(index.to_string().as_bytes())] });
        }
        layout.index(&index);
    };
    refused("indexes in indexes", nested, Limits::default(), invalid, "nested").await;
    let path = |layout: &Layout<'_>| {
        layout.put(b"");
        layout.index(&json!({ "manifests": [{ "digest": "sha256:../../../../etc/passwd", "size": 5 }] }));
    };
    refused("a digest that is a path", path, Limits::default(), invalid, "no sha256 digest").await;
    let many = |layout: &Layout<'_>| {
        layout.image((0..130).map(|n| Tar::new().file(&format!("f{n}"), 0o644, b"").into()).collect())
    };
    refused("too many layers", many, Limits::default(), invalid, "more than 128 layers").await;
    let deep = |layout: &Layout<'_>| {
        layout.put(b"");
        fs::write(layout.0.join("index.json"), "[".repeat(100_000)).unwrap();
        fs::write(layout.0.join("oci-layout"), "{}").unwrap();
    };
    refused("brackets", deep, Limits::default(), invalid, "cannot be read").await;
}

#[tokio::test]
async fn large_directories_and_long_names_are_no_trouble() {
    let long = "n".repeat(255);
    let mut tar = Tar::new().file(&format!("{long}/{long}"), 0o644, b"x");
    for n in 0..100_000 {
        tar = tar.plain(&format!("many/name-{n}"));
    }
    let path = format!("stat /{long}/{long}");
    let ask = [
        ("stat /many/name-99999", "Type: regular"),
        ("htree_dump /many", "Indirect levels"),
        (path.as_str(), "Type: regular"),
    ];
    taken(vec![tar.into()], Limits::default(), &ask).await;
}

#[tokio::test]
async fn archives_of_layouts_that_are_all_header_are_refused_at_once() {
    // A long name of 60 GiB, of which the archive has a hole; and the same as an extended header and a long link.
    for kind in [EntryType::GNULongName, EntryType::GNULongLink, EntryType::XHeader] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("layout");
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(60 << 30);
        header.set_cksum();
        fs::write(&path, header.as_bytes()).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_len(61 << 30).unwrap();
        let (_images, _, outcome) = stage(dir.path(), Limits::default()).await;
        let error = outcome.unwrap_err();
        assert!(error.message.contains("more than 1048576 bytes"), "{error}");
        assert_eq!(testkit::lab::entries(&dir.path().join("state/staging")), Vec::<String>::new());
    }
    // Names without end: each is within its bounds, all together are not.
    let dir = tempfile::tempdir().unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(900 << 10);
    header.set_cksum();
    let mut entry = tar::Header::new_gnu();
    entry.set_size(0);
    entry.set_cksum();
    let path = dir.path().join("layout");
    let each = (900 << 10) + 1024;
    let archive = fs::File::create(&path).unwrap();
    for n in 0..300 {
        std::os::unix::fs::FileExt::write_all_at(&archive, header.as_bytes(), n * each).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&archive, entry.as_bytes(), (n + 1) * each - 512).unwrap();
    }
    let (_images, _, outcome) = stage(dir.path(), Limits::default()).await;
    let error = outcome.unwrap_err();
    assert!(error.message.contains("bytes around them"), "{error}");
}
