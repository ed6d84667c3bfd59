//! Stories of kernels as objects: handed in one way or another, sent from host to host, booted, and whatever is wrong with them said.

use std::{fs, os::unix::fs::symlink, path::Path, sync::Arc, time::Duration};

use bus::{Bus, BusConfig, ByteStream};
use contract::{
    ApiError, ErrorCode, KernelId, OperationId, SessionId,
    agent::{
        DiscardRequest, Fence, KernelInventoryRequest, PublishKernelRequest, RemoveKernelRequest, SendKernelRequest,
        StageKernelRequest, StageKernelSource, StageKernelStatus, StagedKernel, VmKernel,
    },
};
use tempfile::TempDir;
use testkit::Nats;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    KernelObjects, KernelOptions,
    samples::{deb, plain, tar, vmlinux, xz},
};

/// Longer than anything here takes on a busy machine, in milliseconds.
const LONG_MS: u64 = 60_000;

struct Host {
    dir: TempDir,
    objects: Arc<KernelObjects>,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("offered")).unwrap();
        fs::write(dir.path().join("agent"), "guest-agent").unwrap();
        let objects = open(dir.path());
        Self { dir, objects }
    }

    fn offered(&self, path: &str) -> String {
        self.dir.path().join("offered").join(path).display().to_string()
    }

    /// Writes a file below the directory whose files may be imported.
    fn offer(&self, path: &str, bytes: &[u8]) {
        let path = self.offered(path);
        fs::create_dir_all(Path::new(&path).parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    async fn stage(&self, bus: &Bus, fence: Fence, source: StageKernelSource) -> Result<StagedKernel, ApiError> {
        let request = StageKernelRequest { fence, source, digest: None, wait_ms: LONG_MS };
        match self.objects.stage(bus, &request).await? {
            StageKernelStatus::Done { kernel } => Ok(kernel),
            StageKernelStatus::Failed { error } => Err(error),
            StageKernelStatus::Running { .. } => panic!("it takes too long"),
        }
    }

    async fn path(&self, bus: &Bus, path: &str) -> Result<StagedKernel, ApiError> {
        self.stage(bus, fence(), StageKernelSource::Path(self.offered(path))).await
    }

    /// What stands in the directory of kernels.
    fn entries(&self) -> Vec<String> {
        testkit::lab::entries(&self.dir.path().join("kernel-objects"))
    }
}

fn open(state: &Path) -> Arc<KernelObjects> {
    let options = KernelOptions { allowed: vec![state.join("offered")], high_water: 100 };
    KernelObjects::open(state, options).unwrap()
}

fn fence() -> Fence {
    Fence { operation: OperationId::new(), epoch: 1 }
}

async fn bus() -> (Nats, Bus) {
    let nats = Nats::start().await;
    let bus = Bus::connect(&BusConfig::new(nats.url(), "test")).await.unwrap();
    (nats, bus)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_kernel_is_one_digest_however_it_is_handed_in_and_wherever_it_is_sent() {
    let (_nats, bus) = bus().await;
    let (one, other) = (Host::new(), Host::new());
    let files = tar("6.1.0-9", "6.1.0-9", "", plain);
    one.offer("debian/linux-image.deb", &deb("data.tar.xz", &xz(&files)));
    tar::Archive::new(&files[..]).unpack(one.offered("unpacked")).unwrap();
    let from_package = one.path(&bus, "debian").await.unwrap();
    assert_eq!((from_package.release.as_str(), from_package.architecture.as_str()), ("6.1.0-9", "amd64"));
    assert_eq!(one.path(&bus, "debian/linux-image.deb").await.unwrap(), from_package);
    assert_eq!(one.path(&bus, "unpacked").await.unwrap(), from_package);
    // Over a stream, in pieces as they come.
    let (session, fence) = (SessionId::new(), fence());
    let mut client = ByteStream::open_within(&bus, session, Duration::from_secs(30)).await.unwrap();
    let send = async {
        client.write_all(&files).await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
    };
    let (staged, ()) = tokio::join!(one.stage(&bus, fence, StageKernelSource::Stream(session)), send);
    assert_eq!(staged.unwrap(), from_package);
    // An agent that was started anew goes on with what the one before has done.
    let id = KernelId::new();
    let again = open(one.dir.path());
    let publish = PublishKernelRequest { fence, kernel: id };
    assert_eq!(again.publish(publish.clone()).await.unwrap(), from_package);
    assert_eq!(again.publish(publish).await.unwrap(), from_package);
    // From host to host.
    let session = SessionId::new();
    again.send(&bus, &SendKernelRequest { kernel: id, session }).await.unwrap();
    let request = StageKernelRequest {
        fence,
        source: StageKernelSource::Stream(session),
        digest: Some(from_package.digest.clone()),
        wait_ms: LONG_MS,
    };
    let status = other.objects.stage(&bus, &request).await.unwrap();
    assert_eq!(status, StageKernelStatus::Done { kernel: from_package.clone() });
    other.objects.publish(PublishKernelRequest { fence, kernel: id }).await.unwrap();
    assert_eq!(other.entries(), [id.to_string()]);
    // Both boot the same.
    let given = VmKernel { id, digest: from_package.digest.clone(), release: from_package.release };
    let boot = |host: &Host| {
        let files = open(host.dir.path()).boot_files(&given, &host.dir.path().join("agent")).unwrap();
        (fs::read(files.vmlinux).unwrap(), fs::read(files.initramfs).unwrap(), files.release)
    };
    assert!(boot(&one) == boot(&other));
    assert_eq!(boot(&one).0, vmlinux("6.1.0-9"));
    other.objects.check(&given).unwrap();
    let wrong = VmKernel { digest: "sha256:0".into(), ..given.clone() };
    assert_eq!(other.objects.check(&wrong).unwrap_err().code, ErrorCode::FailedPrecondition);
    let remove = RemoveKernelRequest { fence, kernel: id };
    other.objects.remove(&remove).await.unwrap();
    other.objects.remove(&remove).await.unwrap();
    assert_eq!(other.entries(), Vec::<String>::new());
    let error = other.objects.boot_files(&given, &other.dir.path().join("agent")).unwrap_err();
    assert!(error.message.contains("not on this host"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_allowed_or_no_kernel_is_refused_and_leaves_nothing() {
    let (_nats, bus) = bus().await;
    let host = Host::new();
    host.offer("text", b"#!/bin/sh");
    host.offer("other/vmlinuz", &vmlinux("6.1"));
    host.offer("two/a", &vmlinux("6.1"));
    host.offer("two/b", &vmlinux("6.2"));
    fs::create_dir_all(host.offered("empty")).unwrap();
    symlink("/etc", host.offered("etc")).unwrap();
    symlink("vmlinuz", host.offered("other/link")).unwrap();
    nix::unistd::mkfifo(Path::new(&host.offered("fifo")), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (path, why) in [
        ("text", "is no kernel"),
        ("two", "two kernels"),
        ("empty", "none of its files"),
        ("etc/passwd", "cannot be opened"),
        ("other/link", "cannot be opened"),
        ("nowhere", "cannot be opened"),
        ("fifo", "neither a file nor a directory"),
    ] {
        let error = host.path(&bus, path).await.expect_err(path);
        assert_eq!(error.code, ErrorCode::InvalidArgument, "{path}: {error}");
        assert!(error.message.contains(why), "{path}: {error}");
    }
    let error = host.stage(&bus, fence(), StageKernelSource::Path("/etc/passwd".into())).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::PermissionDenied);
    let error = host.stage(&bus, fence(), StageKernelSource::Path(host.offered("../agent"))).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidArgument, "{error}");
    assert_eq!(host.entries(), Vec::<String>::new());
    // A bare kernel, whose links are left out.
    assert_eq!(host.path(&bus, "other").await.unwrap().release, "6.1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_or_is_called_off_leaves_nothing_and_may_come_again() {
    let (_nats, bus) = bus().await;
    let host = Host::new();
    let files = tar("6.1", "6.1", "", plain);
    let (session, first) = (SessionId::new(), fence());
    let mut client = ByteStream::open_within(&bus, session, Duration::from_secs(30)).await.unwrap();
    let source = StageKernelSource::Stream(session);
    let request = StageKernelRequest { fence: first, source: source.clone(), digest: None, wait_ms: 0 };
    let arriving = async |request: &StageKernelRequest| match host.objects.stage(&bus, request).await.unwrap() {
        StageKernelStatus::Running { progress } if progress.done > 0 => Some(()),
        _ => None,
    };
    host.objects.stage(&bus, &request).await.unwrap();
    client.write_all(&files[..files.len() / 2]).await.unwrap();
    client.flush().await.unwrap();
    testkit::wait_until("the first bytes", Duration::from_secs(60), async || arriving(&request).await).await;
    client.reset("the file changed").await;
    let staged = host.stage(&bus, first, source).await;
    let error = staged.unwrap_err();
    assert_eq!((error.code, error.message.contains("the file changed")), (ErrorCode::Unavailable, true), "{error}");
    assert_eq!(host.entries(), Vec::<String>::new());
    // Another stream for the same claim; and one that does not end is called off.
    let session = SessionId::new();
    let mut client = ByteStream::open_within(&bus, session, Duration::from_secs(30)).await.unwrap();
    let source = StageKernelSource::Stream(session);
    let request = StageKernelRequest { fence: first, source, digest: None, wait_ms: 0 };
    let running = host.objects.stage(&bus, &request).await.unwrap();
    assert!(matches!(running, StageKernelStatus::Running { .. }), "{running:?}");
    client.write_all(&files[..1024]).await.unwrap();
    client.flush().await.unwrap();
    testkit::wait_until("the first bytes", Duration::from_secs(60), async || arriving(&request).await).await;
    host.objects.discard(&DiscardRequest { fence: first }).await.unwrap();
    assert_eq!(host.entries(), Vec::<String>::new());
    let error = host.objects.stage(&bus, &request).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Aborted, "a late repeat begins nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_operations_that_bring_one_kernel_share_it_and_what_is_damaged_is_replaced() {
    let (_nats, bus) = bus().await;
    let host = Host::new();
    host.offer("vmlinuz", &vmlinux("6.1"));
    let (first, second, id) = (fence(), fence(), KernelId::new());
    let staged = async |fence| host.stage(&bus, fence, StageKernelSource::Path(host.offered("vmlinuz"))).await.unwrap();
    let kernel = staged(first).await;
    assert_eq!(staged(second).await, kernel);
    let publish = async |fence| host.objects.publish(PublishKernelRequest { fence, kernel: id }).await;
    let here = async || {
        let all = host.objects.inventory(&KernelInventoryRequest { only: None }).await.unwrap();
        assert!(all.strays.is_empty(), "{all:?}");
        let one = host.objects.inventory(&KernelInventoryRequest { only: Some(id) }).await.unwrap();
        assert_eq!((&one.kernels, one.stagings.len()), (&all.kernels, 0));
        (all.kernels.first().map(|here| (here.operation, here.damage.is_some())), all.stagings.len())
    };
    assert_eq!(here().await, (None, 2));
    assert_eq!(publish(first).await.unwrap(), kernel);
    // The second takes what is there, as often as it is told; were the first taken back, it has its own still.
    for _ in 0..2 {
        assert_eq!(publish(second).await.unwrap(), kernel);
    }
    assert_eq!(here().await, (Some((Some(first.operation), false)), 1));
    host.objects.remove(&RemoveKernelRequest { fence: first, kernel: id }).await.unwrap();
    assert_eq!(publish(second).await.unwrap(), kernel);
    assert_eq!(here().await, (Some((Some(second.operation), false)), 0));
    // What is cut, or changed in place, is not taken for the kernel.
    let image = host.dir.path().join("kernel-objects").join(id.to_string()).join("image");
    for damaged in [vmlinux("6.1")[..64].to_vec(), vec![0; vmlinux("6.1").len()]] {
        fs::write(&image, &damaged).unwrap();
        let cut = damaged.len() == 64;
        assert_eq!(here().await.0.unwrap().1, cut);
        let third = fence();
        staged(third).await;
        publish(third).await.unwrap();
        assert_eq!(here().await, (Some((Some(third.operation), false)), 0));
        assert_eq!(fs::read(&image).unwrap(), vmlinux("6.1"));
    }
    fs::write(host.dir.path().join("kernel-objects/notes"), "x").unwrap();
    let all = host.objects.inventory(&KernelInventoryRequest { only: None }).await.unwrap();
    assert_eq!(all.strays, ["kernel-objects/notes"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_over_its_high_water_mark_takes_no_kernel() {
    let (_nats, bus) = bus().await;
    let mut host = Host::new();
    host.offer("vmlinuz", &vmlinux("6.1"));
    let options = KernelOptions { allowed: vec![host.dir.path().join("offered")], high_water: 0 };
    host.objects = KernelObjects::open(host.dir.path(), options).unwrap();
    let error = host.path(&bus, "vmlinuz").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::ResourceExhausted, "{error}");
    assert!(error.message.contains("WARREN_DISK_HIGH_WATER") && error.hint.is_some(), "{error}");
    assert_eq!(host.entries(), Vec::<String>::new());
    host.objects = open(host.dir.path());
    host.path(&bus, "vmlinuz").await.unwrap();
}
