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
    ErrorCode, ImageId, KernelId, OperationId,
    agent::{
        DiscardRequest, Fence, PublishKernelRequest, PublishRequest, PushBundleRequest, PushStatus, PushedBundle,
        ResolveRequest, StageKernelRequest, StageKernelSource, StageKernelStatus, StageRequest, StageStatus,
        StagedImage, VmKernel,
    },
    image::ImageSource,
};
use host_agent::{
    image::{ImageOptions, ImageStore, Limits},
    kernel::{KernelObjects, KernelOptions},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use testkit::{
    Nats,
    image::{Layer, Layout, Packing},
    registry::Registry,
};

fn store(state: &Path, limits: Limits) -> Arc<ImageStore> {
    let images = ImageStore::open(state, ImageOptions { limits, high_water: 100, ..ImageOptions::default() }).unwrap();
    images.keep_kernels(kernels(state));
    images
}

/// The kernels of a host; what lies in its directory `offered` may be imported.
fn kernels(state: &Path) -> Arc<KernelObjects> {
    let options = KernelOptions { allowed: vec![state.join("offered")], high_water: 100 };
    KernelObjects::open(state, options).unwrap()
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
    pushed_with(images, image, None, reference).await
}

async fn pushed_with(
    images: &Arc<ImageStore>,
    image: ImageId,
    kernel: Option<&VmKernel>,
    reference: &str,
) -> Result<PushedBundle, contract::ApiError> {
    let kernel = kernel.cloned();
    let request = PushBundleRequest { fence: fence(), image, kernel, reference: reference.to_owned(), wait_ms: 60_000 };
    match images.push(&request).await? {
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
    let request = PushBundleRequest { fence, image: id, kernel: None, reference, wait_ms: 0 };
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
    /// Kernels: their layer, and the digest each is said to have.
    kernels: Vec<(Vec<u8>, String)>,
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
        Self { raw: size, raw_digest: sha(raw), layer, layer_digest: None, layers: 1, kernels: vec![], format: "ext4" }
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
        let mut layers = vec![layer; self.layers];
        for (bytes, digest) in &self.kernels {
            let mut kernel = put(bytes, sha(bytes));
            kernel["mediaType"] = json!("application/vnd.warren.kernel.v1.tar+zstd");
            kernel["annotations"] = json!({ "warren.kernel.digest": digest });
            layers.push(kernel);
        }
        let manifest = json!({
            "schemaVersion": 2, "artifactType": "application/vnd.warren.image.v1",
            "config": put(config.as_bytes(), sha(config.as_bytes())), "layers": layers,
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

/// A kernel as far as it is looked at: an ELF file with a PVH note that says its release.
fn vmlinux(release: &str) -> Vec<u8> {
    let mut elf = vec![0; 64 + 56];
    elf[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
    for (at, bytes) in [
        (16, &2u16.to_le_bytes()[..]),
        (18, &62u16.to_le_bytes()),
        (20, &1u32.to_le_bytes()),
        (32, &64u64.to_le_bytes()),
        (52, &64u16.to_le_bytes()),
        (54, &56u16.to_le_bytes()),
        (56, &1u16.to_le_bytes()),
        (64, &4u32.to_le_bytes()),
        (72, &120u64.to_le_bytes()),
        (96, &20u64.to_le_bytes()),
        (104, &20u64.to_le_bytes()),
        (112, &4u64.to_le_bytes()),
    ] {
        elf[at..at + bytes.len()].copy_from_slice(bytes);
    }
    let words = [4u32, 4, 18].into_iter().flat_map(u32::to_le_bytes);
    let note = words.chain(*b"Xen\0\0\0\0\x01").collect::<Vec<_>>();
    let banner = format!("Linux version %s\0Linux version {release} (builder@host) #1\0");
    [elf, note, banner.into_bytes()].concat()
}

/// All that stands in a directory, also what is only staged.
fn all(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

/// A kernel that a host has.
async fn kernel_of(state: &Path, release: &str) -> VmKernel {
    let nats = Nats::start().await;
    let bus = bus::Bus::connect(&bus::BusConfig::new(nats.url(), "test")).await.unwrap();
    let (objects, path) = (kernels(state), state.join("offered/vmlinux"));
    fs::create_dir_all(state.join("offered")).unwrap();
    fs::write(&path, vmlinux(release)).unwrap();
    let (fence, source) = (fence(), StageKernelSource::Path(path.display().to_string()));
    let request = StageKernelRequest { fence, source, digest: None, wait_ms: 60_000 };
    let status = objects.stage(&bus, &request).await.unwrap();
    let StageKernelStatus::Done { kernel } = status else { panic!("{status:?}") };
    let id = KernelId::new();
    objects.publish(PublishKernelRequest { fence, kernel: id }).await.unwrap();
    VmKernel { id, digest: kernel.digest, release: kernel.release }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_goes_along_and_the_image_is_the_same_with_and_without() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second, source) = (dir.path().join("first"), dir.path().join("second"), dir.path().join("layout"));
    write_image(&source);
    let (registry, here) = (Registry::start().await, store(&first, Limits::default()));
    let (id, _) = staged(&here, layout(&source)).await.unwrap();
    let kernel = kernel_of(&first, "6.1.0-9").await;
    let reference = registry.reference("kernels/web", "1");
    let once = pushed_with(&here, id, Some(&kernel), &reference).await.unwrap();
    let again = pushed_with(&here, id, Some(&kernel), &reference).await.unwrap();
    assert_eq!(again, PushedBundle { sent_bytes: 0, ..once.clone() });
    let bare = pushed(&here, id, &registry.reference("kernels/web", "bare")).await.unwrap();
    assert_eq!((&bare.image, bare.sent_bytes), (&once.image, 0));
    assert_ne!(bare.manifest, once.manifest);

    let there = store(&second, Limits::default());
    let source = ImageSource::Registry(reference);
    let resolved = there.resolve(&ResolveRequest { source: source.clone() }).await.unwrap();
    assert_eq!((resolved.kernel.as_ref(), resolved.layers.len()), (Some(&kernel.digest), 2));
    // Called off, it leaves neither.
    let entries = |what: &str| all(&second.join(what));
    let request = StageRequest { fence: fence(), source: source.clone().into(), wait_ms: 60_000 };
    assert!(matches!(there.stage(&request).await.unwrap(), StageStatus::Done { .. }));
    assert_eq!((entries("staging").len(), entries("kernel-objects").len()), (1, 1));
    there.discard(&DiscardRequest { fence: request.fence }).await.unwrap();
    assert_eq!((entries("staging").len(), entries("kernel-objects").len()), (0, 0));

    let request = StageRequest { fence: fence(), ..request };
    let status = there.stage(&request).await.unwrap();
    let StageStatus::Done { image } = status else { panic!("{status:?}") };
    assert_eq!(
        (&image.digest, image.kernel.as_ref().map(|kernel| &kernel.digest)),
        (&once.image, Some(&kernel.digest))
    );
    // Published by an agent that was started anew.
    let (there, objects) = (store(&second, Limits::default()), kernels(&second));
    let (other, came) = (ImageId::new(), VmKernel { id: KernelId::new(), ..kernel.clone() });
    objects.publish(PublishKernelRequest { fence: request.fence, kernel: came.id }).await.unwrap();
    there.publish(&PublishRequest { fence: request.fence, image: other }).await.unwrap();
    there.discard(&DiscardRequest { fence: request.fence }).await.unwrap();
    objects.check(&came).unwrap();
    assert_eq!(entries("kernel-objects"), [came.id.to_string()]);
    let onward = pushed_with(&there, other, Some(&came), &registry.reference("kernels/copy", "1")).await.unwrap();
    assert_eq!((onward.image, onward.manifest), (once.image, once.manifest));
    // One that is not here is not packed.
    let error = pushed_with(&there, other, Some(&kernel), &registry.reference("kernels/copy", "2")).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::FailedPrecondition, "{error}");
    assert_eq!(entries("staging"), Vec::<String>::new());
}

#[tokio::test]
async fn kernels_that_are_not_what_they_are_said_to_be_are_refused_and_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let ext4 = dir.path().join("ext4");
    let options = ["-q", "-t", "ext4", "-O", "^has_journal"];
    assert!(Command::new("/sbin/mke2fs").args(options).arg(&ext4).arg("1M").status().unwrap().success());
    let raw = fs::read(&ext4).unwrap();
    let digest = kernel_of(&dir.path().join("origin"), "6.1.0-9").await.digest;
    let archive = |files: &[(&str, &[u8])]| {
        let mut archive = tar::Builder::new(Vec::new());
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            archive.append(&header, *bytes).unwrap();
        }
        zstd::encode_all(&archive.into_inner().unwrap()[..], 1).unwrap()
    };
    let kernel = vmlinux("6.1.0-9");
    let honest = archive(&[("boot/vmlinuz", &kernel)]);
    let outside = archive(&[("boot/../../../vmlinuz", &kernel)]);
    let two = archive(&[("boot/vmlinuz", &kernel), ("boot/vmlinux", &kernel)]);
    let stories = [
        ("another kernel", vec![(honest.clone(), sha(b"x"))], Some("the bundle's kernel should be")),
        ("no digest", vec![(honest.clone(), "6.1".to_owned())], Some("no sha256 digest")),
        ("two kernels", vec![(honest.clone(), digest.clone()); 2], Some("more than one kernel")),
        ("two in one", vec![(two, digest.clone())], Some("holds two kernels")),
        ("no kernel", vec![(b"hello".to_vec(), digest.clone())], Some("the bundle's kernel: ")),
        ("cut off", vec![(honest[..honest.len() / 2].to_vec(), digest.clone())], Some("the bundle's kernel: ")),
        ("a path out of it", vec![(outside, digest.clone())], Some("the bundle's kernel: ")),
        ("what is said", vec![(honest, digest)], None),
    ];
    for (story, kernels, words) in stories {
        let (state, source) = (dir.path().join(story), dir.path().join(format!("{story} layout")));
        Forged { kernels, ..Forged::of(&raw) }.write(&source);
        let outcome = staged(&store(&state, Limits::default()), layout(&source)).await;
        assert_eq!(all(&state.join("staging")), Vec::<String>::new(), "{story}");
        let left = all(&state.join("kernel-objects")).len();
        match (words, outcome) {
            (Some(words), Err(error)) => {
                assert!(error.message.contains(words), "{story}: {error}");
                assert_eq!(left, 0, "{story}");
            }
            (None, Ok((_, image))) => assert!(image.kernel.is_some() && left == 1, "{story}"),
            (_, outcome) => panic!("{story}: {outcome:?}"),
        }
    }
}
