//! Stories of directories: what a host tells of its images, what makes room for what, and what is removed without a row.

use std::{fs, os::unix::fs::MetadataExt, path::Path, sync::Arc};

use contract::{
    ErrorCode, ImageId, OperationId,
    agent::{
        DiscardRequest, Fence, ImageHere, Inventory, InventoryRequest, PublishRequest, ReclaimRequest, StageRequest,
        StageStatus,
    },
    image::ImageSource,
};
use host_agent::image::{ImageOptions, ImageStore};
use testkit::image::{Layer, Layout};

struct Host {
    dir: tempfile::TempDir,
    images: Arc<ImageStore>,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let images = open(dir.path());
        let layout = |name: &str| {
            let layer = Layer::default().file("etc/hostname", 0o644, name.as_bytes());
            Layout::new(vec![layer]).write(&dir.path().join(name)).unwrap();
        };
        layout("a");
        layout("b");
        Self { dir, images }
    }

    fn place(&self, image: ImageId) -> std::path::PathBuf {
        self.dir.path().join("state/images").join(image.to_string())
    }

    /// Stages one of the two layouts.
    async fn stage(&self, layout: &str) -> Fence {
        let fence = Fence { operation: OperationId::new(), epoch: 3 };
        let path = self.dir.path().join(layout).display().to_string();
        let source = ImageSource::Layout { path, reference: None };
        let request = StageRequest { fence, source: source.into(), wait_ms: 60_000 };
        let status = self.images.stage(&request).await.unwrap();
        assert!(matches!(status, StageStatus::Done { .. }), "{status:?}");
        fence
    }

    async fn publish(&self, fence: Fence, image: ImageId) -> Result<(), ErrorCode> {
        self.images.publish(&PublishRequest { fence, image }).await.map(drop).map_err(|error| error.code)
    }

    async fn published(&self, layout: &str) -> (Fence, ImageId) {
        let (fence, image) = (self.stage(layout).await, ImageId::new());
        self.publish(fence, image).await.unwrap();
        (fence, image)
    }

    async fn reclaim(&self, image: ImageId, operations: &[Fence]) -> Result<(), ErrorCode> {
        let operations = operations.iter().map(|fence| fence.operation).collect();
        self.images.reclaim(&ReclaimRequest { image, operations }).await.map_err(|error| error.code)
    }

    async fn inventory(&self) -> Inventory {
        self.images.inventory(&InventoryRequest::default()).await.unwrap()
    }

    async fn here(&self, image: ImageId) -> ImageHere {
        self.inventory().await.images.into_iter().find(|here| here.image == image).unwrap()
    }
}

fn open(dir: &Path) -> Arc<ImageStore> {
    ImageStore::open(&dir.join("state"), ImageOptions { high_water: 100, ..ImageOptions::default() }).unwrap()
}

#[tokio::test]
async fn a_host_tells_what_stands_there() {
    let mut host = Host::new();
    let (first, whole) = host.published("a").await;
    let (_, cut) = host.published("b").await;
    let (_, bare) = host.published("b").await;
    fs::File::options().write(true).open(host.place(cut).join("rootfs.ext4")).unwrap().set_len(4096).unwrap();
    fs::write(host.place(bare).join("manifest.json"), "{").unwrap();
    let staged = host.stage("a").await;
    for stray in ["images/somebody's", "staging/notes", "images/0190b6f0-0000-7000-8000-00000000dead"] {
        fs::write(host.dir.path().join("state").join(stray), "x").unwrap();
    }
    let trash = host.dir.path().join("state/staging/.trash-0190b6f0-0000-7000-8000-00000000dead");
    fs::create_dir(&trash).unwrap();

    let inventory = host.inventory().await;
    assert_eq!(inventory.images.iter().map(|here| here.image).collect::<Vec<_>>(), [whole, cut, bare]);
    let here = &inventory.images[0];
    assert_eq!((here.operations.as_slice(), here.damage.as_ref()), ([first.operation].as_slice(), None));
    assert!(here.digest.as_ref().unwrap().starts_with("sha256:") && here.disk_bytes > 0 && here.age_s < 60, "{here:?}");
    assert!(inventory.images[1].damage.as_ref().unwrap().contains("4096"), "{inventory:?}");
    assert_eq!((inventory.images[2].operations.len(), inventory.images[2].digest.as_ref()), (0, None));
    let (staging, strays) =
        (&inventory.stagings[0], ["images/0190b6f0-0000-7000-8000-00000000dead", "images/somebody's", "staging/notes"]);
    assert_eq!((staging.operation, staging.working, staging.epoch), (staged.operation, false, 3));
    assert_eq!((inventory.stagings.len(), inventory.strays.as_slice()), (1, strays.map(str::to_owned).as_slice()));
    let rest = host.images.inventory(&InventoryRequest { after: Some(whole) }).await.unwrap();
    assert_eq!((rest.images.len(), rest.stagings.len(), rest.strays.len(), rest.more), (2, 0, 0, false));

    // A new agent removes what was about to be removed, and no staging: whose operation goes on it cannot know.
    host.images = open(host.dir.path());
    assert!(!trash.exists());
    let staging = host.inventory().await.stagings.remove(0);
    assert_eq!((staging.operation, staging.epoch), (staged.operation, 0));
    host.images.discard(&DiscardRequest { fence: staged }).await.unwrap();
    assert_eq!(host.inventory().await.stagings, []);
}

