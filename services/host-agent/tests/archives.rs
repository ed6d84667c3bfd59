//! Stories of images in one file: what one host sends, another takes bit by bit, and what is damaged or hostile is refused and leaves nothing.

use std::{fs, path::Path, path::PathBuf, process::Command, sync::Arc, time::Duration};

use bus::{Bus, BusConfig, ByteStream};
use contract::{
    ApiError, ErrorCode, ImageId, OperationId, SessionId,
    agent::{
        DiscardRequest, ExportBundleRequest, Fence, PublishRequest, PushStatus, PushedBundle, StageRequest,
        StageSource, StageStatus, StagedImage,
    },
    image::{FileSource, ImageSource},
};
use host_agent::image::{ImageOptions, ImageStore, Limits, Sources};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use testkit::{
    Nats,
    image::{Layer, Layout, Packing},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

struct Host {
    images: Arc<ImageStore>,
    state: PathBuf,
    files: PathBuf,
    _dir: tempfile::TempDir,
}

fn fence() -> Fence {
    Fence { operation: OperationId::new(), epoch: 1 }
}

impl Host {
    fn start(limits: Limits, bus: &Bus) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (state, files) = (dir.path().join("state"), dir.path().join("files"));
        fs::create_dir(&files).unwrap();
        let images =
            ImageStore::open(&state, ImageOptions { limits, high_water: 100, ..ImageOptions::default() }).unwrap();
        images.take_from(Sources { bus: Some(bus.clone()), dirs: vec![files.clone()] });
        Self { images, state, files, _dir: dir }
    }

    async fn staged(&self, source: StageSource) -> Result<(ImageId, StagedImage), ApiError> {
        let fence = fence();
        match self.images.stage(&StageRequest { fence, source, wait_ms: 120_000 }).await.unwrap() {
            StageStatus::Done { .. } => {
                let image = ImageId::new();
                Ok((image, self.images.publish(&PublishRequest { fence, image }).await.unwrap()))
            }
            StageStatus::Failed { error } => Err(error),
            running => panic!("{running:?}"),
        }
    }

    async fn imported(&self, archive: &[u8]) -> Result<(ImageId, StagedImage), ApiError> {
        let path = self.files.join("archive.tar");
        fs::write(&path, archive).unwrap();
        self.staged(StageSource::Archive { from: FileSource::Path(path.display().to_string()) }).await
    }

    async fn exported(&self, bus: &Bus, image: ImageId) -> (Vec<u8>, PushedBundle) {
        let session = SessionId::new();
        let mut stream = ByteStream::open_within(bus, session, Duration::from_secs(60)).await.unwrap();
        let request =
            ExportBundleRequest { fence: fence(), image, kernel: None, name: "web".into(), session, wait_ms: 120_000 };
        let taking = tokio::spawn(async move {
            let mut archive = Vec::new();
            stream.read_to_end(&mut archive).await.unwrap();
            stream.shutdown().await.unwrap();
            stream.closed().await;
            archive
        });
        match self.images.export(&request).await.unwrap() {
            PushStatus::Done { pushed } => (taking.await.unwrap(), pushed),
            other => panic!("{other:?}"),
        }
    }

    fn assert_no_staging(&self) {
        assert_eq!(testkit::lab::entries(&self.state.join("staging")), Vec::<String>::new());
    }
}

fn write_layout(dir: &Path) -> StageSource {
    let content: Vec<u8> = (0..600_000u32).flat_map(|n| (n.wrapping_mul(2_654_435_761)).to_le_bytes()).collect();
    let layer = Layer::new(Packing::Gzip).dir("bin", 0o755).file("bin/su", 0o4755, b"setuid");
    let layer = layer.file("big", 0o600, &content).file("zeros", 0o644, &vec![0; 3 << 20]);
    Layout::new(vec![layer]).config(json!({ "Cmd": ["/bin/su"] })).write(dir).unwrap();
    ImageSource::Layout { path: dir.display().to_string(), reference: None }.into()
}

async fn bus(nats: &Nats) -> Bus {
    Bus::connect(&BusConfig::new(nats.url(), "test")).await.unwrap()
}

