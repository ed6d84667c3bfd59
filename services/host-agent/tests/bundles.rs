//! Stories of bundles: what one host packs and pushes, another has bit by bit, and what is not what it says is refused.

use std::{
    fs,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    process::Command,
    sync::Arc,
    time::Instant,
};

use contract::{
    ErrorCode, ImageId, OperationId,
    agent::{
        DiscardRequest, Fence, PublishRequest, PushBundleRequest, PushStatus, PushedBundle, StageRequest, StageStatus,
        StagedImage,
    },
    image::ImageSource,
};
use host_agent::image::{ImageOptions, ImageStore, Limits};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use testkit::{
    image::{Layer, Layout, Packing},
    registry::Registry,
};

fn store(state: &Path, limits: Limits) -> Arc<ImageStore> {
    ImageStore::open(state, ImageOptions { limits, ..ImageOptions::default() }).unwrap()
}

fn fence() -> Fence {
    Fence { operation: OperationId::new(), epoch: 1 }
}

async fn staged(images: &Arc<ImageStore>, source: ImageSource) -> Result<(ImageId, StagedImage), contract::ApiError> {
    let fence = fence();
    match images.stage(&StageRequest { fence, source: source.into(), wait_ms: 60_000 }).await.unwrap() {
        StageStatus::Done { .. } => {
            let id = ImageId::new();
            Ok((id, images.publish(&PublishRequest { fence, image: id }).await.unwrap()))
        }
        StageStatus::Failed { error } => Err(error),
        running => panic!("{running:?}"),
    }
}

async fn pushed(images: &Arc<ImageStore>, image: ImageId, reference: &str) -> Result<PushedBundle, contract::ApiError> {
    let request = PushBundleRequest { fence: fence(), image, reference: reference.to_owned(), wait_ms: 60_000 };
    match images.push(&request).await.unwrap() {
        PushStatus::Done { pushed } => Ok(pushed),
        PushStatus::Failed { error } => Err(error),
        running => panic!("{running:?}"),
    }
}

fn layout(dir: &Path) -> ImageSource {
    ImageSource::Layout { path: dir.display().to_string(), reference: None }
}

/// An image with contents of some MiB, part of it zeros.
fn write_image(dir: &Path) {
    let content: Vec<u8> = (0..1_500_000u32).flat_map(|n| (n.wrapping_mul(2_654_435_761)).to_le_bytes()).collect();
    let layer =
        Layer::new(Packing::Gzip).dir("bin", 0o755).file("bin/su", 0o4755, b"setuid").file("big", 0o600, &content);
    Layout::new(vec![layer.file("zeros", 0o644, &vec![0; 3 << 20])])
        .config(json!({ "Cmd": ["/bin/su"] }))
        .write(dir)
        .unwrap();
}

