//! Stories of root filesystems that somebody has: what a VM can boot becomes an image, and all else is refused and leaves nothing.

mod trees;

use std::{
    ffi::{CString, OsStr},
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use archive::sparse::Sender;
use bus::{Bus, BusConfig, ByteStream};
use contract::{
    ApiError, ErrorCode, ImageId, OperationId, SessionId,
    agent::{DiscardRequest, Fence, PublishRequest, StageRequest, StageSource, StageStatus, StagedImage},
    image::{FileSource, ImageConfig},
};
use host_agent::image::{ImageOptions, ImageStore, Limits, Sources};
use testkit::Nats;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use trees::{Mounted, assert_same, describe};

struct Host {
    images: Arc<ImageStore>,
    state: PathBuf,
    files: PathBuf,
    _dir: tempfile::TempDir,
}

impl Host {
    fn start(limits: Limits, bus: Option<Bus>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (state, files) = (dir.path().join("state"), dir.path().join("files"));
        fs::create_dir(&files).unwrap();
        let options = ImageOptions { limits, high_water: 100, ..ImageOptions::default() };
        let images = ImageStore::open(&state, options).unwrap();
        images.take_from(Sources { bus, dirs: vec![files.clone()] });
        Self { images, state, files, _dir: dir }
    }

    async fn staged(&self, from: FileSource, config: ImageConfig) -> Result<(PathBuf, StagedImage), ApiError> {
        let fence = Fence { operation: OperationId::new(), epoch: 1 };
        let source = StageSource::File { from, config };
        match self.images.stage(&StageRequest { fence, source, wait_ms: 120_000 }).await.unwrap() {
            StageStatus::Done { .. } => {
                let image = ImageId::new();
                let staged = self.images.publish(&PublishRequest { fence, image }).await.unwrap();
                Ok((self.images.rootfs(image).unwrap(), staged))
            }
            StageStatus::Failed { error } => Err(error),
            running => panic!("{running:?}"),
        }
    }

    async fn registered(&self, path: impl AsRef<Path>) -> Result<(PathBuf, StagedImage), ApiError> {
        let path = self.files.join(path).display().to_string();
        self.staged(FileSource::Path(path), ImageConfig::default()).await
    }

    async fn refused(&self, path: impl AsRef<Path>) -> ApiError {
        self.registered(path).await.unwrap_err()
    }

    fn assert_no_staging(&self) {
        assert_eq!(testkit::lab::entries(&self.state.join("staging")), Vec::<String>::new());
    }
}

fn ran(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A small root filesystem as a directory, with what is easily lost.
fn tree(dir: &Path) {
    fs::create_dir_all(dir.join("bin")).unwrap();
    fs::create_dir_all(dir.join("etc")).unwrap();
    fs::write(dir.join("bin/sh"), "#!").unwrap();
    fs::set_permissions(dir.join("bin/sh"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(dir.join("bin/sh"), dir.join("bin/ash")).unwrap();
    std::os::unix::fs::chown(dir.join("etc"), Some(12), Some(34)).unwrap();
    symlink("../bin/sh", dir.join("etc/shell")).unwrap();
    let (kind, mode) = (nix::sys::stat::SFlag::S_IFCHR, nix::sys::stat::Mode::S_IRUSR);
    nix::sys::stat::mknod(&dir.join("null"), kind, mode, nix::sys::stat::makedev(1, 3)).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.join("etc/socket")).unwrap();
}

fn ext4(dir: &Path, path: &Path) {
    ran(Command::new("mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(dir).arg(path).arg("64M"));
}

fn stat(rootfs: &Path, path: &str) -> String {
    ran(Command::new("debugfs").args(["-R", &format!("stat {path}")]).arg(rootfs))
}

fn assert_tree(rootfs: &Path) {
    ran(Command::new("e2fsck").arg("-fn").arg(rootfs));
    let sh = stat(rootfs, "/bin/sh");
    assert!(sh.contains("Mode:  04755") && sh.contains("Links: 2"), "{sh}");
    let etc = stat(rootfs, "/etc");
    assert!(etc.contains("User:    12   Group:    34"), "{etc}");
    assert!(stat(rootfs, "/null").contains("character special"));
    assert!(stat(rootfs, "/etc/shell").contains("../bin/sh"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ext4_file_is_an_image_bit_by_bit_and_the_same_one_twice() {
    let host = Host::start(Limits::default(), None);
    tree(&host.files.join("tree"));
    let path = host.files.join("root.ext4");
    ext4(&host.files.join("tree"), &path);
    let (rootfs, image) = host.registered("root.ext4").await.unwrap();
    assert_eq!((image.rootfs_bytes, image.architecture.as_str()), (64 << 20, "amd64"));
    assert!(fs::read(&path).unwrap() == fs::read(&rootfs).unwrap(), "the root filesystem is another");
    assert!(rootfs.metadata().unwrap().blocks() * 512 < 16 << 20, "its holes were written");
    assert_eq!((rootfs.metadata().unwrap().uid(), rootfs.metadata().unwrap().mode() & 0o777), (0, 0o644));
    // A copy without holes elsewhere is the same image; with something to run it is another.
    fs::create_dir(host.files.join("deep")).unwrap();
    fs::write(host.files.join("deep/copy"), fs::read(&path).unwrap()).unwrap();
    assert_eq!(host.registered("deep/copy").await.unwrap().1, image);
    let config = ImageConfig { entrypoint: vec!["/bin/ash".into()], ..ImageConfig::default() };
    let from = FileSource::Path(path.display().to_string());
    let (_, other) = host.staged(from.clone(), config.clone()).await.unwrap();
    assert!(other.digest != image.digest && other.config == config, "{other:?}");
    let config = ImageConfig { entrypoint: vec!["/bin/zsh".into()], ..config };
    assert_eq!(host.staged(from, config).await.unwrap_err().code, ErrorCode::InvalidArgument);
    host.assert_no_staging();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_and_its_archive_are_images_with_all_that_is_in_them() {
    let host = Host::start(Limits::default(), None);
    tree(&host.files.join("tree"));
    let (rootfs, _) = host.registered("tree").await.unwrap();
    assert_tree(&rootfs);
    for (name, how) in [("root.tar", "--create"), ("root.tgz", "--gzip"), ("root.tar.zst", "--zstd")] {
        let mut tar = Command::new("tar");
        tar.args(["--create", how, "--numeric-owner", "--warning=no-file-ignored", "--file"]);
        ran(tar.arg(host.files.join(name)).arg("-C").arg(host.files.join("tree")).arg("."));
        let (rootfs, _) = host.registered(name).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_tree(&rootfs);
    }
    // An archive that breaks off, and one that leads out.
    let whole = fs::read(host.files.join("root.tgz")).unwrap();
    fs::write(host.files.join("half.tgz"), &whole[..whole.len() / 2]).unwrap();
    assert_eq!(host.refused("half.tgz").await.code, ErrorCode::InvalidArgument);
    fs::write(host.files.join("x"), "x").unwrap();
    let mut tar = Command::new("tar");
    tar.args(["-P", "-cf"]).arg(host.files.join("out.tar")).args(["--transform=s,x,../../x,", "-C"]);
    ran(tar.arg(&host.files).arg("x"));
    let error = host.refused("out.tar").await;
    assert!(error.code == ErrorCode::InvalidArgument && error.message.contains("../../x"), "{error}");
    host.assert_no_staging();
}

/// What no packer makes smaller.
fn noise() -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_le_bytes()[3]
    };
    (0..200_000).map(|_| next()).collect()
}

/// What `tree` lacks and filesystems keep: attributes, odd names, a fifo, holes, a long link, old times; without its socket.
fn rich_tree(dir: &Path) {
    tree(dir);
    fs::remove_file(dir.join("etc/socket")).unwrap();
    let set = |path: &str, name: &str, value: &[u8]| {
        let path = CString::new(dir.join(path).as_os_str().as_bytes()).unwrap();
        let name = CString::new(name).unwrap();
        // SAFETY: both names end with a zero, and the value is as long as it is said to be.
        let set = unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    };
    set("bin/sh", "security.capability", &[1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    set("etc", "user.comment", b"a\0b\nc");
    set("", "trusted.root", b"r");
    fs::write(dir.join(OsStr::from_bytes(b"etc/\xff\xfename")), "odd").unwrap();
    File::create(dir.join("sparse")).unwrap().set_len(8 << 20).unwrap();
    fs::write(dir.join("packed"), "warren ".repeat(100_000)).unwrap();
    fs::write(dir.join("noise"), noise()).unwrap();
    symlink("x".repeat(200), dir.join("etc/long")).unwrap();
    nix::unistd::mkfifo(&dir.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::set_permissions(dir.join("etc"), fs::Permissions::from_mode(0o3710)).unwrap();
    std::os::unix::fs::chown(dir, Some(7), Some(8)).unwrap();
    ran(Command::new("find").arg(dir).args(["-exec", "touch", "-h", "-d", "@1000000001", "{}", "+"]));
    ran(Command::new("touch").args(["-h", "-d", "@123456789"]).arg(dir.join("etc/shell")));
}

fn ran_well(program: &str, argument: &str) -> bool {
    Command::new(program).arg(argument).output().is_ok_and(|output| output.status.success())
}

fn squashfs(dir: &Path, path: &Path, packer: &str) {
    let mut command = Command::new("mksquashfs");
    ran(command.arg(dir).arg(path).args(["-comp", packer, "-xattrs", "-quiet", "-no-progress"]));
}

fn erofs(dir: &Path, path: &Path, more: &[&str]) {
    ran(Command::new("mkfs.erofs").arg("--preserve-mtime").args(more).arg(path).arg(dir));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_with_another_filesystem_below_is_no_image_without_it() {
    let host = Host::start(Limits::default(), None);
    let root = host.files.join("root");
    for dir in ["etc", "bin", "proc", "var"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::write(root.join("bin/sh"), "").unwrap();
    fs::set_permissions(root.join("bin/sh"), fs::Permissions::from_mode(0o755)).unwrap();
    trees::run("mount", &["-t", "proc", "none", root.join("proc").to_str().unwrap()]);
    let _proc = Mounted(root.join("proc"));
    host.registered("root").await.unwrap();
    trees::run("mount", &["-t", "tmpfs", "none", root.join("var").to_str().unwrap()]);
    let mounted = Mounted(root.join("var"));
    let refused = host.refused("root").await;
    assert_eq!(refused.code, ErrorCode::FailedPrecondition);
    assert!(refused.message.contains("root/var is another filesystem"), "{refused}");
    host.assert_no_staging();
    drop(mounted);
    host.registered("root").await.unwrap();
}

/// That no loop device and no mount has to do with the host's files.
async fn assert_nothing_mounted(host: &Host) {
    let state = host.state.display().to_string();
    testkit::wait_until("loop devices and mounts to be gone", Duration::from_secs(10), async || {
        let loops = ran(Command::new("losetup").args(["--list", "--noheadings", "--output", "BACK-FILE"]));
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        (!loops.contains(&state) && !mounts.contains(&state)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn squashfs_and_erofs_files_are_images_with_all_that_is_in_them() {
    if !ran_well("losetup", "-f") {
        println!("skipped: there are no loop devices");
        return;
    }
    let host = Host::start(Limits::default(), None);
    let dir = host.files.join("tree");
    rich_tree(&dir);
    let mut names = vec!["plain.erofs".to_owned(), "lz4.erofs".to_owned()];
    erofs(&dir, &host.files.join(&names[0]), &[]);
    erofs(&dir, &host.files.join(&names[1]), &["-zlz4hc"]);
    for packer in ["gzip", "xz", "zstd", "lz4", "lzo"] {
        let name = format!("{packer}.squashfs");
        squashfs(&dir, &host.files.join(&name), packer);
        names.push(name);
    }
    for (n, name) in names.iter().enumerate() {
        let (rootfs, image) = host.registered(name).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(image.architecture, "amd64");
        ran(Command::new("e2fsck").arg("-fn").arg(&rootfs));
        let mounted = Mounted::new(&rootfs, host.files.join(format!("mounted-{n}")));
        assert_same([describe(&mounted.0), describe(&dir)]);
    }
    assert_nothing_mounted(&host).await;
    host.assert_no_staging();
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_and_hostile_squashfs_and_erofs_files_are_refused_and_leave_nothing() {
    if !ran_well("losetup", "-f") {
        println!("skipped: there are no loop devices");
        return;
    }
    let host = Host::start(Limits { unpacked: 4 << 20, ..Limits::default() }, None);
    let (small, large) = (host.files.join("small"), host.files.join("large"));
    tree(&small);
    fs::write(small.join("packed"), "warren ".repeat(100_000)).unwrap();
    fs::write(small.join("noise"), noise()).unwrap();
    squashfs(&small, &host.files.join("socket.squashfs"), "gzip");
    fs::remove_file(small.join("etc/socket")).unwrap();
    rich_tree(&large);
    let mut cases = vec![("socket.squashfs".to_owned(), "socket")];
    for kind in ["squashfs", "erofs"] {
        let made = |dir: &Path, name: &str| {
            let path = host.files.join(format!("{name}.{kind}"));
            if kind == "erofs" {
                erofs(dir, &path, &["-zlz4hc"])
            } else {
                squashfs(dir, &path, "gzip")
            }
            fs::read(path).unwrap()
        };
        made(&large, "large");
        let whole = made(&small, "small");
        host.registered(format!("small.{kind}")).await.unwrap();
        let write = |name: &str, bytes: &[u8]| fs::write(host.files.join(format!("{name}.{kind}")), bytes).unwrap();
        write("half", &whole[..whole.len() / 2]);
        write("mark", &whole[..1100]);
        let mut garbage = whole.clone();
        garbage[if kind == "erofs" { 1152 } else { 96 }..]
            .iter_mut()
            .enumerate()
            .for_each(|(n, byte)| *byte = (n * 7) as u8);
        write("garbage", &garbage);
        cases.extend(["half", "mark", "garbage"].map(|name| (format!("{name}.{kind}"), kind)));
        cases.push((format!("large.{kind}"), "bytes"));
    }
    let mut devices = fs::read(host.files.join("small.erofs")).unwrap();
    devices[1024 + 80] |= 8;
    fs::write(host.files.join("devices.erofs"), devices).unwrap();
    cases.push(("devices.erofs".to_owned(), "other devices"));
    for (name, says) in cases {
        let error = host.registered(&name).await.expect_err(&name);
        assert!(error.code == ErrorCode::InvalidArgument && error.message.contains(says), "{name}: {error}");
        host.assert_no_staging();
        assert_nothing_mounted(&host).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_root_filesystem_is_refused_and_leaves_nothing() {
    let host = Host::start(Limits { unpacked: 1 << 30, ..Limits::default() }, None);
    fs::create_dir(host.files.join("empty")).unwrap();
    ext4(&host.files.join("empty"), &host.files.join("empty.ext4"));
    fs::write(host.files.join("text"), "hello").unwrap();
    fs::write(host.files.join("qcow2"), [&b"QFI\xfb"[..], &[0; 4096]].concat()).unwrap();
    tree(&host.files.join("tree"));
    ext4(&host.files.join("tree"), &host.files.join("short"));
    OpenOptions::new().write(true).open(host.files.join("short")).unwrap().set_len(32 << 20).unwrap();
    ext4(&host.files.join("tree"), &host.files.join("damaged"));
    let damaged = OpenOptions::new().write(true).open(host.files.join("damaged")).unwrap();
    // The group descriptors.
    damaged.write_all_at(&[0xff; 64], 4096).unwrap();
    File::create(host.files.join("huge")).unwrap().set_len(2 << 30).unwrap();
    symlink("/etc", host.files.join("etc")).unwrap();
    nix::unistd::mkfifo(&host.files.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let (kind, mode) = (nix::sys::stat::SFlag::S_IFBLK, nix::sys::stat::Mode::S_IRUSR);
    nix::sys::stat::mknod(&host.files.join("device"), kind, mode, nix::sys::stat::makedev(7, 250)).unwrap();
    for (path, code, says) in [
        ("empty.ext4", ErrorCode::InvalidArgument, "no init and no shell"),
        ("empty", ErrorCode::InvalidArgument, "no init and no shell"),
        ("text", ErrorCode::InvalidArgument, "neither"),
        ("qcow2", ErrorCode::InvalidArgument, "qcow2"),
        ("short", ErrorCode::InvalidArgument, "blocks"),
        ("damaged", ErrorCode::FailedPrecondition, "has errors"),
        ("huge", ErrorCode::InvalidArgument, "more than"),
        ("none", ErrorCode::InvalidArgument, "none"),
        ("etc/passwd", ErrorCode::InvalidArgument, "etc"),
        ("etc", ErrorCode::InvalidArgument, "etc"),
        ("../state", ErrorCode::InvalidArgument, "state"),
        ("fifo", ErrorCode::InvalidArgument, "neither a file nor a directory"),
        ("device", ErrorCode::InvalidArgument, "device"),
        ("/etc/passwd", ErrorCode::PermissionDenied, "not below"),
    ] {
        let error = host.refused(path).await;
        assert!(error.code == code && error.message.contains(says), "{path}: {error}");
        host.assert_no_staging();
    }
    let upload = FileSource::Upload { session: SessionId::new(), label: String::new() };
    assert_eq!(host.staged(upload, ImageConfig::default()).await.unwrap_err().code, ErrorCode::Unavailable);
    assert_eq!(testkit::lab::entries(&host.state.join("images")), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_written_to_meanwhile_is_no_image() {
    let host = Host::start(Limits::default(), None);
    let path = host.files.join("disk");
    let file = File::create(&path).unwrap();
    file.write_all_at(&vec![1; 64 << 20], 0).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let writing = std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            file.write_all_at(b"x", 5).unwrap();
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    let error = host.refused("disk").await;
    stop.store(true, Ordering::Relaxed);
    writing.join().unwrap();
    assert!(error.code == ErrorCode::Aborted && error.message.contains("changed"), "{error}");
    host.assert_no_staging();
}

/// The opener's end of an upload, which a host is told to take.
async fn upload(host: &Host, bus: &Bus) -> (ByteStream, Fence, StageRequest) {
    let session = SessionId::new();
    let stream = ByteStream::open_within(bus, session, Duration::from_secs(60)).await.unwrap();
    let fence = Fence { operation: OperationId::new(), epoch: 1 };
    let from = FileSource::Upload { session, label: "web".into() };
    let request =
        StageRequest { fence, source: StageSource::File { from, config: ImageConfig::default() }, wait_ms: 0 };
    host.images.stage(&request).await.unwrap();
    (stream, fence, request)
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_arrive_and_those_that_break_off_leave_nothing() {
    let nats = Nats::start().await;
    let bus = Bus::connect(&BusConfig::new(nats.url(), "test")).await.unwrap();
    let host = Host::start(Limits::default(), Some(bus.clone()));
    tree(&host.files.join("tree"));
    let path = host.files.join("root.ext4");
    ext4(&host.files.join("tree"), &path);
    let (_, image) = host.registered("root.ext4").await.unwrap();
    let mut sender = Sender::new(Vec::new()).unwrap();
    let length = sender.file(&File::open(&path).unwrap(), |_| ()).unwrap();
    let bytes = sender.finish(length).unwrap();

    let (mut stream, _, request) = upload(&host, &bus).await;
    stream.write_all(&bytes).await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "the host says that it has it");
    match host.images.stage(&StageRequest { wait_ms: 60_000, ..request }).await.unwrap() {
        StageStatus::Done { image: uploaded } => assert_eq!(uploaded, image),
        other => panic!("{other:?}"),
    }

    // The sender goes; what is sent is no such thing; the upload is called off.
    let (mut stream, _, request) = upload(&host, &bus).await;
    stream.write_all(&bytes[..bytes.len() / 2]).await.unwrap();
    drop(stream);
    match host.images.stage(&StageRequest { wait_ms: 60_000, ..request }).await.unwrap() {
        StageStatus::Failed { error } => assert_eq!(error.code, ErrorCode::Unavailable, "{error}"),
        other => panic!("{other:?}"),
    }
    let (mut stream, _, request) = upload(&host, &bus).await;
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    stream.shutdown().await.unwrap();
    match host.images.stage(&StageRequest { wait_ms: 60_000, ..request }).await.unwrap() {
        StageStatus::Failed { error } => assert_eq!(error.code, ErrorCode::InvalidArgument, "{error}"),
        other => panic!("{other:?}"),
    }
    assert!(stream.read(&mut [0]).await.unwrap_err().to_string().contains("upload"), "the sender is told");
    let (mut stream, fence, request) = upload(&host, &bus).await;
    stream.write_all(&bytes[..bytes.len() / 2]).await.unwrap();
    stream.flush().await.unwrap();
    host.images.discard(&DiscardRequest { fence }).await.unwrap();
    assert_eq!(host.images.stage(&request).await.unwrap_err().code, ErrorCode::Aborted);
    let told = stream.read(&mut [0]).await.unwrap_err();
    assert!(told.to_string().contains("discarded"), "{told}");

    let mut object = tempfile::NamedTempFile::new().unwrap();
    object.write_all(&fs::read(&path).unwrap()).unwrap();
    let store = async_nats::jetstream::object_store::Config { bucket: "images".into(), ..Default::default() };
    let store = bus.jetstream().create_object_store(store).await.unwrap();
    let mut reader = tokio::fs::File::open(object.path()).await.unwrap();
    store.put("web", &mut reader).await.unwrap();
    let (rootfs, stored) = host.staged(FileSource::Object("images/web".into()), ImageConfig::default()).await.unwrap();
    assert_eq!(stored, image);
    assert!(rootfs.metadata().unwrap().blocks() * 512 < 16 << 20, "its zeros were written");
    for none in ["images/none", "none/web"] {
        let error = host.staged(FileSource::Object(none.into()), ImageConfig::default()).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::NotFound, "{error}");
    }
    let left: Vec<_> = testkit::lab::entries(&host.state.join("staging"));
    assert_eq!(left.len(), 1, "only the staging that was not published: {left:?}");
}
