//! Stories of uploads over a bad line: senders vanish and agents are started anew at any moment, and little comes twice.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use archive::{
    prefix::Prefix,
    sparse::{self, Sender},
};
use bus::{Bus, BusConfig, ByteStream};
use contract::{
    ErrorCode, OperationId, SessionId,
    agent::{DiscardRequest, Fence, StageRequest, StageSource, StageStatus, StagedImage},
    image::{FileSource, ImageConfig},
};
use host_agent::image::{ImageOptions, ImageStore, Limits, Sources};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use testkit::Nats;
use tokio::{
    io::AsyncWriteExt,
    runtime::{Handle, Runtime},
};

const BOUND: Duration = Duration::from_secs(60);
/// How large the file is whose data cannot be made smaller, in bytes.
const DATA: u64 = 24 << 20;

/// A process that may die at any moment.
struct Process(Option<Runtime>);

impl Process {
    fn new() -> Self {
        Self(Some(Runtime::new().unwrap()))
    }

    fn start<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> tokio::task::JoinHandle<T> {
        self.0.as_ref().unwrap().spawn(work)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.take().unwrap().shutdown_background();
    }
}

/// A host-agent of one life.
struct Agent {
    images: Arc<ImageStore>,
    process: Process,
}

struct World {
    dir: tempfile::TempDir,
    nats: Nats,
    session: SessionId,
    fence: Fence,
    /// Bytes of pieces that were sent.
    sent: Arc<AtomicU64>,
}

impl World {
    async fn start() -> Self {
        let fence = Fence { operation: OperationId::new(), epoch: 1 };
        let (dir, nats) = (tempfile::tempdir().unwrap(), Nats::start().await);
        let world = Self { dir, nats, session: SessionId::new(), fence, sent: Arc::default() };
        let tree = world.dir.path().join("tree");
        fs::create_dir_all(tree.join("bin")).unwrap();
        fs::write(tree.join("bin/sh"), "#!").unwrap();
        let mut noise = vec![0; usize::try_from(DATA).unwrap()];
        StdRng::seed_from_u64(7).fill(&mut noise[..]);
        fs::write(tree.join("noise"), noise).unwrap();
        let made =
            Command::new("mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(&tree).arg(world.file()).arg("96M").output();
        assert!(made.unwrap().status.success());
        world
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("root.ext4")
    }

    fn staging(&self) -> PathBuf {
        self.dir.path().join("state/staging").join(self.fence.operation.to_string())
    }

    async fn agent(&self, patience: Duration) -> Agent {
        let (process, url, state) = (Process::new(), self.nats.url(), self.dir.path().join("state"));
        let opened = process.start(async move {
            let bus = Bus::connect(&BusConfig::new(url, "agent")).await.unwrap();
            let limits = Limits { patience, ..Limits::default() };
            let images =
                ImageStore::open(&state, ImageOptions { limits, high_water: 100, ..ImageOptions::default() }).unwrap();
            images.take_from(Sources { bus: Some(bus), dirs: Vec::new() });
            images
        });
        let agent = Agent { images: opened.await.unwrap(), process };
        self.stage(&agent, 0).await;
        agent
    }

    /// What the host is asked again and again.
    async fn stage(&self, agent: &Agent, wait_ms: u64) -> StageStatus {
        let from = FileSource::Upload { session: self.session, label: "root.ext4".into() };
        let source = StageSource::File { from, config: ImageConfig::default() };
        let (images, request) = (agent.images.clone(), StageRequest { fence: self.fence, source, wait_ms });
        agent.process.start(async move { images.stage(&request).await }).await.unwrap().unwrap()
    }

    /// A sender of one life: the first to come, or one that comes again; how it ended.
    fn sender(&self, again: bool, pace: Duration) -> (Process, tokio::task::JoinHandle<io::Result<()>>) {
        let process = Process::new();
        let (url, session, file, sent) = (self.nats.url(), self.session, self.file(), self.sent.clone());
        let sending = process.start(async move {
            let bus = Bus::connect(&BusConfig::new(url, "sender")).await.unwrap();
            let (stream, at, digest) = match again {
                false => (ByteStream::open_within(&bus, session, BOUND).await.unwrap(), 0, None),
                true => {
                    let place = loop {
                        match bus.upload_place(session).await {
                            Ok(place) => break place,
                            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                        }
                    };
                    (ByteStream::open(&bus, place.session).await.unwrap(), place.at, Some(place.digest))
                }
            };
            let runtime = Handle::current();
            tokio::task::spawn_blocking(move || send(&runtime, stream, &file, at, digest, &sent, pace)).await.unwrap()
        });
        (process, sending)
    }
}

/// A stream as a thread writes it.
struct Out<'a>(ByteStream, &'a Handle);

impl Write for Out<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.1.block_on(self.0.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.1.block_on(self.0.flush())
    }
}

