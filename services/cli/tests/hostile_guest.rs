//! Guests that lie: what a VM whose root is somebody else can make of the one who runs `warren exec` or `warren cp`.

use std::{
    os::fd::{AsFd, AsRawFd},
    path::Path,
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Poll,
    time::{Duration, Instant},
};

use bus::{Bus, BusConfig, ByteStream, Service};
use bytes::{Bytes, BytesMut};
use contract::{
    frame::{Exit, Frame},
    workspace::{self, OpenRequest},
};
use testkit::Nats;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const BOUND: Duration = Duration::from_secs(60);
/// More than a client ever holds of what a guest sends.
const ENDLESS: usize = 64 << 20;
/// The most memory a client may have had after that, in KiB; without a guest it has about 20 MiB in a debug build.
const CLIENT_MAX: u64 = 60 * 1024;

/// A bus on which the VM's name says how its guest lies.
struct World {
    nats: Nats,
    flow: Arc<Flow>,
    _service: Service,
}

/// What an endless guest got rid of.
#[derive(Debug, Default)]
struct Flow {
    /// Bytes that were taken from it.
    sent: AtomicU64,
    /// Whether nothing more is taken at present.
    stalled: AtomicBool,
}

async fn world() -> World {
    let nats = Nats::start().await;
    let bus = Bus::connect(&BusConfig::new(nats.url(), "hostile")).await.unwrap();
    let service = bus.service("workspace-service", "0.1.0", "a hostile guest").await.unwrap();
    let (wire, flow) = (bus.clone(), Arc::new(Flow::default()));
    let told = flow.clone();
    service
        .serve::<workspace::Open, _>(move |_, request: OpenRequest| {
            let (bus, flow) = (wire.clone(), told.clone());
            async move {
                let stream = ByteStream::accept(&bus, request.session).await?;
                tokio::spawn(lie(stream, request.vm, flow));
                Ok(Default::default())
            }
        })
        .await
        .unwrap();
    service.ready().await.unwrap();
    World { nats, flow, _service: service }
}

async fn lie(mut stream: ByteStream, how: String, flow: Arc<Flow>) {
    let mut bytes = BytesMut::new();
    let good = Frame::Exit(Exit { code: 0, message: None });
    let raw: Vec<u8> = match how.as_str() {
        "endless" => return endless(stream, false, &flow).await,
        "endless-warnings" => return endless(stream, true, &flow).await,
        "deaf" => {
            // Says that it has ended while its input, which has no end, is on its way: some of it has come.
            stream.read_exact(&mut [0; 1024]).await.unwrap();
            Frame::Exit(Exit { code: 7, message: Some("\x1b]0;owned\x07".into()) }).encode(&mut bytes);
            bytes.to_vec()
        }
        "long-frame" => vec![1, 0xff, 0xff, 0xff, 0xff],
        "no-exit" => vec![5, 0, 0, 0, 2, b'[', b']'],
        "clients-frame" => vec![0, 0, 0, 0, 1, b'x'],
        "unknown-frame" => vec![99, 0, 0, 0, 0],
        "cut" => vec![1, 0, 0, 0, 9, b'x'],
        archive => {
            Frame::Stdout(Bytes::from(hostile_archive(archive))).encode(&mut bytes);
            good.encode(&mut bytes);
            bytes.to_vec()
        }
    };
    // A client that has seen enough is gone before all is written.
    if stream.write_all(&raw).await.is_ok() && stream.shutdown().await.is_ok() {
        drop(tokio::time::timeout(BOUND, stream.closed()).await);
    }
}

