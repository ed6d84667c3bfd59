//! Stories of staging: what an image's author packed is what a VM finds, and hostile input ends in a clear error with
//! nothing left behind.

use std::{path::Path, process::Command, sync::Arc};

use contract::{
    ErrorCode, ImageId, OperationId,
    agent::{DiscardRequest, Fence, PublishRequest, RemoveImageRequest, ResolveRequest, StageRequest, StageStatus},
    image::ImageSource,
};
use host_agent::image::{ImageOptions, ImageStore, Limits};
use testkit::image::{Layer, Layout, Packing};

fn store(state: &Path, limits: Limits) -> Arc<ImageStore> {
    ImageStore::open(state, ImageOptions { limits, high_water: 100, ..ImageOptions::default() }).unwrap()
}

fn fence() -> Fence {
    Fence { operation: OperationId::new(), epoch: 1 }
}

fn request(fence: Fence, layout: &Path) -> StageRequest {
    let path = layout.display().to_string();
    StageRequest { fence, source: ImageSource::Layout { path, reference: None }.into(), wait_ms: 60_000 }
}

fn stagings(state: &Path) -> Vec<String> {
    testkit::lab::entries(&state.join("staging"))
}

/// What `debugfs` says of a filesystem, without mounting it.
fn debugfs(image: &Path, command: &str) -> String {
    let output = Command::new("/sbin/debugfs").args(["-R", command]).arg(image).output().expect("debugfs runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn three_layers_become_one_filesystem_as_their_author_meant_it() {
    let dir = tempfile::tempdir().unwrap();
    let (state, layout) = (dir.path().join("state"), dir.path().join("layout"));
    let big: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
    let lower = Layer::new(Packing::Gzip)
        .dir("usr/bin", 0o755)
        .file("usr/bin/su", 0o4755, b"setuid")
        .symlink("bin", "usr/bin")
        .file("etc/gone", 0o644, b"hidden by the next layer")
        .file("opt/old", 0o644, b"hidden by an opaque directory")
        .file("big", 0o600, &big);
    let middle = Layer::new(Packing::Zstd)
        .file("etc/.wh.gone", 0o644, b"")
        .file("opt/.wh..wh..opq", 0o644, b"")
        .file("opt/new", 0o644, b"seen")
        .file("bin/through-the-link", 0o755, b"x")
        .device("dev/null", 1, 3);
    let upper = Layer::new(Packing::Plain).hardlink("usr/bin/sudo", "usr/bin/su").dir("tmp", 0o1777);
    Layout::new(vec![lower, middle, upper]).config(serde_json::json!({ "Cmd": ["/bin/su"] })).write(&layout).unwrap();

    let images = store(&state, Limits::default());
    let fence = fence();
    let StageStatus::Done { image } = images.stage(&request(fence, &layout)).await.unwrap() else { panic!("not done") };
    assert_eq!(image.config.cmd, ["/bin/su"]);
    let id = ImageId::new();
    let published = images.publish(&PublishRequest { fence, image: id }).await.unwrap();
    assert_eq!(published, image);
    // A repeat, also by an agent that has restarted, finds it there.
    let again = store(&state, Limits::default());
    assert_eq!(again.publish(&PublishRequest { fence, image: id }).await.unwrap(), image);
    assert!(matches!(again.stage(&request(fence, &layout)).await.unwrap(), StageStatus::Done { .. }));
    assert_eq!(stagings(&state), Vec::<String>::new());

    let rootfs = images.rootfs(id).unwrap();
    let checked = Command::new("/sbin/e2fsck").args(["-fn"]).arg(&rootfs).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    for (path, expected) in [
        ("/usr/bin/su", "Mode:  04755"),
        ("/usr/bin/su", "Links: 2"),
        ("/bin", "Fast link dest: \"usr/bin\""),
        ("/usr/bin/through-the-link", "Type: regular"),
        ("/dev/null", "Device major/minor number: 01:03"),
        ("/tmp", "Mode:  01777"),
        ("/opt/new", "Type: regular"),
    ] {
        let said = debugfs(&rootfs, &format!("stat {path}"));
        assert!(said.contains(expected), "{path}: {said}");
    }
    for hidden in ["/etc/gone", "/opt/old", "/etc/.wh.gone"] {
        assert!(!debugfs(&rootfs, &format!("stat {hidden}")).contains("Inode"), "{hidden}");
    }
    let copy = dir.path().join("copy");
    debugfs(&rootfs, &format!("dump /big {}", copy.display()));
    assert!(std::fs::read(copy).unwrap() == big);

    images.remove(&RemoveImageRequest { fence, image: id }).await.unwrap();
    images.remove(&RemoveImageRequest { fence, image: id }).await.unwrap();
    assert_eq!(images.rootfs(id).unwrap_err().code, ErrorCode::NotFound);
}

#[tokio::test]
async fn hostile_images_are_refused_and_leave_nothing() {
    let small = Limits { entries: 5, ratio: 20, ratio_from: 1 << 20, ..Limits::default() };
    let many = (0..10).fold(Layer::default(), |layer, n| layer.file(&format!("f{n}"), 0o644, b""));
    let stories = [
        ("leads out", Layer::default().raw(b"../../etc/passwd", b"x"), "leads out"),
        ("a hard link out", Layer::default().hardlink("x", "../../etc/shadow"), "leads out"),
        ("through a file", Layer::default().file("a", 0o644, b"").file("a/b", 0o644, b""), "no directory"),
        ("a link to nothing", Layer::default().hardlink("a", "nowhere"), "hard link to nothing"),
        ("a bomb", Layer::default().file("zeros", 0o644, &vec![0; 8 << 20]), "unpacks to too much"),
        ("too many", many, "more than 5 entries"),
    ];
    for (story, layer, words) in stories {
        let dir = tempfile::tempdir().unwrap();
        let (state, layout) = (dir.path().join("state"), dir.path().join("layout"));
        Layout::new(vec![layer]).write(&layout).unwrap();
        let status = store(&state, small).stage(&request(fence(), &layout)).await.unwrap();
        let StageStatus::Failed { error } = status else { panic!("{story}: {status:?}") };
        assert_eq!(error.code, ErrorCode::InvalidArgument, "{story}: {error}");
        assert!(error.message.contains(words), "{story}: {error}");
        assert_eq!(stagings(&state), Vec::<String>::new(), "{story}");
    }
}

#[tokio::test]
async fn damaged_and_missing_layouts_have_errors_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let (state, layout) = (dir.path().join("state"), dir.path().join("layout"));
    Layout::new(vec![Layer::default().file("a", 0o644, &[7; 100_000])]).write(&layout).unwrap();
    let images = store(&state, Limits::default());
    // The manifest's layer is the largest blob: flip one bit of it.
    let blobs = std::fs::read_dir(layout.join("blobs/sha256")).unwrap().flatten();
    let largest = blobs.max_by_key(|blob| blob.metadata().unwrap().len()).unwrap().path();
    let mut bytes = std::fs::read(&largest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&largest, bytes).unwrap();
    for (path, code, words) in [
        (layout.clone(), ErrorCode::FailedPrecondition, "digest mismatch"),
        (dir.path().join("nowhere"), ErrorCode::NotFound, "no OCI image layout"),
    ] {
        let fence = fence();
        let StageStatus::Failed { error } = images.stage(&request(fence, &path)).await.unwrap() else { panic!() };
        assert_eq!(error.code, code, "{error}");
        assert!(error.message.contains(words), "{error}");
        // Asked again, it is the same answer, until it is discarded; then a late command is refused.
        assert!(matches!(images.stage(&request(fence, &path)).await.unwrap(), StageStatus::Failed { .. }));
        images.discard(&DiscardRequest { fence }).await.unwrap();
        assert_eq!(images.stage(&request(fence, &path)).await.unwrap_err().code, ErrorCode::Aborted);
        assert_eq!(stagings(&state), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_disk_without_room_is_said_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (state, layout) = (dir.path().join("state"), dir.path().join("layout"));
    Layout::new(vec![Layer::default().file("a", 0o644, b"a")]).write(&layout).unwrap();
    let greedy = Limits { reserve: u64::MAX / 2, ..Limits::default() };
    let status = store(&state, greedy).stage(&request(fence(), &layout)).await.unwrap();
    let StageStatus::Failed { error } = status else { panic!("{status:?}") };
    assert_eq!(error.code, ErrorCode::ResourceExhausted);
    assert_eq!(stagings(&state), Vec::<String>::new());
}

#[tokio::test]
async fn unpacking_is_told_in_packed_bytes_of_all_layers() {
    let dir = tempfile::tempdir().unwrap();
    let (state, layout) = (dir.path().join("state"), dir.path().join("layout"));
    // Numbers in a row pack to about a third, so that packed and unpacked bytes cannot be taken for each other.
    let big: Vec<u8> = (0..8_000_000u32).flat_map(u32::to_le_bytes).collect();
    let layer = |name: &str, packing| Layer::new(packing).file(name, 0o644, &big);
    Layout::new(vec![layer("a", Packing::Gzip), layer("b", Packing::Zstd)]).write(&layout).unwrap();
    let images = store(&state, Limits::default());
    let source = ImageSource::Layout { path: layout.display().to_string(), reference: None };
    let resolved = images.resolve(&ResolveRequest { source }).await.unwrap();
    let packed: u64 = resolved.layers.iter().sum();
    let request = StageRequest { wait_ms: 1, ..request(fence(), &layout) };
    let mut told = Vec::new();
    loop {
        match images.stage(&request).await.unwrap() {
            StageStatus::Running { phase, progress } if phase == "unpacking" => {
                told.push((progress.done, progress.total))
            }
            StageStatus::Running { .. } => {}
            StageStatus::Done { .. } => break,
            StageStatus::Failed { error } => panic!("{error}"),
        }
    }
    assert!(told.iter().all(|(done, total)| *total == packed && done <= total), "{packed}: {told:?}");
    assert!(told.is_sorted() && told.iter().any(|(done, _)| (1..packed).contains(done)), "{packed}: {told:?}");
}

/// Disks of VMs that nobody may ask for.
struct Untouched;

#[async_trait::async_trait]
impl host_agent::image::Disks for Untouched {
    async fn copy(
        &self,
        vm: contract::VmId,
        copying: host_agent::image::Copying,
    ) -> Result<host_agent::image::Copied, contract::ApiError> {
        panic!("the disk of {vm} was copied to {}", copying.into.display());
    }
}

#[tokio::test]
async fn a_promotion_is_refused_while_the_disk_is_over_its_mark() {
    let dir = tempfile::tempdir().unwrap();
    let images = ImageStore::open(dir.path(), ImageOptions { high_water: 0, ..ImageOptions::default() }).unwrap();
    let disks: Arc<dyn host_agent::image::Disks> = Arc::new(Untouched);
    images.attach(Arc::downgrade(&disks));
    let source = contract::agent::StageSource::Vm { vm: contract::VmId::new(), ssh_keys: vec![], keep_identity: false };
    let status = images.stage(&StageRequest { fence: fence(), source, wait_ms: 30_000 }).await.unwrap();
    let StageStatus::Failed { error } = status else { panic!("{status:?}") };
    assert_eq!(error.code, ErrorCode::ResourceExhausted, "{error}");
    assert!(error.message.contains("WARREN_DISK_HIGH_WATER") && error.hint.is_some(), "{error:?}");
    assert_eq!(stagings(dir.path()), Vec::<String>::new());
}
