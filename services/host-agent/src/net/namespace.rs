//! Network namespaces, kept by a bind mount below `/run/netns` as ip-netns(8) does, so that `ip netns` shows them.

use std::{
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use contract::HostId;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use super::{NetError, system};

const DIR: &str = "/run/netns";

/// A named network namespace.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: String,
    path: PathBuf,
}

impl Namespace {
    /// The namespace of a host's lab.
    pub fn of(host: &HostId) -> Self {
        let name = format!("warren-{host}");
        Self { path: Path::new(DIR).join(&name), name }
    }

    /// Its name for `ip netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is pinned.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is there.
    pub fn exists(&self) -> bool {
        // A mere file is what a removed or half-made namespace leaves.
        nix::sys::statfs::statfs(&self.path).is_ok_and(|stat| stat.filesystem_type() == nix::sys::statfs::NSFS_MAGIC)
    }

    /// Its descriptor, for setns(2).
    ///
    /// # Errors
    /// It is not there.
    pub fn open(&self) -> io::Result<File> {
        File::open(&self.path)
    }

    /// Makes it when it is missing.
    pub(super) fn ensure(&self) -> Result<(), NetError> {
        if self.exists() {
            return Ok(());
        }
        let what = || format!("the network namespace {} cannot be made", self.name);
        fs::create_dir_all(DIR).map_err(system(what()))?;
        File::create(&self.path).map_err(system(what()))?;
        let path = self.path.clone();
        // A thread of its own leaves its namespace for a fresh one, pins that, and ends.
        let made = std::thread::spawn(move || -> io::Result<()> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            mount(Some("/proc/thread-self/ns/net"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            Ok(())
        });
        joined(made).map_err(system(what()))
    }

    /// A non-blocking IPv4 socket in the namespace: it stays there, whoever uses it.
    pub(super) fn socket(&self, kind: SockType) -> io::Result<OwnedFd> {
        let file = self.open()?;
        let thread = std::thread::spawn(move || {
            setns(&file, CloneFlags::CLONE_NEWNET)?;
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            Ok(socket(AddressFamily::Inet, kind, flags, None)?)
        });
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread failed unexpectedly")))
    }

    /// Unpins it; it goes when its last process does.
    pub(super) fn remove(&self) -> Result<(), NetError> {
        let what = || format!("the network namespace {} cannot be removed", self.name);
        if self.exists() {
            umount2(&self.path, MntFlags::MNT_DETACH).map_err(system(what()))?;
        }
        crate::files::remove_file(&self.path).map_err(system(what()))
    }
}

fn joined(thread: std::thread::JoinHandle<io::Result<()>>) -> io::Result<()> {
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread failed unexpectedly")))
}