#[tokio::test]
async fn what_was_published_anew_is_not_reclaimed() {
    let host = Host::new();
    let (first, image) = host.published("a").await;
    let inode = fs::metadata(host.place(image).join("rootfs.ext4")).unwrap().ino();
    // Another operation staged the same, and its publication finds it there.
    let second = host.stage("a").await;
    for fence in [second, second, first] {
        host.publish(fence, image).await.unwrap();
    }
    assert_eq!(host.here(image).await.operations, [first.operation, second.operation]);
    assert_eq!(fs::metadata(host.place(image).join("rootfs.ext4")).unwrap().ino(), inode, "VMs may build on it");
    assert_eq!(host.inventory().await.stagings, []);
    assert_eq!(host.reclaim(image, &[first]).await, Err(ErrorCode::FailedPrecondition));
    assert_eq!(host.here(image).await.damage, None);
    // Twice, as a repeat would.
    for _ in 0..2 {
        host.reclaim(image, &[first, second]).await.unwrap();
    }
    let left = host.inventory().await;
    assert_eq!((left.images, left.stagings, left.strays), (vec![], vec![], vec![]));
}

#[tokio::test]
async fn a_reclaim_and_a_publication_at_once_leave_the_image_whole_or_staged() {
    let host = Host::new();
    for _ in 0..30 {
        let (first, image) = host.published("a").await;
        let second = host.stage("a").await;
        let listed = [first];
        let (published, reclaimed) = tokio::join!(host.publish(second, image), host.reclaim(image, &listed));
        published.unwrap();
        let here = host.here(image).await;
        assert_eq!(here.damage, None);
        // Either came first.
        match reclaimed {
            Ok(()) => assert_eq!(here.operations, [second.operation]),
            Err(code) => assert_eq!((code, here.operations.len()), (ErrorCode::FailedPrecondition, 2)),
        }
        assert_eq!(host.inventory().await.stagings, []);
    }
}

#[tokio::test]
async fn a_publication_replaces_what_is_not_whole_and_no_other_image() {
    let host = Host::new();
    let damages: [fn(&Path); 3] = [
        |place| fs::remove_file(place.join("rootfs.ext4")).unwrap(),
        |place| fs::remove_file(place.join("manifest.json")).unwrap(),
        |place| fs::remove_dir_all(place).unwrap(),
    ];
    for damage in damages {
        let (_, image) = host.published("a").await;
        damage(&host.place(image));
        let again = host.stage("a").await;
        host.publish(again, image).await.unwrap();
        let here = host.here(image).await;
        assert_eq!((here.damage, here.operations), (None, vec![again.operation]));
    }
    let (_, image) = host.published("a").await;
    let other = host.stage("b").await;
    assert_eq!(host.publish(other, image).await, Err(ErrorCode::FailedPrecondition));
    let inventory = host.inventory().await;
    assert_eq!((inventory.stagings.len(), inventory.images.len()), (1, 4));
    assert_eq!(testkit::lab::entries(&host.dir.path().join("state/staging")).len(), 1);
}