fn assert_clean(rootfs: &Path) {
    let checked = Command::new("/sbin/e2fsck").args(["-fn"]).arg(rootfs).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_host_pushes_another_has_bit_by_bit() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second, source) = (dir.path().join("first"), dir.path().join("second"), dir.path().join("layout"));
    write_image(&source);
    let registry = Registry::start().await;
    let here = store(&first, Limits::default());
    let began = Instant::now();
    let (id, image) = staged(&here, layout(&source)).await.unwrap();
    let built = began.elapsed();
    let reference = registry.reference("bundles/web", "1");
    let once = pushed(&here, id, &reference).await.unwrap();
    assert!(once.sent_bytes > once.bundle_bytes && once.bundle_bytes < image.rootfs_bytes, "{once:?}");
    // The registry has it all now, whatever it is called.
    let again = pushed(&here, id, &registry.reference("bundles/web", "2")).await.unwrap();
    assert_eq!(again, PushedBundle { sent_bytes: 0, ..once.clone() });

    let there = store(&second, Limits::default());
    let began = Instant::now();
    let (other, pulled) = staged(&there, ImageSource::Registry(reference.clone())).await.unwrap();
    println!("built in {built:?}, pulled as a bundle in {:?}", began.elapsed());
    assert_eq!((&pulled.digest, pulled.rootfs_bytes, &pulled.config), (&once.image, image.rootfs_bytes, &image.config));
    let (original, copy) = (here.rootfs(id).unwrap(), there.rootfs(other).unwrap());
    assert!(fs::read(original).unwrap() == fs::read(&copy).unwrap(), "the root filesystems differ");
    assert_clean(&copy);
    assert!(copy.metadata().unwrap().blocks() * 512 < image.rootfs_bytes / 2, "it is written without its holes");

    // From there it goes on under the same digests.
    let onward = pushed(&there, other, &registry.reference("bundles/copy", "1")).await.unwrap();
    assert_eq!((onward.image, onward.manifest), (once.image, once.manifest));
    for state in [&first, &second] {
        assert_eq!(testkit::lab::entries(&state.join("staging")), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_gone_and_a_push_that_is_called_off_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (state, source) = (dir.path().join("state"), dir.path().join("layout"));
    write_image(&source);
    let images = store(&state, Limits::default());
    let (id, _) = staged(&images, layout(&source)).await.unwrap();
    let registry = Registry::start().await;
    let reference = registry.reference("bundles/web", "1");
    registry.stop();
    let error = pushed(&images, id, &reference).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable, "{error}");
    let error = pushed(&images, id, "127.0.0.1:1/x@sha256:12").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidArgument, "{error}");

    let fence = fence();
    let request = PushBundleRequest { fence, image: id, reference, wait_ms: 0 };
    assert!(matches!(images.push(&request).await.unwrap(), PushStatus::Running { .. }));
    images.discard(&DiscardRequest { fence }).await.unwrap();
    assert_eq!(images.push(&request).await.unwrap_err().code, ErrorCode::Aborted);
    let unknown = PushBundleRequest {
        fence: Fence { operation: OperationId::new(), epoch: 1 },
        image: ImageId::new(),
        ..request
    };
    assert_eq!(images.push(&unknown).await.unwrap_err().code, ErrorCode::NotFound);
    assert_eq!(testkit::lab::entries(&state.join("staging")), Vec::<String>::new());
}

/// A bundle in a layout, in the making: what is said of it may be a lie.
struct Forged {
    raw: u64,
    raw_digest: String,
    layer: Vec<u8>,
    layer_digest: Option<String>,
    layers: usize,
    format: &'static str,
}

