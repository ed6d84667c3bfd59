//! An **erofs** filesystem becomes an archive while it is read: `fsck.erofs` reads all of it in the cage of tools, and only what that found
//! whole is mounted, where nothing but the one `tar` that reads it sees it.

use std::{
    ffi::{CStr, CString},
    fs::{self, File},
    io,
    os::unix::{ffi::OsStrExt, fs::FileExt, process::CommandExt},
    path::Path,
    process::Command,
};

use archive::program;
use contract::ApiError;
use nix::{
    libc,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        resource::{Resource, setrlimit},
    },
    unistd::{Pid, chdir, setpgid},
};

use super::{
    super::{
        storage_error,
        tool::{Patient, Stream, end_with, not_run, surround},
    },
    Work,
    loops::Loop,
    tree,
};

/// What the tool takes for the present time: it writes nothing.
const NOW: u64 = 1;
/// What errors call it.
const WHAT: &str = "erofs filesystem";
/// The directory of the staging below which it is mounted, for `tar` alone.
const MOUNT: &str = "mounted";
/// Bytes of memory `tar` may ask for.
const MEMORY: u64 = 2 << 30;
/// `CAP_DAC_READ_SEARCH` and `CAP_SYS_ADMIN` (linux/capability.h), by which it reads.
const READING: [u64; 2] = [2, 21];
/// Where the superblock's `feature_incompat` is, and its bit for further devices (`EROFS_FEATURE_INCOMPAT_DEVICE_TABLE`).
const FEATURES: (u64, u32) = (1024 + 80, 8);

/// Writes its files as an ext4 filesystem.
///
/// # Errors
/// It is damaged, hostile, over a limit, of a kind that tool or kernel cannot read, something is missing on the host, or the disk is full.
pub(super) fn write(work: &Work<'_>, given: &Path) -> Result<(), ApiError> {
    let failed = |error: io::Error| storage_error(given, &error);
    let file = File::open(given).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    alone(&file)?;
    whole(&Patient::take(given, work.operation, NOW, work.cancel)?)?;
    let mounted = work.dir.join(MOUNT);
    fs::create_dir(&mounted).map_err(|error| storage_error(&mounted, &error))?;
    let archive = archive(work, &file, &mounted)?;
    tree::unpack(work, size, 0, archive)?;
    fs::remove_dir(&mounted).map_err(|error| storage_error(&mounted, &error))
}

/// That it names no further devices: some kernels would open those of this host.
fn alone(file: &File) -> Result<(), ApiError> {
    let mut features = [0; 4];
    let (at, devices) = FEATURES;
    let read = file.read_exact_at(&mut features, at);
    if read.is_ok() && u32::from_le_bytes(features) & devices == 0 {
        return Ok(());
    }
    Err(ApiError::invalid_argument("the erofs filesystem is cut off, or parts of it are on other devices")
        .hint("make it as one file: `mkfs.erofs FILE DIRECTORY`"))
}

fn whole(patient: &Patient<'_>) -> Result<(), ApiError> {
    let said = patient.run("fsck.erofs", &["--extract"], &[], b"", &[])?;
    if said.code() == Some(0) {
        return Ok(());
    }
    tracing::info!(code = ?said.code(), output = %String::from_utf8_lossy(&said.output), "an erofs filesystem is refused");
    let why = match said.code() {
        Some(_) => said.last_line(),
        None => "fsck.erofs was ended by a signal".to_owned(),
    };
    Err(ApiError::invalid_argument(format!("the {WHAT} cannot be read: {why}"))
        .hint("it is damaged, or packed with what the host's fsck.erofs does not know; lz4 is known everywhere"))
}

/// Starts `tar` in a namespace of mounts of its own, with the filesystem mounted there: both are gone when it is.
fn archive(work: &Work<'_>, file: &File, mounted: &Path) -> Result<Stream, ApiError> {
    let device = Loop::new(file).map_err(|error| {
        ApiError::failed_precondition(format!("the host has no loop device for an erofs filesystem: {error}"))
            .hint("`modprobe loop`; `losetup -a` shows which are in use")
    })?;
    let path =
        |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(|error| ApiError::internal(error.to_string()));
    let (source, target, parent) = (path(&device.path)?, path(mounted)?, nix::unistd::getpid());
    let mut command = program::whole(Path::new("/"));
    surround(&mut command);
    // SAFETY: between fork and exec only system calls are made, and no memory is allocated.
    unsafe {
        command.pre_exec(move || enter(&source, &target, parent));
    }
    start(work, &mut command)
}

fn start(work: &Work<'_>, command: &mut Command) -> Result<Stream, ApiError> {
    let started = Stream::start((WHAT, "tar"), command, work.limits.unpacked, work.cancel);
    started.map_err(|error| match nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or_default()) {
        nix::errno::Errno::ENOENT => not_run("tar", &error),
        nix::errno::Errno::ENODEV => ApiError::failed_precondition("the host's kernel knows no erofs")
            .hint("`modprobe erofs`; or register the directory it was made of"),
        nix::errno::Errno::EPERM | nix::errno::Errno::EACCES => {
            ApiError::failed_precondition(format!("the host-agent may not mount an erofs filesystem: {error}"))
                .hint("it needs CAP_SYS_ADMIN; or register the directory it was made of")
        }
        _ => ApiError::invalid_argument(format!("the host's kernel cannot mount the {WHAT}: {error}"))
            .hint("it may be made for a newer kernel"),
    })
}

/// Leaves the program that is begun next no capability but to read what is not its own, `trusted.` attributes with it (capabilities(7)).
fn keep_only_reading() -> io::Result<()> {
    for capability in (0..u64::from(u8::MAX)).filter(|capability| !READING.contains(capability)) {
        // SAFETY: it takes a number and touches no memory.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        match nix::errno::Errno::result(dropped) {
            // The kernel knows no more.
            Err(nix::errno::Errno::EINVAL) => break,
            dropped => dropped.map(drop)?,
        }
    }
    Ok(())
}

/// Mounts and goes there, in namespaces of its own, within limits. Between fork and exec.
fn enter(source: &CStr, target: &CStr, parent: Pid) -> io::Result<()> {
    const NOTHING: Option<&CStr> = None;
    setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
    setrlimit(Resource::RLIMIT_AS, MEMORY, MEMORY)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC)?;
    mount(NOTHING, c"/", NOTHING, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NOTHING)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(Some(source), target, Some(c"erofs"), flags, NOTHING)?;
    chdir(target)?;
    keep_only_reading()?;
    prctl::set_no_new_privs()?;
    end_with(parent)
}
