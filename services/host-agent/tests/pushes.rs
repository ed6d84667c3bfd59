//! Stories of pushes: a registry that breaks off, asks for patience, or has it already, and what is sent to it in all.

use std::{path::Path, sync::Arc, time::Instant};

use contract::{
    ApiError, ErrorCode, ImageId, OperationId,
    agent::{Fence, PublishRequest, PushBundleRequest, PushStatus, PushedBundle, StageRequest, StageStatus},
    image::ImageSource,
};
use host_agent::image::{ImageOptions, ImageStore, Limits};
use testkit::{
    image::{Layer, Layout, Packing},
    registry::Registry,
    scripted::{Act, Guard, Scripted},
};

/// What is sent in pieces of at least 256 KiB.
const PIECE: u64 = 256 << 10;

fn fence() -> Fence {
    Fence { operation: OperationId::new(), epoch: 1 }
}

fn options(stall_s: u64, docker_config: &Path) -> ImageOptions {
    let limits = Limits { stall: std::time::Duration::from_secs(stall_s), ..Limits::default() };
    ImageOptions { limits, high_water: 100, docker_config: Some(docker_config.to_owned()), ..ImageOptions::default() }
}

/// A host with an image that packs to some MiB.
async fn host(dir: &Path, stall_s: u64) -> (Arc<ImageStore>, ImageId) {
    let images = ImageStore::open(&dir.join("state"), options(stall_s, dir)).unwrap();
    let content: Vec<u8> = (0..1_000_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let layout = dir.join("layout");
    Layout::new(vec![Layer::new(Packing::Plain).dir("etc", 0o755).file("big", 0o644, &content)])
        .write(&layout)
        .unwrap();
    let source = ImageSource::Layout { path: layout.display().to_string(), reference: None };
    let fence = fence();
    let staged = images.stage(&StageRequest { fence, source: source.into(), wait_ms: 60_000 }).await.unwrap();
    assert!(matches!(staged, StageStatus::Done { .. }), "{staged:?}");
    let id = ImageId::new();
    images.publish(&PublishRequest { fence, image: id }).await.unwrap();
    (images, id)
}

async fn push(images: &Arc<ImageStore>, image: ImageId, reference: &str) -> Result<PushedBundle, ApiError> {
    let reference = reference.to_owned();
    let request = PushBundleRequest { fence: fence(), image, kernel: None, reference, wait_ms: 60_000 };
    match images.push(&request).await? {
        PushStatus::Done { pushed } => Ok(pushed),
        PushStatus::Failed { error } => Err(error),
        running => panic!("{running:?}"),
    }
}

fn tag(registry: &Scripted, repository: &str) -> String {
    format!("{}/{repository}:1", registry.name())
}

/// What is pushed can be pulled, and is the same.
async fn assert_pulls(dir: &Path, reference: &str, pushed: &PushedBundle) {
    let other = ImageStore::open(&dir.join("other"), options(5, dir)).unwrap();
    let source = ImageSource::Registry(reference.to_owned());
    let request = StageRequest { fence: fence(), source: source.into(), wait_ms: 60_000 };
    match other.stage(&request).await.unwrap() {
        StageStatus::Done { image } => assert_eq!(image.digest, pushed.image),
        failed => panic!("{failed:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_breaks_goes_on_where_the_registry_is() {
    let dir = tempfile::tempdir().unwrap();
    let (images, id) = host(dir.path(), 5).await;
    let registry = Scripted::start().await;
    registry.script("/uploads/1", [Act::Cut(1 << 20), Act::Cut(1 << 20), Act::Honest, Act::Status(503, None)]);
    let pushed = push(&images, id, &tag(&registry, "a/web")).await.unwrap();
    let received = registry.received();
    assert!(pushed.bundle_bytes > 3 << 20, "{pushed:?}");
    assert_eq!(received, pushed.sent_bytes, "nothing came twice");
    let asked = registry.asked();
    let patches: Vec<_> = asked.iter().filter(|asked| asked.method == "PATCH").collect();
    let ranges: Vec<_> = patches.iter().filter_map(|asked| asked.content_range.as_deref()).collect();
    let last = pushed.bundle_bytes - 1;
    assert_eq!(ranges, [format!("{}-{last}", 1 << 20), format!("{}-{last}", 2 << 20)]);
    assert_pulls(dir.path(), &tag(&registry, "a/web"), &pushed).await;
    assert_eq!(testkit::lab::entries(&dir.path().join("state/staging")), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_stalls_or_forgets_gets_the_blob_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (images, id) = host(dir.path(), 1).await;
    let registry = Scripted::start().await;
    registry.script("/uploads/1", [Act::Stall(1 << 20), Act::Forget]);
    let pushed = push(&images, id, &tag(&registry, "a/web")).await.unwrap();
    assert!(registry.asked().iter().any(|asked| asked.path.contains("/uploads/2?")), "a new upload was begun");
    assert_pulls(dir.path(), &tag(&registry, "a/web"), &pushed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_says_when_to_come_back_and_what_it_does_not_take() {
    let dir = tempfile::tempdir().unwrap();
    let (images, id) = host(dir.path(), 5).await;
    let registry = Scripted::start().await;
    registry.script("/blobs/uploads/", [Act::Status(429, Some("2".to_owned()))]);
    let began = Instant::now();
    push(&images, id, &tag(&registry, "a/web")).await.unwrap();
    assert!(began.elapsed().as_secs() >= 2, "{:?}", began.elapsed());

    registry.script("/manifests/", [Act::Status(413, None)]);
    let error = push(&images, id, &tag(&registry, "a/web")).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::FailedPrecondition, "{error}");
    assert!(error.message.contains("413") && error.message.contains("a push to a/web:1"), "{error}");
    // A registry that never takes anything is given up, after some tries.
    registry.asked();
    registry.script("/manifests/", vec![Act::Status(503, None); 50]);
    let error = push(&images, id, &tag(&registry, "a/web")).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable, "{error}");
    let tries = registry.asked().iter().filter(|asked| asked.method == "PUT").count();
    assert!((2..10).contains(&tries), "{tries}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_another_repository_has_is_taken_over_from_there() {
    let dir = tempfile::tempdir().unwrap();
    let (images, id) = host(dir.path(), 5).await;
    let scripted = Scripted::start().await;
    let first = push(&images, id, &tag(&scripted, "a/web")).await.unwrap();
    assert_eq!(scripted.received(), first.sent_bytes);
    // This one looks for a blob in the repository it is asked of only.
    let real = Registry::start().await;
    let sent = push(&images, id, &real.reference("a/web", "1")).await.unwrap().sent_bytes;
    assert!(sent > PIECE);
    let over = push(&images, id, &real.reference("b/web", "1")).await.unwrap();
    assert_eq!(over, PushedBundle { sent_bytes: over.sent_bytes, ..first.clone() });
    assert!(over.sent_bytes < PIECE, "only what is not worth remembering was sent: {over:?}");
    assert_pulls(dir.path(), &real.reference("b/web", "1"), &over).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_asked_for_with_the_right_scope_and_its_answer_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let (images, id) = host(dir.path(), 5).await;
    let registry = Scripted::start().await;
    registry.guard(Guard::Token(None));
    push(&images, id, &tag(&registry, "a/web")).await.unwrap();
    let asked = registry.asked();
    let token = asked.iter().find(|asked| asked.path.starts_with("/token")).unwrap();
    assert!(token.path.contains("scope=repository%3Aa%2Fweb%3Apull%2Cpush"), "{token:?}");
    // It runs out while a blob is under way.
    registry.script("/uploads/", [Act::Cut(1 << 20)]);
    registry.expire_tokens();
    push(&images, id, &tag(&registry, "b/web")).await.unwrap();

    registry.pad_tokens(1 << 20);
    let error = push(&images, id, &tag(&registry, "a/web")).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidArgument, "{error}");
    registry.guard(Guard::Basic("me:secret".to_owned()));
    let error = push(&images, id, &tag(&registry, "a/web")).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::PermissionDenied, "{error}");
    assert!(error.hint.as_deref().unwrap_or_default().contains("config.json"), "{error:?}");
}