fn sha(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn packed(raw: u64, table: &[u32], frames: &[u8]) -> Vec<u8> {
    let length = u32::try_from(24 + table.len() * 4).unwrap();
    let table = table.iter().flat_map(|length| length.to_le_bytes()).collect::<Vec<_>>();
    let head = [&0x184D_2A57u32.to_le_bytes()[..], &length.to_le_bytes(), b"warren-rootfs-1\0", &raw.to_le_bytes()];
    [&head.concat()[..], &table, frames].concat()
}

impl Forged {
    /// A root filesystem of one chunk.
    fn of(raw: &[u8]) -> Self {
        let frame = zstd::bulk::compress(raw, 3).unwrap();
        let size = raw.len() as u64;
        let layer = packed(size, &[u32::try_from(frame.len()).unwrap()], &frame);
        Self { raw: size, raw_digest: sha(raw), layer, layer_digest: None, layers: 1, format: "ext4" }
    }

    fn write(&self, dir: &Path) {
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let put = |bytes: &[u8], digest: String| -> Value {
            fs::write(blobs.join(digest.trim_start_matches("sha256:")), bytes).unwrap();
            json!({ "digest": digest, "size": bytes.len() })
        };
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = format!(
            r#"{{"mediaType":"application/vnd.warren.image.config.v1+json","architecture":"{architecture}","rootfs":{{"format":"{}","digest":"{}","size":{}}},"config":{{"entrypoint":[],"cmd":[],"env":[],"workingDir":"","user":""}}}}"#,
            self.format, self.raw_digest, self.raw
        );
        let mut layer = put(&self.layer, self.layer_digest.clone().unwrap_or_else(|| sha(&self.layer)));
        layer["mediaType"] = json!("application/vnd.warren.rootfs.v1+zstd");
        let manifest = json!({
            "schemaVersion": 2, "artifactType": "application/vnd.warren.image.v1",
            "config": put(config.as_bytes(), sha(config.as_bytes())), "layers": vec![layer; self.layers],
        });
        let bytes = serde_json::to_vec(&manifest).unwrap();
        let index = json!({ "schemaVersion": 2, "manifests": [put(&bytes, sha(&bytes))] });
        fs::write(dir.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
        fs::write(dir.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    }
}

#[tokio::test]
async fn bundles_that_lie_are_refused_and_leave_nothing() {
    let raw = vec![7u8; 8192];
    let frame = zstd::bulk::compress(&vec![7u8; 1 << 20], 3).unwrap();
    let bomb = packed(8192, &[u32::try_from(frame.len()).unwrap()], &frame);
    let honest = || Forged::of(&raw);
    let longer = [&honest().layer[..], b"more"].concat();
    let cut = honest().layer[..honest().layer.len() - 1].to_vec();
    let mut torn = honest().layer;
    *torn.last_mut().unwrap() ^= 1;
    let stories = [
        ("no filesystem", honest(), "no ext4"),
        ("another root filesystem", Forged { raw_digest: sha(b"x"), ..honest() }, "digest mismatch"),
        ("another layer", Forged { layer_digest: Some(sha(b"x")), ..honest() }, "digest mismatch"),
        ("another size", Forged { raw: 4096, ..honest() }, "of another size"),
        ("over the limit", Forged { raw: 1 << 50, ..honest() }, "more than"),
        ("a frame too large for its chunk", Forged { layer: bomb, ..honest() }, "cannot be unpacked"),
        ("a table that reaches beyond", Forged { layer: cut, ..honest() }, "the layer has"),
        ("bytes behind the last frame", Forged { layer: longer, ..honest() }, "the layer has"),
        ("a giant frame", Forged { layer: packed(8192, &[u32::MAX], b""), ..honest() }, "has a frame of"),
        ("a torn frame", Forged { layer: torn, ..honest() }, "chunk 0"),
        ("no table", Forged { layer: b"warren".to_vec(), ..honest() }, "shorter"),
        ("two root filesystems", Forged { layers: 2, ..honest() }, "not exactly one"),
        ("no root filesystem", Forged { layers: 0, ..honest() }, "not exactly one"),
        ("another format", Forged { format: "xfs", ..honest() }, "cannot be used"),
    ];
    for (story, forged, words) in stories {
        let dir = tempfile::tempdir().unwrap();
        let (state, source) = (dir.path().join("state"), dir.path().join("layout"));
        forged.write(&source);
        let error = staged(&store(&state, Limits::default()), layout(&source)).await.unwrap_err();
        assert!(error.message.contains(words), "{story}: {error}");
        assert_eq!(testkit::lab::entries(&state.join("staging")), Vec::<String>::new(), "{story}");
    }
}

#[tokio::test]
async fn holes_and_zeros_are_the_same_image() {
    let dir = tempfile::tempdir().unwrap();
    let (state, source) = (dir.path().join("state"), dir.path().join("layout"));
    write_image(&source);
    let images = store(&state, Limits::default());
    let (id, image) = staged(&images, layout(&source)).await.unwrap();
    let registry = Registry::start().await;
    let sparse = pushed(&images, id, &registry.reference("a", "1")).await.unwrap();
    let rootfs = images.rootfs(id).unwrap();
    let bytes = fs::read(&rootfs).unwrap();
    fs::OpenOptions::new().write(true).open(&rootfs).unwrap().write_all_at(&bytes, 0).unwrap();
    assert!(rootfs.metadata().unwrap().blocks() * 512 >= image.rootfs_bytes);
    assert_eq!(pushed(&images, id, &registry.reference("b", "1")).await.unwrap().manifest, sparse.manifest);
}