async fn endless(mut stream: ByteStream, warnings: bool, flow: &Flow) {
    let mut bytes = BytesMut::new();
    let data = Bytes::from(vec![b'w'; 60_000]);
    if warnings { Frame::Stderr(data) } else { Frame::Stdout(data) }.encode(&mut bytes);
    loop {
        let mut write = Box::pin(stream.write_all(&bytes));
        let now = futures::poll!(&mut write);
        flow.stalled.store(now.is_pending(), Ordering::SeqCst);
        let wrote = match now {
            Poll::Ready(wrote) => wrote,
            Poll::Pending => write.await,
        };
        flow.stalled.store(false, Ordering::SeqCst);
        if wrote.is_err() {
            return;
        }
        flow.sent.fetch_add(bytes.len() as u64, Ordering::SeqCst);
    }
}

nix::ioctl_read_bad!(
    /// How many bytes wait in a pipe.
    waiting_bytes,
    nix::libc::FIONREAD,
    nix::libc::c_int
);

/// How many looks in a row must find the same before nothing is taken to move.
const LOOKS: u32 = 5;

/// Waits until nothing moves any more between a guest that would say more and a client whose output nobody reads: the guest is not rid
/// of a byte more, and no byte more waits in the pipe.
fn wait_stuck(flow: &Flow, pipe: &impl AsFd) {
    let (began, mut last, mut same) = (Instant::now(), None, 0);
    while same < LOOKS {
        let mut waiting = 0;
        // SAFETY: `waiting` is the int that FIONREAD fills, and lives through the call; the descriptor is open.
        unsafe { waiting_bytes(pipe.as_fd().as_raw_fd(), &raw mut waiting) }.unwrap();
        let now = (waiting, flow.sent.load(Ordering::SeqCst));
        let stuck = waiting > 0 && flow.stalled.load(Ordering::SeqCst) && last == Some(now);
        same = if stuck { same + 1 } else { 0 };
        last = Some(now);
        assert!(began.elapsed() < BOUND, "bytes go on moving although nobody reads them: {last:?}, {flow:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn entry(kind: tar::EntryType, name: &[u8], link: &[u8], size: u64, data: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(0o4777);
    header.set_size(size);
    // Written by hand, as the library refuses such names.
    header.as_mut_bytes()[..name.len()].copy_from_slice(name);
    header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn hostile_archive(how: &str) -> Vec<u8> {
    use tar::EntryType::{Directory, Link, Regular, Symlink};
    let file = |name: &str| entry(Regular, name.as_bytes(), b"", 4, b"evil");
    let parts = match how {
        "dots" => vec![file("../escaped")],
        "deep-dots" => vec![entry(Directory, b"x/", b"", 0, b""), file("x/../../escaped")],
        "absolute" => vec![file("/tmp/warren-test-escaped")],
        "symlink" => {
            vec![entry(Directory, b"x/", b"", 0, b""), entry(Symlink, b"x/up", b"../..", 0, b""), file("x/up/escaped")]
        }
        "symlink-itself" => vec![entry(Symlink, b"x", b"..", 0, b""), file("x/escaped")],
        "hard-link" => {
            vec![entry(Directory, b"x/", b"", 0, b""), entry(Link, b"x/secret", b"../secret", 0, b""), file("x/secret")]
        }
        "size" => vec![entry(Regular, b"x", b"", 1 << 32, b"little")],
        "device" => vec![entry(tar::EntryType::Block, b"x", b"", 0, b"")],
        other => panic!("no lie {other}"),
    };
    let mut all = parts.concat();
    if how != "size" {
        all.resize(all.len() + 1024, 0);
    }
    all
}

fn warren(world: &World, arguments: &[&str], stdin: Stdio) -> std::process::Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_warren"));
    command.args(arguments).env("WARREN_NATS_URL", world.nats.url()).stdin(stdin);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

async fn run(world: &World, arguments: &[&str]) -> Output {
    let child = warren(world, arguments, Stdio::null());
    let ended = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
    tokio::time::timeout(BOUND, ended).await.expect("the client ends").unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The most memory a process has had, in KiB.
fn peak(child: &std::process::Child) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn lies_in_frames_are_said_and_end_the_command() {
    let world = world().await;
    for (lie, word) in [
        ("long-frame", "over the limit"),
        ("no-exit", "malformed"),
        ("clients-frame", "only clients send"),
        ("unknown-frame", "unknown frame kind 99"),
        ("cut", "lost before it ended"),
    ] {
        for arguments in [vec!["exec", lie, "--", "true"], vec!["cp", &format!("{lie}:/x"), "-"]] {
            let output = run(&world, &arguments).await;
            let said = text(&output.stderr);
            assert!(matches!(output.status.code(), Some(1 | 9)), "{arguments:?}: {said}");
            assert!(said.contains(word) || said.contains("cut off"), "{arguments:?}: {said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_talks_for_ever_or_never_listens_takes_no_memory() {
    let world = world().await;
    let mut endless = warren(&world, &["exec", "endless", "--", "yes"], Stdio::null());
    let mut out = endless.stdout.take().unwrap();
    let flow = world.flow.clone();
    let endless = tokio::task::spawn_blocking(move || {
        std::io::copy(&mut std::io::Read::take(&mut out, ENDLESS as u64), &mut std::io::sink()).unwrap();
        // Nobody reads, and much more could come.
        wait_stuck(&flow, &out);
        let peak = peak(&endless);
        drop(out);
        (peak, endless.wait().unwrap())
    });
    let (peak_of, status) = tokio::time::timeout(BOUND, endless).await.expect("the client ends").unwrap();
    assert!(peak_of < CLIENT_MAX, "{peak_of} KiB");
    assert_eq!(status.code(), Some(141), "as whoever read its output has gone");

    let target = tempfile::tempdir().unwrap();
    let target = target.path().join("x").display().to_string();
    let mut warned = warren(&world, &["cp", "endless-warnings:/x", &target], Stdio::null());
    let mut err = warned.stderr.take().unwrap();
    let peak_of = tokio::task::spawn_blocking(move || {
        std::io::copy(&mut std::io::Read::take(&mut err, ENDLESS as u64 / 8), &mut std::io::sink()).unwrap();
        let peak = peak(&warned);
        warned.kill().unwrap();
        warned.wait().unwrap();
        peak
    });
    let peak_of = tokio::time::timeout(BOUND, peak_of).await.expect("warnings are read").unwrap();
    assert!(peak_of < CLIENT_MAX, "{peak_of} KiB");

    let zeros = std::fs::File::open("/dev/zero").unwrap();
    let deaf = warren(&world, &["exec", "-i", "deaf", "--", "cat"], zeros.into());
    let ended = tokio::task::spawn_blocking(move || deaf.wait_with_output().unwrap());
    let output = tokio::time::timeout(BOUND, ended).await.expect("the client ends").unwrap();
    assert_eq!(output.status.code(), Some(7));
    assert!(!output.stderr.contains(&0x1b), "no escape reaches the terminal: {}", text(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_wants_out_of_its_directory_does_not_get_out() {
    let world = world().await;
    for lie in ["dots", "deep-dots", "absolute", "symlink", "symlink-itself", "hard-link", "size", "device"] {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "mine").unwrap();
        let inside = outside.path().join("in");
        std::fs::create_dir(&inside).unwrap();
        for target in [inside.clone(), inside.join("new")] {
            let output = run(&world, &["cp", &format!("{lie}:/x"), &target.display().to_string()]).await;
            let said = text(&output.stderr);
            if lie == "device" {
                // Whatever becomes of it, it is none.
                let made = std::fs::symlink_metadata(inside.join("x"));
                assert!(made.is_err() || made.unwrap().is_file(), "{said}");
            } else {
                assert!(!output.status.success(), "{lie}: {said}");
            }
            assert_ne!(output.status.code(), None, "{lie}: {said}");
        }
        let mut names: Vec<_> = std::fs::read_dir(outside.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["in", "secret"], "{lie}");
        assert_eq!(std::fs::read_to_string(outside.path().join("secret")).unwrap(), "mine", "{lie}");
        assert!(!Path::new("/tmp/warren-test-escaped").exists(), "{lie}");
    }
}
