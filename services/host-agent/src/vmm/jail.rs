//! What a VMM process is allowed: a user id of its own, its own control group, few and small files, and only those files of the
//! host that were opened for it.

use std::{
    fs::{self, File, OpenOptions},
    io,
    net::Ipv4Addr,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::fs::{MetadataExt, PermissionsExt, chown},
    },
    path::Path,
};

use contract::agent::VmSpec;
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    libc,
    sys::resource::{Resource, setrlimit},
    unistd::{Gid, Uid, setgid, setgroups, setuid},
};

/// Where the user ids of VMMs begin: in the range systemd's UIDS-GIDS.md leaves to nobody, so that no user and no container
/// has them.
const FIRST_ID: u32 = 0x7700_0000;
/// Descriptors a VMM may have.
const DESCRIPTORS: u64 = 1024;
/// Bytes a file of a VMM's may have beyond its largest disk.
const FILE_SLACK: u64 = 1 << 30;

/// Who a VM's VMM runs as: no other VMM of the lab on this machine has the same id.
pub fn user(address: Ipv4Addr) -> u32 {
    FIRST_ID + (u32::from(address) & 0xffff)
}

/// Files of the host that are opened for a VMM, which could not open them itself.
#[derive(Debug, Default)]
pub struct Files(Vec<OwnedFd>);

impl Files {
    /// Opens one; the path by which the VMM opens it again.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(&mut self, path: &Path, write: bool) -> io::Result<String> {
        let file = OpenOptions::new()
            .read(true)
            .write(write)
            .open(path)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        Ok(format!("/proc/self/fd/{}", self.give(file.into())))
    }

    /// Opens one that several VMMs read, and makes it readable to them whatever umask it was made under; whoever is not given it
    /// is kept out by the directory above.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open_shared(&mut self, path: &Path) -> io::Result<String> {
        let mode = fs::metadata(path)?.permissions().mode();
        if mode & 0o444 != 0o444 {
            fs::set_permissions(path, fs::Permissions::from_mode(mode | 0o444))?;
        }
        self.open(path, false)
    }

    /// Hands an open file on; its number.
    pub fn give(&mut self, file: OwnedFd) -> RawFd {
        let number = file.as_raw_fd();
        self.0.push(file);
        number
    }
}

/// How a VMM is confined; made before the fork, applied after it.
#[derive(Debug)]
pub struct Jail {
    user: Option<u32>,
    groups: Vec<Gid>,
    files: Files,
    cgroup: Option<OwnedFd>,
    file_size: u64,
}

impl Jail {
    /// For that VM. `root` leaves it root's, where the machine gives nobody else `/dev/kvm`.
    pub fn new(spec: &VmSpec, files: Files, cgroup: Option<OwnedFd>, root: bool) -> Self {
        let disks = spec.features.disks.iter().map(|disk| disk.size.bytes());
        let largest = disks.chain([spec.disk.bytes()]).max().unwrap_or_default();
        Self {
            user: (!root).then(|| user(spec.address.addr())),
            groups: kvm_group().into_iter().collect(),
            files,
            cgroup,
            file_size: file_size(largest) + FILE_SLACK,
        }
    }

    /// Makes files the VMM's own.
    ///
    /// # Errors
    /// They are not there, or not on a filesystem with owners.
    pub fn own(&self, paths: &[&Path]) -> io::Result<()> {
        let Some(user) = self.user else { return Ok(()) };
        paths.iter().try_for_each(|path| chown(path, Some(user), Some(user)))
    }

    /// Confines the calling process, between fork and exec: system calls only, no memory is allocated.
    pub fn enter(&self) -> io::Result<()> {
        if let Some(cgroup) = &self.cgroup {
            nix::unistd::write(cgroup, b"0")?;
        }
        for file in &self.files.0 {
            fcntl(file, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        limit(Resource::RLIMIT_FSIZE, self.file_size)?;
        limit(Resource::RLIMIT_NOFILE, DESCRIPTORS)?;
        limit(Resource::RLIMIT_CORE, 0)?;
        // SAFETY: ignoring a signal has no handler that could run. A write past the limit then fails instead of ending the VMM.
        unsafe { nix::sys::signal::signal(nix::sys::signal::Signal::SIGXFSZ, nix::sys::signal::SigHandler::SigIgn) }?;
        if let Some(user) = self.user {
            setgroups(&self.groups)?;
            setgid(Gid::from_raw(user))?;
            setuid(Uid::from_raw(user))?;
        }
        nix::sys::prctl::set_no_new_privs()?;
        Ok(())
    }
}

/// The bytes of a file that holds a disk of so many: a qcow2 overlay is larger than what it holds by its tables.
fn file_size(disk: u64) -> u64 {
    disk + disk / 100
}

/// Lets a running VMM have a disk of so many bytes. Within [`FILE_SLACK`] of its largest it may anyway.
///
/// # Errors
/// `PermissionDenied`: it has a lower limit, and this agent lacks CAP_SYS_RESOURCE, which prlimit(2) asks for.
pub fn allow_disk(pid: u32, disk: u64) -> io::Result<()> {
    let wanted = file_size(disk);
    let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let hard = limits.lines().find_map(|line| line.strip_prefix("Max file size")?.split_whitespace().nth(1));
    if hard.is_some_and(|hard| hard == "unlimited" || hard.parse().is_ok_and(|hard: u64| hard >= wanted)) {
        return Ok(());
    }
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    let limit = libc::rlimit { rlim_cur: wanted + FILE_SLACK, rlim_max: wanted + FILE_SLACK };
    // SAFETY: prlimit(2) reads `limit`, which lives until it returns, and is given nowhere to write the old one.
    match unsafe { libc::prlimit(pid, libc::RLIMIT_FSIZE, &raw const limit, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets a limit, or leaves a lower one.
fn limit(resource: Resource, wanted: u64) -> nix::Result<()> {
    let (_, hard) = nix::sys::resource::getrlimit(resource)?;
    let wanted = if hard == libc::RLIM_INFINITY { wanted } else { wanted.min(hard) };
    setrlimit(resource, wanted, wanted)
}

/// The group that may use KVM, where one may.
fn kvm_group() -> Option<Gid> {
    let metadata = fs::metadata("/dev/kvm").ok()?;
    (metadata.mode() & 0o060 == 0o060).then(|| Gid::from_raw(metadata.gid()))
}

/// Whether somebody who is not root may use KVM.
pub fn kvm_for_others() -> bool {
    let open_to_all = fs::metadata("/dev/kvm").is_ok_and(|metadata| metadata.mode() & 0o006 == 0o006);
    open_to_all || kvm_group().is_some()
}

/// Makes the directory in which a VM's VMM puts its sockets and its console: the VMM's own, nobody else's.
///
/// # Errors
/// The disk is full or not writable.
pub fn make_run_dir(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

/// Opens a file in a directory that a VMM owns: never what a link there leads to.
///
/// # Errors
/// It is not there, or is a link.
pub fn open_untrusted(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}