fn send(
    runtime: &Handle,
    stream: ByteStream,
    path: &Path,
    at: u64,
    digest: Option<String>,
    sent: &AtomicU64,
    pace: Duration,
) -> io::Result<()> {
    let (file, mut prefix) = (File::open(path)?, Prefix::default());
    if let Some(digest) = digest {
        sparse::data_between(&file, 0, at, |at, bytes| {
            prefix.take(at, bytes);
            Ok(())
        })?;
        assert_eq!(prefix.digest(), digest, "the host has {at} bytes of another file");
    }
    let (mut sender, mut before) = (Sender::from(Out(stream, runtime), at)?, at);
    let length = sender.file(&file, |end| {
        sent.fetch_add((end - before).min(sparse::PIECE_MAX as u64), Ordering::Relaxed);
        before = end;
        std::thread::sleep(pace);
    })?;
    let mut stream = sender.finish(length)?.0;
    runtime.block_on(async {
        stream.shutdown().await?;
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.map(drop)
    })
}

async fn done(world: &World, agent: &Agent) -> StagedImage {
    match world.stage(agent, 120_000).await {
        StageStatus::Done { image } => image,
        other => panic!("{other:?}"),
    }
}

/// The digest that the file has as an image when nothing goes wrong.
async fn undisturbed(world: &World) -> StagedImage {
    let other = World {
        session: SessionId::new(),
        fence: Fence { operation: OperationId::new(), epoch: 1 },
        dir: tempfile::tempdir().unwrap(),
        nats: Nats::start().await,
        sent: Arc::default(),
    };
    fs::copy(world.file(), other.file()).unwrap();
    let agent = other.agent(BOUND).await;
    let (_process, sending) = other.sender(false, Duration::ZERO);
    sending.await.unwrap().unwrap();
    done(&other, &agent).await
}

/// Waits until so much is there for sure.
async fn arrived(world: &World, at: u64) {
    testkit::wait_until("what was sent is recorded", BOUND, async || {
        let record = fs::read(world.staging().join("upload.json")).ok()?;
        let record: serde_json::Value = serde_json::from_slice(&record).ok()?;
        (record["at"].as_u64()? >= at).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn senders_and_agents_go_and_come_again_and_little_is_sent_twice() {
    let world = World::start().await;
    let image = undisturbed(&world).await;
    let mut random = StdRng::seed_from_u64(11);
    let pace = Duration::from_millis(80);
    let mut agent = world.agent(BOUND).await;
    let (mut process, mut sending) = world.sender(false, pace);
    for life in 0..6 {
        let before = world.sent.load(Ordering::Relaxed);
        testkit::wait_until("it is sent", BOUND, async || (world.sent.load(Ordering::Relaxed) > before).then_some(()))
            .await;
        tokio::time::sleep(Duration::from_millis(random.random_range(100..900))).await;
        if life % 2 == 0 {
            // Dies without a word.
            drop(process);
        } else {
            drop(agent);
            agent = world.agent(BOUND).await;
            // The sender hears of it at once, not when a stream's patience is over.
            let told =
                tokio::time::timeout(Duration::from_secs(15), sending).await.expect("the sender is told").unwrap();
            if told.is_ok() {
                panic!("all was sent in {life} lives: the story is too slow for this machine");
            }
        }
        (process, sending) = world.sender(true, pace);
    }
    drop((process, sending));
    let (_process, sending) = world.sender(true, Duration::ZERO);
    sending.await.unwrap().unwrap();
    assert_eq!(done(&world, &agent).await, image);
    let sent = world.sent.load(Ordering::Relaxed);
    // What was on its way or not yet recorded, seven times.
    assert!(sent < 3 * DATA, "{sent} bytes were sent of {DATA}");
    let left = testkit::lab::entries(&world.staging());
    assert_eq!(left.len(), 2, "root filesystem and record: {left:?}");
    agent.images.discard(&DiscardRequest { fence: world.fence }).await.unwrap();
    assert_eq!(testkit::lab::entries(&world.dir.path().join("state/staging")), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_disk_lost_comes_again_from_the_beginning() {
    let world = World::start().await;
    let image = undisturbed(&world).await;
    let agent = world.agent(BOUND).await;
    let (process, sending) = world.sender(false, Duration::from_millis(20));
    arrived(&world, 1 << 20).await;
    drop((agent, process, sending));
    // A sector that the disk lost.
    let given = File::options().write(true).open(world.staging().join("given")).unwrap();
    given.write_all_at(b"lost", 2000).unwrap();
    fs::write(world.staging().join("rootfs"), "of a life before").unwrap();
    let agent = world.agent(BOUND).await;
    world.sent.store(0, Ordering::Relaxed);
    let (_process, sending) = world.sender(true, Duration::ZERO);
    sending.await.unwrap().unwrap();
    assert!(world.sent.load(Ordering::Relaxed) >= DATA, "the damaged part was kept");
    assert_eq!(done(&world, &agent).await, image);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_that_stays_away_or_gives_up_is_not_waited_for_without_end() {
    let world = World::start().await;
    let agent = world.agent(Duration::from_millis(300)).await;
    let (process, sending) = world.sender(false, Duration::from_millis(20));
    arrived(&world, 1 << 20).await;
    drop((agent, process, sending));
    let agent = world.agent(Duration::from_millis(300)).await;
    match world.stage(&agent, 60_000).await {
        StageStatus::Failed { error } => {
            assert!(error.code == ErrorCode::Unavailable && error.message.contains("nobody went on"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(testkit::lab::entries(&world.dir.path().join("state/staging")), Vec::<String>::new());
}