fn index(archive: &[u8]) -> Value {
    let mut tar = tar::Archive::new(archive);
    let index = tar.entries().unwrap().find(|entry| entry.as_ref().unwrap().path_bytes() == &b"index.json"[..]);
    serde_json::from_reader(index.unwrap().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_host_exports_another_imports_bit_by_bit() {
    let nats = Nats::start().await;
    let bus = bus(&nats).await;
    let (here, there) = (Host::start(Limits::default(), &bus), Host::start(Limits::default(), &bus));
    let (id, image) = here.staged(write_layout(&here.files.join("layout"))).await.unwrap();
    let (archive, exported) = here.exported(&bus, id).await;
    assert_eq!(exported.sent_bytes, archive.len() as u64);
    assert!(exported.sent_bytes < image.rootfs_bytes / 4, "{exported:?}");
    here.assert_no_staging();

    let (other, imported) = there.imported(&archive).await.unwrap();
    assert_eq!((&imported.digest, &imported.config), (&exported.image, &image.config));
    let (original, copy) = (here.images.rootfs(id).unwrap(), there.images.rootfs(other).unwrap());
    assert!(fs::read(original).unwrap() == fs::read(&copy).unwrap(), "the root filesystems differ");
    assert!(Command::new("e2fsck").arg("-fn").arg(&copy).output().unwrap().status.success());
    // From there on it is the same archive.
    let (again, onward) = there.exported(&bus, other).await;
    assert_eq!((onward.image, again == archive), (exported.image, true));
    there.assert_no_staging();

    // Other tools read it, and an archive of theirs is an image too.
    let manifest = &index(&archive)["manifests"][0];
    assert_eq!(manifest["annotations"]["org.opencontainers.image.ref.name"], "web");
    let path = there.files.join("archive.tar");
    let read =
        Command::new("skopeo").args(["inspect", "--raw"]).arg(format!("oci-archive:{}:web", path.display())).output();
    if let Ok(read) = read {
        assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
        assert_eq!(format!("sha256:{}", hex::encode(Sha256::digest(&read.stdout))), exported.manifest);
    }
    let foreign = there.files.join("foreign.tar");
    let tarred =
        Command::new("tar").arg("-cf").arg(&foreign).arg("-C").arg(here.files.join("layout")).arg(".").status();
    assert!(tarred.unwrap().success());
    let source = StageSource::Archive { from: FileSource::Path(foreign.display().to_string()) };
    assert_eq!(there.staged(source).await.unwrap().1.digest, image.digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_that_break_off_are_damaged_or_lie_leave_nothing() {
    let nats = Nats::start().await;
    let bus = bus(&nats).await;
    let here = Host::start(Limits::default(), &bus);
    let (id, _) = here.staged(write_layout(&here.files.join("layout"))).await.unwrap();
    let (archive, _) = here.exported(&bus, id).await;
    let published = testkit::lab::entries(&here.state.join("images"));
    // The last one: what the index says beside digests is not covered by any.
    let find = |what: &[u8]| archive.windows(what.len()).rposition(|window| window == what).unwrap();

    let mut refused = Vec::new();
    for end in [0, 100, 512, 1024, 3000, archive.len() / 2, archive.len() - 2000] {
        refused.push((format!("cut at {end}"), archive[..end].to_vec()));
    }
    for at in [
        find(b"schemaVersion"),
        find(b"mediaType\":\"application/vnd.warren.image.config"),
        archive.len() / 2,
        archive.len() - 5000,
    ] {
        let mut damaged = archive.clone();
        damaged[at] ^= 0x20;
        refused.push((format!("damaged at {at}"), damaged));
    }
    // A member of another's name, and names that lead elsewhere.
    let mut renamed = tar::Builder::new(Vec::new());
    for (name, text) in [
        ("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#.to_owned()),
        ("index.json", json!({ "schemaVersion": 2, "manifests": [{ "digest": "sha256:../../../../etc/passwd", "size": 7, "mediaType": "x" }] }).to_string()),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        renamed.append_data(&mut header, name, text.as_bytes()).unwrap();
    }
    refused.push(("a digest that is a path".into(), renamed.into_inner().unwrap()));
    refused.push(("gzip".into(), [&[0x1f, 0x8b, 8, 0][..], &archive].concat()));
    refused.push(("text".into(), b"hello".to_vec()));
    for (what, bytes) in refused {
        let error = here.imported(&bytes).await.map(|_| panic!("{what} is an image")).unwrap_err();
        assert!(error.code != ErrorCode::Internal && !error.message.contains("staging"), "{what}: {error:?}");
        here.assert_no_staging();
    }
    assert_eq!(testkit::lab::entries(&here.state.join("images")), published);

    // A link in place of a blob is no blob.
    let dir = here.files.join("linked");
    fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    fs::write(dir.join("oci-layout"), "{}").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.join("index.json")).unwrap();
    let linked = here.files.join("linked.tar");
    assert!(Command::new("tar").arg("-cf").arg(&linked).arg("-C").arg(&dir).arg(".").status().unwrap().success());
    let source = StageSource::Archive { from: FileSource::Path(linked.display().to_string()) };
    let error = here.staged(source).await.unwrap_err();
    assert!(!error.message.contains("root:"), "{error}");
    here.assert_no_staging();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_whose_taker_goes_or_that_is_called_off_leaves_nothing() {
    let nats = Nats::start().await;
    let bus = bus(&nats).await;
    let here = Host::start(Limits::default(), &bus);
    let (id, _) = here.staged(write_layout(&here.files.join("layout"))).await.unwrap();
    for called_off in [false, true] {
        let (session, fence) = (SessionId::new(), fence());
        let mut stream = ByteStream::open_within(&bus, session, Duration::from_secs(60)).await.unwrap();
        let request = ExportBundleRequest { fence, image: id, kernel: None, name: "web".into(), session, wait_ms: 0 };
        here.images.export(&request).await.unwrap();
        stream.read_exact(&mut [0; 700]).await.unwrap();
        if called_off {
            here.images.discard(&DiscardRequest { fence }).await.unwrap();
            assert_eq!(here.images.export(&request).await.unwrap_err().code, ErrorCode::Aborted);
            let told = stream.read_to_end(&mut Vec::new()).await.unwrap_err();
            assert!(told.to_string().contains("called off"), "{told}");
        } else {
            drop(stream);
            match here.images.export(&ExportBundleRequest { wait_ms: 60_000, ..request }).await.unwrap() {
                PushStatus::Failed { error } => assert_eq!(error.code, ErrorCode::Unavailable, "{error}"),
                other => panic!("{other:?}"),
            }
        }
        here.assert_no_staging();
    }
    let unknown = ExportBundleRequest {
        kernel: None,
        fence: fence(),
        image: ImageId::new(),
        name: "none".into(),
        session: SessionId::new(),
        wait_ms: 0,
    };
    assert_eq!(here.images.export(&unknown).await.unwrap_err().code, ErrorCode::NotFound);
}
